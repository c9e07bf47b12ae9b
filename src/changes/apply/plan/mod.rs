//! What is to be done, and what is in the way. Nothing is touched here.
//!
//! | file | what it plans |
//! |---|---|
//! | `walk` | what is put, removed, and given other attributes, directory by directory |
//! | `moves` | renamed directories |
//! | `names` | files with several names |
//! | `same` | nothing: what the target has already |
//! | `rights` | whether this user may |

mod moves;
mod names;
mod rights;
mod same;
mod walk;

use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;

use self::walk::Walk;
use super::beneath::Dir;
use super::error::Result;
use super::raw::{self, Renames};
use super::step::{Brought, Conflict, Left, Options, Step};
use crate::image::layer::merged::{of_fd, open_union};
use crate::union::Union;

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Where a stage is needed: one directory for each filesystem.
    pub homes: Vec<Dir>,
    /// What is in the way.
    pub conflicts: Vec<Conflict>,
    /// What the target becomes.
    pub merged: Union,
    /// What can't be done.
    pub left: Vec<Left>,
}

/// Holds an upper against a directory. `before`: renamed directories that an earlier call has brought to their places.
///
/// # Errors
/// Those of reading both.
pub(super) fn make(
    upper: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    before: &[Brought],
    options: Options,
) -> Result<Plan> {
    let mut parted = HashSet::new();
    loop {
        let merged = open_union([upper, target].map(of_fd))?;
        let Renames { moves, settled } = raw::renamed(upper, target, before)?;
        let mut walk = Walk {
            upper,
            target,
            options,
            merged,
            moves,
            settled,
            steps: Vec::new(),
            alters: Vec::new(),
            homes: Vec::new(),
            devices: HashMap::new(),
            conflicts: Vec::new(),
            left: Vec::new(),
            links: HashMap::new(),
            there: HashMap::new(),
            parted,
        };
        walk.take_out()?;
        walk.all()?;
        // A file with several names in the upper is one file, or all of its names are put anew.
        let known = walk.parted.len();
        let several = |names: &Vec<Option<u64>>| names.windows(2).any(|pair| pair[0] != pair[1]);
        let more = walk.there.iter().filter(|(_, names)| several(names)).map(|(id, _)| *id);
        walk.parted.extend(more);
        if walk.parted.len() > known {
            parted = walk.parted;
            continue;
        }
        walk.other_names()?;
        // The deepest first: whatever is done in a directory changes its times.
        walk.alters.reverse();
        walk.steps.append(&mut walk.alters);
        return Ok(Plan {
            steps: walk.steps,
            homes: walk.homes,
            conflicts: walk.conflicts,
            merged: walk.merged,
            left: walk.left,
        });
    }
}
