//! The entries of a tar.
//!
//! The format itself (headers, PAX records, GNU long names, all four forms of sparse files) is read by the crate
//! `tar-core`. Of the two crates it is the one that takes PAX values as bytes: `tar` splits records at newlines, and the
//! capabilities and ACLs of real files hold that byte. What is added here is reading from a stream through one buffer of
//! bounded size, and distrust: everything that tells where the next entry starts is checked again.
//!
//! Where implementations differ, Go's `archive/tar` is followed, which is what other container engines read by: the
//! sizes of links, devices and directories are ignored, a name that ends in `/` is a directory, global PAX headers say
//! nothing about entries. An archive may end without its two zero blocks, but not within an entry.

use std::io::Read;

use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, HEADER_SIZE, PaxExtensions};

use super::LayerError;
use super::attributes::Attributes;
use crate::sys::object::{Kind, Time};

/// How much is read at once.
const CHUNK: usize = 256 << 10;
/// The most that the headers of one entry may take: names, extended attributes, the map of a sparse file.
const MAX_HEADERS: usize = 8 << 20;
const MAX_PATH: u32 = 64 << 10;
const MAX_RUNS: usize = 64 << 10;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Another name for an entry before.
    Hardlink(Vec<u8>),
    /// A fifo or a device.
    Special,
}

/// One entry. Its content is read by [`Reader::content`].
#[derive(Debug, Clone)]
pub struct Entry {
    /// The path as it stands in the tar.
    pub path: Vec<u8>,
    /// What it is.
    pub what: What,
    /// Owner, mode, extended attributes, times.
    pub attributes: Attributes,
    /// The length of a regular file, holes included.
    pub size: u64,
}

/// A run of data within a file; what is between runs is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    offset: u64,
    length: u64,
}

/// Reads a tar from a stream.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    parser: Parser,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes handed on so far.
    offset: u64,
    runs: Vec<Run>,
    /// Bytes of the entry's content that are still to be read, and of its padding.
    content: u64,
    padding: u64,
    last: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads from a stream of an uncompressed tar.
    pub fn new(from: R) -> Reader<R> {
        let mut parser = Parser::new(Limits {
            max_metadata_size: MAX_HEADERS as u32 / 2,
            max_path_len: Some(MAX_PATH),
            max_pending_entries: 16,
            max_sparse_entries: MAX_RUNS,
        });
        // Names are judged here, and numbers checked again in `check_pax`: the parser knows no times before 1970.
        parser.set_allow_empty_path(true);
        parser.set_ignore_pax_errors(true);
        Reader {
            from,
            parser,
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
            offset: 0,
            runs: Vec::new(),
            content: 0,
            padding: 0,
            last: Vec::new(),
        }
    }

    /// The next entry; `None` at the end, to which the stream is read then. What is left of the entry before is skipped.
    ///
    /// # Errors
    /// [`LayerError::Damaged`] and [`LayerError::Read`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let left = self.content + self.padding;
        self.skip(left)?;
        (self.content, self.padding) = (0, 0);
        loop {
            let input = &self.buffer[self.start..self.end];
            let event = match self.parser.parse(input) {
                Ok(event) => event,
                Err(error) => return Err(self.damaged(error.to_string())),
            };
            let (consumed, parsed, runs, size) = match event {
                ParseEvent::NeedData { min_bytes } => {
                    if min_bytes > MAX_HEADERS {
                        return Err(self.damaged(format!("headers of {min_bytes} bytes")));
                    }
                    if !self.fill(min_bytes)? {
                        let rest = &self.buffer[self.start..self.end];
                        if rest.iter().any(|&b| b != 0) {
                            return Err(self.damaged("it ends in the middle"));
                        }
                        return Ok(None);
                    }
                    continue;
                }
                ParseEvent::GlobalExtensions { consumed, .. } => {
                    self.advance(consumed);
                    continue;
                }
                ParseEvent::End { consumed } => {
                    self.advance(consumed);
                    self.drain()?;
                    return Ok(None);
                }
                ParseEvent::Entry { consumed, entry } => {
                    let size = entry.size;
                    (consumed, entry, None, size)
                }
                ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                    let runs =
                        sparse_map.iter().map(|run| Run { offset: run.offset, length: run.length }).collect();
                    (consumed, entry, Some(runs), real_size)
                }
            };
            let stored = parsed.size;
            let entry = match entry_of(&parsed, size, runs.is_some()) {
                Ok(entry) => entry,
                Err(what) => return Err(self.damaged(what)),
            };
            self.advance(consumed);
            let Some(entry) = entry else {
                // A volume label: nothing to unpack.
                continue;
            };
            self.last.clone_from(&entry.path);
            if entry.what == What::File {
                self.runs = match runs {
                    Some(runs) => match checked_runs(runs, stored, size) {
                        Some(runs) => runs,
                        None => return Err(self.damaged("the map of a sparse file makes no sense")),
                    },
                    None => vec![Run { offset: 0, length: stored }],
                };
                self.content = stored;
                self.padding = stored.wrapping_neg() % HEADER_SIZE as u64;
                if stored.checked_add(self.padding).is_none() {
                    return Err(self.damaged("a size beyond all bounds"));
                }
            }
            return Ok(Some(entry));
        }
    }

    /// Hands the content of the entry to `each`, in order, as offset and bytes; holes are not among them.
    ///
    /// # Errors
    /// Those of reading, and what `each` answers.
    pub fn content(
        &mut self,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        for Run { mut offset, mut length } in std::mem::take(&mut self.runs) {
            while length > 0 {
                if self.start == self.end && !self.fill(1)? {
                    return Err(self.damaged("it ends in the middle"));
                }
                let here = (self.end - self.start).min(usize::try_from(length).unwrap_or(usize::MAX));
                each(offset, &self.buffer[self.start..self.start + here])?;
                self.advance(here);
                self.content -= here as u64;
                offset += here as u64;
                length -= here as u64;
            }
        }
        Ok(())
    }

    /// The path of the last entry.
    pub fn last(&self) -> &[u8] {
        &self.last
    }

    fn damaged(&self, what: impl Into<String>) -> LayerError {
        LayerError::Damaged { entry: self.last.clone(), offset: self.offset, what: what.into() }
    }

    fn advance(&mut self, bytes: usize) {
        self.start += bytes;
        self.offset += bytes as u64;
    }

    /// Reads until at least `needed` bytes are there; `false` at the end of the stream.
    fn fill(&mut self, needed: usize) -> Result<bool, LayerError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() < needed {
            self.buffer.resize(needed.next_multiple_of(CHUNK), 0);
        } else if self.buffer.len() > CHUNK && needed.max(self.end) <= CHUNK {
            self.buffer.truncate(CHUNK);
            self.buffer.shrink_to_fit();
        }
        while self.end < needed {
            match self.from.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(n) => self.end += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::Read(error)),
            }
        }
        Ok(true)
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), LayerError> {
        while bytes > 0 {
            if self.start == self.end && !self.fill(1)? {
                return Err(self.damaged("it ends in the middle"));
            }
            let here = (self.end - self.start).min(usize::try_from(bytes).unwrap_or(usize::MAX));
            self.advance(here);
            bytes -= here as u64;
        }
        Ok(())
    }

    /// Reads what follows the end, so that whoever hashes the stream has seen all of it.
    fn drain(&mut self) -> Result<(), LayerError> {
        loop {
            self.advance(self.end - self.start);
            if !self.fill(1)? {
                return Ok(());
            }
        }
    }
}

/// Runs in order, without overlap, within the file, of all the bytes that are stored.
fn checked_runs(runs: Vec<Run>, stored: u64, size: u64) -> Option<Vec<Run>> {
    let (mut at, mut sum) = (0u64, 0u64);
    for run in &runs {
        if run.offset < at {
            return None;
        }
        at = run.offset.checked_add(run.length)?;
        sum = sum.checked_add(run.length)?;
    }
    (at <= size && sum == stored).then_some(runs)
}

/// What an entry says; `None` where there is nothing to unpack.
fn entry_of(parsed: &ParsedEntry<'_>, size: u64, sparse: bool) -> Result<Option<Entry>, String> {
    let path = parsed.path.to_vec();
    let target = || parsed.link_target.as_deref().unwrap_or_default().to_vec();
    let (what, kind) = match parsed.entry_type {
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => {
            if path.ends_with(b"/") && !sparse {
                (What::Directory, Kind::Directory)
            } else {
                (What::File, Kind::File)
            }
        }
        EntryType::Directory => (What::Directory, Kind::Directory),
        EntryType::Symlink => (What::Symlink(target()), Kind::Symlink),
        EntryType::Link => (What::Hardlink(target()), Kind::File),
        EntryType::Char => (What::Special, Kind::CharDevice),
        EntryType::Block => (What::Special, Kind::BlockDevice),
        EntryType::Fifo => (What::Special, Kind::Fifo),
        other if other.to_byte() == b'V' => return Ok(None),
        other => return Err(format!("an entry of the unknown type {:?}", char::from(other.to_byte()))),
    };
    let mut mtime =
        Time { sec: i64::try_from(parsed.mtime).map_err(|_| "a time beyond all bounds")?, nsec: 0 };
    if let Some(pax) = parsed.pax {
        check_pax(pax, sparse, &mut mtime)?;
    }
    let id = |id: u64, what: &str| match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(format!("{}: {what} {id}, which Linux doesn't know", path.escape_ascii())),
    };
    // The last of several of one name counts, as with every PAX record.
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::with_capacity(parsed.xattrs.len());
    for (name, value) in &parsed.xattrs {
        xattrs.retain(|(known, _)| known[..] != name[..]);
        xattrs.push((name.to_vec(), value.to_vec()));
    }
    let attributes = Attributes {
        kind,
        mode: parsed.mode & 0o7777,
        uid: id(parsed.uid, "owner")?,
        gid: id(parsed.gid, "group")?,
        device: (parsed.dev_major.unwrap_or(0), parsed.dev_minor.unwrap_or(0)),
        mtime,
        xattrs,
    };
    Ok(Some(Entry { path, what, attributes, size }))
}

/// Checks what the parser was told to be lenient about, and reads the time.
fn check_pax(pax: &[u8], sparse: bool, mtime: &mut Time) -> Result<(), String> {
    let mut end = 0;
    for record in PaxExtensions::new(pax) {
        let record = record.map_err(|error| error.to_string())?;
        let value = record.value_bytes();
        // Both are parts of one slice.
        end = value.as_ptr() as usize - pax.as_ptr() as usize + value.len() + 1;
        let text = std::str::from_utf8(value).unwrap_or("?");
        let number = |key: &str| {
            text.parse::<u64>().map(|_| ()).map_err(|_| format!("the PAX value of {key} is no number"))
        };
        match record.key_bytes() {
            b"size" => number("size")?,
            b"uid" => number("uid")?,
            b"gid" => number("gid")?,
            b"mtime" => *mtime = parse_time(text).ok_or("the PAX value of mtime is no time")?,
            key if key.starts_with(b"GNU.sparse.") => {
                if !sparse {
                    return Err("a sparse file of an unknown form".to_owned());
                }
                if !matches!(key, b"GNU.sparse.name" | b"GNU.sparse.map") {
                    number("GNU.sparse")?;
                }
            }
            _ => {}
        }
    }
    // The iterator takes a record without a length for the end.
    if pax[end..].iter().any(|&b| b != 0) {
        return Err("a malformed PAX header".to_owned());
    }
    Ok(())
}

/// Reads `[-]SECONDS[.FRACTION]`.
fn parse_time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let (negative, whole) = match whole.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, whole),
    };
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let sec: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nsec: u32 = digits.parse().ok()?;
    Some(match (negative, nsec) {
        (false, nsec) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec: 0 },
        (true, nsec) => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

/// The reverse of reading: `SECONDS[.FRACTION]`, as short as it is exact.
pub(super) fn time_text(time: Time) -> String {
    let (sign, sec, nsec) = match time {
        Time { sec, nsec } if sec >= 0 => ("", sec.unsigned_abs(), nsec),
        Time { sec, nsec: 0 } => ("-", sec.unsigned_abs(), 0),
        Time { sec, nsec } => ("-", (sec + 1).unsigned_abs(), 1_000_000_000 - nsec),
    };
    if nsec == 0 {
        format!("{sign}{sec}")
    } else {
        format!("{sign}{sec}.{nsec:09}").trim_end_matches('0').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for (sec, nsec) in [
            (0, 0),
            (1, 500_000_000),
            (-1, 500_000_000),
            (-2, 0),
            (-1, 999_999_999),
            (1_700_000_000, 1),
            (-5, 1),
        ] {
            let time = Time { sec, nsec };
            assert_eq!(parse_time(&time_text(time)), Some(time), "{}", time_text(time));
        }
        assert_eq!(parse_time("12.3456789019"), Some(Time { sec: 12, nsec: 345_678_901 }));
        for bad in ["", "-", "1e5", "+1", "1.-5", "99999999999999999999", "1.5.5"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn maps_of_sparse_files_must_make_sense() {
        let run = |offset, length| Run { offset, length };
        assert!(checked_runs(vec![run(0, 5), run(10, 5), run(20, 0)], 10, 20).is_some());
        for (runs, stored, size) in [
            (vec![run(0, 5), run(4, 5)], 10, 20),
            (vec![run(0, 5)], 6, 20),
            (vec![run(18, 5)], 5, 20),
            (vec![run(u64::MAX, 5)], 5, 20),
            (vec![run(0, u64::MAX), run(u64::MAX, 5)], 4, u64::MAX),
        ] {
            assert!(checked_runs(runs, stored, size).is_none());
        }
    }

    #[test]
    fn pax_records_that_are_cut_off_are_told() {
        let mut time = Time::default();
        check_pax(b"12 mtime=1\n\n", false, &mut time).unwrap_err();
        check_pax(b"11 mtime=1\nxx size=7\n", false, &mut time).unwrap_err();
        check_pax(b"11 mtime=1\n", false, &mut time).unwrap();
        assert_eq!(time.sec, 1);
        check_pax(b"9 size=-\n", false, &mut time).unwrap_err();
    }
}
