//! What would happen to a path on a change: the first write, a deletion, a rename.
//!
//! These are predictions of what [`union::copy_up`](crate::union::change::copy_up), [`union::modify`](crate::union::change::modify) and
//! [`union::rename`](crate::union::change::rename) do; a test compares them with what then happens, on random stacks.

use super::names;
use super::titles::{layer_list, layer_title};
use crate::control::explanation::{Action, CopyUp, LayerReport, PredictedEffect};
use crate::error::Result;
use crate::sys::object::{Kind, Stat};
use crate::texts::Texts;
use crate::union::escaped_path::EscapedPath;
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::lookup::provenance::{Holds, Inspector, Outcome, Provenance, Trail};
use crate::union::lookup::realdir::LayerIndex;

/// What is known of the path.
pub(super) struct Subject<'s> {
    pub texts: &'static Texts,
    pub inspector: Inspector<'s>,
    pub found: &'s Provenance,
    pub trail: &'s Trail,
    pub layers: &'s [LayerReport],
}

impl Subject<'_> {
    fn fate(&self, action: Action, text: String) -> PredictedEffect {
        PredictedEffect { action, copy_up: None, parents: Vec::new(), whiteout: false, redirect: false, text }
    }

    /// Returns why no change is possible at all.
    fn refusal(&self) -> Option<String> {
        let name = self.found.path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        if !self.inspector.has_upper() {
            Some(self.say("explain.refused.read_only"))
        } else if let Some(broken) = &self.found.broken_at {
            let path = format!("/{}", EscapedPath::from(&broken[..]));
            Some(self.texts.fill("explain.refused.broken", &[("path", &path)]))
        } else if name.starts_with(WH_PREFIX) {
            Some(self.say("explain.refused.marker"))
        } else {
            None
        }
    }

    fn is_upper(&self, layer: LayerIndex) -> bool {
        self.inspector.has_upper() && layer == 0
    }

    fn say(&self, key: &str) -> String {
        self.texts.say(key).to_owned()
    }

    fn title(&self, layer: LayerIndex) -> String {
        layer_title(self.texts, self.layers, self.inspector.number(layer))
    }

    fn titles(&self, layers: &[LayerIndex]) -> String {
        layer_list(self.texts, layers.iter().map(|layer| self.inspector.number(*layer)))
    }

    /// Returns the layers that a whiteout of this name would hide.
    fn below(&self) -> Vec<LayerIndex> {
        let shown = match &self.found.outcome {
            Outcome::Directory { layers, .. } => layers.clone(),
            Outcome::Leaf { layer, .. } => vec![*layer],
            Outcome::Absent => Vec::new(),
        };
        let mut below: Vec<LayerIndex> = shown.into_iter().filter(|layer| !self.is_upper(*layer)).collect();
        if below.is_empty() {
            below.extend(self.found.hidden().first());
        }
        below
    }

    /// `leaves`: it is copied without its data.
    fn copy_up(
        &self,
        mut fate: PredictedEffect,
        from: LayerIndex,
        (stat, leaves): (&Stat, bool),
    ) -> PredictedEffect {
        let bytes = if stat.kind() == Kind::File && !leaves { stat.size } else { 0 };
        fate.copy_up = Some(CopyUp { from: self.inspector.number(from), bytes });
        self.with_parents(fate)
    }

    fn with_parents(&self, mut fate: PredictedEffect) -> PredictedEffect {
        fate.parents = self.found.missing_parents.iter().map(|path| EscapedPath::from(&path[..])).collect();
        fate
    }

    /// Says "parents etc/, etc/apt/".
    fn parents(&self) -> Option<String> {
        let parents: Vec<String> = self
            .found
            .missing_parents
            .iter()
            .map(|parent| format!("{}/", EscapedPath::from(&parent[..])))
            .collect();
        match &parents[..] {
            [] => None,
            [one] => Some(self.texts.fill("explain.effect.parent", &[("parents", one)])),
            many => {
                let many = many.join(self.texts.say("called.comma"));
                Some(self.texts.fill("explain.effect.parents", &[("parents", &many)]))
            }
        }
    }

    /// Says "; its parent etc/ is copied up for it", for what is not itself copied up.
    fn parents_too(&self) -> String {
        let said = |parents: String| self.texts.fill("explain.effect.parents_too", &[("parents", &parents)]);
        self.parents().map(said).unwrap_or_default()
    }

    /// Says by `key` what is copied up of a file, most of which stays.
    fn copies_little(&self, key: &str, from: LayerIndex) -> String {
        self.texts.fill(key, &[("layer", &self.title(from)), ("parents", &self.and_parents())])
    }

    /// Says " and its parent etc/" behind what is copied up, if there are any to be.
    fn and_parents(&self) -> String {
        let said = |parents: String| self.texts.fill("explain.effect.with_parents", &[("parents", &parents)]);
        self.parents().map(said).unwrap_or_default()
    }

    /// Says "copies up 1.2 MiB from layer 3".
    fn copies_up(&self, from: LayerIndex, stat: &Stat) -> String {
        let what = match stat.kind() {
            Kind::File => names::bytes(stat.size),
            Kind::Directory => self.say("explain.effect.directory"),
            Kind::Symlink => self.say("explain.effect.link"),
            _ => self.say("explain.effect.node"),
        };
        let (parents, layer) = (self.and_parents(), self.title(from));
        self.texts
            .fill("explain.effect.copies_up", &[("what", &what), ("layer", &layer), ("parents", &parents)])
    }

    /// Tells what happens on a write to a file, on a new entry in a directory, on a change of attributes of anything
    /// else.
    pub fn on_write(&self) -> PredictedEffect {
        if let Some(refusal) = self.refusal() {
            return self.fate(Action::Refused, refusal);
        }
        match &self.found.outcome {
            Outcome::Absent => {
                let over =
                    self.found.held.first().is_some_and(|held| matches!(held.holds, Holds::Whiteout(_)));
                let key = if over { "explain.effect.makes_instead" } else { "explain.effect.makes" };
                self.with_parents(self.fate(Action::Create, self.say(key) + &self.parents_too()))
            }
            Outcome::Leaf { copied_elsewhere: true, .. } => {
                self.fate(Action::InPlace, self.say("explain.effect.linked_in_place"))
            }
            Outcome::Leaf { layer, stat, .. } if self.is_upper(*layer) => self.in_upper(stat),
            Outcome::Leaf { layer, stat, .. } if self.inspector.left_below(stat, *layer).blocks => {
                let text = self.copies_little("explain.effect.blocks_up", *layer);
                self.copy_up(self.fate(Action::CopyUp, text), *layer, (stat, true))
            }
            Outcome::Leaf { layer, stat, .. } => {
                let mut text = self.copies_up(*layer, stat);
                if stat.nlink > 1 {
                    text += &self.texts.fill("explain.effect.names", &[("count", &stat.nlink.to_string())]);
                }
                self.copy_up(self.fate(Action::CopyUp, text), *layer, (stat, false))
            }
            Outcome::Directory { layers, .. }
                if layers.first().is_some_and(|layer| self.is_upper(*layer)) =>
            {
                self.fate(Action::InPlace, self.say("explain.effect.new_entries"))
            }
            Outcome::Directory { layers, stat } => {
                let from = layers.first().copied().unwrap_or_default();
                let copies = self.copies_up(from, stat);
                let text = self.texts.fill("explain.effect.new_entry", &[("copies", &copies)]);
                self.copy_up(self.fate(Action::CopyUp, text), from, (stat, false))
            }
        }
    }

    fn in_upper(&self, stat: &Stat) -> PredictedEffect {
        let data = self.found.held.iter().find_map(|held| match held.holds {
            Holds::Leaf { data, blocks, .. } if held.hidden.is_none() => Some((data?, blocks)),
            _ => None,
        });
        match data {
            Some((from, blocks)) if blocks.is_some() || self.inspector.left_below(stat, from).blocks => {
                let text = self.texts.fill("explain.effect.blocks", &[("layer", &self.title(from))]);
                self.fate(Action::InPlace, text)
            }
            None => self.fate(Action::InPlace, self.say("explain.effect.in_place")),
            Some((from, _)) => {
                let size = names::bytes(stat.size);
                let values = [("size", size.as_str()), ("layer", &self.title(from))];
                let text = self.texts.fill("explain.effect.metadata", &values);
                self.copy_up(self.fate(Action::CopyUp, text), from, (stat, false))
            }
        }
    }

    /// Tells what happens on a deletion.
    pub fn on_delete(&self) -> Result<PredictedEffect> {
        if let Some(refused) = self.cannot_lose_its_name() {
            return Ok(refused);
        }
        let full = self.found.kind() == Some(Kind::Directory) && !self.is_empty()?;
        let action = if full { Action::RemoveWhenEmpty } else { Action::Remove };
        let once = if full { self.say("explain.effect.once") } else { String::new() };
        let in_upper = self.found.winner().is_some_and(|layer| self.is_upper(layer));
        if !self.found.below {
            return Ok(self.fate(action, once + self.texts.say("explain.effect.removed")));
        }
        let key = if in_upper { "explain.effect.whiteout_instead" } else { "explain.effect.whiteout" };
        let hides = self.texts.fill(key, &[("layers", &self.titles(&self.below()))]);
        let text = once + &hides + &self.parents_too();
        Ok(self.with_parents(PredictedEffect { whiteout: true, ..self.fate(action, text) }))
    }

    /// Tells what happens on a rename to another directory where nothing has the new name.
    pub fn on_rename(&self) -> PredictedEffect {
        if let Some(refused) = self.cannot_lose_its_name() {
            return refused;
        }
        let mut parts = Vec::new();
        let mut copy = None;
        let mut redirect = false;
        match &self.found.outcome {
            Outcome::Absent => {}
            Outcome::Leaf { copied_elsewhere: true, .. } => {
                parts.push(self.say("explain.effect.link_moves"));
            }
            Outcome::Leaf { layer, stat, .. } => match self.is_upper(*layer) {
                true => parts.push(self.say("explain.effect.moves")),
                false => copy = Some((*layer, stat)),
            },
            Outcome::Directory { layers, stat } => {
                let upper = layers.first().is_some_and(|layer| self.is_upper(*layer));
                let lowers = &layers[usize::from(upper)..];
                match lowers.first() {
                    Some(first) if !upper => copy = Some((*first, stat)),
                    _ => parts.push(self.say("explain.effect.moves")),
                }
                if !lowers.is_empty() {
                    redirect = true;
                    parts.push(
                        self.texts.fill("explain.effect.redirect", &[("layers", &self.titles(lowers))]),
                    );
                }
            }
        }
        let leaves = copy.is_some_and(|(from, stat)| self.inspector.left_below(stat, from).data);
        if let Some((from, stat)) = copy {
            let copies = match leaves {
                true => self.copies_little("explain.effect.metadata_up", from),
                false => self.copies_up(from, stat),
            };
            parts.insert(0, copies);
        }
        if self.found.below {
            parts.push(self.say("explain.effect.old_name"));
        }
        let fate = PredictedEffect {
            whiteout: self.found.below,
            redirect,
            ..self.fate(Action::Rename, parts.join(self.texts.say("explain.effect.then")))
        };
        match copy {
            Some((from, stat)) => self.copy_up(fate, from, (stat, leaves)),
            None => self.with_parents(fate),
        }
    }

    fn cannot_lose_its_name(&self) -> Option<PredictedEffect> {
        if let Some(refusal) = self.refusal() {
            return Some(self.fate(Action::Refused, refusal));
        }
        if self.found.path.is_empty() {
            return Some(self.fate(Action::Refused, self.say("explain.refused.root")));
        }
        (self.found.outcome == Outcome::Absent)
            .then(|| self.fate(Action::Nothing, self.say("explain.refused.nothing")))
    }

    /// Returns whether the directory shows no entries.
    fn is_empty(&self) -> Result<bool> {
        for name in self.inspector.names(self.trail)? {
            if self.inspector.descend(self.trail, &name)?.0.outcome != Outcome::Absent {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
