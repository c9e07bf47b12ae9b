//! What is told of a path: what each layer holds, what hides it, and what the merged view shows.

use crate::sys::object::{Kind, Stat};
use crate::union::lookup::marker::WhiteoutMark;
use crate::union::lookup::realdir::LayerIndex;

/// What one layer has under a path.
#[derive(Debug, Clone)]
pub struct Held {
    /// The layer; 0 is the topmost.
    pub layer: LayerIndex,
    /// Where in the layer: the path itself, unless a redirect leads elsewhere.
    pub path: Vec<u8>,
    /// What is there.
    pub holds: Holds,
    /// What keeps it out of the merged view, if anything does.
    pub hidden: Option<Hider>,
}

/// What a layer has in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holds {
    /// Nothing.
    Absent,
    /// A file, or anything else that is not a directory.
    Leaf {
        /// What stat tells.
        stat: Stat,
        /// The layer that holds the data of a file which has only its metadata here (`overlay.metacopy`).
        data: Option<LayerIndex>,
        /// Of such a file: how many of its blocks are here, and how many it has.
        blocks: Option<(u64, u64)>,
    },
    /// A directory.
    Directory {
        /// What stat tells.
        stat: Stat,
        /// It is opaque: what the layers below have doesn't count.
        opaque: bool,
        /// It is not opaque itself, but a whiteout of its name stands beside it, which says the same.
        beside: bool,
        /// Where the layers below are asked instead: a name, or a path that starts with `/`.
        redirect: Option<Vec<u8>>,
    },
    /// A whiteout: the name ends here, deleted.
    Whiteout(WhiteoutMark),
}

/// What hides something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hider {
    /// The layer that it is in.
    pub layer: LayerIndex,
    /// The path of the merged view at which it stands: the hidden path itself or a parent's.
    pub path: Vec<u8>,
    /// What it is.
    pub what: Hides,
}

/// The ways to hide what lies below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hides {
    /// A whiteout.
    Whiteout,
    /// A directory that is opaque, by a mark or by a whiteout beside it.
    Opaque,
    /// Something that is not a directory.
    Leaf,
    /// A directory, above something that is not one.
    Directory,
    /// A directory that was renamed: the layers below are asked for its old name.
    Redirect,
}

/// What the merged view shows under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Absent,
    /// The entry of one layer.
    Leaf {
        /// Which.
        layer: LayerIndex,
        /// What stat tells.
        stat: Stat,
        /// A copy is shown, which was made in the upper when another name of the same file was changed.
        copied_elsewhere: bool,
    },
    /// A directory, merged from these layers, topmost first.
    Directory {
        /// The layers.
        layers: Vec<LayerIndex>,
        /// What stat tells of the topmost.
        stat: Stat,
    },
}

/// All about one path.
#[derive(Debug, Clone)]
pub struct Provenance {
    /// The path, relative to the root of the merged view.
    pub path: Vec<u8>,
    /// What the layers have, from the top down: at least one entry a layer, further ones where a redirect has made two
    /// places of one.
    pub held: Vec<Held>,
    /// What the merged view shows.
    pub outcome: Outcome,
    /// Whether the lowers alone show the name. Then its deletion needs a whiteout.
    pub below: bool,
    /// The parents that the upper doesn't have yet, outermost first.
    pub missing_parents: Vec<Vec<u8>>,
    /// The first parent that is no directory of the merged view, if one is not.
    pub broken_at: Option<Vec<u8>>,
}

impl Provenance {
    /// Returns the layers that have something under the path which the merged view doesn't show.
    pub fn hidden(&self) -> Vec<LayerIndex> {
        let mut layers: Vec<LayerIndex> = self
            .held
            .iter()
            .filter(|held| {
                held.hidden.is_some() && matches!(held.holds, Holds::Leaf { .. } | Holds::Directory { .. })
            })
            .map(|held| held.layer)
            .collect();
        layers.dedup();
        layers
    }

    /// Returns the topmost layer whose entry the merged view shows.
    pub fn winner(&self) -> Option<LayerIndex> {
        match &self.outcome {
            Outcome::Absent => None,
            Outcome::Leaf { layer, .. } => Some(*layer),
            Outcome::Directory { layers, .. } => layers.first().copied(),
        }
    }

    /// Returns the kind of what the merged view shows.
    pub fn kind(&self) -> Option<Kind> {
        match &self.outcome {
            Outcome::Absent => None,
            Outcome::Leaf { stat, .. } | Outcome::Directory { stat, .. } => Some(stat.kind()),
        }
    }
}
