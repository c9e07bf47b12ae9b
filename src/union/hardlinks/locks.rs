//! Locks of lower files with several names: one an origin, made when it is wanted.
//!
//! All names of a lower file lead to one node, and the count of those that are left is read and written when the file is
//! copied up or loses one of them. That must not come between the finding of another name and its being turned into a
//! node. Files of different origins have nothing to do with each other, so no operation waits for another file's.

use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::{ArcRwLockReadGuard, ArcRwLockWriteGuard, RawRwLock, RwLock};

use crate::union::nodes::node::InodeId;

/// The locks that somebody holds or waits for, by origin.
#[derive(Debug, Default)]
pub(in crate::union) struct HardlinkLocks {
    locks: DashMap<InodeId, Arc<RwLock<()>>>,
}

impl HardlinkLocks {
    fn lock(&self, origin: InodeId) -> Arc<RwLock<()>> {
        self.locks.entry(origin).or_default().clone()
    }

    /// Tells whether somebody waits for it, which this thread holds.
    #[cfg(test)]
    pub fn is_waited_for(&self, origin: InodeId) -> bool {
        // Of the table, of the guard, and of who waits.
        self.locks.get(&origin).is_some_and(|lock| Arc::strong_count(&lock) > 2)
    }

    /// Locks it for as long as a finding is turned into a node.
    pub fn shared(&self, origin: InodeId) -> HardlinkGuard<'_, ArcRwLockReadGuard<RawRwLock, ()>> {
        HardlinkGuard { locks: self, origin, guard: Some(self.lock(origin).read_arc()) }
    }

    /// Locks it for as long as the file is copied up or a name of it goes.
    pub fn exclusive(&self, origin: InodeId) -> HardlinkGuard<'_, ArcRwLockWriteGuard<RawRwLock, ()>> {
        HardlinkGuard { locks: self, origin, guard: Some(self.lock(origin).write_arc()) }
    }
}

/// A held lock.
pub(in crate::union) struct HardlinkGuard<'a, G> {
    locks: &'a HardlinkLocks,
    origin: InodeId,
    guard: Option<G>,
}

impl<G> Drop for HardlinkGuard<'_, G> {
    fn drop(&mut self) {
        self.guard = None;
        // Who wants it takes it out of the table before counting on it.
        self.locks.locks.remove_if(&self.origin, |_, lock| Arc::strong_count(lock) == 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_of_a_lock_that_nobody_holds() {
        let aliases = HardlinkLocks::default();
        let id = |ino| InodeId::new(0, ino).unwrap();
        let first = aliases.shared(id(5));
        let second = aliases.shared(id(5));
        let other = aliases.exclusive(id(6));
        assert_eq!(aliases.locks.len(), 2);
        drop((first, other));
        assert!(aliases.locks.get(&id(5)).unwrap().try_write().is_none(), "still shared");
        drop(second);
        assert!(aliases.locks.is_empty());
    }
}
