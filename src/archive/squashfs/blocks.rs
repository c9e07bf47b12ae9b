//! The data of an image's files: the blocks that are asked for, and no others.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::{Errno, Result};

use super::packed::{Map, Packed, Stored};
use crate::archive::decompressed::{CACHE, new_image};
use crate::archive::filesystem::{Wrong, read_exact};
use crate::archive::index::Index;
use crate::archive::part::Part;
use crate::union::stack::tree::TreeFile;

/// Of so many blocks one's place is remembered while a file is open: to find another's, no more sizes are added up.
const STRIDE: usize = 64;
/// Of so many damaged files a line is written to the log.
const MOST_TOLD: usize = 100;

/// What the files of an image are read from.
#[derive(Debug)]
pub(in crate::archive) struct Blocks {
    index: Arc<Index>,
    part: Part,
    /// Tells its blocks from those of other images.
    id: u64,
    /// The files of which the log says that they are damaged.
    told: Mutex<HashSet<u64>>,
}

/// A regular file.
#[derive(Debug)]
struct File {
    blocks: Arc<Blocks>,
    number: u64,
    at: u32,
    size: u64,
    /// Where every block lies whose number is a multiple of [`STRIDE`].
    places: Box<[u64]>,
}

thread_local! {
    /// What a block is read into before it is decompressed.
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Blocks {
    pub(in crate::archive) fn new(index: Arc<Index>, part: Part) -> Arc<Blocks> {
        Arc::new(Blocks { index, part, id: new_image(), told: Mutex::default() })
    }

    /// Opens the file of that number in the index, whose map of blocks stands at `at`.
    pub(in crate::archive) fn open(self: &Arc<Self>, number: u64, at: u32, size: u64) -> Arc<dyn TreeFile> {
        let mut places = Vec::new();
        if let Some(map) = self.index.packed.as_ref().and_then(|packed| packed.map(at, size)) {
            let mut place = map.start;
            for from in (0..map.count()).step_by(STRIDE) {
                places.push(place);
                place = place.saturating_add(map.length(from..map.count().min(from + STRIDE)));
            }
        }
        Arc::new(File { blocks: self.clone(), number, at, size, places: places.into_boxed_slice() })
    }

    fn packed(&self) -> std::result::Result<&Packed, Wrong> {
        self.index.packed.as_ref().ok_or_else(|| Wrong::damaged("it has no data"))
    }

    /// Reads bytes as they are stored.
    fn read(&self, at: u64, buffer: &mut [u8]) -> std::result::Result<(), Wrong> {
        read_exact(&self.part, at, buffer)?;
        // Looked at after reading: what was read before a change is what it was.
        self.part.store.check().map_err(Wrong::Read)
    }

    /// Reads a block and decompresses it into a buffer; returns how many bytes that gives.
    fn decompress(&self, at: u64, stored: Stored, buffer: &mut [u8]) -> std::result::Result<usize, Wrong> {
        let packed = self.packed()?;
        let length = stored.length() as usize;
        if length > 1 << packed.block_log {
            return Err(Wrong::damaged(format!("the block at {at} tells of {length} bytes")));
        }
        STORED.with_borrow_mut(|bytes| {
            bytes.resize(length, 0);
            self.read(at, bytes)?;
            let found = packed.compressor.decompress(bytes, buffer);
            found.map_err(|error| Wrong::damaged(format!("the block at {at} can't be decompressed: {error}")))
        })
    }

    /// Returns a decompressed block, which is kept for who asks next.
    fn kept(&self, at: u64, stored: Stored) -> std::result::Result<Arc<Vec<u8>>, Wrong> {
        let size = 1 << self.packed()?.block_log;
        CACHE.get((self.id, at), size, || {
            let mut block = vec![0; size];
            let count = self.decompress(at, stored, &mut block)?;
            block.truncate(count);
            block.shrink_to_fit();
            Ok(block)
        })
    }

    /// Says in the log that a file can't be read.
    fn tell(&self, number: u64, offset: u64, wrong: Wrong) -> Errno {
        // Whoever reads another file doesn't wait until this one's path is found.
        let (is_new, is_last) = {
            let mut told = self.told.lock();
            let is_new = told.len() < MOST_TOLD && told.insert(number);
            (is_new, is_new && told.len() == MOST_TOLD)
        };
        if is_new {
            let what = match wrong {
                Wrong::Read(error) => error,
                Wrong::Unknown { what, .. } | Wrong::Damaged { what, .. } => io::Error::other(what),
            };
            let (archive, path) = (self.part.path.display(), self.index.path(number));
            let path = path.escape_ascii();
            log::error!("{archive}: {path} cannot be read at {offset}: {what}");
            if is_last {
                log::error!("{archive}: nothing is said of further files of it that can't be read");
            }
        }
        Errno::IO
    }
}

impl Drop for Blocks {
    /// Gives back what is kept of its blocks.
    fn drop(&mut self) {
        CACHE.forget(self.id);
    }
}

impl File {
    fn map(&self) -> std::result::Result<Map<'_>, Wrong> {
        let map = self.blocks.packed()?.map(self.at, self.size);
        map.ok_or_else(|| Wrong::damaged("nothing tells where its data lie"))
    }

    /// Reads from the block that an offset lies in, as much as that has.
    fn read_block(&self, buffer: &mut [u8], offset: u64) -> std::result::Result<usize, Wrong> {
        let log = self.blocks.packed()?.block_log;
        let map = self.map()?;
        let (number, within) = ((offset >> log) as usize, (offset & ((1 << log) - 1)) as usize);
        let length = (self.size - (offset >> log << log)).min(1 << log) as usize;
        let count = buffer.len().min(length - within);
        let buffer = &mut buffer[..count];
        match map.block(number) {
            Some(block) if block.is_hole() => buffer.fill(0),
            Some(block) => self.read_stored(buffer, (self.place(&map, number)?, block), within, length)?,
            None => self.read_fragment(&map, buffer, within, length)?,
        }
        Ok(count)
    }

    /// Returns where a block lies.
    fn place(&self, map: &Map<'_>, number: usize) -> std::result::Result<u64, Wrong> {
        let near = number / STRIDE;
        let place =
            self.places.get(near).and_then(|place| place.checked_add(map.length(near * STRIDE..number)));
        place.ok_or_else(|| Wrong::damaged("its data lie nowhere"))
    }

    fn read_stored(
        &self,
        buffer: &mut [u8],
        (at, block): (u64, Stored),
        within: usize,
        length: usize,
    ) -> std::result::Result<(), Wrong> {
        let short = || Wrong::damaged(format!("the block at {at} isn't one of {length} bytes"));
        if block.is_plain() {
            return match block.length() as usize == length {
                true => self.blocks.read(at.saturating_add(within as u64), buffer),
                false => Err(short()),
            };
        }
        // What is asked for as a whole is in the kernel's cache then.
        if buffer.len() == length && CACHE.find((self.blocks.id, at)).is_none() {
            return match self.blocks.decompress(at, block, buffer)? == length {
                true => Ok(()),
                false => Err(short()),
            };
        }
        let kept = self.blocks.kept(at, block)?;
        let some = kept.get(within..within + buffer.len()).filter(|_| kept.len() == length);
        buffer.copy_from_slice(some.ok_or_else(short)?);
        Ok(())
    }

    fn read_fragment(
        &self,
        map: &Map<'_>,
        buffer: &mut [u8],
        within: usize,
        length: usize,
    ) -> std::result::Result<(), Wrong> {
        let found = self.blocks.packed()?.fragment(map);
        let (at, fragment, begin) = found.ok_or_else(|| Wrong::damaged("its fragment isn't there"))?;
        let (begin, short) =
            (begin as usize, || Wrong::damaged(format!("the fragment at {at} doesn't hold its end")));
        if fragment.is_plain() {
            return match begin + length <= fragment.length() as usize {
                true => self.blocks.read(at.saturating_add((begin + within) as u64), buffer),
                false => Err(short()),
            };
        }
        let kept = self.blocks.kept(at, fragment)?;
        let some = kept.get(begin..begin + length).ok_or_else(short)?;
        buffer.copy_from_slice(&some[within..within + buffer.len()]);
        Ok(())
    }
}

impl TreeFile for File {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let mut done = 0;
        while done < most {
            let at = offset + done as u64;
            match self.read_block(&mut buffer[done..most], at) {
                Ok(count) => done += count,
                // What was read before is right.
                Err(_) if done > 0 => break,
                Err(wrong) => return Err(self.blocks.tell(self.number, at, wrong)),
            }
        }
        Ok(done)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let map = self.map().map_err(|wrong| self.blocks.tell(self.number, offset, wrong))?;
        let log = self.blocks.packed().map_or(0, |packed| packed.block_log);
        let is_hole = |number: u64| {
            usize::try_from(number).ok().and_then(|number| map.block(number)).is_some_and(Stored::is_hole)
        };
        if offset >= self.size {
            return Ok(None);
        }
        let end = self.size.div_ceil(1 << log);
        let Some(first) = (offset >> log..end).find(|&number| !is_hole(number)) else { return Ok(None) };
        let behind = (first..end).find(|&number| is_hole(number)).unwrap_or(end);
        Ok(Some((first << log).max(offset)..(behind << log).min(self.size)))
    }
}
