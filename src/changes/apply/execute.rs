//! The steps, each of which tells from what it finds whether it was done before.
//!
//! | step | done before, if |
//! |---|---|
//! | take | what was taken is in the stage, or where another step has put it |
//! | remove | what goes is in the stage; or nothing has the name any more |
//! | put | nothing is in the stage under its name |
//! | alter | it is done again |
//!
//! An exchange that was interrupted before what came out was set aside is known by what lies in the stage: not what was made.

#![allow(
    clippy::disallowed_methods,
    reason = "what is changed is opened beneath the target and held against the plan"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::beneath::{self, Seen, look};
use super::error::{ApplyError, Result};
use super::journal::Journal;
use super::plan::{Act, Policy, Step, What};
use super::stage::{new_name, taken_name, trash_name};
use crate::sys::filesystem;
use crate::sys::object::{Kind, Writable};

/// Does all the steps that aren't done.
///
/// # Errors
/// [`ApplyError::Changed`] where somebody else has changed something meanwhile, unless the policy says what becomes of that.
pub fn run(target: BorrowedFd<'_>, journal: &Journal, policy: Policy) -> Result<()> {
    let stages: Vec<OwnedFd> =
        journal.stages.iter().map(|stage| stage.open(target)).collect::<Result<_>>()?;
    let steps = Steps { target, stages, journal, policy };
    for (number, step) in journal.steps.iter().enumerate() {
        // What was taken out of its place must come to one.
        let must = matches!(step.act, Act::Put { what: What::Moved(..), .. });
        match (steps.one(number, step), policy) {
            (Err(ApplyError::Changed(path)), Policy::Theirs) if !must => {
                log::info!("{}: left as it is", path.escape_ascii());
            }
            (done, _) => done?,
        }
    }
    for stage in &steps.stages {
        filesystem::sync(stage).map_err(ApplyError::at(b"", "write it to the disk"))?;
    }
    Ok(())
}

struct Steps<'a> {
    target: BorrowedFd<'a>,
    stages: Vec<OwnedFd>,
    journal: &'a Journal,
    policy: Policy,
}

impl Steps<'_> {
    fn one(&self, number: usize, step: &Step) -> Result<()> {
        let path = &step.path.0;
        let stage = self.stages[step.stage].as_fd();
        match &step.act {
            Act::Take { seen } => self.take(number, step, seen),
            Act::Remove { seen } => {
                if look(stage, trash_name(number).as_bytes(), path)?.is_some() {
                    return Ok(());
                }
                let dir = step.dir.open(self.target)?;
                let Some(found) = look(dir.as_fd(), step.name(), path)? else { return Ok(()) };
                let seen = if self.policy == Policy::Force { Seen::of(&found) } else { *seen };
                beneath::take(dir.as_fd(), path, &seen, stage, &trash_name(number))
            }
            Act::Put { what, replaces, made } => {
                self.put(number, step, what, replaces.as_ref(), made.as_ref())
            }
            Act::Alter { attributes, .. } => {
                let dir = step.dir.open(self.target)?;
                attributes.put(Writable::held(dir.as_fd()), Kind::Directory, path).map(drop)
            }
        }
    }

    fn take(&self, number: usize, step: &Step, seen: &Seen) -> Result<()> {
        let path = &step.path.0;
        let stage = self.stages[step.stage].as_fd();
        if look(stage, taken_name(number).as_bytes(), path)?.is_some() {
            return Ok(());
        }
        let brings =
            |act: &Act| matches!(act, Act::Put { what: What::Moved(from, _), .. } if *from == number);
        let put = self.journal.steps.iter().find(|other| brings(&other.act));
        // Where it comes to is in its place only when this was done.
        if let Some(put) = put
            && let Ok(dir) = put.dir.open(self.target)
            && look(dir.as_fd(), put.name(), &put.path.0)?.is_some_and(|there| seen.is_same(&there))
        {
            return Ok(());
        }
        let dir = step.dir.open(self.target)?;
        beneath::take(dir.as_fd(), path, seen, stage, &taken_name(number))
    }

    fn put(
        &self,
        number: usize,
        step: &Step,
        what: &What,
        replaces: Option<&Seen>,
        made: Option<&Seen>,
    ) -> Result<()> {
        let path = &step.path.0;
        let stage = self.stages[step.stage].as_fd();
        let (name, new) = match what {
            What::Moved(from, seen) => (taken_name(*from), Some(seen)),
            What::New | What::Link(_) => (new_name(number), made),
        };
        let Some(staged) = look(stage, name.as_bytes(), path)? else {
            // It was put. What was taken and never came there is lost, which can't be.
            return Ok(());
        };
        if new.is_some_and(|new| !new.is_same(&staged)) {
            // It was exchanged, and what came out lies here.
            return beneath::rename_within(stage, &name, &trash_name(number), path);
        }
        let dir = step.dir.open(self.target)?;
        let there = look(dir.as_fd(), step.name(), path)?;
        let seen = match (self.policy, there, replaces) {
            (Policy::Force, there, _) => there.map(|there| Seen::of(&there)),
            (_, None, Some(_)) if look(stage, trash_name(number).as_bytes(), path)?.is_some() => None,
            (_, _, replaces) => replaces.copied(),
        };
        let Some(seen) = seen else { return beneath::put_new(stage, &name, dir.as_fd(), path) };
        if beneath::exchange(stage, &name, dir.as_fd(), path, &seen)? {
            return beneath::rename_within(stage, &name, &trash_name(number), path);
        }
        // No exchange on this filesystem: nothing has the name for an instant.
        beneath::take(dir.as_fd(), path, &seen, stage, &trash_name(number))?;
        beneath::put_new(stage, &name, dir.as_fd(), path)
    }
}
