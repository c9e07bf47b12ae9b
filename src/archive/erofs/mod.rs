//! EROFS images as layers: what `mkfs.erofs` writes without compression.
//!
//! ```text
//! superblock ──> walk: directory by directory, once ──> the index of every archive; where data lie is told as of a tar
//!     inode: its form, its owner, its times, and the layout of its data ──> runs of the image
//!     directory, attributes: out of those runs, and of what follows the inode
//! ```
//!
//! An inode is found by its number alone, in units of 32 bytes. Behind it stand its extended attributes, and then, by the layout of its data,
//! nothing, its end, or a map of chunks. Everything is little-endian, and data lie in the image as they are: what the index
//! keeps of a file are runs of the image, which are read as those of a tar, so nothing here is asked once an image is mounted. The format is told by
//! the kernel's Documentation/filesystems/erofs.rst, and its structures by fs/erofs/erofs_fs.h.
//!
//! No number in an image is believed: what it leads to is looked for within the image. What inodes have for themselves (listings, targets of
//! links, maps of chunks) can't be more than the image, which bounds the time that reading it takes, as the budget of images bounds the memory.
//! Compressed files, and features that aren't known, are refused when the image is mounted: nobody is shown half of one.
//!
//! Marks of overlays count as in [`filesystem`](super::filesystem).

mod attributes;
mod data;
mod directory;
mod inode;
mod source;
mod superblock;

use self::inode::Inode;
use self::source::Erofs;
use self::superblock::Superblock;
use super::ArchiveError;
use super::filesystem::{
    Budget, Common, Format, Listed, MOST, MOST_TARGET, Table, Walked, Wrong, said, walk,
};
use super::index::{Attrs, Content};
use super::part::Part;
use crate::sys::object::Kind;

pub(super) use self::superblock::{HEAD, is_superblock};

/// What messages call an image.
const FORMAT: &str = "EROFS image";

impl Format for Erofs<'_> {
    type Inode = Inode;

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn root(&self) -> u64 {
        self.image.root
    }

    fn progress(&self, _reference: u64) -> u64 {
        self.inodes().saturating_mul(inode::SLOT)
    }

    fn inode(&self, reference: u64) -> Result<Inode, Wrong> {
        self.count_inode();
        inode::read(self.part, &self.image, reference)
    }

    fn common(inode: &Inode) -> Common {
        inode.common
    }

    fn attributes(&self, inode: &Inode) -> Result<Attrs, Wrong> {
        attributes::read(self, inode)
    }

    fn list(&self, inode: &Inode, most: usize) -> Result<Vec<Listed>, Wrong> {
        directory::read(self, inode, most)
    }

    fn content(&mut self, inode: &Inode) -> Result<(u64, Content), Wrong> {
        let size = inode.size;
        let content = match inode.common.kind {
            Kind::Symlink => {
                if !(1..=MOST_TARGET.into()).contains(&size) {
                    return Err(Wrong::damaged(format!("it is a symbolic link of {size} bytes")));
                }
                self.own(size)?;
                self.budget.take(size, Table::Inodes)?;
                let mut target = vec![0; size as usize];
                data::read(self, &data::runs(self, inode)?, &mut target, 0)?;
                if target.contains(&0) {
                    return Err(Wrong::damaged("it is a symbolic link to what no path names"));
                }
                Content::Target(target.into_boxed_slice())
            }
            Kind::File if size > 0 => match data::runs(self, inode)?[..] {
                [run] if run.offset == 0 && run.length == size => Content::Whole { at: run.at },
                ref runs => Content::Sparse(runs.into()),
            },
            Kind::File => Content::None,
            // Whatever the size of a device is.
            _ => return Ok((0, Content::None)),
        };
        Ok((size, content))
    }
}

/// Reads all names and attributes of an image. `at` is told how much of them was read: see [`metadata_size`].
///
/// # Errors
/// When it is damaged, or made in a way that isn't read.
pub(super) fn read(part: &Part, is_layer: bool, at: &dyn Fn(u64)) -> Result<Walked, ArchiveError> {
    read_within(part, is_layer, at, Budget::of(MOST)).map_err(|wrong| said(wrong, part, FORMAT))
}

/// Does as [`read`], with so much memory.
fn read_within(part: &Part, is_layer: bool, at: &dyn Fn(u64), budget: Budget) -> Result<Walked, Wrong> {
    let image = superblock::read(part)?;
    walk(&mut Erofs::new(part, image, budget), is_layer, at)
}

/// Returns how many bytes all inodes of an image take at least, by what it says, for a bar.
pub(super) fn metadata_size(part: &Part) -> u64 {
    let bytes = |image: Superblock| image.inodes.saturating_mul(inode::SLOT).min(part.size);
    superblock::read(part).map_or(0, bytes)
}

#[cfg(test)]
mod tests;
