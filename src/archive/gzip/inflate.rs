//! Decoding gzip (RFC 1952) so that it can be gone on with from the middle.
//!
//! A stream of deflate (RFC 1951) is a row of blocks, which begin at any bit. Between two of them a decoder knows nothing but the
//! last 32 KiB that it has given out: from there on another can go on that is given them.

use std::io::{self, BufRead, Read};

use flate2::Crc;
use flate2::bufread::GzDecoder;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY,
};
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress};

use crate::sys::panics::contained;

/// How far back the data refer to those before (RFC 1951, 2).
pub(super) const WINDOW: usize = 32 << 10;

/// What is decoded at once. A power of two, since the decoder goes around in it.
const RING: usize = 128 << 10;

/// The bits of a byte that belong to the next block, and how many they are.
pub(super) type Bits = (u8, u8);

/// Where a decoder can begin: the byte, and of a place between blocks its bits; without them a member begins there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Counted in what is decoded.
    pub from: u64,
    pub bits: Option<Bits>,
}

/// A decoder of members, one behind the other.
pub(super) struct Inflater<R> {
    input: Counted<R>,
    state: Box<DecompressorOxide>,
    ring: Box<[u8]>,
    at: usize,
    /// How much of the ring was given out, up to all of it.
    filled: usize,
    member: Member,
    /// Whether the decoder is between blocks.
    is_between: bool,
}

/// What is known of the member that is decoded.
enum Member {
    /// None has begun.
    Outside,
    /// All that was given out of it.
    Begun(Crc),
    /// Its beginning wasn't decoded here.
    Entered,
}

impl<R: BufRead> Inflater<R> {
    /// Decodes from the beginning on.
    pub(super) fn new(input: R) -> Inflater<R> {
        Inflater::of(input, Member::Outside, Box::default())
    }

    /// Goes on from a place between two blocks, behind that window.
    pub(super) fn entered(input: R, (num_bits, bit_buf): Bits, window: &[u8]) -> Inflater<R> {
        let known = BlockBoundaryState { num_bits, bit_buf, ..BlockBoundaryState::default() };
        let state = Box::new(DecompressorOxide::from_block_boundary_state(&known));
        let mut inflater = Inflater::of(input, Member::Entered, state);
        let length = window.len().min(WINDOW);
        inflater.ring[..length].copy_from_slice(&window[..length]);
        (inflater.at, inflater.filled) = (length, length);
        inflater
    }

    fn of(input: R, member: Member, state: Box<DecompressorOxide>) -> Inflater<R> {
        let ring = vec![0; RING].into_boxed_slice();
        Inflater {
            input: Counted { input, used: 0 },
            state,
            ring,
            at: 0,
            filled: 0,
            member,
            is_between: false,
        }
    }

    /// Decodes some more. It may be nothing, where a block ends; `None`: all members have ended.
    ///
    /// # Errors
    /// Those of reading, and that it is damaged or cut.
    pub(super) fn more(&mut self) -> io::Result<Option<&[u8]>> {
        if matches!(self.member, Member::Outside) {
            if self.input.fill_buf()?.is_empty() {
                return Ok(None);
            }
            self.begin()?;
        }
        let input = self.input.fill_buf()?;
        let is_cut = input.is_empty();
        let more = if is_cut { 0 } else { TINFL_FLAG_HAS_MORE_INPUT };
        let flags = TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY | more;
        let (state, ring, at) = (&mut self.state, &mut self.ring, self.at);
        // Anybody may have made it.
        let (status, used, given) = contained(|| decompress(state, input, ring, at, flags))?;
        self.input.consume(used);
        self.at = (at + given) % RING;
        self.filled = (self.filled + given).min(RING);
        if let Member::Begun(crc) = &mut self.member {
            crc.update(&self.ring[at..at + given]);
        }
        self.is_between = status == TINFLStatus::BlockBoundary;
        match status {
            TINFLStatus::Done => self.end()?,
            TINFLStatus::BlockBoundary | TINFLStatus::HasMoreOutput => {}
            TINFLStatus::NeedsMoreInput if !is_cut => {}
            TINFLStatus::NeedsMoreInput | TINFLStatus::FailedCannotMakeProgress => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            _ => return Err(damaged("its compressed data are damaged")),
        }
        Ok(Some(&self.ring[at..at + given]))
    }

    /// Returns where another can go on from here, if one can.
    pub(super) fn place(&self) -> Option<Place> {
        let from = self.input.used;
        if matches!(self.member, Member::Outside) {
            return Some(Place { from, bits: None });
        }
        let known = self.state.block_boundary_state().filter(|_| self.is_between)?;
        Some(Place { from, bits: Some((known.num_bits, known.bit_buf)) })
    }

    /// Returns the last that was given out, as much as may be referred to.
    pub(super) fn window(&self) -> Vec<u8> {
        let length = self.filled.min(WINDOW);
        let before = self.at.min(length);
        [&self.ring[RING - (length - before)..], &self.ring[self.at - before..self.at]].concat()
    }

    fn begin(&mut self) -> io::Result<()> {
        let mut decoder = GzDecoder::new(&mut self.input);
        if decoder.header().is_none() {
            let error = decoder.read(&mut [0]).err();
            return Err(error.unwrap_or_else(|| damaged("no header of gzip")));
        }
        self.state.init();
        self.member = Member::Begun(Crc::new());
        Ok(())
    }

    /// Reads what stands behind a member (RFC 1952, 2.3.1).
    fn end(&mut self) -> io::Result<()> {
        let mut sums = [[0; 4]; 2];
        self.input.read_exact(sums.as_flattened_mut())?;
        let [sum, length] = sums.map(u32::from_le_bytes);
        let member = std::mem::replace(&mut self.member, Member::Outside);
        match member {
            Member::Begun(crc) if (crc.sum(), crc.amount()) != (sum, length) => {
                Err(damaged("its checksum is another"))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A stream of which is counted how much was used.
struct Counted<R> {
    input: R,
    used: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.used += count as u64;
        self.input.consume(count);
    }
}
