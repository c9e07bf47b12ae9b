//! A survey in figures.
//!
//! **Waste** is the data of files that a layer holds and no name of the merged view leads to: they are deleted or
//! replaced further up, and travel with the image all the same. **Efficiency** is the share that is not waste. Bytes
//! are those that `ls -l` tells; a file with several names in a layer counts once.

use std::collections::BTreeMap;

use serde::Serialize;

use super::names;
use super::survey::{LayerAction, Number, Survey, Waste};
use crate::sys::object::Kind;
use crate::texts::Texts;

/// How many files, and how many bytes in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Anything that is not a directory.
    pub files: u64,
    /// Bytes of data.
    pub bytes: u64,
}

/// One layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LayerFigures {
    /// All that it holds.
    pub holds: Amount,
    /// Directories.
    pub directories: u64,
    /// What wasn't there below it.
    pub added: Amount,
    /// What replaces something below it.
    pub changed: Amount,
    /// Whiteouts that delete something below it.
    pub deleted: u64,
    /// Directories that cut off what lies below them.
    pub opaque: u64,
    /// What layers above it have deleted or replaced.
    pub wasted: Amount,
}

/// The whole stack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// From the bottom up.
    pub layers: Vec<LayerFigures>,
    /// What all layers hold together.
    pub bytes: u64,
    /// How much of that is wasted.
    pub wasted_bytes: u64,
    /// Files of the merged view.
    pub merged_files: u64,
    /// Directories of the merged view, the root not among them.
    pub merged_directories: u64,
}

impl Figures {
    /// Counts.
    pub fn of(survey: &Survey) -> Figures {
        let mut figures =
            Figures { layers: vec![LayerFigures::default(); survey.layers.len()], ..Figures::default() };
        let top = survey.top();
        for place in 0..survey.places.len() {
            for h in survey.holdings(place) {
                let layer = &mut figures.layers[usize::from(h.layer) - 1];
                let bytes = if h.counts { h.size } else { 0 };
                layer.holds.bytes += bytes;
                if h.is_waste() && h.counts && h.kind == Some(Kind::File) {
                    layer.wasted.bytes += bytes;
                    layer.wasted.files += 1;
                }
                // What a redirect shows here is an entry of another place.
                if place == 0 || h.from != h.layer {
                    continue;
                }
                let amount = match (h.what(), h.kind) {
                    (LayerAction::Deleted, _) => {
                        layer.deleted += u64::from(h.replaces.is_some());
                        continue;
                    }
                    (_, Some(Kind::Directory)) => {
                        layer.directories += 1;
                        layer.opaque += u64::from(h.opaque);
                        continue;
                    }
                    (LayerAction::Added, _) => &mut layer.added,
                    (LayerAction::Changed | LayerAction::Merged, _) => &mut layer.changed,
                };
                amount.files += 1;
                amount.bytes += bytes;
                layer.holds.files += 1;
            }
            match survey.shown(place, top) {
                Some(h) if h.kind == Some(Kind::Directory) => {
                    figures.merged_directories += u64::from(place != 0)
                }
                Some(_) => figures.merged_files += 1,
                None => {}
            }
        }
        figures.bytes = figures.layers.iter().map(|layer| layer.holds.bytes).sum();
        figures.wasted_bytes = figures.layers.iter().map(|layer| layer.wasted.bytes).sum();
        figures
    }

    /// Returns the wasted share in percent.
    pub fn waste_percent(&self) -> f64 {
        names::percent(self.wasted_bytes, self.bytes)
    }

    /// Returns the share in percent that the merged view uses.
    pub fn efficiency(&self) -> f64 {
        names::percent(self.bytes - self.wasted_bytes, self.bytes.max(1)).max(if self.bytes == 0 {
            100.0
        } else {
            0.0
        })
    }

    /// Returns all in one sentence.
    pub fn sentence_in(&self, texts: &Texts) -> String {
        let (wasted, all) = (names::bytes(self.wasted_bytes), names::bytes(self.bytes));
        let percent = format!("{:.1} %", self.efficiency());
        texts.fill("layers.sentence", &[("wasted", &wasted), ("all", &all), ("percent", &percent)])
    }
}

/// The wasted bytes of one place, in all layers together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WastedPlace {
    /// The place.
    pub place: usize,
    /// Bytes and files.
    pub amount: Amount,
    /// Which layer's bytes were hidden by which, the topmost first.
    pub steps: Vec<(Number, Number)>,
    /// Whether something is there in the merged view.
    pub replaced: bool,
}

/// Returns where the most is wasted, the greatest first.
pub fn wasted_places(survey: &Survey) -> Vec<WastedPlace> {
    let mut places: BTreeMap<u32, WastedPlace> = BTreeMap::new();
    for Waste { place, layer, hidden_by, replaced, bytes, files } in
        survey.wastes.iter().filter(|w| w.bytes > 0)
    {
        let wasted = places.entry(*place).or_insert_with(|| WastedPlace {
            place: *place as usize,
            amount: Amount::default(),
            steps: Vec::new(),
            replaced: *replaced,
        });
        wasted.amount.bytes += bytes;
        wasted.amount.files += files;
        wasted.steps.push((*layer, *hidden_by));
    }
    let mut all: Vec<WastedPlace> = places.into_values().collect();
    for wasted in &mut all {
        wasted.steps.sort_unstable_by(|a, b| b.cmp(a));
        wasted.steps.dedup();
    }
    all.sort_by_key(|wasted| std::cmp::Reverse(wasted.amount.bytes));
    all
}
