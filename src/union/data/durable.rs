//! What survives a power failure: fsync, fdatasync and fsync of directories.
//!
//! An object that was just copied up, made, linked or renamed lies under a name that may still be in the memory of the
//! upper's filesystem alone. fsync of the object writes its name too, on ext4, XFS and btrfs. fdatasync writes data and
//! what is needed to read them, and the name of a copy, which was on the disk before it got that name, is none of that:
//! after a power failure the lower's bytes would be back. So the first sync of an object since its name changed is a
//! whole one, and where the filesystem is not known to write its directories in the order in which they were changed,
//! the directories above are synced as well, up to the first whose name is known to be durable.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::error::{FsError, Result};
use crate::sys::object::At;
use crate::union::Union;
use crate::union::nodes::node::Node;

/// Whether the name of an object is on the disk, as far as is known.
///
/// The lowest bit says so; the rest counts the changes, so that a sync that a change overtakes says nothing.
#[derive(Debug, Default)]
pub struct NameState(AtomicU16);

/// A name as it was when a sync of it began.
#[derive(Debug, Clone, Copy)]
pub struct NameSeen(u16);

const DURABLE: u16 = 1;

impl NameState {
    /// Notes that the object has another name than the disk knows.
    pub fn changed(&self) {
        let next = |state: u16| Some((state & !DURABLE).wrapping_add(2));
        // It always changes.
        let _: std::result::Result<u16, u16> = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }

    /// Returns the name's state before a sync.
    pub fn seen(&self) -> NameSeen {
        NameSeen(self.0.load(Ordering::Acquire))
    }

    /// Notes that the name that was seen is on the disk.
    pub fn synced(&self, seen: NameSeen) {
        let durable = seen.0 | DURABLE;
        // Changed meanwhile, it isn't.
        let _: std::result::Result<u16, u16> =
            self.0.compare_exchange(seen.0, durable, Ordering::AcqRel, Ordering::Relaxed);
    }
}

impl NameSeen {
    /// Whether the name is known to be on the disk.
    pub fn is_durable(self) -> bool {
        self.0 & DURABLE != 0
    }
}

impl Union {
    /// Writes a file's data to the disk, its name where that is not there yet, and, unless `data_only`, its attributes.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsync(&self, node: &Arc<Node>, data_only: bool) -> Result<()> {
        if !self.in_upper(node) {
            return Ok(()); // A lower is never dirty by our doing.
        }
        let upper = self.upper()?;
        let seen = node.names.seen();
        let fd = self.data_fd(node, false)?;
        upper.sync(fd.as_fd(), data_only && seen.is_durable())?;
        self.sync_name(node, seen)
    }

    /// Writes a directory's entries to the disk, and its name where that is not there yet.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsyncdir(&self, node: &Arc<Node>) -> Result<()> {
        if self.dir_part(node)?.upper_dir().is_none() {
            return Ok(());
        }
        let seen = node.names.seen();
        self.sync_directory(node)?;
        self.sync_name(node, seen)
    }

    /// Makes the name of an object durable that was synced since `seen`.
    fn sync_name(&self, node: &Arc<Node>, seen: NameSeen) -> Result<()> {
        if seen.is_durable() {
            return Ok(());
        }
        if !self.upper()?.has_one_journal() {
            self.sync_ancestors(node)?;
        }
        node.names.synced(seen);
        Ok(())
    }

    /// Syncs the directories above, up to the first whose name is durable.
    fn sync_ancestors(&self, node: &Arc<Node>) -> Result<()> {
        let mut at = node.parent();
        while let Some(directory) = at {
            let seen = directory.names.seen();
            self.sync_directory(&directory)?;
            if seen.is_durable() {
                break;
            }
            directory.names.synced(seen);
            at = directory.parent();
        }
        Ok(())
    }

    fn sync_directory(&self, node: &Node) -> Result<()> {
        let real = self.dir_part(node)?.upper_dir().ok_or(FsError::Stale)?;
        let open = At::Fd(self.fds.get(&real)?.as_fd()).open_directory()?;
        self.upper()?.sync(open.as_fd(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_durable_when_nothing_changed_it_since_the_sync_began() {
        let name = NameState::default();
        assert!(!name.seen().is_durable());
        let seen = name.seen();
        name.synced(seen);
        assert!(name.seen().is_durable());
        name.changed();
        let seen = name.seen();
        assert!(!seen.is_durable());
        name.changed();
        name.synced(seen);
        assert!(!name.seen().is_durable(), "a change overtook the sync");
    }
}
