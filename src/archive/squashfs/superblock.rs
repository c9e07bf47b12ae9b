//! What stands at the beginning of an image.

use std::ops::RangeInclusive;

use super::compressor::Compressor;
use crate::archive::filesystem::{Wrong, read_exact, u16_at, u32_at, u64_at};
use crate::archive::part::Part;

/// What a squashfs begins with.
pub(in crate::archive) const MAGIC: &[u8; 4] = b"hsqs";
/// The same of a machine with big-endian numbers, as versions before 4.0 could have.
pub(in crate::archive) const OTHER_ORDER: &[u8; 4] = b"sqsh";

/// How long it is.
const SIZE: usize = 96;

/// What a table has as its place where there is none.
pub(super) const NONE: u64 = u64::MAX;

/// The logarithms of the sizes that blocks of data have, 4 KiB to 1 MiB.
pub(super) const BLOCK_LOGS: RangeInclusive<u8> = 12..=20;

/// Where all begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Superblock {
    pub compressor: Compressor,
    /// The logarithm of the size of a block of data.
    pub block_log: u8,
    pub root: u64,
    pub fragment_count: u32,
    pub id_count: u16,
    pub ids: u64,
    pub xattrs: u64,
    pub inodes: u64,
    pub directories: u64,
    pub fragments: u64,
}

/// Reads it.
///
/// # Errors
/// When no image can begin so.
pub(super) fn read(part: &Part) -> Result<Superblock, Wrong> {
    let mut bytes = [0; SIZE];
    if part.size < SIZE as u64 {
        return Err(Wrong::damaged("it ends within its superblock"));
    }
    read_exact(part, 0, &mut bytes)?;
    if &bytes[..4] != MAGIC {
        return Err(Wrong::unknown(
            "a squashfs of before 2009 or of another byte order; unpack it with unsquashfs",
        ));
    }
    let version = (u16_at(&bytes, 28), u16_at(&bytes, 30));
    if version != (4, 0) {
        return Err(match version.0 {
            0..4 => Wrong::unknown("a squashfs of a version before 4.0; unpack it with unsquashfs"),
            _ => Wrong::damaged(format!(
                "its superblock is of an unknown version, {}.{}",
                version.0, version.1
            )),
        });
    }
    let (block_size, block_log) = (u32_at(&bytes, 12), u16_at(&bytes, 22));
    let block_log = u8::try_from(block_log).ok().filter(|log| BLOCK_LOGS.contains(log));
    let Some(block_log) = block_log.filter(|log| block_size == 1 << log) else {
        return Err(Wrong::damaged(format!("its superblock tells of blocks of {block_size} bytes")));
    };
    let used = u64_at(&bytes, 40);
    if used > part.size {
        return Err(Wrong::damaged(format!(
            "it is cut: it has {} bytes, and its superblock tells of {used}",
            part.size
        )));
    }
    let image = Superblock {
        compressor: Compressor::of(u16_at(&bytes, 20))?,
        block_log,
        root: u64_at(&bytes, 32),
        fragment_count: u32_at(&bytes, 16),
        id_count: u16_at(&bytes, 26),
        ids: u64_at(&bytes, 48),
        xattrs: u64_at(&bytes, 56),
        inodes: u64_at(&bytes, 64),
        directories: u64_at(&bytes, 72),
        fragments: u64_at(&bytes, 80),
    };
    // Each takes a byte at least.
    if u64::from(image.fragment_count) > used {
        return Err(Wrong::damaged(format!("its superblock tells of {} fragments", image.fragment_count)));
    }
    let tables = [("inodes", image.inodes), ("directories", image.directories), ("owners", image.ids)];
    if let Some((name, _)) = tables.iter().find(|(_, at)| *at >= used) {
        return Err(Wrong::damaged(format!("its superblock tells of a table of {name} behind its end")));
    }
    Ok(image)
}
