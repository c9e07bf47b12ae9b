//! Events in words.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use unicode_width::UnicodeWidthStr;

use super::names;
use super::paint::Paint;
use super::titles::{kind_word, layer_list, layer_title};
use crate::control::explanation::LayerReport;
use crate::control::protocol::Told;
use crate::texts::Texts;
use crate::union::events::{Access, Event, EventKind, KindName};

/// Returns a line for a person: `12:34:56.789012  copy-up    /etc/passwd  1.2 KiB  layer 2 (debian) → upper in 84 µs`.
pub fn line(texts: &'static Texts, told: &Told, layers: &[LayerReport], paint: Paint) -> String {
    match told {
        Told::Lost { lost } => {
            paint.red(format!("{:17}{}", "", texts.fill("trace.lost", &[("count", &lost.to_string())])))
        }
        Told::Event(Event { time_us, what, pid, process }) => {
            let word = padded_word(texts, what);
            let word = match tone(what) {
                Tone::Quiet => paint.dim(word),
                Tone::Hidden => paint.red(word),
                Tone::Moved => paint.yellow(word),
                Tone::Made => paint.green(word),
                Tone::Described => paint.cyan(word),
            };
            let by = match (process, pid) {
                (Some(name), Some(pid)) => paint.dim(format!("  {name} {pid}")),
                (None, Some(pid)) => paint.dim(format!("  {pid}")),
                _ => String::new(),
            };
            format!("{}  {word} {}{by}", paint.dim(clock(*time_us)), sentence(texts, what, layers, paint))
        }
    }
}

/// What the colour of an event's word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Nothing was changed.
    Quiet,
    /// Something is hidden, or gone.
    Hidden,
    /// Something came from another place.
    Moved,
    /// There is something new.
    Made,
    /// What is said of a file was changed.
    Described,
}

/// Returns the tone of an event.
pub fn tone(what: &EventKind) -> Tone {
    match what {
        EventKind::Lookup { .. }
        | EventKind::List { .. }
        | EventKind::Read { .. }
        | EventKind::Open { .. }
        | EventKind::Close { .. } => Tone::Quiet,
        EventKind::Whiteout { .. } | EventKind::Opaque { .. } | EventKind::Remove { .. } => Tone::Hidden,
        EventKind::CopyUpBegins { .. }
        | EventKind::CopyUpGoesOn { .. }
        | EventKind::CopyUp { .. }
        | EventKind::CopyRange { .. }
        | EventKind::Seal { .. }
        | EventKind::Rename { .. }
        | EventKind::Redirect { .. } => Tone::Moved,
        EventKind::Create { .. }
        | EventKind::Link { .. }
        | EventKind::Write { .. }
        | EventKind::Copy { .. }
        | EventKind::Allocate { .. } => Tone::Made,
        EventKind::Attributes { .. } | EventKind::Xattr { .. } => Tone::Described,
    }
}

/// Returns the word before the sentence in a language, as wide as the widest.
pub fn padded_word(texts: &'static Texts, what: &EventKind) -> String {
    let word = texts.find(&format!("trace.word.{}", word_of(what))).unwrap_or(word_of(what));
    format!("{word}{}", " ".repeat(WORD.saturating_sub(word.width())))
}

/// Returns the word before the sentence; filters and JSON have longer ones.
pub fn word_of(what: &EventKind) -> &'static str {
    match what {
        EventKind::CopyUpBegins { .. } | EventKind::CopyUpGoesOn { .. } => "copying-up",
        other => other.name(),
    }
}

fn clock(time_us: u64) -> String {
    let time =
        i64::try_from(time_us).ok().and_then(|us| Timestamp::from_microsecond(us).ok()).unwrap_or_default();
    time.to_zoned_datetime(TimeZone::system()).strftime("%H:%M:%S.%6f").to_string()
}

/// Says what happened, without when and without its kind's name.
pub fn sentence(texts: &'static Texts, what: &EventKind, layers: &[LayerReport], paint: Paint) -> String {
    let path = paint.bold(what.path());
    let title = |layer: u16| paint.cyan(layer_title(texts, layers, layer));
    let list = |layers: &[u16]| paint.cyan(layer_list(texts, layers.iter().copied()));
    let from = |layer: &Option<u16>| layer.map(|layer| format!(" {} →", title(layer))).unwrap_or_default();
    let fill =
        |key: &str, values: &[(&str, &str)]| texts.fill(key, &[&[("path", path.as_str())], values].concat());
    match what {
        EventKind::Lookup { layers: found, kind, .. } => match (&found[..], kind) {
            ([], _) => fill("trace.no_name", &[]),
            ([one], _) => format!("{path} → {}", title(*one)),
            (many, _) => fill("trace.merged", &[("layers", &list(many))]),
        },
        EventKind::Whiteout { layer, hides, .. } | EventKind::Opaque { layer, hides, .. } => {
            fill("trace.hides", &[("layer", &title(*layer)), ("layers", &list(hides))])
        }
        EventKind::Redirect { layer, to, .. } => {
            fill("trace.redirect", &[("layer", &title(*layer)), ("to", &to.to_string())])
        }
        EventKind::CopyUpBegins { bytes, layer, .. } => {
            let size = names::bytes(*bytes);
            fill("trace.copying", &[("size", &size), ("from", &from(layer))])
        }
        EventKind::CopyUpGoesOn { done, bytes, layer, .. } => {
            let (size, percent) = (names::bytes(*bytes), names::whole_percent(*done, *bytes));
            fill("trace.going_on", &[("size", &size), ("percent", &percent), ("from", &from(layer))])
        }
        EventKind::CopyUp { kind, bytes, layer, micros, .. } => {
            let size = match kind {
                KindName::File => names::bytes(*bytes),
                kind => texts.fill("trace.kind", &[("kind", kind_word(texts, *kind))]),
            };
            let values = [("size", size.as_str()), ("from", &from(layer)), ("time", &duration(*micros))];
            fill("trace.copied", &values)
        }
        EventKind::CopyRange { offset, bytes, layer, .. } => {
            let (size, offset) = (names::bytes(*bytes), offset.to_string());
            fill("trace.copied_range", &[("size", &size), ("offset", &offset), ("from", &from(layer))])
        }
        EventKind::Seal { bytes, layer, .. } => {
            let size = names::bytes(*bytes);
            match layer {
                Some(layer) => fill("trace.sealed_from", &[("size", &size), ("layer", &title(*layer))]),
                None => fill("trace.sealed", &[("size", &size)]),
            }
        }
        EventKind::List { .. } => path,
        EventKind::Create { kind, .. } => {
            format!("{path} {}", texts.fill("trace.kind", &[("kind", kind_word(texts, *kind))]))
        }
        EventKind::Link { from, .. } => fill("trace.link", &[("from", &from.to_string())]),
        EventKind::Remove { kind, whiteout, .. } => {
            let key = if *whiteout { "trace.removed_whiteout" } else { "trace.removed" };
            fill(key, &[("kind", kind_word(texts, *kind))])
        }
        EventKind::Rename { to, exchange, whiteout, redirect, .. } => {
            let arrow = if *exchange { "⇄" } else { "→" };
            let whiteout = if *whiteout { texts.say("trace.old_name") } else { "" };
            let redirect =
                redirect.as_ref().map(|to| texts.fill("trace.redirected", &[("to", &to.to_string())]));
            format!("{path} {arrow} {to}{whiteout}{}", redirect.unwrap_or_default())
        }
        EventKind::Attributes { changed, .. } => {
            let word = |of: &String| texts.find(&format!("trace.attribute.{of}")).unwrap_or(of).to_owned();
            let changed: Vec<_> = changed.iter().map(word).collect();
            format!("{path} {}", changed.join(texts.say("called.comma")))
        }
        EventKind::Xattr { name, .. } => format!("{path} {name}"),
        EventKind::Copy { offset, bytes, from, from_offset, .. } => {
            let numbers = [names::bytes(*bytes), offset.to_string(), from_offset.to_string()];
            let [size, offset, place] = numbers.each_ref().map(String::as_str);
            let from = from.to_string();
            fill(
                "trace.copied_between",
                &[("size", size), ("offset", offset), ("from", &from), ("place", place)],
            )
        }
        EventKind::Allocate { offset, bytes, zeroes, .. } => {
            let key = if *zeroes { "trace.zeroed" } else { "trace.allocated" };
            fill(key, &[("size", &names::bytes(*bytes)), ("offset", &offset.to_string())])
        }
        EventKind::Read { .. }
        | EventKind::Write { .. }
        | EventKind::Open { .. }
        | EventKind::Close { .. } => {
            format!("{path} {}", of_data(texts, what, title))
        }
    }
}

/// Says what happened to a file's data.
fn of_data(texts: &Texts, what: &EventKind, title: impl Fn(u16) -> String) -> String {
    match what {
        EventKind::Read { offset, bytes, .. } | EventKind::Write { offset, bytes, .. } => {
            texts.fill("trace.at", &[("size", &names::bytes(*bytes)), ("offset", &offset.to_string())])
        }
        EventKind::Open { layer, access, size, .. } => {
            let place = layer.map(|layer| texts.fill("trace.in", &[("layer", &title(layer))]));
            let key = match access {
                Access::Read => "trace.open.read",
                Access::Write => "trace.open.write",
                Access::ReadWrite => "trace.open.both",
            };
            let size = names::bytes(*size);
            texts.fill(key, &[("size", &size), ("place", &place.unwrap_or_default())])
        }
        EventKind::Close { before: Some(before), size, .. } if before != size => {
            format!("{} → {}", names::bytes(*before), names::bytes(*size))
        }
        EventKind::Close { size, .. } => names::bytes(*size),
        _ => String::new(),
    }
}

/// Columns of the word before the sentence.
const WORD: usize = 10;

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
    fn a_line_of_another_language_stands_in_columns_too() {
        let path = EscapedPath::from(&b"/bin/ls"[..]);
        let line_of = |texts, what| {
            let event = Event { time_us: 0, what, pid: None, process: None };
            line(texts, &Told::Event(event), &layers(), Paint::plain())
        };
        let zh = Texts::of("zh").unwrap();
        let whiteout = line_of(zh, EventKind::Whiteout { path: path.clone(), layer: 0, hides: vec![1, 2] });
        let lookup = line_of(zh, EventKind::Lookup { path, kind: None, layers: Vec::new() });
        let attributes = EventKind::Attributes {
            path: EscapedPath::from(&b"/a"[..]),
            changed: vec!["mode".into(), "times".into()],
        };
        let attributes = line_of(zh, attributes);
        assert!(attributes.ends_with("属性       /a 权限、时间"), "{attributes}");
        assert!(whiteout.ends_with("删除标记   /bin/ls 在可写层里，遮住第 1、2 层"), "{whiteout}");
        assert!(lookup.ends_with("查找       /bin/ls → 没有这个名字"), "{lookup}");
    }

    #[test]
    fn every_kind_of_event_has_a_word() {
        for name in EventKind::NAMES.iter().filter(|name| !name.starts_with("copy-up-")) {
            assert!(Texts::english().find(&format!("trace.word.{name}")).is_some(), "{name}");
        }
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
            (
                EventKind::CopyUpGoesOn { path: log.clone(), done: 3 << 20, bytes: 4 << 20, layer: Some(2) },
                "/log 4.00 MiB layer 2 (debian) → upper, 75 % done",
            ),
            (
                EventKind::Copy {
                    path: path("/b"),
                    offset: 4096,
                    bytes: 8192,
                    from: log.clone(),
                    from_offset: 0,
                },
                "/b 8.00 KiB at 4096 from /log at 0",
            ),
            (
                EventKind::Allocate { path: path("/b"), offset: 1, bytes: 2, zeroes: true },
                "/b 2 B at 1: zeros now",
            ),
            (
                EventKind::Allocate { path: path("/b"), offset: 1, bytes: 2, zeroes: false },
                "/b 2 B at 1: room set aside",
            ),
            (lookup, "/etc/passwd → layer 2 (debian)"),
            (copy, "/etc/passwd 1.20 KiB layer 2 (debian) → upper in 84 µs"),
            (whiteout, "/bin/ls in the upper hides layer 1"),
            (merged, "/srv → merged from the upper and layers 1 and 2"),
        ] {
            assert_eq!(sentence(Texts::english(), &what, &layers(), Paint::plain()), text);
        }
    }
}
