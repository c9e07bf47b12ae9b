//! A survey for a terminal: a table of the layers, the tree with a column that tells the layers, and where bytes are
//! wasted.
//!
//! Colours say what a picture's colours say: green added, yellow changed, red deleted. The sign before each line says
//! the same, for those who don't see them. Styles are written always; who prints strips them where no terminal reads.

use std::fmt::{self, Write as _};

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};

use super::figures::{Figures, WastedPlace, wasted_places};
use super::names::{self, counted, readable};
use super::survey::{Holding, LayerAction, Number, Survey};
use crate::sys::object::Kind;

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

/// Returns the table of the layers, the topmost first, and the sentence about waste.
pub fn layers(survey: &Survey, figures: &Figures) -> String {
    let mut table = plain_table(["LAYER", "NAME", "FILES", "SIZE", "ADDED", "CHANGED", "DELETED", "WASTED"]);
    for (index, (layer, f)) in survey.layers.iter().zip(&figures.layers).enumerate().rev() {
        table.add_row([
            survey.label(index as Number + 1),
            layer.name.clone(),
            indicatif::HumanCount(f.holds.files).to_string(),
            names::bytes(f.holds.bytes),
            indicatif::HumanCount(f.added.files).to_string(),
            indicatif::HumanCount(f.changed.files).to_string(),
            indicatif::HumanCount(f.deleted).to_string(),
            names::bytes(f.wasted.bytes),
        ]);
    }
    right_align(&mut table, &[0, 2, 3, 4, 5, 6, 7]);
    format!("{table}\n{}.\n", figures.sentence())
}

/// Returns where bytes are wasted, the greatest first; all places or the greatest only.
pub fn waste(survey: &Survey, figures: &Figures, all: bool) -> String {
    let places = wasted_places(survey);
    if places.is_empty() {
        return format!("Nothing is wasted: {}.\n", figures.sentence());
    }
    let shown = if all { places.len() } else { places.len().min(MOST_WASTED) };
    let mut table = plain_table(["WASTED", "FILES", "LAYER", "BY LAYER", "", "PATH"]);
    for wasted in &places[..shown] {
        let WastedPlace { place, amount, steps, replaced } = wasted;
        let join = |each: fn(&(Number, Number)) -> Number| {
            let mut numbers: Vec<Number> = steps.iter().map(each).collect();
            numbers.dedup();
            numbers.into_iter().map(|number| survey.label(number)).collect::<Vec<_>>().join(", ")
        };
        table.add_row([
            names::bytes(amount.bytes),
            indicatif::HumanCount(amount.files).to_string(),
            join(|step| step.0),
            join(|step| step.1),
            if *replaced { "replaced" } else { "deleted" }.to_owned(),
            path(survey, *place),
        ]);
    }
    right_align(&mut table, &[0, 1, 2, 3]);
    let mut text = format!("{table}\n");
    if let rest @ [_, ..] = &places[shown..] {
        let bytes = rest.iter().map(|w| w.amount.bytes).sum();
        let more = counted(rest.len() as u64, "more place", "more places");
        writeln!(text, "… and {more} with {} (--all lists them)", names::bytes(bytes)).unwrap_or_default();
    }
    writeln!(text, "{}.", figures.sentence()).unwrap_or_default();
    text
}

fn path(survey: &Survey, place: usize) -> String {
    let slash = if survey.holdings(place).iter().any(|h| h.kind == Some(Kind::Directory)) { "/" } else { "" };
    readable(&survey.path(place)) + slash
}

fn plain_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn right_align(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Returns the tree. With `all`, nothing is folded.
pub fn tree(survey: &Survey, all: bool, out: &mut dyn fmt::Write) -> fmt::Result {
    writeln!(out, "{QUIET}  LAYERS           SIZE{QUIET:#}")?;
    let dull = if all || survey.places.len() <= SHORT_TREE {
        vec![false; survey.places.len()]
    } else {
        dull(survey)
    };
    let printer = Printer { survey, all, dull, top: survey.top() };
    let mut bars: Vec<&'static str> = Vec::new();
    printer.children(0, &mut bars, out)?;
    writeln!(
        out,
        "{QUIET}{ADDED}+{ADDED:#}{QUIET} added  {CHANGED}~{CHANGED:#}{QUIET} changed  {DELETED}-{DELETED:#}{QUIET} deleted   1>3: layer 1 replaces layer 3   1+3: both are merged{QUIET:#}"
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
    all: bool,
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
        self.all || !self.dull[place] && self.survey.shown(place, self.top).is_some_and(is_dir)
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
        write!(line, "{style}{sign}{style:#} {:<10}", layer_column(survey, holdings))?;
        write!(line, " {:>10}  ", size.map(names::bytes).unwrap_or_default())?;
        write!(line, "{QUIET}{}{}{QUIET:#}", bars.concat(), if last { "└─ " } else { "├─ " })?;
        let name = readable(&survey.places[place].name);
        if entry.is_some_and(is_dir) {
            let style = if shown.is_none() { DELETED } else { DIRECTORY };
            write!(line, "{style}{name}/{style:#}")?;
        } else {
            write!(line, "{style}{name}{style:#}")?;
        }
        if let Some(h) = shown.filter(|h| h.opaque) {
            write!(line, "  {QUIET}opaque in {}{QUIET:#}", survey.title(h.layer))?;
        }
        if folded {
            let (files, _) = self.below(place);
            write!(line, "  {QUIET}{}{QUIET:#}", counted(files, "file", "files"))?;
        }
        out.write_str(line)?;
        out.write_char('\n')
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

fn is_dir(holding: &Holding) -> bool {
    holding.kind == Some(Kind::Directory)
}

/// Returns `1>3`: layer 1 has replaced layer 3; `1+3`: both are merged.
fn layer_column(survey: &Survey, holdings: &[Holding]) -> String {
    let mut text = String::new();
    for (index, h) in holdings.iter().enumerate() {
        if index > 0 {
            text.push(if h.seen_at(survey.top()) { '+' } else { '>' });
        }
        if index == 3 && holdings.len() > 4 {
            text.push('…');
            break;
        }
        text.push_str(&survey.label(h.layer));
    }
    text
}

/// Returns the sentence for a terminal, made to be seen.
pub fn strong(text: &str) -> String {
    format!("{STRONG}{text}{STRONG:#}")
}
