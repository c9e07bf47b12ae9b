//! Brings what an upper changed into a directory, for instance into the lower that it was made over.
//!
//! What the directory becomes is what the union of the upper over it shows. Four steps lead there:
//!
//! 1. **Plan** ([`plan`]). The upper is walked, and held against the directory: what is to be put, taken out, removed, and
//!    given other attributes. What has changed in the directory since the upper hid it is a [`step::Conflict`]. Nothing is
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
pub mod step;

pub use self::error::ApplyError;
pub use self::plan::Plan;
pub use self::step::{Conflict, Does, Left, Options, Policy, Why};

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use self::error::Result;
use self::journal::{Journal, Kept, Place, Stage, State};
use self::stage::Sweep;
use self::step::{Act, Brought, Step};
use crate::sys::dir::open_named;
use crate::sys::flock::{Access, lock_until};
use crate::union::escaped_path::EscapedPath;

/// How it ended.
#[derive(Debug, Default)]
pub struct Applied {
    /// What is in the way. Unless it was asked otherwise, nothing was touched then.
    pub conflicts: Vec<Conflict>,
    /// How many steps were done, or with `dry_run` would be.
    pub steps: usize,
    /// An apply that was interrupted was finished.
    pub resumed: bool,
    /// What isn't as the upper has it.
    pub left: Vec<Left>,
}

/// An upper and a target, opened.
struct Call<'a> {
    upper_path: &'a Path,
    target_path: &'a Path,
    upper: File,
    target: File,
    place: Place,
    options: Options,
    /// A mount has the upper, and shows a renamed directory's content from where the target has it.
    mounted: bool,
}

/// How long the daemon of a mount that is just gone may keep its upper.
pub const LETTING_GO: Duration = Duration::from_millis(300);

/// Holds a directory as mounts hold their uppers, as long as it is open. False: somebody has it.
fn hold(dir: &File, path: &Path) -> Result<bool> {
    match lock_until(dir, Access::Exclusive, Instant::now() + LETTING_GO) {
        // A filesystem that can't lock directories keeps no mount away either.
        Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::BADF | Errno::INVAL) => Ok(true),
        held => held.map_err(ApplyError::io("lock it", path)),
    }
}

fn open(path: &Path) -> Result<File> {
    open_named(path).map(File::from).map_err(ApplyError::io("open it", path))
}

impl<'a> Call<'a> {
    fn open(upper_path: &'a Path, target_path: &'a Path, options: Options) -> Result<Call<'a>> {
        let (upper, target) = (open(upper_path)?, open(target_path)?);
        let place = Place::of(upper.as_fd(), target.as_fd(), target_path)?;
        let shown = EscapedPath::from(target_path);
        if place.upper == place.target {
            return Err(ApplyError::Refused(format!("{shown}: is the upper itself")));
        }
        // Nobody mounts the upper while it is read, nor the target as one.
        let mounted = !hold(&upper, upper_path)?;
        if !hold(&target, target_path)? {
            return Err(ApplyError::Refused(format!(
                "{shown}: a mount has this directory as a layer; unmount that first, or apply to its mount point"
            )));
        }
        Ok(Call { upper_path, target_path, upper, target, place, options, mounted })
    }

    fn target(&self) -> BorrowedFd<'_> {
        self.target.as_fd()
    }
}

/// Brings what `upper` changed into `target`. `records`: the directory in which what is under way is written down. What an
/// earlier call has begun is finished first; then what is still another is applied.
///
/// # Errors
/// When something can't be read or made; then nothing was touched, or what was begun goes on with the next call.
pub fn apply(upper: &Path, target: &Path, records: &Path, options: Options) -> Result<Applied> {
    let call = Call::open(upper, target, options)?;
    let mut kept = Kept::open(records, &call.place)?;
    let mut applied = Applied::default();
    let brought = settle(&call, &mut kept, &mut applied)?;
    let before: Vec<Brought> = brought.iter().filter(|one| one.upper == call.place.upper).cloned().collect();
    let mut plan = plan::make(call.upper.as_fd(), call.target(), &before, options)?;
    applied.steps += plan.steps.len();
    applied.left.append(&mut plan.left);
    let refused = !plan.conflicts.is_empty() && options.policy == Policy::Refuse;
    if options.dry_run || refused || plan.steps.is_empty() {
        applied.conflicts = plan.conflicts;
        return Ok(applied);
    }
    let takes = |step: &&Step| matches!(step.act, Act::Take { .. });
    if let Some(step) = plan.steps.iter().find(takes).filter(|_| call.mounted) {
        return Err(ApplyError::Refused(format!(
            "{}: this directory was renamed, and the mount shows its content from there; unmount it first",
            step.path
        )));
    }
    let mut journal = stage(&call, &mut kept, &plan, brought)?;
    applied.conflicts = plan.conflicts;
    finish(call.target(), &mut kept, &mut journal, options, &mut applied)?;
    Ok(applied)
}

/// Finishes what an earlier call has begun, if it has, and applies nothing else. Returns whether there was something.
///
/// # Errors
/// Those of [`apply`].
pub fn resume(upper: &Path, target: &Path, records: &Path, options: Options) -> Result<Applied> {
    let call = Call::open(upper, target, options)?;
    let mut kept = Kept::open(records, &call.place)?;
    let mut applied = Applied::default();
    settle(&call, &mut kept, &mut applied)?;
    Ok(applied)
}

/// Finds a directory to which the changes of this upper are half applied, so that the upper must not go: both paths.
///
/// # Errors
/// When that can't be told, since it isn't known of which upper something is half applied.
pub fn pending(upper: BorrowedFd<'_>, records: &Path) -> Result<Option<(EscapedPath, EscapedPath)>> {
    let seen = Place::of(upper, upper, records)?.upper;
    let of_upper = |journal: &Journal| journal.place.upper == seen && journal.state == State::Committed;
    let (all, unreadable) = Kept::all(records)?;
    if let Some((_, journal)) = all.into_iter().find(|(_, journal)| of_upper(journal)) {
        return Ok(Some((journal.upper_path, journal.target_path)));
    }
    // What can't be read may be of this one, unless it still says that it isn't.
    match unreadable.into_iter().find(|one| one.upper.is_none_or(|upper| upper == seen)) {
        Some(one) => Err(one.why),
        None => Ok(None),
    }
}

/// Gives up what is half applied of an upper to a target: nothing more is done, and nothing removed. Returns where what was prepared and
/// what was taken out lies, as far as it was made.
///
/// # Errors
/// When nothing is half applied to it, or what is isn't `upper`'s.
pub fn abandon(upper: &Path, target: &Path, records: &Path) -> Result<Vec<PathBuf>> {
    let (mut kept, mut journal) = Kept::find(records, upper, target)?;
    // Where it is now, which may be elsewhere than it was.
    let root = std::fs::canonicalize(target).unwrap_or(journal.target_path.as_path().to_owned());
    let place = |stage: &Stage| root.join(stage.home.path.as_path()).join(&stage.name);
    let left = journal.stages.iter().map(place).filter(|path| path.symlink_metadata().is_ok()).collect();
    let known = journal.brought.clone();
    journal.note_brought();
    // Of those that were to come, the ones that have.
    let target = match open_named(&root) {
        Err(Errno::NOENT | Errno::NOTDIR) => None,
        target => Some(target.map_err(ApplyError::io("open it", &root))?),
    };
    let mut brought = Vec::new();
    for one in journal.brought.drain(..) {
        let has_come = match &target {
            Some(target) => one.has_come(target.as_fd())?,
            None => false,
        };
        if has_come || known.contains(&one) {
            brought.push(one);
        }
    }
    journal.brought = brought;
    kept.finish(&mut journal)?;
    Ok(left)
}

/// Brings what was interrupted to its end. Returns which renamed directories have come to their places, of any upper.
fn settle(call: &Call<'_>, kept: &mut Kept, applied: &mut Applied) -> Result<Vec<Brought>> {
    let Some(mut journal) = kept.read()? else { return Ok(Vec::new()) };
    let (upper, target) = (&journal.upper_path, EscapedPath::from(call.target_path));
    let committed = journal.state == State::Committed;
    if committed && journal.place.upper != call.place.upper {
        return Err(ApplyError::Refused(format!(
            "{target}: changes of another upper, {upper}, were being applied to it and are half done; finish that first: \
             unionmount apply {upper} {target}; or give it up: unionmount apply --abandon {upper} {target}"
        )));
    }
    if committed && call.options.dry_run {
        return Err(ApplyError::Refused(format!(
            "{target}: these changes are half applied to it; what remains can be told when that is finished: \
             unionmount apply {upper} {target}; or given up: unionmount apply --abandon {upper} {target}"
        )));
    }
    match journal.state {
        State::Finished => {}
        State::Staging | State::Done if call.options.dry_run => {}
        // Nothing of the target was touched.
        State::Staging => {
            stage::sweep(call.target(), &mut journal, Sweep::Again);
            applied.left.append(&mut journal.left);
            kept.finish(&mut journal)?;
        }
        State::Committed | State::Done => {
            applied.resumed = true;
            applied.steps += journal.steps.len();
            finish(call.target(), kept, &mut journal, call.options, applied)?;
        }
    }
    Ok(journal.brought)
}

/// Makes all that is new, and writes down that from here on it goes forward.
fn stage(call: &Call<'_>, kept: &mut Kept, plan: &plan::Plan, brought: Vec<Brought>) -> Result<Journal> {
    let mut journal = Journal::begin(plan, brought, call.place, call.upper_path, call.target_path)?;
    kept.write(&journal)?;
    if let Err(error) = stage::make(plan, call.target(), &mut journal, kept, call.options) {
        stage::sweep(call.target(), &mut journal, Sweep::First);
        // The error is what matters; what couldn't be removed is beside it.
        for left in &journal.left {
            log::warn!("{}: {}", left.path, left.what);
        }
        kept.finish(&mut journal)?;
        return Err(error.before_anything());
    }
    journal.state = State::Committed;
    kept.write(&journal)?;
    Ok(journal)
}

fn finish(
    target: BorrowedFd<'_>,
    kept: &mut Kept,
    journal: &mut Journal,
    options: Options,
    applied: &mut Applied,
) -> Result<()> {
    let mut sweep = Sweep::Again;
    if journal.state == State::Committed {
        sweep = Sweep::First;
        let left = execute::run(target, journal, options.policy)?;
        journal.left.extend(left);
        journal.note_brought();
        journal.state = State::Done;
        kept.write(journal)?;
    }
    stage::sweep(target, journal, sweep);
    applied.left.append(&mut journal.left);
    kept.finish(journal)
}
