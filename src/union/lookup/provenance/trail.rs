//! A path on the way down, and what is searched for its next name.

use std::sync::Arc;

use super::answer::Hider;
use crate::union::lookup::found::RealDirs;
use crate::union::lookup::realdir::{LayerIndex, RealDir};

/// A path on the way down: real directories in groups that are searched each for itself.
#[derive(Debug, Clone)]
pub struct Trail {
    pub(super) path: Vec<u8>,
    /// The group that the merged view shows comes first and has no hider; the others are hidden.
    pub(super) groups: Vec<Group>,
    pub(super) missing_parents: Vec<Vec<u8>>,
    pub(super) broken_at: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) dirs: RealDirs,
    pub(super) hidden: Option<Hider>,
}

impl Trail {
    /// Returns the path that was followed, relative to the root of the merged view.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Returns the layers whose directories are merged here, topmost first; empty where the merged view has no directory.
    pub fn merged(&self) -> Vec<LayerIndex> {
        self.shown().iter().map(|dir| dir.layer).collect()
    }

    pub(super) fn shown(&self) -> &[Arc<RealDir>] {
        match self.groups.first() {
            Some(Group { dirs, hidden: None }) => dirs,
            _ => &[],
        }
    }

    pub(super) fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, &b"/"[..], name].concat() }
    }
}
