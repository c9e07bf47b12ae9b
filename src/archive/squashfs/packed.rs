//! Where the data of files lie: numbers in one piece of memory, five for a file and one more for each block.

use serde::{Deserialize, Serialize};

use super::compressor::Compressor;
use super::superblock::BLOCK_LOGS;

/// Set in a block's size where it isn't compressed.
const PLAIN: u32 = 1 << 24;
/// What stands for no fragment.
const NONE: u32 = u32::MAX;
/// So many words a file takes beside its blocks.
const HEAD: usize = 5;

/// A block in which the ends of several files stand.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(in crate::archive) struct Fragment {
    pub at: u64,
    pub size: u32,
}

/// What tells of the data of an image.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::archive) struct Packed {
    pub compressor: Compressor,
    pub block_log: u8,
    fragments: Vec<Fragment>,
    /// Of each file: where its first block lies (two words), its fragment, its place in that, how many of its blocks are holes, and
    /// the sizes of its blocks.
    words: Vec<u32>,
}

/// Where the data of a file lie, as its inode says.
#[derive(Debug)]
pub(super) struct FileMap {
    pub start: u64,
    pub fragment: Option<(u32, u32)>,
    pub sizes: Vec<u32>,
}

impl FileMap {
    /// Returns how many blocks a file has, its end in a fragment apart.
    pub(super) fn count(size: u64, block_log: u8, has_fragment: bool) -> u64 {
        if has_fragment { size >> block_log } else { size.div_ceil(1 << block_log) }
    }
}

/// A block as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored(u32);

impl Stored {
    /// Returns how long it is.
    pub(super) fn length(self) -> u32 {
        self.0 & (PLAIN - 1)
    }

    /// Tells whether nothing is stored, and zeros are read.
    pub(super) fn is_hole(self) -> bool {
        self.length() == 0
    }

    pub(super) fn is_plain(self) -> bool {
        self.0 & PLAIN != 0
    }
}

/// Where the data of a file lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Map<'a> {
    pub start: u64,
    /// The fragment that its end lies in, and where.
    fragment: Option<(u32, u32)>,
    /// So many of its blocks are holes.
    holes: u32,
    sizes: &'a [u32],
}

impl Packed {
    pub(super) fn new(compressor: Compressor, block_log: u8, fragments: Vec<Fragment>) -> Packed {
        Packed { compressor, block_log, fragments, words: Vec::new() }
    }

    /// Keeps where the data of a file lie, and returns its place. `None`: there are more than can be told.
    pub(super) fn keep(&mut self, map: &FileMap) -> Option<u32> {
        let at = u32::try_from(self.words.len()).ok()?;
        let (fragment, within) = map.fragment.unwrap_or((NONE, 0));
        let holes = map.sizes.iter().filter(|&&size| Stored(size).is_hole()).count();
        let holes = u32::try_from(holes).ok()?;
        self.words.extend([map.start as u32, (map.start >> 32) as u32, fragment, within, holes]);
        self.words.extend(&map.sizes);
        Some(at)
    }

    pub(super) fn shrink(&mut self) {
        self.words.shrink_to_fit();
    }

    /// Returns how much memory so many words take.
    pub(super) fn memory(words: usize) -> u64 {
        4 * (words as u64 + HEAD as u64)
    }

    /// Returns whether a place is that of a file of this size, whose number of blocks is known from it.
    pub(in crate::archive) fn is_sound(&self, at: u32, size: u64) -> bool {
        let is_map = |map: Map<'_>| map.holes as usize <= map.sizes.len();
        BLOCK_LOGS.contains(&self.block_log) && self.map(at, size).is_some_and(is_map)
    }

    /// Finds where the data of a file lie.
    pub(super) fn map(&self, at: u32, size: u64) -> Option<Map<'_>> {
        let words = self.words.get(at as usize..)?;
        let (head, rest) = words.split_first_chunk::<HEAD>()?;
        let fragment = (head[2] != NONE).then_some((head[2], head[3]));
        let count = usize::try_from(FileMap::count(size, self.block_log, fragment.is_some())).ok()?;
        let start = u64::from(head[0]) | u64::from(head[1]) << 32;
        Some(Map { start, fragment, holes: head[4], sizes: rest.get(..count)? })
    }

    /// Finds the fragment that the end of a file lies in.
    pub(super) fn fragment(&self, map: &Map<'_>) -> Option<(u64, Stored, u32)> {
        let (number, within) = map.fragment?;
        let fragment = self.fragments.get(number as usize)?;
        Some((fragment.at, Stored(fragment.size), within))
    }

    /// Returns how many bytes of a file are data.
    pub(in crate::archive) fn stored(&self, at: u32, size: u64) -> u64 {
        let Some(map) = self.map(at, size) else { return size };
        size.saturating_sub(u64::from(map.holes) << self.block_log)
    }

    /// Tells where the data of a file lie. How many holes it has follows from that.
    pub(in crate::archive) fn tell_file(&self, at: u32, size: u64, tell: &mut impl FnMut(&[u8])) {
        let Some(map) = self.map(at, size) else { return };
        let (fragment, within) = map.fragment.unwrap_or((NONE, 0));
        tell(&map.start.to_le_bytes());
        [fragment, within].iter().chain(map.sizes).for_each(|word| tell(&word.to_le_bytes()));
    }

    /// Tells where fragments lie.
    pub(in crate::archive) fn tell_fragments(&self, tell: &mut impl FnMut(&[u8])) {
        self.fragments.iter().for_each(|fragment| tell(&fragment.at.to_le_bytes()));
    }
}

impl Map<'_> {
    /// Returns how a block is stored. `None`: it lies in the fragment.
    pub(super) fn block(&self, number: usize) -> Option<Stored> {
        self.sizes.get(number).map(|&size| Stored(size))
    }

    /// Returns how many bytes in the image some blocks take.
    pub(super) fn length(&self, blocks: std::ops::Range<usize>) -> u64 {
        let some = self.sizes.get(blocks).unwrap_or_default();
        some.iter().map(|&size| u64::from(Stored(size).length())).sum()
    }

    /// Returns how many blocks there are, the fragment apart.
    pub(super) fn count(&self) -> usize {
        self.sizes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_counted_when_a_map_is_kept() {
        let mut packed = Packed::new(Compressor::Zstd, 12, Vec::new());
        let mut keep = |sizes: &[u32]| {
            packed.keep(&FileMap { start: 1 << 33, fragment: None, sizes: sizes.to_vec() }).unwrap()
        };
        // Neither the last of them is a hole, nor what isn't compressed.
        let (none, two) = (keep(&[5, PLAIN | 6]), keep(&[0, 7, PLAIN, 8]));
        assert_eq!(packed.stored(none, 8192), 8192);
        assert_eq!(packed.stored(two, 3 * 4096 + 10), 4096 + 10);
        assert!(packed.is_sound(two, 4 * 4096));
        assert_eq!(packed.map(two, 4 * 4096).unwrap().start, 1 << 33);
        // More than it has blocks.
        packed.words[two as usize + 4] = 5;
        assert!(!packed.is_sound(two, 4 * 4096));
    }
}
