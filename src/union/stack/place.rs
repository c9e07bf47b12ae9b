//! Where an open directory lies, by what the kernel knows of it.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, readlinkat, statat};

use crate::union::stack::nesting::locate;

/// Returns the open parent of a directory, and its name there; from the kernel, not from the path, which may end in
/// `..` or in a symlink.
pub(in crate::union) fn parent_and_name(
    dir: BorrowedFd<'_>,
    path: &Path,
) -> Result<(OwnedFd, OsString), &'static str> {
    let unknown = "its name cannot be found out";
    let here = locate(dir).map_err(|_| unknown)?;
    if here.mount_root {
        return Err("it is the root of a mount");
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = openat(dir, c"..", flags, Mode::empty())
        .map_err(|_| "the directory that holds it cannot be opened")?;
    let real = readlinkat(rustix::fs::CWD, format!("/proc/self/fd/{}", dir.as_raw_fd()), Vec::new())
        .map(|link| PathBuf::from(OsString::from_vec(link.into_bytes())))
        .unwrap_or_else(|_| path.to_owned()); // no /proc: the path as given will mostly do, and is checked below
    let name = real.file_name().ok_or(unknown)?;
    let found = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| unknown)?;
    if (found.st_dev, found.st_ino) != (here.id.dev, here.id.ino) {
        return Err(unknown);
    }
    Ok((parent, name.to_owned()))
}
