//! Squashes: neighbouring frozen layers become one. The states between them are forgotten, and nothing that is shown changes.
//!
//! The new layer is built beside, of links of the files of the old ones (`merging`); no data are copied. Then the record is
//! written, in which the topmost of the old layers lies in the new directory: the one step. Until then all is as it was, and
//! what was built is removed by whoever opens the record next; afterwards the directories of the old layers are.
//!
//! From the plan to the end the upper is locked, the record, and the uppers of all branches that have one of the layers (`standing`):
//! a mount that began between would have directories that go.
//!
//! `way` tells where the search goes on below the layers that are merged, which is what the marks of the new directories say.

#![allow(clippy::disallowed_methods, reason = "the directories are its own")]

mod choosing;
mod merging;
mod standing;
mod way;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, RenameFlags, fsync, mkdirat, openat, renameat_with};

use crate::sys::process::raise_nofile_limit;
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::frozen::held::{Held, NEW, Writing};
use crate::union::frozen::keeping;
use crate::union::frozen::mark::Head;
use crate::union::frozen::record::FrozenLayer;
use crate::union::frozen::removal::{branches, forget};
use crate::union::frozen::root;
use crate::union::frozen::snapshot::Target;
use crate::union::frozen::squash::choosing::Choosing;
pub use crate::union::frozen::squash::choosing::Range;
use crate::union::frozen::squash::merging::merge;
use crate::union::frozen::unfit::{Result, SnapshotError};
use crate::union::stack::layer::{Stack, StackOptions, XattrChoice};
use crate::union::stack::lock::DirLock;
use crate::union::stack::stack_error::StackError;
use crate::union::{Limits, Union};

/// In [`NEW`]: what is being built, and an empty layer below those that are merged, so that whiteouts of the last one are told.
const TREE: &str = "tree";
const NOTHING: &str = "nothing";

/// What a squash did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Squashed {
    /// The names of the snapshots that are gone, the newest first.
    pub gone: Vec<String>,
    /// The name of the one that has all of it.
    pub into: String,
}

/// Layers that are about to become one. As long as this is held, no mount of the upper begins, none of a branch that has one of them,
/// and nobody else changes the record.
pub struct Squashing {
    // Order matters: what is held by the locks goes before them.
    writing: Writing,
    /// The topmost first.
    layers: Vec<FrozenLayer>,
    xattr: XattrChoice,
    gone: bool,
    _branches: Vec<DirLock>,
    held: Held,
}

impl Squashing {
    /// Finds out which layers they are, and locks all that has them. `gone`: branches that aren't found any more hold none.
    ///
    /// # Errors
    /// When something stands on one of those that would be gone, or a mount has them, or a branch that has them isn't found.
    pub fn begin(target: &Target, range: &Range, gone: bool) -> std::result::Result<Squashing, StackError> {
        if let Err(error) = raise_nofile_limit() {
            log::warn!("cannot raise the limit on open files: {error}");
        }
        let held = target.hold()?;
        let writing = writing(&held)?;
        keeping::is_read_by_nobody(&writing.layers)?;
        let layers = Choosing::of(&held, &writing, gone)?.chosen(range)?;
        let merged = layers.iter().map(|layer| layer.layer).collect();
        let branches = standing::hold(&held.upper.path, &writing.layers, &merged, gone)?;
        Ok(Squashing { writing, layers, xattr: target.xattr, gone, _branches: branches, held })
    }

    /// Returns the directories of the layers that are merged, which nobody else may have as a layer.
    pub fn places(&self) -> Vec<PathBuf> {
        self.layers.iter().map(|layer| self.writing.layers.place(layer.layer)).collect()
    }

    /// Tells what would be done.
    pub fn told(&self) -> Squashed {
        let mut names = self.layers.iter().map(|layer| layer.name.clone());
        Squashed { into: names.next().unwrap_or_default(), gone: names.collect() }
    }

    /// Merges them into one.
    ///
    /// # Errors
    /// When a file has its data in a layer below, and those of the system; then nothing is changed.
    pub fn carry_out(mut self) -> std::result::Result<Squashed, StackError> {
        let built = build(&self.held, &self.writing, &self.layers, self.xattr).inspect_err(|_| {
            if let Err(error) = self.writing.remove(NEW) {
                log::warn!("{error}; the next call removes it");
            }
        })?;
        // Where this fails, what the disk has of the record isn't known: who opens it next removes what that doesn't name.
        put(&self.held, &mut self.writing, &self.layers, &built)?;
        if let Err(error) = self.clean_up() {
            log::warn!("the layers are merged; what is left of the old ones the next call removes: {error}");
        }
        Ok(self.told())
    }

    fn clean_up(&mut self) -> Result<()> {
        self.writing.remove_leaving()?;
        let merged: BTreeSet<u32> = self.layers.iter().skip(1).map(|layer| layer.layer).collect();
        let mut left = branches(&self.writing.layers)?;
        left.retain(|branch| branch.is_gone(self.gone) && merged.contains(&branch.layer));
        forget(&self.writing.layers, &left)
    }
}

fn writing(held: &Held) -> Result<Writing> {
    held.existing()?.ok_or_else(|| SnapshotError::refused(&held.upper.path, "has no snapshots"))
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
fn put(held: &Held, writing: &mut Writing, layers: &[FrozenLayer], built: &Built) -> Result<()> {
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
    writing.remove(NEW)
}
