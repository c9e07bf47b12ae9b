//! What a half-copied file says of itself: see [`crate::union::data::half`].

use crate::sys::object::Stat;

/// The mark of a half-copied file.
pub(in crate::union) const HALF: &str = "unionmount.half";
/// Where its data are said to be to those who don't know the mark: at a path that no layer can have, for `.wh.` names are
/// markers, and markers have no entries.
pub(in crate::union) const NOWHERE: &[u8] = b"/.wh..unionmount-half-copied/.wh..data";
/// What the mark of a half-copied file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HalfMark {
    /// Up to where the lower's file counts.
    pub limit: u64,
    /// Size, modification time and inode number of the lower's file.
    pub(super) size: u64,
    pub(super) mtime: (i64, u32),
    pub(super) ino: u64,
    /// Inode number of the copy. Who copied it may have made holes of zeros.
    pub(super) own: u64,
    /// The path under which the lowers show it.
    pub path: Vec<u8>,
}

impl HalfMark {
    /// For a copy with the inode number `own` of a file with that stat.
    pub fn of(own: u64, below: &Stat, path: Vec<u8>) -> HalfMark {
        let mtime = (below.mtime.sec, below.mtime.nsec);
        HalfMark { limit: below.size, size: below.size, mtime, ino: below.ino, own, path }
    }

    /// Is that the stat of the file that it is for?
    pub(super) fn is_for(&self, below: &Stat) -> bool {
        self == &HalfMark { limit: self.limit, ..HalfMark::of(self.own, below, self.path.clone()) }
    }

    /// As it is kept: `1 LIMIT SIZE SECONDS NANOSECONDS INO OWN PATH`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let HalfMark { limit, size, mtime: (seconds, nanoseconds), ino, own, path } = self;
        let mut bytes = format!("1 {limit} {size} {seconds} {nanoseconds} {ino} {own} ").into_bytes();
        bytes.extend_from_slice(path);
        bytes
    }

    /// The reverse of [`HalfMark::to_bytes`]. `None`: of another version, or no such mark.
    pub fn parse(bytes: &[u8]) -> Option<HalfMark> {
        let mut words = bytes.splitn(8, |byte| *byte == b' ');
        let mut word = || words.next();
        let number = |word: Option<&[u8]>| std::str::from_utf8(word?).ok()?.parse::<i128>().ok();
        if word()? != b"1" {
            return None;
        }
        let mut next = || number(word());
        let (limit, size) = (next()?.try_into().ok()?, next()?.try_into().ok()?);
        let mtime = (next()?.try_into().ok()?, next()?.try_into().ok()?);
        let (ino, own) = (next()?.try_into().ok()?, next()?.try_into().ok()?);
        let path = word()?.to_vec();
        path.starts_with(b"/").then_some(HalfMark { limit, size, mtime, ino, own, path })
    }
}
