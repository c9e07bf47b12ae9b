//! Where an archive lies: a file, or a part of one, as a layer lies in the archive of its image.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::data::blocks::{Blocks, Checked};
use super::data::{Decoded, Original, Store};

/// Bytes of a file that isn't to change.
#[derive(Debug, Clone)]
pub struct Part {
    pub(super) store: Arc<Store>,
    pub(super) at: u64,
    pub(super) size: u64,
    /// What messages call it.
    pub(super) path: PathBuf,
    /// By which all that is read of it is checked, where somebody has promised what it is.
    checked: Option<Arc<Checked>>,
}

impl Part {
    /// Takes a whole file as it is now.
    ///
    /// # Errors
    /// Those of stat.
    pub fn whole(file: File, path: &Path) -> io::Result<Part> {
        let original = Original::of(&file)?;
        let size = file.metadata()?.len();
        let store = Arc::new(Store::file(file, path, original)?);
        Ok(Part { store, at: 0, size, path: path.to_owned(), checked: None })
    }

    /// Takes all of what is decoded when it is asked for, so many bytes.
    pub(super) fn decoded(decoded: Box<dyn Decoded>, size: u64, path: &Path) -> Part {
        Part { store: Arc::new(Store::decoded(decoded)), at: 0, size, path: path.to_owned(), checked: None }
    }

    /// Gives it another name in messages.
    pub fn called(self, path: &Path) -> Part {
        Part { path: path.to_owned(), ..self }
    }

    /// Has all that is read of it as data held against the digests of its blocks, if there are any.
    pub(super) fn checked(self, blocks: Option<Blocks>) -> Part {
        Part { checked: blocks.map(Checked::new).map(Arc::new), ..self }
    }

    /// Returns a part of it, for which no blocks speak. `None`: it isn't as long as that.
    pub(super) fn within(&self, at: u64, size: u64) -> Option<Part> {
        let is_within = at.checked_add(size).is_some_and(|end| end <= self.size);
        is_within.then(|| Part { at: self.at + at, size, checked: None, ..self.clone() })
    }

    /// Reads data of it, which must be what they were.
    ///
    /// # Errors
    /// `EIO` where they aren't, or can't be read.
    pub(super) fn read_at(&self, buffer: &mut [u8], at: u64) -> rustix::io::Result<usize> {
        match &self.checked {
            Some(checked) => checked.read_at(&self.store, &(self.at..self.at + self.size), buffer, at),
            None => self.store.read_at(buffer, self.at + at),
        }
    }

    /// Reads what is there. Where it is checked, that must be what it was; else who believes it asks [`Store::check`] afterwards.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn read_there(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        match &self.checked {
            Some(_) => Ok(self.read_at(buffer, at)?),
            None => self.store.read_unchecked(buffer, self.at + at),
        }
    }

    /// Reads it from its beginning on. What is read may have been changed meanwhile: who believes it asks [`Store::check`] afterwards.
    pub(super) fn reader(&self) -> PartReader {
        PartReader { part: self.clone(), at: 0 }
    }
}

/// Reads a part; several at once, each at its own place.
#[derive(Debug)]
pub(super) struct PartReader {
    part: Part,
    at: u64,
}

impl Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.part.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        if most == 0 {
            return Ok(0);
        }
        let count = self.part.store.read_unchecked(&mut buffer[..most], self.part.at + self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for PartReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.part.size.checked_add_signed(by),
        };
        self.at = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_part_ends_where_it_ends() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let whole = Part::whole(file, Path::new("f")).unwrap();
        let part = whole.within(2, 5).unwrap();
        let mut read = Vec::new();
        part.reader().read_to_end(&mut read).unwrap();
        assert_eq!(read, b"23456");
        let inner = part.within(1, 3).unwrap();
        let (mut reader, mut text) = (inner.reader(), String::new());
        reader.seek(SeekFrom::Current(1)).unwrap();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "45");
        assert!(part.within(3, 3).is_none() && part.within(u64::MAX, 2).is_none());
    }
}
