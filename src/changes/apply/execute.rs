//! The steps, each of which tells from what it finds whether it was done before.
//!
//! | step | done before, if |
//! |---|---|
//! | take | what was taken is in the stage, or where another step has put it |
//! | remove | what goes is in the stage; or nothing has the name any more |
//! | put | nothing is in the stage under its name; of a directory that was moved, it is there |
//! | alter | it is done again |
//!
//! What comes out of the target is in nobody's hands but its owner's until it is out. So it comes under a name that nothing
//! removes or moves on (`c` and the step's number), is held against the plan there, and only then gets the name under which it
//! goes (`t`) or comes to another place (`m`). What turns out to be another, or to hold something new, is put back. Where that
//! can't be, it stays in the stage, and the user is told where.
//!
//! An exchange that was interrupted before what came out was set aside is known by what lies in the stage: not what was made.

#![allow(
    clippy::disallowed_methods,
    reason = "what is changed is opened beneath the target and held against the plan"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::beneath::{self, Seen, look, rename_within};
use super::error::{ApplyError, Result};
use super::journal::{Journal, Stage};
use super::judge::Old;
use super::put::Attributes;
use super::stage::{come_name, new_name, taken_name, trash_name};
use super::step::{Act, Goes, Left, Policy, Step, What};
use crate::image::layer::place::join;
use crate::sys::filesystem;
use crate::sys::object::{At, Kind, Stat, Writable};

/// Does all the steps that aren't done. Returns what stays as it is, because somebody else has changed it meanwhile.
///
/// # Errors
/// [`ApplyError::Changed`] where somebody else has changed something meanwhile, unless the policy says what becomes of that;
/// [`ApplyError::Stuck`] where it can't.
pub fn run(target: BorrowedFd<'_>, journal: &Journal, policy: Policy) -> Result<Vec<Left>> {
    let open = |stage: &Stage| match stage.open(target) {
        Err(ApplyError::Changed(path) | ApplyError::At { path, errno: Errno::NOENT, .. }) => {
            Err(ApplyError::Lost(path))
        }
        opened => opened,
    };
    let stages: Vec<OwnedFd> = journal.stages.iter().map(open).collect::<Result<_>>()?;
    let steps = Steps { target, stages, journal, policy };
    let mut left = Vec::new();
    for (number, step) in journal.steps.iter().enumerate() {
        match (steps.one(number, step), policy) {
            (Err(ApplyError::Changed(path)), Policy::Theirs) if !steps.must(number, step)? => {
                left.push(Left::new(&path, "was changed by somebody else meanwhile, and stays"));
            }
            (Err(error @ ApplyError::Aside { .. }), Policy::Theirs) if !steps.must(number, step)? => {
                left.push(Left::new(&step.path.0, &error.to_string()));
            }
            (Err(ApplyError::Changed(path)), Policy::Force | Policy::Theirs) => {
                let (upper, target) = (journal.upper_path.clone(), journal.target_path.clone());
                return Err(ApplyError::Stuck { path, upper, target });
            }
            (done, _) => left.extend(done?),
        }
    }
    for stage in &steps.stages {
        filesystem::sync(stage).map_err(ApplyError::at(b"", "write it to the disk"))?;
    }
    Ok(left)
}

struct Steps<'a> {
    target: BorrowedFd<'a>,
    stages: Vec<OwnedFd>,
    journal: &'a Journal,
    policy: Policy,
}

/// What is in its place when something turns out not to be that of the plan.
#[derive(Clone, Copy)]
enum Instead<'a> {
    Nothing,
    /// What was made, or moved; under this name it was in the stage.
    New(&'a Seen, &'a str),
}

impl Steps<'_> {
    fn stage(&self, step: &Step) -> BorrowedFd<'_> {
        self.stages[step.stage].as_fd()
    }

    fn in_stage(&self, step: &Step, name: &str) -> Result<Option<Stat>> {
        look(self.stage(step), name.as_bytes(), &step.path.0)
    }

    /// Returns whether a step can't be left out: what was taken out of its place must come to one.
    fn must(&self, number: usize, step: &Step) -> Result<bool> {
        let number = match &step.act {
            Act::Take { .. } => number,
            Act::Put { what: What::Moved(from, _), .. } => *from,
            _ => return Ok(false),
        };
        let Some(taken) = self.journal.steps.get(number) else { return Ok(false) };
        for name in [come_name(number), taken_name(number)] {
            if self.in_stage(taken, &name)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn one(&self, number: usize, step: &Step) -> Result<Option<Left>> {
        let path = &step.path.0;
        match &step.act {
            Act::Take { seen } => self.take(number, step, seen).map(|()| None),
            Act::Remove { goes } => self.remove(number, step, goes).map(|()| None),
            Act::Put { what, replaces, made } => {
                self.put(number, step, what, replaces.as_ref(), made.as_ref()).map(|()| None)
            }
            Act::Alter { known, attributes, .. } => {
                let dir = step.dir.open(self.target)?;
                let at = At::Fd(dir.as_fd());
                let stat = at.stat().map_err(ApplyError::at(path, "look at it"))?;
                let now = Attributes::read(at, &stat, path)?;
                if self.policy != Policy::Force && !now.is_between(known, attributes) {
                    return Err(ApplyError::Changed(path.clone()));
                }
                let whole = attributes.put(Writable::held(dir.as_fd()), Kind::Directory, path)?;
                Ok((!whole).then(|| Left::new(path, super::stage::NOT_ALL)))
            }
        }
    }

    fn take(&self, number: usize, step: &Step, seen: &Seen) -> Result<()> {
        let (come, taken) = (come_name(number), taken_name(number));
        if self.in_stage(step, &taken)?.is_some() {
            return Ok(());
        }
        if self.in_stage(step, &come)?.is_none() {
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
            beneath::take(dir.as_fd(), &step.path.0, seen, self.stage(step), &come)?;
        }
        match self.in_stage(step, &come)?.is_some_and(|out| seen.is_same(&out)) {
            true => rename_within(self.stage(step), &come, &taken, &step.path.0),
            false => self.give_back(number, step, Instead::Nothing),
        }
    }

    fn remove(&self, number: usize, step: &Step, goes: &Goes) -> Result<()> {
        if self.in_stage(step, &trash_name(number))?.is_some() {
            return Ok(());
        }
        if self.in_stage(step, &come_name(number))?.is_none() {
            let dir = step.dir.open(self.target)?;
            let Some(found) = look(dir.as_fd(), step.name(), &step.path.0)? else { return Ok(()) };
            let seen = if self.policy == Policy::Force { Seen::of(&found) } else { goes.seen };
            beneath::take(dir.as_fd(), &step.path.0, &seen, self.stage(step), &come_name(number))?;
        }
        self.judge(number, step, Some(goes), Instead::Nothing)
    }

    fn put(
        &self,
        number: usize,
        step: &Step,
        what: &What,
        replaces: Option<&Goes>,
        made: Option<&Seen>,
    ) -> Result<()> {
        let path = &step.path.0;
        let stage = self.stage(step);
        let come = come_name(number);
        let (name, new) = match what {
            What::Moved(from, seen) => (taken_name(*from), Some(seen)),
            What::New | What::Link(_) => (new_name(number), made),
        };
        let new = new.ok_or_else(|| ApplyError::Changed(path.clone()))?;
        // What an interrupted exchange has brought out is set aside; and what was given back for it is what was made.
        match self.in_stage(step, &name)? {
            Some(out) if !new.is_same(&out) => rename_within(stage, &name, &come, path)?,
            _ => {}
        }
        if let Some(out) = self.in_stage(step, &come)? {
            if new.is_same(&out) {
                rename_within(stage, &come, &name, path)?;
            } else {
                let is_put = self.in_stage(step, &name)?.is_none();
                let instead = if is_put { Instead::New(new, &name) } else { Instead::Nothing };
                self.judge(number, step, replaces, instead)?;
            }
        }
        if self.in_stage(step, &name)?.is_none() {
            return self.was_put(step, what);
        }
        let dir = step.dir.open(self.target)?;
        let there = look(dir.as_fd(), step.name(), path)?;
        let seen = match (self.policy, there, replaces) {
            (Policy::Force, there, _) => there.map(|there| Seen::of(&there)),
            (_, None, Some(_)) if self.in_stage(step, &trash_name(number))?.is_some() => None,
            (_, _, replaces) => replaces.map(|goes| goes.seen),
        };
        let Some(seen) = seen else { return beneath::put_new(stage, &name, dir.as_fd(), path) };
        if beneath::exchange(stage, &name, dir.as_fd(), path, &seen)? {
            rename_within(stage, &name, &come, path)?;
            return self.judge(number, step, replaces, Instead::New(new, &name));
        }
        // No exchange on this filesystem: nothing has the name for an instant.
        beneath::take(dir.as_fd(), path, &seen, stage, &come)?;
        self.judge(number, step, replaces, Instead::Nothing)?;
        beneath::put_new(stage, &name, dir.as_fd(), path)
    }

    /// Makes sure of a directory that was moved: with nothing in the stage it has come to its place. Somebody else may have
    /// moved it on since; it mustn't lie in another stage.
    fn was_put(&self, step: &Step, what: &What) -> Result<()> {
        let What::Moved(from, seen) = what else { return Ok(()) };
        let path = &step.path.0;
        if let Some(taken) = self.journal.steps.get(*from)
            && taken.stage != step.stage
            && let Some(out) = self.in_stage(taken, &taken_name(*from))?
            && seen.is_same(&out)
        {
            return Err(ApplyError::at(path, "move it there, to another filesystem")(Errno::XDEV));
        }
        let dir = step.dir.open(self.target)?;
        match look(dir.as_fd(), step.name(), path)? {
            Some(there) if seen.is_same(&there) => Ok(()),
            _ => Err(ApplyError::Changed(path.clone())),
        }
    }

    /// Judges what a step has brought out of its place: it goes, or is given back.
    fn judge(&self, number: usize, step: &Step, goes: Option<&Goes>, instead: Instead<'_>) -> Result<()> {
        let come = come_name(number);
        let Some(stat) = self.in_stage(step, &come)? else { return Ok(()) };
        let out = Old { dir: self.stage(step), name: come.as_bytes(), stat, path: &step.path.0 };
        let as_planned = match (self.policy, goes) {
            (Policy::Force, _) => true,
            (_, Some(goes)) => goes.is_as_planned(&out, |stat| self.is_by_us(stat))?,
            (_, None) => false,
        };
        match as_planned {
            true => rename_within(self.stage(step), &come, &trash_name(number), &step.path.0),
            false => self.give_back(number, step, instead),
        }
    }

    /// Returns whether something may be younger because of a step: a name of it was moved, or something in it.
    fn is_by_us(&self, stat: &Stat) -> bool {
        self.journal.steps.iter().any(|step| match &step.act {
            Act::Take { seen } => seen.is_same(stat) || step.dir.seen.is_same(stat),
            Act::Remove { goes } => goes.seen.is_unwritten(stat),
            Act::Put { replaces, .. } => replaces.is_some_and(|goes| goes.seen.is_unwritten(stat)),
            Act::Alter { .. } => false,
        })
    }

    /// Gives back what isn't that of the plan: always an error.
    fn give_back(&self, number: usize, step: &Step, instead: Instead<'_>) -> Result<()> {
        let (path, stage, come) = (&step.path.0, self.stage(step), come_name(number));
        let dir = step.dir.open(self.target).ok();
        let given = dir.is_some_and(|dir| match instead {
            Instead::Nothing => beneath::put_new(stage, &come, dir.as_fd(), path).is_ok(),
            Instead::New(made, _) => beneath::exchange_back(stage, &come, dir.as_fd(), path, made),
        });
        if !given {
            let at = &self.journal.stages[step.stage];
            let at = join(&join(&at.home.path.0, at.name.as_bytes()), come.as_bytes());
            return Err(ApplyError::Aside { path: path.clone(), at });
        }
        if let Instead::New(_, name) = instead {
            rename_within(stage, &come, name, path)?;
        }
        Err(ApplyError::Changed(path.clone()))
    }
}
