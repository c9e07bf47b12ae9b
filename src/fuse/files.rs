//! The data of files: reading and seeking.

use std::sync::Arc;

use fuser::{Errno, INodeNo};
use rustix::fs::SeekFrom;

use super::adaptor::UnionFs;
use super::convert::errno;
use super::wire::Reply;
use super::{data, node_id};
use crate::error::{FsError, Result};
use crate::union::nodes::node::Node;

impl UnionFs {
    /// Reads. `unnoticed`: its access time stays.
    pub(super) fn read_data(&self, ino: INodeNo, range: (u64, u32), unnoticed: bool, reply: Reply) {
        match self.node(ino) {
            Ok(node) if unnoticed => data::reply_unnoticed(&self.union, &node, range, reply),
            Ok(node) => data::reply_read(&self.union, &node, range, reply),
            Err(e) => reply.error(errno(&e)),
        }
    }

    pub(super) fn seek_data(&self, ino: INodeNo, offset: u64, whence: u32, reply: Reply) {
        // Beyond what a file can have.
        if i64::try_from(offset).is_err() {
            return reply.error(Errno::ENXIO);
        }
        let at = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return reply.error(Errno::EINVAL),
        };
        match self.node(ino).and_then(|node| self.seek_in(&node, ino, at)) {
            Ok(found) => reply.offset(found),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn seek_in(&self, node: &Arc<Node>, id: INodeNo, at: SeekFrom) -> Result<u64> {
        if !node.has_second_id() || node_id::is_second(id) {
            return self.union.seek(node, at);
        }
        // Where an open from before has its holes is not known any more: all of it are data.
        let size = self.union.getattr(node)?.stat.size;
        match at {
            SeekFrom::Data(offset) if offset < size => Ok(offset),
            SeekFrom::Hole(offset) if offset < size => Ok(size),
            _ => Err(FsError::Os(rustix::io::Errno::NXIO)),
        }
    }
}
