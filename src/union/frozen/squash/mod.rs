//! Squashes: neighbouring frozen layers become one. The states between them are forgotten, and nothing that is shown changes.
//!
//! The new layer is built beside, of links of the files of the old ones (`merging`); no data are copied. Then the record is
//! written, in which the topmost of the old layers lies in the new directory: the one step. Until then all is as it was, and
//! what was built is removed by whoever opens the record next; afterwards the directories of the old layers are.
//!
//! `way` tells where the search goes on below the layers that are merged, which is what the marks of the new directories say.

#![allow(clippy::disallowed_methods, reason = "the directories are its own")]

mod merging;
mod way;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, RenameFlags, fsync, mkdirat, openat, renameat_with};

use crate::sys::process::raise_nofile_limit;
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::frozen::below::is_frozen;
use crate::union::frozen::held::{Held, NEW, Writing};
use crate::union::frozen::mark::Head;
use crate::union::frozen::record::{FrozenLayer, Record};
use crate::union::frozen::removal::branches;
use crate::union::frozen::root;
use crate::union::frozen::snapshot::Target;
use crate::union::frozen::squash::merging::merge;
use crate::union::frozen::unfit::{Result, SnapshotError};
use crate::union::stack::layer::{Stack, StackOptions, XattrChoice};
use crate::union::stack::stack_error::StackError;
use crate::union::{Limits, Union};

/// In [`NEW`]: what is being built, and an empty layer below those that are merged, so that whiteouts of the last one are told.
const TREE: &str = "tree";
const NOTHING: &str = "nothing";

/// Which layers are to be one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    /// The snapshot below the lowest of them; none: as far down as they can be merged. `0`: nothing.
    pub after: Option<String>,
    /// The topmost of them, whose state and name stay; none: the one that the upper lies on.
    pub to: Option<String>,
}

/// What a squash did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Squashed {
    /// The names of the snapshots that are gone, the newest first.
    pub gone: Vec<String>,
    /// The name of the one that has all of it.
    pub into: String,
}

/// Tells what [`squash`] would do, and the directories of the layers that would be merged, in which nobody may be.
///
/// # Errors
/// Those of [`squash`] that can be told before.
pub fn plan(target: &Target, range: &Range) -> std::result::Result<(Squashed, Vec<PathBuf>), StackError> {
    let held = Held::begin(&target.upper, target.work.as_deref())?;
    let writing = writing(&held)?;
    let layers = chosen(&held, &writing, range)?;
    Ok((Squashed::of(&layers), layers.iter().map(|layer| writing.layers.place(layer.layer)).collect()))
}

impl Squashed {
    fn of(layers: &[FrozenLayer]) -> Squashed {
        let mut names = layers.iter().map(|layer| layer.name.clone());
        Squashed { into: names.next().unwrap_or_default(), gone: names.collect() }
    }
}

/// Merges neighbouring frozen layers of an upper into one.
///
/// # Errors
/// When something stands on one of those that would be gone, or a file has its data in a layer below; then nothing is changed.
pub fn squash(target: &Target, range: &Range) -> std::result::Result<Squashed, StackError> {
    let held = Held::begin(&target.upper, target.work.as_deref())?;
    let mut writing = writing(&held)?;
    let layers = chosen(&held, &writing, range)?;
    let built = build(&held, &writing, &layers, target.xattr).inspect_err(|_| {
        if let Err(error) = writing.remove(NEW) {
            log::warn!("{error}; the next call removes it");
        }
    })?;
    // Where this fails, what the disk has of the record isn't known: who opens it next removes what that doesn't name.
    let squashed = put(&held, &mut writing, &layers, &built)?;
    if let Err(error) = writing.remove_leaving() {
        log::warn!("the layers are merged; what is left of the old ones the next call removes: {error}");
    }
    Ok(squashed)
}

fn writing(held: &Held) -> Result<Writing> {
    held.existing()?.ok_or_else(|| SnapshotError::refused(&held.upper.path, "has no snapshots"))
}

/// Returns the layers that are to be one, the topmost first.
fn chosen(held: &Held, writing: &Writing, range: &Range) -> Result<Vec<FrozenLayer>> {
    let (path, record) = (&held.upper.path, &writing.layers.record);
    let find = |name: &String| {
        record.find(name).ok_or_else(|| {
            let why = format!("no snapshot of it is called {name}; unionmount snapshots lists them");
            SnapshotError::refused(path, why)
        })
    };
    let own = held.head()?.map_or(0, |head| head.layer);
    let to = range.to.as_ref().map(find).transpose()?.unwrap_or(own);
    let needed = needed(writing, own)?;
    let chain = record.chain(to);
    let mut layers: Vec<FrozenLayer> = Vec::new();
    match &range.after {
        // Down to the first that something else stands on.
        None => {
            let merged =
                chain.iter().enumerate().take_while(|(at, layer)| *at == 0 || !needed.contains(&layer.layer));
            layers.extend(merged.map(|(_, layer)| (*layer).clone()));
        }
        Some(name) => {
            let after = find(name)?;
            if after != 0 && !chain.iter().any(|layer| layer.layer == after) {
                let why = format!("the snapshot {} doesn't lie on {name}", shown(record, to));
                return Err(SnapshotError::refused(path, why));
            }
            let merged = chain.iter().take_while(|layer| layer.layer != after);
            layers.extend(merged.map(|layer| (*layer).clone()));
            if let Some(used) = layers.iter().skip(1).find(|layer| needed.contains(&layer.layer)) {
                return Err(SnapshotError::refused(path, why_not(writing, used, own)?));
            }
        }
    }
    if layers.len() < 2 {
        let why = "no two neighbouring snapshots can be merged there: a state stays on which the upper, a branch or another \
                   snapshot stands";
        return Err(SnapshotError::refused(path, why));
    }
    for layer in &layers {
        if !is_frozen(&writing.layers, layer.layer)? {
            return Err(SnapshotError::damaged(writing.layers.place(layer.layer), "is missing"));
        }
    }
    Ok(layers)
}

/// Returns the layers on which more stands than the next one of a chain.
fn needed(writing: &Writing, own: u32) -> Result<BTreeSet<u32>> {
    let mut needed = BTreeSet::from([own]);
    needed.extend(branches(&writing.layers)?.iter().map(|branch| branch.layer));
    let mut once = BTreeSet::new();
    for layer in &writing.layers.record.layers {
        if !once.insert(layer.below) {
            needed.insert(layer.below);
        }
    }
    Ok(needed)
}

/// Says what stands on a layer that would be gone.
fn why_not(writing: &Writing, used: &FrozenLayer, own: u32) -> Result<String> {
    let (name, on) = (&used.name, used.layer);
    if on == own {
        return Ok(format!("it lies on the snapshot {name}, which stays; name that as the last: ..{name}"));
    }
    if let Some(branch) = branches(&writing.layers)?.into_iter().find(|branch| branch.layer == on) {
        let upper = crate::union::escaped_path::EscapedPath::from(branch.upper().as_path());
        return Ok(format!("the branch {upper} stands on the snapshot {name}, which stays"));
    }
    let others: Vec<&str> = writing
        .layers
        .record
        .layers
        .iter()
        .filter(|layer| layer.below == on)
        .map(|layer| layer.name.as_str())
        .collect();
    Ok(format!("several snapshots lie on {name}, which stays: {}", others.join(", ")))
}

fn shown(record: &Record, layer: u32) -> &str {
    record.layer(layer).map_or("0", |layer| &layer.name)
}

/// What was built, and lies in [`NEW`].
struct Built {
    within: OwnedFd,
    /// The names of files that are hidden, as the record keeps it.
    hidden: std::collections::BTreeMap<String, u64>,
}

fn build(
    held: &Held,
    writing: &Writing,
    layers: &[FrozenLayer],
    xattr: XattrChoice,
) -> std::result::Result<Built, StackError> {
    if let Err(error) = raise_nofile_limit() {
        log::warn!("cannot raise the limit on open files: {error}");
    }
    let (dir, path) = (writing.layers.dir.as_fd(), writing.layers.path.join(NEW));
    let within = make(dir, NEW, &path)?;
    make(within.as_fd(), NOTHING, &path.join(NOTHING))?;
    let sources = layers.iter().map(|layer| writing.layers.place(layer.layer)).chain([path.join(NOTHING)]);
    let stack = Stack::open(&StackOptions {
        lowers: sources.map(Into::into).collect(),
        xattr,
        ..StackOptions::default()
    })?;
    let failed = |error: crate::error::FsError| {
        SnapshotError::refused(&held.upper.path, format!("its layers can't be gone through: {error}"))
    };
    let union = Union::new(stack, Limits::of_process()).map_err(failed)?;
    // `layers` has two at least.
    let (Some(top), Some(last)) = (layers.first(), layers.last()) else {
        return Err(SnapshotError::refused(&held.upper.path, "has no snapshots").into());
    };
    let head = Head::new(last.below).map_err(SnapshotError::io("make a mark for it", &path))?;
    let missing =
        |layer: &FrozenLayer| SnapshotError::damaged(writing.layers.place(layer.layer), "is missing");
    let mut roots = Vec::new();
    for layer in layers {
        roots.push(writing.layers.layer(layer.layer)?.ok_or_else(|| missing(layer))?);
    }
    let model = roots.first().ok_or_else(|| missing(top))?;
    let tree = root::make((within.as_fd(), TREE, &path), model.as_fd(), &head)?;
    let mut hidden = top.hidden.clone();
    for own in merge((&union, &roots), tree.as_fd(), &path.join(TREE), xattr)? {
        // Of a file that has all its names in the new layer nothing is hidden below.
        hidden.remove(&own);
    }
    root::be_like(tree.as_fd(), model.as_fd())
        .map_err(SnapshotError::io("give it the attributes of the root", &path))?;
    Ok(Built { within, hidden })
}

fn make(parent: BorrowedFd<'_>, name: &str, path: &std::path::Path) -> Result<OwnedFd> {
    mkdirat(parent, name, Mode::RWXU).map_err(SnapshotError::io("make it", path))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty()).map_err(SnapshotError::io("open it", path))
}

/// Puts what was built in its place.
fn put(held: &Held, writing: &mut Writing, layers: &[FrozenLayer], built: &Built) -> Result<Squashed> {
    let own = &mut writing.layers;
    let directory = own.record.next;
    let name = directory.to_string();
    // From now on the number is never another's, and what has it is removed unless the record has it as a layer.
    own.record.next += 1;
    own.record.removing.push(directory);
    own.write()?;
    failpoint::reached(Failpoint::Changed);
    renameat_with(&built.within, TREE, &own.dir, &name, RenameFlags::NOREPLACE)
        .map_err(SnapshotError::io("prepare it", own.path.join(&name)))?;
    failpoint::reached(Failpoint::Changed);
    held.sync()?;
    fsync(&own.dir).map_err(SnapshotError::io("write it to the disk", &own.path))?;
    let record = &mut own.record;
    record.removing.retain(|leaving| *leaving != directory);
    for (at, old) in layers.iter().enumerate() {
        record.removing.push(old.directory());
        if at > 0 {
            record.layers.retain(|layer| layer.layer != old.layer);
        } else if let Some(top) = record.layers.iter_mut().find(|layer| layer.layer == old.layer) {
            top.below = layers.last().map_or(0, |last| last.below);
            top.content = None;
            top.hidden.clone_from(&built.hidden);
            top.moved_to = Some(directory);
        }
    }
    own.write()?;
    failpoint::reached(Failpoint::Changed);
    writing.remove(NEW)?;
    Ok(Squashed::of(layers))
}
