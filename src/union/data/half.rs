//! Half-copied files: the blocks that were written to are the copy's own, the others are still those of the lower's file.
//!
//! The copy is a sparse file, and **its own extents are the map**: where it has data, the block is the copy's; a hole
//! shows the lower's file, up to a **limit**. (SEEK_DATA doesn't tell that well enough: see [`extents::for_each`](crate::sys::extents::for_each).) What is written is written in whole blocks, what a write doesn't cover filled in from
//! below first, so that a block of the copy is right whenever it is there. The filesystem must make an extent durable only after
//! its data, or after a power failure a block could be the copy's whose data never came: see
//! [`orders_data`](crate::sys::filesystem::orders_data). So no other map must be kept in step with the data, whoever syncs them and however.
//!
//! What a power failure leaves of blocks whose data didn't come is room without data. A filesystem may make data of it, zeros, when
//! something is written beside it (ext4, where that takes fewer extents). So it is a hole again before anything is written.
//!
//! Beyond the limit the copy alone counts, holes are zeros. It is the size of the lower's file at first, and is lowered when
//! the copy becomes shorter: the file first, then the mark that keeps the limit, and before the file grows again. What a kill leaves
//! between is a limit beyond the end of the file, which counts as the end.
//!
//! The mark ([`HalfMark`]) also says which file it was that the blocks below belong to. If it isn't that any more, the file answers
//! `EIO`, never a mixture. To other overlays it is a metacopy whose data are nowhere: an error, too.

mod blocks;
mod healing;
mod zeros;

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::{self, SeekFrom};
use rustix::io::{self, Errno};
use rustix::param::page_size;

use crate::error::Result;
use crate::sys::object::At;
use crate::sys::splice::Pipe;
use crate::sys::{copy, progress};
use crate::union::change::upper::{Upper, changed};
use crate::union::data::block_map::BlockMap;
use crate::union::data::half_mark::{HALF, HalfMark};

use blocks::read_map;
pub(in crate::union) use blocks::{begins_without_blocks, count_blocks, without_blocks};

/// Files below this size are copied whole.
pub(in crate::union) const LEAST: u64 = if cfg!(test) { 64 << 10 } else { 1 << 20 };
/// And those above this one: a bit for each block of 4096 bytes takes 16 MiB then.
pub(in crate::union) const LARGEST: u64 = 512 << 30;

/// A half-copied file, open.
#[derive(Debug)]
pub struct Half {
    own: OwnedFd,
    below: Arc<OwnedFd>,
    /// The size of a block.
    block: u64,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    mark: HalfMark,
    /// Up to where the lower's file counts. Not beyond the end; the mark may be, until the file grows.
    limit: u64,
    size: u64,
    /// Which blocks before the limit are the copy's own.
    map: BlockMap,
    /// No block before this one is missing.
    whole: u64,
    /// Blocks of which a part was written, and which must become a hole again before anybody is told what the file holds.
    torn: Vec<Range<u64>>,
    /// Blocks before the limit that have room and no data, and must become holes before anything is written.
    room: Vec<Range<u64>>,
}

impl State {
    /// Returns whether the bytes from `at` on are the copy's, and up to where.
    fn piece(&self, block: u64, at: u64, end: u64) -> (bool, u64) {
        if at >= self.limit {
            return (true, end);
        }
        // No further than is asked: the map of a large file takes long to be gone through.
        let (own, to) = self.map.run(at / block, end.min(self.limit).div_ceil(block));
        let to = (to * block).min(end);
        if own { (true, to) } else { (false, to.min(self.limit)) }
    }

    /// Returns where the blocks of a range begin of which those at its ends are the lower's still, and how many bytes they are.
    fn missing(&self, block: u64, from: u64, to: u64) -> Option<(u64, u64)> {
        let end = if from < to { to.min(self.limit).div_ceil(block) } else { 0 };
        let (mut at, mut found) = (from / block, None);
        while at < end {
            let (own, to) = self.map.run(at, end);
            if !own {
                let first = found.map_or(at * block, |(first, _)| first);
                found = Some((first, (to * block).min(self.limit) - first));
            }
            at = to;
        }
        found
    }

    /// Tells whether all blocks of a range are before the limit and the copy's.
    fn has_all(&self, block: u64, from: u64, to: u64) -> bool {
        to <= self.limit && self.missing(block, from, to).is_none()
    }

    /// Tells whether the block is one of the lower's still.
    fn is_below(&self, block: u64, number: u64) -> bool {
        number * block < self.limit && !self.map.has(number)
    }
}

impl Half {
    /// Opens one: the copy, and the file below.
    ///
    /// # Errors
    /// `EIO` where that isn't the file that the mark is for, and those of reading the map.
    pub fn open(own: OwnedFd, below: Arc<OwnedFd>, mark: HalfMark) -> Result<Half> {
        let copy = At::Fd(own.as_fd()).stat()?;
        let wrong = match () {
            () if !mark.is_of(&copy) => {
                "a half-copied file was copied, and may have other holes; mount the original"
            }
            () if !mark.is_for(&At::Fd(below.as_fd()).stat()?) => {
                "the file of a lower that a half-copied one needs has changed"
            }
            () => "",
        };
        if !wrong.is_empty() {
            log::error!("{}: {wrong}", String::from_utf8_lossy(&mark.path).escape_debug());
            return Err(Errno::IO.into());
        }
        #[allow(clippy::unnecessary_cast)] // the type differs by architecture
        let block = fs::fstatfs(&own)?.f_bsize as u64;
        let size = copy.size;
        let limit = mark.limit.min(size);
        let (mut map, room) = read_map(own.as_fd(), block, limit)?;
        // What was cut off is torn no more.
        let last = limit.div_ceil(block);
        let within = mark.torn.iter().map(|torn| torn.start..torn.end.min(last));
        let torn: Vec<_> = within.filter(|torn| !torn.is_empty()).collect();
        torn.iter().for_each(|torn| map.remove(torn.start, torn.end));
        let state = State { mark, limit, size, map, whole: 0, torn, room };
        Ok(Half { own, below, block, state: RwLock::new(state) })
    }

    /// Returns the copy.
    pub fn own(&self) -> BorrowedFd<'_> {
        self.own.as_fd()
    }

    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let state = self.healed_for_reading()?;
        let end = offset.saturating_add(buffer.len() as u64).min(state.size);
        let mut at = offset;
        while at < end {
            let (own, to) = state.piece(self.block, at, end);
            let part = &mut buffer[(at - offset) as usize..(to - offset) as usize];
            read_exactly(if own { &self.own } else { &self.below }, part, at)?;
            at = to;
        }
        Ok(end.saturating_sub(offset) as usize)
    }

    /// Tells whether [`Half::read_to_pipe`] may be asked: pieces that end within a page would take more of the pipe than they are.
    pub fn fits_pipes(&self) -> bool {
        self.block.is_multiple_of(page_size() as u64)
    }

    /// Does as [`Half::read`], but into an empty pipe, behind what `header` makes for the number of bytes that follow. `None`: it
    /// can't be done, and the pipe may hold something.
    pub fn read_to_pipe<H: AsRef<[u8]>>(
        &self,
        (offset, size): (u64, u32),
        pipe: &Pipe,
        header: impl FnOnce(u32) -> H,
    ) -> Result<Option<u32>> {
        let state = self.healed_for_reading()?;
        let len = size.min(u32::try_from(state.size.saturating_sub(offset)).unwrap_or(u32::MAX));
        let end = offset + u64::from(len);
        if !pipe.begin(header(len).as_ref())? {
            return Ok(None);
        }
        let mut at = offset;
        while at < end {
            let (own, to) = state.piece(self.block, at, end);
            let file = if own { self.own.as_fd() } else { self.below.as_fd() };
            if !pipe.add(file, at, (to - at) as usize)? {
                return Ok(None);
            }
            at = to;
        }
        Ok(Some(len))
    }

    /// Writes all of `data`. Returns where the blocks are that came up by that, also if it failed, and how many bytes.
    pub fn write(&self, upper: &Upper, offset: u64, data: &[u8]) -> (Option<(u64, u64)>, Result<()>) {
        let end = offset + data.len() as u64;
        let mut state = match self.to_be_written_within(upper, (offset, end)) {
            Ok(state) => state,
            Err(e) => return (None, Err(e)),
        };
        let missing = state.missing(self.block, offset, end);
        let written = self.write_to(upper, &mut state, offset, data);
        // They come one after the other.
        let rest = state.missing(self.block, offset, end).filter(|_| written.is_err());
        let new = match (missing, rest) {
            (Some((first, _)), Some((next, _))) => Some((first, next - first)).filter(|_| next > first),
            (missing, _) => missing,
        };
        (new, written)
    }

    fn write_to(&self, upper: &Upper, state: &mut State, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset + data.len() as u64;
        // A block that gets data must not be said to be torn.
        if end > state.size || !state.mark.torn.is_empty() {
            self.mark(upper, state)?;
        }
        let block = self.block;
        let mut at = offset;
        while at < end {
            let first = at / block * block;
            let partly = |first: u64| {
                let covered = at <= first && end >= (first + block).min(state.limit);
                state.is_below(block, first / block) && !covered
            };
            let rest = |from: u64, to: u64| &data[(from - offset) as usize..(to - offset) as usize];
            if partly(first) {
                let stop = end.min(first + block);
                let filled = (first + block).min(state.limit);
                let mut whole = vec![0; (stop.max(filled) - first) as usize];
                read_exactly(&self.below, &mut whole[..(filled - first) as usize], first)?;
                whole[(at - first) as usize..(stop - first) as usize].copy_from_slice(rest(at, stop));
                self.put(upper, state, first, &whole)?;
                at = stop;
            } else {
                let last = end / block * block;
                let stop = if last > at && last < end && partly(last) { last } else { end };
                self.put(upper, state, at, rest(at, stop))?;
                at = stop;
            }
        }
        Ok(())
    }

    /// Writes what leaves no block of the lower's covered in part.
    fn put(&self, upper: &Upper, state: &mut State, at: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        let failed = loop {
            if done == bytes.len() {
                break None;
            }
            match upper.write_some(self.own.as_fd(), &bytes[done..], at + done as u64) {
                Ok(0) => break Some(Errno::NOSPC),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => break Some(e),
            }
        };
        changed();
        let block = self.block;
        let end = at + done as u64;
        let whole = if failed.is_some() { end / block } else { end.div_ceil(block) };
        if failed.is_some() {
            if !end.is_multiple_of(block) && end > at && state.is_below(block, end / block) {
                // The beginning of a block of which the rest didn't come.
                self.take_back(upper, state, end / block..end / block + 1);
            }
            let asked = (at + bytes.len() as u64).min(state.limit).div_ceil(block);
            self.clear(upper, state, end.div_ceil(block)..asked);
        }
        state.map.add(at / block, whole.min(state.limit.div_ceil(block)).max(at / block));
        if done > 0 {
            state.size = state.size.max(end);
        }
        failed.map_or(Ok(()), |errno| Err(errno.into()))
    }

    /// Makes the file so long.
    pub fn truncate(&self, upper: &Upper, size: u64) -> Result<()> {
        let mut state = self.to_be_written(upper)?;
        if size > state.size || !state.mark.torn.is_empty() {
            self.mark(upper, &mut state)?;
        }
        upper.set_length(self.own.as_fd(), size)?;
        changed();
        state.size = size;
        if size < state.limit {
            state.limit = size;
            let last = size.div_ceil(self.block);
            state.map.cut(last);
            state.whole = state.whole.min(last);
            self.mark(upper, &mut state)?;
        }
        Ok(())
    }

    /// Has the mark say what the limit is, before the file grows, or what was cut off would be back; and what is torn.
    fn mark(&self, upper: &Upper, state: &mut State) -> Result<()> {
        if (state.mark.limit, &state.mark.torn) != (state.limit, &state.torn) {
            let mark = HalfMark { limit: state.limit, torn: state.torn.clone(), ..state.mark.clone() };
            upper.set_mark(upper.own_file(self.own.as_fd()), HALF, &mark.to_bytes())?;
            state.mark = mark;
        }
        Ok(())
    }

    /// Returns the next data or hole. All that may be the lower's counts as data.
    pub fn seek(&self, whence: SeekFrom) -> Result<u64> {
        let state = self.state.read();
        let (SeekFrom::Data(offset) | SeekFrom::Hole(offset)) = whence else {
            return Err(Errno::INVAL.into());
        };
        if offset >= state.size {
            return Err(Errno::NXIO.into());
        }
        match whence {
            SeekFrom::Data(_) if offset < state.limit => Ok(offset),
            SeekFrom::Hole(_) if state.limit.max(offset) >= state.size => Ok(state.size),
            SeekFrom::Hole(_) => Ok(fs::seek(&self.own, SeekFrom::Hole(offset.max(state.limit)))?),
            whence => Ok(fs::seek(&self.own, whence)?),
        }
    }

    /// Copies some of what is missing before `end`, about `most` bytes. Returns how many bytes were moved; `None`: nothing is
    /// missing. `around` does it, while nobody else writes to the file.
    pub(in crate::union) fn fill_some(
        &self,
        upper: &Upper,
        (end, most): (u64, u64),
        around: impl FnOnce(&mut dyn FnMut() -> Result<Option<u64>>) -> Result<Option<u64>>,
    ) -> Result<Option<u64>> {
        let mut state = self.state.write();
        around(&mut || {
            self.heal(&mut state).map_err(|_| Errno::IO)?;
            self.give_room_back(upper, &mut state)?;
            self.fill(upper, &mut state, (end, most))
        })
    }

    fn fill(&self, upper: &Upper, state: &mut State, (end, most): (u64, u64)) -> Result<Option<u64>> {
        let block = self.block;
        let end = end.min(state.limit);
        let last = end.div_ceil(block);
        if state.whole >= last {
            return Ok(None);
        }
        let (own, to) = state.map.run(state.whole, last);
        let from = if own { to } else { state.whole };
        state.whole = from;
        if from >= last {
            return Ok(None);
        }
        let (_, to) = state.map.run(from, last.min(from + most.div_ceil(block)));
        let stop = (to * block).min(state.limit).min(from * block + most);
        let mut at = from * block;
        let mut moved = 0;
        let mut buffer = vec![0; (1 << 20).min((stop - at) as usize)];
        while at < stop {
            let (start, data_end) = copy::next_data(self.below.as_fd(), at, stop)?;
            if start >= data_end {
                break;
            }
            // From the beginning of a block, so that it is whole.
            at = start / block * block;
            let to = stop.min(at + buffer.len() as u64);
            let part = &mut buffer[..(to - at) as usize];
            read_exactly(&self.below, part, at)?;
            self.put(upper, state, at, part)?;
            moved += to - at;
            at = to;
        }
        // What is a hole below may be one here.
        state.map.add(from, stop.div_ceil(block));
        Ok(Some(moved))
    }

    /// Copies the first `size` bytes into an empty file. Returns how many were moved.
    pub(in crate::union) fn copy_to(&self, to: BorrowedFd<'_>, size: u64) -> Result<u64> {
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let part = &mut buffer[..(size - at).min(1 << 20) as usize];
            let count = self.read(at, part)?;
            if count == 0 {
                break;
            }
            copy::write_sparsely(to, at, &part[..count])?;
            at += count as u64;
            progress::at(at);
        }
        copy::set_length(to, size)?;
        Ok(at)
    }

    /// Returns how many blocks the copy has, and the whole.
    pub fn count(&self) -> (u64, u64) {
        let state = self.state.read();
        (state.map.count(), state.size.div_ceil(self.block))
    }

    /// Returns how many bytes are the lower's still.
    pub fn below(&self) -> u64 {
        let state = self.state.read();
        let shared = state.limit.div_ceil(self.block);
        shared.saturating_sub(state.map.count()) * self.block
    }
}

/// Reads all of `part`. What is missing at the end of the file has gone since.
fn read_exactly(file: &OwnedFd, part: &mut [u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while done < part.len() {
        match io::pread(file, &mut part[done..], offset + done as u64) {
            Ok(0) => return Err(Errno::IO.into()),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
