//! Half-copied files that are open, by node number.
//!
//! Who opens one reads its mark and its map, which takes a while, and nobody else may have another meanwhile: what one changes
//! the other wouldn't know. So each number has a lock of its own.

use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::Mutex;

use crate::error::Result;
use crate::union::data::half::Half;

/// So many stay open without being used.
const MOST: usize = 128;

/// A file that is open, or about to be.
type Slot = Arc<Mutex<Option<Arc<Half>>>>;

/// Half-copied files.
#[derive(Debug, Default)]
pub(in crate::union) struct Halves {
    open: DashMap<u64, Slot>,
}

impl Halves {
    /// Returns the file of that number, if it is open.
    pub fn get(&self, ino: u64) -> Option<Arc<Half>> {
        let slot = self.open.get(&ino)?.clone();
        let half = slot.lock();
        half.clone()
    }

    /// Returns the same, opened by `open` if it isn't. `open` answers `None` where the file is none of these.
    pub fn open(&self, ino: u64, open: impl FnOnce() -> Result<Option<Half>>) -> Result<Option<Arc<Half>>> {
        self.make_room();
        let slot = self.open.entry(ino).or_default().clone();
        let mut half = slot.lock();
        if half.is_none() {
            *half = open()?.map(Arc::new);
        }
        Ok(half.clone())
    }

    /// Tells each of those that are open, except what is just being opened.
    pub fn for_each(&self, mut each: impl FnMut(&Half)) {
        // Not in the loop: who opens one may want another's shard.
        let slots: Vec<Slot> = self.open.iter().map(|slot| slot.clone()).collect();
        for slot in slots {
            let half = slot.try_lock().and_then(|half| half.clone());
            half.iter().for_each(|half| each(half));
        }
    }

    /// Makes room by taking out files that nobody uses. Whoever uses one has what is told of its blocks: there is never
    /// another.
    fn make_room(&self) {
        let used = |slot: &Slot| {
            // Who opens it or asks for it has the slot.
            Arc::strong_count(slot) > 1
                || slot.lock().as_ref().is_some_and(|half| Arc::strong_count(half) > 1 || half.is_torn())
        };
        if self.open.len() >= MOST {
            self.open.retain(|_, slot| used(slot));
        }
    }

    /// Forgets the file: it has its data now, or has gone.
    pub fn forget(&self, ino: u64) {
        self.open.remove(&ino);
    }

    /// Returns the same, if the condition holds when nobody can be about to open it.
    pub fn forget_if(&self, ino: u64, condition: impl FnOnce() -> bool) {
        self.open.remove_if(&ino, |_, _| condition());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Keeps one map for all who use a file; who opens another file waits for nobody.
    #[test]
    fn only_who_opens_the_same_file_waits() {
        let halves = Halves::default();
        let opening = AtomicUsize::new(0);
        let (told, done) = mpsc::channel();
        let open = |ino: u64| {
            halves.open(ino, || {
                assert_eq!(opening.fetch_add(1, Ordering::SeqCst), 0, "two open one file");
                done_with_others(&halves, ino, &told);
                opening.fetch_sub(1, Ordering::SeqCst);
                Ok(None)
            })
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| open(1).unwrap())).collect();
            for _ in 0..2 {
                done.recv_timeout(Duration::from_secs(20)).expect("others wait for who opens a file");
            }
            threads.into_iter().for_each(|thread| assert!(thread.join().unwrap().is_none()));
        });
    }

    /// Opens many other files, some of which are kept together with that one.
    fn done_with_others(halves: &Halves, but: u64, told: &mpsc::Sender<()>) {
        for other in (but + 1)..(but + 2 * MOST as u64) {
            assert!(halves.open(other, || Ok(None)).unwrap().is_none());
            assert!(halves.get(other).is_none());
            halves.forget_if(other, || false);
        }
        told.send(()).unwrap();
    }

    #[test]
    fn a_file_that_is_gone_is_forgotten_and_one_that_was_found_anew_is_not() {
        let halves = Halves::default();
        halves.open(3, || Ok(None)).unwrap();
        halves.forget_if(3, || false);
        assert_eq!(halves.open.len(), 1);
        halves.forget_if(3, || true);
        assert_eq!(halves.open.len(), 0);
    }
}
