//! What an image is read from, and how much of it.

use std::cell::Cell;

use super::superblock::Superblock;
use crate::archive::filesystem::{Budget, Wrong};
use crate::archive::part::Part;

/// An image that is being read.
#[derive(Debug)]
pub(super) struct Erofs<'a> {
    pub part: &'a Part,
    pub image: Superblock,
    pub budget: Budget,
    /// How many bytes inodes may still have for themselves, of those that the image has.
    left: Cell<u64>,
    inodes: Cell<u64>,
}

impl<'a> Erofs<'a> {
    pub(super) fn new(part: &'a Part, image: Superblock, budget: Budget) -> Erofs<'a> {
        Erofs { part, image, budget, left: Cell::new(part.size), inodes: Cell::new(0) }
    }

    /// Counts bytes that belong to one inode, before they are read.
    ///
    /// # Errors
    /// When all of them together are more than the image has.
    pub(super) fn own(&self, bytes: u64) -> Result<(), Wrong> {
        let left = self.left.get().checked_sub(bytes);
        let over =
            || Wrong::damaged("with it listings, links and maps of chunks are more than the image has");
        self.left.set(left.ok_or_else(over)?);
        Ok(())
    }

    /// Counts an inode that is read.
    pub(super) fn count_inode(&self) {
        self.inodes.set(self.inodes.get() + 1);
    }

    /// Returns how many inodes were read.
    pub(super) fn inodes(&self) -> u64 {
        self.inodes.get()
    }
}
