//! Mounts of this process's own, that nobody else sees.

// No crate has mount_setattr(2) yet.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::mount::{OpenTreeFlags, open_tree};

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// The number of mount_setattr(2), the same on all architectures.
const SYS_MOUNT_SETATTR: libc::c_long = 442;
/// MOUNT_ATTR_NOATIME, and the bits of all that can be chosen about access times (linux/mount.h).
const NOATIME: u64 = 0x10;
const ATIME: u64 = 0x70;

/// Returns the same directory through a mount of its own, by which reading changes no access times. What is mounted or
/// unmounted elsewhere later doesn't reach it, and nothing that is mounted inside the directory is seen through it.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN over the mount namespace, or where the mount's flags are locked; `EINVAL` where the mount
/// may not be cloned; `ENOSYS` before Linux 5.12.
pub fn without_access_times(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(dir, c"", flags)?;
    let attr = MountAttr { attr_set: NOATIME, attr_clr: ATIME, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    let empty: &CStr = c"";
    // SAFETY: the string ends in NUL, `attr` has the size that is told, and both live through the call.
    let done = unsafe {
        libc::syscall(
            SYS_MOUNT_SETATTR,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 {
        return Ok(tree);
    }
    // The call failed, so errno is set.
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
