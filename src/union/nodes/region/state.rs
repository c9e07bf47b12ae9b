//! The regions of a mount whose daemon is exchanged for another: numbers and origins are made of their indexes and ids.

use std::collections::HashMap;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::{Regions, Root};

/// What of the regions goes to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionsState {
    /// Those that begin with a layer, by their indexes: device, id, and whether the id is enough to know it.
    roots: Vec<(u64, u64, bool)>,
    /// The same of those that had their index before, with it.
    told_before: Vec<(u16, (u64, u64, bool))>,
    /// The index and the id of the others.
    nested: Vec<(u16, u64)>,
    /// Device and inode number of the layers' roots, with their places.
    places: Vec<((u64, u64), u64)>,
    last_place: u64,
}

impl Root {
    fn state(&self) -> (u64, u64, bool) {
        (self.dev, self.id, self.unique)
    }

    fn of_state((dev, id, unique): (u64, u64, bool)) -> Root {
        Root { dev, id, unique }
    }
}

fn sorted<T: Ord>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut all: Vec<T> = all.collect();
    all.sort_unstable();
    all
}

impl Regions {
    /// Returns what another process goes on with.
    pub(in crate::union) fn state(&self) -> RegionsState {
        RegionsState {
            roots: self.roots.iter().map(Root::state).collect(),
            told_before: sorted(self.told_before.iter().map(|(index, root)| (*index, root.state()))),
            nested: sorted(self.nested.read().iter().map(|(index, id)| (*index, *id))),
            places: sorted(self.places.iter().map(|(id, place)| (*id, *place))),
            last_place: self.last_place,
        }
    }

    /// Returns the regions of the mount that is gone on with, to be handed on to those of its layers.
    pub(in crate::union) fn of_state(state: RegionsState) -> Regions {
        let nested: HashMap<u16, u64> = state.nested.into_iter().collect();
        Regions {
            roots: state.roots.into_iter().map(Root::of_state).collect(),
            told_before: state
                .told_before
                .into_iter()
                .map(|(index, root)| (index, Root::of_state(root)))
                .collect(),
            nested: RwLock::new(nested),
            places: state.places.into_iter().collect(),
            last_place: state.last_place,
            ..Regions::default()
        }
    }
}
