//! Which images share which layers: a tree whose branches are layers, from the bottom up, and whose leaves are images.
//!
//! Two images share a branch when they have the same layers from the bottom up to there, as two images that are built on one
//! do. A layer may stand on several branches, where images have it at different heights; it is kept once all the same.

use std::collections::{BTreeMap, BTreeSet};

use super::digest::Digest;
use super::error::Result;
use super::store::{Image, Store};

/// A layer at its place above others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// The layer.
    pub diff_id: Digest,
    /// What made it, in words; empty when nobody tells.
    pub step: String,
    /// The bytes of its files.
    pub size: u64,
    /// How many images have the layer, wherever it stands in them.
    pub shared_by: usize,
    /// The images whose topmost layer it is, by their places in the list.
    pub images: Vec<usize>,
    /// What stands on it, by places in [`Lineage::branches`].
    pub above: Vec<usize>,
}

/// The tree of images, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lineage {
    /// The layers, each after the one below it.
    pub branches: Vec<Branch>,
    /// Those with nothing below.
    pub roots: Vec<usize>,
    /// Images without any layer, by their places in the list.
    pub empty: Vec<usize>,
    /// How many layers there are.
    pub layers: usize,
    /// The bytes of their files.
    pub bytes: u64,
    /// How many of these are in layers that several images have.
    pub shared_bytes: u64,
}

impl Lineage {
    /// Finds out what these images share.
    ///
    /// # Errors
    /// When a layer's record is damaged.
    pub fn of(store: &Store, images: &[Image]) -> Result<Lineage> {
        let mut users: BTreeMap<Digest, BTreeSet<usize>> = BTreeMap::new();
        for (place, image) in images.iter().enumerate() {
            for diff_id in &image.diff_ids {
                users.entry(*diff_id).or_default().insert(place);
            }
        }
        let mut tree = Lineage { layers: users.len(), ..Lineage::default() };
        let mut sizes: BTreeMap<Digest, u64> = BTreeMap::new();
        for (place, image) in images.iter().enumerate() {
            let history = store.history(image)?;
            let mut at: Option<usize> = None;
            // The history begins with the newest.
            for step in history.iter().rev() {
                let Some(diff_id) = step.diff_id else { continue };
                sizes.insert(diff_id, step.size);
                let beside = match at {
                    None => &tree.roots,
                    Some(below) => &tree.branches[below].above,
                };
                let known = beside.iter().copied().find(|&one| tree.branches[one].diff_id == diff_id);
                at = Some(known.unwrap_or_else(|| {
                    let branch = Branch {
                        diff_id,
                        step: step.title(),
                        size: step.size,
                        shared_by: users.get(&diff_id).map_or(1, BTreeSet::len),
                        images: Vec::new(),
                        above: Vec::new(),
                    };
                    tree.grow(at, branch)
                }));
            }
            match at {
                Some(top) => tree.branches[top].images.push(place),
                None => tree.empty.push(place),
            }
        }
        tree.bytes = sizes.values().sum();
        let shared = |diff_id: &Digest| users.get(diff_id).is_some_and(|users| users.len() > 1);
        tree.shared_bytes = sizes.iter().filter(|(diff_id, _)| shared(diff_id)).map(|(_, size)| size).sum();
        Ok(tree)
    }

    fn grow(&mut self, below: Option<usize>, branch: Branch) -> usize {
        let new = self.branches.len();
        self.branches.push(branch);
        match below {
            None => self.roots.push(new),
            Some(below) => self.branches[below].above.push(new),
        }
        new
    }
}
