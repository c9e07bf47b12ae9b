//! What a search finds.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::sys::object::Stat;
use crate::union::data::half_mark::HalfMark;
use crate::union::lookup::realdir::{LayerIndex, RealDir};
use crate::union::nodes::generation::{Generation, Sighting};
use crate::union::nodes::region::InodeId;

/// Real directories, topmost first.
pub type RealDirs = SmallVec<[Arc<RealDir>; 4]>;

/// What a name stands for.
#[derive(Debug)]
pub struct Found {
    /// stat of the topmost object.
    pub stat: Stat,
    /// What tells the topmost object's generation.
    pub seen: Sighting,
    /// The topmost object's layer.
    pub layer: LayerIndex,
    /// Which inode that is.
    pub id: InodeId,
    /// What it is.
    pub what: FoundKind,
}

/// The two kinds of findings.
#[derive(Debug)]
pub enum FoundKind {
    /// Anything but a directory.
    Leaf {
        /// The real directory that holds it.
        dir: Arc<RealDir>,
        /// Where its data are, if not in itself (`overlay.metacopy`).
        data: Option<DataAt>,
    },
    /// A directory: the real ones that are merged, topmost first.
    Directory {
        /// The real directories.
        dirs: RealDirs,
        /// Marked impure in the topmost layer.
        impure: bool,
    },
}

/// Where the data of a file lie that has only its metadata in its own layer.
#[derive(Debug, Clone)]
pub struct DataAt {
    /// The real directory.
    pub dir: Arc<RealDir>,
    /// The name there.
    pub name: Box<[u8]>,
    /// Device and inode number of the file.
    pub id: (u64, u64),
    /// And its generation.
    pub generation: Generation,
    /// The room that they take, as of stat(2).
    pub blocks: u64,
    /// The fs-verity digest that they must have, with its algorithm's number.
    pub digest: Option<(u16, Vec<u8>)>,
    /// The mark of the file itself, where some blocks are its own.
    pub half: Option<Arc<HalfMark>>,
}

impl DataAt {
    /// Makes it for a file that has them itself.
    pub(in crate::union) fn of(
        dir: Arc<RealDir>,
        name: &[u8],
        stat: &Stat,
        generation: Generation,
    ) -> DataAt {
        let id = (stat.dev, stat.ino);
        DataAt { dir, name: name.into(), id, generation, blocks: stat.blocks, digest: None, half: None }
    }
}
