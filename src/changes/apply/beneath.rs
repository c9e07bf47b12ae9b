//! Acting beneath a directory that may be somebody else's: directories are opened without following links, held against
//! the plan, and what a rename has moved is held against it too.

#![allow(
    clippy::disallowed_methods,
    reason = "what is moved is held against the plan before and afterwards; see the module's text"
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
        }
    }

    /// Returns whether that is the same object.
    pub fn is_same(&self, stat: &Stat) -> bool {
        let now = Seen::of(stat);
        (self.ino, self.born, self.kind) == (now.ino, now.born, now.kind)
    }

    /// Returns whether that is the same object, and unchanged as far as can be told.
    pub fn is_unchanged(&self, stat: &Stat) -> bool {
        let changed = |seen: Option<(i64, u32)>| seen.zip(Seen::of(stat).changed);
        self.is_same(stat) && changed(self.changed).is_none_or(|(then, now)| then == now)
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
        let dir = match open_dir(target, path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(changed()),
            dir => dir.map_err(ApplyError::at(path, "open it"))?,
        };
        let stat = At::Fd(dir.as_fd()).stat().map_err(ApplyError::at(path, "look at it"))?;
        if self.seen.is_same(&stat) { Ok(dir) } else { Err(changed()) }
    }
}

/// Returns what has a name; `None`: nothing.
///
/// # Errors
/// Those of stat.
pub fn look(dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Option<Stat>> {
    match At::Name(dir, name).stat() {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(ApplyError::at(path, "look at it")(errno)),
    }
}

/// Returns the last name of a path.
pub fn name_of(path: &[u8]) -> &[u8] {
    split(path).1
}

/// Moves an entry of the target into the stage, under a name that is free there. One that turns out to be another than
/// `seen` goes back.
///
/// # Errors
/// [`ApplyError::Changed`] where it is another.
pub fn take(dir: BorrowedFd<'_>, path: &[u8], seen: &Seen, stage: BorrowedFd<'_>, to: &str) -> Result<()> {
    let name = name_of(path);
    let changed = || ApplyError::Changed(path.to_vec());
    let found = look(dir, name, path)?.ok_or_else(changed)?;
    if !seen.is_unchanged(&found) {
        return Err(changed());
    }
    rename_new(dir, name, stage, to.as_bytes()).map_err(|errno| match errno {
        Errno::NOENT => changed(),
        errno => ApplyError::at(path, "move it away")(errno),
    })?;
    let moved = look(stage, to.as_bytes(), path)?;
    if moved.is_some_and(|moved| seen.is_same(&moved)) {
        return Ok(());
    }
    // Its owner has put another one there in between: that is not ours to take.
    rename_new(stage, to.as_bytes(), dir, name).map_err(ApplyError::at(path, "put it back"))?;
    Err(changed())
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
/// name. False where the filesystem can't exchange.
///
/// # Errors
/// [`ApplyError::Changed`] where something else was there, which stays.
pub fn exchange(
    stage: BorrowedFd<'_>,
    from: &str,
    dir: BorrowedFd<'_>,
    path: &[u8],
    seen: &Seen,
) -> Result<bool> {
    let name = name_of(path);
    let changed = || ApplyError::Changed(path.to_vec());
    let found = look(dir, name, path)?.ok_or_else(changed)?;
    if !seen.is_unchanged(&found) {
        return Err(changed());
    }
    let swap = || fs::renameat_with(stage, from, dir, name, RenameFlags::EXCHANGE);
    match swap() {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => return Ok(false),
        Err(Errno::NOENT) => return Err(changed()),
        Err(errno) => return Err(ApplyError::at(path, "put it there")(errno)),
    }
    let out = look(stage, from.as_bytes(), path)?;
    if out.is_some_and(|out| seen.is_same(&out)) {
        return Ok(true);
    }
    swap().map_err(ApplyError::at(path, "put it back"))?;
    Err(changed())
}

/// renameat2(2) to a name that must be free; where the filesystem knows no such thing, it is looked first.
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
