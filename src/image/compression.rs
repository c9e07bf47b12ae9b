//! Compressed streams: told by their first bytes, whatever a media type or a file's name says.
//!
//! Both decoders go on over concatenated members and frames, as pigz, estargz and `zstd` write them, and fail when the
//! stream ends within one.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// zstd windows of up to 8 MiB are decoded wherever they come; larger ones, which take as much memory, one at a time.
const SMALL_WINDOW: u32 = 23;
const LARGE_WINDOW: u32 = 25;
static LARGE: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

impl Compression {
    /// Tells the compression by a stream's first bytes.
    ///
    /// # Errors
    /// For compressions that are known by sight only.
    pub fn of(head: &[u8]) -> io::Result<Compression> {
        let unsupported = |name: &str| {
            let message = format!(
                "is compressed with {name}; only gzip and zstd are understood, so decompress it first"
            );
            Err(io::Error::new(io::ErrorKind::Unsupported, message))
        };
        match head {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
            // A skippable frame, which may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => unsupported("xz"),
            [b'B', b'Z', b'h', ..] => unsupported("bzip2"),
            _ => Ok(Compression::None),
        }
    }

    /// The ending of OCI's media types.
    pub fn suffix(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        }
    }
}

/// Undoes the compression of a stream, if it has any.
///
/// # Errors
/// Those of reading its first bytes, and unknown compressions.
pub fn decode<'a>(
    mut input: impl BufRead + Send + 'a,
) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let compression = Compression::of(input.fill_buf()?)?;
    let reader: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
        Compression::Zstd => zstd_decoder(input)?,
    };
    Ok((compression, reader))
}

fn zstd_decoder<'a>(mut input: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    // Which window a frame wants stands in its first bytes, and the decoder says at once whether it has that much.
    let small = {
        let mut trial = zstd::stream::read::Decoder::with_buffer(input.fill_buf()?)?;
        trial.window_log_max(SMALL_WINDOW)?;
        let wants_more = |error: io::Error| error.to_string().contains("memory");
        !trial.read_exact(&mut [0; 1]).is_err_and(wants_more)
    };
    let alone = (!small).then(|| LARGE.lock());
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
    decoder.window_log_max(if small { SMALL_WINDOW } else { LARGE_WINDOW })?;
    Ok(Box::new(ZstdReader { decoder, _alone: alone }))
}

/// A decoder, and where its window is large, the right to be the only such one in the process.
struct ZstdReader<R> {
    decoder: R,
    _alone: Option<parking_lot::MutexGuard<'static, ()>>,
}

impl<R: Read> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buffer)
    }
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

    #[test]
    fn windows_up_to_a_bound() {
        let compress = |window: u32| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window).unwrap();
            encoder.write_all(b"some content").unwrap();
            encoder.finish().unwrap()
        };
        for window in [10, 23, 25] {
            assert_eq!(decoded(&compress(window)).unwrap().1, b"some content", "{window}");
        }
        assert!(decoded(&compress(27)).unwrap_err().to_string().contains("memory"));
    }

    #[test]
    fn what_is_known_by_sight_only() {
        assert!(decoded(b"\xfd7zXZ\0\0").unwrap_err().to_string().contains("xz"));
        assert!(decoded(b"BZh91AY").unwrap_err().to_string().contains("bzip2"));
    }
}
