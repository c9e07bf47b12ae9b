//! Reading ahead: a thread that reads, hashes and decompresses while another one makes use of it.
//!
//! A handful of blocks go round between the two, so memory is bounded and nothing is copied twice.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Large enough that handing over costs nothing, small enough that many layers at once are cheap.
const BLOCK: usize = 256 << 10;
const BLOCKS: usize = 4;

/// The end that reads from the source.
#[derive(Debug)]
pub(super) struct ReadAheadThread {
    full: SyncSender<io::Result<Vec<u8>>>,
    spare: Receiver<Vec<u8>>,
}

/// The end that is read from.
#[derive(Debug)]
pub(super) struct ReadAhead {
    full: Receiver<io::Result<Vec<u8>>>,
    spare: SyncSender<Vec<u8>>,
    block: Vec<u8>,
    at: usize,
    ended: bool,
}

/// Makes two ends, one for each thread.
pub(super) fn pair() -> (ReadAheadThread, ReadAhead) {
    let (full_in, full_out) = sync_channel(BLOCKS);
    let (spare_in, spare_out) = sync_channel(BLOCKS);
    for _ in 0..BLOCKS {
        // The channel has room for just these.
        spare_in.try_send(Vec::new()).unwrap_or_default();
    }
    let ahead = ReadAhead { full: full_out, spare: spare_in, block: Vec::new(), at: 0, ended: false };
    (ReadAheadThread { full: full_in, spare: spare_out }, ahead)
}

impl ReadAheadThread {
    /// Hands over all of `from`, or its error. False when the other end stopped listening.
    pub(super) fn feed(self, mut from: impl Read) -> bool {
        while let Ok(mut block) = self.spare.recv() {
            block.clear();
            let read = from.by_ref().take(BLOCK as u64).read_to_end(&mut block);
            let end = match &read {
                Ok(count) => *count == 0,
                Err(_) => true,
            };
            if self.full.send(read.map(|_| block)).is_err() {
                return false;
            }
            if end {
                return true;
            }
        }
        false
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() && !self.ended {
            let used = std::mem::take(&mut self.block);
            self.at = 0;
            // The feeder has ended when nobody takes it; what it sent is still to be read.
            self.spare.try_send(used).unwrap_or_default();
            match self.full.recv() {
                Ok(Ok(block)) => {
                    self.ended = block.is_empty();
                    self.block = block;
                }
                Ok(Err(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Err(_) => return Err(io::Error::other("the thread that reads has ended early")),
            }
        }
        let count = buffer.len().min(self.block.len() - self.at);
        buffer[..count].copy_from_slice(&self.block[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(from: impl Read + Send) -> io::Result<Vec<u8>> {
        let (feeder, mut ahead) = pair();
        std::thread::scope(|scope| {
            scope.spawn(move || feeder.feed(from));
            let mut all = Vec::new();
            ahead.read_to_end(&mut all).map(|_| all)
        })
    }

    #[test]
    fn everything_arrives_in_order() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 17] {
            let data: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            assert!(through(&data[..]).unwrap() == data, "{length}");
        }
    }

    #[test]
    fn an_error_arrives_after_what_came_before() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let error = through((&[1u8; 10][..]).chain(Fails)).unwrap_err();
        assert_eq!(error.to_string(), "broken");
    }

    #[test]
    fn nobody_waits_for_one_who_stopped_listening() {
        let (feeder, ahead) = pair();
        std::thread::scope(|scope| {
            let feeding = scope.spawn(move || feeder.feed(io::repeat(0)));
            drop(ahead);
            assert!(!feeding.join().unwrap());
        });
    }
}
