//! The hardlink index: where the names of one lower file find its copy.
//!
//! It holds one link of each copied-up file that has, or had, other names in the lower, called by the file's origin. As
//! root it is the kernel's own ([`crate::union::hardlinks::kernel_index`]); without privileges it is `index.unionmount/` in the workdir,
//! with names of the form `FSID-INO` (hexadecimal). See [`crate::union::hardlinks::links`] for the counts, and [`crate::union::hardlinks::hidden`] for files
//! that only lost names.

#![allow(clippy::disallowed_methods, reason = "the workdir is its own")]

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::{self, AtFlags, XattrFlags};
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::dir::for_each_entry;
use crate::sys::handle::FileHandle;
use crate::sys::object::{At, Stat, Time, Writable};
use crate::sys::xattr;
use crate::union::change::lend::{Refused, upper_marks, upper_xattr, with_rights};
use crate::union::hardlinks::counts::{self, NLINK, ORIGIN, ORIGINAL, UNPUBLISHED};
use crate::union::hardlinks::kernel_index::{KernelEntry, KernelIndex};
use crate::union::lookup::marker::read_marks;
use crate::union::lookup::private::Namespace;
use crate::union::nodes::node::InodeId;
use crate::union::nodes::region::Regions;
use crate::union::stack::layer::UpperLayer;

/// Which lower files have a copy in the index, and where.
#[derive(Debug)]
pub struct LinkIndex {
    pub(in crate::union) indexed: RwLock<HashMap<InodeId, Indexed>>,
    /// Inode numbers of those copies that are metacopies: their data are still below.
    pub(in crate::union) metacopies: RwLock<HashSet<u64>>,
    pub(in crate::union) kernel: Option<KernelIndex>,
}

/// The name of a lower file's copy.
#[derive(Debug, Clone)]
pub enum IndexName {
    /// In our index.
    Own(Vec<u8>),
    /// In the kernel's.
    Kernel(Vec<u8>),
}

impl IndexName {
    pub(in crate::union) fn bytes(&self) -> &[u8] {
        let (IndexName::Own(name) | IndexName::Kernel(name)) = self;
        name
    }
}

/// What was copied up.
#[derive(Debug, Clone)]
pub struct Copied {
    /// Which inode it is.
    pub real: InodeId,
    /// And which of those that have had the number, by its file handle,
    pub handle: Option<FileHandle>,
    /// or by when it was made.
    pub born: Option<Time>,
}

impl Copied {
    /// Returns what a copy remembers of it; `None`: nothing that lasts.
    pub(in crate::union) fn text(&self, regions: &Regions) -> Option<String> {
        Some(format!("1 {} {}", self.real.to_text(':', regions)?, counts::birth_text(self.born?)))
    }

    /// Returns the reverse of [`Copied::text`]. `None` for a form of which this program doesn't know.
    fn parse(value: &[u8], regions: &Regions) -> Option<Copied> {
        let (real, born) = std::str::from_utf8(value).ok()?.strip_prefix("1 ")?.split_once(' ')?;
        let real = InodeId::from_text(real.as_bytes(), ':', regions)?;
        Some(Copied { real, handle: None, born: Some(counts::parse_birth(born)?) })
    }
}

/// A lower file's copy.
#[derive(Debug, Clone)]
pub struct Indexed {
    pub(in crate::union) name: IndexName,
    /// Device and inode number: what must be found under the name.
    pub id: (u64, u64),
    /// What it is the copy of, if that is known.
    pub(in crate::union) of: Option<Copied>,
}

impl Indexed {
    /// Returns its name in its index.
    pub fn name(&self) -> &[u8] {
        self.name.bytes()
    }

    /// Returns what it is the copy of, if that is known.
    pub fn original(&self) -> Option<&Copied> {
        self.of.as_ref()
    }
}

impl LinkIndex {
    /// Closes what it has of the layers; nothing is looked up any more.
    pub fn close(&mut self) {
        self.kernel = None;
    }

    /// Returns that of a workdir, which is to be [read](LinkIndex::read). `roots`: of a layer on each filesystem.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn of(layer: &UpperLayer, roots: Vec<Option<Arc<OwnedFd>>>) -> Result<LinkIndex> {
        let kernel = if layer.caps.namespace == Namespace::Trusted {
            let work = rustix::io::fcntl_dupfd_cloexec(&layer.work.root, 3)?;
            Some(KernelIndex::new(work, roots))
        } else {
            None
        };
        Ok(LinkIndex { indexed: RwLock::default(), metacopies: RwLock::default(), kernel })
    }

    /// Reads both indexes. What a crash left between the index and the publishing is mended: a copy that no name leads to was never seen
    /// and goes. Tells whether something is left to be mended.
    ///
    /// # Errors
    /// The first of reading, and of mending. What can be read is known all the same, and the rest as it was known before.
    pub fn read(&self, layer: &UpperLayer, regions: &Regions, mending: Mending) -> Result<bool> {
        let mut reading = Reading::new(layer, regions, mending);
        reading.own();
        if let Some(kernel) = &self.kernel {
            reading.kernels(kernel);
        }
        let Reading { mender, mut indexed, mut metacopies, unread, failed, .. } = reading;
        if failed.is_some() {
            let before = self.metacopies.read();
            for (origin, known) in self.indexed.read().iter().filter(|(_, known)| unread.has(&known.name)) {
                if let Entry::Vacant(free) = indexed.entry(*origin) {
                    metacopies.extend(before.get(&known.id.1));
                    free.insert(known.clone());
                }
            }
        }
        *self.indexed.write() = indexed;
        *self.metacopies.write() = metacopies;
        failed.map_or(Ok(mender.has_left), Err)
    }
}

/// Entries of the indexes that couldn't be read or mended.
#[derive(Debug, Default)]
struct Unread {
    own: HashSet<Vec<u8>>,
    kernels: HashSet<Vec<u8>>,
    /// One of the indexes as a whole.
    all_own: bool,
    all_kernels: bool,
}

impl Unread {
    fn has(&self, name: &IndexName) -> bool {
        match name {
            IndexName::Own(name) => self.all_own || self.own.contains(name),
            IndexName::Kernel(name) => self.all_kernels || self.kernels.contains(name),
        }
    }
}

/// The indexes, as far as they are read.
struct Reading<'a> {
    layer: &'a UpperLayer,
    regions: &'a Regions,
    mender: Mender,
    indexed: HashMap<InodeId, Indexed>,
    metacopies: HashSet<u64>,
    unread: Unread,
    /// Why, at first.
    failed: Option<FsError>,
}

impl<'a> Reading<'a> {
    fn new(layer: &'a UpperLayer, regions: &'a Regions, mending: Mending) -> Reading<'a> {
        Reading {
            layer,
            regions,
            mender: Mender { mending, has_left: false },
            indexed: HashMap::new(),
            metacopies: HashSet::new(),
            unread: Unread::default(),
            failed: None,
        }
    }

    fn fail(&mut self, error: FsError) {
        self.failed.get_or_insert(error);
    }

    /// Reads this program's.
    fn own(&mut self) {
        let mut names = Vec::new();
        let listed = for_each_entry::<FsError>(self.layer.work.index.as_fd(), |entry| {
            names.push(entry.name.to_vec());
            Ok(())
        });
        if let Err(error) = listed {
            self.unread.all_own = true;
            self.fail(error);
        }
        for name in names {
            let Some(id) = InodeId::from_text(&name, '-', self.regions) else { continue };
            if let Err(error) = self.own_entry(id, &name) {
                self.unread.own.insert(name);
                self.fail(error);
            }
        }
    }

    fn own_entry(&mut self, id: InodeId, name: &[u8]) -> Result<()> {
        let (layer, dir) = (self.layer, self.layer.work.index.as_fd());
        let held = At::Name(dir, name).pin()?;
        let stat = At::Fd(held.as_fd()).stat()?;
        if !self.mender.has_names(layer, held.as_fd(), &stat, None)? {
            return self.mender.mend(|| Ok(fs::unlinkat(dir, name, AtFlags::empty())?));
        }
        let lacks_data = self.mender.lacks_data(layer, held.as_fd(), &stat)?;
        let of = self.mender.original(layer, self.regions, held.as_fd())?;
        self.metacopies.extend(lacks_data);
        let name = IndexName::Own(name.to_vec());
        self.indexed.insert(id, Indexed { name, id: (stat.dev, stat.ino), of });
        Ok(())
    }

    /// Reads the kernel's.
    fn kernels(&mut self, kernel: &KernelIndex) {
        let dir = kernel.dir().map_err(|e| {
            let place = format!("workdir {}: index", self.layer.work.path.display());
            e.of(place, "it must be a directory: remove it, or give another workdir")
        });
        match dir.and_then(|dir| Ok((dir, kernel.names()?))) {
            Ok((None, _)) => {}
            Ok((Some(dir), names)) => {
                for name in names {
                    let read = kernel.entry(dir, &name);
                    let read =
                        read.and_then(|entry| entry.map_or(Ok(()), |entry| self.kernel_entry(dir, &entry)));
                    if let Err(error) = read {
                        self.unread.kernels.insert(name);
                        self.fail(error);
                    }
                }
            }
            Err(error) => {
                self.unread.all_kernels = true;
                self.fail(error);
            }
        }
    }

    fn kernel_entry(&mut self, dir: BorrowedFd<'_>, entry: &KernelEntry) -> Result<()> {
        let KernelEntry { name, stat, lower, handle } = entry;
        let (layer, regions) = (self.layer, self.regions);
        let held = At::Name(dir, name).pin()?;
        if At::Fd(held.as_fd()).stat()?.ino != stat.ino {
            log::debug!("index: an entry was exchanged");
            return Ok(());
        }
        if !self.mender.has_names(layer, held.as_fd(), stat, Some(&lower.stat))? {
            return self.mender.mend(|| Ok(fs::unlinkat(dir, &name[..], AtFlags::empty())?));
        }
        // Of a copy of a copy that a snapshot froze, the kernel knows the latter, and its mark where that came from.
        let came_from = lower.origin.as_ref().filter(|_| layer.lies_on_frozen);
        let came_from = came_from.and_then(|mark| InodeId::from_text(mark, ':', regions));
        let known = came_from.unwrap_or(lower.id);
        let marked = self.mender.marked_origin(layer, regions, held.as_fd(), known)?;
        let lacks_data = self.mender.lacks_data(layer, held.as_fd(), stat)?;
        for origin in [marked, lower.id] {
            if let Entry::Vacant(free) = self.indexed.entry(origin) {
                self.metacopies.extend(lacks_data);
                let name = IndexName::Kernel(name.clone());
                let of = Some(Copied { real: lower.id, handle: Some(handle.clone()), born: None });
                free.insert(Indexed { name, id: (stat.dev, stat.ino), of });
            }
        }
        Ok(())
    }
}

/// What is done about what a crash left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mending {
    /// It is mended while it is read.
    AtOnce,
    /// Nothing is changed: another one has the upper in use, and may go on. The index is to be read once more when that doesn't.
    Later,
}

/// Looks at copies in an index.
struct Mender {
    mending: Mending,
    /// Something is to be mended, or wasn't to be read without changing it.
    has_left: bool,
}

impl Mender {
    fn mend(&mut self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        match self.mending {
            Mending::AtOnce => change(),
            Mending::Later => {
                self.has_left = true;
                Ok(())
            }
        }
    }

    /// Returns the inode number of a copy whose data are still below.
    fn lacks_data(&mut self, layer: &UpperLayer, held: BorrowedFd<'_>, stat: &Stat) -> Result<Option<u64>> {
        let object = Writable::held(held);
        let marks = match self.mending {
            Mending::AtOnce => upper_marks(object, layer.layer.belief)?,
            Mending::Later => match read_marks(object.at(), layer.layer.belief) {
                Err(Errno::ACCESS) => {
                    self.has_left = true;
                    return Ok(None);
                }
                marks => marks?,
            },
        };
        Ok(marks.metacopy.then_some(stat.ino))
    }

    /// Returns what a copy in this program's index remembers of its original.
    fn original(
        &mut self,
        layer: &UpperLayer,
        regions: &Regions,
        held: BorrowedFd<'_>,
    ) -> Result<Option<Copied>> {
        let mark = layer.caps.namespace.name(ORIGINAL).into_bytes();
        let value = match self.mending {
            Mending::AtOnce => upper_xattr(At::Fd(held), &mark)?,
            Mending::Later => match xattr::get(At::Fd(held), &mark) {
                Err(Errno::ACCESS) => {
                    self.has_left = true;
                    None
                }
                value => value?,
            },
        };
        Ok(value.and_then(|value| Copied::parse(&value, regions)))
    }

    /// Tells whether a name of the merged view leads to a copy. Ends what a crash interrupted. `lower`: the original of what the kernel
    /// may have copied up.
    fn has_names(
        &mut self,
        layer: &UpperLayer,
        held: BorrowedFd<'_>,
        stat: &Stat,
        lower: Option<&Stat>,
    ) -> Result<bool> {
        match self.mending {
            // The file may have a mode that keeps an ordinary user from its marks.
            Mending::AtOnce => {
                with_rights(Writable::held(held), 0o600, || self.count_names(layer, held, stat, lower))
            }
            // To lend a right is to change it.
            Mending::Later => match self.count_names(layer, held, stat, lower) {
                Err(e) if e.is_refusal() => {
                    self.has_left = true;
                    Ok(true)
                }
                counted => counted,
            },
        }
    }

    fn count_names(
        &mut self,
        layer: &UpperLayer,
        held: BorrowedFd<'_>,
        stat: &Stat,
        lower: Option<&Stat>,
    ) -> Result<bool> {
        let at = At::Fd(held);
        let pending = layer.caps.namespace.name(UNPUBLISHED).into_bytes();
        let count = layer.caps.namespace.name(NLINK).into_bytes();
        if xattr::get(at, &pending)?.is_some() {
            if stat.nlink == 1 {
                return Ok(false);
            }
            self.mend(|| Ok(Writable::held(held).remove_xattr(&pending)?))?;
        }
        let Some(value) = xattr::get(at, &count)? else { return Ok(true) };
        let merged = match (value.strip_prefix(b"L"), lower) {
            // The kernel's form while an operation is under way: a difference to the lower's count.
            (Some(difference), Some(lower)) => counts::parse_nlink(&[b"U", difference].concat(), lower.nlink),
            // A name was being made a link of the copy.
            _ => counts::absolute_nlink(&value),
        };
        match merged {
            Some(0) => Ok(false),
            Some(merged) => {
                let value = counts::difference(merged, stat.nlink);
                let set = || Writable::held(held).set_xattr(&count, value.as_bytes(), XattrFlags::empty());
                self.mend(|| Ok(set()?))?;
                Ok(true)
            }
            // Another program may have taken the last names away.
            None => Ok(!counts::is_nameless(&value, stat.nlink)),
        }
    }

    /// Returns what a copy in the kernel's index goes by. What the kernel itself copied up is given that, so that it keeps its
    /// number here.
    fn marked_origin(
        &mut self,
        layer: &UpperLayer,
        regions: &Regions,
        held: BorrowedFd<'_>,
        origin: InodeId,
    ) -> Result<InodeId> {
        let at = At::Fd(held);
        let mark = layer.caps.namespace.name(ORIGIN).into_bytes();
        let Some(value) = origin.to_text(':', regions) else { return Ok(origin) };
        match xattr::get(at, &mark)? {
            Some(marked) => Ok(InodeId::from_text(&marked, ':', regions).unwrap_or(origin)),
            None => {
                let set = || Writable::held(held).set_xattr(&mark, value.as_bytes(), XattrFlags::empty());
                self.mend(|| Ok(set()?))?;
                Ok(origin)
            }
        }
    }
}
