//! What makes the upper larger or smaller, all of it counted where there is a quota: the calls that make and remove objects, move
//! them, and give them data. Nothing else of the union makes them (clippy.toml closes them to all), so that no writer can
//! forget it. Directories are looked at when their descriptor goes ([`UpperFd`](super::upper::UpperFd)), since whoever changes
//! names has one.

#![allow(clippy::disallowed_methods, reason = "the calls that are counted here, for all")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::{self, Errno};

use crate::error::Result;
use crate::sys::dir::for_each_entry;
use crate::sys::object::{At, Kind, Writable};
use crate::sys::remove;
use crate::union::change::lend::with_rights;
use crate::union::change::new::New;
use crate::union::change::upper::Upper;
use crate::union::quota::Quota;
use crate::union::quota::recount::Tree;
use crate::union::quota::taken::Growth;

/// Directories inside of each other that are removed with each of their objects counted.
const DEEPEST: usize = 64;

impl Upper {
    /// Returns what counts the upper, where there is a limit.
    pub(in crate::union) fn quota(&self) -> Option<&Arc<Quota>> {
        self.quota.as_ref()
    }

    /// Returns where the objects of the upper are.
    ///
    /// # Errors
    /// Those of opening an index: what is in one that is left out would be taken for nothing.
    pub(in crate::union) fn tree(&self) -> Result<Tree> {
        let kernel = self.links().kernel.as_ref().map(|kernel| kernel.dir()).transpose()?.flatten();
        let dirs = [Some(self.index_dir()), kernel].into_iter().flatten();
        let indexes = dirs.map(|dir| io::fcntl_dupfd_cloexec(dir, 3)).collect::<io::Result<_>>()?;
        Ok(Tree { indexes, open: open_below, list })
    }

    /// Changes an object of the upper, which becomes larger by so much at the most.
    ///
    /// # Errors
    /// Those of the change, and `ENOSPC` where there is no room for it.
    pub(in crate::union) fn growing<R, E: From<Errno>>(
        &self,
        object: At<'_>,
        growth: Growth,
        change: impl FnOnce() -> std::result::Result<R, E>,
    ) -> std::result::Result<R, E> {
        let Some(quota) = &self.quota else { return change() };
        let ino = quota.meet(object);
        let _room = match (growth, object) {
            (Growth::None, _) => None,
            (Growth::Range(start, length), At::Fd(file)) => {
                Some(quota.room_in(file, (start, length), true)?)
            }
            (Growth::Copied(start, length), At::Fd(file)) => {
                Some(quota.room_in(file, (start, length), false)?)
            }
            (Growth::Range(_, length) | Growth::Copied(_, length), At::Name(..)) => {
                Some(quota.room(length, 0)?)
            }
        };
        let done = change();
        quota.look(ino, object);
        done
    }

    /// Makes a change of an object of the upper that may need room, as the filesystem sees fit. `take_back` undoes it where there is
    /// none.
    ///
    /// # Errors
    /// Those of both, and `ENOSPC` where there was no room for it.
    pub(in crate::union) fn growing_a_little<R, E: From<Errno>>(
        &self,
        object: At<'_>,
        change: impl FnOnce() -> std::result::Result<R, E>,
        take_back: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<R, E> {
        match &self.quota {
            Some(quota) => quota.try_change(object, change, take_back),
            None => change(),
        }
    }

    /// Gives a file so many bytes of another's data, of which `data` tells how many are no holes.
    ///
    /// # Errors
    /// As [`Upper::growing`], and those of `data`.
    pub(in crate::union) fn copying<R>(
        &self,
        to: BorrowedFd<'_>,
        bytes: u64,
        data: impl FnOnce() -> io::Result<u64>,
        copy: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        let _room = self.quota.as_ref().map(|quota| quota.room_for_copy(bytes, data)).transpose()?;
        self.growing(At::Fd(to), Growth::None, copy)
    }

    /// Looks at an object to which something was done by nothing of these.
    pub(in crate::union) fn looked_at(&self, object: At<'_>) {
        if let Some(quota) = &self.quota {
            quota.look(quota.meet(object), object);
        }
    }

    /// Makes an object under a free name. A regular file comes open.
    ///
    /// # Errors
    /// Those of making it, and `ENOSPC` where there is no room for it.
    pub(in crate::union::change) fn make(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        new: New<'_>,
        mode: u32,
    ) -> io::Result<Option<OwnedFd>> {
        let _room = self.quota.as_ref().map(|quota| quota.room_for_one()).transpose()?;
        self.make_in_any_case(dir, name, new, mode)
    }

    /// Does as [`Upper::make`], also where there is no room: of what makes room later.
    pub(in crate::union::change) fn make_in_any_case(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        new: New<'_>,
        mode: u32,
    ) -> io::Result<Option<OwnedFd>> {
        let mode = Mode::from_raw_mode(mode);
        let file = match new {
            New::File => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                Some(fs::openat(dir, name, flags, mode)?)
            }
            New::Directory => fs::mkdirat(dir, name, mode).map(|()| None)?,
            New::Symlink(target) => fs::symlinkat(target, dir, name).map(|()| None)?,
            New::Special(kind, rdev) => fs::mknodat(dir, name, file_type(kind), mode, rdev).map(|()| None)?,
        };
        if let Some(quota) = &self.quota {
            quota.made(file.as_ref().map_or(At::Name(dir, name), |file| At::Fd(file.as_fd())));
        }
        Ok(file)
    }

    /// Counts a file without a name, which a descriptor holds that is counted too.
    pub(in crate::union::change) fn made_unnamed(&self, file: BorrowedFd<'_>) {
        if let Some(quota) = &self.quota {
            quota.made(At::Fd(file));
        }
    }

    /// Takes room for one more name of an object.
    ///
    /// # Errors
    /// `ENOSPC` where there is none.
    pub(in crate::union::change) fn room_for_name(&self) -> io::Result<()> {
        self.quota.as_ref().map_or(Ok(()), |quota| quota.room_for_name())
    }

    /// Removes a name, or with `AtFlags::REMOVEDIR` an empty directory.
    ///
    /// # Errors
    /// Those of unlinkat(2).
    pub(in crate::union) fn remove_name(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        flags: AtFlags,
    ) -> io::Result<()> {
        let remove = || fs::unlinkat(dir, name, flags);
        self.quota.as_ref().map_or_else(remove, |quota| quota.losing(At::Name(dir, name), remove))
    }

    /// Removes what is in the staging directory, with all that is in it.
    ///
    /// # Errors
    /// What the kernel says of the first thing that can't be removed.
    pub(in crate::union::change) fn remove_tree(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        if self.quota.is_some() { self.remove_counted(dir, name, 0) } else { remove::entry(dir, name) }
    }

    fn remove_counted(&self, dir: BorrowedFd<'_>, name: &[u8], depth: usize) -> io::Result<()> {
        match self.remove_name(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            Err(Errno::NOENT) => return Ok(()),
            other => return other,
        }
        match self.remove_name(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if depth < DEEPEST => {}
            // What is in it stays counted until the mount ends.
            Err(Errno::NOTEMPTY | Errno::EXIST) => return remove::entry(dir, name),
            other => return other,
        }
        let inside = open_below(dir, name)?;
        self.remove_all_in(inside.as_fd(), depth + 1)?;
        self.remove_name(dir, name, AtFlags::REMOVEDIR)
    }

    /// Removes all that is in a directory.
    ///
    /// # Errors
    /// As [`Upper::remove_tree`].
    pub(in crate::union::change) fn empty(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        if self.quota.is_none() {
            return remove::empty(dir, &[]).map_err(|left| left.errno);
        }
        self.remove_all_in(dir, 0)
    }

    fn remove_all_in(&self, dir: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        list(dir, &mut |name| {
            names.push(name.into());
            Ok(())
        })?;
        // It goes itself, or its owner may write to it.
        with_rights(Writable::held(dir), 0o700, || {
            names.iter().try_for_each(|name| self.remove_counted(dir, name, depth))
        })
    }

    /// Renames; what has the new name loses it, but with `EXCHANGE`.
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub(in crate::union::change) fn rename_name(
        &self,
        (from, name): (BorrowedFd<'_>, &[u8]),
        (to, new_name): (BorrowedFd<'_>, &[u8]),
        flags: RenameFlags,
    ) -> io::Result<()> {
        let rename = || fs::renameat_with(from, name, to, new_name, flags);
        let Some(quota) = &self.quota else { return rename() };
        let (source, target) = (At::Name(from, name), At::Name(to, new_name));
        if flags.contains(RenameFlags::EXCHANGE) {
            return quota.moving([Some(source), Some(target)], rename);
        }
        quota.losing(target, || quota.moving([Some(source), None], rename))?;
        if flags.contains(RenameFlags::WHITEOUT) {
            quota.made(At::Name(from, name));
        }
        Ok(())
    }

    /// Makes a file so long.
    ///
    /// # Errors
    /// Those of ftruncate(2).
    pub(in crate::union) fn set_length(&self, file: BorrowedFd<'_>, size: u64) -> io::Result<()> {
        self.growing(At::Fd(file), Growth::None, || fs::ftruncate(file, size))
    }

    /// Preallocates, punches or zeroes. `mode` as of fallocate(2).
    ///
    /// # Errors
    /// Those of fallocate(2), and `ENOSPC` where there is no room for it.
    pub(in crate::union) fn allocate(
        &self,
        file: BorrowedFd<'_>,
        mode: FallocateFlags,
        (offset, length): (u64, u64),
    ) -> io::Result<()> {
        let growth = match mode.contains(FallocateFlags::PUNCH_HOLE) {
            true => Growth::None,
            false => Growth::Range(offset, length),
        };
        self.growing(At::Fd(file), growth, || fs::fallocate(file, mode, offset, length))
    }

    /// Writes some of `data`.
    ///
    /// # Errors
    /// Those of pwrite(2), and `ENOSPC` where there is no room for all of it.
    pub(in crate::union) fn write_some(
        &self,
        file: BorrowedFd<'_>,
        data: &[u8],
        offset: u64,
    ) -> io::Result<usize> {
        self.growing(At::Fd(file), Growth::Range(offset, data.len() as u64), || {
            io::pwrite(file, data, offset)
        })
    }

    /// Copies a range from one file to another, sharing extents where they can. Returns how much of it.
    ///
    /// # Errors
    /// Those of copy_file_range(2), and `ENOSPC` where there is no room for it.
    pub(in crate::union) fn copy_range(
        &self,
        (from, mut from_offset): (BorrowedFd<'_>, u64),
        (to, mut to_offset): (BorrowedFd<'_>, u64),
        length: usize,
    ) -> io::Result<usize> {
        self.growing(At::Fd(to), Growth::Copied(to_offset, length as u64), || {
            fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), length)
        })
    }

    /// Leaves to the next mount how much the upper takes. `served`: somebody may change it still.
    pub(in crate::union::change) fn close_quota(&self, served: bool) {
        if let Some(quota) = &self.quota {
            // A filesystem allots some blocks only when it writes.
            if quota.has_changed()
                && let Err(e) = self.sync_all()
            {
                log::warn!("the upper's filesystem can't be written to the disk: {e}");
            }
            quota.close(self.tree().map_err(|e| e.errno()), served);
        }
    }
}

/// Opens a directory (O_PATH) in one whose mode may keep the daemon of an ordinary user out.
fn open_below(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    with_rights(Writable::held(dir), 0o100, || fs::openat(dir, name, flags, Mode::empty()))
}

/// Lists a directory, and lets its entries be looked at meanwhile.
fn list(dir: BorrowedFd<'_>, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    with_rights(Writable::held(dir), 0o500, || for_each_entry::<Errno>(dir, |entry| each(entry.name)))
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Fifo => FileType::Fifo,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::Directory => FileType::Directory,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::Socket => FileType::Socket,
    }
}
