//! The reads by which the union reaches what layers hold: look, list, open, read a link, read attributes.
//!
//! A layer is a directory of the host, reached by descriptors, or a [tree](super::tree), reached by numbers. A [`LayerObject`] holds
//! one object of either; a [`LayerAt`] names one: an object that is held, or an entry of a directory that is. What goes
//! by layers' rules reads by these alone, so that it never asks which of the two it is. The upper is a directory of the host
//! always: only such an object ([`LayerAt::host`]) can be written to.
//!
//! For directories of the host a read costs what the system call costs: which of the two it is takes one branch.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, SeekFrom};
use rustix::io::{self, Errno, Result};

use crate::sys::copy;
use crate::sys::dir::{RawEntry, for_each_entry};
use crate::sys::object::{At, Stat};
use crate::sys::xattr;
use crate::union::stack::tree::{TreeAt, TreeFile, TreeObject};

/// An object of a layer, held.
#[derive(Debug, Clone)]
pub enum LayerObject {
    /// One of the host, by a descriptor (O_PATH, mostly).
    Host(Arc<OwnedFd>),
    /// One of a tree, by its number.
    Tree(TreeObject),
}

impl From<OwnedFd> for LayerObject {
    fn from(fd: OwnedFd) -> LayerObject {
        LayerObject::Host(Arc::new(fd))
    }
}

impl From<Arc<OwnedFd>> for LayerObject {
    fn from(fd: Arc<OwnedFd>) -> LayerObject {
        LayerObject::Host(fd)
    }
}

impl LayerObject {
    /// Returns where the object itself is.
    pub fn at(&self) -> LayerAt<'_> {
        match self {
            LayerObject::Host(fd) => LayerAt::Host(At::Fd(fd.as_fd())),
            LayerObject::Tree(object) => LayerAt::Tree(TreeAt::Itself(object)),
        }
    }

    /// Returns where the entry `name` of the directory is.
    pub fn entry<'a>(&'a self, name: &'a [u8]) -> LayerAt<'a> {
        match self {
            LayerObject::Host(fd) => LayerAt::Host(At::Name(fd.as_fd(), name)),
            LayerObject::Tree(dir) => LayerAt::Tree(TreeAt::Entry(dir, name)),
        }
    }

    /// Returns the descriptor of an object of the host.
    pub fn host(&self) -> Option<&Arc<OwnedFd>> {
        match self {
            LayerObject::Host(fd) => Some(fd),
            LayerObject::Tree(_) => None,
        }
    }

    /// Calls `each` for every entry of the directory but `.` and `..`, in the layer's own order.
    ///
    /// # Errors
    /// Those of reading it, and whatever `each` answers.
    pub fn list<E: From<Errno>>(
        &self,
        each: impl FnMut(RawEntry<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        match self {
            LayerObject::Host(fd) => for_each_entry(fd.as_fd(), each),
            LayerObject::Tree(dir) => dir.list(each),
        }
    }
}

/// Where an object of a layer is.
#[derive(Debug, Clone, Copy)]
pub enum LayerAt<'a> {
    /// In a directory of the host.
    Host(At<'a>),
    /// In a tree.
    Tree(TreeAt<'a>),
}

impl<'a> From<At<'a>> for LayerAt<'a> {
    fn from(at: At<'a>) -> LayerAt<'a> {
        LayerAt::Host(at)
    }
}

impl<'a> LayerAt<'a> {
    /// Returns the place in the host, of what is there.
    pub fn host(self) -> Option<At<'a>> {
        match self {
            LayerAt::Host(at) => Some(at),
            LayerAt::Tree(_) => None,
        }
    }

    /// Returns the directory and the name, of what is named so.
    pub fn in_directory(self) -> Option<(LayerAt<'a>, &'a [u8])> {
        match self {
            LayerAt::Host(At::Name(dir, name)) => Some((LayerAt::Host(At::Fd(dir)), name)),
            LayerAt::Tree(TreeAt::Entry(dir, name)) => Some((LayerAt::Tree(TreeAt::Itself(dir)), name)),
            LayerAt::Host(At::Fd(_)) | LayerAt::Tree(TreeAt::Itself(_)) => None,
        }
    }

    /// Looks at the object, without following a symbolic link.
    pub fn stat(&self) -> Result<Stat> {
        match self {
            LayerAt::Host(at) => at.stat(),
            LayerAt::Tree(at) => at.stat(),
        }
    }

    /// Looks at the object as far as that is known without asking anybody; see [`At::stat_as_known`].
    pub fn stat_as_known(&self) -> Result<Stat> {
        match self {
            LayerAt::Host(at) => at.stat_as_known(),
            LayerAt::Tree(at) => at.stat(),
        }
    }

    /// Holds the object, whatever becomes of its name.
    pub fn hold(&self) -> Result<LayerObject> {
        match self {
            LayerAt::Host(at) => at.pin().map(LayerObject::from),
            LayerAt::Tree(at) => at.object().map(LayerObject::Tree),
        }
    }

    /// Returns the target of a symbolic link.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        match self {
            LayerAt::Host(at) => at.readlink(),
            LayerAt::Tree(at) => at.read_link(),
        }
    }

    /// Returns the names of the object's extended attributes.
    pub fn xattr_names(&self) -> Result<Vec<Vec<u8>>> {
        match self {
            LayerAt::Host(at) => xattr::list(*at),
            LayerAt::Tree(at) => at.xattr_names(),
        }
    }

    /// Returns the value of an extended attribute, or `None` where the object has none of that name.
    pub fn xattr(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        match self {
            LayerAt::Host(at) => xattr::get(*at, name),
            LayerAt::Tree(at) => at.xattr(name),
        }
    }

    /// Opens the data of a regular file, to be read.
    pub fn open(&self) -> Result<LayerData> {
        match self {
            LayerAt::Host(at) => at.open_read().map(LayerData::from),
            LayerAt::Tree(at) => at.open().map(LayerData::Tree),
        }
    }
}

/// The data of a file of a layer, open.
#[derive(Debug, Clone)]
pub enum LayerData {
    /// In a file of the host.
    Host(Arc<OwnedFd>),
    /// In a tree.
    Tree(Arc<dyn TreeFile>),
}

impl From<OwnedFd> for LayerData {
    fn from(fd: OwnedFd) -> LayerData {
        LayerData::Host(Arc::new(fd))
    }
}

impl LayerData {
    /// Returns the descriptor of a file of the host.
    pub fn host(&self) -> Option<&Arc<OwnedFd>> {
        match self {
            LayerData::Host(fd) => Some(fd),
            LayerData::Tree(_) => None,
        }
    }

    /// Returns how many bytes there are.
    pub fn size(&self) -> Result<u64> {
        match self {
            LayerData::Host(fd) => Ok(At::Fd(fd.as_fd()).stat()?.size),
            LayerData::Tree(file) => Ok(file.size()),
        }
    }

    /// Reads some bytes at `offset`; none only at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        match self {
            LayerData::Host(fd) => io::pread(fd, buffer, offset),
            LayerData::Tree(file) => file.read_at(buffer, offset),
        }
    }

    /// Returns where the next data are, or the next hole, at or after an offset, as lseek(2) tells it.
    pub fn seek(&self, whence: SeekFrom) -> Result<u64> {
        match self {
            // The offset of the shared descriptor is moved by this, and used by nothing.
            LayerData::Host(fd) => fs::seek(fd.as_fd(), whence),
            LayerData::Tree(file) => seek_in_tree(&**file, whence),
        }
    }

    /// Makes the empty file `to` the first `size` bytes, holes kept, and returns how many were moved; see
    /// [`copy::file_data`].
    pub fn copy_to(&self, to: BorrowedFd<'_>, size: u64, sync: bool) -> Result<u64> {
        match self {
            LayerData::Host(fd) => copy::file_data(fd.as_fd(), to, size, sync),
            LayerData::Tree(_) => {
                self.copy_some(to, (0, size), size, sync)?;
                copy::set_length(to, size).map(|()| size)
            }
        }
    }

    /// Returns how many bytes from `start` to `end` are no holes, in whole blocks of 4 KiB.
    ///
    /// # Errors
    /// Those of lseek(2).
    pub fn data_within(&self, start: u64, end: u64) -> Result<u64> {
        const BLOCK: u64 = 4096;
        let (mut at, mut found) = (start, 0);
        while at < end {
            let data = match self.seek(SeekFrom::Data(at)) {
                Err(Errno::NXIO) => break,
                data => data?.min(end),
            };
            at = self.seek(SeekFrom::Hole(data))?.min(end).max(data + 1);
            found += at.next_multiple_of(BLOCK) - data / BLOCK * BLOCK;
        }
        Ok(found)
    }

    /// Makes `to` the first `size` bytes by sharing extents; see [`copy::share`].
    pub fn share(&self, to: BorrowedFd<'_>, size: u64) -> Result<bool> {
        match self {
            LayerData::Host(fd) => copy::share(fd.as_fd(), to, size),
            LayerData::Tree(_) => Ok(size == 0),
        }
    }

    /// Copies a part into the same place of `to`; see [`copy::copy_some`].
    pub fn copy_some(&self, to: BorrowedFd<'_>, range: (u64, u64), most: u64, sync: bool) -> Result<u64> {
        match self {
            LayerData::Host(fd) => copy::copy_some(fd.as_fd(), to, range, most, sync),
            LayerData::Tree(file) => copy::read_some(&**file, to, range, most),
        }
    }
}

impl copy::ReadAt for dyn TreeFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        TreeFile::read_at(self, buffer, offset)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        TreeFile::next_data(self, offset)
    }
}

fn seek_in_tree(file: &dyn TreeFile, whence: SeekFrom) -> Result<u64> {
    let size = file.size();
    match whence {
        SeekFrom::Data(offset) | SeekFrom::Hole(offset) if offset >= size => Err(Errno::NXIO),
        SeekFrom::Data(offset) => file.next_data(offset)?.map(|run| run.start).ok_or(Errno::NXIO),
        SeekFrom::Hole(mut offset) => {
            while let Some(run) = file.next_data(offset)?.filter(|run| run.start <= offset) {
                offset = run.end;
            }
            Ok(offset.min(size))
        }
        SeekFrom::Start(offset) => Ok(offset),
        SeekFrom::End(_) | SeekFrom::Current(_) => Err(Errno::INVAL),
    }
}
