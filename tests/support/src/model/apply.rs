//! What each operation does: the result or the errno that Linux gives on a filesystem without oddities.
//!
//! The order of checks is that of the kernel's VFS (fs/namei.c), as far as two errors can meet in one call.

use rustix::io::Errno;

use super::op::{Allocate, Name, Op, Outcome, Path, Rename};
use super::tree::{Id, Inode, Model, Node, Place};
use crate::Time;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;
/// The umask that [`super::execute::Executor`] sets.
pub const UMASK: u32 = 0o022;

/// Why an operation did nothing.
enum Stop {
    Errno(Errno),
    Skip,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Stop::Errno(errno)
    }
}

impl Model {
    /// Performs an operation.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        match self.perform(op) {
            Ok(outcome) => outcome,
            Err(Stop::Errno(errno)) => Outcome::Failed(errno),
            Err(Stop::Skip) => Outcome::Skipped,
        }
    }

    fn perform(&mut self, op: &Op) -> Result<Outcome, Stop> {
        match op {
            Op::Create { path, mode, exclusive } => self.create(path, *mode, *exclusive)?,
            Op::Write { path, offset, fill, length, truncate, append } => {
                let id = self.open_for_writing(path)?;
                if *truncate {
                    self.set_length(id, 0, true);
                }
                let offset = if *append { self.bytes(id).len() } else { *offset };
                self.write(id, offset, *fill, *length);
            }
            Op::Truncate { path, length } => self.truncate(path, *length)?,
            Op::Fallocate { path, how, offset, length } => {
                let id = self.open_for_writing(path)?;
                self.allocate(id, *how, *offset, *length)?;
            }
            Op::CopyRange { from, to, offset, length } => self.copy_range(from, to, *offset, *length)?,
            Op::Mkdir { path, mode } => {
                let place = self.vacant(path)?;
                let setgid = self.inodes[place.parent].mode & SETGID;
                self.make(place, Node::Directory(Default::default()), mode & !UMASK | setgid);
            }
            Op::Mkfifo { path, mode } => {
                let place = self.vacant(path)?;
                self.make(place, Node::Fifo, mode & !UMASK);
            }
            Op::Symlink { target, path } => {
                let place = self.vacant(path)?;
                self.make(place, Node::Symlink(target.0.join(&b'/')), 0o777);
            }
            Op::Link { from, to } => self.link(from, to)?,
            Op::Rmdir { path } => self.rmdir(path)?,
            Op::Unlink { path } => self.unlink(path)?,
            Op::Rename { from, to, how } => self.rename(from, to, *how)?,
            Op::Chmod { path, mode } => {
                let id = self.resolve(path, true)?;
                self.inodes[id].mode = *mode;
            }
            Op::Chown { path, uid, gid } => {
                let id = self.resolve(path, false)?;
                self.inodes[id].owner = (*uid, *gid);
                if !self.is_directory(id) {
                    self.drop_privilege_bits(id);
                }
            }
            Op::SetXattr { path, name, value } => {
                let id = self.resolve(path, true)?;
                self.xattr_allowed(id)?;
                self.inodes[id].xattrs.insert(name.as_bytes().to_vec(), vec![*value]);
            }
            Op::RemoveXattr { path, name } => {
                let id = self.resolve(path, true)?;
                self.xattr_allowed(id)?;
                self.inodes[id].xattrs.remove(name.as_bytes()).ok_or(Errno::NODATA)?;
            }
            Op::SetMtime { path, seconds } => {
                let id = self.resolve(path, false)?;
                self.inodes[id].mtime = Time::At(*seconds, 7);
            }
            Op::Open { .. }
            | Op::WriteOpen { .. }
            | Op::TruncateOpen { .. }
            | Op::ChmodOpen { .. }
            | Op::ReadOpen { .. }
            | Op::Close { .. } => return self.perform_on_slot(op),
        }
        Ok(Outcome::Done)
    }

    fn perform_on_slot(&mut self, op: &Op) -> Result<Outcome, Stop> {
        match op {
            Op::Open { slot, path, write } => {
                let id = self.resolve(path, false)?;
                match self.inodes[id].node {
                    Node::File(_) => {}
                    Node::Symlink(_) => return Err(Errno::LOOP.into()),
                    Node::Directory(_) if *write => return Err(Errno::ISDIR.into()),
                    Node::Directory(_) | Node::Fifo => return Err(Stop::Skip),
                }
                self.slots.insert(*slot, (id, *write));
            }
            Op::WriteOpen { slot, offset, fill, length } => {
                let id = self.slot(*slot, true)?;
                self.write(id, *offset, *fill, *length);
            }
            Op::TruncateOpen { slot, length } => {
                let id = self.slot(*slot, true)?;
                self.set_length(id, *length, false);
            }
            Op::ChmodOpen { slot, mode } => {
                let id = self.slot(*slot, false)?;
                self.inodes[id].mode = *mode;
            }
            Op::ReadOpen { slot } => {
                let id = self.slot(*slot, false)?;
                let Inode { mode, nlink, .. } = self.inodes[id];
                return Ok(Outcome::Open { content: self.bytes(id).clone(), mode, nlink });
            }
            Op::Close { slot } => {
                self.slots.remove(slot).ok_or(Stop::Skip)?;
            }
            _ => unreachable!("not an operation on a slot: {op:?}"),
        }
        Ok(Outcome::Done)
    }

    fn slot(&self, slot: u8, write: bool) -> Result<Id, Stop> {
        match self.slots.get(&slot) {
            Some((id, writable)) if *writable || !write => Ok(*id),
            _ => Err(Stop::Skip),
        }
    }

    fn bytes(&mut self, id: Id) -> &mut Vec<u8> {
        match &mut self.inodes[id].node {
            Node::File(bytes) => bytes,
            node => panic!("not a file: {node:?}"),
        }
    }

    /// The place of a name that must not exist yet.
    fn vacant(&self, path: &Path) -> Result<Place, Errno> {
        let place = self.place(path, false)?;
        if place.found.is_some() { Err(Errno::EXIST) } else { Ok(place) }
    }

    /// Makes an inode at a vacant place. A setgid directory gives its group.
    fn make(&mut self, place: Place, node: Node, mode: u32) {
        let parent = &self.inodes[place.parent];
        let gid = if parent.mode & SETGID != 0 { parent.owner.1 } else { self.owner.1 };
        let mtime = Time::Since(self.start.0, self.start.1);
        let owner = (self.owner.0, gid);
        let id = self.insert(Inode { node, mode, owner, xattrs: Default::default(), mtime, nlink: 1 });
        self.children_mut(place.parent).insert(place.name, id);
        self.touch(place.parent);
    }

    fn create(&mut self, path: &Path, mode: u32, exclusive: bool) -> Result<(), Stop> {
        let place = self.place(path, false)?;
        let Some(id) = place.found else {
            self.make(place, Node::File(Vec::new()), mode & !UMASK);
            return Ok(());
        };
        if exclusive {
            return Err(Errno::EXIST.into());
        }
        self.writable_file(id)
    }

    fn open_for_writing(&self, path: &Path) -> Result<Id, Stop> {
        let id = self.resolve(path, false)?;
        self.writable_file(id)?;
        Ok(id)
    }

    /// What open(O_WRONLY | O_NOFOLLOW) says of it.
    fn writable_file(&self, id: Id) -> Result<(), Stop> {
        match self.inodes[id].node {
            Node::File(_) => Ok(()),
            Node::Directory(_) => Err(Errno::ISDIR.into()),
            Node::Symlink(_) => Err(Errno::LOOP.into()),
            // Depends on who reads it at the moment.
            Node::Fifo => Err(Stop::Skip),
        }
    }

    fn write(&mut self, id: Id, offset: usize, fill: u8, length: usize) {
        if length == 0 {
            return;
        }
        let bytes = self.bytes(id);
        if bytes.len() < offset + length {
            bytes.resize(offset + length, 0);
        }
        bytes[offset..offset + length].fill(fill);
        self.content_changed(id);
    }

    fn content_changed(&mut self, id: Id) {
        self.touch(id);
        if !self.privileged {
            self.drop_privilege_bits(id);
        }
    }

    /// Clears setuid, and setgid where it gives privilege (not where it once meant mandatory locking).
    fn drop_privilege_bits(&mut self, id: Id) {
        let mode = &mut self.inodes[id].mode;
        *mode &= !SETUID;
        if *mode & GROUP_EXECUTE != 0 {
            *mode &= !SETGID;
        }
    }

    fn set_length(&mut self, id: Id, length: usize, always_touch: bool) {
        let same = self.bytes(id).len() == length;
        self.bytes(id).resize(length, 0);
        self.content_changed(id);
        if same && !always_touch {
            // POSIX leaves it open, and filesystems differ.
            self.inodes[id].mtime = Time::Any;
        }
    }

    fn truncate(&mut self, path: &Path, length: usize) -> Result<(), Stop> {
        let id = self.resolve(path, true)?;
        match self.inodes[id].node {
            Node::File(_) => self.set_length(id, length, false),
            Node::Directory(_) => return Err(Errno::ISDIR.into()),
            _ => return Err(Errno::INVAL.into()),
        }
        Ok(())
    }

    fn allocate(&mut self, id: Id, how: Allocate, offset: usize, length: usize) -> Result<(), Stop> {
        if length == 0 {
            return Err(Errno::INVAL.into());
        }
        let end = offset + length;
        let bytes = self.bytes(id);
        if matches!(how, Allocate::Extend | Allocate::Zero) && bytes.len() < end {
            bytes.resize(end, 0);
        }
        if matches!(how, Allocate::Punch | Allocate::Zero) {
            let size = bytes.len();
            bytes[offset.min(size)..end.min(size)].fill(0);
        }
        self.content_changed(id);
        // Whether a change of allocation alone is a modification is left open.
        self.inodes[id].mtime = Time::Any;
        Ok(())
    }

    fn copy_range(&mut self, from: &Path, to: &Path, offset: usize, length: usize) -> Result<(), Stop> {
        let source = self.resolve(from, false)?;
        match self.inodes[source].node {
            Node::File(_) => {}
            Node::Symlink(_) => return Err(Errno::LOOP.into()),
            Node::Directory(_) | Node::Fifo => return Err(Stop::Skip),
        }
        let target = self.open_for_writing(to)?;
        let available = self.bytes(source).len().min(length);
        if source == target {
            // Ranges that overlap, and a file that grows under the copy: not the point here.
            return Err(Stop::Skip);
        }
        let piece = self.bytes(source)[..available].to_vec();
        if piece.is_empty() {
            return Ok(());
        }
        let bytes = self.bytes(target);
        if bytes.len() < offset + available {
            bytes.resize(offset + available, 0);
        }
        bytes[offset..offset + available].copy_from_slice(&piece);
        self.content_changed(target);
        Ok(())
    }

    fn link(&mut self, from: &Path, to: &Path) -> Result<(), Stop> {
        let id = self.resolve(from, false)?;
        let place = self.vacant(to)?;
        if self.is_directory(id) {
            return Err(Errno::PERM.into());
        }
        self.children_mut(place.parent).insert(place.name, id);
        self.inodes[id].nlink += 1;
        self.touch(place.parent);
        Ok(())
    }

    fn rmdir(&mut self, path: &Path) -> Result<(), Stop> {
        let place = self.place(path, false)?;
        let id = place.found.ok_or(Errno::NOENT)?;
        let children = self.children(id).ok_or(Errno::NOTDIR)?;
        if !children.is_empty() {
            return Err(Errno::NOTEMPTY.into());
        }
        self.forget(place.parent, &place.name);
        Ok(())
    }

    fn unlink(&mut self, path: &Path) -> Result<(), Stop> {
        let place = self.place(path, false)?;
        let id = place.found.ok_or(Errno::NOENT)?;
        if self.is_directory(id) {
            return Err(Errno::ISDIR.into());
        }
        self.forget(place.parent, &place.name);
        Ok(())
    }

    /// Takes a name away.
    fn forget(&mut self, parent: Id, name: &Name) {
        let id = self.children_mut(parent).remove(name).expect("the name is there");
        self.inodes[id].nlink -= 1;
        self.touch(parent);
    }

    fn rename(&mut self, from: &Path, to: &Path, how: Rename) -> Result<(), Stop> {
        // Both parents are resolved before anything else is looked at.
        let old = self.place(from, false)?;
        let new = self.place(to, false)?;
        let id = old.found.ok_or(Errno::NOENT)?;
        match how {
            Rename::NoReplace if new.found.is_some() => return Err(Errno::EXIST.into()),
            Rename::Exchange if new.found.is_none() => return Err(Errno::NOENT.into()),
            _ => {}
        }
        if self.is_directory(id) && self.is_below(new.parent, id) {
            return Err(Errno::INVAL.into());
        }
        if new.found.is_some_and(|target| self.is_directory(target) && self.is_below(old.parent, target)) {
            let errno = if how == Rename::Exchange { Errno::INVAL } else { Errno::NOTEMPTY };
            return Err(errno.into());
        }
        if new.found == Some(id) {
            return Ok(());
        }
        if let (Rename::Exchange, Some(target)) = (how, new.found) {
            self.children_mut(old.parent).insert(old.name, target);
            self.children_mut(new.parent).insert(new.name, id);
        } else {
            if let Some(target) = new.found {
                self.may_replace(id, target)?;
                self.forget(new.parent, &new.name);
            }
            self.children_mut(old.parent).remove(&old.name);
            self.children_mut(new.parent).insert(new.name, id);
        }
        self.touch(old.parent);
        self.touch(new.parent);
        Ok(())
    }

    fn may_replace(&self, id: Id, target: Id) -> Result<(), Errno> {
        match (self.is_directory(id), self.children(target)) {
            (true, None) => Err(Errno::NOTDIR),
            (false, Some(_)) => Err(Errno::ISDIR),
            (true, Some(children)) if !children.is_empty() => Err(Errno::NOTEMPTY),
            _ => Ok(()),
        }
    }

    /// `user.` attributes are for files and directories.
    fn xattr_allowed(&self, id: Id) -> Result<(), Errno> {
        match self.inodes[id].node {
            Node::File(_) | Node::Directory(_) => Ok(()),
            Node::Symlink(_) | Node::Fifo => Err(Errno::PERM),
        }
    }
}
