//! Directories that no entry of a layer's tar names, as where it holds `etc/app/config` and no `etc`.
//!
//! They are made up, with mode 755; and since a merged directory shows the attributes of its topmost layer, `/etc` would lose
//! the owner and the mode that a layer further down gives it. So they get those of the nearest layer below that shows
//! the directory, as containerd gives them when it unpacks a layer upon those below it. Unpacked layers of the store have a
//! frame for the same end (`image::store::attribute_layer`).

use super::Archive;
use super::index::{Content, Index, Name, Number};
use crate::union::lookup::marker::{WH_OPAQUE, WH_PREFIX};

const ROOT: u64 = 1;

/// Gives the made-up directories of layers what the layers below say of them. `layers`: those of one image, topmost first, with
/// nothing else between them.
pub fn describe_implied(layers: &mut [&mut Archive]) {
    // From the bottom: what a made-up directory of a layer has got counts for those above it.
    for at in (0..layers.len().saturating_sub(1)).rev() {
        let (above, below) = layers.split_at_mut(at + 1);
        let Some(layer) = above.last_mut() else { continue };
        let below: Vec<&Index> = below.iter().map(|layer| &layer.index).collect();
        describe(&mut layer.index, &below);
    }
}

fn describe(index: &mut Index, below: &[&Index]) {
    if index.implied.is_empty() {
        return;
    }
    let mut described = Vec::new();
    each_directory(index, below, |number, nearest| {
        if let Some(number) = key(number).filter(|number| index.implied.contains(number)) {
            described.push((number, nearest));
        }
    });
    for (number, (from, at)) in described {
        let (Some(told), Some(object)) = (from.object(at), index.objects.get_mut(number as usize)) else {
            continue;
        };
        (object.mode, object.uid, object.gid, object.mtime) = (told.mode, told.uid, told.gid, told.mtime);
        if let Some(xattrs) = key(at).and_then(|at| from.attributes.get(&at)) {
            index.attributes.insert(number, xattrs.clone());
        }
    }
}

/// Returns the place in the index of the object that is known by a number.
fn key(number: u64) -> Option<Number> {
    Number::try_from(number.checked_sub(1)?).ok()
}

/// A directory of a layer below.
type Below<'a> = (&'a Index, u64);

/// A directory on the way, how many of its entries have been seen, and where it lies in the layers below, as far as those
/// are seen through it: the nearest first.
struct Level<'a> {
    dir: u64,
    seen: usize,
    below: Vec<Below<'a>>,
}

/// Calls `each` for every directory that a layer below shows as well, with the nearest of those. What no other layer has is
/// not gone into.
fn each_directory<'a>(index: &Index, below: &[&'a Index], mut each: impl FnMut(u64, Below<'a>)) {
    let mut way = Vec::new();
    let roots = below.iter().map(|layer| (*layer, ROOT)).collect();
    way.extend(enter(index, ROOT, visible(roots), &mut each));
    while let Some(level) = way.last_mut() {
        let Some(entry) = entries(index, level.dir).and_then(|list| list.get(level.seen)) else {
            way.pop();
            continue;
        };
        level.seen += 1;
        // Most entries are files, and a layer may have millions.
        if entries(index, Index::number(entry)).is_none() {
            continue;
        }
        let name = index.name(entry);
        if has(index, level.dir, &[WH_PREFIX, name].concat()) {
            continue;
        }
        let below = visible(go(&level.below, name));
        way.extend(enter(index, Index::number(entry), below, &mut each));
    }
}

/// Begins with a directory, if it is one and something below shows through it.
fn enter<'a>(
    index: &Index,
    dir: u64,
    below: Vec<Below<'a>>,
    each: &mut impl FnMut(u64, Below<'a>),
) -> Option<Level<'a>> {
    entries(index, dir)?;
    if has(index, dir, WH_OPAQUE) {
        return None;
    }
    each(dir, *below.first()?);
    Some(Level { dir, seen: 0, below })
}

/// Returns the directories of a name in those of the layers below, as far as nothing hides them: a whiteout, or something that
/// is no directory (OCI's image-spec, layer.md).
fn go<'a>(dirs: &[Below<'a>], name: &[u8]) -> Vec<Below<'a>> {
    let mut found = Vec::new();
    for (layer, dir) in dirs {
        if let Some(child) = entries(layer, *dir).and_then(|list| layer.find(list, name)) {
            if entries(layer, child).is_none() {
                break;
            }
            found.push((*layer, child));
        }
        if has(layer, *dir, &[WH_PREFIX, name].concat()) {
            break;
        }
    }
    found
}

/// Leaves out what lies below an opaque directory.
fn visible(mut dirs: Vec<Below<'_>>) -> Vec<Below<'_>> {
    if let Some(opaque) = dirs.iter().position(|(layer, dir)| has(layer, *dir, WH_OPAQUE)) {
        dirs.truncate(opaque + 1);
    }
    dirs
}

fn entries(index: &Index, dir: u64) -> Option<&[Name]> {
    match &index.object(dir)?.content {
        Content::Entries(entries) => Some(entries),
        _ => None,
    }
}

fn has(index: &Index, dir: u64, name: &[u8]) -> bool {
    entries(index, dir).is_some_and(|list| index.find(list, name).is_some())
}
