//! Snapshots: the upper becomes a frozen layer, and an empty one takes its place.

#![allow(clippy::disallowed_methods, reason = "the directories are its own")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{RenameFlags, fsync, renameat_with};
use rustix::io::Errno;

use crate::sys::dir::for_each_entry;
use crate::sys::process::raise_nofile_limit;
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below;
use crate::union::frozen::held::{Held, NEW, OfWhat, Writing};
use crate::union::frozen::linking::{self, IndexState};
use crate::union::frozen::mark::Head;
use crate::union::frozen::record::{FrozenLayer, MOST_LAYERS, check_name, is_number};
use crate::union::frozen::root;
use crate::union::frozen::settle;
use crate::union::frozen::unfit::{Result, SnapshotError};
use crate::union::stack::layer::{LowerSource, Stack, StackOptions, XattrChoice};
use crate::union::stack::stack_error::StackError;
use crate::union::{Limits, Union};

/// Which upper is meant, and how it is mounted.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// The upper.
    pub upper: PathBuf,
    /// Its workdir, where it isn't the one beside it.
    pub work: Option<PathBuf>,
    /// What lies below it and all that is frozen, the topmost first; none: what was recorded.
    pub lowers: Vec<LowerSource>,
    /// Where its marks are.
    pub xattr: XattrChoice,
    /// It was named by its container, whose it is.
    pub is_containers: bool,
}

impl Target {
    /// Locks the upper.
    pub(super) fn hold(&self) -> std::result::Result<Held, StackError> {
        let what = if self.is_containers { OfWhat::OwnSnapshots } else { OfWhat::Snapshots };
        Held::begin(&self.upper, self.work.as_deref(), what)
    }
}

/// Freezes what is in an upper.
///
/// # Errors
/// When it can't be done; then nothing is changed.
pub fn snapshot(target: &Target, name: Option<&str>) -> std::result::Result<FrozenLayer, StackError> {
    if let Some(name) = name {
        may_be_called(&target.upper, name)?;
    }
    let (held, state) = ready(target)?;
    check_is_upper(target, &held)?;
    let mut writing = held.writing()?;
    if !held.is_containers
        && let Some(lowers) = recorded(&target.lowers)
    {
        writing.layers.record.lowers = lowers;
    }
    Ok(freeze(&held, &mut writing, state, name)?)
}

/// Refuses a name that can't be had, before anything is done.
pub(in crate::union) fn may_be_called(upper: &Path, name: &str) -> Result<()> {
    check_name(name)
        .map_err(|why| SnapshotError::refused(name, format!("the name of the snapshot {why}")))?;
    match is_number(name) {
        true => Err(SnapshotError::refused(
            upper,
            format!("{name} would be taken for a number; choose a name with a letter in it"),
        )),
        false => Ok(()),
    }
}

/// Refuses an empty directory of which nothing tells that it is an upper: it may be where a mount is expected that isn't there.
fn check_is_upper(target: &Target, held: &Held) -> Result<()> {
    if !target.lowers.is_empty() || held.head()?.is_some() {
        return Ok(());
    }
    let mut is_empty = true;
    for_each_entry(held.upper.root.as_fd(), |_| {
        is_empty = false;
        Ok(())
    })
    .map_err(SnapshotError::io::<Errno>("list it", &target.upper))?;
    match is_empty {
        true => Err(SnapshotError::refused(
            &target.upper,
            "nothing is in it, and it has no snapshots: is it the upper, or a mount point without its mount? With --lower it is \
             taken for an upper",
        )),
        false => Ok(()),
    }
}

/// Returns the lowers as they are recorded: from the root. `None`: none are named, and those that are recorded stay. Where one isn't a
/// directory that is found again none are, so that the next mount asks for them: others than these would be shown.
pub(in crate::union) fn recorded(lowers: &[LowerSource]) -> Option<Vec<EscapedPath>> {
    let path = |lower: &LowerSource| match lower {
        LowerSource::Directory(path) => {
            std::fs::canonicalize(path).ok().map(|path| EscapedPath::from(path.as_path()))
        }
        LowerSource::Tree { .. } => None,
    };
    if lowers.is_empty() {
        return None;
    }
    let paths: Option<Vec<EscapedPath>> = lowers.iter().map(path).collect();
    if paths.is_none() {
        log::warn!(
            "a lower is an archive, or isn't found any more: none are recorded, and the next mount is to name them"
        );
    }
    Some(paths.unwrap_or_default())
}

/// Holds an upper whose files have all their names in itself.
pub(super) fn ready(target: &Target) -> std::result::Result<(Held, IndexState), StackError> {
    let (held, state) = look(target)?;
    if state.lacking.is_empty() {
        return Ok((held, state));
    }
    let below = below::of(held.upper.root.as_fd(), &target.upper)?;
    if target.lowers.is_empty() && below.is_none_or(|below| below.lowers.is_empty()) {
        let why = "has copies of files whose other names only the layers below have; name these with --lower, as for the mount";
        return Err(SnapshotError::refused(&target.upper, why).into());
    }
    // Whoever opens the stack locks it.
    drop(held);
    if let Err(error) = raise_nofile_limit() {
        log::warn!("cannot raise the limit on open files: {error}");
    }
    let found = link_all_names(target)?;
    let (held, state) = look(target)?;
    // What was recorded are the layers of the mounts: a name that isn't found in them is hidden. What is named may be others.
    if !target.lowers.is_empty() && !state.lacking.is_subset(&found) {
        let why = "has copies of files whose other names are in none of the layers that were named; name those of its mounts";
        return Err(SnapshotError::refused(&target.upper, why).into());
    }
    Ok((held, state))
}

fn look(target: &Target) -> std::result::Result<(Held, IndexState), StackError> {
    let held = target.hold()?;
    drop(held.existing()?);
    // What a kill has left undone after an exchange.
    if let Some(below) = below::of(held.upper.root.as_fd(), &target.upper)? {
        settle::index(&held.work, held.upper.root.as_fd(), &below)?;
    }
    let state = linking::read(&held.work);
    let state = state.map_err(SnapshotError::io("read the hardlink index in it", &held.work.path))?;
    Ok((held, state))
}

/// Gives the upper all names of its files that are shown. Returns of which files in its hardlink index no name is left that could be.
fn link_all_names(target: &Target) -> std::result::Result<BTreeSet<Vec<u8>>, StackError> {
    let stack = Stack::open(&StackOptions {
        lowers: target.lowers.clone(),
        upper: Some(target.upper.clone()),
        work: target.work.clone(),
        xattr: target.xattr,
        ..StackOptions::default()
    })?;
    let linked = Union::new(stack, Limits::of_process()).and_then(|union| {
        union.link_all_names()?;
        union.found_with_all_names()
    });
    let failed = |error| {
        SnapshotError::refused(
            &target.upper,
            format!("the names of its files can't be gone through: {error}"),
        )
    };
    linked.map_err(|error| failed(error).into())
}

/// A layer that is about to be frozen: the record has it, and the new upper lies under its number. Until the exchange whoever
/// opens the record for writing takes it for given up.
#[derive(Debug)]
pub(in crate::union) struct Prepared {
    /// The layer.
    pub layer: FrozenLayer,
    /// The new upper.
    pub new: OwnedFd,
}

impl Prepared {
    /// Returns the name under which the new upper lies.
    pub fn place(&self) -> String {
        self.layer.layer.to_string()
    }
}

/// Prepares to freeze what is in an upper. Nothing that is shown has changed by it.
///
/// # Errors
/// When the name isn't free, or there are as many layers as there may be; and those of the system.
pub(in crate::union) fn prepare(
    held: &Held,
    writing: &mut Writing,
    hidden: BTreeMap<String, u64>,
    name: Option<&str>,
) -> Result<Prepared> {
    let path = &held.upper.path;
    let on = below::of(held.upper.root.as_fd(), path)?;
    if on.is_some_and(|on| on.layers.len() >= MOST_LAYERS) {
        let why = format!(
            "lies on {MOST_LAYERS} frozen layers, and more can't be mounted; make one of several: unionmount squash {}",
            EscapedPath::from(path.as_path())
        );
        return Err(SnapshotError::refused(path, why));
    }
    let record = &mut writing.layers.record;
    let below = held.head()?.map_or(0, |head| head.layer);
    let layer = record.next;
    let name = name.map_or_else(|| layer.to_string(), str::to_owned);
    if record.find(&name).is_some() {
        return Err(SnapshotError::refused(path, format!("a snapshot of it is called {name} already")));
    }
    let made = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    let frozen = FrozenLayer { layer, name, made, below, content: None, hidden, moved_to: None };
    record.next += 1;
    record.layers.push(frozen.clone());
    let head = Head::new(layer).map_err(SnapshotError::io("make a mark for it", path))?;
    let layers = &writing.layers;
    let new = root::make((layers.dir.as_fd(), NEW, &layers.path), held.upper.root.as_fd(), &head)?;
    layers.write()?;
    failpoint::reached(Failpoint::Changed);
    rename_new(writing, layer)?;
    Ok(Prepared { layer: frozen, new })
}

/// Freezes what is in an upper that is held.
pub(super) fn freeze(
    held: &Held,
    writing: &mut Writing,
    state: IndexState,
    name: Option<&str>,
) -> Result<FrozenLayer> {
    let prepared = prepare(held, writing, state.hidden, name)?;
    held.sync()?;
    held.exchange(&writing.layers, &prepared.place())?;
    settle_new(held, prepared.new.as_fd());
    Ok(prepared.layer)
}

fn rename_new(writing: &Writing, layer: u32) -> Result<()> {
    let layers = &writing.layers;
    renameat_with(&layers.dir, NEW, &layers.dir, layer.to_string(), RenameFlags::NOREPLACE)
        .map_err(SnapshotError::io("prepare it", layers.place(layer)))?;
    fsync(&layers.dir).map_err(SnapshotError::io("write it to the disk", &layers.path))?;
    failpoint::reached(Failpoint::Changed);
    Ok(())
}

/// Makes the hardlink index that of the new upper. That one is in its place whatever comes of this, so nothing has failed: the next
/// mount or snapshot settles the index, and refuses where it can't.
pub(super) fn settle_new(held: &Held, new: BorrowedFd<'_>) {
    let settle = || match below::of(new, &held.upper.path)? {
        Some(below) => settle::index(&held.work, new, &below),
        None => Ok(()),
    };
    if let Err(error) = settle() {
        log::warn!("the new upper is in its place; what is left to do the next mount does: {error}");
    }
}
