//! Copies of much data that are under way, for whoever asks what takes so long.

use std::time::Instant;

use parking_lot::Mutex;

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
}

/// All that are under way, by node number.
#[derive(Debug, Default)]
pub(in crate::union) struct RunningCopies(Mutex<Vec<(u64, CopyingUp)>>);

/// One of them; it ends with this, however it ends.
pub(in crate::union) struct Running<'a> {
    all: &'a RunningCopies,
    ino: u64,
}

impl RunningCopies {
    /// Notes that one begins.
    pub(in crate::union) fn begin(&self, ino: u64, copy: CopyingUp) -> Running<'_> {
        self.0.lock().push((ino, copy));
        Running { all: self, ino }
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
