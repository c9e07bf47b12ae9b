//! Entering streams of every kind at every place.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::archive::cache::Cache;
use crate::archive::data::Decoded as _;
use crate::archive::part::Part;
use crate::archive::tests::{at, content, of_path, tar};
use crate::archive::{ArchiveOptions, open};

impl Points {
    /// One that says something of everything.
    pub(in crate::archive) fn one() -> Points {
        let point = Point { at: 1, from: 2, bits: Some((3, 4)), window: (5, 6), sum: 7 };
        Points { points: vec![point], size: 8 }
    }
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let to = flate2::GzBuilder::new()
        .filename("name")
        .comment("comment")
        .write(Vec::new(), flate2::Compression::new(level));
    let mut encoder = to;
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Text, noise and zeros by turns, as long as that.
fn mixed(length: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let count = rng.usize(1..300_000);
        match rng.u8(0..3) {
            0 => bytes.extend((0..count).map(|at| b"some text that is told again "[at % 29])),
            1 => bytes.extend(std::iter::repeat_with(|| rng.u8(..)).take(count)),
            _ => bytes.resize(bytes.len() + count, 0),
        }
    }
    bytes.truncate(length);
    bytes
}

fn cache(dir: &Path) -> Cache {
    Cache { dir: dir.to_owned(), ..Cache::of_user() }
}

fn part(bytes: &[u8]) -> (tempfile::NamedTempFile, Part) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at(bytes, 0).unwrap();
    let part = Part::whole(file.reopen().unwrap(), Path::new("f")).unwrap();
    (file, part)
}

fn scanned(stream: &[u8], most: u64) -> std::io::Result<(Vec<u8>, Scanned)> {
    let dir = tempfile::tempdir().unwrap();
    let (cache, too_far) = (cache(dir.path()), Cell::new(false));
    let mut scan = Scan::new(stream, most, dir.path(), &cache, &too_far)?;
    let mut bytes = Vec::new();
    scan.read_to_end(&mut bytes)?;
    assert!(!too_far.get());
    Ok((bytes, scan.finish()?))
}

fn spans(
    stream: &[u8],
    Scanned { points, windows }: Scanned,
    spool: bool,
) -> (tempfile::NamedTempFile, Spans) {
    let (file, compressed) = part(stream);
    let windows = Part::whole(windows, Path::new("w")).unwrap();
    assert!(points.are_sound(compressed.size, windows.size));
    let spool = spool.then(|| tempfile::tempfile().unwrap());
    (file, Spans::new(compressed, windows, points, spool))
}

#[test]
fn every_place_of_a_stream_is_read_as_it_was() {
    let all = mixed(9 << 20);
    let halves = [gzip(&all[..5_000_000], 9), gzip(&all[5_000_000..], 1)].concat();
    let small = all.chunks(65_280).flat_map(|chunk| gzip(chunk, 6)).collect();
    let streams = [gzip(&all, 0), gzip(&all, 1), gzip(&all, 6), gzip(&all, 9), halves, small];
    for (number, stream) in streams.iter().enumerate() {
        let (bytes, found) = scanned(stream, u64::MAX).unwrap();
        assert!(bytes == all, "stream {number}");
        // At level 1 some compressors write blocks of MiBs.
        let count = found.points.points.len();
        assert!(count <= 10 && count >= if number == 1 { 2 } else { 5 }, "stream {number}: {count} points");
        let (_file, spans) = spans(stream, found, number % 2 == 0);
        let mut rng = fastrand::Rng::with_seed(number as u64);
        // The last places first: nothing is decoded that lies before.
        let places = [(all.len() - 5, 100), (all.len(), 10), (0, all.len()), (usize::MAX, 1)];
        let random = std::iter::repeat_with(|| (rng.usize(..all.len()), rng.usize(..300_000))).take(50);
        for (from, length) in places.into_iter().chain(random) {
            let mut buffer = vec![1; length];
            let count = spans.read_at(&mut buffer, from as u64).unwrap();
            let expected = all.get(from..).unwrap_or_default();
            assert_eq!(count, expected.len().min(length));
            assert!(buffer[..count] == expected[..count], "stream {number}: {length} bytes at {from}");
        }
    }
}

#[test]
fn an_empty_stream_and_one_of_nothing_but_members_have_an_end() {
    for stream in [gzip(b"", 6), [gzip(b"", 6), gzip(b"", 0)].concat()] {
        let (bytes, found) = scanned(&stream, 0).unwrap();
        assert!(bytes.is_empty());
        let (_file, spans) = spans(&stream, found, true);
        assert_eq!(spans.read_at(&mut [0; 9], 0).unwrap(), 0);
    }
}

#[test]
fn what_is_cut_damaged_or_too_much_is_told() {
    let stream = gzip(&mixed(100_000), 6);
    for end in [3, 20, stream.len() / 2, stream.len() - 9, stream.len() - 1] {
        let error = scanned(&stream[..end], u64::MAX).err().unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{end}: {error}");
    }
    for place in [0, 2, stream.len() / 2, stream.len() - 8, stream.len() - 1] {
        let mut other = stream.clone();
        other[place] ^= 0x55;
        assert!(scanned(&other, u64::MAX).is_err(), "{place}");
    }
    assert!(scanned(&[&stream[..], b"behind it"].concat(), u64::MAX).is_err());
    assert!(scanned(&stream, 100_000).is_ok());
    let error = scanned(&stream, 99_999).err().unwrap();
    assert!(error.to_string().contains("decompressed to more"), "{error}");
}

/// As who stores into a mapping: no time tells.
#[test]
fn what_is_not_what_it_was_is_never_given_out() {
    let all = mixed(4 << 20);
    let stream = gzip(&all, 6);
    let whole = scanned(&stream, u64::MAX).unwrap().1;
    let second = whole.points.points[1];
    let mut other = stream.clone();
    let place = second.from as usize + 5000;
    other[place] ^= 1;
    let (_file, damaged) = spans(&other, whole, true);
    let mut buffer = [0; 100];
    assert_eq!(damaged.read_at(&mut buffer, 0).unwrap(), 100);
    assert_eq!(buffer[..], all[..100]);
    let error = damaged.read_at(&mut buffer, second.at).unwrap_err();
    assert!(error.to_string().contains("isn't what it was"), "{error}");
    let last = all.len() - 100;
    assert_eq!(damaged.read_at(&mut buffer, last as u64).unwrap(), 100);
    assert_eq!(buffer[..], all[last..]);
}

#[test]
fn what_was_decoded_is_kept_and_not_decoded_again() {
    let all = mixed(4 << 20);
    let stream = gzip(&all, 6);
    let (file, spans) = spans(&stream, scanned(&stream, u64::MAX).unwrap().1, true);
    let mut buffer = vec![0; all.len()];
    spans.read_at(&mut buffer[..100], 2 << 20).unwrap();
    assert_eq!(buffer[..100], all[2 << 20..][..100]);
    // There is nothing any more that it could be decoded from.
    file.as_file().set_len(0).unwrap();
    crate::archive::decompressed::CACHE.forget(spans.id());
    spans.read_at(&mut buffer[..200], (2 << 20) + 50).unwrap();
    assert_eq!(buffer[..200], all[(2 << 20) + 50..][..200]);
    spans.read_at(&mut buffer[..100], 0).unwrap_err();
}

#[test]
fn points_that_lead_nowhere_are_not_believed() {
    let points = scanned(&gzip(&mixed(3 << 20), 6), u64::MAX).unwrap().1.points;
    let sound = |change: &dyn Fn(&mut Points)| {
        let mut other = points.clone();
        change(&mut other);
        other.are_sound(3 << 20, 1 << 20)
    };
    assert!(sound(&|_| {}));
    assert!(!sound(&|points| points.points.clear()));
    assert!(!sound(&|points| points.points[0].at = 1));
    assert!(!sound(&|points| points.points[1].at = u64::MAX));
    assert!(!sound(&|points| points.points[1].from = (3 << 20) + 1));
    assert!(!sound(&|points| points.points[1].bits = Some((8, 0))));
    assert!(!sound(&|points| points.points[1].window = (u64::MAX, 1)));
    assert!(!sound(&|points| points.size = u64::MAX));
    assert!(!sound(&|points| points.size = 0));
}

/// Writes one block with the codes that RFC 1951 fixes (3.2.6).
struct Fixed {
    bytes: Vec<u8>,
    bits: u32,
}

impl Fixed {
    /// Codes begin with their highest bit.
    fn code(&mut self, code: u32, length: u32) {
        for bit in (0..length).rev() {
            if self.bits.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((code >> bit & 1) << (self.bits % 8)) as u8;
            self.bits += 1;
        }
    }

    fn literal(&mut self, byte: u8) {
        match u32::from(byte) {
            byte @ ..144 => self.code(0x30 + byte, 8),
            byte => self.code(0x190 + byte - 144, 9),
        }
    }
}

#[test]
fn a_stream_that_cannot_be_entered_is_decoded_whole() {
    let file = tar(&[(b'0', "a", "content of a"), (b'0', "b", "content of b")]);
    let bytes = std::fs::read(file.path()).unwrap();
    let mut block = Fixed { bytes: Vec::new(), bits: 0 };
    block.code(0b1_10, 3);
    for byte in &bytes {
        block.literal(*byte);
    }
    // Zeros behind the end of the tar, 258 at once.
    let times = (MOST_SPAN / 258 + 1) as usize;
    block.literal(0);
    for _ in 0..times {
        block.code(0b1100_0101, 8);
        block.code(0, 5);
    }
    block.code(0, 7);
    let mut all = bytes;
    all.resize(all.len() + 1 + 258 * times, 0);
    let mut sum = flate2::Crc::new();
    sum.update(&all);
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let stream = [&head[..], &block.bytes, &sum.sum().to_le_bytes(), &sum.amount().to_le_bytes()].concat();
    let mut decoded = Vec::new();
    flate2::read::GzDecoder::new(&stream[..]).read_to_end(&mut decoded).unwrap();
    assert!(decoded == all);
    let dir = tempfile::tempdir().unwrap();
    let too_far = Cell::new(false);
    let cache = cache(dir.path());
    let mut scan = Scan::new(&stream[..], u64::MAX, dir.path(), &cache, &too_far).unwrap();
    scan.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(too_far.get());
    let (file, _) = part(&stream);
    let tree = of_path(file.path(), ArchiveOptions::default()).unwrap();
    assert_eq!(content(&*tree, "b"), "content of b");
    assert_eq!(at(&*tree, "c"), None);
    let archive = open(file.reopen().unwrap(), file.path(), &ArchiveOptions::default()).unwrap();
    assert!(!archive.data.store.is_decoded());
}

#[test]
fn a_tar_in_gzip_is_entered_and_its_files_are_as_in_the_tar() {
    let text = String::from_utf8(mixed(3 << 20).iter().map(|byte| byte % 64 + 32).collect()).unwrap();
    let file = tar(&[(b'0', "large", &text), (b'0', "dir/small", "content")]);
    let plain = std::fs::read(file.path()).unwrap();
    let (packed, _) = part(&gzip(&plain, 6));
    let archive = open(packed.reopen().unwrap(), packed.path(), &ArchiveOptions::default()).unwrap();
    assert!(archive.data.store.is_decoded());
    let (tree, other) = (archive.into_tree(), of_path(file.path(), ArchiveOptions::default()).unwrap());
    assert_eq!(tree.id(), other.id(), "uppers know it by that");
    assert_eq!(content(&*tree, "dir/small"), "content");
    assert!(content(&*tree, "large") == text);
    // What is changed underneath isn't shown.
    packed.as_file().write_all_at(b"x", 9).unwrap();
    let small = tree.open(at(&*tree, "dir/small").unwrap()).unwrap();
    assert_eq!(small.read_at(&mut [0; 5], 0), Err(rustix::io::Errno::IO));
}
