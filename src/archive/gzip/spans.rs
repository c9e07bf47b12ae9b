//! Reading at any place of what a stream is decoded to.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::Crc;

use super::inflate::{Inflater, WINDOW, damaged};
use super::{Point, Points};
use crate::archive::data::{Decoded, Store};
use crate::archive::decompressed::{CACHE, new_image};
use crate::archive::part::Part;
use crate::sys::copy::write_sparsely;

/// What a stream is decoded to, span by span.
#[derive(Debug)]
pub(in crate::archive) struct Spans {
    /// As it lies there.
    compressed: Part,
    windows: Part,
    points: Points,
    id: u64,
    spool: Option<Kept>,
}

/// What was decoded, kept where it belongs in a file without a name: who reads files in another order than the archive's doesn't have
/// their spans decoded again for each.
#[derive(Debug)]
struct Kept {
    file: File,
    /// Which spans are in it.
    has: Box<[AtomicBool]>,
    /// It can't be written to any more.
    is_full: AtomicBool,
}

impl Kept {
    fn has(&self, number: usize) -> bool {
        self.has.get(number).is_some_and(|has| has.load(Ordering::Acquire))
    }

    fn keep(&self, number: usize, at: u64, span: &[u8]) {
        if self.is_full.load(Ordering::Relaxed) {
            return;
        }
        match write_sparsely(self.file.as_fd(), at, span) {
            Ok(()) => self.has[number].store(true, Ordering::Release),
            Err(error) => {
                log::debug!("what is decompressed isn't kept any more: {error}");
                self.is_full.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Spans {
    /// `spool`: where spans are kept once they are decoded, an empty file that nobody else has.
    pub(in crate::archive) fn new(
        compressed: Part,
        windows: Part,
        points: Points,
        spool: Option<File>,
    ) -> Spans {
        let kept = |file: File| {
            file.set_len(points.size)?;
            let has = points.points.iter().map(|_| AtomicBool::new(false)).collect();
            Ok(Kept { file, has, is_full: AtomicBool::new(false) })
        };
        let spool = spool.map(kept).transpose().unwrap_or_else(|error: io::Error| {
            log::debug!("what is decompressed isn't kept: {error}");
            None
        });
        Spans { compressed, windows, points, id: new_image(), spool }
    }

    /// Makes a part of it, which messages call as what it is decoded out of.
    pub(in crate::archive) fn into_part(self) -> Part {
        let (size, path) = (self.points.size, self.compressed.path.clone());
        Part::decoded(Box::new(self), size, &path)
    }

    /// Returns what is decoded from a point to the next, which is there.
    fn span(&self, number: usize, end: u64) -> io::Result<Arc<Vec<u8>>> {
        let point = self.points.points[number];
        let length = usize::try_from(end - point.at).map_err(io::Error::other)?;
        let key = (self.id, number as u64);
        let span = CACHE.get(key, length, || {
            let decoded = self.decode(&point, length).map_err(|error| match error.kind() {
                // It was right when it was scanned.
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => other(number),
                _ => error,
            })?;
            if let Some(spool) = &self.spool {
                spool.keep(number, point.at, &decoded);
            }
            Ok::<_, io::Error>(decoded)
        })?;
        // The page cache has it, which takes no memory of the daemon's.
        if self.spool.as_ref().is_some_and(|spool| spool.has(number)) {
            CACHE.forget_one(key);
        }
        Ok(span)
    }

    fn decode(&self, point: &Point, length: usize) -> io::Result<Vec<u8>> {
        let from = From { part: &self.compressed, at: point.from };
        let from = BufReader::with_capacity(128 << 10, from);
        let mut inflater = match point.bits {
            None => Inflater::new(from),
            Some(bits) => Inflater::entered(from, bits, &self.window(point)?),
        };
        let mut span = Vec::with_capacity(length);
        while span.len() < length {
            let more = inflater.more()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            span.extend_from_slice(&more[..more.len().min(length - span.len())]);
        }
        // Looked at after reading: what was read before a change is what it was.
        self.compressed.store.check()?;
        let mut sum = Crc::new();
        sum.update(&span);
        if sum.sum() == point.sum { Ok(span) } else { Err(damaged("its sum is another")) }
    }

    fn window(&self, point: &Point) -> io::Result<Vec<u8>> {
        let (at, length) = point.window;
        let mut stored = vec![0; length as usize];
        From { part: &self.windows, at }.read_exact(&mut stored)?;
        self.windows.store.check()?;
        zstd::bulk::decompress(&stored, WINDOW)
    }
}

impl Decoded for Spans {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut count = 0;
        while count < buffer.len() && at.saturating_add(count as u64) < self.points.size {
            let at = at + count as u64;
            let points = &self.points.points;
            let next = points.partition_point(|point| point.at <= at);
            let number = next.checked_sub(1).ok_or_else(|| other(0))?;
            let start = points[number].at;
            let end = points.get(next).map_or(self.points.size, |next| next.at);
            if let Some(spool) = self.spool.as_ref().filter(|spool| spool.has(number)) {
                let left = usize::try_from(end - at).unwrap_or(usize::MAX);
                let length = left.min(buffer.len() - count);
                spool.file.read_exact_at(&mut buffer[count..count + length], at)?;
                count += length;
                continue;
            }
            let span = self.span(number, end)?;
            let found = usize::try_from(at - start).ok().and_then(|skip| span.get(skip..));
            let found = found.filter(|found| !found.is_empty()).ok_or_else(|| other(number))?;
            let length = found.len().min(buffer.len() - count);
            buffer[count..count + length].copy_from_slice(&found[..length]);
            count += length;
        }
        Ok(count)
    }

    fn out_of(&self) -> &Store {
        &self.compressed.store
    }
}

impl Drop for Spans {
    /// Gives back what is kept of it.
    fn drop(&mut self) {
        CACHE.forget(self.id);
    }
}

fn other(number: usize) -> io::Error {
    io::Error::other(format!("what it is decompressed to isn't what it was (span {number})"))
}

/// Reads a part from some place on.
struct From<'a> {
    part: &'a Part,
    at: u64,
}

impl Read for From<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.part.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        if most == 0 {
            return Ok(0);
        }
        let count = self.part.read_there(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
impl Spans {
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}
