//! squashfs images as layers: what `mksquashfs` writes, version 4.0, which is little-endian.
//!
//! ```text
//! superblock ──> tables: owners, fragments, attributes
//!     └── walk: directory by directory, once ──> the index of every archive, and a map of blocks (packed)
//! open file ──> blocks: pread of the blocks that are asked for ──> cache: some blocks, decompressed, for all files
//! ```
//!
//! The image is read with pread and nothing of it is unpacked. Its metadata lie in blocks of 8 KiB, each compressed by itself, in
//! which a position is a reference: the block's place in the image, and a place in what it decompresses to (`meta`). The data
//! of a file are blocks of the image's block size, the sizes of which follow its inode, and an end that may lie in a fragment: a block
//! in which the ends of several files stand. The format is told by the kernel's Documentation/filesystems/squashfs.rst, and by
//! <https://dr-emann.github.io/squashfs/>.
//!
//! No number in an image is believed: what it leads to is looked for within the image, and what a table is said to hold is taken
//! into memory as it is read, and not by what the image says of its size. All of its tables together have one budget.
//!
//! # Marks
//!
//! Squashed uppers are layers for the kernel's overlayfs, so its marks that hide count here too: character devices 0:0, and the
//! attribute `overlay.opaque` in `trusted.` or `user.`, which is shown to the union as a file `.wh..wh..opq`, since whether attributes
//! are believed depends on the mount. Marks that lead elsewhere (redirect, metacopy) don't, as in every archive: whoever
//! made the image would say what a mount of root shows.

mod blocks;
mod budget;
mod cache;
mod compressor;
mod directory;
mod inode;
mod meta;
mod packed;
mod raw;
mod superblock;
mod tables;
mod walk;

use super::ArchiveError;
use super::part::Part;

pub(super) use self::blocks::Blocks;
pub(super) use self::packed::Packed;
use self::raw::Wrong;
pub(super) use self::superblock::{MAGIC, OTHER_ORDER};
use self::walk::Walked;

/// Reads all names and attributes of an image. `at` is told how much of them was read, in bytes of the image.
///
/// # Errors
/// When it is damaged, or made in a way that isn't read.
pub(super) fn read(part: &Part, is_layer: bool, at: &dyn Fn(u64)) -> Result<Walked, ArchiveError> {
    walk::walk(part, is_layer, at).map_err(|wrong| said(wrong, part))
}

/// Returns how many bytes of an image hold names and attributes, for a bar.
pub(super) fn metadata_size(part: &Part) -> u64 {
    superblock::read(part).map_or(0, |image| part.size.saturating_sub(image.inodes))
}

/// Says of which image it is.
fn said(wrong: Wrong, part: &Part) -> ArchiveError {
    let path = part.path.clone();
    match wrong {
        Wrong::Read(source) => ArchiveError::Io { what: "read it", path, source },
        Wrong::Unknown(what) => ArchiveError::Unknown { path, what },
        Wrong::Damaged { path: entry, what } => ArchiveError::Image {
            path,
            entry: if entry.is_empty() { String::new() } else { format!("{}: ", entry.escape_ascii()) },
            what,
        },
    }
}

/// Returns where some data lie, for tests of what is kept.
#[cfg(test)]
pub(super) fn a_map() -> Packed {
    let fragments = vec![packed::Fragment { at: 1 << 40, size: 5 }];
    let mut packed = Packed::new(compressor::Compressor::Zstd, 17, fragments);
    packed.keep(&packed::FileMap { start: 1 << 40, fragment: Some((0, 6)), sizes: vec![1 << 24, 7] });
    packed
}

#[cfg(test)]
mod tests;
