//! What a mount leaves to the next: how much its upper takes.
//!
//! Two notes, for neither alone would do:
//!
//! - An attribute of the upper's root, `overlay.unionmount.quota` = `INO:BYTES:INODES`. It is there only while nobody has the upper:
//!   who mounts it takes it away, with a limit or without, so what is there is true. `INO` is the root's number, so that a copy
//!   of the upper isn't taken for it.
//! - `quota.unionmount` in the workdir, `BYTES:INODES`, while it is mounted: about how much it is, after a kill. The workdir may be
//!   another user's, who can put what he likes there: the file is written to only by who has made it, and what can't be read is
//!   no reason to refuse the mount.

#![allow(clippy::disallowed_methods, reason = "the workdir is its own, and the root of the upper is held")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::fs::{self, AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::{self, Errno, Result};

use crate::sys::object::{At, Kind, Writable};
use crate::sys::xattr;
use crate::union::lookup::private::Namespace;
use crate::union::quota::taken::Taken;

/// The name of the attribute, behind the prefix of marks.
pub const QUOTA: &str = "unionmount.quota";
/// The file in the workdir.
pub const NOTE: &str = "quota.unionmount";

/// Where the notes of one upper are.
#[derive(Debug)]
pub struct Mark {
    root: OwnedFd,
    work: OwnedFd,
    /// The whole name of the attribute; `None` where there are none.
    name: Option<Vec<u8>>,
    /// Whether what is said must survive a power failure.
    durable: bool,
    /// The file in the workdir, once this process has made it.
    note: Mutex<Option<OwnedFd>>,
}

/// What a mount left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Found {
    /// How much is taken.
    pub taken: Taken,
    /// Whether it ended in order, and nobody had the upper since.
    pub clean: bool,
}

/// Removes the note that an upper's root has of what is taken: somebody is about to change it without counting.
///
/// # Errors
/// Those of removexattr(2) and of having it on the disk.
pub fn forget(root: BorrowedFd<'_>) -> Result<()> {
    for namespace in [Namespace::Trusted, Namespace::User] {
        match Writable::held(root).remove_xattr(namespace.name(QUOTA).as_bytes()) {
            Ok(()) => sync_dir(root)?,
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Writes a directory to the disk: what comes after may reach it first on a filesystem without one journal.
fn sync_dir(dir: BorrowedFd<'_>) -> Result<()> {
    fs::fsync(At::Fd(dir).open_directory()?)
}

impl Mark {
    /// Returns the notes of the upper with that root and workdir. `name`: the whole name of the attribute. `durable`: what is said
    /// must survive a power failure.
    ///
    /// # Errors
    /// Those of duplicating descriptors.
    pub fn new(
        root: BorrowedFd<'_>,
        work: BorrowedFd<'_>,
        name: Option<Vec<u8>>,
        durable: bool,
    ) -> Result<Mark> {
        let dup = |fd| io::fcntl_dupfd_cloexec(fd, 3);
        Ok(Mark { root: dup(root)?, work: dup(work)?, name, durable, note: Mutex::default() })
    }

    /// Takes what is there: the upper is in use from now on.
    ///
    /// # Errors
    /// Those of reading and removing it.
    pub fn take(&self) -> Result<Found> {
        let clean = self.take_clean()?;
        let note = read_note(self.work.as_fd());
        if let Err(e) = self.remove_note() {
            log::warn!("quota: {NOTE} in the workdir can't be removed, and isn't believed: {e}");
        }
        let found = |taken, clean| Found { taken, clean };
        // A note in the workdir is of a mount that was killed.
        Ok(match (clean, note) {
            (Some(taken), None) => found(taken, true),
            (clean, note) => found(clean.or(note).unwrap_or_default(), false),
        })
    }

    fn take_clean(&self) -> Result<Option<Taken>> {
        let Some(name) = &self.name else { return Ok(None) };
        let at = At::Fd(self.root.as_fd());
        let Some(value) = xattr::get(at, name)? else { return Ok(None) };
        Writable::held(self.root.as_fd()).remove_xattr(name)?;
        if self.durable {
            sync_dir(self.root.as_fd())?;
        }
        let ino = at.stat()?.ino.to_string();
        let text = String::from_utf8_lossy(&value);
        Ok(text.split_once(':').filter(|(of, _)| *of == ino).and_then(|(_, taken)| parse(taken)))
    }

    /// Notes about how much is taken, while the upper is in use.
    ///
    /// # Errors
    /// Those of writing it.
    pub fn note(&self, taken: Taken) -> Result<()> {
        let mut note = self.note.lock();
        let file = match &mut *note {
            Some(file) => file,
            made => {
                // What has the name is somebody else's.
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                made.insert(fs::openat(&self.work, NOTE, flags, Mode::RUSR | Mode::WUSR)?)
            }
        };
        // Of one length, so that it is replaced in one step.
        let text = format!("{:020}:{:020}\n", taken.bytes, taken.inodes);
        io::pwrite(file, text.as_bytes(), 0).map(drop)
    }

    /// Returns the file in the workdir, if it was made.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(super) fn held(&self) -> std::io::Result<Option<OwnedFd>> {
        self.note.lock().as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// Makes that file this one's, which another process has made.
    pub(super) fn hold(&self, note: Option<OwnedFd>) {
        *self.note.lock() = note;
    }

    fn remove_note(&self) -> Result<()> {
        *self.note.lock() = None;
        match fs::unlinkat(&self.work, NOTE, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Leaves how much is taken: nobody has the upper from now on.
    ///
    /// # Errors
    /// Those of writing it.
    pub fn leave(&self, taken: Taken) -> Result<()> {
        if let Some(name) = &self.name {
            let ino = At::Fd(self.root.as_fd()).stat()?.ino;
            let value = format!("{ino}:{}:{}", taken.bytes, taken.inodes);
            Writable::held(self.root.as_fd()).set_xattr(name, value.as_bytes(), XattrFlags::empty())?;
        }
        self.remove_note()
    }
}

fn parse(text: &str) -> Option<Taken> {
    let (bytes, inodes) = text.trim_end().split_once(':')?;
    Some(Taken { bytes: bytes.parse().ok()?, inodes: inodes.parse().ok()? })
}

/// Reads the note in the workdir. `None`: there is none. One that nobody can read tells that nothing is known.
fn read_note(work: BorrowedFd<'_>) -> Option<Taken> {
    match At::Name(work, NOTE.as_bytes()).stat() {
        Err(Errno::NOENT) => return None,
        Ok(stat) if stat.kind() == Kind::File => {}
        _ => return Some(Taken::default()),
    }
    let read = || {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = fs::openat(work, NOTE, flags, Mode::empty()).ok()?;
        let mut text = [0; 64];
        let length = io::pread(&file, &mut text, 0).ok()?;
        parse(std::str::from_utf8(&text[..length]).ok()?)
    };
    Some(read().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn what_was_left_in_order_is_trusted_once() {
        let top = tempfile::tempdir_in("/tmp").unwrap();
        let (root, work) = (top.path().join("root"), top.path().join("work"));
        std::fs::create_dir(&root).unwrap();
        std::fs::create_dir(&work).unwrap();
        let [root_fd, work_fd] = [&root, &work].map(|dir| File::open(dir).unwrap());
        let name = || Some(b"user.overlay.quota".to_vec());
        let mark = Mark::new(root_fd.as_fd(), work_fd.as_fd(), name(), true).unwrap();
        assert_eq!(mark.take(), Ok(Found::default()));
        let taken = Taken { bytes: 5 << 40, inodes: 7 };
        mark.note(Taken { bytes: 1, inodes: 1 }).unwrap();
        mark.leave(taken).unwrap();
        assert_eq!(mark.take(), Ok(Found { taken, clean: true }));
        assert_eq!(mark.take(), Ok(Found::default()), "it is in use now");
        mark.note(Taken { bytes: 9 << 40, inodes: 1 }).unwrap();
        mark.note(taken).unwrap();
        assert_eq!(mark.take(), Ok(Found { taken, clean: false }), "after a kill");
        assert!(std::fs::read_dir(&work).unwrap().next().is_none());
        // A copy is another upper.
        mark.leave(taken).unwrap();
        let copy = Mark::new(work_fd.as_fd(), work_fd.as_fd(), name(), true).unwrap();
        let value = xattr::get(At::Fd(root_fd.as_fd()), b"user.overlay.quota").unwrap().unwrap();
        Writable::held(work_fd.as_fd())
            .set_xattr(b"user.overlay.quota", &value, XattrFlags::empty())
            .unwrap();
        assert_eq!(copy.take(), Ok(Found::default()));
    }

    /// Whoever owns the workdir has others' files written to by nothing that he puts there.
    #[test]
    fn a_note_that_somebody_else_has_made_is_not_written_to() {
        let top = tempfile::tempdir_in("/tmp").unwrap();
        let (work, other) = (top.path().join("work"), top.path().join("other"));
        std::fs::create_dir(&work).unwrap();
        let work_fd = File::open(&work).unwrap();
        let note = work.join(NOTE);
        let puts: [&dyn Fn(); 4] = [
            &|| std::fs::hard_link(&other, &note).unwrap(),
            &|| std::os::unix::fs::symlink(&other, &note).unwrap(),
            &|| fs::mkfifoat(fs::CWD, &note, Mode::RWXU).unwrap(),
            &|| std::fs::create_dir(&note).unwrap(),
        ];
        for put in puts {
            std::fs::write(&other, "somebody's, and longer than what is written there").unwrap();
            let mark = || Mark::new(work_fd.as_fd(), work_fd.as_fd(), None, true).unwrap();
            // While it is mounted.
            put();
            assert_eq!(mark().note(Taken { bytes: 7, inodes: 7 }), Err(Errno::EXIST));
            // Before.
            let mounted = mark();
            assert_eq!(mounted.take().map(|found| found.clean), Ok(false));
            let is_there = note.symlink_metadata().is_ok();
            assert_eq!(mounted.note(Taken { bytes: 7, inodes: 7 }).is_err(), is_there);
            // The one that was made is exchanged.
            if !is_there {
                std::fs::remove_file(&note).unwrap();
                put();
                mounted.note(Taken { bytes: 8, inodes: 8 }).unwrap();
            }
            let text = std::fs::read_to_string(&other).unwrap();
            assert!(text.starts_with("somebody's"), "{text}");
            std::fs::remove_file(&note).or_else(|_| std::fs::remove_dir(&note)).unwrap();
        }
    }
}
