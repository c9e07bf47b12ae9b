//! Renames.
//!
//! What is renamed is copied up first, and then one renameat2 in the upper does it: with RENAME_WHITEOUT where the old
//! name must go on hiding what lowers have under it.
//!
//! A directory that lowers contribute to can be renamed too: only its own upper directory moves, marked with a
//! **redirect** that tells lookups where its lowers' parts are (kernel: overlayfs.rst, "Renaming directories"). A
//! directory of the upper alone is marked opaque where it would otherwise be merged with what lowers have under its
//! new name.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLockWriteGuard;
use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::change::modify::{InUpper, check_name};
use crate::union::change::removed_entry::RemovedEntry;
use crate::union::change::staged::{New, Publish};
use crate::union::change::upper::{Present, UpperFd};
use crate::union::events::EventKind as Event;
use crate::union::lookup::found::{Found, FoundKind};
use crate::union::lookup::index::UpperEntry;
use crate::union::nodes::node::{Named, Node, NodePlace, NodeSource};
use crate::union::options::RedirectDir;

/// What a rename does about an entry of the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it.
    Replace,
    /// Fails (RENAME_NOREPLACE).
    NoReplace,
    /// Gives it the old name (RENAME_EXCHANGE).
    Exchange,
}

/// The longest redirect that is written. ext4 keeps all attributes of an inode in one block of, as a rule, 4 KiB.
pub(in crate::union) const LONGEST_REDIRECT: usize = 3072;

/// One side of a rename, with its directory locked.
struct Side<'a> {
    parent: &'a Arc<Node>,
    name: &'a [u8],
    fd: UpperFd,
    /// Do the parent's lowers show the name?
    below: bool,
}

impl Union {
    /// Gives the entry `name` of `parent` the name `new_name` in `new_parent`.
    pub fn rename(
        &self,
        (parent, name): (&Arc<Node>, &[u8]),
        (new_parent, new_name): (&Arc<Node>, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        check_name(new_name)?;
        if mode == RenameMode::Exchange && !self.upper()?.caps().rename_exchange {
            return Err(FsError::Invalid("RENAME_EXCHANGE on the upper's filesystem"));
        }
        self.upper()?;
        let across = !Arc::ptr_eq(parent, new_parent);
        loop {
            // Copy-ups hold locks of their own, so they come first; then, with both directories locked, what the names
            // stand for is looked at again.
            let source = self.look(parent, name)?.ok_or(FsError::Absent)?;
            self.check_before_copy_up(&source, new_parent, new_name, mode)?;
            self.check_redirect(&source)?;
            self.ensure_upper_to_move(&source)?;
            // A file with several names may have been copied up under another one, elsewhere.
            self.ensure_upper(parent)?;
            self.ensure_upper(new_parent)?;
            let target = match mode {
                RenameMode::Exchange => {
                    let target = self.look(new_parent, new_name)?.ok_or(FsError::Absent)?;
                    self.check_redirect(&target)?;
                    self.ensure_upper_to_move(&target)?;
                    Some(target)
                }
                _ => None,
            };
            let _renames = across.then(|| self.renames.lock());
            if source.dir.is_some() && new_parent.is_below(&source) {
                return Err(FsError::Invalid("a directory can't be moved into itself"));
            }
            if let Some(target) = &target
                && target.dir.is_some()
                && parent.is_below(target)
            {
                return Err(FsError::Invalid("a directory can't be moved into itself"));
            }
            let _names = self.lock_names(parent, new_parent)?;
            let still = self.links_now(parent, name, &source)?;
            let target_still = match &target {
                Some(target) => self.links_now(new_parent, new_name, target)?,
                None => Some(1),
            };
            let (Some(links), Some(target_links)) = (still, target_still) else { continue };
            let mut sides = vec![(parent, name, &source, links)];
            sides.extend(target.as_ref().map(|target| (new_parent, new_name, target, target_links)));
            let judged = sides.into_iter().try_for_each(|(parent, name, node, links)| {
                self.check_judged(parent, name, Some(node), links)?;
                if across { self.check_moves(parent, name, node) } else { Ok(()) }
            });
            self.check_alive(self.dir_part(parent)?)?;
            self.check_alive(self.dir_part(new_parent)?)?;
            let from = self.side(parent, name)?;
            let to = self.side(new_parent, new_name)?;
            let done = judged.and_then(|()| match target {
                Some(target) => self.exchange(&source, &target, &from, &to),
                None => self.replace(&source, &from, &to, mode),
            });
            if done.is_ok() {
                self.events.tell(|| Event::Rename {
                    path: self.path_in(parent, name),
                    to: self.path_in(new_parent, new_name),
                    exchange: mode == RenameMode::Exchange,
                    whiteout: mode != RenameMode::Exchange && from.below,
                    redirect: self.redirect_of(&source),
                });
            }
            self.release(source);
            return done;
        }
    }

    /// Unless redirects are made, a directory that lowers contribute to stays where it is: programs copy and remove.
    fn check_redirect(&self, node: &Node) -> Result<()> {
        let merged = node.dir.as_ref().is_some_and(|part| !part.lowers.is_empty());
        if merged && self.redirects != RedirectDir::On { Err(FsError::Os(Errno::XDEV)) } else { Ok(()) }
    }

    /// What must fail shall not copy up first.
    fn check_before_copy_up(
        &self,
        source: &Arc<Node>,
        parent: &Arc<Node>,
        name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        if mode == RenameMode::Exchange {
            return Ok(());
        }
        if source.dir.is_some() && parent.is_below(source) {
            return Err(FsError::Invalid("a directory can't be moved into itself"));
        }
        let Some(target) = self.look(parent, name)? else { return Ok(()) };
        let checked = match (source.dir.is_some(), &target.dir) {
            _ if mode == RenameMode::NoReplace => Err(FsError::Exists),
            (true, None) => Err(FsError::NotADirectory),
            (false, Some(_)) => Err(FsError::IsADirectory),
            (true, Some(part)) if !Arc::ptr_eq(source, &target) => {
                let _names = part.names.read();
                self.check_empty(&target)
            }
            _ => Ok(()),
        };
        self.release(target);
        checked
    }

    /// The node that a name leads to, made if it isn't known.
    fn look(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Option<Arc<Node>>> {
        let _names = self.dir_part(parent)?.names.read();
        match self.resolve(parent, name)? {
            Some(found) => Ok(Some(self.node_of(parent, name, &found, 0)?.0)),
            None => Ok(None),
        }
    }

    /// Does a name lead to that node? Then tells how many names what is there has. The caller holds the directory's names.
    fn links_now(&self, parent: &Arc<Node>, name: &[u8], node: &Arc<Node>) -> Result<Option<u64>> {
        let Some(found) = self.resolve(parent, name)? else { return Ok(None) };
        let origin = self.origin_of(parent, name, &found)?;
        let _hardlinks = self.has_hardlinks(parent, &found).then(|| self.hardlink_locks.shared(origin));
        let (identity, ..) = self.identify_as(origin, parent, &found)?;
        let known = self.table.find(identity);
        Ok(known.filter(|known| Arc::ptr_eq(known, node)).map(|_| found.stat.nlink))
    }

    fn side<'a>(&self, parent: &'a Arc<Node>, name: &'a [u8]) -> Result<Side<'a>> {
        let real = self.dir_part(parent)?.upper_dir().ok_or(FsError::Stale)?;
        Ok(Side { parent, name, fd: self.upper_fd(&real)?, below: self.lower_shows(parent, name)? })
    }

    /// Locks the names of both directories: ancestors first, then by number.
    fn lock_names<'a>(
        &self,
        a: &'a Arc<Node>,
        b: &'a Arc<Node>,
    ) -> Result<[Option<RwLockWriteGuard<'a, ()>>; 2]> {
        let (first, second) = if Arc::ptr_eq(a, b) {
            return Ok([Some(self.dir_part(a)?.names.write()), None]);
        } else if b.is_below(a) || (!a.is_below(b) && a.ino < b.ino) {
            (a, b)
        } else {
            (b, a)
        };
        Ok([Some(self.dir_part(first)?.names.write()), Some(self.dir_part(second)?.names.write())])
    }

    fn replace(&self, source: &Arc<Node>, from: &Side<'_>, to: &Side<'_>, mode: RenameMode) -> Result<()> {
        let target = self.resolve(to.parent, to.name)?;
        if target.is_some() && mode == RenameMode::NoReplace {
            return Err(FsError::Exists);
        }
        if let Some(target) = &target {
            let (identity, ..) = self.identify(to.parent, to.name, target)?;
            if self.table.find(identity).is_some_and(|t| Arc::ptr_eq(&t, source)) {
                return Ok(()); // two names of one file: POSIX says nothing happens
            }
            let directory = matches!(target.what, FoundKind::Directory { .. });
            match (source.dir.is_some(), directory) {
                (true, false) => return Err(FsError::NotADirectory),
                (false, true) => return Err(FsError::IsADirectory),
                _ => {}
            }
        }
        self.link_source_alias(source, from)?;
        self.mark_for_move(source, from, to)?;
        match target {
            Some(found @ Found { what: FoundKind::Directory { .. }, .. }) => {
                self.over_directory(source, from, to, &found)
            }
            Some(found) => self.over_leaf(source, from, to, &found),
            None => self.to_free_name(source, from, to),
        }
    }

    /// A name that only the lower has, of a file whose copy is in the hardlink index, becomes a link of the copy.
    fn link_source_alias(&self, source: &Node, from: &Side<'_>) -> Result<()> {
        let Some(found) = self.resolve(from.parent, from.name)? else { return Err(FsError::Stale) };
        let origin = self.origin_of(from.parent, from.name, &found)?;
        let _hardlinks =
            self.has_hardlinks(from.parent, &found).then(|| self.hardlink_locks.exclusive(origin));
        if let (identity, NodeSource::Index, copy) = self.identify_as(origin, from.parent, &found)? {
            self.mark_impure(from.parent)?;
            self.link_alias(&from.fd, from.name, identity.origin)?;
            self.changed_by_itself(source);
            let entry = UpperEntry::known(source.kind, copy.ino);
            self.note_upper(self.dir_part(from.parent)?, from.name, Some(entry));
        }
        Ok(())
    }

    /// Marks what moves so that it is found under its new name as what it is.
    fn mark_for_move(&self, node: &Arc<Node>, from: &Side<'_>, to: &Side<'_>) -> Result<()> {
        let Some(part) = &node.dir else { return self.carry_origin(to.parent, node) };
        let real = part.upper_dir().ok_or(FsError::Stale)?;
        let fd = self.upper_fd(&real)?;
        let upper = self.upper()?;
        if part.lowers.is_empty() {
            if to.below {
                self.preserving_parent_times(node, &fd, || upper.make_opaque(fd.itself()))?;
            }
            return Ok(());
        }
        // Its number is that of the lowers' directory: where it goes, listings must ask for it.
        self.mark_impure(to.parent)?;
        let known = self.marks_in(&real, fd.itself().at())?.redirect;
        let redirect = match known {
            Some(path) if path.starts_with(b"/") => return Ok(()),
            known if Arc::ptr_eq(from.parent, to.parent) => known.unwrap_or_else(|| from.name.to_vec()),
            _ => self.lower_path(node)?,
        };
        // As the kernel: programs then copy and remove.
        let too_far = || FsError::Os(Errno::XDEV);
        if redirect.len() > LONGEST_REDIRECT {
            return Err(too_far());
        }
        upper.set_mark(fd.itself(), "redirect", &redirect).map_err(|e| match e.errno() {
            Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::OPNOTSUPP => too_far(),
            _ => e,
        })?;
        self.changed_by_itself(node);
        Ok(())
    }

    /// The path under which the lowers alone show a directory: its own names, but for redirects on the way.
    pub(in crate::union) fn lower_path(&self, node: &Arc<Node>) -> Result<Vec<u8>> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = node.clone();
        loop {
            let (parent, name) = match &*at.place.read() {
                NodePlace::Named { parent, entry } => (parent.clone(), entry.name().to_vec()),
                NodePlace::Root | NodePlace::Pinned { .. } => break,
            };
            let redirect = match self.dir_part(&at)?.upper_dir() {
                Some(real) => self.marks_in(&real, self.upper_fd(&real)?.itself().at())?.redirect,
                None => None,
            };
            match redirect {
                Some(path) if path.starts_with(b"/") => {
                    names.push(path[1..].to_vec());
                    break;
                }
                Some(other) => names.push(other),
                None => names.push(name.to_vec()),
            }
            at = parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Ok(path)
    }

    fn to_free_name(&self, source: &Arc<Node>, from: &Side<'_>, to: &Side<'_>) -> Result<()> {
        let upper = self.upper()?;
        let mut place = source.place.write();
        let whiteout = self.in_upper_dir(to.parent, &to.fd, to.name)? == InUpper::Whiteout;
        if whiteout {
            self.check_whiteout(to.parent, &to.fd, to.name)?;
        }
        let (old, new) = ((&from.fd, from.name), (&to.fd, to.name));
        if whiteout && source.dir.is_some() {
            upper.rename_directory_over_whiteout(old, new, from.below)?;
        } else if whiteout {
            upper.rename(old, new, from.below, RenameFlags::empty())?;
        } else {
            upper.rename(old, new, from.below, RenameFlags::NOREPLACE).map_err(|e| match e.errno() {
                // There is something in the layer that the index doesn't know, and the kernel has not judged.
                Errno::EXIST => self.index_is_wrong(to.parent, to.name),
                _ => e,
            })?;
        }
        self.check_moved(source, old, new)?;
        self.record(source, &mut place, from, to)
    }

    fn over_leaf(&self, source: &Arc<Node>, from: &Side<'_>, to: &Side<'_>, target: &Found) -> Result<()> {
        let origin = self.origin_of(to.parent, to.name, target)?;
        let _hardlinks = self.has_hardlinks(to.parent, target).then(|| self.hardlink_locks.exclusive(origin));
        let removed = RemovedEntry::of(self, to.parent, &to.fd, to.name, target, origin)?;
        removed.be_replaced(self, to.parent, &to.fd, to.name, || {
            let mut place = source.place.write();
            let flags = RenameFlags::empty();
            self.upper()?.rename((&from.fd, from.name), (&to.fd, to.name), from.below, flags)?;
            self.record(source, &mut place, from, to)
        })?;
        removed.settle_links(self);
        Ok(())
    }

    fn over_directory(
        &self,
        source: &Arc<Node>,
        from: &Side<'_>,
        to: &Side<'_>,
        target: &Found,
    ) -> Result<()> {
        let (removed, _) = self.node_of(to.parent, to.name, target, 0)?;
        let judged = self.check_judged(to.parent, to.name, Some(&removed), 1);
        let done = judged.and_then(|()| self.over_directory_node(source, from, to, &removed));
        self.release(removed);
        done
    }

    fn over_directory_node(
        &self,
        source: &Arc<Node>,
        from: &Side<'_>,
        to: &Side<'_>,
        removed: &Arc<Node>,
    ) -> Result<()> {
        if from.parent.is_below(removed) {
            return Err(FsError::NotEmpty); // what is to be moved lies in it
        }
        let part = self.dir_part(removed)?;
        let _victim_names = part.names.write();
        self.check_empty(removed)?;
        let pinned = self.pin_dir(part)?;
        if part.upper_dir().is_some() {
            self.clear_markers(part, to)?;
        } else if self.in_upper_dir(to.parent, &to.fd, to.name)? == InUpper::Whiteout {
            return Err(FsError::Stale);
        }
        let mut removed_place = removed.place.write();
        let mut place = source.place.write();
        let (old, new) = ((&from.fd, from.name), (&to.fd, to.name));
        self.upper()?.rename(old, new, from.below, RenameFlags::empty())?;
        self.check_moved(source, old, new)?;
        self.mark_removed(removed, part, &mut removed_place, pinned);
        self.record(source, &mut place, from, to)
    }

    /// A directory that is about to be replaced shows nothing, but in the upper it may hold whiteouts, and then rename
    /// would refuse. It is exchanged for an empty opaque one, which shows the same.
    fn clear_markers(&self, part: &crate::union::nodes::node::DirPart, to: &Side<'_>) -> Result<()> {
        let has_markers = part.index.lock().upper.as_ref().is_some_and(|u| u.iter().next().is_some())
            || part.upper_dir().and_then(|d| d.forms()).is_some_and(|f| f.aufs_opaque || f.aufs_whiteouts);
        if !has_markers {
            return Ok(());
        }
        let upper = self.upper()?;
        let real = part.upper_dir().ok_or(FsError::Stale)?;
        let old = self.upper_fd(&real)?;
        if !upper.caps().rename_exchange {
            return upper.empty_of_markers((&to.fd, to.name), &old);
        }
        let staged = upper.stage(New::Directory)?;
        let stat = old.itself().at().stat()?;
        crate::union::change::carry::copy_metadata(old.itself().at(), &stat, staged.object(), self.belief)?;
        upper.make_opaque(staged.object())?;
        crate::union::change::carry::set_times(&stat, staged.object())?;
        staged.publish(&to.fd, to.name, Publish::Swap(Present::Directory(&real)))
    }

    fn exchange(&self, a: &Arc<Node>, b: &Arc<Node>, from: &Side<'_>, to: &Side<'_>) -> Result<()> {
        if Arc::ptr_eq(a, b) {
            return Ok(());
        }
        self.link_source_alias(a, from)?;
        self.link_source_alias(b, to)?;
        self.mark_for_move(a, from, to)?;
        self.mark_for_move(b, to, from)?;
        let (first, second) = if a.ino < b.ino { (a, b) } else { (b, a) };
        let mut first_place = first.place.write();
        let mut second_place = second.place.write();
        let (old, new) = ((&from.fd, from.name), (&to.fd, to.name));
        self.upper()?.rename(old, new, false, RenameFlags::EXCHANGE)?;
        self.check_exchanged((a, b), old, new)?;
        let (a_place, b_place) = if Arc::ptr_eq(first, a) {
            (&mut *first_place, &mut *second_place)
        } else {
            (&mut *second_place, &mut *first_place)
        };
        self.told_dirs.forget(from.parent, from.name);
        self.settle_at(a, a_place, from, to)?;
        self.settle_at(b, b_place, to, from)?;
        self.note_entry(a, to)?;
        self.note_entry(b, from)
    }

    /// Records that the source is under its new name.
    fn record(
        &self,
        source: &Arc<Node>,
        place: &mut NodePlace,
        from: &Side<'_>,
        to: &Side<'_>,
    ) -> Result<()> {
        self.settle_at(source, place, from, to)?;
        self.told_dirs.forget(from.parent, from.name);
        self.note_removed(self.dir_part(from.parent)?, from.name, from.below);
        self.note_entry(source, to)?;
        self.counters.renames.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn settle_at(
        &self,
        node: &Arc<Node>,
        place: &mut NodePlace,
        from: &Side<'_>,
        to: &Side<'_>,
    ) -> Result<()> {
        node.names.changed();
        if node.dir.is_none() {
            self.forget_name(node, from.parent, from.name);
            self.forget_name(node, to.parent, to.name);
            if let NodePlace::Named { parent, entry } = &*place {
                self.keep_name(node, parent, entry, from);
            }
        }
        *place =
            NodePlace::Named { parent: to.parent.clone(), entry: Named::new(to.name, NodeSource::Upper) };
        if let Some(part) = &node.dir {
            self.told_dirs.forget(to.parent, to.name);
            self.told_dirs.tell(to.parent, to.name, node.real());
            let real = part.upper_dir().ok_or(FsError::Stale)?;
            let parent = self.dir_part(to.parent)?.upper_dir().ok_or(FsError::Stale)?;
            real.moved(&parent, to.name);
        }
        Ok(())
    }

    /// One of a file's other names moves: the one in its place stays known.
    fn keep_name(&self, node: &Node, parent: &Arc<Node>, entry: &Named, from: &Side<'_>) {
        if !(Arc::ptr_eq(parent, from.parent) && entry.name() == from.name) {
            self.push_name(node, parent, entry.name(), entry.source());
        }
    }

    fn note_entry(&self, node: &Node, to: &Side<'_>) -> Result<()> {
        let dir = self.dir_part(to.parent)?;
        if dir.index.lock().upper.is_none() {
            return Ok(());
        }
        match to.fd.entry(to.name).stat() {
            Ok(stat) => self.note_upper(dir, to.name, Some(UpperEntry::known(node.kind, stat.ino))),
            // The rename is done all the same; the directory is read anew when it is asked.
            Err(e) => {
                log::warn!("{}: {e} after a rename", String::from_utf8_lossy(&self.path_of(node)));
                dir.index.lock().upper = None;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    use crate::union::change::modify::Create;
    use crate::union::change::staged::New;
    use crate::union::stack::layer::{Stack, StackOptions};
    use crate::union::{Caller, Limits};

    /// A lower with `a`, a directory with the file `f`, which has another name beside it.
    fn union(top: &Path) -> Union {
        fs::create_dir_all(top.join("lower/a")).unwrap();
        fs::create_dir(top.join("upper")).unwrap();
        fs::write(top.join("lower/a/f"), "f").unwrap();
        fs::hard_link(top.join("lower/a/f"), top.join("lower/g")).unwrap();
        let options = StackOptions {
            lowers: vec![top.join("lower").into()],
            upper: Some(top.join("upper")),
            ..StackOptions::default()
        };
        Union::new(Stack::open(&options).unwrap(), Limits::default()).unwrap()
    }

    fn make_directory(union: &Union, name: &[u8]) -> Arc<Node> {
        let caller =
            Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let create = Create { new: New::Directory, mode: 0o755, umask: 0, caller };
        union.create(union.root(), name, create).unwrap().0
    }

    #[test]
    fn a_merged_directory_is_listed_by_its_number_wherever_it_goes() {
        let top = tempfile::tempdir().unwrap();
        let union = union(top.path());
        let new = make_directory(&union, b"new");
        let (_, before) = union.lookup(union.root(), b"a").unwrap().unwrap();
        union.rename((union.root(), b"a"), (&new, b"moved"), RenameMode::Replace).unwrap();
        let (_, after) = union.lookup(&new, b"moved").unwrap().unwrap();
        let mut listed = Vec::new();
        union
            .readdir(&new, 0, |entry| {
                listed.push(entry.ino);
                true
            })
            .unwrap();
        assert_eq!((after.ino, &listed[..]), (before.ino, &[before.ino][..]));
    }

    #[test]
    fn directories_of_further_names_are_forgotten_with_the_file() {
        let top = tempfile::tempdir().unwrap();
        let union = union(top.path());
        let mut known = Vec::new();
        let (file, _) = union.lookup(union.root(), b"g").unwrap().unwrap();
        let (dir, _) = union.lookup(union.root(), b"a").unwrap().unwrap();
        let (same, _) = union.lookup(&dir, b"f").unwrap().unwrap();
        known.extend([dir.ino, file.ino, same.ino]);
        assert_eq!(file.ino, same.ino, "two names of one file");
        drop((file, dir, same));
        for ino in known {
            union.forget(ino, 1);
        }
        assert_eq!(union.known_nodes(), 1, "the root");
    }
}
