//! What the filesystem of an upper can do, found out by trying it in the staging directory.
//!
//! Tables of filesystem types go stale, and mount options, user namespaces and security modules change the answer; a
//! try does not lie. Each probe removes what it made.

#![allow(clippy::disallowed_methods, reason = "the workdir is its own")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, StatxFlags, XattrFlags, chmodat, chownat,
    fremovexattr, fsetxattr, ioctl_ficlone, linkat, mkdirat, mknodat, openat, renameat, renameat_with,
    statat, statx, unlinkat,
};
use rustix::io::Errno;
use rustix::process::getegid;

use crate::union::lookup::private::Namespace;

/// The form in which a whiteout is kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum WhiteoutForm {
    /// A character device 0:0, as the kernel's overlayfs makes.
    CharDev,
    /// An empty file `.wh.NAME`, and `.wh..wh..opq` for an opaque directory.
    Aufs,
}

/// What can be done on an upper's filesystem by this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// renameat2 with RENAME_NOREPLACE.
    pub rename_noreplace: bool,
    /// O_TMPFILE, and linking such a file by /proc/self/fd.
    pub tmpfile: bool,
    /// What is made in a directory with set-group-id gets its group, by the filesystem itself.
    pub inherits_group: bool,
    /// FICLONE.
    pub reflink: bool,
    /// `trusted.*` attributes can be set: CAP_SYS_ADMIN in the initial user namespace.
    pub privileged: bool,
}

/// Why a filesystem can't be an upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::union) enum Unfit {
    /// It can hold no markers of any kind.
    NoMarkers,
    /// An object's inode number isn't its own: it changes with the name.
    NumbersChange,
    /// It has neither the flags of renameat2 nor names that begin with `.wh.`, so nothing could be replaced unseen.
    NoSteps,
}

/// Tries everything in `staging`, and tells why the filesystem is unfit, if it is.
///
/// `user_only` keeps marks in `user.overlay.` even where `trusted.overlay.` could be set (mount option `userxattr`).
pub(in crate::union) fn probe(
    staging: BorrowedFd<'_>,
    user_only: bool,
) -> Result<Result<UpperCaps, Unfit>, Errno> {
    let trusted = xattr(staging, Namespace::Trusted)?;
    let user = xattr(staging, Namespace::User)?;
    let namespace = if trusted && !user_only { Namespace::Trusted } else { Namespace::User };
    let xattr = if namespace == Namespace::Trusted { trusted } else { user };
    let char_dev = char_dev(staging)?;
    let whiteout = if xattr && char_dev { WhiteoutForm::CharDev } else { WhiteoutForm::Aufs };
    let aufs = aufs(staging)?;
    // A union mount, as upper of another, refuses both forms of whiteouts to its users.
    if whiteout == WhiteoutForm::Aufs && !aufs {
        return Ok(Err(Unfit::NoMarkers));
    }
    if !numbers_last(staging)? {
        return Ok(Err(Unfit::NumbersChange));
    }
    let caps = UpperCaps {
        namespace,
        xattr,
        whiteout,
        rename_whiteout: rename(staging, RenameFlags::WHITEOUT, false)?,
        rename_exchange: rename(staging, RenameFlags::EXCHANGE, true)?,
        rename_noreplace: rename(staging, RenameFlags::NOREPLACE, false)?,
        tmpfile: tmpfile(staging)?,
        inherits_group: inherits_group(staging)?,
        reflink: reflink(staging)?,
        privileged: trusted,
    };
    Ok(if caps.replaces_in_one_step() || aufs { Ok(caps) } else { Err(Unfit::NoSteps) })
}

impl UpperCaps {
    /// Tells whether whatever a change needs can be done by one renameat2. Else [`crate::union::change::stepwise`] does
    /// it.
    pub(in crate::union) fn replaces_in_one_step(&self) -> bool {
        self.rename_exchange && (self.rename_whiteout || self.whiteout == WhiteoutForm::Aufs)
    }
}

/// Takes a refusal for an answer, and a full or broken disk for none.
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

/// Tells whether renameat2 knows the flag. `target`: it needs something under the new name.
fn rename(staging: BorrowedFd<'_>, flag: RenameFlags, target: bool) -> Result<bool, Errno> {
    let (from, to) = ("probe-from", "probe-to");
    drop(file(staging, from)?);
    if target {
        drop(file(staging, to)?);
    }
    let can = answer(renameat_with(staging, from, staging, to, flag))?;
    remove(staging, from)?;
    remove(staging, to)?;
    Ok(can)
}

/// Tells whether the inode number of an object is the same under another name, and after a rename. Unions and others
/// that are made with libfuse may number names, not objects; then a file would be taken for another one.
fn numbers_last(staging: BorrowedFd<'_>) -> Result<bool, Errno> {
    let (one, other, renamed) = ("probe-number", "probe-number-link", "probe-number-renamed");
    let number = |name: &str| {
        // Asks the filesystem, whatever the kernel remembers of an earlier answer.
        let ask = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
        statx(staging, name, ask, StatxFlags::INO).map(|found| found.stx_ino)
    };
    drop(file(staging, one)?);
    let first = number(one)?;
    let mut same = match linkat(staging, one, staging, other, AtFlags::empty()) {
        Ok(()) => number(other)? == first,
        Err(_) => true, // without hard links each has one name
    };
    renameat(staging, one, staging, renamed)?;
    same &= number(renamed)? == first;
    remove(staging, other)?;
    remove(staging, renamed)?;
    mkdirat(staging, one, Mode::RWXU)?;
    let first = number(one)?;
    renameat(staging, one, staging, renamed)?;
    same &= number(renamed)? == first;
    unlinkat(staging, renamed, AtFlags::REMOVEDIR)?;
    Ok(same)
}

/// Tells whether what is made gets the group of its directory, if that has set-group-id. Where no other group can be
/// given to try it, the answer is the usual one.
fn inherits_group(staging: BorrowedFd<'_>) -> Result<bool, Errno> {
    // A directory, not a file: a FUSE filesystem that is told of a file's close too late keeps it under a hidden name, and
    // the directory that holds it couldn't be removed.
    let (dir, name) = ("probe-group", "probe-group/inside");
    mkdirat(staging, dir, Mode::RWXU)?;
    let other = Gid::from_raw(getegid().as_raw() ^ 1);
    let mode = Mode::RWXU | Mode::SGID;
    let given = chownat(staging, dir, None, Some(other), AtFlags::SYMLINK_NOFOLLOW)
        .and_then(|()| chmodat(staging, dir, mode, AtFlags::empty()));
    let inherits = if answer(given)? {
        mkdirat(staging, name, Mode::RWXU)?;
        let made = statat(staging, name, AtFlags::SYMLINK_NOFOLLOW)?;
        unlinkat(staging, name, AtFlags::REMOVEDIR)?;
        made.st_gid == other.as_raw()
    } else {
        true
    };
    unlinkat(staging, dir, AtFlags::REMOVEDIR)?;
    Ok(inherits)
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
