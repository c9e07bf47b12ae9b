//! What a container changed, as `docker diff` tells it, from its upper alone.
//!
//! The upper is walked, the lowers are only asked by name whether they have what it holds. Two forms need more: the
//! names below an opaque directory are listed, as those that are not there any more are deleted; and the content of a
//! renamed directory, which stays below, is listed under its new name, and compared with what that path had.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::LayerError;
use super::merged::{find, of_fd, of_union, open_union};
use super::place::{join, open_dir};
use super::write::{leads_to, list};
use crate::error::FsError;
use crate::sys::object::{At, Kind};
use crate::union::Union;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::marker;
use crate::union::nodes::node::Node;
use crate::union::stack::layer::LowerSource;

/// How a path changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It, or what is in it, is another.
    Changed,
    /// It has gone.
    Deleted,
}

impl ChangeKind {
    /// Returns the letter that `docker diff` prints.
    pub fn letter(self) -> char {
        match self {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        }
    }
}

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The path, with a leading `/`.
    pub path: Vec<u8>,
    /// What became of it.
    pub kind: ChangeKind,
}

/// Returns what an upper changes in the union of the lowers (topmost first), sorted by path.
///
/// # Errors
/// Those of reading the layers, with the path.
pub fn changes(upper: BorrowedFd<'_>, lowers: &[LowerSource]) -> Result<Vec<Change>, LayerError> {
    let below = if lowers.is_empty() { None } else { Some(open_union(lowers.iter().cloned())?) };
    let mut walk = ChangesWalk { upper, lowers, below, merged: None, changes: Vec::new() };
    walk.directory(&[], walk.below.as_ref().map(|below| below.root().clone()))?;
    walk.changes.sort();
    Ok(walk.changes)
}

struct ChangesWalk<'a> {
    upper: BorrowedFd<'a>,
    lowers: &'a [LowerSource],
    below: Option<Union>,
    merged: Option<Union>,
    changes: Vec<Change>,
}

impl ChangesWalk<'_> {
    fn note(&mut self, kind: ChangeKind, path: &[u8]) {
        self.changes.push(Change { path: [b"/", path].concat(), kind });
    }

    /// Returns what the lowers have under a name of a directory of theirs. It counts one lookup.
    fn lower(
        &self,
        dir: Option<&Arc<Node>>,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<Arc<Node>>, LayerError> {
        let (Some(union), Some(dir)) = (&self.below, dir) else { return Ok(None) };
        match union.lookup(dir, name) {
            Ok(found) => Ok(found.map(|(node, _)| node)),
            Err(FsError::NotADirectory) => Ok(None),
            Err(error) => Err(of_union(path)(error)),
        }
    }

    /// Does the reverse of [`ChangesWalk::lower`].
    fn forget(&self, node: Option<&Arc<Node>>) {
        if let (Some(union), Some(node)) = (&self.below, node) {
            union.forget(node.ino, 1);
        }
    }

    /// Returns the upper's directory at `path` and all below it; `below` is what it is merged with.
    fn directory(&mut self, path: &[u8], below: Option<Arc<Node>>) -> Result<(), LayerError> {
        // A list, not recursion: an upper may be deeper than a stack. Directories are few beside files.
        let mut todo = vec![(path.to_vec(), below)];
        while let Some((path, below)) = todo.pop() {
            let dir = match open_dir(self.upper, &path) {
                // The container runs, and has removed it meanwhile.
                Err(Errno::NOENT) => continue,
                dir => dir.map_err(LayerError::os(&path, "open it"))?,
            };
            let listing = list(dir.as_fd(), &path)?;
            if listing.opaque
                && let Some(node) = below.clone()
            {
                self.deleted_by_opaque(&path, &node, &listing.names)?;
            }
            for name in &listing.whiteouts {
                // A whiteout beside an entry of its name: the entry tells.
                let there = listing.names.binary_search(name).is_ok();
                if there || listing.opaque {
                    continue;
                }
                let lower = self.lower(below.as_ref(), name, &path)?;
                if lower.is_some() {
                    self.note(ChangeKind::Deleted, &join(&path, name));
                }
                self.forget(lower.as_ref());
            }
            for name in &listing.names {
                let inner = join(&path, name);
                let at = At::Name(dir.as_fd(), name);
                let stat = match at.stat() {
                    Err(Errno::NOENT) => continue,
                    stat => stat.map_err(LayerError::os(&inner, "stat it"))?,
                };
                let lower = self.lower(below.as_ref(), name, &inner)?;
                let kind = if lower.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
                self.note(kind, &inner);
                if stat.kind() == Kind::Directory {
                    let marks = marker::read_marks(at, Belief::of_process())
                        .map_err(LayerError::os(&inner, "read its marks"))?;
                    // One that was renamed there and back is where it was.
                    if marks.redirect.is_some_and(|from| !leads_to(&from, &inner)) {
                        self.renamed(&inner, lower.as_ref())?;
                    } else {
                        let merged = lower.as_ref().filter(|node| node.dir.is_some()).cloned();
                        let keep = merged.is_some();
                        todo.push((inner, merged));
                        if keep {
                            continue; // forgotten once it is done
                        }
                    }
                }
                self.forget(lower.as_ref());
            }
            if !path.is_empty() {
                self.forget(below.as_ref());
            }
        }
        Ok(())
    }

    /// Returns the names that an opaque directory hides and doesn't have itself.
    fn deleted_by_opaque(
        &mut self,
        path: &[u8],
        below: &Arc<Node>,
        names: &[Vec<u8>],
    ) -> Result<(), LayerError> {
        for path in self.gone(path, below, names)? {
            self.note(ChangeKind::Deleted, &path);
        }
        Ok(())
    }

    /// Returns what the lowers have in a directory and is not among `names`, which are sorted.
    fn gone(&self, path: &[u8], below: &Arc<Node>, names: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, LayerError> {
        let mut gone = Vec::new();
        if let Some(union) = &self.below {
            union
                .readdir(below, 0, |entry| {
                    if names.binary_search_by(|name| name[..].cmp(&entry.name)).is_err() {
                        gone.push(join(path, &entry.name));
                    }
                    true
                })
                .map_err(of_union(path))?;
        }
        Ok(gone)
    }

    /// Returns a directory that was renamed: what is in it took the place of what the lowers have under its new path.
    fn renamed(&mut self, at: &[u8], below: Option<&Arc<Node>>) -> Result<(), LayerError> {
        if self.merged.is_none() {
            self.merged =
                Some(open_union(std::iter::once(of_fd(self.upper)).chain(self.lowers.iter().cloned()))?);
        }
        let Some(union) = &self.merged else { return Ok(()) };
        let Some(top) = find(union, at)? else { return Ok(()) };
        let top_below = below.filter(|node| node.dir.is_some()).cloned();
        let mut todo = vec![(at.to_vec(), top, top_below)];
        let mut found = Vec::new();
        while let Some((path, node, below)) = todo.pop() {
            let mut entries = Vec::new();
            union
                .readdir(&node, 0, |entry| {
                    entries.push((entry.name, entry.kind));
                    true
                })
                .map_err(of_union(&path))?;
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            if let Some(below) = &below {
                let names: Vec<Vec<u8>> = entries.iter().map(|(name, _)| name.to_vec()).collect();
                found.extend(
                    self.gone(&path, below, &names)?.into_iter().map(|path| (ChangeKind::Deleted, path)),
                );
            }
            for (name, kind) in entries {
                let inner = join(&path, &name);
                let lower = self.lower(below.as_ref(), &name, &inner)?;
                let change = if lower.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
                found.push((change, inner.clone()));
                if kind.is_none_or(|kind| kind == Kind::Directory)
                    && let Some((child, _)) = union.lookup(&node, &name).map_err(of_union(&inner))?
                {
                    if child.kind == Kind::Directory {
                        let merged = lower.as_ref().filter(|node| node.dir.is_some()).cloned();
                        let keep = merged.is_some();
                        todo.push((inner, child, merged));
                        if keep {
                            continue; // forgotten once it is done
                        }
                    } else {
                        union.forget(child.ino, 1);
                    }
                }
                self.forget(lower.as_ref());
            }
            union.forget(node.ino, 1);
            if path != at {
                self.forget(below.as_ref()); // the first one is the caller's
            }
        }
        for (kind, path) in found {
            self.note(kind, &path);
        }
        Ok(())
    }
}
