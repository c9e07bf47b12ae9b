//! An io_uring over which FUSE requests come (kernel: fs/fuse/dev_uring.c): commands on /dev/fuse whose memory belongs
//! to the kernel and to this process in turn.
//!
//! Who has the memory is a matter of ownership here: [`Ring::register`] and [`Ring::commit`] take an [`Area`], and
//! [`Ring::wait`] gives it back when the kernel has put a request there.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::fuse::Pages;

/// FUSE_IO_URING_CMD_REGISTER and FUSE_IO_URING_CMD_COMMIT_AND_FETCH (enum fuse_uring_cmd).
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// The memory of one entry of a queue: for the headers, and for what is behind them.
#[derive(Debug)]
pub struct Area {
    /// A `struct fuse_uring_req_header`.
    pub header: Pages,
    /// The rest of a request, or of a reply.
    pub payload: Pages,
}

/// How large a `struct fuse_uring_req_header` is.
pub const HEADER_SIZE: usize = 288;

type Iovecs = [libc::iovec; 2];

/// What the kernel tells of an entry.
#[derive(Debug)]
pub enum Told {
    /// It holds a request.
    Request(usize, Area),
    /// It is not used any more: `ENOTCONN`, `ECONNABORTED` or `ENODEV` after the connection has ended.
    Ended(i32),
}

/// A ring with some entries, used by the thread that made it.
pub struct Ring {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    /// What the kernel has, by entry.
    held: Vec<Option<Area>>,
    /// Entries and results that the ring told and that were not looked at yet.
    completed: VecDeque<(usize, i32)>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("entries", &self.held.len()).finish_non_exhaustive()
    }
}

impl Ring {
    /// Makes one with so many entries.
    ///
    /// # Errors
    ///
    /// Seccomp filters and `kernel.io_uring_disabled` forbid rings in many places.
    pub fn new(entries: usize) -> io::Result<Ring> {
        let size = u32::try_from(entries.max(1)).map_err(io::Error::other)?;
        // What the kernel has for this thread is done when it asks, and wakes it for nothing else.
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(size)?;
        let held = (0..entries).map(|_| None).collect();
        Ok(Ring { ring, held, completed: VecDeque::new() })
    }

    /// Registers entries, by number, for a queue each.
    ///
    /// # Errors
    ///
    /// The kernel refuses one of them.
    pub fn register(&mut self, device: BorrowedFd<'_>, entries: Vec<(u16, Area)>) -> io::Result<()> {
        let iovecs: Vec<Iovecs> = entries.iter().map(|(_, area)| iovecs(area)).collect();
        for (index, (queue, area)) in entries.into_iter().enumerate() {
            self.held[index] = Some(area);
            self.push(device, (REGISTER, index), (queue, 0), Some(&iovecs[index]))?;
        }
        // The kernel has read the iovecs when this returns.
        self.ring.submit()?;
        // Failures are told at once; what else is there are requests.
        self.take_completed();
        match self.completed.iter().find(|(_, result)| *result < 0) {
            Some(&(_, failed)) => Err(io::Error::from_raw_os_error(-failed)),
            None => Ok(()),
        }
    }

    /// Hands an entry's reply to the kernel with the next call of [`Ring::wait`], and asks for its next request.
    ///
    /// # Errors
    ///
    /// None, as long as each entry is committed once a request.
    pub fn commit(
        &mut self,
        device: BorrowedFd<'_>,
        index: usize,
        (queue, commit_id): (u16, u64),
        area: Area,
    ) -> io::Result<()> {
        self.held[index] = Some(area);
        self.push(device, (COMMIT_AND_FETCH, index), (queue, commit_id), None)
    }

    fn push(
        &mut self,
        device: BorrowedFd<'_>,
        (op, index): (u32, usize),
        (queue, commit_id): (u16, u64),
        iovecs: Option<&Iovecs>,
    ) -> io::Result<()> {
        // struct fuse_uring_cmd_req: u64 flags, u64 commit_id, u16 qid
        let mut command = [0; 80];
        command[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        command[16..18].copy_from_slice(&queue.to_ne_bytes());
        let mut sqe = opcode::UringCmd80::new(types::Fd(device.as_raw_fd()), op)
            .cmd(command)
            .addr(iovecs.map(|iovecs| iovecs.as_ptr() as u64))
            .build()
            .user_data(index as u64);
        if let Some(iovecs) = iovecs {
            /// Of `len` in struct io_uring_sqe.
            const LEN_AT: usize = 24;
            // SAFETY: it is a struct io_uring_sqe; the crate has no way to set this for a command.
            unsafe { (&raw mut sqe).cast::<u8>().add(LEN_AT).cast::<u32>().write(iovecs.len() as u32) };
        }
        // SAFETY: the iovecs live until it is submitted. What they tell of is kept in `held` as long as the kernel may
        // write there: until it has told of the entry, or for ever (see `drop`).
        unsafe { self.ring.submission().push(&sqe) }.map_err(io::Error::other)
    }

    fn take_completed(&mut self) {
        self.completed.extend(self.ring.completion().map(|done| (done.user_data() as usize, done.result())));
    }

    /// Submits what was committed, and waits until the kernel tells of an entry.
    ///
    /// # Errors
    ///
    /// Those of io_uring_enter; an entry that the kernel doesn't know.
    pub fn wait(&mut self) -> io::Result<Told> {
        loop {
            self.take_completed();
            if let Some((index, result)) = self.completed.pop_front() {
                let area = self.held.get_mut(index).and_then(Option::take);
                return match (result, area) {
                    (0, Some(area)) => Ok(Told::Request(index, area)),
                    (0, None) => Err(io::ErrorKind::InvalidData.into()),
                    (error, _) => Ok(Told::Ended(-error)),
                };
            }
            let Err(e) = self.ring.submit_and_wait(1) else { continue };
            match e.raw_os_error() {
                Some(libc::EINTR) => {}
                // Memory is short.
                Some(libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                _ => return Err(e),
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still write there when an entry was not told of.
        std::mem::forget(std::mem::take(&mut self.held));
    }
}

fn iovecs(area: &Area) -> Iovecs {
    [
        libc::iovec { iov_base: area.header.address().cast(), iov_len: HEADER_SIZE },
        libc::iovec { iov_base: area.payload.address().cast(), iov_len: area.payload.len() },
    ]
}
