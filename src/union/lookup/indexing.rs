//! How a directory's names are indexed; when that pays is decided by [`IndexWorth`](crate::union::lookup::index_worth::IndexWorth).

use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::error::Result;
use crate::union::Union;
use crate::union::lookup::index::{Indexes, LowerIndex, UpperIndex};
use crate::union::nodes::node::{DirPart, Node};

impl Union {
    /// Builds the indexes that make lookups in this directory cheap, once they pay. The caller holds the names.
    pub(in crate::union) fn index_for_lookup(&self, node: &Node, dir: &DirPart) {
        let layers = dir.lowers.len() + usize::from(dir.upper_dir().is_some());
        if self.is_indexed_whole(dir) {
            return;
        }
        let Some(budget) = dir.index_worth.begin(layers) else { return };
        match self.indexed_within(node, budget) {
            Ok(Some(_)) => dir.index_worth.built(),
            Ok(None) => dir.index_worth.give_up(),
            // What can't be listed (for want of a right, or since a layer's disk fails) is asked name by name, and whoever
            // asks for what is broken is told then.
            Err(e) => {
                log::debug!("a directory is not indexed: {e}");
                dir.index_worth.give_up();
            }
        }
    }

    /// Tells whether lookups in the directory can be answered by its indexes alone.
    fn is_indexed_whole(&self, dir: &DirPart) -> bool {
        let has_upper = dir.upper_dir().is_some();
        let index = dir.index.lock();
        (index.lower.is_some() || dir.lowers.is_empty()) && (index.upper.is_some() || !has_upper)
    }

    /// Returns the directory's indexes, built as far as they are missing. The caller holds the directory's names.
    ///
    /// # Errors
    /// Those of [`Union::check_lowers`] and of reading the layers' directories.
    pub(in crate::union) fn indexed<'n>(&self, node: &'n Node) -> Result<MutexGuard<'n, Indexes>> {
        self.check_lowers(node, self.dir_part(node)?)?;
        loop {
            if let Some(indexes) = self.indexed_within(node, usize::MAX)? {
                return Ok(indexes);
            }
        }
    }

    /// Returns the indexes as [`Union::indexed`] does, unless more than `budget` entries would have to be read.
    fn indexed_within<'n>(&self, node: &'n Node, budget: usize) -> Result<Option<MutexGuard<'n, Indexes>>> {
        let dir = self.dir_part(node)?;
        let mut budget = budget;
        loop {
            let (upper, changes) = (dir.upper_dir(), dir.watch.changes());
            let (lower, has_upper) = {
                let index = dir.index.lock();
                let has_upper = index.upper.is_some() || upper.is_none();
                if index.lower.is_some() && has_upper {
                    return Ok(Some(index));
                }
                (index.lower.clone(), has_upper)
            };
            let lower = match lower {
                Some(lower) => lower,
                None => match LowerIndex::build(
                    &dir.lowers,
                    &mut budget,
                    |d| self.fds.get(d),
                    |d, name, kind| self.regions.trusts_listing(d, name, kind),
                )? {
                    Some(built) => Arc::new(built),
                    None => return Ok(None),
                },
            };
            let built = match upper {
                Some(upper) if !has_upper => {
                    let opened = self.fds.get(&upper)?;
                    let trusted = |name: &[u8], kind| self.regions.trusts_listing(&upper, name, kind);
                    match UpperIndex::build(&upper, &opened, &mut budget, trusted)? {
                        None => return Ok(None),
                        built => built,
                    }
                }
                _ => None,
            };
            let cost = {
                let mut index = dir.index.lock();
                if dir.watch.changes() != changes {
                    continue; // it was read before somebody saw the change
                }
                index.lower.get_or_insert(lower);
                if index.upper.is_none() {
                    index.upper = built;
                }
                index.cost()
            };
            for ino in self.index_cache.built(node.ino, cost) {
                let old = self.table.get(ino);
                let dropped =
                    old.and_then(|node| node.dir.as_ref().map(|dir| std::mem::take(&mut *dir.index.lock())));
                drop(dropped);
            }
        }
    }
}
