//! What a rename does once both directories are locked and the names stand for what is to move.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::change::carry::{copy_metadata, set_times};
use crate::union::change::failpoint::{self, Failpoint};
use crate::union::change::names::InUpper;
use crate::union::change::removed_entry::RemovedEntry;
use crate::union::change::staged::{New, Swapped};
use crate::union::change::stepwise::Emptied;
use crate::union::change::upper::{Present, UpperFd};
use crate::union::lookup::found::{Found, FoundKind};
use crate::union::lookup::index::UpperEntry;
use crate::union::nodes::node::{DirPart, Named, Node, NodePlace, NodeSource, both_places};

/// A name of a directory.
#[derive(Clone, Copy)]
pub(super) struct EntryName<'a> {
    /// The directory.
    pub parent: &'a Arc<Node>,
    /// The name.
    pub name: &'a [u8],
}

/// One side of a rename.
pub(super) struct Side<'a> {
    /// The directory.
    pub parent: &'a Arc<Node>,
    /// The name in it.
    pub name: &'a [u8],
    /// The directory of the upper.
    pub fd: UpperFd,
    /// Whether the directory's lowers show the name.
    pub below: bool,
}

impl Side<'_> {
    fn entry(&self) -> (&UpperFd, &[u8]) {
        (&self.fd, self.name)
    }
}

/// What moves, as it was found with the names locked.
pub(super) struct Mover<'a> {
    /// The node.
    pub node: &'a Arc<Node>,
    /// What its name led to.
    pub found: Found,
}

impl<'a> Mover<'a> {
    /// Looks whether that name leads to the node now. The caller holds the directory's names.
    pub fn now(union: &Union, name: EntryName<'_>, node: &'a Arc<Node>) -> Result<Option<Mover<'a>>> {
        Ok(union.found_now(name, node)?.map(|found| Mover { node, found }))
    }
}

/// A rename under way. The names of both directories are locked.
pub(super) struct Moving<'a> {
    /// The union.
    pub union: &'a Union,
    /// What moves.
    pub source: &'a Mover<'a>,
    /// From where.
    pub from: &'a Side<'a>,
    /// To where.
    pub to: &'a Side<'a>,
}

/// What became of the markers of a directory that is about to be replaced.
enum Cleared<'a> {
    /// There were none.
    Nothing,
    /// In the directory that was exchanged for an empty one.
    Away(Swapped<'a>),
    /// Removed, for there was no such exchange.
    InPlace(Emptied<'a>),
}

impl Cleared<'_> {
    /// Undoes it where the directory isn't replaced: it hides what it hid.
    fn undo(self) -> Result<()> {
        match self {
            Cleared::Nothing => Ok(()),
            Cleared::Away(swapped) => swapped.undo(),
            Cleared::InPlace(emptied) => emptied.undo(),
        }
    }
}

impl Moving<'_> {
    /// Gives the source its new name, in place of what has it if that may go.
    pub fn replace(&self, may_replace: bool) -> Result<()> {
        let (union, source, to) = (self.union, self.source.node, self.to);
        let target = union.resolve_name(to.parent, to.name)?;
        if target.is_some() && !may_replace {
            return Err(FsError::Exists);
        }
        if let Some(target) = &target {
            let (identity, ..) = union.identify(to.parent, to.name, target)?;
            if union.table.find(identity).is_some_and(|t| Arc::ptr_eq(&t, source)) {
                return Ok(()); // two names of one file: POSIX says nothing happens
            }
            let directory = matches!(target.what, FoundKind::Directory { .. });
            match (source.dir.is_some(), directory) {
                (true, false) => return Err(FsError::NotADirectory),
                (false, true) => return Err(FsError::IsADirectory),
                _ => {}
            }
        }
        let ino = self.link_source_alias(self.source, self.from)?;
        self.mark_for_move(source, self.from, to)?;
        failpoint::reached(Failpoint::Marked);
        match target {
            Some(found @ Found { what: FoundKind::Directory { .. }, .. }) => self.over_directory(ino, &found),
            Some(found) => self.over_leaf(ino, &found),
            None => self.to_free_name(ino),
        }
    }

    /// Gives the source and the target each other's name.
    pub fn exchange(&self, target: &Mover<'_>) -> Result<()> {
        let (union, from, to) = (self.union, self.from, self.to);
        let (a, b) = (self.source.node, target.node);
        if Arc::ptr_eq(a, b) {
            return Ok(());
        }
        let a_ino = self.link_source_alias(self.source, from)?;
        let b_ino = self.link_source_alias(target, to)?;
        self.mark_for_move(a, from, to)?;
        self.mark_for_move(b, to, from)?;
        let (mut a_place, mut b_place) = both_places(a, b);
        union.upper()?.rename(from.entry(), to.entry(), false, RenameFlags::EXCHANGE)?;
        union.check_exchanged((a, b), from.entry(), to.entry())?;
        self.settle_at(a, &mut a_place, from, to)?;
        self.settle_at(b, &mut b_place, to, from)?;
        self.note_entry((a, a_ino), to)?;
        self.note_entry((b, b_ino), from)
    }

    /// Makes a name that only the lower has, of a file whose copy is in the hardlink index, a link of the copy. Returns the
    /// number of what has the name in the upper.
    fn link_source_alias(&self, Mover { node, found }: &Mover<'_>, from: &Side<'_>) -> Result<u64> {
        let union = self.union;
        let origin = union.origin_of(from.parent, from.name, found)?;
        let _hardlinks =
            union.has_hardlinks(from.parent, found).then(|| union.hardlinks.locks.exclusive(origin));
        let (identity, source, copy) = union.identify_as(origin, (from.parent, from.name), found)?;
        if source == NodeSource::Index {
            union.mark_impure(from.parent)?;
            union.link_alias(&from.fd, from.name, identity.origin)?;
            union.changed_by_itself(node);
            let entry = UpperEntry::known(node.kind, copy.ino);
            union.note_upper(union.dir_part(from.parent)?, from.name, Some(entry));
        }
        Ok(copy.ino)
    }

    /// Marks what moves so that it is found under its new name as what it is.
    fn mark_for_move(&self, node: &Arc<Node>, from: &Side<'_>, to: &Side<'_>) -> Result<()> {
        let union = self.union;
        let Some(part) = &node.dir else { return union.carry_origin(to.parent, node) };
        if !part.lowers.is_empty() {
            // Its number is that of the lowers' directory: where it goes, listings must ask for it.
            union.mark_impure(to.parent)?;
            let beside = Arc::ptr_eq(from.parent, to.parent).then_some(from.name);
            return union.mark_redirect(node, part, beside);
        }
        if to.below {
            let fd = union.upper_fd(&part.upper_dir().ok_or(FsError::Stale)?)?;
            let upper = union.upper()?;
            union.preserving_times(node, &fd, || upper.make_opaque(fd.itself()))?;
        }
        Ok(())
    }

    fn to_free_name(&self, ino: u64) -> Result<()> {
        let (union, source, from, to) = (self.union, self.source.node, self.from, self.to);
        let upper = union.upper()?;
        let mut place = source.place.write();
        let whiteout = union.in_upper_dir(to.parent, &to.fd, to.name)? == InUpper::Whiteout;
        if whiteout {
            union.check_whiteout(to.parent, &to.fd, to.name)?;
        }
        let (old, new) = (from.entry(), to.entry());
        if whiteout && source.dir.is_some() {
            upper.rename_directory_over_whiteout(old, new, from.below)?;
        } else if whiteout {
            upper.rename(old, new, from.below, RenameFlags::empty())?;
        } else {
            upper.rename(old, new, from.below, RenameFlags::NOREPLACE).map_err(|e| match e.errno() {
                // There is something in the layer that the index doesn't know, and the kernel has not judged.
                Errno::EXIST => union.index_is_wrong(to.parent, to.name),
                _ => e,
            })?;
        }
        self.check_moved()?;
        self.record(&mut place, ino)
    }

    fn over_leaf(&self, ino: u64, target: &Found) -> Result<()> {
        let (union, from, to) = (self.union, self.from, self.to);
        let origin = union.origin_of(to.parent, to.name, target)?;
        let _hardlinks =
            union.has_hardlinks(to.parent, target).then(|| union.hardlinks.locks.exclusive(origin));
        let removed = RemovedEntry::of(union, to.parent, &to.fd, to.name, target, origin)?;
        removed.be_replaced(union, (to.parent, &to.fd), to.name, self.source.node, |place| {
            union.upper()?.rename(from.entry(), to.entry(), from.below, RenameFlags::empty())?;
            self.record(place, ino)
        })?;
        removed.settle_links(union);
        Ok(())
    }

    fn over_directory(&self, ino: u64, target: &Found) -> Result<()> {
        let (union, from, to) = (self.union, self.from, self.to);
        let removed = union.node_looked_at(to.parent, to.name, target)?;
        union.check_judged(to.parent, to.name, Some(&removed), 1)?;
        if from.parent.is_below(&removed) {
            return Err(FsError::NotEmpty); // what is to be moved lies in it
        }
        let part = union.dir_part(&removed)?;
        let _victim_names = part.names.write();
        union.check_empty(&removed)?;
        let pinned = union.pin_dir(part)?;
        let mut cleared = Cleared::Nothing;
        if part.upper_dir().is_some() {
            cleared = self.clear_markers(&removed, part)?;
        } else if union.in_upper_dir(to.parent, &to.fd, to.name)? == InUpper::Whiteout {
            return Err(FsError::Stale);
        }
        let (mut removed_place, mut place) = both_places(&removed, self.source.node);
        let upper = union.upper()?;
        let rename = || upper.rename(from.entry(), to.entry(), from.below, RenameFlags::empty());
        if let Err(e) = removed.lose_last_name(rename) {
            // What the directory hid must stay hidden: it is known as one that merges with what is below.
            if let Err(undo) = cleared.undo() {
                log::error!("{}: replaced by an empty directory: {undo}", String::from_utf8_lossy(to.name));
            }
            return Err(e);
        }
        drop(cleared);
        self.check_moved()?;
        union.mark_removed(&removed, part, &mut removed_place, pinned);
        self.record(&mut place, ino)
    }

    /// Exchanges a directory that is about to be replaced for an empty opaque one, which shows the same. The directory
    /// shows nothing, but in the upper it may hold whiteouts, and then rename would refuse.
    fn clear_markers(&self, node: &Node, part: &DirPart) -> Result<Cleared<'_>> {
        let union = self.union;
        let has_markers = part.index.lock().upper.as_ref().is_some_and(|u| u.iter().next().is_some())
            || part.upper_dir().and_then(|d| d.forms()).is_some_and(|f| f.aufs_opaque || f.aufs_whiteouts);
        if !has_markers {
            return Ok(Cleared::Nothing);
        }
        let upper = union.upper()?;
        let real = part.upper_dir().ok_or(FsError::Stale)?;
        let old = union.upper_fd(&real)?;
        if !upper.caps().rename_exchange {
            let index = union.with_listing(node, || union.indexed(node))?;
            let hidden = index.upper.iter().flat_map(|upper| upper.iter());
            let hidden = hidden.map(|(name, _)| name.to_vec()).collect();
            drop(index);
            let emptied = upper.empty_of_markers((&self.to.fd, self.to.name), old, hidden)?;
            return Ok(Cleared::InPlace(emptied));
        }
        let staged = upper.stage_in_any_case(New::Directory)?;
        let stat = old.itself().at().stat()?;
        copy_metadata(old.itself().at(), &stat, staged.object(), union.belief)?;
        upper.make_opaque(staged.object())?;
        set_times(&stat, staged.object())?;
        staged.swap(&self.to.fd, self.to.name, Present::Directory(&real)).map(Cleared::Away)
    }

    /// Moves back what had the name at the moment of the rename, if it was another.
    fn check_moved(&self) -> Result<()> {
        let (from, to) = (self.from, self.to);
        self.union.check_moved(self.source.node, from.entry(), to.entry(), to.below).inspect_err(|_| {
            // What is there now is looked at anew.
            for dir in [from, to].into_iter().filter_map(|side| side.parent.dir.as_ref()) {
                dir.index.lock().upper = None;
            }
        })
    }

    /// Records that the source, of that number in the upper, is under its new name.
    fn record(&self, place: &mut NodePlace, ino: u64) -> Result<()> {
        let (union, from, source) = (self.union, self.from, self.source.node);
        self.settle_at(source, place, from, self.to)?;
        union.told_dirs.forget(from.parent, from.name);
        union.note_removed(union.dir_part(from.parent)?, from.name, from.below);
        self.note_entry((source, ino), self.to)?;
        union.counters.renames.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn settle_at(
        &self,
        node: &Arc<Node>,
        place: &mut NodePlace,
        from: &Side<'_>,
        to: &Side<'_>,
    ) -> Result<()> {
        let union = self.union;
        node.names.changed();
        if node.dir.is_none() {
            union.forget_name(node, from.parent, from.name);
            union.forget_name(node, to.parent, to.name);
            if let NodePlace::Named { parent, entry } = &*place {
                // One of its other names moves: the one in its place stays known.
                if !(Arc::ptr_eq(parent, from.parent) && entry.name() == from.name) {
                    union.push_name(node, parent, entry.name(), entry.source());
                }
            }
        }
        *place =
            NodePlace::Named { parent: to.parent.clone(), entry: Named::new(to.name, NodeSource::Upper) };
        // Whatever it is that the name means now, the directory that it meant has left it.
        union.told_dirs.forget(to.parent, to.name);
        if let Some(part) = &node.dir {
            union.told_dirs.tell(to.parent, to.name, node.real());
            let real = part.upper_dir().ok_or(FsError::Stale)?;
            let parent = union.dir_part(to.parent)?.upper_dir().ok_or(FsError::Stale)?;
            real.moved(&parent, to.name);
        }
        Ok(())
    }

    /// Notes in the index of a directory what has the new name there.
    fn note_entry(&self, (node, ino): (&Node, u64), to: &Side<'_>) -> Result<()> {
        let entry = UpperEntry::known(node.kind, ino);
        self.union.note_upper(self.union.dir_part(to.parent)?, to.name, Some(entry));
        Ok(())
    }
}
