//! `unionmount layers add`, `remove`: other lowers for a mount that is used.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::super::lowers::from_everywhere;
use super::super::{Failure, using};
use crate::control::client::Client;
use crate::control::explanation::LayerReport;
use crate::control::mounts::{self, Mount};
use crate::control::protocol::{Request, Restacked};
use crate::control::users::{MountedOn, User, Users};
use crate::union::escaped_path::EscapedPath;
use crate::union::live::layers::{InUse, Lost, NamedLayer, Place};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Verb {
    Add(Add),
    Remove(Remove),
}

/// Add a layer to a mount, while it is used
///
/// The directory becomes one more lower, by default above the others. Programs go on, with what they have open; names that it has
/// appear, and names that it hides are gone. What is open and would be hidden isn't reached any more, so it is refused while anybody
/// uses such a thing, with who; --force does it. The change is of this mount: the next has the layers that it is given.
#[derive(Debug, Args)]
#[command(after_long_help = ADD_EXAMPLES)]
pub(in crate::cli) struct Add {
    /// Right above that layer: its number in unionmount status, or its directory
    #[arg(long, value_name = "LAYER", group = "place")]
    above: Option<OsString>,

    /// Right below that layer
    #[arg(long, value_name = "LAYER", group = "place")]
    below: Option<OsString>,

    /// Below all others
    #[arg(long, group = "place")]
    bottom: bool,

    /// Also when something that is in use is hidden: it fails with ESTALE then
    #[arg(short, long)]
    force: bool,

    /// The directory, an archive, or one layer of an image: image.tar,layer=2
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// The mount point
    #[arg(value_name = "MOUNT")]
    mount: PathBuf,
}

const ADD_EXAMPLES: &str = "\
EXAMPLES:
  A patch above all, and something to fall back to:
      unionmount layers add hotfix mnt
      unionmount layers add --bottom defaults mnt

  Above the layer base:
      unionmount layers add --above base plugins mnt";

/// Remove a layer from a mount, while it is used
///
/// What only that layer has is gone, what it hid appears. It is refused while anybody has something of it open, with who; --force
/// does it. It is refused, too, while a file of the upper has left its data in it (metacopy, lazy). The directory stays as it is.
#[derive(Debug, Args)]
pub(in crate::cli) struct Remove {
    /// Also when something of it is in use: it fails with ESTALE then
    #[arg(short, long)]
    force: bool,

    /// Its number in unionmount status, or its directory
    #[arg(value_name = "LAYER")]
    layer: OsString,

    /// The mount point
    #[arg(value_name = "MOUNT")]
    mount: PathBuf,
}

/// How long a daemon may take for it.
const PATIENCE: Duration = Duration::from_secs(600);

/// Where a layer is to come, by the words of mount(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Where {
    /// Above all other lowers.
    Top,
    /// Below all others.
    Bottom,
    /// Above the one of that number.
    Above(u16),
}

impl Verb {
    /// Adds a layer to the mount on `point`, if nothing that is in use is hidden.
    pub(in crate::cli) fn add(directory: PathBuf, place: Where, point: &Path) -> Verb {
        let above = match place {
            Where::Above(number) => Some(number.to_string().into()),
            Where::Top | Where::Bottom => None,
        };
        let bottom = place == Where::Bottom;
        Verb::Add(Add { above, below: None, bottom, force: false, directory, mount: point.to_owned() })
    }

    /// Removes a layer from the mount on `point`, if nothing of it is in use.
    pub(in crate::cli) fn remove(layer: OsString, point: &Path) -> Verb {
        Verb::Remove(Remove { force: false, layer, mount: point.to_owned() })
    }

    pub(in crate::cli) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Verb::Add(add) => add.run(),
            Verb::Remove(remove) => {
                let mount = mount_at(&remove.mount)?;
                let layer = named(&mount, &layers_of(&mount)?, &remove.layer)?;
                change(&mount, remove.force, |used| Request::RemoveLayer { layer, used })
            }
        }
    }
}

impl Add {
    fn run(self) -> Result<ExitCode, Failure> {
        let mount = mount_at(&self.mount)?;
        let shown = EscapedPath::from(self.directory.as_path());
        let failed = |error: std::io::Error| Failure::failed(format!("{shown}: {error}"));
        // Where the daemon's working directory is isn't ours.
        let (path, place) = from_everywhere(&self.directory).map_err(failed)?;
        let found = std::fs::metadata(place).map_err(failed)?;
        let place = match (&self.above, &self.below, self.bottom) {
            (Some(layer), ..) => Place::Above(named(&mount, &layers_of(&mount)?, layer)?),
            (_, Some(layer), _) => Place::Below(named(&mount, &layers_of(&mount)?, layer)?),
            (_, _, true) => Place::Bottom,
            _ => Place::Top,
        };
        let (directory, id) = (EscapedPath::from(path.as_path()), (found.dev(), found.ino()));
        change(&mount, self.force, |used| Request::AddLayer { directory, id, place, used })
    }
}

/// Finds the mount that is named by its mount point.
fn mount_at(point: &Path) -> Result<Mount, Failure> {
    let (mount, below) = mounts::of(point).map_err(Failure::failed)?;
    if !below.is_empty() {
        let (shown, at) = (EscapedPath::from(point), EscapedPath::from(mount.point.as_path()));
        return Err(Failure::usage(format!("{shown} lies in a mount; name the mount itself: {at}")));
    }
    Ok(mount)
}

fn failed(mount: &Mount, error: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("{}: {error}", EscapedPath::from(mount.point.as_path())))
}

fn layers_of(mount: &Mount) -> Result<Vec<LayerReport>, Failure> {
    let status = Client::connect(mount).and_then(|mut daemon| daemon.status());
    Ok(status.map_err(|error| failed(mount, &error))?.layers)
}

/// Finds the layer that is named by its number or its directory.
fn named(mount: &Mount, layers: &[LayerReport], text: &OsStr) -> Result<NamedLayer, Failure> {
    let number: Option<u16> = text.to_str().and_then(|text| text.parse().ok());
    let path = std::fs::canonicalize(text).ok();
    let is_it = |layer: &&LayerReport| {
        Some(layer.layer) == number
            || number.is_none()
                && (path.as_deref() == Some(layer.directory.as_path())
                    || layer.directory.0 == text.as_bytes())
    };
    let found = layers.iter().find(is_it).ok_or_else(|| {
        let told = format!(
            "no layer {}; unionmount status {} lists them",
            EscapedPath::from(text.as_bytes()),
            EscapedPath::from(mount.point.as_path())
        );
        failed(mount, &told)
    })?;
    Ok(NamedLayer { layer: found.layer, directory: found.directory.clone() })
}

/// Lets the daemon do it, unless something that is in use would be lost.
fn change(
    mount: &Mount,
    force: bool,
    request: impl FnOnce(Option<InUse>) -> Request,
) -> Result<ExitCode, Failure> {
    let (mut users, mut mounted) = (Users::default(), Vec::new());
    if !force {
        (users, mounted) = (using::users(mount)?, using::mounted_on(mount)?);
    }
    let used = InUse {
        inodes: users.found.iter().flat_map(|user| user.inodes.iter().copied()).collect::<BTreeSet<u64>>(),
        mounted: mounted.iter().map(|one| EscapedPath::from(one.within.as_path())).collect(),
        unseen: users.unseen,
    };
    let mut daemon = Client::connect_within(mount, PATIENCE).map_err(|error| failed(mount, &error))?;
    let done = daemon.restack(&request((!force).then_some(used))).map_err(|error| failed(mount, &error))?;
    match done {
        Restacked::Done => Ok(ExitCode::SUCCESS),
        Restacked::Used(lost) => Err(failed(mount, &told(&lost, &users.found, &mounted))),
    }
}

/// Says what would be lost, and who uses it.
fn told(lost: &[Lost], users: &[User], mounted: &[MountedOn]) -> String {
    let told = |lost: &Lost| {
        let path = &lost.path;
        if lost.is_mounted_on {
            let at = mounted.iter().find(|one| one.within == path.as_path());
            let at = at.map_or_else(|| path.to_string(), ToString::to_string);
            return format!("{at} (something is mounted there, and would be detached)");
        }
        let who = users.iter().filter(|user| user.inodes.contains(&lost.ino)).map(ToString::to_string);
        format!("{path} ({})", using::some_of(who.collect()))
    };
    format!(
        "the layers stay as they are: these are in use, and would be gone: {}; end the programs, or with --force it fails for them \
         with ESTALE",
        using::some_of(lost.iter().map(told).collect())
    )
}
