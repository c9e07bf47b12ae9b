//! How far a directory has been listed, by which it is decided whether names are told with their attributes; see
//! [`crate::union::view::readdir`].

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How many entries of a directory are told with their attributes whether somebody looks at them or not. A program that
/// reads so many names before it looks at one pays for each of the others with a lookup.
pub const WITH_ATTRIBUTES: u32 = 32 << 10;

/// How far the latest listing of a directory with attributes has come.
#[derive(Debug, Default)]
pub struct Progress {
    told: AtomicU32,
    looked_up: AtomicBool,
}

impl Progress {
    /// Begins a listing.
    pub(in crate::union) fn begin(&self) {
        self.told.store(0, Ordering::Relaxed);
        self.looked_up.store(false, Ordering::Relaxed);
    }

    /// Notes that an entry was looked up by its name.
    pub(in crate::union) fn note_lookup(&self) {
        if !self.looked_up.load(Ordering::Relaxed) {
            self.looked_up.store(true, Ordering::Relaxed);
        }
    }

    /// Tells whether the next entry is told with its attributes. Two listings at once count together, and each gets
    /// fewer.
    pub(in crate::union) fn wants_attributes(&self) -> bool {
        self.told.fetch_add(1, Ordering::Relaxed) < WITH_ATTRIBUTES || self.looked_up.load(Ordering::Relaxed)
    }
}
