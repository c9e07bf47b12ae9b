//! What the session tells the kernel unasked.
//!
//! Nothing here may be called while the thread serves a request on the same directory or file: the kernel holds its
//! lock until the request is answered, and takes it to do what it is told.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fuse_abi::linux as abi;
use fuse_abi::linux::fuse_notify_code as Code;
use fuser::INodeNo;
use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::device::{Backing, Device};
use crate::fuse::wire::reply::HEADER_SIZE;

/// The kernel's side of the connection, as something that can be told.
#[derive(Debug, Clone)]
pub struct Notifier(Arc<Device>);

impl Notifier {
    pub(super) fn new(device: Arc<Device>) -> Notifier {
        Notifier(device)
    }

    /// Lets it forget a node's attributes, and the data in a range that begins at `offset`: of `len` bytes, or to the end
    /// where that is 0. A negative offset: no data.
    ///
    /// # Errors
    ///
    /// Those of writing to the device. Not that it doesn't know the node: then there is nothing to forget.
    pub fn inval_inode(&self, node: INodeNo, offset: i64, len: i64) -> io::Result<()> {
        let out = abi::fuse_notify_inval_inode_out { ino: node.0, off: offset, len };
        self.send(Code::FUSE_NOTIFY_INVAL_INODE, &out, &[])
    }

    /// Lets it forget a name. What is mounted there is detached, in every mount namespace.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn inval_entry(&self, parent: INodeNo, name: &[u8]) -> io::Result<()> {
        let out = abi::fuse_notify_inval_entry_out { parent: parent.0, namelen: len(name)?, flags: 0 };
        self.send(Code::FUSE_NOTIFY_INVAL_ENTRY, &out, &[name, &[0]])
    }

    /// Tells it that a name was removed, as those who watch the directory are told. What is mounted there is detached.
    ///
    /// # Errors
    ///
    /// As above; `ENOTEMPTY` for a directory that has names that are in use.
    pub fn delete(&self, parent: INodeNo, child: INodeNo, name: &[u8]) -> io::Result<()> {
        let out =
            abi::fuse_notify_delete_out { parent: parent.0, child: child.0, namelen: len(name)?, padding: 0 };
        self.send(Code::FUSE_NOTIFY_DELETE, &out, &[name, &[0]])
    }

    /// Puts data into a file's page cache.
    ///
    /// # Errors
    ///
    /// As above; `ENOMEM`.
    pub fn store(&self, node: INodeNo, offset: u64, data: &[u8]) -> io::Result<()> {
        let out = abi::fuse_notify_store_out { nodeid: node.0, offset, size: len(data)?, padding: 0 };
        self.send(Code::FUSE_NOTIFY_STORE, &out, &[data])
    }

    /// Lets it send again what was read and isn't answered, by whomever it was read: see
    /// [`is_resent`](crate::fuse::wire::Header::is_resent).
    ///
    /// # Errors
    ///
    /// `EINVAL` before Linux 6.9.
    pub fn resend(&self) -> io::Result<()> {
        self.send(Code::FUSE_NOTIFY_RESEND, &[0u8; 0], &[])
    }

    /// The version of the protocol in which [`Notifier::doubt_all_names`] came.
    pub const DOUBTS_NAMES_SINCE: (u32, u32) = (7, 44);

    /// Lets it ask for each name again that it knows, or knows to be missing, when it is used next.
    ///
    /// # Errors
    ///
    /// `EINVAL`: a kernel before 6.16 doesn't know how.
    pub fn doubt_all_names(&self) -> io::Result<()> {
        /// `FUSE_NOTIFY_INC_EPOCH`, see [`Notifier::DOUBTS_NAMES_SINCE`].
        const INC_EPOCH: u32 = 8;
        self.send_code(INC_EPOCH, &[0u8; 0], &[])
    }

    /// Registers a file for passthrough.
    ///
    /// # Errors
    ///
    /// See [`open_backing`](crate::sys::fuse::open_backing).
    pub fn open_backing(&self, file: BorrowedFd<'_>) -> io::Result<Backing> {
        Backing::open(&self.0, file)
    }

    /// Returns a file that another process has given to the kernel, over the same connection.
    pub fn take_backing_over(&self, id: i32) -> Backing {
        Backing::of_another(&self.0, id)
    }

    fn send(&self, code: Code, body: &(impl IntoBytes + Immutable), more: &[&[u8]]) -> io::Result<()> {
        self.send_code(u32::from(code), body, more)
    }

    fn send_code(&self, code: u32, body: &(impl IntoBytes + Immutable), more: &[&[u8]]) -> io::Result<()> {
        let body = body.as_bytes();
        let size = HEADER_SIZE + body.len() + more.iter().map(|part| part.len()).sum::<usize>();
        let size = u32::try_from(size).map_err(|_| io::Error::from(Errno::TOOBIG))?;
        // A notification is a reply to nothing, with its code for the error.
        let header = abi::fuse_out_header { len: size, error: code.cast_signed(), unique: 0 };
        let [first, second] = [0, 1].map(|i| more.get(i).copied().unwrap_or_default());
        let parts = [header.as_bytes(), body, first, second].map(IoSlice::new);
        match self.0.notify(&parts) {
            // It knows nothing of it.
            Err(Errno::NOENT) => Ok(()),
            sent => Ok(sent?),
        }
    }
}

fn len(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(|_| Errno::TOOBIG.into())
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Returns what is written to the device by `tell`.
    fn told(tell: impl FnOnce(&Notifier) -> io::Result<()>) -> Vec<u8> {
        let (read, write) = rustix::pipe::pipe().unwrap();
        tell(&Notifier::new(Device::new(write))).unwrap();
        let mut bytes = vec![0; 256];
        let len = rustix::io::read(read, &mut bytes).unwrap();
        bytes.truncate(len);
        bytes
    }

    fn expected(code: i32, body: &[u64], more: &[u8]) -> Vec<u8> {
        let body: Vec<u8> = body.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let len = (16 + body.len() + more.len()) as u32;
        [&len.to_ne_bytes()[..], &code.to_ne_bytes(), &[0; 8], &body, more].concat()
    }

    #[test]
    fn notifications_are_as_the_kernel_reads_them() {
        let (parent, child) = (INodeNo(5), INodeNo(6));
        assert_eq!(told(|kernel| kernel.inval_inode(parent, -1, 0)), expected(2, &[5, u64::MAX, 0], &[]));
        assert_eq!(told(|kernel| kernel.inval_entry(parent, b"abc")), expected(3, &[5, 3], b"abc\0"));
        assert_eq!(told(|kernel| kernel.store(parent, 7, b"data")), expected(4, &[5, 7, 4], b"data"));
        assert_eq!(told(|kernel| kernel.delete(parent, child, b"abc")), expected(6, &[5, 6, 3], b"abc\0"));
        assert_eq!(told(Notifier::resend), expected(7, &[], &[]));
    }
}
