//! Inodes: what an object is like, and how its data are laid out.

use super::superblock::{Superblock, WAY_OUT, nanoseconds};
use crate::archive::filesystem::{Common, Wrong, device, read_exact, u16_at, u32_at, u64_at};
use crate::archive::part::Part;
use crate::sys::object::{Kind, Time};

/// Inodes are counted in units of so many bytes: the size of a short one.
pub(super) const SLOT: u64 = 32;
/// The size of a long one.
const LONG: usize = 64;

/// Set in the form of a long inode. The three bits above it tell the layout of the data.
const IS_LONG: u16 = 1;
const FORMS: u16 = 0b1111;
/// Set in the form of chunks whose map has entries of eight bytes. The five bits below tell how many blocks a chunk has.
const HAS_INDEXES: u16 = 0x20;
const CHUNK_FORMS: u16 = 0x3f;

/// What extended attributes begin with, if there are any; the count of what they take is of four bytes each behind that.
const ATTRIBUTES_HEAD: u64 = 12;

/// How data are laid out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Layout {
    /// In one piece, from a block on.
    Plain { block: u32 },
    /// The same, save for the end that fills no block or the last one: that follows the inode.
    Inline { block: u32 },
    /// In chunks of 2^`log` bytes, each at a place of its own. The map of them follows the inode.
    Chunks { log: u8, has_indexes: bool },
}

/// An inode.
#[derive(Debug)]
pub(super) struct Inode {
    pub common: Common,
    pub size: u64,
    /// Where its attributes begin, and where what follows them.
    pub attributes: (u64, u64),
    pub layout: Layout,
}

/// Reads the inode of a number.
///
/// # Errors
/// When it is damaged, or its data are compressed.
pub(super) fn read(part: &Part, image: &Superblock, number: u64) -> Result<Inode, Wrong> {
    let at = number.checked_mul(SLOT).and_then(|within| image.metadata.checked_add(within));
    let at = at.ok_or_else(|| Wrong::damaged(format!("the inode {number} lies nowhere")))?;
    let mut bytes = [0; LONG];
    read_exact(part, at, &mut bytes[..SLOT as usize])?;
    let form = u16_at(&bytes, 0);
    if form & !FORMS != 0 {
        return Err(Wrong::damaged(format!("its inode is of the unknown form {form:#x}")));
    }
    let is_long = form & IS_LONG != 0;
    if is_long {
        read_exact(part, at, &mut bytes)?;
    }
    let (mode, what) = (u16_at(&bytes, 4), u32_at(&bytes, 16));
    let kind = kind(mode).ok_or_else(|| Wrong::damaged(format!("its inode is of the mode {mode:o}")))?;
    let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    let mut common = Common {
        kind,
        mode: mode & 0o7777,
        uid: u16_at(&bytes, 24).into(),
        gid: u16_at(&bytes, 26).into(),
        device: if is_device { device(what) } else { (0, 0) },
        mtime: image.time,
        nlink: u16_at(&bytes, 6).into(),
    };
    let mut size = u32_at(&bytes, 8).into();
    if is_long {
        size = u64_at(&bytes, 8);
        common.uid = u32_at(&bytes, 24);
        common.gid = u32_at(&bytes, 28);
        common.mtime = Time { sec: u64_at(&bytes, 32).cast_signed(), nsec: nanoseconds(u32_at(&bytes, 40))? };
        common.nlink = u32_at(&bytes, 44);
    }
    if i64::try_from(size).is_err() {
        return Err(Wrong::damaged(format!("it tells of {size} bytes")));
    }
    let begin = at + if is_long { LONG as u64 } else { SLOT };
    let end = begin
        + match u64::from(u16_at(&bytes, 2)) {
            0 => 0,
            count => ATTRIBUTES_HEAD + 4 * (count - 1),
        };
    Ok(Inode { common, size, attributes: (begin, end), layout: layout(image, form >> 1, what)? })
}

fn kind(mode: u16) -> Option<Kind> {
    let kind = Kind::of_mode(mode.into());
    // What is none of them counts as a file there.
    ((kind as u16) << 12 == mode & 0o170_000).then_some(kind)
}

/// Returns how data are laid out, by the number of that and what an inode tells besides.
fn layout(image: &Superblock, number: u16, what: u32) -> Result<Layout, Wrong> {
    Ok(match number {
        0 => Layout::Plain { block: what },
        2 => Layout::Inline { block: what },
        1 | 3 => {
            return Err(Wrong::unknown(format!(
                "is compressed, which an EROFS image can't be here; {WAY_OUT}"
            )));
        }
        4 => {
            let form = u16_at(&what.to_le_bytes(), 0);
            if form & !CHUNK_FORMS != 0 {
                return Err(Wrong::damaged(format!("its chunks are of the unknown form {form:#x}")));
            }
            let log = image.block_log + (form & (HAS_INDEXES - 1)) as u8;
            Layout::Chunks { log, has_indexes: form & HAS_INDEXES != 0 }
        }
        other => return Err(Wrong::damaged(format!("its data are laid out in the unknown way {other}"))),
    })
}
