//! The upper layer: the only part of the union that can write.
//!
//! Whatever is to appear in the upper is made in the staging directory of the workdir first, with owner, mode,
//! attributes and data, and then **published**: one rename or link makes it visible whole. So a crash at any instant
//! leaves the old state or the new one, and the staging directory is emptied by the next mount.
//!
//! A deletion that must leave a whiteout is one step too: the whiteout is renamed over the removed entry.

#![allow(
    clippy::disallowed_methods,
    reason = "the one part that writes: what it removes and renames was held against what the kernel knows"
)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Kind, Writable};
use crate::sys::remove;
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::change::lend::with_rights;
use crate::union::hardlinks::link_index::LinkIndex;
use crate::union::lookup::marker::{MarkerForms, WH_OPAQUE, WH_PREFIX};
use crate::union::lookup::private::Namespace;
use crate::union::lookup::realdir::RealDir;
use crate::union::nodes::region::Regions;
use crate::union::stack::layer::{UpperCaps, UpperLayer, WhiteoutForm};

/// The descriptor of a directory of the upper.
#[derive(Debug, Clone)]
pub struct UpperFd(Arc<OwnedFd>, Arc<RealDir>);

impl UpperFd {
    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The descriptor, to be kept.
    pub fn shared(&self) -> Arc<OwnedFd> {
        self.0.clone()
    }

    /// The directory holds a whiteout of AUFS's form from now on.
    pub(in crate::union) fn note_aufs_whiteout(&self) {
        self.1.set_forms(MarkerForms { aufs_whiteouts: true, ..self.1.forms().unwrap_or_default() });
    }

    /// The entry `name`, whatever it is: to be looked at. What is changed comes as an
    /// [`Object`](crate::union::nodes::verified::Object).
    pub fn entry<'a>(&'a self, name: &'a [u8]) -> At<'a> {
        At::Name(self.fd(), name)
    }

    /// Is it that directory as well?
    pub(in crate::union) fn is(&self, other: &UpperFd) -> bool {
        Arc::ptr_eq(&self.1, &other.1)
    }

    /// The directory itself.
    pub fn itself(&self) -> Writable<'_> {
        Writable::held(self.fd())
    }
}

/// What is to be made.
#[derive(Debug, Clone, Copy)]
pub enum New<'a> {
    /// An empty regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with that target.
    Symlink(&'a [u8]),
    /// A fifo, a socket or a device with that device number.
    Special(Kind, u64),
}

/// What a name of the upper is taken from.
#[derive(Debug, Clone, Copy)]
pub enum Present<'a> {
    /// Anything but a directory. (A directory in its place is never taken for one.)
    Leaf,
    /// A directory that was just made, with nothing in it.
    Empty,
    /// That directory.
    Directory(&'a RealDir),
}

/// How something staged becomes visible.
#[derive(Debug, Clone, Copy)]
pub enum Publish<'a> {
    /// Under a name that nothing in the upper has.
    New,
    /// In place of what the name has (a whiteout, a file; an empty directory by a directory).
    Replace,
    /// In place of that, whatever the two types are. Without RENAME_EXCHANGE of a whiteout alone.
    Swap(Present<'a>),
}

/// The upper layer and its workdir.
#[derive(Debug)]
pub struct Upper {
    layer: UpperLayer,
    /// fsync nothing: the user said that the upper need not survive a crash.
    volatile: bool,
    one_journal: bool,
    /// How often something was hidden or exchanged on a filesystem without one journal, and how many of these changes were
    /// there when all was last written to the disk; see [`Upper::hiding`].
    hidden: AtomicU64,
    hidden_on_disk: AtomicU64,
    regions: Arc<Regions>,
    next: AtomicU64,
    /// The name, in the staging directory, of the whiteout that all others are links to.
    whiteout: Mutex<Option<Vec<u8>>>,
    links: LinkIndex,
}

impl Upper {
    /// Takes the layer over. Reads the hardlink index. `roots`: of a layer on each filesystem.
    pub fn new(layer: UpperLayer, regions: Arc<Regions>, roots: Vec<Option<Arc<OwnedFd>>>) -> Result<Upper> {
        let volatile = layer.work.volatile();
        let links = LinkIndex::read(&layer, &regions, roots)?;
        let one_journal = has_one_journal(fs::fstatfs(&layer.layer.root)?.f_type as u64);
        Ok(Upper {
            layer,
            volatile,
            one_journal,
            hidden: AtomicU64::new(0),
            hidden_on_disk: AtomicU64::new(0),
            regions,
            next: AtomicU64::new(0),
            whiteout: Mutex::new(None),
            links,
        })
    }

    /// What the upper's filesystem can do.
    pub fn caps(&self) -> &UpperCaps {
        &self.layer.caps
    }

    /// Need changes not survive a crash?
    pub fn is_volatile(&self) -> bool {
        self.volatile
    }

    /// Does an fsync of one object write all changes of names that came before it?
    pub(in crate::union) fn has_one_journal(&self) -> bool {
        self.one_journal
    }

    /// Declares a descriptor to be one of a directory of the upper.
    pub(in crate::union) fn own(&self, fd: Arc<OwnedFd>, dir: Arc<RealDir>) -> UpperFd {
        UpperFd(fd, dir)
    }

    /// The regions of the stack.
    pub(in crate::union) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The hardlink index.
    pub(in crate::union) fn links(&self) -> &LinkIndex {
        &self.links
    }

    /// The directory of the hardlink index.
    pub(in crate::union) fn index_dir(&self) -> BorrowedFd<'_> {
        self.layer.work.index.as_fd()
    }

    /// The root of the upper.
    pub(in crate::union) fn root(&self) -> BorrowedFd<'_> {
        self.layer.layer.root.as_fd()
    }

    pub(in crate::union) fn staging(&self) -> BorrowedFd<'_> {
        self.layer.work.staging.as_fd()
    }

    fn fresh_name(&self) -> Vec<u8> {
        format!("#{:x}", self.next.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Makes an object in the staging directory, open to nobody but the daemon.
    pub fn stage(&self, new: New<'_>) -> Result<Staged<'_>> {
        let name = self.fresh_name();
        let mode = if matches!(new, New::Directory) { 0o700 } else { 0o600 };
        let file = make(self.staging(), &name, new, mode)?;
        changed();
        let directory = matches!(new, New::Directory);
        Ok(Staged { upper: self, name, file, directory, armed: true })
    }

    /// Makes a whiteout in the staging directory: a link to the one that all share, so that none costs an inode.
    fn stage_whiteout(&self) -> Result<Staged<'_>> {
        let name = self.fresh_name();
        self.link_whiteout(self.staging(), &name)?;
        Ok(Staged { upper: self, name, file: None, directory: false, armed: true })
    }

    /// Links the shared whiteout to a name that must be free.
    pub(in crate::union) fn link_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let shared = self.whiteout.lock().clone();
        if let Some(whiteout) = &shared {
            match fs::linkat(self.staging(), &whiteout[..], dir, name, AtFlags::empty()) {
                Ok(()) => {
                    changed();
                    return Ok(());
                }
                // Too many links, a filesystem without any, or somebody emptied the workdir: a new one below.
                Err(Errno::MLINK | Errno::PERM | Errno::NOENT | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e.into()),
            }
        }
        fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)?;
        changed();
        let keep = self.fresh_name();
        match fs::linkat(dir, name, self.staging(), &keep[..], AtFlags::empty()) {
            Ok(()) => {
                changed();
                // Another thread may have been faster: its whiteout stays in the staging directory until the end.
                *self.whiteout.lock() = Some(keep);
            }
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK) => {}
            Err(e) => log::warn!("workdir: no whiteout can be kept to link to: {e}"),
        }
        Ok(())
    }

    /// Hides `name` of the layers below. `present`: does the upper have an entry of that name, to be replaced?
    ///
    /// One atomic step in each form: with AUFS's the whiteout stands beside the entry before that is removed, and
    /// hides only what is below.
    pub fn whiteout(&self, dir: &UpperFd, name: &[u8], present: Option<Present<'_>>) -> Result<()> {
        self.hiding(|| self.whiteout_now(dir, name, present))
    }

    fn whiteout_now(&self, dir: &UpperFd, name: &[u8], present: Option<Present<'_>>) -> Result<()> {
        match self.caps().whiteout {
            WhiteoutForm::Aufs => {
                self.aufs_whiteout(dir, name)?;
                present.map_or(Ok(()), |present| self.remove(dir, name, present))
            }
            WhiteoutForm::CharDev => match present {
                None => self.link_whiteout(dir.fd(), name),
                Some(Present::Leaf) => self.stage_whiteout()?.publish(dir, name, Publish::Replace),
                Some(present) if !self.caps().rename_exchange => {
                    self.whiteout_over_directory(dir, name, present)
                }
                Some(present) => self.stage_whiteout()?.publish(dir, name, Publish::Swap(present)),
            },
        }
    }

    /// Hides `name`, which the upper's directory doesn't have, by a whiteout of its own that has one more link under
    /// `also` in the hardlink index, before it becomes visible. Returns its inode number.
    pub(in crate::union) fn publish_counted_whiteout(
        &self,
        dir: &UpperFd,
        name: &[u8],
        also: &[u8],
    ) -> Result<u64> {
        let staged = self.stage(New::Special(Kind::CharDevice, 0))?;
        let ino = staged.object().at().stat()?.ino;
        let link = || staged.object().link_to(self.index_dir(), also);
        match link() {
            Err(Errno::EXIST) => {
                // Left by a crash, and counted since.
                fs::unlinkat(self.index_dir(), also, AtFlags::empty())?;
                link()?;
            }
            other => other?,
        }
        changed();
        staged.publish(dir, name, Publish::New)?;
        Ok(ino)
    }

    /// Puts a whiteout of AUFS's form beside a name. False: there was one.
    pub(in crate::union) fn aufs_whiteout(&self, dir: &UpperFd, name: &[u8]) -> Result<bool> {
        let marker = [WH_PREFIX, name].concat();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let made = match fs::openat(dir.fd(), &marker[..], flags, Mode::from_raw_mode(0o600)) {
            Ok(_) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e.into()),
        };
        dir.note_aufs_whiteout();
        changed();
        Ok(made)
    }

    /// Removes an entry that hides nothing. A directory that holds markers only is taken out whole first.
    pub fn remove(&self, dir: &UpperFd, name: &[u8], present: Present<'_>) -> Result<()> {
        if matches!(present, Present::Leaf) {
            fs::unlinkat(dir.fd(), name, AtFlags::empty())?;
            changed();
            return Ok(());
        }
        match fs::unlinkat(dir.fd(), name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if !matches!(present, Present::Empty) => {
                self.take_out(dir, name, present).map(drop)
            }
            other => {
                other?;
                changed();
                Ok(())
            }
        }
    }

    /// Takes a directory out of the upper, whole, in one step. It is removed when what is returned is dropped.
    pub(in crate::union) fn take_out(
        &self,
        dir: &UpperFd,
        name: &[u8],
        present: Present<'_>,
    ) -> Result<Staged<'_>> {
        let mut taken =
            Staged { upper: self, name: self.fresh_name(), file: None, directory: true, armed: false };
        fs::renameat(dir.fd(), name, self.staging(), &taken.name[..])?;
        if !is_present(At::Name(self.staging(), &taken.name), present)? {
            // Another directory has come to be there, with who knows what in it: it goes back.
            fs::renameat(self.staging(), &taken.name[..], dir.fd(), name)?;
            return Err(FsError::Stale);
        }
        changed();
        taken.armed = true;
        Ok(taken)
    }

    /// Renames within the upper, one atomic step. `leave_whiteout`: the old name hides what is below afterwards. With
    /// `NOREPLACE` nothing is replaced, where the upper's filesystem can tell.
    pub fn rename(
        &self,
        from: (&UpperFd, &[u8]),
        to: (&UpperFd, &[u8]),
        leave_whiteout: bool,
        flags: RenameFlags,
    ) -> Result<()> {
        if leave_whiteout || flags.contains(RenameFlags::EXCHANGE) {
            return self.hiding(|| self.rename_now(from, to, leave_whiteout, flags));
        }
        self.rename_now(from, to, leave_whiteout, flags)
    }

    fn rename_now(
        &self,
        from: (&UpperFd, &[u8]),
        to: (&UpperFd, &[u8]),
        leave_whiteout: bool,
        flags: RenameFlags,
    ) -> Result<()> {
        let ((from_dir, from_name), (to_dir, to_name)) = (from, to);
        let can = self.caps().rename_noreplace;
        let flags = if can { flags } else { flags - RenameFlags::NOREPLACE };
        let call = |flags| {
            fs::renameat_with(from_dir.fd(), from_name, to_dir.fd(), to_name, flags)?;
            changed();
            Ok::<_, Errno>(())
        };
        if !leave_whiteout {
            return Ok(call(flags)?);
        }
        if self.caps().whiteout == WhiteoutForm::CharDev && self.caps().rename_whiteout {
            return match call(flags | RenameFlags::WHITEOUT) {
                // A filesystem that has each of two flags may not have both at once.
                Err(Errno::INVAL) if !flags.is_empty() => Ok(call(RenameFlags::WHITEOUT)?),
                other => Ok(other?),
            };
        }
        self.rename_behind_guard(from_dir, from_name, || call(flags))
    }

    /// Renames a directory to a name where the upper has a whiteout. `leave_whiteout`: as in [`Upper::rename`].
    pub(in crate::union) fn rename_directory_over_whiteout(
        &self,
        from: (&UpperFd, &[u8]),
        to: (&UpperFd, &[u8]),
        leave_whiteout: bool,
    ) -> Result<()> {
        if !self.caps().rename_exchange {
            let rename = || self.rename(from, to, leave_whiteout, RenameFlags::empty());
            return self.over_whiteout(to.0, to.1, rename);
        }
        // A directory can't replace a device, but it can change places with it.
        self.rename(from, to, false, RenameFlags::EXCHANGE)?;
        if leave_whiteout { Ok(()) } else { self.remove(from.0, from.1, Present::Leaf) }
    }

    /// One more name for an object of the upper.
    pub fn link(&self, object: Writable<'_>, dir: &UpperFd, name: &[u8]) -> Result<()> {
        object.link_to(dir.fd(), name)?;
        changed();
        Ok(())
    }

    /// As [`Upper::link`], over a whiteout: one atomic step.
    pub fn link_over(&self, object: Writable<'_>, dir: &UpperFd, name: &[u8]) -> Result<()> {
        let staged = self.fresh_name();
        object.link_to(self.staging(), &staged)?;
        changed();
        let staged = Staged { upper: self, name: staged, file: None, directory: false, armed: true };
        staged.publish(dir, name, Publish::Replace)
    }

    /// Makes a change that hides what a lower has, or moves what hides it.
    ///
    /// On btrfs an fsync writes a log of single objects: replayed after a power failure, it can take a name away because its
    /// object is elsewhere now, and not bring the whiteout that took the name, and the lower's object would show through.
    /// So the first sync after such a change, of whatever object, writes all that the filesystem holds back.
    fn hiding<R>(&self, change: impl FnOnce() -> R) -> R {
        let note = || {
            if !self.one_journal {
                self.hidden.fetch_add(1, Ordering::AcqRel);
            }
        };
        // Before, for a sync that begins in its midst, and after, for one that began before it was done.
        note();
        let done = change();
        note();
        done
    }

    /// Writes what was published to disk, unless the upper need not survive a crash.
    pub fn sync(&self, fd: BorrowedFd<'_>, data_only: bool) -> Result<()> {
        if self.volatile {
            return Ok(());
        }
        // Each sync sees to it itself: one that relied on another's would return before that is done.
        let hidden = self.hidden.load(Ordering::Acquire);
        if self.hidden_on_disk.load(Ordering::Acquire) < hidden {
            fs::syncfs(fd)?;
            self.hidden_on_disk.fetch_max(hidden, Ordering::AcqRel);
        }
        Ok(if data_only { fs::fdatasync(fd) } else { fs::fsync(fd) }?)
    }

    /// Makes an object right under its name, which nothing may have: for the common case that the daemon's own
    /// credentials are the caller's, so that there is no moment with other rights. A regular file comes open.
    pub fn make_in_place(
        &self,
        dir: &UpperFd,
        name: &[u8],
        new: New<'_>,
        mode: u32,
    ) -> rustix::io::Result<Option<OwnedFd>> {
        let made = make(dir.fd(), name, new, mode)?;
        changed();
        Ok(made)
    }

    /// An unnamed file in the upper's filesystem (O_TMPFILE), to be linked later or never.
    pub fn unnamed_file(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        Ok(fs::openat(self.staging(), ".", flags, Mode::from_raw_mode(0o600))?)
    }

    /// Declares an open file that was made here to be one of the upper.
    pub(in crate::union) fn own_file<'a>(&self, file: BorrowedFd<'a>) -> Writable<'a> {
        Writable::held(file)
    }

    /// The full name of an overlay mark in the upper's namespace.
    pub fn mark_name(&self, mark: &str) -> Vec<u8> {
        self.caps().namespace.name(mark).into_bytes()
    }

    /// Sets an overlay mark.
    pub fn set_mark(&self, object: Writable<'_>, mark: &str, value: &[u8]) -> Result<()> {
        let name = self.mark_name(mark);
        with_rights(object, 0o200, || object.set_xattr(&name, value, XattrFlags::empty()))?;
        changed();
        Ok(())
    }

    /// Makes a directory opaque: what lies below it doesn't count.
    pub fn make_opaque(&self, directory: Writable<'_>) -> Result<()> {
        if self.caps().xattr {
            return self.set_mark(directory, "opaque", b"y");
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match fs::openat(directory.at().pin()?, WH_OPAQUE, flags, Mode::from_raw_mode(0o600)) {
            // Whatever it is that has the name, the directory is opaque by it.
            Ok(_) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        changed();
        Ok(())
    }

    /// As [`Upper::set_mark`], for a mark that the tree is right without: the kernel allows `user.` attributes only on
    /// regular files and directories.
    pub fn set_mark_if_allowed(&self, object: Writable<'_>, mark: &str, value: &[u8]) -> Result<()> {
        match object.set_xattr(&self.mark_name(mark), value, XattrFlags::empty()) {
            Err(Errno::PERM) if self.caps().namespace == Namespace::User => Ok(()),
            Err(_) if !self.caps().xattr => Ok(()),
            other => Ok(other?),
        }
    }

    /// Clean unmount: nothing is left in the workdir but what the next mount needs.
    pub fn close(&self) {
        if let Some(name) = self.whiteout.lock().take()
            && let Err(e) = fs::unlinkat(self.staging(), &name[..], AtFlags::empty())
        {
            log::warn!("workdir: {}: {e}", String::from_utf8_lossy(&name));
        }
        if let Err(e) = self.layer.work.close() {
            log::error!("{e}");
        }
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        // It has descriptors of lowers.
        self.links.close();
        self.close();
    }
}

/// Whether a filesystem of this type (`f_type`, see statfs(2)) commits changes of directories in the order in which they
/// were made, each with all that came before: ext4 (the ordered and writeback modes differ in data only) and XFS.
fn has_one_journal(filesystem: u64) -> bool {
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    matches!(filesystem, EXT4 | XFS)
}

/// Is what was taken from a name what it was taken for? Nobody else can exchange it any more.
fn is_present(taken: At<'_>, present: Present<'_>) -> Result<bool> {
    let stat = taken.stat()?;
    Ok(match present {
        Present::Leaf => stat.kind() != Kind::Directory,
        Present::Empty => stat.kind() == Kind::Directory,
        Present::Directory(real) => real.id == (stat.dev, stat.ino),
    })
}

pub(in crate::union) fn changed() {
    failpoint::reached(Failpoint::Changed);
}

/// Makes an object under a free name. A regular file comes open.
fn make(dir: BorrowedFd<'_>, name: &[u8], new: New<'_>, mode: u32) -> rustix::io::Result<Option<OwnedFd>> {
    let mode = Mode::from_raw_mode(mode);
    match new {
        New::File => {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            return fs::openat(dir, name, flags, mode).map(Some);
        }
        New::Directory => fs::mkdirat(dir, name, mode)?,
        New::Symlink(target) => fs::symlinkat(target, dir, name)?,
        New::Special(kind, rdev) => fs::mknodat(dir, name, file_type(kind), mode, rdev)?,
    }
    Ok(None)
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

/// Something in the staging directory: published, or removed again when it is dropped.
#[derive(Debug)]
pub struct Staged<'u> {
    upper: &'u Upper,
    name: Vec<u8>,
    file: Option<OwnedFd>,
    directory: bool,
    armed: bool,
}

impl Staged<'_> {
    /// The object, to be filled.
    pub fn object(&self) -> Writable<'_> {
        match &self.file {
            Some(file) => Writable::held(file.as_fd()),
            None => Writable::entry_of_own(self.upper.staging(), &self.name),
        }
    }

    /// The open file, if it is a regular one.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|f| f.as_fd())
    }

    /// Takes the open file, which stays open after publishing.
    pub fn take_file(&mut self) -> Option<OwnedFd> {
        self.file.take()
    }

    /// The upper that it is staged for.
    pub(in crate::union) fn upper(&self) -> &Upper {
        self.upper
    }

    /// Where it lies in the staging directory.
    pub(in crate::union) fn place(&self) -> Writable<'_> {
        Writable::entry_of_own(self.upper.staging(), &self.name)
    }

    /// Puts the object under a name of the hardlink index, in place of what has it.
    pub(in crate::union) fn publish_in_index(mut self, name: &[u8]) -> Result<()> {
        fs::renameat(self.upper.staging(), &self.name[..], self.upper.index_dir(), name)?;
        self.armed = false;
        changed();
        Ok(())
    }

    /// Makes the object visible under `name`, in one atomic step.
    pub fn publish(mut self, dir: &UpperFd, name: &[u8], how: Publish<'_>) -> Result<()> {
        let staging = self.upper.staging();
        let call = |flags| {
            fs::renameat_with(staging, &self.name[..], dir.fd(), name, flags)?;
            changed();
            Ok::<_, Errno>(())
        };
        match how {
            Publish::New if self.upper.caps().rename_noreplace => call(RenameFlags::NOREPLACE)?,
            // A filesystem without the flag: the caller knows that the name is free and holds its lock.
            Publish::New => call(RenameFlags::empty())?,
            Publish::Swap(_) if !self.upper.caps().rename_exchange => {
                self.upper.over_whiteout(dir, name, || Ok(call(RenameFlags::empty())?))?;
            }
            Publish::Replace => call(RenameFlags::empty())?,
            Publish::Swap(present) => {
                call(RenameFlags::EXCHANGE)?;
                let taken = At::Name(staging, &self.name);
                if !is_present(taken, present)? {
                    // Another thing has come to be there, with who knows what in it: it goes back.
                    call(RenameFlags::EXCHANGE)?;
                    return Err(FsError::Stale);
                }
                // What was replaced lies in the staging directory now and goes when `self` is dropped.
                self.directory = !matches!(present, Present::Leaf);
                return Ok(());
            }
        }
        self.armed = false;
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let removed = if self.directory {
            remove::entry(self.upper.staging(), &self.name)
        } else {
            fs::unlinkat(self.upper.staging(), &self.name[..], AtFlags::empty())
        };
        // Not an error of the operation: nothing of it is visible, and the next mount empties the directory.
        if let Err(e) = removed {
            log::warn!("workdir: {} was left behind: {e}", String::from_utf8_lossy(&self.name));
        }
    }
}
