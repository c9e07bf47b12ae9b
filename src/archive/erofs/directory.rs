//! Listings of directories: each block has its entries first and their names behind them.

use super::data;
use super::inode::Inode;
use super::source::Erofs;
use crate::archive::filesystem::{ENTRY, LONGEST_NAME, Listed, Table, Wrong, u16_at, u64_at};

/// What an entry takes in a block: the number of its inode, where its name begins, its kind.
const SIZE: usize = 12;

/// How often a directory may tell where it is itself, and what it lies in: once each. More than that would take time without end, and
/// none of the memory that the budget counts.
const MOST_DOTS: usize = 2;

/// Reads a directory's listing, of at most so many entries.
///
/// # Errors
/// When it is damaged.
pub(super) fn read(erofs: &Erofs<'_>, inode: &Inode, most: usize) -> Result<Vec<Listed>, Wrong> {
    erofs.own(inode.size)?;
    let runs = data::runs(erofs, inode)?;
    let (mut entries, mut dots) = (Vec::new(), 0);
    let mut block = vec![0; 1 << erofs.image.block_log];
    let mut at = 0;
    while at < inode.size {
        let length = (inode.size - at).min(block.len() as u64);
        let block = &mut block[..length as usize];
        data::read(erofs, &runs, block, at)?;
        read_block(erofs, block, (&mut entries, &mut dots), most)?;
        at += length;
    }
    Ok(entries)
}

fn read_block(
    erofs: &Erofs<'_>,
    block: &[u8],
    (entries, dots): (&mut Vec<Listed>, &mut usize),
    most: usize,
) -> Result<(), Wrong> {
    // Where the first name begins, the entries end.
    let names = usize::from(u16_at(block, 8));
    if names == 0 || !names.is_multiple_of(SIZE) || names >= block.len() {
        return Err(Wrong::damaged(format!("its listing has a block of {names} bytes of entries")));
    }
    let name_at = |at: usize| usize::from(u16_at(block, at + 8));
    for at in (0..names).step_by(SIZE) {
        // Each ends where the next one begins, so that none begins before the first.
        let begin = name_at(at);
        let next = at + SIZE;
        let name =
            if next < names { block.get(begin..name_at(next)) } else { block.get(begin..).map(until_zero) };
        let name = name.ok_or_else(|| Wrong::damaged(format!("its listing has a name at {begin}")))?;
        if name.len() > LONGEST_NAME {
            let length = name.len();
            return Err(Wrong::damaged(format!(
                "it has a name of {length} bytes, and Linux knows {LONGEST_NAME}"
            )));
        }
        if matches!(name, b"." | b"..") {
            *dots += 1;
            if *dots > MOST_DOTS {
                return Err(Wrong::damaged("its listing has '.' and '..' more than once each"));
            }
            continue;
        }
        erofs.budget.take(ENTRY + name.len() as u64, Table::Directories)?;
        if entries.len() >= most {
            return Err(Wrong::damaged("with it there are more entries than a layer may have"));
        }
        entries.push(Listed::new(name.into(), u64_at(block, at))?);
    }
    Ok(())
}

/// Returns the name at the end of a block, behind which there may be room.
fn until_zero(rest: &[u8]) -> &[u8] {
    rest.split(|&byte| byte == 0).next().unwrap_or_default()
}
