//! Nodes: the objects of the merged view that somebody knows. [`Table`](super::table::Table) finds them by number.
//!
//! A node is one file, whatever its names and wherever its data are: it stays the same node across copy-up and rename,
//! and all names of a hardlinked file lead to one node. Its number is what programs see as `st_ino` and what the
//! kernel calls the node id.
//!
//! # Locks
//!
//! In the order in which they may be taken:
//!
//! 1. [`Union::renames`](crate::union::Union): held by a rename between two directories, so that "is an ancestor of" can't
//!    change under the next rule. The kernel's VFS has the same lock, one a superblock.
//! 2. [`DirPart::names`] of directories, ancestors first, then by ascending number: shared by lookups and listings,
//!    exclusive for whatever changes which entry a name leads to, the publishing of a copy-up included.
//! 3. The lock of a lower file with several names (`Hardlinks::locks`), one an origin and never two at once: shared
//!    while one of its names is turned into a node, exclusive while the file is copied up or loses a name.
//! 4. [`Node::place`], by ascending number: shared while a system call uses the place, exclusive to change it.
//! 5. What an open half-copied file has, one file at a time: its slot in `Halves` (`union::data::halves`) while it is
//!    opened, then its state ([`Half`](crate::union::data::half::Half)): shared while it is read, exclusive while it is written to.
//! 6. The lock of a lent right (`LENDING`, in `union::change::lend`): around the one call that
//!    needs the right. Objects share these locks by chance, so nothing above is taken meanwhile.
//! 7. [`DirPart::index`], the shards of tables and whatever else a whole mount shares: never held across a system call.
//!
//! The copying of data for a copy-up holds none of them, only the lock of that one copy-up (see [`crate::union::change::copy_up`]),
//! which comes before those that publishing needs. Giving a file of the upper its data takes 4 and 5 for each step.
//! What is held across system calls (1 to 5) belongs to a file, to a directory or, as in the kernel, to renames between
//! directories: an operation on one file never waits for the disk of another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use smallvec::SmallVec;

use crate::error::Result;
use crate::sys::object::Kind;
use crate::union::lookup::index::Indexes;
use crate::union::lookup::index_worth::IndexWorth;
use crate::union::lookup::realdir::RealDir;
use crate::union::lookup::watch::Watch;
use crate::union::nodes::generation::{Generation, Sighting};
use crate::union::nodes::name_state::NameState;
use crate::union::nodes::pins::Pinned;
use crate::union::nodes::progress::Progress;
pub use crate::union::nodes::region::InodeId;

/// A name; short ones take no memory of their own.
pub type Name = SmallVec<[u8; 16]>;

/// A name of a directory, and which layer's entry of that name it is. In the size of a [`Name`] alone: there is one for
/// each known file.
#[derive(Debug)]
pub struct Named(NamedForm);

#[derive(Debug)]
enum NamedForm {
    Short { source: NodeSource, len: u8, bytes: [u8; SHORT] },
    Long { source: NodeSource, name: Box<[u8]> },
}

/// What fits beside the rest.
const SHORT: usize = 18;

impl Named {
    /// Makes an entry of that name.
    pub fn new(name: &[u8], source: NodeSource) -> Named {
        Named(if name.len() <= SHORT {
            let mut bytes = [0; SHORT];
            bytes[..name.len()].copy_from_slice(name);
            NamedForm::Short { source, len: name.len() as u8, bytes }
        } else {
            NamedForm::Long { source, name: name.into() }
        })
    }

    /// Returns the name.
    pub fn name(&self) -> &[u8] {
        match &self.0 {
            NamedForm::Short { len, bytes, .. } => &bytes[..usize::from(*len)],
            NamedForm::Long { name, .. } => name,
        }
    }

    /// Returns which layer's entry of that name it is.
    pub fn source(&self) -> NodeSource {
        match self.0 {
            NamedForm::Short { source, .. } | NamedForm::Long { source, .. } => source,
        }
    }

    /// Makes it the entry of another layer.
    pub fn set_source(&mut self, to: NodeSource) {
        match &mut self.0 {
            NamedForm::Short { source, .. } | NamedForm::Long { source, .. } => *source = to,
        }
    }
}

/// One object of the merged view.
#[derive(Debug)]
pub struct Node {
    /// Its number: `st_ino`, and the node id in FUSE.
    pub ino: u64,
    /// Its type, which never changes.
    pub kind: Kind,
    /// Whether it may be changed without a request, by who mapped it.
    mapped: AtomicBool,
    /// Whether whoever opens it anew knows it by a second id: see [`Node::set_second_id`].
    second_id: AtomicBool,
    /// Whether a kill can't have left it empty with marks: see [`Node::has_no_stray_marks`].
    no_stray_marks: AtomicBool,
    /// Whether it was seen without setuid and setgid in a lower: see [`Node::was_plain`].
    plain: AtomicBool,
    /// Whether its object has lost its last name: see [`Node::lose_last_name`].
    gone: AtomicBool,
    /// Whether its name is on the disk.
    pub names: NameState,
    /// Which of the inodes that have had its real object's number it is: see [`Generation`].
    generation: AtomicU32,
    /// How often the kernel was told of it and has not forgotten. One that reached the end of the numbers stays there,
    /// and the node lives as long as the mount.
    lookups: AtomicU32,
    /// What it was found as: see [`Identity::real`]. Changed by copy-up, under `place`.
    real: AtomicU64,
    /// Where it is.
    pub place: RwLock<NodePlace>,
    /// What only directories have.
    pub dir: Option<Box<DirPart>>,
}

/// Where a node is.
#[derive(Debug)]
pub enum NodePlace {
    /// The root of the merged tree.
    Root,
    /// Under a name of the merged tree (one of its names, for a hardlinked file).
    Named {
        /// The directory that holds the name.
        parent: Arc<Node>,
        /// The name, and where the object is.
        entry: Named,
    },
    /// Under no name that is known: unlinked, or only other names of the same file are left. The descriptor (O_PATH)
    /// keeps the inode alive, and with it, on filesystems of the kernel, its number.
    Pinned {
        /// Stands for the object.
        fd: Arc<Pinned>,
        /// Whether it is in the upper.
        upper: bool,
    },
}

/// Which real object a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeSource {
    /// The entry of the parent's upper directory. A directory may be merged with others below.
    Upper,
    /// The entry of the parent's lower directory of that index.
    Lower(u16),
    /// A lower's hardlinked file that was copied up under another of its names: the copy in the hardlink index, under
    /// the origin that the union remembers for the node.
    Index,
}

/// What makes two findings the same node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// What the number is made of: the object itself, or the lower object that it was copied up from.
    pub origin: InodeId,
    /// The object that a name leads to now. For a directory that is merged: the topmost lower one, which copy-up
    /// doesn't change.
    pub real: InodeId,
}

/// What only directories have.
#[derive(Debug)]
pub struct DirPart {
    /// The lowers' directories that contribute, topmost first. Never changes.
    pub lowers: Box<[Arc<RealDir>]>,
    /// The upper's directory, once there is one.
    pub upper: RwLock<Option<Arc<RealDir>>>,
    /// The lock of the directory's names.
    pub names: RwLock<()>,
    /// Whether it was removed. Then nothing can be made in it. Written under `names`.
    pub removed: AtomicBool,
    /// Whether the upper's directory may hold entries whose origin must be read.
    pub impure: AtomicBool,
    /// Whether new entries inherit an ACL, as far as it is known.
    pub default_acl: Mutex<Option<bool>>,
    /// The indexes of its names, as far as they are built.
    pub index: Mutex<Indexes>,
    /// Whether lookups have cost so much that an index is worth building.
    pub index_worth: IndexWorth,
    /// How far it was listed.
    pub progress: Progress,
    /// What is known of its lowers, where they are checked.
    pub watch: Watch,
}

impl DirPart {
    /// Makes the part of a directory that was found in these real directories.
    pub fn new(upper: Option<Arc<RealDir>>, lowers: Vec<Arc<RealDir>>) -> DirPart {
        DirPart {
            lowers: lowers.into(),
            upper: RwLock::new(upper),
            names: RwLock::new(()),
            removed: AtomicBool::new(false),
            impure: AtomicBool::new(false),
            default_acl: Mutex::new(None),
            index: Mutex::new(Indexes::default()),
            index_worth: IndexWorth::default(),
            progress: Progress::default(),
            watch: Watch::default(),
        }
    }

    /// Returns the topmost real directory.
    pub fn top(&self) -> Option<Arc<RealDir>> {
        self.upper.read().clone().or_else(|| self.lowers.first().cloned())
    }

    /// Returns the upper's directory.
    pub fn upper_dir(&self) -> Option<Arc<RealDir>> {
        self.upper.read().clone()
    }
}

/// Locks the places of two nodes to change them, in their order.
pub(in crate::union) fn both_places<'n>(
    one: &'n Node,
    other: &'n Node,
) -> (RwLockWriteGuard<'n, NodePlace>, RwLockWriteGuard<'n, NodePlace>) {
    if one.ino < other.ino {
        let first = one.place.write();
        return (first, other.place.write());
    }
    let first = other.place.write();
    (one.place.write(), first)
}

/// A new node, before it has a number.
pub struct NewNode {
    /// Its type.
    pub kind: Kind,
    /// Where it is.
    pub place: NodePlace,
    /// What a directory has.
    pub dir: Option<Box<DirPart>>,
}

impl Node {
    /// Makes a node of that number, which stands for `real`.
    pub(super) fn new(ino: u64, new: NewNode, real: InodeId, seen: Sighting, lookups: u32) -> Node {
        Node {
            ino,
            kind: new.kind,
            mapped: AtomicBool::new(false),
            second_id: AtomicBool::new(false),
            no_stray_marks: AtomicBool::new(false),
            plain: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            names: NameState::default(),
            generation: AtomicU32::new(seen.generation().bits()),
            lookups: AtomicU32::new(lookups),
            real: AtomicU64::new(real.to_bits()),
            place: RwLock::new(new.place),
            dir: new.dir,
        }
    }

    /// Returns what the node was found as.
    pub fn real(&self) -> InodeId {
        InodeId::from_bits(self.real.load(Ordering::Acquire))
    }

    /// Records that the node is another real object now: it was copied up. The caller holds the locks under which it is
    /// found.
    pub fn set_real(&self, real: InodeId, generation: Generation) {
        self.generation.store(generation.bits(), Ordering::Release);
        self.real.store(real.to_bits(), Ordering::Release);
    }

    /// Returns which of the inodes that have had its real object's number it is.
    pub fn generation(&self) -> Generation {
        Generation::from_bits(self.generation.load(Ordering::Acquire))
    }

    /// Remembers its generation in another form, if it has not got another object meanwhile.
    pub(in crate::union) fn settle_generation(&self, known: Generation, settled: Generation) {
        let (known, settled) = (known.bits(), settled.bits());
        let _newer = self.generation.compare_exchange(known, settled, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Runs what takes the last name of its object away. What is found under a name from then on is another object, though it
    /// has the same number: a filesystem in user space gives the number of a file that was deleted to the next one, whoever
    /// holds the old one open, and tells no times of birth by which to know them apart.
    pub(in crate::union) fn lose_last_name<R>(&self, remove: impl FnOnce() -> Result<R>) -> Result<R> {
        // Before: the number may be given again in the very moment. Nobody looks it up meanwhile, for its only name is locked.
        self.gone.store(true, Ordering::Release);
        remove().inspect_err(|_| self.gone.store(false, Ordering::Release))
    }

    /// Tells whether its object has lost its last name.
    pub(in crate::union) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Notes that its object has no name.
    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Notes that what is found under its name is another node's from now on.
    pub(in crate::union) fn supersede(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Tells whether an object that was found under a name, of that number, may be this node's.
    pub(super) fn may_be(&self, real: InodeId) -> bool {
        self.real() == real && !self.gone.load(Ordering::Acquire)
    }

    /// Tells whether it may be changed without a request, by who mapped it.
    pub fn is_mapped(&self) -> bool {
        self.mapped.load(Ordering::Relaxed)
    }

    /// Notes that it may be mapped from now on. Tells whether it might before.
    pub fn set_mapped(&self) -> bool {
        self.mapped.swap(true, Ordering::Relaxed)
    }

    /// Tells whether the kernel knows it by a second id, too.
    pub fn has_second_id(&self) -> bool {
        self.second_id.load(Ordering::Acquire)
    }

    /// Notes that from now on the kernel is told of it by a second id. Who had it open before reads another real file, which the
    /// kernel can't exchange. It stays so until the kernel has forgotten the node, by both. Tells whether it had one before.
    pub fn set_second_id(&self) -> bool {
        self.second_id.swap(true, Ordering::AcqRel)
    }

    /// Tells whether the marks of its file are all known: it was made by this mount, or somebody has looked. A file that was being
    /// emptied when a daemon was killed may be empty and have those of a metacopy, which no lookup tells.
    pub(in crate::union) fn has_no_stray_marks(&self) -> bool {
        self.no_stray_marks.load(Ordering::Relaxed)
    }

    /// Notes that it is so.
    pub(in crate::union) fn set_no_stray_marks(&self) {
        self.no_stray_marks.store(true, Ordering::Relaxed);
    }

    /// Tells whether it had neither setuid nor setgid when it was last looked at in a lower.
    pub(in crate::union) fn was_plain(&self) -> bool {
        self.plain.load(Ordering::Relaxed)
    }

    /// Notes what it had when it was looked at in a lower.
    pub(in crate::union) fn note_plain(&self, plain: bool) {
        self.plain.store(plain, Ordering::Relaxed);
    }

    /// Returns how often the kernel knows it.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed).into()
    }

    /// Counts lookups, or takes them away.
    pub(super) fn count_lookups(&self, change: impl Fn(u32) -> u32) -> u32 {
        let counted = self.lookups.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            Some(if now == u32::MAX { now } else { change(now) })
        });
        counted.unwrap_or_else(|now| now)
    }

    /// Tells whether the node, once forgotten, is of no use to others. A directory with a name holds up what is known
    /// below it.
    pub(super) fn may_linger(&self) -> bool {
        self.dir.as_ref().is_none_or(|dir| dir.removed.load(Ordering::Relaxed))
    }

    /// Returns the parent of a node that has a name.
    pub fn parent(&self) -> Option<Arc<Node>> {
        match &*self.place.read() {
            NodePlace::Named { parent, .. } => Some(parent.clone()),
            NodePlace::Root | NodePlace::Pinned { .. } => None,
        }
    }

    /// Returns whether this name is the one in its place.
    pub fn is_named(&self, parent: &Arc<Node>, name: &[u8]) -> bool {
        matches!(&*self.place.read(), NodePlace::Named { parent: p, entry } if Arc::ptr_eq(p, parent) && entry.name() == name)
    }

    /// Tells whether it is `other`, or lies below it.
    pub fn is_below(self: &Arc<Node>, other: &Arc<Node>) -> bool {
        let mut at = Some(self.clone());
        while let Some(node) = at {
            if Arc::ptr_eq(&node, other) {
                return true;
            }
            at = node.parent();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_small() {
        // With its two counters, a size that the allocator has.
        assert!(size_of::<Node>() + 16 <= 104, "{}", size_of::<Node>());
        let lengths = [0, 1, SHORT, SHORT + 1, 255];
        for name in lengths.map(|len| vec![b'n'; len]) {
            let mut entry = Named::new(&name, NodeSource::Lower(7));
            assert_eq!((entry.name(), entry.source()), (&name[..], NodeSource::Lower(7)));
            entry.set_source(NodeSource::Index);
            assert_eq!((entry.name(), entry.source()), (&name[..], NodeSource::Index));
        }
    }
}
