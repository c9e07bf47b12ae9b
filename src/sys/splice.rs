//! Pages handed from a file to another descriptor by reference, through a pipe (splice(2)).
//!
//! A `read` copies a file's pages to the program, and a `write` copies them out again. A pipe holds references to the
//! pages in place of their bytes, so that one copy of the two falls away.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{self, Errno};
use rustix::param::page_size;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// A pipe that is filled and emptied by one thread.
#[derive(Debug)]
pub struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    /// How many bytes it takes, if each piece fills a page.
    room: usize,
}

impl Pipe {
    /// Returns a pipe with room for `room` bytes of whole pages.
    ///
    /// # Errors
    ///
    /// `EPERM` above /proc/sys/fs/pipe-max-size, or when the user's pipes take too many pages already; `EMFILE`.
    pub fn new(room: usize) -> io::Result<Pipe> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let room = fcntl_setpipe_size(&into, room)?;
        Ok(Pipe { out, into, room })
    }

    /// Returns whether it can take a header and `len` bytes that begin and end anywhere in a page.
    pub fn takes(&self, len: usize) -> bool {
        // One slot for the header, and one more for the page that both ends share.
        len.div_ceil(page_size()) + 2 <= self.room / page_size()
    }

    /// Fills the empty pipe with a header and `len` bytes of a file. `false` when the file gave fewer, for whatever
    /// reason: the pipe is not empty then, and not to be used again.
    pub fn fill(&self, header: &[u8], file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<bool> {
        Ok(self.begin(header)? && self.add(file, offset, len)?)
    }

    /// Puts a header into the empty pipe. `false` as of [`Pipe::fill`].
    pub fn begin(&self, header: &[u8]) -> io::Result<bool> {
        Ok(io::write(&self.into, header)? == header.len())
    }

    /// Puts `len` bytes of a file behind what is there. A piece that doesn't end with a page takes a page as well: see
    /// [`Pipe::takes`]. `false` as of [`Pipe::fill`].
    pub fn add(&self, file: BorrowedFd<'_>, mut offset: u64, len: usize) -> io::Result<bool> {
        let mut left = len;
        while left > 0 {
            match splice(file, Some(&mut offset), &self.into, None, left, SpliceFlags::NONBLOCK) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(false),
                Ok(n) => left -= n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Returns the end that what it holds is taken from.
    pub fn out(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn taken(pipe: &Pipe) -> Vec<u8> {
        let (mut all, mut part) = (Vec::new(), [0; 65536]);
        loop {
            match io::read(pipe.out(), &mut part) {
                Ok(n) => all.extend_from_slice(&part[..n]),
                Err(Errno::AGAIN) => return all,
                Err(e) => panic!("{e}"),
            }
        }
    }

    #[test]
    fn a_header_and_a_part_of_a_file() {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let pipe = Pipe::new(1 << 20).unwrap();
        for (offset, len) in [(0, 300_000), (4096, 8192), (4097, 200_001), (299_999, 1), (5, 0)] {
            assert!(pipe.takes(len));
            assert!(pipe.fill(b"header", file.as_fd(), offset as u64, len).unwrap());
            assert_eq!(taken(&pipe), [b"header", &bytes[offset..offset + len]].concat(), "{offset} {len}");
        }
    }

    #[test]
    fn pieces_of_two_files_behind_each_other() {
        let files = [1, 2].map(|byte| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[byte; 100_000]).unwrap();
            file
        });
        let pipe = Pipe::new(1 << 18).unwrap();
        assert!(pipe.takes(20_000) && pipe.begin(b"header").unwrap());
        let mut expected = b"header".to_vec();
        // All but the first begin with a page, all but the last end with one.
        for (file, at, len) in [(0, 4000, 96), (1, 4096, 4096), (0, 8192, 8192), (1, 16384, 7616)] {
            assert!(pipe.add(files[file].as_fd(), at, len).unwrap());
            expected.extend(vec![file as u8 + 1; len]);
        }
        assert_eq!(taken(&pipe), expected);
    }

    #[test]
    fn a_file_that_ends_early_is_told() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 5000]).unwrap();
        let pipe = Pipe::new(1 << 16).unwrap();
        assert!(!pipe.fill(b"header", file.as_fd(), 0, 5001).unwrap());
    }

    #[test]
    fn what_it_takes_it_holds() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let pipe = Pipe::new(1 << 16).unwrap();
        let most = (0..=1 << 16).rev().find(|&len| pipe.takes(len)).unwrap();
        assert!(most >= 12 * 4096, "{most}");
        assert!(pipe.fill(b"header", file.as_fd(), 4095, most).unwrap(), "however it lies in the pages");
        assert!(!pipe.takes(1 << 16));
    }
}
