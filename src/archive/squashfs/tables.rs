//! The tables that inodes point into: owners, fragments, extended attributes.
//!
//! A table of entries lies in blocks of metadata, the places of which stand in a list.

use super::budget::Table;
use super::meta::{BLOCK, Metadata};
use super::packed::Fragment;
use super::raw::{NO_XATTRS, Wrong, read_exact, u16_at, u32_at, u64_at};
use super::superblock::{NONE, Superblock};
use crate::archive::index::Attrs;

/// The most that Linux allows a value (XATTR_SIZE_MAX), and the names of an object together (XATTR_LIST_MAX).
const MOST_XATTR: u32 = 64 << 10;
/// What a pair of a name and a value takes beside both.
const PAIR: u64 = 2 * size_of::<Vec<u8>>() as u64;
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
        let (mut attrs, mut names, mut values) = (Attrs::new(), 0, 0);
        for _ in 0..count {
            let head = cursor.array::<4>()?;
            let (kind, length) = (u16_at(&head, 0), u16_at(&head, 2));
            let prefix = PREFIXES.get(usize::from(kind & 0xff));
            let suffix = cursor.bytes(length.into())?;
            let mut size = u32_at(&cursor.array::<4>()?, 0);
            let value = if kind & ELSEWHERE == 0 {
                cursor.bytes(value_size(size)?)?
            } else {
                if size != 8 {
                    return Err(Wrong::damaged("an extended attribute leads nowhere"));
                }
                let mut there = metadata.cursor(xattrs.pairs, u64_at(&cursor.array::<8>()?, 0))?;
                size = u32_at(&there.array::<4>()?, 0);
                there.bytes(value_size(size)?)?
            };
            // Of all that is read, whatever becomes of it: reading it takes time.
            names += (prefix.map_or(0, |prefix| prefix.len()) + suffix.len()) as u64 + 1;
            values += u64::from(size);
            if names > MOST_XATTR.into() {
                return Err(Wrong::damaged("it has names of extended attributes that Linux doesn't know"));
            }
            // As many as Linux lets there be names, each as large as it may be, would fill the memory.
            if values > u64::from(MOST_XATTR) * 16 {
                return Err(Wrong::damaged("its extended attributes are more than a MiB"));
            }
            metadata.budget.take(PAIR + suffix.len() as u64 + u64::from(size), Table::Attributes)?;
            // A namespace of a later version, which the kernel passes over as well.
            let Some(prefix) = prefix else { continue };
            let name = [prefix.as_bytes(), &suffix].concat();
            if suffix.is_empty() || name.len() > 255 || name.contains(&0) {
                return Err(Wrong::damaged("it has names of extended attributes that Linux doesn't know"));
            }
            attrs.push((name, value));
        }
        // Of two of one name the first counts, as for the kernel.
        attrs.sort_by(|one, other| one.0.cmp(&other.0));
        attrs.dedup_by(|next, one| next.0 == one.0);
        Ok(attrs)
    }
}

fn value_size(size: u32) -> Result<usize, Wrong> {
    match size {
        0..=MOST_XATTR => Ok(size as usize),
        _ => Err(Wrong::damaged(format!("it has an extended attribute of {size} bytes"))),
    }
}
