//! File handles: what names an inode without a path, and the same after a remount.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};

use super::object::At;

/// MAX_HANDLE_SZ of linux/exportfs.h.
const MAX_HANDLE: usize = 128;
/// FS_IOC_GETFSUUID of linux/fs.h: `_IOR(0x15, 0, struct fsuuid2 { u8 len; u8 uuid[16]; })`.
const GET_FS_UUID: u32 = 0x8011_1500;

/// An inode's handle: what the filesystem calls it (`exportfs`), as name_to_handle_at(2) tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHandle {
    /// Which form `id` has (`enum fid_type`).
    pub kind: u8,
    /// The filesystem's own words.
    pub id: Vec<u8>,
}

/// `struct file_handle`, with room for the largest.
#[repr(C, align(8))]
struct RawHandle {
    bytes: u32,
    kind: i32,
    id: [u8; MAX_HANDLE],
}

/// Returns the handle of an object. `None` where the filesystem has none.
///
/// # Errors
/// Those of name_to_handle_at(2).
pub fn of(at: At<'_>) -> Result<Option<FileHandle>> {
    let (dir, path, flags) = match at {
        At::Fd(fd) => (fd, CString::default(), libc::AT_EMPTY_PATH),
        At::Name(dir, name) => (dir, CString::new(name).map_err(|_| Errno::INVAL)?, 0),
    };
    let mut raw = RawHandle { bytes: MAX_HANDLE as u32, kind: 0, id: [0; MAX_HANDLE] };
    let mut mount: libc::c_int = 0;
    // SAFETY: `raw` is laid out as struct file_handle with `bytes` bytes of room behind its head, and the path ends in
    // NUL and lives through the call; the kernel writes within `raw` and `mount` and keeps nothing.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_raw_fd(),
            path.as_ptr(),
            &raw mut raw,
            &raw mut mount,
            flags,
        )
    };
    if done != 0 {
        return match Errno::from_io_error(&std::io::Error::last_os_error()) {
            Some(Errno::OPNOTSUPP | Errno::OVERFLOW) => Ok(None),
            errno => Err(errno.unwrap_or(Errno::IO)),
        };
    }
    let Ok(kind) = u8::try_from(raw.kind) else { return Ok(None) };
    let id = raw.id.get(..raw.bytes as usize).ok_or(Errno::OVERFLOW)?.to_vec();
    Ok(Some(FileHandle { kind, id }))
}

/// Opens (O_PATH) the inode of a handle in the filesystem of `mount`. `None`: it is gone, or this process may not ask
/// (CAP_DAC_READ_SEARCH in the initial user namespace).
///
/// # Errors
/// Those of open_by_handle_at(2).
pub fn open(mount: BorrowedFd<'_>, handle: &FileHandle) -> Result<Option<OwnedFd>> {
    let mut raw =
        RawHandle { bytes: handle.id.len() as u32, kind: i32::from(handle.kind), id: [0; MAX_HANDLE] };
    raw.id.get_mut(..handle.id.len()).ok_or(Errno::INVAL)?.copy_from_slice(&handle.id);
    // open_by_handle_at takes no O_PATH descriptor to name the mount.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = rustix::fs::openat(mount, ".", flags, rustix::fs::Mode::empty())?;
    let flags = (OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC).bits() as libc::c_int;
    // SAFETY: as above; the kernel only reads `raw`.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut raw, flags) };
    if fd < 0 {
        return match Errno::from_io_error(&std::io::Error::last_os_error()) {
            Some(Errno::STALE | Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
            errno => Err(errno.unwrap_or(Errno::IO)),
        };
    }
    let number = libc::c_int::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel made the descriptor just now, and nothing else knows of it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// Returns the UUID of the filesystem that holds a directory, as the kernel knows it (Linux 6.9). `None` where it tells
/// none.
pub fn filesystem_uuid(dir: BorrowedFd<'_>) -> Option<[u8; 16]> {
    #[repr(C)]
    struct FsUuid {
        len: u8,
        uuid: [u8; 16],
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, ".", flags, rustix::fs::Mode::empty()).ok()?;
    let mut answer = FsUuid { len: 0, uuid: [0; 16] };
    // SAFETY: FS_IOC_GETFSUUID writes one struct fsuuid2, which is what `answer` is.
    let done =
        unsafe { libc::ioctl(dir.as_raw_fd(), libc::c_ulong::from(GET_FS_UUID) as _, &raw mut answer) };
    (done == 0 && answer.len == 16).then_some(answer.uuid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_handle_leads_back_to_its_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        let root = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let at = At::Name(root.as_fd(), b"f");
        let Some(handle) = of(at).unwrap() else {
            support::skipped("no file handles on this filesystem");
            return;
        };
        let Some(fd) = open(root.as_fd(), &handle).unwrap() else {
            support::skipped("not allowed to open by handle");
            return;
        };
        let (found, expected) = (At::Fd(fd.as_fd()).stat().unwrap(), at.stat().unwrap());
        assert_eq!((found.dev, found.ino), (expected.dev, expected.ino));
        std::fs::remove_file(dir.path().join("f")).unwrap();
        drop(fd);
        assert!(open(root.as_fd(), &handle).unwrap().is_none(), "the inode is gone");
    }
}
