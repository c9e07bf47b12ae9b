//! What is kept in memory of files with several names, as long as the mount lives.

use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::one::{Ref, RefMut};

use crate::error::Result;
use crate::union::change::upper::Upper;
use crate::union::hardlinks::counts::Hidden;
use crate::union::hardlinks::links::OtherName;
use crate::union::hardlinks::locks::HardlinkLocks;
use crate::union::nodes::node::Node;
use crate::union::nodes::region::InodeId;

/// Files with several names.
#[derive(Debug, Default)]
pub(in crate::union) struct Hardlinks {
    /// Their locks; in the lock order between names and places.
    pub locks: HardlinkLocks,
    /// What files go by whose own inode isn't that, by node number: under which origin the copies of
    /// [`NodeSource::Index`](crate::union::nodes::node::NodeSource::Index) nodes are in the hardlink index, and of what frozen
    /// layers hold, what it was copied up from.
    origins: DashMap<u64, InodeId>,
    /// Further names that are known of them, by node number: when a file's first known name goes, the next leads to it, and
    /// no descriptor is needed.
    other_names: DashMap<u64, Vec<OtherName>>,
    /// Names that whiteouts took from lower files that were never copied up.
    hidden: DashMap<InodeId, Hidden>,
}

impl Hardlinks {
    /// Takes over what the upper has recorded.
    pub fn of(upper: Option<&Upper>) -> Result<Hardlinks> {
        let hidden = upper.map(Upper::read_hidden_links).transpose()?.unwrap_or_default();
        Ok(Hardlinks { hidden, ..Hardlinks::default() })
    }

    /// Notes that the node is a copy of that origin: in the index, or in a frozen layer.
    pub fn note_origin(&self, ino: u64, origin: InodeId) {
        self.origins.insert(ino, origin);
    }

    /// Returns of which origin the node is a copy, if that was noted.
    pub fn origin(&self, ino: u64) -> Option<InodeId> {
        self.origins.get(&ino).map(|origin| *origin)
    }

    /// Returns how many names of a lower file are hidden, if any are.
    pub fn hidden(&self, lower: InodeId) -> Option<u64> {
        self.hidden_of(lower).map(|hidden| hidden.count)
    }

    /// Does the same, and tells of which of the files that have had the number.
    pub fn hidden_of(&self, lower: InodeId) -> Option<Hidden> {
        self.hidden.get(&lower).map(|hidden| *hidden)
    }

    /// Notes that so many names of a lower file are hidden.
    pub fn hide(&self, lower: InodeId, hidden: Hidden) {
        self.hidden.insert(lower, hidden);
    }

    /// Forgets that the node is a copy of an origin, and names that led to it by that. Returns the directories that they held, which
    /// may be known to nobody else.
    pub fn part(&self, ino: u64) -> Vec<Arc<Node>> {
        self.origins.remove(&ino);
        let Some(mut names) = self.other_names.get_mut(&ino) else { return Vec::new() };
        let led = names.extract_if(.., |name| name.is_by_index());
        led.map(OtherName::into_parent).collect()
    }

    /// Notes that a lower file has a copy, which counts its names from now on. Tells whether some were hidden.
    pub fn count_no_hidden(&self, lower: InodeId) -> bool {
        self.hidden.remove(&lower).is_some()
    }

    /// Returns the further names of a node.
    pub(super) fn names(&self, ino: u64) -> Option<Ref<'_, u64, Vec<OtherName>>> {
        self.other_names.get(&ino)
    }

    /// Returns the same, to be changed.
    pub(super) fn names_mut(&self, ino: u64) -> Option<RefMut<'_, u64, Vec<OtherName>>> {
        self.other_names.get_mut(&ino)
    }

    /// Returns the same; none if none are known.
    pub(super) fn names_or_none(&self, ino: u64) -> RefMut<'_, u64, Vec<OtherName>> {
        self.other_names.entry(ino).or_default()
    }

    /// Lets go of what is kept of a node, each as long as `unknown` says that nobody has found it anew. Returns the
    /// directories that its names held, which may be known to nobody else.
    pub fn forget_if(&self, ino: u64, unknown: impl Fn() -> bool) -> Vec<Arc<Node>> {
        self.origins.remove_if(&ino, |_, _| unknown());
        let names = self.other_names.remove_if(&ino, |_, _| unknown());
        names.into_iter().flat_map(|(_, names)| names).map(OtherName::into_parent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_anew_keeps_what_is_known_of_it() {
        let kept = Hardlinks::default();
        kept.note_origin(7, InodeId::from_bits(9));
        assert!(kept.forget_if(7, || false).is_empty());
        assert_eq!(kept.origin(7), Some(InodeId::from_bits(9)));
        kept.forget_if(7, || true);
        assert_eq!(kept.origin(7), None);
    }
}
