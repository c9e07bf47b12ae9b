//! A survey to walk through: which rows a tree has with the layers that are looked at, what is open, sorted and searched.
//!
//! The page ([`super::page`]) does the same in a browser, by the same rules; here it is for a terminal. Nothing here draws.

use std::cmp::Reverse;

use super::figures::wasted_places;
use super::names::readable;
use super::survey::{Holding, LayerAction, Number, Survey};
use super::titles::called;
use crate::sys::object::Kind;
use crate::texts::Texts;

/// What is to be told of a place with the layers that are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// It comes from a layer below the topmost.
    Same,
    /// The topmost layer has brought it.
    Added,
    /// The topmost layer has replaced it.
    Changed,
    /// The topmost layer deletes it.
    Deleted,
    /// A layer has it, and another one that is looked at deletes or replaces it.
    Hidden,
    /// Only layers that aren't looked at have it.
    Elsewhere,
}

/// By what the names of a directory are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// From a to z.
    #[default]
    Name,
    /// The largest first.
    Size,
    /// The topmost layer first.
    Layer,
}

/// A line of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The place.
    pub place: usize,
    /// What is to be told of it.
    pub seen: Seen,
    /// Bytes of the file, or of all below the directory.
    pub bytes: u64,
    /// How many places below were added, changed or deleted.
    pub changes: u32,
    /// Whether it is a directory; whether it is open.
    pub directory: Option<bool>,
    /// Whether the search has found it; else it leads to what was found.
    pub found: bool,
}

/// What is known of a place.
#[derive(Debug, Clone, Copy)]
struct Told {
    seen: Seen,
    /// Which of the place's holdings stands for it.
    holding: usize,
    bytes: u64,
    /// Of what is deleted, hidden or elsewhere.
    gone: u64,
    changes: u32,
}

/// A survey, and how it is looked at.
pub struct Browse<'s> {
    survey: &'s Survey,
    top: Number,
    alone: bool,
    hidden: bool,
    order: Order,
    query: String,
    open: Vec<bool>,
    told: Vec<Option<Told>>,
    rows: Vec<Row>,
    matches: usize,
}

/// Trees of fewer places are open to begin with.
const SMALL: usize = 400;

impl<'s> Browse<'s> {
    /// Looks at all layers.
    pub fn new(survey: &'s Survey) -> Browse<'s> {
        let places = survey.places.len();
        let mut browse = Browse {
            survey,
            top: survey.top(),
            alone: false,
            hidden: false,
            order: Order::default(),
            query: String::new(),
            open: vec![places < SMALL; places],
            told: Vec::new(),
            rows: Vec::new(),
            matches: 0,
        };
        browse.open[0] = true;
        browse.look();
        browse
    }

    /// Returns the survey.
    pub fn survey(&self) -> &'s Survey {
        self.survey
    }

    /// Returns the lines.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Returns the topmost of the layers that are looked at.
    pub fn top(&self) -> Number {
        self.top
    }

    /// Returns whether that layer is looked at alone, without those below it.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Returns whether hidden files are shown.
    pub fn shows_hidden(&self) -> bool {
        self.hidden
    }

    /// Returns by what the tree is sorted.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Returns what is searched; empty without a search.
    pub fn query(&self) -> &str {
        &self.query
    }

    /// Returns how many places the search has found.
    pub fn matches(&self) -> usize {
        self.matches
    }

    /// Returns what stands for a place.
    pub fn holding(&self, place: usize) -> Option<&'s Holding> {
        self.survey.holdings(place).get(self.told.get(place)?.as_ref()?.holding)
    }

    /// Looks at the layers up to this one, or at it alone.
    pub fn see(&mut self, top: Number, alone: bool) {
        let top = top.clamp(1, self.survey.top());
        if (top, alone) != (self.top, self.alone) {
            (self.top, self.alone) = (top, alone);
            self.look();
        }
    }

    /// Shows hidden files, or not.
    pub fn show_hidden(&mut self, hidden: bool) {
        self.hidden = hidden;
        self.flatten();
    }

    /// Sorts.
    pub fn sort(&mut self, order: Order) {
        self.order = order;
        self.flatten();
    }

    /// Searches the names of all layers, or paths where there is a slash; an empty text ends that.
    pub fn search(&mut self, query: &str) {
        self.query = query.to_lowercase();
        self.flatten();
    }

    /// Opens or closes a directory. A search shows all that it found.
    pub fn open(&mut self, place: usize, open: bool) {
        self.open[place] = open;
        self.flatten();
    }

    /// Opens or closes all directories.
    pub fn open_all(&mut self, open: bool) {
        self.open.fill(open);
        self.open[0] = true;
        self.flatten();
    }

    /// Opens the directories that lead to a place, and returns its line.
    pub fn reveal(&mut self, place: usize) -> Option<usize> {
        let mut at = self.survey.places[place].parent as usize;
        while at != 0 {
            self.open[at] = true;
            at = self.survey.places[at].parent as usize;
        }
        self.flatten();
        self.rows.iter().position(|row| row.place == place)
    }

    /// Returns the places where the most is wasted, the greatest first, each with the layers up to the one with which
    /// that is seen.
    pub fn wastes(&self) -> Vec<(usize, Number)> {
        let top = |replaced: bool, steps: &[(Number, Number)]| match steps.first() {
            Some((_, hider)) if !replaced => *hider,
            _ => self.survey.top(),
        };
        wasted_places(self.survey).iter().map(|w| (w.place, top(w.replaced, &w.steps))).collect()
    }

    /// Finds out what is to be told of all places.
    fn look(&mut self) {
        let survey = self.survey;
        let count = survey.places.len();
        self.told = (0..count).map(|place| self.told_of(place)).collect();
        for place in (1..count).rev() {
            let Some(told) = self.told[place] else { continue };
            let changed = matches!(told.seen, Seen::Added | Seen::Changed | Seen::Deleted);
            let parent = survey.places[place].parent as usize;
            if let Some(parent) = &mut self.told[parent] {
                parent.bytes += told.bytes;
                parent.gone += told.gone;
                parent.changes += told.changes + u32::from(changed);
            }
        }
        self.flatten();
    }

    fn told_of(&self, place: usize) -> Option<Told> {
        let holdings = self.survey.holdings(place);
        let (seen, holding) = match self.alone {
            true => seen_in_layer(holdings, self.top),
            false => seen_in_pile(holdings, self.top),
        }
        .or_else(|| Some((Seen::Elsewhere, holdings.iter().position(|h| h.kind.is_some()).unwrap_or(0))))
        .filter(|_| !holdings.is_empty())?;
        let h = &holdings[holding];
        let own = if h.counts && h.kind == Some(Kind::File) { h.size } else { 0 };
        let (bytes, gone) = if seen < Seen::Deleted { (own, 0) } else { (0, own) };
        Some(Told { seen, holding, bytes, gone, changes: 0 })
    }

    /// Makes the rows.
    fn flatten(&mut self) {
        let kept = self.kept();
        let searching = !self.query.is_empty();
        self.matches = kept.iter().filter(|kept| **kept == Kept::Found).count();
        let mut rows = Vec::new();
        let mut pending: Vec<usize> = self.sorted(0, &kept);
        while let Some(place) = pending.pop() {
            let Some(told) = &self.told[place] else { continue };
            let directory = self.holding(place).is_some_and(|h| h.kind == Some(Kind::Directory));
            let open = self.open[place] || searching;
            rows.push(Row {
                place,
                seen: told.seen,
                bytes: match (directory, told.seen < Seen::Deleted) {
                    (true, true) => told.bytes,
                    (true, false) => told.gone,
                    // What other layers have below the same name is nothing of the file's.
                    (false, _) => {
                        self.holding(place).filter(|h| h.kind == Some(Kind::File)).map_or(0, |h| h.size)
                    }
                },
                changes: told.changes,
                directory: directory.then_some(open),
                found: searching && kept[place] == Kept::Found,
            });
            if open {
                pending.extend(self.sorted(place, &kept));
            }
        }
        self.rows = rows;
    }

    /// Returns which places are shown: those that are found, and what leads to them.
    fn kept(&self) -> Vec<Kept> {
        let count = self.survey.places.len();
        let by_path = self.query.contains('/');
        let mut kept = vec![Kept::Not; count];
        for (place, kept) in kept.iter_mut().enumerate().skip(1) {
            let Some(told) = &self.told[place] else { continue };
            let found = match (self.query.is_empty(), by_path) {
                (true, _) => told.seen < Seen::Hidden || told.seen == Seen::Hidden && self.hidden,
                (false, false) => {
                    readable(&self.survey.places[place].name).to_lowercase().contains(&self.query)
                }
                (false, true) => {
                    format!("/{}", readable(&self.survey.path(place))).to_lowercase().contains(&self.query)
                }
            };
            if found {
                *kept = Kept::Found;
            }
        }
        for place in (1..count).rev() {
            let parent = self.survey.places[place].parent as usize;
            if kept[place] != Kept::Not && kept[parent] == Kept::Not {
                kept[parent] = Kept::Leads;
            }
        }
        kept
    }

    /// Returns what a directory shows, the last first.
    fn sorted(&self, dir: usize, kept: &[Kept]) -> Vec<usize> {
        let mut children: Vec<usize> =
            self.survey.children(dir).filter(|child| kept[*child] != Kept::Not).collect();
        let all = self.hidden || !self.query.is_empty();
        match self.order {
            Order::Name => {}
            // What is hidden counts where it is shown.
            Order::Size => children.sort_by_key(|child| {
                let told = self.told[*child].as_ref();
                Reverse(told.map_or(0, |told| {
                    told.bytes + if all || told.seen == Seen::Deleted { told.gone } else { 0 }
                }))
            }),
            Order::Layer => {
                children.sort_by_key(|child| Reverse(self.holding(*child).map_or(0, |h| h.layer)));
            }
        }
        children.reverse();
        children
    }
}

/// Whether a place has a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Not,
    Leads,
    Found,
}

/// Returns what the layers up to `top` show, and the holding that stands for it.
fn seen_in_pile(holdings: &[Holding], top: Number) -> Option<(Seen, usize)> {
    let shown = |top: Number| {
        let at = holdings.iter().position(|h| h.seen_at(top))?;
        holdings[at].kind.is_some().then_some(at)
    };
    match (shown(top), shown(top - 1)) {
        // The lowest layer is where all begins: nothing is new in it.
        (Some(now), None) => Some((if top == 1 { Seen::Same } else { Seen::Added }, now)),
        (Some(now), Some(before)) => {
            let same = now == before || holdings[now].what() == LayerAction::Merged;
            Some((if same { Seen::Same } else { Seen::Changed }, now))
        }
        (None, Some(before)) => Some((Seen::Deleted, before)),
        (None, None) => {
            Some((Seen::Hidden, holdings.iter().position(|h| h.from <= top && h.kind.is_some())?))
        }
    }
}

/// Returns what one layer has.
fn seen_in_layer(holdings: &[Holding], layer: Number) -> Option<(Seen, usize)> {
    let at = holdings.iter().position(|h| h.layer == layer && h.from == layer)?;
    let seen = match holdings[at].what() {
        LayerAction::Deleted => Seen::Deleted,
        LayerAction::Merged => Seen::Same,
        _ if layer == 1 => Seen::Same,
        LayerAction::Changed => Seen::Changed,
        LayerAction::Added => Seen::Added,
    };
    Some((seen, at))
}

/// Says in a few words what a layer did at a place, and what became of it with the layers up to `top`.
pub fn fate(texts: &Texts, survey: &Survey, h: &Holding, top: Number) -> String {
    let of = |key: &str, layer: Number| texts.fill(key, &[("layer", &called(texts, survey, layer))]);
    let say = |key: &'static str| texts.say(key).to_owned();
    let mut said = Vec::new();
    match (h.kind, h.replaces) {
        (None, Some(layer)) => said.push(of("fate.deletes", layer)),
        (None, None) => said.push(say("fate.deletes_nothing")),
        (Some(_), _) if h.opaque => said.push(say("fate.opaque")),
        (Some(_), Some(layer)) if h.what() == LayerAction::Merged => said.push(of("fate.merged", layer)),
        (Some(_), Some(layer)) => said.push(of("fate.replaces", layer)),
        (Some(_), None) => {}
    }
    if h.from != h.layer {
        said.push(of("fate.renamed", h.from));
    }
    match h.hidden_by.filter(|by| *by <= top) {
        _ if h.layer > top => said.push(say("fate.above")),
        Some(by) => {
            said.push(of("fate.hidden", by));
            if h.kind == Some(Kind::File) {
                said.push(say(if h.is_waste() { "fate.wasted" } else { "fate.in_use" }));
            }
        }
        None if h.kind.is_some() => said.push(say("fate.seen")),
        None => {}
    }
    said.join(texts.say("walk.comma"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::union::stack::layer::{LowerSource, Stack, StackOptions};

    /// Two layers: the upper one changes `a/x`, hides all of `b` by a file, and brings `c`.
    fn survey(dir: &Path) -> Survey {
        let write = |path: &str, text: &str| {
            std::fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
            std::fs::write(dir.join(path), text).unwrap();
        };
        for (path, text) in [("low/a/x", "1"), ("low/a/y", "22"), ("low/b/big", "333333"), ("high/a/x", "44")]
        {
            write(path, text);
        }
        write("high/b", "5");
        write("high/c", "666");
        let lowers = LowerSource::directories(["high", "low"].map(|name| dir.join(name)).to_vec());
        let stack = Stack::open(&StackOptions { lowers, ..StackOptions::default() }).unwrap();
        Survey::take(stack, false).unwrap()
    }

    /// `+c 3`: what is to be told of each line, with its bytes.
    fn lines(browse: &Browse<'_>) -> String {
        let line = |row: &Row| {
            let sign = match row.seen {
                Seen::Same => "",
                Seen::Added => "+",
                Seen::Changed => "~",
                Seen::Deleted => "-",
                Seen::Hidden => "o",
                Seen::Elsewhere => "?",
            };
            format!("{sign}{} {}", readable(&browse.survey().path(row.place)), row.bytes)
        };
        browse.rows().iter().map(line).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_survey_is_walked_through() {
        let dir = tempfile::tempdir().unwrap();
        let survey = survey(dir.path());
        let mut browse = Browse::new(&survey);
        assert_eq!(lines(&browse), "a 4, ~a/x 2, a/y 2, ~b 1, -b/big 6, +c 3");
        browse.sort(Order::Size);
        assert_eq!(lines(&browse), "a 4, ~a/x 2, a/y 2, +c 3, ~b 1, -b/big 6");
        // All that a search finds, in whatever layer; and not more.
        browse.search("BIG");
        assert_eq!((lines(&browse), browse.matches()), ("~b 1, -b/big 6".to_owned(), 1));
        browse.search("a/x");
        assert_eq!(lines(&browse), "a 4, ~a/x 2");
        browse.search("");
        browse.sort(Order::Name);
        browse.show_hidden(true);
        browse.open_all(false);
        assert_eq!(lines(&browse), "a 4, ~b 1, +c 3");
        browse.show_hidden(false);
        browse.see(1, false);
        assert_eq!(lines(&browse), "a 3, b 6");
        browse.see(2, true);
        browse.open_all(true);
        assert_eq!(lines(&browse), "a 2, ~a/x 2, ~b 1, +c 3");
        let place = survey.find(b"a/y").unwrap();
        browse.see(2, false);
        browse.open_all(false);
        let at = browse.reveal(place).unwrap();
        assert_eq!(browse.rows()[at].place, place);
        assert_eq!(
            browse.wastes().iter().map(|(place, _)| survey.path(*place)).collect::<Vec<_>>(),
            [b"b".to_vec(), b"a/x".to_vec()]
        );
    }

    #[test]
    fn what_became_of_a_file_is_said_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let survey = survey(dir.path());
        let said = |path: &[u8], layer: Number| {
            let place = survey.find(path).unwrap();
            let holding = survey.holdings(place).iter().find(|h| h.layer == layer).unwrap();
            fate(Texts::english(), &survey, holding, 2)
        };
        assert_eq!(said(b"a/x", 2), "replaces what layer 2 has, seen");
        assert_eq!(said(b"a/x", 1), "hidden by layer 1, wasted");
        assert_eq!(said(b"b/big", 1), "hidden by layer 1, wasted");
        assert_eq!(said(b"a", 2), "merged with layer 2, seen");
    }
}
