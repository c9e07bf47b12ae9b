//! Inodes: what an object is like, and where its data or entries are.

use super::meta::{Cursor, Metadata};
use super::packed::{FileMap, Packed};
use super::superblock::Superblock;
use super::tables::NO_XATTRS;
use crate::archive::filesystem::{Budget, Common, MOST_TARGET, Table, Wrong, device, u16_at, u32_at, u64_at};
use crate::sys::object::{Kind, Time};

/// What a file without a fragment has as its number.
const NO_FRAGMENT: u32 = u32::MAX;

/// An inode.
#[derive(Debug)]
pub(super) struct Inode {
    pub common: Common,
    pub xattrs: u32,
    pub what: What,
}

/// What an object is besides.
#[derive(Debug)]
pub(super) enum What {
    /// A directory: the reference of its listing, and how long that is.
    Directory { listing: u64, length: u32 },
    /// A regular file.
    File { size: u64, map: FileMap },
    /// A link and its target.
    Symlink(Vec<u8>),
    /// A device, a fifo or a socket.
    Nothing,
}

/// The kinds by their number in an inode, and in an entry of a directory. Seven more have the same in another form.
const KINDS: [Kind; 7] = [
    Kind::Directory,
    Kind::File,
    Kind::Symlink,
    Kind::BlockDevice,
    Kind::CharDevice,
    Kind::Fifo,
    Kind::Socket,
];

/// Reads the inode of a reference.
///
/// # Errors
/// When it is damaged.
pub(super) fn read(
    (metadata, image, ids): (&Metadata<'_>, &Superblock, &[u32]),
    reference: u64,
) -> Result<Inode, Wrong> {
    let mut cursor = metadata.cursor(image.inodes, reference)?;
    let head = cursor.array::<16>()?;
    let number = u16_at(&head, 0);
    let kind = KINDS.get(usize::from(number.wrapping_sub(1)) % 7).filter(|_| (1..=14).contains(&number));
    let kind = *kind.ok_or_else(|| Wrong::damaged(format!("its inode is of the unknown kind {number}")))?;
    let owner = |at: usize| {
        let id = u16_at(&head, at);
        let owner = ids.get(usize::from(id)).copied();
        owner.ok_or_else(|| Wrong::damaged(format!("it belongs to the owner {id}, which there isn't")))
    };
    let common = Common {
        kind,
        mode: u16_at(&head, 2) & 0o7777,
        uid: owner(4)?,
        gid: owner(6)?,
        device: (0, 0),
        mtime: Time { sec: u32_at(&head, 8).into(), nsec: 0 },
        nlink: 1,
    };
    let mut inode = Inode { common, xattrs: NO_XATTRS, what: What::Nothing };
    let is_long = number > 7;
    match kind {
        Kind::Directory => directory(&mut inode, &mut cursor, is_long)?,
        Kind::File => file(&mut inode, &mut cursor, (is_long, image.block_log), &metadata.budget)?,
        _ => other(&mut inode, &mut cursor, is_long, &metadata.budget)?,
    }
    Ok(inode)
}

fn directory(inode: &mut Inode, cursor: &mut Cursor<'_>, is_long: bool) -> Result<(), Wrong> {
    let (block, within, length);
    if is_long {
        let rest = cursor.array::<24>()?;
        (block, within, length) = (u32_at(&rest, 8), u16_at(&rest, 18), u32_at(&rest, 4));
        inode.xattrs = u32_at(&rest, 20);
    } else {
        let rest = cursor.array::<16>()?;
        (block, within, length) = (u32_at(&rest, 0), u16_at(&rest, 10), u16_at(&rest, 8).into());
    }
    // For `.` and `..`, which aren't there, three are counted.
    let length = length.saturating_sub(3);
    inode.what = What::Directory { listing: u64::from(block) << 16 | u64::from(within), length };
    Ok(())
}

fn file(
    inode: &mut Inode,
    cursor: &mut Cursor<'_>,
    (is_long, block_log): (bool, u8),
    budget: &Budget,
) -> Result<(), Wrong> {
    let (start, size, fragment, within);
    if is_long {
        let rest = cursor.array::<40>()?;
        (start, size) = (u64_at(&rest, 0), u64_at(&rest, 8));
        (fragment, within) = (u32_at(&rest, 28), u32_at(&rest, 32));
        (inode.common.nlink, inode.xattrs) = (u32_at(&rest, 24), u32_at(&rest, 36));
    } else {
        let rest = cursor.array::<16>()?;
        (start, size) = (u32_at(&rest, 0).into(), u32_at(&rest, 12).into());
        (fragment, within) = (u32_at(&rest, 4), u32_at(&rest, 8));
    }
    if i64::try_from(size).is_err() {
        return Err(Wrong::damaged(format!("it tells of a file of {size} bytes")));
    }
    let fragment = (fragment != NO_FRAGMENT).then_some((fragment, within));
    let count = FileMap::count(size, block_log, fragment.is_some());
    let words = usize::try_from(count).map_err(|_| budget.spent(Table::Inodes))?;
    budget.take(Packed::memory(words), Table::Inodes)?;
    // Grows as they are read: how many there are is what the image says.
    let mut sizes = Vec::new();
    for _ in 0..count {
        sizes.push(u32_at(&cursor.array::<4>()?, 0));
    }
    inode.what = What::File { size, map: FileMap { start, fragment, sizes } };
    Ok(())
}

fn other(inode: &mut Inode, cursor: &mut Cursor<'_>, is_long: bool, budget: &Budget) -> Result<(), Wrong> {
    inode.common.nlink = u32_at(&cursor.array::<4>()?, 0);
    match inode.common.kind {
        Kind::Symlink => {
            let length = u32_at(&cursor.array::<4>()?, 0);
            if !(1..=MOST_TARGET).contains(&length) {
                return Err(Wrong::damaged(format!("it is a symbolic link of {length} bytes")));
            }
            budget.take(length.into(), Table::Inodes)?;
            let target = cursor.bytes(length as usize)?;
            if target.contains(&0) {
                return Err(Wrong::damaged("it is a symbolic link to what no path names"));
            }
            inode.what = What::Symlink(target);
        }
        Kind::BlockDevice | Kind::CharDevice => {
            inode.common.device = device(u32_at(&cursor.array::<4>()?, 0));
        }
        _ => {}
    }
    if is_long {
        inode.xattrs = u32_at(&cursor.array::<4>()?, 0);
    }
    Ok(())
}
