//! Copies of much data that are under way, for whoever asks what takes so long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::sys::progress::{self, Telling};

/// After so many seconds each it is told how far a copy is.
const NOW_AND_THEN: u64 = 1;

/// A copy-up that is under way.
#[derive(Debug, Clone)]
pub struct CopyingUp {
    /// The path in the merged view.
    pub path: Vec<u8>,
    /// The bytes of the file.
    pub bytes: u64,
    /// The number of the layer that it is copied from, as people are told it.
    pub layer: Option<u16>,
    /// Since when.
    pub since: Instant,
    /// How many bytes are done.
    pub done: Arc<AtomicU64>,
}

impl CopyingUp {
    /// Returns how many bytes are done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed).min(self.bytes)
    }
}

/// All that are under way, by node number.
#[derive(Debug, Default)]
pub(in crate::union) struct RunningCopies(Mutex<Vec<(u64, CopyingUp)>>);

/// One of them; it ends with this, however it ends.
pub(in crate::union) struct Running<'a> {
    all: &'a RunningCopies,
    ino: u64,
    _telling: Telling,
}

impl RunningCopies {
    /// Notes that one begins, on this thread. `goes_on` hears of it again now and then.
    pub(in crate::union) fn begin(
        &self,
        ino: u64,
        copy: CopyingUp,
        goes_on: impl Fn(&CopyingUp) + 'static,
    ) -> Running<'_> {
        self.0.lock().push((ino, copy.clone()));
        let told = AtomicU64::new(0);
        let telling = progress::telling(move |offset| {
            copy.done.store(offset, Ordering::Relaxed);
            let times = copy.since.elapsed().as_secs() / NOW_AND_THEN;
            if told.swap(times, Ordering::Relaxed) < times {
                goes_on(&copy);
            }
        });
        Running { all: self, ino, _telling: telling }
    }

    /// Returns them, the oldest first.
    pub(in crate::union) fn list(&self) -> Vec<CopyingUp> {
        self.0.lock().iter().map(|(_, copy)| copy.clone()).collect()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // A node is copied by one thread at a time.
        self.all.0.lock().retain(|(ino, _)| *ino != self.ino);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn how_far_it_is_is_known_and_told_once_a_second() {
        let copies = RunningCopies::default();
        let told = Arc::new(AtomicU64::new(0));
        let begun = |ago: u64| CopyingUp {
            path: b"/large".to_vec(),
            bytes: 100,
            layer: Some(1),
            since: Instant::now().checked_sub(Duration::from_secs(ago)).unwrap(),
            done: Arc::default(),
        };
        let hears = || {
            let told = told.clone();
            move |copy: &CopyingUp| _ = told.fetch_add(copy.done(), Ordering::Relaxed)
        };
        let running = copies.begin(7, begun(0), hears());
        progress::at(30);
        assert_eq!((copies.list()[0].done(), told.load(Ordering::Relaxed)), (30, 0));
        drop(running);
        let _running = copies.begin(7, begun(60), hears());
        progress::at(40);
        progress::at(50);
        assert_eq!((copies.list()[0].done(), told.load(Ordering::Relaxed)), (50, 40));
        // Where less is left of the file than was thought.
        progress::at(500);
        assert_eq!(copies.list()[0].done(), 100);
    }
}
