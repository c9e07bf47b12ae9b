//! Nodes: the objects of the merged view that somebody knows, and the table that finds them by number.
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
//! 3. The lock of a lower file with several names (`Union::aliases`), one an origin and never two at once: shared
//!    while one of its names is turned into a node, exclusive while the file is copied up or loses a name.
//! 4. [`Node::place`], by ascending number: shared while a system call uses the place, exclusive to change it.
//! 5. [`DirPart::index`], the shards of tables and whatever else a whole mount shares: never held across a system call.
//!
//! The copying of data for a copy-up holds none of them, only the lock of that one copy-up (see [`crate::union::change::copy_up`]).
//! What is held across system calls (1 to 4) belongs to a file, to a directory or, as in the kernel, to renames between
//! directories: an operation on one file never waits for the disk of another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use dashmap::{DashMap, Entry};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

use crate::sys::object::Kind;
use crate::union::lookup::index::Indexes;
use crate::union::lookup::index_worth::IndexWorth;
use crate::union::lookup::realdir::RealDir;
use crate::union::nodes::generation::{Generation, Sighting};
use crate::union::nodes::name_state::NameState;
use crate::union::nodes::pins::Pinned;
use crate::union::nodes::progress::Progress;
pub use crate::union::nodes::region::InodeId;

/// The number of the root, fixed by FUSE.
pub const ROOT: u64 = 1;

/// Numbers from here up are given out where the rule has no free number.
const FALLBACK: u64 = 1 << 63;
/// The same where numbers have 32 bits.
const SMALL_FALLBACK: u64 = 1 << 31;
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
    /// An entry of that name.
    pub fn new(name: &[u8], source: NodeSource) -> Named {
        Named(if name.len() <= SHORT {
            let mut bytes = [0; SHORT];
            bytes[..name.len()].copy_from_slice(name);
            NamedForm::Short { source, len: name.len() as u8, bytes }
        } else {
            NamedForm::Long { source, name: name.into() }
        })
    }

    /// The name.
    pub fn name(&self) -> &[u8] {
        match &self.0 {
            NamedForm::Short { len, bytes, .. } => &bytes[..usize::from(*len)],
            NamedForm::Long { name, .. } => name,
        }
    }

    /// Which layer's entry of that name it is.
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
    /// May it be changed without a request, by who mapped it?
    mapped: AtomicBool,
    /// Is its name on the disk?
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
    /// keeps the inode, and with it its number, alive.
    Pinned {
        /// Stands for the object.
        fd: Arc<Pinned>,
        /// Is it in the upper?
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
    /// Was it removed? Then nothing can be made in it. Written under `names`.
    pub removed: AtomicBool,
    /// May the upper's directory hold entries whose origin must be read?
    pub impure: AtomicBool,
    /// Whether new entries inherit an ACL, as far as it is known.
    pub default_acl: Mutex<Option<bool>>,
    /// The indexes of its names, as far as they are built.
    pub index: Mutex<Indexes>,
    /// Whether lookups have cost so much that an index is worth building.
    pub index_worth: IndexWorth,
    /// How far it was listed.
    pub progress: Progress,
}

impl DirPart {
    /// The part of a directory that was found in these real directories.
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
        }
    }

    /// The topmost real directory.
    pub fn top(&self) -> Option<Arc<RealDir>> {
        self.upper.read().clone().or_else(|| self.lowers.first().cloned())
    }

    /// The upper's directory.
    pub fn upper_dir(&self) -> Option<Arc<RealDir>> {
        self.upper.read().clone()
    }
}

impl Node {
    /// What the node was found as.
    pub fn real(&self) -> InodeId {
        InodeId::from_bits(self.real.load(Ordering::Acquire))
    }

    /// Records that the node is another real object now: it was copied up. The caller holds the locks under which it is
    /// found.
    pub fn set_real(&self, real: InodeId, generation: Generation) {
        self.generation.store(generation.bits(), Ordering::Release);
        self.real.store(real.to_bits(), Ordering::Release);
    }

    /// Which of the inodes that have had its real object's number it is.
    pub fn generation(&self) -> Generation {
        Generation::from_bits(self.generation.load(Ordering::Acquire))
    }

    /// May it be changed without a request, by who mapped it?
    pub fn is_mapped(&self) -> bool {
        self.mapped.load(Ordering::Relaxed)
    }

    /// It may be mapped from now on. Tells whether it might before.
    pub fn set_mapped(&self) -> bool {
        self.mapped.swap(true, Ordering::Relaxed)
    }

    /// How often the kernel knows it.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed).into()
    }

    /// Counts lookups, or takes them away.
    fn count_lookups(&self, change: impl Fn(u32) -> u32) -> u32 {
        let counted = self.lookups.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            Some(if now == u32::MAX { now } else { change(now) })
        });
        counted.unwrap_or_else(|now| now)
    }

    /// Is the node, once forgotten, of no use to others? A directory with a name holds up what is known below it.
    fn may_linger(&self) -> bool {
        self.dir.as_ref().is_none_or(|dir| dir.removed.load(Ordering::Relaxed))
    }

    /// The parent of a node that has a name.
    pub fn parent(&self) -> Option<Arc<Node>> {
        match &*self.place.read() {
            NodePlace::Named { parent, .. } => Some(parent.clone()),
            NodePlace::Root | NodePlace::Pinned { .. } => None,
        }
    }

    /// Is this name the one in its place?
    pub fn is_named(&self, parent: &Arc<Node>, name: &[u8]) -> bool {
        matches!(&*self.place.read(), NodePlace::Named { parent: p, entry } if Arc::ptr_eq(p, parent) && entry.name() == name)
    }

    /// Is it `other`, or does it lie below it?
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

/// The nodes that somebody knows, by number.
///
/// A node stays in the table while the kernel knows it or a node in the table lies below it (its place holds the
/// parent). So there is never more than one node for one object.
#[derive(Debug, Default)]
pub struct Table {
    nodes: DashMap<u64, Arc<Node>>,
    /// Numbers given to objects for which the rule had none.
    fallback: DashMap<InodeId, u64>,
    next_fallback: AtomicU64,
    /// Numbers have at most 32 bits.
    small: bool,
    /// Files, and directories without a name, that were forgotten while a request still held them.
    deferred: Mutex<Vec<u64>>,
    /// How many nodes left since it was last shrunk.
    gone: AtomicUsize,
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

impl Table {
    /// An empty one. `small`: numbers of more than 31 bits by the rule are replaced by ones of 32 bits, which are given
    /// out as objects become known and so are not the same after a remount.
    pub fn new(small: bool) -> Table {
        Table { small, ..Table::default() }
    }

    /// Puts the root in.
    pub fn insert_root(&self, dir: DirPart, real: InodeId) -> Arc<Node> {
        let node = Arc::new(Node {
            ino: ROOT,
            kind: Kind::Directory,
            mapped: AtomicBool::new(false),
            names: NameState::default(),
            generation: AtomicU32::default(),
            lookups: AtomicU32::new(1),
            real: AtomicU64::new(real.to_bits()),
            place: RwLock::new(NodePlace::Root),
            dir: Some(Box::new(dir)),
        });
        self.nodes.insert(ROOT, node.clone());
        node
    }

    /// The node of that number.
    pub fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.nodes.get(&ino).map(|node| node.clone())
    }

    /// How many nodes are known.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Is nothing known, not even the root?
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The number that an object of this identity has, or would have by the rule: for listings, which
    /// show numbers of objects that nobody looked up.
    pub fn number(&self, identity: Identity) -> u64 {
        if let Some(fallback) = self.fallback.get(&identity.real) {
            return *fallback;
        }
        self.xino(identity.origin).unwrap_or_else(|| self.fallback_number(identity.real))
    }

    /// The number by the rule, where the rule may be followed.
    fn xino(&self, id: InodeId) -> Option<u64> {
        Some(id.to_bits()).filter(|number| *number > ROOT && (!self.small || *number < SMALL_FALLBACK))
    }

    fn fallback_number(&self, real: InodeId) -> u64 {
        let fallback = if self.small { SMALL_FALLBACK } else { FALLBACK };
        *self
            .fallback
            .entry(real)
            .or_insert_with(|| fallback | self.next_fallback.fetch_add(1, Ordering::Relaxed))
    }

    /// An object that was copied up keeps its number, and can't remember where it came from: it has it while the mount
    /// lives.
    pub fn keep_number(&self, real: InodeId, number: u64) {
        self.fallback.insert(real, number);
    }

    /// The node of an object that was found, if it is known: as [`Table::obtain`], but makes none.
    pub fn find(&self, identity: Identity) -> Option<Arc<Node>> {
        let number = match self.fallback.get(&identity.real) {
            Some(fallback) => *fallback,
            None => self.xino(identity.origin)?,
        };
        self.get(number).filter(|node| node.real() == identity.real)
    }

    /// The node of an object that was found, made by `make` if it isn't known. Counts `lookups` more lookups for it.
    /// `seen`: what has the number of a node that is known, and isn't of its generation, is another object.
    pub fn obtain(
        &self,
        identity: Identity,
        seen: Sighting,
        lookups: u32,
        make: impl FnOnce() -> NewNode,
    ) -> Arc<Node> {
        let fallback = self.fallback.get(&identity.real).map(|number| *number);
        let mut number = fallback
            .or_else(|| self.xino(identity.origin))
            .unwrap_or_else(|| self.fallback_number(identity.real));
        loop {
            match self.nodes.entry(number) {
                Entry::Occupied(known)
                    if known.get().real() == identity.real && seen.fits(known.get().generation()) =>
                {
                    let node = known.get().clone();
                    node.count_lookups(|now| now.saturating_add(lookups));
                    return node;
                }
                Entry::Occupied(other) => {
                    let replaced = other.get().real() == identity.real;
                    drop(other);
                    if replaced {
                        self.fallback.remove(&identity.real);
                    }
                    number = self.fallback_number(identity.real);
                }
                Entry::Vacant(free) => {
                    let NewNode { kind, place, dir } = make();
                    let node = Arc::new(Node {
                        ino: number,
                        kind,
                        mapped: AtomicBool::new(false),
                        names: NameState::default(),
                        generation: AtomicU32::new(seen.generation().bits()),
                        lookups: AtomicU32::new(lookups),
                        real: AtomicU64::new(identity.real.to_bits()),
                        place: RwLock::new(place),
                        dir,
                    });
                    free.insert(node.clone());
                    return node;
                }
            }
        }
    }

    /// Counts one more lookup of a node that is known.
    pub fn look_up_again(&self, node: &Node) {
        node.count_lookups(|now| now.saturating_add(1));
    }

    /// Is the node's number that of its own object, and not of one that it was copied up from?
    pub fn is_own_number(&self, node: &Node) -> bool {
        let real = node.real();
        self.xino(real) == Some(node.ino) || self.fallback.get(&real).is_some_and(|n| *n == node.ino)
    }

    /// The kernel forgets `count` lookups of a node. A node that nobody knows any more leaves the table, and its
    /// parent with it if that was the last thing that held it.
    /// `left` is told the number of each, when nothing holds it any more.
    pub fn forget(&self, ino: u64, count: u64, mut left: impl FnMut(u64)) {
        if ino == ROOT {
            return;
        }
        if let Some(node) = self.nodes.get(&ino) {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            let before = node.count_lookups(|now| now.saturating_sub(count));
            debug_assert!(before >= count, "more forgotten than looked up: {ino}");
        }
        self.release(ino, &mut left);
        self.release_lingering(&mut left);
    }

    /// How many nodes left since it was last shrunk.
    pub fn gone(&self) -> usize {
        self.gone.load(Ordering::Relaxed)
    }

    /// Makes the table as small as what is known allows.
    pub fn shrink(&self) {
        self.gone.store(0, Ordering::Relaxed);
        self.nodes.shrink_to_fit();
    }

    /// Drops the nodes that were forgotten while a request still held them, as far as that is over.
    pub fn release_lingering(&self, left: &mut impl FnMut(u64)) {
        let deferred = std::mem::take(&mut *self.deferred.lock());
        for ino in deferred {
            self.release(ino, left);
        }
    }

    /// Drops a node from the table if nobody needs it; then its parents, upward.
    pub fn release(&self, ino: u64, left: &mut impl FnMut(u64)) {
        let mut next = Some(ino);
        while let Some(ino) = next.take() {
            if ino == ROOT {
                return;
            }
            let unused = |_: &u64, node: &Arc<Node>| node.lookups() == 0 && Arc::strong_count(node) == 1;
            match self.nodes.remove_if(&ino, unused) {
                Some((_, node)) => {
                    next = node.parent().map(|parent| parent.ino);
                    if node.ino & FALLBACK != 0 {
                        // The number may be given again for the same object, and to no other.
                        log::trace!("node {ino:#x} left the table");
                    }
                    drop(node);
                    self.gone.fetch_add(1, Ordering::Relaxed);
                    left(ino);
                }
                None => {
                    let lingers = self.nodes.get(&ino).is_some_and(|n| n.lookups() == 0 && n.may_linger());
                    if lingers {
                        self.deferred.lock().push(ino);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn file_in(parent: &Arc<Node>) -> NewNode {
        let place = NodePlace::Named { parent: parent.clone(), entry: Named::new(b"f", NodeSource::Upper) };
        NewNode { kind: Kind::File, place, dir: None }
    }

    fn real_id(fs: u16, ino: u64) -> InodeId {
        InodeId::new(fs, ino).unwrap()
    }

    fn id(ino: u64) -> Identity {
        let real = real_id(0, ino);
        Identity { origin: real, real }
    }

    fn table() -> (Table, Arc<Node>) {
        let table = Table::default();
        let root = table.insert_root(DirPart::new(None, Vec::new()), real_id(0, 2));
        (table, root)
    }

    #[test]
    fn a_node_lives_until_every_lookup_is_forgotten() {
        let (table, root) = table();
        table.obtain(id(10), Sighting::default(), 1, || file_in(&root));
        table.obtain(id(10), Sighting::default(), 1, || unreachable!("it is known"));
        table.forget(10, 1, |_| {});
        assert!(table.get(10).is_some());
        table.forget(10, 1, |_| {});
        assert!(table.get(10).is_none());
    }

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

    #[test]
    fn a_node_that_was_looked_up_too_often_to_count_stays() {
        let (table, root) = table();
        table.obtain(id(10), Sighting::default(), u32::MAX - 1, || file_in(&root));
        table.obtain(id(10), Sighting::default(), 7, || unreachable!("it is known"));
        table.forget(10, u64::from(u32::MAX), |_| {});
        table.forget(10, 9, |_| {});
        assert!(table.get(10).is_some());
    }

    #[test]
    fn a_directory_stays_while_something_below_is_known() {
        let (table, root) = table();
        let dir = table.obtain(id(10), Sighting::default(), 1, || NewNode {
            kind: Kind::Directory,
            place: NodePlace::Named { parent: root.clone(), entry: Named::new(b"d", NodeSource::Upper) },
            dir: Some(Box::new(DirPart::new(None, Vec::new()))),
        });
        table.obtain(id(11), Sighting::default(), 1, || file_in(&dir));
        drop(dir);
        table.forget(10, 1, |_| {});
        assert!(table.get(10).is_some(), "a second node for the same directory could be made");
        table.forget(11, 1, |_| {});
        assert!(table.get(11).is_none());
        assert!(table.get(10).is_none());
    }

    #[test]
    fn what_left_takes_no_memory() {
        let (table, root) = table();
        (10..10_000).for_each(|ino| drop(table.obtain(id(ino), Sighting::default(), 1, || file_in(&root))));
        let full = table.nodes.capacity();
        (10..10_000).for_each(|ino| table.forget(ino, 1, |_| {}));
        assert_eq!(table.gone(), 10_000 - 10);
        table.shrink();
        assert_eq!(table.gone(), 0);
        assert!(table.nodes.capacity() < full / 50, "{} of {full}", table.nodes.capacity());
    }

    #[test]
    fn numbers_never_collide_and_stay() {
        let (table, root) = table();
        let copied = Identity { origin: real_id(0, 10), real: real_id(0, 90) };
        let first = table.obtain(copied, Sighting::default(), 1, || file_in(&root));
        assert_eq!(first.ino, 10, "a copied-up file keeps its origin's number");
        let second = table.obtain(id(10), Sighting::default(), 1, || file_in(&root));
        assert_ne!(second.ino, 10);
        assert_eq!(table.obtain(id(10), Sighting::default(), 1, || unreachable!()).ino, second.ino);
        let root_like = table.obtain(id(1), Sighting::default(), 1, || file_in(&root));
        assert_ne!(root_like.ino, ROOT);
        let far = table.obtain(
            Identity { origin: real_id(3, 10), real: real_id(3, 10) },
            Sighting::default(),
            1,
            || file_in(&root),
        );
        assert_eq!(far.ino, 3 << 48 | 10);
    }

    #[test]
    fn small_numbers_have_32_bits_and_never_collide() {
        let table = Table::new(true);
        let root = table.insert_root(DirPart::new(None, Vec::new()), real_id(0, 2));
        let own = |fs, ino| Identity { origin: real_id(fs, ino), real: real_id(fs, ino) };
        assert_eq!(table.obtain(id(10), Sighting::default(), 1, || file_in(&root)).ino, 10);
        let mut seen = HashSet::new();
        for identity in [own(1, 10), own(0, 1 << 31), own(0, 1 << 40), own(2, 10)] {
            let number = table.number(identity);
            assert!(number <= u64::from(u32::MAX) && seen.insert(number), "{number:#x}");
            assert_eq!(table.obtain(identity, Sighting::default(), 1, || file_in(&root)).ino, number);
        }
    }

    #[test]
    fn a_file_forgotten_while_in_use_leaves_later() {
        let (table, root) = table();
        let held = table.obtain(id(10), Sighting::default(), 1, || file_in(&root));
        table.forget(10, 1, |_| {});
        assert!(table.get(10).is_some());
        drop(held);
        table.obtain(id(12), Sighting::default(), 1, || file_in(&root));
        table.forget(12, 1, |_| {});
        assert!(table.get(10).is_none());
    }
}
