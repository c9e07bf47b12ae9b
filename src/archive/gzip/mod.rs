//! Tars that are compressed with gzip, read where they lie.
//!
//! ```text
//! scan: decodes all of it once, for the index ──> points, at least a MiB of output apart: where a decoder can begin
//!   └── windows: of each point the 32 KiB before it, in a file of the cache
//! spans: decode from a point to the next, when something there is asked for; some are kept in memory, and all that were decoded
//!   in a file that goes with the mount, where there is room
//! ```
//!
//! So nothing is unpacked that nobody reads: what is kept is a few hundredths of what it is decoded to. A point is between two blocks of deflate, or
//! where a member begins. A stream whose blocks are larger than any that compressors make can't be entered, and is decoded
//! into a spool as other streams are.
//!
//! What was right when it was scanned is held against a sum again whenever it is decoded: what isn't the same is `EIO`.

mod inflate;
mod scan;
mod spans;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use self::inflate::Bits;
use super::decompressed::MOST;

pub(super) use self::scan::{Scan, Scanned};
pub(super) use self::spans::Spans;

/// How far points are apart, at least.
const STRIDE: u64 = 1 << 20;

/// How far apart they may be, at most: blocks that compressors make are smaller, of zeros too (zlib's 8 MiB), and
/// two spans have place among what is kept.
const MOST_SPAN: u64 = (MOST / 2 - (1 << 20)) as u64;

/// Where a decoder can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Point {
    /// In what is decoded.
    at: u64,
    /// In the archive.
    from: u64,
    /// `None`: a member begins there.
    bits: Option<Bits>,
    /// Where its window lies among the windows, and how long it is there.
    window: (u64, u32),
    /// The CRC-32 of what is decoded from here to the next point.
    sum: u32,
}

/// Where decoders can begin, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Points {
    points: Vec<Point>,
    /// How much is decoded in all.
    pub size: u64,
}

impl Points {
    /// Returns whether all of them lead somewhere, in an archive and windows of those sizes.
    pub(super) fn are_sound(&self, archive: u64, windows: u64) -> bool {
        let ends = self.points.iter().skip(1).map(|point| point.at).chain([self.size]);
        self.points.first().is_some_and(|first| (first.at, first.bits) == (0, None))
            && self.points.iter().zip(ends).all(|(point, end)| {
                let (at, length) = point.window;
                point.at <= end
                    && end - point.at <= MOST_SPAN
                    && point.from <= archive
                    && point.bits.is_none_or(|(count, _)| count < 8)
                    && at.checked_add(length.into()).is_some_and(|end| end <= windows)
            })
    }
}
