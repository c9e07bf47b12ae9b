//! From a finding to a node: who it is that a name leads to.
//!
//! A finding tells where an entry lies; its identity tells which file that is, whatever its other names and wherever it
//! was copied up from. See [`crate::union::hardlinks::links`] for what is remembered of that, and [`crate::union::nodes::node`] for the locks.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Kind, Stat};
use crate::union::Union;
use crate::union::change::instant::{self, Instant};
use crate::union::lookup::found::{DataAt, Found, What};
use crate::union::lookup::realdir::LayerIndex;
use crate::union::nodes::generation::{Generation, Sighting};
use crate::union::nodes::node::{DirPart, Identity, Named, NewNode, Node, Place, RealId, Source};

impl Union {
    /// The node of a finding under a name of a directory. Counts `lookups` lookups.
    pub(in crate::union) fn node_of(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        found: &Found,
        lookups: u32,
    ) -> Result<(Arc<Node>, Stat)> {
        // A copy-up of another name of the same file must not come between.
        let origin = self.origin_of(parent, name, found)?;
        let _aliases = self.has_aliases(parent, found).then(|| self.aliases.shared(origin));
        let (identity, source, stat) = self.identify_as(origin, parent, found)?;
        let seen = self.seen_of(identity, source, &stat, name, found)?;
        let node = self.table.obtain(identity, seen, lookups, || NewNode {
            kind: found.stat.kind(),
            place: Place::Named { parent: parent.clone(), entry: Named::new(name, source) },
            dir: self.new_dir_part(found),
        });
        if node.dir.is_some() && lookups > 0 {
            self.told_dirs.tell(parent, name, node.real());
        }
        if source == Source::Index {
            self.index_origins.insert(node.ino, identity.origin);
        }
        if let What::Leaf { dir, data } = &found.what {
            let at = match source {
                // The name leads to the lower's file, whose data are those of a metacopy of it.
                Source::Index if self.upper()?.is_indexed_metacopy(stat.ino) => {
                    let id = (found.stat.dev, found.stat.ino);
                    let generation = found.seen.generation();
                    let own = || DataAt { dir: dir.clone(), name: name.into(), id, generation };
                    Some(data.clone().unwrap_or_else(own))
                }
                Source::Index => None,
                _ => data.clone(),
            };
            if let Some(at) = at {
                self.metacopies.insert(node.ino, at);
            }
        }
        self.settle(&node, parent, name, source, stat.nlink);
        if stat.nlink > 1 && node.dir.is_none() {
            self.remember_name(&node, parent, name, source);
        }
        Ok((node, stat))
    }

    /// What tells the generation of a finding, held against that of the node which it may be.
    pub(in crate::union) fn seen_of(
        &self,
        identity: Identity,
        source: Source,
        stat: &Stat,
        name: &[u8],
        found: &Found,
    ) -> Result<Sighting> {
        if let What::Directory { dirs, .. } = &found.what
            && dirs.len() > 1
            && dirs.first().is_some_and(|dir| self.is_upper(dir.layer))
        {
            // Its identity is that of the lower's directory, before a copy-up and after it; each of the real directories is
            // verified by itself.
            return Ok(Sighting::default());
        }
        let copy = if source == Source::Index { Some(self.indexed_object(identity.origin)?) } else { None };
        let seen = match &copy {
            Some(copy) => self.see(copy.at(), stat),
            None => found.seen,
        };
        let known = self.table.find(identity).map_or(Generation::UNKNOWN, |node| node.generation());
        if seen.fits(known) {
            return Ok(seen);
        }
        let look = |at: At<'_>| self.fds.generations().look_again(seen, known, at, stat);
        Ok(match (&copy, &found.what) {
            (Some(copy), _) => look(copy.at()),
            (None, What::Leaf { dir, .. }) => look(At::Name(self.fds.get(dir)?.as_fd(), name)),
            (None, What::Directory { dirs, .. }) => match dirs.first() {
                Some(dir) => look(At::Fd(self.fds.get(dir)?.as_fd())),
                None => seen,
            },
        })
    }

    /// A node that had no known name gets this one; one that has a name keeps it.
    fn settle(&self, node: &Node, parent: &Arc<Node>, name: &[u8], source: Source, nlink: u64) {
        // The only name of a file that was another before: somebody has renamed it in the layer.
        let only = nlink == 1 && source != Source::Index && node.dir.is_none();
        if only && matches!(*node.place.read(), Place::Named { .. }) && !node.is_named(parent, name) {
            *node.place.write() = Place::Named { parent: parent.clone(), entry: Named::new(name, source) };
            return;
        }
        if matches!(*node.place.read(), Place::Pinned { .. }) && node.dir.is_none() {
            let mut place = node.place.write();
            if matches!(*place, Place::Pinned { .. }) {
                *place = Place::Named { parent: parent.clone(), entry: Named::new(name, source) };
                self.room.let_go(node.ino);
            }
        }
    }

    /// May a file have other names that lead to the same node?
    pub(in crate::union) fn has_aliases(&self, parent: &Node, found: &Found) -> bool {
        let origin = self.is_upper(found.layer)
            && parent.dir.as_ref().is_some_and(|d| d.impure.load(Ordering::Relaxed));
        found.stat.kind() != Kind::Directory && (found.stat.nlink > 1 || origin)
    }

    fn new_dir_part(&self, found: &Found) -> Option<Box<DirPart>> {
        let What::Directory { dirs, impure } = &found.what else { return None };
        let split = usize::from(dirs.first().is_some_and(|d| self.is_upper(d.layer)));
        let part = DirPart::new(dirs[..split].first().cloned(), dirs[split..].to_vec());
        part.impure.store(*impure && split == 1, Ordering::Relaxed);
        Some(Box::new(part))
    }

    /// Who a finding is, where it lies, and the stat that tells its attributes.
    pub(in crate::union) fn identify(
        &self,
        parent: &Node,
        name: &[u8],
        found: &Found,
    ) -> Result<(Identity, Source, Stat)> {
        self.identify_as(self.origin_of(parent, name, found)?, parent, found)
    }

    /// What a finding's number is made of. It never changes, so no lock is needed.
    pub(in crate::union) fn origin_of(&self, parent: &Node, name: &[u8], found: &Found) -> Result<RealId> {
        let own = || found.id;
        match &found.what {
            // Of a merged directory: the topmost lower one.
            What::Directory { dirs, .. } => Ok(match dirs.iter().find(|d| !self.is_upper(d.layer)) {
                Some(dir) => self.dir_id(dir),
                None => own(),
            }),
            What::Leaf { .. } if self.is_upper(found.layer) => {
                // Another overlay may have linked the copy to where no directory is marked.
                let linked = found.stat.nlink > 1;
                Ok(self.read_origin(parent, name, linked)?.unwrap_or_else(own))
            }
            What::Leaf { .. } => Ok(own()),
        }
    }

    /// As [`Union::identify`], of a finding of that origin. The caller holds the origin's lock, if the file may have
    /// several names and the answer is to stay true.
    pub(in crate::union) fn identify_as(
        &self,
        origin: RealId,
        parent: &Node,
        found: &Found,
    ) -> Result<(Identity, Source, Stat)> {
        let upper = self.is_upper(found.layer);
        let source = || if upper { Ok(Source::Upper) } else { self.lower_source(parent, found.layer) };
        match &found.what {
            What::Leaf { .. } if upper => {
                let real = found.id;
                Ok((Identity { origin, real }, Source::Upper, found.stat))
            }
            What::Leaf { .. } if found.stat.nlink > 1 => {
                let copy = self.indexed_copy(origin)?;
                instant::reached(Instant::Identified);
                match copy {
                    Some(copy) => {
                        let real = self.upper_id(&copy);
                        Ok((Identity { origin, real }, Source::Index, copy))
                    }
                    None => Ok((Identity { origin, real: origin }, source()?, found.stat)),
                }
            }
            _ => Ok((Identity { origin, real: origin }, source()?, found.stat)),
        }
    }

    /// Which of the parent's lowers is of that layer.
    fn lower_source(&self, parent: &Node, layer: LayerIndex) -> Result<Source> {
        let lowers = &self.dir_part(parent)?.lowers;
        let position = lowers.iter().position(|d| d.layer == layer).ok_or(FsError::Stale)?;
        Ok(Source::Lower(position as u16))
    }
}
