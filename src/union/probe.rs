//! What the filesystem of an upper can do, found out by trying it in the staging directory.
//!
//! Tables of filesystem types go stale, and mount options, user namespaces and security modules change the answer; a
//! try does not lie. Each probe removes what it made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags, fremovexattr, fsetxattr, ioctl_ficlone,
    linkat, mknodat, openat, renameat_with, unlinkat,
};
use rustix::io::Errno;

use super::marker::Namespace;

/// The form in which a whiteout is kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhiteoutForm {
    /// A character device 0:0, as the kernel's overlayfs makes.
    CharDev,
    /// An empty file `.wh.NAME`, and `.wh..wh..opq` for an opaque directory.
    Aufs,
}

/// What can be done on an upper's filesystem by this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpperCaps {
    /// Where overlay marks are kept.
    pub namespace: Namespace,
    /// Marks can be kept as extended attributes of `namespace` at all. Without, `whiteout` is [`WhiteoutForm::Aufs`],
    /// as that form marks opaque directories by a file, and redirects cannot be kept.
    pub xattr: bool,
    /// How deletions are kept.
    pub whiteout: WhiteoutForm,
    /// renameat2 with RENAME_WHITEOUT.
    pub rename_whiteout: bool,
    /// renameat2 with RENAME_EXCHANGE.
    pub rename_exchange: bool,
    /// O_TMPFILE, and linking such a file by /proc/self/fd.
    pub tmpfile: bool,
    /// FICLONE.
    pub reflink: bool,
    /// `trusted.*` attributes can be set: CAP_SYS_ADMIN in the initial user namespace.
    pub privileged: bool,
}

/// Tries everything in `staging`. `None` when the filesystem can hold no markers of any kind.
///
/// `user_only` keeps marks in `user.overlay.` even where `trusted.overlay.` could be set (mount option `userxattr`).
pub(super) fn probe(staging: BorrowedFd<'_>, user_only: bool) -> Result<Option<UpperCaps>, Errno> {
    let trusted = xattr(staging, Namespace::Trusted)?;
    let user = xattr(staging, Namespace::User)?;
    let namespace = if trusted && !user_only { Namespace::Trusted } else { Namespace::User };
    let xattr = if namespace == Namespace::Trusted { trusted } else { user };
    let char_dev = char_dev(staging)?;
    let whiteout = if xattr && char_dev { WhiteoutForm::CharDev } else { WhiteoutForm::Aufs };
    // Neither one nor the other is a filesystem without marks; and a union mount, as upper of another, refuses both
    // forms of whiteouts to its users.
    if !xattr && !char_dev || whiteout == WhiteoutForm::Aufs && !aufs(staging)? {
        return Ok(None);
    }
    Ok(Some(UpperCaps {
        namespace,
        xattr,
        whiteout,
        rename_whiteout: rename_whiteout(staging)?,
        rename_exchange: rename_exchange(staging)?,
        tmpfile: tmpfile(staging)?,
        reflink: reflink(staging)?,
        privileged: trusted,
    }))
}

/// A refusal is an answer; a full or broken disk is not.
fn answer(result: Result<(), Errno>) -> Result<bool, Errno> {
    match result {
        Ok(()) => Ok(true),
        Err(
            errno @ (Errno::NOSPC
            | Errno::DQUOT
            | Errno::IO
            | Errno::ROFS
            | Errno::MFILE
            | Errno::NFILE
            | Errno::NOMEM),
        ) => Err(errno),
        Err(_) => Ok(false),
    }
}

fn xattr(staging: BorrowedFd<'_>, namespace: Namespace) -> Result<bool, Errno> {
    let name = namespace.name("probe");
    let can = answer(fsetxattr(staging, name.as_str(), b"y", XattrFlags::empty()))?;
    if can {
        fremovexattr(staging, name.as_str())?;
    }
    Ok(can)
}

fn remove(staging: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match unlinkat(staging, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn file(staging: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(staging, name, flags, Mode::RUSR | Mode::WUSR)
}

fn char_dev(staging: BorrowedFd<'_>) -> Result<bool, Errno> {
    const NAME: &str = "probe-whiteout";
    let can = answer(mknodat(staging, NAME, FileType::CharacterDevice, Mode::empty(), 0))?;
    remove(staging, NAME)?;
    Ok(can)
}

fn aufs(staging: BorrowedFd<'_>) -> Result<bool, Errno> {
    const NAME: &str = ".wh.probe";
    let can = answer(file(staging, NAME).map(drop))?;
    remove(staging, NAME)?;
    Ok(can)
}

fn rename_whiteout(staging: BorrowedFd<'_>) -> Result<bool, Errno> {
    let (from, to) = ("probe-from", "probe-to");
    drop(file(staging, from)?);
    let can = answer(renameat_with(staging, from, staging, to, RenameFlags::WHITEOUT))?;
    remove(staging, from)?;
    remove(staging, to)?;
    Ok(can)
}

fn rename_exchange(staging: BorrowedFd<'_>) -> Result<bool, Errno> {
    let (one, other) = ("probe-one", "probe-other");
    drop(file(staging, one)?);
    drop(file(staging, other)?);
    let can = answer(renameat_with(staging, one, staging, other, RenameFlags::EXCHANGE))?;
    remove(staging, one)?;
    remove(staging, other)?;
    Ok(can)
}

fn tmpfile(staging: BorrowedFd<'_>) -> Result<bool, Errno> {
    const NAME: &str = "probe-tmpfile";
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let can = answer(openat(staging, c".", flags, Mode::RUSR | Mode::WUSR).and_then(|fd| {
        use std::os::fd::AsRawFd;
        let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        linkat(CWD, link, staging, NAME, AtFlags::SYMLINK_FOLLOW)
    }))?;
    remove(staging, NAME)?;
    Ok(can)
}

fn reflink(staging: BorrowedFd<'_>) -> Result<bool, Errno> {
    let (from, to) = ("probe-clone-of", "probe-clone");
    let source = file(staging, from)?;
    let target = file(staging, to)?;
    // An empty file will do: a filesystem without FICLONE refuses before it looks at the length.
    let can = answer(ioctl_ficlone(&target, &source))?;
    remove(staging, from)?;
    remove(staging, to)?;
    Ok(can)
}
