//! What stands at the beginning of an image, behind a kilobyte for programs that boot.

use std::ops::RangeInclusive;

use crate::archive::filesystem::{Wrong, read_exact, u16_at, u32_at, u64_at};
use crate::archive::part::Part;
use crate::sys::object::Time;

const MAGIC: u32 = 0xe0f5_e1e2;
/// Where it stands, and how long it is.
const AT: usize = 1024;
const SIZE: usize = 128;
/// By so many bytes an image is known.
pub(in crate::archive) const HEAD: usize = AT + 4;

/// The logarithms of the sizes of blocks, 512 bytes to 64 KiB: those that Linux mounts on one machine or another.
const BLOCK_LOGS: RangeInclusive<u8> = 9..=16;

/// A feature that nobody must know: the first block has a checksum.
const CHECKSUM: u32 = 1;
/// Features that all who read an image must know, and that don't matter here: how compressed data are laid out, their settings, and maps of
/// chunks. A second way to compress has the bit of a list of further devices, which are counted elsewhere.
const KNOWN: u32 = 0b1111;
/// The others that there are.
const REFUSED: [(u32, &str); 5] = [
    (0x10, "ztailpacking (compressed ends of files)"),
    (0x20, "fragments or dedupe (compressed data that files share)"),
    (0x40, "xattr-prefixes (names of extended attributes in parts)"),
    (0x80, "48bit (addresses of 48 bits)"),
    (0x100, "metabox (compressed metadata)"),
];

/// What to do with an image that isn't read.
pub(super) const WAY_OUT: &str =
    "make it with mkfs.erofs without -z and -E, or mount it with the kernel and name the mount point";

/// Where all begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Superblock {
    /// The logarithm of the size of a block.
    pub block_log: u8,
    pub root: u64,
    /// How many there are, as the image says.
    pub inodes: u64,
    /// That of all objects whose inodes have none.
    pub time: Time,
    /// Where inodes are counted from.
    pub metadata: u64,
    /// Where attributes are counted from that several objects have.
    pub shared: u64,
}

/// Tells by an image's first [`HEAD`] bytes whether it is one.
pub(in crate::archive) fn is_superblock(head: &[u8]) -> bool {
    head.len() >= HEAD && u32_at(head, AT) == MAGIC
}

/// Reads it.
///
/// # Errors
/// When no image can begin so, or it has features that aren't read.
pub(super) fn read(part: &Part) -> Result<Superblock, Wrong> {
    let short = || Wrong::damaged("it ends within its superblock");
    if part.size < (AT + SIZE) as u64 {
        return Err(short());
    }
    let mut bytes = [0; SIZE];
    read_exact(part, AT as u64, &mut bytes)?;
    let block_log = bytes[12];
    if !BLOCK_LOGS.contains(&block_log) {
        return Err(Wrong::damaged(format!("its superblock tells of blocks of 2^{block_log} bytes")));
    }
    if u32_at(&bytes, 8) & CHECKSUM != 0 {
        check(part, block_log, u32_at(&bytes, 4))?;
    }
    features(u32_at(&bytes, 80))?;
    let devices = u16_at(&bytes, 86);
    if devices > 0 {
        return Err(Wrong::unknown(format!(
            "an EROFS image with data in {devices} further files or devices, which aren't read; {WAY_OUT}"
        )));
    }
    if bytes[90] != 0 {
        return Err(Wrong::damaged("its superblock tells of directories with blocks of their own size"));
    }
    let size = u64::from(u32_at(&bytes, 36)) << block_log;
    if size > part.size {
        let has = part.size;
        return Err(Wrong::damaged(format!(
            "it is cut: it has {has} bytes, and its superblock tells of {size}"
        )));
    }
    let time = Time { sec: u64_at(&bytes, 24).cast_signed(), nsec: nanoseconds(u32_at(&bytes, 32))? };
    let block = |at: usize| u64::from(u32_at(&bytes, at)) << block_log;
    Ok(Superblock {
        block_log,
        root: u16_at(&bytes, 14).into(),
        inodes: u64_at(&bytes, 16),
        time,
        metadata: block(40),
        shared: block(44),
    })
}

/// Returns the part of a second that a time tells.
///
/// # Errors
/// When that is a second or more.
pub(super) fn nanoseconds(told: u32) -> Result<u32, Wrong> {
    match told {
        0..1_000_000_000 => Ok(told),
        _ => Err(Wrong::damaged(format!("it tells of a time with {told} nanoseconds"))),
    }
}

/// Refuses features that aren't read.
fn features(told: u32) -> Result<(), Wrong> {
    let mut left = told & !KNOWN;
    let mut names = Vec::new();
    for (bit, name) in REFUSED {
        if left & bit != 0 {
            names.push(name.to_owned());
        }
        left &= !bit;
    }
    if left != 0 {
        names.push(format!("{left:#x}, of a later version"));
    }
    match names.is_empty() {
        true => Ok(()),
        false => Err(Wrong::unknown(format!(
            "an EROFS image with features that aren't read: {}; {WAY_OUT}",
            names.join(", ")
        ))),
    }
}

/// Holds the block of the superblock against its checksum, which is counted with zeros in the checksum's own place.
fn check(part: &Part, block_log: u8, told: u32) -> Result<(), Wrong> {
    let block = 1 << block_log;
    let mut bytes = vec![0; if block > AT { block - AT } else { block }];
    read_exact(part, AT as u64, &mut bytes)?;
    bytes[4..8].fill(0);
    let found = crc32c(&bytes);
    if found != told {
        return Err(Wrong::damaged(format!(
            "its superblock has the checksum {told:08x}, and what stands there {found:08x}"
        )));
    }
    Ok(())
}

/// Counts CRC-32C as the kernel does for checksums on disks: begun with ones, and not inverted at the end.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    /// Castagnoli's polynomial, its bits from the last to the first.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ if sum & 1 == 0 { 0 } else { POLYNOMIAL })
    })
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    #[test]
    fn the_checksum_is_that_of_its_specification() {
        // RFC 3720, B.4, where it is inverted at the end.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(&[0xff; 32]), 0x62a8_ab43);
    }
}
