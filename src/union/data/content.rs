//! The data of a file, open, wherever they are.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::Result;
use crate::sys::object::At;
use crate::union::Union;
use crate::union::data::half::Half;
use crate::union::nodes::node::Node;
use crate::union::stack::access::LayerData;

/// The data of a file, open for reading.
#[derive(Debug, Clone)]
pub enum Content {
    /// In one file, of the host or of a tree.
    One(LayerData),
    /// In two: see [`crate::union::data::half`].
    Half(Arc<Half>),
}

impl From<OwnedFd> for Content {
    fn from(file: OwnedFd) -> Content {
        Content::One(file.into())
    }
}

impl Content {
    /// Returns how many bytes there are.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn size(&self) -> Result<u64> {
        Ok(match self {
            Content::One(data) => data.size()?,
            Content::Half(half) => At::Fd(half.own()).stat()?.size,
        })
    }

    /// Reads up to `buffer.len()` bytes at an offset; fewer only at the end.
    ///
    /// # Errors
    /// Those of reading, also after a part.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let data = match self {
            Content::One(data) => data,
            Content::Half(half) => return half.read(offset, buffer),
        };
        let mut done = 0;
        while done < buffer.len() {
            match data.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(done)
    }

    /// Makes the empty file `to` the first `size` bytes, holes kept, extents shared where they can be. Returns how many were
    /// moved. `sync`: what is written is on its way to the disk.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn copy_to(&self, to: BorrowedFd<'_>, size: u64, sync: bool) -> Result<u64> {
        match self {
            Content::One(data) => Ok(data.copy_to(to.as_fd(), size, sync)?),
            Content::Half(half) => half.copy_to(to, size),
        }
    }
}

impl Union {
    /// Opens the data of a file to read them, without copying it up.
    ///
    /// # Errors
    /// Those of opening them; for what is no regular file.
    pub fn content(&self, node: &Arc<Node>) -> Result<Content> {
        self.parts(node, false)
    }
}
