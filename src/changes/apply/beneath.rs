//! Acting beneath a directory that may be somebody else's: directories are opened without following links, and held against
//! the plan.

#![allow(
    clippy::disallowed_methods,
    reason = "what is moved is held against the plan before, here, and afterwards by who called"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{ApplyError, Result};
use crate::image::layer::place::{open_dir, split};
use crate::sys::object::{At, Kind, Stat, Time};
use crate::union::escaped_path::EscapedPath;

/// An object of the target as the plan saw it. Device numbers are not part of it: they can be others after a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    ino: u64,
    born: Option<(i64, u32)>,
    kind: u32,
    /// When it last changed. Not of directories, which change with what is in them, nor of files with several names.
    changed: Option<(i64, u32)>,
    /// When its content last changed, which a rename leaves. Not of directories.
    #[serde(default)]
    written: Option<(i64, u32)>,
}

impl Seen {
    /// Tells it by its stat.
    pub fn of(stat: &Stat) -> Seen {
        let pair = |time: Time| (time.sec, time.nsec);
        let steady = stat.kind() != Kind::Directory && stat.nlink < 2;
        Seen {
            ino: stat.ino,
            born: stat.born.map(pair),
            kind: stat.kind().mode_bits(),
            changed: steady.then(|| pair(stat.ctime)),
            written: (stat.kind() != Kind::Directory).then(|| pair(stat.mtime)),
        }
    }

    /// Returns whether that is the same object.
    pub fn is_same(&self, stat: &Stat) -> bool {
        let now = Seen::of(stat);
        (self.ino, self.born, self.kind) == (now.ino, now.born, now.kind)
    }

    /// Returns whether that is the same object, and unchanged as far as can be told.
    pub fn is_unchanged(&self, stat: &Stat) -> bool {
        let now = Seen::of(stat).changed;
        self.is_unwritten(stat) && self.changed.zip(now).is_none_or(|(then, now)| then == now)
    }

    /// Returns whether that is the same object, and has the content that it had. It may have come to another place.
    pub fn is_unwritten(&self, stat: &Stat) -> bool {
        let now = Seen::of(stat).written;
        self.is_same(stat) && self.written.zip(now).is_none_or(|(then, now)| then == now)
    }
}

/// A directory of the target, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dir {
    /// Relative to the target.
    pub path: EscapedPath,
    /// As the plan saw it.
    pub seen: Seen,
}

impl Dir {
    /// Opens it, if it is still the one of the plan.
    ///
    /// # Errors
    /// [`ApplyError::Changed`] where it is another, and those of opening it.
    pub fn open(&self, target: BorrowedFd<'_>) -> Result<OwnedFd> {
        let path = &self.path.0;
        let changed = || ApplyError::Changed(path.clone());
        let dir = find_dir(target, path)?.ok_or_else(changed)?;
        let stat = At::Fd(dir.as_fd()).stat().map_err(ApplyError::at(path, "look at it"))?;
        if self.seen.is_same(&stat) { Ok(dir) } else { Err(changed()) }
    }
}

/// Opens a directory beneath another; `None`: there is none of that path.
///
/// # Errors
/// Those of opening it: what can't be looked at isn't missing.
pub fn find_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<OwnedFd>> {
    match open_dir(root, path) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
        Err(errno) => Err(ApplyError::at(path, "open it")(errno)),
    }
}

/// Returns what has a name; `None`: nothing, as nothing has one that is too long for the filesystem.
///
/// # Errors
/// Those of stat.
pub fn look(dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Option<Stat>> {
    match At::Name(dir, name).stat() {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
        Err(errno) => Err(ApplyError::at(path, "look at it")(errno)),
    }
}

/// Returns the last name of a path.
pub fn name_of(path: &[u8]) -> &[u8] {
    split(path).1
}

/// Moves an entry of the target into the stage, under a name that is free there. What was moved is to be held against the plan
/// then: its owner may have put another there in between.
///
/// # Errors
/// [`ApplyError::Changed`] where it is another already.
pub fn take(dir: BorrowedFd<'_>, path: &[u8], seen: &Seen, stage: BorrowedFd<'_>, to: &str) -> Result<()> {
    as_planned(dir, path, seen)?;
    rename_new(dir, name_of(path), stage, to.as_bytes()).map_err(|errno| match errno {
        Errno::NOENT => ApplyError::Changed(path.to_vec()),
        errno => ApplyError::at(path, "move it away")(errno),
    })
}

/// Holds what has a name against the plan, before it is moved.
fn as_planned(dir: BorrowedFd<'_>, path: &[u8], seen: &Seen) -> Result<()> {
    match look(dir, name_of(path), path)? {
        Some(found) if seen.is_unchanged(&found) => Ok(()),
        _ => Err(ApplyError::Changed(path.to_vec())),
    }
}

/// Moves an object of the stage to a name of the target that must be free.
///
/// # Errors
/// [`ApplyError::Changed`] where it isn't.
pub fn put_new(stage: BorrowedFd<'_>, from: &str, dir: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
    rename_new(stage, from.as_bytes(), dir, name_of(path)).map_err(|errno| match errno {
        Errno::EXIST | Errno::NOTEMPTY => ApplyError::Changed(path.to_vec()),
        errno => ApplyError::at(path, "put it there")(errno),
    })
}

/// Puts an object of the stage in the place of `seen`, in one step; what was there is in the stage then, under the same
/// name, and is to be held against the plan. False where the filesystem can't exchange.
///
/// # Errors
/// [`ApplyError::Changed`] where something else is there already.
pub fn exchange(
    stage: BorrowedFd<'_>,
    from: &str,
    dir: BorrowedFd<'_>,
    path: &[u8],
    seen: &Seen,
) -> Result<bool> {
    as_planned(dir, path, seen)?;
    match fs::renameat_with(stage, from, dir, name_of(path), RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
        Err(Errno::NOENT) => Err(ApplyError::Changed(path.to_vec())),
        Err(errno) => Err(ApplyError::at(path, "put it there")(errno)),
    }
}

/// Gives back what [`exchange`] has taken out, in the place of `made`. False where something else is there by now; what was
/// taken out is in the stage then, as before.
pub fn exchange_back(
    stage: BorrowedFd<'_>,
    from: &str,
    dir: BorrowedFd<'_>,
    path: &[u8],
    made: &Seen,
) -> bool {
    let swap = || fs::renameat_with(stage, from, dir, name_of(path), RenameFlags::EXCHANGE).is_ok();
    let is_made = |stat: Option<Stat>| stat.is_some_and(|stat| made.is_same(&stat));
    let there = |dir, name| look(dir, name, path).ok().flatten();
    if !is_made(there(dir, name_of(path))) || !swap() {
        return false;
    }
    if is_made(there(stage, from.as_bytes())) {
        return true;
    }
    // Exchanged once more in between. What comes out now is what was taken out, or else it is in its place by now.
    swap();
    false
}

/// Renames by renameat2(2) to a name that must be free; where the filesystem knows no such thing, it is looked first.
fn rename_new(from: BorrowedFd<'_>, old: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> rustix::io::Result<()> {
    match fs::renameat_with(from, old, to, new, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match At::Name(to, new).stat() {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => fs::renameat(from, old, to, new),
            Err(errno) => Err(errno),
        },
        done => done,
    }
}

/// Gives an object of the stage another name there.
///
/// # Errors
/// Those of renameat2(2).
pub fn rename_within(stage: BorrowedFd<'_>, from: &str, to: &str, path: &[u8]) -> Result<()> {
    rename_new(stage, from.as_bytes(), stage, to.as_bytes()).map_err(ApplyError::at(path, "set it aside"))
}
