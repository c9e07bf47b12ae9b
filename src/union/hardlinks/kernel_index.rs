//! The kernel's own hardlink index, kept beside ours, so that a file of a lower with several names is one file under
//! either program.
//!
//! With `index=on` the kernel's overlayfs keeps, in `WORKDIR/index`, a link of each copied-up file with several names.
//! Its name is the hexadecimal form of the *origin*, which the copy carries in `trusted.overlay.origin` too:
//!
//! ```text
//! byte 0      version, 0
//! byte 1      magic, 0xfb
//! byte 2      length of all this
//! byte 3      flags: 1 big-endian, 2 any, 4 of the upper
//! byte 4      type of the file handle
//! byte 5..21  UUID of the lower's filesystem
//! byte 21..   the file handle, as name_to_handle_at(2) tells it
//! ```
//!
//! (The facts: Documentation/filesystems/overlayfs.rst, "Index"; the layout as found on disk.) Where it can be had, it is
//! the index that is used here too, in place of ours. A file is in one of them only: the kernel takes the count of links
//! for that of names, plus one.
//!
//! Only root of the initial user namespace can do this: opening a handle needs CAP_DAC_READ_SEARCH.

#![allow(clippy::disallowed_methods, reason = "the workdir is its own")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::fs::{self, AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::dir::for_each_entry;
use crate::sys::handle::{self, FileHandle};
use crate::sys::object::{At, Kind, Stat, Writable};
use crate::sys::xattr;
use crate::union::hardlinks::counts;
use crate::union::lookup::private::Namespace;
use crate::union::nodes::node::InodeId;
use crate::union::stack::access::LayerAt;

const INDEX: &str = "index";
const MAGIC: u8 = 0xfb;
const HEAD: usize = 5;
const UUID: usize = 16;
/// OVL_FH_FLAG_BIG_ENDIAN, of this machine.
const ENDIAN: u8 = cfg!(target_endian = "big") as u8;
/// OVL_FH_FLAG_ANY_ENDIAN.
const ANY_ENDIAN: u8 = 2;
/// The attribute that holds the origin.
const ORIGIN: &[u8] = b"trusted.overlay.origin";

/// The origin of a copy in the kernel's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    uuid: [u8; UUID],
    handle: FileHandle,
}

impl Origin {
    fn to_bytes(&self) -> Option<Vec<u8>> {
        let len = HEAD + UUID + self.handle.id.len();
        let mut bytes = vec![0, MAGIC, u8::try_from(len).ok()?, ENDIAN, self.handle.kind];
        bytes.extend_from_slice(&self.uuid);
        bytes.extend_from_slice(&self.handle.id);
        Some(bytes)
    }

    fn parse(bytes: &[u8]) -> Option<Origin> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let &[version, magic, len, flags, kind] = head else { return None };
        let (uuid, id) = rest.split_at_checked(UUID)?;
        let ours = flags == ENDIAN || flags == ANY_ENDIAN;
        if version != 0 || magic != MAGIC || usize::from(len) != bytes.len() || !ours {
            return None;
        }
        Some(Origin { uuid: uuid.try_into().ok()?, handle: FileHandle { kind, id: id.to_vec() } })
    }
}

/// A filesystem that holds lowers.
#[derive(Debug)]
pub struct OriginSource {
    /// The root of a layer on it.
    pub root: Arc<OwnedFd>,
    /// Its UUID, as the kernel tells it.
    uuid: [u8; UUID],
}

/// The kernel's index of one workdir.
#[derive(Debug)]
pub struct KernelIndex {
    work: OwnedFd,
    /// The directory, once it is known to exist.
    dir: OnceLock<OwnedFd>,
    /// By their position in [`InodeId`]; `None` for one that can't be named in an origin.
    sources: Vec<Option<OriginSource>>,
}

/// An entry of the kernel's index.
#[derive(Debug)]
pub struct KernelEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// Of the copy.
    pub stat: Stat,
    /// The lower file that it is the copy of.
    pub lower: LowerFile,
    /// Its handle.
    pub handle: FileHandle,
}

/// A lower file of which there is a copy.
#[derive(Debug)]
pub struct LowerFile {
    /// Which inode it is.
    pub id: InodeId,
    /// Its stat.
    pub stat: Stat,
    /// Its own mark of where it was copied up from.
    pub origin: Option<Vec<u8>>,
}

impl KernelIndex {
    /// Makes the index in a workdir, whose root is `work`; it need not exist. `roots`: one of a layer for each
    /// filesystem.
    pub fn new(work: OwnedFd, roots: Vec<Option<Arc<OwnedFd>>>) -> KernelIndex {
        let sources = roots
            .into_iter()
            .map(|root| {
                root.and_then(|root| {
                    handle::filesystem_uuid(root.as_fd()).map(|uuid| OriginSource { root, uuid })
                })
            })
            .collect();
        KernelIndex { work, dir: OnceLock::new(), sources }
    }

    /// Returns the directory; `None` if it doesn't exist.
    pub fn dir(&self) -> Result<Option<BorrowedFd<'_>>> {
        if let Some(dir) = self.dir.get() {
            return Ok(Some(dir.as_fd()));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match fs::openat(&self.work, INDEX, flags, Mode::empty()) {
            Ok(dir) => Ok(Some(self.dir.get_or_init(|| dir).as_fd())),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns the directory, made if need be, as the kernel makes it.
    fn made_dir(&self) -> Result<BorrowedFd<'_>> {
        if self.dir()?.is_none() {
            match fs::mkdirat(&self.work, INDEX, Mode::empty()) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.dir()?.ok_or(FsError::Stale)
    }

    /// Gives a copy, not yet published, the attribute that names its origin. Returns the name that it is to have in the
    /// index; `None`: the origin has no handle that lasts.
    pub fn mark(&self, copy: Writable<'_>, lower_id: InodeId, lower: LayerAt<'_>) -> Result<Option<Vec<u8>>> {
        let source = lower_id.region().and_then(|at| self.sources.get(usize::from(at))?.as_ref());
        let Some(lower) = lower.host() else { return Ok(None) };
        let (Some(source), Some(handle)) = (source, handle::of(lower)?) else { return Ok(None) };
        let Some(bytes) = (Origin { uuid: source.uuid, handle }).to_bytes() else { return Ok(None) };
        copy.set_xattr(ORIGIN, &bytes, XattrFlags::empty())?;
        Ok(Some(hex::encode(bytes).into_bytes()))
    }

    /// Links a copy that was marked, under the name that [`KernelIndex::mark`] told.
    pub fn link(&self, copy: Writable<'_>, name: &[u8]) -> Result<()> {
        let dir = self.made_dir()?;
        match copy.link_to(dir, name) {
            // A leftover: what leads to a copy was taken over when the index was read.
            Err(Errno::EXIST) => {
                fs::unlinkat(dir, name, AtFlags::empty())?;
                Ok(copy.link_to(dir, name)?)
            }
            other => Ok(other?),
        }
    }

    /// Returns the names that are in it.
    pub fn names(&self) -> Result<Vec<Vec<u8>>> {
        let Some(dir) = self.dir()? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for_each_entry::<FsError>(dir, |entry| {
            names.push(entry.name.to_vec());
            Ok(())
        })?;
        Ok(names)
    }

    /// Returns the copy that has a name in it, with the lower file that it stands for. `None`: it is none.
    pub fn entry(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<KernelEntry>> {
        let Some(origin) = hex::decode(name).ok().and_then(|bytes| Origin::parse(&bytes)) else {
            return Ok(None);
        };
        let Some(lower) = self.find_lower(&origin)? else { return Ok(None) };
        let stat = At::Name(dir, name).stat()?;
        // Directories are there for NFS export; a whiteout says that a handle is stale.
        let is_copy = stat.kind() != Kind::Directory && stat.kind() == lower.stat.kind();
        Ok(is_copy.then(|| KernelEntry { name: name.to_vec(), stat, lower, handle: origin.handle }))
    }

    fn find_lower(&self, origin: &Origin) -> Result<Option<LowerFile>> {
        for (position, source) in self.sources.iter().enumerate() {
            let Some(source) = source.as_ref().filter(|s| s.uuid == origin.uuid) else { continue };
            let Some(fd) = handle::open(source.root.as_fd(), &origin.handle)? else { continue };
            let stat = At::Fd(fd.as_fd()).stat()?;
            let id = u16::try_from(position).ok().and_then(|fs| InodeId::new(fs, stat.ino));
            let mark = xattr::get(At::Fd(fd.as_fd()), Namespace::Trusted.name(counts::ORIGIN).as_bytes())?;
            return Ok(id.map(|id| LowerFile { id, stat, origin: mark }));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_laid_out_as_the_kernel_lays_them() {
        // Written by Linux 6.18 for an inode of ext4 on a filesystem without UUID.
        let kernel = hex::decode("00fb1d000100000000000000000000000000000000e11c9b00bb2ffdf0").unwrap();
        let origin = Origin::parse(&kernel).unwrap();
        assert_eq!((origin.handle.kind, origin.handle.id.len()), (1, 8));
        if ENDIAN == 0 {
            assert_eq!(origin.to_bytes().unwrap(), kernel);
        }
        assert_eq!(Origin::parse(&kernel[..20]), None);
        assert_eq!(Origin::parse(&[&kernel[..], b"x"].concat()), None, "the length must be right");
    }
}
