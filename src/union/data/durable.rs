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

use crate::error::{FsError, Result};
use crate::sys::object::At;
use crate::union::Union;
use crate::union::nodes::name_state::NameSeen;
use crate::union::nodes::node::Node;

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
