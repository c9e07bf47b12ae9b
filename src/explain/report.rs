//! Makes the explanation of a path.

use std::path::Path;

use jiff::Timestamp;

use super::predicted_effect::Subject;
use super::titles::{layer_list, layer_title};
use crate::control::explanation::{
    Blocks, CopyingReport, EntryReport, Explanation, HiddenBy, Holding, LayerReport, Role,
};
use crate::error::Result;
use crate::sys::object::{Kind, Stat};
use crate::texts::Texts;
use crate::union::escaped_path::EscapedPath;
use crate::union::events::KindName;
use crate::union::lookup::marker::{WH_PREFIX, WhiteoutMark};
use crate::union::lookup::provenance::{Held, Hides, Holds, Inspector, Outcome, Provenance};

/// Explains a path, relative to the root of the merged view.
///
/// # Errors
/// Those of [`Inspector::provenance`].
pub fn explain(inspector: Inspector<'_>, path: &[u8]) -> Result<Explanation> {
    explain_in(Texts::english(), inspector, path)
}

/// Does as [`explain`], in a language.
///
/// # Errors
/// As there.
pub fn explain_in(texts: &'static Texts, inspector: Inspector<'_>, path: &[u8]) -> Result<Explanation> {
    let (found, trail) = inspector.follow(path)?;
    let layers = layer_reports(inspector, &found)?;
    let subject = Subject { texts, inspector, found: &found, trail: &trail, layers: &layers };
    let (on_write, on_delete, on_rename) = (subject.on_write(), subject.on_delete()?, subject.on_rename());
    let number = |layer: &u16| inspector.number(*layer);
    let merged = match &found.outcome {
        Outcome::Directory { layers, .. } => layers.iter().map(number).collect(),
        _ => found.winner().iter().map(number).collect(),
    };
    let why = why(texts, inspector, &found, &layers);
    let path = rooted(&found.path);
    let copying = inspector.copying_up().iter().map(CopyingReport::from).find(|copy| copy.path == path);
    Ok(Explanation {
        path,
        kind: found.kind().map(KindName::from),
        winner: found.winner().map(|layer| inspector.number(layer)),
        merged,
        hidden: found.hidden().iter().map(number).collect(),
        why,
        layers,
        on_write,
        on_delete,
        on_rename,
        copying,
    })
}

fn rooted(path: &[u8]) -> EscapedPath {
    EscapedPath([b"/", path].concat())
}

/// Calls layers otherwise than by their directories, also in what is said of them; a name for each, from the top down.
pub fn call_layers(texts: &Texts, explanation: &mut Explanation, names: &[Option<String>]) {
    let Explanation { layers, why, on_write, on_delete, on_rename, .. } = explanation;
    for at in 0..layers.len().min(names.len()) {
        let Some(name) = &names[at] else { continue };
        let number = layers[at].layer;
        let old = layer_title(texts, layers, number);
        layers[at].name = EscapedPath::from(name.as_bytes());
        let new = layer_title(texts, layers, number);
        for text in [&mut *why, &mut on_write.text, &mut on_delete.text, &mut on_rename.text] {
            *text = text.replace(&old, &new);
        }
    }
}

/// Returns the layers of a stack, without entries.
///
/// # Errors
/// Those of finding where they are.
pub fn layers(inspector: Inspector<'_>) -> Result<Vec<LayerReport>> {
    let count = inspector.layer_paths().len() as u16;
    (0..count)
        .map(|layer| {
            let directory = EscapedPath(inspector.real_path(layer, b"")?);
            let name = short_name(directory.as_path());
            Ok(LayerReport { layer: inspector.number(layer), name, directory, entries: Vec::new() })
        })
        .collect()
}

fn layer_reports(inspector: Inspector<'_>, found: &Provenance) -> Result<Vec<LayerReport>> {
    let mut layers = layers(inspector)?;
    for (at, layer) in layers.iter_mut().enumerate() {
        let held = found.held.iter().filter(|held| usize::from(held.layer) == at);
        layer.entries = held.map(|held| entry(inspector, held, found)).collect();
    }
    Ok(layers)
}

/// Returns what people call a layer: the last part of its path that says anything.
pub fn short_name(directory: &Path) -> EscapedPath {
    use std::os::unix::ffi::OsStrExt;
    let names = directory.components().rev().filter_map(|part| match part {
        std::path::Component::Normal(name) => Some(name.as_bytes()),
        _ => None,
    });
    // Engines keep each layer in a directory of such a name below its id.
    let telling =
        names.clone().find(|name| !matches!(*name, b"diff" | b"fs" | b"rootfs" | b"root" | b"layer"));
    let name = telling.or(names.clone().next()).unwrap_or(b"/");
    let digest = name.len() == 64 && name.iter().all(u8::is_ascii_hexdigit);
    EscapedPath::from(if digest { &name[..12] } else { name })
}

/// Returns what a layer has in one place.
fn entry(inspector: Inspector<'_>, held: &Held, found: &Provenance) -> EntryReport {
    let mut entry = EntryReport {
        path: EscapedPath::from(&held.path[..]),
        holds: Holding::Absent,
        role: if held.hidden.is_some() { Role::Hidden } else { Role::None },
        kind: None,
        size: None,
        mode: None,
        mtime: None,
        form: None,
        opaque: false,
        redirect: None,
        data_in: None,
        blocks: None,
        hidden_by: held.hidden.as_ref().map(|hider| HiddenBy {
            layer: inspector.number(hider.layer),
            path: rooted(&hider.path),
            what: hides_word(hider.what).to_owned(),
        }),
    };
    let shown = held.hidden.is_none();
    match &held.holds {
        Holds::Absent => {}
        Holds::Whiteout(mark) => {
            entry.holds = Holding::Whiteout;
            entry.form = Some(form_word(*mark).to_owned());
            if shown {
                entry.role = Role::Ends;
            }
        }
        Holds::Leaf { stat, data, blocks } => {
            describe(&mut entry, stat);
            entry.data_in = data.map(|layer| inspector.number(layer));
            entry.blocks = blocks.map(|(own, all)| Blocks { own, all });
            if shown {
                entry.role = Role::Shown;
            }
        }
        Holds::Directory { stat, opaque, beside, redirect } => {
            describe(&mut entry, stat);
            entry.size = None;
            entry.opaque = *opaque || *beside;
            entry.redirect = redirect.clone().map(EscapedPath);
            if shown {
                let many = matches!(&found.outcome, Outcome::Directory { layers, .. } if layers.len() > 1);
                entry.role = if many { Role::Merged } else { Role::Shown };
            }
        }
    }
    entry
}

/// Fills in what stat(2) tells of an entry.
fn describe(entry: &mut EntryReport, stat: &Stat) {
    entry.holds = Holding::Entry;
    entry.kind = Some(stat.kind().into());
    entry.size = matches!(stat.kind(), Kind::File | Kind::Symlink).then_some(stat.size);
    entry.mode = Some(format!("{:04o}", stat.mode & 0o7777));
    entry.mtime = Timestamp::new(stat.mtime.sec, stat.mtime.nsec as i32).ok().map(|time| time.to_string());
}

fn hides_word(what: Hides) -> &'static str {
    match what {
        Hides::Whiteout => "whiteout",
        Hides::Opaque => "opaque",
        Hides::Leaf => "entry",
        Hides::Directory => "directory",
        Hides::Redirect => "redirect",
    }
}

fn form_word(mark: WhiteoutMark) -> &'static str {
    match mark {
        WhiteoutMark::Device => "device",
        WhiteoutMark::Aufs => "aufs",
        WhiteoutMark::Xattr => "xattr",
    }
}

/// Says why the merged view shows what it shows.
fn why(texts: &Texts, inspector: Inspector<'_>, found: &Provenance, layers: &[LayerReport]) -> String {
    let title = |layer: u16| layer_title(texts, layers, inspector.number(layer));
    let name = found.path.rsplit(|&b| b == b'/').next().unwrap_or_default();
    match &found.outcome {
        Outcome::Leaf { copied_elsewhere: true, layer, .. } => {
            texts.fill("explain.why.linked", &[("layer", &title(*layer))])
        }
        Outcome::Leaf { layer, .. } => texts.fill("explain.why.topmost", &[("layer", &title(*layer))]),
        Outcome::Directory { layers: merged, .. } => {
            let numbers = merged.iter().map(|layer| inspector.number(*layer));
            let only = merged.first().filter(|_| merged.len() == 1);
            let mut why = match only {
                Some(only) => texts.fill("explain.why.alone", &[("layer", &title(*only))]),
                None => texts.fill("explain.why.merged", &[("layers", &layer_list(texts, numbers))]),
            };
            let opaque = found.held.iter().find(|held| {
                held.hidden.is_none()
                    && matches!(&held.holds, Holds::Directory { opaque, beside, .. } if *opaque || *beside)
            });
            match (opaque, only) {
                (Some(_), Some(_)) => why.push_str(texts.say("explain.why.opaque_there")),
                (Some(opaque), None) => {
                    why += &texts.fill("explain.why.opaque_in", &[("layer", &title(opaque.layer))]);
                }
                (None, _) => {}
            }
            why
        }
        Outcome::Absent if name.starts_with(WH_PREFIX) => texts.say("explain.why.marker").to_owned(),
        Outcome::Absent => match found.held.iter().find_map(|held| held.hidden.as_ref()) {
            Some(hider) => {
                let key = match (hider.what, hider.path == found.path) {
                    (Hides::Whiteout, true) => "explain.hides.whiteout",
                    (Hides::Whiteout, false) => "explain.hides.whiteout_of",
                    (Hides::Opaque, _) => "explain.hides.opaque",
                    (Hides::Leaf, _) => "explain.hides.leaf",
                    (Hides::Directory, _) => "explain.hides.directory",
                    (Hides::Redirect, _) => "explain.hides.redirect",
                };
                texts.fill(key, &[("path", &rooted(&hider.path).to_string()), ("layer", &title(hider.layer))])
            }
            None => match &found.broken_at {
                Some(parent) => texts.fill("explain.why.broken", &[("path", &rooted(parent).to_string())]),
                None => texts.say("explain.why.none").to_owned(),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_called_by_what_tells_them_apart() {
        let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (path, name) in [("/srv/debian", "debian"), ("/var/lib/x/overlay/ab12/diff", "ab12"), ("/", "/")]
        {
            assert_eq!(short_name(Path::new(path)).to_string(), name);
        }
        assert_eq!(short_name(Path::new(&format!("/store/{digest}/fs"))).to_string(), "e3b0c44298fc");
    }

    #[test]
    fn lists_of_layers_read_well() {
        for (numbers, text) in [
            (&[0u16][..], "the upper"),
            (&[2], "layer 2"),
            (&[0, 1, 2, 3], "the upper and layers 1, 2 and 3"),
            (&[], "no layer"),
        ] {
            assert_eq!(layer_list(Texts::english(), numbers.iter().copied()), text);
        }
    }
}
