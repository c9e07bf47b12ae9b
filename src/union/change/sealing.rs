//! Sealing: what an upper leaves below is copied into it.
//!
//! A metacopy or a half-copied file needs the lowers that it was made over, and a reader that knows its marks. Once its data are its
//! own, any program reads it, and whatever lies below may go.

pub mod background;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{FsError, Result};
use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::change::copy_up::completion::{METACOPY, REDIRECT};
use crate::union::data::half_mark::HALF;
use crate::union::escaped_path::EscapedPath;
use crate::union::nodes::node::Node;

/// A file of the upper whose data, or some of whose blocks, are below.
#[derive(Debug, Clone)]
pub struct Unsealed {
    /// Its path in the merged tree.
    pub path: EscapedPath,
    /// Its size in bytes; how much of it is below isn't asked.
    pub size: u64,
    /// It was told before, under another name.
    pub is_known: bool,
}

/// What sealing has done so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SealProgress {
    /// How many files it has come to.
    pub files: u64,
    /// Their sizes, in bytes.
    pub bytes: u64,
}

/// A file that couldn't be sealed, and stays what it was.
#[derive(Debug, Clone)]
pub struct NotSealed {
    /// Its path in the merged tree.
    pub path: EscapedPath,
    /// What went wrong. `EIO` where what lies below isn't what it was copied from.
    pub error: FsError,
}

/// Files with several names that were met before.
#[derive(Default)]
struct Known(HashSet<u64>);

impl Known {
    fn is_known(&mut self, node: &Node, names: u64) -> bool {
        names > 1 && !self.0.insert(node.ino)
    }
}

/// Hears of a file, or why it can't be looked at, and of its path.
type Visitor<'a> = dyn FnMut(Result<&Arc<Node>>, EscapedPath) + 'a;

impl Union {
    /// Calls `each` with every file of the upper whose data are below, under each of its names that the upper has. What can't be
    /// looked at is left to [`Union::seal`].
    ///
    /// # Errors
    /// Those of reading the upper.
    pub fn for_each_unsealed(&self, each: &mut dyn FnMut(Unsealed)) -> Result<()> {
        let mut known = Known::default();
        self.visit_unsealed(&mut |found, path| {
            if let Ok(node) = found
                && let Ok(attr) = self.getattr(node)
            {
                let is_known = known.is_known(node, attr.stat.nlink);
                each(Unsealed { path, size: attr.stat.size, is_known });
            }
        })
    }

    /// Copies into the upper what its files leave below, and syncs it. `told` hears after each file what is done. What
    /// can't be sealed stays as it is and is returned.
    ///
    /// A file is what it was until its data are on the disk; so it can be broken off and begun again.
    ///
    /// # Errors
    /// Those of reading the upper, and of the sync in the end.
    pub fn seal(&self, told: &mut dyn FnMut(SealProgress)) -> Result<Vec<NotSealed>> {
        self.seal_those(told, &|_| Ok(true), &|| false)
    }

    /// Does the same of what a session with `lazy=on` has left, for which there is room; with `metacopy=on` only of what has blocks of
    /// its own. It ends early where `stop` says so.
    ///
    /// # Errors
    /// Those of [`Union::seal`].
    pub fn seal_rest(
        &self,
        told: &mut dyn FnMut(SealProgress),
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<NotSealed>> {
        let is_half = |node: &Node| self.metacopies.get(&node.ino).is_some_and(|data| data.half.is_some());
        let wanted = |node: &Arc<Node>| Ok((!self.metacopy || is_half(node)) && self.has_room_for(node)?);
        self.seal_those(told, &wanted, stop)
    }

    fn seal_those(
        &self,
        told: &mut dyn FnMut(SealProgress),
        wanted: &dyn Fn(&Arc<Node>) -> Result<bool>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<NotSealed>> {
        let (mut done, mut left) = (SealProgress::default(), Vec::new());
        let mut known = Known::default();
        self.visit_unsealed(&mut |found, path| {
            if stop() {
                return;
            }
            // One that couldn't be sealed by another name can't be by this one.
            if let Ok(node) = found
                && let Ok(attr) = self.getattr(node)
                && known.is_known(node, attr.stat.nlink)
            {
                return;
            }
            let sealed = found.and_then(|node| {
                let size = self.getattr(node)?.stat.size;
                Ok((wanted(node)? && self.seal_file(node, stop)?).then_some(size))
            });
            match sealed {
                Ok(Some(size)) => done = SealProgress { files: done.files + 1, bytes: done.bytes + size },
                Ok(None) => {}
                Err(error) => left.push(NotSealed { path, error }),
            }
            told(done);
        })?;
        self.upper()?.sync_all()?;
        Ok(left)
    }

    /// Returns how many bytes of data were moved into the upper since it was opened.
    pub fn bytes_moved(&self) -> u64 {
        self.counters.copied_bytes.load(Ordering::Relaxed)
    }

    /// Seals a file; `false`: that was broken off.
    fn seal_file(&self, node: &Arc<Node>, stop: &dyn Fn() -> bool) -> Result<bool> {
        if self.metacopies.contains_key(&node.ino) {
            while self.seal_some(node, background::STEP)?.is_some() {
                if stop() {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        // Nothing of an empty file is below.
        self.with_object(node, |object| {
            let object = object.writable()?;
            [METACOPY, REDIRECT, HALF].iter().try_for_each(|mark| self.upper()?.drop_mark(object, mark))
        })?;
        Ok(true)
    }

    /// Goes through the directories that the upper has. What can't be looked at is told like what is found: the others
    /// don't wait for it.
    fn visit_unsealed(&self, each: &mut Visitor<'_>) -> Result<()> {
        self.upper()?;
        // The last one first, so that no more are held than lie beside one path.
        let mut directories = vec![(self.root().clone(), 0)];
        while let Some((directory, lookups)) = directories.pop() {
            match self.upper_names(&directory) {
                Ok(names) => self.visit_entries(&directory, names, &mut directories, each),
                Err(e) => each(Err(e), EscapedPath::from(self.path_of(&directory))),
            }
            self.forget_looked_up(directory, lookups);
        }
        Ok(())
    }

    fn visit_entries(
        &self,
        directory: &Arc<Node>,
        names: Vec<(Vec<u8>, Kind)>,
        below: &mut Vec<(Arc<Node>, u64)>,
        each: &mut Visitor<'_>,
    ) {
        for (name, kind) in names {
            if !matches!(kind, Kind::File | Kind::Directory) {
                continue;
            }
            let node = match self.lookup(directory, &name) {
                Ok(Some((node, _))) => node,
                // Somebody has removed it since.
                Ok(None) => continue,
                // A mark that leads nowhere.
                Err(e) => {
                    each(Err(e), self.path_in(directory, &name));
                    continue;
                }
            };
            if kind == Kind::Directory {
                below.push((node, 1));
                continue;
            }
            match self.is_unsealed(&node) {
                Ok(true) => each(Ok(&node), self.path_in(directory, &name)),
                Ok(false) => {}
                Err(e) => each(Err(e), self.path_in(directory, &name)),
            }
            self.forget_looked_up(node, 1);
        }
    }

    fn forget_looked_up(&self, node: Arc<Node>, lookups: u64) {
        let ino = node.ino;
        drop(node);
        if lookups > 0 {
            self.forget(ino, lookups);
        }
    }

    /// Returns what the upper has in a directory, whiteouts aside.
    fn upper_names(&self, directory: &Node) -> Result<Vec<(Vec<u8>, Kind)>> {
        let part = self.dir_part(directory)?;
        if part.upper_dir().is_none() {
            return Ok(Vec::new());
        }
        let _names = part.names.read();
        self.with_listing(directory, || {
            let indexes = self.indexed(directory)?;
            let entries = indexes.upper.iter().flat_map(|upper| upper.iter());
            Ok(entries.filter_map(|(name, entry)| Some((name.to_vec(), entry.kind?))).collect())
        })
    }

    fn is_unsealed(&self, node: &Node) -> Result<bool> {
        if self.metacopies.contains_key(&node.ino) {
            return Ok(true);
        }
        // An empty one can be marked all the same.
        let marks = self.with_object(node, |object| self.marks_of(object))?;
        match marks.unbelieved {
            // Who believes it sees data that this process doesn't.
            Some(mark) if mark.ends_with(b".metacopy") => Err(FsError::Unsupported(
                "its mark is of a mount that keeps marks in user. attributes: seal it as the user who mounted it, or with --userxattr",
            )),
            _ => Ok(marks.metacopy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use crate::union::bed::{Bed, look_up};
    use crate::union::options::FsOptions;
    use crate::union::view::attr::SetAttr;

    /// Makes a union with a file whose mode was changed, one with two names, an empty one, and one that was copied
    /// whole, in `d`.
    fn unsealed(bed: &Bed) -> Union {
        bed.file("0/d/one").file("0/d/two").file("0/whole").dir("0/d/e");
        fs::hard_link(bed.at("0/d/two"), bed.at("0/d/e/too")).unwrap();
        fs::write(bed.at("0/d/empty"), "").unwrap();
        let union = bed.open_with(&FsOptions { metacopy: true, ..FsOptions::default() });
        for path in ["d/one", "d/two", "d/empty"] {
            let mode = SetAttr { mode: Some(0o640), ..SetAttr::default() };
            union.setattr(&look_up(&union, path).unwrap(), mode, false).unwrap();
        }
        // The kernel marks empty ones as well.
        let empty = look_up(&union, "d/empty").unwrap();
        union
            .with_object(&empty, |object| union.upper()?.set_mark(object.writable()?, METACOPY, b""))
            .unwrap();
        let whole = look_up(&union, "whole").unwrap();
        union.write(&whole, 0, b"W", crate::union::data::file::Write::default()).unwrap();
        union
    }

    fn paths(union: &Union) -> Vec<String> {
        let mut paths = Vec::new();
        union.for_each_unsealed(&mut |file| paths.push(file.path.to_string())).unwrap();
        paths.sort();
        paths
    }

    #[test]
    fn what_was_left_below_is_the_uppers_own() {
        let bed = Bed::new(1);
        drop(unsealed(&bed));
        let union = bed.open();
        let before = paths(&union);
        assert_eq!(before, ["/d/empty", "/d/one", "/d/two"]);
        let mut told = SealProgress::default();
        assert!(union.seal(&mut |progress| told = progress).unwrap().is_empty());
        assert_eq!(told, SealProgress { files: 3, bytes: 14 });
        assert_eq!(paths(&union), [""; 0]);
        drop(union);
        // Whatever lies below now.
        fs::write(bed.at("0/d/one"), "another").unwrap();
        fs::write(bed.at("0/d/two"), "another").unwrap();
        let own = |path: &str| fs::read_to_string(bed.at("upper").join(path)).unwrap();
        assert_eq!(
            (own("d/one"), own("d/two"), own("d/empty")),
            ("0/d/one".into(), "0/d/two".into(), String::new())
        );
        let union = bed.open();
        let marks = union.with_object(&look_up(&union, "d/empty").unwrap(), |object| union.marks_of(object));
        assert!(!marks.unwrap().metacopy);
        drop(union);
        assert_eq!(fs::metadata(bed.at("upper/d/one")).unwrap().mode() & 0o777, 0o640);
        let union = bed.open();
        let mut bytes = [0; 7];
        union.read(&look_up(&union, "d/one").unwrap(), 0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"0/d/one");
    }

    #[test]
    fn what_cannot_be_sealed_is_named_and_keeps_nothing_else_from_it() {
        let bed = Bed::new(1);
        drop(unsealed(&bed));
        fs::remove_file(bed.at("0/d/one")).unwrap();
        let union = bed.open();
        let left = union.seal(&mut |_| ()).unwrap();
        let names: Vec<_> = left.iter().map(|file| file.path.to_string()).collect();
        assert_eq!(names, ["/d/one"]);
        assert_eq!(fs::read_to_string(bed.at("upper/d/two")).unwrap(), "0/d/two");
        assert_eq!(fs::metadata(bed.at("upper/d/one")).unwrap().len(), 7, "it is what it was");
    }

    #[test]
    fn no_node_is_kept() {
        let bed = Bed::new(1);
        drop(unsealed(&bed));
        let union = bed.open();
        union.seal(&mut |_| ()).unwrap();
        assert_eq!(union.known_nodes(), 1, "the root");
    }
}
