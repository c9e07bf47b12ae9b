//! Listings of directories: runs of entries, each with what its inodes have in common.

use super::meta::Metadata;
use super::superblock::Superblock;
use crate::archive::filesystem::{ENTRY, LONGEST_NAME, Listed, Table, Wrong, u16_at, u32_at};

/// The most entries that a run has.
const MOST_IN_RUN: u32 = 256;

/// Reads a listing of `length` bytes. `most`: so many entries there may be.
///
/// # Errors
/// When it is damaged.
pub(super) fn read(
    (metadata, image): (&Metadata<'_>, &Superblock),
    (listing, length): (u64, u32),
    most: usize,
) -> Result<Vec<Listed>, Wrong> {
    let mut entries: Vec<Listed> = Vec::new();
    let mut left = u64::from(length);
    if left == 0 {
        return Ok(entries);
    }
    let mut cursor = metadata.cursor(image.directories, listing)?;
    let mut take = |bytes: u64| {
        left = left.checked_sub(bytes).ok_or_else(|| Wrong::damaged("its listing ends within an entry"))?;
        Ok::<u64, Wrong>(left)
    };
    loop {
        take(12)?;
        let head = cursor.array::<12>()?;
        let (count, block) = (u32_at(&head, 0), u32_at(&head, 4));
        if count >= MOST_IN_RUN {
            return Err(Wrong::damaged(format!("its listing has a run of {count} entries")));
        }
        let mut rest = 0;
        for _ in 0..=count {
            let entry = cursor.array::<8>()?;
            let length = usize::from(u16_at(&entry, 6)) + 1;
            rest = take(8 + length as u64)?;
            if length > LONGEST_NAME {
                return Err(Wrong::damaged(format!(
                    "it has a name of {length} bytes, and Linux knows {LONGEST_NAME}"
                )));
            }
            metadata.budget.take(ENTRY + length as u64, Table::Directories)?;
            let name = cursor.bytes(length)?.into_boxed_slice();
            if entries.len() >= most {
                return Err(Wrong::damaged("with it there are more entries than a layer may have"));
            }
            entries.push(Listed::new(name, u64::from(block) << 16 | u64::from(u16_at(&entry, 0)))?);
        }
        if rest == 0 {
            return Ok(entries);
        }
    }
}
