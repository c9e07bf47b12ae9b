//! The union's reads, out of an index.

use std::ops::ControlFlow;
use std::sync::Arc;

use rustix::io::{Errno, Result};
use sha2::{Digest as _, Sha256};

use super::file::ArchiveFile;
use super::index::{Content, Index, Object};
use super::part::Part;
use super::squashfs::Blocks;
use crate::image::layer::reader::Stored;
use crate::sys::dir::RawEntry;
use crate::sys::object::{Stat, Time};
use crate::union::stack::tree::{FileStamp, LayerTree, TreeFile};

const ROOT: u64 = 1;
const BLOCK: u64 = 512;

/// An archive as a layer.
#[derive(Debug)]
pub(super) struct ArchiveTree {
    index: Arc<Index>,
    data: Part,
    id: u64,
    lies_in: FileStamp,
    /// Those of a squashfs.
    blocks: Option<Arc<Blocks>>,
}

impl ArchiveTree {
    /// `id`: the [`identity`] of the index as it was made. `lies_in`: the file that was opened.
    pub(super) fn new(index: Index, data: Part, (id, lies_in): (u64, FileStamp)) -> ArchiveTree {
        let index = Arc::new(index);
        let blocks = index.packed.as_ref().map(|_| Blocks::new(index.clone(), data.clone()));
        ArchiveTree { index, data, id, lies_in, blocks }
    }

    fn object(&self, number: u64) -> Result<&Object> {
        self.index.object(number).ok_or(Errno::STALE)
    }

    fn attributes(&self, number: u64) -> &[(Vec<u8>, Vec<u8>)] {
        let known =
            u32::try_from(number.wrapping_sub(1)).ok().and_then(|key| self.index.attributes.get(&key));
        known.map(Vec::as_slice).unwrap_or_default()
    }
}

/// Returns 64 bits of a digest of all that the headers say: what differs in them is another archive. `with_runs`: where the pieces of
/// sparse files lie counts as well, as it doesn't in a tar, since uppers know tars by what they were without it.
pub(super) fn identity(index: &Index, with_runs: bool) -> u64 {
    // As it comes: all of it together would take as much memory as the index.
    let mut hasher = Sha256::new();
    let mut tell = |bytes: &[u8]| hasher.update(bytes);
    let mut files = 0;
    for object in &index.objects {
        tell(&object.mtime.sec.to_le_bytes());
        tell(&object.size.to_le_bytes());
        tell(&(u32::from(object.mode) | object.nlink << 16).to_le_bytes());
        match &object.content {
            Content::Whole { at } => tell(&at.to_le_bytes()),
            Content::Target(target) => tell(target),
            Content::Entries(entries) => entries.iter().for_each(|entry| {
                tell(index.name(entry));
                tell(&Index::number(entry).to_le_bytes());
            }),
            Content::Packed { at } => {
                // Without the count of holes, that each file before this one has: uppers know archives by what they were without it.
                tell(&at.wrapping_sub(files).to_le_bytes());
                files += 1;
            }
            Content::Sparse(runs) if with_runs => runs.iter().for_each(|run| {
                tell(&run.offset.to_le_bytes());
                tell(&run.at.to_le_bytes());
            }),
            Content::Sparse(_) | Content::None => {}
        }
    }
    if let Some(packed) = &index.packed {
        for object in &index.objects {
            if let Content::Packed { at } = object.content {
                packed.tell_file(at, object.size, &mut tell);
            }
        }
        packed.tell_fragments(&mut tell);
    }
    let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = hasher.finalize().into();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl LayerTree for ArchiveTree {
    fn id(&self) -> u64 {
        self.id
    }

    fn root(&self) -> u64 {
        ROOT
    }

    fn lies_in(&self) -> Option<FileStamp> {
        Some(self.lies_in)
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64> {
        match &self.object(dir)?.content {
            Content::Entries(entries) => self.index.find(entries, name).ok_or(Errno::NOENT),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn stat(&self, object: u64) -> Result<Stat> {
        let found = self.object(object)?;
        let stored = match &found.content {
            Content::Whole { .. } => found.size,
            Content::Sparse(runs) => runs.iter().map(|run| run.length).sum(),
            Content::Packed { at } => {
                self.index.packed.as_ref().map_or(0, |packed| packed.stored(*at, found.size))
            }
            _ => 0,
        };
        let time = Time { sec: found.mtime.sec, nsec: found.mtime.nsec };
        Ok(Stat {
            dev: 0,
            ino: object,
            mode: (found.kind as u32) << 12 | u32::from(found.mode),
            nlink: found.nlink.into(),
            uid: found.uid,
            gid: found.gid,
            rdev: rustix::fs::makedev(found.device.0, found.device.1),
            size: found.size,
            blocks: stored.div_ceil(BLOCK),
            blksize: 4096,
            atime: time,
            mtime: time,
            ctime: time,
            mount_root: false,
            born: None,
        })
    }

    fn list(&self, dir: u64, each: &mut dyn FnMut(RawEntry<'_>) -> ControlFlow<()>) -> Result<()> {
        let Content::Entries(entries) = &self.object(dir)?.content else { return Err(Errno::NOTDIR) };
        for entry in entries {
            let ino = Index::number(entry);
            let kind = self.object(ino).ok().map(|object| object.kind);
            if each(RawEntry { name: self.index.name(entry), ino, kind }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, link: u64) -> Result<Vec<u8>> {
        match &self.object(link)?.content {
            Content::Target(target) => Ok(target.to_vec()),
            _ => Err(Errno::INVAL),
        }
    }

    fn xattr_names(&self, object: u64) -> Result<Vec<Vec<u8>>> {
        self.object(object)?;
        Ok(self.attributes(object).iter().map(|(name, _)| name.clone()).collect())
    }

    fn xattr(&self, object: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.object(object)?;
        let found = self.attributes(object).iter().find(|(known, _)| known == name);
        Ok(found.map(|(_, value)| value.clone()))
    }

    fn open(&self, file: u64) -> Result<Arc<dyn TreeFile>> {
        let found = self.object(file)?;
        let runs: Box<[Stored]> = match &found.content {
            Content::Whole { at } => Box::new([Stored { offset: 0, length: found.size, at: *at }]),
            Content::Sparse(runs) => runs.clone(),
            Content::Packed { at } => {
                let blocks = self.blocks.as_ref().ok_or(Errno::IO)?;
                return Ok(blocks.open(file, *at, found.size));
            }
            _ => Box::default(),
        };
        Ok(Arc::new(ArchiveFile::new(self.data.clone(), found.size, runs)))
    }
}
