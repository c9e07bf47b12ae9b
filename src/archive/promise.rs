//! How an archive is opened: what somebody says of it beforehand, as an image does of its layers, and whether it is true.

use std::io::{self, Read};

use indicatif::MultiProgress;
use serde::{Deserialize, Serialize};

use crate::image::digest::{Digest, Hashing};

/// How an archive is opened.
#[derive(Debug, Clone, Default)]
pub struct ArchiveOptions {
    /// Whether names such as `.wh.x` are whiteouts.
    pub is_layer: bool,
    /// What its content must be. All of it is read and held against that, once: what is kept of it is known to be that.
    pub promised: Promised,
    /// Where is shown how far it is, if it takes long.
    pub progress: Option<MultiProgress>,
}

/// What the content of an archive must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// The digest of the archive as it lies there: an image's manifest tells it.
    pub blob: Option<Digest>,
    /// That of the tar: an image's config tells it, and calls it the diff id.
    pub tar: Option<Digest>,
}

impl Promised {
    /// Returns one digest, if there is any.
    pub(super) fn any(self) -> Option<Digest> {
        self.tar.or(self.blob)
    }
}

/// A stream that is hashed on the way, where somebody has promised its digest.
pub(super) enum Watched<R> {
    /// Nobody has.
    Unpromised(R),
    /// Somebody has.
    Promised(Hashing<R>),
}

impl<R: Read> Watched<R> {
    pub(super) fn new(from: R, promised: Option<Digest>) -> Watched<R> {
        match promised {
            Some(_) => Watched::Promised(Hashing::new(from)),
            None => Watched::Unpromised(from),
        }
    }

    /// Reads it to its end and tells its digest, where one was promised; else what is left is of no use. What was read from is given back.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn finish(mut self) -> io::Result<(R, Option<Digest>)> {
        if matches!(self, Watched::Promised(_)) {
            io::copy(&mut self, &mut io::sink())?;
        }
        Ok(match self {
            Watched::Unpromised(inner) => (inner, None),
            Watched::Promised(hashing) => {
                let (inner, found, _) = hashing.finish();
                (inner, Some(found))
            }
        })
    }
}

/// Reads what is left of a stream, which may be so much.
///
/// # Errors
/// Those of reading, and that it is more.
pub(super) fn drain(stream: &mut impl Read, most: u64) -> io::Result<()> {
    match io::copy(&mut stream.take(most.saturating_add(1)), &mut io::sink())? > most {
        true => Err(too_much()),
        false => Ok(()),
    }
}

/// Says that it is a bomb.
pub(super) fn too_much() -> io::Error {
    io::Error::other("it is decompressed to more than any archive that is meant")
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Watched::Unpromised(inner) => inner.read(buffer),
            Watched::Promised(inner) => inner.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts what is read of it.
    struct Counting(u64);

    impl Read for Counting {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(usize::try_from(1000 - self.0).unwrap());
            self.0 += count as u64;
            Ok(count)
        }
    }

    #[test]
    fn only_what_was_promised_is_read_to_its_end() {
        for (promised, read) in [(None, 10), (Some(Digest::of(b"")), 1000)] {
            let mut watched = Watched::new(Counting(0), promised);
            watched.read_exact(&mut [0; 10]).unwrap();
            let (stream, found) = watched.finish().unwrap();
            assert_eq!((stream.0, found.is_some()), (read, promised.is_some()));
        }
    }

    #[test]
    fn what_is_left_has_an_end() {
        assert!(drain(&mut io::repeat(0).take(10), 10).is_ok());
        assert!(drain(&mut io::repeat(0), 10).unwrap_err().to_string().contains("decompressed to more"));
    }
}
