//! Which blocks of a half-copied file are its own: a set of numbers, in chunks that take memory where there are some.

use std::collections::BTreeMap;

/// Words of a chunk.
const WORDS: usize = 64;
/// Blocks of a chunk.
const CHUNK: u64 = 64 * WORDS as u64;

/// A set of blocks.
#[derive(Debug, Default)]
pub struct BlockMap {
    chunks: BTreeMap<u64, Box<[u64; WORDS]>>,
}

impl BlockMap {
    /// Adds the blocks from `from` to before `to`.
    pub fn add(&mut self, from: u64, to: u64) {
        let mut at = from;
        while at < to {
            let chunk = self.chunks.entry(at / CHUNK).or_insert_with(|| Box::new([0; WORDS]));
            let stop = to.min((at / CHUNK + 1) * CHUNK);
            while at < stop {
                let end = stop.min((at / 64 + 1) * 64);
                let ones = if end - at == 64 { u64::MAX } else { ((1 << (end - at)) - 1) << (at % 64) };
                chunk[(at % CHUNK / 64) as usize] |= ones;
                at = end;
            }
        }
    }

    /// Takes away all blocks from `from` on.
    pub fn cut(&mut self, from: u64) {
        self.chunks.split_off(&from.div_ceil(CHUNK));
        if !from.is_multiple_of(CHUNK)
            && let Some(chunk) = self.chunks.get_mut(&(from / CHUNK))
        {
            for at in (from % CHUNK)..CHUNK {
                chunk[(at / 64) as usize] &= !(1 << (at % 64));
            }
        }
    }

    /// Takes the blocks from `from` to before `to` away.
    pub fn remove(&mut self, from: u64, to: u64) {
        for (number, chunk) in self.chunks.range_mut(from / CHUNK..to.div_ceil(CHUNK)) {
            let first = number * CHUNK;
            for at in from.max(first)..to.min(first + CHUNK) {
                chunk[(at % CHUNK / 64) as usize] &= !(1 << (at % 64));
            }
        }
    }

    /// Tells whether the block is in it.
    pub fn has(&self, block: u64) -> bool {
        self.word(block) >> (block % 64) & 1 == 1
    }

    /// Returns whether a block is in it, and where the run of such blocks ends, at `end` at the latest.
    pub fn run(&self, block: u64, end: u64) -> (bool, u64) {
        let has = self.has(block);
        let mut at = block + 1;
        while at < end {
            let others = if has { !self.word(at) } else { self.word(at) } >> (at % 64);
            if others != 0 {
                at += u64::from(others.trailing_zeros());
                break;
            }
            at = match self.chunks.contains_key(&(at / CHUNK)) {
                true => (at / 64 + 1) * 64,
                false if has => at,
                false => (at / CHUNK + 1) * CHUNK,
            };
        }
        (has, at.min(end))
    }

    fn word(&self, block: u64) -> u64 {
        self.chunks.get(&(block / CHUNK)).map_or(0, |chunk| chunk[(block % CHUNK / 64) as usize])
    }

    /// Returns how many blocks it has.
    pub fn count(&self) -> u64 {
        self.chunks.values().flat_map(|chunk| chunk.iter()).map(|word| u64::from(word.count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(changes in prop::collection::vec((0u64..9000, 0u64..5000, prop::bool::weighted(0.2)), 1..20)) {
            let (mut map, mut set) = (BlockMap::default(), BTreeSet::new());
            for (from, length, cuts) in changes {
                if cuts {
                    map.cut(from);
                    set.split_off(&from);
                } else {
                    map.add(from, from + length);
                    set.extend(from..from + length);
                }
                if length % 3 == 0 {
                    let (first, last) = (from + length / 2, from + length / 2 + from % 5000);
                    map.remove(first, last);
                    set.retain(|block| !(first..last).contains(block));
                }
                prop_assert_eq!(map.count(), set.len() as u64);
            }
            let end = 14_500;
            let mut at = 0;
            while at < end {
                let (has, to) = map.run(at, end);
                prop_assert!(to > at && to <= end);
                prop_assert!((at..to).all(|block| set.contains(&block) == has && map.has(block) == has));
                prop_assert!(to == end || set.contains(&to) != has);
                at = to;
            }
        }
    }
}
