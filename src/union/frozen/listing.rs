//! The snapshots of an upper, with what is in them.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::sys::dir::{for_each_entry, open_beneath};
use crate::sys::flock::{Access, try_lock};
use crate::sys::object::{At, Kind};
use crate::union::frozen::below::{is_frozen, open_base, read_head};
use crate::union::frozen::mark::value;
use crate::union::frozen::record::{Content, FrozenLayer};
use crate::union::frozen::removal::branches;
use crate::union::frozen::site::{Layers, Site};
use crate::union::frozen::unfit::{Result, SnapshotError};
use crate::union::lookup::marker::WH_PREFIX;

/// The mark of a half-copied file.
const HALF: &str = "unionmount.half";

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What the record says of it.
    pub layer: FrozenLayer,
    /// What is in it.
    pub content: Content,
    /// Where it lies.
    pub place: PathBuf,
    /// Whether the upper lies on it.
    pub is_below: bool,
    /// The branches that stand on it.
    pub branches: Vec<PathBuf>,
    /// Whether it is of the stack that this one branches off.
    pub is_of_base: bool,
}

/// Lists the snapshots of the upper at a path: its own, and those that it branches off; the oldest first.
///
/// # Errors
/// When the record or a layer can't be read.
pub fn list(path: &Path) -> Result<Vec<Listed>> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let upper = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map_err(SnapshotError::io("open it", path))?;
    let site = Site::of(upper.as_fd(), path)?;
    site.is_no_frozen_layer(path)?;
    let Some(own) = site.layers()? else { return Ok(Vec::new()) };
    let head = read_head(upper.as_fd(), path)?.map_or(0, |head| head.layer);
    let mut all = of_record(&own, head, false)?;
    let mut at = own;
    while let Some(base) = at.record.base.clone() {
        let below = open_base(&at, &base)?;
        let chain: HashSet<u32> = below.record.chain(base.layer).iter().map(|layer| layer.layer).collect();
        let found = of_record(&below, base.layer, true)?;
        all.splice(0..0, found.into_iter().filter(|one| chain.contains(&one.layer.layer)));
        if all.len() > 10_000 {
            return Err(SnapshotError::damaged(path, "branches off a branch of itself"));
        }
        at = below;
    }
    Ok(all)
}

fn of_record(layers: &Layers, head: u32, is_of_base: bool) -> Result<Vec<Listed>> {
    let below: HashSet<u32> = layers.record.chain(head).iter().map(|layer| layer.layer).collect();
    let branches = branches(layers)?;
    let mut all = Vec::new();
    for layer in &layers.record.layers {
        if !is_frozen(layers, layer.layer)? {
            continue; // it is only being made, or was never finished
        }
        let place = layers.place(layer.layer);
        let content = match layer.content {
            Some(content) => content,
            None => match layers.layer(layer.layer)? {
                Some(dir) => count(dir.as_fd()).map_err(SnapshotError::io("look through it", &place))?,
                None => continue,
            },
        };
        let on_it = branches.iter().filter(|branch| branch.layer == layer.layer);
        all.push(Listed {
            layer: layer.clone(),
            content,
            place,
            is_below: below.contains(&layer.layer),
            branches: on_it.map(super::removal::Branch::upper).collect(),
            is_of_base,
        });
    }
    keep(layers, &all);
    Ok(all)
}

/// Writes down what was counted, so that it is counted once. Nothing is lost where that can't be done now.
fn keep(layers: &Layers, all: &[Listed]) {
    if all.iter().all(|one| one.layer.content.is_some()) {
        return;
    }
    let Ok(lock) = layers.to_lock() else { return };
    if !matches!(try_lock(&lock, Access::Exclusive), Ok(true)) {
        return;
    }
    let Ok(Some(mut now)) = layers.again() else { return };
    for one in all {
        // What was merged into it meanwhile wasn't counted.
        let is_it = |layer: &&mut FrozenLayer| {
            layer.layer == one.layer.layer && layer.directory() == one.layer.directory()
        };
        if let Some(layer) = now.record.layers.iter_mut().find(is_it) {
            layer.content = Some(one.content);
        }
    }
    if let Err(error) = now.write() {
        log::debug!("{error}");
    }
}

/// Counts what is in a layer.
fn count(root: BorrowedFd<'_>) -> rustix::io::Result<Content> {
    let mut content = Content::default();
    let mut seen = HashSet::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let opened;
        let dir = if path.is_empty() {
            root
        } else {
            opened = open_beneath(root, &path)?;
            opened.as_fd()
        };
        let mut names = Vec::new();
        for_each_entry::<Errno>(dir, |entry| {
            names.push(entry.name.to_vec());
            Ok(())
        })?;
        for name in names {
            let at = At::Name(dir, &name);
            let stat = at.stat()?;
            if stat.kind() == Kind::Directory {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                todo.push([&path[..], slash, &name].concat());
            } else if name.starts_with(WH_PREFIX) {
                content.needs_unionmount = true;
            } else if !stat.is_whiteout_device() {
                content.files += 1;
                if seen.insert(stat.ino) || stat.nlink == 1 {
                    content.bytes += stat.blocks * 512;
                }
                if stat.kind() == Kind::File && !content.needs_unionmount {
                    let held = at.pin()?;
                    content.needs_unionmount = matches!(value(held.as_fd(), HALF), Ok(Some(_)) | Err(_));
                }
            }
        }
    }
    Ok(content)
}
