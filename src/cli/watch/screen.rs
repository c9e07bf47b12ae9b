//! The screen of `unionmount status --watch`.

use indicatif::HumanCount;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Paragraph, Row, Sparkline, Table};
use unicode_width::UnicodeWidthStr;

use super::View;
use crate::cli::terminal::without_colours;
use crate::cli::uptime::uptime;
use crate::control::protocol::Told;
use crate::explain::names::bytes;
use crate::explain::paint::Paint;
use crate::explain::picture::copying_up;
use crate::explain::shorten::{cut, cut_middle};
use crate::explain::words::{self, Tone};
use crate::union::escaped_path::EscapedPath;
use crate::union::events::{Event, EventKind};

/// Fewer columns have no room for two blocks of figures side by side.
const NARROW: u16 = 100;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let area = frame.area();
    let layers = view.status.layers.len().min(8) as u16 + 3;
    let blocks = if area.width < NARROW { narrow(area, layers) } else { wide(area, layers) };
    frame.render_widget(head(view, area.width), blocks.title);
    layer_table(frame, blocks.layers, view);
    counters(frame, blocks.counters, view);
    if let Some(area) = blocks.requests {
        requests(frame, area, view);
    }
    hottest(frame, blocks.paths, view);
    events(frame, blocks.events, view);
    frame.render_widget(foot(view), blocks.keys);
    if !view.colours {
        without_colours(frame);
    }
}

/// Where each block stands.
struct Blocks {
    title: Rect,
    layers: Rect,
    counters: Rect,
    requests: Option<Rect>,
    paths: Rect,
    events: Rect,
    keys: Rect,
}

fn wide(area: Rect, layer_rows: u16) -> Blocks {
    let [title, top, middle, events, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(layer_rows.max(9)),
        Constraint::Min(6),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    let [layers, counters] =
        Layout::horizontal([Constraint::Fill(3), Constraint::Length(COUNTERS)]).areas(top);
    let [requests, paths] = Layout::horizontal([Constraint::Fill(2), Constraint::Fill(3)]).areas(middle);
    Blocks { title, layers, counters, requests: Some(requests), paths, events, keys }
}

/// Columns of the counters.
const COUNTERS: u16 = 40;

fn narrow(area: Rect, layer_rows: u16) -> Blocks {
    // The events come first: they are what is watched.
    let layer_rows = layer_rows.min(area.height / 4 + 2);
    let [title, layers, middle, events, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(layer_rows),
        Constraint::Length(9),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    let [counters, paths] =
        Layout::horizontal([Constraint::Length(COUNTERS.min(area.width / 2 + 2)), Constraint::Fill(1)])
            .areas(middle);
    Blocks { title, layers, counters, requests: None, paths, events, keys }
}

fn block(title: &str) -> Block<'_> {
    Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(Style::new().fg(Color::DarkGray))
        .title(Span::from(format!(" {title} ")).bold())
}

fn head(view: &View, width: u16) -> Line<'static> {
    let about = &view.status.about;
    let io = EscapedPath::from(about.io.as_bytes());
    let memory = view.status.memory.map(|memory| format!(" · {}", bytes(memory))).unwrap_or_default();
    let now = view.history.back().copied().unwrap_or_default();
    let facts = match width < NARROW {
        true => {
            view.texts.fill("watch.rate", &[("count", &HumanCount(now).to_string()), ("memory", &memory)])
        }
        false => {
            let time = view.texts.duration(uptime(&view.status));
            let pid = about.pid.to_string();
            let values =
                [("time", time.as_str()), ("io", &io.to_string()), ("memory", &memory), ("pid", &pid)];
            view.texts.fill("watch.head", &values)
        }
    };
    let room = usize::from(width).saturating_sub(facts.width() + 2);
    let point = cut_middle(&EscapedPath::from(view.mount.point.as_path()).to_string(), room);
    Line::from(vec![Span::from(format!(" {point} ")).bold().reversed(), Span::from(facts).dim()])
}

fn foot(view: &View) -> Line<'static> {
    let key = |key: &'static str, does: &'static str| {
        [Span::from(format!(" {key} ")).reversed(), Span::from(format!(" {does}  ")).dim()]
    };
    let texts = view.texts;
    let mut spans = Vec::new();
    spans.extend(key("q", texts.say("watch.key.quit")));
    spans.extend(key("p", texts.say(if view.paused { "watch.key.go_on" } else { "watch.key.pause" })));
    spans.extend(key("c", texts.say("watch.key.clear")));
    if view.lost > 0 {
        let count = HumanCount(view.lost).to_string();
        spans.push(Span::from(texts.fill("watch.lost", &[("count", &count)])).red());
    }
    Line::from(spans)
}

fn layer_table(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let shows_paths = area.width >= WITH_PATHS;
    let room = usize::from(area.width).saturating_sub(2 + FIGURES + if shows_paths { 2 } else { 1 });
    let (name_room, path_room) = if shows_paths { (room / 3, room - room / 3 - 1) } else { (room, 0) };
    let rows = view.status.layers.iter().enumerate().map(|(at, layer)| {
        let number = match layer.layer {
            0 => view.texts.say("explain.upper").to_owned(),
            number => number.to_string(),
        };
        let usage = view.usage.as_ref().map(|counted| counted.layers.get(at).copied().flatten());
        let [files, whiteouts, size] = match usage {
            None => ["…".to_owned(), "…".to_owned(), "…".to_owned()],
            Some(None) => ["?".to_owned(), "?".to_owned(), "?".to_owned()],
            Some(Some(usage)) => {
                let plus = if usage.complete { "" } else { "+" };
                [
                    format!("{}{plus}", HumanCount(usage.files)),
                    format!("{}{plus}", HumanCount(usage.whiteouts)),
                    format!("{}{plus}", bytes(usage.bytes)),
                ]
            }
        };
        let mut row = vec![
            Line::from(Span::from(number).bold()),
            Line::from(cut(&layer.name.to_string(), name_room)).cyan(),
            Line::from(files).right_aligned(),
            Line::from(whiteouts).right_aligned(),
            Line::from(size).right_aligned(),
        ];
        if shows_paths {
            row.push(Line::from(cut_middle(&layer.directory.to_string(), path_room)).dim());
        }
        Row::new(row)
    });
    let mut widths = vec![
        Constraint::Length(NUMBER as u16),
        Constraint::Length(name_room.try_into().unwrap_or(u16::MAX)),
        Constraint::Length(10),
        Constraint::Length(9),
        Constraint::Length(11),
    ];
    let mut head = vec![
        Line::from(view.texts.say("watch.head_of.layer")),
        Line::from(view.texts.say("watch.head_of.name")),
        Line::from(view.texts.say("watch.head_of.files")).right_aligned(),
        Line::from(view.texts.say("watch.head_of.whiteouts")).right_aligned(),
        Line::from(view.texts.say("watch.head_of.size")).right_aligned(),
    ];
    if shows_paths {
        widths.push(Constraint::Fill(1));
        head.push(Line::from(view.texts.say("watch.head_of.path")));
    }
    let title = view.texts.fill("watch.layers", &[("when", &counted_when(view))]);
    let table = Table::new(rows, widths).header(Row::new(head).dim()).block(block(&title));
    frame.render_widget(table, area);
}

/// Columns of number, files, whiteouts and size, with what parts them.
const FIGURES: usize = NUMBER + 10 + 9 + 11 + 4;
/// Columns of a layer's number, or of what the upper is called.
const NUMBER: usize = 6;
/// As many columns have room for names and paths.
const WITH_PATHS: u16 = 76;

/// Tells how old the counts are: layers are counted now and then, all else is of this second.
fn counted_when(view: &View) -> String {
    match view.usage.as_ref().map(|counted| counted.at.elapsed().as_secs()) {
        None => view.texts.say("watch.being_counted").to_owned(),
        Some(0 | 1) => view.texts.say("watch.counted_now").to_owned(),
        Some(seconds) => view.texts.fill("watch.counted_ago", &[("seconds", &seconds.to_string())]),
    }
}

fn counters(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let counters = &view.status.counters;
    let upper = view.usage.as_ref().and_then(|counted| counted.layers.first().copied().flatten());
    let upper = upper.filter(|_| view.status.layers.first().is_some_and(|layer| layer.layer == 0));
    let lookups = view.status.requests.get("lookup").copied().unwrap_or_default();
    let texts = view.texts;
    let number = |count: u64| HumanCount(count).to_string();
    let comma = texts.say("walk.comma");
    let grew = upper.map_or("…".into(), |usage| {
        let (size, count) = (bytes(usage.changed_bytes), number(usage.changed_files));
        texts.fill("watch.grew", &[("size", &size), ("count", &count)])
    });
    let by_index = [("count", number(lookups)), ("answered", number(counters.index_answers))];
    let by_index = by_index.each_ref().map(|(name, count)| (*name, count.as_str()));
    let facts = [
        (
            "watch.word.copied",
            format!("{}{comma}{}", number(counters.copy_ups), bytes(counters.copied_bytes)),
        ),
        ("watch.word.grew", grew),
        ("watch.word.deleted", texts.fill("watch.by_whiteouts", &[("count", &number(counters.whiteouts))])),
        ("watch.word.created", number(counters.creates)),
        ("watch.word.renamed", number(counters.renames)),
        ("watch.word.lookups", texts.fill("watch.by_index", &by_index)),
        ("watch.word.known", number(view.status.nodes)),
    ];
    let room = usize::from(area.width).saturating_sub(2 + 12);
    let lines: Vec<Line<'_>> = facts
        .into_iter()
        .map(|(key, fact)| {
            let word = texts.say(key);
            let pad = " ".repeat(12usize.saturating_sub(word.width()));
            Line::from(vec![Span::from(format!("{word}{pad}")).dim(), Span::from(cut(&fact, room))])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block(texts.say("watch.since"))), area);
}

fn requests(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let now = view.history.back().copied().unwrap_or_default();
    let title = view.texts.fill("watch.requests", &[("count", &HumanCount(now).to_string())]);
    let outer = block(&title);
    let inner = outer.inner(area);
    frame.render_widget(outer, area);
    let [curve, list] =
        Layout::vertical([Constraint::Length((inner.height / 3).min(4)), Constraint::Fill(1)]).areas(inner);
    let width = usize::from(curve.width);
    let shown: Vec<u64> =
        view.history.iter().skip(view.history.len().saturating_sub(width)).copied().collect();
    frame.render_widget(Sparkline::default().data(&shown).style(Style::new().fg(Color::Green)), curve);
    let most = view.rates.first().map_or(1.0, |(_, rate)| rate.max(1.0));
    let room = f64::from(list.width.saturating_sub(24));
    let lines: Vec<Line<'_>> = view
        .rates
        .iter()
        .filter(|(_, rate)| *rate > 0.0)
        .map(|(kind, rate)| {
            let bar = "▬".repeat((rate / most * room).ceil() as usize);
            Line::from(vec![
                Span::from(format!("{kind:<14}")),
                Span::from(format!("{rate:>8.0} ")).bold(),
                Span::from(bar).fg(Color::Green),
            ])
        })
        .collect();
    let lines = if lines.is_empty() { vec![Line::from(view.texts.say("watch.idle")).dim()] } else { lines };
    frame.render_widget(Paragraph::new(lines), list);
}

fn hottest(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let mut paths: Vec<(&EscapedPath, &f64)> = view.heat.iter().collect();
    paths.sort_by(|a, b| b.1.total_cmp(a.1).then_with(|| a.0.cmp(b.0)));
    let most = paths.first().map_or(1.0, |(_, heat)| heat.max(1.0));
    // Where there is little room, the path has it.
    let bars: usize = if area.width < 50 { 3 } else { 10 };
    let room = usize::from(area.width).saturating_sub(2 + 8 + bars + 1);
    let lines: Vec<Line<'_>> = paths
        .iter()
        .take(usize::from(area.height.saturating_sub(2)))
        .map(|(path, heat)| {
            let bar = ((*heat / most) * bars as f64).ceil() as usize;
            Line::from(vec![
                Span::from(format!("{heat:>7.1} ")).bold(),
                Span::from(format!("{:<1$}", "▬".repeat(bar), bars + 1)).fg(Color::Yellow),
                Span::from(cut_middle(&path.to_string(), room)),
            ])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block(view.texts.say("watch.hottest"))), area);
}

fn events(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let room = usize::from(area.height.saturating_sub(2));
    let columns = usize::from(area.width.saturating_sub(2 + 11));
    let lines: Vec<Line<'_>> = view
        .told
        .iter()
        .skip(view.told.len().saturating_sub(room))
        .map(|told| match told {
            Told::Lost { lost } => {
                Line::from(view.texts.fill("watch.lost", &[("count", &lost.to_string())])).red()
            }
            Told::Event(Event { what, .. }) => Line::from(vec![
                Span::from(words::padded_word(view.texts, what) + " ").fg(colour(what)),
                Span::from(cut(
                    &words::sentence(view.texts, what, &view.status.layers, Paint::plain()),
                    columns,
                )),
            ]),
        })
        .collect();
    let paused = view.texts.say(if view.paused { "watch.paused" } else { "watch.events" });
    // What takes long is told as long as it takes.
    let title = match &view.status.copying[..] {
        [] => paused.to_owned(),
        [copy, ..] => {
            let values = [("path", copy.path.to_string()), ("far", copying_up(view.texts, copy))];
            let values = values.each_ref().map(|(name, value)| (*name, value.as_str()));
            cut(&view.texts.fill("watch.copying", &values), usize::from(area.width.saturating_sub(4)))
        }
    };
    frame.render_widget(Paragraph::new(lines).block(block(&title)), area);
}

fn colour(what: &EventKind) -> Color {
    match words::tone(what) {
        Tone::Quiet => Color::DarkGray,
        Tone::Hidden => Color::Red,
        Tone::Moved => Color::Yellow,
        Tone::Made => Color::Green,
        Tone::Described => Color::Cyan,
    }
}
