//! Writes for which there isn't room: what of them fits.
//!
//! A filesystem that is full in the midst of a write ends it there and tells how far it came. What the kernel has cached and brings
//! later is another matter: the program that wrote it has gone on, and can only be told by an error at fsync or close that something
//! is lost. So as little as possible is: whatever of it fits is written, whichever part that is.

use rustix::io::Errno;

use crate::error::{FsError, Result};

/// What is tried in one piece at the least.
const PIECE: u64 = 4096;

/// Where blocks came up from a lower, and how many bytes.
type Range = (u64, u64);

/// Writes all of some bytes at an offset. Tells what came up by that, also if it failed.
type Put<'a> = dyn Fn(u64, &[u8]) -> (Option<Range>, Result<()>) + 'a;

/// Returns what came up by two steps.
pub(in crate::union) fn together(one: Option<Range>, other: Option<Range>) -> Option<Range> {
    match (one, other) {
        (Some((first, bytes)), Some((other, more))) => Some((first.min(other), bytes + more)),
        (one, other) => one.or(other),
    }
}

/// What came of a write.
#[derive(Debug, Default)]
pub(in crate::union) struct Fitted {
    /// How many bytes were written.
    pub bytes: usize,
    /// What came up by that.
    pub new: Option<Range>,
    /// Why it wasn't all.
    pub refused: Option<FsError>,
}

impl Fitted {
    /// Writes `data` at an offset by `put`. Where there is no room, the first part that fits, or with `anywhere` all parts that do.
    pub fn write(offset: u64, data: &[u8], anywhere: bool, put: &Put<'_>) -> Fitted {
        let mut fitted = Fitted::default();
        fitted.add(offset, data, anywhere, put);
        fitted
    }

    fn add(&mut self, offset: u64, data: &[u8], anywhere: bool, put: &Put<'_>) {
        let (new, written) = put(offset, data);
        self.new = together(self.new, new);
        let Err(error) = written else {
            self.bytes += data.len();
            return;
        };
        // Between two blocks.
        let middle = (offset + data.len() as u64 / 2).next_multiple_of(PIECE);
        let first = middle - offset;
        let is_full = matches!(error.errno(), Errno::NOSPC | Errno::DQUOT);
        if !is_full || first >= data.len() as u64 {
            self.refused.get_or_insert(error);
            return;
        }
        let (first, rest) = data.split_at(first as usize);
        self.add(offset, first, anywhere, put);
        if self.refused.is_none() || anywhere {
            self.add(middle, rest, anywhere, put);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Writes 40,000 bytes from 1,000 on where blocks from `full` on have no room. Returns what was written, and whether it was refused.
    fn write(full: std::ops::Range<u64>, anywhere: bool, errno: Errno) -> (Vec<Range>, usize, bool) {
        let put = RefCell::new(Vec::new());
        let blocks = |at: u64, data: &[u8]| at / PIECE..(at + data.len() as u64).div_ceil(PIECE);
        let fitted = Fitted::write(1000, &[7; 40_000], anywhere, &|at, data| {
            if blocks(at, data).any(|block| full.contains(&block)) {
                return (None, Err(errno.into()));
            }
            put.borrow_mut().push((at, data.len() as u64));
            (None, Ok(()))
        });
        (put.into_inner(), fitted.bytes, fitted.refused.is_some())
    }

    /// Takes one that brought two blocks up before it failed: the pieces that are written after find them there.
    #[test]
    fn what_came_up_before_a_failure_is_told() {
        let missing = RefCell::new(4096..5 * 4096);
        let fitted = Fitted::write(4096, &[7; 4 * 4096], false, &|at, data| {
            let end = at + data.len() as u64;
            let mut missing = missing.borrow_mut();
            let (from, to) = (missing.start.max(at), end.min(3 * 4096).max(missing.start));
            missing.start = to;
            let new = Some((from, to - from)).filter(|_| to > from);
            (new, if end > 3 * 4096 { Err(Errno::NOSPC.into()) } else { Ok(()) })
        });
        assert_eq!((fitted.bytes, fitted.new), (2 * 4096, Some((4096, 2 * 4096))));
    }

    #[test]
    fn what_fits_is_written_from_the_beginning_or_anywhere() {
        assert_eq!(write(100..101, false, Errno::NOSPC), (vec![(1000, 40_000)], 40_000, false));
        // Three blocks from the second one on are full.
        let (put, bytes, refused) = write(2..5, false, Errno::NOSPC);
        assert_eq!((put.iter().map(|(_, bytes)| bytes).sum::<u64>(), bytes, refused), (7192, 7192, true));
        let (put, bytes, refused) = write(2..5, true, Errno::DQUOT);
        assert_eq!((bytes, refused), (40_000 - 3 * 4096, true));
        assert!(put.iter().all(|(at, bytes)| at + bytes <= 8192 || *at >= 20480), "{put:?}");
        // Another error is one.
        assert_eq!(write(8..9, true, Errno::IO), (vec![], 0, true));
        assert_eq!(write(0..1000, true, Errno::NOSPC), (vec![], 0, true));
    }
}
