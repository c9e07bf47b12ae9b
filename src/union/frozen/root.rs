//! The root of a new upper: it shows the attributes of the merged tree's root, so it has those of the one before.

#![allow(clippy::disallowed_methods, reason = "it is being made, where nobody else is")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, XattrFlags, fsync, mkdirat, openat};
use rustix::io::Errno;

use crate::sys::object::{At, SetTime, Writable};
use crate::sys::xattr;
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::frozen::mark::Head;
use crate::union::frozen::unfit::{Result, SnapshotError};
use crate::union::lookup::private::{LINKS, overlay_mark};

/// Makes an empty directory that has the attributes of `model`, and that mark. `dir` and `path` tell where.
pub(in crate::union) fn make(
    (dir, name, path): (BorrowedFd<'_>, &str, &Path),
    model: BorrowedFd<'_>,
    head: &Head,
) -> Result<OwnedFd> {
    let path = path.join(name);
    mkdirat(dir, name, Mode::RWXU).map_err(SnapshotError::io("make it", &path))?;
    failpoint::reached(Failpoint::Changed);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(dir, name, flags, Mode::empty()).map_err(SnapshotError::io("open it", &path))?;
    head.write(made.as_fd()).map_err(|errno| match errno {
        Errno::OPNOTSUPP | Errno::PERM => SnapshotError::refused(
            &path,
            "its filesystem holds no extended attributes, without which nothing says what an upper lies on",
        ),
        errno => SnapshotError::io("mark it", &path)(errno),
    })?;
    be_like(made.as_fd(), model).map_err(SnapshotError::io("give it the attributes of the root", &path))?;
    fsync(&made).map_err(SnapshotError::io("sync it", &path))?;
    failpoint::reached(Failpoint::Changed);
    Ok(made)
}

/// Gives a new root the attributes of another.
pub(in crate::union) fn be_like(made: BorrowedFd<'_>, model: BorrowedFd<'_>) -> rustix::io::Result<()> {
    be_like_but(made, model, is_kept)
}

/// Gives a new directory the attributes of another; of the extended ones those that `is_kept`.
pub(in crate::union) fn be_like_but(
    made: BorrowedFd<'_>,
    model: BorrowedFd<'_>,
    is_kept: impl Fn(&[u8]) -> bool,
) -> rustix::io::Result<()> {
    let (object, model) = (Writable::held(made), At::Fd(model));
    let (stat, own) = (model.stat()?, object.at().stat()?);
    if (stat.uid, stat.gid) != (own.uid, own.gid) {
        object.chown(Some(stat.uid), Some(stat.gid))?;
    }
    for name in xattr::list(model)? {
        if !is_kept(&name) {
            continue;
        }
        let Some(value) = xattr::get(model, &name)? else { continue };
        match object.set_xattr(&name, &value, XattrFlags::empty()) {
            // Labels and the like say how the filesystem keeps a directory.
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL)
                if overlay_mark(&name).is_none()
                    && !name.starts_with(b"user.")
                    && !name.starts_with(b"system.posix_acl_") => {}
            set => set?,
        }
    }
    // After an ACL, whose mask it holds.
    object.chmod(stat.mode & 0o7777)?;
    object.utimens(Some(SetTime::At(stat.atime)), Some(SetTime::At(stat.mtime)))
}

/// Tells whether the attribute is the directory's own, and not an overlay's mark about what is in it.
fn is_kept(name: &[u8]) -> bool {
    match overlay_mark(name) {
        Some(mark) => mark.starts_with(b"overlay."), // an ordinary attribute of a nested upper
        None => name != LINKS && !matches!(name, b"user.fuseoverlayfs.opaque" | b"user.fuseoverlayfs.origin"),
    }
}
