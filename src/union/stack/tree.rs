//! Layers that aren't directories of the host: trees that answer a handful of reads.
//!
//! Whatever can tell the objects of a read-only tree by numbers can be a lower: an archive, an image in memory. It
//! implements [`LayerTree`], and is given as [`LowerSource::Tree`](crate::union::stack::layer::LowerSource). Nothing else
//! in the union knows that it isn't a directory: whiteouts, opaque marks, merging, hardlinks, copy-up and provenance work
//! over [`access`](crate::union::stack::access), which reaches both.
//!
//! A tree never changes, so an object is the same as long as its number is. What it tells is not trusted more than what
//! a directory of the host holds.

use std::fmt;
use std::fs::Metadata;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::{Errno, Result};
use serde::{Deserialize, Serialize};

use crate::sys::dir::RawEntry;
use crate::sys::object::{Kind, Stat};

/// A read-only tree of objects that a layer is made of.
///
/// Objects are known by their inode numbers, which are below 2^48 and the same in every run: copies in the upper
/// remember them. Two names of one number are one file with several names, and its [`Stat::nlink`] counts them.
pub trait LayerTree: fmt::Debug + Send + Sync {
    /// Returns what tells this tree from all others, in the next run too: 64 bits of a digest, say.
    fn id(&self) -> u64;

    /// Returns the number of the root directory.
    fn root(&self) -> u64;

    /// Returns the number of the entry `name` of a directory.
    ///
    /// # Errors
    /// `ENOENT` where there is none.
    fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64>;

    /// Returns what stat(2) tells of an object. Its device, and whether it is the root of a mount, don't count.
    fn stat(&self, object: u64) -> Result<Stat>;

    /// Hands each entry of a directory to `each` once, in any order and without `.` and `..`, until it answers to stop.
    fn list(&self, dir: u64, each: &mut dyn FnMut(RawEntry<'_>) -> ControlFlow<()>) -> Result<()>;

    /// Returns the target of a symbolic link.
    fn read_link(&self, link: u64) -> Result<Vec<u8>>;

    /// Returns the names of an object's extended attributes.
    fn xattr_names(&self, object: u64) -> Result<Vec<Vec<u8>>>;

    /// Returns the value of an extended attribute, or `None` where the object has none of that name.
    fn xattr(&self, object: u64, name: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Opens the data of a regular file.
    fn open(&self, file: u64) -> Result<Arc<dyn TreeFile>>;

    /// Returns which file it is read from, by which another process finds it; `None` where it lies in none.
    fn lies_in(&self) -> Option<FileStamp> {
        None
    }
}

/// Which file something is, and that it is as it was. Nobody can set back when the inode was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileStamp {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    /// Returns that of what was looked at.
    pub fn of(seen: &Metadata) -> FileStamp {
        FileStamp {
            dev: seen.dev(),
            ino: seen.ino(),
            size: seen.len(),
            modified: (seen.mtime(), seen.mtime_nsec()),
            changed: (seen.ctime(), seen.ctime_nsec()),
        }
    }
}

/// The data of a regular file of a [`LayerTree`].
pub trait TreeFile: fmt::Debug + Send + Sync {
    /// Returns how many bytes there are.
    fn size(&self) -> u64;

    /// Reads some bytes at `offset`; none only at the end of the file.
    ///
    /// # Errors
    /// `EIO` where the tree is damaged.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize>;

    /// Returns the next run of data at or after `offset`; `None` where only a hole is left.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok((offset < self.size()).then_some(offset..self.size()))
    }
}

/// The kernel's device numbers have 32 bits, here in 44.
const NO_DEVICE: u64 = 1 << 63;
/// The next that no tree has.
static NEXT: AtomicU64 = AtomicU64::new(NO_DEVICE);

/// A tree as a layer of one stack.
#[derive(Debug)]
pub struct Tree {
    reads: Arc<dyn LayerTree>,
    /// A device number that no filesystem has.
    dev: u64,
}

impl Tree {
    /// Makes a layer of a tree.
    pub fn new(reads: Arc<dyn LayerTree>) -> Arc<Tree> {
        Arc::new(Tree { reads, dev: NEXT.fetch_add(1, Ordering::Relaxed) })
    }

    /// Makes the layer that another process had of it, by whose device number it is known.
    pub(in crate::union) fn known_as(reads: Arc<dyn LayerTree>, dev: u64) -> Arc<Tree> {
        NEXT.fetch_max(dev.saturating_add(1), Ordering::Relaxed);
        Arc::new(Tree { reads, dev })
    }

    /// Returns its device number.
    pub(in crate::union) fn dev(&self) -> u64 {
        self.dev
    }

    /// Returns what reads it.
    pub fn source(&self) -> Arc<dyn LayerTree> {
        self.reads.clone()
    }

    /// Returns what tells the tree from others in every run.
    pub fn id(&self) -> u64 {
        self.reads.id()
    }

    /// Returns the root directory.
    pub fn root(self: &Arc<Tree>) -> TreeObject {
        self.object(self.reads.root())
    }

    /// Returns the object of that number.
    pub fn object(self: &Arc<Tree>, ino: u64) -> TreeObject {
        TreeObject { tree: self.clone(), ino }
    }
}

/// An object of a tree.
#[derive(Debug, Clone)]
pub struct TreeObject {
    tree: Arc<Tree>,
    ino: u64,
}

/// An object of a tree, or the entry of a directory of one.
#[derive(Debug, Clone, Copy)]
pub enum TreeAt<'a> {
    /// The object itself.
    Itself(&'a TreeObject),
    /// The entry of that name of a directory.
    Entry(&'a TreeObject, &'a [u8]),
}

impl TreeAt<'_> {
    /// Returns the object that is there.
    pub(super) fn object(&self) -> Result<TreeObject> {
        match self {
            TreeAt::Itself(object) => Ok((*object).clone()),
            TreeAt::Entry(dir, name) => {
                let ino = dir.tree.reads.lookup(dir.ino, name)?;
                Ok(TreeObject { tree: dir.tree.clone(), ino })
            }
        }
    }

    pub(super) fn stat(&self) -> Result<Stat> {
        let TreeObject { tree, ino } = self.object()?;
        let told = tree.reads.stat(ino)?;
        // It has no generations: nobody gives its numbers again.
        Ok(Stat { dev: tree.dev, ino, mount_root: false, born: None, ..told })
    }

    pub(super) fn read_link(&self) -> Result<Vec<u8>> {
        let TreeObject { tree, ino } = self.object()?;
        tree.reads.read_link(ino)
    }

    pub(super) fn xattr_names(&self) -> Result<Vec<Vec<u8>>> {
        let TreeObject { tree, ino } = self.object()?;
        tree.reads.xattr_names(ino)
    }

    pub(super) fn xattr(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let TreeObject { tree, ino } = self.object()?;
        tree.reads.xattr(ino, name)
    }

    pub(super) fn open(&self) -> Result<Arc<dyn TreeFile>> {
        let TreeObject { tree, ino } = self.object()?;
        match tree.reads.stat(ino)?.kind() {
            Kind::File => tree.reads.open(ino),
            // As open(2) without following says of a link, and of what has no data.
            Kind::Symlink => Err(Errno::LOOP),
            Kind::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::NXIO),
        }
    }
}

impl TreeObject {
    /// Calls `each` for every entry of the directory.
    pub(super) fn list<E: From<Errno>>(
        &self,
        mut each: impl FnMut(RawEntry<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut stopped = Ok(());
        self.tree.reads.list(self.ino, &mut |entry| match each(entry) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                stopped = Err(error);
                ControlFlow::Break(())
            }
        })?;
        stopped
    }
}
