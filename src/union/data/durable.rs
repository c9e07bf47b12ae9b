//! What survives a power failure: fsync, fdatasync and fsync of directories.
//!
//! An object that was just copied up, made, linked or renamed lies under a name that may still be in the memory of the
//! upper's filesystem alone. fsync of the object writes its name too, on ext4, XFS and btrfs. fdatasync writes data and
//! what is needed to read them, and the name of a copy, which was on the disk before it got that name, is none of that:
//! after a power failure the lower's bytes would be back. So the first sync of an object since its name changed is a
//! whole one, and where the filesystem is not known to write its directories in the order in which they were changed, the
//! directory that holds the name is synced as well.
//!
//! A directory above may have been renamed since it was last on the disk, and what is below it wasn't changed by that: a
//! sync of that writes nothing. So each directory above whose own name isn't known to be durable is synced too, once. That
//! is more than the filesystems promise by themselves, and leaves one rule: what was synced is there, at its path. (A file
//! with several names: each name is in its directory, and the path is that of one of them.)

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::At;
use crate::union::Union;
use crate::union::nodes::node::Node;

impl Union {
    /// Writes a file's data to the disk, its path where that is not there yet, and, unless `data_only`, its attributes.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsync(&self, node: &Arc<Node>, data_only: bool) -> Result<()> {
        let Ok(upper) = self.upper() else { return Ok(()) };
        if !self.in_upper(node) {
            // A lower is never dirty by our doing, but the directories that lead to it may have been renamed.
            return self.sync_path(node, true);
        }
        let seen = node.names.seen();
        let fd = self.own_fd(node)?;
        upper.sync(fd.as_fd(), data_only && seen.is_durable())?;
        self.sync_path(node, seen.is_durable())?;
        node.names.synced(seen);
        Ok(())
    }

    /// Writes a directory's entries to the disk, and its path where that is not there yet.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsyncdir(&self, node: &Arc<Node>) -> Result<()> {
        if self.upper().is_err() {
            return Ok(());
        }
        if self.dir_part(node)?.upper_dir().is_none() {
            return self.sync_path(node, true);
        }
        let seen = node.names.seen();
        self.sync_directory(node)?;
        self.sync_path(node, seen.is_durable())?;
        node.names.synced(seen);
        Ok(())
    }

    /// Makes the path durable of an object that was synced itself; `named`: its last name is durable already.
    fn sync_path(&self, node: &Arc<Node>, mut named: bool) -> Result<()> {
        let one_journal = self.upper()?.has_one_journal();
        // Durable when all above them is as well: whoever finds one so looks no further.
        let mut synced = Vec::new();
        let mut at = node.parent();
        while let Some(directory) = at {
            if self.dir_part(&directory)?.upper_dir().is_some() {
                let seen = directory.names.seen();
                if !seen.is_durable() || !(named || one_journal) {
                    self.sync_directory(&directory)?;
                    synced.push((directory.clone(), seen));
                }
                named = seen.is_durable();
            }
            at = directory.parent();
        }
        synced.iter().for_each(|(directory, seen)| directory.names.synced(*seen));
        Ok(())
    }

    fn sync_directory(&self, node: &Node) -> Result<()> {
        let real = self.dir_part(node)?.upper_dir().ok_or(FsError::Stale)?;
        match At::Fd(self.fds.host(&real)?.as_fd()).open_directory() {
            Ok(open) => self.upper()?.sync(open.as_fd(), false),
            // The daemon of an ordinary user may search it and not open it: all is written then.
            Err(Errno::ACCESS | Errno::PERM) => self.upper()?.sync_all(),
            Err(e) => Err(e.into()),
        }
    }
}
