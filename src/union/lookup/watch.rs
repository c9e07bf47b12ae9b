//! What is known of a directory's lowers, where they are checked: by what a change of them is known. See [`checked`](super::checked).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::sys::object::{Stat, Time};

/// The coarsest clock of a filesystem (FAT).
const TICK: Duration = Duration::from_secs(2);

/// What is known of the lowers of a directory, where they are checked.
#[derive(Debug, Default)]
pub struct Watch {
    /// When it was looked at them, and what was seen. Held while it is looked, and never waited for.
    pub(super) seen: Mutex<Option<Box<Seen>>>,
    /// How often they had changed: what was read before isn't what is kept after.
    pub(super) changes: AtomicU32,
    /// Whether another node stands for what the name leads to.
    superseded: AtomicBool,
}

/// When it was looked, and what was seen.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) at: Instant,
    pub(super) stamps: Box<[Stamp]>,
}

/// By what a change of a directory is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    times: (Time, Time),
    /// Whether a change after this look is sure to give it other times.
    is_settled: bool,
}

impl Stamp {
    /// Returns the stamp of a directory that is looked at now.
    pub(super) fn of(stat: &Stat, now: SystemTime) -> Stamp {
        let newest = stat.mtime.max(stat.ctime);
        let settled_at = u64::try_from(newest.sec).map_or(Some(UNIX_EPOCH), |seconds| {
            UNIX_EPOCH.checked_add(Duration::new(seconds, newest.nsec) + TICK)
        });
        Stamp { times: (stat.mtime, stat.ctime), is_settled: settled_at.is_some_and(|at| at < now) }
    }

    /// Tells whether what looks like `later` now is as it was.
    pub(super) fn is_still(&self, later: &Stamp) -> bool {
        self.is_settled && self.times == later.times
    }
}

impl Watch {
    /// Returns how often the lowers had changed.
    pub(super) fn changes(&self) -> u32 {
        self.changes.load(Ordering::Acquire)
    }

    /// Notes that another node stands for what the name leads to. Tells whether that was known.
    pub(super) fn supersede(&self) -> bool {
        self.superseded.swap(true, Ordering::AcqRel)
    }

    /// Tells whether another node stands for what the name leads to.
    pub(in crate::union) fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::object::At;

    #[test]
    fn times_that_a_change_would_move_are_believed_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let upper = scratch.path();
        let stat = At::Name(rustix::fs::CWD, upper.as_os_str().as_encoded_bytes()).stat().unwrap();
        let now = UNIX_EPOCH + Duration::new(stat.ctime.sec as u64, stat.ctime.nsec);
        let [early, late] = [TICK / 2, TICK * 2].map(|passed| Stamp::of(&stat, now + passed));
        assert!(!early.is_still(&late), "within the same tick it may have changed again");
        assert!(late.is_still(&late));
        let moved = Stamp { times: (stat.mtime, Time { nsec: stat.ctime.nsec ^ 1, ..stat.ctime }), ..late };
        assert!(!late.is_still(&moved));
        let ahead = Stat { mtime: Time { sec: i64::MAX, ..stat.mtime }, ..stat };
        assert!(!Stamp::of(&ahead, now + TICK * 2).is_settled, "a clock that is ahead tells nothing");
    }
}
