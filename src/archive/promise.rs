//! How an archive is opened: what somebody says of it beforehand, as an image does of its layers, and whether it is true.

use std::io::{self, Read};

use indicatif::MultiProgress;

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Promised {
    /// The digest of the archive as it lies there: an image's manifest tells it.
    pub blob: Option<Digest>,
    /// That of the tar: an image's config tells it, and calls it the diff id.
    pub tar: Option<Digest>,
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

    /// Reads it to its end and tells its digest, where one was promised. What was read from is given back.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn finish(mut self) -> io::Result<(R, Option<Digest>)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(match self {
            Watched::Unpromised(inner) => (inner, None),
            Watched::Promised(hashing) => {
                let (inner, found, _) = hashing.finish();
                (inner, Some(found))
            }
        })
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Watched::Unpromised(inner) => inner.read(buffer),
            Watched::Promised(inner) => inner.read(buffer),
        }
    }
}
