//! The calls of /dev/fuse that aren't reads and writes (kernel: include/uapi/linux/fuse.h, `FUSE_DEV_IOC_*`), and the
//! memory that requests are read into.

#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;

use rustix::io::{Errno, Result};
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// FUSE_DEV_IOC_MAGIC.
const MAGIC: u8 = 229;
const CLONE: Opcode = opcode::read::<u32>(MAGIC, 0);
const BACKING_OPEN: Opcode = opcode::write::<BackingMap>(MAGIC, 1);
const BACKING_CLOSE: Opcode = opcode::write::<u32>(MAGIC, 2);

/// struct fuse_backing_map.
#[repr(C)]
struct BackingMap {
    fd: RawFd,
    flags: u32,
    padding: u64,
}

/// FUSE_DEV_IOC_CLONE: hands the number of an open descriptor to the kernel, which only reads it, whatever the direction
/// that its number names.
struct Clone(u32);

// SAFETY: the kernel reads the 32 bits that the pointer points to.
unsafe impl rustix::ioctl::Ioctl for Clone {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        CLONE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: rustix::ioctl::IoctlOutput, _: *mut std::ffi::c_void) -> Result<()> {
        Ok(())
    }
}

/// FUSE_DEV_IOC_BACKING_OPEN, which returns a number.
struct BackingOpen(BackingMap);

// SAFETY: the kernel reads a `struct fuse_backing_map` from the pointer.
unsafe impl rustix::ioctl::Ioctl for BackingOpen {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        BACKING_OPEN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(id: rustix::ioctl::IoctlOutput, _: *mut std::ffi::c_void) -> Result<i32> {
        Ok(id)
    }
}

/// Makes `device`, which was just opened, one more descriptor of the connection of `of`.
///
/// # Errors
///
/// `EINVAL` when `of` is not that of a mounted filesystem.
pub fn join_connection(device: impl AsFd, of: BorrowedFd<'_>) -> Result<()> {
    let of = u32::try_from(of.as_raw_fd()).map_err(|_| Errno::BADF)?;
    // SAFETY: the implementation above is that of this call.
    unsafe { ioctl(device, Clone(of)) }
}

/// Registers a file that the kernel may read and write by itself, and returns its number.
///
/// # Errors
///
/// `EPERM` without CAP_SYS_ADMIN, `ELOOP` for a file of a filesystem that is stacked too deep, `EOPNOTSUPP`, `EMFILE`.
pub fn open_backing(device: impl AsFd, file: BorrowedFd<'_>) -> Result<i32> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the implementation above is that of this call.
    unsafe { ioctl(device, BackingOpen(map)) }
}

/// Lets the kernel forget a file of [`open_backing`]; what is open on it stays.
///
/// # Errors
///
/// `ENOENT` for a number that isn't one, `EPERM` as above.
pub fn close_backing(device: impl AsFd, id: i32) -> Result<()> {
    // SAFETY: the kernel reads 32 bits.
    unsafe { ioctl(device, Setter::<BACKING_CLOSE, i32>::new(id)) }
}

/// Zeroed pages of memory of their own. None is touched, and so none taken, before it is used.
#[derive(Debug)]
pub struct Pages {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: it is memory of its own, reached through `&self` and `&mut self` alone.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `len` bytes, more than none.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and `EINVAL` for none.
    pub fn new(len: usize) -> Result<Pages> {
        // SAFETY: the kernel chooses the place, so nothing that is there is replaced.
        let at = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let at = NonNull::new(at.cast()).ok_or(Errno::NOMEM)?;
        Ok(Pages { at, len })
    }

    /// Returns where they begin, for the kernel.
    pub(super) fn address(&self) -> *mut u8 {
        self.at.as_ptr()
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped there as long as `self` lives, and all bytes are good.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and who has `self` for itself may write.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: they were mapped so, and no reference to them can be left.
        let unmapped = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_numbers_are_the_kernels() {
        // _IOR(229, 0, __u32), _IOW(229, 1, struct fuse_backing_map), _IOW(229, 2, __u32), as the kernel's header has them.
        assert_eq!((CLONE, BACKING_OPEN, BACKING_CLOSE), (0x8004_e500, 0x4010_e501, 0x4004_e502));
    }

    #[test]
    fn pages_are_zero_and_writable() {
        let mut pages = Pages::new(10_000).unwrap();
        assert!(pages.len() == 10_000 && pages.iter().all(|byte| *byte == 0));
        pages[9_999] = 7;
        assert_eq!(pages[9_999], 7);
        assert!(Pages::new(0).is_err());
    }

    #[test]
    fn what_is_no_connection_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(join_connection(&file, file.as_fd()).is_err());
        assert!(open_backing(&file, file.as_fd()).is_err());
        assert!(close_backing(&file, 1).is_err());
    }
}
