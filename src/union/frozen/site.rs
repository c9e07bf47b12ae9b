//! The places beside an upper: `.NAME.layers`, with the record and the frozen layers.

#![allow(clippy::disallowed_methods, reason = "the directory is its own")]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, fstat, mkdirat, openat, statat};
use rustix::io::Errno;

use crate::sys::durable::write_durably_in;
use crate::sys::object::proc_path;
use crate::union::frozen::record::{LARGEST, NotRead, Record};
use crate::union::frozen::unfit::{Result, SnapshotError};
use crate::union::stack::place::parent_and_name;

/// The record's name.
pub(super) const RECORD: &str = "stack.json";
/// Where branches are written down that stand on a layer.
pub(super) const BRANCHES: &str = "branches";

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Where an upper lies.
#[derive(Debug)]
pub struct Site {
    /// The directory that holds it.
    pub parent: OwnedFd,
    /// The same, from the root.
    pub parent_path: PathBuf,
    /// Its name there.
    pub name: OsString,
}

/// The directory with frozen layers, and its record.
#[derive(Debug)]
pub struct Layers {
    /// The directory.
    pub dir: OwnedFd,
    /// The same, from the root.
    pub path: PathBuf,
    /// The record.
    pub record: Record,
}

/// Returns the name of the directory with frozen layers beside an upper of that name.
pub(super) fn layers_name(upper: &OsStr) -> OsString {
    let mut name = OsString::from(".");
    name.push(upper);
    name.push(".layers");
    name
}

/// Returns where an open directory is, from the root.
fn real_path(dir: BorrowedFd<'_>, path: &Path) -> Result<PathBuf> {
    let link = std::fs::read_link(OsStr::new(&*String::from_utf8_lossy(&proc_path(dir))));
    link.map_err(SnapshotError::io("find out where it is", path))
}

impl Site {
    /// Finds out where an open upper lies; `path` is for messages.
    ///
    /// # Errors
    /// When it has no place that is known, or is itself a frozen layer.
    pub fn of(upper: BorrowedFd<'_>, path: &Path) -> Result<Site> {
        let (parent, name) = parent_and_name(upper, path).map_err(|why| SnapshotError::refused(path, why))?;
        let parent = openat(&parent, c".", DIR, Mode::empty())
            .map_err(SnapshotError::io("open the directory that holds it", path))?;
        let parent_path = real_path(parent.as_fd(), path)?;
        Ok(Site { parent, parent_path, name })
    }

    /// Refuses a frozen layer.
    ///
    /// # Errors
    /// When it is one.
    pub fn is_no_frozen_layer(&self, path: &Path) -> Result<()> {
        let held_by = self.parent_path.file_name().unwrap_or_default().to_string_lossy();
        let is_layers = held_by.starts_with('.') && held_by.ends_with(".layers");
        if is_layers && statat(&self.parent, RECORD, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            let why = "is a frozen layer, which must not change; name the upper, or make a branch: unionmount branch";
            return Err(SnapshotError::refused(path, why));
        }
        Ok(())
    }

    /// Returns the name of the directory with frozen layers.
    pub fn layers_name(&self) -> OsString {
        layers_name(&self.name)
    }

    /// Tells whether what has the name of the directory with frozen layers belongs to another user.
    pub fn is_anothers(&self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        let found = statat(&self.parent, self.layers_name(), AtFlags::SYMLINK_NOFOLLOW);
        found.is_ok_and(|stat| stat.st_uid != own && stat.st_uid != 0)
    }

    /// Opens the directory with frozen layers. `None`: there is none.
    ///
    /// # Errors
    /// When it can't be read, or may be somebody else's words.
    pub fn layers(&self) -> Result<Option<Layers>> {
        Layers::open(self.parent.as_fd(), &self.layers_name(), self.parent_path.join(self.layers_name()))
    }
}

impl Layers {
    /// Opens the one at a path. `None`: there is none.
    ///
    /// # Errors
    /// When it can't be read, or may be somebody else's words.
    pub fn at(path: &Path) -> Result<Option<Layers>> {
        let (parent, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
        match rustix::fs::open(parent, DIR, Mode::empty()) {
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(SnapshotError::io("open it", parent)(errno)),
            Ok(parent) => Layers::open(parent.as_fd(), name, path.to_owned()),
        }
    }

    /// Opens the one beside the upper at a path, or where it would be of an upper that is gone. `None`: there is none.
    ///
    /// # Errors
    /// When it can't be read, or may be somebody else's words.
    pub fn beside(upper: &Path) -> Result<Option<Layers>> {
        match rustix::fs::open(upper, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) => {
                Layers::at(&upper.with_file_name(layers_name(upper.file_name().unwrap_or_default())))
            }
            opened => {
                let opened = opened.map_err(SnapshotError::io("open it", upper))?;
                Site::of(opened.as_fd(), upper)?.layers()
            }
        }
    }

    /// Opens the one that has a name in an open directory; `path` is for messages. `None`: there is none.
    ///
    /// # Errors
    /// When it can't be read, or may be somebody else's words.
    pub(super) fn open(parent: BorrowedFd<'_>, name: &OsStr, path: PathBuf) -> Result<Option<Layers>> {
        let dir = match openat(parent, name, DIR | OFlags::NOFOLLOW, Mode::empty()) {
            Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(None),
            opened => opened.map_err(SnapshotError::io("open it", &path))?,
        };
        is_trusted(dir.as_fd(), &path)?;
        match read_record(dir.as_fd(), &path)? {
            // Somebody was killed who had only just made it.
            None => Ok(None),
            Some(record) => Ok(Some(Layers { dir, path, record })),
        }
    }

    /// Writes the record.
    ///
    /// # Errors
    /// Those of writing it.
    pub fn write(&self) -> Result<()> {
        write_record(self.dir.as_fd(), &self.path, &self.record)
    }

    /// Returns the same directory with the record as it is now. `None`: the record is gone.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) fn again(&self) -> Result<Option<Layers>> {
        let Some(record) = read_record(self.dir.as_fd(), &self.path)? else { return Ok(None) };
        Ok(Some(Layers { dir: self.to_lock()?.into(), path: self.path.clone(), record }))
    }

    /// Opens the directory once more, for a lock on it.
    ///
    /// # Errors
    /// Those of openat(2).
    pub(super) fn to_lock(&self) -> Result<File> {
        let opened = openat(&self.dir, c".", DIR, Mode::empty());
        opened.map(File::from).map_err(SnapshotError::io("open it", &self.path))
    }

    /// Returns where a layer lies.
    pub fn place(&self, layer: u32) -> PathBuf {
        self.path.join(self.directory(layer))
    }

    /// Returns the name of a layer's directory; of one that the record hasn't got, its number.
    pub(super) fn directory(&self, layer: u32) -> String {
        self.record.layer(layer).map_or(layer, |layer| layer.directory()).to_string()
    }

    /// Opens a layer. `None`: there is no such directory.
    ///
    /// # Errors
    /// Those of openat(2).
    pub fn layer(&self, layer: u32) -> Result<Option<OwnedFd>> {
        self.entry(&self.directory(layer))
    }

    /// Opens a directory in it. `None`: there is no such directory.
    ///
    /// # Errors
    /// Those of openat(2).
    pub(super) fn entry(&self, name: &str) -> Result<Option<OwnedFd>> {
        match openat(&self.dir, name, DIR | OFlags::NOFOLLOW, Mode::empty()) {
            Err(Errno::NOENT) => Ok(None),
            opened => opened.map(Some).map_err(SnapshotError::io("open it", self.path.join(name))),
        }
    }
}

/// Refuses what somebody else may have written: the record says which directories are shown.
pub(super) fn is_trusted(dir: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let stat = fstat(dir).map_err(SnapshotError::io("look at it", path))?;
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != own && stat.st_uid != 0 {
        let why = format!("belongs to uid {}, not to {own}, who mounts; do it as that user", stat.st_uid);
        return Err(SnapshotError::refused(path, why));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(SnapshotError::refused(
            path,
            "may be written to by others; look at it, then: chmod go-w",
        ));
    }
    Ok(())
}

fn read_record(dir: BorrowedFd<'_>, path: &Path) -> Result<Option<Record>> {
    let file = path.join(RECORD);
    let opened = openat(dir, RECORD, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let opened = match opened {
        Err(Errno::NOENT) => return Ok(None),
        opened => File::from(opened.map_err(SnapshotError::io("open it", &file))?),
    };
    let mut text = Vec::new();
    opened.take(LARGEST + 1).read_to_end(&mut text).map_err(SnapshotError::io("read it", &file))?;
    if text.len() as u64 > LARGEST {
        return Err(SnapshotError::Record { path: file, why: "is larger than any record".into() });
    }
    Record::parse(&text).map(Some).map_err(|why| match why {
        NotRead::Later(what) => SnapshotError::Later { path: file, what },
        NotRead::Damaged(why) => SnapshotError::Record { path: file, why },
    })
}

/// Writes the record of an open directory, so that it is the old one or the new one. By a path it could be written into what
/// somebody has put in the directory's place; `path` is for messages.
pub(super) fn write_record(dir: BorrowedFd<'_>, path: &Path, record: &Record) -> Result<()> {
    let file = path.join(RECORD);
    let text = record.to_text().map_err(|why| SnapshotError::Record { path: file.clone(), why })?;
    write_durably_in(dir, OsStr::new(RECORD), &text).map_err(SnapshotError::io("write it", &file))
}

/// Makes a directory in an open one that is this user's alone. One that is there is as good. `path` is for messages.
pub(super) fn make_own(parent: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<OwnedFd> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(SnapshotError::io("make it", path)(errno)),
    }
    let dir = openat(parent, name, DIR | OFlags::NOFOLLOW, Mode::empty())
        .map_err(SnapshotError::io("open it", path))?;
    is_trusted(dir.as_fd(), path)?;
    Ok(dir)
}
