//! Which layers are to be one: those of a range, of which all but the topmost may go.

use std::collections::BTreeSet;

use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below::is_frozen;
use crate::union::frozen::held::{Held, Writing};
use crate::union::frozen::record::FrozenLayer;
use crate::union::frozen::removal::{Branch, branches};
use crate::union::frozen::unfit::{Result, SnapshotError};

/// Which layers are to be one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    /// The snapshot below the lowest of them; none: as far down as they can be merged. `0`: nothing.
    pub after: Option<String>,
    /// The topmost of them, whose state and name stay; none: the one that the upper lies on.
    pub to: Option<String>,
}

/// The layers of an upper that is held, and what stands on each.
pub(super) struct Choosing<'a> {
    held: &'a Held,
    writing: &'a Writing,
    /// The layer that the upper lies on.
    own: u32,
    branches: Vec<Branch>,
}

impl<'a> Choosing<'a> {
    /// Looks what stands on them. `gone`: not the branches that aren't found any more.
    pub fn of(held: &'a Held, writing: &'a Writing, gone: bool) -> Result<Choosing<'a>> {
        let own = held.head()?.map_or(0, |head| head.layer);
        let mut branches = branches(&writing.layers)?;
        branches.retain(|branch| !branch.is_gone(gone));
        Ok(Choosing { held, writing, own, branches })
    }

    /// Returns the layers that are to be one, the topmost first.
    ///
    /// # Errors
    /// When there are none, or something stands on one of those that would be gone.
    pub fn chosen(&self, range: &Range) -> Result<Vec<FrozenLayer>> {
        let (path, record) = (&self.held.upper.path, &self.writing.layers.record);
        let to = range.to.as_ref().map(|name| self.find(name)).transpose()?.unwrap_or(self.own);
        let needed = self.needed();
        let chain = record.chain(to);
        let mut layers: Vec<FrozenLayer> = Vec::new();
        match &range.after {
            // Down to the first that something else stands on.
            None => {
                let merged = chain
                    .iter()
                    .enumerate()
                    .take_while(|(at, layer)| *at == 0 || !needed.contains(&layer.layer));
                layers.extend(merged.map(|(_, layer)| (*layer).clone()));
            }
            Some(name) => {
                let after = self.find(name)?;
                if after != 0 && !chain.iter().any(|layer| layer.layer == after) {
                    let shown = record.layer(to).map_or("0", |layer| &layer.name);
                    let why = format!("the snapshot {shown} doesn't lie on {name}");
                    return Err(SnapshotError::refused(path, why));
                }
                let merged = chain.iter().take_while(|layer| layer.layer != after);
                layers.extend(merged.map(|layer| (*layer).clone()));
                if let Some(used) = layers.iter().skip(1).find(|layer| needed.contains(&layer.layer)) {
                    return Err(SnapshotError::refused(path, self.why_not(used)));
                }
            }
        }
        if layers.len() < 2 {
            let why = "no two neighbouring snapshots can be merged there: a state stays on which the upper, a branch or another \
                       snapshot stands";
            return Err(SnapshotError::refused(path, why));
        }
        for layer in &layers {
            if !is_frozen(&self.writing.layers, layer.layer)? {
                return Err(SnapshotError::damaged(self.writing.layers.place(layer.layer), "is missing"));
            }
        }
        Ok(layers)
    }

    fn find(&self, name: &String) -> Result<u32> {
        self.writing.layers.record.find(name).ok_or_else(|| {
            let why = format!("no snapshot of it is called {name}; unionmount snapshots lists them");
            SnapshotError::refused(&self.held.upper.path, why)
        })
    }

    /// Returns the layers on which more stands than the next one of a chain.
    fn needed(&self) -> BTreeSet<u32> {
        let mut needed = BTreeSet::from([self.own]);
        needed.extend(self.branches.iter().map(|branch| branch.layer));
        let mut once = BTreeSet::new();
        for layer in &self.writing.layers.record.layers {
            if !once.insert(layer.below) {
                needed.insert(layer.below);
            }
        }
        needed
    }

    /// Says what stands on a layer that would be gone.
    fn why_not(&self, used: &FrozenLayer) -> String {
        let (name, on) = (&used.name, used.layer);
        if on == self.own {
            return format!("it lies on the snapshot {name}, which stays; name that as the last: ..{name}");
        }
        if let Some(branch) = self.branches.iter().find(|branch| branch.layer == on) {
            let upper = EscapedPath::from(branch.upper().as_path());
            return format!("the branch {upper} stands on the snapshot {name}, which stays");
        }
        let layers = self.writing.layers.record.layers.iter();
        let others: Vec<&str> =
            layers.filter(|layer| layer.below == on).map(|layer| layer.name.as_str()).collect();
        format!("several snapshots lie on {name}, which stays: {}", others.join(", "))
    }
}
