//! Which parts of a file have room on the disk already: FIEMAP, where the filesystem has it.

// rustix has no FS_IOC_FIEMAP and no FS_IOC_FSGETXATTR.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Opcode, opcode};

/// Of `struct fiemap` the fixed part counts.
const FIEMAP: Opcode = opcode::read_write::<[u8; 32]>(b'f', 11);
const LAST: u32 = 1;
/// There is room, and no data yet.
const UNWRITTEN: u32 = 0x800;
/// What is in the kernel's cache is written first.
const SYNC: u32 = 1;
const MOST: usize = 32;

/// With `struct fsxattr`.
const FSGETXATTR: Opcode = opcode::read::<[u32; 7]>(b'X', 31);
/// The file's data are on a device of their own, whose pieces may be larger than a block.
const REALTIME: u32 = 1;
/// Room comes in pieces of a size that was asked for.
const SIZED: u32 = 0x800;

#[repr(C)]
#[derive(Clone, Copy)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; MOST],
}

/// Returns how many bytes from `start` to `end` have room: data, data that the kernel will write, and what was preallocated.
/// Where the filesystem has no map of extents, preallocated room counts as none.
///
/// # Errors
/// Those of the ioctl and of lseek(2).
pub fn with_room(file: BorrowedFd<'_>, start: u64, end: u64) -> Result<u64> {
    match by_map(file, start, end) {
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS) => by_data(file, start, end),
        counted => counted,
    }
}

/// What a part of a file has on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Has {
    /// Data.
    Data,
    /// Room, and no data yet. Only where the filesystem has a map of extents is it told.
    Room,
}

/// Calls `each` with where data and room of a file begin and end, from its beginning to before `end`. What is in the kernel's cache
/// alone is written first, and room without data is no data: SEEK_DATA takes it for some when somebody has read it, for then there are
/// pages of it in the cache.
///
/// # Errors
/// Those of writing, of the ioctl and of lseek(2).
pub fn for_each(file: BorrowedFd<'_>, end: u64, each: &mut dyn FnMut(Has, u64, u64)) -> Result<()> {
    let by_map = for_each_extent(file, (0, end), SYNC, &mut |extent, from, to| {
        each(if extent.flags & UNWRITTEN == 0 { Has::Data } else { Has::Room }, from, to);
    });
    match by_map {
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS) => {}
        done => return done,
    }
    let mut at = 0;
    while at < end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            data => data?,
        };
        at = seek(file, SeekFrom::Hole(data))?;
        each(Has::Data, data, at.min(end));
    }
    Ok(())
}

/// Tells whether a write to a hole of the file takes room for its own blocks alone, and one of them can be made a hole again: not
/// where XFS was asked for larger pieces (`xfs_io -c extsize`), nor on its realtime device, which makes zeros of a part of one; nor
/// where it can't be told.
pub fn is_by_blocks(file: BorrowedFd<'_>) -> bool {
    let mut told = [0u32; 7];
    // SAFETY: the buffer is as large as the struct, and lives as long as the call.
    let done =
        unsafe { libc::ioctl(file.as_raw_fd(), libc::c_ulong::from(FSGETXATTR) as _, told.as_mut_ptr()) };
    if done == 0 {
        return told[0] & (REALTIME | SIZED) == 0;
    }
    // Who doesn't know the call is no filesystem that has such pieces.
    let errno = Errno::from_io_error(&std::io::Error::last_os_error());
    matches!(errno, Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS))
}

fn by_map(file: BorrowedFd<'_>, start: u64, end: u64) -> Result<u64> {
    let mut found = 0;
    for_each_extent(file, (start, end), 0, &mut |_, from, to| found += to - from)?;
    Ok(found)
}

/// Calls `each` with the extents of a part of a file, and where in that part they begin and end.
fn for_each_extent(
    file: BorrowedFd<'_>,
    (start, end): (u64, u64),
    flags: u32,
    each: &mut dyn FnMut(&Extent, u64, u64),
) -> Result<()> {
    let none =
        Extent { logical: 0, physical: 0, length: 0, reserved: [0; 2], flags: 0, reserved_too: [0; 3] };
    let mut at = start;
    while at < end {
        let mut map = Map {
            start: at,
            length: end - at,
            flags,
            mapped: 0,
            count: MOST as u32,
            reserved: 0,
            extents: [none; MOST],
        };
        // SAFETY: the map has room for as many extents as it says, and lives as long as the call.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::c_ulong::from(FIEMAP) as _, &raw mut map) };
        if done != 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        let extents = &map.extents[..(map.mapped as usize).min(MOST)];
        let Some(last) = extents.last() else { break };
        let ends = |extent: &Extent| extent.logical.saturating_add(extent.length);
        for extent in extents {
            let (from, to) = (extent.logical.max(at), ends(extent).min(end));
            if from < to {
                each(extent, from, to);
            }
        }
        if last.flags & LAST != 0 || ends(last) <= at {
            break;
        }
        at = ends(last);
    }
    Ok(())
}

fn by_data(file: BorrowedFd<'_>, start: u64, end: u64) -> Result<u64> {
    // A run ends with a block, though it is told to end with the file.
    let block = u64::try_from(rustix::fs::fstat(file)?.st_blksize).unwrap_or(0).clamp(512, 1 << 20);
    let (mut at, mut found) = (start, 0);
    while at < end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            data => data?.min(end),
        };
        at = seek(file, SeekFrom::Hole(data))?.next_multiple_of(block).min(end);
        found += at.saturating_sub(data);
        if at <= data {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_have_no_room_and_data_have() {
        for dir in ["/tmp", "/dev/shm"] {
            let file = tempfile::tempfile_in(dir).unwrap();
            file.set_len(1 << 20).unwrap();
            file.write_all_at(&[1; 8192], 4096).unwrap();
            file.write_all_at(&[1; 4096], 256 << 10).unwrap();
            let fd = file.as_fd();
            let counted = [
                with_room(fd, 0, 1 << 20),
                with_room(fd, 0, 4096),
                with_room(fd, 4096, 12288),
                with_room(fd, 8192, 16384),
                with_room(fd, 2 << 20, 3 << 20),
            ];
            assert_eq!(counted, [12288, 0, 8192, 4096, 0].map(Ok), "{dir}");
            let mut data = Vec::new();
            for_each(fd, 300_000, &mut |has, from, to| data.push((has, from, to))).unwrap();
            let expected = [(4096, 12288), (256 << 10, (256 << 10) + 4096)];
            assert_eq!(data, expected.map(|(from, to)| (Has::Data, from, to)), "{dir}");
        }
    }

    /// A power failure may leave room whose data never came; who reads that has pages of zeros in the cache.
    #[test]
    fn room_without_data_is_no_data_whoever_reads_it() {
        let file = tempfile::tempfile_in("/tmp").unwrap();
        file.set_len(1 << 20).unwrap();
        let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, flags, 65536, 65536).unwrap();
        file.write_all_at(&[1; 4096], 81920).unwrap();
        std::io::copy(&mut &file, &mut std::io::sink()).unwrap();
        let mut data = Vec::new();
        for_each(file.as_fd(), 1 << 20, &mut |has, from, to| data.push((has, from, to))).unwrap();
        assert_eq!(data, [(Has::Room, 65536, 81920), (Has::Data, 81920, 86016), (Has::Room, 86016, 131_072)]);
    }
}
