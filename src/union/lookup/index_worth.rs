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
    /// How often an attempt was given up.
    given_up: AtomicU8,
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

    /// Returns how many entries an index of a directory that so many layers have may hold now, if it is to be tried.
    pub(in crate::union) fn budget(&self, layers: usize) -> Option<usize> {
        let opening = OPENING.saturating_mul(u32::try_from(layers).unwrap_or(u32::MAX));
        let spent = self.spent.load(Ordering::Relaxed);
        let (credit, wanted, least) = match self.given_up.load(Ordering::Relaxed) {
            0 => (if layers > 1 { CREDIT } else { 0 }, opening, FIRST),
            times => (0, opening.checked_shl(times.into()).unwrap_or(u32::MAX).max(opening), 0),
        };
        let entries = (spent as usize).saturating_mul(ENTRIES).clamp(least, MOST);
        (spent.saturating_add(credit) >= wanted).then_some(entries)
    }

    /// Notes that an attempt was given up.
    pub(in crate::union) fn give_up(&self) {
        self.spent.store(0, Ordering::Relaxed);
        let given_up = self.given_up.load(Ordering::Relaxed);
        self.given_up.store(given_up.saturating_add(1).min(24), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_tried_when_lookups_have_cost_as_much() {
        let worth = IndexWorth::default();
        assert_eq!(worth.budget(100), None);
        (0..5).for_each(|_| worth.note(100));
        assert_eq!(worth.budget(100), None);
        worth.note(100);
        assert_eq!(worth.budget(100), Some(2400));
        assert_eq!(worth.budget(200), None, "more layers cost more to open");
    }

    #[test]
    fn a_few_layers_are_read_at_once_and_a_single_one_after_misses() {
        let worth = IndexWorth::default();
        assert_eq!(worth.budget(2), Some(FIRST));
        assert_eq!(worth.budget(8), Some(FIRST));
        assert_eq!(worth.budget(9), None);
        assert_eq!(worth.budget(1), None);
        (0..6).for_each(|_| worth.note(1));
        assert_eq!(worth.budget(1), Some(FIRST));
    }

    #[test]
    fn attempts_that_are_given_up_become_rare() {
        let worth = IndexWorth::default();
        worth.give_up();
        let (mut lookups, mut read) = (0u64, 0u64);
        for _ in 0..10 {
            let budget = loop {
                if let Some(budget) = worth.budget(2) {
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
