//! Changes of names: link, unlink, rmdir. What is made anew is in [`crate::union::change::create`], renames are in
//! [`crate::union::change::rename`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::change::made_entry::MadeEntry;
use crate::union::change::names::{InUpper, check_name};
use crate::union::change::removed_entry::RemovedEntry;
use crate::union::change::upper::Present;
use crate::union::events::EventKind as Event;
use crate::union::lookup::found::FoundKind;
use crate::union::lookup::index::UpperEntry;
use crate::union::lookup::veil::check_unveiled;
use crate::union::nodes::node::{DirPart, Named, Node, NodePlace, NodeSource};
use crate::union::nodes::pins::Pinned;
use crate::union::view::attr::Attr;

impl Union {
    /// Makes one more name for a file. The node counts one lookup.
    pub fn link(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        if node.dir.is_some() {
            return Err(FsError::Os(Errno::PERM));
        }
        self.ensure_upper_to_move(node)?;
        self.ensure_upper(parent)?;
        let dir = self.dir_part(parent)?;
        let _names = dir.names.write();
        self.check_alive(dir)?;
        let fd = self.upper_fd(&dir.upper_dir().ok_or(FsError::Stale)?)?;
        let (_, state) = self.check_free(parent, &fd, name)?;
        self.carry_origin(parent, node)?;
        let upper = self.upper()?;
        let (made, stat) = self.with_upper(node, |object, writable| {
            match state {
                InUpper::Whiteout => self
                    .check_whiteout(parent, &fd, name)
                    .and_then(|()| upper.link_over(writable, &fd, name))?,
                _ => upper.link(writable, &fd, name)?,
            }
            let made = MadeEntry::new(self, parent, &fd, name, (node.kind, state));
            Ok((made, self.kept_stat(object.at(), true)))
        })?;
        let stat = stat?;
        made.stays();
        self.note_upper(dir, name, Some(UpperEntry::known(node.kind, stat.ino)));
        node.names.changed();
        self.table.look_up_again(node);
        self.name_if_pinned(node, parent, name);
        self.remember_name(node, parent, name, NodeSource::Upper);
        self.events
            .tell(|| Event::Link { path: self.path_in(parent, name), from: self.path_of(node).into() });
        Ok(self.attr(node, stat))
    }

    /// Gives a node without a known name this one.
    fn name_if_pinned(&self, node: &Node, parent: &Arc<Node>, name: &[u8]) {
        let mut place = node.place.write();
        if matches!(*place, NodePlace::Pinned { .. }) {
            *place = NodePlace::Named { parent: parent.clone(), entry: Named::new(name, NodeSource::Upper) };
            self.deferred.note_freed(node.ino);
        }
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, parent: &Arc<Node>, name: &[u8]) -> Result<()> {
        self.upper()?;
        self.ensure_upper(parent)?;
        self.wake(parent, name)?;
        let dir = self.dir_part(parent)?;
        let _names = dir.names.write();
        let found = self.resolve_name(parent, name)?.ok_or(FsError::Absent)?;
        if let FoundKind::Directory { .. } = found.what {
            return Err(FsError::IsADirectory);
        }
        let fd = self.upper_fd(&dir.upper_dir().ok_or(FsError::Stale)?)?;
        let origin = self.origin_of(parent, name, &found)?;
        let _hardlinks = self.has_hardlinks(parent, &found).then(|| self.hardlinks.locks.exclusive(origin));
        let removed = RemovedEntry::of(self, parent, &fd, name, &found, origin)?;
        let below = self.lower_shows(parent, name)?;
        removed.lose_name(self, parent, name, || {
            let upper = self.upper()?;
            match (below, removed.present, removed.hidden) {
                (true, None, Some(hidden)) => upper.hide_link(&fd, name, removed.identity.origin, hidden),
                (true, present, _) => upper.whiteout(&fd, name, present.map(|_| Present::Leaf)),
                (false, Some(_), _) => upper.remove(&fd, name, Present::Leaf),
                (false, None, _) => Err(FsError::Stale),
            }
        })?;
        self.note_removed(dir, name, below);
        self.tell_removed(parent, name, found.stat.kind(), below);
        removed.settle_links(self);
        Ok(())
    }

    /// Removes a directory that shows no entries.
    pub fn rmdir(&self, parent: &Arc<Node>, name: &[u8]) -> Result<()> {
        self.upper()?;
        self.ensure_upper(parent)?;
        let dir = self.dir_part(parent)?;
        let _names = dir.names.write();
        let found = self.resolve(parent, name)?.ok_or(FsError::Absent)?;
        let FoundKind::Directory { .. } = found.what else { return Err(FsError::NotADirectory) };
        let node = self.node_looked_at(parent, name, &found)?;
        self.check_judged(parent, name, Some(&node), 1)?;
        self.rmdir_node(parent, dir, name, &node)
    }

    fn rmdir_node(&self, parent: &Arc<Node>, dir: &DirPart, name: &[u8], node: &Arc<Node>) -> Result<()> {
        let part = self.dir_part(node)?;
        let _child_names = part.names.write();
        self.check_empty(node)?;
        let fd = self.upper_fd(&dir.upper_dir().ok_or(FsError::Stale)?)?;
        let below = self.lower_shows(parent, name)?;
        let top = part.upper_dir();
        let present = top.as_deref().map(Present::Directory);
        let pinned = self.pin_dir(part)?;
        let mut place = node.place.write();
        let upper = self.upper()?;
        node.lose_last_name(|| match (below, present) {
            (true, present) => upper.whiteout(&fd, name, present),
            (false, Some(kind)) => upper.remove(&fd, name, kind),
            (false, None) => Err(FsError::Stale),
        })?;
        self.mark_removed(node, part, &mut place, pinned);
        self.told_dirs.forget(parent, name);
        self.note_removed(dir, name, below);
        self.tell_removed(parent, name, Kind::Directory, below);
        Ok(())
    }

    /// Returns a descriptor that keeps a directory reachable once its name is gone.
    pub(in crate::union) fn pin_dir(&self, part: &DirPart) -> Result<Arc<Pinned>> {
        self.pins.hold(self.fds.get(&part.top().ok_or(FsError::Stale)?)?)
    }

    /// Records that a directory is gone.
    pub(in crate::union) fn mark_removed(
        &self,
        node: &Node,
        part: &DirPart,
        place: &mut NodePlace,
        pinned: Arc<Pinned>,
    ) {
        part.removed.store(true, Ordering::Relaxed);
        let upper = part.upper_dir();
        if let Some(real) = &upper {
            real.removed(pinned.held().host().cloned());
            self.deferred.defer(node.ino);
        }
        *part.index.lock() = Default::default();
        *place = NodePlace::Pinned { fd: pinned, upper: upper.is_some() };
    }

    /// Checks that the directory shows nothing. The caller holds its names.
    pub(in crate::union) fn check_empty(&self, node: &Node) -> Result<()> {
        check_unveiled(node)?;
        let index = self.with_listing(node, || self.indexed(node))?;
        let upper = index.upper.as_ref();
        if upper.is_some_and(|u| u.iter().any(|(_, e)| e.kind.is_some())) {
            return Err(FsError::NotEmpty);
        }
        let lower = index.lower.as_ref();
        let shown = lower
            .is_some_and(|l| l.after(0).iter().any(|e| upper.is_none_or(|u| u.get(l.name(e)).is_none())));
        if shown { Err(FsError::NotEmpty) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::union::bed::{Bed, look_up};

    fn nlink(union: &Union, path: &str) -> u64 {
        let node = look_up(union, path).unwrap();
        union.getattr(&node).unwrap().stat.nlink
    }

    #[test]
    fn an_unlink_leaves_a_whiteout_only_where_a_lower_shows_the_name() {
        let bed = Bed::new(1);
        bed.file("0/below").file("0/both").file("upper/both").file("upper/above");
        let union = bed.open();
        for name in [&b"below"[..], b"both", b"above"] {
            union.unlink(union.root(), name).unwrap();
            assert!(union.lookup(union.root(), name).unwrap().is_none());
            assert_eq!(union.unlink(union.root(), name), Err(FsError::Absent));
        }
        let left = bed.names("upper");
        assert_eq!(left.iter().filter(|name| name.ends_with("below")).count(), 1, "{left:?}");
        assert_eq!(left.iter().filter(|name| name.ends_with("both")).count(), 1, "{left:?}");
        assert_eq!(left.len(), 2, "{left:?}");
        drop(union);
        let union = bed.open();
        assert!(["below", "both", "above"].iter().all(|name| look_up(&union, name).is_none()));
        assert!(bed.at("0/below").exists() && bed.at("0/both").exists());
    }

    #[test]
    fn files_and_directories_are_removed_by_their_own_calls() {
        let bed = Bed::new(1);
        bed.file("0/d/f");
        let union = bed.open();
        let root = union.root();
        let d = look_up(&union, "d").unwrap();
        assert_eq!(union.unlink(root, b"d"), Err(FsError::IsADirectory));
        assert_eq!(union.rmdir(root, b"d"), Err(FsError::NotEmpty));
        assert_eq!(union.rmdir(root, b"none"), Err(FsError::Absent));
        assert!(bed.names("upper").is_empty(), "what fails leaves nothing");
        assert_eq!(union.rmdir(&d, b"f"), Err(FsError::NotADirectory));
        assert!(look_up(&union, "d/f").is_some());
    }

    #[test]
    fn a_directory_is_empty_when_all_that_is_below_is_hidden() {
        let bed = Bed::new(2);
        bed.file("0/d/a").file("1/d/b").file("upper/d/c");
        let union = bed.open();
        let d = look_up(&union, "d").unwrap();
        for name in [&b"a"[..], b"b", b"c"] {
            assert_eq!(union.rmdir(union.root(), b"d"), Err(FsError::NotEmpty));
            union.unlink(&d, name).unwrap();
        }
        union.rmdir(union.root(), b"d").unwrap();
        assert!(look_up(&union, "d").is_none());
        assert_eq!(union.unlink(&d, b"a"), Err(FsError::Absent), "it is gone, and so is all in it");
        drop((d, union));
        assert!(look_up(&bed.open(), "d").is_none());
    }

    #[test]
    fn a_removed_directory_takes_no_new_names() {
        let bed = Bed::new(1);
        bed.dir("0/d").file("0/f");
        let union = bed.open();
        let (d, f) = (look_up(&union, "d").unwrap(), look_up(&union, "f").unwrap());
        union.rmdir(union.root(), b"d").unwrap();
        assert_eq!(union.link(&f, &d, b"n").map(drop), Err(FsError::Absent));
        assert_eq!(nlink(&union, "f"), 1);
    }

    #[test]
    fn a_link_copies_up_and_is_the_same_file() {
        let bed = Bed::new(1);
        bed.file("0/f").file("0/gone").dir("0/d");
        let union = bed.open();
        let root = union.root();
        let f = look_up(&union, "f").unwrap();
        union.link(&f, root, b"new").unwrap();
        union.unlink(root, b"gone").unwrap();
        union.link(&f, root, b"gone").unwrap();
        assert_eq!(union.link(&f, root, b"new").map(drop), Err(FsError::Exists));
        assert_eq!(union.link(&f, root, b"d").map(drop), Err(FsError::Exists), "a lower has it");
        let ino = |union: &Union, name| look_up(union, name).unwrap().ino;
        assert_eq!((ino(&union, "new"), ino(&union, "gone")), (f.ino, f.ino));
        assert_eq!(nlink(&union, "f"), 3);
        union.unlink(root, b"f").unwrap();
        assert_eq!(nlink(&union, "new"), 2);
        drop((f, union));
        let union = bed.open();
        assert_eq!(ino(&union, "new"), ino(&union, "gone"));
        assert!(look_up(&union, "f").is_none());
    }

    #[test]
    fn a_directory_has_one_name_and_markers_have_none() {
        let bed = Bed::new(1);
        bed.dir("0/d").file("0/f");
        let union = bed.open();
        let (d, f) = (look_up(&union, "d").unwrap(), look_up(&union, "f").unwrap());
        assert_eq!(union.link(&d, union.root(), b"n").map(drop), Err(FsError::Os(Errno::PERM)));
        assert_eq!(union.link(&f, union.root(), b".wh.n").map(drop), Err(FsError::MarkerName));
        assert!(bed.names("upper").is_empty());
    }

    #[test]
    fn the_names_of_a_lowers_file_stay_one_file_as_they_go() {
        let bed = Bed::new(1);
        bed.file("0/a");
        std::fs::hard_link(bed.at("0/a"), bed.at("0/b")).unwrap();
        let union = bed.open();
        assert_eq!(nlink(&union, "a"), 2);
        union.unlink(union.root(), b"a").unwrap();
        assert_eq!(nlink(&union, "b"), 1);
    }
}
