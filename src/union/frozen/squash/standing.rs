//! The branches that stand on layers which are to be merged: their uppers are locked, so that none of them is mounted or changed
//! meanwhile, nor branched in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::removal::{Branch, branches, why_gone};
use crate::union::frozen::site::Layers;
use crate::union::frozen::unfit::SnapshotError;
use crate::union::stack::alone::lock_upper;
use crate::union::stack::lock::{DirLock, LOCK_WAIT};
use crate::union::stack::stack_error::StackError;

/// Locks the uppers of all branches that stand on one of the layers `merged` of a record, and of the branches of those. `gone`: those
/// that aren't found any more are left out. `path`: the upper whose layers they are, for messages.
///
/// # Errors
/// When one is in use, or isn't found, with its name.
pub(super) fn hold(
    path: &Path,
    layers: &Layers,
    merged: &BTreeSet<u32>,
    gone: bool,
) -> Result<Vec<DirLock>, StackError> {
    let mut held: BTreeMap<PathBuf, DirLock> = BTreeMap::new();
    let mut left_out: BTreeSet<PathBuf> = BTreeSet::new();
    // Who makes another one holds a lock of those that stand there. So one that was being made as it was looked is found by looking
    // again, with the locks.
    loop {
        let mut all = standing(path, layers, merged, gone)?;
        all.retain(|branch| !held.contains_key(&branch.place) && !left_out.contains(&branch.place));
        if all.is_empty() {
            return Ok(held.into_values().collect());
        }
        for branch in all {
            let upper = branch.upper();
            let lock = match lock_upper(&upper, LOCK_WAIT) {
                Ok((_, lock)) => lock,
                Err(StackError::InUse { .. }) => return Err(in_use(path, &upper).into()),
                // Its name is there, and leads nowhere.
                Err(StackError::Missing { .. }) if gone => {
                    left_out.insert(branch.place);
                    continue;
                }
                Err(StackError::Missing { .. }) => {
                    return Err(SnapshotError::refused(path, why_gone(&branch)).into());
                }
                Err(error) => return Err(error),
            };
            held.insert(branch.place, lock);
        }
    }
}

fn in_use(path: &Path, upper: &Path) -> SnapshotError {
    let upper = EscapedPath::from(upper);
    SnapshotError::refused(
        path,
        format!(
            "the branch {upper} has layers of it that would be merged, and is in use; unmount {upper} first"
        ),
    )
}

/// Lists the branches that stand there, and are found.
fn standing(
    path: &Path,
    layers: &Layers,
    merged: &BTreeSet<u32>,
    gone: bool,
) -> Result<Vec<Branch>, StackError> {
    let stands_on =
        |branch: &Branch| layers.record.chain(branch.layer).iter().any(|layer| merged.contains(&layer.layer));
    let mut todo: Vec<Branch> = branches(layers)?.into_iter().filter(stands_on).collect();
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some(branch) = todo.pop() {
        let own = if branch.is_there { Layers::at(&branch.place)? } else { None };
        let is_whole = branch.upper().symlink_metadata().is_ok();
        match own.filter(|_| is_whole) {
            // All of its layers, and so all of its branches, stand there too.
            Some(own) if seen.insert(branch.place.clone()) => {
                todo.extend(branches(&own)?);
                found.push(branch);
            }
            Some(_) => {}
            None if gone || branch.is_gone(gone) => {}
            None => return Err(SnapshotError::refused(path, why_gone(&branch)).into()),
        }
    }
    Ok(found)
}
