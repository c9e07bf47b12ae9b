//! `unionmount snapshot`, `snapshots`, `rollback`, `branch`: earlier states of an upper.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::how_mounted::HowMounted;
use super::output::{self, Format};
use super::page::Page;
use super::store::StoreArgs;
use super::whose::{Whose, mount_of, whose};
use super::{Failure, discard, say, using};
use crate::container::snapshots::Reached;
use crate::container::{Container, ContainerState};
use crate::control::client::Client;
use crate::control::mounts::Mount;
use crate::explain::names;
use crate::image::store::Store;
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::listing::{self, Listed};
use crate::union::frozen::snapshot::Target;
use crate::union::frozen::{branch, removal, rollback, snapshot};

/// Which upper, and how it is mounted.
#[derive(Debug, Args)]
struct TargetArgs {
    #[command(flatten)]
    store: StoreArgs,

    /// The layers below, as for the mount; may repeat. They are recorded, and needed where a file has names that only they have
    #[arg(long = "lower", value_name = "DIR[:DIR…]")]
    lowers: Vec<OsString>,

    #[command(flatten)]
    how: HowMounted,
}

impl TargetArgs {
    fn is_said(&self) -> bool {
        !self.lowers.is_empty() || self.how.is_said()
    }

    /// Finds out how a container's upper is reached.
    fn reach(&self, store: &Store, container: &Container) -> Result<Reached, Failure> {
        if self.is_said() {
            return Err(Failure::usage("--lower, --work and --userxattr are known of a container"));
        }
        Ok(container.reach(store)?)
    }

    fn target(&self, upper: &Path) -> Result<Target, Failure> {
        is_not_mounted(upper)?;
        let lowers = super::lowers::named(&self.lowers)?;
        Ok(Target {
            upper: upper.to_owned(),
            work: self.how.work.clone(),
            lowers: super::lowers::sources(lowers)?,
            xattr: self.how.xattr(),
            is_containers: false,
        })
    }
}

/// Refuses what is in a mount: it is the upper that has snapshots.
pub(super) fn is_not_mounted(upper: &Path) -> Result<(), Failure> {
    let shown = EscapedPath::from(upper);
    match mount_of(upper)? {
        Some(_) => Err(Failure::failed(format!(
            "{shown}: lies in a mount; unmount it, and name its upper directory (unionmount status {shown} tells which)"
        ))),
        None => Ok(()),
    }
}

/// Keep the state of an upper: what is in it becomes a read-only layer, below a new empty upper
///
/// Named by its mount point, a mount goes on, and so does a container: programs that use it notice nothing, what they wrote before is in the snapshot, and
/// what they write afterwards isn't. Named as a directory, the upper must not be mounted. The layer is an ordinary one of an
/// overlay, in .NAME.layers beside the upper; `unionmount --upper` mounts the same tree as before.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Snapshot {
    #[command(flatten)]
    target: TargetArgs,

    /// The mount point, a container, or the upper directory
    #[arg(value_name = "MOUNT|CONTAINER|UPPER")]
    upper: PathBuf,

    /// What the snapshot is to be called [default: a number]
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

const EXAMPLES: &str = "\
EXAMPLES:
  Keep the state of a mount, while it is used:
      unionmount snapshot mnt before

  Keep a state, go on, and go back:
      unionmount snapshot rw before
      unionmount snapshots rw
      unionmount rollback rw before

  Of a container, and an image of that state:
      unionmount snapshot build before
      unionmount commit build@before tried:before

  With what lies below, so that the mount needs only the upper afterwards:
      unionmount snapshot --lower app:base rw
      unionmount --upper rw mnt";

/// List the snapshots of an upper, or remove some
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_value_name = "VERB",
    disable_help_subcommand = true
)]
pub(super) struct Snapshots {
    #[command(flatten)]
    store: StoreArgs,

    #[command(subcommand)]
    verb: Option<SnapshotsVerb>,

    /// Print names alone
    #[arg(short, long, conflicts_with_all = ["format", "json"])]
    quiet: bool,

    /// Print everything as JSON
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// json, table, or a Go template. Fields: Name, CreatedAt, CreatedSince, Files, Size, Bytes, State, Branches, Layer, NeedsUnionmount
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,

    /// The mount point, a container, or the upper directory
    #[arg(value_name = "MOUNT|CONTAINER|UPPER", required = true)]
    upper: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum SnapshotsVerb {
    Rm(Remove),
}

/// Remove snapshots of an upper, on which nothing stands
#[derive(Debug, Args)]
struct Remove {
    #[command(flatten)]
    store: StoreArgs,

    /// Also where a branch of it isn't found any more
    #[arg(short, long)]
    force: bool,

    /// The upper directory, or a container
    #[arg(value_name = "CONTAINER|UPPER")]
    upper: PathBuf,

    /// The snapshots
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Throw away what was changed in an upper since a snapshot
///
/// Named by its mount point, a mount goes on. What programs have open and is no more answers with an error (ESTALE) from then on, so
/// it is refused while any has something open there; --force does it. The same for a container, but not one that runs. Named as a directory, the upper must
/// not be mounted. Later
/// snapshots stay, and can be gone to likewise; `unionmount snapshots rm` removes them.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    #[command(flatten)]
    store: StoreArgs,

    /// Also while programs have something open in the mount, or something is mounted in it
    #[arg(short, long)]
    force: bool,

    /// The workdir that its mounts have, where it isn't the one beside it
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,

    /// The mount point, a container, or the upper directory
    #[arg(value_name = "MOUNT|CONTAINER|UPPER")]
    upper: PathBuf,

    /// The snapshot; 0 is the state before the first [default: the last one that the upper lies on]
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Make a new upper over what an upper shows: both go on from there, each by itself
///
/// A snapshot of the upper is taken for it, which both share; so it takes no room and no time. Mount the new one with the same
/// --lower. Named by its mount point, a mount goes on; named as a directory, the upper must not be mounted. Of a container it is a new
/// container of that name, with the same settings.
#[derive(Debug, Args)]
pub(super) struct Branch {
    #[command(flatten)]
    target: TargetArgs,

    /// The mount point, a container, or the upper directory
    #[arg(value_name = "MOUNT|CONTAINER|UPPER")]
    upper: PathBuf,

    /// The new upper directory, which is made, or the new container's name
    #[arg(value_name = "NEW")]
    new: PathBuf,
}

impl Snapshot {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        super::logging::start_for_verb();
        let taken = match whose(&self.target.store, &self.upper)? {
            Whose::Mount(mount) => self.of_mount(&mount)?,
            Whose::Container(store, container) => match self.target.reach(&store, &container)? {
                Reached::Mounted(mount) => self.of_mount(&mount)?,
                Reached::Lying(target, _lowers) => self.of_target(&target)?,
            },
            Whose::Upper => self.of_target(&self.target.target(&self.upper)?)?,
        };
        Page::of_line(format_args!("{taken}")).print()?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Snapshot {
    fn of_target(&self, target: &Target) -> Result<String, Failure> {
        Ok(snapshot::snapshot(target, self.name.as_deref()).map_err(Failure::failed)?.name)
    }

    /// Lets the daemon of a mount take it.
    fn of_mount(&self, mount: &Mount) -> Result<String, Failure> {
        let mut client = ready_to_freeze(mount, &self.target)?;
        client.snapshot(self.name.as_deref()).map_err(|error| failed(mount, &error))
    }
}

impl Branch {
    /// Lets the daemon of a mount make it.
    fn of_mount(&self, mount: &Mount, new: &Path) -> Result<Option<String>, Failure> {
        // Where its working directory is isn't ours.
        let new = std::path::absolute(new).map_err(|error| failed(mount, &error))?;
        let mut client = ready_to_freeze(mount, &self.target)?;
        client.branch(&new).map_err(|error| failed(mount, &error))
    }
}

fn failed(mount: &Mount, error: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("{}: {error}", EscapedPath::from(mount.point.as_path())))
}

/// Connects with the daemon of a mount that is to freeze its upper. What was written before is told to it first.
fn ready_to_freeze(mount: &Mount, target: &TargetArgs) -> Result<Client, Failure> {
    if target.is_said() {
        return Err(Failure::usage("--lower, --work and --userxattr are known of what is mounted"));
    }
    write_back(mount)
        .map_err(|error| failed(mount, &format_args!("cannot write back what is changed: {error}")))?;
    Client::connect_within(mount, PATIENCE).map_err(|error| failed(mount, &error))
}

/// Lets the kernel write what was stored through mappings to a mount.
fn write_back(mount: &Mount) -> std::io::Result<()> {
    Ok(crate::sys::filesystem::sync(std::fs::File::open(&mount.point)?)?)
}

/// How long a daemon may take for a snapshot.
const PATIENCE: Duration = Duration::from_secs(600);

/// Asks the daemon of a mount which directory is its upper.
fn upper_of(mount: &Mount) -> Result<PathBuf, Failure> {
    let point = EscapedPath::from(mount.point.as_path());
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{point}: {error}"));
    let mut client = Client::connect(mount).map_err(|error| failed(&error))?;
    let status = client.status().map_err(|error| failed(&error))?;
    let upper = status.layers.into_iter().find(|layer| layer.layer == 0);
    upper
        .map(|layer| layer.directory.as_path().to_owned())
        .ok_or_else(|| failed(&"it is mounted read-only, without an upper that could have snapshots"))
}

impl Rollback {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        super::logging::start_for_verb();
        let to = match whose(&self.store, &self.upper)? {
            Whose::Mount(mount) => {
                if let Some(container) = Container::of_upper(&upper_of(&mount)?)? {
                    does_not_run(&container)?;
                }
                self.of_mount(&mount)?
            }
            Whose::Container(store, container) => {
                if self.work.is_some() {
                    return Err(Failure::usage("--work is known of a container"));
                }
                does_not_run(&container)?;
                match container.reach(&store)? {
                    Reached::Mounted(mount) => self.of_mount(&mount)?,
                    Reached::Lying(target, _lowers) => self.of_target(&target)?,
                }
            }
            Whose::Upper => {
                is_not_mounted(&self.upper)?;
                let (upper, work) = (self.upper.clone(), self.work.clone());
                self.of_target(&Target { upper, work, ..Target::default() })?
            }
        };
        Page::of_line(format_args!("{to}")).print()?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Rollback {
    fn of_target(&self, target: &Target) -> Result<String, Failure> {
        discard::is_unused(&target.upper)?;
        let done = rollback::rollback(target, self.name.as_deref()).map_err(Failure::failed)?;
        if let Some(left) = done.left {
            say(&format!("{left}; what was thrown away is removed by the next snapshot or rollback"));
        }
        Ok(done.to)
    }

    /// Lets the daemon of a mount do it.
    fn of_mount(&self, mount: &Mount) -> Result<String, Failure> {
        if self.work.is_some() {
            return Err(Failure::usage("--work is known of what is mounted"));
        }
        if !self.force {
            is_not_used(mount)?;
        }
        let point = EscapedPath::from(mount.point.as_path());
        let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{point}: {error}"));
        // No reason to refuse: what can't be written, such as to a full upper, is of what is thrown away.
        if let Err(error) = write_back(mount) {
            say(&format!(
                "{point}: what was changed last can't be written back, and is gone as well: {error}"
            ));
        }
        let mut client = Client::connect_within(mount, PATIENCE).map_err(|error| failed(&error))?;
        client.rollback(self.name.as_deref()).map_err(|error| failed(&error))
    }
}

/// Refuses a container that runs, however it was named: whatever is mounted on a name of it would be detached, /proc and volumes,
/// into whose places is written from then on.
fn does_not_run(container: &Container) -> Result<(), Failure> {
    if container.state()? != ContainerState::Running {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "container {} runs: a rollback would detach all that is mounted in it, /proc and volumes too; end it first",
        container.shown_name()
    )))
}

/// Refuses a mount in which somebody has something open, and tells who.
fn is_not_used(mount: &Mount) -> Result<(), Failure> {
    let point = EscapedPath::from(mount.point.as_path());
    if let Some(first) = using::mounted_on(mount)?.first() {
        return Err(Failure::failed(format!(
            "{point}: {first} is mounted in it, and would be detached; unmount that first, or: --force"
        )));
    }
    let users = using::users(mount)?;
    let told: Vec<String> = users
        .found
        .iter()
        .map(|user| {
            let what = match (user.is_inside, user.open) {
                (true, 0) => "its working directory".to_owned(),
                (false, 1) => "a file".to_owned(),
                (false, open) => format!("{open} files"),
                (true, open) => format!("its working directory, and {open} open"),
            };
            format!("{user} ({what})")
        })
        .collect();
    if told.is_empty() && users.unseen > 0 {
        return Err(Failure::failed(format!(
            "{point}: {} processes of other users can't be looked at, and may have something open there; ask as root, or with --force \
             what is no more fails for them with ESTALE",
            users.unseen
        )));
    }
    if told.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{point}: these have something open there: {}; end them, or with --force what is no more fails for them with ESTALE",
        using::some_of(told)
    )))
}

impl Branch {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        super::logging::start_for_verb();
        let taken = match whose(&self.target.store, &self.upper)? {
            Whose::Mount(mount) => self.of_mount(&mount, &self.new)?,
            Whose::Container(store, container) => self.of_container(&store, &container)?,
            Whose::Upper => {
                let target = self.target.target(&self.upper)?;
                branch::branch(&target, &self.new).map_err(Failure::failed)?
            }
        };
        if let Some(taken) = taken {
            let upper = EscapedPath::from(self.upper.as_path());
            say(&format!("{upper}: the snapshot {taken} was taken, which both share"));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Makes a new container, and prints its id.
    fn of_container(&self, store: &Store, of: &Container) -> Result<Option<String>, Failure> {
        let name = self.new.to_str().unwrap_or_default();
        let reached = self.target.reach(store, of)?;
        let mut taken = None;
        let made = Container::branch(store, of, name, |upper| {
            taken = match &reached {
                Reached::Mounted(mount) => self.of_mount(mount, upper)?,
                Reached::Lying(target, _lowers) => branch::branch(target, upper).map_err(Failure::failed)?,
            };
            Ok::<_, Failure>(())
        })?;
        Page::of_line(format_args!("{}", made.record.id)).print()?;
        Ok(taken)
    }
}

impl Snapshots {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        super::logging::start_for_verb();
        if let Some(SnapshotsVerb::Rm(remove)) = self.verb {
            let upper = match whose(&remove.store, &remove.upper)? {
                Whose::Container(_, container) => container.upper(),
                Whose::Mount(_) | Whose::Upper => {
                    is_not_mounted(&remove.upper)?;
                    remove.upper
                }
            };
            let going = listing::list(&upper).map_err(Failure::failed)?;
            for one in going.iter().filter(|one| !one.is_of_base && remove.names.contains(&one.layer.name)) {
                discard::is_unused(&one.place)?;
            }
            removal::remove(&upper, &remove.names, remove.force).map_err(Failure::failed)?;
            return Ok(ExitCode::SUCCESS);
        }
        let upper = self.upper.ok_or_else(|| Failure::usage("no upper directory is named"))?;
        let upper = match whose(&self.store, &upper)? {
            Whose::Mount(mount) => upper_of(&mount)?,
            Whose::Container(_, container) => container.upper(),
            Whose::Upper => {
                is_not_mounted(&upper)?;
                upper
            }
        };
        let all = listing::list(&upper).map_err(Failure::failed)?;
        let rows: Vec<Value> = all.iter().map(row).collect();
        if self.quiet {
            let mut page = Page::default();
            all.iter().for_each(|one| page.line(format_args!("{}", one.layer.name)));
            page.print()?;
            return Ok(ExitCode::SUCCESS);
        }
        if self.json {
            let mut page = Page::default();
            page.json(&rows)?;
            page.print()?;
            return Ok(ExitCode::SUCCESS);
        }
        let columns = [
            ("NAME", "Name"),
            ("CREATED", "CreatedSince"),
            ("FILES", "Files"),
            ("SIZE", "Size"),
            ("STATE", "State"),
            ("BRANCHES", "Branches"),
        ];
        Format::new(self.format.as_deref()).render(&columns, &rows)?.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn row(one: &Listed) -> Value {
    let made = jiff::Timestamp::from_second(one.layer.made).ok().map(|time| time.to_string());
    let state = match (one.is_of_base, one.is_below) {
        (true, _) => "below, of the base",
        (false, true) => "below",
        (false, false) => "aside",
    };
    let branches: Vec<String> =
        one.branches.iter().map(|at| EscapedPath::from(at.as_path()).to_string()).collect();
    json!({
        "Name": one.layer.name,
        "CreatedAt": made,
        "CreatedSince": output::age(made.as_deref()),
        "Files": one.content.files,
        "Size": names::bytes(one.content.bytes),
        "Bytes": one.content.bytes,
        "State": state,
        "Branches": branches.join(" "),
        "Layer": EscapedPath::from(one.place.as_path()),
        "NeedsUnionmount": one.content.needs_unionmount,
    })
}
