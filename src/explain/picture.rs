//! An explanation for people: the stack as a column of layers from the top down.

use indicatif::HumanCount;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use unicode_width::UnicodeWidthStr;

use super::names::{bytes, whole_percent};
use super::paint::{Cell, Paint, align};
use super::shorten::cut;
use super::titles::{kind_word, layer_list, layer_title, named_layer};
use crate::control::explanation::{
    Action, Blocks, CopyingReport, EntryReport, Explanation, HiddenBy, Holding, LayerReport, PredictedEffect,
    Role,
};
use crate::texts::Texts;
use crate::union::escaped_path::EscapedPath;
use crate::union::events::KindName;

/// Columns that a row takes beside the layer's name.
const BESIDE_NAMES: usize = 70;
const SHORTEST_NAME: usize = 20;
const LONGEST_NAME: usize = 60;
/// Columns of the word before what would happen.
const WORD: usize = 6;

/// Draws the explanation. `mount` goes before the path.
pub fn draw(
    texts: &'static Texts,
    explanation: &Explanation,
    paint: Paint,
    shown_path: &EscapedPath,
    columns: usize,
) -> String {
    let mut out = head(texts, explanation, paint, shown_path);
    let room = columns.saturating_sub(BESIDE_NAMES).clamp(SHORTEST_NAME, LONGEST_NAME);
    let mut rows = Vec::new();
    for layer in &explanation.layers {
        for (at, entry) in layer.entries.iter().enumerate() {
            rows.push(row(texts, explanation, layer, entry, (at == 0).then_some(room), paint));
        }
    }
    for line in align(&rows, &[0, 4]).lines() {
        out.push_str(&format!("  {line}\n"));
    }
    out.push('\n');
    let fates = [
        (write_key(explanation), &explanation.on_write),
        ("explain.word.delete", &explanation.on_delete),
        ("explain.word.rename", &explanation.on_rename),
    ];
    let refused = |fate: &PredictedEffect| matches!(fate.action, Action::Refused | Action::Nothing);
    if fates.iter().all(|(_, fate)| refused(fate)) {
        out.push_str(&format!(
            "  {}  {}\n",
            paint.bold(texts.say("explain.word.change")),
            explanation.on_write.text
        ));
        return out;
    }
    for (key, fate) in fates {
        if fate.action != Action::Nothing {
            let word = texts.say(key);
            let pad = " ".repeat(WORD.saturating_sub(word.width()));
            out.push_str(&format!("  {}{pad}  {}\n", paint.bold(word), fate_text(fate, paint)));
        }
    }
    out
}

/// Returns `/etc/passwd   file, 1.2 KiB` and a line that says why.
fn head(texts: &'static Texts, explanation: &Explanation, paint: Paint, shown_path: &EscapedPath) -> String {
    let what = match explanation.kind {
        None => paint.red(texts.say("explain.absent")),
        Some(kind) => {
            let size = shown_entry(explanation).and_then(|entry| entry.size);
            match size {
                Some(size) if kind == KindName::File => {
                    let size = bytes(size);
                    texts.fill("explain.sized", &[("kind", kind_word(texts, kind)), ("size", &size)])
                }
                _ => kind_word(texts, kind).to_owned(),
            }
        }
    };
    let copying = explanation.copying.as_ref().map(|copy| paint.yellow(copying_up(texts, copy)) + "\n");
    format!("{}  {what}\n{}\n{}\n", paint.bold(shown_path), explanation.why, copying.unwrap_or_default())
}

/// Says how far a copy-up is, and for how long it has been going: `45 % of 3.00 GiB from layer 2, for 2.1 s`.
pub fn copying_up(texts: &Texts, copy: &CopyingReport) -> String {
    let from = copy.layer.map(|layer| texts.fill("copying.from", &[("layer", &layer_list(texts, [layer]))]));
    let far =
        copy.done.map(|done| texts.fill("copying.of", &[("percent", &whole_percent(done, copy.bytes))]));
    let seconds = format!("{:.1}", copy.micros as f64 / 1e6);
    let (far, from) = (far.unwrap_or_default(), from.unwrap_or_default());
    let size = bytes(copy.bytes);
    texts.fill("copying.sentence", &[("far", &far), ("size", &size), ("from", &from), ("seconds", &seconds)])
}

fn shown_entry(explanation: &Explanation) -> Option<&EntryReport> {
    let entries = explanation.layers.iter().flat_map(|layer| &layer.entries);
    entries.into_iter().find(|entry| matches!(entry.role, Role::Shown | Role::Merged))
}

fn write_key(explanation: &Explanation) -> &'static str {
    match explanation.kind {
        None => "explain.word.create",
        Some(KindName::File | KindName::Directory) => "explain.word.write",
        Some(_) => "explain.word.chmod",
    }
}

fn fate_text(fate: &PredictedEffect, paint: Paint) -> String {
    match fate.action {
        Action::Refused | Action::Nothing => paint.dim(&fate.text),
        Action::CopyUp => paint.yellow(&fate.text),
        Action::Remove | Action::RemoveWhenEmpty if fate.whiteout => paint.red(&fate.text),
        Action::Rename if fate.copy_up.is_some() => paint.yellow(&fate.text),
        _ => fate.text.clone(),
    }
}

fn row(
    texts: &'static Texts,
    explanation: &Explanation,
    layer: &LayerReport,
    entry: &EntryReport,
    room: Option<usize>,
    paint: Paint,
) -> Vec<Cell> {
    let number = match layer.layer {
        _ if room.is_none() => String::new(),
        0 => texts.say("explain.upper").to_owned(),
        number => number.to_string(),
    };
    let name = room.map(|room| cut(&layer.name.to_string(), room)).unwrap_or_default();
    let (sign, what) = what(texts, entry);
    let size = entry.size.filter(|_| entry.kind == Some(KindName::File));
    let size = size.map(bytes).unwrap_or_default();
    let detail = detail(entry);
    let remark = remark(texts, explanation, entry);
    let tint = |text: &str| match entry.role {
        Role::Shown => paint.green(text),
        Role::Merged => paint.cyan(text),
        Role::Ends => paint.red(text),
        Role::Hidden | Role::None => paint.dim(text),
    };
    let cell = |text: &str| Cell::new(text, tint(text));
    vec![
        Cell::new(&number, paint.bold(&number)),
        Cell::new(&name, paint.cyan(&name)),
        cell(sign),
        cell(&what),
        cell(&size),
        Cell::new(&detail, if entry.role == Role::Hidden { paint.dim(&detail) } else { detail.clone() }),
        cell(&remark),
    ]
}

fn what(texts: &'static Texts, entry: &EntryReport) -> (&'static str, String) {
    let sign = match entry.role {
        Role::Shown => "●",
        Role::Merged => "◆",
        Role::Ends => "✗",
        Role::Hidden => "○",
        Role::None => "·",
    };
    let what = match entry.holds {
        Holding::Absent => texts.say("explain.holds.nothing").to_owned(),
        Holding::Whiteout => match entry.form.as_deref() {
            Some("aufs") => {
                let name = entry.path.0.rsplit(|&b| b == b'/').next().unwrap_or_default();
                texts.fill("explain.holds.aufs", &[("name", &EscapedPath::from(name).to_string())])
            }
            Some("xattr") => texts.say("explain.holds.xattr").to_owned(),
            _ => texts.say("explain.holds.device").to_owned(),
        },
        Holding::Entry => {
            let kind = entry.kind.map_or(texts.say("explain.holds.entry"), |kind| kind_word(texts, kind));
            match (entry.opaque, &entry.redirect) {
                (true, _) => texts.fill("explain.holds.opaque", &[("kind", kind)]),
                (false, Some(to)) => {
                    texts.fill("explain.holds.redirect", &[("kind", kind), ("to", &to.to_string())])
                }
                (false, None) => kind.to_owned(),
            }
        }
    };
    (sign, what)
}

/// Returns mode and time.
fn detail(entry: &EntryReport) -> String {
    let Some(mode) = entry.mode.as_deref().and_then(|mode| u32::from_str_radix(mode, 8).ok()) else {
        return String::new();
    };
    let time = entry.mtime.as_deref().and_then(|time| time.parse::<Timestamp>().ok());
    let time =
        time.map(|time| time.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string());
    format!("{}  {}", mode_letters(mode), time.unwrap_or_default())
}

/// Returns permissions as `ls -l` writes them.
pub fn mode_letters(mode: u32) -> String {
    let mut letters = String::new();
    for (shift, special, on, off) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = mode >> shift;
        letters.push(if bits & 4 != 0 { 'r' } else { '-' });
        letters.push(if bits & 2 != 0 { 'w' } else { '-' });
        letters.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => on,
            (true, false) => off,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    letters
}

fn remark(texts: &Texts, explanation: &Explanation, entry: &EntryReport) -> String {
    let elsewhere = match entry.holds {
        Holding::Absent => String::new(),
        _ => {
            let same = explanation.path.0.strip_prefix(b"/").unwrap_or(&explanation.path.0) == entry.path.0;
            if same { String::new() } else { texts.fill("explain.at", &[("path", &entry.path.to_string())]) }
        }
    };
    let remark = match entry.role {
        Role::Shown => match entry.data_in {
            Some(layer) => data_elsewhere(texts, entry.blocks, &short_title(texts, explanation, layer)),
            None => texts.say("explain.role.shown").to_owned(),
        },
        Role::Merged => texts.say("explain.role.merged").to_owned(),
        Role::Ends if explanation.hidden.is_empty() => texts.say("explain.role.hides_nothing").to_owned(),
        Role::Ends => texts.say("explain.role.hides").to_owned(),
        Role::Hidden => hidden_by(texts, explanation, entry),
        Role::None => String::new(),
    };
    format!("{remark}{elsewhere}")
}

/// Says where the data are of a file that has only its metadata here, or some of its blocks.
fn data_elsewhere(texts: &Texts, blocks: Option<Blocks>, layer: &str) -> String {
    match blocks {
        Some(Blocks { own, all }) if own > 0 => {
            let (own, all) = (HumanCount(own).to_string(), HumanCount(all).to_string());
            texts.fill("explain.role.blocks", &[("own", &own), ("all", &all), ("layer", layer)])
        }
        _ => texts.fill("explain.role.metadata", &[("layer", layer)]),
    }
}

/// Returns what a layer is called where a table has little room: steps of builds are long.
fn short_title(texts: &Texts, explanation: &Explanation, number: u16) -> String {
    let name = explanation.layers.iter().find(|layer| layer.layer == number);
    match name.map(|layer| layer.name.to_string()) {
        Some(name) if number > 0 => named_layer(texts, number, &cut(&name, SHORTEST_NAME)),
        _ => layer_title(texts, &explanation.layers, number),
    }
}

fn hidden_by(texts: &Texts, explanation: &Explanation, entry: &EntryReport) -> String {
    let Some(HiddenBy { layer, path, what }) = &entry.hidden_by else {
        return texts.say("explain.role.hidden").to_owned();
    };
    let title = short_title(texts, explanation, *layer);
    let key = match (&what[..], *path == explanation.path) {
        ("whiteout", true) => "explain.hidden_by.whiteout",
        ("whiteout", false) => "explain.hidden_by.whiteout_of",
        ("opaque", true) => "explain.hidden_by.opaque",
        ("opaque", false) => "explain.hidden_by.opaque_at",
        ("redirect", _) => "explain.hidden_by.redirect",
        (_, true) => "explain.hidden_by.layer",
        (_, false) => "explain.hidden_by.path",
    };
    texts.fill(key, &[("path", &path.to_string()), ("layer", &title)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_written_as_ls_does() {
        for (mode, letters) in
            [(0o644, "rw-r--r--"), (0o4755, "rwsr-xr-x"), (0o1777, "rwxrwxrwt"), (0o2600, "rw---S---")]
        {
            assert_eq!(mode_letters(mode), letters);
        }
    }
}
