//! Whether the name of an object has reached the disk; what a sync does about it is told in [`crate::union::data::durable`].

use std::sync::atomic::{AtomicU16, Ordering};

/// Whether the name of an object is on the disk, as far as is known.
///
/// The lowest bit says so; the rest counts the changes, so that a sync that a change overtakes says nothing.
#[derive(Debug, Default)]
pub struct NameState(AtomicU16);

/// A name as it was when a sync of it began.
#[derive(Debug, Clone, Copy)]
pub struct NameSeen(u16);

const DURABLE: u16 = 1;

impl NameState {
    /// Notes that the object has another name than the disk knows.
    pub fn changed(&self) {
        let next = |state: u16| Some((state & !DURABLE).wrapping_add(2));
        // It always changes.
        let _: std::result::Result<u16, u16> = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }

    /// Returns the name's state before a sync.
    pub fn seen(&self) -> NameSeen {
        NameSeen(self.0.load(Ordering::Acquire))
    }

    /// Notes that the name that was seen is on the disk.
    pub fn synced(&self, seen: NameSeen) {
        let durable = seen.0 | DURABLE;
        // Changed meanwhile, it isn't.
        let _: std::result::Result<u16, u16> =
            self.0.compare_exchange(seen.0, durable, Ordering::AcqRel, Ordering::Relaxed);
    }
}

impl NameSeen {
    /// Returns whether the name is known to be on the disk.
    pub fn is_durable(self) -> bool {
        self.0 & DURABLE != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_durable_when_nothing_changed_it_since_the_sync_began() {
        let name = NameState::default();
        assert!(!name.seen().is_durable());
        let seen = name.seen();
        name.synced(seen);
        assert!(name.seen().is_durable());
        name.changed();
        let seen = name.seen();
        assert!(!seen.is_durable());
        name.changed();
        name.synced(seen);
        assert!(!name.seen().is_durable(), "a change overtook the sync");
    }
}
