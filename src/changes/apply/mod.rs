//! Brings what an upper changed into a directory, for instance into the lower that it was made over.
//!
//! What the directory becomes is what the union of the upper over it shows. Four steps lead there:
//!
//! 1. **Plan** ([`plan`]). The upper is walked, and held against the directory: what is to be put, taken out, removed, and
//!    given other attributes. What has changed in the directory since the upper hid it is a [`plan::Conflict`]. Nothing is
//!    touched.
//! 2. **Stage** ([`stage`]). All that is new is made, complete and with its attributes, in a directory that nobody else can
//!    enter, on the filesystem where it will be. What doesn't fit, or can't be made, fails here, and nothing is touched.
//! 3. **Journal** ([`journal`]). The plan is written down, outside of the directory.
//! 4. **Execute** ([`execute`]). Each step is one rename, and tells from what it finds whether it was done before. What
//!    goes is moved into the stage, and removed when all is done. Killed at any instant, the next call goes on from there.
//!
//! # Who else may act there
//!
//! The directory may belong to somebody who exchanges what is in it meanwhile, while root applies. So nothing is reached by
//! a path: a step opens the directory that it acts in beneath the target, without following links, and acts only if that is
//! the directory of the plan; what a rename has moved is held against the plan afterwards, and goes back if it is another
//! ([`beneath`]). What is changed in place is changed by a descriptor that was verified.

pub mod beneath;
pub mod error;
pub mod execute;
pub mod journal;
mod judge;
pub mod plan;
mod put;
mod raw;
pub mod stage;

pub use self::error::ApplyError;
pub use self::judge::Why;
pub use self::plan::{Conflict, Plan, Policy};

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use self::error::Result;
use self::journal::{Journal, Kept, Place, State};

/// What is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// What becomes of conflicts.
    pub policy: Policy,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Owners and groups of what is there stay: the upper couldn't hold them.
    pub keep_owners: bool,
    /// The upper is mounted over the target, which shows a renamed directory's content from where the target has it.
    pub mounted: bool,
}

/// How it ended.
#[derive(Debug, Default)]
pub struct Applied {
    /// What is in the way. Unless it was asked otherwise, nothing was touched then.
    pub conflicts: Vec<Conflict>,
    /// How many steps were done, or with `dry_run` would be.
    pub steps: usize,
    /// An apply that was interrupted was finished.
    pub resumed: bool,
    /// Attributes that couldn't be kept, by path.
    pub left_out: Vec<Vec<u8>>,
}

/// Brings what `upper` changed into `target`. `records`: the directory in which what is under way is written down.
///
/// # Errors
/// When something can't be read or made; then nothing was touched, or what was begun goes on with the next call.
pub fn apply(upper: &Path, target: &Path, records: &Path, options: Options) -> Result<Applied> {
    let open = |path: &Path| -> Result<File> {
        let opened = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
            true => Ok(file),
            false => Err(rustix::io::Errno::NOTDIR.into()),
        });
        opened.map_err(ApplyError::io("open it", path))
    };
    let (upper_dir, target_dir) = (open(upper)?, open(target)?);
    let place = Place::of(upper_dir.as_fd(), target_dir.as_fd(), target)?;
    let mut kept = Kept::open(records, &place)?;
    let mut applied = Applied::default();
    let mut before = Vec::new();
    if let Some(mut journal) = kept.read()? {
        let same = journal.place.upper == place.upper;
        if !same && journal.state != State::Finished {
            return Err(ApplyError::Refused(format!(
                "{}: changes of another upper, {}, were being applied to it and are half done; finish that first: unionmount apply {} {}",
                target.display(),
                journal.upper_path,
                journal.upper_path,
                target.display()
            )));
        }
        match journal.state {
            State::Finished if same => before = journal.brought,
            State::Finished => {}
            _ if options.dry_run => {}
            // Nothing of the target was touched.
            State::Staging => stage::sweep(target_dir.as_fd(), &journal)?,
            State::Committed | State::Done => {
                applied.resumed = true;
                applied.steps = journal.steps.len();
                return finish(target_dir.as_fd(), &mut kept, &mut journal, options, applied);
            }
        }
    }
    let plan = plan::make(upper_dir.as_fd(), target_dir.as_fd(), &before, options)?;
    applied.steps = plan.steps.len();
    let refused = !plan.conflicts.is_empty() && options.policy == Policy::Refuse;
    if options.dry_run || refused || plan.steps.is_empty() {
        applied.conflicts = plan.conflicts;
        return Ok(applied);
    }
    let takes = |step: &&plan::Step| matches!(step.act, plan::Act::Take { .. });
    if let Some(step) = plan.steps.iter().find(takes).filter(|_| options.mounted) {
        return Err(ApplyError::Refused(format!(
            "{}: this directory was renamed, and the mount shows its content from there; unmount it first",
            step.path
        )));
    }
    let mut journal = Journal::begin(&plan, before, place, upper, target)?;
    kept.write(&journal)?;
    let staged = stage::make(&plan, target_dir.as_fd(), &mut journal, options);
    match staged {
        Ok(left_out) => applied.left_out = left_out,
        Err(error) => {
            // The error is what matters; leftovers are swept by the next call.
            if stage::sweep(target_dir.as_fd(), &journal).is_ok() {
                kept.forget()?;
            }
            return Err(error);
        }
    }
    journal.state = State::Committed;
    kept.write(&journal)?;
    applied.conflicts = plan.conflicts;
    finish(target_dir.as_fd(), &mut kept, &mut journal, options, applied)
}

fn finish(
    target: std::os::fd::BorrowedFd<'_>,
    kept: &mut Kept,
    journal: &mut Journal,
    options: Options,
    applied: Applied,
) -> Result<Applied> {
    if journal.state == State::Committed {
        execute::run(target, journal, options.policy)?;
        journal.state = State::Done;
        kept.write(journal)?;
    }
    stage::sweep(target, journal)?;
    journal.note_brought();
    if journal.brought.is_empty() {
        kept.forget()?;
        return Ok(applied);
    }
    // A renamed directory is known as such by what it was before; so it is written down that it has come.
    journal.state = State::Finished;
    journal.steps.clear();
    kept.write(journal)?;
    Ok(applied)
}
