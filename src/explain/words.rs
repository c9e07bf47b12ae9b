//! Events in words.

use indicatif::HumanBytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::paint::Paint;
use super::titles::{layer_list, layer_title};
use crate::control::explanation::LayerReport;
use crate::control::protocol::Told;
use crate::union::events::{Access, Event, EventKind, KindName};

/// Returns a line for a person: `12:34:56.789012  copy-up    /etc/passwd  1.2 KiB  layer 2 (debian) → upper in 84 µs`.
pub fn line(told: &Told, layers: &[LayerReport], paint: Paint) -> String {
    match told {
        Told::Lost { lost } => {
            paint.red(format!("                 {lost} events lost: this terminal is too slow"))
        }
        Told::Event(Event { time_us, what, pid, process }) => {
            let word = format!("{:<10}", word_of(what));
            let word = match what {
                EventKind::Lookup { .. }
                | EventKind::List { .. }
                | EventKind::Read { .. }
                | EventKind::Open { .. }
                | EventKind::Close { .. } => paint.dim(word),
                EventKind::Whiteout { .. } | EventKind::Opaque { .. } | EventKind::Remove { .. } => {
                    paint.red(word)
                }
                EventKind::CopyUpBegins { .. }
                | EventKind::CopyUp { .. }
                | EventKind::CopyRange { .. }
                | EventKind::Seal { .. }
                | EventKind::Rename { .. }
                | EventKind::Redirect { .. } => paint.yellow(word),
                EventKind::Create { .. } | EventKind::Link { .. } | EventKind::Write { .. } => {
                    paint.green(word)
                }
                EventKind::Attributes { .. } | EventKind::Xattr { .. } => paint.cyan(word),
            };
            let by = match (process, pid) {
                (Some(name), Some(pid)) => paint.dim(format!("  {name} {pid}")),
                (None, Some(pid)) => paint.dim(format!("  {pid}")),
                _ => String::new(),
            };
            format!("{}  {word} {}{by}", paint.dim(clock(*time_us)), sentence(what, layers, paint))
        }
    }
}

/// Returns the word before the sentence; filters and JSON have longer ones.
pub fn word_of(what: &EventKind) -> &'static str {
    match what {
        EventKind::CopyUpBegins { .. } => "copying-up",
        other => other.name(),
    }
}

fn clock(time_us: u64) -> String {
    let time =
        i64::try_from(time_us).ok().and_then(|us| Timestamp::from_microsecond(us).ok()).unwrap_or_default();
    time.to_zoned_datetime(TimeZone::system()).strftime("%H:%M:%S.%6f").to_string()
}

/// Says what happened, without when and without its kind's name.
pub fn sentence(what: &EventKind, layers: &[LayerReport], paint: Paint) -> String {
    let path = paint.bold(what.path());
    let title = |layer: u16| paint.cyan(layer_title(layers, layer));
    let list = |layers: &[u16]| paint.cyan(layer_list(layers.iter().copied()));
    match what {
        EventKind::Lookup { layers: found, kind, .. } => match (&found[..], kind) {
            ([], _) => format!("{path} → no such name"),
            ([one], _) => format!("{path} → {}", title(*one)),
            (many, _) => format!("{path} → merged from {}", list(many)),
        },
        EventKind::Whiteout { layer, hides, .. } | EventKind::Opaque { layer, hides, .. } => {
            format!("{path} in {} hides {}", title(*layer), list(hides))
        }
        EventKind::Redirect { layer, to, .. } => {
            format!("{path} in {} → {to} in the layers below", title(*layer))
        }
        EventKind::CopyUpBegins { bytes, layer, .. } => {
            let from = layer.map(|layer| format!(" {} →", title(layer))).unwrap_or_default();
            format!("{path} {}{from} upper …", HumanBytes(*bytes))
        }
        EventKind::CopyUp { kind, bytes, layer, micros, .. } => {
            let size = match kind {
                KindName::File => format!(" {}", HumanBytes(*bytes)),
                kind => format!(" ({})", kind.word()),
            };
            let from = layer.map(|layer| format!(" {} →", title(layer))).unwrap_or_default();
            format!("{path}{size}{from} upper in {}", duration(*micros))
        }
        EventKind::CopyRange { offset, bytes, layer, .. } => {
            let from = layer.map(|layer| format!(" {} →", title(layer))).unwrap_or_default();
            format!("{path} {} at {offset}{from} upper", HumanBytes(*bytes))
        }
        EventKind::Seal { bytes, layer, .. } => {
            let from = layer.map(|layer| format!(", and nothing in {} any more", title(layer)));
            format!("{path} {}: all of it is in the upper{}", HumanBytes(*bytes), from.unwrap_or_default())
        }
        EventKind::List { .. } => path,
        EventKind::Create { kind, .. } => format!("{path} ({})", kind.word()),
        EventKind::Link { from, .. } => format!("{path} is {from} too"),
        EventKind::Remove { kind, whiteout, .. } => match whiteout {
            true => format!("{path} ({}): a whiteout hides it from now on", kind.word()),
            false => format!("{path} ({}): nothing below", kind.word()),
        },
        EventKind::Rename { to, exchange, whiteout, redirect, .. } => {
            let arrow = if *exchange { "⇄" } else { "→" };
            let whiteout = if *whiteout { "; a whiteout hides the old name" } else { "" };
            let redirect = redirect.as_ref().map(|to| format!("; redirect to {to} in the layers below"));
            format!("{path} {arrow} {to}{whiteout}{}", redirect.unwrap_or_default())
        }
        EventKind::Attributes { changed, .. } => format!("{path} {}", changed.join(", ")),
        EventKind::Xattr { name, .. } => format!("{path} {name}"),
        EventKind::Read { .. }
        | EventKind::Write { .. }
        | EventKind::Open { .. }
        | EventKind::Close { .. } => {
            format!("{path} {}", of_data(what, title))
        }
    }
}

/// Says what happened to a file's data.
fn of_data(what: &EventKind, title: impl Fn(u16) -> String) -> String {
    match what {
        EventKind::Read { offset, bytes, .. } | EventKind::Write { offset, bytes, .. } => {
            format!("{} at {offset}", HumanBytes(*bytes))
        }
        EventKind::Open { layer, access, size, .. } => {
            let place = layer.map(|layer| format!(" in {}", title(layer))).unwrap_or_default();
            let access = match access {
                Access::Read => "reads",
                Access::Write => "writes",
                Access::ReadWrite => "reads and writes",
            };
            format!("{}{place}: the kernel {access} it itself, unseen from here", HumanBytes(*size))
        }
        EventKind::Close { before: Some(before), size, .. } if before != size => {
            format!("{} → {}", HumanBytes(*before), HumanBytes(*size))
        }
        EventKind::Close { size, .. } => HumanBytes(*size).to_string(),
        _ => String::new(),
    }
}

fn duration(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{micros} µs"),
        10_000..10_000_000 => format!("{} ms", micros / 1000),
        _ => format!("{} s", micros / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::escaped_path::EscapedPath;

    fn layers() -> Vec<LayerReport> {
        let layer = |number, name: &str| LayerReport {
            layer: number,
            name: EscapedPath::from(name.as_bytes()),
            directory: EscapedPath::default(),
            entries: Vec::new(),
        };
        vec![layer(0, "rw"), layer(1, "app"), layer(2, "debian")]
    }

    #[test]
    fn events_read_as_sentences() {
        let path = |path: &str| EscapedPath::from(path.as_bytes());
        let (etc, bin) = (path("/etc/passwd"), path("/bin/ls"));
        let copy = EventKind::CopyUp {
            path: etc.clone(),
            kind: KindName::File,
            bytes: 1229,
            layer: Some(2),
            micros: 84,
        };
        let lookup = EventKind::Lookup { path: etc, kind: Some(KindName::File), layers: vec![2] };
        let whiteout = EventKind::Whiteout { path: bin, layer: 0, hides: vec![1] };
        let merged =
            EventKind::Lookup { path: path("/srv"), kind: Some(KindName::Directory), layers: vec![0, 1, 2] };
        let log = path("/log");
        let open = |layer, access| EventKind::Open { path: log.clone(), layer, access, size: 12 };
        let close = |before| EventKind::Close { path: log.clone(), before, size: 4096 };
        for (what, text) in [
            (
                open(Some(0), Access::Write),
                "/log 12 B in the upper: the kernel writes it itself, unseen from here",
            ),
            (
                open(Some(2), Access::Read),
                "/log 12 B in layer 2 (debian): the kernel reads it itself, unseen from here",
            ),
            (close(Some(12)), "/log 12 B → 4.00 KiB"),
            (close(Some(4096)), "/log 4.00 KiB"),
            (close(None), "/log 4.00 KiB"),
            (lookup, "/etc/passwd → layer 2 (debian)"),
            (copy, "/etc/passwd 1.20 KiB layer 2 (debian) → upper in 84 µs"),
            (whiteout, "/bin/ls in the upper hides layer 1"),
            (merged, "/srv → merged from the upper and layers 1 and 2"),
        ] {
            assert_eq!(sentence(&what, &layers(), Paint::plain()), text);
        }
    }
}
