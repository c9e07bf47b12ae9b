//! Digests of the blocks of an archive whose whole was held against a promise.
//!
//! What was true once need not be true later, and nobody tells: who has a file mapped (mmap(2)) may store into it without
//! another write, so inotify says nothing; the times change with the first store into a page alone, on tmpfs with none, and
//! that of the content can be set back. So what is read later is held against a digest again, block by block.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Result;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Store;

/// What the kernel asks for at once; a digest for each takes a four-thousandth of the archive.
const BLOCK: u64 = 128 << 10;

/// Reads of one file begin and end within blocks, and small files share one: those that were read last are kept.
const RECENT: usize = 4;

/// A digest.
pub(in crate::archive) type BlockDigest = [u8; 32];

/// The digests of all blocks of an archive, in order. The last block may be shorter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::archive) struct Blocks(Vec<BlockDigest>);

impl Blocks {
    /// Tells whether there are as many as an archive of that size has.
    pub(in crate::archive) fn are_of(&self, size: u64) -> bool {
        self.0.len() as u64 == size.div_ceil(BLOCK)
    }
}

/// A stream whose blocks are hashed on the way.
pub(in crate::archive) struct Blocking<R> {
    inner: R,
    hasher: Sha256,
    /// How much of a block has been read.
    filled: u64,
    done: Vec<BlockDigest>,
}

impl<R: Read> Blocking<R> {
    pub(in crate::archive) fn new(inner: R) -> Blocking<R> {
        Blocking { inner, hasher: Sha256::new(), filled: 0, done: Vec::new() }
    }

    /// Returns the digests of what has been read.
    pub(in crate::archive) fn finish(mut self) -> Blocks {
        if self.filled > 0 {
            self.done.push(self.hasher.finalize().into());
        }
        Blocks(self.done)
    }
}

impl<R: Read> Read for Blocking<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let mut new = &buffer[..count];
        while !new.is_empty() {
            let room = usize::try_from(BLOCK - self.filled).unwrap_or(usize::MAX);
            let (part, rest) = new.split_at(room.min(new.len()));
            self.hasher.update(part);
            self.filled += part.len() as u64;
            if self.filled == BLOCK {
                self.done.push(self.hasher.finalize_reset().into());
                self.filled = 0;
            }
            new = rest;
        }
        Ok(count)
    }
}

/// The blocks of an archive, by which all that is read of it is checked.
#[derive(Debug)]
pub(in crate::archive) struct Checked {
    blocks: Blocks,
    recent: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
}

impl Checked {
    pub(in crate::archive) fn new(blocks: Blocks) -> Checked {
        Checked { blocks, recent: Mutex::default() }
    }

    /// Reads at a place of the archive, which lies in that range of the file. What is given out was copied before it was checked.
    ///
    /// # Errors
    /// `EIO` where it isn't what it was; then and ever after.
    pub(in crate::archive) fn read_at(
        &self,
        store: &Store,
        archive: &Range<u64>,
        buffer: &mut [u8],
        at: u64,
    ) -> Result<usize> {
        let mut count = 0;
        while count < buffer.len() {
            let at = at + count as u64;
            let (number, skip) = (at / BLOCK, usize::try_from(at % BLOCK).unwrap_or(usize::MAX));
            if archive.start.saturating_add(at) >= archive.end {
                break;
            }
            let block = self.block(store, archive, number)?;
            let Some(found) = block.get(skip..).filter(|found| !found.is_empty()) else { break };
            let length = found.len().min(buffer.len() - count);
            buffer[count..count + length].copy_from_slice(&found[..length]);
            count += length;
        }
        Ok(count)
    }

    fn block(&self, store: &Store, archive: &Range<u64>, number: u64) -> Result<Arc<[u8]>> {
        let known =
            self.recent.lock().iter().find(|(known, _)| *known == number).map(|(_, block)| block.clone());
        if let Some(block) = known {
            store.still()?;
            return Ok(block);
        }
        let start = archive.start + number * BLOCK;
        let range = start..archive.end.min(start + BLOCK);
        let digest = usize::try_from(number).ok().and_then(|number| self.blocks.0.get(number));
        let block = store.read_block(range, |block| digest == Some(&Sha256::digest(block).into()))?;
        let mut recent = self.recent.lock();
        recent.push_front((number, block.clone()));
        recent.truncate(RECENT);
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use rustix::io::Errno;

    use super::super::Original;
    use super::super::tests::excuse;
    use super::*;
    use crate::archive::part::Part;

    #[test]
    fn blocks_are_the_same_however_they_are_read() {
        let bytes: Vec<u8> = (0..3 * BLOCK + 7).map(|at| (at / 1000) as u8).collect();
        let whole = |bytes: &[u8], most: usize| {
            let mut blocking = Blocking::new(bytes);
            let mut buffer = vec![0; most];
            while blocking.read(&mut buffer).unwrap() > 0 {}
            blocking.finish()
        };
        let blocks = whole(&bytes, 1 << 20);
        assert_eq!(blocks, whole(&bytes, 1000));
        assert!(blocks.are_of(bytes.len() as u64) && !blocks.are_of(3 * BLOCK));
        assert_eq!(blocks.0[3], <[u8; 32]>::from(Sha256::digest(&bytes[3 * BLOCK as usize..])));
        assert!(whole(&bytes[..BLOCK as usize], 512).are_of(BLOCK) && whole(b"", 1).are_of(0));
    }

    #[test]
    fn what_is_not_what_it_was_is_never_given_out_nor_anything_after() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..2 * BLOCK + 7).map(|at| (at % 251) as u8).collect();
        file.as_file().write_all_at(&bytes, 3).unwrap();
        let mut blocking = Blocking::new(&bytes[..]);
        io::copy(&mut blocking, &mut io::sink()).unwrap();
        let blocks = blocking.finish();
        // Another look at it: no time tells of a change before.
        let part = || {
            let whole = Part::whole(file.reopen().unwrap(), Path::new("f")).unwrap();
            whole.within(3, bytes.len() as u64).unwrap().checked(Some(blocks.clone()))
        };
        let (before, mut read) = (part(), vec![0; bytes.len() + 9]);
        assert_eq!(before.read_at(&mut read, 0), Ok(bytes.len()));
        assert_eq!(read[..bytes.len()], bytes);
        assert_eq!(before.read_at(&mut read, bytes.len() as u64), Ok(0));
        assert_eq!(before.read_at(&mut read[..10], BLOCK - 5), Ok(10));
        assert_eq!(read[..10], bytes[BLOCK as usize - 5..][..10]);
        file.as_file().write_all_at(b"z", 3 + BLOCK + 1).unwrap();
        let after = part();
        assert_eq!(after.read_at(&mut read[..10], BLOCK - 10), Ok(10));
        assert_eq!(after.read_at(&mut read[..10], BLOCK - 5), Err(Errno::IO));
        file.as_file().write_all_at(&bytes[BLOCK as usize + 1..][..1], 3 + BLOCK + 1).unwrap();
        assert_eq!(after.read_at(&mut read[..10], 0), Err(Errno::IO));
    }

    /// As who stores into a mapping: nothing but the digest tells.
    #[test]
    fn what_was_not_what_it_was_once_is_not_given_out_though_it_be_put_back() {
        let file = tempfile::tempfile().unwrap();
        let bytes = vec![b'a'; 2 * BLOCK as usize];
        file.write_all_at(&bytes, 0).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        let mut blocking = Blocking::new(&bytes[..]);
        io::copy(&mut blocking, &mut io::sink()).unwrap();
        let mut part = Part::whole(file.try_clone().unwrap(), Path::new("f")).unwrap();
        let original = Original::unwatched(&file);
        part.store = Arc::new(Store::file(file.try_clone().unwrap(), Path::new("f"), original).unwrap());
        let part = part.checked(Some(blocking.finish()));
        let write = |byte: &[u8]| {
            file.write_all_at(byte, BLOCK).unwrap();
            excuse(&file, modified);
        };
        write(b"z");
        assert_eq!(part.read_at(&mut [0; 10], 0), Ok(10));
        assert_eq!(part.read_at(&mut [0; 10], BLOCK), Err(Errno::IO));
        write(b"a");
        assert_eq!(part.read_at(&mut [0; 10], BLOCK), Err(Errno::IO));
        assert_eq!(part.read_at(&mut [0; 10], 0), Err(Errno::IO), "nor what was right all the time");
    }
}
