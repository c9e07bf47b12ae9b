//! The screen of `unionmount layers --interactive`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Margin, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Clear, Paragraph, Wrap};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::{Pane, Walk};
use crate::cli::terminal::without_colours;
use crate::explain::browse::{Order, Row, Seen, fate};
use crate::explain::picture::mode_letters;
use crate::explain::shorten::{cut, cut_middle};
use crate::explain::survey::{Holding, Number};
use crate::explain::titles::{called, what_word};
use crate::explain::{colours, names};
use crate::sys::object::Kind;
use crate::texts::Texts;

/// Fewer columns have no room for two blocks side by side.
const NARROW: u16 = 100;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, walk: &mut Walk<'_>) {
    let area = frame.area();
    let [title, body, keys] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)]).areas(area);
    frame.render_widget(head(walk, title.width), title);
    let count = walk.browse.survey().layers.len() as u16;
    if area.width < NARROW {
        let list = (count + 2).min((body.height / 3).max(5));
        let below = (body.height / 3).clamp(4, 8);
        let [layers, tree, detail] =
            Layout::vertical([Constraint::Length(list), Constraint::Fill(1), Constraint::Length(below)])
                .areas(body);
        layer_list(frame, layers, walk);
        tree_rows(frame, tree, walk);
        match walk.pane {
            Pane::Layers => step(frame, detail, walk),
            Pane::Tree => history(frame, detail, walk),
        }
    } else {
        let [left, right] =
            Layout::horizontal([Constraint::Length((body.width / 3).clamp(44, 72)), Constraint::Fill(1)])
                .areas(body);
        let list = (count + 2).min(left.height * 2 / 3).max(4);
        let [layers, whole] = Layout::vertical([Constraint::Length(list), Constraint::Fill(1)]).areas(left);
        let below = (right.height / 4).clamp(5, 12);
        let [tree, detail] = Layout::vertical([Constraint::Fill(1), Constraint::Length(below)]).areas(right);
        layer_list(frame, layers, walk);
        step(frame, whole, walk);
        tree_rows(frame, tree, walk);
        history(frame, detail, walk);
    }
    frame.render_widget(foot(walk, keys.width), keys);
    if walk.help {
        help(walk.texts, frame, area);
    }
    if !walk.colours {
        without_colours(frame);
    }
}

fn block(title: String, chosen: bool) -> Block<'static> {
    let border = if chosen { Style::new().fg(Color::Blue) } else { Style::new().fg(Color::DarkGray) };
    let title = Span::from(format!(" {title} "));
    let title = if chosen { title.bold().underlined() } else { title.bold() };
    Block::bordered().border_type(BorderType::Rounded).border_style(border).title(title)
}

fn head(walk: &Walk<'_>, width: u16) -> Line<'static> {
    let figures = walk.figures;
    let (all, wasted) = (names::bytes(figures.bytes), names::bytes(figures.wasted_bytes));
    let percent = format!("{:.1}", figures.efficiency());
    let facts = walk.texts.fill("walk.facts", &[("all", &all), ("wasted", &wasted), ("percent", &percent)]);
    let room = usize::from(width).saturating_sub(facts.width() + 2);
    let title = cut_middle(walk.title, room.max(8));
    Line::from(vec![Span::from(format!(" {title} ")).bold().reversed(), Span::from(facts).dim()])
}

fn foot(walk: &Walk<'_>, width: u16) -> Line<'static> {
    if walk.typing {
        let found = walk.texts.fill("walk.typing", &[("count", &walk.browse.matches().to_string())]);
        let room = usize::from(width).saturating_sub(found.width() + 2);
        // The end is what is being typed.
        let mut left = room.max(4);
        let fits = |letter: &char| {
            let enough = left.checked_sub(letter.width().unwrap_or(0));
            left = enough.unwrap_or(0);
            enough.is_some()
        };
        let query: String = walk.browse.query().chars().rev().take_while(fits).collect();
        let query: String = query.chars().rev().collect();
        return Line::from(vec![Span::from(format!("/{query}▏")).bold(), Span::from(found).dim()]);
    }
    if !walk.said.is_empty() {
        return Line::from(walk.said.clone()).yellow();
    }
    let other = if walk.pane == Pane::Tree { "walk.key.layers" } else { "walk.key.tree" };
    let seen = if walk.browse.is_alone() { "walk.key.up_to" } else { "walk.key.alone" };
    let order = match walk.browse.order() {
        Order::Name => "walk.key.by_size",
        Order::Size => "walk.key.by_layer",
        Order::Layer => "walk.key.by_name",
    };
    let hidden = if walk.browse.shows_hidden() { "walk.key.no_hidden" } else { "walk.key.hidden" };
    let keys = [
        ("q", "walk.key.quit"),
        ("?", "walk.key.help"),
        ("Tab", other),
        ("/", "walk.key.search"),
        ("s", order),
        ("a", seen),
        ("h", hidden),
        ("w", "walk.key.waste"),
        ("[ ]", "walk.key.layer"),
    ];
    let (mut spans, mut used) = (Vec::new(), 0);
    for (key, does) in keys {
        let does = walk.texts.say(does);
        used += key.width() + does.width() + 4;
        if used > usize::from(width) {
            break;
        }
        spans.extend([Span::from(format!(" {key} ")).reversed(), Span::from(format!(" {does} ")).dim()]);
    }
    Line::from(spans)
}

/// A layer's mark and number.
fn mark(walk: &Walk<'_>, layer: Number, width: usize) -> [Span<'static>; 2] {
    let label = match walk.browse.survey().told(layer) {
        0 => walk.texts.say("explain.upper").to_owned(),
        number => number.to_string(),
    };
    let pad = " ".repeat(width.saturating_sub(label.width()));
    [Span::from("▌").fg(Color::Indexed(colours::indexed(layer))), Span::from(label + &pad)]
}

fn layer_list(frame: &mut Frame<'_>, area: Rect, walk: &Walk<'_>) {
    let survey = walk.browse.survey();
    let room = usize::from(area.width).saturating_sub(2);
    let wasted = room >= 50;
    let name_room = room.saturating_sub(1 + 7 + 11 + if wasted { 12 } else { 0 });
    let top = walk.browse.top();
    let line = |number: Number| {
        let index = usize::from(number) - 1;
        let (layer, figures) = (&survey.layers[index], &walk.figures.layers[index]);
        let mut spans = mark(walk, number, 7).to_vec();
        let name = cut(&layer.name, name_room);
        let pad = name_room.saturating_sub(name.width());
        spans.push(Span::from(format!("{name}{}", " ".repeat(pad))));
        spans.push(Span::from(format!("{:>11}", names::bytes(figures.holds.bytes))));
        if wasted {
            let waste =
                if figures.wasted.bytes > 0 { names::bytes(figures.wasted.bytes) } else { String::new() };
            spans.push(Span::from(format!("{waste:>12}")).red());
        }
        let line = Line::from(spans);
        let looked_at = number == top || number < top && !walk.browse.is_alone();
        match (number == top, looked_at) {
            (true, _) => line.reversed(),
            (false, true) => line,
            (false, false) => line.dim(),
        }
    };
    let lines: Vec<Line<'_>> = (1..=survey.top()).rev().map(line).collect();
    let height = usize::from(area.height).saturating_sub(2);
    let at = usize::from(survey.top() - top);
    let skip = window(at, lines.len(), height);
    let title = walk.texts.say(if wasted { "walk.layers_wasted" } else { "walk.layers" });
    let shown: Vec<Line<'_>> = lines.into_iter().skip(skip).take(height).collect();
    frame
        .render_widget(Paragraph::new(shown).block(block(title.to_owned(), walk.pane == Pane::Layers)), area);
}

/// Returns how many of the lines go before those that are shown, so that one is in the middle.
fn window(at: usize, lines: usize, height: usize) -> usize {
    at.saturating_sub(height / 2).min(lines.saturating_sub(height))
}

/// The whole step of the layer that is chosen.
fn step(frame: &mut Frame<'_>, area: Rect, walk: &Walk<'_>) {
    let survey = walk.browse.survey();
    let top = walk.browse.top();
    let index = usize::from(top) - 1;
    let (layer, f) = (&survey.layers[index], &walk.figures.layers[index]);
    let counts = [
        ("files", walk.texts.counted("file", f.holds.files)),
        ("added", f.added.files.to_string()),
        ("changed", f.changed.files.to_string()),
        ("deleted", f.deleted.to_string()),
    ];
    let counts =
        walk.texts.fill("walk.counts", &counts.each_ref().map(|(name, count)| (*name, count.as_str())));
    let path = names::readable(layer.path.as_os_str().as_encoded_bytes());
    let lines = vec![Line::from(layer.name.clone()), Line::from(counts).dim(), Line::from(path).dim()];
    let title = called(walk.texts, survey, top);
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block(title, false)), area);
}

fn tree_rows(frame: &mut Frame<'_>, area: Rect, walk: &mut Walk<'_>) {
    let height = usize::from(area.height).saturating_sub(2);
    walk.page = height.saturating_sub(1).max(1);
    let rows = walk.browse.rows();
    let skip = window(walk.cursor, rows.len(), height);
    let room = usize::from(area.width).saturating_sub(2);
    let lines: Vec<Line<'_>> = rows
        .iter()
        .enumerate()
        .skip(skip)
        .take(height)
        .map(|(at, row)| {
            let line = tree_row(walk, row, room);
            match (at == walk.cursor, walk.pane) {
                (true, Pane::Tree) => line.reversed(),
                (true, Pane::Layers) => line.underlined(),
                (false, _) => line,
            }
        })
        .collect();
    let lines = if lines.is_empty() { vec![Line::from(nothing(walk)).dim()] } else { lines };
    frame.render_widget(Paragraph::new(lines).block(block(tree_title(walk), walk.pane == Pane::Tree)), area);
}

fn nothing(walk: &Walk<'_>) -> &'static str {
    walk.texts.say(match (walk.browse.query().is_empty(), walk.browse.is_alone()) {
        (false, _) => "walk.none_called",
        (true, true) => "walk.none_held",
        (true, false) => "walk.none_seen",
    })
}

fn tree_title(walk: &Walk<'_>) -> String {
    let survey = walk.browse.survey();
    let top = walk.browse.top();
    let (texts, layer) = (walk.texts, called(walk.texts, survey, top));
    let seen = match (walk.browse.query(), walk.browse.is_alone(), top == survey.top()) {
        ("", true, _) => texts.fill("walk.alone", &[("layer", &layer)]),
        ("", false, true) => texts.say("walk.all").to_owned(),
        ("", false, false) => texts.fill("walk.up_to", &[("layer", &layer)]),
        (query, ..) => {
            let (count, query) = (walk.browse.matches().to_string(), format!("{query:?}"));
            texts.fill("walk.called", &[("count", &count), ("query", &query)])
        }
    };
    match walk.browse.order() {
        Order::Name => seen,
        Order::Size => texts.fill("walk.by_size", &[("seen", &seen)]),
        Order::Layer => texts.fill("walk.by_layer", &[("seen", &seen)]),
    }
}

/// Columns of a size and a layer's mark.
const SIZE: usize = 12;
const LABEL: usize = 7;
/// Columns of what is said of a row, where there are so many altogether.
const REMARK: usize = 22;
const WITH_REMARKS: usize = 76;

fn tree_row(walk: &Walk<'_>, row: &Row, room: usize) -> Line<'static> {
    let survey = walk.browse.survey();
    let place = &survey.places[row.place];
    let holding = walk.browse.holding(row.place);
    let remarks = room >= WITH_REMARKS;
    let name_room = room.saturating_sub(SIZE + LABEL + if remarks { REMARK } else { 0 });
    let (sign, style) = look(row.seen);
    // What lies deep is told by its path.
    let indent = (usize::from(place.depth).saturating_sub(1) * 2).min(name_room / 2);
    let twist = match row.directory {
        Some(true) => "▾ ",
        Some(false) => "▸ ",
        None => "  ",
    };
    let slash = if row.directory.is_some() { "/" } else { "" };
    let target = holding.and_then(|h| survey.target(h)).map(names::readable);
    let target = target.map(|target| format!(" → {target}")).unwrap_or_default();
    let name = format!("{}{slash}", names::readable(&place.name));
    let before = format!("{sign} {}{twist}", " ".repeat(indent));
    let text = cut(&format!("{name}{target}"), name_room.saturating_sub(before.width() + 1));
    let pad = name_room.saturating_sub(before.width() + text.width());
    let style = if row.directory.is_some() || row.found { style.bold() } else { style };
    let mut spans = vec![
        Span::styled(before, style.not_bold().not_crossed_out()),
        Span::styled(text, style),
        Span::from(" ".repeat(pad)),
    ];
    if remarks {
        let remark = cut(&remark(walk, row, holding), REMARK - 1);
        spans.push(Span::from(format!("{}{remark}", " ".repeat(REMARK - remark.width()))).dim());
    }
    let sized = row.directory.is_some() || holding.is_some_and(|h| h.kind == Some(Kind::File));
    let size = if sized { names::bytes(row.bytes) } else { String::new() };
    spans.push(Span::from(format!("{size:>width$} ", width = SIZE - 1)));
    spans.extend(mark(walk, holding.map_or(1, |h| h.layer), LABEL - 1));
    Line::from(spans)
}

fn look(seen: Seen) -> (&'static str, Style) {
    match seen {
        Seen::Same => (" ", Style::new()),
        Seen::Added => ("+", Style::new().green()),
        Seen::Changed => ("~", Style::new().yellow()),
        Seen::Deleted => ("−", Style::new().red().crossed_out()),
        Seen::Hidden => ("○", Style::new().dim().crossed_out()),
        Seen::Elsewhere => ("○", Style::new().dim().italic()),
    }
}

fn remark(walk: &Walk<'_>, row: &Row, holding: Option<&Holding>) -> String {
    let (texts, survey) = (walk.texts, walk.browse.survey());
    let by = holding.and_then(|h| h.hidden_by);
    let by = by.map(|by| texts.fill("fate.hidden", &[("layer", &called(texts, survey, by))]));
    match row.seen {
        Seen::Hidden => by.unwrap_or_else(|| texts.say("walk.hidden").to_owned()),
        Seen::Elsewhere => match walk.browse.is_alone() {
            true => texts.say("walk.another").to_owned(),
            false => texts.say("walk.above").to_owned(),
        },
        _ if walk.browse.is_alone() && by.is_some() => by.unwrap_or_default(),
        _ if row.directory.is_some() && row.changes > 0 => texts.counted("change", u64::from(row.changes)),
        _ => String::new(),
    }
}

/// What the layers have at the place that is chosen, the topmost first.
fn history(frame: &mut Frame<'_>, area: Rect, walk: &Walk<'_>) {
    let survey = walk.browse.survey();
    let room = usize::from(area.width).saturating_sub(4);
    let Some(place) = walk.place() else {
        frame.render_widget(block(walk.texts.say("walk.history").to_owned(), false), area);
        return;
    };
    let path = names::readable(&survey.path(place));
    let holdings = survey.holdings(place);
    let height = usize::from(area.height).saturating_sub(2);
    let shown = if holdings.len() > height { height.saturating_sub(1) } else { height };
    let mut lines: Vec<Line<'_>> = holdings
        .iter()
        .take(shown)
        .map(|h| {
            let mut spans = mark(walk, h.layer, 7).to_vec();
            let says = holding_text(walk, h);
            spans.push(Span::from(cut(&says, room.saturating_sub(6))));
            let seen = h.kind.is_some() && h.seen_at(walk.browse.top());
            if seen { Line::from(spans) } else { Line::from(spans).dim() }
        })
        .collect();
    if holdings.len() > shown {
        let count = (holdings.len() - shown).to_string();
        lines.push(Line::from(walk.texts.fill("walk.more_below", &[("count", &count)])).dim());
    }
    let title = format!("/{}", cut_middle(&path, room.saturating_sub(3)));
    frame.render_widget(Paragraph::new(lines).block(block(title, false)), area);
}

/// `file 12 B, hidden by layer 1, wasted  rw-r--r--  2026-11-29 20:50`.
fn holding_text(walk: &Walk<'_>, h: &Holding) -> String {
    let survey = walk.browse.survey();
    let size = match h.kind {
        Some(Kind::File) => format!(" {}", names::bytes(h.size)),
        Some(Kind::Symlink) => {
            survey.target(h).map(|target| format!(" → {}", names::readable(target))).unwrap_or_default()
        }
        _ => String::new(),
    };
    let what = fate(walk.texts, survey, h, walk.browse.top());
    let what = if what.is_empty() { what } else { format!("{}{what}", walk.texts.say("walk.comma")) };
    let mut text = format!("{}{size}{what}", what_word(walk.texts, h.kind));
    if h.kind.is_some() {
        let time = Timestamp::from_second(h.mtime).unwrap_or_default().to_zoned_datetime(TimeZone::system());
        text += &format!("  {}  {}", mode_letters(h.mode), time.strftime("%Y-%m-%d %H:%M"));
    }
    text
}

const HELP: [(&str, &str); 14] = [
    ("Tab", "walk.help.tab"),
    ("↑ ↓ j k", "walk.help.move"),
    ("→ ← Enter", "walk.help.open"),
    ("+ -", "walk.help.all"),
    ("[ ]", "walk.help.layer"),
    ("a", "walk.help.alone"),
    ("s", "walk.help.sort"),
    ("h", "walk.help.hidden"),
    ("/", "walk.help.search"),
    ("w", "walk.help.waste"),
    ("+ ~ −", "walk.help.signs"),
    ("○", "walk.help.gone"),
    ("▌", "walk.help.colour"),
    ("q Esc", "walk.help.quit"),
];

fn help(texts: &'static Texts, frame: &mut Frame<'_>, area: Rect) {
    let (width, height) = (60.min(area.width), (HELP.len() as u16 + 2).min(area.height));
    let place = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    // A wide letter may begin beside it.
    let cleared = place.outer(Margin::new(1, 0)).intersection(area);
    let lines: Vec<Line<'_>> = HELP
        .iter()
        .map(|(key, does)| {
            Line::from(vec![Span::from(format!(" {key:<11}")).bold(), Span::from(texts.say(does))])
        })
        .collect();
    frame.render_widget(Clear, cleared);
    frame.render_widget(Paragraph::new(lines).block(block(texts.say("walk.keys").to_owned(), true)), place);
}
