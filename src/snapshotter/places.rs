//! The directories of the snapshots.
//!
//! ```text
//! ROOT/                 0700, unless it was there before
//!   metadata.sqlite     the database, and files of SQLite's beside it
//!   set-aside-1/        what `--set-aside` has moved out of the way
//!   snapshots/          0700
//!     7/fs/             the layer: what a mount shows at its root, so with the owner and the mode of the parent's root
//!     7/work/           the workdir of an active snapshot with parents; removed once it is committed
//!     rm-7/             being removed
//! ```

#![allow(clippy::disallowed_methods, reason = "the directories are its own")]

use std::collections::{HashMap, HashSet};
use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::error::FILE;
use super::error::{Error, Result};
use super::store::{SnapshotKind, Usage};
use crate::sys::filesystem;
use crate::sys::flock::{Access, lock_until, try_lock};
use crate::sys::object::At;
use crate::sys::remove;
use crate::sys::xattr;
use crate::union::lookup::private::is_private_xattr;

const REMOVING: &str = "rm-";
/// How long a commit waits for the daemon of a mount that was just unmounted: umount(2) returns before the daemon has
/// ended.
const DAEMON_WAIT: Duration = Duration::from_secs(1);

/// The directories below a root.
#[derive(Debug)]
pub struct Places {
    snapshots: PathBuf,
    /// One removal at a time: they would race for names, and the disk gains nothing by two.
    removing: Mutex<()>,
}

/// The layer of a snapshot that is being committed.
#[derive(Debug)]
pub struct Quiet {
    directory: File,
    path: PathBuf,
    /// Nobody has it mounted for writing, nor can as long as this lives.
    pub alone: bool,
}

impl Places {
    /// Makes what is missing of the root.
    pub fn open(root: &Path) -> Result<Places> {
        let snapshots = root.join("snapshots");
        // A root that exists is left as it is: it may be somebody's. What is in `snapshots` is reached by nobody else.
        for path in [root, &snapshots] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(Error::io(path, "make the directory"))?;
        }
        std::fs::set_permissions(&snapshots, Permissions::from_mode(0o700))
            .map_err(Error::io(&snapshots, "close it to others"))?;
        Ok(Places { snapshots, removing: Mutex::new(()) })
    }

    /// Returns the numbers of the snapshots that lie there, owned or not.
    pub fn numbers(&self) -> Result<Vec<u64>> {
        let entries = std::fs::read_dir(&self.snapshots).map_err(Error::io(&self.snapshots, "list it"))?;
        let mut numbers = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::io(&self.snapshots, "list it"))?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(numbers)
    }

    /// Moves snapshots and database out of the way, so that the next start begins with none. Returns where they are, or
    /// `None` when there was nothing.
    pub fn set_all_aside(root: &Path) -> Result<Option<PathBuf>> {
        let mut names = vec!["snapshots".to_owned(), "metadata.redb".to_owned()];
        names.extend(["", "-wal", "-shm", "-journal"].map(|end| format!("{FILE}{end}")));
        names.retain(|name| root.join(name).symlink_metadata().is_ok());
        if names.is_empty() {
            return Ok(None);
        }
        let mut attempt = 1;
        let aside = loop {
            let aside = root.join(format!("set-aside-{attempt}"));
            match DirBuilder::new().mode(0o700).create(&aside) {
                Ok(()) => break aside,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
                Err(error) => return Err(Error::io(&aside, "make the directory")(error)),
            }
        };
        for name in names {
            let from = root.join(&name);
            std::fs::rename(&from, aside.join(&name)).map_err(Error::io(&from, "set it aside"))?;
        }
        sync(&aside)?;
        sync(root)?;
        Ok(Some(aside))
    }

    fn place(&self, number: u64) -> PathBuf {
        self.snapshots.join(number.to_string())
    }

    /// Returns where a snapshot's layer lies.
    pub fn layer(&self, number: u64) -> PathBuf {
        self.place(number).join("fs")
    }

    /// Returns where its workdir lies.
    pub fn work(&self, number: u64) -> PathBuf {
        self.place(number).join("work")
    }

    /// Makes the directories of a new snapshot, durably. To be called within the transaction that names it.
    pub fn make(&self, number: u64, kind: SnapshotKind, parent: Option<u64>) -> Result<()> {
        let place = self.place(number);
        if place.symlink_metadata().is_ok() {
            // A call that failed, or was killed, before its transaction came about.
            self.set_aside(&place)?;
        }
        let made = self.make_in(&place, number, kind, parent);
        if made.is_err() {
            remove_or_leave(&place);
        }
        made
    }

    fn make_in(&self, place: &Path, number: u64, kind: SnapshotKind, parent: Option<u64>) -> Result<()> {
        make_directory(place, 0o700)?;
        let layer = self.layer(number);
        make_directory(&layer, 0o755)?;
        if let Some(parent) = parent {
            copy_root(&self.layer(parent), &layer)?;
            if kind == SnapshotKind::Active {
                make_directory(&self.work(number), 0o700)?;
            }
        }
        // Within one directory the kernel's filesystems keep the order: a name is not on the disk before what it names
        // is. Two syncs are needed for those that promise no more than POSIX.
        sync(place)?;
        sync(&self.snapshots)
    }

    /// Waits for the end of a mount that has just been unmounted, and keeps others from mounting the layer for writing.
    pub fn quiet(&self, number: u64) -> Result<Quiet> {
        let path = self.layer(number);
        let directory = File::open(&path).map_err(Error::io(&path, "open it"))?;
        let deadline = Instant::now() + DAEMON_WAIT;
        let alone = match lock_until(&directory, Access::Exclusive, deadline) {
            Ok(alone) => {
                if !alone {
                    log::info!("{}: committed while it is mounted for writing", path.display());
                }
                alone
            }
            Err(errno) => {
                log::debug!("{}: cannot be locked: {errno}", path.display());
                false
            }
        };
        Ok(Quiet { directory, path, alone })
    }

    /// Removes the workdir of a snapshot that has been committed.
    pub fn remove_work(&self, number: u64) {
        let work = self.work(number);
        let _one = self.removing.lock();
        remove_or_leave(&work);
    }

    /// Removes the directories of a snapshot that the database has forgotten. What can't be removed is left to the next
    /// cleanup.
    pub fn remove(&self, number: u64) {
        let place = self.place(number);
        match self.set_aside(&place) {
            Ok(aside) => self.remove_aside(&aside),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("{error}; this is left to the next cleanup"),
        }
    }

    /// Takes the name away from a directory that is to be removed.
    fn set_aside(&self, place: &Path) -> Result<PathBuf> {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        for attempt in 0..u32::MAX {
            let aside = self.snapshots.join(format!("{REMOVING}{name}.{attempt}"));
            match rustix::fs::renameat_with(
                rustix::fs::CWD,
                place,
                rustix::fs::CWD,
                &aside,
                rustix::fs::RenameFlags::NOREPLACE,
            ) {
                Ok(()) => return Ok(aside),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io(place, "rename it, to remove it")(errno)),
            }
        }
        Err(Error::io(place, "rename it, to remove it")(Errno::EXIST))
    }

    fn remove_aside(&self, aside: &Path) {
        let _one = self.removing.lock();
        remove_or_leave(aside);
    }

    /// Takes the names away from what no snapshot owns, for [`Places::remove_all`]. To be called within a transaction, so that
    /// none is being made.
    pub fn set_orphans_aside(&self, kinds: &HashMap<u64, SnapshotKind>) -> Result<Vec<PathBuf>> {
        let mut aside = Vec::new();
        let entries = std::fs::read_dir(&self.snapshots);
        for entry in entries.map_err(Error::io(&self.snapshots, "list it"))? {
            let place = entry.map_err(Error::io(&self.snapshots, "list it"))?.path();
            let name = place.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(REMOVING) {
                aside.push(place);
                continue;
            }
            // What has another name than we give is not ours to remove: lost+found, say.
            let Ok(number) = name.parse() else { continue };
            match kinds.get(&number) {
                None => match self.set_aside(&place) {
                    Ok(place) => aside.push(place),
                    Err(error) => log::warn!("{error}; this is left to the next cleanup"),
                },
                // A mount that has outlived the commit may still be using the workdir.
                Some(SnapshotKind::Committed) if self.work(number).exists() && self.is_quiet(number) => {
                    aside.push(self.work(number));
                }
                Some(_) => {}
            }
        }
        Ok(aside)
    }

    fn is_quiet(&self, number: u64) -> bool {
        File::open(self.layer(number)).is_ok_and(|layer| try_lock(&layer, Access::Exclusive) == Ok(true))
    }

    /// Removes what has been set aside.
    pub fn remove_all(&self, aside: &[PathBuf]) {
        for place in aside {
            log::info!("removing {}", place.display());
            self.remove_aside(place);
        }
    }

    /// Returns what a snapshot's layer takes on the disk. Links of one inode count once.
    pub fn usage(&self, number: u64) -> Result<Usage> {
        let top = self.layer(number);
        let metadata = top.symlink_metadata().map_err(Error::io(&top, "look at it"))?;
        let mut usage = Usage::default();
        let mut linked = HashSet::new();
        count(&mut usage, &mut linked, &metadata);
        let mut directories = vec![top];
        while let Some(directory) = directories.pop() {
            let entries = match std::fs::read_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(Error::io(&directory, "list it"))?,
            };
            for entry in entries {
                let entry = entry.map_err(Error::io(&directory, "list it"))?;
                let metadata = match entry.metadata() {
                    // A container at work removes files while we look.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    metadata => metadata.map_err(Error::io(&entry.path(), "look at it"))?,
                };
                count(&mut usage, &mut linked, &metadata);
                if metadata.is_dir() {
                    directories.push(entry.path());
                }
            }
        }
        Ok(usage)
    }
}

impl Quiet {
    /// Brings the layer's data to the disk.
    pub fn sync(&self) -> Result<()> {
        filesystem::sync(&self.directory).map_err(Error::io(&self.path, "sync it"))
    }
}

fn count(usage: &mut Usage, linked: &mut HashSet<(u64, u64)>, metadata: &Metadata) {
    let links = if metadata.is_dir() { 1 } else { metadata.nlink() };
    if links > 1 && !linked.insert((metadata.dev(), metadata.ino())) {
        return;
    }
    usage.inodes += 1;
    // st_blocks counts in units of 512, whatever the filesystem's blocks are.
    usage.bytes += metadata.blocks() * 512;
}

/// Removes a directory; what can't be removed is left to the next cleanup.
fn remove_or_leave(place: &Path) {
    if let Err(left) = remove::tree(place) {
        log::warn!("{left}: cannot be removed, which is left to the next cleanup");
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    // Not DirBuilder's mode: the umask shall have no say.
    std::fs::create_dir(path).map_err(Error::io(path, "make the directory"))?;
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io(path, "set its mode"))
}

/// Copies what the parent's root is: the mount's root is the upper's, so it has to be said again: owner, mode, and
/// attributes, among which ACLs are. The union's own marks have no meaning there.
fn copy_root(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).map_err(Error::io(from, "open it"))?;
    let metadata = source.metadata().map_err(Error::io(from, "look at it"))?;
    std::os::unix::fs::chown(to, Some(metadata.uid()), Some(metadata.gid()))
        .map_err(Error::io(to, "set its owner"))?;
    std::fs::set_permissions(to, Permissions::from_mode(metadata.mode() & 0o7777))
        .map_err(Error::io(to, "set its mode"))?;
    let at = At::Fd(source.as_fd());
    for name in xattr::list(at).map_err(Error::io(from, "list its attributes"))? {
        if is_private_xattr(&name) {
            continue;
        }
        if let Some(value) = xattr::get(at, &name).map_err(Error::io(from, "read its attributes"))? {
            rustix::fs::setxattr(to, name.as_slice(), &value, XattrFlags::empty())
                .map_err(Error::io(to, "set its attributes"))?;
        }
    }
    Ok(())
}

fn sync(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|open| open.sync_all()).map_err(Error::io(directory, "sync it"))
}
