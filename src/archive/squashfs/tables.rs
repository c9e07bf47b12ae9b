//! The tables that inodes point into: owners, fragments, extended attributes.
//!
//! A table of entries lies in blocks of metadata, the places of which stand in a list.

use super::meta::{BLOCK, Metadata};
use super::packed::Fragment;
use super::superblock::{NONE, Superblock};
use crate::archive::filesystem::{Collected, Table, Wrong, read_exact, u16_at, u32_at, u64_at};
use crate::archive::index::Attrs;

/// What an inode without extended attributes has as their number.
pub(super) const NO_XATTRS: u32 = u32::MAX;

/// The most that Linux allows a value (XATTR_SIZE_MAX), and a list of names (XATTR_LIST_MAX).
const MOST_XATTR: u32 = 64 << 10;
/// Set in an attribute's type where its value lies elsewhere, with that of another inode.
const ELSEWHERE: u16 = 0x100;
/// The namespaces, by the rest of the type.
const PREFIXES: [&str; 3] = ["user.", "trusted.", "security."];

/// Reads entry number `at` of a table of entries of `N` bytes, a divisor of what a block holds.
fn entry<const N: usize>(metadata: &Metadata<'_>, list: u64, at: u32) -> Result<[u8; N], Wrong> {
    let in_block = (BLOCK / N) as u32;
    let mut place = [0; 8];
    let position = list.checked_add(u64::from(at / in_block) * 8);
    read_exact(metadata.part, position.ok_or_else(|| Wrong::damaged("a table leads nowhere"))?, &mut place)?;
    let within = u64::from(at % in_block) * N as u64;
    metadata.cursor(u64_at(&place, 0), within)?.array()
}

/// Reads all users and groups, which inodes know by their numbers here.
///
/// # Errors
/// When they can't be read.
pub(super) fn ids(metadata: &Metadata<'_>, image: &Superblock) -> Result<Vec<u32>, Wrong> {
    let count = u32::from(image.id_count);
    metadata.budget.take(u64::from(count) * size_of::<u32>() as u64, Table::Owners)?;
    let each = (0..count).map(|at| Ok(u32_at(&entry::<4>(metadata, image.ids, at)?, 0)));
    each.collect::<Result<_, Wrong>>().map_err(|error| error.within(b"(table of owners)"))
}

/// Reads where all fragments lie.
///
/// # Errors
/// When they can't be read.
pub(super) fn fragments(metadata: &Metadata<'_>, image: &Superblock) -> Result<Vec<Fragment>, Wrong> {
    if image.fragments == NONE {
        return Ok(Vec::new());
    }
    let bytes = u64::from(image.fragment_count) * size_of::<Fragment>() as u64;
    metadata.budget.take(bytes, Table::Fragments)?;
    let each = (0..image.fragment_count).map(|at| {
        let bytes = entry::<16>(metadata, image.fragments, at)?;
        Ok(Fragment { at: u64_at(&bytes, 0), size: u32_at(&bytes, 8) })
    });
    // A vector that grows: the number of them is what the image says.
    let mut fragments = Vec::new();
    for fragment in each {
        fragments.push(fragment.map_err(|error: Wrong| error.within(b"(table of fragments)"))?);
    }
    Ok(fragments)
}

/// The extended attributes of all inodes.
pub(super) struct Xattrs {
    /// Where their names and values lie.
    pairs: u64,
    /// The list of the blocks in which is told which are whose.
    list: u64,
    count: u32,
}

impl Xattrs {
    /// Finds them. `None`: there are none.
    ///
    /// # Errors
    /// When they aren't where they should be.
    pub(super) fn find(metadata: &Metadata<'_>, image: &Superblock) -> Result<Option<Xattrs>, Wrong> {
        if image.xattrs == NONE {
            return Ok(None);
        }
        let mut head = [0; 16];
        let found = read_exact(metadata.part, image.xattrs, &mut head);
        found.map_err(|error| error.within(b"(table of extended attributes)"))?;
        Ok(Some(Xattrs { pairs: u64_at(&head, 0), list: image.xattrs + 16, count: u32_at(&head, 8) }))
    }

    /// Reads those that an inode has under their number.
    ///
    /// # Errors
    /// When they can't be read, or are more than Linux knows.
    pub(super) fn read(of: Option<&Xattrs>, metadata: &Metadata<'_>, number: u32) -> Result<Attrs, Wrong> {
        let none = || Wrong::damaged(format!("it has the extended attributes {number}, which there aren't"));
        let xattrs = match of {
            _ if number == NO_XATTRS => return Ok(Attrs::new()),
            Some(xattrs) if number < xattrs.count => xattrs,
            _ => return Err(none()),
        };
        let found = entry::<16>(metadata, xattrs.list, number)?;
        let (reference, count) = (u64_at(&found, 0), u32_at(&found, 8));
        // Each takes eight bytes of a list of names that Linux lets be no longer, those of unknown namespaces too.
        if count > MOST_XATTR / 2 {
            return Err(Wrong::damaged("it has more extended attributes than Linux knows"));
        }
        let mut cursor = metadata.cursor(xattrs.pairs, reference)?;
        let mut attrs = Collected::new(&metadata.budget);
        for _ in 0..count {
            let head = cursor.array::<4>()?;
            let (kind, length) = (u16_at(&head, 0), u16_at(&head, 2));
            let prefix = PREFIXES.get(usize::from(kind & 0xff));
            let suffix = cursor.bytes(length.into())?;
            let size = u32_at(&cursor.array::<4>()?, 0);
            let value = if kind & ELSEWHERE == 0 {
                cursor.bytes(value_size(size)?)?
            } else {
                if size != 8 {
                    return Err(Wrong::damaged("an extended attribute leads nowhere"));
                }
                let mut there = metadata.cursor(xattrs.pairs, u64_at(&cursor.array::<8>()?, 0))?;
                let size = u32_at(&there.array::<4>()?, 0);
                there.bytes(value_size(size)?)?
            };
            // One of a later version's namespaces isn't shown: the kernel passes over it as well.
            attrs.add(prefix.copied(), &suffix, value)?;
        }
        Ok(attrs.finish())
    }
}

fn value_size(size: u32) -> Result<usize, Wrong> {
    match size {
        0..=MOST_XATTR => Ok(size as usize),
        _ => Err(Wrong::damaged(format!("it has an extended attribute of {size} bytes"))),
    }
}
