//! Where the data of files lie: numbers in one piece of memory, four for a file and one more for each block.

use serde::{Deserialize, Serialize};

use super::compressor::Compressor;

/// Set in a block's size where it isn't compressed.
const PLAIN: u32 = 1 << 24;
/// What stands for no fragment.
const NONE: u32 = u32::MAX;
/// So many words a file takes beside its blocks.
const HEAD: usize = 4;

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
    /// Of each file: where its first block lies (two words), its fragment, its place in that, and the sizes of its blocks.
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
    /// Returns how long it is. Nothing: it is a hole.
    pub(super) fn length(self) -> u32 {
        self.0 & (PLAIN - 1)
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
        self.words.extend([map.start as u32, (map.start >> 32) as u32, fragment, within]);
        self.words.extend(&map.sizes);
        Some(at)
    }

    /// Returns how many fragments there are.
    pub(super) fn fragments(&self) -> usize {
        self.fragments.len()
    }

    pub(super) fn shrink(&mut self) {
        self.words.shrink_to_fit();
    }

    /// Returns how much memory so many words take.
    pub(super) fn memory(words: usize) -> u64 {
        4 * (words + HEAD) as u64
    }

    /// Returns whether a place is that of a file of this size, whose number of blocks is known from it.
    pub(in crate::archive) fn is_sound(&self, at: u32, size: u64) -> bool {
        (12..=20).contains(&self.block_log) && self.map(at, size).is_some()
    }

    /// Finds where the data of a file lie.
    pub(super) fn map(&self, at: u32, size: u64) -> Option<Map<'_>> {
        let words = self.words.get(at as usize..)?;
        let (head, rest) = words.split_first_chunk::<HEAD>()?;
        let fragment = (head[2] != NONE).then_some((head[2], head[3]));
        let count = usize::try_from(FileMap::count(size, self.block_log, fragment.is_some())).ok()?;
        let start = u64::from(head[0]) | u64::from(head[1]) << 32;
        Some(Map { start, fragment, sizes: rest.get(..count)? })
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
        let holes = map.sizes.iter().filter(|&&block| Stored(block).length() == 0).count() as u64;
        size.saturating_sub(holes << self.block_log)
    }

    /// Adds what tells these data from others to a text.
    pub(in crate::archive) fn tell(&self, text: &mut Vec<u8>) {
        self.words.iter().for_each(|word| text.extend(word.to_le_bytes()));
        self.fragments.iter().for_each(|fragment| text.extend(fragment.at.to_le_bytes()));
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
