//! What is left of the nodes of a union whose stack is opened anew: numbers, names and counts.
//!
//! The kernel knows nodes by number, and goes on to. A number that it asks for is looked up again by the name that it had, and
//! whoever comes to the same object by another way makes it known as well. Until then a bone is all that there is of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;

use crate::union::nodes::generation::{Generation, Sighting};
use crate::union::nodes::node::Node;
use crate::union::nodes::region::InodeId;

/// What is left of a node that had a name.
#[derive(Debug, Clone)]
pub(in crate::union) struct Bone {
    /// The number of the directory that holds the name.
    pub parent: u64,
    /// The name.
    pub name: Box<[u8]>,
    /// How often the kernel was told of it and has not forgotten.
    pub lookups: u32,
    /// Whether it may be changed without a request.
    pub mapped: bool,
    /// Which inode it is; a copy-up and a snapshot leave it as it is.
    pub real: InodeId,
    /// Which of those that have had this number.
    pub generation: Generation,
}

impl Bone {
    /// Tells whether an object that was found is what this is of.
    pub fn is_of(&self, real: InodeId, seen: Sighting) -> bool {
        self.real == real && seen.fits(self.generation)
    }
}

/// The bones, by number.
#[derive(Debug, Default)]
pub(in crate::union) struct Bones {
    all: DashMap<u64, Bone>,
    /// How many there are, so that nobody looks where there are none.
    count: AtomicUsize,
    /// How many lie below each directory, if any do.
    below: DashMap<u64, u32>,
}

impl Bones {
    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Lays one down.
    pub fn insert(&self, ino: u64, bone: Bone) {
        *self.below.entry(bone.parent).or_default() += 1;
        if self.all.insert(ino, bone).is_none() {
            self.count.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Returns the one of that number.
    pub fn get(&self, ino: u64) -> Option<Bone> {
        if self.len() == 0 { None } else { self.all.get(&ino).map(|bone| bone.clone()) }
    }

    /// Calls `f` with each.
    pub fn for_each(&self, mut f: impl FnMut(u64, &Bone)) {
        if self.len() > 0 {
            self.all.iter().for_each(|bone| f(*bone.key(), bone.value()));
        }
    }

    /// Tells whether one lies below the directory of that number, which must stay known for it.
    pub fn need(&self, directory: u64) -> bool {
        self.len() > 0 && self.below.contains_key(&directory)
    }

    /// Gives a node that was made what was known of its number. Returns the directory above what goes with it, if that isn't needed for
    /// it any more: the object may have been found by another name.
    pub fn come_to_life(&self, node: &Arc<Node>) -> Option<u64> {
        if self.len() == 0 {
            return None;
        }
        let bone = self.take(node.ino)?;
        node.count_lookups(|now| now.saturating_add(bone.lookups));
        if bone.mapped {
            node.set_mapped();
        }
        self.unneeded(bone.parent)
    }

    /// Takes away what nobody knows and nothing lies below any more, from that number up. Returns the directory above, a node, if it
    /// isn't needed for it any more.
    fn unneeded(&self, mut at: u64) -> Option<u64> {
        loop {
            match self.get(at) {
                None => return Some(at).filter(|at| !self.need(*at)),
                Some(bone) if bone.lookups == 0 && !self.need(at) => {
                    self.take(at);
                    at = bone.parent;
                }
                Some(_) => return None,
            }
        }
    }

    /// Forgets lookups. `false`: there is none of that number. One that nobody knows any more goes, and with it those above that
    /// were there for it alone; `unneeded` is told of the directory above them.
    pub fn forget(&self, ino: u64, count: u64, unneeded: impl FnOnce(u64)) -> bool {
        if self.len() == 0 {
            return false;
        }
        match self.all.get_mut(&ino) {
            None => return false,
            Some(mut bone) => {
                bone.lookups = bone.lookups.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
            }
        }
        if let Some(directory) = self.unneeded(ino) {
            unneeded(directory);
        }
        true
    }

    fn take(&self, ino: u64) -> Option<Bone> {
        let (_, bone) = self.all.remove(&ino)?;
        self.count.fetch_sub(1, Ordering::AcqRel);
        if let Some(mut below) = self.below.get_mut(&bone.parent) {
            *below -= 1;
        }
        self.below.remove_if(&bone.parent, |_, below| *below == 0);
        Some(bone)
    }
}
