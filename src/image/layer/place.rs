//! Making objects beneath a root, whatever their names say.
//!
//! One directory is current at a time, known by a descriptor that was opened beneath the root without following any
//! link; objects are made in it by name. So nothing here resolves a path against the host. What lies below a link that an
//! entry before has made is put where the link leads: with the root of the layer as the root (see `way`).
//!
//! What is made in a directory changes its times: they are read when it becomes the current one and set again when
//! another does. That needs no list of directories, so memory doesn't grow with the layer.
//!
//! What hides the layers below is in `hiding`, AUFS's way to keep hardlinks in `plinks`.
//!
//! Time grows with the size of what is unpacked, whatever the tar says: an entry costs as many steps as its path has bytes,
//! and no directory is gone through more than once ([`UnpackTarget::work`] counts).

#![allow(clippy::disallowed_methods, reason = "the layer is being made, and is nobody else's")]

mod hiding;
mod notes;
mod plinks;
mod way;

pub(in crate::image::layer) use plinks::{PLINKS, is_plink};
pub(in crate::image::layer) use way::LONGEST_PATH;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use self::notes::Notes;
use super::LayerError;
use super::attributes::{Attributes, LINKS, LeftOut, Ownership, note_link_owner};
use crate::sys::dir::open_beneath;
use crate::sys::object::{At, Kind, SetTime, Time, Writable};
use crate::sys::remove;
use crate::sys::xattr;
use crate::union::lookup::private;
use crate::union::lookup::private::Namespace;

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A path is opened in pieces that one system call can take (PATH_MAX).
const PIECE: usize = 2048;

/// Opens the directory `path` beneath `root`, following no link.
///
/// # Errors
/// `ENOENT`, and `ENOTDIR` or `ELOOP` where something on the way is no directory.
pub fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    if path.is_empty() {
        return fs::openat(root, ".", DIR, Mode::empty());
    }
    let (mut at, mut rest) = (None::<OwnedFd>, path);
    while !rest.is_empty() {
        let cut = if rest.len() <= PIECE {
            rest.len()
        } else {
            // A name is at most 255 bytes long; one that isn't fails when it is opened.
            rest[..PIECE].iter().rposition(|&b| b == b'/').unwrap_or(rest.len())
        };
        let dir = at.as_ref().map_or(root, AsFd::as_fd);
        at = Some(open_beneath(dir, &rest[..cut])?);
        rest = rest[cut..].strip_prefix(b"/").unwrap_or(&rest[cut..]);
    }
    at.ok_or(Errno::INVAL)
}

/// Marks a directory that the tar doesn't name, so that its attributes count only where no layer below describes it.
pub const IMPLIED: &[u8] = b"user.unionmount.implied";

/// The directory in which objects are made.
#[derive(Debug)]
struct Current {
    path: Vec<u8>,
    fd: OwnedFd,
    mtime: Time,
    /// New objects inherit an ACL that they must not have.
    default_acl: bool,
    changed: bool,
    /// Something in it was replaced, so that its path may lead elsewhere now.
    stale: bool,
}

/// A layer's directory that is being made.
#[derive(Debug)]
pub struct UnpackTarget<'r> {
    root: BorrowedFd<'r>,
    ownership: Ownership,
    namespace: Namespace,
    current: Option<Current>,
    /// An opaque directory was made, and a whiteout: only then can one be pointless.
    any_opaque: bool,
    any_whiteout: bool,
    /// Directories that the tar doesn't name.
    implied: u64,
    work: u64,
    notes: Notes,
}

/// Returns the parent's path and the name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

impl<'r> UnpackTarget<'r> {
    /// Unpacks beneath `root`, an empty directory.
    ///
    /// # Errors
    /// Those of trying where marks can be kept.
    pub fn new(root: BorrowedFd<'r>, ownership: Ownership) -> Result<UnpackTarget<'r>, LayerError> {
        let object = Writable::held(root);
        let probe = Namespace::Trusted.name("probe").into_bytes();
        let namespace = match object.set_xattr(&probe, b"y", XattrFlags::empty()) {
            Ok(()) => {
                object.remove_xattr(&probe).map_err(LayerError::os(b"", "remove an attribute of"))?;
                Namespace::Trusted
            }
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => Namespace::User,
            Err(errno) => return Err(LayerError::os(b"", "set an attribute of")(errno)),
        };
        Ok(UnpackTarget {
            root,
            ownership,
            namespace,
            current: None,
            any_opaque: false,
            any_whiteout: false,
            implied: 0,
            work: 0,
            notes: Notes::default(),
        })
    }

    /// Returns how many directories were made that the tar doesn't name.
    pub fn implied(&self) -> u64 {
        self.implied
    }

    /// Returns the steps taken: components of paths that were opened, objects and attributes made, names listed.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// Takes away what turned out to be pointless, and tells what was left out; the last directory gets its times back.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn finish(&mut self) -> Result<(), LayerError> {
        self.drop_plinks()?;
        if self.any_opaque && self.any_whiteout {
            self.drop_pointless_whiteouts()?;
        }
        self.notes.tell();
        self.leave()
    }

    /// Skips an entry that says something of what isn't there, and tells it at the end.
    pub fn skip(&mut self, entry: &[u8]) {
        self.notes.skipped(entry);
    }

    fn leave(&mut self) -> Result<(), LayerError> {
        match self.current.take() {
            Some(Current { path, fd, mtime, changed: true, .. }) => Writable::held(fd.as_fd())
                .utimens(None, Some(SetTime::At(mtime)))
                .map_err(LayerError::os(&path, "set its times")),
            _ => Ok(()),
        }
    }

    /// Makes the directory the current one. It and its parents are made if they are missing.
    fn enter(&mut self, path: &[u8], entry: &[u8]) -> Result<(), LayerError> {
        self.work += 1;
        if self.current.as_ref().is_some_and(|current| current.path == path && !current.stale) {
            return Ok(());
        }
        self.leave()?;
        self.work += steps(path);
        let fd = match open_dir(self.root, path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.make_way(path, entry)?,
            Err(errno) => return Err(LayerError::os(entry, "open its directory")(errno)),
        };
        self.leave()?;
        self.set_current(path, fd)
    }

    /// Does as [`UnpackTarget::enter`], of a directory that is there: one step from the one that holds it, if that is
    /// the current one.
    fn enter_below(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let (parent, name) = split(path);
        let above = self.current.as_ref().filter(|current| current.path == parent && !name.is_empty());
        let opened = match above {
            Some(current) => open_dir(current.fd.as_fd(), name),
            None => open_dir(self.root, path),
        };
        self.work += if above.is_some() { 1 } else { steps(path) };
        let fd = opened.map_err(LayerError::os(path, "open it"))?;
        self.leave()?;
        self.set_current(path, fd)
    }

    fn set_current(&mut self, path: &[u8], fd: OwnedFd) -> Result<(), LayerError> {
        let at = At::Fd(fd.as_fd());
        let mtime = at.stat().map_err(LayerError::os(path, "stat it"))?.mtime;
        let default_acl = xattr::get(at, b"system.posix_acl_default")
            .map_err(LayerError::os(path, "read its default ACL"))?
            .is_some();
        self.current =
            Some(Current { path: path.to_vec(), fd, mtime, default_acl, changed: false, stale: false });
        Ok(())
    }

    /// Returns the current directory, which is going to change, and whether it has a default ACL.
    fn dir(&mut self) -> Result<(BorrowedFd<'_>, bool), LayerError> {
        match &mut self.current {
            Some(current) => {
                current.changed = true;
                Ok((current.fd.as_fd(), current.default_acl))
            }
            None => Err(LayerError::entry(b"", "no directory is open")),
        }
    }

    /// Makes an object that `make` makes under a free name; what had the name goes.
    fn make<T>(
        &mut self,
        path: &[u8],
        what: &'static str,
        mut make: impl FnMut(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<T, LayerError> {
        let (_, name) = split(path);
        let (dir, _) = self.dir()?;
        match make(dir, name) {
            Err(Errno::EXIST) => {
                remove::entry(dir, name).map_err(LayerError::os(path, "replace what has its name"))?;
                let made = make(dir, name).map_err(LayerError::os(path, what));
                self.replaced();
                made
            }
            other => other.map_err(LayerError::os(path, what)),
        }
    }

    /// Notes that something in the current directory was replaced.
    fn replaced(&mut self) {
        if let Some(current) = &mut self.current {
            current.stale = true;
        }
    }

    /// Notes the attributes that an object can't have.
    fn note(&mut self, path: &[u8], attributes: &Attributes, left_out: Vec<LeftOut>) {
        self.work += attributes.xattrs.len() as u64;
        left_out.into_iter().for_each(|what| self.notes.left_out(path, what));
    }

    /// Makes a regular file, empty, and open for writing.
    pub fn file(&mut self, path: &[u8]) -> Result<OwnedFd, LayerError> {
        self.enter(split(path).0, path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.make(path, "make it", |dir, name| fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR))
    }

    /// Gives an open file its attributes.
    pub fn finish_file(
        &mut self,
        file: BorrowedFd<'_>,
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<(), LayerError> {
        let (ownership, (_, acl)) = (self.ownership, self.dir()?);
        let left_out = attributes.put(Writable::held(file), path, ownership, acl)?;
        self.note(path, attributes, left_out);
        Ok(())
    }

    /// Makes a directory, or gives the one that is there other attributes.
    pub fn directory(&mut self, path: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
        let (parent, name) = split(path);
        self.enter(parent, path)?;
        self.directory_here(name, path, attributes)
    }

    fn directory_here(
        &mut self,
        name: &[u8],
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<(), LayerError> {
        let (ownership, namespace) = (self.ownership, self.namespace);
        let (dir, acl) = self.dir()?;
        let make = || fs::mkdirat(dir, name, Mode::RWXU);
        let mut opaque = false;
        match make() {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let at = At::Name(dir, name);
                let stat = at.stat().map_err(LayerError::os(path, "look at what has its name"))?;
                if stat.kind() == Kind::Directory {
                    // Another description of it counts now; the mark that makes it opaque stays.
                    let object = Writable::entry_of_own(dir, name);
                    for old in xattr::list(at).map_err(LayerError::os(path, "read its attributes"))? {
                        let stays = old == b"security.selinux" || old == LINKS;
                        if private::overlay_mark(&old).is_none() && !stays {
                            object
                                .remove_xattr(&old)
                                .map_err(LayerError::os(path, "replace its attributes"))?;
                        }
                    }
                } else {
                    // Something else of this name was there, in this layer or below: nothing of below shows through.
                    remove::entry(dir, name).map_err(LayerError::os(path, "replace what has its name"))?;
                    make().map_err(LayerError::os(path, "make it"))?;
                    opaque = true;
                }
            }
            Err(errno) => return Err(LayerError::os(path, "make it")(errno)),
        }
        let object = Writable::entry_of_own(dir, name);
        if opaque {
            hiding::set_opaque(object, namespace).map_err(LayerError::os(path, "mark it opaque"))?;
        }
        let left_out = attributes.put(object, path, ownership, acl)?;
        self.note(path, attributes, left_out);
        if opaque {
            self.any_opaque = true;
            self.replaced();
        }
        Ok(())
    }

    /// Returns the root, until the tar describes it.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn implied_root(&mut self) -> Result<(), LayerError> {
        self.root(&Attributes::of_implied_directory())?;
        mark_implied(Writable::held(self.root), b"")
    }

    /// Gives the root its attributes.
    pub fn root(&mut self, attributes: &Attributes) -> Result<(), LayerError> {
        self.enter(b"", b"")?;
        if let Some(current) = &mut self.current {
            current.mtime = attributes.mtime;
        }
        match Writable::held(self.root).remove_xattr(IMPLIED) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(LayerError::os(b"", "remove an attribute of")(errno)),
        }
        let left_out = attributes.put(Writable::held(self.root), b"", self.ownership, false)?;
        self.note(b"", attributes, left_out);
        Ok(())
    }

    /// Makes a symbolic link.
    pub fn symlink(&mut self, path: &[u8], target: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
        self.enter(split(path).0, path)?;
        self.make(path, "make it", |dir, name| fs::symlinkat(target, dir, name))?;
        if self.ownership == Ownership::OverrideStat {
            let dir = Writable::held(self.dir()?.0);
            note_link_owner(dir, split(path).1, path, (attributes.uid, attributes.gid))?;
        }
        self.put_here(path, attributes)
    }

    /// Makes a fifo or a device; none that is a deletion, which its caller has looked after.
    pub fn special(&mut self, path: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
        if attributes.is_kept_as_file(self.ownership) {
            let file = self.file(path)?;
            return self.finish_file(file.as_fd(), path, attributes);
        }
        self.enter(split(path).0, path)?;
        let (kind, what) = match attributes.kind {
            Kind::CharDevice => (FileType::CharacterDevice, "make the device"),
            Kind::BlockDevice => (FileType::BlockDevice, "make the device"),
            _ => (FileType::Fifo, "make the fifo"),
        };
        let rdev = attributes.rdev();
        self.make(path, what, |dir, name| fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, rdev))?;
        self.put_here(path, attributes)
    }

    fn put_here(&mut self, path: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
        let (ownership, (dir, acl)) = (self.ownership, self.dir()?);
        let left_out = attributes.put(Writable::entry_of_own(dir, split(path).1), path, ownership, acl)?;
        self.note(path, attributes, left_out);
        Ok(())
    }

    /// Makes `path` another name of `target`, which this layer must hold.
    pub fn hardlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), LayerError> {
        if path == target {
            return Err(LayerError::entry(path, "is a hardlink to itself"));
        }
        let (target_parent, target_name) = split(target);
        let absent = || {
            let target = target.escape_ascii();
            let what = format!(
                "is a hardlink to {target}, which this layer doesn't hold; here each layer is unpacked for itself, so put \
                 them together first: umoci unpack the image, and unionmount import its rootfs"
            );
            LayerError::entry(path, what)
        };
        let Some(from) = self.find(target_parent, path)? else { return Err(absent()) };
        match At::Name(from.as_fd(), target_name).stat() {
            Ok(stat) if stat.is_whiteout_device() => return Err(absent()),
            Ok(stat) if stat.kind() == Kind::Directory => {
                return Err(LayerError::entry(path, "is a hardlink to a directory"));
            }
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(absent()),
            Err(errno) => return Err(LayerError::os(path, "look at what it is a hardlink to")(errno)),
        }
        self.enter(split(path).0, path)?;
        let (dir, _) = self.dir()?;
        let name = split(path).1;
        // A name that is there goes only if it isn't the target itself or a directory that holds it.
        if is_below(target, path) {
            return Err(LayerError::entry(path, "is a hardlink to something within itself"));
        }
        let link = || fs::linkat(&from, target_name, dir, name, AtFlags::empty());
        match link() {
            Err(Errno::EXIST) => {
                let same = |at: At<'_>| at.stat().map(|stat| (stat.dev, stat.ino));
                if same(At::Name(dir, name)).ok() == same(At::Name(from.as_fd(), target_name)).ok() {
                    return Ok(());
                }
                remove::entry(dir, name).map_err(LayerError::os(path, "replace what has its name"))?;
                link().map_err(LayerError::os(path, "make the hardlink"))?;
                self.replaced();
                Ok(())
            }
            other => other.map_err(LayerError::os(path, "make the hardlink")),
        }
    }
}

/// Returns `parent/name`.
pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// Returns how many components a path has.
fn steps(path: &[u8]) -> u64 {
    path.iter().filter(|&&byte| byte == b'/').count() as u64 + 1
}

/// Returns whether `path` is below `dir`, or the same.
fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn mark_implied(object: Writable<'_>, path: &[u8]) -> Result<(), LayerError> {
    match object.set_xattr(IMPLIED, b"y", XattrFlags::empty()) {
        // A filesystem without attributes: the layer is as good as it can be there.
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(LayerError::os(path, "mark it as implied")(errno)),
    }
}
