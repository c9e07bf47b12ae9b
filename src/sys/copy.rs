//! Copying the data of one file into another, empty one.
//!
//! Three ways, the cheapest that works: share the extents (FICLONE: btrfs, XFS; constant time), copy in the kernel
//! (copy_file_range), copy through a buffer. Holes stay holes in all of them.

#![allow(
    clippy::disallowed_methods,
    reason = "here data are copied, for all; who copies into an upper counts it"
)]
// rustix has no sync_file_range.
#![allow(unsafe_code)]

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{self, SeekFrom};
use rustix::io::{self, Errno, Result};

use super::{cancel, progress};

/// How much one copy_file_range call or one read moves.
const CHUNK: usize = 1 << 20;
/// copy_file_range needs no buffer, so it may take more at once; it is a few milliseconds' work, and can't be stopped.
const RANGE_CHUNK: usize = 16 << 20;
/// As [`RANGE_CHUNK`], where the disk is to begin meanwhile.
const SYNC_CHUNK: usize = 8 << 20;

/// Copies `size` bytes of `from` into the empty file `to`, holes kept, and makes `to` exactly `size` long.
/// Returns the number of bytes that were moved (0 with a clone).
///
/// `sync`: the caller will sync `to`. So the disk begins to write while the rest is copied.
///
/// # Errors
///
/// `EINTR` when it is [asked to stop](cancel); what was copied until then is there.
pub fn file_data(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64, sync: bool) -> Result<u64> {
    if share(from, to, size)? {
        return Ok(0);
    }
    let (mut moved, mut offset) = (0, 0);
    while offset < size {
        let (start, end) = next_data(from, offset, size)?;
        if start >= end {
            break;
        }
        copy_range(from, to, start, end, if sync { SYNC_CHUNK } else { RANGE_CHUNK })?;
        moved += end - start;
        offset = end;
    }
    fs::ftruncate(to, size)?;
    Ok(moved)
}

/// Data that no descriptor leads to.
pub trait ReadAt {
    /// Reads some bytes at an offset; none only at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize>;

    /// Returns the next run of data at or after an offset; `None` where only a hole is left.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>>;
}

/// Copies data as [`copy_some`] does, of what no descriptor leads to.
///
/// # Errors
/// `EIO` where a run ends early; `EINTR` when it is [asked to stop](cancel).
pub fn read_some(
    from: &(impl ReadAt + ?Sized),
    to: BorrowedFd<'_>,
    (mut offset, end): (u64, u64),
    most: u64,
) -> Result<u64> {
    let mut buffer = vec![0u8; CHUNK];
    let mut left = most;
    while offset < end && left > 0 {
        // A run that is none would be asked for without end.
        let Some(run) = from.next_data(offset)?.filter(|run| run.end > offset && run.start < end) else {
            return Ok(end);
        };
        offset = run.start.max(offset);
        let stop = run.end.min(end).min(offset.saturating_add(left));
        while offset < stop {
            stop_if_asked()?;
            let want = usize::try_from(stop - offset).map_or(CHUNK, |n| n.min(CHUNK));
            match from.read_at(&mut buffer[..want], offset) {
                Ok(0) => return Err(Errno::IO),
                Ok(n) => {
                    write_all_at(to, &buffer[..n], offset)?;
                    left -= n as u64;
                    offset += n as u64;
                    progress::at(offset);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(offset)
}

/// Makes `to` the first `size` bytes of `from` by sharing the extents of the whole. Tells whether the two files can.
///
/// # Errors
/// Those of FICLONE that don't mean that they can't, and of truncating it.
pub fn share(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<bool> {
    if size == 0 {
        return Ok(true);
    }
    stop_if_asked()?;
    match fs::ioctl_ficlone(to, from) {
        // The clone is of the whole file.
        Ok(()) => fs::ftruncate(to, size).map(|()| true),
        // Another filesystem, one that can't share extents, or one that won't for these two files.
        Err(
            Errno::XDEV
            | Errno::OPNOTSUPP
            | Errno::NOTTY
            | Errno::INVAL
            | Errno::NOSYS
            | Errno::PERM
            | Errno::TXTBSY,
        ) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Copies data of `from` into the same place of `to`, which has only holes there: from `offset` towards `end`, about `most`
/// bytes of data, holes kept. Returns how far it came.
///
/// # Errors
/// `EINTR` when it is [asked to stop](cancel).
pub fn copy_some(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    (mut offset, end): (u64, u64),
    most: u64,
    sync: bool,
) -> Result<u64> {
    let mut left = most;
    while offset < end && left > 0 {
        let (start, stop) = next_data(from, offset, end)?;
        if start >= stop {
            return Ok(end);
        }
        let stop = stop.min(start.saturating_add(left));
        copy_range(from, to, start, stop, if sync { SYNC_CHUNK } else { RANGE_CHUNK })?;
        left -= stop - start;
        offset = stop;
    }
    Ok(offset)
}

fn stop_if_asked() -> Result<()> {
    if cancel::is_asked() { Err(Errno::INTR) } else { Ok(()) }
}

/// Returns the next run of data at or after `offset`; empty when only a hole is left.
pub fn next_data(from: BorrowedFd<'_>, offset: u64, size: u64) -> Result<(u64, u64)> {
    let start = match fs::seek(from, SeekFrom::Data(offset)) {
        Ok(start) => start.min(size),
        Err(Errno::NXIO) => return Ok((size, size)),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((offset, size)),
        Err(e) => return Err(e),
    };
    let end = match fs::seek(from, SeekFrom::Hole(start)) {
        Ok(end) => end.min(size),
        Err(Errno::NXIO) => size,
        Err(e) => return Err(e),
    };
    Ok((start, end))
}

/// Copies the bytes from `start` to `end`.
fn copy_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64, chunk: usize) -> Result<()> {
    let (mut off_in, mut off_out) = (start, start);
    while off_in < end {
        stop_if_asked()?;
        let want = usize::try_from(end - off_in).map_or(chunk, |n| n.min(chunk));
        match fs::copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), want) {
            // The file got shorter under us: the rest reads as a hole.
            Ok(0) => return Ok(()),
            Ok(n) => {
                if chunk == SYNC_CHUNK {
                    begin_writing(to, off_out - n as u64, n);
                }
                progress::at(off_out);
            }
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::BADF) => {
                return copy_buffered(from, to, off_in, end);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Asks the disk to begin with a range that was just written. Nothing is promised, so nothing can fail: what goes wrong
/// is told by the sync that follows.
fn begin_writing(file: BorrowedFd<'_>, offset: u64, len: usize) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: takes no pointers; the descriptor is open as long as it is borrowed.
    let _advice =
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Copies through a buffer, for filesystems between which the kernel won't.
fn copy_buffered(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<()> {
    let mut buffer = vec![0u8; CHUNK];
    let mut offset = start;
    while offset < end {
        stop_if_asked()?;
        let want = usize::try_from(end - offset).map_or(CHUNK, |n| n.min(CHUNK));
        let got = match io::pread(from, &mut buffer[..want], offset) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
        };
        write_all_at(to, &buffer[..got], offset)?;
        offset += got as u64;
        progress::at(offset);
    }
    Ok(())
}

/// Zero runs of this length are left out of files.
const HOLE: usize = 64 << 10;

/// Writes all of `data` into a new file at `offset`, and leaves out what is zero anyway. Where the file ends in zeros, its
/// length is to be set afterwards.
pub fn write_sparsely(file: BorrowedFd<'_>, mut offset: u64, mut data: &[u8]) -> Result<()> {
    static ZEROS: [u8; HOLE] = [0; HOLE];
    let (mut from, mut pending) = (offset, data);
    while !data.is_empty() {
        // Up to the next multiple, so that the pieces are whole blocks of the file.
        let room = HOLE - (offset % HOLE as u64) as usize;
        let (piece, rest) = data.split_at(room.min(data.len()));
        let next = offset + piece.len() as u64;
        if piece[0] == 0 && piece == &ZEROS[..piece.len()] {
            write_all_at(file, &pending[..(offset - from) as usize], from)?;
            (from, pending) = (next, rest);
        }
        (offset, data) = (next, rest);
    }
    write_all_at(file, pending, from)
}

/// Makes a file so long.
///
/// # Errors
/// Those of ftruncate(2).
pub fn set_length(file: BorrowedFd<'_>, size: u64) -> Result<()> {
    fs::ftruncate(file, size)
}

/// Writes all of `data` at `offset`.
pub fn write_all_at(to: BorrowedFd<'_>, mut data: &[u8], mut offset: u64) -> Result<()> {
    while !data.is_empty() {
        match io::pwrite(to, data, offset) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => {
                data = &data[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Seek, SeekFrom as StdSeek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn sparse(dir: &std::path::Path) -> File {
        let mut f = File::create_new(dir.join("from")).unwrap();
        f.write_all(b"head").unwrap();
        f.seek(StdSeek::Start(8 << 20)).unwrap();
        f.write_all(b"middle").unwrap();
        f.set_len(64 << 20).unwrap();
        File::open(dir.join("from")).unwrap()
    }

    #[test]
    fn holes_stay_holes_and_bytes_are_equal() {
        let dir = tempfile::tempdir().unwrap();
        let from = sparse(dir.path());
        let to = File::options().read(true).write(true).create_new(true).open(dir.path().join("to")).unwrap();
        file_data(from.as_fd(), to.as_fd(), 64 << 20, true).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20, "the holes were written out");
        let mut got = [0u8; 6];
        to.read_exact_at(&mut got, 8 << 20).unwrap();
        assert_eq!(&got, b"middle");
    }

    #[test]
    fn the_buffered_way_copies_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let from = sparse(dir.path());
        let to = File::options().read(true).write(true).create_new(true).open(dir.path().join("to")).unwrap();
        copy_buffered(from.as_fd(), to.as_fd(), 0, 9 << 20).unwrap();
        assert_eq!(std::fs::read(dir.path().join("to")).unwrap(), {
            let mut all = std::fs::read(dir.path().join("from")).unwrap();
            all.truncate(9 << 20);
            all
        });
    }
}
