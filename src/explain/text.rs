//! A survey for a terminal: a table of the layers, the largest files of each, the tree with a column that tells the layers, where
//! and why bytes are wasted.
//!
//! Colours say what a picture's colours say: green added, yellow changed, red deleted. The sign before each line says
//! the same, for those who don't see them. Styles are written always; who prints strips them where no terminal reads.

use std::fmt::{self, Write as _};

use anstyle::{AnsiColor, Style};
use unicode_width::UnicodeWidthStr;

use super::causes::WasteGroup;
use super::figures::{Figures, WastedPlace, wasted_places};
use super::names::{self, readable};
use super::paint::{Cell, align};
use super::shorten::{cut, cut_middle};
use super::survey::{Holding, LayerAction, Number, Survey};
use super::titles::called;
use crate::sys::object::Kind;
use crate::texts::Texts;

const ADDED: Style = AnsiColor::Green.on_default();
const CHANGED: Style = AnsiColor::Yellow.on_default();
const DELETED: Style = AnsiColor::Red.on_default();
const DIRECTORY: Style = AnsiColor::Blue.on_default().bold();
const QUIET: Style = Style::new().dimmed();
const STRONG: Style = Style::new().bold();

/// Trees of more lines have their dull parts folded.
const SHORT_TREE: usize = 200;
/// Places of waste that are listed.
const MOST_WASTED: usize = 30;

/// What is shown of a stack, in so many columns.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Of a line.
    pub columns: usize,
    /// Nothing is cut or left out.
    pub all: bool,
    /// In which language.
    pub texts: &'static Texts,
}

impl Room {
    fn say(&self, key: &str) -> &'static str {
        self.texts.find(key).unwrap_or_default()
    }

    /// Says "1 file", "1,234 files".
    fn files(&self, count: u64) -> String {
        self.texts.counted("file", count)
    }

    /// Says "the upper", "layer 2".
    fn title(&self, survey: &Survey, number: Number) -> String {
        called(self.texts, survey, number)
    }

    /// Says "upper", "2".
    fn label(&self, survey: &Survey, number: Number) -> String {
        match survey.told(number) {
            0 => self.say("explain.upper").to_owned(),
            number => number.to_string(),
        }
    }
}

/// Returns the table of the layers, the topmost first.
pub fn layers(survey: &Survey, figures: &Figures, room: Room) -> String {
    let cells = |number: Number, counts: bool| -> Vec<Cell> {
        let f = &figures.layers[usize::from(number) - 1];
        let files = |count: u64| Cell::plain(indicatif::HumanCount(count));
        let mut row = vec![files(f.holds.files), Cell::plain(names::bytes(f.holds.bytes))];
        if counts {
            row.extend([files(f.added.files), files(f.changed.files), files(f.deleted)]);
        }
        row.push(Cell::plain(names::bytes(f.wasted.bytes)));
        row
    };
    let widest = |counts: bool| {
        let widths =
            (1..=survey.top()).map(|number| cells(number, counts).iter().map(|cell| cell.width() + 2).sum());
        widths.max().unwrap_or(0).max(if counts { COUNTED } else { UNCOUNTED })
    };
    // Where a name would have no room, what was counted goes first.
    let counts = room.all || room.columns >= widest(true) + LEAST_NAME;
    let name_room = match room.all {
        true => usize::MAX,
        false => room.columns.saturating_sub(widest(counts) + LABEL).max(LEAST_NAME / 2),
    };
    let mut head =
        ["layers.head.layer", "layers.head.name", "layers.head.files", "layers.head.size"].to_vec();
    if counts {
        head.extend(["layers.head.added", "layers.head.changed", "layers.head.deleted"]);
    }
    head.push("layers.head.wasted");
    let head: Vec<&str> = head.into_iter().map(|key| room.say(key)).collect();
    let mut rows =
        vec![head.iter().map(|word| Cell::new(word, format!("{QUIET}{word}{QUIET:#}"))).collect::<Vec<_>>()];
    for number in (1..=survey.top()).rev() {
        let name = cut(&survey.layers[usize::from(number) - 1].name, name_room);
        let mut row = vec![Cell::plain(room.label(survey, number)), Cell::plain(name)];
        row.extend(cells(number, counts));
        rows.push(row);
    }
    let right: Vec<usize> = (0..head.len()).filter(|at| *at != 1).collect();
    align(&rows, &right)
}

/// Columns that a layer's number takes, with what parts it from the name.
const LABEL: usize = 7;
const LEAST_NAME: usize = 24;
/// Columns that the headings take.
const COUNTED: usize = 50;
const UNCOUNTED: usize = 23;

/// Returns the largest files of each layer.
pub fn largest(survey: &Survey, room: Room) -> String {
    let mut of_layer: Vec<Vec<(u64, usize)>> = vec![Vec::new(); survey.layers.len()];
    for place in 1..survey.places.len() {
        for h in survey.holdings(place) {
            if h.kind == Some(Kind::File) && h.counts && h.size > 0 && h.from == h.layer {
                of_layer[usize::from(h.layer) - 1].push((h.size, place));
            }
        }
    }
    let mut out = String::new();
    for (index, mut files) in of_layer.into_iter().enumerate().rev() {
        if files.is_empty() {
            continue;
        }
        // The same sizes stand in the order of the tree.
        files.sort_by_key(|(size, place)| (std::cmp::Reverse(*size), *place));
        let number = index as Number + 1;
        let title = room.title(survey, number);
        let name =
            cut_unless(room.all, &survey.layers[index].name, room.columns.saturating_sub(title.width() + 2));
        out += &format!("{STRONG}{title}{STRONG:#}  {name}\n");
        let shown = if room.all { files.len() } else { LARGEST };
        for (size, place) in files.iter().take(shown) {
            let hidden = survey.holdings(*place).iter().any(|h| h.layer == number && h.is_waste());
            let mark = if hidden { room.say("layers.hidden") } else { "" };
            let columns = room.columns.saturating_sub(BESIDE_PATH + mark.width());
            let path = readable(&survey.path(*place));
            let path = if room.all { path } else { cut_middle(&path, columns) };
            out += &format!("  {:>10}  {path}{QUIET}{mark}{QUIET:#}\n", names::bytes(*size));
        }
    }
    out
}

/// Files of a layer that are listed.
const LARGEST: usize = 3;
/// Columns of a size and what parts it from a path.
const BESIDE_PATH: usize = 14;

fn cut_unless(all: bool, text: &str, columns: usize) -> String {
    if all { text.to_owned() } else { cut(text, columns) }
}

/// Returns why bytes are wasted, the greatest reason first.
pub fn causes(survey: &Survey, groups: &[WasteGroup], room: Room) -> String {
    let shown = if room.all { groups.len() } else { groups.len().min(MOST_CAUSES) };
    let mut out = String::new();
    for group in &groups[..shown] {
        let amount = &group.amount;
        let slash = if group.is_dir { "/" } else { "" };
        let files = room.files(amount.files);
        let path = format!("{}{slash}", readable(&group.path));
        let path = if path == "/" { room.say("layers.several").to_owned() } else { path };
        let path = match room.all {
            true => path,
            false => cut_middle(&path, room.columns.saturating_sub(BESIDE_PATH + files.width() + 2)),
        };
        out += &format!("  {:>10}  {files}  {STRONG}{path}{STRONG:#}\n", names::bytes(amount.bytes));
        let made = layer_with_name(survey, group.layer, room);
        let wasted = layer_with_name(survey, group.hidden_by, room);
        let lines = [
            room.say(group.cause.key()).to_owned(),
            room.texts.fill("layers.made", &[("layer", &made)]),
            room.texts.fill("layers.wasted", &[("layer", &wasted)]),
            room.texts.fill("layers.saved", &[("way", room.say(group.cause.way_key()))]),
        ];
        for line in lines {
            out += &format!("{:14}{}\n", "", cut_unless(room.all, &line, room.columns.saturating_sub(14)));
        }
    }
    if let rest @ [_, ..] = &groups[shown..] {
        let bytes = rest.iter().map(|group| group.amount.bytes).sum();
        let values = [("count", rest.len().to_string()), ("size", names::bytes(bytes))];
        let values = [(values[0].0, &values[0].1[..]), (values[1].0, &values[1].1[..])];
        let key = if rest.len() == 1 { "layers.more_reason" } else { "layers.more_reasons" };
        out += &format!("  {}\n", room.texts.fill(key, &values));
    }
    out
}

/// Reasons that are listed.
const MOST_CAUSES: usize = 5;

fn layer_with_name(survey: &Survey, number: Number, room: Room) -> String {
    let name = &survey.layers[usize::from(number) - 1].name;
    room.texts.fill("layers.with_name", &[("layer", &room.title(survey, number)), ("name", name)])
}

/// Returns where bytes are wasted, the greatest first; all places or the greatest only.
pub fn waste(survey: &Survey, room: Room) -> String {
    let places = wasted_places(survey);
    let shown = if room.all { places.len() } else { places.len().min(MOST_WASTED) };
    let head = [
        room.say("layers.head.wasted"),
        room.say("layers.head.files"),
        room.say("layers.head.layer"),
        room.say("layers.head.by_layer"),
        "",
        room.say("layers.head.path"),
    ];
    let mut rows =
        vec![head.iter().map(|word| Cell::new(word, format!("{QUIET}{word}{QUIET:#}"))).collect::<Vec<_>>()];
    let mut paths = Vec::new();
    for wasted in &places[..shown] {
        let WastedPlace { place, amount, steps, replaced } = wasted;
        let join = |each: fn(&(Number, Number)) -> Number| {
            let mut numbers: Vec<Number> = steps.iter().map(each).collect();
            numbers.dedup();
            let list =
                numbers.into_iter().map(|number| room.label(survey, number)).collect::<Vec<_>>().join(", ");
            cut_unless(room.all, &list, LONGEST_LIST)
        };
        let row = [
            names::bytes(amount.bytes),
            indicatif::HumanCount(amount.files).to_string(),
            join(|step| step.0),
            join(|step| step.1),
            room.say(if *replaced { "layers.replaced" } else { "layers.deleted" }).to_owned(),
        ];
        rows.push(row.map(Cell::plain).into());
        paths.push(path(survey, *place));
    }
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(Cell::width).max().unwrap_or(0) + 2;
    let beside: usize = (0..head.len() - 1).map(width).sum();
    for (row, path) in rows.iter_mut().skip(1).zip(paths) {
        let path = if room.all { path } else { cut_middle(&path, room.columns.saturating_sub(beside)) };
        row.push(Cell::plain(path));
    }
    let mut text = align(&rows, &[0, 1, 2, 3]);
    if let rest @ [_, ..] = &places[shown..] {
        let bytes = rest.iter().map(|w| w.amount.bytes).sum();
        let (count, size) = (rest.len().to_string(), names::bytes(bytes));
        let key = if rest.len() == 1 { "layers.more_place" } else { "layers.more_places" };
        let more = room.texts.fill(key, &[("count", &count), ("size", &size)]);
        writeln!(text, "{more}").unwrap_or_default();
    }
    text
}

/// Columns of a list of layers in a row of waste.
const LONGEST_LIST: usize = 12;

fn path(survey: &Survey, place: usize) -> String {
    let slash = if survey.holdings(place).iter().any(|h| h.kind == Some(Kind::Directory)) { "/" } else { "" };
    readable(&survey.path(place)) + slash
}

/// Returns the tree. With [`Room::all`], nothing is folded but what is deeper than `depth`; else what is dull, too.
pub fn tree(survey: &Survey, room: Room, depth: Option<u16>, out: &mut dyn fmt::Write) -> fmt::Result {
    let (layers, size) = (room.say("layers.head.layers"), room.say("layers.head.size"));
    let pad = " ".repeat(21usize.saturating_sub(layers.width() + size.width()));
    writeln!(out, "{QUIET}  {layers}{pad}{size}{QUIET:#}")?;
    let dull = if room.all || survey.places.len() <= SHORT_TREE {
        vec![false; survey.places.len()]
    } else {
        dull(survey)
    };
    let printer = Printer { survey, room, depth, dull, top: survey.top() };
    let mut bars: Vec<&'static str> = Vec::new();
    printer.children(0, &mut bars, out)?;
    let part = if room.columns < LEGEND { "\n" } else { "   " };
    let [added, changed, deleted] =
        ["layers.added", "layers.changed", "layers.gone"].map(|key| room.say(key));
    let (replaces, merged) = (room.say("layers.replaces"), room.say("layers.merged"));
    writeln!(
        out,
        "{QUIET}{ADDED}+{ADDED:#}{QUIET} {added}  {CHANGED}~{CHANGED:#}{QUIET} {changed}  {DELETED}-{DELETED:#}{QUIET} {deleted}{part}1>3: {replaces}   1+3: {merged}{QUIET:#}"
    )
}

/// Returns which directories hold nothing worth a line: all from one layer, nothing hidden.
fn dull(survey: &Survey) -> Vec<bool> {
    let count = survey.places.len();
    let mut layer: Vec<Option<Number>> = (0..count)
        .map(|place| match survey.holdings(place) {
            [only] if only.kind.is_some() && only.hidden_by.is_none() => Some(only.layer),
            _ => None,
        })
        .collect();
    for place in (1..count).rev() {
        let parent = survey.places[place].parent as usize;
        if layer[place] != layer[parent] {
            layer[parent] = None;
        }
    }
    layer.iter().map(Option::is_some).collect()
}

struct Printer<'s> {
    survey: &'s Survey,
    room: Room,
    depth: Option<u16>,
    dull: Vec<bool>,
    top: Number,
}

impl Printer<'_> {
    fn children(&self, place: usize, bars: &mut Vec<&'static str>, out: &mut dyn fmt::Write) -> fmt::Result {
        // Not by recursion: nothing bounds the depth of a tree.
        let survey = self.survey;
        let mut open: Vec<Vec<usize>> = vec![self.listed(place)];
        while let Some(rest) = open.last_mut() {
            let Some(child) = rest.pop() else {
                open.pop();
                bars.pop();
                continue;
            };
            let last = rest.is_empty();
            self.line(child, bars, last, out)?;
            if survey.children(child).next().is_some() && self.opens(child) {
                bars.push(if last { "   " } else { "│  " });
                let children = self.listed(child);
                open.push(children);
            }
        }
        Ok(())
    }

    /// Returns the children of a place in reverse order.
    fn listed(&self, place: usize) -> Vec<usize> {
        let mut children: Vec<usize> = self.survey.children(place).collect();
        children.reverse();
        children
    }

    /// Returns whether the children of a place are printed.
    fn opens(&self, place: usize) -> bool {
        if self.depth.is_some_and(|depth| self.survey.places[place].depth >= depth) {
            return false;
        }
        self.room.all || !self.dull[place] && self.survey.shown(place, self.top).is_some_and(is_dir)
    }

    fn line(&self, place: usize, bars: &[&str], last: bool, out: &mut dyn fmt::Write) -> fmt::Result {
        let survey = self.survey;
        let holdings = survey.holdings(place);
        let shown = survey.shown(place, self.top);
        let (sign, style) = match shown {
            None => ('-', DELETED),
            Some(h) => match h.what() {
                LayerAction::Changed => ('~', CHANGED),
                LayerAction::Added if h.layer > 1 => ('+', ADDED),
                _ => (' ', Style::new()),
            },
        };
        let entry = shown.or(holdings.iter().find(|h| h.kind.is_some()));
        let folded = survey.children(place).next().is_some() && !self.opens(place);
        let size = if folded {
            Some(self.below(place).1)
        } else {
            entry.filter(|h| h.kind == Some(Kind::File)).map(|h| h.size)
        };
        let mut line = String::new();
        let line = &mut line;
        let layers = self.layer_column(holdings);
        let pad = " ".repeat(10usize.saturating_sub(layers.width()));
        write!(line, "{style}{sign}{style:#} {layers}{pad}")?;
        write!(line, " {:>10}  ", size.map(names::bytes).unwrap_or_default())?;
        write!(line, "{QUIET}{}{}{QUIET:#}", bars.concat(), if last { "└─ " } else { "├─ " })?;
        let behind = match shown.filter(|h| h.opaque) {
            Some(h) => {
                let layer = self.room.title(survey, h.layer);
                self.room.texts.fill("layers.opaque_in", &[("layer", &layer)])
            }
            None => String::new(),
        };
        let behind = match folded {
            true => format!("{behind}  {}", self.room.files(self.below(place).0)),
            false => behind,
        };
        let is_directory = entry.is_some_and(is_dir);
        let beside = BESIDE_NAME + 3 * (bars.len() + 1) + behind.width() + usize::from(is_directory);
        let name = readable(&survey.places[place].name);
        let name = match self.room.all {
            true => name,
            false => cut_middle(&name, self.room.columns.saturating_sub(beside).max(LEAST_OF_NAME)),
        };
        if is_directory {
            let style = if shown.is_none() { DELETED } else { DIRECTORY };
            write!(line, "{style}{name}/{style:#}")?;
        } else {
            write!(line, "{style}{name}{style:#}")?;
        }
        write!(line, "{QUIET}{behind}{QUIET:#}")?;
        out.write_str(line)?;
        out.write_char('\n')
    }

    /// Returns `1>3`: layer 1 has replaced layer 3; `1+3`: both are merged.
    fn layer_column(&self, holdings: &[Holding]) -> String {
        let mut text = String::new();
        for (index, h) in holdings.iter().enumerate() {
            if index > 0 {
                text.push(if h.seen_at(self.survey.top()) { '+' } else { '>' });
            }
            if index == 3 && holdings.len() > 4 {
                text.push('…');
                break;
            }
            text.push_str(&self.room.label(self.survey, h.layer));
        }
        text
    }

    /// Counts the files below a place and their bytes, as shown or, of what is deleted, as they were.
    fn below(&self, place: usize) -> (u64, u64) {
        let end = self.survey.places[place].end as usize;
        let gone = self.survey.shown(place, self.top).is_none();
        (place..end)
            .filter_map(|place| match gone {
                true => self.survey.holdings(place).iter().find(|h| h.kind.is_some()),
                false => self.survey.shown(place, self.top),
            })
            .filter(|h| !is_dir(h))
            .fold((0, 0), |(files, bytes), h| (files + 1, bytes + h.size))
    }
}

/// Columns of the line that explains the signs.
const LEGEND: usize = 84;
/// Columns before the bars of the tree.
const BESIDE_NAME: usize = 25;
/// As much of a name is shown however deep it is.
const LEAST_OF_NAME: usize = 8;

fn is_dir(holding: &Holding) -> bool {
    holding.kind == Some(Kind::Directory)
}

/// Returns the sentence for a terminal, made to be seen.
pub fn strong(text: &str) -> String {
    format!("{STRONG}{text}{STRONG:#}")
}
