//! Small files that are whole whenever the power fails.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fsync, openat, renameat};

/// Writes `file` in `dir` so that it has the old content or the new one, on the disk. Nobody else may write in `dir`, and nobody
/// at the same time the same file.
///
/// # Errors
/// Those of writing and of rename(2).
pub fn write_durably(dir: &Path, file: &Path, content: &[u8]) -> Result<()> {
    let name = file.file_name().ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
    write_durably_in(File::open(dir)?.as_fd(), name, content)
}

/// Does the same in an open directory, wherever that lies by now.
///
/// # Errors
/// Those of writing and of rename(2).
pub fn write_durably_in(dir: BorrowedFd<'_>, name: &OsStr, content: &[u8]) -> Result<()> {
    let new = OsString::from(Path::new(name).with_extension("new"));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut writing = File::from(openat(dir, &new, flags, Mode::RUSR | Mode::WUSR)?);
    writing.write_all(content)?;
    writing.sync_all()?;
    #[expect(clippy::disallowed_methods, reason = "the directory is its own")]
    renameat(dir, &new, dir, name)?;
    Ok(fsync(dir)?)
}
