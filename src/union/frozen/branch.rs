//! Branches: a new upper over the frozen layers of another stack.

#![allow(clippy::disallowed_methods, reason = "the directories are its own")]

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RenameFlags, fsync, openat, renameat_with, symlinkat};
use rustix::io::Errno;

use crate::sys::remove;
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below::{self, open_base};
use crate::union::frozen::held::{Held, NEW, Writing, make_layers};
use crate::union::frozen::mark::Head;
use crate::union::frozen::record::Base;
use crate::union::frozen::root;
use crate::union::frozen::site::{BRANCHES, Layers, layers_name, make_own};
use crate::union::frozen::snapshot::{self, Target};
use crate::union::frozen::unfit::{Result, SnapshotError};
use crate::union::stack::stack_error::StackError;

/// Makes a new upper at `new` over what another one shows, for which a snapshot of that is taken unless it is empty. Returns the
/// name of the snapshot that was taken.
///
/// # Errors
/// When it can't be done.
pub fn branch(target: &Target, new: &Path) -> std::result::Result<Option<String>, StackError> {
    let place = Place::of(new)?;
    let (held, state) = snapshot::ready(target)?;
    let mut writing = held.writing()?;
    let taken = if needs_snapshot(&held, &writing)? {
        Some(snapshot::freeze(&held, &mut writing, state, None)?.name)
    } else {
        None
    };
    stand_on(&held, &writing, &place)?;
    Ok(taken)
}

/// Tells whether something is in an upper that is to be frozen before a branch can stand on it, or nothing is frozen below it yet.
pub(in crate::union) fn needs_snapshot(held: &Held, writing: &Writing) -> Result<bool> {
    let nothing_to_stand_on =
        held.head()?.is_none_or(|head| head.layer == 0) && writing.layers.record.base.is_none();
    Ok(nothing_to_stand_on || !held.is_empty()?)
}

/// Where a branch will be.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// The directory that holds it, from the root.
    parent: PathBuf,
    name: OsString,
    open: OwnedFd,
}

impl Place {
    /// Returns where one that is to be made will be.
    ///
    /// # Errors
    /// When something is there already.
    pub fn of(new: &Path) -> Result<Place> {
        let refused = |why: &str| SnapshotError::refused(new, why);
        let name = new.file_name().ok_or_else(|| refused("is no name for a new directory"))?;
        let parent = match new.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let parent = std::fs::canonicalize(parent).map_err(SnapshotError::io("open it", parent))?;
        if new.symlink_metadata().is_ok() {
            return Err(refused("exists already; name a directory that is to be made"));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open =
            rustix::fs::open(&parent, flags, Mode::empty()).map_err(SnapshotError::io("open it", &parent))?;
        Ok(Place { path: new.to_owned(), name: name.to_owned(), parent, open })
    }

    fn layers_name(&self) -> OsString {
        layers_name(&self.name)
    }

    fn layers_path(&self) -> PathBuf {
        self.parent.join(self.layers_name())
    }

    fn layers(&self) -> Result<Option<Layers>> {
        Layers::open(self.open.as_fd(), &self.layers_name(), self.layers_path())
    }

    /// Removes what a call has left that was killed before the branch off `base` was there. What may be another's stays.
    fn remove_leftovers(&self, base: &Layers) -> Result<()> {
        let path = self.layers_path();
        match self.layers()? {
            Some(left) if is_leftover(&left, base) => {}
            Some(_) => {
                let why =
                    "has frozen layers of an upper that was called so; move it away, or choose another name";
                return Err(SnapshotError::refused(&path, why));
            }
            None if path.symlink_metadata().is_err() => return Ok(()),
            None if has_only_own(&path)? => {}
            None => {
                let why =
                    "has no record of frozen layers, and something is in it; look at it, and move it away";
                return Err(SnapshotError::refused(&path, why));
            }
        }
        let name = self.layers_name();
        remove::entry(self.open.as_fd(), name.as_bytes()).map_err(SnapshotError::io("remove it", &path))
    }
}

/// Tells whether these are layers of a branch off `base` that never came about. One that did, and was moved away, isn't known by
/// its place, but what is about to be put there is gone then, and the branch is written down.
fn is_leftover(left: &Layers, base: &Layers) -> bool {
    let Some(on) = &left.record.base else { return false };
    let written_down = base.path.join(BRANCHES).join(format!("{}-{}", on.layer, left.record.id));
    left.record.next == 1
        && on.id == base.record.id
        && (left.path.join(NEW).symlink_metadata().is_ok() || written_down.symlink_metadata().is_err())
}

/// Tells whether nothing is in a directory but a record that was being written.
fn has_only_own(path: &Path) -> Result<bool> {
    let io = |error| SnapshotError::io("list it", path)(error);
    for entry in std::fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        // As it is called until it is written.
        let is_own = ["stack.json", "stack.new"].iter().any(|own| entry.file_name() == *own);
        if entry.file_type().map_err(io)?.is_dir() || !is_own {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the branch over the layer that an upper lies on.
pub(in crate::union) fn stand_on(held: &Held, writing: &Writing, place: &Place) -> Result<()> {
    let below = held_on(held, writing)?;
    let (layers, layer) = (&below.layers, below.layer);
    let base = Base { directory: held_base(held, place, &layers.path), id: layers.record.id.clone(), layer };
    place.remove_leftovers(layers)?;
    let own = place.layers_path();
    make_layers((place.open.as_fd(), &place.layers_name(), &own), Some(base))?;
    let made = place.layers()?.ok_or_else(|| SnapshotError::damaged(&own, "is gone again"))?;
    let model =
        layers.layer(layer)?.ok_or_else(|| SnapshotError::damaged(layers.place(layer), "is missing"))?;
    let head = Head::new(0).map_err(SnapshotError::io("make a mark for it", &place.path))?;
    root::make((made.dir.as_fd(), NEW, &own), model.as_fd(), &head)?;
    // Before the branch is there: from now on the layer isn't removed.
    let list = layers.path.join(BRANCHES);
    let list_dir = make_own(layers.dir.as_fd(), OsStr::new(BRANCHES), &list)?;
    match symlinkat(&own, &list_dir, format!("{layer}-{}", made.record.id)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(SnapshotError::io("write the branch down in it", &list)(errno)),
    }
    fsync(&list_dir).map_err(SnapshotError::io("write it to the disk", &list))?;
    failpoint::reached(Failpoint::Changed);
    renameat_with(&made.dir, NEW, &place.open, &place.name, RenameFlags::NOREPLACE)
        .map_err(SnapshotError::io("put it in its place", &place.path))?;
    failpoint::reached(Failpoint::Changed);
    fsync(&place.open).map_err(SnapshotError::io("write it to the disk", &place.path))
}

/// A layer, with the record that has it.
struct On {
    layers: Layers,
    layer: u32,
}

/// Returns the layer that an upper lies on: its own, or what it branches off itself.
fn held_on(held: &Held, writing: &Writing) -> Result<On> {
    // The new upper, where the old one was frozen just now.
    let (path, flags) =
        (&held.upper.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC);
    let upper = openat(&held.site.parent, &held.site.name, flags, Mode::empty())
        .map_err(SnapshotError::io("open the new upper", path))?;
    let head = below::of(upper.as_fd(), path)?.map_or(0, |below| below.head.layer);
    let own =
        writing.layers.again()?.ok_or_else(|| SnapshotError::damaged(&writing.layers.path, "is gone"))?;
    match (head, own.record.base.clone()) {
        (0, Some(base)) => {
            let layers = open_base(&own, &base)?;
            Ok(On { layers, layer: base.layer })
        }
        (layer, _) => Ok(On { layers: own, layer }),
    }
}

/// Returns where the layers are that a branch stands on, as its record has it. Containers of one store may be moved with it.
fn held_base(held: &Held, place: &Place, layers: &Path) -> EscapedPath {
    let within = place.parent.parent();
    // A container of the same store: its directory is beside the other's.
    let is_beside = within.is_some() && within == layers.parent().and_then(Path::parent);
    match within.and_then(|within| layers.strip_prefix(within).ok()) {
        Some(relative) if held.is_containers && is_beside && !layers.starts_with(&place.parent) => {
            EscapedPath::from(Path::new("..").join(relative).as_path())
        }
        _ => shown_from(&place.parent, layers),
    }
}

/// Returns a path as the record has it: relative where both lie in one directory, which may be moved with all in it.
fn shown_from(parent: &Path, path: &Path) -> EscapedPath {
    match path.strip_prefix(parent) {
        Ok(relative) => EscapedPath::from(relative),
        Err(_) => EscapedPath::from(path),
    }
}
