//! Change times of directories in which only what nobody sees was changed.
//!
//! A copy-up puts a name into the upper's directory that the merged one had all along. The other times are given back to the
//! directory; its change time and its size can't be. For programs it is the directory that it was, so they are shown those that it
//! had, and the kernel, which keeps them, needn't ask anew after each file of a tree whose files are changed.
//!
//! What is held ends with the first change of the directory itself, which has a later change time. So it takes a filesystem
//! that gives each change after a look a time of its own (`Upper::tells_changes_apart`); elsewhere nothing is held, and
//! the kernel is told to ask.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::sys::object::{Stat, Time};

/// Of so many directories at most: the kernel is told to ask for those that were held before.
const MOST: usize = if cfg!(test) { 2 } else { 4096 };

/// What is held of one directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::union) struct Held {
    /// Device and number of its real directory.
    id: (u64, u64),
    /// What is shown: the change time before the first of the copy-ups that came one after the other with no other change between,
    /// and the size and the blocks of then.
    shown: (Time, u64, u64),
    /// The change time after the last of them. Who has looked at the directory between two of them saw one between these.
    last: Time,
}

impl Held {
    fn covers(&self, stat: &Stat) -> bool {
        self.id == (stat.dev, stat.ino) && (self.shown.0..=self.last).contains(&stat.ctime)
    }
}

/// The change times that are held, by node number.
#[derive(Debug, Default)]
pub(in crate::union) struct HeldTimes {
    held: Mutex<HashMap<u64, Held>>,
    /// Whether any ever was.
    any: AtomicBool,
}

impl HeldTimes {
    /// Makes them of all that are held, by node number.
    pub(in crate::union) fn of(all: Vec<(u64, Held)>) -> HeldTimes {
        HeldTimes { any: AtomicBool::new(!all.is_empty()), held: Mutex::new(all.into_iter().collect()) }
    }

    /// Returns all that are held, by node number.
    pub(in crate::union) fn all(&self) -> Vec<(u64, Held)> {
        let mut all: Vec<_> = self.held.lock().iter().map(|(node, held)| (*node, *held)).collect();
        all.sort_unstable_by_key(|(node, _)| *node);
        all
    }

    /// Returns what is shown of a directory's node, whose real directory has this stat.
    pub(in crate::union) fn shown(&self, node: u64, stat: Stat) -> Stat {
        if !self.any.load(Ordering::Acquire) {
            return stat;
        }
        match self.held.lock().get(&node).filter(|held| held.covers(&stat)) {
            Some(Held { shown: (ctime, size, blocks), .. }) => {
                Stat { ctime: *ctime, size: *size, blocks: *blocks, ..stat }
            }
            None => stat,
        }
    }

    /// Holds what is shown of a directory's node, whose real directory was looked at before and after something was done in it that
    /// nobody sees, while nobody changed it otherwise. Returns whether it can be held, and which node's is held no more: there is no
    /// room.
    pub(in crate::union) fn hold(&self, node: u64, before: &Stat, after: &Stat) -> (bool, Option<u64>) {
        let seen = (before.ctime, before.size, before.blocks);
        let as_before = Stat { ctime: seen.0, size: seen.1, blocks: seen.2, ..*after };
        let mut all = self.held.lock();
        if as_before != *before || after.ctime <= before.ctime {
            all.remove(&node);
            return (false, None);
        }
        let shown = all.get(&node).filter(|held| held.covers(before)).map_or(seen, |held| held.shown);
        let held = Held { id: (after.dev, after.ino), shown, last: after.ctime };
        let full = all.len() >= MOST;
        let out = match all.entry(node) {
            Entry::Occupied(mut known) => {
                known.insert(held);
                None
            }
            Entry::Vacant(free) => {
                free.insert(held);
                full.then(|| all.keys().copied().find(|other| *other != node)).flatten()
            }
        };
        if let Some(out) = out {
            all.remove(&out);
        }
        self.any.store(true, Ordering::Release);
        (true, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use crate::sys::object::At;
    use crate::union::Union;
    use crate::union::bed::Bed;
    use crate::union::nodes::node::Node;
    use crate::union::options::FsOptions;
    use crate::union::view::attr::SetAttr;

    fn stat(ctime: i64) -> Stat {
        let top = std::fs::File::open("/").unwrap();
        let stat = At::Fd(top.as_fd()).stat().unwrap();
        Stat { ctime: Time { sec: ctime, nsec: 0 }, ..stat }
    }

    fn at(held: &HeldTimes, node: u64, ctime: i64) -> i64 {
        held.shown(node, stat(ctime)).ctime.sec
    }

    #[test]
    fn what_nobody_sees_moves_no_time_and_the_next_change_does() {
        let held = HeldTimes::default();
        assert_eq!(at(&held, 7, 10), 10);
        assert_eq!(held.hold(7, &stat(10), &stat(11)), (true, None));
        assert_eq!(held.hold(7, &stat(11), &stat(13)), (true, None));
        // Also of who looked meanwhile.
        assert_eq!([10, 11, 13].map(|ctime| at(&held, 7, ctime)), [10, 10, 10]);
        assert_eq!((at(&held, 7, 9), at(&held, 7, 14), at(&held, 8, 11)), (9, 14, 11));
        let other = Stat { ino: 1, ..stat(11) };
        assert_eq!(held.shown(7, other).ctime.sec, 11, "another directory that is the node's now");
        // It was changed at 14.
        assert_eq!(held.hold(7, &stat(14), &stat(15)), (true, None));
        assert_eq!([13, 14, 15].map(|ctime| at(&held, 7, ctime)), [13, 14, 14]);
    }

    #[test]
    fn what_else_is_different_is_shown() {
        let held = HeldTimes::default();
        let larger = Stat { size: stat(11).size + 4096, ..stat(11) };
        assert_eq!(held.hold(7, &stat(10), &larger), (true, None));
        assert_eq!(held.shown(7, larger).size, stat(10).size);
        let others = Stat { mode: larger.mode ^ 1, ctime: stat(12).ctime, ..larger };
        assert_eq!(held.hold(7, &larger, &others), (false, None));
        assert_eq!(held.shown(7, others), others);
        assert_eq!(held.shown(7, larger), larger);
        assert_eq!(held.hold(7, &stat(13), &stat(13)), (false, None), "a clock that was set back");
    }

    #[test]
    fn so_many_are_held_and_of_the_others_it_is_told() {
        let held = HeldTimes::default();
        for node in 0..MOST as u64 {
            assert_eq!(held.hold(node, &stat(10), &stat(11)), (true, None));
        }
        assert_eq!(held.hold(0, &stat(11), &stat(12)), (true, None), "one that is there");
        let (true, Some(out)) = held.hold(99, &stat(10), &stat(11)) else { panic!("one must go") };
        assert_eq!((at(&held, out, 11), at(&held, 99, 11)), (11, 10));
        assert_eq!(held.held.lock().len(), MOST);
    }

    fn chmod(union: &Union, node: &Arc<Node>, mode: u32) {
        union.setattr(node, SetAttr { mode: Some(mode), ..SetAttr::default() }, false).unwrap();
    }

    #[test]
    fn a_directory_is_as_before_a_copy_up_in_it_and_the_kernel_is_told_nothing() {
        let bed = Bed::new(1);
        for name in ["one", "two", "three", "four"] {
            bed.file(&format!("0/d/{name}"));
        }
        let union = bed.open_with(&FsOptions { metacopy: true, ..FsOptions::default() });
        if !union.upper.as_ref().unwrap().tells_changes_apart() {
            return support::skipped("this filesystem's change times are as coarse as the kernel's clock");
        }
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = told.clone();
        union.tell_changes(move |ino| listener.lock().push(ino));
        // As the kernel knows them, which counts lookups.
        let known = |parent: &Arc<Node>, name: &[u8]| union.lookup(parent, name).unwrap().unwrap().0;
        let dir = known(union.root(), b"d");
        let [one, two, three, four] =
            ["one", "two", "three", "four"].map(|name| known(&dir, name.as_bytes()));
        chmod(&union, &one, 0o600);
        let shown = || union.getattr(&dir).unwrap().stat;
        let real = || union.with_object(&dir, |object| object.stat()).unwrap().ctime;
        let (before, real_before) = (shown(), real());
        told.lock().clear();
        chmod(&union, &two, 0o600);
        union.setattr(&three, SetAttr { size: Some(0), ..SetAttr::default() }, false).unwrap();
        assert!(real() > real_before, "nothing was held");
        assert_eq!(shown(), before);
        assert!(told.lock().is_empty(), "the answer tells what became of the file");
        // Without an answer that tells it.
        union.setxattr(&four, b"user.a", b"b", rustix::fs::XattrFlags::empty()).unwrap();
        assert_eq!(*told.lock(), [four.ino]);
        assert_eq!(shown(), before);
        // What is seen.
        chmod(&union, &dir, 0o700);
        assert_eq!(shown().ctime, real());
        assert!(shown().ctime > before.ctime);
        let before = shown().ctime;
        union.unlink(&dir, b"two").unwrap();
        assert!(shown().ctime > before);
        union.shut_down();
    }
}
