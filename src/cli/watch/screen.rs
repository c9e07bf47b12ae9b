//! The screen of `unionmount status --watch`.

use indicatif::{HumanBytes, HumanCount, HumanDuration};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Paragraph, Row, Sparkline, Table};

use super::View;
use crate::cli::uptime::uptime;
use crate::control::protocol::Told;
use crate::explain::paint::Paint;
use crate::explain::words;
use crate::union::escaped_path::EscapedPath;
use crate::union::events::{Event, EventKind};

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let layers = view.status.layers.len().min(8) as u16 + 3;
    let [title, top, middle, bottom, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(layers.max(9)),
        Constraint::Min(6),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [layer_area, counter_area] =
        Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(top);
    let [request_area, path_area] =
        Layout::horizontal([Constraint::Fill(2), Constraint::Fill(3)]).areas(middle);
    frame.render_widget(head(view), title);
    layer_table(frame, layer_area, view);
    counters(frame, counter_area, view);
    requests(frame, request_area, view);
    hottest(frame, path_area, view);
    events(frame, bottom, view);
    frame.render_widget(foot(view), keys);
}

fn block(title: &str) -> Block<'_> {
    Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(Style::new().fg(Color::DarkGray))
        .title(Span::from(format!(" {title} ")).bold())
}

fn head(view: &View) -> Line<'static> {
    let about = &view.status.about;
    let point = EscapedPath::from(view.mount.point.as_path()).to_string();
    let io = EscapedPath::from(about.io.as_bytes());
    let memory = view.status.memory.map(|bytes| format!(" · {}", HumanBytes(bytes))).unwrap_or_default();
    Line::from(vec![
        Span::from(format!(" {point} ")).bold().reversed(),
        Span::from(format!(
            " mounted {} ago · I/O {io}{memory} · pid {}",
            HumanDuration(uptime(&view.status)),
            about.pid
        ))
        .dim(),
    ])
}

fn foot(view: &View) -> Line<'static> {
    let key = |key: &'static str, does: &'static str| {
        [Span::from(format!(" {key} ")).reversed(), Span::from(format!(" {does}  ")).dim()]
    };
    let mut spans = Vec::new();
    spans.extend(key("q", "quit"));
    spans.extend(key("p", if view.paused { "go on" } else { "pause" }));
    spans.extend(key("c", "clear"));
    if view.lost > 0 {
        spans.push(Span::from(format!("{} events lost", HumanCount(view.lost))).red());
    }
    Line::from(spans)
}

fn layer_table(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let rows = view.status.layers.iter().enumerate().map(|(at, layer)| {
        let number = if layer.layer == 0 { "upper".to_owned() } else { layer.layer.to_string() };
        let usage = view.usage.as_ref().map(|usage| usage.get(at).copied().flatten());
        let [files, whiteouts, size] = match usage {
            None => ["…".to_owned(), "…".to_owned(), "…".to_owned()],
            Some(None) => ["?".to_owned(), "?".to_owned(), "?".to_owned()],
            Some(Some(usage)) => {
                let plus = if usage.complete { "" } else { "+" };
                [
                    format!("{}{plus}", HumanCount(usage.files)),
                    format!("{}{plus}", HumanCount(usage.whiteouts)),
                    format!("{}{plus}", HumanBytes(usage.bytes)),
                ]
            }
        };
        Row::new(vec![
            Line::from(Span::from(number).bold()),
            Line::from(layer.name.to_string()).cyan(),
            Line::from(files).right_aligned(),
            Line::from(whiteouts).right_aligned(),
            Line::from(size).right_aligned(),
            Line::from(layer.directory.to_string()).dim(),
        ])
    });
    let widths = [
        Constraint::Length(5),
        Constraint::Max(20),
        Constraint::Length(10),
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Fill(1),
    ];
    let head = Row::new(vec![
        Line::from("layer"),
        Line::from("name"),
        Line::from("files").right_aligned(),
        Line::from("whiteouts").right_aligned(),
        Line::from("size").right_aligned(),
        Line::from("path"),
    ]);
    let table = Table::new(rows, widths).header(head.dim()).block(block("layers"));
    frame.render_widget(table, area);
}

fn counters(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let counters = &view.status.counters;
    let upper = view.usage.as_ref().and_then(|usage| usage.first().copied().flatten());
    let upper = upper.filter(|_| view.status.layers.first().is_some_and(|layer| layer.layer == 0));
    let lookups = view.status.requests.get("lookup").copied().unwrap_or_default();
    let facts = [
        ("copy-ups", format!("{}  {}", HumanCount(counters.copy_ups), HumanBytes(counters.copied_bytes))),
        (
            "upper grew",
            upper.map_or("…".into(), |usage| {
                format!("{} in {} files", HumanBytes(usage.changed_bytes), HumanCount(usage.changed_files))
            }),
        ),
        ("whiteouts", HumanCount(counters.whiteouts).to_string()),
        ("created", HumanCount(counters.creates).to_string()),
        ("renamed", HumanCount(counters.renames).to_string()),
        ("lookups", format!("{}, {} by index", HumanCount(lookups), HumanCount(counters.index_answers))),
        ("known files", HumanCount(view.status.nodes).to_string()),
    ];
    let lines: Vec<Line<'_>> = facts
        .into_iter()
        .map(|(word, fact)| Line::from(vec![Span::from(format!("{word:<12}")).dim(), Span::from(fact)]))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block("since the mount")), area);
}

fn requests(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let now = view.history.back().copied().unwrap_or_default();
    let title = format!("requests: {} a second", HumanCount(now));
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
    let lines = if lines.is_empty() {
        vec![Line::from("none: the kernel answers from its cache, or nobody asks").dim()]
    } else {
        lines
    };
    frame.render_widget(Paragraph::new(lines), list);
}

fn hottest(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let mut paths: Vec<(&EscapedPath, &f64)> = view.heat.iter().collect();
    paths.sort_by(|a, b| b.1.total_cmp(a.1).then_with(|| a.0.cmp(b.0)));
    let most = paths.first().map_or(1.0, |(_, heat)| heat.max(1.0));
    let lines: Vec<Line<'_>> = paths
        .iter()
        .take(usize::from(area.height.saturating_sub(2)))
        .map(|(path, heat)| {
            let bar = ((*heat / most) * 10.0).ceil() as usize;
            Line::from(vec![
                Span::from(format!("{heat:>7.1} ")).bold(),
                Span::from(format!("{:<11}", "▬".repeat(bar))).fg(Color::Yellow),
                Span::from(path.to_string()),
            ])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block("hottest paths")), area);
}

fn events(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let room = usize::from(area.height.saturating_sub(2));
    let lines: Vec<Line<'_>> = view
        .told
        .iter()
        .skip(view.told.len().saturating_sub(room))
        .map(|told| match told {
            Told::Lost { lost } => Line::from(format!("{lost} events lost")).red(),
            Told::Event(Event { what, .. }) => Line::from(vec![
                Span::from(format!("{:<11}", what.name())).fg(colour(what)),
                Span::from(words::sentence(what, &view.status.layers, Paint::plain())),
            ]),
        })
        .collect();
    let title = if view.paused { "events (paused)" } else { "events" };
    frame.render_widget(Paragraph::new(lines).block(block(title)), area);
}

fn colour(what: &EventKind) -> Color {
    match what {
        EventKind::Lookup { .. }
        | EventKind::List { .. }
        | EventKind::Read { .. }
        | EventKind::Open { .. }
        | EventKind::Close { .. } => Color::DarkGray,
        EventKind::Whiteout { .. } | EventKind::Opaque { .. } | EventKind::Remove { .. } => Color::Red,
        EventKind::CopyUp { .. }
        | EventKind::CopyRange { .. }
        | EventKind::Seal { .. }
        | EventKind::Rename { .. }
        | EventKind::Redirect { .. } => Color::Yellow,
        EventKind::Create { .. } | EventKind::Link { .. } | EventKind::Write { .. } => Color::Green,
        EventKind::Attributes { .. } | EventKind::Xattr { .. } => Color::Cyan,
    }
}
