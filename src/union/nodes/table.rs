//! The table of the nodes, by number, and the rule that gives out numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::{DashMap, Entry};
use parking_lot::Mutex;

use crate::sys::object::Kind;
use crate::union::nodes::bones::{Bones, Nodes};
use crate::union::nodes::generation::{Generation, Sighting};
use crate::union::nodes::node::{DirPart, Identity, NewNode, Node, NodePlace};
use crate::union::nodes::region::InodeId;

/// The number of the root, fixed by FUSE.
pub const ROOT: u64 = 1;

/// Numbers from here up are given out where the rule has no free number.
const FALLBACK: u64 = 1 << 63;
/// The same where numbers have 32 bits.
const SMALL_FALLBACK: u64 = 1 << 31;
/// The nodes that somebody knows, by number.
///
/// A node stays in the table while the kernel knows it or a node in the table lies below it (its place holds the
/// parent). So there is never more than one node for one object.
#[derive(Debug, Default)]
pub struct Table {
    nodes: Arc<Nodes>,
    /// Numbers given to objects for which the rule had none.
    fallback: DashMap<InodeId, u64>,
    next_fallback: AtomicU64,
    /// Numbers have at most 32 bits.
    small: bool,
    /// Files, and directories without a name, that were forgotten while a request still held them.
    deferred: Mutex<Vec<u64>>,
    /// How many nodes left since it was last shrunk.
    gone: AtomicUsize,
    /// Nodes of the union before this one, by number, that nobody has asked for since: see [`crate::union::nodes::skeleton`].
    bones: Arc<Bones>,
}

/// Numbers that were given out where the rule has none.
#[derive(Debug)]
pub(in crate::union) struct Numbers {
    /// The next one that is given out.
    pub next: u64,
    /// Which objects have which.
    pub given: Vec<(InodeId, u64)>,
}

impl Table {
    /// Makes an empty one. `small`: numbers of more than 31 bits by the rule are replaced by ones of 32 bits, which are
    /// given out as objects become known and so are not the same after a remount.
    pub fn new(small: bool) -> Table {
        Table { small, ..Table::default() }
    }

    /// Puts the root in.
    pub fn insert_root(&self, dir: DirPart, real: InodeId) -> Arc<Node> {
        let new = NewNode { kind: Kind::Directory, place: NodePlace::Root, dir: Some(Box::new(dir)) };
        let node = Arc::new(Node::new(ROOT, new, real, Sighting::default(), 1));
        self.nodes.insert(ROOT, node.clone());
        node
    }

    /// Returns the node of that number.
    pub fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.nodes.get(&ino).map(|node| node.clone())
    }

    /// Returns how many nodes are known.
    pub fn len(&self) -> usize {
        self.nodes.len() + self.bones.len()
    }

    /// Returns the nodes that nobody has asked for since the stack was opened anew.
    pub(in crate::union) fn bones(&self) -> &Arc<Bones> {
        &self.bones
    }

    /// Returns the nodes themselves, for the union that takes over.
    pub(in crate::union) fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// Takes over what the union before knew: its bones, and its nodes that have names.
    pub(in crate::union) fn take_over(&mut self, bones: Arc<Bones>, nodes: Arc<Nodes>, is_gone: bool) {
        bones.take_over(nodes, is_gone);
        self.bones = bones;
    }

    /// Calls `f` with each node.
    pub(in crate::union) fn for_each(&self, mut f: impl FnMut(&Arc<Node>)) {
        self.nodes.iter().for_each(|node| f(node.value()));
    }

    /// Puts a node in that was known by this number.
    pub(in crate::union) fn insert(&self, node: Arc<Node>) {
        self.nodes.insert(node.ino, node);
    }

    /// Takes over the numbers that the table of the union before gave out where the rule had none.
    pub(in crate::union) fn take_over_numbers(&self, before: Numbers) {
        self.next_fallback.store(before.next, Ordering::Relaxed);
        for (real, number) in before.given {
            self.fallback.insert(real, number);
        }
    }

    /// Returns the numbers that were given out where the rule had none. `gone`: the region of an upper that is thrown away, in which
    /// lowers may lie too. What is known of it keeps its number: what stays would be two nodes with another, and one that is gone is
    /// never found by it, see [`Table::obtain`].
    pub(in crate::union) fn numbers(&self, gone: Option<u16>) -> Numbers {
        let given: Vec<_> = self.fallback.iter().map(|given| (*given.key(), *given.value())).collect();
        let is_known = |number: u64| self.nodes.contains_key(&number) || self.bones.get(number).is_some();
        let stays =
            |(real, number): &(InodeId, u64)| gone.is_none() || real.region() != gone || is_known(*number);
        Numbers {
            next: self.next_fallback.load(Ordering::Relaxed),
            given: given.into_iter().filter(stays).collect(),
        }
    }

    /// Tells whether nothing is known, not even the root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the number that an object of this identity has, or would have by the rule: for listings, which
    /// show numbers of objects that nobody looked up.
    pub fn number(&self, identity: Identity) -> u64 {
        if let Some(fallback) = self.fallback.get(&identity.real) {
            return *fallback;
        }
        self.xino(identity.origin).unwrap_or_else(|| self.fallback_number(identity.real))
    }

    /// Returns the number by the rule, where the rule may be followed.
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

    /// Returns the number of an object that can't have the one that it was given. Somebody else who has found it at the same time
    /// may have given it another since; that stays.
    fn other_number(&self, real: InodeId, number: u64) -> u64 {
        self.fallback.remove_if(&real, |_, given| *given == number);
        self.fallback_number(real)
    }

    /// Tells whether a number is what the rule makes of an origin. A file has another where a file that is gone had the origin's
    /// inode number, and its copy keeps the number.
    pub fn is_number_of(&self, number: u64, origin: InodeId) -> bool {
        self.xino(origin) == Some(number)
    }

    /// Keeps the number of an object that was copied up and can't remember where it came from: it has it while the
    /// mount lives.
    pub fn keep_number(&self, real: InodeId, number: u64) {
        self.fallback.insert(real, number);
    }

    /// Lets an object keep the number that it has as a copy, which it isn't any more, of an origin. `other` has the origin's inode
    /// number now, and gets another. Returns the number.
    pub(in crate::union) fn part(&self, copy: Identity, other: InodeId) -> u64 {
        let number = self.number(copy);
        self.keep_number(copy.real, number);
        if self.number(Identity { origin: other, real: other }) == number {
            self.other_number(other, number);
        }
        number
    }

    /// Returns the node of an object that was found, if it is known: as [`Table::obtain`], but makes none.
    pub fn find(&self, identity: Identity) -> Option<Arc<Node>> {
        let number = match self.fallback.get(&identity.real) {
            Some(fallback) => *fallback,
            None => self.xino(identity.origin)?,
        };
        self.get(number).filter(|node| node.may_be(identity.real))
    }

    /// Returns the generation of an object that was found, as the union before knew it, if nobody has asked for it since.
    pub(in crate::union) fn generation_before(&self, identity: Identity) -> Option<Generation> {
        let number = match self.fallback.get(&identity.real) {
            Some(fallback) => *fallback,
            None => self.xino(identity.origin)?,
        };
        self.bones
            .get(number)
            .filter(|bone| !bone.is_dead && bone.real == identity.real)
            .map(|bone| bone.generation)
    }

    /// Returns the node of an object that was found, made by `make` if it isn't known. Counts `lookups` more lookups
    /// for it. `seen`: what has the number of a node that is known, and isn't of its generation, is another object.
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
                    if known.get().may_be(identity.real) && seen.fits(known.get().generation()) =>
                {
                    let node = known.get().clone();
                    node.count_lookups(|now| now.saturating_add(lookups));
                    return node;
                }
                Entry::Occupied(other) => {
                    drop(other);
                    number = self.other_number(identity.real, number);
                }
                Entry::Vacant(free) => {
                    // The number is another's, whom nobody has asked for since.
                    if self.bones.get(number).is_some_and(|bone| !bone.is_of(identity.real, seen)) {
                        drop(free);
                        number = self.other_number(identity.real, number);
                        continue;
                    }
                    let node = Arc::new(Node::new(number, make(), identity.real, seen, lookups));
                    let unneeded = self.bones.come_to_life(&node);
                    free.insert(node.clone());
                    // It may be known no more; to let it go now would need the lock that is held here.
                    self.deferred.lock().extend(unneeded);
                    return node;
                }
            }
        }
    }

    /// Counts one more lookup of a node that is known.
    pub fn look_up_again(&self, node: &Node) {
        node.count_lookups(|now| now.saturating_add(1));
    }

    /// Tells whether the node's number is that of its own object, and not of one that it was copied up from.
    pub fn is_own_number(&self, node: &Node) -> bool {
        let real = node.real();
        self.xino(real) == Some(node.ino) || self.fallback.get(&real).is_some_and(|n| *n == node.ino)
    }

    /// Forgets `count` lookups of a node, as the kernel does. A node that nobody knows any more leaves the table, and
    /// its parent with it if that was the last thing that held it. `left` is told the number of each, when nothing
    /// holds it any more.
    pub fn forget(&self, ino: u64, count: u64, mut left: impl FnMut(u64)) {
        if ino == ROOT {
            return;
        }
        let mut unneeded = None;
        if self.bones.forget(ino, count, |directory| unneeded = Some(directory)) {
            return unneeded.into_iter().for_each(|directory| self.release(directory, &mut left));
        }
        if let Some(node) = self.nodes.get(&ino) {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            let before = node.count_lookups(|now| now.saturating_sub(count));
            debug_assert!(before >= count, "more forgotten than looked up: {ino}");
        }
        self.release(ino, &mut left);
        self.release_lingering(&mut left);
    }

    /// Returns how many nodes left since it was last shrunk.
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
        let mut deferred = std::mem::take(&mut *self.deferred.lock());
        deferred.extend(self.bones.take_ready());
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
            let unused = |ino: &u64, node: &Arc<Node>| {
                node.lookups() == 0 && Arc::strong_count(node) == 1 && !self.bones.need(*ino)
            };
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
    use crate::union::nodes::bones::Bone;
    use crate::union::nodes::node::{Named, NodeSource};
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
    fn directories_go_that_were_there_for_what_was_found_by_another_name() {
        let (table, root) = table();
        let bone = |parent, ino, lookups| Bone {
            parent,
            name: b"b"[..].into(),
            lookups,
            mapped: false,
            real: real_id(0, ino),
            generation: Generation::UNKNOWN,
            is_directory: false,
            is_dead: false,
        };
        let directory = || NewNode {
            kind: Kind::Directory,
            place: NodePlace::Named { parent: root.clone(), entry: Named::new(b"d", NodeSource::Upper) },
            dir: Some(Box::new(DirPart::new(None, Vec::new()))),
        };
        // Below a directory that nobody has asked for since, and below one that somebody has.
        for known in [false, true] {
            let (dir, file) = (30 + u64::from(known), 40 + u64::from(known));
            table.bones().insert(dir, bone(ROOT, dir, 1));
            table.bones().insert(file, bone(dir, file, 1));
            if known {
                table.obtain(id(dir), Sighting::default(), 0, directory);
            }
            table.forget(dir, 1, |_| {});
            assert_eq!(table.len(), 3, "{known}: it leads to the file");
            table.obtain(id(file), Sighting::default(), 0, || file_in(&root));
            table.forget(file, 1, |_| {});
            assert_eq!(table.len(), 1, "{known}: {:?}", table.get(dir));
        }
    }

    #[test]
    fn what_is_known_of_the_union_before_is_found_forgotten_and_let_go_at_any_time() {
        let (before, root) = table();
        let directory = |parent: &Arc<Node>| NewNode {
            kind: Kind::Directory,
            place: NodePlace::Named { parent: parent.clone(), entry: Named::new(b"d", NodeSource::Upper) },
            dir: Some(Box::new(DirPart::new(None, Vec::new()))),
        };
        let [upper, lower] = [NodeSource::Upper, NodeSource::Lower(0)];
        let file = |parent: &Arc<Node>, source| NewNode {
            kind: Kind::File,
            place: NodePlace::Named { parent: parent.clone(), entry: Named::new(b"f", source) },
            dir: None,
        };
        let dir = before.obtain(id(10), Sighting::default(), 1, || directory(&root));
        before.obtain(id(11), Sighting::default(), 1, || file(&dir, upper));
        before.obtain(id(12), Sighting::default(), 2, || file(&dir, lower));
        before.nodes().remove(&ROOT);
        drop(dir);
        let (mut after, root) = table();
        after.take_over(before.bones().clone(), before.nodes().clone(), true);
        assert_eq!(after.len(), 4);
        // What was of the upper is gone with it, and the rest is what it was.
        let seen = Sighting::default();
        let is = |ino, real| after.bones().get(ino).unwrap().is_of(real_id(0, real), seen);
        assert_eq!([is(10, 10), is(11, 11), is(12, 12), is(12, 13)], [false, false, true, false]);
        let found = after.obtain(id(12), seen, 0, || file(&root, lower));
        assert_eq!((found.ino, found.lookups(), after.len()), (12, 2, 4));
        drop(found);
        // The directory stays until it is known that nothing lies below it.
        after.forget(12, 2, |_| {});
        after.forget(10, 1, |_| {});
        after.forget(11, 1, |_| {});
        after.bones().convert();
        after.release_lingering(&mut |_| {});
        assert_eq!((after.len(), after.bones().len()), (1, 0));
    }

    #[test]
    fn who_finds_an_object_at_the_same_time_finds_one_node() {
        let (table, _) = table();
        let real = real_id(0, 10);
        // Two were given a number that it can't have, and the first has another already.
        table.keep_number(real, 77);
        let first = table.other_number(real, 77);
        assert_ne!(first, 77);
        assert_eq!(table.other_number(real, 77), first);
    }

    #[test]
    fn what_is_known_keeps_its_number_when_an_upper_of_its_filesystem_is_thrown_away() {
        let (table, root) = table();
        let [known, unknown, other] = [(0, 10), (0, 11), (1, 12)].map(|(region, ino)| real_id(region, ino));
        for (real, number) in [(known, 77), (unknown, 78), (other, 79)] {
            table.keep_number(real, number);
        }
        table.obtain(Identity { origin: known, real: known }, Sighting::default(), 1, || file_in(&root));
        let mut given = table.numbers(Some(0)).given;
        given.sort_by_key(|(_, number)| *number);
        assert_eq!(given, [(known, 77), (other, 79)]);
    }

    #[test]
    fn a_number_is_nobody_elses_while_the_kernel_knows_it_of_something_lost() {
        let (table, root) = table();
        let lost = Node::new(10, file_in(&root), real_id(0, 10), Sighting::default(), 2);
        table.bones().insert(10, Bone::of_lost(&lost, ROOT));
        let number = |real| table.obtain(id(real), Sighting::default(), 0, || file_in(&root)).ino;
        assert_ne!(number(10), 10);
        table.forget(10, 2, |_| {});
        assert_eq!(table.bones().len(), 0);
    }

    /// Where numbers are given again at once, and nothing tells generations.
    #[test]
    fn what_has_the_number_of_something_deleted_is_something_else() {
        let (table, root) = table();
        let old = table.obtain(id(10), Sighting::default(), 1, || file_in(&root));
        old.lose_last_name(|| Err::<(), _>(crate::error::FsError::Stale)).unwrap_err();
        assert_eq!(
            table.obtain(id(10), Sighting::default(), 1, || unreachable!("it is there still")).ino,
            old.ino
        );
        old.lose_last_name(|| Ok(())).unwrap();
        assert!(table.find(id(10)).is_none());
        let new = table.obtain(id(10), Sighting::default(), 1, || file_in(&root));
        assert_ne!(new.ino, old.ino);
        assert!(table.find(id(10)).is_some_and(|found| Arc::ptr_eq(&found, &new)));
        assert!(
            table.get(old.ino).is_some_and(|found| Arc::ptr_eq(&found, &old)),
            "by its number it is known"
        );
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
