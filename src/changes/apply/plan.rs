//! What is to be done, and what is in the way. Nothing is touched here.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, Access, AtFlags};
use serde::{Deserialize, Serialize};

use super::Options;
use super::beneath::{Dir, Seen, look, name_of};
use super::error::{ApplyError, Result};
use super::journal::{Brought, Left};
use super::judge::{Goes, Old, Why, hidden_since};
use super::put::{self, Attributes};
use super::raw::{self, Renamed, Renames};
use crate::image::layer::LayerError;
use crate::image::layer::merged::{find, of_union, open_union};
use crate::image::layer::place::{join, open_dir, split};
use crate::image::layer::write::{leads_to, list};
use crate::sys::dir::for_each_entry;
use crate::sys::namespace::is_privileged;
use crate::sys::object::{At, Kind, Stat, Time};
use crate::union::Union;
use crate::union::escaped_path::EscapedPath;
use crate::union::nodes::node::Node;

/// What becomes of conflicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// They are told, and nothing is touched.
    #[default]
    Refuse,
    /// The upper's version replaces the target's.
    Force,
    /// The target's version stays, and the rest is applied.
    Theirs,
}

/// Something of the target that is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Relative to the target.
    pub path: Vec<u8>,
    /// What the upper does there.
    pub does: Does,
    /// Why it is a conflict.
    pub why: Why,
}

/// What the upper does with an entry of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// It replaces it.
    Replaces,
    /// It deletes it.
    Deletes,
    /// It gives a directory other attributes.
    Alters,
}

/// What comes to a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// What the union shows there, made anew in the stage.
    New,
    /// The directory that an earlier step has taken out, by its number.
    Moved(usize, Seen),
    /// One more name of what another step puts, by its number.
    Link(usize),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// A directory is taken out of its place, to come to another.
    Take {
        /// The directory.
        seen: Seen,
    },
    /// It goes.
    Remove {
        /// What goes.
        goes: Goes,
    },
    /// Something comes there.
    Put {
        /// What.
        what: What,
        /// What was there.
        replaces: Option<Goes>,
        /// The object that was made for it, once it is.
        made: Option<Seen>,
    },
    /// A directory that stays gets other attributes.
    Alter {
        /// The directory.
        seen: Seen,
        /// What it is to have.
        attributes: Attributes,
    },
}

/// A step, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Relative to the target.
    pub path: EscapedPath,
    /// The directory that holds it; of [`Act::Alter`] the directory itself.
    pub dir: Dir,
    /// Which stage is on its filesystem.
    pub stage: usize,
    /// What is done.
    pub act: Act,
}

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Where a stage is needed: one directory for each filesystem.
    pub homes: Vec<Dir>,
    /// What is in the way.
    pub conflicts: Vec<Conflict>,
    /// What the target becomes.
    pub merged: Union,
    /// What can't be done.
    pub left: Vec<Left>,
}

/// Holds an upper against a directory. `before`: renamed directories that an earlier call has brought to their places.
///
/// # Errors
/// Those of reading both.
pub(super) fn make(
    upper: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    before: &[Brought],
    options: Options,
) -> Result<Plan> {
    let mut parted = HashSet::new();
    loop {
        let merged = open_union([upper, target].into_iter())?;
        let Renames { moves, settled } = raw::renamed(upper, target, before)?;
        let mut walk = Walk {
            upper,
            target,
            options,
            merged,
            moves,
            settled,
            steps: Vec::new(),
            alters: Vec::new(),
            homes: Vec::new(),
            devices: HashMap::new(),
            conflicts: Vec::new(),
            left: Vec::new(),
            links: HashMap::new(),
            there: HashMap::new(),
            parted,
        };
        walk.take_out()?;
        walk.all()?;
        // A file with several names in the upper is one file, or all of its names are put anew.
        let known = walk.parted.len();
        let several = |names: &Vec<Option<u64>>| names.windows(2).any(|pair| pair[0] != pair[1]);
        let more = walk.there.iter().filter(|(_, names)| several(names)).map(|(id, _)| *id);
        walk.parted.extend(more);
        if walk.parted.len() > known {
            parted = walk.parted;
            continue;
        }
        walk.other_names()?;
        // The deepest first: whatever is done in a directory changes its times.
        walk.alters.reverse();
        walk.steps.append(&mut walk.alters);
        return Ok(Plan {
            steps: walk.steps,
            homes: walk.homes,
            conflicts: walk.conflicts,
            merged: walk.merged,
            left: walk.left,
        });
    }
}

/// A directory that both have.
struct Frame {
    /// Its path in the upper, which it has in the end.
    path: Vec<u8>,
    /// Where the target has it now.
    now: Vec<u8>,
}

struct Walk<'a> {
    upper: BorrowedFd<'a>,
    target: BorrowedFd<'a>,
    options: Options,
    merged: Union,
    moves: Vec<Renamed>,
    settled: Vec<Vec<u8>>,
    steps: Vec<Step>,
    alters: Vec<Step>,
    homes: Vec<Dir>,
    /// The stage on a filesystem.
    devices: HashMap<u64, usize>,
    conflicts: Vec<Conflict>,
    left: Vec<Left>,
    /// Files of the target with several names that are replaced by their copies: by device and inode number, the step.
    links: HashMap<(u64, u64), usize>,
    /// Of files with several names in the upper, by device and inode number: for each name the inode number of what the
    /// target has there, if that is the same.
    there: HashMap<(u64, u64), Vec<Option<u64>>>,
    /// Those of them that are not one file in the target.
    parted: HashSet<(u64, u64)>,
}

/// Both sides of a directory, open.
struct Both<'a> {
    frame: &'a Frame,
    upper: OwnedFd,
    /// Since when the upper has it.
    since: Option<Time>,
    target: OwnedFd,
    dir: Dir,
    dev: u64,
}

impl Walk<'_> {
    /// Chooses the stage for a directory's filesystem; `home`: it stays in its place, so the stage can be in it.
    fn stage(&mut self, dev: u64, home: &Dir) -> usize {
        *self.devices.entry(dev).or_insert_with(|| {
            self.homes.push(home.clone());
            self.homes.len() - 1
        })
    }

    fn open_target(&self, path: &[u8]) -> Result<(OwnedFd, Stat)> {
        let dir = open_dir(self.target, path).map_err(ApplyError::at(path, "open it"))?;
        let stat = At::Fd(dir.as_fd()).stat().map_err(ApplyError::at(path, "look at it"))?;
        Ok((dir, stat))
    }

    /// Plans what is moved: directories that come to another place are taken out of theirs first, the deepest first, so that each is found where
    /// it is now.
    fn take_out(&mut self) -> Result<()> {
        let depth = |renamed: &Renamed| renamed.from.iter().filter(|&&byte| byte == b'/').count();
        let mut moves = std::mem::take(&mut self.moves);
        let mut kept = Vec::new();
        for renamed in moves.drain(..) {
            let (_, from) = self.open_target(&renamed.from)?;
            let (_, parent) = self.open_target(split(&renamed.from).0)?;
            let (_, to) = match open_dir(self.target, split(&renamed.to).0) {
                Ok(_) => self.open_target(split(&renamed.to).0)?,
                // It comes into a directory that is new, or renamed as well: looked at there.
                Err(_) => self.open_target(split(&renamed.from).0)?,
            };
            // What is on another filesystem is copied.
            if from.dev == parent.dev && from.dev == to.dev && !from.mount_root {
                kept.push(renamed);
            }
        }
        // One whose new parent is made anew is copied with it.
        loop {
            let all = kept.clone();
            kept.retain(|renamed| self.lands_in_place(&renamed.to, &all));
            if kept.len() == all.len() {
                break;
            }
        }
        kept.sort_by_key(|renamed| depth(renamed));
        for renamed in &kept {
            let home = self.staying(split(&renamed.from).0)?;
            let (_, stat) = self.open_target(&home)?;
            self.stage(stat.dev, &Dir { path: home.into(), seen: Seen::of(&stat) });
        }
        kept.reverse();
        for renamed in &kept {
            let (_, stat) = self.open_target(&renamed.from)?;
            let (parent, _) = split(&renamed.from);
            let (holder, around) = self.open_target(parent)?;
            may_change(holder.as_fd(), name_of(&renamed.from), &renamed.from)?;
            let dir = Dir { path: parent.into(), seen: Seen::of(&around) };
            let stage = self.stage(around.dev, &dir);
            let act = Act::Take { seen: Seen::of(&stat) };
            self.steps.push(Step { path: renamed.from.clone().into(), dir, stage, act });
        }
        self.moves = kept;
        Ok(())
    }

    /// Returns the nearest directory around that stays in its place: what lies in another goes with it, or can't be moved into
    /// what lies there.
    fn staying(&self, path: &[u8]) -> Result<Vec<u8>> {
        let mut path = path;
        while !path.is_empty() && raw::hides(self.upper, path, |_| false)? {
            path = split(path).0;
        }
        Ok(path.to_vec())
    }

    /// Returns whether the directory that is to hold a renamed one is one of the target's, in its place or moved.
    fn lands_in_place(&self, to: &[u8], moves: &[Renamed]) -> bool {
        let mut now: Vec<u8> = Vec::new();
        let (parent, _) = split(to);
        let mut at: Vec<u8> = Vec::new();
        for name in parent.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            at = join(&at, name);
            now = match moves.iter().find(|renamed| renamed.to == at) {
                Some(renamed) => renamed.from.clone(),
                None => {
                    let opaque = open_dir(self.upper, split(&at).0)
                        .ok()
                        .and_then(|dir| raw::marks(dir.as_fd(), name, &at).ok())
                        .is_none_or(|marks| marks.opaque || marks.redirect.is_some());
                    if opaque && !self.settled.contains(&at) {
                        return false;
                    }
                    join(&now, name)
                }
            };
            if open_dir(self.target, &now).is_err() {
                return false;
            }
        }
        true
    }

    fn moved_to(&self, path: &[u8]) -> Option<&Renamed> {
        self.moves.iter().find(|renamed| renamed.to == path)
    }

    fn is_moved_away(&self, now: &[u8]) -> bool {
        self.moves.iter().any(|renamed| renamed.from == now)
    }

    fn all(&mut self) -> Result<()> {
        let mut todo = vec![Frame { path: Vec::new(), now: Vec::new() }];
        while let Some(frame) = todo.pop() {
            self.directory(&frame, &mut todo)?;
        }
        Ok(())
    }

    fn directory(&mut self, frame: &Frame, todo: &mut Vec<Frame>) -> Result<()> {
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
    fn old(&self, both: &Both<'_>, name: &[u8]) -> Result<Option<Stat>> {
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

    fn push(&mut self, both: &Both<'_>, path: Vec<u8>, act: Act) -> Result<usize> {
        may_change(both.target.as_fd(), name_of(&path), &path)?;
        let stage = self.stage(both.dev, &both.dir);
        self.steps.push(Step { path: path.into(), dir: both.dir.clone(), stage, act });
        Ok(self.steps.len() - 1)
    }

    /// Notes the files with several names in a directory of the upper that is made anew: all of these are.
    fn anew(&mut self, path: &[u8]) -> Result<()> {
        let mut todo = vec![path.to_vec()];
        while let Some(path) = todo.pop() {
            let dir = open_dir(self.upper, &path).map_err(LayerError::os(&path, "open it"))?;
            for_each_entry::<rustix::io::Errno>(dir.as_fd(), |entry| {
                let stat = At::Name(dir.as_fd(), entry.name).stat()?;
                if stat.kind() == Kind::Directory {
                    todo.push(join(&path, entry.name));
                } else if stat.nlink > 1 && !stat.is_whiteout_device() {
                    self.there.entry((stat.dev, stat.ino)).or_default().push(None);
                }
                Ok(())
            })
            .map_err(LayerError::os(&path, "list it"))?;
        }
        Ok(())
    }

    /// Notes a conflict, and returns whether the step is done in spite of it.
    fn goes_on(&mut self, path: Vec<u8>, does: Does, why: Why) -> bool {
        self.conflicts.push(Conflict { path, does, why });
        self.options.policy != Policy::Theirs
    }

    fn deleted(&mut self, both: &Both<'_>, name: &[u8]) -> Result<()> {
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

    fn entry(&mut self, both: &Both<'_>, name: &[u8], todo: &mut Vec<Frame>) -> Result<()> {
        let path = join(&both.frame.path, name);
        let at = At::Name(both.upper.as_fd(), name);
        let new = at.stat().map_err(LayerError::os(&path, "stat it"))?;
        let old = self.old(both, name)?;
        let mut what = What::New;
        if new.kind() == Kind::Directory {
            let marks = raw::marks(both.upper.as_fd(), name, &path)?;
            if let Some(renamed) = self.moved_to(&path).cloned() {
                let (_, stat) = self.open_target(&renamed.from)?;
                let taken = |step: &Step| matches!(step.act, Act::Take { .. }) && step.path.0 == renamed.from;
                let number = self.steps.iter().position(taken);
                what = What::Moved(number.unwrap_or_default(), Seen::of(&stat));
                todo.push(Frame { path: path.clone(), now: renamed.from });
            } else if !marks.opaque
                && (marks.redirect.is_none_or(|from| leads_to(&from, &path)) || self.settled.contains(&path))
                && old.is_some_and(|old| old.kind() == Kind::Directory)
            {
                todo.push(Frame { now: join(&both.frame.now, name), path });
                return Ok(());
            }
        }
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

    /// Returns whether the target has the same already, with all that is in it.
    fn is_there(&self, path: &[u8], old: &Old<'_>) -> Result<bool> {
        let mut todo = vec![Vec::new()];
        while let Some(relative) = todo.pop() {
            let whole = if relative.is_empty() { path.to_vec() } else { join(path, &relative) };
            let Some(node) = find(&self.merged, &whole)? else { return Ok(false) };
            let same = self.same_object(&node, &whole, &relative, old, &mut todo);
            self.merged.forget(node.ino, 1);
            if !same? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Compares one object; what is in a directory is added to `todo`.
    fn same_object(
        &self,
        node: &Arc<Node>,
        path: &[u8],
        relative: &[u8],
        top: &Old<'_>,
        todo: &mut Vec<Vec<u8>>,
    ) -> Result<bool> {
        let shown = self.merged.getattr(node).map_err(of_union(path))?.stat;
        let inner = join(top.name, relative);
        let (parent, name) = split(if relative.is_empty() { top.name } else { &inner });
        let around = match open_dir(top.dir, parent) {
            Ok(dir) => dir,
            Err(_) => return Ok(false),
        };
        let Some(stat) = look(around.as_fd(), name, path)? else { return Ok(false) };
        let old = Old { dir: around.as_fd(), name, stat, path };
        if shown.kind() != Kind::Directory || stat.kind() != Kind::Directory {
            return put::is_same(&self.merged, node, &shown, &old);
        }
        let wanted = Attributes::shown(&self.merged, node, &shown, path)?;
        if !wanted.is_like(&Attributes::read(old.at(), &stat, path)?) {
            return Ok(false);
        }
        let (mut shown, mut there) = (Vec::new(), Vec::new());
        self.merged
            .readdir(node, 0, |entry| {
                shown.push(entry.name.into_vec());
                true
            })
            .map_err(of_union(path))?;
        let dir = open_dir(around.as_fd(), name).map_err(ApplyError::at(path, "open it"))?;
        for_each_entry::<rustix::io::Errno>(dir.as_fd(), |entry| {
            there.push(entry.name.to_vec());
            Ok(())
        })
        .map_err(ApplyError::at(path, "list it"))?;
        shown.sort();
        there.sort();
        todo.extend(shown.iter().map(|name| join(relative, name)));
        Ok(shown == there)
    }

    /// Plans the attributes of a directory that stays, and its times after what was done in it.
    fn alter(&mut self, both: &Both<'_>, stat: &Stat, touched: bool) -> Result<()> {
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
            wanted = Attributes { times: wanted.times, ..known };
        }
        let stage = self.stage(both.dev, &both.dir);
        let act = Act::Alter { seen: both.dir.seen, attributes: wanted };
        self.alters.push(Step { path: path.clone().into(), dir: both.dir.clone(), stage, act });
        Ok(())
    }

    /// Plans further names: a file of the target with several names, one of which was copied up, is the copy under all that
    /// the upper doesn't hide.
    fn other_names(&mut self) -> Result<()> {
        if self.links.is_empty() {
            return Ok(());
        }
        let mut todo = vec![Vec::new()];
        while let Some(now) = todo.pop() {
            let (opened, stat) = self.open_target(&now)?;
            let mut found = Vec::new();
            for_each_entry::<rustix::io::Errno>(opened.as_fd(), |entry| {
                let one = At::Name(opened.as_fd(), entry.name).stat()?;
                if one.kind() == Kind::Directory && !one.mount_root {
                    todo.push(join(&now, entry.name));
                } else if self.links.contains_key(&(one.dev, one.ino)) {
                    found.push((join(&now, entry.name), one));
                }
                Ok(())
            })
            .map_err(ApplyError::at(&now, "list it"))?;
            for (path, one) in found {
                let path = self.in_the_end(&path);
                let moved = |path: &[u8]| self.moved_to(path).is_some();
                if raw::hides(self.upper, &path, moved)? || self.steps.iter().any(|step| step.path.0 == path)
                {
                    continue;
                }
                let Some(&first) = self.links.get(&(one.dev, one.ino)) else { continue };
                may_change(opened.as_fd(), name_of(&path), &path)?;
                let dir = Dir { path: split(&path).0.into(), seen: Seen::of(&stat) };
                let stage = self.stage(stat.dev, &dir);
                let replaces = Some(Goes::new(&one, None));
                let act = Act::Put { what: What::Link(first), replaces, made: None };
                if !dir.path.0.is_empty() && !self.alters.iter().any(|step| step.dir == dir) {
                    let attributes = Attributes::read(At::Fd(opened.as_fd()), &stat, &now)?;
                    let alter = Act::Alter { seen: dir.seen, attributes };
                    self.alters.push(Step { path: dir.path.clone(), dir: dir.clone(), stage, act: alter });
                }
                self.steps.push(Step { path: path.into(), dir, stage, act });
            }
        }
        Ok(())
    }

    /// Tells where something of the target is when all is done.
    fn in_the_end(&self, now: &[u8]) -> Vec<u8> {
        let within = |renamed: &&Renamed| {
            now.strip_prefix(&renamed.from[..]).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        match self.moves.iter().filter(within).max_by_key(|renamed| renamed.from.len()) {
            Some(renamed) => [&renamed.to[..], &now[renamed.from.len()..]].concat(),
            None => now.to_vec(),
        }
    }
}

/// Checks that this user may replace or remove an entry of a directory, before anything is begun: what fails half-way is a
/// nuisance to all.
fn may_change(dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
    if is_privileged() {
        return Ok(());
    }
    let refused = || {
        Err(ApplyError::Refused(format!(
            "{}: this user may not change it; apply it as somebody who may, or as root",
            EscapedPath::from(path)
        )))
    };
    let own = rustix::process::geteuid().as_raw();
    let may =
        |at: BorrowedFd<'_>, name: &[u8], access| fs::accessat(at, name, access, AtFlags::EACCESS).is_ok();
    if !may(dir, b".", Access::WRITE_OK | Access::EXEC_OK) {
        return refused();
    }
    let around = At::Fd(dir).stat().map_err(ApplyError::at(path, "look at it"))?;
    let Some(stat) = look(dir, name, path)? else { return Ok(()) };
    let sticky = around.mode & 0o1000 != 0 && stat.uid != own && around.uid != own;
    // To move a directory elsewhere changes it.
    let fixed = stat.kind() == Kind::Directory && !may(dir, name, Access::WRITE_OK);
    if sticky || fixed { refused() } else { Ok(()) }
}

impl Step {
    /// Returns its name in its directory.
    pub fn name(&self) -> &[u8] {
        name_of(&self.path.0)
    }
}
