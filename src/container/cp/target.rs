//! Objects made in a directory that others may be changing: each is made beside its place, with all that it is, and comes there
//! at once. No link is followed; a new directory comes whole.

#![allow(clippy::disallowed_methods, reason = "what is made is this process's until it has its name")]

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::AtFlags;
use rustix::fs::{
    FileType, Mode, OFlags, RenameFlags, XattrFlags, mkdirat, mknodat, openat, renameat, renameat_with,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::scope::Place;
use crate::container::error::{ContainerError, Result};
use crate::image::layer::Attributes;
use crate::image::layer::place::{open_dir, split};
use crate::sys::cancel::Cancel;
use crate::sys::object::{At, Kind, SetTime, Stat, Writable};
use crate::sys::remove;

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Objects, directories apart.
    pub objects: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Sockets and devices that were left out.
    pub left_out: u64,
}

/// What of the source's attributes its copy has. Modes and times are always copied.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// Owners too, and with them what they give rights by: setuid and setgid bits, file capabilities; ACLs.
    pub archive: bool,
    /// Once this is set, nothing more is made, and what is half made goes.
    pub stopped: Option<&'static Arc<AtomicBool>>,
}

/// A directory in which copies are made.
#[derive(Debug)]
pub struct Target {
    place: Place,
    how: How,
    /// The directory in which paths begin.
    top: OwnedFd,
    /// It is new: under which name it stands until it is whole, and which one it gets.
    new: Option<(Vec<u8>, Vec<u8>)>,
    /// What its top is called below the place, for messages.
    below: Vec<u8>,
    /// What directories become once all is in them.
    dirs: Vec<(Vec<u8>, Attributes)>,
    /// The directory that was entered last.
    current: Option<(Vec<u8>, OwnedFd)>,
    /// Directories that a tar's names lead to by links of the tree.
    linked: HashSet<Vec<u8>>,
    copied: Copied,
}

/// How what is not yet whole is called.
const BESIDE: &str = ".unionmount-cp-";

/// Permission bits without setuid and setgid.
const PLAIN: u32 = 0o1777;

fn fresh() -> Result<Vec<u8>> {
    let mut id = [0; 8];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(ContainerError::io("choose a name", "getrandom"))?;
    Ok(format!("{BESIDE}{}", hex::encode(id)).into_bytes())
}

impl Target {
    /// Returns the place itself, to make things in.
    pub fn within(place: Place, how: How) -> Result<Target> {
        let top = At::Fd(place.dir.as_fd()).pin().map_err(ContainerError::io("open it", place.shown(b"")))?;
        Ok(Target::of(place, how, top, None, Vec::new()))
    }

    fn of(place: Place, how: How, top: OwnedFd, new: Option<(Vec<u8>, Vec<u8>)>, below: Vec<u8>) -> Target {
        let (dirs, linked) = (Vec::new(), HashSet::new());
        Target { place, how, top, new, below, dirs, current: None, linked, copied: Copied::default() }
    }

    /// Returns the directory of that name in the place, which may be there already.
    ///
    /// # Errors
    /// When something else has the name.
    pub fn named(place: Place, name: &[u8], how: How) -> Result<Target> {
        match At::Name(place.dir.as_fd(), name).stat() {
            Err(Errno::NOENT) => Target::new(place, name, how),
            Ok(stat) if stat.kind() == Kind::Directory => {
                let top = open_dir(place.dir.as_fd(), name)
                    .map_err(ContainerError::io("open it", place.shown(name)))?;
                Ok(Target::of(place, how, top, None, name.to_vec()))
            }
            Ok(_) => Err(ContainerError::Refused(format!(
                "{}: is no directory, so that a directory can't be copied to it",
                place.shown(name).display()
            ))),
            Err(errno) => Err(ContainerError::io("look at it", place.shown(name))(errno)),
        }
    }

    /// Returns a new directory, which gets its name when it is whole.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn new(place: Place, name: &[u8], how: How) -> Result<Target> {
        let beside = fresh()?;
        let shown = place.shown(name);
        mkdirat(&place.dir, &beside[..], Mode::RWXU).map_err(ContainerError::io("create it", &shown))?;
        let top = open_dir(place.dir.as_fd(), &beside).map_err(ContainerError::io("open it", &shown))?;
        Ok(Target::of(place, how, top, Some((beside, name.to_vec())), name.to_vec()))
    }

    /// Tells whether an object is the new directory.
    pub fn is_own(&self, stat: &Stat) -> bool {
        let own =
            || At::Fd(self.top.as_fd()).stat().is_ok_and(|own| (own.dev, own.ino) == (stat.dev, stat.ino));
        self.new.is_some() && stat.kind() == Kind::Directory && own()
    }

    /// Returns what messages call a path.
    fn shown(&self, path: &[u8]) -> PathBuf {
        let below = [&self.below[..], path].into_iter().filter(|part| !part.is_empty());
        self.place.shown(&below.collect::<Vec<_>>().join(&b'/'))
    }

    fn io<E: Into<io::Error>>(
        &self,
        what: &'static str,
        path: &[u8],
    ) -> impl FnOnce(E) -> ContainerError + use<E> {
        ContainerError::io(what, self.shown(path))
    }

    /// Notes what the top becomes, if it is new or all is to be as it was.
    pub fn top(&mut self, attributes: &Attributes) {
        if self.new.is_some() || self.how.archive {
            self.dirs.push((Vec::new(), attributes.clone()));
        }
    }

    /// Makes a directory, or takes the one that is there.
    ///
    /// # Errors
    /// When something else has the name; those of making it.
    pub fn directory(&mut self, path: &[u8], attributes: &Attributes) -> Result<()> {
        let (parent, name) = split(path);
        let dir = self.enter(parent)?;
        match mkdirat(&dir, name, Mode::RWXU) {
            Ok(()) => self.dirs.push((path.to_vec(), attributes.clone())),
            Err(Errno::EXIST) => {
                let there = At::Name(dir.as_fd(), name).stat().map_err(self.io("look at it", path))?;
                if there.kind() != Kind::Directory {
                    return Err(
                        self.refused(path, "is no directory, so that a directory can't be copied to it")
                    );
                }
                if self.how.archive {
                    self.dirs.push((path.to_vec(), attributes.clone()));
                }
            }
            Err(errno) => return Err(self.io("create it", path)(errno)),
        }
        Ok(())
    }

    /// Makes a file; `fill` writes what is in it and tells how much that is.
    ///
    /// # Errors
    /// When a directory has the name; those of making it and of `fill`.
    pub fn file(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        fill: impl FnOnce(BorrowedFd<'_>) -> Result<u64>,
    ) -> Result<()> {
        let (parent, name) = split(path);
        let dir = self.enter(parent)?;
        self.check(&dir, path)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let beside = fresh()?;
        let (file, named) = match openat(&dir, ".", flags | OFlags::TMPFILE, mode) {
            Ok(file) => (file, false),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let file = openat(&dir, &beside[..], flags | OFlags::CREATE | OFlags::EXCL, mode);
                (file.map_err(self.io("create it", path))?, true)
            }
            Err(errno) => return Err(self.io("create it", path)(errno)),
        };
        let done = self.stoppable(|| fill(file.as_fd())).and_then(|bytes| {
            self.attributes(Writable::held(file.as_fd()), path, attributes)?;
            let link = |name: &[u8]| Writable::held(file.as_fd()).link_to(dir.as_fd(), name);
            if !named {
                match link(name) {
                    Ok(()) => return Ok(bytes),
                    Err(Errno::EXIST) => link(&beside).map_err(self.io("create it", path))?,
                    Err(errno) => return Err(self.io("create it", path)(errno)),
                }
            }
            self.put_in_place(&dir, &beside, path).map(|()| bytes)
        });
        if done.is_err() && named {
            drop_beside(&dir, &beside);
        }
        self.copied.bytes += done?;
        self.copied.objects += 1;
        Ok(())
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// When a directory has the name; those of making it.
    pub fn symlink(&mut self, path: &[u8], link: &[u8], attributes: &Attributes) -> Result<()> {
        self.beside(path, |target, dir, beside| {
            symlinkat(link, dir, beside).map_err(target.io("create it", path))?;
            let made = target.made(dir, beside, path, Kind::Symlink)?;
            target.attributes(Writable::held(made.as_fd()), path, attributes)
        })
    }

    /// Gives a file that was made one more name.
    ///
    /// # Errors
    /// When a directory has the name; those of making it.
    pub fn hardlink(&mut self, path: &[u8], first: &[u8]) -> Result<()> {
        let (parent, name) = split(first);
        let from = self.enter(parent)?;
        self.beside(path, |target, dir, beside| {
            Writable::entry_of_own(from.as_fd(), name)
                .link_to(dir, beside)
                .map_err(target.io("create it", path))
        })
    }

    /// Makes a fifo, and within a container a device. What can't be made is left out, and told.
    ///
    /// # Errors
    /// When a directory has the name; those of making it.
    pub fn special(&mut self, path: &[u8], attributes: &Attributes) -> Result<()> {
        let kind = match attributes.kind {
            Kind::Fifo => FileType::Fifo,
            // A device of somebody else's choice is a way into the machine.
            Kind::CharDevice | Kind::BlockDevice if !self.place.takes_devices() => {
                return self.leave_out(path, "a device");
            }
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => return self.leave_out(path, "a socket, which only its server makes"),
        };
        let (major, minor) = attributes.device;
        let device = rustix::fs::makedev(major, minor);
        let made = self.beside(path, |target, dir, beside| {
            mknodat(dir, beside, kind, Mode::RUSR | Mode::WUSR, device)
                .map_err(target.io("create it", path))?;
            let made = target.made(dir, beside, path, attributes.kind)?;
            target.attributes(Writable::held(made.as_fd()), path, attributes)
        });
        match made {
            Err(ContainerError::Io { source, .. })
                if kind != FileType::Fifo && source.kind() == io::ErrorKind::PermissionDenied =>
            {
                self.leave_out(path, "a device, which only root can make")
            }
            made => made,
        }
    }

    fn leave_out(&mut self, path: &[u8], what: &str) -> Result<()> {
        log::warn!("{}: left out: {what}", self.shown(path).display());
        self.copied.left_out += 1;
        Ok(())
    }

    /// Gives directories what they become, and the new one its name.
    ///
    /// # Errors
    /// Those of changing them; when something has the name by now.
    pub fn finish(mut self) -> Result<Copied> {
        for (path, attributes) in std::mem::take(&mut self.dirs).into_iter().rev() {
            let dir = self.enter(&path)?;
            self.attributes(Writable::held(dir.as_fd()), &path, &attributes)?;
        }
        if let Some((beside, name)) = &self.new {
            let dir = &self.place.dir;
            match renameat_with(dir, &beside[..], dir, &name[..], RenameFlags::NOREPLACE) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    renameat(dir, &beside[..], dir, &name[..])
                }
                done => done,
            }
            .map_err(self.io("create it", b""))?;
            self.new = None;
        }
        Ok(self.copied)
    }

    /// Refuses to go on once the user has ended it.
    fn check_stopped(&self) -> Result<()> {
        match self.how.stopped {
            Some(stopped) if stopped.load(Ordering::Relaxed) => {
                Err(ContainerError::Refused("stopped; what was copied before stays".into()))
            }
            _ => Ok(()),
        }
    }

    /// Copies data, until the user ends it.
    fn stoppable<T>(&self, copy: impl FnOnce() -> Result<T>) -> Result<T> {
        let done = match self.how.stopped {
            Some(stopped) => Cancel::by(stopped.clone()).during(copy),
            None => copy(),
        };
        self.check_stopped()?;
        done
    }

    /// Enters a directory below the top.
    fn enter(&mut self, path: &[u8]) -> Result<OwnedFd> {
        self.check_stopped()?;
        if self.current.as_ref().is_none_or(|(known, _)| known != path) {
            let leads_through = |link: &Vec<u8>| {
                path.strip_prefix(&link[..]).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            };
            let dir = match path {
                b"" => At::Fd(self.top.as_fd()).pin(),
                path if self.linked.iter().any(leads_through) => self.place.through_links(path),
                path => open_dir(self.top.as_fd(), path),
            };
            self.current = Some((path.to_vec(), dir.map_err(self.io("open it", path))?));
        }
        match &self.current {
            Some((_, dir)) => At::Fd(dir.as_fd()).pin().map_err(self.io("open it", path)),
            None => Err(self.refused(path, "is not open")),
        }
    }

    /// Makes the way to a path that a tar names without its directories; links on it are followed within the tree.
    pub(super) fn make_way(&mut self, path: &[u8]) -> Result<()> {
        if path.is_empty() || self.enter(path).is_ok() {
            return Ok(());
        }
        match self.place.through_links(path) {
            Ok(dir) => {
                self.linked.insert(path.to_vec());
                self.current = Some((path.to_vec(), dir));
                Ok(())
            }
            Err(Errno::NOENT) => {
                self.make_way(split(path).0)?;
                self.directory(path, &Attributes::of_implied_directory())
            }
            Err(errno) => Err(self.io("open it", path)(errno)),
        }
    }

    /// Makes an object under another name and moves it to its place.
    fn beside(
        &mut self,
        path: &[u8],
        make: impl FnOnce(&Target, BorrowedFd<'_>, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let dir = self.enter(split(path).0)?;
        self.check(&dir, path)?;
        let beside = fresh()?;
        let done = make(self, dir.as_fd(), &beside).and_then(|()| self.put_in_place(&dir, &beside, path));
        if done.is_err() {
            drop_beside(&dir, &beside);
        }
        done?;
        self.copied.objects += 1;
        Ok(())
    }

    /// Holds what was made under another name. Whoever works in the tree may have put a link there since, and by its name the mode of
    /// what that leads to would be set, on the host.
    fn made(&self, dir: BorrowedFd<'_>, beside: &[u8], path: &[u8], kind: Kind) -> Result<OwnedFd> {
        let made = At::Name(dir, beside).pin().map_err(self.io("open it", path))?;
        let stat = At::Fd(made.as_fd()).stat().map_err(self.io("look at it", path))?;
        match stat.kind() == kind {
            true => Ok(made),
            false => Err(self.refused(path, "was exchanged by another while it was being made")),
        }
    }

    fn put_in_place(&self, dir: &OwnedFd, beside: &[u8], path: &[u8]) -> Result<()> {
        let name = split(path).1;
        let moved = renameat(dir, beside, dir, name);
        if let Err(errno) = moved {
            drop_beside(dir, beside);
            return Err(match errno {
                Errno::BUSY => {
                    self.refused(path, "something is mounted on it; copy to where that comes from")
                }
                errno => self.io("put it there", path)(errno),
            });
        }
        // Two names of one file are left where they are.
        drop_beside(dir, beside);
        Ok(())
    }

    /// Refuses to put something in a directory's place.
    fn check(&self, dir: &OwnedFd, path: &[u8]) -> Result<()> {
        match At::Name(dir.as_fd(), split(path).1).stat() {
            Ok(stat) if stat.kind() == Kind::Directory => {
                Err(self.refused(path, "is a directory, which nothing else can take the place of"))
            }
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.io("look at it", path)(errno)),
        }
    }

    fn refused(&self, path: &[u8], why: &str) -> ContainerError {
        ContainerError::Refused(format!("{}: {why}", self.shown(path).display()))
    }

    /// Gives an object what it is to have: owner, mode, attributes, times; each undoes what would come after it.
    fn attributes(&self, object: Writable<'_>, path: &[u8], attributes: &Attributes) -> Result<()> {
        let link = attributes.kind == Kind::Symlink;
        if self.how.archive {
            match object.chown(Some(attributes.uid), Some(attributes.gid)) {
                // An ordinary user can't give files away on the host.
                Err(Errno::PERM) if self.place.is_of_host() && !rustix::process::getuid().is_root() => {}
                done => done.map_err(self.io("set the owner of it", path))?,
            }
        }
        if !link {
            let mode = if self.how.archive { attributes.mode } else { attributes.mode & PLAIN };
            object.chmod(mode).map_err(self.io("set the mode of it", path))?;
        }
        for (name, value) in attributes.xattrs.iter().filter(|(name, _)| self.keeps(name)) {
            match object.set_xattr(name, value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(Errno::PERM | Errno::ACCESS) if link => {}
                Err(errno) => return Err(self.io("set an attribute of it", path)(errno)),
            }
        }
        let time = Some(SetTime::At(attributes.mtime));
        object.utimens(time, time).map_err(self.io("set the times of it", path))
    }

    fn keeps(&self, name: &[u8]) -> bool {
        name.starts_with(b"user.")
            || self.how.archive && (name == b"security.capability" || name.starts_with(b"system.posix_acl_"))
    }
}

/// Removes what was made under another name; that it isn't there is as good.
fn drop_beside(dir: &OwnedFd, beside: &[u8]) {
    match unlinkat(dir, beside, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => log::warn!("{}: is left: {errno}", beside.escape_ascii()),
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some((beside, _)) = &self.new
            && let Err(errno) = remove::entry(self.place.dir.as_fd(), beside)
        {
            log::warn!("{}: is left: {errno}", self.place.shown(beside).display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::cp::scope::{Destination, Scope};

    #[test]
    fn what_was_put_in_its_place_meanwhile_is_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        let Destination::Directory(place) = Scope::inside(root, "c").destination(b"/").unwrap() else {
            panic!("it is a directory");
        };
        let target = Target::within(place, How { archive: false, stopped: None }).unwrap();
        let made = |name: &[u8]| target.made(target.top.as_fd(), name, b"f", Kind::Fifo);
        mknodat(&target.top, "own", FileType::Fifo, Mode::RUSR, 0).unwrap();
        made(b"own").unwrap();
        symlinkat("/etc/hostname", &target.top, "exchanged").unwrap();
        let refused = made(b"exchanged").unwrap_err().to_string();
        assert!(refused.contains("exchanged by another"), "{refused}");
    }
}
