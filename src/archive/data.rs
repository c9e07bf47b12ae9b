//! The data of an archive's files.

pub(super) mod blocks;

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use rustix::io::{Errno, Result};

use super::watch::Watch;
use crate::union::stack::tree::FileStamp;

/// What holds the data: the archive, or what is decoded out of it.
#[derive(Debug)]
pub(super) struct Store {
    holder: Holder,
    path: PathBuf,
    told: AtomicBool,
}

#[derive(Debug)]
enum Holder {
    /// The file, and what it was when it was opened.
    File(File, Original),
    /// What is decoded when it is asked for.
    Decoded(Box<dyn Decoded>),
}

/// What is decoded out of a file when it is asked for.
pub(super) trait Decoded: fmt::Debug + Send + Sync {
    /// Reads as much as there is.
    ///
    /// # Errors
    /// Those of reading, and that it isn't what it was.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// Returns what holds the file.
    fn out_of(&self) -> &Store;
}

/// A file whose content mustn't change.
#[derive(Debug)]
pub(super) struct Original {
    seen: RwLock<Seen>,
    /// Who writes into it may set the time of its content back. `None`: here nobody tells who does.
    watch: Option<Watch>,
    /// It was found changed once. What it looks like since doesn't matter.
    is_changed: AtomicBool,
}

/// What tells that a file has been changed.
#[derive(Debug)]
pub(super) struct Seen {
    size: u64,
    modified: (i64, i64),
    /// Nobody can set this one back. It changes with the name, the rights and the attributes as well.
    pub(super) changed: (i64, i64),
    rights: (u32, u32, u32, u64),
    name: PathBuf,
}

impl Seen {
    pub(super) fn of(file: &File) -> io::Result<Seen> {
        let metadata = file.metadata()?;
        let (size, modified, changed) = times(&metadata);
        // Without /proc a name is as any other.
        let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
        let rights = (metadata.mode(), metadata.uid(), metadata.gid(), metadata.nlink());
        Ok(Seen { size, modified, changed, rights, name })
    }
}

impl Original {
    /// Takes a file as it is.
    ///
    /// # Errors
    /// Those of stat.
    pub(super) fn of(file: &File) -> io::Result<Original> {
        // Whatever comes between the two is told by one of them.
        let watch = Watch::of(file);
        Ok(Original { seen: RwLock::new(Seen::of(file)?), watch, is_changed: AtomicBool::new(false) })
    }

    /// Says that it was changed, now and ever after.
    fn changed(&self) -> io::Error {
        self.is_changed.store(true, Ordering::Relaxed);
        io::Error::other("it was changed since it was opened")
    }

    /// Fails when the content may be another one than was seen; what was seen of it is now what there is else.
    ///
    /// # Errors
    /// That it was changed, and those of stat.
    pub(super) fn check(&self, file: &File) -> io::Result<()> {
        if self.is_changed.load(Ordering::Relaxed) {
            return Err(self.changed());
        }
        let now = times(&file.metadata()?);
        let is_same = |seen: &Seen| (seen.size, seen.modified, seen.changed) == now;
        if is_same(&self.seen.read()) {
            return Ok(());
        }
        let mut seen = self.seen.write();
        let now = Seen::of(file)?;
        let same_content = (now.size, now.modified) == (seen.size, seen.modified);
        let is_written = match self.watch.as_ref().and_then(Watch::is_written) {
            Some(is_written) => is_written,
            // Then it is believed where something else tells why the inode was changed.
            None => (now.rights, &now.name) == (seen.rights, &seen.name) && now.changed != seen.changed,
        };
        if !same_content || is_written {
            return Err(self.changed());
        }
        *seen = now;
        Ok(())
    }
}

type Times = (u64, (i64, i64), (i64, i64));

fn times(metadata: &Metadata) -> Times {
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    (metadata.len(), (metadata.mtime(), metadata.mtime_nsec()), changed)
}

impl Store {
    /// Opens the archive itself, `original` since before its index was made.
    ///
    /// # Errors
    /// When it has been changed since.
    pub(super) fn file(file: File, path: &Path, original: Original) -> io::Result<Store> {
        original.check(&file)?;
        Ok(Store::of(Holder::File(file, original), path))
    }

    /// Takes what is decoded when it is asked for.
    pub(super) fn decoded(decoded: Box<dyn Decoded>) -> Store {
        let path = decoded.out_of().path.clone();
        Store::of(Holder::Decoded(decoded), &path)
    }

    fn of(holder: Holder, path: &Path) -> Store {
        Store { holder, path: path.to_owned(), told: AtomicBool::new(false) }
    }

    /// Returns whether offsets are those of something that was decoded, and not of the file.
    pub(super) fn is_decoded(&self) -> bool {
        matches!(self.holder, Holder::Decoded(_))
    }

    /// Fails when it may have been changed since it was opened.
    ///
    /// # Errors
    /// That it was, and those of stat.
    pub(super) fn check(&self) -> io::Result<()> {
        match &self.holder {
            Holder::File(file, original) => original.check(file),
            Holder::Decoded(decoded) => decoded.out_of().check(),
        }
    }

    /// Returns which file it is, as it is now.
    ///
    /// # Errors
    /// Those of stat.
    pub(super) fn stamp(&self) -> io::Result<FileStamp> {
        Ok(FileStamp::of(&self.as_file().metadata()?))
    }

    /// Returns the file that all of it lies in, for what is to be known of it.
    pub(super) fn as_file(&self) -> &File {
        match &self.holder {
            Holder::File(file, _) => file,
            Holder::Decoded(decoded) => decoded.out_of().as_file(),
        }
    }

    /// Reads what is there now, which may have been changed.
    pub(super) fn read_unchecked(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        match &self.holder {
            Holder::File(file, _) => file.read_at(buffer, at),
            Holder::Decoded(decoded) => decoded.read_at(buffer, at),
        }
    }

    fn read_all(&self, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_unchecked(buffer, at)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => (buffer, at) = (&mut buffer[count..], at + count as u64),
            }
        }
        Ok(())
    }

    /// Says that it was changed, now and ever after.
    fn changed(&self) -> io::Error {
        match &self.holder {
            Holder::File(_, original) => original.changed(),
            Holder::Decoded(decoded) => decoded.out_of().changed(),
        }
    }

    pub(super) fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize> {
        let read = self.read_unchecked(buffer, at).and_then(|count| {
            // Looked at after reading: what was read before a change is what it was.
            self.check()?;
            match count {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                count => Ok(count),
            }
        });
        read.map_err(|error| self.tell(at, &error))
    }

    /// Reads all of a range that `is_it` takes for what it was.
    fn read_block(&self, range: Range<u64>, is_it: impl Fn(&[u8]) -> bool) -> Result<Arc<[u8]>> {
        let at = range.start;
        let length = usize::try_from(range.end.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut block = vec![0; length];
        let read = self.read_all(&mut block, at).and_then(|()| {
            self.check()?;
            if is_it(&block) { Ok(block.into()) } else { Err(self.changed()) }
        });
        read.map_err(|error| self.tell(at, &error))
    }

    /// Does as [`check`](Store::check), for who answers a read.
    fn still(&self) -> Result<()> {
        self.check().map_err(|error| self.tell(0, &error))
    }

    /// Writes a line into the log, for the first error alone.
    fn tell(&self, at: u64, error: &io::Error) -> Errno {
        if !self.told.swap(true, Ordering::Relaxed) {
            log::error!("{}: cannot be read at {at}: {error}", self.path.display());
        }
        Errno::IO
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    impl Original {
        /// Takes a file that nobody tells of who writes into it.
        pub(super) fn unwatched(file: &File) -> Original {
            Original { watch: None, ..Original::of(file).unwrap() }
        }
    }

    /// Sets the time of a file's content, and gives another reason why its inode was changed.
    pub(super) fn excuse(file: &File, modified: std::time::SystemTime) {
        file.set_modified(modified).unwrap();
        let mode = file.metadata().unwrap().mode() ^ 0o040;
        file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_was_changed_once_is_changed_for_good() {
        let file = tempfile::tempfile().unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        let original = Original::unwatched(&file);
        excuse(&file, modified);
        original.check(&file).unwrap();
        file.set_modified(modified + Duration::from_secs(5)).unwrap();
        original.check(&file).unwrap_err();
        // As if nothing had been.
        excuse(&file, modified);
        let said = original.check(&file).unwrap_err().to_string();
        assert!(said.contains("changed since it was opened"), "{said}");
        Original::unwatched(&file).check(&file).unwrap();
    }
}
