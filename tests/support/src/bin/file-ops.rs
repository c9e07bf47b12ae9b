//! `file-ops SEED OPERATIONS LEAST DIR ORIGINALS`: for each file of the directory ORIGINALS, random operations on the file of that name
//! in DIR, which has the same content when it begins. What is read is compared with plain memory after each, and in the end all of it,
//! its holes, and that the original is what it was. No file becomes shorter than LEAST.
//!
//! fsx truncates its file first, or writes it anew; so nothing of a lower's data would be there.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;
use support::raw::Mapping;

/// What blocks are; borders are tried above all.
const BLOCK: u64 = 4096;
/// The longest range of one operation.
const LONGEST: u64 = 80_000;
/// How far a file grows.
const GROWTH: u64 = 300_000;
/// As many operations are told of what fails.
const TOLD: usize = 25;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }

    /// An offset up to `end`, often at the border of a block or at the end, or beside it.
    fn offset(&mut self, end: u64) -> u64 {
        let at = match self.below(8) {
            0..3 => self.below(end + 1),
            3..7 => self.below(end + 1) / BLOCK * BLOCK,
            _ => end,
        };
        let beside = match self.below(4) {
            0 => at + 1,
            1 => at.saturating_sub(1),
            _ => at,
        };
        beside.min(end)
    }

    fn length(&mut self) -> u64 {
        match self.below(6) {
            0 => 1 + self.below(16),
            1 => BLOCK,
            2 => BLOCK * (1 + self.below(8)) + self.below(3) - 1,
            3 => 1 + self.below(BLOCK),
            _ => 1 + self.below(LONGEST),
        }
    }
}

struct Exercise<'a> {
    at: &'a Path,
    file: File,
    expected: Vec<u8>,
    least: u64,
    most: u64,
    random: Random,
    log: Vec<String>,
}

type Outcome = Result<(), String>;

fn failed<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

fn open(at: &Path) -> Result<File, String> {
    File::options().read(true).write(true).open(at).map_err(failed("open"))
}

impl Exercise<'_> {
    fn size(&self) -> u64 {
        self.expected.len() as u64
    }

    fn note(&mut self, what: &str, offset: u64, length: u64) {
        self.log.push(format!("{what} {offset:#x}..{:#x} of {:#x}", offset + length, self.size()));
    }

    /// A range within the file.
    fn range(&mut self) -> (u64, u64) {
        let start = self.random.offset(self.size().saturating_sub(1));
        (start, self.random.length().min(self.size() - start))
    }

    /// A range that may go beyond the end, or begin there.
    fn range_to_write(&mut self) -> (u64, u64) {
        let end = match self.random.below(12) {
            0 => self.most - 1,
            _ => self.size().min(self.most - 1),
        };
        let start = self.random.offset(end);
        (start, self.random.length().min(self.most - start))
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        // Of a length that no block is a multiple of, so that what is moved is seen.
        let mut bytes: Vec<u8> = (0..251).map(|_| self.random.below(256) as u8 | 1).collect();
        while (bytes.len() as u64) < length {
            bytes.extend_from_within(..);
        }
        bytes.truncate(length as usize);
        bytes
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        if end > self.expected.len() {
            self.expected.resize(end, 0);
        }
        self.expected[offset as usize..end].copy_from_slice(bytes);
    }

    fn compare(&self, offset: u64, got: &[u8]) -> Outcome {
        let wanted = &self.expected[offset as usize..offset as usize + got.len()];
        let differs = || wanted.iter().zip(got).position(|(wanted, got)| wanted != got);
        match if wanted == got { None } else { differs() } {
            None => Ok(()),
            Some(at) => Err(format!(
                "at {:#x} there is {:#x}, and should be {:#x}",
                offset + at as u64,
                got[at],
                wanted[at]
            )),
        }
    }

    fn step(&mut self) -> Outcome {
        match self.random.below(100) {
            // No range of an empty file can be mapped or punched.
            0..60 | 66.. if self.expected.is_empty() => self.write(),
            0..20 => self.read(),
            20..42 => self.write(),
            42..50 => self.read_mapped(),
            50..60 => self.write_mapped(),
            60..66 => self.truncate(),
            66..74 => self.zero(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, "punch"),
            74..80 => self.zero(FallocateFlags::ZERO_RANGE, "zero"),
            80..87 => self.copy(),
            87..90 => self.look_for_holes(),
            90..93 => self.file.sync_data().map_err(failed("fdatasync")),
            93..95 => self.file.sync_all().map_err(failed("fsync")),
            95..98 => {
                self.file = open(self.at)?;
                self.check_size()
            }
            98 => self.collapse(),
            // Once in a while: it copies all of a half-copied file.
            _ if self.random.below(30) == 0 => self.reserve(),
            _ => self.check_size(),
        }
    }

    fn read(&mut self) -> Outcome {
        let (offset, length) = self.range();
        self.note("read", offset, length);
        let mut got = vec![0; length as usize];
        self.file.read_exact_at(&mut got, offset).map_err(failed("read"))?;
        self.compare(offset, &got)
    }

    fn write(&mut self) -> Outcome {
        let (offset, length) = self.range_to_write();
        self.note("write", offset, length);
        let bytes = self.bytes(length);
        self.file.write_all_at(&bytes, offset).map_err(failed("write"))?;
        self.put(offset, &bytes);
        Ok(())
    }

    fn map(&self, writable: bool) -> Result<Mapping, String> {
        Mapping::shared(&self.file, self.expected.len(), writable).map_err(failed("mmap"))
    }

    fn read_mapped(&mut self) -> Outcome {
        let (offset, length) = self.range();
        self.note("mapread", offset, length);
        let got = self.map(false)?.read(offset as usize, length as usize);
        self.compare(offset, &got)
    }

    fn write_mapped(&mut self) -> Outcome {
        let (offset, length) = self.range();
        self.note("mapwrite", offset, length);
        let bytes = self.bytes(length);
        let mut mapping = self.map(true)?;
        mapping.write(offset as usize, &bytes);
        if self.random.below(2) == 0 {
            mapping.sync().map_err(failed("msync"))?;
        }
        drop(mapping);
        self.put(offset, &bytes);
        Ok(())
    }

    fn truncate(&mut self) -> Outcome {
        let size = self.random.offset(self.most - self.least) + self.least;
        self.note("truncate to", size, 0);
        self.file.set_len(size).map_err(failed("truncate"))?;
        self.expected.resize(size as usize, 0);
        self.check_size()
    }

    fn zero(&mut self, mode: FallocateFlags, name: &str) -> Outcome {
        let (offset, length) = match mode.contains(FallocateFlags::KEEP_SIZE) {
            true => self.range(),
            false => self.range_to_write(),
        };
        self.note(name, offset, length);
        match fallocate(&self.file, mode, offset, length) {
            // tmpfs can't zero.
            Err(Errno::OPNOTSUPP) if !mode.contains(FallocateFlags::PUNCH_HOLE) => return Ok(()),
            done => done.map_err(failed(name))?,
        }
        self.put(offset, &vec![0; length as usize]);
        self.check_size()
    }

    fn collapse(&mut self) -> Outcome {
        let length = self.size() / 2 / BLOCK * BLOCK;
        self.note("collapse", 0, length);
        match fallocate(&self.file, FallocateFlags::COLLAPSE_RANGE, 0, length) {
            Err(Errno::OPNOTSUPP | Errno::INVAL) => self.check_size(),
            other => Err(format!("collapse: {other:?}")),
        }
    }

    fn reserve(&mut self) -> Outcome {
        let (offset, length) = self.range_to_write();
        self.note("fallocate", offset, length);
        fallocate(&self.file, FallocateFlags::empty(), offset, length).map_err(failed("fallocate"))?;
        let end = (offset + length) as usize;
        if end > self.expected.len() {
            self.expected.resize(end, 0);
        }
        self.check_size()
    }

    fn copy(&mut self) -> Outcome {
        let (from, length) = self.range();
        let (to, most) = self.range_to_write();
        let length = length.min(most);
        if from.abs_diff(to) < length {
            return Ok(());
        }
        self.note(&format!("copy from {from:#x} to"), to, length);
        let (mut from, mut to, mut left) = (from, to, length as usize);
        while left > 0 {
            let (start, target) = (from as usize, to);
            let count = copy_file_range(&self.file, Some(&mut from), &self.file, Some(&mut to), left)
                .map_err(failed("copy_file_range"))?;
            if count == 0 {
                return Err("copy_file_range: nothing was copied".into());
            }
            let bytes = self.expected[start..start + count].to_vec();
            self.put(target, &bytes);
            left -= count;
        }
        Ok(())
    }

    /// What is said to be a hole is one.
    fn look_for_holes(&mut self) -> Outcome {
        let start = self.random.offset(self.size().saturating_sub(1));
        self.note("seek", start, 0);
        let mut at = start;
        // Enough to see the next few.
        for _ in 0..8 {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => self.size(),
                data => data.map_err(failed("SEEK_DATA"))?,
            };
            let hole = &self.expected[at as usize..data as usize];
            if let Some(byte) = hole.iter().position(|byte| *byte != 0) {
                return Err(format!("{:#x} is data, and was passed over as a hole", at + byte as u64));
            }
            if data >= self.size() {
                return Ok(());
            }
            at = seek(&self.file, SeekFrom::Hole(data)).map_err(failed("SEEK_HOLE"))?;
            if at <= data || at > self.size() {
                return Err(format!("SEEK_HOLE from {data:#x}: {at:#x}"));
            }
            if at == self.size() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn check_size(&self) -> Outcome {
        let size = self.file.metadata().map_err(failed("stat"))?.len();
        if size == self.size() { Ok(()) } else { Err(format!("it is {size:#x} long")) }
    }

    fn check_all(&mut self) -> Outcome {
        self.check_size()?;
        let got = fs::read(self.at).map_err(failed("read"))?;
        self.compare(0, &got)
    }
}

fn exercise(at: &Path, original: &Path, (seed, operations, least): (u64, u64, u64)) -> Outcome {
    let expected = fs::read(original).map_err(failed("original"))?;
    let (before, size) = (expected.clone(), expected.len() as u64);
    let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let most = size + GROWTH;
    let mut one = Exercise { at, file: open(at)?, expected, least, most, random, log: Vec::new() };
    let mut done = Ok(());
    for _ in 0..operations {
        done = one.step();
        if done.is_err() {
            break;
        }
    }
    if let Err(why) = done.and_then(|()| one.check_all()) {
        let told = one.log.len().saturating_sub(TOLD);
        one.log[told..].iter().for_each(|line| eprintln!("  {line}"));
        return Err(format!("seed {seed}, after {} operations on ranges: {why}", one.log.len()));
    }
    match fs::read(original).map_err(failed("original"))? == before {
        true => Ok(()),
        false => Err("the original was changed".into()),
    }
}

fn run(words: &[String]) -> Result<usize, String> {
    let [seed, operations, least, dir, originals] = words else {
        return Err("usage: file-ops SEED OPERATIONS LEAST DIR ORIGINALS".into());
    };
    let number = |text: &String| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let (seed, operations, least) = (number(seed)?, number(operations)?, number(least)?);
    let entries = fs::read_dir(originals).and_then(|all| all.collect::<io::Result<Vec<_>>>());
    let mut names: Vec<_> =
        entries.map_err(failed(originals))?.into_iter().map(|entry| entry.file_name()).collect();
    names.sort();
    for (number, name) in names.iter().enumerate() {
        let how = (seed * 1000 + number as u64, operations, least);
        exercise(&Path::new(dir).join(name), &Path::new(originals).join(name), how)
            .map_err(|why| format!("{}: {why}", name.to_string_lossy()))?;
    }
    Ok(names.len())
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(files) => {
            println!("{files} files, as they should be");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("file-ops: {why}");
            ExitCode::FAILURE
        }
    }
}
