//! What `status` says to people.

use std::path::Path;

use indicatif::HumanCount;
use unicode_width::UnicodeWidthStr;

use super::Answer;
use crate::cli::lowers::is_archive;
use crate::cli::uptime::{elapsed, uptime};
use crate::control::client::ClientError;
use crate::control::mounts::Mount;
use crate::control::protocol::Status as Daemon;
use crate::explain::names::bytes;
use crate::explain::paint::{Cell, Paint, align};
use crate::explain::picture::copying_up;
use crate::explain::shorten::cut;
use crate::texts::Texts;
use crate::union::change::sealing::background::LazyReport;
use crate::union::escaped_path::EscapedPath;
use crate::union::lookup::usage::Usage;

const HEAD: [&str; 9] = [
    "status.head.mount",
    "status.head.layers",
    "status.head.up",
    "status.head.copy_ups",
    "status.head.copied",
    "status.head.deleted",
    "status.head.requests",
    "status.head.memory",
    "status.head.pid",
];

fn head(texts: &'static Texts, keys: &[&'static str], indent: &str, paint: Paint) -> Vec<Cell> {
    let cell = |(at, key): (usize, &&'static str)| {
        let word = format!("{}{}", if at == 0 { indent } else { "" }, texts.say(key));
        Cell::new(&word, paint.dim(&word))
    };
    keys.iter().enumerate().map(cell).collect()
}

/// Returns the table of all mounts.
pub(super) fn table(texts: &'static Texts, answers: &[Answer], paint: Paint) -> String {
    let mut rows = vec![head(texts, &HEAD, "", paint)];
    for Answer { mount, said } in answers {
        let point = EscapedPath::from(mount.point.as_path()).to_string();
        let daemon = match said {
            Ok(daemon) => daemon,
            Err(error) => {
                let state = match error {
                    ClientError::Dead(_) => "status.dead",
                    ClientError::Silent => "status.silent",
                    _ => "status.refused",
                };
                rows.push(vec![Cell::new(&point, paint.bold(&point)), Cell::plain(texts.say(state))]);
                continue;
            }
        };
        rows.push(vec![
            Cell::new(&point, paint.bold(&point)),
            Cell::plain(layers(texts, daemon)),
            Cell::plain(texts.duration(uptime(daemon))),
            Cell::plain(HumanCount(daemon.counters.copy_ups)),
            Cell::plain(bytes(daemon.counters.copied_bytes)),
            Cell::plain(HumanCount(daemon.counters.whiteouts)),
            Cell::plain(HumanCount(daemon.requests.values().sum())),
            Cell::plain(daemon.memory.map(bytes).unwrap_or_default()),
            Cell::plain(daemon.about.pid),
        ]);
    }
    align(&rows, &[3, 4, 5, 6, 7, 8])
}

fn layers(texts: &Texts, daemon: &Daemon) -> String {
    let count = daemon.layers.len();
    let layers = match writable(daemon) {
        true => texts.fill("status.with_upper", &[("count", &(count - 1).to_string())]),
        false => texts.fill("status.read_only", &[("count", &count.to_string())]),
    };
    if !daemon.unmounted {
        return layers;
    }
    // What it does is told by `lazy`.
    let sealing = daemon.lazy.as_ref().and_then(|lazy| lazy.sealing.as_ref());
    let what = match sealing {
        Some(path) => texts.fill("status.sealing", &[("path", &path.to_string())]),
        None => texts.say("status.ending").to_owned(),
    };
    texts.fill("status.unmounted", &[("layers", &layers), ("what", &what)])
}

/// Columns of the words before the facts.
const WORD: usize = 9;

/// Returns all about one mount.
pub(super) fn one(
    texts: &'static Texts,
    mount: &Mount,
    daemon: &Daemon,
    usage: Option<&[Option<Usage>]>,
    paint: Paint,
) -> String {
    let about = &daemon.about;
    let since = texts.fill(
        "status.mounted",
        &[
            ("time", &texts.duration(uptime(daemon))),
            ("pid", &about.pid.to_string()),
            ("version", &EscapedPath::from(about.version.as_bytes()).to_string()),
            ("io", &EscapedPath::from(about.io.as_bytes()).to_string()),
        ],
    );
    let mut out = format!("{}  {since}\n\n", paint.bold(EscapedPath::from(mount.point.as_path())));
    out.push_str(&layer_table(texts, daemon, usage, paint));
    out.push('\n');
    let counters = &daemon.counters;
    let objects = texts.counted("object", counters.copy_ups);
    let copied = [("objects", objects.as_str()), ("size", &bytes(counters.copied_bytes))];
    let facts = [
        ("status.word.changed", changed(texts, daemon, usage)),
        ("status.word.copied", texts.fill("status.copied", &copied)),
        ("status.word.requests", requests(texts, daemon)),
        ("status.word.lookups", lookups(texts, daemon)),
        ("status.word.memory", memory(texts, daemon)),
    ];
    let lazy = daemon.lazy.as_ref().map(|lazy| ("status.word.lazy", left_below(texts, lazy)));
    let copying = daemon.copying.iter().map(|copy| {
        let far = copying_up(texts, copy);
        let fact = texts.fill("status.copying", &[("path", &copy.path.to_string()), ("far", &far)]);
        ("status.word.copying", fact)
    });
    let upgraded = about.upgraded_us.map(|at| {
        let time = texts.duration(elapsed(at));
        ("status.word.upgraded", texts.fill("status.upgraded", &[("time", &time)]))
    });
    for (key, fact) in facts.into_iter().chain(lazy).chain(copying).chain(upgraded) {
        let word = texts.say(key);
        let pad = " ".repeat(WORD.saturating_sub(word.width()));
        out.push_str(&format!("  {}{pad}  {fact}\n", paint.bold(word)));
    }
    out
}

fn changed(texts: &Texts, daemon: &Daemon, usage: Option<&[Option<Usage>]>) -> String {
    let counters = &daemon.counters;
    let grown = usage.and_then(|usage| usage.first().copied().flatten()).filter(|_| writable(daemon));
    let grown = grown.map(|usage| {
        let key = if usage.complete { "status.grown" } else { "status.grown_at_least" };
        let files = texts.counted("file", usage.changed_files);
        texts.fill(key, &[("size", &bytes(usage.changed_bytes)), ("files", &files)])
    });
    let counts = [
        ("grown", grown.unwrap_or_default()),
        ("created", HumanCount(counters.creates).to_string()),
        ("renamed", HumanCount(counters.renames).to_string()),
        ("whiteouts", texts.counted("whiteout", counters.whiteouts)),
    ];
    texts.fill("status.changed", &counts.each_ref().map(|(name, count)| (*name, count.as_str())))
}

fn memory(texts: &Texts, daemon: &Daemon) -> String {
    let size = daemon.memory.map_or_else(|| texts.say("status.unknown").to_owned(), bytes);
    texts.fill("status.memory", &[("size", &size), ("files", &texts.counted("file", daemon.nodes))])
}

/// Says what is left below of files that are copied up block by block.
fn left_below(texts: &Texts, lazy: &LazyReport) -> String {
    let files = texts.counted("file", lazy.half_copied);
    let (own, all) = (HumanCount(lazy.own_blocks).to_string(), HumanCount(lazy.all_blocks).to_string());
    let blocks = [("own", own.as_str()), ("all", &all), ("size", &bytes(lazy.bytes_saved))];
    let blocks = if lazy.half_copied > 0 { texts.fill("status.lazy.blocks", &blocks) } else { String::new() };
    let sealed = HumanCount(lazy.sealed).to_string();
    let sealing = lazy.sealing.as_ref().map(|path| path.to_string());
    let sealing = sealing.map(|path| texts.fill("status.lazy.sealing", &[("path", &path)]));
    let waiting = HumanCount(lazy.waiting).to_string();
    let waiting = (lazy.waiting > 0 || sealing.is_some())
        .then(|| texts.fill("status.lazy.waiting", &[("count", &waiting)]));
    let mut said =
        texts.fill("status.lazy.sentence", &[("files", &files), ("blocks", &blocks), ("sealed", &sealed)]);
    said.extend([sealing, waiting].into_iter().flatten());
    said
}

fn writable(daemon: &Daemon) -> bool {
    daemon.layers.first().is_some_and(|layer| layer.layer == 0)
}

/// Returns the requests in words: `1,234 (4.1 a second): lookup 800, getattr 20`.
fn requests(texts: &Texts, daemon: &Daemon) -> String {
    let total: u64 = daemon.requests.values().sum();
    let mut kinds: Vec<(&String, &u64)> = daemon.requests.iter().filter(|(_, count)| **count > 0).collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let shown: Vec<String> =
        kinds.iter().take(6).map(|(kind, n)| format!("{kind} {}", HumanCount(**n))).collect();
    let comma = texts.say("called.comma");
    let more = if kinds.len() > 6 { format!("{comma}…") } else { String::new() };
    let rate = format!("{:.1}", total as f64 / uptime(daemon).as_secs_f64().max(1.0));
    let (count, kinds) = (HumanCount(total).to_string(), shown.join(comma) + &more);
    texts.fill("status.requests", &[("count", &count), ("rate", &rate), ("kinds", &kinds)])
}

fn lookups(texts: &Texts, daemon: &Daemon) -> String {
    let lookups = daemon.requests.get("lookup").copied().unwrap_or_default();
    let (count, answered) =
        (HumanCount(lookups).to_string(), HumanCount(daemon.counters.index_answers).to_string());
    texts.fill("status.lookups", &[("count", &count), ("answered", &answered)])
}

/// Columns that a layer's name has in a table; steps of builds are long.
const LONGEST_NAME: usize = 40;

fn layer_table(
    texts: &'static Texts,
    daemon: &Daemon,
    usage: Option<&[Option<Usage>]>,
    paint: Paint,
) -> String {
    let columns: &[&str] = match usage {
        Some(_) => &[
            "status.head.layer",
            "status.head.name",
            "status.head.files",
            "status.head.directories",
            "status.head.whiteouts",
            "status.head.size",
            "status.head.path",
        ],
        None => &["status.head.layer", "status.head.name", "status.head.path"],
    };
    let mut rows = vec![head(texts, columns, "  ", paint)];
    for (at, layer) in daemon.layers.iter().enumerate() {
        let number = match layer.layer {
            0 => format!("  {}", texts.say("explain.upper")),
            number => format!("  {number}"),
        };
        let name = cut(&layer.name.to_string(), LONGEST_NAME);
        let path = layer.directory.to_string();
        let mut row = vec![Cell::new(&number, paint.bold(&number)), Cell::new(&name, paint.cyan(&name))];
        if let Some(usage) = usage {
            match usage.get(at).copied().flatten() {
                // Nobody counts what is in it for this.
                None if is_archive(Path::new(&path)) => {
                    row.extend(["", "", "", texts.say("status.archive")].map(Cell::plain));
                }
                None => row.extend(["?", "?", "?", texts.say("status.unseen")].map(Cell::plain)),
                Some(usage) => row.extend(counts(texts, &usage)),
            }
        }
        row.push(Cell::new(&path, paint.dim(&path)));
        rows.push(row);
    }
    align(&rows, if usage.is_some() { &[2, 3, 4, 5] } else { &[] })
}

fn counts(texts: &Texts, usage: &Usage) -> [Cell; 4] {
    let plus = if usage.complete { "" } else { "+" };
    let number = |n: u64| Cell::plain(format!("{}{plus}", HumanCount(n)));
    let size = format!("{}{plus}", bytes(usage.bytes));
    // Of sparse and half-copied files less is there than their sizes say.
    let sparse = usage.disk_bytes < usage.bytes / 2;
    let size = match sparse {
        true => texts.fill("status.on_disk", &[("size", &size), ("disk", &bytes(usage.disk_bytes))]),
        false => size,
    };
    [number(usage.files), number(usage.directories), number(usage.whiteouts), Cell::plain(size)]
}
