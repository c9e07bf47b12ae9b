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
//! Marks of overlays count as in [`filesystem`](super::filesystem).

mod blocks;
mod compressor;
mod directory;
mod inode;
mod meta;
mod packed;
mod superblock;
mod tables;

use self::inode::{Inode, What};
use self::meta::Metadata;
use self::superblock::Superblock;
use self::tables::Xattrs;
use super::ArchiveError;
use super::filesystem::{Budget, Common, Format, Listed, MOST, Walked, Wrong, said, walk};
use super::index::{Attrs, Content};
use super::part::Part;

pub(super) use self::blocks::Blocks;
pub(super) use self::packed::Packed;
pub(super) use self::superblock::{MAGIC, OTHER_ORDER};

/// What messages call an image.
const FORMAT: &str = "squashfs";

/// An image that is being read.
struct Squashfs<'a> {
    metadata: &'a Metadata<'a>,
    image: Superblock,
    ids: Vec<u32>,
    xattrs: Option<Xattrs>,
    packed: Packed,
}

impl Format for Squashfs<'_> {
    type Inode = Inode;

    fn budget(&self) -> &Budget {
        &self.metadata.budget
    }

    fn root(&self) -> u64 {
        self.image.root
    }

    fn progress(&self, reference: u64) -> u64 {
        reference >> 16
    }

    fn inode(&self, reference: u64) -> Result<Inode, Wrong> {
        inode::read((self.metadata, &self.image, &self.ids[..]), reference)
    }

    fn common(inode: &Inode) -> Common {
        inode.common
    }

    fn attributes(&self, inode: &Inode) -> Result<Attrs, Wrong> {
        Xattrs::read(self.xattrs.as_ref(), self.metadata, inode.xattrs)
    }

    fn list(&self, inode: &Inode, most: usize) -> Result<Vec<Listed>, Wrong> {
        let What::Directory { listing, length } = inode.what else {
            return Err(Wrong::damaged("it is no directory"));
        };
        directory::read((self.metadata, &self.image), (listing, length), most)
    }

    fn content(&mut self, inode: &Inode) -> Result<(u64, Content), Wrong> {
        Ok(match &inode.what {
            What::File { size: 0, .. } | What::Directory { .. } | What::Nothing => (0, Content::None),
            What::File { size, map } => {
                let at = self.packed.keep(map).ok_or_else(|| Wrong::damaged("it has too many blocks"))?;
                (*size, Content::Packed { at })
            }
            What::Symlink(target) => (target.len() as u64, Content::Target(target.as_slice().into())),
        })
    }
}

/// Reads all names and attributes of an image. `at` is told how much of them was read, in bytes of the image.
///
/// # Errors
/// When it is damaged, or made in a way that isn't read.
pub(super) fn read(part: &Part, is_layer: bool, at: &dyn Fn(u64)) -> Result<Walked, ArchiveError> {
    read_within(part, is_layer, at, Budget::of(MOST)).map_err(|wrong| said(wrong, part, FORMAT))
}

/// Does as [`read`], with so much memory.
fn read_within(part: &Part, is_layer: bool, at: &dyn Fn(u64), budget: Budget) -> Result<Walked, Wrong> {
    let image = superblock::read(part)?;
    let metadata = Metadata::new(part, image.compressor, budget)?;
    let fragments = tables::fragments(&metadata, &image)?;
    let mut squashfs = Squashfs {
        metadata: &metadata,
        ids: tables::ids(&metadata, &image)?,
        xattrs: Xattrs::find(&metadata, &image)?,
        packed: Packed::new(image.compressor, image.block_log, fragments),
        image,
    };
    let mut walked = walk(&mut squashfs, is_layer, at)?;
    squashfs.packed.shrink();
    walked.index.packed = Some(squashfs.packed);
    Ok(walked)
}

/// Returns how many bytes of an image hold names and attributes, for a bar.
pub(super) fn metadata_size(part: &Part) -> u64 {
    superblock::read(part).map_or(0, |image| part.size.saturating_sub(image.inodes))
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
