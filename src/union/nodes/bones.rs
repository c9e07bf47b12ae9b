//! What is left of the nodes of a union whose stack is opened anew: numbers, names and counts.
//!
//! The kernel knows nodes by number, and goes on to. A number that it asks for is looked up again by the name that it had, and
//! whoever comes to the same object by another way makes it known as well. Until then a bone is all that there is of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dashmap::{DashMap, Entry};
use parking_lot::{Mutex, RwLock};

use crate::union::nodes::generation::{Generation, Sighting};
use crate::union::nodes::node::{Node, NodePlace, NodeSource};
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
    /// Whether it is a directory, whose listing the kernel may know.
    pub is_directory: bool,
    /// Whether the object is gone with an upper that was thrown away, or another node stands for it: nothing that is found is it,
    /// whatever its number.
    pub is_dead: bool,
}

impl Bone {
    /// Returns what is left of a node, whose upper may be gone. `None`: it has no name.
    pub fn of(node: &Node, upper_is_gone: bool) -> Option<Bone> {
        let place = node.place.read();
        let NodePlace::Named { parent, entry } = &*place else { return None };
        let is_of_upper_alone = match &node.dir {
            Some(part) => part.lowers.is_empty(),
            None => !matches!(entry.source(), NodeSource::Lower(_)),
        };
        Some(Bone {
            parent: parent.ino,
            name: entry.name().into(),
            lookups: u32::try_from(node.lookups()).unwrap_or(u32::MAX),
            mapped: node.is_mapped(),
            real: node.real(),
            generation: node.generation(),
            is_directory: node.dir.is_some(),
            // One that has a name is gone where another node stands for what the name leads to (`lower=checked`).
            is_dead: upper_is_gone && is_of_upper_alone || node.is_gone(),
        })
    }

    /// Returns what is left of a node without a name that is gone with its upper. The kernel knows the number still, so nothing else
    /// may get it; nothing is found by it. `root`: the number of the root, which stays whatever lies below it.
    pub fn of_lost(node: &Node, root: u64) -> Bone {
        Bone {
            parent: root,
            name: Box::default(),
            lookups: u32::try_from(node.lookups()).unwrap_or(u32::MAX),
            mapped: node.is_mapped(),
            real: node.real(),
            generation: node.generation(),
            is_directory: node.dir.is_some(),
            is_dead: true,
        }
    }

    /// Tells whether an object that was found is what this is of.
    pub fn is_of(&self, real: InodeId, seen: Sighting) -> bool {
        !self.is_dead && self.real == real && seen.fits(self.generation)
    }
}

/// The nodes of a union, by number.
pub(in crate::union) type Nodes = DashMap<u64, Arc<Node>>;

/// The bones, by number.
///
/// A union that takes over is to do so at once, however many nodes there are. So it gets the nodes of the one before as they are, and
/// each becomes a bone when somebody asks for it; [`Bones::convert`] goes through the rest afterwards. As long as there are any it isn't
/// known what lies below a directory, and none is let go.
#[derive(Debug, Default)]
pub(in crate::union) struct Bones {
    /// In the lock order after [`Bones::before`].
    all: DashMap<u64, Bone>,
    /// How many there are, so that nobody looks where there are none.
    count: AtomicUsize,
    /// How many lie below each directory, if any do. In the lock order after all others.
    below: DashMap<u64, u32>,
    /// Nodes that are no bones yet.
    before: RwLock<Vec<Before>>,
    waiting: Mutex<Waiting>,
    /// Whether something is ready there.
    has_ready: AtomicBool,
    converting: Mutex<()>,
}

/// Nodes of a union that was taken over from. Nobody else has them.
#[derive(Debug)]
struct Before {
    nodes: Arc<Nodes>,
    /// Whether its upper is gone.
    is_gone: bool,
}

/// What waits until all nodes are bones.
#[derive(Debug, Default)]
struct Waiting {
    /// Whether some aren't.
    is_on: bool,
    /// What might have been let go meanwhile.
    asked: Vec<u64>,
    /// What is to be looked at now.
    ready: Vec<u64>,
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

    /// Takes the nodes over of a union that serves nobody any more: all of them have names. `is_gone`: its upper is.
    pub fn take_over(&self, nodes: Arc<Nodes>, is_gone: bool) {
        self.count.fetch_add(nodes.len(), Ordering::AcqRel);
        self.before.write().push(Before { nodes, is_gone });
        // After that: who has just converted others looks whether there are more.
        self.waiting.lock().is_on = true;
    }

    /// Makes bones of all nodes that are none yet.
    pub fn convert(&self) {
        let _alone = self.converting.lock();
        loop {
            let next = self.before.read().first().map(|before| before.nodes.clone());
            let Some(nodes) = next else { break };
            let numbers: Vec<u64> = nodes.iter().map(|node| *node.key()).collect();
            numbers.into_iter().for_each(|ino| self.make(ino));
            self.before.write().retain(|before| !Arc::ptr_eq(&before.nodes, &nodes));
        }
        let asked = {
            let mut waiting = self.waiting.lock();
            // Another union may have been taken over from just now, and comes here next.
            waiting.is_on = !self.before.read().is_empty();
            if waiting.is_on { Vec::new() } else { std::mem::take(&mut waiting.asked) }
        };
        let forgotten = self.all.iter().filter(|bone| bone.lookups == 0).map(|bone| *bone.key());
        let forgotten: Vec<u64> = forgotten.collect();
        let unneeded: Vec<u64> = forgotten.into_iter().filter_map(|ino| self.unneeded(ino)).collect();
        self.waiting.lock().ready.extend(asked.into_iter().chain(unneeded));
        self.has_ready.store(true, Ordering::Release);
    }

    /// Returns the numbers of directories that may not be needed any more.
    pub fn take_ready(&self) -> Vec<u64> {
        if !self.has_ready.load(Ordering::Acquire) || !self.has_ready.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut self.waiting.lock().ready)
    }

    /// Makes the bone of a node that is none yet.
    fn make(&self, ino: u64) {
        let before = self.before.read();
        if before.is_empty() {
            return;
        }
        let Entry::Vacant(free) = self.all.entry(ino) else { return };
        for Before { nodes, is_gone } in before.iter() {
            if let Some((_, node)) = nodes.remove(&ino) {
                match Bone::of(&node, *is_gone) {
                    Some(bone) => {
                        *self.below.entry(bone.parent).or_default() += 1;
                        free.insert(bone);
                    }
                    None => drop(self.count.fetch_sub(1, Ordering::AcqRel)),
                }
                return;
            }
        }
    }

    /// Returns the one of that number.
    pub fn get(&self, ino: u64) -> Option<Bone> {
        if self.len() == 0 {
            return None;
        }
        self.make(ino);
        self.all.get(&ino).map(|bone| bone.clone())
    }

    /// Calls `f` with each.
    pub fn for_each(&self, mut f: impl FnMut(u64, &Bone)) {
        if self.len() > 0 {
            self.convert();
            self.all.iter().for_each(|bone| f(*bone.key(), bone.value()));
        }
    }

    /// Tells whether one lies below the directory of that number, which must stay known for it. As long as that can't be told it is so,
    /// and [`Bones::take_ready`] names it when it can.
    pub fn need(&self, directory: u64) -> bool {
        if self.len() == 0 {
            return false;
        }
        if self.below.contains_key(&directory) {
            return true;
        }
        let mut waiting = self.waiting.lock();
        if waiting.is_on {
            waiting.asked.push(directory);
        }
        waiting.is_on
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
        self.make(ino);
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
        self.make(ino);
        let (_, bone) = self.all.remove(&ino)?;
        self.count.fetch_sub(1, Ordering::AcqRel);
        if let Some(mut below) = self.below.get_mut(&bone.parent) {
            *below -= 1;
        }
        self.below.remove_if(&bone.parent, |_, below| *below == 0);
        Some(bone)
    }
}
