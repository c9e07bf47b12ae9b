//! The layers of a mount whose daemon is exchanged for another: by descriptors, so that it doesn't matter what has their paths by now.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Role, StackError, SyncAtEnd, TreeLayer, UpperCaps, UpperLayer, Veils};
use crate::sys::descriptors::{Incoming, Outgoing};
use crate::union::escaped_path::EscapedPath;
use crate::union::lookup::belief::Belief;
use crate::union::quota::state::QuotaState;
use crate::union::stack::directory::Layer;
use crate::union::stack::lock::DirLock;
use crate::union::stack::tree::{FileStamp, LayerTree, Tree};
use crate::union::stack::workdir::Workdir;
use crate::union::stack::workdir::state::WorkdirState;

/// What of a layer goes to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerState {
    path: EscapedPath,
    place: EscapedPath,
    root: u32,
    dev: u64,
    ino: u64,
    sealed: bool,
}

impl LayerState {
    /// Returns that of a directory that is open.
    pub(in crate::union) fn of(layer: &Layer, fds: &mut Outgoing) -> io::Result<LayerState> {
        Ok(LayerState {
            path: EscapedPath::from(layer.path.as_path()),
            place: EscapedPath(layer.place.clone()),
            root: fds.add_copy(layer.root.as_fd())?,
            dev: layer.dev,
            ino: layer.ino,
            sealed: layer.sealed,
        })
    }

    /// Returns what messages call it.
    pub(in crate::union) fn path(&self) -> &std::path::Path {
        self.path.as_path()
    }

    /// Returns the directory.
    pub(in crate::union) fn open(self, belief: Belief, fds: &mut Incoming) -> io::Result<Layer> {
        Ok(Layer {
            path: self.path.as_path().to_owned(),
            place: self.place.0,
            root: fds.take(self.root)?,
            dev: self.dev,
            ino: self.ino,
            belief,
            sealed: self.sealed,
        })
    }
}

/// What of a lower that is no directory goes to another process, which opens it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeState {
    /// Its position among the lowers.
    at: usize,
    path: EscapedPath,
    /// The device number that its layer has.
    dev: u64,
    /// What tells it from other trees.
    id: u64,
    lies_in: FileStamp,
}

impl TreeState {
    /// Returns that of the lower at this position; `None` where nobody else can open it.
    pub(in crate::union) fn of(at: usize, path: &Path, tree: &Tree) -> Option<TreeState> {
        let (dev, id) = (tree.dev(), tree.id());
        let lies_in = tree.source().lies_in()?;
        Some(TreeState { at, path: EscapedPath::from(path), dev, id, lies_in })
    }

    /// Returns its position among the lowers.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Returns by which name it was opened.
    pub fn path(&self) -> &Path {
        self.path.as_path()
    }

    /// Tells whether that is it.
    pub fn is(&self, tree: &dyn LayerTree) -> bool {
        tree.id() == self.id && tree.lies_in() == Some(self.lies_in)
    }

    /// Returns the layer.
    pub(in crate::union) fn layer(self, tree: Arc<dyn LayerTree>, belief: Belief) -> TreeLayer {
        TreeLayer { path: self.path.as_path().to_owned(), tree: Tree::known_as(tree, self.dev), belief }
    }
}

/// What lowers hold of the mount itself, for another process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VeilsState {
    parts: Vec<(u64, u64)>,
    covered: Option<u32>,
    holders: Vec<usize>,
}

impl VeilsState {
    pub(in crate::union) fn of(veils: &Veils, fds: &mut Outgoing) -> VeilsState {
        VeilsState {
            parts: veils.parts.clone(),
            covered: veils.covered.as_ref().map(|fd| fds.add(fd.clone())),
            holders: veils.holders.clone(),
        }
    }

    pub(in crate::union) fn open(self, fds: &mut Incoming) -> io::Result<Veils> {
        let covered = self.covered.map(|fd| fds.take(fd)).transpose()?.map(Arc::<OwnedFd>::new);
        Ok(Veils { parts: self.parts, covered, holders: self.holders })
    }
}

/// What of an upper goes to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpperState {
    pub(in crate::union) layer: LayerState,
    pub(in crate::union) work: WorkdirState,
    pub(in crate::union) caps: UpperCaps,
    pub(in crate::union) lies_on_frozen: bool,
    /// Whether its filesystem is synced when the mount ends.
    pub(in crate::union) syncs: bool,
    pub(in crate::union) lock: u32,
    /// The number of the next name in the staging directory.
    pub(in crate::union) next: u64,
    /// The name there of the whiteout that all others are links to.
    pub(in crate::union) whiteout: Option<EscapedPath>,
    /// What was counted of it, where there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::union) quota: Option<QuotaState>,
}

impl UpperState {
    pub(in crate::union) fn workdir(&self, fds: &mut Incoming) -> io::Result<Arc<Workdir>> {
        Ok(Arc::new(Workdir::of_state(self.work.clone(), fds)?))
    }
}

impl UpperLayer {
    /// Returns what another process goes on with.
    pub(in crate::union) fn state(&self, fds: &mut Outgoing) -> std::io::Result<UpperState> {
        Ok(UpperState {
            layer: LayerState::of(&self.layer, fds)?,
            work: self.work.state(fds)?,
            caps: self.caps,
            lies_on_frozen: self.lies_on_frozen,
            syncs: self.sync.is_some(),
            lock: fds.add(self.lock.held()),
            next: 0,
            whiteout: None,
            quota: None,
        })
    }

    /// Returns the upper that another process has in use. Until it is gone on with it is that one's to close.
    pub(in crate::union) fn of_state(
        state: UpperState,
        belief: Belief,
        fds: &mut Incoming,
    ) -> Result<UpperLayer, StackError> {
        let path = state.layer.path().to_owned();
        let missing = |error: std::io::Error| StackError::Io {
            role: Role::Upper,
            path: path.clone(),
            what: "take it over",
            errno: Errno::from_io_error(&error).unwrap_or(Errno::BADF),
        };
        let work = state.workdir(fds).map_err(missing)?;
        let lock = DirLock::taken_over(fds.take(state.lock).map_err(missing)?);
        let counted = state.quota.map(|quota| quota.open(fds)).transpose().map_err(missing)?;
        let layer = state.layer.open(belief, fds).map_err(missing)?;
        let sync = if state.syncs { Some(Arc::new(SyncAtEnd::of(&layer)?)) } else { None };
        // Until it is gone on with.
        sync.iter().for_each(|sync| sync.is_armed.store(false, Ordering::Release));
        let (caps, lies_on_frozen) = (state.caps, state.lies_on_frozen);
        Ok(UpperLayer { work, layer, caps, lies_on_frozen, is_of_another: true, counted, lock, sync })
    }
}
