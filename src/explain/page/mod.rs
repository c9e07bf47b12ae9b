//! The survey as one HTML page that loads nothing: `unionmount layers --html FILE`.
//!
//! The page is `page.html` with `page.css`, what all pages have (`explain/web.rs`), the scripts, the picture of [`super::svg`] and the survey as JSON put in. The
//! scripts are parts of one function: `survey.js` reads the data, `tree.js` shows them, `search.js` finds, filters and sorts,
//! `pile.js` has the layers, histories and waste, `picture.js` moves the picture, `begin.js` begins.
//! The JSON is columns of numbers, so that a hundred thousand files are a few megabytes:
//!
//! | field | holds |
//! |---|---|
//! | `title`, `facts` | what is shown; what is known of it, pairs of texts |
//! | `layers` | from the bottom up: what it is called (`upper`, `2`), in a sentence (`the upper`), its name, path, colour, bytes, wasted bytes, files, how many were added, changed, deleted |
//! | `names`, `depths`, `counts` | of every place but the root: its name, its depth, how many holdings it has |
//! | `holdings` | of all places one after the other, eight numbers each, see [`WORDS`] |
//! | `targets` | which holdings are symlinks, and where each leads |
//! | `epoch` | what is to be added to every `mtime` |
//! | `causes` | why bytes are wasted: place, path, layer, hidden by, bytes, files, what was done to them, what saves them |
//! | `texts` | what the scripts say, by the keys of the catalogue |
//! | `wastes` | place, pairs of layer and hidden by, bytes, files, replaced (0 or 1) |

use std::collections::BTreeMap;

use serde::Serialize;

use super::causes::{WasteGroup, waste_groups};
use super::figures::{Figures, wasted_places};
use super::names::readable;
use super::survey::{Holding, LayerAction, Number, Survey};
use super::titles::called;
use super::web::{Words, fill, head, inert};
use super::{colours, svg};
use crate::texts::Texts;

/// What a stack is, to whoever looks at it.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// What it is called.
    pub title: String,
    /// What is known of it: `Image` and its name, `Id`, `Created`, …
    pub facts: Vec<(&'static str, String)>,
}

/// The numbers of a holding: layer, from, hidden by (0: nothing), replaces (0: nothing), kind (`d_type`; 0: whiteout)
/// plus 16 if opaque, 32 if merged with what it replaces, 64 if its bytes count, 128 if they are in use although
/// hidden; size, mode, mtime.
pub const WORDS: usize = 8;

#[derive(Serialize)]
struct Data<'a> {
    title: &'a str,
    facts: Vec<(&'static str, &'a str)>,
    layers: Vec<LayerData>,
    names: Vec<String>,
    depths: Vec<u16>,
    counts: Vec<usize>,
    holdings: Vec<i64>,
    targets: Vec<(usize, String)>,
    epoch: i64,
    wastes: Vec<WasteData>,
    causes: Vec<CauseData>,
    sentence: String,
    unreadable: usize,
    texts: BTreeMap<&'static str, &'static str>,
}

/// Which texts the scripts say.
const SAID: [&str; 6] = ["page", "fate", "kind", "count", "layers", "called"];

/// Why bytes are wasted, by one pair of layers.
#[derive(Serialize)]
struct CauseData {
    place: usize,
    path: String,
    layer: Number,
    hidden_by: Number,
    bytes: u64,
    files: u64,
    what: &'static str,
    saved: &'static str,
}

/// Place, (layer, hidden by), bytes, files, 1 if something else is there.
type WasteData = (usize, Vec<(Number, Number)>, u64, u64, u8);

#[derive(Serialize)]
struct LayerData {
    label: String,
    title: String,
    name: String,
    path: String,
    colour: &'static str,
    bytes: u64,
    wasted: u64,
    files: u64,
    added: u64,
    changed: u64,
    deleted: u64,
}

/// Places of waste that the page lists.
const MOST_WASTED: usize = 500;

/// The scripts, in the order in which they stand in one function.
const SCRIPTS: &str = concat!(
    "\"use strict\";\n(() => {\n",
    include_str!("survey.js"),
    include_str!("tree.js"),
    include_str!("search.js"),
    include_str!("pile.js"),
    include_str!("picture.js"),
    include_str!("begin.js"),
    "})();\n"
);

/// Returns the page.
pub fn draw(texts: &'static Texts, survey: &Survey, figures: &Figures, subject: &Subject) -> String {
    let data = data(texts, survey, figures, subject);
    // Serialising numbers and strings to a string does not fail.
    let data = serde_json::to_string(&data).unwrap_or_default();
    let words = Words::new(texts, "page");
    let (title, heading) = (titled(texts, "page.title", subject), titled(texts, "page.heading", subject));
    let head = head(texts, &title, concat!(include_str!("page.css"), include_str!("../svg-shapes.css")));
    let (picture, data) = (svg::draw(texts, survey, figures, true), inert(&data));
    let mut parts = vec![("{{head}}", head.as_str()), ("{{heading}}", &heading)];
    parts.extend(words.parts());
    parts.extend([("{{picture}}", picture.as_str()), ("{{data}}", &data), ("{{script}}", SCRIPTS)]);
    fill(include_str!("page.html"), &parts)
}

fn titled(texts: &Texts, key: &str, subject: &Subject) -> String {
    svg::escape(&texts.fill(key, &[("title", &subject.title)]))
}

fn data<'a>(texts: &'static Texts, survey: &Survey, figures: &Figures, subject: &'a Subject) -> Data<'a> {
    let places = 1..survey.places.len();
    let epoch = places
        .clone()
        .flat_map(|p| survey.holdings(p))
        .filter(|h| h.kind.is_some())
        .map(seconds)
        .min()
        .unwrap_or(0);
    let layers = survey.layers.iter().zip(&figures.layers).enumerate().map(|(index, (layer, f))| LayerData {
        label: match survey.told(index as Number + 1) {
            0 => texts.say("explain.upper").to_owned(),
            number => number.to_string(),
        },
        title: called(texts, survey, index as Number + 1),
        name: layer.name.clone(),
        path: layer.path.to_string_lossy().into_owned(),
        colour: colours::hex(index as Number + 1),
        bytes: f.holds.bytes,
        wasted: f.wasted.bytes,
        files: f.holds.files,
        added: f.added.files,
        changed: f.changed.files,
        deleted: f.deleted,
    });
    let mut wastes = wasted_places(survey);
    wastes.truncate(MOST_WASTED);
    let links = places.clone().flat_map(|p| survey.holdings(p)).enumerate();
    let targets = links.filter_map(|(at, h)| Some((at, readable(survey.target(h)?)))).collect();
    Data {
        title: &subject.title,
        facts: subject.facts.iter().map(|(word, fact)| (fact_word(texts, word), fact.as_str())).collect(),
        layers: layers.collect(),
        names: places.clone().map(|p| readable(&survey.places[p].name)).collect(),
        depths: places.clone().map(|p| survey.places[p].depth).collect(),
        counts: places.clone().map(|p| survey.holdings(p).len()).collect(),
        holdings: places.flat_map(|p| survey.holdings(p)).flat_map(|h| words(h, epoch)).collect(),
        targets,
        epoch,
        wastes: wastes
            .into_iter()
            .map(|w| (w.place, w.steps, w.amount.bytes, w.amount.files, u8::from(w.replaced)))
            .collect(),
        causes: waste_groups(survey).iter().map(|group| cause(texts, survey, group)).collect(),
        sentence: figures.sentence_in(texts),
        unreadable: survey.unreadable.len(),
        texts: SAID.iter().flat_map(|table| texts.below(table)).collect(),
    }
}

fn fact_word(texts: &'static Texts, word: &'static str) -> &'static str {
    texts.find(&format!("page.fact.{word}")).unwrap_or(word)
}

fn cause(texts: &'static Texts, survey: &Survey, group: &WasteGroup) -> CauseData {
    CauseData {
        place: survey.find(&group.path).unwrap_or(0),
        path: readable(&group.path) + if group.is_dir { "/" } else { "" },
        layer: group.layer,
        hidden_by: group.hidden_by,
        bytes: group.amount.bytes,
        files: group.amount.files,
        what: texts.say(group.cause.key()),
        saved: texts.say(group.cause.way_key()),
    }
}

/// Returns when something was changed, within what a `Date` of a browser can tell.
fn seconds(h: &Holding) -> i64 {
    const MOST: i64 = 8_640_000_000_000;
    h.mtime.clamp(-MOST, MOST)
}

fn words(h: &Holding, epoch: i64) -> [i64; WORDS] {
    let flag = |set: bool, bit: i64| if set { bit } else { 0 };
    let kind = h.kind.map_or(0, |kind| i64::from(kind as u8))
        + flag(h.opaque, 16)
        + flag(h.what() == LayerAction::Merged, 32)
        + flag(h.counts, 64)
        + flag(h.data_used, 128);
    [
        i64::from(h.layer),
        i64::from(h.from),
        h.hidden_by.map_or(0, i64::from),
        h.replaces.map_or(0, i64::from),
        kind,
        i64::try_from(h.size).unwrap_or(i64::MAX),
        i64::from(h.mode & 0o7777),
        if h.kind.is_some() { seconds(h) - epoch } else { 0 },
    ]
}
