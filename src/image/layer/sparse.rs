//! Which parts of a file a tar holds.

use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tar_core::SparseEntry;

/// Files are cut into blocks to find out what of them is zero.
const BLOCK: u64 = 64 << 10;
/// A file is stored as a sparse one when that much of it is zero.
const SPARE: u64 = 1 << 20;
/// More runs than every reader takes; the blocks are taken larger until they are fewer.
const MOST_RUNS: usize = 4096;
/// The largest size that a header holds without PAX.
pub(super) const LARGE: u64 = 0o77_777_777_777;

/// The parts of a file that are not zero, where leaving out the rest is worth it. By the content alone: of holes it is
/// only believed that they are zero.
pub(super) fn data_map(
    fd: BorrowedFd<'_>,
    size: u64,
    buffer: &mut [u8],
) -> rustix::io::Result<Option<Vec<SparseEntry>>> {
    if size < SPARE {
        return Ok(None);
    }
    let mut runs: Vec<SparseEntry> = Vec::new();
    let mut block = BLOCK;
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(data) => data - data % BLOCK,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(errno) => return Err(errno),
        }
        .max(at);
        let end = match rustix::fs::seek(fd, SeekFrom::Hole(at)) {
            Ok(hole) => hole.min(size),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => size,
            Err(errno) => return Err(errno),
        };
        while at < end.max(at + 1).min(size) {
            let length = BLOCK.min(size - at);
            let piece = &mut buffer[..length as usize];
            let got = read_full(fd, piece, at)?;
            if piece[..got].iter().any(|&b| b != 0) {
                add_block(&mut runs, at, at + length, block);
                while runs.len() > MOST_RUNS {
                    block *= 2;
                    coarsen(&mut runs, block);
                }
            }
            at += length;
        }
    }
    for run in &mut runs {
        run.length = run.length.min(size - run.offset);
    }
    let stored: u64 = runs.iter().map(|run| run.length).sum();
    if size - stored < SPARE || stored > LARGE - (1 << 20) {
        return Ok(None);
    }
    // The end of the file is told by a run of no length, as GNU tar does.
    if runs.last().is_none_or(|run| run.offset + run.length < size) {
        runs.push(SparseEntry { offset: size, length: 0 });
    }
    Ok(Some(runs))
}

fn add_block(runs: &mut Vec<SparseEntry>, start: u64, end: u64, block: u64) {
    let (start, end) = (start - start % block, end.next_multiple_of(block));
    match runs.last_mut() {
        Some(last) if start <= last.offset + last.length => {
            last.length = last.length.max(end - last.offset);
        }
        _ => runs.push(SparseEntry { offset: start, length: end - start }),
    }
}

fn coarsen(runs: &mut Vec<SparseEntry>, block: u64) {
    let mut coarse = Vec::with_capacity(runs.len() / 2 + 1);
    for run in runs.iter() {
        add_block(&mut coarse, run.offset, run.offset + run.length, block);
    }
    *runs = coarse;
}

fn read_full(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> rustix::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(fd, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}
