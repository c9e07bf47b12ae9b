//! Compressed streams: told by their first bytes, whatever a media type or a file's name says.
//!
//! All decoders go on over concatenated members and frames, as pigz, estargz and `zstd` write them, and fail when the
//! stream ends within one. Of zstd, each frame says by itself how large a window it needs. A panic of theirs is an error of the stream;
//! one of what they read from is none of theirs, and goes on.

use std::io::{self, BufRead, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use zstd::stream::raw::{self, InBuffer, Operation, OutBuffer};

use crate::sys::panics::{contained, uncontained};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The format of xz(1). No media type of a layer stands for it.
    Xz,
    /// The format of bzip2(1). No media type of a layer stands for it.
    Bzip2,
}

/// Windows of up to 8 MiB are decoded wherever they come; larger ones, which take as much memory, one at a time.
const SMALL_WINDOW: u64 = 8 << 20;
/// What `zstd --long` and `zstd --ultra -22` write, and the most that `zstd -d` takes without being told.
const LARGE_WINDOW: u64 = 128 << 20;
/// How many bytes tell one compression from another.
const HEAD: u64 = 8;
static LARGE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

impl Compression {
    /// Tells the compression by a stream's first bytes.
    pub fn of(head: &[u8]) -> Compression {
        match head {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame, which may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..] => Compression::Bzip2,
            // Of nothing at all.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, ..] => Compression::Bzip2,
            _ => Compression::None,
        }
    }

    /// Returns the ending of OCI's media types; none for what [`Compression::is_foreign`].
    pub fn suffix(self) -> &'static str {
        match self {
            Compression::None | Compression::Xz | Compression::Bzip2 => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        }
    }

    /// Returns whether no image may hold a layer that is compressed so: it is to be stored decompressed.
    pub fn is_foreign(self) -> bool {
        matches!(self, Compression::Xz | Compression::Bzip2)
    }
}

/// Undoes the compression of a stream, if it has any.
///
/// # Errors
/// Those of reading its first bytes.
pub fn decode<'a>(input: impl BufRead + Send + 'a) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let (compression, input) = peek(input)?;
    let input = Uncontained(input);
    let reader: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(input.0),
        Compression::Gzip => Box::new(Contained::new(MultiGzDecoder::new(input))),
        Compression::Zstd => Box::new(Contained::new(ZstdReader::new(input)?)),
        Compression::Xz => {
            let limit = (LARGE_WINDOW >> 10) as u32;
            let reader = Alone { _alone: LARGE.lock(), reader: XzReader::new_mem_limit(input, true, limit) };
            Box::new(Contained::new(reader))
        }
        Compression::Bzip2 => Box::new(Contained::new(MultiBzDecoder::new(input))),
    };
    Ok((compression, reader))
}

/// Tells how a stream is compressed, and gives back the whole stream.
///
/// # Errors
/// Those of reading its first bytes.
pub fn peek<R: BufRead>(mut input: R) -> io::Result<(Compression, impl BufRead + use<R>)> {
    let mut head = Vec::new();
    // However few of them the first read of a pipe brings.
    input.by_ref().take(HEAD).read_to_end(&mut head)?;
    Ok((Compression::of(&head), io::Cursor::new(head).chain(input)))
}

/// A decoder that can end its stream, and nothing else, by a panic: what it is given, anybody may have made.
struct Contained<R> {
    /// `None`: it has panicked.
    decoder: Option<R>,
}

impl<R: Read> Contained<R> {
    fn new(decoder: R) -> Contained<R> {
        Contained { decoder: Some(decoder) }
    }
}

impl<R: Read> Read for Contained<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(decoder) = &mut self.decoder else {
            return Err(io::Error::other("its decoder has panicked"));
        };
        contained(|| decoder.read(buffer)).unwrap_or_else(|panicked| {
            let broken = self.decoder.take();
            if let Err(error) = contained(|| drop(broken)) {
                log::debug!("a decoder that has panicked can't be given up: {error}");
            }
            Err(panicked)
        })
    }
}

/// What a decoder reads from, whose panics aren't the decoder's.
struct Uncontained<R>(R);

impl<R: Read> Read for Uncontained<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        uncontained(|| self.0.read(buffer))
    }
}

impl<R: BufRead> BufRead for Uncontained<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let input = &mut self.0;
        uncontained(|| input.fill_buf())
    }

    fn consume(&mut self, count: usize) {
        uncontained(|| self.0.consume(count));
    }
}

/// The only reader of its size in the process.
struct Alone<R> {
    _alone: parking_lot::MutexGuard<'static, ()>,
    reader: R,
}

impl<R: Read> Read for Alone<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// A decoder of zstd's frames, which sees what window each of them wants before any memory is taken for it.
struct ZstdReader<R> {
    input: R,
    decoder: raw::Decoder<'static>,
    /// The first bytes of a frame, and how many of them the decoder has had.
    head: Vec<u8>,
    head_at: usize,
    in_frame: bool,
    /// Where one window was large, the right to be the only such reader in the process.
    alone: Option<parking_lot::MutexGuard<'static, ()>>,
}

impl<R: BufRead> ZstdReader<R> {
    fn new(input: R) -> io::Result<ZstdReader<R>> {
        let decoder = raw::Decoder::new()?;
        Ok(ZstdReader { input, decoder, head: Vec::new(), head_at: 0, in_frame: false, alone: None })
    }

    /// Goes on to the next frame; `false` when there is none.
    fn begin_frame(&mut self) -> io::Result<bool> {
        self.head.clear();
        self.head_at = 0;
        let window = loop {
            let needed = match window_of(&self.head) {
                Ok(window) => break window,
                Err(needed) => needed,
            };
            let input = self.input.fill_buf()?;
            if input.is_empty() && self.head.is_empty() {
                return Ok(false);
            }
            if input.is_empty() {
                return Err(ends_early());
            }
            let take = input.len().min(needed - self.head.len());
            self.head.extend_from_slice(&input[..take]);
            self.input.consume(take);
        };
        if window > LARGE_WINDOW {
            let (has, most) = (window >> 20, LARGE_WINDOW >> 20);
            let what =
                format!("a zstd window of {has} MiB would take too much memory; {most} MiB are the most");
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, what));
        }
        if window > SMALL_WINDOW && self.alone.is_none() {
            self.alone = Some(LARGE.lock());
        }
        self.in_frame = true;
        Ok(true)
    }

    /// Decodes as much as there is room or input for. Returns what was written, and whether the input has ended.
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let mut out = OutBuffer::around(buffer);
        let (left, ended) = match self.head.get(self.head_at..).filter(|rest| !rest.is_empty()) {
            Some(rest) => {
                let mut input = InBuffer::around(rest);
                let left = self.decoder.run(&mut input, &mut out)?;
                self.head_at += input.pos();
                (left, false)
            }
            None => {
                let bytes = self.input.fill_buf()?;
                let ended = bytes.is_empty();
                let mut input = InBuffer::around(bytes);
                let left = self.decoder.run(&mut input, &mut out)?;
                let used = input.pos();
                self.input.consume(used);
                (left, ended)
            }
        };
        if left == 0 {
            self.in_frame = false;
            self.decoder.reinit()?;
        }
        Ok((out.pos(), ended))
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.begin_frame()? {
                return Ok(0);
            }
            match self.step(buffer)? {
                (0, true) if self.in_frame => return Err(ends_early()),
                (0, _) => {}
                (count, _) => return Ok(count),
            }
        }
    }
}

fn ends_early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the compressed stream ends within a frame")
}

/// Returns the window that a frame needs, in bytes; or how many of its first bytes tell. Of what is no frame of data,
/// it is nothing, and the decoder says what it is (RFC 8878, 3.1.1.1).
fn window_of(head: &[u8]) -> Result<u64, usize> {
    let &[b0, b1, b2, b3, ref rest @ ..] = head else { return Err(4) };
    if [b0, b1, b2, b3] != [0x28, 0xb5, 0x2f, 0xfd] {
        return Ok(0);
    }
    let Some(&descriptor) = rest.first() else { return Err(5) };
    if descriptor & 0x20 == 0 {
        let Some(&window) = rest.get(1) else { return Err(6) };
        let base = 1u64 << (10 + (window >> 3));
        return Ok(base + base / 8 * u64::from(window & 7));
    }
    // One segment: the window is the content.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let Some(bytes) = rest.get(1 + dictionary..1 + dictionary + size) else {
        return Err(5 + dictionary + size);
    };
    let content = bytes.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    Ok(if size == 2 { content + 256 } else { content })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn decoded(bytes: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let (compression, mut reader) = decode(bytes)?;
        let mut all = Vec::new();
        reader.read_to_end(&mut all)?;
        Ok((compression, all))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn concatenated_and_truncated() {
        assert_eq!(decoded(b"plain").unwrap(), (Compression::None, b"plain".to_vec()));
        assert_eq!(decoded(b"").unwrap(), (Compression::None, Vec::new()));
        for (kind, one, two) in [
            (Compression::Gzip, gzip(b"one"), gzip(b"two")),
            (
                Compression::Zstd,
                zstd::encode_all(&b"one"[..], 3).unwrap(),
                zstd::encode_all(&b"two"[..], 3).unwrap(),
            ),
        ] {
            let both = [one.as_slice(), &two].concat();
            assert_eq!(decoded(&both).unwrap(), (kind, b"onetwo".to_vec()));
            assert!(decoded(&both[..both.len() - 3]).is_err(), "{kind:?}");
            assert!(decoded(&one[..6]).is_err(), "{kind:?}");
        }
    }

    fn frame(window: u32, content: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn windows_up_to_a_bound_in_every_frame() {
        for window in [10, 23, 25, 27] {
            assert_eq!(decoded(&frame(window, b"some content")).unwrap().1, b"some content", "{window}");
            // zstd:chunked begins with a small frame.
            let mixed = [frame(10, b"a"), frame(window, b"b"), frame(10, b"c")].concat();
            assert_eq!(decoded(&mixed).unwrap().1, b"abc", "{window}");
        }
        for first in [Vec::new(), frame(10, b"small")] {
            let error = decoded(&[first, frame(28, b"x")].concat()).unwrap_err();
            assert!(error.to_string().contains("256 MiB"), "{error}");
        }
    }

    #[test]
    fn frames_come_in_pieces_of_any_size() {
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"notes"].concat();
        let one_segment = zstd::bulk::compress(&[7; 70_000], 1).unwrap();
        let all =
            [skippable.clone(), frame(24, b"one"), one_segment, skippable, frame(10, b""), frame(10, b"two")]
                .concat();
        let expected = [b"one".as_slice(), &[7; 70_000], b"two"].concat();
        for size in [1, 2, 3, 5, 7, 64, 1 << 20] {
            let mut found = Vec::new();
            let reader = io::BufReader::with_capacity(size, &all[..]);
            let mut reader = ZstdReader::new(reader).unwrap();
            reader.read_to_end(&mut found).unwrap();
            assert!(
                found == expected,
                "{size}: {} of {}, {:?}",
                found.len(),
                expected.len(),
                &found[..9.min(found.len())]
            );
        }
        // With fewer bytes, nobody knows what it is.
        for cut in 4..all.len() {
            // At the ends of frames, nobody can know that something is missing.
            let part = decoded(&all[..cut]).map(|(_, found)| found);
            assert!(part.is_err() || part.is_ok_and(|found| expected.starts_with(&found)), "{cut}");
        }
        assert!(decoded(&[&all[..], b"garbage"].concat()).is_err());
    }

    /// Has a bug, or two of them.
    struct Buggy {
        is_dropped_badly: bool,
    }

    impl Read for Buggy {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            panic!("there is no room for {} bytes", buffer.len());
        }
    }

    impl Drop for Buggy {
        fn drop(&mut self) {
            assert!(!self.is_dropped_badly, "it is wrong through and through");
        }
    }

    #[test]
    fn a_decoder_that_panics_ends_its_stream_alone() {
        for is_dropped_badly in [false, true] {
            let mut reader =
                Contained::new(Alone { _alone: LARGE.lock(), reader: Buggy { is_dropped_badly } });
            let error = reader.read(&mut [0; 9]).unwrap_err().to_string();
            assert!(error.contains("there is no room for 9 bytes"), "{error}");
            assert!(reader.read(&mut [0; 9]).unwrap_err().to_string().contains("has panicked"));
            // What it alone could have, others can.
            assert_eq!(decoded(&frame(25, b"x")).unwrap().1, b"x");
        }
    }

    /// A source that ends by a panic.
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("the source is wrong");
        }
    }

    #[test]
    fn a_source_that_panics_is_no_decoders_error() {
        let (xz, bzip2) = (hex::decode(XZ).unwrap(), hex::decode(BZIP2).unwrap());
        for all in [&gzip(b"one")[..], &frame(10, b"one"), &xz, &bzip2] {
            // So that peeking finds it whole, and the decoder doesn't.
            let input = io::BufReader::with_capacity(1, (&all[..all.len() - 3]).chain(Broken));
            let (kind, mut reader) = decode(input).unwrap();
            let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                io::copy(&mut reader, &mut io::sink())
            }));
            let panic = read.expect_err("it was an error of the stream");
            assert_eq!(panic.downcast_ref(), Some(&"the source is wrong"), "{kind:?}");
        }
    }

    /// `printf one | xz | xxd -p`.
    const XZ: &str = "fd377a585a000004e6d6b4460200210116000000742fe5a30100026f6e6500007ee510c5d56a6c9a00011b03\
                      0b2fb9101fb6f37d010000000004595a";
    /// The same of bzip2.
    const BZIP2: &str = "425a6839314159265359bb701b1000000101000201a000219819816177245385090bb701b100";

    #[test]
    fn xz_and_bzip2() {
        for (kind, hex) in [(Compression::Xz, XZ), (Compression::Bzip2, BZIP2)] {
            let one = hex::decode(hex).unwrap();
            assert_eq!(decoded(&one).unwrap(), (kind, b"one".to_vec()));
            assert_eq!(decoded(&[&one[..], &one].concat()).unwrap().1, b"oneone");
            assert!(decoded(&one[..one.len() - 9]).is_err(), "{kind:?}");
            assert!(kind.is_foreign() && kind.suffix().is_empty());
        }
    }
}
