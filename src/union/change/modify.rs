//! Changes of names: create, link, unlink, rmdir. Renames are in [`crate::union::change::rename`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Kind, Stat};
use crate::union::change::removed_entry::RemovedEntry;
use crate::union::change::staged::{New, Publish};
use crate::union::change::upper::{Present, UpperFd};
use crate::union::events::EventKind as Event;
use crate::union::lookup::found::FoundKind;
use crate::union::lookup::index::UpperEntry;
use crate::union::lookup::marker::WH_PREFIX;
use crate::union::lookup::realdir::RealDir;
use crate::union::lookup::veil::check_unveiled;
use crate::union::nodes::node::{DirPart, Identity, Named, NewNode, Node, NodePlace, NodeSource};
use crate::union::nodes::pins::Pinned;
use crate::union::view::attr::Attr;
use crate::union::view::override_stat::Override;
use crate::union::{Caller, Union, view::acl};

/// What the upper's directory has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::union) enum InUpper {
    /// Nothing.
    Free,
    /// A whiteout (a device 0:0; AUFS's form takes no room and counts as free).
    Whiteout,
    /// An entry.
    Present(Kind),
}

/// A new entry, asked for.
#[derive(Debug, Clone, Copy)]
pub struct Create<'a> {
    /// What is made.
    pub new: New<'a>,
    /// The permission bits that the program asked for.
    pub mode: u32,
    /// The program's umask.
    pub umask: u32,
    /// Who asks, and so whom it belongs to.
    pub caller: Caller,
}

impl Create<'_> {
    fn kind(&self) -> Kind {
        match self.new {
            New::File => Kind::File,
            New::Directory => Kind::Directory,
            New::Symlink(_) => Kind::Symlink,
            New::Special(kind, _) => kind,
        }
    }
}

impl Union {
    /// Makes a new entry. The node counts one lookup. A regular file comes open.
    pub fn create(&self, parent: &Arc<Node>, name: &[u8], create: Create<'_>) -> Result<(Arc<Node>, Attr)> {
        check_name(name)?;
        if matches!(create.new, New::Special(Kind::CharDevice, 0)) {
            return Err(FsError::MarkerDevice);
        }
        self.upper()?;
        self.ensure_upper(parent)?;
        let dir = self.dir_part(parent)?;
        let _names = dir.names.write();
        self.check_alive(dir)?;
        let real = dir.upper_dir().ok_or(FsError::Stale)?;
        let fd = self.upper_fd(&real)?;
        let (below, state) = self.check_free(parent, &fd, name)?;
        let over_below = below && create.kind() == Kind::Directory;
        let in_place = state == InUpper::Free && !over_below;
        let (file, stat) = match self.create_in_place(parent, &fd, name, create, in_place)? {
            Some(done) => done,
            None => self.create_staged(parent, &fd, name, create, state, over_below)?,
        };
        self.note_upper(dir, name, Some(UpperEntry::known(stat.kind(), stat.ino)));
        let id = self.id_in(&real, &stat);
        let made = file.as_ref().map_or(At::Name(fd.fd(), name), |file| At::Fd(file.as_fd()));
        let seen = self.see(made, &stat);
        let node = self.table.obtain(Identity { origin: id, real: id }, seen, 1, || NewNode {
            kind: stat.kind(),
            place: NodePlace::Named { parent: parent.clone(), entry: Named::new(name, NodeSource::Upper) },
            dir: (stat.kind() == Kind::Directory).then(|| {
                let made = RealDir::child(&real, name, &stat, seen.generation());
                Box::new(DirPart::new(Some(made), Vec::new()))
            }),
        });
        if node.dir.is_some() {
            self.told_dirs.tell(parent, name, node.real());
        }
        if let Some(file) = file {
            self.keep_data_fd(&node, file);
        }
        self.counters.creates.fetch_add(1, Ordering::Relaxed);
        self.events.tell(|| Event::Create { path: self.path_in(parent, name), kind: stat.kind().into() });
        let attr = self.attr(&node, stat);
        Ok((node, attr))
    }

    /// Makes a regular file without a name (O_TMPFILE), to be linked later or never. The node counts one lookup.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the upper's filesystem has no such files.
    pub fn create_unnamed(&self, parent: &Arc<Node>, create: Create<'_>) -> Result<(Arc<Node>, Attr)> {
        let upper = self.upper()?;
        if !upper.caps().tmpfile {
            return Err(FsError::Unsupported("O_TMPFILE on the upper's filesystem"));
        }
        self.ensure_upper(parent)?;
        let dir = self.dir_part(parent)?;
        let _names = dir.names.read();
        self.check_alive(dir)?;
        let fd = self.upper_fd(&dir.upper_dir().ok_or(FsError::Stale)?)?;
        let file = upper.unnamed_file()?;
        let pin = self.pins.hold(At::Fd(file.as_fd()).pin()?.into())?;
        self.apply_creation_attributes(parent, &fd, upper.own_file(file.as_fd()), create)?;
        let stat = self.kept_stat(At::Fd(file.as_fd()), true)?;
        let id = self.upper_id(&stat);
        let seen = self.see(At::Fd(file.as_fd()), &stat);
        let node = self.table.obtain(Identity { origin: id, real: id }, seen, 1, || NewNode {
            kind: Kind::File,
            place: NodePlace::Pinned { fd: pin, upper: true },
            dir: None,
        });
        self.deferred.defer(node.ino);
        self.keep_data_fd(&node, file);
        let attr = self.attr(&node, stat);
        Ok((node, attr))
    }

    /// The name must be free in the merged view. Tells whether the lowers show it (below a whiteout), and what the
    /// upper has.
    fn check_free(&self, parent: &Node, fd: &UpperFd, name: &[u8]) -> Result<(bool, InUpper)> {
        let below = self.lower_shows(parent, name)?;
        let state = self.in_upper_dir(parent, fd, name)?;
        match state {
            InUpper::Present(_) => Err(FsError::Exists),
            InUpper::Free if below && !self.aufs_hidden(parent, fd, name)? => Err(FsError::Exists),
            InUpper::Free | InUpper::Whiteout => Ok((below, state)),
        }
    }

    /// What the upper's directory has under the name; by the index where there is one.
    pub(in crate::union) fn in_upper_dir(&self, parent: &Node, fd: &UpperFd, name: &[u8]) -> Result<InUpper> {
        let dir = self.dir_part(parent)?;
        if let Some(index) = &dir.index.lock().upper {
            return Ok(match index.get(name) {
                None => InUpper::Free,
                Some(UpperEntry { kind: Some(kind), .. }) => InUpper::Present(*kind),
                Some(UpperEntry { cuts: true, ino: 0, .. }) => InUpper::Free,
                Some(UpperEntry { .. }) => InUpper::Whiteout,
            });
        }
        match fd.entry(name).stat() {
            Err(Errno::NOENT) => Ok(InUpper::Free),
            Err(e) => Err(e.into()),
            Ok(stat) if stat.is_whiteout_device() => Ok(InUpper::Whiteout),
            Ok(stat) => Ok(InUpper::Present(stat.kind())),
        }
    }

    /// Does the upper hide the name by a whiteout of AUFS's form?
    fn aufs_hidden(&self, parent: &Node, fd: &UpperFd, name: &[u8]) -> Result<bool> {
        let dir = self.dir_part(parent)?;
        if let Some(index) = &dir.index.lock().upper {
            return Ok(index.get(name).is_some_and(|e| e.cuts));
        }
        let marker = [WH_PREFIX, name].concat();
        match fd.entry(&marker).stat() {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The quick way: right under its name, in one step, where the daemon's credentials are the caller's, so that there
    /// is no moment with other rights, and the kernel applies the default ACL and the directory's group.
    fn create_in_place(
        &self,
        parent: &Node,
        fd: &UpperFd,
        name: &[u8],
        create: Create<'_>,
        free: bool,
    ) -> Result<Option<(Option<OwnedFd>, Stat)>> {
        let inherits = self.upper()?.caps().inherits_group;
        if !free || !inherits || !self.is_own_caller(create.caller) || create.mode & 0o6000 != 0 {
            return Ok(None);
        }
        let mode = if matches!(create.new, New::Symlink(_)) || self.has_default_acl(parent)? {
            create.mode
        } else {
            create.mode & !create.umask
        };
        let made = self.upper()?.make_in_place(fd, name, create.new, mode & 0o7777);
        match made {
            Ok(file) => {
                let stat = match &file {
                    Some(file) => At::Fd(file.as_fd()).stat(),
                    None => fd.entry(name).stat(),
                };
                match stat {
                    Ok(stat) => Ok(Some((file, stat))),
                    Err(e) => {
                        self.take_back(parent, fd, name, (create.kind(), InUpper::Free));
                        Err(e.into())
                    }
                }
            }
            Err(Errno::EXIST) => Err(FsError::Exists),
            Err(e) => Err(e.into()),
        }
    }

    /// The full way: made in the staging directory with owner, mode and ACL, then published.
    fn create_staged(
        &self,
        parent: &Node,
        fd: &UpperFd,
        name: &[u8],
        create: Create<'_>,
        state: InUpper,
        opaque: bool,
    ) -> Result<(Option<OwnedFd>, Stat)> {
        let upper = self.upper()?;
        if state == InUpper::Whiteout {
            self.check_whiteout(parent, fd, name)?;
        }
        let mut staged = upper.stage(self.owners.placeholder(create.new))?;
        self.apply_creation_attributes(parent, fd, staged.object(), create)?;
        if opaque {
            upper.make_opaque(staged.place())?;
        }
        let stat = self.kept_stat(staged.object().at(), true)?;
        let file = staged.take_file().filter(|_| stat.kind() == Kind::File);
        let how = match state {
            InUpper::Whiteout if create.kind() == Kind::Directory => Publish::Swap(Present::Leaf),
            InUpper::Whiteout => Publish::Replace,
            _ => Publish::New,
        };
        staged.publish(fd, name, how)?;
        Ok((file, stat))
    }

    /// Gives a new object in the staging directory its owner, mode and ACLs, as if it had been made in its directory by
    /// the caller.
    pub(in crate::union) fn apply_creation_attributes(
        &self,
        parent: &Node,
        fd: &UpperFd,
        object: crate::sys::object::Writable<'_>,
        create: Create<'_>,
    ) -> Result<()> {
        let directory = create.kind() == Kind::Directory;
        let parent_stat = self.kept_stat(fd.itself().at(), true)?;
        let setgid = parent_stat.mode & 0o2000 != 0;
        let owner = self.owners.creator(create.caller);
        let inherited = match create.new {
            New::Symlink(_) => None,
            _ => self.inherited(parent, create.mode)?,
        };
        let mut mode = inherited.as_ref().map_or(create.mode & !create.umask, |i| i.mode);
        if setgid && directory {
            mode |= 0o2000;
        }
        let new = Override {
            uid: owner.uid,
            gid: if setgid { parent_stat.gid } else { owner.gid },
            mode: mode & 0o7777,
            kind: Some(create.kind()),
            rdev: if let New::Special(_, rdev) = create.new { rdev } else { 0 },
        };
        self.owners.give_owner(object, &new)?;
        self.owners.give_mode(object, &new)?;
        if let Some(inherited) = &inherited {
            acl::apply(inherited, object, directory)?;
        }
        Ok(())
    }

    /// One more name for a file. The node counts one lookup.
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
        let stat = self.with_upper(node, |object, writable| {
            match state {
                InUpper::Whiteout => self
                    .check_whiteout(parent, &fd, name)
                    .and_then(|()| upper.link_over(writable, &fd, name))?,
                _ => upper.link(writable, &fd, name)?,
            }
            Ok(self.kept_stat(object.at(), true))
        })?;
        let stat = stat.inspect_err(|_| self.take_back(parent, &fd, name, (node.kind, state)))?;
        self.note_upper(dir, name, Some(UpperEntry::known(node.kind, stat.ino)));
        node.names.changed();
        self.table.look_up_again(node);
        self.name_if_pinned(node, parent, name);
        self.remember_name(node, parent, name, NodeSource::Upper);
        self.events
            .tell(|| Event::Link { path: self.path_in(parent, name), from: self.path_of(node).into() });
        Ok(self.attr(node, stat))
    }

    /// Takes an entry away again of which nothing could be found out after it was made, so that who asked for it is told
    /// an error and nothing is there. `before`: what the upper had.
    fn take_back(&self, parent: &Node, fd: &UpperFd, name: &[u8], (kind, before): (Kind, InUpper)) {
        let made = if kind == Kind::Directory { Present::Empty } else { Present::Leaf };
        let taken = self.upper().and_then(|upper| match before {
            InUpper::Whiteout => upper.whiteout(fd, name, Some(made)),
            InUpper::Free | InUpper::Present(_) => upper.remove(fd, name, made),
        });
        if let Err(e) = taken {
            log::error!("{}: made, but not told to who asked for it: {e}", String::from_utf8_lossy(name));
            if let Some(dir) = &parent.dir {
                dir.index.lock().upper = None; // read anew when it is asked
            }
        }
    }

    /// A node without a known name has this one now.
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
        let dir = self.dir_part(parent)?;
        let _names = dir.names.write();
        let found = self.resolve(parent, name)?.ok_or(FsError::Absent)?;
        if let FoundKind::Directory { .. } = found.what {
            return Err(FsError::IsADirectory);
        }
        let fd = self.upper_fd(&dir.upper_dir().ok_or(FsError::Stale)?)?;
        let origin = self.origin_of(parent, name, &found)?;
        let _hardlinks = self.has_hardlinks(parent, &found).then(|| self.hardlink_locks.exclusive(origin));
        let removed = RemovedEntry::of(self, parent, &fd, name, &found, origin)?;
        let below = self.lower_shows(parent, name)?;
        removed.lose_name(self, parent, name, || {
            let upper = self.upper()?;
            match (below, removed.present, removed.hidden) {
                (true, None, Some(count)) => upper.hide_link(&fd, name, removed.identity.real, count),
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
        match (below, present) {
            (true, present) => upper.whiteout(&fd, name, present)?,
            (false, Some(kind)) => upper.remove(&fd, name, kind)?,
            (false, None) => return Err(FsError::Stale),
        }
        self.mark_removed(node, part, &mut place, pinned);
        self.told_dirs.forget(parent, name);
        self.note_removed(dir, name, below);
        self.tell_removed(parent, name, Kind::Directory, below);
        Ok(())
    }

    /// A descriptor that keeps a directory reachable once its name is gone.
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

    /// Does the directory show nothing? The caller holds its names.
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

    /// A removed directory takes no new entries.
    pub(in crate::union) fn check_alive(&self, dir: &DirPart) -> Result<()> {
        if dir.removed.load(Ordering::Relaxed) { Err(FsError::Absent) } else { Ok(()) }
    }

    /// Keeps the index of the upper true after a change.
    pub(in crate::union) fn note_upper(&self, dir: &DirPart, name: &[u8], entry: Option<UpperEntry>) {
        if let Some(index) = &mut dir.index.lock().upper {
            match entry {
                // A whiteout of AUFS's form stays beside a new entry and goes on hiding what is below.
                Some(entry) => {
                    let cuts = entry.cuts || index.get(name).is_some_and(|known| known.cuts);
                    index.insert(name, UpperEntry { cuts, ..entry });
                }
                None => index.remove(name),
            }
        }
    }

    /// As [`Union::note_upper`], after a name was removed.
    pub(in crate::union) fn note_removed(&self, dir: &DirPart, name: &[u8], whiteout: bool) {
        let form = self.upper.as_ref().filter(|_| whiteout).map(|upper| upper.caps().whiteout);
        let entry = form.map(UpperEntry::whiteout);
        if whiteout {
            self.counters.whiteouts.fetch_add(1, Ordering::Relaxed);
        }
        self.note_upper(dir, name, entry);
    }
}

/// A name that may be made through the mount.
pub(in crate::union) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > 255 {
        return Err(FsError::Os(Errno::NAMETOOLONG));
    }
    if name.is_empty() || name.contains(&b'/') || name == b"." || name == b".." {
        return Err(FsError::Invalid("not a name"));
    }
    if name.starts_with(WH_PREFIX) {
        return Err(FsError::MarkerName);
    }
    Ok(())
}
