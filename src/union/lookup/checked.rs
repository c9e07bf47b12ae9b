//! Lowers that somebody changes while they are mounted (`lower=checked`).
//!
//! A union isn't told what happens in its layers. overlayfs(5) calls the result of a change undefined, and here, too, names
//! and attributes are kept for ever by default. With this option the kernel keeps them for half a second, and what this
//! process keeps of a directory is held against the directory itself when it is used and was last looked at half a second
//! ago. So a change is seen by the first access a second after it:
//!
//! | in a lower | what is seen |
//! |---|---|
//! | a file is written to | its new data and attributes |
//! | a file is replaced, by rename(2) as editors do | the new one by its name; who has the old one open goes on with it |
//! | a file or a directory appears, goes, or gets another name | the names as they are |
//! | a directory that layers share appears, goes or is exchanged in one of them | another directory, merged anew |
//!
//! What would be a mixture is `ESTALE`: what is done by a directory that was exchanged, by who still works in it; a copy-up of
//! what changes while it is copied, when a second attempt meets another change.
//!
//! # By what a change is known
//!
//! The times of a directory, to the clock tick of its filesystem: so what has changed less than two seconds ago (that is how
//! coarse such clocks are) is taken to change still, and read anew at each look.
//!
//! # Another directory is another node
//!
//! The layers' directories that a node merges never change ([`DirPart::lowers`]). Where a lookup finds others than those of
//! the node that is known, that node is **superseded**: it answers to no name any more, and the lookup makes another.
//! So a directory that is merged anew has another inode number.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use dashmap::DashMap;
use rustix::io::Errno;
use smallvec::SmallVec;

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::lookup::found::{Found, FoundKind};
use crate::union::lookup::realdir::{LayerIndex, RealDir, Veil};
use crate::union::lookup::watch::{Seen, Stamp};
use crate::union::nodes::node::{DirPart, Identity, Named, Node, NodePlace, NodeSource};

/// How long the kernel keeps names and attributes where lowers are checked.
pub const KEPT: Duration = Duration::from_millis(500);

/// How long a directory of a lower is taken to be as it was. With what the kernel keeps it makes a second.
const PERIOD: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_millis(500) };

/// How long a change under way in a directory is waited for before another node stands for it.
const PATIENCE: Duration = Duration::from_millis(200);

/// Which node stands for a directory of a layer, by its device and inode number.
pub(in crate::union) type Watched = DashMap<(LayerIndex, (u64, u64)), u64>;

impl Union {
    /// Looks whether a directory's lowers are as they were, where that is to be checked, and forgets what was known of their
    /// names if not.
    ///
    /// # Errors
    /// `ESTALE` where something else is in the directory's place, and those of looking.
    pub(in crate::union) fn check_lowers(&self, node: &Node, dir: &DirPart) -> Result<()> {
        if self.watched.is_none() {
            return Ok(());
        }
        if dir.watch.is_superseded() {
            return Err(FsError::Stale);
        }
        // One looks; who comes meanwhile goes on with what is known.
        let Some(mut seen) = dir.watch.seen.try_lock() else { return Ok(()) };
        if seen.as_ref().is_some_and(|seen| seen.at.elapsed() < PERIOD) {
            return Ok(());
        }
        let (at, now) = (Instant::now(), SystemTime::now());
        let stamps = dir.lowers.iter().filter(|lower| lower.tree().is_none());
        let stamps: Result<Box<[Stamp]>> = stamps.map(|lower| self.stamp(lower, now)).collect();
        let stamps = match stamps {
            Ok(stamps) => stamps,
            Err(FsError::Stale | FsError::Absent) => {
                self.supersede(node, dir);
                return Err(FsError::Stale);
            }
            Err(other) => return Err(other),
        };
        let is_still = seen
            .as_ref()
            // What somebody reads beside the first look may be older than what that sees.
            .is_some_and(|seen| {
                seen.stamps.iter().zip(&stamps).all(|(before, after)| before.is_still(after))
            });
        *seen = Some(Box::new(Seen { at, stamps }));
        if !is_still {
            dir.watch.changes.fetch_add(1, Ordering::AcqRel);
            let dropped = dir.index.lock().lower.take();
            drop(dropped);
            *dir.default_acl.lock() = None;
            dir.lowers.iter().for_each(|lower| lower.forget_forms());
        }
        Ok(())
    }

    /// Looks at a directory of a layer, and whether it still is where it was found.
    ///
    /// # Errors
    /// `ENOENT` and `ESTALE` where it isn't.
    fn stamp(&self, lower: &Arc<RealDir>, now: SystemTime) -> Result<Stamp> {
        let open = |dir: &Arc<RealDir>| match self.fds.get(dir) {
            // What lies above it is no directory any more.
            Err(FsError::Os(Errno::NOTDIR | Errno::LOOP)) => Err(FsError::Stale),
            opened => opened,
        };
        let stat = open(lower)?.at().stat()?;
        let mut at = lower.clone();
        while let Some((parent, name)) = at.found_at().filter(|_| at.veil() == Veil::None) {
            let seen = parent.stat_in(open(&parent)?.entry(&name));
            match seen {
                Ok(seen) if (seen.dev, seen.ino) == at.id => at = parent,
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => return Err(FsError::Stale),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Stamp::of(&stat, now))
    }

    /// Supersedes what is known of a directory that was found under a name, and merges others than those that were found.
    /// The caller holds its parent's names.
    ///
    /// # Errors
    /// `EBUSY` where somebody goes on changing something in it.
    pub(in crate::union) fn supersede_other(
        &self,
        at: (&Arc<Node>, &[u8]),
        identity: Identity,
        found: &Found,
    ) -> Result<()> {
        let FoundKind::Directory { dirs, .. } = &found.what else { return Ok(()) };
        let Some(watched) = &self.watched else { return Ok(()) };
        let lowers = || dirs.iter().filter(|dir| !self.is_upper(dir.layer));
        let is_same = |dir: &DirPart| {
            lowers().count() == dir.lowers.len()
                && lowers().zip(&dir.lowers).all(|(found, known)| found.is_same_place(known))
        };
        // The topmost lower gives a directory its identity, so what had another is found by what it shares with this one.
        // Two directories of a copied upper can share lowers, under two names.
        let shared = dirs.iter().filter_map(|dir| {
            let node = self.table.get(*watched.get(&(dir.layer, dir.id))?)?;
            (self.is_upper(dir.layer) || is_at(&node, at)).then_some(node)
        });
        let known: SmallVec<[Arc<Node>; 4]> = self.table.find(identity).into_iter().chain(shared).collect();
        for known in &known {
            let Some(dir) = known.dir.as_deref() else { continue };
            if matches!(*known.place.read(), NodePlace::Root) || dir.watch.is_superseded() || is_same(dir) {
                continue;
            }
            // Ancestors first. What a rename holds besides may be of another order, so nobody waits without end.
            let _names = dir.names.try_write_for(PATIENCE).ok_or(FsError::Os(Errno::BUSY))?;
            self.supersede(known, dir);
        }
        Ok(())
    }

    /// Remembers which directories of layers a node stands for that was found under a name, where lowers are checked. Of two that
    /// were found at the same time, before and after a change, the second supersedes the first, and if it is the older one,
    /// whoever looks next supersedes that.
    pub(in crate::union) fn watch_found(&self, at: (&Arc<Node>, &[u8]), node: &Node) {
        for (layer, before) in self.watch(node) {
            let Some(other) = self.table.get(before) else { continue };
            let Some(dir) = other.dir.as_deref() else { continue };
            if !is_superseded(node) && (self.is_upper(layer) || is_at(&other, at)) {
                self.supersede(&other, dir);
            }
        }
    }

    /// Remembers which directories of layers a node stands for, where lowers are checked. Returns who did before.
    pub(in crate::union) fn watch(&self, node: &Node) -> SmallVec<[(LayerIndex, u64); 2]> {
        let mut before = SmallVec::new();
        let (Some(watched), Some(dir)) = (&self.watched, &node.dir) else { return before };
        for real in dir.upper_dir().iter().chain(&dir.lowers) {
            let other = watched.insert((real.layer, real.id), node.ino).filter(|other| *other != node.ino);
            before.extend(other.map(|other| (real.layer, other)));
        }
        let most = (2 * self.layers.len() * self.table.len()).max(4096);
        if watched.len() > most {
            watched.retain(|_, ino| self.table.get(*ino).is_some());
        }
        before
    }

    fn supersede(&self, node: &Node, dir: &DirPart) {
        // The root is what the layers' roots are, wherever these go, and a removed directory has no name that another could have.
        if !matches!(*node.place.read(), NodePlace::Named { .. }) || dir.removed.load(Ordering::Relaxed) {
            return;
        }
        if dir.watch.supersede() {
            return;
        }
        log::warn!(
            "lower=checked: the directory {} is another one in its layers: who works in it gets ESTALE until he enters it anew",
            String::from_utf8_lossy(&self.path_of(node)).escape_debug()
        );
        node.supersede();
        if let NodePlace::Named { parent, entry } = &*node.place.read() {
            // What the name means now is no second thing that it was told to be.
            self.told_dirs.forget(parent, entry.name());
            self.stale_name(parent, entry.name());
        }
    }

    /// Gives a node that was found under a name this one, if what it had was one of a superseded directory.
    pub(in crate::union) fn place_anew(
        &self,
        node: &Node,
        parent: &Arc<Node>,
        name: &[u8],
        source: NodeSource,
    ) {
        let is_of_superseded = |place: &NodePlace| match place {
            NodePlace::Named { parent: known, .. } => {
                !Arc::ptr_eq(known, parent) && known.dir.as_ref().is_some_and(|dir| dir.watch.is_superseded())
            }
            NodePlace::Root | NodePlace::Pinned { .. } => false,
        };
        if self.watched.is_some() && is_of_superseded(&node.place.read()) {
            let mut place = node.place.write();
            if is_of_superseded(&place) {
                *place = NodePlace::Named { parent: parent.clone(), entry: Named::new(name, source) };
            }
        }
    }
}

/// Tells whether a node is known by that name.
fn is_at(node: &Node, (parent, name): (&Arc<Node>, &[u8])) -> bool {
    match &*node.place.read() {
        NodePlace::Named { parent: above, entry } => {
            entry.name() == name && (Arc::ptr_eq(above, parent) || is_superseded(above))
        }
        NodePlace::Root | NodePlace::Pinned { .. } => false,
    }
}

fn is_superseded(node: &Node) -> bool {
    node.dir.as_ref().is_some_and(|dir| dir.watch.is_superseded())
}

#[cfg(test)]
mod tests;
