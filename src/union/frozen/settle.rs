//! The hardlink index after an upper was exchanged.

#![allow(clippy::disallowed_methods, reason = "the workdir is its own")]

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, fsync, openat, symlinkat};
use rustix::io::Errno;

use crate::sys::handle;
use crate::sys::object::At;
use crate::sys::remove;
use crate::sys::xattr;
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::frozen::below::Below;
use crate::union::frozen::mark::{OF_INDEX, set, values};
use crate::union::frozen::unfit::{Result, SnapshotError};
use crate::union::stack::workdir::{KERNEL_INDEX, Workdir};

/// Makes the index of a workdir that of an upper, unless it is. What it held are links of another upper's files, which is frozen
/// or gone.
///
/// # Errors
/// Those of changing the workdir.
pub fn index(work: &Workdir, upper: BorrowedFd<'_>, below: &Below) -> Result<()> {
    let io = |what| SnapshotError::io(what, &work.path);
    let token = below.head.token.as_bytes();
    // No token comes back, so an old one beside it says nothing.
    let has = values(work.index.as_fd(), OF_INDEX).map_err(io("read whose hardlink index it has"))?;
    if has.iter().any(|has| has == token) {
        return Ok(());
    }
    remove::empty(work.index.as_fd(), &[])
        .map_err(|left| io("empty the hardlink index in it")(left.errno))?;
    failpoint::reached(Failpoint::Changed);
    if !is_kernels_own(work, upper)? {
        remove::entry(work.root.as_fd(), KERNEL_INDEX.as_bytes())
            .map_err(io("remove the kernel's hardlink index in it"))?;
        failpoint::reached(Failpoint::Changed);
    }
    for (file, count) in &below.hidden {
        match symlinkat(format!("{count}:0"), &work.index, format!("{file}.hidden")) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io("write to the hardlink index in it")(errno)),
        }
        failpoint::reached(Failpoint::Changed);
    }
    set(work.index.as_fd(), OF_INDEX, token).map_err(io("mark the hardlink index in it"))?;
    // Before anything is in the index: one without this mark is taken for another upper's, and emptied.
    fsync(&work.index).map_err(io("write the mark of the hardlink index in it to the disk"))
}

/// Tells whether the kernel's index was made by the kernel itself for this very upper.
fn is_kernels_own(work: &Workdir, upper: BorrowedFd<'_>) -> Result<bool> {
    /// Head and UUID, before the file handle.
    const BEFORE: usize = 21;
    let io = |what| SnapshotError::io(what, &work.path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let index = match openat(&work.root, KERNEL_INDEX, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(false),
        // One without rights, as the kernel and this program make it, of an ordinary user.
        Err(Errno::ACCESS) => return Ok(false),
        opened => opened.map_err(io("open the kernel's hardlink index in it"))?,
    };
    let marked = xattr::get(At::Fd(index.as_fd()), b"trusted.overlay.upper");
    let marked = marked.map_err(io("read the marks of the kernel's hardlink index in it"))?;
    let handle = handle::of(At::Fd(upper)).map_err(io("tell the handle of the upper of"))?;
    Ok(marked.zip(handle).is_some_and(|(marked, handle)| marked.get(BEFORE..) == Some(&handle.id[..])))
}
