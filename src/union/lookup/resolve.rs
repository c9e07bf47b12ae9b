//! Lookup: which layer's entry a name of a directory stands for.
//!
//! The search goes through the directory's layers from the top down and ends at the first of:
//!
//! - a whiteout: the name ends here, deleted;
//! - something that is not a directory: it is the entry, or, if directories were found above, it hides what is below;
//! - a directory that is opaque: what lies below doesn't count.
//!
//! Directories found on the way are merged. A directory that was renamed carries a *redirect*: below it, another name
//! or another path is asked for (kernel: Documentation/filesystems/overlayfs.rst, "Renaming directories").

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::lookup::found::{Found, RealDirs};
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::lookup::search::LayerVisit;
use crate::union::nodes::node::{DirPart, Node};

impl Union {
    /// Finds what `name` stands for in a directory of the merged tree. The caller holds the directory's names.
    pub(in crate::union) fn resolve(&self, parent: &Node, name: &[u8]) -> Result<Option<Found>> {
        if name.starts_with(WH_PREFIX) {
            return Ok(None); // a marker, or hidden by being named like one
        }
        check_name(name)?;
        let dir = self.dir_part(parent)?;
        self.index_for_lookup(parent, dir);
        let dirs = self.candidates(dir, name);
        if dirs.is_empty() {
            self.counters.index_answers.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let found = self.search(&dirs, name)?;
        dir.index_worth.note(asked_in_vain(&dirs, found.as_ref()));
        Ok(found)
    }

    /// Finds what `name` stands for as [`Union::resolve`] does, in all layers and by no index, and tells `visitor` what is
    /// met.
    pub(in crate::union) fn resolve_telling(
        &self,
        parent: &Node,
        name: &[u8],
        visitor: &mut impl FnMut(LayerVisit<'_>),
    ) -> Result<Option<Found>> {
        if name.starts_with(WH_PREFIX) {
            return Ok(None);
        }
        check_name(name)?;
        let dir = self.dir_part(parent)?;
        let dirs: RealDirs = dir.upper_dir().into_iter().chain(dir.lowers.iter().cloned()).collect();
        self.search_telling(&dirs, name, visitor)
    }

    /// Do the directory's lowers show `name`?
    pub(in crate::union) fn lower_shows(&self, parent: &Node, name: &[u8]) -> Result<bool> {
        let dir = self.dir_part(parent)?;
        if dir.lowers.is_empty() {
            return Ok(false);
        }
        self.index_for_lookup(parent, dir);
        let index = dir.index.lock().lower.clone();
        match index {
            Some(index) => Ok(index.get(name).is_some()),
            None => Ok(self.search(&dir.lowers, name)?.is_some()),
        }
    }

    /// The real directories that may have the name, by the indexes.
    fn candidates(&self, dir: &DirPart, name: &[u8]) -> RealDirs {
        let index = dir.index.lock();
        let mut dirs = RealDirs::new();
        if let Some(upper) = dir.upper_dir() {
            match &index.upper {
                None => dirs.push(upper),
                Some(known) => match known.get(name) {
                    None => {}
                    Some(entry) if entry.kind.is_none() => return dirs,
                    // What isn't a directory ends the search; but where it says so by a mark, its data lie below.
                    Some(_) => dirs.push(upper),
                },
            }
        }
        if !dirs.is_empty() {
            // What the upper has, or may have, can carry a redirect to another name below.
            dirs.extend(dir.lowers.iter().cloned());
            return dirs;
        }
        match &index.lower {
            None => dirs.extend(dir.lowers.iter().cloned()),
            Some(known) => {
                if let Some(entry) = known.get(name) {
                    dirs.extend(dir.lowers[usize::from(entry.first)..].iter().cloned());
                }
            }
        }
        dirs
    }

    /// What only directories have, or `ENOTDIR`.
    pub(in crate::union) fn dir_part<'n>(&self, node: &'n Node) -> Result<&'n DirPart> {
        node.dir.as_deref().ok_or(FsError::NotADirectory)
    }
}

/// Refuses what can be nobody's name.
fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" | b"." | b".." => Err(FsError::Invalid("not a name")),
        name if name.len() > 255 => Err(FsError::Os(Errno::NAMETOOLONG)),
        _ => Ok(()),
    }
}

/// Returns how many layers a search asked that an index would have spared it.
fn asked_in_vain(dirs: &RealDirs, found: Option<&Found>) -> usize {
    match found {
        Some(found) => dirs.iter().position(|dir| dir.layer == found.layer).unwrap_or_default(),
        None => dirs.len(),
    }
}
