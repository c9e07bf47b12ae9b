//! The picture of the textbooks, of a real stack: layers as bands, files as boxes, an arrow from a file to what it
//! replaces, the merged view on top.
//!
//! A path has its column, so that arrows go straight down. A picture holds a few files only: those that have a
//! history first, then the largest; the bands say how many more there are.

use std::fmt::{self, Write as _};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::colours;
use super::figures::{Figures, LayerFigures};
use super::names::{self, readable};
use super::survey::{Holding, LayerAction, Number, Survey};
use super::titles::called;
use crate::sys::object::Kind;
use crate::texts::Texts;

/// Files that are drawn at most.
const MOST_FILES: usize = 9;
/// Layers that are drawn at most.
const MOST_LAYERS: usize = 12;

const LABEL: usize = 204;
const COLUMN: usize = 124;
const BOX: usize = 110;
const BOX_HEIGHT: usize = 38;
const BAND: usize = 66;
const GAP: usize = 12;
const MARGIN: usize = 16;
const CAPTION: usize = 52;
/// Letters (of the usual width) that fit into a box.
const LETTERS: usize = 15;

/// Returns the picture as a document of its own, or with `inline` as a part of a page that has the colours.
pub fn draw(texts: &'static Texts, survey: &Survey, figures: &Figures, inline: bool) -> String {
    let mut svg = String::new();
    // Writing to a string does not fail.
    Picture::new(texts, survey, figures).draw(&mut svg, inline).unwrap_or_default();
    svg
}

struct Picture<'s> {
    texts: &'static Texts,
    survey: &'s Survey,
    figures: &'s Figures,
    /// The places drawn, in the order of paths.
    places: Vec<usize>,
    /// The layers drawn, the topmost first.
    layers: Vec<Number>,
    /// Files of the merged view that are not drawn.
    more: u64,
}

impl<'s> Picture<'s> {
    fn new(texts: &'static Texts, survey: &'s Survey, figures: &'s Figures) -> Picture<'s> {
        let mut places = interesting(survey);
        places.sort_unstable();
        let layers = drawn_layers(survey, &places);
        let drawn =
            places.iter().filter(|&&p| survey.shown(p, survey.top()).is_some_and(|h| !is_dir(h))).count();
        let more = figures.merged_files.saturating_sub(drawn as u64);
        Picture { texts, survey, figures, places, layers, more }
    }

    fn column(&self, index: usize) -> usize {
        MARGIN + LABEL + index * COLUMN + (COLUMN - BOX) / 2
    }

    /// Returns where the band of a layer begins; row 0 is the merged view.
    fn row(&self, row: usize) -> usize {
        MARGIN + CAPTION + row * (BAND + GAP)
    }

    fn box_top(&self, row: usize) -> usize {
        self.row(row) + (BAND - BOX_HEIGHT) / 2
    }

    fn row_of(&self, layer: Number) -> Option<usize> {
        self.layers.iter().position(|&drawn| drawn == layer).map(|at| at + 1)
    }

    fn draw(&self, out: &mut String, inline: bool) -> fmt::Result {
        let width = 2 * MARGIN + LABEL + self.places.len().max(2) * COLUMN;
        let legend = self.row(self.layers.len() + 1) + 20;
        let height = legend + legend_lines(self.texts, width) * LEGEND_LINE + 4;
        let layers = self.texts.counted("layer", self.survey.layers.len() as u64);
        let title = self.texts.fill("svg.title", &[("layers", &layers)]);
        write!(
            out,
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="um-pic" role="img" aria-labelledby="um-t um-d" viewBox="0 0 {width} {height}" width="{width}" height="{height}">"#
        )?;
        write!(out, r#"<title id="um-t">{}</title>"#, escape(&title))?;
        write!(out, r#"<desc id="um-d">{}</desc>"#, escape(&self.description()))?;
        if !inline {
            write!(out, "<style>{}{}</style>", include_str!("svg.css"), include_str!("svg-shapes.css"))?;
        }
        for kind in ["changed", "deleted"] {
            write!(
                out,
                r#"<marker id="um-{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path class="um-head {kind}" d="M0 0 8 4 0 8z"/></marker>"#
            )?;
        }
        write!(out, r#"<rect class="um-paper" width="{width}" height="{height}"/>"#)?;
        self.bands(out, width - 2 * MARGIN)?;
        for index in 0..self.places.len() {
            self.file(out, index)?;
        }
        legend_of(self.texts, out, legend, width)?;
        out.push_str("</svg>\n");
        Ok(())
    }

    fn bands(&self, out: &mut String, width: usize) -> fmt::Result {
        let merged = self.texts.counted("file", self.figures.merged_files);
        let shown = names::bytes(self.figures.bytes - self.figures.wasted_bytes);
        self.band(
            out,
            0,
            width,
            ("um-merged", None),
            self.texts.say("svg.merged"),
            &[self.texts.fill("svg.shown", &[("files", &merged), ("size", &shown)]), self.more_words()],
        )?;
        for (at, &number) in self.layers.iter().enumerate() {
            let index = usize::from(number) - 1;
            let (layer, f) = (&self.survey.layers[index], &self.figures.layers[index]);
            let label = match self.survey.told(number) {
                0 => self.texts.say("explain.upper").to_owned(),
                told => told.to_string(),
            };
            let name =
                if label == layer.name { label } else { format!("{label}  {}", shorten(&layer.name, 20)) };
            self.band(out, at + 1, width, ("um-band", Some(number)), &name, &layer_words(self.texts, f))?;
        }
        Ok(())
    }

    fn more_words(&self) -> String {
        let hidden_layers = self.survey.layers.len() - self.layers.len();
        let files = self.texts.counted("file", self.more);
        let layers = self.texts.counted("layer", hidden_layers as u64);
        let not_drawn = |what: &str| self.texts.fill("svg.not_drawn", &[("what", what)]);
        match (self.more, hidden_layers) {
            (0, 0) => String::new(),
            (0, _) => not_drawn(&layers),
            (_, 0) => not_drawn(&files),
            _ => self.texts.fill("svg.both_not_drawn", &[("files", &files), ("layers", &layers)]),
        }
    }

    fn band(
        &self,
        out: &mut String,
        row: usize,
        width: usize,
        (class, layer): (&str, Option<Number>),
        name: &str,
        lines: &[String],
    ) -> fmt::Result {
        let (y, x) = (self.row(row), MARGIN + 16);
        write!(
            out,
            r#"<rect class="{class}" x="{MARGIN}" y="{y}" width="{width}" height="{BAND}" rx="8"/>"#
        )?;
        if let Some(layer) = layer {
            stripe(out, layer, (MARGIN, y, 7, BAND))?;
        }
        write!(out, r#"<text class="um-title" x="{x}" y="{}">{}</text>"#, y + 22, escape(name))?;
        for (at, line) in lines.iter().enumerate() {
            write!(
                out,
                r#"<text class="um-quiet" x="{x}" y="{}">{}</text>"#,
                y + 40 + 15 * at,
                escape(line)
            )?;
        }
        Ok(())
    }

    /// Draws one column: the path, its boxes, the arrows between them.
    fn file(&self, out: &mut String, index: usize) -> fmt::Result {
        let (survey, place) = (self.survey, self.places[index]);
        let x = self.column(index);
        let middle = x + BOX / 2;
        let holdings = survey.holdings(place);
        let directory = holdings.iter().any(is_dir);
        let full = readable(&survey.path(place)) + if directory { "/" } else { "" };
        let name = readable(&survey.places[place].name) + if directory { "/" } else { "" };
        write!(out, "<g><title>{}</title>", escape(&full))?;
        let parent = full.strip_suffix(&name).unwrap_or_default();
        write!(
            out,
            r#"<text class="um-quiet" text-anchor="middle" x="{middle}" y="{}">{}</text>"#,
            MARGIN + CAPTION - 10,
            escape(&shorten_start(parent, LETTERS + 2))
        )?;
        let drawn: Vec<(&Holding, usize)> =
            holdings.iter().filter_map(|h| Some((h, self.row_of(h.layer)?))).collect();
        self.shown(out, x, survey.shown(place, survey.top()), &name, &drawn)?;
        for (h, row) in &drawn {
            let (class, second) = look_of(self.texts, h);
            self.holding(out, x, *row, (class, h.layer), &name, &second, h.hidden_by.is_some())?;
            self.arrow(out, middle, h, *row)?;
        }
        out.push_str("</g>");
        Ok(())
    }

    /// Draws what the merged view shows of a path, and the line to where it shines through from.
    fn shown(
        &self,
        out: &mut String,
        x: usize,
        shown: Option<&Holding>,
        name: &str,
        drawn: &[(&Holding, usize)],
    ) -> fmt::Result {
        let middle = x + BOX / 2;
        match shown {
            Some(h) => {
                if let Some((_, row)) = drawn.iter().find(|(d, _)| d.layer == h.layer) {
                    let (from, to) = (self.box_top(*row), self.box_top(0) + BOX_HEIGHT);
                    write!(out, r#"<path class="um-shine" d="M{middle} {from}V{to}"/>"#)?;
                }
                let size = if is_dir(h) { String::new() } else { names::bytes(h.size) };
                self.holding(out, x, 0, ("", h.layer), name, &size, false)
            }
            None => {
                let y = self.box_top(0) + 24;
                write!(
                    out,
                    r#"<text class="um-quiet" text-anchor="middle" x="{middle}" y="{y}">{}</text>"#,
                    self.texts.say("svg.deleted")
                )
            }
        }
    }

    /// Draws the arrow from what a layer holds to what it replaces.
    fn arrow(&self, out: &mut String, middle: usize, h: &Holding, row: usize) -> fmt::Result {
        let target = h.replaces.and_then(|layer| self.row_of(layer));
        let Some(target) = target.filter(|_| h.what() != LayerAction::Merged) else { return Ok(()) };
        let kind = if h.what() == LayerAction::Deleted { "deleted" } else { "changed" };
        // Beside the middle, where the dotted line of what shines through would be.
        let (at, from, to) = (middle + 22, self.box_top(row) + BOX_HEIGHT, self.box_top(target) - 2);
        write!(out, r#"<path class="um-arrow {kind}" marker-end="url(#um-{kind})" d="M{at} {from}V{to}"/>"#)
    }

    #[allow(clippy::too_many_arguments)] // a box is that many things
    fn holding(
        &self,
        out: &mut String,
        x: usize,
        row: usize,
        (class, layer): (&str, Number),
        name: &str,
        second: &str,
        hidden: bool,
    ) -> fmt::Result {
        let (y, middle) = (self.box_top(row), x + BOX / 2);
        let gone = if hidden || class == "deleted" { "um-gone" } else { "" };
        write!(
            out,
            r#"<rect class="um-box {class}" x="{x}" y="{y}" width="{BOX}" height="{BOX_HEIGHT}" rx="5"/>"#
        )?;
        stripe(out, layer, (x, y, 4, BOX_HEIGHT))?;
        write!(
            out,
            r#"<text class="{gone}" text-anchor="middle" x="{middle}" y="{}">{}</text><text class="um-quiet {class}" text-anchor="middle" x="{middle}" y="{}">{}</text>"#,
            y + 16,
            escape(&shorten(name, LETTERS)),
            y + 31,
            escape(second)
        )
    }

    /// Says it in words, for those who don't see it.
    fn description(&self) -> String {
        let mut words = String::new();
        for &number in &self.layers {
            let index = usize::from(number) - 1;
            let f = &self.figures.layers[index];
            let name = &self.survey.layers[index].name;
            let title = called(self.texts, self.survey, number);
            write!(words, "{title}, {name}: {}. ", layer_words(self.texts, f).join(", ")).unwrap_or_default();
        }
        words + &self.texts.fill("layers.end", &[("sentence", &self.figures.sentence_in(self.texts))])
    }
}

/// Draws the stripe of a layer's colour at the left of a band or a box: where it is and how large.
fn stripe(
    out: &mut String,
    layer: Number,
    (x, y, width, height): (usize, usize, usize, usize),
) -> fmt::Result {
    let colour = colours::hex(layer);
    write!(
        out,
        r#"<rect class="um-layer" fill="{colour}" x="{x}" y="{y}" width="{width}" height="{height}" rx="2"/>"#
    )
}

/// What the signs mean: the class of a box, or what else is drawn, and the key of the words.
const LEGEND: [(&str, &str); 8] = [
    ("added", "svg.legend.added"),
    ("changed", "svg.legend.changed"),
    ("deleted", "svg.legend.deleted"),
    ("hidden", "svg.legend.hidden"),
    ("arrow changed", "svg.legend.replaces"),
    ("arrow deleted", "svg.legend.deletes"),
    ("shine", "svg.legend.shine"),
    ("stripe", "svg.legend.stripe"),
];
const LEGEND_LINE: usize = 20;

/// Returns where each part of the legend stands: column and line. What has no room goes to the next line.
fn legend_places(texts: &Texts, width: usize) -> Vec<(usize, usize)> {
    let (mut x, mut line) = (MARGIN, 0);
    let place = |(_, key): &(&str, &str)| {
        let wide = 42 + texts.say(key).width() * 6;
        if x > MARGIN && x + wide > width {
            (x, line) = (MARGIN, line + 1);
        }
        let at = (x, line);
        x += wide;
        at
    };
    LEGEND.iter().map(place).collect()
}

fn legend_lines(texts: &Texts, width: usize) -> usize {
    legend_places(texts, width).last().map_or(0, |(_, line)| line + 1)
}

fn legend_of(texts: &Texts, out: &mut String, top: usize, width: usize) -> fmt::Result {
    for ((class, key), (x, line)) in LEGEND.iter().zip(legend_places(texts, width)) {
        let words = texts.say(key);
        let y = top + line * LEGEND_LINE;
        let (above, middle, end) = (y - 10, y - 4, x + 16);
        match class.split_once(' ') {
            Some((_, kind)) => write!(
                out,
                r#"<path class="um-arrow {kind}" marker-end="url(#um-{kind})" d="M{x} {middle}H{end}"/>"#
            )?,
            None if *class == "shine" => {
                write!(out, r#"<path class="um-shine" d="M{x} {middle}H{end}"/>"#)?;
            }
            None if *class == "stripe" => {
                for (at, layer) in [(x, 1), (x + 6, 2), (x + 12, 3)] {
                    stripe(out, layer, (at, above, 4, 12))?;
                }
            }
            None => write!(
                out,
                r#"<rect class="um-box {class}" x="{x}" y="{above}" width="16" height="12" rx="3"/>"#
            )?,
        }
        write!(out, r#"<text class="um-quiet" x="{}" y="{y}">{words}</text>"#, x + 22)?;
    }
    Ok(())
}

/// Returns two short lines about a layer.
fn layer_words(texts: &Texts, f: &LayerFigures) -> [String; 2] {
    let did =
        [(f.added.files, "svg.did_add"), (f.changed.files, "svg.did_change"), (f.deleted, "svg.did_delete")];
    let did = did.iter().filter(|(count, _)| *count > 0);
    let did =
        did.map(|(count, key)| texts.fill(key, &[("count", &indicatif::HumanCount(*count).to_string())]));
    let size = names::bytes(f.holds.bytes);
    let size = match f.wasted.bytes {
        0 => size,
        wasted => texts.fill("svg.wasted", &[("size", &size), ("wasted", &names::bytes(wasted))]),
    };
    [size, did.collect::<Vec<_>>().join(texts.say("walk.comma"))]
}

/// Returns the class of the box of what a layer holds, and its second line.
fn look_of(texts: &Texts, h: &Holding) -> (&'static str, String) {
    let hidden = h.hidden_by.is_some();
    match h.what() {
        LayerAction::Deleted => ("deleted", texts.say("kind.whiteout").to_owned()),
        _ if is_dir(h) && h.opaque => ("changed", texts.say("svg.opaque").to_owned()),
        _ if is_dir(h) => (if hidden { "hidden" } else { "" }, texts.say("kind.directory").to_owned()),
        _ if hidden => ("hidden", names::bytes(h.size)),
        LayerAction::Changed => ("changed", names::bytes(h.size)),
        LayerAction::Added | LayerAction::Merged => {
            (if h.layer > 1 { "added" } else { "" }, names::bytes(h.size))
        }
    }
}

fn is_dir(holding: &Holding) -> bool {
    holding.kind == Some(Kind::Directory)
}

/// Returns the places to draw: what was replaced or deleted first, then the largest.
fn interesting(survey: &Survey) -> Vec<usize> {
    let mut ranked: Vec<(bool, u64, usize)> = (1..survey.places.len())
        .filter_map(|place| {
            let holdings = survey.holdings(place);
            let history = holdings.iter().any(|h| h.replaces.is_some() && h.what() != LayerAction::Merged);
            // A file that went with its directory is told by the directory.
            if !history && (survey.shown(place, survey.top()).is_none() || holdings.iter().any(is_dir)) {
                return None;
            }
            Some((history, holdings.iter().map(|h| h.size).sum(), place))
        })
        .collect();
    ranked.sort_unstable_by(|a, b| (b.0, b.1, a.2).cmp(&(a.0, a.1, b.2)));
    // A few without a history beside the others, to see what that looks like.
    let history = ranked.iter().filter(|r| r.0).count().min(MOST_FILES - 2);
    let plain = ranked.iter().filter(|r| !r.0).take(MOST_FILES - history);
    let with = ranked.iter().filter(|r| r.0).take(MOST_FILES - plain.clone().count());
    with.chain(plain).map(|r| r.2).collect()
}

/// Returns the layers to draw, the topmost first.
fn drawn_layers(survey: &Survey, places: &[usize]) -> Vec<Number> {
    let top = survey.top();
    let mut layers: Vec<Number> = (1..=top).rev().collect();
    if layers.len() > MOST_LAYERS {
        let holds =
            |number: Number| places.iter().any(|&p| survey.holdings(p).iter().any(|h| h.layer == number));
        layers
            .sort_by_key(|&number| (number != top && number != 1, !holds(number), std::cmp::Reverse(number)));
        layers.truncate(MOST_LAYERS);
        layers.sort_unstable_by(|a, b| b.cmp(a));
    }
    layers
}

/// Cuts a text to at most so many columns of letters; what is too long loses its middle.
fn shorten(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let tail = (columns - 1) / 2;
    let end: String = take_columns(text.chars().rev(), tail).chars().rev().collect();
    take_columns(text.chars(), columns - 1 - tail) + "…" + &end
}

/// Does the same, but the start is lost.
fn shorten_start(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let end: String = take_columns(text.chars().rev(), columns - 1).chars().rev().collect();
    "…".to_owned() + &end
}

fn take_columns(chars: impl Iterator<Item = char>, columns: usize) -> String {
    let mut used = 0;
    chars
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= columns
        })
        .collect()
}

/// Escapes text for XML. [`readable`] has left no character that XML forbids.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(shorten("short", 10), "short");
        assert_eq!(shorten("abcdefghijkl", 7), "abc…jkl");
        assert!(shorten("名前名前名前", 7).width() <= 7);
        assert_eq!(shorten_start("usr/share/doc/", 6), "…/doc/");
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(escape("<a href='\"'>&"), "&lt;a href=&#39;&quot;&#39;&gt;&amp;");
    }
}
