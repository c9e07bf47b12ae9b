//! The first pass over a stream.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;

use flate2::Crc;

use super::inflate::Inflater;
use super::{MOST_SPAN, Point, Points, STRIDE};
use crate::archive::cache::{Cache, nameless};
use crate::archive::promise::too_much;
use crate::archive::spool::write_with_room;

/// What a pass finds, beside what it reads.
pub(in crate::archive) struct Scanned {
    pub points: Points,
    /// The windows, one behind the other, each compressed with zstd.
    pub windows: File,
}

/// A stream that is decoded, and of which is noted where it can be entered.
pub(in crate::archive) struct Scan<'a, R> {
    inflater: Inflater<R>,
    points: Vec<Point>,
    /// What is decoded of the span that the last point begins.
    sum: Crc,
    at: u64,
    /// How much more may be.
    left: u64,
    /// What was decoded and isn't read yet.
    ready: Vec<u8>,
    read: usize,
    windows: File,
    end: u64,
    cache: &'a Cache,
    is_too_far: &'a Cell<bool>,
}

impl<'a, R: BufRead> Scan<'a, R> {
    /// Reads a stream that is decoded to so much at most; its windows go to a file in that directory. Where no decoder could begin within
    /// reach, it fails and sets `is_too_far`.
    ///
    /// # Errors
    /// When there can be none.
    pub(in crate::archive) fn new(
        stream: R,
        most: u64,
        dir: &Path,
        cache: &'a Cache,
        is_too_far: &'a Cell<bool>,
    ) -> io::Result<Scan<'a, R>> {
        Ok(Scan {
            inflater: Inflater::new(stream),
            points: vec![Point { at: 0, from: 0, bits: None, window: (0, 0), sum: 0 }],
            sum: Crc::new(),
            at: 0,
            left: most,
            ready: Vec::new(),
            read: 0,
            windows: nameless(dir)?,
            end: 0,
            cache,
            is_too_far,
        })
    }

    /// Returns what was found in all of it.
    ///
    /// # Errors
    /// When the windows' file can't be made as long as they are.
    pub(in crate::archive) fn finish(mut self) -> io::Result<Scanned> {
        self.end_span();
        // The last of them may end in zeros, which are left out.
        self.windows.set_len(self.end)?;
        Ok(Scanned { points: Points { points: self.points, size: self.at }, windows: self.windows })
    }

    fn end_span(&mut self) {
        let sum = std::mem::take(&mut self.sum);
        if let Some(last) = self.points.last_mut() {
            last.sum = sum.sum();
        }
    }

    fn since_point(&self) -> u64 {
        self.at - self.points.last().map_or(0, |last| last.at)
    }

    /// Notes a point, where there can be one.
    fn note(&mut self) -> io::Result<()> {
        let Some(place) = self.inflater.place() else { return Ok(()) };
        let mut window = (self.end, 0);
        if place.bits.is_some() {
            let stored = zstd::bulk::compress(&self.inflater.window(), 1)?;
            write_with_room(self.cache, self.windows.as_fd(), self.end, &stored)?;
            window.1 = u32::try_from(stored.len()).map_err(io::Error::other)?;
            self.end += stored.len() as u64;
        }
        self.end_span();
        self.points.push(Point { at: self.at, from: place.from, bits: place.bits, window, sum: 0 });
        Ok(())
    }

    /// Decodes some more; `false`: there is no more.
    fn fill(&mut self) -> io::Result<bool> {
        if self.since_point() >= STRIDE {
            self.note()?;
        }
        let Some(more) = self.inflater.more()? else { return Ok(false) };
        self.sum.update(more);
        self.ready.clear();
        self.ready.extend_from_slice(more);
        self.read = 0;
        let count = self.ready.len() as u64;
        self.at += count;
        self.left = self.left.checked_sub(count).ok_or_else(too_much)?;
        if self.since_point() > MOST_SPAN {
            self.is_too_far.set(true);
            return Err(io::Error::other("its blocks are too large to begin within"));
        }
        Ok(true)
    }

    fn waiting(&self) -> Range<usize> {
        self.read..self.ready.len()
    }
}

impl<R: BufRead> Read for Scan<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.waiting().is_empty() {
            if !self.fill()? {
                return Ok(0);
            }
        }
        let count = (&self.ready[self.waiting()]).read(buffer)?;
        self.read += count;
        Ok(count)
    }
}
