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

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::lookup::found::{Found, RealDirs};
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::lookup::realdir::RealDir;
use crate::union::lookup::search::LayerVisit;
use crate::union::nodes::node::{DirPart, Node};

impl Union {
    /// Finds what `name` stands for in a directory of the merged tree. The caller holds the directory's names.
    pub(in crate::union) fn resolve(&self, parent: &Node, name: &[u8]) -> Result<Option<Found>> {
        self.resolve_by(parent, name, Union::search)
    }

    /// Finds what `name` stands for as [`Union::resolve`] does, for who takes the name away or gives it to something else:
    /// where the data of a file lie isn't asked.
    pub(in crate::union) fn resolve_name(&self, parent: &Node, name: &[u8]) -> Result<Option<Found>> {
        self.resolve_by(parent, name, Union::search_name)
    }

    fn resolve_by(
        &self,
        parent: &Node,
        name: &[u8],
        search: impl FnOnce(&Union, &[Arc<RealDir>], &[u8]) -> Result<Option<Found>>,
    ) -> Result<Option<Found>> {
        if name.starts_with(WH_PREFIX) {
            return Ok(None); // a marker, or hidden by being named like one
        }
        check_name(name)?;
        let dir = self.dir_part(parent)?;
        self.check_lowers(parent, dir)?;
        self.index_for_lookup(parent, dir);
        let dirs = self.candidates(dir, name);
        if dirs.is_empty() {
            self.counters.index_answers.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let found = search(self, &dirs, name)?;
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
        self.check_lowers(parent, dir)?;
        let dirs: RealDirs = dir.upper_dir().into_iter().chain(dir.lowers.iter().cloned()).collect();
        self.search_telling(&dirs, name, visitor)
    }

    /// Tells whether the directory's lowers show `name`.
    pub(in crate::union) fn lower_shows(&self, parent: &Node, name: &[u8]) -> Result<bool> {
        let dir = self.dir_part(parent)?;
        if dir.lowers.is_empty() {
            return Ok(false);
        }
        self.check_lowers(parent, dir)?;
        self.index_for_lookup(parent, dir);
        let index = dir.index.lock().lower.clone();
        match index {
            Some(index) => Ok(index.get(name).is_some()),
            None => Ok(self.search(&dir.lowers, name)?.is_some()),
        }
    }

    /// Returns the real directories that may have the name, by the indexes.
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

    /// Returns what only directories have, or `ENOTDIR`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use crate::union::bed::{Bed, look_up};
    use crate::union::lookup::found::FoundKind;
    use crate::union::lookup::search::LayerEntry;

    /// Returns the layer that a path of the union comes from, the upper being the first.
    fn layer_of(union: &Union, path: &str) -> Option<usize> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if above.is_empty() { union.root().clone() } else { look_up(union, above).unwrap() };
        Some(union.resolve(&parent, name.as_bytes()).unwrap()?.layer.into())
    }

    #[test]
    fn the_topmost_layer_that_has_a_name_shows_it_unless_a_whiteout_comes_before() {
        let bed = Bed::new(3);
        bed.file("1/a").file("2/a").file("2/b").file("0/.wh.b").file("2/c").file("upper/c");
        let union = bed.open();
        let of = |name| layer_of(&union, name);
        assert_eq!([of("a"), of("b"), of("c"), of("d")], [Some(2), None, Some(0), None]);
    }

    #[test]
    fn a_file_hides_the_directory_below_it_and_ends_what_is_merged() {
        let bed = Bed::new(4);
        bed.file("0/d/top").file("1/d/next").file("2/d").file("3/d/below").file("0/f").file("1/f/below");
        let union = bed.open();
        let of = |name| layer_of(&union, name);
        assert_eq!([of("d/top"), of("d/next"), of("d/below"), of("f")], [Some(1), Some(2), None, Some(1)]);
    }

    #[test]
    fn directories_are_merged_down_to_an_opaque_one() {
        let bed = Bed::new(3);
        bed.file("0/d/a").file("1/d/b").file("1/d/.wh..wh..opq").file("2/d/c");
        let union = bed.open();
        let found = union.resolve(union.root(), b"d").unwrap().unwrap();
        let FoundKind::Directory { dirs, .. } = found.what else { panic!("a directory") };
        assert_eq!(dirs.len(), 2, "the opaque one still counts");
        let of = |name| layer_of(&union, name);
        assert_eq!([of("d/a"), of("d/b"), of("d/c")], [Some(1), Some(2), None]);
    }

    #[test]
    fn what_nobody_can_be_named_is_refused_and_markers_are_not_seen() {
        let bed = Bed::new(1);
        bed.file("0/.wh.gone").file("0/f");
        let union = bed.open();
        let resolve = |name: &[u8]| union.resolve(union.root(), name).map(|found| found.is_some());
        assert_eq!(resolve(b".wh.gone"), Ok(false));
        assert_eq!(resolve(b".."), Err(FsError::Invalid("not a name")));
        assert_eq!(resolve(&[b'n'; 256]), Err(FsError::Os(Errno::NAMETOOLONG)));
        assert_eq!(resolve(&[b'n'; 255]), Ok(false));
        let file = look_up(&union, "f").unwrap();
        assert_eq!(union.resolve(&file, b"a").map(drop), Err(FsError::NotADirectory));
    }

    /// Asks by the index and layer by layer: a name stands for the same.
    #[test]
    fn an_index_answers_as_the_layers_do() {
        let bed = Bed::new(3);
        bed.file("0/a").file("1/a").file("1/.wh.b").file("2/b").file("2/c").file("1/d/x").file("2/d/y");
        bed.file("upper/.wh.c").file("2/e");
        let union = bed.open();
        let root = union.root();
        let names = ["a", "b", "c", "d", "e", "nowhere"];
        let asked = names.map(|name| {
            union.resolve_telling(root, name.as_bytes(), &mut |_| ()).unwrap().map(|found| found.layer)
        });
        union.with_listing(root, || union.indexed(root)).map(drop).unwrap();
        let answers = || union.counters.index_answers.load(Ordering::Relaxed);
        let before = answers();
        let indexed =
            names.map(|name| union.resolve(root, name.as_bytes()).unwrap().map(|found| found.layer));
        assert_eq!(indexed, asked);
        assert!(answers() > before, "what no layer has needs no layer");
        let shows = names.map(|name| union.lower_shows(root, name.as_bytes()).unwrap());
        assert_eq!(shows, [true, false, true, true, true, false], "the upper's whiteout doesn't count");
    }

    #[test]
    fn a_name_that_comes_from_deep_down_is_told_layer_by_layer() {
        let bed = Bed::new(3);
        bed.file("2/f").file("1/g").dir("0/d");
        let union = bed.open();
        let mut told = Vec::new();
        let found = union.resolve_telling(union.root(), b"f", &mut |visit| {
            told.push(matches!(visit.seen, LayerEntry::Leaf { .. }));
        });
        assert_eq!((found.unwrap().is_some(), told), (true, vec![false, false, false, true]));
    }

    #[test]
    fn a_renamed_directory_is_looked_for_by_its_old_name_below() {
        let bed = Bed::new(2);
        bed.file("0/old/a").file("1/old/b").file("1/new/c");
        let union = bed.open();
        let root = union.root();
        let mode = crate::union::change::rename::RenameMode::Replace;
        union.rename((root, b"old"), (root, b"other"), mode).unwrap();
        drop(union);
        assert!(fs::symlink_metadata(bed.at("upper/other")).unwrap().is_dir());
        let union = bed.open();
        let of = |name| layer_of(&union, name);
        assert_eq!([of("old"), of("other/a"), of("other/b"), of("new/c")], [None, Some(1), Some(2), Some(2)]);
    }
}
