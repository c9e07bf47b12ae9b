//! The blocks of a copy as its filesystem knows them: read, counted, made holes again.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, FallocateFlags, SeekFrom};
use rustix::io::{self, Errno};

use crate::error::Result;
use crate::sys::extents::{self, Has};
use crate::sys::object::{At, Writable};
use crate::union::change::carry::set_times;
use crate::union::change::lend::open_owned;
use crate::union::change::upper::changed;
use crate::union::data::block_map::BlockMap;
use crate::union::data::half_mark::HalfMark;

/// Reads which blocks before the limit are a file's own, and which have room and no data.
pub(super) fn read_map(
    own: BorrowedFd<'_>,
    block: u64,
    limit: u64,
) -> io::Result<(BlockMap, Vec<Range<u64>>)> {
    let (mut map, mut room) = (BlockMap::default(), Vec::new());
    let last = limit.div_ceil(block);
    extents::for_each(own, limit, &mut |has, from, to| {
        let blocks = from / block..to.div_ceil(block).min(last);
        match has {
            Has::Data => map.add(blocks.start, blocks.end),
            Has::Room => room.push(blocks),
        }
    })?;
    Ok((map, room))
}

/// Returns how many blocks of a half-copied file that is open for reading are its own, by its mark, and how many it has.
pub(in crate::union) fn count_blocks(own: BorrowedFd<'_>, mark: &HalfMark) -> Result<(u64, u64)> {
    let size = At::Fd(own).stat()?.size;
    #[allow(clippy::unnecessary_cast)] // the type differs by architecture
    let block = fs::fstatfs(own)?.f_bsize as u64;
    let limit = mark.limit.min(size);
    let (shared, all) = (limit.div_ceil(block), size.div_ceil(block));
    let mut map = read_map(own, block, limit)?.0;
    mark.torn.iter().for_each(|torn| map.remove(torn.start, torn.end));
    Ok((map.count() + (all - shared), all))
}

/// Makes a metacopy one without blocks, as a half-copied file begins: what an interrupted completion left isn't whole blocks.
/// Its times stay. Tells whether it has none.
pub(in crate::union) fn without_blocks(object: Writable<'_>) -> Result<bool> {
    make_empty(&open_owned(object, true, true)?, object)
}

/// Does the same of one that is to be a half-copied file. Tells besides whether it gets no other blocks than those that are written.
pub(in crate::union) fn begins_without_blocks(object: Writable<'_>) -> Result<bool> {
    let file = open_owned(object, true, true)?;
    Ok(extents::is_by_blocks(file.as_fd()) && make_empty(&file, object)?)
}

fn make_empty(file: &OwnedFd, object: Writable<'_>) -> Result<bool> {
    let is_empty = || match fs::seek(file, SeekFrom::Data(0)) {
        Err(Errno::NXIO) => Ok(true),
        other => other.map(|_| false),
    };
    if is_empty()? {
        return Ok(true);
    }
    let stat = At::Fd(file.as_fd()).stat()?;
    let punched = punch(file.as_fd(), 0, stat.size);
    changed();
    set_times(&stat, object)?;
    Ok(punched.is_ok() && is_empty()?)
}

/// Makes a hole. The end of the file isn't moved, and within the last block there is nothing to be kept.
pub(super) fn punch(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
    // A block in part would be zeroed, and stay.
    #[allow(clippy::unnecessary_cast)] // the type differs by architecture
    let block = fs::fstatfs(file)?.f_bsize as u64;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    #[expect(clippy::disallowed_methods, reason = "who has a hole made looks at the file after")]
    fs::fallocate(file, flags, offset, length.next_multiple_of(block))
}
