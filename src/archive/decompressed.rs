//! What was decompressed, some of it: blocks of a squashfs, spans of a gzip stream, those of all archives of this process together.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

/// How many bytes of them are kept.
pub(super) const MOST: usize = 32 << 20;
/// What it takes to keep a block, beside its bytes.
const OVERHEAD: usize = 256;

/// Which archive, by its [`new_image`], and where in it.
pub(super) type Key = (u64, u64);

/// A block, once it is decompressed. Who comes meanwhile waits for it.
type Slot = Arc<Mutex<Option<Arc<Vec<u8>>>>>;

/// A slot, and how many bytes it takes: until its block is made, the most that this can have.
struct Entry {
    slot: Slot,
    bytes: usize,
}

/// Some slots, and what they take together.
#[derive(Default)]
struct Slots {
    entries: HashMap<Key, Entry>,
    bytes: usize,
}

impl Slots {
    fn insert(&mut self, key: Key, entry: Entry) {
        self.bytes += entry.bytes;
        if let Some(before) = self.entries.insert(key, entry) {
            self.bytes -= before.bytes;
        }
    }

    fn remove(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }

    fn forget(&mut self, image: u64) {
        self.entries.retain(|(of, _), _| *of != image);
        self.bytes = self.entries.values().map(|entry| entry.bytes).sum();
    }

    /// Notes what the block of a slot takes, or that there is none. Returns whether the slot is one of these.
    fn settle(&mut self, key: Key, slot: &Slot, bytes: Option<usize>) -> bool {
        let Some(entry) = self.entries.get_mut(&key).filter(|entry| Arc::ptr_eq(&entry.slot, slot)) else {
            return false;
        };
        match bytes {
            Some(bytes) => {
                let before = std::mem::replace(&mut entry.bytes, bytes);
                self.bytes = self.bytes - before + bytes;
            }
            None => drop(self.remove(key)),
        }
        true
    }
}

/// What is kept: when the young ones take half of what may be, the old ones go, and these are the old ones.
#[derive(Default)]
struct Kept {
    young: Slots,
    old: Slots,
}

/// A bounded cache of blocks.
pub(super) struct Cache {
    kept: Mutex<Kept>,
    most: usize,
}

/// The cache of this process.
pub(super) static CACHE: LazyLock<Cache> = LazyLock::new(|| Cache::new(MOST));

/// Returns what tells the blocks of one archive from those of others.
pub(super) fn new_image() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Cache {
    fn new(most: usize) -> Cache {
        Cache { kept: Mutex::default(), most }
    }

    /// Returns a block of at most so many bytes, and makes it if it isn't kept: once, however many ask for it.
    ///
    /// # Errors
    /// Those of making it. Nothing is kept then.
    pub(super) fn get<E>(
        &self,
        key: Key,
        bytes: usize,
        make: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Arc<Vec<u8>>, E> {
        let slot = self.slot(key, bytes);
        let mut place = slot.lock();
        if let Some(block) = &*place {
            return Ok(block.clone());
        }
        let made = make();
        let bytes = made.as_ref().ok().map(|block| block.capacity() + OVERHEAD);
        {
            let mut kept = self.kept.lock();
            // It may have grown old meanwhile, or been forgotten.
            let _found = kept.young.settle(key, &slot, bytes) || kept.old.settle(key, &slot, bytes);
        }
        let block = Arc::new(made?);
        *place = Some(block.clone());
        Ok(block)
    }

    /// Returns a block if it is there.
    pub(super) fn find(&self, key: Key) -> Option<Arc<Vec<u8>>> {
        let kept = self.kept.lock();
        let entry = kept.young.entries.get(&key).or_else(|| kept.old.entries.get(&key))?;
        let slot = entry.slot.clone();
        drop(kept);
        // One that is being made is waited for: that takes no longer than making it again.
        slot.lock().clone()
    }

    /// Forgets one block. Who waits for it gets it all the same.
    pub(super) fn forget_one(&self, key: Key) {
        let mut kept = self.kept.lock();
        let _found = kept.young.remove(key).or_else(|| kept.old.remove(key));
    }

    /// Forgets the blocks of an image.
    pub(super) fn forget(&self, image: u64) {
        let mut kept = self.kept.lock();
        kept.young.forget(image);
        kept.old.forget(image);
    }

    fn slot(&self, key: Key, bytes: usize) -> Slot {
        let mut kept = self.kept.lock();
        if let Some(entry) = kept.young.entries.get(&key) {
            return entry.slot.clone();
        }
        let new = || Entry { slot: Slot::default(), bytes: bytes + OVERHEAD };
        let entry = kept.old.remove(key).unwrap_or_else(new);
        if kept.young.bytes + entry.bytes > self.most / 2 {
            kept.old = std::mem::take(&mut kept.young);
        }
        let slot = entry.slot.clone();
        kept.young.insert(key, entry);
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Cache {
        /// What it takes, as it was counted and as it is, and how many blocks that are.
        fn taken(&self) -> (usize, usize, usize) {
            let kept = self.kept.lock();
            let bytes =
                |entry: &Entry| entry.slot.lock().as_ref().map_or(0, |block| block.capacity() + OVERHEAD);
            let all = || kept.young.entries.values().chain(kept.old.entries.values());
            (kept.young.bytes + kept.old.bytes, all().map(bytes).sum(), all().count())
        }
    }

    #[test]
    fn a_block_is_made_once_while_it_is_asked_for_and_the_rest_is_forgotten() {
        let cache = Cache::new(10 * (10 + OVERHEAD));
        let made = std::cell::Cell::new(0);
        let get = |at: u64| {
            let make = || {
                made.set(made.get() + 1);
                Ok::<_, ()>(vec![at as u8; 10])
            };
            assert_eq!(cache.get((0, at), 10, make).unwrap()[0], at as u8);
        };
        for at in 1..100 {
            get(0);
            get(at);
        }
        assert_eq!(made.get(), 100, "what is asked for stays");
        get(1);
        assert_eq!(made.get(), 101, "what isn't goes");
        assert!(cache.taken().2 <= 10);
    }

    #[test]
    fn what_blocks_take_is_counted_by_their_sizes() {
        const MOST: usize = 100_000;
        let cache = Cache::new(MOST);
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..5000 {
            let (image, at) = (rng.u64(0..3), rng.u64(0..100));
            // Most are far smaller than they could be.
            let size = if rng.bool() { rng.usize(0..10) } else { rng.usize(0..8000) };
            let make = || if rng.u8(..) < 20 { Err(()) } else { Ok(vec![0; size]) };
            let _some_fail = cache.get((image, at), 8192, make).is_ok();
            let (counted, found, _) = cache.taken();
            assert!(counted == found && found <= MOST, "{counted} were counted, {found} are there");
            if rng.u8(..) == 0 {
                cache.forget(rng.u64(0..3));
            }
        }
        for image in 0..3 {
            cache.forget(image);
        }
        assert_eq!(cache.taken(), (0, 0, 0));
        // As many as there is room for, not as many as there could be of the largest.
        for at in 0..100 {
            cache.get((0, at), 8192, || Ok::<_, ()>(vec![0; 10])).unwrap();
        }
        assert_eq!(cache.taken().2, 100);
    }

    #[test]
    fn what_could_not_be_made_is_tried_again() {
        let cache = Cache::new(1000);
        assert_eq!(cache.get((0, 0), 10, || Err(5)), Err(5));
        assert!(cache.find((0, 0)).is_none());
        assert_eq!(*cache.get((0, 0), 10, || Ok::<_, ()>(vec![1])).unwrap(), [1]);
        assert_eq!(*cache.find((0, 0)).unwrap(), [1]);
    }
}
