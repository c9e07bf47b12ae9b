//! What a disk may hold after a power failure, by the record of what was asked of it.
//!
//! A block device promises that what was written before a flush is there after the flush has ended, and nothing of what
//! was written since: of that any part may be there, in any order, a sector whole or not at all.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom, seek};

use crate::disk::copy_sparse;
use crate::recorder::Asked;
use support::{LoopDevice, Scratch};

/// The filesystem's first block.
const SUPERBLOCK: u64 = 4096;
/// In pieces of that size images are compared.
const PAGE: usize = 4096;
const ZEROES: [u8; PAGE] = [0; PAGE];

/// All that was asked, in order.
#[derive(Debug, Default)]
pub struct Record(Vec<Asked>);

/// What becomes of writes that no flush followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unflushed {
    /// All are lost.
    Lost,
    /// All are there.
    Kept,
    /// Each is there, is lost or is torn, by chance of this seed.
    Any(u64),
}

/// What a disk holds after a failure. Two that are equal are the same, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// All that was asked before this is there.
    flushed: usize,
    /// And these parts of what was asked since.
    unflushed: Vec<Part>,
}

/// A part of a request: from byte to byte of the data that were to be written; all of what was to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    request: usize,
    from: usize,
    to: usize,
}

impl Record {
    /// Of what was asked.
    pub fn new(asked: Vec<Asked>) -> Record {
        Record(asked)
    }

    /// How much was asked.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What a disk that writes `sector` bytes whole or not at all holds when the power goes at `position`.
    pub fn remains(&self, position: usize, unflushed: Unflushed, sector: usize) -> Remains {
        let is_flush = |request: &Asked| matches!(request, Asked::Flush);
        let flushed = self.0[..position].iter().rposition(is_flush).map_or(0, |at| at + 1);
        let unflushed = match unflushed {
            Unflushed::Lost => Vec::new(),
            _ => self.parts(flushed..position, unflushed, sector),
        };
        // A flush changes nothing by itself.
        let written = self.0[..flushed].iter().rposition(|request| !is_flush(request));
        Remains { flushed: written.map_or(0, |at| at + 1), unflushed }
    }

    fn parts(&self, range: std::ops::Range<usize>, unflushed: Unflushed, sector: usize) -> Vec<Part> {
        let mut random = match unflushed {
            Unflushed::Any(seed) => Some(fastrand::Rng::with_seed(seed)),
            Unflushed::Kept | Unflushed::Lost => None,
        };
        // Some failures lose nearly all, some nearly nothing.
        let kept = random.as_mut().map_or(8, |random| random.u64(..9));
        let mut parts: Vec<Part> = Vec::new();
        for number in range {
            let keep = random.as_mut().is_none_or(|random| random.u64(..8) < kept);
            match &self.0[number] {
                Asked::Flush => {}
                Asked::Discard { .. } => {
                    if keep {
                        parts.push(Part { request: number, from: 0, to: 0 });
                    }
                }
                Asked::Write { offset, data } => {
                    let torn = random.as_mut().is_some_and(|random| random.u64(..8) == 0);
                    let all = Part { request: number, from: 0, to: data.len() };
                    if !keep {
                    } else if torn && let Some(random) = &mut random {
                        // Nothing can stand in for a superblock that is torn: no journal is found without it.
                        let sector = match *offset < SUPERBLOCK {
                            true => sector.max(SUPERBLOCK as usize),
                            false => sector,
                        };
                        parts.extend(torn_parts(&all, sector, random));
                    } else {
                        parts.push(all);
                    }
                }
            }
        }
        parts
    }
}

/// Some of the sectors of a write, those beside each other in one.
fn torn_parts(all: &Part, sector: usize, random: &mut fastrand::Rng) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for from in (0..all.to).step_by(sector).filter(|_| random.bool()) {
        let to = (from + sector).min(all.to);
        match parts.last_mut() {
            Some(last) if last.to == from => last.to = to,
            _ => parts.push(Part { request: all.request, from, to }),
        }
    }
    parts
}

/// The disk as it may be after a power failure, at positions that only grow.
///
/// One device holds it each time. Only what differs from the time before is written: what the record has brought since,
/// and what has been changed by who mounted it.
pub struct Failures<'a> {
    record: &'a Record,
    /// The disk with all that was asked up to `position`.
    flushed: Vec<u8>,
    position: usize,
    /// The pages of it that may not be empty.
    filled: BTreeSet<usize>,
    image: PathBuf,
    device: LoopDevice,
}

impl<'a> Failures<'a> {
    /// `base`: the disk when the record began.
    pub fn new(scratch: &Scratch, base: &Path, record: &'a Record) -> Failures<'a> {
        let image = scratch.path().join("failed.img");
        copy_sparse(base, &image);
        let file = File::open(&image).unwrap();
        let mut flushed = vec![0; file.metadata().unwrap().len() as usize];
        let mut filled = BTreeSet::new();
        for (from, to) in extents(&file) {
            file.read_exact_at(&mut flushed[from..to], from as u64).unwrap();
            filled.extend(from / PAGE..to.div_ceil(PAGE));
        }
        let device = LoopDevice::attach(&image);
        Failures { record, flushed, position: 0, filled, image, device }
    }

    /// Makes the disk that holds this, and returns its device. Nothing may be mounted on it any more.
    pub fn make(&mut self, remains: &Remains) -> &Path {
        assert!(remains.flushed >= self.position, "failures must be asked for in their order");
        self.device.wait_until_unused();
        for number in self.position..remains.flushed {
            self.keep(number);
        }
        self.position = remains.flushed;
        let image = File::options().read(true).write(true).open(&self.image).unwrap();
        self.restore(&image);
        for part in &remains.unflushed {
            match &self.record.0[part.request] {
                Asked::Write { offset, data } => {
                    image.write_all_at(&data[part.from..part.to], offset + part.from as u64).unwrap();
                }
                Asked::Discard { offset, length } => punch(&image, *offset, *length),
                Asked::Flush => {}
            }
        }
        self.device.path()
    }

    /// The file below the device.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Notes that what was asked has been flushed.
    fn keep(&mut self, number: usize) {
        match &self.record.0[number] {
            Asked::Flush => {}
            Asked::Write { offset, data } => {
                let (from, to) = (*offset as usize, *offset as usize + data.len());
                self.flushed[from..to].copy_from_slice(data);
                self.filled.extend(from / PAGE..to.div_ceil(PAGE));
            }
            Asked::Discard { offset, length } => {
                let (from, to) = (*offset as usize, (*offset + *length) as usize);
                for page in self.filled.range(from / PAGE..to.div_ceil(PAGE)) {
                    let (start, end) = ((page * PAGE).max(from), ((page + 1) * PAGE).min(to));
                    self.flushed[start..end].fill(0);
                }
            }
        }
    }

    /// Writes what differs from what was flushed.
    fn restore(&self, image: &File) {
        let mut buffer = vec![0; 64 * PAGE];
        let mut seen = 0;
        for (from, to) in extents(image) {
            self.fill(image, seen, from);
            for at in (from..to).step_by(buffer.len()) {
                let have = &mut buffer[..(to - at).min(64 * PAGE)];
                image.read_exact_at(have, at as u64).unwrap();
                let want = &self.flushed[at..at + have.len()];
                if *have == *want {
                    continue;
                }
                for (number, page) in have.chunks(PAGE).enumerate() {
                    let start = number * PAGE;
                    let want = &want[start..start + page.len()];
                    if page != want {
                        image.write_all_at(want, (at + start) as u64).unwrap();
                    }
                }
            }
            seen = to;
        }
        self.fill(image, seen, self.flushed.len());
    }

    /// Writes what belongs where the image has a hole.
    fn fill(&self, image: &File, from: usize, to: usize) {
        for page in self.filled.range(from / PAGE..to.div_ceil(PAGE)) {
            let (start, end) = ((page * PAGE).max(from), ((page + 1) * PAGE).min(to));
            let want = &self.flushed[start..end];
            if want != &ZEROES[..want.len()] {
                image.write_all_at(want, start as u64).unwrap();
            }
        }
    }
}

/// Where a file has data, from byte to byte.
pub fn extents(file: &File) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    let mut end = 0;
    while let Ok(start) = seek(file, SeekFrom::Data(end)) {
        end = seek(file, SeekFrom::Hole(start)).unwrap();
        all.push((start as usize, end as usize));
    }
    all
}

fn punch(image: &File, offset: u64, length: u64) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(image, flags, offset, length).unwrap();
}
