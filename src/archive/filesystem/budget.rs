//! What one image may take in memory: all that is read of its tables together, whatever it says of itself.

use std::cell::Cell;
use std::fmt;

use super::raw::Wrong;

/// How many bytes that may be. Four million files with names of 80 bytes do with it.
pub(in crate::archive) const MOST: u64 = 1 << 30;

/// What of an image takes memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::archive) enum Table {
    /// Blocks of metadata that are remembered while it is read.
    Metadata,
    Owners,
    Fragments,
    /// Objects, the targets of links, and where the blocks of files lie.
    Inodes,
    /// Names.
    Directories,
    Attributes,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Table::Metadata => "blocks of metadata",
            Table::Owners => "table of owners",
            Table::Fragments => "table of fragments",
            Table::Inodes => "table of inodes",
            Table::Directories => "table of directories",
            Table::Attributes => "table of extended attributes",
        })
    }
}

/// How much memory is left for an image.
#[derive(Debug)]
pub(in crate::archive) struct Budget {
    left: Cell<u64>,
    most: u64,
}

impl Budget {
    pub(in crate::archive) fn of(most: u64) -> Budget {
        Budget { left: Cell::new(most), most }
    }

    /// Takes what a part of a table needs, before it is read.
    ///
    /// # Errors
    /// When that is more than is left.
    pub(in crate::archive) fn take(&self, bytes: u64, table: Table) -> Result<(), Wrong> {
        let left = self.left.get().checked_sub(bytes);
        self.left.set(left.ok_or_else(|| self.spent(table))?);
        Ok(())
    }

    /// Says that a table takes more than is left.
    pub(in crate::archive) fn spent(&self, table: Table) -> Wrong {
        let most = self.most >> 20;
        Wrong::damaged(format!("with its {table}, all tables together take more than {most} MiB of memory"))
    }
}
