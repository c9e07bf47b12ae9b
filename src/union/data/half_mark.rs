//! What a half-copied file says of itself: see [`crate::union::data::half`].

use std::iter;
use std::ops::Range;

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
    /// Blocks of which a part may have been written, so that they are nobody's until they are holes again.
    pub(super) torn: Vec<Range<u64>>,
    /// Size, modification time and inode number of the lower's file.
    pub(super) size: u64,
    pub(super) mtime: (i64, u32),
    pub(super) ino: u64,
    /// Inode number of the copy, and when it was made, which nobody can set. Who copied it may have made holes of zeros.
    pub(super) own: u64,
    pub(super) born: (i64, u32),
    /// The path under which the lowers show it.
    pub path: Vec<u8>,
}

impl HalfMark {
    /// Makes the mark for the copy of a file, of which the stats are given.
    pub fn of(copy: &Stat, below: &Stat, path: Vec<u8>) -> HalfMark {
        let (limit, size, ino) = (below.size, below.size, below.ino);
        let mtime = (below.mtime.sec, below.mtime.nsec);
        HalfMark { limit, torn: Vec::new(), size, mtime, ino, own: copy.ino, born: born(copy), path }
    }

    /// Returns whether that is the stat of the copy that has it.
    pub(super) fn is_of(&self, copy: &Stat) -> bool {
        (self.own, self.born) == (copy.ino, born(copy))
    }

    /// Returns whether that is the stat of the file that it is for.
    pub(super) fn is_for(&self, below: &Stat) -> bool {
        (self.size, self.mtime, self.ino) == (below.size, (below.mtime.sec, below.mtime.nsec), below.ino)
    }

    /// Returns it as it is kept: `2 LIMIT SIZE SECONDS NANOSECONDS INO OWN SECONDS NANOSECONDS PATH`, or, where a block is torn,
    /// `3 TORN` and the same from LIMIT on; where several are, `4 FROM-TO,FROM-TO…`, without those at TO.
    pub fn to_bytes(&self) -> Vec<u8> {
        let HalfMark { limit, torn, size, mtime, ino, own, born, path } = self;
        let version = match &torn[..] {
            [] => "2".to_owned(),
            // Earlier versions read no other.
            [one] if one.end == one.start + 1 => format!("3 {}", one.start),
            several => {
                let each = |blocks: &Range<u64>| format!("{}-{}", blocks.start, blocks.end);
                format!("4 {}", several.iter().map(each).collect::<Vec<_>>().join(","))
            }
        };
        let below = format!("{version} {limit} {size} {} {} {ino}", mtime.0, mtime.1);
        let mut bytes = format!("{below} {own} {} {} ", born.0, born.1).into_bytes();
        bytes.extend_from_slice(path);
        bytes
    }

    /// Returns the reverse of [`HalfMark::to_bytes`]. `None`: of another version, or no such mark.
    pub fn parse(bytes: &[u8]) -> Option<HalfMark> {
        let version = bytes.split(|byte| *byte == b' ').next()?;
        let is_torn = match version {
            b"2" => false,
            b"3" | b"4" => true,
            _ => return None,
        };
        let mut words = bytes.splitn(10 + usize::from(is_torn), |byte| *byte == b' ').skip(1);
        let torn = if is_torn { parse_torn(version, words.next()?)? } else { Vec::new() };
        let mut word = || words.next();
        let number = |word: Option<&[u8]>| std::str::from_utf8(word?).ok()?.parse::<i128>().ok();
        let mut next = || number(word());
        let (limit, size) = (next()?.try_into().ok()?, next()?.try_into().ok()?);
        let mtime = (next()?.try_into().ok()?, next()?.try_into().ok()?);
        let (ino, own) = (next()?.try_into().ok()?, next()?.try_into().ok()?);
        let born = (next()?.try_into().ok()?, next()?.try_into().ok()?);
        let path = word()?.to_vec();
        path.starts_with(b"/").then_some(HalfMark { limit, torn, size, mtime, ino, own, born, path })
    }
}

/// Reads which blocks are torn.
fn parse_torn(version: &[u8], word: &[u8]) -> Option<Vec<Range<u64>>> {
    let word = std::str::from_utf8(word).ok()?;
    if version == b"3" {
        let block: u64 = word.parse().ok()?;
        return Some(iter::once(block..block.checked_add(1)?).collect());
    }
    let blocks = |range: &str| {
        let (from, to) = range.split_once('-')?;
        let blocks = from.parse().ok()?..to.parse().ok()?;
        (!blocks.is_empty()).then_some(blocks)
    };
    word.split(',').map(blocks).collect()
}

/// Returns when an inode was made; the beginning of time where its filesystem doesn't tell.
fn born(stat: &Stat) -> (i64, u32) {
    stat.born.map_or((0, 0), |born| (born.sec, born.nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_are_written() {
        let path = b"/a b/c\xff".to_vec();
        let one = |from: u64, to: u64| iter::once(from..to).collect();
        let several = vec![70..71, 3..4, 8..u64::MAX];
        for torn in [vec![], one(0, 1), one(17, 18), one(17, 19), several] {
            let (size, mtime, ino, born) = (9, (-3, 7), u64::MAX, (-1, 999));
            let mark = HalfMark { limit: 5, torn, size, mtime, ino, own: 8, born, path: path.clone() };
            assert_eq!(HalfMark::parse(&mark.to_bytes()), Some(mark));
        }
        for good in ["2 5 9 3 7 1 8 4 6 /a", "3 1 5 9 3 7 1 8 4 6 /a", "4 1-3 5 9 3 7 1 8 4 6 /a"] {
            assert!(HalfMark::parse(good.as_bytes()).is_some(), "{good}");
        }
        for bad in [
            "",
            "2",
            "1 5 9 3 7 1 8 /a",
            "1 5 9 3 7 1 8 4 6 /a",
            "2 5 9 3 7 1 8 4 6 a",
            "2 -5 9 3 7 1 8 4 6 /a",
            "3 5 9 3 7 1 8 4 6 /a",
            "4 1 5 9 3 7 1 8 4 6 /a",
            "4 1-1 5 9 3 7 1 8 4 6 /a",
            "4 1-2, 5 9 3 7 1 8 4 6 /a",
            "5 1-2 5 9 3 7 1 8 4 6 /a",
        ] {
            assert_eq!(HalfMark::parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(HALF, "unionmount.half");
    }

    #[test]
    fn another_inode_with_the_copys_number_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let stat = |name: &str| {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            crate::sys::object::At::Fd(std::os::fd::AsFd::as_fd(&file)).stat().unwrap()
        };
        let (copy, below) = (stat("copy"), stat("below"));
        let mark = HalfMark::of(&copy, &below, b"/below".to_vec());
        assert!(mark.is_of(&copy) && mark.is_for(&below));
        let mut later = copy;
        later.born = later.born.map(|born| crate::sys::object::Time { sec: born.sec + 1, ..born });
        if later.born.is_none() {
            println!("SKIP: this filesystem doesn't tell when an inode was made");
            return;
        }
        assert!(!mark.is_of(&later));
    }
}
