//! The upper's directories, each held against what the target has there.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::rights::may_change;
use crate::changes::apply::beneath::{Dir, Seen, look, name_of};
use crate::changes::apply::error::{ApplyError, Result};
use crate::changes::apply::judge::{Old, hidden_since};
use crate::changes::apply::put::Attributes;
use crate::changes::apply::raw::{self, Renamed};
use crate::changes::apply::step::{Act, Conflict, Does, Goes, Left, Options, Policy, Step, What, Why};
use crate::image::layer::LayerError;
use crate::image::layer::merged::{find, of_union};
use crate::image::layer::place::{join, open_dir, split};
use crate::image::layer::write::{leads_to, list};
use crate::sys::namespace::is_privileged;
use crate::sys::object::{At, Kind, Stat, Time};
use crate::union::Union;
use crate::union::escaped_path::EscapedPath;

/// A directory that both have.
pub(super) struct Frame {
    /// Its path in the upper, which it has in the end.
    pub(super) path: Vec<u8>,
    /// Where the target has it now.
    pub(super) now: Vec<u8>,
}

pub(super) struct Walk<'a> {
    pub(super) upper: BorrowedFd<'a>,
    pub(super) target: BorrowedFd<'a>,
    pub(super) options: Options,
    pub(super) merged: Union,
    pub(super) moves: Vec<Renamed>,
    pub(super) settled: Vec<Vec<u8>>,
    pub(super) steps: Vec<Step>,
    pub(super) alters: Vec<Step>,
    pub(super) homes: Vec<Dir>,
    /// The stage on a filesystem.
    pub(super) devices: HashMap<u64, usize>,
    pub(super) conflicts: Vec<Conflict>,
    pub(super) left: Vec<Left>,
    /// Files of the target with several names that are replaced by their copies: by device and inode number, the step.
    pub(super) links: HashMap<(u64, u64), usize>,
    /// Of files with several names in the upper, by device and inode number: for each name the inode number of what the
    /// target has there, if that is the same.
    pub(super) there: HashMap<(u64, u64), Vec<Option<u64>>>,
    /// Those of them that are not one file in the target.
    pub(super) parted: HashSet<(u64, u64)>,
}

/// Both sides of a directory, open.
pub(super) struct Both<'a> {
    pub(super) frame: &'a Frame,
    pub(super) upper: OwnedFd,
    /// Since when the upper has it.
    pub(super) since: Option<Time>,
    pub(super) target: OwnedFd,
    pub(super) dir: Dir,
    pub(super) dev: u64,
}

impl Walk<'_> {
    /// Chooses the stage for a directory's filesystem; `home`: it stays in its place, so the stage can be in it.
    pub(super) fn stage(&mut self, dev: u64, home: &Dir) -> usize {
        *self.devices.entry(dev).or_insert_with(|| {
            self.homes.push(home.clone());
            self.homes.len() - 1
        })
    }

    pub(super) fn open_target(&self, path: &[u8]) -> Result<(OwnedFd, Stat)> {
        let dir = open_dir(self.target, path).map_err(ApplyError::at(path, "open it"))?;
        let stat = At::Fd(dir.as_fd()).stat().map_err(ApplyError::at(path, "look at it"))?;
        Ok((dir, stat))
    }

    pub(super) fn all(&mut self) -> Result<()> {
        let mut todo = vec![Frame { path: Vec::new(), now: Vec::new() }];
        while let Some(frame) = todo.pop() {
            self.directory(&frame, &mut todo)?;
        }
        Ok(())
    }

    pub(super) fn directory(&mut self, frame: &Frame, todo: &mut Vec<Frame>) -> Result<()> {
        let path = &frame.path;
        let upper = open_dir(self.upper, path).map_err(LayerError::os(path, "open it"))?;
        let around = At::Fd(upper.as_fd()).stat().map_err(LayerError::os(path, "stat it"))?;
        let (target, stat) = self.open_target(&frame.now)?;
        let dir = Dir { path: path.clone().into(), seen: Seen::of(&stat) };
        let listing = list(upper.as_fd(), path)?;
        let both = Both { frame, upper, since: around.born, target, dir, dev: stat.dev };
        let before = self.steps.len();
        for name in listing.whiteouts.iter().filter(|name| listing.names.binary_search(name).is_err()) {
            self.deleted(&both, name)?;
        }
        for name in &listing.names {
            self.entry(&both, name, todo)?;
        }
        let taken = |step: &Step| matches!(step.act, Act::Take { .. }) && split(&step.path.0).0 == frame.now;
        let touched = self.steps.len() > before || self.steps.iter().take(self.moves.len()).any(taken);
        if !path.is_empty() {
            self.alter(&both, &stat, touched)?;
        }
        Ok(())
    }

    /// Looks at what the target has under a name, unless it is moved away.
    pub(super) fn old(&self, both: &Both<'_>, name: &[u8]) -> Result<Option<Stat>> {
        if self.is_moved_away(&join(&both.frame.now, name)) {
            return Ok(None);
        }
        let path = join(&both.frame.now, name);
        let found = look(both.target.as_fd(), name, &path)?;
        if found.is_some_and(|stat| stat.mount_root) {
            return Err(ApplyError::Refused(format!(
                "{}: something is mounted there; unmount it first",
                EscapedPath(path)
            )));
        }
        Ok(found)
    }

    pub(super) fn push(&mut self, both: &Both<'_>, path: Vec<u8>, act: Act) -> Result<usize> {
        may_change(both.target.as_fd(), name_of(&path), &path)?;
        let stage = self.stage(both.dev, &both.dir);
        self.steps.push(Step { path: path.into(), dir: both.dir.clone(), stage, act });
        Ok(self.steps.len() - 1)
    }

    /// Notes a conflict, and returns whether the step is done in spite of it.
    pub(super) fn goes_on(&mut self, path: Vec<u8>, does: Does, why: Why) -> bool {
        self.conflicts.push(Conflict { path, does, why });
        self.options.policy != Policy::Theirs
    }

    pub(super) fn deleted(&mut self, both: &Both<'_>, name: &[u8]) -> Result<()> {
        let path = join(&both.frame.path, name);
        let Some(stat) = self.old(both, name)? else { return Ok(()) };
        let old = Old { dir: both.target.as_fd(), name, stat, path: &path };
        if let Some((within, why)) = old.changed(both.since, |_| false)?
            && !self.goes_on(within, Does::Deletes, why)
        {
            return Ok(());
        }
        self.push(both, path, Act::Remove { goes: Goes::new(&stat, both.since) })?;
        Ok(())
    }

    /// Tells what comes to a place, and adds to `todo` what is in it where the target has a part of it. `None`: it is a
    /// directory that both have there.
    fn what_comes(
        &self,
        both: &Both<'_>,
        name: &[u8],
        new: &Stat,
        old: Option<&Stat>,
        todo: &mut Vec<Frame>,
    ) -> Result<Option<What>> {
        if new.kind() != Kind::Directory {
            return Ok(Some(What::New));
        }
        let path = join(&both.frame.path, name);
        let marks = raw::marks(both.upper.as_fd(), name, &path)?;
        if let Some(renamed) = self.moved_to(&path).cloned() {
            let (_, stat) = self.open_target(&renamed.from)?;
            let taken = |step: &Step| matches!(step.act, Act::Take { .. }) && step.path.0 == renamed.from;
            let number = self.steps.iter().position(taken);
            todo.push(Frame { path, now: renamed.from });
            return Ok(Some(What::Moved(number.unwrap_or_default(), Seen::of(&stat))));
        }
        let in_place =
            marks.redirect.is_none_or(|from| leads_to(&from, &path)) || self.settled.contains(&path);
        if !marks.opaque && in_place && old.is_some_and(|old| old.kind() == Kind::Directory) {
            todo.push(Frame { now: join(&both.frame.now, name), path });
            return Ok(None);
        }
        Ok(Some(What::New))
    }

    pub(super) fn entry(&mut self, both: &Both<'_>, name: &[u8], todo: &mut Vec<Frame>) -> Result<()> {
        let path = join(&both.frame.path, name);
        let at = At::Name(both.upper.as_fd(), name);
        let new = at.stat().map_err(LayerError::os(&path, "stat it"))?;
        let old = self.old(both, name)?;
        let Some(what) = self.what_comes(both, name, &new, old.as_ref(), todo)? else { return Ok(()) };
        let id = (new.dev, new.ino);
        let several = new.kind() != Kind::Directory && new.nlink > 1;
        let Some(stat) = old else {
            if several {
                self.there.entry(id).or_default().push(None);
            }
            if what == What::New && new.kind() == Kind::Directory {
                self.anew(&path)?;
            }
            self.push(both, path, Act::Put { what, replaces: None, made: None })?;
            return Ok(());
        };
        let old = Old { dir: both.target.as_fd(), name, stat, path: &path };
        if what == What::New && !self.parted.contains(&id) {
            let there = self.is_there(&path, &old)?;
            if several {
                self.there.entry(id).or_default().push(there.then_some(stat.ino));
            }
            if there {
                return Ok(());
            }
            if new.kind() == Kind::Directory {
                self.anew(&path)?;
            }
        }
        let since = hidden_since(&old, at, &new, both.since)?;
        if let Some((within, why)) = old.changed(since, |_| false)?
            && !self.goes_on(within, Does::Replaces, why)
        {
            if matches!(what, What::Moved(..)) {
                return Err(ApplyError::Refused(format!(
                    "{}: a directory was renamed to this name, and the target has something newer there; apply it with --force, or move that away first",
                    EscapedPath(path)
                )));
            }
            return Ok(());
        }
        let is_copy = stat.nlink > 1
            && stat.kind() == Kind::File
            && raw::is_copy_of(at, old.at(), &stat, &path)? == Some(true);
        let act = Act::Put { what, replaces: Some(Goes::new(&stat, since)), made: None };
        let number = self.push(both, path, act)?;
        if is_copy {
            self.links.insert((stat.dev, stat.ino), number);
        }
        Ok(())
    }

    /// Plans the attributes of a directory that stays, and its times after what was done in it.
    pub(super) fn alter(&mut self, both: &Both<'_>, stat: &Stat, touched: bool) -> Result<()> {
        let path = &both.frame.path;
        let Some(node) = find(&self.merged, path)? else { return Ok(()) };
        let shown = self.merged.getattr(&node).map_err(of_union(path)).map_err(ApplyError::from);
        let wanted = shown.and_then(|attr| Attributes::shown(&self.merged, &node, &attr.stat, path));
        self.merged.forget(node.ino, 1);
        let mut wanted = wanted?;
        if self.options.keep_owners {
            wanted.owner = None;
        }
        let known = Attributes::read(At::Fd(both.target.as_fd()), stat, path)?;
        if !is_privileged() && stat.uid != rustix::process::geteuid().as_raw() {
            if !wanted.is_like(&known) {
                self.left.push(Left::new(path, "keeps its attributes, which its owner alone may change"));
            }
            return Ok(());
        }
        if wanted.is_like(&known) {
            if !touched && wanted.times[1] == known.times[1] {
                return Ok(());
            }
        } else if let Some(why) = match both.since {
            None => Some(Why::Unknown),
            Some(born) => (stat.ctime >= born).then_some(Why::Changed),
        } && !self.goes_on(path.clone(), Does::Alters, why)
        {
            wanted = Attributes { times: wanted.times, ..known.clone() };
        }
        let stage = self.stage(both.dev, &both.dir);
        let act = Act::Alter { seen: both.dir.seen, known, attributes: wanted };
        self.alters.push(Step { path: path.clone().into(), dir: both.dir.clone(), stage, act });
        Ok(())
    }
}
