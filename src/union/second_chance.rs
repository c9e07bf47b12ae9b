//! Which of the open descriptors a cache closes when they are too many: the oldest that was not used since it was last
//! looked at.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// What became of an entry of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::union) enum Since {
    /// It was used since it was last looked at, and gets a second chance.
    Used,
    /// It was not, and may be closed.
    Idle,
    /// It is no entry any more, or one that is never closed.
    Gone,
}

/// The entries of a cache in the order in which they came.
#[derive(Debug)]
pub(in crate::union) struct SecondChance<K> {
    limit: usize,
    order: Mutex<VecDeque<K>>,
}

impl<K> SecondChance<K> {
    /// Makes one for a cache of about `limit` entries.
    pub fn new(limit: usize) -> SecondChance<K> {
        SecondChance { limit: limit.max(4), order: Mutex::new(VecDeque::new()) }
    }

    /// Adds an entry, and returns those that are to be closed for it; the caller closes them without any lock. `since`
    /// is asked about the oldest, each at most once, and forgets that a used one was used.
    pub fn add(&self, entry: K, mut since: impl FnMut(&K) -> Since) -> Vec<K> {
        let mut over = Vec::new();
        let mut order = self.order.lock();
        order.push_back(entry);
        let mut chances = order.len();
        while order.len() > self.limit && chances > 0 {
            chances -= 1;
            let Some(oldest) = order.pop_front() else { break };
            match since(&oldest) {
                Since::Used => order.push_back(oldest),
                Since::Idle => over.push(oldest),
                Since::Gone => {}
            }
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_oldest_unused_one_goes() {
        let cache = SecondChance::new(4);
        let mut used = HashSet::from([1]);
        let mut add = |entry: u32| {
            cache.add(entry, |old| match old {
                2 => Since::Gone,
                old if used.remove(old) => Since::Used,
                _ => Since::Idle,
            })
        };
        for entry in 1..=4 {
            assert!(add(entry).is_empty());
        }
        assert!(add(5).is_empty(), "1 was used, 2 has gone");
        assert_eq!(add(6), [3], "1 stands behind the others");
        assert_eq!(add(7), [4]);
        let all = cache.add(8, |_| Since::Used);
        assert!(all.is_empty(), "where all are in use there are more than the limit");
        assert_eq!(cache.order.lock().len(), 5);
    }
}
