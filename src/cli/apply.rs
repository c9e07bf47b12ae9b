//! `unionmount apply`: brings what an upper changed into a directory.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::diff::layers_of;
use super::page::Page;
use super::store::{own_place, records};
use super::{Failure, say};
use crate::changes::apply::{self, Applied, Conflict, Does, Options, Policy, Why};
use crate::changes::stacked::Stacked;
use crate::container::commit;
use crate::control::mounts;
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below;

/// Bring what an upper changed into a directory, for instance into the one below it
///
/// All that is new is prepared beside its place first, so that what doesn't fit or can't be made leaves the directory as it
/// was. Then each file comes to its place in one step. What was interrupted, by a signal or a power failure, is finished by
/// the next call, which then applies what has changed since. The upper stays as it is; `unionmount discard` empties it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Apply {
    /// An upper directory; or a mount, by its mount point
    #[arg(value_name = "UPPER|MOUNT")]
    upper: PathBuf,

    /// The directory that is to become what the two show together [default: the one below the mount]
    #[arg(value_name = "TARGET")]
    target: Option<PathBuf>,

    #[command(flatten)]
    how: HowArgs,

    /// Give up what is half applied of UPPER to the directory: it stays as it is, and so does what was prepared, which is named
    #[arg(long, requires = "target", conflicts_with_all = ["dry_run", "force", "theirs"])]
    abandon: bool,
}

/// What becomes of what is in the way.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct HowArgs {
    /// Only tell what would be changed, and what is in the way
    #[arg(long)]
    dry_run: bool,

    /// Where the directory was changed since, the upper's version replaces it
    #[arg(long, conflicts_with = "theirs")]
    force: bool,

    /// Where the directory was changed since, that stays, and the rest is applied
    #[arg(long)]
    theirs: bool,
}

impl HowArgs {
    /// Returns what the arguments say.
    pub(super) fn policy(self) -> Policy {
        match (self.force, self.theirs) {
            (true, _) => Policy::Force,
            (_, true) => Policy::Theirs,
            _ => Policy::Refuse,
        }
    }
}

const EXAMPLES: &str = "\
EXAMPLES:
  What would be done; do it; empty the upper:
      unionmount apply --dry-run changes base
      unionmount apply changes base
      unionmount discard changes

CONFLICTS:
  What was changed in the directory since the upper hid it is listed, and nothing is touched. That is known from the times at
  which files were made and last changed, which nobody can set. --force lets the upper win, --theirs the directory.

EXIT STATUS:
  0  applied
  1  it could not be done
  2  the command line is wrong
  3  conflicts; nothing was touched";

/// The exit status that says that something is in the way.
const CONFLICTS: u8 = 3;

impl Apply {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        super::logging::start_for_verb();
        if let Some(target) = self.target.as_ref().filter(|_| self.abandon) {
            return abandon(&self.upper, target);
        }
        let (upper, target) = match self.target {
            Some(target) => (self.upper, target),
            None => below_mount(&self.upper)?,
        };
        if let Some(below) = below::of_path(&upper).map_err(Failure::failed)? {
            let (shown, count) = (EscapedPath::from(upper.as_path()), below.layers.len());
            return Err(Failure::failed(format!(
                "{shown}: lies on {count} frozen layers, and what is in it is not all that was changed; apply can't bring these over yet: mount it and copy from there"
            )));
        }
        let options = Options { policy: self.how.policy(), dry_run: self.how.dry_run, ..Options::default() };
        if options.dry_run {
            let stacked = Stacked::open(&upper, std::slice::from_ref(&target)).map_err(Failure::failed)?;
            super::diff::listed(&stacked.changes()?).print()?;
        }
        report(&apply_to(&upper, &target, options)?, options)
    }
}

/// Gives up what is half applied, and tells what is left of it.
fn abandon(upper: &Path, target: &Path) -> Result<ExitCode, Failure> {
    for left in apply::abandon(upper, target, &records()?).map_err(Failure::failed)? {
        let left = EscapedPath::from(left.as_path());
        say(&format!(
            "{left}: what was prepared, and what came out of its place; look at it, then remove it"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Applies, with what is under way written down where this user's things are kept.
pub(super) fn apply_to(upper: &Path, target: &Path, options: Options) -> Result<Applied, Failure> {
    prepare(upper, target)?;
    apply::apply(upper, target, &records()?, options).map_err(Failure::failed)
}

/// Finishes what an earlier call has begun, and nothing else.
pub(super) fn finish_applying(upper: &Path, target: &Path, options: Options) -> Result<Applied, Failure> {
    prepare(upper, target)?;
    apply::resume(upper, target, &records()?, options).map_err(Failure::failed)
}

fn prepare(upper: &Path, target: &Path) -> Result<(), Failure> {
    if let Err(error) = crate::sys::process::raise_nofile_limit() {
        log::warn!("cannot raise the limit on open files: {error}");
    }
    super::discard::is_no_layer(target, upper, &own_place()?)
}

/// Says what is in the way, and what couldn't be kept.
pub(super) fn report(applied: &Applied, options: Options) -> Result<ExitCode, Failure> {
    for left in &applied.left {
        say(&format!("{}: {}", left.path, left.what));
    }
    for conflict in applied.conflicts.iter().filter(|_| options.policy == Policy::Theirs) {
        say(&format!("{}: was changed since, and stays", EscapedPath::from(&conflict.path[..])));
    }
    if applied.resumed {
        say("an apply that had been interrupted was finished");
    }
    if applied.conflicts.is_empty() || options.policy != Policy::Refuse {
        return Ok(ExitCode::SUCCESS);
    }
    let mut page = Page::default();
    for conflict in &applied.conflicts {
        page.line(format_args!("{}", sentence(conflict)));
    }
    page.print()?;
    let (count, plural) = (applied.conflicts.len(), if applied.conflicts.len() == 1 { "" } else { "s" });
    Err(Failure::with(
        CONFLICTS,
        format!(
            "{count} conflict{plural}, nothing was touched; --force lets these changes win, --theirs what is there"
        ),
    ))
}

fn sentence(conflict: &Conflict) -> String {
    let path = EscapedPath::from(&conflict.path[..]);
    let does = match conflict.does {
        Does::Replaces => "is replaced by the upper's",
        Does::Deletes => "is deleted by the upper",
        Does::Alters => "gets other attributes",
    };
    match conflict.why {
        Why::Changed => format!("{path}: was changed since, and {does}"),
        Why::Unknown => {
            format!("{path}: {does}, and this filesystem can't tell whether it was changed since")
        }
    }
}

/// Finds the upper of a mount, and the only directory below it.
fn below_mount(path: &Path) -> Result<(PathBuf, PathBuf), Failure> {
    let (mount, _) = mounts::of(path).map_err(|error| {
        Failure::usage(format!(
            "{error}; or name the directory that is to be changed: unionmount apply UPPER TARGET"
        ))
    })?;
    if mount.is_of_another() {
        return Err(Failure::failed(format!(
            "{}: another user's mount, whose daemon is not believed about what is to be changed; name it: unionmount apply UPPER TARGET",
            EscapedPath::from(mount.point.as_path())
        )));
    }
    let (upper, lowers) = layers_of(&mount)?;
    let [lower] = &lowers[..] else {
        return Err(Failure::usage(format!(
            "{} layers lie below this mount; name the directory that is to be changed: unionmount apply {} TARGET",
            lowers.len(),
            EscapedPath::from(upper.as_path())
        )));
    };
    commit::flush_mount(&mount, &upper)?;
    Ok((upper, lower.clone()))
}
