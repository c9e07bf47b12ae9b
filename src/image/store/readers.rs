//! What a layer is read through: readers that store what they read, hash it, end it, or bound it.

use std::io::{self, Read, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::BlobWriter;
use crate::image::digest::Hashing;
use crate::image::error::{FetchFailed, StoreError};

/// Reads a source, no further than its promised size and one byte, and stores what it reads. Notes the failure of a system
/// call, which whoever reads on can't tell from a damaged layer.
pub(super) struct TeeReader<'a, R> {
    pub(super) failure: &'a OnceLock<StoreError>,
    pub(super) source: R,
    pub(super) writer: Option<BlobWriter>,
    pub(super) most: u64,
    pub(super) over: bool,
    pub(super) progress: &'a (dyn Fn(u64) + Sync),
    pub(super) stop: &'a AtomicBool,
}

impl<R: Read> Read for TeeReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("given up"));
        }
        let count = match self.over {
            true => 1,
            false => self.source.read(buffer).map_err(|error| self.source_failed(error))?,
        };
        let Some(most) = self.most.checked_sub(count as u64) else {
            // Nor is any more of it read.
            (self.over, self.most) = (true, 0);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the blob is larger than its descriptor says",
            ));
        };
        self.most = most;
        if let Some(writer) = &mut self.writer
            && let Err(error) = writer.write_all(&buffer[..count])
        {
            let kind = error.kind();
            let failure = StoreError::io("write", writer.path())(error);
            self.fail(failure);
            return Err(kind.into());
        }
        (self.progress)(count as u64);
        Ok(count)
    }
}

impl<R> TeeReader<'_, R> {
    /// Notes what is no fault of the layer's.
    fn source_failed(&self, error: io::Error) -> io::Error {
        if let Some(code) = error.raw_os_error() {
            self.fail(StoreError::Source(io::Error::from_raw_os_error(code)));
        }
        match error.downcast::<FetchFailed>() {
            Ok(failed) => {
                let kind = failed.0.kind();
                self.fail(StoreError::Fetch(failed));
                kind.into()
            }
            Err(error) => error,
        }
    }

    /// Notes the first failure.
    fn fail(&self, failure: StoreError) {
        self.failure.get_or_init(|| failure);
    }
}

/// Hashes what is read unless somebody else does.
pub(super) struct CancelReader<'a, R> {
    pub(super) inner: Hashing<R>,
    pub(super) plain: &'a AtomicBool,
}

impl<R: Read> Read for CancelReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Before the first byte has come, nobody knows.
        if self.plain.load(Ordering::Acquire) {
            self.inner.read_unhashed(buffer)
        } else {
            self.inner.read(buffer)
        }
    }
}

/// Fails when more is read than allowed.
pub(super) struct Bounded<R> {
    pub(super) inner: R,
    pub(super) left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(
                "the layer is larger than --max-size and --max-entries allow; raise them if that is meant",
            )
        })?;
        Ok(count)
    }
}

/// A source that could not be opened.
pub(super) struct ErrorReader(pub(super) Option<io::Error>);

impl Read for ErrorReader {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}
