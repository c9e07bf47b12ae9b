//! Identity across copy-up: origins, and hardlinks that stay one file.
//!
//! A copied-up file is a new inode, yet it must keep its number. So the copy remembers its **origin** in a private
//! attribute, `overlay.unionmount.origin` = `FSID:INO` (hexadecimal: the filesystem's id as statfs tells it, so that the
//! value means the same in another stack, and the inode number), and its directory is marked `overlay.impure` as the kernel does, so that nothing is asked in directories
//! without such files.
//!
//! A lower file with several names is copied up once: the copy gets a link in the **hardlink index** (a directory of
//! the workdir) under its origin, where its other names find it. Its link count in the merged view is kept as the
//! difference to the copy's own, in `overlay.nlink` = `U+n` (the kernel's form), so that it changes in the same atomic
//! step as the copy's names do. While a name that only the lower has is turned into a link of the copy, the count
//! is kept as the absolute `=n`.

use crate::union::hardlinks::counts::{NLINK, ORIGIN, difference, parse_nlink};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{Stat, Writable};
use crate::union::Union;
use crate::union::change::lend::upper_xattr;
use crate::union::change::upper::UpperFd;
use crate::union::lookup::index::UpperEntry;
use crate::union::lookup::realdir::RealDir;
use crate::union::nodes::node::{InodeId, Name, Named, Node, NodePlace, NodeSource};
use crate::union::stack::access::LayerAt;

/// How many further names of one file are remembered.
const OTHER_NAMES: usize = 8;

/// A name of a file beside the one in its place.
#[derive(Debug)]
pub(in crate::union) struct OtherName {
    parent: Arc<Node>,
    name: Name,
    source: NodeSource,
}

impl OtherName {
    /// Tells whether it leads to the file by the hardlink index.
    pub fn is_by_index(&self) -> bool {
        self.source == NodeSource::Index
    }

    /// Returns the directory that it is in.
    pub fn into_parent(self) -> Arc<Node> {
        self.parent
    }
}

impl Union {
    /// Notes that a known file was found under this name.
    pub(in crate::union) fn remember_name(
        &self,
        node: &Node,
        parent: &Arc<Node>,
        name: &[u8],
        source: NodeSource,
    ) {
        let same = |p: &Arc<Node>, n: &[u8]| Arc::ptr_eq(p, parent) && *n == *name;
        if matches!(&*node.place.read(), NodePlace::Named { parent: p, entry } if same(p, entry.name())) {
            return;
        }
        self.push_name(node, parent, name, source);
    }

    /// Does as [`Union::remember_name`], of a name that isn't the one in its place.
    pub(in crate::union) fn push_name(
        &self,
        node: &Node,
        parent: &Arc<Node>,
        name: &[u8],
        source: NodeSource,
    ) {
        let same = |p: &Arc<Node>, n: &[u8]| Arc::ptr_eq(p, parent) && *n == *name;
        let mut names = self.hardlinks.names_or_none(node.ino);
        names.retain(|o| !same(&o.parent, &o.name));
        if names.len() < OTHER_NAMES {
            names.push(OtherName { parent: parent.clone(), name: Name::from_slice(name), source });
        }
    }

    /// Makes the names that are known of a file that was just copied up, and that only the lower has, links of the
    /// copy, so that another program that doesn't read the index shows one file under all of them. The merged view
    /// doesn't change, so a failure is no failure of the copy-up.
    pub(in crate::union) fn link_known_names(&self, node: &Arc<Node>) {
        let names: Vec<(Arc<Node>, Name)> = match self.hardlinks.names(node.ino) {
            Some(names) => names
                .iter()
                .filter(|other| matches!(other.source, NodeSource::Lower(_)))
                .map(|other| (other.parent.clone(), other.name.clone()))
                .collect(),
            None => return,
        };
        for (parent, name) in names {
            if let Err(e) = self.link_lower_name(&parent, &name) {
                log::warn!("{}: not linked to its copy: {e}", String::from_utf8_lossy(&name));
            }
        }
    }

    /// Makes a name that only the lower has, of a file whose copy is in the index, a link of that. Any other stays.
    pub(in crate::union) fn link_lower_name(&self, parent: &Arc<Node>, name: &[u8]) -> Result<()> {
        self.ensure_upper(parent)?;
        let dir = self.dir_part(parent)?;
        let _names = dir.names.write();
        self.check_alive(dir)?;
        let Some(found) = self.resolve(parent, name)? else { return Ok(()) };
        let origin = self.origin_of(parent, name, &found)?;
        let _hardlinks = self.has_hardlinks(parent, &found).then(|| self.hardlinks.locks.exclusive(origin));
        let (identity, NodeSource::Index, copy) = self.identify_as(origin, (parent, name), &found)? else {
            return Ok(());
        };
        let fd = self.upper_fd(&dir.upper_dir().ok_or(FsError::Stale)?)?;
        self.mark_impure(parent)?;
        self.unseen_in(parent, &fd, || self.link_alias(&fd, name, identity.origin))?;
        self.note_upper(dir, name, Some(UpperEntry::known(found.stat.kind(), copy.ino)));
        Ok(())
    }

    /// Returns whether it is a further name of the file.
    pub(in crate::union) fn is_remembered(&self, node: &Node, parent: &Arc<Node>, name: &[u8]) -> bool {
        let same = |o: &OtherName| Arc::ptr_eq(&o.parent, parent) && o.name[..] == *name;
        self.hardlinks.names(node.ino).is_some_and(|names| names.iter().any(same))
    }

    /// Notes that a name of a file is gone.
    pub(in crate::union) fn forget_name(&self, node: &Node, parent: &Arc<Node>, name: &[u8]) {
        if let Some(mut names) = self.hardlinks.names_mut(node.ino) {
            names.retain(|o| !(Arc::ptr_eq(&o.parent, parent) && o.name[..] == *name));
        }
    }

    /// Returns another known name of a file that is about to lose the one in its place.
    pub(in crate::union) fn next_name(&self, node: &Node) -> Option<NodePlace> {
        // A file that was copied up leads elsewhere by the names that were found before.
        let in_upper = self.is_in_upper_place(&node.place.read());
        let mut passed_over = Vec::new();
        let next = self.hardlinks.names_mut(node.ino).and_then(|mut names| {
            while let Some(OtherName { parent, name, source }) = names.pop() {
                if in_upper && matches!(source, NodeSource::Lower(_)) {
                    passed_over.push(parent);
                    continue;
                }
                return Some(NodePlace::Named { parent, entry: Named::new(&name, source) });
            }
            None
        });
        // Nobody else may know the directories that the names held.
        passed_over.into_iter().for_each(|parent| self.release_parent(parent));
        next
    }

    /// Returns the names that are known of a file beside the one in its place, as places.
    pub(in crate::union) fn other_names(&self, node: &Node) -> Vec<(Arc<Node>, Named)> {
        let names = self.hardlinks.names(node.ino);
        let place = |other: &OtherName| (other.parent.clone(), Named::new(&other.name, other.source));
        names.map(|names| names.iter().map(place).collect()).unwrap_or_default()
    }

    /// Returns the value of the origin mark. `None`: the origin's identity doesn't last, so the copy's number doesn't
    /// either.
    pub(in crate::union) fn origin_value(&self, origin: InodeId) -> Option<Vec<u8>> {
        origin.to_text(':', &self.regions).map(String::into_bytes)
    }

    /// Returns where the upper's entry `name` was copied up from, if it was.
    /// Asked only in directories that are marked impure, unless `always`.
    pub(in crate::union) fn read_origin(
        &self,
        parent: &Node,
        name: &[u8],
        always: bool,
    ) -> Result<Option<InodeId>> {
        let dir = self.dir_part(parent)?;
        if !always && !dir.impure.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(upper) = dir.upper_dir() else { return Ok(None) };
        let fd = self.upper_fd(&upper)?;
        let mark = self.upper()?.mark_name(ORIGIN);
        let value = upper_xattr(fd.entry(name), &mark)?;
        Ok(value.and_then(|v| InodeId::from_text(&v, ':', &self.regions)))
    }

    /// Returns where a frozen layer's entry was copied up from, if it was and that is told; see [`Union::read_origin`].
    pub(in crate::union) fn read_frozen_origin(
        &self,
        dir: &Arc<RealDir>,
        name: &[u8],
        always: bool,
    ) -> Result<Option<InodeId>> {
        let Some(upper) = self.upper.as_ref().filter(|_| always || dir.impure.load(Ordering::Relaxed)) else {
            return Ok(None);
        };
        let opened = self.fds.get(dir)?;
        let value = match opened.entry(name).xattr(&upper.mark_name(ORIGIN)) {
            Err(Errno::NOENT) => return Err(FsError::Stale),
            value => value?,
        };
        Ok(value.and_then(|v| InodeId::from_text(&v, ':', &self.regions)))
    }

    /// Returns what a file that isn't the upper's goes by, for whoever copies it up or hides a name of it: the inode that it
    /// was copied up from before a snapshot froze the copy, else its own.
    pub(in crate::union) fn origin_known(&self, node: &Node) -> InodeId {
        self.hardlinks.origin(node.ino).unwrap_or_else(|| node.real())
    }

    /// Marks a directory of the upper as one with entries whose origin must be read.
    pub(in crate::union) fn mark_impure(&self, parent: &Node) -> Result<()> {
        let dir = self.dir_part(parent)?;
        // Without marks nothing has an origin to be read.
        if dir.impure.load(Ordering::Relaxed) || !self.upper()?.caps().xattr {
            return Ok(());
        }
        let upper = dir.upper_dir().ok_or(FsError::Stale)?;
        let fd = self.upper_fd(&upper)?;
        self.upper()?.set_mark(fd.itself(), "impure", b"y")?;
        self.changed_by_itself(parent);
        dir.impure.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Marks the directory that a file moves or is linked to, if the file has an origin.
    pub(in crate::union) fn carry_origin(&self, parent: &Node, node: &Node) -> Result<()> {
        if node.dir.is_none() && !self.table.is_own_number(node) { self.mark_impure(parent) } else { Ok(()) }
    }

    /// Returns the stat of the copy of a lower file in the hardlink index, if there is one, with the merged link count.
    pub(in crate::union) fn indexed_copy(&self, origin: InodeId) -> Result<Option<Stat>> {
        let Some(upper) = &self.upper else { return Ok(None) };
        if !upper.is_indexed(origin) {
            return Ok(None);
        }
        let copy = self.indexed_object(origin)?;
        let mut stat = self.owners.kept(copy.at(), copy.stat()?, true)?;
        stat.nlink = self.merged_nlink(copy.at(), &stat)?.unwrap_or(stat.nlink);
        Ok(Some(stat))
    }

    /// Returns the link count in the merged view of a file that is in the hardlink index; `None` for others.
    pub(in crate::union) fn merged_nlink<'a>(
        &self,
        at: impl Into<LayerAt<'a>>,
        stat: &Stat,
    ) -> Result<Option<u64>> {
        let upper = self.upper()?;
        if !upper.has_index() {
            return Ok(None);
        }
        let mark = upper.mark_name(NLINK);
        let value = match at.into() {
            LayerAt::Host(at) => upper_xattr(at, &mark)?,
            at @ LayerAt::Tree(_) => at.xattr(&mark)?,
        };
        Ok(value.and_then(|v| parse_nlink(&v, stat.nlink)))
    }

    fn set_nlink(&self, object: Writable<'_>, value: String) -> Result<()> {
        self.upper()?.set_mark(object, NLINK, value.as_bytes())
    }

    /// Gives a copy that is about to be published with `own` links the count of its origin.
    pub(in crate::union) fn set_copied_nlink(
        &self,
        object: Writable<'_>,
        merged: u64,
        own: u64,
    ) -> Result<()> {
        self.set_nlink(object, difference(merged, own))
    }

    /// Turns a name that only the lower has, of a file whose copy is in the index, into a link of that copy. The
    /// merged view doesn't change.
    pub(in crate::union) fn link_alias(&self, dir: &UpperFd, name: &[u8], origin: InodeId) -> Result<()> {
        let upper = self.upper()?;
        let object = self.indexed_object(origin)?;
        let (copy, stat) = (object.writable()?, object.stat()?);
        let merged = self.merged_nlink(copy.at(), &stat)?.unwrap_or(stat.nlink);
        self.set_nlink(copy, format!("={merged}"))?;
        let linked = upper.link_in_any_case(copy, dir, name);
        let own = copy.at().stat()?.nlink;
        self.set_nlink(copy, difference(merged, own))?;
        linked
    }

    /// Takes a copy out of the index once no name of the merged view leads to it.
    pub(in crate::union) fn drop_unnamed_copy(&self, origin: InodeId) -> Result<()> {
        let upper = self.upper()?;
        if !upper.is_indexed(origin) {
            return Ok(());
        }
        let copy = self.indexed_object(origin)?;
        if self.merged_nlink(copy.at(), &copy.stat()?)? == Some(0) {
            upper.drop_index(origin)?;
        }
        Ok(())
    }

    /// Returns how many names of a lower file that was never copied up are hidden.
    pub(in crate::union) fn hidden_count(&self, lower: InodeId) -> u64 {
        self.hardlinks.hidden(lower).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::union::data::file::Write;
    use crate::union::stack::layer::{Stack, StackOptions};
    use crate::union::{Limits, Union};

    #[test]
    fn directories_of_names_that_lead_nowhere_any_more_are_forgotten() {
        let top = tempfile::tempdir().unwrap();
        for dir in ["lower/a", "lower/b", "upper"] {
            fs::create_dir_all(top.path().join(dir)).unwrap();
        }
        fs::write(top.path().join("lower/a/f"), "x").unwrap();
        fs::hard_link(top.path().join("lower/a/f"), top.path().join("lower/b/f")).unwrap();
        let options = StackOptions {
            lowers: vec![top.path().join("lower").into()],
            upper: Some(top.path().join("upper")),
            ..StackOptions::default()
        };
        let union = Union::new(Stack::open(&options).unwrap(), Limits::default()).unwrap();
        let look = |dir: &[u8]| {
            let (dir, _) = union.lookup(union.root(), dir).unwrap().unwrap();
            let (file, _) = union.lookup(&dir, b"f").unwrap().unwrap();
            (dir, file)
        };
        let ((a, file), (b, same)) = (look(b"a"), look(b"b"));
        assert_eq!(file.ino, same.ino);
        union.write(&file, 0, b"y", Write::default()).unwrap();
        let b_ino = b.ino;
        drop((b, same));
        // The kernel forgets `b`, which only the file's other name holds then.
        union.forget(b_ino, 1);
        union.unlink(&a, b"f").unwrap();
        let (a_ino, file_ino) = (a.ino, file.ino);
        drop((a, file));
        union.forget(file_ino, 2);
        union.forget(a_ino, 1);
        assert_eq!(union.known_nodes(), 1, "the root");
    }
}
