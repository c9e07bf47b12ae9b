//! A lower: a directory of the host, or a tree.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::union::lookup::belief::Belief;
use crate::union::stack::directory::Layer;
use crate::union::stack::tree::{LayerTree, Tree};

/// What a lower is to be made of.
#[derive(Debug, Clone)]
pub enum LowerSource {
    /// A directory. Its path is resolved by the kernel, relative to the current directory.
    Directory(PathBuf),
    /// A tree that is open already.
    Tree {
        /// What messages call it: the path of an archive, say.
        path: PathBuf,
        /// The tree.
        tree: Arc<dyn LayerTree>,
    },
}

impl From<PathBuf> for LowerSource {
    fn from(path: PathBuf) -> LowerSource {
        LowerSource::Directory(path)
    }
}

impl LowerSource {
    /// Returns the lowers that these directories are.
    pub fn directories(paths: impl IntoIterator<Item = PathBuf>) -> Vec<LowerSource> {
        paths.into_iter().map(LowerSource::Directory).collect()
    }

    /// Returns what messages call it.
    pub fn path(&self) -> &Path {
        match self {
            LowerSource::Directory(path) | LowerSource::Tree { path, .. } => path,
        }
    }
}

/// A lower, open.
#[derive(Debug)]
pub enum Lower {
    /// A directory of the host.
    Directory(Layer),
    /// A tree.
    Tree(TreeLayer),
}

/// A tree that is a layer.
#[derive(Debug)]
pub struct TreeLayer {
    /// What messages call it.
    pub path: PathBuf,
    /// The tree.
    pub tree: Arc<Tree>,
    /// Whose marks in it are believed.
    pub belief: Belief,
}

impl Lower {
    /// Returns what messages call it.
    pub fn path(&self) -> &Path {
        match self {
            Lower::Directory(Layer { path, .. }) | Lower::Tree(TreeLayer { path, .. }) => path,
        }
    }

    /// Returns the directory, of a lower that is one.
    pub fn directory(&self) -> Option<&Layer> {
        match self {
            Lower::Directory(layer) => Some(layer),
            Lower::Tree(_) => None,
        }
    }

    /// Returns whose marks in it are believed.
    pub fn belief(&self) -> Belief {
        match self {
            Lower::Directory(Layer { belief, .. }) | Lower::Tree(TreeLayer { belief, .. }) => *belief,
        }
    }

    /// Decides whose marks in it are believed.
    pub(in crate::union) fn set_belief(&mut self, to: Belief) {
        match self {
            Lower::Directory(Layer { belief, .. }) | Lower::Tree(TreeLayer { belief, .. }) => *belief = to,
        }
    }
}
