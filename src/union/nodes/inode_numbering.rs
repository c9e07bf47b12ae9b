//! From a finding to a node: who it is that a name leads to.
//!
//! A finding tells where an entry lies; its identity tells which file that is, whatever its other names and wherever it
//! was copied up from. See [`crate::union::hardlinks::links`] for what is remembered of that, and [`crate::union::nodes::node`] for the locks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{FsError, Result};
use crate::sys::object::{Kind, Stat};
use crate::union::Union;
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::lookup::found::{DataAt, Found, FoundKind};
use crate::union::lookup::realdir::LayerIndex;
use crate::union::nodes::generation::Sighting;
use crate::union::nodes::node::{DirPart, Identity, InodeId, Named, NewNode, Node, NodePlace, NodeSource};
use crate::union::stack::access::LayerAt;

impl Union {
    /// Returns the node of a finding under a name of a directory. Counts `lookups` lookups.
    pub(in crate::union) fn node_of(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        found: &Found,
        lookups: u32,
    ) -> Result<(Arc<Node>, Stat)> {
        // A copy-up of another name of the same file must not come between.
        let origin = self.origin_of(parent, name, found)?;
        let _hardlinks = self.has_hardlinks(parent, found).then(|| self.hardlinks.locks.shared(origin));
        let (identity, source, stat) = self.identify_as(origin, (parent, name), found)?;
        if self.watched.is_some() {
            failpoint::reached(Failpoint::Found);
        }
        self.supersede_other((parent, name), identity, found)?;
        let seen = self.seen_of(identity, source, &stat, name, found)?;
        let node = self.table.obtain(identity, seen, lookups, || NewNode {
            kind: found.stat.kind(),
            place: NodePlace::Named { parent: parent.clone(), entry: Named::new(name, source) },
            dir: self.new_dir_part(found),
        });
        if node.dir.is_some() && lookups > 0 {
            self.told_dirs.tell(parent, name, node.real());
        }
        if source == NodeSource::Index || node.dir.is_none() && self.is_frozen_copy(found, identity) {
            self.hardlinks.note_origin(node.ino, identity.origin);
        }
        if let FoundKind::Leaf { dir, data } = &found.what {
            let at = match source {
                // The name leads to the lower's file, whose data are those of a metacopy of it.
                NodeSource::Index if self.upper()?.is_indexed_metacopy(stat.ino) => {
                    let own = || DataAt::of(dir.clone(), name, &found.stat, found.seen.generation());
                    Some(data.clone().unwrap_or_else(own))
                }
                NodeSource::Index => None,
                _ => data.clone(),
            };
            if let Some(at) = at {
                self.note_data_below(&node, at);
            }
        }
        self.settle(&node, parent, name, source, stat.nlink);
        self.place_anew(&node, parent, name, source);
        self.watch_found((parent, name), &node);
        if stat.nlink > 1 && node.dir.is_none() {
            self.remember_name(&node, parent, name, source);
        }
        Ok((node, stat))
    }

    /// Returns what tells the generation of a finding, held against that of the node which it may be.
    pub(in crate::union) fn seen_of(
        &self,
        identity: Identity,
        source: NodeSource,
        stat: &Stat,
        name: &[u8],
        found: &Found,
    ) -> Result<Sighting> {
        if let FoundKind::Directory { dirs, .. } = &found.what
            && dirs.first().is_some_and(|dir| self.is_own(dir.layer))
            && (dirs.len() > 1 || found.id != identity.real)
        {
            // Its identity is that of the lower's directory, before a copy-up and after it; each of the real directories is
            // verified by itself.
            return Ok(Sighting::default());
        }
        let copy =
            if source == NodeSource::Index { Some(self.indexed_object(identity.origin)?) } else { None };
        let seen = match &copy {
            Some(copy) => self.see(copy.at(), stat),
            None => found.seen,
        };
        let node = self.table.find(identity);
        let known = match &node {
            Some(node) => node.generation(),
            None => match self.table.generation_before(identity) {
                Some(known) => known,
                None => return Ok(seen),
            },
        };
        if seen.fits(known) {
            return Ok(seen);
        }
        let look = |at: LayerAt<'_>| {
            let seen = self.fds.generations().look_again(seen, known, at, stat);
            if let Some(node) = &node
                && let Some(settled) = seen.settled(known, stat)
            {
                node.settle_generation(known, settled);
            }
            seen
        };
        Ok(match (&copy, &found.what) {
            (Some(copy), _) => look(copy.at()),
            (None, FoundKind::Leaf { dir, .. }) => look(self.fds.get(dir)?.entry(name)),
            (None, FoundKind::Directory { dirs, .. }) => match dirs.first() {
                Some(dir) => look(self.fds.get(dir)?.at()),
                None => seen,
            },
        })
    }

    /// Notes where the data of a file are, as a lookup found. It may have looked before the file became a half-copied
    /// one.
    fn note_data_below(&self, node: &Node, at: DataAt) {
        let mut known = self.metacopies.entry(node.ino).or_insert_with(|| at.clone());
        if known.half.is_none() || at.half.is_some() {
            *known = at;
        }
    }

    /// Gives a node that had no known name this one; one that has a name keeps it.
    fn settle(&self, node: &Node, parent: &Arc<Node>, name: &[u8], source: NodeSource, nlink: u64) {
        // The only name of a file that was another before: somebody has renamed it in the layer.
        let only = nlink == 1 && source != NodeSource::Index && node.dir.is_none();
        if only && matches!(*node.place.read(), NodePlace::Named { .. }) && !node.is_named(parent, name) {
            *node.place.write() =
                NodePlace::Named { parent: parent.clone(), entry: Named::new(name, source) };
            return;
        }
        if matches!(*node.place.read(), NodePlace::Pinned { .. }) && node.dir.is_none() {
            let mut place = node.place.write();
            if matches!(*place, NodePlace::Pinned { .. }) {
                *place = NodePlace::Named { parent: parent.clone(), entry: Named::new(name, source) };
                self.deferred.note_freed(node.ino);
            }
        }
    }

    /// Tells whether a file may have other names that lead to the same node.
    pub(in crate::union) fn has_hardlinks(&self, parent: &Node, found: &Found) -> bool {
        let origin = self.is_upper(found.layer)
            && parent.dir.as_ref().is_some_and(|d| d.impure.load(Ordering::Relaxed));
        let is_one_of_several = found.stat.nlink > 1 || self.may_have_changed(found);
        found.stat.kind() != Kind::Directory && (is_one_of_several || origin)
    }

    fn new_dir_part(&self, found: &Found) -> Option<Box<DirPart>> {
        let FoundKind::Directory { dirs, impure } = &found.what else { return None };
        let split = usize::from(dirs.first().is_some_and(|d| self.is_upper(d.layer)));
        let part = DirPart::new(dirs[..split].first().cloned(), dirs[split..].to_vec());
        part.impure.store(*impure && split == 1, Ordering::Relaxed);
        Some(Box::new(part))
    }

    /// Tells who a finding is, where it lies, and the stat that tells its attributes.
    pub(in crate::union) fn identify(
        &self,
        parent: &Node,
        name: &[u8],
        found: &Found,
    ) -> Result<(Identity, NodeSource, Stat)> {
        let origin = self.origin_of(parent, name, found)?;
        let _hardlinks = self.may_have_changed(found).then(|| self.hardlinks.locks.shared(origin));
        self.identify_as(origin, (parent, name), found)
    }

    /// Returns what a finding's number is made of. It never changes but for a copy whose original is gone, so no lock is needed.
    pub(in crate::union) fn origin_of(&self, parent: &Node, name: &[u8], found: &Found) -> Result<InodeId> {
        let own = || found.id;
        match &found.what {
            // Of a merged directory: the topmost one that was never an upper's, else the first that was made. So snapshots
            // don't change it.
            FoundKind::Directory { dirs, .. } => {
                let lower = dirs.iter().find(|d| !self.is_own(d.layer)).or(dirs.last());
                Ok(lower.filter(|d| !self.is_upper(d.layer)).map_or_else(own, |dir| self.dir_id(dir)))
            }
            FoundKind::Leaf { .. } if self.is_upper(found.layer) => {
                // Another overlay may have linked the copy to where no directory is marked.
                let linked = found.stat.nlink > 1;
                Ok(self.read_origin(parent, name, linked)?.unwrap_or_else(own))
            }
            FoundKind::Leaf { dir, .. } if self.is_own(found.layer) => {
                let origin = self.read_frozen_origin(dir, name, found.stat.nlink > 1)?;
                Ok(origin.unwrap_or_else(own))
            }
            FoundKind::Leaf { .. } => Ok(own()),
        }
    }

    /// Tells whether a finding is what a frozen layer holds as a copy of something below it.
    fn is_frozen_copy(&self, found: &Found, identity: Identity) -> bool {
        self.is_own(found.layer) && !self.is_upper(found.layer) && identity.origin != identity.real
    }

    /// Does as [`Union::identify`], of a finding of that origin. The caller holds the origin's lock, if the file may
    /// have several names and the answer is to stay true.
    pub(in crate::union) fn identify_as(
        &self,
        origin: InodeId,
        (parent, name): (&Node, &[u8]),
        found: &Found,
    ) -> Result<(Identity, NodeSource, Stat)> {
        let is_checked = self.may_have_changed(found);
        if is_checked {
            self.forget_of_another(name, found)?;
        }
        let upper = self.is_upper(found.layer);
        let source = || if upper { Ok(NodeSource::Upper) } else { self.lower_source(parent, found.layer) };
        match &found.what {
            FoundKind::Leaf { .. } if upper => {
                let real = found.id;
                Ok((Identity { origin, real }, NodeSource::Upper, found.stat))
            }
            // In a lower that changes it may have lost its other names since it was copied up.
            FoundKind::Leaf { .. } if found.stat.nlink > 1 || is_checked => {
                let mut copy = self.indexed_copy(origin)?;
                if is_checked
                    && copy.as_ref().is_some_and(|copy| copy.kind() != found.stat.kind())
                    && let Some(known) = self.upper()?.indexed(origin)
                {
                    // Whatever is known of the original: a file never becomes one of another type.
                    self.disown(origin, &known, name)?;
                    copy = None;
                }
                failpoint::reached(Failpoint::Identified);
                match copy {
                    Some(copy) => {
                        let real = self.upper_id(&copy);
                        Ok((Identity { origin, real }, NodeSource::Index, copy))
                    }
                    None => Ok((Identity { origin, real: found.id }, source()?, found.stat)),
                }
            }
            FoundKind::Leaf { .. } => Ok((Identity { origin, real: found.id }, source()?, found.stat)),
            _ => Ok((self.directory_identity(origin, found), source()?, found.stat)),
        }
    }

    /// Who a directory is: what it is merged with below, which copy-up doesn't change. Where the upper has two of one redirect (a copy
    /// that somebody made of a renamed one, marks and all) that is the one that is known, and the other is itself.
    fn directory_identity(&self, origin: InodeId, found: &Found) -> Identity {
        let merged = Identity { origin, real: origin };
        let FoundKind::Directory { dirs, .. } = &found.what else { return merged };
        let Some(own) = dirs.first().filter(|dir| self.is_upper(dir.layer)).map(|dir| self.dir_id(dir))
        else {
            return merged;
        };
        if own == origin {
            return merged;
        }
        let upper_of = |identity| {
            let node = self.table.find(identity)?;
            let upper = node.dir.as_ref()?.upper.read().clone()?;
            Some(self.dir_id(&upper))
        };
        let itself = Identity { origin: own, real: own };
        match upper_of(merged) {
            Some(known) if known != own => itself,
            Some(_) => merged,
            // The other may have been forgotten meanwhile.
            None if upper_of(itself) == Some(own) => itself,
            None => merged,
        }
    }

    /// Tells which of the parent's lowers is of that layer.
    fn lower_source(&self, parent: &Node, layer: LayerIndex) -> Result<NodeSource> {
        let lowers = &self.dir_part(parent)?.lowers;
        let position = lowers.iter().position(|d| d.layer == layer).ok_or(FsError::Stale)?;
        Ok(NodeSource::Lower(position as u16))
    }
}
