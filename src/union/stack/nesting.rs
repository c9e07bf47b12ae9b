//! Which directories may not lie inside one another.
//!
//! A lower may hold the others: what is to be done about them there is told (see [`crate::union::lookup::veil`]). All else is refused: an
//! upper or a workdir that holds another of the mount's directories would show it as part of the merged tree and change it.
//!
//! Paths cannot tell (symlinks, `..`, bind mounts), so each directory is walked upward with `openat("..")` to the root
//! and each ancestor is compared by device and inode number. The walk crosses mount points, as a lookup inside a layer
//! may do too. What it cannot see is a bind mount of a layer's subdirectory elsewhere: above that mount lies another
//! tree.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;

use crate::union::stack::stack_error::{Role, StackError};

/// What tells one directory from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::union) struct DirId {
    /// Device number, in the encoding of `st_dev`.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// A directory's identity and the mount through which it was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::union) struct Location {
    pub id: DirId,
    /// The kernel's mount id; 0 before Linux 5.8.
    pub mount: u64,
    /// It is the root of its mount (never set before Linux 5.8).
    pub mount_root: bool,
}

/// Returns where an open directory is. Asks no FUSE daemon that may stand behind it.
pub(in crate::union) fn locate(fd: BorrowedFd<'_>) -> Result<Location, Errno> {
    let st = statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
        StatxFlags::INO | StatxFlags::TYPE | StatxFlags::MNT_ID,
    )?;
    let mount_root = rustix::fs::StatxAttributes::MOUNT_ROOT;
    Ok(Location {
        id: DirId { dev: rustix::fs::makedev(st.stx_dev_major, st.stx_dev_minor), ino: st.stx_ino },
        mount: if st.stx_mask & StatxFlags::MNT_ID.bits() != 0 { st.stx_mnt_id } else { 0 },
        mount_root: st.stx_attributes.contains(mount_root),
    })
}

/// A directory of the mount and its part in it.
pub(in crate::union) struct Member<'a> {
    pub role: Role,
    pub path: &'a Path,
    pub id: DirId,
    pub fd: BorrowedFd<'a>,
}

/// A directory of the mount that lies in a lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::union) struct HeldDirs {
    /// The lower.
    pub by: Role,
    /// The part of the directory in it.
    pub role: Role,
    pub id: DirId,
}

/// Refuses a directory that is given twice or lies inside another where it must not, and tells which lie in a lower.
pub(in crate::union) fn check(members: &[Member<'_>]) -> Result<Vec<HeldDirs>, StackError> {
    let mut held = Vec::new();
    let mut by_id: HashMap<DirId, &Member<'_>> = HashMap::with_capacity(members.len());
    for member in members {
        if member.role == Role::MountPoint && by_id.get(&member.id).is_some_and(|first| may_cover(first.role))
        {
            continue;
        }
        if let Some(first) = by_id.insert(member.id, member) {
            return Err(StackError::Same {
                first: first.role,
                first_path: first.path.to_owned(),
                second: member.role,
                second_path: member.path.to_owned(),
            });
        }
    }
    for inner in members {
        for ancestor in Ancestors::of(inner.fd) {
            let ancestor = ancestor.map_err(|errno| StackError::Open {
                role: inner.role,
                path: inner.path.to_owned(),
                errno,
            })?;
            let Some(outer) = by_id.get(&ancestor) else { continue };
            // Of two lowers, which are only read, the inner one is merely seen twice.
            if is_lower(outer.role) && !is_lower(inner.role) {
                held.push(HeldDirs { by: outer.role, role: inner.role, id: inner.id });
            }
            if may_not_hold(outer.role, inner.role) {
                return Err(StackError::Nested {
                    inner: inner.role,
                    inner_path: inner.path.to_owned(),
                    outer: outer.role,
                    outer_path: outer.path.to_owned(),
                });
            }
        }
    }
    Ok(held)
}

/// Tells whether a directory lies in another, at any depth.
///
/// # Errors
/// Those of openat(2) and statx(2).
pub(in crate::union) fn lies_in(inner: BorrowedFd<'_>, outer: DirId) -> Result<bool, Errno> {
    for ancestor in Ancestors::of(inner) {
        if ancestor? == outer {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_lower(role: Role) -> bool {
    matches!(role, Role::Lower(_))
}

/// Tells whether the merged tree may be mounted right on a directory in that role. A lower is reached by a descriptor
/// that was opened before, so the mount is not in its way. The upper and its workdir are reached by their paths by the
/// next mount, which would wait for this one.
fn may_cover(role: Role) -> bool {
    is_lower(role)
}

/// Tells whether a directory in the role `inner` must not lie inside one in the role `outer`.
fn may_not_hold(outer: Role, inner: Role) -> bool {
    match (outer, inner) {
        // Told of, and veiled.
        (Role::Lower(_), _) => false,
        // The layers are held open before the mount covers them.
        (Role::MountPoint, _) => false,
        _ => true,
    }
}

/// The identities of a directory's ancestors, nearest first.
struct Ancestors {
    at: Option<OwnedFd>,
    here: Option<Location>,
    start: Option<Errno>,
}

impl Ancestors {
    fn of(dir: BorrowedFd<'_>) -> Ancestors {
        match locate(dir).and_then(|here| Ok((here, dir.try_clone_to_owned().map_err(errno_of)?))) {
            Ok((here, at)) => Ancestors { at: Some(at), here: Some(here), start: None },
            Err(errno) => Ancestors { at: None, here: None, start: Some(errno) },
        }
    }

    fn up(&mut self) -> Result<Option<DirId>, Errno> {
        let (Some(at), Some(here)) = (self.at.take(), self.here) else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = match openat(&at, c"..", flags, Mode::empty()) {
            Ok(parent) => parent,
            // Without the right to search this directory, no path that this process can use leads through it from a
            // layer above.
            Err(Errno::ACCESS) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let there = locate(parent.as_fd())?;
        if there.id == here.id && there.mount == here.mount {
            return Ok(None); // the root is its own parent
        }
        self.at = Some(parent);
        self.here = Some(there);
        Ok(Some(there.id))
    }
}

impl Iterator for Ancestors {
    type Item = Result<DirId, Errno>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(errno) = self.start.take() {
            return Some(Err(errno));
        }
        self.up().transpose()
    }
}

pub(in crate::union) fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
