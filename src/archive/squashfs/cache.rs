//! Blocks that were decompressed, some of them: those of all images of this process together.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

/// How many bytes of them are kept.
const MOST: usize = 32 << 20;

/// Which image, and where in it.
pub(super) type Key = (u64, u64);

/// A block, once it is decompressed. Who comes meanwhile waits for it.
type Slot = Arc<Mutex<Option<Arc<Vec<u8>>>>>;

/// What is kept: when the young ones take half of what may be, the old ones go, and these are the old ones.
#[derive(Default)]
struct Kept {
    young: HashMap<Key, Slot>,
    old: HashMap<Key, Slot>,
    /// Of the young ones.
    bytes: usize,
}

/// A bounded cache of blocks.
pub(super) struct Cache {
    kept: Mutex<Kept>,
    most: usize,
}

/// The cache of this process.
pub(super) static CACHE: LazyLock<Cache> = LazyLock::new(|| Cache::new(MOST));

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
        let mut slot = slot.lock();
        if let Some(block) = &*slot {
            return Ok(block.clone());
        }
        let block = Arc::new(make()?);
        *slot = Some(block.clone());
        Ok(block)
    }

    /// Returns a block if it is there.
    pub(super) fn find(&self, key: Key) -> Option<Arc<Vec<u8>>> {
        let kept = self.kept.lock();
        let slot = kept.young.get(&key).or_else(|| kept.old.get(&key))?.clone();
        drop(kept);
        // One that is being made is waited for: that takes no longer than making it again.
        slot.lock().clone()
    }

    /// Forgets the blocks of an image.
    pub(super) fn forget(&self, image: u64) {
        let mut kept = self.kept.lock();
        let before = kept.young.len();
        kept.young.retain(|(of, _), _| *of != image);
        kept.old.retain(|(of, _), _| *of != image);
        // Blocks are of about one size.
        kept.bytes = kept.bytes / before.max(1) * kept.young.len();
    }

    fn slot(&self, key: Key, bytes: usize) -> Slot {
        let mut kept = self.kept.lock();
        if let Some(slot) = kept.young.get(&key) {
            return slot.clone();
        }
        let slot = kept.old.remove(&key).unwrap_or_default();
        if kept.bytes + bytes > self.most / 2 {
            kept.old = std::mem::take(&mut kept.young);
            kept.bytes = 0;
        }
        kept.bytes += bytes;
        kept.young.insert(key, slot.clone());
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_made_once_while_it_is_asked_for_and_the_rest_is_forgotten() {
        let cache = Cache::new(100);
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
        let kept = cache.kept.lock();
        assert!(kept.young.len() + kept.old.len() <= 10);
    }

    #[test]
    fn what_could_not_be_made_is_tried_again() {
        let cache = Cache::new(100);
        assert_eq!(cache.get((0, 0), 10, || Err(5)), Err(5));
        assert!(cache.find((0, 0)).is_none());
        assert_eq!(*cache.get((0, 0), 10, || Ok::<_, ()>(vec![1])).unwrap(), [1]);
        assert_eq!(*cache.find((0, 0)).unwrap(), [1]);
    }
}
