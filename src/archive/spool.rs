//! What a stream was decoded to, kept in a file without a name: it goes with the mount, whatever its end, unless the cache gives
//! it one.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;

use super::cache::{Cache, nameless};
use super::promise::too_much;
use crate::sys::copy::write_sparsely;

/// A stream that is kept as it is read.
pub(super) struct Spool<'a, R> {
    stream: R,
    file: File,
    cache: &'a Cache,
    /// How much was read, and how much more may be.
    end: u64,
    left: u64,
}

impl<'a, R: Read> Spool<'a, R> {
    /// Makes the file in a directory. Where there is no room left, `cache` gives back what it has.
    ///
    /// # Errors
    /// When there can be none.
    pub(super) fn new(stream: R, most: u64, dir: &Path, cache: &'a Cache) -> io::Result<Spool<'a, R>> {
        let file = nameless(dir)?;
        Ok(Spool { stream, file, cache, end: 0, left: most })
    }

    /// Returns the file with all that was read, the stream, and how much more may be read of it.
    ///
    /// # Errors
    /// When it can't be made as long as that.
    pub(super) fn finish(self) -> io::Result<(File, R, u64)> {
        // It may end in a hole.
        self.file.set_len(self.end)?;
        Ok((self.file, self.stream, self.left))
    }
}

impl<R: Read> Read for Spool<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(too_much)?;
        write_with_room(self.cache, self.file.as_fd(), self.end, &buffer[..count])?;
        self.end += count as u64;
        Ok(count)
    }
}

/// Writes into a file, sparsely: a bomb is mostly zeros. Where there is no room left, `cache` gives back what it has: what is asked
/// for now goes before what may be asked for again.
pub(super) fn write_with_room(cache: &Cache, file: BorrowedFd<'_>, at: u64, bytes: &[u8]) -> io::Result<()> {
    let write = || write_sparsely(file, at, bytes);
    match write() {
        Err(Errno::NOSPC | Errno::DQUOT) if cache.clear().is_ok_and(|freed| freed > 0) => write()?,
        written => written?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_spool_takes_no_room_for_zeros_and_has_an_end() {
        let spool = |bytes: u64, most: u64| {
            let file = tempfile::tempfile().unwrap();
            let stream = io::repeat(0).take(bytes);
            let cache = Cache::of_user();
            let mut spool = Spool { stream, file, cache: &cache, end: 0, left: most };
            io::copy(&mut spool, &mut io::sink()).and_then(|_| Ok(spool.finish()?.0))
        };
        let zeros = spool(10 << 20, 10 << 20).unwrap().metadata().unwrap();
        assert_eq!((zeros.len(), zeros.blocks()), (10 << 20, 0));
        assert!(spool(11 << 20, 10 << 20).unwrap_err().to_string().contains("decompressed to more"));
    }
}
