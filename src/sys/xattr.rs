//! Extended attributes of an object that is named by directory and name.
//!
//! Linux 6.13 has getxattrat(2) and listxattrat(2) for that; before it only paths and open files do, so the way leads
//! over `/proc/self/fd/DIR/NAME`, which opens nothing and works for symbolic links and O_PATH descriptors too, but costs
//! a walk through procfs, several times what the call itself does. So do descriptors that only hold an object (O_PATH), of which
//! the calls for open files know nothing (`EBADF`).

// No crate has these two calls yet.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs;
use rustix::io::{Errno, Result};

use super::object::{At, by_descriptor};

/// The largest value, and the longest list of names, that Linux knows (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const LARGEST: usize = 65536;

/// Calls with a small buffer, and again with one that is large enough for all.
fn with_buffer(mut call: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut small = [0u8; 512];
    match call(&mut small) {
        Ok(n) => return Ok(small[..n].to_vec()),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    let mut large = vec![0u8; LARGEST];
    let n = call(&mut large)?;
    large.truncate(n);
    Ok(large)
}

/// The numbers of the calls, the same on all architectures.
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;

/// Set once the kernel didn't know them, or a seccomp filter from before them refused.
static NO_XATTRAT: AtomicBool = AtomicBool::new(false);

/// `struct xattr_args` of linux/xattr.h.
#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// Returns what a system call returned, as a length.
fn length(returned: libc::c_long) -> Result<usize> {
    usize::try_from(returned).map_err(|_| {
        // The call failed, so errno is set.
        Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
    })
}

/// Calls getxattrat(2) of an entry that isn't followed, or `None` where there is no such call.
fn get_at(dir: BorrowedFd<'_>, entry: &[u8], name: &[u8]) -> Option<Result<Vec<u8>>> {
    let (entry, name) = (CString::new(entry).ok()?, CString::new(name).ok()?);
    by_call(|buffer| {
        let args = XattrArgs { value: buffer.as_mut_ptr() as u64, size: buffer.len() as u32, flags: 0 };
        // SAFETY: both strings end in NUL and live through the call; `args` describes `buffer`, which is valid for
        // writes of its whole length, and the kernel writes no more than that.
        length(unsafe {
            libc::syscall(
                SYS_GETXATTRAT,
                dir.as_raw_fd(),
                entry.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                name.as_ptr(),
                &raw const args,
                size_of::<XattrArgs>(),
            )
        })
    })
}

/// Calls listxattrat(2) of an entry that isn't followed, or `None` where there is no such call.
fn list_at(dir: BorrowedFd<'_>, entry: &[u8]) -> Option<Result<Vec<u8>>> {
    let entry = CString::new(entry).ok()?;
    by_call(|buffer| {
        // SAFETY: the string ends in NUL and lives through the call; `buffer` is valid for writes of its whole length.
        length(unsafe {
            libc::syscall(
                SYS_LISTXATTRAT,
                dir.as_raw_fd(),
                entry.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        })
    })
}

fn by_call(call: impl FnMut(&mut [u8]) -> Result<usize>) -> Option<Result<Vec<u8>>> {
    if NO_XATTRAT.load(Ordering::Relaxed) {
        return None;
    }
    match with_buffer(call) {
        Err(Errno::NOSYS | Errno::PERM) => {
            NO_XATTRAT.store(true, Ordering::Relaxed);
            None
        }
        done => Some(done),
    }
}

/// Returns the value of the attribute `name`, or `None` where the object has none of that name or the filesystem knows
/// no attributes.
pub fn get(at: At<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let quick = if let At::Name(dir, entry) = at { get_at(dir, entry, name) } else { None };
    let value = quick.unwrap_or_else(|| {
        with_buffer(|buffer| match at {
            At::Name(..) => fs::lgetxattr(&at.proc_path()[..], name, buffer),
            At::Fd(fd) => by_descriptor(
                buffer,
                |buffer| fs::fgetxattr(fd, name, buffer),
                |buffer| fs::getxattr(&at.proc_path()[..], name, buffer),
            ),
        })
    });
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns the names of all attributes that this process may see; empty where the filesystem knows none.
pub fn list(at: At<'_>) -> Result<Vec<Vec<u8>>> {
    let quick = if let At::Name(dir, entry) = at { list_at(dir, entry) } else { None };
    let names = quick.unwrap_or_else(|| {
        with_buffer(|buffer| match at {
            At::Name(..) => fs::llistxattr(&at.proc_path()[..], buffer),
            At::Fd(fd) => by_descriptor(
                buffer,
                |buffer| fs::flistxattr(fd, buffer),
                |buffer| fs::listxattr(&at.proc_path()[..], buffer),
            ),
        })
    });
    match names {
        Ok(names) => Ok(names.split(|&b| b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect()),
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::object::Writable;
    use rustix::fs::XattrFlags;
    use std::os::fd::AsFd;

    #[test]
    fn the_quick_way_and_the_way_over_procfs_tell_the_same() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        std::os::unix::fs::symlink("f", dir.path().join("link")).unwrap();
        let object = Writable::held(file.as_fd());
        match object.set_xattr(b"user.v", b"value", XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => return support::skipped("no extended attributes here"),
            other => other.unwrap(),
        }
        let dir = std::fs::File::open(dir.path()).unwrap();
        let (by_name, link) = (At::Name(dir.as_fd(), b"f"), At::Name(dir.as_fd(), b"link"));
        for _ in 0..2 {
            assert_eq!(get(by_name, b"user.v").unwrap().as_deref(), Some(&b"value"[..]));
            assert_eq!(get(by_name, b"user.w").unwrap(), None);
            assert_eq!(get(link, b"user.v").unwrap_or(None), None, "the link was followed");
            assert_eq!(list(by_name).unwrap(), [b"user.v".to_vec()]);
            assert!(list(link).unwrap().is_empty());
            assert_eq!(get(At::Name(dir.as_fd(), b"none"), b"user.v"), Err(Errno::NOENT));
            if NO_XATTRAT.swap(true, Ordering::Relaxed) {
                break;
            }
        }
        NO_XATTRAT.store(false, Ordering::Relaxed);
    }

    #[test]
    fn values_and_lists_of_every_size_come_whole() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        let at = At::Fd(file.as_fd());
        let object = Writable::held(file.as_fd());
        for size in [0usize, 1, 511, 512, 513, 3000] {
            let value = vec![b'v'; size];
            match object.set_xattr(b"user.v", &value, XattrFlags::empty()) {
                Err(Errno::OPNOTSUPP) => return support::skipped("no extended attributes here"),
                other => other.unwrap(),
            }
            assert_eq!(get(at, b"user.v").unwrap().unwrap(), value);
            let held = at.pin_apart().unwrap();
            assert_eq!(get(At::Fd(held.as_fd()), b"user.v").unwrap().unwrap(), value, "of what is only held");
        }
        object.remove_xattr(b"user.v").unwrap();
        let names: Vec<Vec<u8>> =
            (0..40).map(|i| format!("user.a-rather-long-name-{i:03}").into_bytes()).collect();
        for name in &names {
            object.set_xattr(name, b"", XattrFlags::empty()).unwrap();
        }
        let mut listed = list(at).unwrap();
        listed.sort();
        assert_eq!(listed, names);
    }
}
