//! What images of filesystems have in common, whatever their format: how they are walked, what they may take in memory, what can be
//! wrong with them.
//!
//! # Marks
//!
//! Uppers that were made images of are layers for the kernel's overlayfs, so its marks that hide count here too: character devices 0:0, and the
//! attribute `overlay.opaque` in `trusted.` or `user.`, which is shown to the union as a file `.wh..wh..opq`, since whether attributes
//! are believed depends on the mount. Marks that lead elsewhere (redirect, metacopy) don't, as in every archive: whoever
//! made the image would say what a mount of root shows.

mod attributes;
mod budget;
mod raw;
mod walk;

use super::ArchiveError;
use super::part::Part;

pub(super) use self::attributes::Collected;
pub(super) use self::budget::{Budget, MOST, Table};
pub(super) use self::raw::{Wrong, read_exact, u16_at, u32_at, u64_at};
pub(super) use self::walk::{Common, ENTRY, Format, LONGEST_NAME, Listed, Walked, walk};

/// The most that Linux reads of a link's target (PATH_MAX).
pub(super) const MOST_TARGET: u32 = 4096;

/// Returns the numbers of a device, which Linux puts into 32 bits: `new_decode_dev` in include/linux/kdev_t.h.
pub(super) fn device(number: u32) -> (u32, u32) {
    (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00)
}

/// Says of which image it is, which is one `of` that format.
pub(super) fn said(wrong: Wrong, part: &Part, of: &'static str) -> ArchiveError {
    let path = part.path.clone();
    let entry = |entry: &[u8]| match entry {
        [] => String::new(),
        entry => format!("{}: ", entry.escape_ascii()),
    };
    match wrong {
        Wrong::Read(source) => ArchiveError::Io { what: "read it", path, source },
        Wrong::Unknown { path: within, what } => {
            ArchiveError::Unknown { path, what: format!("{}{what}", entry(&within)) }
        }
        Wrong::Damaged { path: within, what } => {
            ArchiveError::Image { path, of, entry: entry(&within), what }
        }
    }
}
