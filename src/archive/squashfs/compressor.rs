//! What blocks are compressed with. Each block stands alone.

use std::cell::RefCell;
use std::io::{self, Read};

use flate2::{Decompress, FlushDecompress, Status};
use lzma_rust2::XzReader;
use serde::{Deserialize, Serialize};

use crate::archive::filesystem::Wrong;
use crate::sys::panics::contained;

/// More than a stream of xz takes that a block can be: its dictionary is no larger than a block.
const XZ_MEMORY_KIB: u32 = 8 << 10;

/// How the blocks of an image are compressed, those that are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::archive) enum Compressor {
    Gzip,
    Xz,
    Lz4,
    Zstd,
    /// Behind the others, whose numbers are in indexes that were kept.
    Lzo,
    /// One with a bug.
    #[cfg(test)]
    Panicking,
}

/// Contexts of the libraries that are worth keeping.
#[derive(Default)]
struct Kept {
    inflate: Option<Decompress>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

impl Compressor {
    /// Returns that of a number in the superblock.
    ///
    /// # Errors
    /// When it isn't read, or there is none.
    pub(super) fn of(number: u16) -> Result<Compressor, Wrong> {
        match number {
            1 => Ok(Compressor::Gzip),
            2 => Err(Wrong::unknown(
                "a squashfs that is compressed with LZMA, which isn't read (gzip, xz, zstd, lz4 and LZO are); unpack it with unsquashfs",
            )),
            3 => Ok(Compressor::Lzo),
            4 => Ok(Compressor::Xz),
            5 => Ok(Compressor::Lz4),
            6 => Ok(Compressor::Zstd),
            #[cfg(test)]
            u16::MAX => Ok(Compressor::Panicking),
            other => Err(Wrong::damaged(format!("its superblock tells of an unknown compressor, {other}"))),
        }
    }

    /// Decompresses a block, and returns how many bytes that gives.
    ///
    /// # Errors
    /// It is damaged, or more than fits. Data that nobody made may find a bug in a library as well, which is no reason to end the mount.
    pub(super) fn decompress(self, block: &[u8], into: &mut [u8]) -> io::Result<usize> {
        let decoded = contained(|| match self {
            Compressor::Gzip => inflate(block, into),
            Compressor::Xz => unxz(block, into),
            Compressor::Lz4 => lz4_flex::block::decompress_into(block, into).ok(),
            Compressor::Lzo => lzo::decompress_into(block, into).ok(),
            Compressor::Zstd => unzstd(block, into),
            #[cfg(test)]
            Compressor::Panicking => panic!("a block of {} bytes", block.len()),
        });
        match decoded {
            Ok(Some(count)) => Ok(count),
            Ok(None) => Err(io::ErrorKind::InvalidData.into()),
            Err(panicked) => {
                // Nobody knows what they are like now.
                KEPT.take();
                Err(panicked)
            }
        }
    }
}

fn inflate(block: &[u8], into: &mut [u8]) -> Option<usize> {
    KEPT.with_borrow_mut(|kept| {
        let stream = kept.inflate.get_or_insert_with(|| Decompress::new(true));
        stream.reset(true);
        let ended = stream.decompress(block, into, FlushDecompress::Finish);
        matches!(ended, Ok(Status::StreamEnd)).then(|| usize::try_from(stream.total_out()).ok())?
    })
}

fn unxz(block: &[u8], into: &mut [u8]) -> Option<usize> {
    let mut stream = XzReader::new_mem_limit(block, false, XZ_MEMORY_KIB);
    let mut done = 0;
    while done < into.len() {
        match stream.read(&mut into[done..]).ok()? {
            0 => return Some(done),
            count => done += count,
        }
    }
    // Its checksum stands behind the data.
    (stream.read(&mut [0]).ok()? == 0).then_some(done)
}

fn unzstd(block: &[u8], into: &mut [u8]) -> Option<usize> {
    KEPT.with_borrow_mut(|kept| {
        if kept.zstd.is_none() {
            kept.zstd = zstd::bulk::Decompressor::new().ok();
        }
        kept.zstd.as_mut()?.decompress_to_buffer(block, into).ok()
    })
}
