//! Creating: a new entry, or a file without a name.
//!
//! The quick way makes the entry right under its name, in one step; the full way makes it in the staging directory, gives it
//! what it must have before anybody sees it, and publishes it. What was made and can't be told is taken away again
//! (`MadeEntry`).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Kind, Stat, Writable};
use crate::union::change::made_entry::MadeEntry;
use crate::union::change::names::{InUpper, check_name};
use crate::union::change::staged::{New, Publish};
use crate::union::change::upper::{Present, Upper, UpperFd};
use crate::union::events::EventKind as Event;
use crate::union::lookup::index::UpperEntry;
use crate::union::lookup::realdir::RealDir;
use crate::union::nodes::node::{DirPart, Identity, Named, NewNode, Node, NodePlace, NodeSource};
use crate::union::view::attr::Attr;
use crate::union::view::override_stat::Override;
use crate::union::{Caller, Union, view::acl};

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
        let creation = Creation::begin(self, parent, name, create)?;
        let (file, stat) = match creation.in_place()? {
            Some(done) => done,
            None => creation.staged()?,
        };
        creation.record(file, stat)
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
        let _room = upper.quota().map(|quota| quota.room_for_one()).transpose()?;
        let file = upper.unnamed_file(0o600)?;
        let pin = self.pins.hold(At::Fd(file.as_fd()).pin()?.into())?;
        upper.made_unnamed(file.as_fd());
        self.apply_creation_attributes(parent, &fd, upper.own_file(file.as_fd()), create)?;
        upper.looked_at(At::Fd(file.as_fd()));
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
}

/// A new entry on its way. The names of its directory are locked.
struct Creation<'a> {
    union: &'a Union,
    upper: &'a Upper,
    parent: &'a Arc<Node>,
    dir: &'a DirPart,
    /// The directory of the upper, and a descriptor of it.
    real: Arc<RealDir>,
    fd: UpperFd,
    name: &'a [u8],
    create: Create<'a>,
    /// What the upper has under the name, which the merged view doesn't show.
    before: InUpper,
    /// Whether it is a directory that would show what lowers have.
    over_lower: bool,
}

impl<'a> Creation<'a> {
    /// Looks whether the name is free.
    fn begin(
        union: &'a Union,
        parent: &'a Arc<Node>,
        name: &'a [u8],
        create: Create<'a>,
    ) -> Result<Creation<'a>> {
        let (upper, dir) = (union.upper()?, union.dir_part(parent)?);
        let real = dir.upper_dir().ok_or(FsError::Stale)?;
        let fd = union.upper_fd(&real)?;
        let (below, before) = union.check_free(parent, &fd, name)?;
        let over_lower = below && create.kind() == Kind::Directory;
        Ok(Creation { union, upper, parent, dir, real, fd, name, create, before, over_lower })
    }

    /// Makes it the quick way: right under its name, in one step, where the daemon's credentials are the caller's, so
    /// that there is no moment with other rights, and the kernel applies the default ACL and the directory's group.
    fn in_place(&self) -> Result<Option<(Option<OwnedFd>, Stat)>> {
        let Creation { union, upper, create, .. } = *self;
        let free = self.before == InUpper::Free && !self.over_lower;
        let inherits = upper.caps().inherits_group;
        if !free || !inherits || !union.is_own_caller(create.caller) || create.mode & 0o6000 != 0 {
            return Ok(None);
        }
        let as_asked = matches!(create.new, New::Symlink(_)) || union.has_default_acl(self.parent)?;
        let mode = if as_asked { create.mode } else { create.mode & !create.umask };
        let file = match upper.make_in_place(&self.fd, self.name, create.new, mode & 0o7777) {
            Err(Errno::EXIST) => return Err(FsError::Exists),
            made => made?,
        };
        let made = (create.kind(), InUpper::Free);
        let made = MadeEntry::new(union, self.parent, &self.fd, self.name, made);
        let stat = match &file {
            Some(file) => At::Fd(file.as_fd()).stat()?,
            None => self.fd.entry(self.name).stat()?,
        };
        made.stays();
        Ok(Some((file, stat)))
    }

    /// Makes it the full way: in the staging directory with owner, mode and ACL; then publishes it.
    fn staged(&self) -> Result<(Option<OwnedFd>, Stat)> {
        let Creation { union, upper, create, .. } = *self;
        if self.before == InUpper::Whiteout {
            union.check_whiteout(self.parent, &self.fd, self.name)?;
        }
        let mut staged = upper.stage(union.owners.placeholder(create.new))?;
        union.apply_creation_attributes(self.parent, &self.fd, staged.object(), create)?;
        if self.over_lower {
            upper.make_opaque(staged.place())?;
        }
        let file = staged.take_file();
        let how = match self.before {
            InUpper::Whiteout if create.kind() == Kind::Directory => Publish::Swap(Present::Leaf),
            InUpper::Whiteout => Publish::Replace,
            _ => Publish::New,
        };
        staged.publish(&self.fd, self.name, how)?;
        let made = MadeEntry::new(union, self.parent, &self.fd, self.name, (create.kind(), self.before));
        // Only now: publishing sets the time of the last change.
        let stat = match &file {
            Some(file) => union.kept_stat(At::Fd(file.as_fd()), true)?,
            None => union.kept_stat(self.fd.entry(self.name), true)?,
        };
        made.stays();
        Ok((file.filter(|_| stat.kind() == Kind::File), stat))
    }

    /// Gives what was made its node.
    fn record(self, file: Option<OwnedFd>, stat: Stat) -> Result<(Arc<Node>, Attr)> {
        let Creation { union, parent, name, real, fd, .. } = self;
        union.note_upper(self.dir, name, Some(UpperEntry::known(stat.kind(), stat.ino)));
        let id = union.id_in(&real, &stat);
        let made = file.as_ref().map_or(At::Name(fd.fd(), name), |file| At::Fd(file.as_fd()));
        let seen = union.see(made, &stat);
        let node = union.table.obtain(Identity { origin: id, real: id }, seen, 1, || NewNode {
            kind: stat.kind(),
            place: NodePlace::Named { parent: parent.clone(), entry: Named::new(name, NodeSource::Upper) },
            dir: (stat.kind() == Kind::Directory).then(|| {
                let made = RealDir::child(&real, name, &stat, seen.generation());
                Box::new(DirPart::new(Some(made), Vec::new()))
            }),
        });
        if node.dir.is_some() {
            union.told_dirs.tell(parent, name, node.real());
            drop(union.watch(&node));
        }
        if let Some(file) = file {
            union.keep_data_fd(&node, file);
        }
        union.counters.creates.fetch_add(1, Ordering::Relaxed);
        union.events.tell(|| Event::Create { path: union.path_in(parent, name), kind: stat.kind().into() });
        let attr = union.attr(&node, stat);
        Ok((node, attr))
    }
}

impl Union {
    /// Gives a new object in the staging directory its owner, mode and ACLs, as if it had been made in its directory by
    /// the caller.
    fn apply_creation_attributes(
        &self,
        parent: &Node,
        fd: &UpperFd,
        object: Writable<'_>,
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
        let made = object.at().stat()?;
        self.owners.give_owner((object, &made), &new)?;
        self.owners.give_mode((object, &made), &new)?;
        if let Some(inherited) = &inherited {
            acl::apply(inherited, object, directory)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::bed::{Bed, look_up};

    /// Makes a lower with a directory that holds a file, and a file.
    fn bed() -> Bed {
        let bed = Bed::new(1);
        bed.file("0/d/below").file("0/f");
        bed
    }

    fn create(union: &Union, name: &[u8], new: New<'_>) -> Result<(Arc<Node>, Attr)> {
        union.create(union.root(), name, Create { new, mode: 0o640, umask: 0o022, caller: union.own })
    }

    #[test]
    fn what_lowers_have_is_there_until_it_is_deleted_and_does_not_come_back() {
        let bed = bed();
        let union = bed.open();
        for name in [&b"f"[..], b"d"] {
            assert_eq!(create(&union, name, New::File).map(drop), Err(FsError::Exists));
        }
        union.unlink(union.root(), b"f").unwrap();
        let (f, attr) = create(&union, b"f", New::File).unwrap();
        assert_eq!((attr.stat.size, attr.stat.mode & 0o7777), (0, 0o640));
        union.forget(f.ino, 1);
        // A directory in place of a deleted one shows nothing of it.
        let d = look_up(&union, "d").unwrap();
        union.unlink(&d, b"below").unwrap();
        union.rmdir(union.root(), b"d").unwrap();
        let (new, _) = create(&union, b"d", New::Directory).unwrap();
        assert!(union.lookup(&new, b"below").unwrap().is_none());
        assert_eq!(create(&union, b"d", New::Directory).map(drop), Err(FsError::Exists));
    }

    /// Goes the way of a rename, which changes ctime: what is made is published by one where the daemon's credentials
    /// are not the caller's.
    #[test]
    fn what_is_told_of_a_new_entry_is_what_it_is() {
        let bed = bed();
        let union = bed.open();
        let own = union.own;
        union.unlink(union.root(), b"f").unwrap();
        for new in [New::File, New::Directory, New::Symlink(b"x"), New::Special(Kind::Fifo, 0)] {
            // A setgid bit that is asked for goes the same way.
            for name in [&b"new"[..], b"f"] {
                let create = Create { new, mode: 0o2755, umask: 0, caller: own };
                let (node, made) = union.create(union.root(), name, create).unwrap();
                let told = (made.ino, made.stat);
                let is = union.getattr(&node).map(|is| (is.ino, is.stat)).unwrap();
                assert_eq!(told, is, "{new:?} {}", name.escape_ascii());
                drop(node);
                match new {
                    New::Directory => union.rmdir(union.root(), name).unwrap(),
                    _ => union.unlink(union.root(), name).unwrap(),
                }
            }
        }
    }

    #[test]
    fn markers_cannot_be_made() {
        let bed = bed();
        let union = bed.open();
        assert_eq!(create(&union, b".wh.f", New::File).map(drop), Err(FsError::MarkerName));
        let whiteout = New::Special(Kind::CharDevice, 0);
        assert_eq!(create(&union, b"w", whiteout).map(drop), Err(FsError::MarkerDevice));
        assert_eq!(bed.names("upper"), [""; 0]);
    }

    #[test]
    fn an_entry_that_does_not_stay_leaves_what_was_before() {
        let bed = bed();
        let union = bed.open();
        union.unlink(union.root(), b"f").unwrap();
        let dir = union.dir_part(union.root()).unwrap();
        let fd = union.upper_fd(&dir.upper_dir().unwrap()).unwrap();
        for (name, before) in [(&b"new"[..], InUpper::Free), (b"f", InUpper::Whiteout)] {
            drop(create(&union, name, New::File).unwrap());
            drop(MadeEntry::new(&union, union.root(), &fd, name, (Kind::File, before)));
            dir.index.lock().upper = None;
            assert!(union.lookup(union.root(), name).unwrap().is_none(), "{}", name.escape_ascii());
            assert_eq!(union.in_upper_dir(union.root(), &fd, name), Ok(before));
        }
    }
}
