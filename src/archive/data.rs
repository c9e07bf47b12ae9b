//! The data of an archive's files.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, Result};

use crate::image::layer::reader::Stored;
use crate::union::stack::tree::TreeFile;

/// What holds the data: the archive, or what was decoded out of it.
#[derive(Debug)]
pub(super) struct Store {
    file: File,
    path: PathBuf,
    /// What the archive was when it was opened. Of a spool nobody else knows.
    seen: Option<Seen>,
    told: AtomicBool,
}

/// What tells that a file has been changed.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

impl Seen {
    fn of(metadata: &Metadata) -> Seen {
        Seen {
            size: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Store {
    pub(super) fn file(file: File, path: &Path) -> io::Result<Store> {
        let seen = Some(Seen::of(&file.metadata()?));
        Ok(Store { file, path: path.to_owned(), seen, told: AtomicBool::new(false) })
    }

    pub(super) fn spooled(file: File, path: &Path) -> Store {
        Store { file, path: path.to_owned(), seen: None, told: AtomicBool::new(false) }
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize> {
        let read = self.file.read_at(buffer, at).and_then(|count| {
            // Looked at after reading: what was read before a change is what it was.
            let seen = match &self.seen {
                Some(seen) => Some((Seen::of(&self.file.metadata()?), seen)),
                None => None,
            };
            let same = seen.is_none_or(|(now, seen)| now.modified == seen.modified && now.size == seen.size);
            match same && count > 0 {
                true => Ok(count),
                false => Err(io::Error::other("it was changed while it is mounted")),
            }
        });
        read.map_err(|error| {
            if !self.told.swap(true, Ordering::Relaxed) {
                log::error!("{}: cannot be read at {at}: {error}", self.path.display());
            }
            Errno::IO
        })
    }
}

/// A regular file.
#[derive(Debug)]
pub(super) struct ArchiveFile {
    store: Arc<Store>,
    size: u64,
    /// In order.
    runs: Box<[Stored]>,
}

impl ArchiveFile {
    pub(super) fn new(store: Arc<Store>, size: u64, runs: Box<[Stored]>) -> ArchiveFile {
        ArchiveFile { store, size, runs }
    }

    /// The first run that ends behind an offset.
    fn run(&self, offset: u64) -> Option<&Stored> {
        let at = self.runs.partition_point(|run| run.offset + run.length <= offset);
        self.runs.get(at)
    }
}

impl TreeFile for ArchiveFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let buffer = &mut buffer[..most];
        if most == 0 {
            return Ok(0);
        }
        let within = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX).min(most);
        match self.run(offset) {
            Some(run) if run.offset <= offset => {
                let skip = offset - run.offset;
                let count = within(run.length - skip);
                self.store.read_at(&mut buffer[..count], run.at + skip)
            }
            next => {
                let count = within(next.map_or(self.size, |run| run.offset) - offset);
                buffer[..count].fill(0);
                Ok(count)
            }
        }
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let run = self.run(offset).filter(|_| offset < self.size);
        Ok(run.map(|run| run.offset.max(offset)..run.offset + run.length))
    }
}
