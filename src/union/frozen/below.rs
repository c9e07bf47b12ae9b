//! Which layers an upper lies on.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::mark::Head;
use crate::union::frozen::record::{Base, FrozenLayer, MOST_LAYERS};
use crate::union::frozen::site::{Layers, Site};
use crate::union::frozen::unfit::{Result, SnapshotError};

/// What an upper lies on.
#[derive(Debug, Clone)]
pub struct Below {
    /// The frozen layers, the topmost first.
    pub layers: Vec<PathBuf>,
    /// What the records say of each.
    pub records: Vec<FrozenLayer>,
    /// What lies below them, as far as it was recorded.
    pub lowers: Vec<PathBuf>,
    /// The upper's mark.
    pub head: Head,
    /// How many names of files are hidden by the frozen layers, as the hardlink index keeps it.
    pub hidden: BTreeMap<String, u64>,
}

/// Returns what the upper at a path lies on; `None`: on no frozen layers, or it can't be opened, which whoever opens it tells.
///
/// # Errors
/// Those of [`of`].
pub fn of_path(path: &Path) -> Result<Option<Below>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(upper) => of(upper.as_fd(), path),
        Err(_) => Ok(None),
    }
}

/// Does the same where nobody else tells why an upper can't be opened. `None`: on no frozen layers, or there is no upper.
///
/// # Errors
/// Those of [`of`], and of opening it.
pub fn at(path: &Path) -> Result<Option<Below>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(upper) => of(upper.as_fd(), path),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(SnapshotError::io("open it", path)(errno)),
    }
}

/// Returns what an open upper lies on; `None`: on no frozen layers. `path` is for messages.
///
/// # Errors
/// When the record can't be read, or doesn't go together with what is there.
pub fn of(upper: BorrowedFd<'_>, path: &Path) -> Result<Option<Below>> {
    let Some(head) = read_head(upper, path)? else {
        is_unmarked_rightly(upper, path)?;
        return Ok(None);
    };
    let site = Site::of(upper, path)?;
    let layers = site.layers()?.ok_or_else(|| {
        let missing = site.parent_path.join(site.layers_name());
        let why = format!(
            "lies on frozen layers, and {} is missing; move it back beside it",
            EscapedPath::from(missing.as_path())
        );
        SnapshotError::damaged(path, why)
    })?;
    let from = head.layer;
    let mut below = Below::new(head);
    below.add_all(layers, from)?;
    Ok(Some(below))
}

/// Returns the frozen layers that show the state of the upper at a path at a snapshot, the topmost first: at one of its own, or of those
/// that it branches off. `0` is the state before its own first one.
///
/// # Errors
/// When there is none of that name, and those of [`of`].
pub fn at_snapshot(path: &Path, name: &str) -> Result<Below> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = rustix::fs::open(path, flags, Mode::empty()).map_err(SnapshotError::io("open it", path))?;
    let own = Site::of(upper.as_fd(), path)?.layers()?;
    let mut at = own.ok_or_else(|| SnapshotError::refused(path, "has no snapshots"))?;
    let mut found = at.record.find(name);
    for _ in 0..=MOST_LAYERS {
        if let Some(layer) = found
            && (layer == 0 || is_frozen(&at, layer)?)
        {
            let mut below = Below::new(Head { layer, token: String::new() });
            below.add_all(at, layer)?;
            return Ok(below);
        }
        let Some(base) = at.record.base.clone() else { break };
        at = open_base(&at, &base)?;
        found = at.record.chain(base.layer).iter().find(|layer| layer.name == name).map(|layer| layer.layer);
    }
    let why = format!("no snapshot of it is called {name}; unionmount snapshots lists them");
    Err(SnapshotError::refused(path, why))
}

/// Reads the mark of an upper.
pub(super) fn read_head(upper: BorrowedFd<'_>, path: &Path) -> Result<Option<Head>> {
    Head::read(upper).map_err(|errno| match errno {
        Errno::BADMSG => SnapshotError::damaged(
            path,
            "its mark of what it lies on was written by another version of this program, or is damaged",
        ),
        errno => SnapshotError::io("read what it lies on", path)(errno),
    })
}

/// Refuses an upper that lost its mark: without, the frozen layers would be left out.
fn is_unmarked_rightly(upper: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let Ok(site) = Site::of(upper, path) else { return Ok(()) };
    site.is_no_frozen_layer(path)?;
    // What somebody else has put there, as anybody can in /tmp, says nothing and keeps nobody from a mount.
    if site.is_anothers() {
        return Ok(());
    }
    let Some(layers) = site.layers()? else { return Ok(()) };
    for FrozenLayer { layer, .. } in &layers.record.layers {
        if is_frozen(&layers, *layer)? {
            let why = format!(
                "has lost its extended attributes, which say what it lies on; restore it with them, or remove {} if it is nobody's",
                EscapedPath::from(layers.path.as_path())
            );
            return Err(SnapshotError::damaged(path, why));
        }
    }
    Ok(())
}

/// Opens what a stack branches off.
pub(super) fn open_base(of: &Layers, base: &Base) -> Result<Layers> {
    let path = match of.path.parent() {
        // One of another container's, whose path goes into messages and mounts.
        Some(parent) if base.directory.as_path().starts_with("..") => {
            let path = parent.join(base.directory.as_path());
            std::fs::canonicalize(&path).unwrap_or(path)
        }
        Some(parent) => parent.join(base.directory.as_path()),
        None => base.directory.as_path().to_owned(),
    };
    let why = |why: &str| {
        SnapshotError::damaged(&path, format!("{why}; {} stands on it", EscapedPath::from(of.path.as_path())))
    };
    let found = Layers::at(&path)?.ok_or_else(|| why("is missing"))?;
    if found.record.id != base.id {
        return Err(why("is another stack's now"));
    }
    Ok(found)
}

/// Tells whether a layer of the record is frozen, and not only prepared.
pub(super) fn is_frozen(layers: &Layers, layer: u32) -> Result<bool> {
    let Some(dir) = layers.layer(layer)? else { return Ok(false) };
    let head = read_head(dir.as_fd(), &layers.place(layer))?;
    Ok(head.is_none_or(|head| head.layer != layer))
}

impl Below {
    fn new(head: Head) -> Below {
        Below { layers: Vec::new(), records: Vec::new(), lowers: Vec::new(), head, hidden: BTreeMap::new() }
    }

    /// Adds the layers of a record from that one down, and of the records that it branches off.
    fn add_all(&mut self, mut at: Layers, mut from: u32) -> Result<()> {
        let own = at.path.clone();
        // Where each branches off the next.
        for _ in 0..=MOST_LAYERS {
            self.add(&at, from)?;
            let Some(base) = at.record.base.clone() else { return Ok(()) };
            (at, from) = (open_base(&at, &base)?, base.layer);
        }
        Err(SnapshotError::damaged(own, "branches off a branch of itself"))
    }

    /// Adds the layers of a record from that one down.
    fn add(&mut self, layers: &Layers, from: u32) -> Result<()> {
        let damaged = |layer, why: &str| SnapshotError::damaged(layers.place(layer), why.to_owned());
        if from != 0 && layers.record.layer(from).is_none() {
            return Err(damaged(from, "is not in the record stack.json, and something stands on it"));
        }
        for one in layers.record.chain(from) {
            let FrozenLayer { layer, below, hidden, .. } = one;
            let dir = layers.layer(*layer)?.ok_or_else(|| damaged(*layer, "is missing"))?;
            let lies_on = read_head(dir.as_fd(), &layers.place(*layer))?.map_or(0, |head| head.layer);
            if lies_on != *below {
                return Err(damaged(*layer, "lies on another layer than the record stack.json says"));
            }
            if self.layers.is_empty() {
                self.hidden = hidden.clone();
            }
            self.layers.push(layers.place(*layer));
            self.records.push(one.clone());
        }
        if self.layers.len() > MOST_LAYERS {
            return Err(SnapshotError::refused(
                &layers.path,
                format!("more than {MOST_LAYERS} frozen layers"),
            ));
        }
        if self.lowers.is_empty() {
            self.lowers = layers.record.lowers.iter().map(|lower| lower.as_path().to_owned()).collect();
        }
        Ok(())
    }
}
