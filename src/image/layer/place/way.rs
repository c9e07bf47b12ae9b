//! The way to a directory, over links that the layer itself has made.
//!
//! Other engines unpack into a root of their own (chroot, or paths that are resolved as there), so a link leads within that
//! root and never out of it: its target is read, and walked a component at a time from a descriptor below the root, `..` at
//! the root being the root. What is missing on the way is made. A way may take as many bytes as a path may have, and a few
//! times that for the steps back: links can't make an entry cost more than any other of its length.

#![allow(clippy::disallowed_methods, reason = "the layer is being made, and is nobody else's")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use super::{UnpackTarget, join, mark_implied, open_dir, split, steps};
use crate::image::layer::LayerError;
use crate::image::layer::attributes::Attributes;
use crate::sys::object::{At, Kind, Writable};

/// The longest path that a system call takes (PATH_MAX, of which one byte is the zero at its end).
pub(in crate::image::layer) const LONGEST_PATH: usize = 4095;
/// How many bytes of paths one way may take.
const LONGEST_WAY: usize = 4 * LONGEST_PATH;
/// How many links, as in the kernel (MAXSYMLINKS).
const MOST_LINKS: usize = 40;

const STEP: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A way that is being gone.
struct Way {
    /// The components that are still to come, the next one last.
    ahead: Vec<Vec<u8>>,
    /// Where the way is: no component of it is a link.
    at: Vec<u8>,
    dir: OwnedFd,
    bytes: usize,
    links: usize,
}

/// What the next component is.
enum Next {
    Directory(OwnedFd),
    Missing,
    Link(Vec<u8>),
    Leaf,
}

impl Way {
    fn new(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<Way> {
        let dir = open_dir(root, b"")?;
        let mut way = Way { ahead: Vec::new(), at: Vec::new(), dir, bytes: 0, links: 0 };
        way.add(path);
        Ok(way)
    }

    fn add(&mut self, path: &[u8]) {
        self.bytes += path.len();
        let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        self.ahead.extend(parts.rev().map(<[u8]>::to_vec));
    }

    /// Returns whether it has taken too much.
    fn is_endless(&self) -> bool {
        self.bytes > LONGEST_WAY || self.links > MOST_LINKS
    }

    fn look(&self, name: &[u8]) -> rustix::io::Result<Next> {
        match fs::openat(&self.dir, name, STEP, Mode::empty()) {
            Ok(dir) => return Ok(Next::Directory(dir)),
            Err(Errno::NOENT) => return Ok(Next::Missing),
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(errno),
        }
        let at = At::Name(self.dir.as_fd(), name);
        let stat = at.stat()?;
        Ok(match stat.kind() {
            Kind::Symlink => Next::Link(at.readlink()?),
            _ if stat.is_whiteout_device() => Next::Missing,
            _ => Next::Leaf,
        })
    }

    fn down(&mut self, name: &[u8], dir: OwnedFd) {
        self.at = join(&self.at, name);
        self.dir = dir;
    }

    /// Goes back to where a link begins: to the root, or to the directory above.
    fn back(&mut self, root: BorrowedFd<'_>, to_root: bool) -> rustix::io::Result<()> {
        let end = if to_root { 0 } else { split(&self.at).0.len() };
        self.at.truncate(end);
        self.bytes += end + 1;
        self.dir = open_dir(root, &self.at)?;
        Ok(())
    }

    fn follow(&mut self, root: BorrowedFd<'_>, target: &[u8]) -> rustix::io::Result<()> {
        self.links += 1;
        if target.starts_with(b"/") {
            self.back(root, true)?;
        }
        self.add(target);
        Ok(())
    }
}

impl UnpackTarget<'_> {
    /// Goes to a directory; what is missing is made.
    pub(super) fn make_way(&mut self, path: &[u8], entry: &[u8]) -> Result<OwnedFd, LayerError> {
        let failed = || LayerError::os(entry, "look at its directory");
        let mut way = Way::new(self.root, path).map_err(failed())?;
        while let Some(name) = way.ahead.pop() {
            self.work += 1;
            if way.is_endless() {
                return Err(LayerError::entry(entry, "lies below links that lead nowhere"));
            }
            if name == b".." {
                self.work += steps(&way.at);
                way.back(self.root, false).map_err(failed())?;
                continue;
            }
            match way.look(&name).map_err(failed())? {
                Next::Directory(dir) => way.down(&name, dir),
                Next::Link(target) => way.follow(self.root, &target).map_err(failed())?,
                Next::Missing => {
                    let full = join(&way.at, &name);
                    let dir =
                        way.dir.try_clone().map_err(|error| LayerError::entry(entry, error.to_string()))?;
                    self.make_implied(&way.at, dir, &name, &full)?;
                    let dir = fs::openat(&way.dir, &name[..], STEP, Mode::empty()).map_err(failed())?;
                    way.down(&name, dir);
                }
                Next::Leaf => {
                    let parent = join(&way.at, &name);
                    let parent = parent.escape_ascii();
                    return Err(LayerError::entry(entry, format!("lies in {parent}, which is no directory")));
                }
            }
        }
        Ok(way.dir)
    }

    /// Makes a directory that no entry describes.
    fn make_implied(
        &mut self,
        parent: &[u8],
        dir: OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), LayerError> {
        self.leave()?;
        self.set_current(parent, dir)?;
        self.implied += 1;
        self.directory_here(name, path, &Attributes::of_implied_directory())?;
        mark_implied(Writable::entry_of_own(self.dir()?.0, name), path)
    }

    /// Goes to a directory that the layer has; `None` where it has none.
    pub(super) fn find(&mut self, path: &[u8], entry: &[u8]) -> Result<Option<OwnedFd>, LayerError> {
        let failed = || LayerError::os(entry, "open what it is a hardlink to");
        self.work += steps(path);
        match open_dir(self.root, path) {
            Ok(dir) => return Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(failed()(errno)),
        }
        let mut way = Way::new(self.root, path).map_err(failed())?;
        while let Some(name) = way.ahead.pop() {
            self.work += 1;
            if way.is_endless() {
                return Ok(None);
            }
            if name == b".." {
                self.work += steps(&way.at);
                way.back(self.root, false).map_err(failed())?;
                continue;
            }
            match way.look(&name).map_err(failed())? {
                Next::Directory(dir) => way.down(&name, dir),
                Next::Link(target) => way.follow(self.root, &target).map_err(failed())?,
                Next::Missing | Next::Leaf => return Ok(None),
            }
        }
        Ok(Some(way.dir))
    }

    /// Returns whether the way to a directory leads over something that this layer made, and that is no directory.
    pub(super) fn is_cut_off(&mut self, path: &[u8]) -> Result<bool, LayerError> {
        let failed = || LayerError::os(path, "look at it");
        self.work += steps(path);
        match open_dir(self.root, path) {
            Ok(_) | Err(Errno::NOENT) => return Ok(false),
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(failed()(errno)),
        }
        let mut way = Way::new(self.root, path).map_err(failed())?;
        while let Some(name) = way.ahead.pop() {
            self.work += 1;
            match way.look(&name).map_err(failed())? {
                Next::Directory(dir) => way.down(&name, dir),
                Next::Link(_) | Next::Leaf => return Ok(true),
                Next::Missing => return Ok(false),
            }
        }
        Ok(false)
    }
}
