//! Calls on ranges of files, and their inode flags: fallocate, lseek, copy_file_range, chattr.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{self, FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::data::content::Content;
use crate::union::data::file::Write;
use crate::union::events::EventKind;
use crate::union::nodes::node::Node;

impl Union {
    /// Preallocates, punches or zeroes. `mode` as of fallocate(2).
    pub fn fallocate(&self, node: &Arc<Node>, mode: FallocateFlags, (offset, len): (u64, u64)) -> Result<()> {
        let zeroes = mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE);
        if zeroes && let Content::Half(half) = self.parts(node, true)? {
            let new = half.zero(self.upper()?, mode, (offset, len))?;
            self.tell_copied_range(node, new);
        } else {
            let fd = self.data_fd(node, true)?;
            self.upper()?.allocate(fd.as_fd(), mode, (offset, len))?;
        }
        let path = || self.path_of(node).into();
        self.events.tell(|| EventKind::Allocate { path: path(), offset, bytes: len, zeroes });
        Ok(())
    }

    /// Returns the inode flags (`lsattr`) of a regular file or directory.
    pub fn inode_flags(&self, node: &Arc<Node>) -> Result<u32> {
        let fd = self.readable_fd(node)?;
        Ok(fs::ioctl_getflags(fd.as_fd())?.bits())
    }

    /// Changes the inode flags (`chattr`). Copies up. Immutable and append-only objects of the upper couldn't be
    /// renamed, unlinked or copied over by the daemon either, so these flags are refused.
    pub fn set_inode_flags(&self, node: &Arc<Node>, flags: u32) -> Result<()> {
        let flags = fs::IFlags::from_bits_retain(flags);
        if flags.intersects(fs::IFlags::IMMUTABLE | fs::IFlags::APPEND) {
            return Err(FsError::Unsupported("immutable and append-only files"));
        }
        self.ensure_upper(node)?;
        let fd = self.readable_fd(node)?;
        let changed = fs::ioctl_setflags(fd.as_fd(), flags);
        // The kernel doesn't count an ioctl among what changes a file.
        self.changed_by_itself(node);
        changed?;
        self.tell_attribute(node, "flags");
        Ok(())
    }

    /// Tells which blocks of a half-copied file came up, if any did, and how many bytes.
    pub(in crate::union) fn tell_copied_range(&self, node: &Node, new: Option<(u64, u64)>) {
        let Some((offset, bytes)) = new else { return };
        self.counters.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
        let layer = || self.metacopies.get(&node.ino).map(|data| self.layer_number(data.dir.layer));
        let path = || self.path_of(node).into();
        self.events.tell(|| EventKind::CopyRange { path: path(), offset, bytes, layer: layer() });
    }

    /// Tells that this of a file was changed.
    pub(in crate::union) fn tell_attribute(&self, node: &Node, word: &str) {
        let changed = || vec![word.to_owned()];
        self.events.tell(|| EventKind::Attributes { path: self.path_of(node).into(), changed: changed() });
    }

    /// Returns an open descriptor of a regular file or directory, for calls that O_PATH is not enough for.
    fn readable_fd(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if node.dir.is_none() {
            return match self.in_upper(node) {
                true => self.own_fd(node),
                false => self.data_fd(node, false),
            };
        }
        self.with_object(node, |object| Ok(Arc::new(object.host()?.open_directory()?)))
    }

    /// Returns the next data or hole at or after an offset.
    pub fn seek(&self, node: &Arc<Node>, whence: SeekFrom) -> Result<u64> {
        match self.parts(node, false)? {
            Content::One(data) => Ok(data.seek(whence)?),
            Content::Half(half) => half.seek(whence),
        }
    }

    /// Copies a range from one file to another within the layers' filesystems, sharing extents where they can.
    pub fn copy_file_range(
        &self,
        from: (&Arc<Node>, u64),
        to: (&Arc<Node>, u64),
        len: usize,
    ) -> Result<usize> {
        let (target, source) = (self.parts(to.0, true)?, self.parts(from.0, false)?);
        let (copied, refused) = match (&target, &source) {
            (Content::One(target), Content::One(source)) => {
                // Who asked copies through memory then.
                let (Some(target), Some(source)) = (target.host(), source.host()) else {
                    return Err(FsError::Os(Errno::XDEV));
                };
                let (source, target) = ((source.as_fd(), from.1), (target.as_fd(), to.1));
                (self.upper()?.copy_range(source, target, len)?, None)
            }
            _ => {
                let mut buffer = vec![0; len.min(1 << 20)];
                let count = source.read_at(&mut buffer, from.1)?;
                if count == 0 {
                    return Ok(0);
                }
                self.put(to.0, to.1, &buffer[..count], Write::default())?
            }
        };
        if copied > 0 {
            self.events.tell(|| EventKind::Copy {
                path: self.path_of(to.0).into(),
                offset: to.1,
                bytes: copied as u64,
                from: self.path_of(from.0).into(),
                from_offset: from.1,
            });
        }
        match refused {
            Some(error) => Err(error),
            None => Ok(copied),
        }
    }
}
