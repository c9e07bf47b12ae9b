//! The answer to a request: built where the transport sends it from.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use fuse_abi::linux as abi;
use fuser::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::abi::CopyFileRangeOut;
use super::body::{Entry, Opening, attr_out};
use super::listing::Listing;

/// How long a reply's header is.
pub const HEADER_SIZE: usize = size_of::<abi::fuse_out_header>();

/// Returns the bytes of a reply's header: with a body of so many bytes, or an error.
pub fn header(unique: u64, body: Result<usize, Errno>) -> [u8; HEADER_SIZE] {
    let header = abi::fuse_out_header {
        len: (HEADER_SIZE + body.unwrap_or(0)) as u32,
        error: body.map_or_else(|errno| -errno.code(), |_| 0),
        unique,
    };
    zerocopy::transmute!(header)
}

/// Puts the body of a reply into the room for it and tells its size.
pub type Fill<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<usize, Errno>;

/// What carries replies to the kernel.
pub trait Transport: fmt::Debug + Send + Sync {
    /// Sends the reply to a request. `fill` puts its body, of up to `size` bytes, where it is sent from.
    ///
    /// # Errors
    ///
    /// `ENOENT`: nobody waits for it any more.
    fn answer(&self, unique: u64, size: usize, fill: Fill<'_>) -> io::Result<()>;

    /// Returns whether it can be given a pipe.
    fn takes_pipes(&self) -> bool {
        false
    }

    /// Sends what a pipe holds: a header, and a body with which it has `len` bytes.
    ///
    /// # Errors
    ///
    /// Nothing was sent.
    fn splice(&self, _pipe: BorrowedFd<'_>, _len: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The answer to one request. Whoever waits gets EIO when it is dropped.
#[derive(Debug)]
#[must_use = "somebody waits for it"]
pub struct Reply {
    unique: u64,
    transport: Option<Arc<dyn Transport>>,
}

impl Reply {
    /// Returns the answer to a request with this number.
    pub fn new(unique: u64, transport: Arc<dyn Transport>) -> Reply {
        Reply { unique, transport: Some(transport) }
    }

    /// Returns the number of the request.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    fn send(mut self, size: usize, fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) {
        let Some(transport) = self.transport.take() else { return };
        let mut fill = Some(fill);
        let mut once = |room: &mut [u8]| fill.take().map_or(Err(Errno::EIO), |fill| fill(room));
        told(self.unique, transport.answer(self.unique, size, &mut once));
    }

    fn send_parts(self, parts: [&[u8]; 2]) {
        let size = parts[0].len() + parts[1].len();
        self.send(size, |room| {
            let (first, second) = room.split_at_mut(parts[0].len());
            first.copy_from_slice(parts[0]);
            second.copy_from_slice(parts[1]);
            Ok(size)
        });
    }

    fn send_one(self, body: &(impl IntoBytes + Immutable)) {
        self.send_parts([body.as_bytes(), &[]]);
    }

    /// Answers that it failed.
    pub fn error(self, errno: Errno) {
        self.send(0, |_| Err(errno));
    }

    /// Answers that it is done.
    pub fn ok(self) {
        self.send(0, |_| Ok(0));
    }

    /// Lets a request go that has no answer.
    pub fn none(mut self) {
        self.transport = None;
    }

    /// Answers with a name's node.
    pub fn entry(self, entry: &Entry) {
        self.send_one(&abi::fuse_entry_out::from(entry));
    }

    /// Answers with attributes that are good for so long.
    pub fn attr(self, ttl: Duration, attr: &abi::fuse_attr) {
        self.send_one(&attr_out(ttl, attr));
    }

    /// Answers with attributes as statx(2) has them.
    pub fn statx(self, statx: &abi::fuse_statx_out) {
        self.send_one(statx);
    }

    /// Answers that a file is open.
    pub fn opened(self, opening: Opening) {
        self.send_one(&abi::fuse_open_out::from(opening));
    }

    /// Answers that a file was made and is open.
    pub fn created(self, entry: &Entry, opening: Opening) {
        let (entry, opening) = (abi::fuse_entry_out::from(entry), abi::fuse_open_out::from(opening));
        self.send_parts([entry.as_bytes(), opening.as_bytes()]);
    }

    /// Answers that so many bytes were written.
    pub fn written(self, size: u32) {
        self.send_one(&abi::fuse_write_out { size, padding: 0 });
    }

    /// Answers that so many bytes were copied. `wide`: they were asked for with 64 bits.
    pub fn copied(self, size: u64, wide: bool) {
        match u32::try_from(size) {
            _ if wide => self.send_one(&CopyFileRangeOut { bytes_copied: size }),
            Ok(size) => self.written(size),
            Err(_) => self.error(Errno::EOVERFLOW),
        }
    }

    /// Answers with the filesystem's figures.
    pub fn statfs(self, st: abi::fuse_kstatfs) {
        self.send_one(&abi::fuse_statfs_out { st });
    }

    /// Answers with an offset in a file.
    pub fn offset(self, offset: u64) {
        self.send_one(&abi::fuse_lseek_out { offset });
    }

    /// Answers with an ioctl's result and data.
    pub fn ioctl(self, result: i32, data: &[u8]) {
        let out = abi::fuse_ioctl_out { result, ..Default::default() };
        self.send_parts([out.as_bytes(), data]);
    }

    /// Answers with data that lie somewhere.
    pub fn data(self, data: &[u8]) {
        self.send_parts([data, &[]]);
    }

    /// Answers with a value as getxattr(2) and listxattr(2) want it: its size, or itself if it fits into `size` bytes.
    pub fn value(self, value: &[u8], size: u32) {
        match u32::try_from(value.len()) {
            Err(_) => self.error(Errno::E2BIG),
            Ok(len) if size == 0 => self.send_one(&abi::fuse_getxattr_out { size: len, padding: 0 }),
            Ok(len) if len > size => self.error(Errno::ERANGE),
            Ok(_) => self.data(value),
        }
    }

    /// Answers with data, up to `size` bytes, that `fill` puts where they are sent from.
    pub fn fill(self, size: u32, fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) {
        self.send(size as usize, fill);
    }

    /// Answers with a page of a listing, up to `size` bytes.
    pub fn listing(self, size: u32, list: impl FnOnce(&mut Listing<'_>) -> Result<(), Errno>) {
        self.send(size as usize, |room| {
            let mut listing = Listing::new(room);
            list(&mut listing)?;
            Ok(listing.len())
        });
    }

    /// Answers with what is agreed on.
    pub(in crate::fuse) fn init(self, init: &abi::fuse_init_out) {
        self.send_one(init);
    }

    /// Returns whether it may be [spliced](Reply::splice).
    pub fn takes_pipes(&self) -> bool {
        self.transport.as_ref().is_some_and(|transport| transport.takes_pipes())
    }

    /// Returns the header that a pipe must begin with, before `len` bytes of data.
    pub fn splice_header(&self, len: u32) -> [u8; HEADER_SIZE] {
        header(self.unique, Ok(len as usize))
    }

    /// Answers with what a pipe holds: a header, and `len` bytes.
    ///
    /// # Errors
    ///
    /// Nothing was sent.
    pub fn splice(mut self, pipe: BorrowedFd<'_>, len: u32) -> Result<(), Reply> {
        let Some(transport) = self.transport.take() else { return Ok(()) };
        match transport.splice(pipe, HEADER_SIZE + len as usize) {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => {
                self.transport = Some(transport);
                Err(self)
            }
            sent => {
                told(self.unique, sent);
                Ok(())
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(transport) = self.transport.take() {
            log::error!("request {} was not answered", self.unique);
            told(self.unique, transport.answer(self.unique, 0, &mut |_| Err(Errno::EIO)));
        }
    }
}

/// Says that an answer didn't arrive.
fn told(unique: u64, sent: io::Result<()>) {
    let Err(error) = sent else { return };
    match error.raw_os_error() {
        // The program was killed, or the connection has ended.
        Some(libc::ENOENT | libc::ENODEV | libc::ENOTCONN | libc::ECONNABORTED | libc::EPERM) => {
            log::debug!("the answer to request {unique} came too late: {error}");
        }
        _ => log::error!("the answer to request {unique} can't be sent: {error}"),
    }
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use parking_lot::Mutex;

    use super::*;

    /// Keeps what is sent.
    #[derive(Debug, Default)]
    struct Kept(Mutex<Vec<Vec<u8>>>);

    impl Transport for Kept {
        fn answer(&self, unique: u64, size: usize, fill: Fill<'_>) -> io::Result<()> {
            let mut body = vec![0xff; size];
            let filled = fill(&mut body);
            body.truncate(filled.unwrap_or(0));
            self.0.lock().push([&header(unique, filled)[..], &body].concat());
            Ok(())
        }
    }

    fn sent(answer: impl FnOnce(Reply)) -> Vec<u8> {
        let kept = Arc::new(Kept::default());
        answer(Reply::new(0x77, kept.clone()));
        let mut all = kept.0.lock();
        assert!(all.len() <= 1, "one answer");
        all.pop().unwrap_or_default()
    }

    fn with_header(len: u32, error: i32, body: &[u8]) -> Vec<u8> {
        [&len.to_ne_bytes()[..], &error.to_ne_bytes(), &0x77u64.to_ne_bytes(), body].concat()
    }

    #[test]
    fn replies_are_as_the_kernel_reads_them() {
        assert_eq!(sent(Reply::ok), with_header(16, 0, &[]));
        assert_eq!(sent(|reply| reply.error(Errno::ENOENT)), with_header(16, -2, &[]));
        assert!(sent(Reply::none).is_empty());
        assert_eq!(sent(drop), with_header(16, -5, &[]), "nobody waits for ever");
        assert_eq!(sent(|reply| reply.data(b"target")), with_header(22, 0, b"target"));
        assert_eq!(sent(|reply| reply.written(5)), with_header(24, 0, &[5, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(sent(|reply| reply.offset(5)), with_header(24, 0, &5u64.to_ne_bytes()));
        assert_eq!(
            sent(|reply| reply.copied(1 << 40, true)),
            with_header(24, 0, &(1u64 << 40).to_ne_bytes())
        );
        assert_eq!(sent(|reply| reply.copied(1 << 40, false)), with_header(16, -libc::EOVERFLOW, &[]));
        assert_eq!(sent(|reply| reply.value(b"value", 0)), with_header(24, 0, &[5, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(sent(|reply| reply.value(b"value", 4)), with_header(16, -libc::ERANGE, &[]));
        assert_eq!(sent(|reply| reply.value(b"value", 5)), with_header(21, 0, b"value"));
        assert_eq!(sent(|reply| reply.ioctl(3, b"xy")).len(), 16 + 16 + 2);
        let filled = sent(|reply| {
            reply.fill(100, |room| {
                room[..3].copy_from_slice(b"abc");
                Ok(3)
            });
        });
        assert_eq!(filled, with_header(19, 0, b"abc"));
    }

    #[test]
    fn a_node_and_its_number_are_two_things() {
        let attr = abi::fuse_attr { ino: 9, mode: 0o100_644, ..Default::default() };
        let entry = Entry { node: fuser::INodeNo(5), attr, ..Entry::missing(Duration::new(3, 4)) };
        let bytes = sent(|reply| reply.entry(&entry));
        assert_eq!(bytes.len(), 16 + 128);
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((word(16), word(32), word(56)), (5, 3, 9), "nodeid, entry_valid, attr.ino");
        let opening = Opening { flags: fuser::FopenFlags::FOPEN_NOFLUSH, backing: Some(3) };
        let bytes = sent(|reply| reply.created(&entry, opening));
        assert_eq!(bytes.len(), 16 + 128 + 16);
        assert_eq!(
            bytes[16 + 128 + 8..][..8],
            [0xa0, 0, 0, 0, 3, 0, 0, 0],
            "NOFLUSH and PASSTHROUGH; its number"
        );
    }
}
