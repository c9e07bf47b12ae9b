//! An upper that nobody has mounted, held to be changed; and what a kill has left beside it.

#![allow(clippy::disallowed_methods, reason = "the directories are its own")]

use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, RenameFlags, fsync, renameat_with, statat};
use rustix::io::Errno;

use crate::sys::filesystem;
use crate::sys::flock::{Access, lock_until};
use crate::sys::mountinfo::Table;
use crate::sys::remove;
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below::read_head;
use crate::union::frozen::mark::{Head, random};
use crate::union::frozen::record::{Base, Record};
use crate::union::frozen::site::{Layers, Site, make_own, write_record};
use crate::union::frozen::unfit::{Result, SnapshotError};
use crate::union::stack::alone::lock_upper;
use crate::union::stack::directory::Layer;
use crate::union::stack::lock::{DirLock, LOCK_WAIT};
use crate::union::stack::stack_error::StackError;
use crate::union::stack::workdir::{Workdir, WorkdirPlace};

/// The new upper, until it has the name at which it is exchanged.
pub(in crate::union) const NEW: &str = "new";
/// The upper that a rollback throws away.
pub(in crate::union) const GONE: &str = "gone";

/// How long another may be at the record.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// An upper that nobody has mounted, or the mount itself that has it.
pub(in crate::union) struct Held {
    // Order matters: the workdir is closed before the lock on the upper goes.
    pub work: Arc<Workdir>,
    pub upper: Layer,
    pub site: Site,
    /// Whether it is a container's, which knows itself what lies below it.
    pub is_containers: bool,
    /// None: a mount has it, which is there and asks.
    _lock: Option<DirLock>,
}

/// A record, locked to be changed.
#[derive(Debug)]
pub(in crate::union) struct Writing {
    pub layers: Layers,
    _lock: File,
}

/// Why an upper isn't exchanged.
#[derive(Debug)]
pub(in crate::union) enum NotExchanged {
    /// All is as it was.
    AsBefore(SnapshotError),
    /// The exchange stands, or the disk may say so: nothing that lies beside the upper may be removed.
    Lost(SnapshotError),
}

impl From<NotExchanged> for SnapshotError {
    fn from(why: NotExchanged) -> SnapshotError {
        match why {
            NotExchanged::AsBefore(error) | NotExchanged::Lost(error) => error,
        }
    }
}

/// Why an upper isn't touched that isn't the one that was opened.
const OTHER_MEANWHILE: &str = "was exchanged for another directory meanwhile";

impl Held {
    /// Locks an upper, and leaves its workdir as a clean unmount does.
    pub fn begin(path: &Path, work: Option<&Path>, what: OfWhat) -> std::result::Result<Held, StackError> {
        let (upper, lock) = lock_upper(path, LOCK_WAIT)?;
        let site = Site::of(upper.root.as_fd(), path)?;
        site.is_no_frozen_layer(path)?;
        is_nobodys(&site, path, what)?;
        is_not_the_kernels(&upper, path)?;
        let place = match work {
            Some(work) => WorkdirPlace::named(work)?,
            None => WorkdirPlace::beside(&upper)?,
        };
        let work = place.prepare(&upper, LOCK_WAIT)?.begin(false)?;
        let is_containers = is_containers(&site)?;
        Ok(Held { work: Arc::new(work), upper, site, is_containers, _lock: Some(lock) })
    }

    /// Returns the upper of a mount, which asks, and has the locks.
    pub fn of_mount(upper: Layer, work: Arc<Workdir>) -> Result<Held> {
        let site = Site::of(upper.root.as_fd(), &upper.path)?;
        site.is_no_frozen_layer(&upper.path)?;
        // Whoever asks the mount of a container means the container.
        is_nobodys(&site, &upper.path, OfWhat::OwnSnapshots)?;
        let is_containers = is_containers(&site)?;
        Ok(Held { work, upper, site, is_containers, _lock: None })
    }

    /// Reads what the upper lies on.
    pub fn head(&self) -> Result<Option<Head>> {
        read_head(self.upper.root.as_fd(), &self.upper.path)
    }

    /// Tells whether nothing is in the upper.
    pub fn is_empty(&self) -> Result<bool> {
        let names = remove::names(self.upper.root.as_fd());
        Ok(names.map_err(SnapshotError::io("list it", &self.upper.path))?.is_empty())
    }

    /// Opens the record to change it, made if there is none.
    pub fn writing(&self) -> Result<Writing> {
        if self.site.layers()?.is_none() {
            let (parent, name) = (self.site.parent.as_fd(), self.site.layers_name());
            make_layers((parent, &name, &self.site.parent_path.join(&name)), None)?;
        }
        self.existing()?
            .ok_or_else(|| SnapshotError::refused(&self.upper.path, "is being changed by another"))
    }

    /// Opens the record to change it, if there is one, and removes what a kill has left.
    pub fn existing(&self) -> Result<Option<Writing>> {
        let Some(layers) = self.site.layers()? else { return Ok(None) };
        let mut writing = Writing::lock(layers)?;
        writing.recover()?;
        Ok(Some(writing))
    }

    /// Writes to the disk what is to be there before the exchange.
    pub fn sync(&self) -> Result<()> {
        let synced = filesystem::sync(&self.site.parent);
        synced.map_err(SnapshotError::io("write to the disk what is in", &self.upper.path))
    }

    /// Exchanges the upper for what is in `.NAME.layers` under that name: the one step.
    ///
    /// # Errors
    /// See [`NotExchanged`].
    pub fn exchange(&self, layers: &Layers, with: &str) -> std::result::Result<(), NotExchanged> {
        self.exchange_names(layers, with).map_err(NotExchanged::AsBefore)?;
        failpoint::reached(Failpoint::Changed);
        // By names: another directory may have come into its place since it was looked at, and would be removed as the upper.
        let path = &self.upper.path;
        let why = match self.is_at(layers.dir.as_fd(), with) {
            Ok(true) => None,
            Ok(false) => Some(SnapshotError::refused(path, OTHER_MEANWHILE)),
            Err(errno) => Some(SnapshotError::io("look at it after it was exchanged", path)(errno)),
        };
        if let Some(why) = why {
            return Err(match self.take_back(layers, with) {
                Ok(()) => NotExchanged::AsBefore(why),
                Err(back) => NotExchanged::Lost(self.other_not_put_back(layers, with, &why, back)),
            });
        }
        self.sync_names(layers).or_else(|errno| self.exchange_back(layers, with, errno))
    }

    fn exchange_names(&self, layers: &Layers, with: &str) -> Result<()> {
        let path = &self.upper.path;
        if !self
            .is_at(self.site.parent.as_fd(), &self.site.name)
            .map_err(SnapshotError::io("look at it", path))?
        {
            return Err(SnapshotError::refused(path, OTHER_MEANWHILE));
        }
        renameat_with(&self.site.parent, &self.site.name, &layers.dir, with, RenameFlags::EXCHANGE).map_err(
            |errno| match errno {
                Errno::INVAL | Errno::NOSYS => SnapshotError::refused(
                    path,
                    "its filesystem can't exchange two directories in one step; use an upper on ext4, XFS, btrfs or tmpfs",
                ),
                errno => SnapshotError::io("exchange it for a new upper", path)(errno),
            },
        )
    }

    /// Tells whether the upper has that name in a directory.
    fn is_at(&self, dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> std::result::Result<bool, Errno> {
        let found = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        #[allow(clippy::unnecessary_cast)] // the types differ by architecture
        let id = (found.st_dev as u64, found.st_ino as u64);
        Ok(id == (self.upper.dev, self.upper.ino))
    }

    fn sync_names(&self, layers: &Layers) -> std::result::Result<(), Errno> {
        [&self.site.parent, &layers.dir].into_iter().try_for_each(fsync)
    }

    /// Takes an exchange back for the sake of an error: who is told of that finds all as it was, also after a power failure.
    ///
    /// # Errors
    /// When it can't be taken back, or the disk may not know that it was; then nothing may be removed.
    pub fn take_back(&self, layers: &Layers, with: &str) -> std::result::Result<(), Errno> {
        let names = (&self.site.parent, &self.site.name, &layers.dir);
        renameat_with(names.0, names.1, names.2, with, RenameFlags::EXCHANGE)?;
        self.sync_names(layers)
    }

    /// Takes the exchange back, of which the disk may not know.
    fn exchange_back(
        &self,
        layers: &Layers,
        with: &str,
        unsynced: Errno,
    ) -> std::result::Result<(), NotExchanged> {
        let path = &self.upper.path;
        let Err(back) = self.take_back(layers, with) else {
            let error = SnapshotError::io("write to the disk where it is", path)(unsynced);
            return Err(NotExchanged::AsBefore(error));
        };
        let why = format!("where it is can't be written to the disk: {unsynced}");
        Err(NotExchanged::Lost(self.not_put_back(layers, with, &why, back)))
    }

    /// Says where the upper is after an exchange that failed, by `why`, and couldn't be taken back. What is to be thrown away gets
    /// another name first, under which nobody removes it.
    pub fn not_put_back(&self, layers: &Layers, with: &str, why: &str, back: Errno) -> SnapshotError {
        let is_upper = self.is_at(layers.dir.as_fd(), with) == Ok(true);
        let path = self.kept_at(layers, with, is_upper);
        SnapshotError::damaged(
            &self.upper.path,
            format!(
                "{why}, nor can it be put back: {back}; what was in it is in {path} now, or may be there after a power failure: copy it \
                 before anything else is done with it",
            ),
        )
    }

    /// Says the same where something else than the upper was exchanged, or it isn't known what.
    pub fn other_not_put_back(
        &self,
        layers: &Layers,
        with: &str,
        why: &SnapshotError,
        back: Errno,
    ) -> SnapshotError {
        let path = self.kept_at(layers, with, true);
        SnapshotError::damaged(
            &self.upper.path,
            format!(
                "{why}, nor can what was in its place be put back: {back}; that is in {path} now, or may be there after a power failure, and \
                 a new upper in its place: put back what belongs there before anything else is done",
            ),
        )
    }

    /// Returns where what has that name is from now on. `keep`: the next who looks must not remove it.
    fn kept_at(&self, layers: &Layers, with: &str, keep: bool) -> EscapedPath {
        let kept = if keep && with == GONE { self.keep(layers, with) } else { None };
        EscapedPath::from(layers.path.join(kept.as_deref().unwrap_or(with)).as_path())
    }

    /// Gives what would be removed by the next who looks another name. Returns the name.
    fn keep(&self, layers: &Layers, with: &str) -> Option<String> {
        /// More were never left by anybody who reads what he is told.
        const MOST: u32 = 1000;
        let warn = |what: &str, errno: Errno| {
            log::warn!("{}: {what}: {errno}", EscapedPath::from(layers.path.join(with).as_path()));
        };
        for number in 1..=MOST {
            let name = format!("rescued-{number}");
            match renameat_with(&layers.dir, with, &layers.dir, &name, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    // Else it has the name by which it is removed again after a power failure.
                    if let Err(errno) = fsync(&layers.dir) {
                        warn("its new name can't be written to the disk", errno);
                    }
                    return Some(name);
                }
                Err(Errno::EXIST) => {}
                Err(errno) => {
                    warn("can't be renamed", errno);
                    return None;
                }
            }
        }
        None
    }

    /// Removes what was prepared under a name to be exchanged, and wasn't. Where the upper itself has that name it stays.
    ///
    /// # Errors
    /// When it is the upper, or can't be removed.
    pub fn give_up(&self, writing: &Writing, with: &str) -> Result<()> {
        let path = writing.layers.path.join(with);
        match self.is_at(writing.layers.dir.as_fd(), with) {
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(SnapshotError::io("look at it", path)(errno)),
            Ok(true) => {
                let why =
                    "this is the upper itself, which stays: put it back in its place, or copy what is in it";
                Err(SnapshotError::damaged(path, why))
            }
            Ok(false) => writing.remove(with),
        }
    }
}

/// Makes a directory for frozen layers, with a record that has none: in an open directory, with a name. The path is for messages.
pub(super) fn make_layers(
    (parent, name, path): (BorrowedFd<'_>, &OsStr, &Path),
    base: Option<Base>,
) -> Result<()> {
    let dir = make_own(parent, name, path)?;
    failpoint::reached(Failpoint::Changed);
    let id = random().map_err(SnapshotError::io("make an id for it", path))?;
    write_record(dir.as_fd(), path, &Record::new(id, base))?;
    failpoint::reached(Failpoint::Changed);
    Ok(())
}

impl Writing {
    /// Locks a record, and reads it again.
    pub fn lock(layers: Layers) -> Result<Writing> {
        let lock = layers.to_lock()?;
        let locked = lock_until(&lock, Access::Exclusive, Instant::now() + PATIENCE);
        if !locked.map_err(SnapshotError::io("lock it", &layers.path))? {
            return Err(SnapshotError::refused(&layers.path, "another is changing its snapshots; try again"));
        }
        let layers = layers
            .again()?
            .ok_or_else(|| SnapshotError::damaged(&layers.path, "its record stack.json is gone"))?;
        Ok(Writing { layers, _lock: lock })
    }

    /// Removes what a kill, or who has given up, has left.
    pub fn recover(&mut self) -> Result<()> {
        if let Some(last) = self.layers.record.layers.last().cloned()
            && self.is_prepared(last.layer)?
        {
            self.layers.record.layers.pop();
            self.layers.record.removing.push(last.directory());
            self.layers.write()?;
            failpoint::reached(Failpoint::Changed);
        }
        // Never exchanged.
        self.remove(NEW)?;
        // Its content was thrown away, or it was never exchanged.
        self.remove(GONE)?;
        self.remove_leaving()
    }

    /// Tells whether a layer of the record was prepared and never exchanged: an upper that is to lie on it is there, under its
    /// number or under none yet. A layer of which nothing is there is another matter: who moved it away may bring it back.
    fn is_prepared(&self, layer: u32) -> Result<bool> {
        for name in [self.layers.directory(layer).as_str(), NEW] {
            let dir = self.layers.entry(name)?;
            let Some(dir) = dir else { continue };
            if read_head(dir.as_fd(), &self.layers.path.join(name))?.is_some_and(|head| head.layer == layer) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the directories of layers that the record has given up.
    pub fn remove_leaving(&mut self) -> Result<()> {
        if self.layers.record.removing.is_empty() {
            return Ok(());
        }
        for gone in self.layers.record.removing.clone() {
            self.remove(&gone.to_string())?;
        }
        self.layers.record.removing.clear();
        self.layers.write()
    }

    /// Removes an entry with all that is in it.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.layers.path.join(name);
        remove::entry(self.layers.dir.as_fd(), name.as_bytes())
            .map_err(SnapshotError::io("remove it", path))?;
        failpoint::reached(Failpoint::Changed);
        Ok(())
    }
}

/// What somebody wants of an upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::union) enum OfWhat {
    /// To freeze it, or throw away what is in it.
    Snapshots,
    /// The same, of a container by its name.
    OwnSnapshots,
    /// To have it lie on others.
    Layers,
}

/// Tells whether that is the upper of a container of a store of this program's.
fn is_containers(site: &Site) -> Result<bool> {
    let within = site.parent_path.parent().and_then(Path::file_name);
    let is_named = site.name == "diff" && within.is_some_and(|within| within == "containers");
    Ok(is_named && is_there(&site.parent_path.join("config.json"))?)
}

/// Tells whether something is at a path. What can't be looked at may be what keeps others away.
fn is_there(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => {
            Err(SnapshotError::io("find out whose the upper beside it is: look at it", path)(error))
        }
    }
}

/// Refuses the uppers of container engines, of containers and tries: their directories are their own.
pub(in crate::union) fn is_nobodys(site: &Site, path: &Path, what: OfWhat) -> Result<()> {
    let parent = &site.parent_path;
    let (above, name) = (parent.parent().unwrap_or(parent), site.name.as_os_str());
    let is_called = |dir: &Path, name: &str| dir.file_name().is_some_and(|own| own == name);
    let (whose, instead) = if name == "diff" && is_there(&parent.join("link"))? {
        (
            "a container engine's own (podman, buildah, CRI-O or Docker)",
            "take a snapshot with it, as podman commit does",
        )
    } else if name == "fs" && is_called(above, "snapshots") {
        ("containerd's own, or the snapshotter's", "take a snapshot with ctr or nerdctl commit")
    } else if is_containers(site)? {
        if what == OfWhat::OwnSnapshots {
            return Ok(());
        }
        ("a container's", "name the container itself, as unionmount ps -a lists it")
    } else if is_called(above, "tries") && is_there(&parent.join("record.json"))? {
        ("a try's", "unionmount try --resume goes on with it")
    } else {
        return Ok(());
    };
    let instead = match what {
        OfWhat::Snapshots | OfWhat::OwnSnapshots => instead,
        OfWhat::Layers => "what it lies on is noted there, and stays",
    };
    Err(SnapshotError::refused(path, format!("is {whose}; {instead}")))
}

/// Refuses an upper that the kernel's overlayfs has mounted, which doesn't look at locks.
fn is_not_the_kernels(upper: &Layer, path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let table = Table::read().map_err(SnapshotError::io("read what is mounted, for the sake of", path))?;
    for entry in table.entries().filter(|entry| entry.kind == "overlay") {
        let upper_of =
            entry.filesystem_options.split(',').find_map(|option| option.strip_prefix("upperdir="));
        let same = |stat: std::fs::Metadata| (stat.dev(), stat.ino()) == (upper.dev, upper.ino);
        if upper_of.and_then(|of| std::fs::metadata(of).ok()).is_some_and(same) {
            return Err(SnapshotError::refused(
                path,
                "the kernel's overlayfs has it mounted; unmount that first",
            ));
        }
    }
    Ok(())
}
