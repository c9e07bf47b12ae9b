//! When a directory's names are indexed.
//!
//! A listing builds the indexes in any case. For lookups an index pays where many layers are asked in vain: every one that
//! has the directory is asked for each new name that doesn't exist. How much an index would cost is not known before: what
//! a directory's size says differs from filesystem to filesystem. So the decision is made as the work goes on
//! ([`IndexWorth`]): once lookups have cost as much as a small index would, it is tried with a budget of entries in
//! proportion to what they have cost. A few layers are read at once, if they hold little: most directories are looked at again. If the budget doesn't suffice, the attempt is given up, and the next one is made when
//! twice as much was spent in vain. So attempts never cost more than a constant factor of the lookups themselves, and a
//! directory whose misses go on is indexed at last, however its filesystem counts sizes.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// What it costs to open and list a directory of a layer, in system calls that look for a name.
const OPENING: u32 = 6;
/// How many entries of a listing cost as much as one such call.
const ENTRIES: usize = 4;
/// What a directory that several layers have is taken to have cost before its first lookup: reading a few of them is no more
/// than the lookups that most directories see.
const CREDIT: u32 = 48;
/// As many entries the first attempt may read in any case.
const FIRST: usize = 2_000;
/// A lookup builds no larger index: some 6 MB.
const MOST: usize = 100_000;

/// What lookups in a directory have cost that an index would spare.
#[derive(Debug, Default)]
pub struct IndexWorth {
    /// Layers asked in vain since the last attempt.
    spent: AtomicU32,
    /// 0 before the first attempt; then one more than how often it was given up since an index was built.
    tries: AtomicU8,
}

impl IndexWorth {
    /// Notes that a lookup asked so many layers in vain.
    pub fn note(&self, layers: usize) {
        if layers > 0 {
            let layers = u32::try_from(layers).unwrap_or(u32::MAX);
            // It always changes.
            let _: std::result::Result<u32, u32> =
                self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spent| {
                    Some(spent.saturating_add(layers))
                });
        }
    }

    /// Begins an attempt, if one is worth it for a directory that so many layers have. Returns how many entries it may read.
    /// What was spent is spent: an index that was dropped to save memory must be earned again.
    pub(in crate::union) fn begin(&self, layers: usize) -> Option<usize> {
        let opening = OPENING.saturating_mul(u32::try_from(layers).unwrap_or(u32::MAX));
        let spent = self.spent.load(Ordering::Relaxed);
        let entries = (spent as usize).saturating_mul(ENTRIES);
        let (begun, entries) = match self.tries.load(Ordering::Relaxed) {
            0 => {
                let credit = if layers > 1 { CREDIT } else { 0 };
                let worth = spent.saturating_add(credit) >= opening;
                let first = || self.tries.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed);
                (worth && first().is_ok(), entries.max(FIRST))
            }
            tries => {
                let wanted =
                    opening.saturating_mul(1u32.checked_shl(u32::from(tries) - 1).unwrap_or(u32::MAX));
                (spent >= wanted, entries)
            }
        };
        // One of those who come at the same time.
        let takes =
            begun && self.spent.compare_exchange(spent, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        takes.then_some(entries.min(MOST))
    }

    /// Notes that an attempt has built the index.
    pub(in crate::union) fn built(&self) {
        self.tries.store(1, Ordering::Relaxed);
    }

    /// Notes that an attempt was given up.
    pub(in crate::union) fn give_up(&self) {
        let tries = self.tries.load(Ordering::Relaxed);
        self.tries.store(tries.saturating_add(1).min(25), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_tried_when_lookups_have_cost_as_much() {
        let worth = IndexWorth::default();
        assert_eq!(worth.begin(100), None);
        (0..5).for_each(|_| worth.note(100));
        assert_eq!(worth.begin(100), None);
        worth.note(100);
        assert_eq!(worth.begin(200), None, "more layers cost more to open");
        assert_eq!(worth.begin(100), Some(2400));
    }

    #[test]
    fn a_few_layers_are_read_at_once_and_a_single_one_after_misses() {
        let begin = |layers| IndexWorth::default().begin(layers);
        assert_eq!([begin(2), begin(8), begin(9), begin(1)], [Some(FIRST), Some(FIRST), None, None]);
        let worth = IndexWorth::default();
        (0..6).for_each(|_| worth.note(1));
        assert_eq!(worth.begin(1), Some(FIRST));
    }

    #[test]
    fn an_index_that_was_dropped_is_earned_again() {
        let worth = IndexWorth::default();
        assert_eq!(worth.begin(2), Some(FIRST));
        worth.built();
        for _ in 0..3 {
            assert_eq!(worth.begin(2), None);
            (0..5).for_each(|_| worth.note(2));
            assert_eq!(worth.begin(2), None);
            worth.note(2);
            assert_eq!(worth.begin(2), Some(12 * ENTRIES));
            worth.built();
        }
    }

    #[test]
    fn attempts_that_are_given_up_become_rare() {
        let worth = IndexWorth::default();
        worth.begin(2).unwrap();
        worth.give_up();
        let (mut lookups, mut read) = (0u64, 0u64);
        for _ in 0..10 {
            let budget = loop {
                if let Some(budget) = worth.begin(2) {
                    break budget;
                }
                worth.note(2);
                lookups += 2;
            };
            read += budget as u64;
            worth.give_up();
        }
        assert!(read <= lookups * ENTRIES as u64, "attempts cost no more than lookups: {read}, {lookups}");
        assert_eq!(lookups, 24 * ((1 << 10) - 1));
    }
}
