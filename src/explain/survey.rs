//! A survey of a stack: every path of every layer, what each layer did there, and what became of it.
//!
//! The merged view shows what is on top; the survey keeps the rest as well. It reads the layers by the same code as a
//! mount does ([`scan`](crate::union::lookup::index::scan) for names and whiteouts,
//! [`read_marks`](crate::union::lookup::marker::read_marks) for the marks of directories) and never writes.
//!
//! # The model
//!
//! Inside, layers are numbered from the bottom, beginning with 1: [`Number`]. People and programs are told the numbers
//! that `explain` and the messages of a mount tell: the upper, then the lowers from the top down ([`Survey::told`]).
//! A **place** is a path of the tree. What one layer has at a place is a **holding**. A holding is to be seen in
//! the merged view of the lowest *n* layers for every *n* from [`Holding::from`] up to, and not including,
//! [`Holding::hidden_by`]. So one survey answers for the whole stack and for each pile of layers below its top.
//!
//! `from` is the layer's own number, save below a directory that was renamed: there the lower part is seen under the
//! new name from the layer on that holds the redirect.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::error::FsError;
use crate::sys::object::Kind;

/// A layer's number inside a survey: 1 is the lowest.
pub type Number = u16;

/// A layer that was surveyed.
#[derive(Debug, Clone)]
pub struct SurveyedLayer {
    /// Where it lies.
    pub path: PathBuf,
    /// How it is called in pictures; safe to print.
    pub name: String,
    /// Whether it is the writable one.
    pub upper: bool,
}

/// A path of the tree.
#[derive(Debug)]
pub struct SurveyedPath {
    /// The last component; empty for the root.
    pub name: Box<[u8]>,
    /// The place of the directory that holds it; the root's own is 0.
    pub parent: u32,
    /// How many directories lead to it.
    pub depth: u16,
    /// The first place that is not below this one, in the order of [`Survey::places`].
    pub end: u32,
    pub(super) first: u32,
    pub(super) count: u16,
}

/// What one layer has at one place.
#[derive(Debug, Clone, Copy)]
pub struct Holding {
    /// The layer.
    pub layer: Number,
    /// The first pile of layers that shows it, by the number of its topmost.
    pub from: Number,
    /// The nearest layer above that hides it.
    pub hidden_by: Option<Number>,
    /// The layer whose entry it replaces or, if it is a whiteout, deletes.
    pub replaces: Option<Number>,
    /// Its type, or `None` for a whiteout.
    pub kind: Option<Kind>,
    /// A directory below which no lower layer counts.
    pub opaque: bool,
    /// A file whose data lie in a layer below (`overlay.metacopy`).
    pub metacopy: bool,
    /// The data it hides are still in use: by a metacopy above it.
    pub data_used: bool,
    /// Its bytes of data in this layer; 0 for what is not a regular file.
    pub size: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Last change of the data, in seconds since the epoch.
    pub mtime: i64,
    /// Whether it is the first of its file's names in the layer. The bytes of a file count once.
    pub counts: bool,
    /// Where it is accounted for as waste, in [`Survey::wastes`].
    pub(super) account: Option<u32>,
    /// Where a symlink leads, in [`Survey::targets`].
    pub(super) target: Option<u32>,
    /// A directory that is merged with the one it "replaces".
    pub(super) merges: bool,
    /// 0, or which redirect has brought it here.
    pub(super) chain: u16,
    pub(super) id: (u64, u64),
    pub(super) nlink: u64,
}

/// What a layer did at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerAction {
    /// Nothing was there.
    Added,
    /// It replaced what a lower layer showed.
    Changed,
    /// A directory that a lower layer has too; both are merged.
    Merged,
    /// A whiteout.
    Deleted,
}

impl Holding {
    /// Returns what the layer did.
    pub fn what(&self) -> LayerAction {
        match (self.kind, self.replaces) {
            (None, _) => LayerAction::Deleted,
            (Some(_), None) => LayerAction::Added,
            (Some(Kind::Directory), Some(_)) if self.merges => LayerAction::Merged,
            (Some(_), Some(_)) => LayerAction::Changed,
        }
    }

    /// Returns whether the pile of layers up to `top` reaches it. Whiteouts count as well.
    pub fn seen_at(&self, top: Number) -> bool {
        self.from <= top && self.hidden_by.is_none_or(|by| by > top)
    }

    /// Returns whether its bytes are of no use to the merged view.
    pub fn is_waste(&self) -> bool {
        self.hidden_by.is_some() && !self.data_used
    }
}

/// Bytes that are deleted or replaced further up, by the place where that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waste {
    /// The place: a file, or the directory that is hidden as a whole.
    pub place: u32,
    /// The layer that holds the bytes.
    pub layer: Number,
    /// The layer that hides them.
    pub hidden_by: Number,
    /// Whether something else is there now, or nothing. Of a directory in whose place another is: for most of its bytes.
    pub replaced: bool,
    /// How many bytes.
    pub bytes: u64,
    /// In how many files.
    pub files: u64,
}

/// A directory that could not be read.
#[derive(Debug)]
pub struct Unreadable {
    /// The layer.
    pub layer: Number,
    /// The path in it.
    pub path: Vec<u8>,
    /// Why.
    pub error: FsError,
}

/// Everything that the layers of a stack hold.
#[derive(Debug)]
pub struct Survey {
    /// The layers from the bottom up: layer *n* is at *n* − 1.
    pub layers: Vec<SurveyedLayer>,
    /// All paths, each directory before what is in it, the names of a directory in order.
    pub places: Vec<SurveyedPath>,
    /// Where bytes are wasted.
    pub wastes: Vec<Waste>,
    /// What could not be read and is missing here.
    pub unreadable: Vec<Unreadable>,
    pub(super) holdings: Vec<Holding>,
    pub(super) targets: Vec<Box<[u8]>>,
}

impl Survey {
    /// Returns how many layers there are; also the number of the topmost.
    pub fn top(&self) -> Number {
        self.layers.len() as Number
    }

    /// Returns the number by which a layer is told: 0 for the upper, the lowers from 1, the first named one, down.
    pub fn told(&self, layer: Number) -> Number {
        let has_upper = self.layers.last().is_some_and(|top| top.upper);
        self.top() - layer + Number::from(!has_upper)
    }

    /// Returns `upper` or `2`.
    pub fn label(&self, layer: Number) -> String {
        match self.told(layer) {
            0 => "upper".to_owned(),
            number => number.to_string(),
        }
    }

    /// Returns `the upper` or `layer 2`.
    pub fn title(&self, layer: Number) -> String {
        match self.told(layer) {
            0 => "the upper".to_owned(),
            number => format!("layer {number}"),
        }
    }

    /// Returns what the layers have at a place, the topmost first.
    pub fn holdings(&self, place: usize) -> &[Holding] {
        let SurveyedPath { first, count, .. } = self.places[place];
        &self.holdings[first as usize..first as usize + usize::from(count)]
    }

    /// Returns where a symlink leads.
    pub fn target(&self, holding: &Holding) -> Option<&[u8]> {
        Some(&**self.targets.get(holding.target? as usize)?)
    }

    /// Returns what is to be seen at a place in the merged view of the layers up to `top`.
    pub fn shown(&self, place: usize, top: Number) -> Option<&Holding> {
        self.holdings(place).iter().find(|h| h.seen_at(top)).filter(|h| h.kind.is_some())
    }

    /// Returns the path of a place; empty for the root.
    pub fn path(&self, place: usize) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = place;
        while at != 0 {
            names.push(&*self.places[at].name);
            at = self.places[at].parent as usize;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Returns the place of a path, components joined by `/`.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        let mut at = 0;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            at = self.children(at).find(|&child| *self.places[child].name == *name)?;
        }
        Some(at)
    }

    /// Returns the places directly below a place.
    pub fn children(&self, place: usize) -> impl Iterator<Item = usize> + '_ {
        let end = self.places[place].end as usize;
        let mut at = place + 1;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let child = at;
                at = self.places[child].end as usize;
                child
            })
        })
    }

    /// Fills in where each place's subtree ends.
    pub(super) fn close_places(&mut self) {
        for place in 0..self.places.len() {
            self.places[place].end = place as u32 + 1;
        }
        for place in (1..self.places.len()).rev() {
            let end = self.places[place].end;
            let parent = self.places[place].parent as usize;
            self.places[parent].end = self.places[parent].end.max(end);
        }
    }

    /// Counts a file with several names in a layer once. It is in use while one of its names is; so is what is seen
    /// under another name by a redirect.
    pub(super) fn settle_links(&mut self) {
        let moved = self.holdings.iter().any(|h| h.from != h.layer);
        let counted = |h: &Holding| h.kind == Some(Kind::File) && (moved || h.nlink > 1);
        let mut used: HashMap<(Number, u64, u64), bool> = HashMap::new();
        for h in self.holdings.iter().filter(|h| counted(h)) {
            *used.entry((h.layer, h.id.0, h.id.1)).or_default() |= !h.is_waste();
        }
        let mut first: HashMap<(Number, u64, u64), ()> = HashMap::new();
        for h in self.holdings.iter_mut().filter(|h| counted(h)) {
            let key = (h.layer, h.id.0, h.id.1);
            h.counts = first.insert(key, ()).is_none();
            h.data_used |= used.get(&key).copied().unwrap_or(false);
        }
    }

    pub(super) fn settle_wastes(&mut self) {
        let top = self.top();
        // Of each, the bytes of files in whose place something is.
        let mut replaced = vec![0; self.wastes.len()];
        for place in 0..self.places.len() {
            let is_there = self.shown(place, top).is_some();
            let SurveyedPath { first, count, .. } = self.places[place];
            for h in &self.holdings[first as usize..first as usize + usize::from(count)] {
                if let Some(account) = h.account
                    && h.is_waste()
                    && h.counts
                    && h.kind == Some(Kind::File)
                {
                    let waste = &mut self.wastes[account as usize];
                    waste.bytes += h.size;
                    waste.files += 1;
                    replaced[account as usize] += if is_there { h.size } else { 0 };
                }
            }
        }
        for (at, replaced) in replaced.into_iter().enumerate() {
            let Waste { place, layer, hidden_by, bytes, .. } = self.wastes[at];
            let is_dir = |number: Number| {
                let mut holdings = self.holdings(place as usize).iter();
                holdings.any(|h| h.layer == number && h.kind == Some(Kind::Directory))
            };
            // A directory that is deleted and made anew, and so opaque, has its files deleted unless they are there again.
            self.wastes[at].replaced = match is_dir(layer) && is_dir(hidden_by) {
                true => replaced * 2 > bytes,
                false => self.shown(place as usize, top).is_some(),
            };
        }
    }
}
