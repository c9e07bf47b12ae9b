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

use crate::error::{FsError, Result};
use crate::sys::dir::for_each_entry;
use crate::sys::object::{At, Stat, Writable};
use crate::sys::xattr;
use crate::union::change::lend::{upper_marks, with_rights};
use crate::union::hardlinks::counts::{self, NLINK, ORIGIN, UNPUBLISHED};
use crate::union::hardlinks::kernel_index::{KernelEntry, KernelIndex};
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

/// A lower file's copy.
#[derive(Debug, Clone)]
pub struct Indexed {
    pub(in crate::union) name: IndexName,
    /// Device and inode number: what must be found under the name.
    pub id: (u64, u64),
}

impl Indexed {
    /// Returns its name in its index.
    pub fn name(&self) -> &[u8] {
        self.name.bytes()
    }
}

impl LinkIndex {
    /// Closes what it has of the layers; nothing is looked up any more.
    pub fn close(&mut self) {
        self.kernel = None;
    }

    /// Reads both indexes of a workdir. `roots`: of a layer on each filesystem.
    ///
    /// What a crash left between the index and the publishing is mended: a copy that no name leads to was never seen
    /// and goes.
    pub fn read(
        layer: &UpperLayer,
        regions: &Regions,
        roots: Vec<Option<Arc<OwnedFd>>>,
    ) -> Result<LinkIndex> {
        let kernel = if layer.caps.namespace == Namespace::Trusted {
            let work = rustix::io::fcntl_dupfd_cloexec(&layer.work.root, 3)?;
            Some(KernelIndex::new(work, roots))
        } else {
            None
        };
        let mut indexed = HashMap::new();
        let mut metacopies = HashSet::new();
        let dir = layer.work.index.as_fd();
        let mut names = Vec::new();
        for_each_entry::<FsError>(dir, |entry| {
            names.push(entry.name.to_vec());
            Ok(())
        })?;
        for name in names {
            let Some(id) = InodeId::from_text(&name, '-', regions) else { continue };
            let held = At::Name(dir, &name).pin()?;
            let stat = At::Fd(held.as_fd()).stat()?;
            if has_names(layer, held.as_fd(), &stat, None)? {
                metacopies.extend(lacks_data(layer, held.as_fd(), &stat)?);
                indexed.insert(id, Indexed { name: IndexName::Own(name), id: (stat.dev, stat.ino) });
            } else {
                fs::unlinkat(dir, &name[..], AtFlags::empty())?;
            }
        }
        if let Some(kernel) = &kernel
            && let Some(dir) = kernel.dir().map_err(|e| {
                let place = format!("workdir {}: index", layer.work.path.display());
                e.of(place, "it must be a directory: remove it, or give another workdir")
            })?
        {
            for KernelEntry { name, stat, lower } in kernel.entries()? {
                let held = At::Name(dir, &name).pin()?;
                if At::Fd(held.as_fd()).stat()?.ino != stat.ino {
                    log::debug!("index: an entry was exchanged");
                    continue;
                }
                if !has_names(layer, held.as_fd(), &stat, Some(&lower.stat))? {
                    fs::unlinkat(dir, &name[..], AtFlags::empty())?;
                    continue;
                }
                // Of a copy of a copy that a snapshot froze, the kernel knows the latter, and its mark where that came from.
                let came_from = lower.origin.filter(|_| layer.lies_on_frozen);
                let came_from = came_from.and_then(|mark| InodeId::from_text(&mark, ':', regions));
                let marked = marked_origin(layer, regions, held.as_fd(), came_from.unwrap_or(lower.id))?;
                for origin in [marked, lower.id] {
                    if let Entry::Vacant(free) = indexed.entry(origin) {
                        metacopies.extend(lacks_data(layer, held.as_fd(), &stat)?);
                        let name = IndexName::Kernel(name.clone());
                        free.insert(Indexed { name, id: (stat.dev, stat.ino) });
                    }
                }
            }
        }
        Ok(LinkIndex { indexed: RwLock::new(indexed), metacopies: RwLock::new(metacopies), kernel })
    }
}

/// Returns the inode number of a copy in an index whose data are still below.
fn lacks_data(layer: &UpperLayer, held: BorrowedFd<'_>, stat: &Stat) -> Result<Option<u64>> {
    let marks = upper_marks(Writable::held(held), layer.layer.belief)?;
    Ok(marks.metacopy.then_some(stat.ino))
}

/// Tells whether a name of the merged view leads to a copy in an index. Ends what a crash interrupted. `lower`: the
/// original of what the kernel may have copied up.
fn has_names(layer: &UpperLayer, held: BorrowedFd<'_>, stat: &Stat, lower: Option<&Stat>) -> Result<bool> {
    // The file may have a mode that keeps an ordinary user from its marks.
    with_rights(Writable::held(held), 0o600, || count_names(layer, held, stat, lower))
}

fn count_names(layer: &UpperLayer, held: BorrowedFd<'_>, stat: &Stat, lower: Option<&Stat>) -> Result<bool> {
    let at = At::Fd(held);
    let pending = layer.caps.namespace.name(UNPUBLISHED).into_bytes();
    let count = layer.caps.namespace.name(NLINK).into_bytes();
    if xattr::get(at, &pending)?.is_some() {
        if stat.nlink == 1 {
            return Ok(false);
        }
        Writable::held(held).remove_xattr(&pending)?;
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
            Writable::held(held).set_xattr(&count, value.as_bytes(), XattrFlags::empty())?;
            Ok(true)
        }
        // Another program may have taken the last names away.
        None => Ok(!counts::is_nameless(&value, stat.nlink)),
    }
}

/// Returns what a copy in the kernel's index goes by. What the kernel itself copied up is given that, so that it keeps its
/// number here.
fn marked_origin(
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
            Writable::held(held).set_xattr(&mark, value.as_bytes(), XattrFlags::empty())?;
            Ok(origin)
        }
    }
}
