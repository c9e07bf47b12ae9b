//! /dev/fuse: requests are read from it, replies and notifications are written to it.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use crate::fuse::mount::{MountError, open_device};
use crate::fuse::wire::reply::{Fill, HEADER_SIZE, Transport, header};
use crate::sys::fuse;

thread_local! {
    /// What a thread's replies are sent from: as large as its largest reply so far that didn't go through a pipe.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A descriptor of the connection. A request is answered by the one that it was read from.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Device {
    /// Takes one whose filesystem is mounted.
    pub fn new(mounted: OwnedFd) -> Arc<Device> {
        Arc::new(Device(mounted))
    }

    /// Opens one more of the same connection (FUSE_DEV_IOC_CLONE), at which requests are waited for apart.
    pub(super) fn another(&self) -> Result<Arc<Device>, MountError> {
        let device = open_device()?;
        fuse::join_connection(&device, self.as_fd()).map_err(MountError::Device)?;
        Ok(Device::new(device))
    }

    /// Reads the next request.
    ///
    /// # Errors
    ///
    /// `ENODEV`: unmounted. `ECONNABORTED`: the connection was aborted. `EINTR`: a signal came. `EAGAIN`: there is none, and
    /// this one [doesn't wait](Device::set_nonblocking). `ENOENT`: it was taken back while it was read.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        rustix::io::read(&self.0, buffer)
    }

    /// Makes reading return `EAGAIN` in place of waiting, or undoes it.
    pub(super) fn set_nonblocking(&self, on: bool) -> rustix::io::Result<()> {
        let mut flags = fcntl_getfl(&self.0)?;
        flags.set(OFlags::NONBLOCK, on);
        fcntl_setfl(&self.0, flags)
    }

    /// Sends what isn't a reply.
    pub(super) fn notify(&self, parts: &[io::IoSlice<'_>]) -> rustix::io::Result<()> {
        rustix::io::writev(&self.0, parts).map(drop)
    }
}

impl Transport for Device {
    fn answer(&self, unique: u64, size: usize, fill: Fill<'_>) -> io::Result<()> {
        BUFFER.with_borrow_mut(|buffer| {
            let room = HEADER_SIZE + size;
            if buffer.len() < room {
                buffer.resize(room, 0);
            }
            let filled = fill(&mut buffer[HEADER_SIZE..room]).map(|filled| filled.min(size));
            buffer[..HEADER_SIZE].copy_from_slice(&header(unique, filled));
            // The kernel takes it as a whole or not at all.
            rustix::io::write(&self.0, &buffer[..HEADER_SIZE + filled.unwrap_or(0)])?;
            Ok(())
        })
    }

    fn takes_pipes(&self) -> bool {
        true
    }

    fn splice(&self, pipe: BorrowedFd<'_>, len: usize) -> io::Result<()> {
        match splice(pipe, None, &self.0, None, len, SpliceFlags::empty())? {
            sent if sent == len => Ok(()),
            _ => Err(io::Error::from(Errno::IO)),
        }
    }
}

/// A file that the kernel reads and writes by itself (FUSE_PASSTHROUGH), until this is dropped and nobody has it open
/// any more.
#[derive(Debug)]
pub struct Backing {
    device: Arc<Device>,
    id: i32,
}

impl Backing {
    pub(super) fn open(device: &Arc<Device>, file: BorrowedFd<'_>) -> io::Result<Backing> {
        let id = fuse::open_backing(device, file)?;
        Ok(Backing { device: device.clone(), id })
    }

    /// Returns one that another process has given to the kernel, over the same connection.
    pub(super) fn of_another(device: &Arc<Device>, id: i32) -> Backing {
        Backing { device: device.clone(), id }
    }

    /// Returns what the kernel knows it by.
    pub fn id(&self) -> i32 {
        self.id
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Err(error) = fuse::close_backing(&self.device, self.id) {
            log::debug!("the kernel keeps a backing file: {error}");
        }
    }
}
