//! What answers where paths come from.

use std::collections::BTreeSet;
use std::path::Path;

use super::answer::{Held, Holds, Outcome, Provenance};
use super::trail::{Group, Trail};
use super::walk::ProvenanceWalk;
use crate::error::{FsError, Result};
use crate::sys::object::{Kind, Stat};
use crate::union::Union;
use crate::union::change::copy_up::running::CopyingUp;
use crate::union::data::half;
use crate::union::lookup::found::{Found, FoundKind};
use crate::union::lookup::index::scan;
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::lookup::realdir::LayerIndex;
use crate::union::options::RedirectDir;

/// Answers where paths come from.
#[derive(Debug, Clone, Copy)]
pub struct Inspector<'u> {
    pub(super) union: &'u Union,
    pub(super) upper: bool,
}

/// What of a lower's file stays there when it is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftBelow {
    /// All data, when only its attributes or its name change.
    pub data: bool,
    /// The blocks that aren't touched, when it is written to.
    pub blocks: bool,
}

impl Union {
    /// Returns what answers where paths of this union come from, mounted or not. It takes no locks of the union: changes that
    /// are made at the same time may be seen half-way.
    pub fn inspector(&self) -> Inspector<'_> {
        Inspector { union: self, upper: self.upper.is_some() }
    }
}

impl<'u> Inspector<'u> {
    /// Returns the copies of much data that are under way.
    pub fn copying_up(&self) -> Vec<CopyingUp> {
        self.union.copying_up()
    }

    /// Tells whether the topmost layer is the upper.
    pub fn has_upper(&self) -> bool {
        self.upper
    }

    /// Tells how much of a file whose data are in that lower a change of it would leave there. Capabilities, which have it copied
    /// whole, aren't asked for.
    pub fn left_below(&self, stat: &Stat, from: LayerIndex) -> LeftBelow {
        let union = self.union;
        let device = union.layers.get(usize::from(from)).map(|layer| layer.root.id.0);
        // What it can't find out, a write doesn't find out either.
        let shares = || match (&union.upper, device) {
            (Some(upper), Some(device)) => upper.shares_with(device).unwrap_or(false),
            _ => false,
        };
        let follows = union.redirects == RedirectDir::On;
        let leaves = stat.kind() == Kind::File && stat.mode & 0o6000 == 0 && union.makes_metacopies();
        LeftBelow {
            data: leaves && follows,
            blocks: leaves
                && follows
                && union.block_wise
                && stat.nlink == 1
                && (half::LEAST..=half::LARGEST).contains(&stat.size)
                && !shares(),
        }
    }

    /// Returns the number by which users know a layer: 0 is the upper, 1 the topmost lower.
    pub fn number(&self, layer: LayerIndex) -> u16 {
        layer + u16::from(!self.upper)
    }

    /// Returns the paths of the layers, topmost first.
    pub fn layer_paths(&self) -> Vec<&'u Path> {
        self.union.layers.iter().map(|layer| layer.path.as_path()).collect()
    }

    /// Returns the absolute path of a place in a layer, as this process sees it.
    pub fn real_path(&self, layer: LayerIndex, path: &[u8]) -> Result<Vec<u8>> {
        let layer = self.union.layers.get(usize::from(layer)).ok_or(FsError::Stale)?;
        // Not asked of the descriptor: a lower may be open by a mount of this process's own, which has no place in the tree.
        let mut real = layer.place.clone();
        if !path.is_empty() {
            if real != b"/" {
                real.push(b'/');
            }
            real.extend_from_slice(path);
        }
        Ok(real)
    }

    /// Returns the root, where every path starts.
    pub fn root(&self) -> Trail {
        let dirs = self.union.merged_layers().iter().map(|layer| layer.root.clone()).collect();
        Trail {
            path: Vec::new(),
            groups: vec![Group { dirs, hidden: None }],
            missing_parents: Vec::new(),
            broken_at: None,
        }
    }

    /// Returns the root's own provenance: all layers are merged in it.
    pub fn root_provenance(&self) -> Result<Provenance> {
        let mut held = Vec::new();
        let mut top = None;
        for layer in self.union.merged_layers() {
            let stat = self.union.fds.get(&layer.root)?.at().stat()?;
            top.get_or_insert(stat);
            let holds = Holds::Directory { stat, opaque: false, beside: false, redirect: None };
            held.push(Held { layer: layer.root.layer, path: Vec::new(), holds, hidden: None });
        }
        let layers = held.iter().map(|held| held.layer).collect();
        let stat = top.ok_or(FsError::Absent)?;
        Ok(Provenance {
            path: Vec::new(),
            held,
            outcome: Outcome::Directory { layers, stat },
            below: true,
            missing_parents: Vec::new(),
            broken_at: None,
        })
    }

    /// Returns all about a path, relative to the root of the merged view. It need not exist.
    ///
    /// # Errors
    /// A component that is `..` or longer than any name; those of reading the layers.
    pub fn provenance(&self, path: &[u8]) -> Result<Provenance> {
        Ok(self.follow(path)?.0)
    }

    /// Does as [`Inspector::provenance`], with the trail that leads on into the path.
    pub fn follow(&self, path: &[u8]) -> Result<(Provenance, Trail)> {
        let mut trail = self.root();
        let mut last = None;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".") {
            let (provenance, next) = self.descend(&trail, name)?;
            (trail, last) = (next, Some(provenance));
        }
        let found = match last {
            Some(found) => found,
            None => self.root_provenance()?,
        };
        Ok((found, trail))
    }

    /// Goes one step down: returns all about `name` in a directory, and the trail that leads on into it.
    pub fn descend(&self, trail: &Trail, name: &[u8]) -> Result<(Provenance, Trail)> {
        if name.len() > 255 {
            return Err(FsError::Os(rustix::io::Errno::NAMETOOLONG));
        }
        if name == b".." || name.contains(&0) {
            return Err(FsError::Invalid("not a name"));
        }
        let path = trail.join(name);
        let mut walk =
            ProvenanceWalk { union: self.union, path: &path, held: Vec::new(), groups: Vec::new() };
        let mut outcome = Outcome::Absent;
        // A name of a marker's form is never shown, whatever a layer has under it.
        if !name.starts_with(WH_PREFIX) {
            for group in &trail.groups {
                let found = walk.search(&group.dirs, name, group.hidden.clone())?;
                if group.hidden.is_none() {
                    outcome = self.outcome(found)?;
                }
            }
        }
        let ProvenanceWalk { mut held, groups, .. } = walk;
        for layer in 0..self.union.layers.len() as LayerIndex {
            if !held.iter().any(|held| held.layer == layer) {
                held.push(Held { layer, path: path.clone(), holds: Holds::Absent, hidden: None });
            }
        }
        held.sort_by_key(|held| held.layer);
        let next = Trail {
            path: path.clone(),
            groups,
            missing_parents: self.missing_parents(trail),
            broken_at: trail
                .broken_at
                .clone()
                .or_else(|| trail.shown().is_empty().then(|| trail.path.clone())),
        };
        let provenance = Provenance {
            path,
            held,
            outcome,
            below: self.lowers_show(trail, name)?,
            missing_parents: next.missing_parents.clone(),
            broken_at: next.broken_at.clone(),
        };
        Ok((provenance, next))
    }

    /// Returns every name that any layer has in a directory, hidden ones too, and those that whiteouts name.
    pub fn names(&self, trail: &Trail) -> Result<BTreeSet<Vec<u8>>> {
        let mut names = BTreeSet::new();
        for dir in trail.groups.iter().flat_map(|group| &group.dirs) {
            scan(
                dir,
                &self.union.fds.get(dir)?,
                |_, _| true,
                |name, _| {
                    names.insert(name.to_vec());
                },
            )?;
        }
        Ok(names)
    }

    fn is_upper(&self, layer: LayerIndex) -> bool {
        self.upper && layer == 0
    }

    fn outcome(&self, found: Option<Found>) -> Result<Outcome> {
        let Some(Found { stat, layer, id, what, .. }) = found else { return Ok(Outcome::Absent) };
        Ok(match what {
            FoundKind::Directory { dirs, .. } => {
                Outcome::Directory { layers: dirs.iter().map(|dir| dir.layer).collect(), stat }
            }
            FoundKind::Leaf { .. } => {
                let copy = match self.is_upper(layer) || stat.nlink < 2 {
                    true => None,
                    false => self.union.indexed_copy(id)?,
                };
                Outcome::Leaf { layer, stat: copy.unwrap_or(stat), copied_elsewhere: copy.is_some() }
            }
        })
    }

    /// Tells whether the lowers of the merged directory show the name.
    fn lowers_show(&self, trail: &Trail, name: &[u8]) -> Result<bool> {
        let lowers = trail.shown();
        let lowers = &lowers[usize::from(lowers.first().is_some_and(|dir| self.is_upper(dir.layer)))..];
        Ok(!name.starts_with(WH_PREFIX) && self.union.search(lowers, name)?.is_some())
    }

    /// Returns the parents of what lies in a directory that the upper doesn't have.
    fn missing_parents(&self, trail: &Trail) -> Vec<Vec<u8>> {
        let mut missing = trail.missing_parents.clone();
        if self.upper && trail.shown().first().is_some_and(|dir| !self.is_upper(dir.layer)) {
            missing.push(trail.path.clone());
        }
        missing
    }
}
