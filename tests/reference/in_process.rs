//! Sequences through the library itself: no kernel, no FUSE, no privileges. A small stand-in for the kernel resolves
//! paths, refuses what the kernel refuses before it asks a filesystem, and holds nodes as it does: in half of the cases
//! every node until the end, in the other half none longer than an operation or an open file needs it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, XattrFlags};
use rustix::io::Errno;

use support::model::apply::UMASK;
use support::model::check::{Identities, Sequence};
use support::model::generate::{ALPHABET, Vocabulary, case};
use support::model::harness::{Failure, run_cases_on_all_processors};
use support::model::layer::StackSpec;
use support::model::op::{Allocate, Name, Op, Outcome, Path, Rename};
use support::{Content, Entry, Kind, Layer, Privilege, Scratch, Snapshot, Stack, Time, wait_until};
use unionmount::error::FsError;
use unionmount::sys::object::{Kind as RealKind, SetTime, Time as RealTime};
use unionmount::union::change::create::Create;
use unionmount::union::change::rename::RenameMode;
use unionmount::union::change::staged::New;
use unionmount::union::data::file::Write;
use unionmount::union::live::How;
use unionmount::union::live::layers::{Coming, NamedLayer, Place::Bottom, Restacking};
use unionmount::union::live::snapshot::Freezing;
use unionmount::union::nodes::node::Node;
use unionmount::union::options::FsOptions;
use unionmount::union::quota::Bounds;
use unionmount::union::stack::layer::{LowerSource, Stack as Layers, StackOptions};
use unionmount::union::view::attr::{Attr, SetAttr};
use unionmount::union::view::readdir::Looked;
use unionmount::union::{Caller, Limits, Union};

use crate::memory;

/// How many links a path may lead through (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// What the kernel would do with the union.
struct Vfs {
    union: Union,
    privileged: bool,
    caller: Caller,
    /// Does it keep each node that it was told of?
    keeps: bool,
    /// The nodes whose lookups are to be given back when an operation ends.
    held: Vec<u64>,
    slots: BTreeMap<u8, Arc<Node>>,
}

/// The last component of a path.
struct Place {
    parent: Arc<Node>,
    name: Name,
    found: Option<Arc<Node>>,
}

fn errno(error: FsError) -> Errno {
    error.errno()
}

fn options(stack: &Stack, form: LowerForm) -> StackOptions {
    StackOptions {
        lowers: stack.lowers().iter().enumerate().map(|(at, lower)| form.of(at, lower)).collect(),
        upper: Some(stack.upper().root().to_owned()),
        work: Some(stack.work().to_owned()),
        ..StackOptions::default()
    }
}

impl Vfs {
    fn open(stack: &Stack, form: LowerForm, keeps: bool) -> Vfs {
        let options = options(stack, form);
        // In one of two mounts of an upper, and never reached: what is there is counted.
        let bounds = Bounds { bytes: Some(1 << 50), inodes: Some(1 << 40) };
        let quota = if keeps { bounds } else { Bounds::default() };
        let fs = FsOptions { quota, ..FsOptions::default() };
        let union = Union::with_options(Layers::open(&options).unwrap(), Limits::default(), &fs).unwrap();
        union.count_anew();
        let caller =
            Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        Vfs { union, privileged: caller.uid == 0, caller, keeps, held: Vec::new(), slots: BTreeMap::new() }
    }

    /// Takes a snapshot while all that is known and open stays so.
    fn snapshot(self, stack: &Stack) -> Vfs {
        let Vfs { union, privileged, caller, keeps, held, slots } = self;
        let slots: Vec<(u8, u64)> = slots.into_iter().map(|(slot, node)| (slot, node.ino)).collect();
        let StackOptions { lowers, upper, .. } = options(stack, LowerForm::Directories);
        let mut freezing = Freezing::prepare(&union, &upper.unwrap(), &lowers, None).unwrap();
        let how = How { limits: Limits::default(), options: FsOptions::default() };
        // Their link counts would be others afterwards.
        let taken = match freezing.lacks_names() {
            true => None,
            false => Some(freezing.take(&union, &how)),
        };
        let union = match taken {
            None => {
                freezing.give_up();
                union
            }
            Some(Ok(next)) => {
                // What is known is sorted now, or as it is asked for.
                if slots.len().is_multiple_of(2) {
                    next.settling()();
                }
                next
            }
            Some(Err(why)) => {
                assert!(why.to_string().contains("under a name that was deleted, and has others"), "{why}");
                freezing.give_up();
                union
            }
        };
        let slots = slots.into_iter().map(|(slot, ino)| (slot, union.node(ino).unwrap())).collect();
        Vfs { union, privileged, caller, keeps, held, slots }
    }

    /// Has a layer come below all others that shows nothing which isn't there, or go again, while all that is known and open stays
    /// so. It has the directories that are there and that a lower has: each is made of one more, and keeps its number.
    fn restack(mut self, stack: &Stack, extra: &std::path::Path) -> Vfs {
        let comes = !extra.exists();
        if comes {
            fs::create_dir(extra).unwrap();
            for (path, entry) in &self.observe().entries {
                let in_a_lower = || stack.lowers().iter().any(|lower| lower.root().join(path).is_dir());
                if entry.kind == Kind::Directory && in_a_lower() {
                    fs::create_dir_all(extra.join(path)).unwrap();
                }
            }
            self.forget();
        }
        let Vfs { union, privileged, caller, keeps, held, slots } = self;
        let slots: Vec<(u8, u64)> = slots.into_iter().map(|(slot, node)| (slot, node.ino)).collect();
        let how = How { limits: Limits::default(), options: FsOptions::default() };
        let point = extra.with_file_name("nowhere");
        let restacking = if comes {
            let stat = fs::metadata(extra).unwrap();
            let source = extra.to_owned().into();
            let coming = Coming { source: &source, id: (stat.dev(), stat.ino()), point: &point };
            Restacking::add(&union, coming, &Bottom, &how)
        } else {
            let layer = stack.lowers().len() as u16 + 1;
            let directory = extra.as_os_str().as_bytes().into();
            Restacking::remove(&union, &NamedLayer { layer, directory }, &how)
        };
        let (next, _) = restacking.unwrap().go(&union, &how, None).unwrap();
        drop(union);
        if !comes {
            fs::remove_dir_all(extra).unwrap();
        }
        let slots = slots.into_iter().map(|(slot, ino)| (slot, next.node(ino).unwrap())).collect();
        Vfs { union: next, privileged, caller, keeps, held, slots }
    }

    fn lookup(&mut self, parent: &Arc<Node>, name: &[u8]) -> Result<Option<(Arc<Node>, Attr)>, Errno> {
        let found = self.union.lookup(parent, name).map_err(errno)?;
        if let Some((node, _)) = &found {
            self.held.push(node.ino);
        }
        Ok(found)
    }

    /// Gives the lookups of an operation back.
    fn forget(&mut self) {
        if !self.keeps {
            for ino in self.held.drain(..) {
                self.union.forget(ino, 1);
            }
        }
    }

    /// Closes all, forgets all and unmounts.
    fn end(mut self) {
        for (_, node) in std::mem::take(&mut self.slots) {
            self.held.push(node.ino);
        }
        self.keeps = false;
        self.forget();
        // What waited until all that was known before a snapshot is sorted goes with what is forgotten next.
        self.union.settling()();
        self.union.forget(u64::MAX, 0);
        assert_eq!(self.union.known_nodes(), 1, "nodes that nobody knows any more");
        let exact = || self.union.quota().is_none_or(|quota| quota.is_exact());
        assert!(wait_until(support::PATIENCE, exact), "it was counted anew meanwhile");
        self.union.shut_down();
        let counted = self.union.quota().map(|quota| quota.taken());
        assert_eq!(counted, self.union.measured_upper().unwrap(), "the quota counts what is there");
    }

    fn place(&mut self, path: &Path, follow: bool) -> Result<Place, Errno> {
        let mut parent = self.union.root().clone();
        let mut rest: Vec<Name> = path.0.iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if parent.kind != RealKind::Directory {
                return Err(Errno::NOTDIR);
            }
            let found = self.lookup(&parent, &name)?.map(|(node, _)| node);
            let last = rest.is_empty();
            match found {
                Some(link) if link.kind == RealKind::Symlink && (!last || follow) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = self.union.readlink(&link).map_err(errno)?;
                    let parts = target.rsplit(|&byte| byte == b'/').filter(|part| !part.is_empty());
                    rest.extend(parts.map(<[u8]>::to_vec));
                }
                found if last => return Ok(Place { parent, name, found }),
                Some(node) => parent = node,
                None => return Err(Errno::NOENT),
            }
        }
        panic!("the root has no place");
    }

    fn resolve(&mut self, path: &Path, follow: bool) -> Result<Arc<Node>, Errno> {
        match path.0.is_empty() {
            true => Ok(self.union.root().clone()),
            false => self.place(path, follow)?.found.ok_or(Errno::NOENT),
        }
    }

    fn vacant(&mut self, path: &Path) -> Result<Place, Errno> {
        let place = self.place(path, false)?;
        if place.found.is_some() { Err(Errno::EXIST) } else { Ok(place) }
    }

    fn make(&mut self, place: &Place, new: New<'_>, mode: u32) -> Result<(), Errno> {
        let create = Create { new, mode, umask: UMASK, caller: self.caller };
        let (node, _) = self.union.create(&place.parent, &place.name, create).map_err(errno)?;
        self.held.push(node.ino);
        Ok(())
    }

    /// What open(O_NOFOLLOW) says of it.
    fn open_file(&mut self, node: &Arc<Node>, flags: OFlags) -> Result<(), Errno> {
        match node.kind {
            RealKind::Directory => return Err(Errno::ISDIR),
            RealKind::Symlink => return Err(Errno::LOOP),
            _ => {}
        }
        self.union.open(node, flags, !self.privileged).map_err(errno)
    }

    fn attr(&self, node: &Node) -> Result<Attr, Errno> {
        self.union.getattr(node).map_err(errno)
    }

    fn write(&self, node: &Arc<Node>, offset: u64, fill: u8, length: usize) -> Result<(), Errno> {
        if length == 0 {
            return Ok(());
        }
        // The kernel asks for this where there is something to take away.
        let kill = !self.privileged;
        self.union
            .write(node, offset, &vec![fill; length], Write { kill, ..Write::default() })
            .map(drop)
            .map_err(errno)
    }

    fn set(&self, node: &Arc<Node>, set: SetAttr) -> Result<(), Errno> {
        let kill = set.size.is_some() && !self.privileged;
        self.union.setattr(node, set, kill).map(drop).map_err(errno)
    }

    fn run(&mut self, op: &Op) -> Outcome {
        let outcome = self.perform(op).unwrap_or_else(Outcome::Failed);
        self.forget();
        outcome
    }

    fn perform(&mut self, op: &Op) -> Result<Outcome, Errno> {
        match op {
            Op::Create { .. }
            | Op::Write { .. }
            | Op::Truncate { .. }
            | Op::Fallocate { .. }
            | Op::CopyRange { .. } => self.change_content(op)?,
            Op::Chmod { .. }
            | Op::Chown { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::SetMtime { .. } => self.change_attributes(op)?,
            Op::Open { .. }
            | Op::WriteOpen { .. }
            | Op::TruncateOpen { .. }
            | Op::ChmodOpen { .. }
            | Op::ReadOpen { .. }
            | Op::Close { .. } => return self.use_slot(op),
            _ => self.change_names(op)?,
        }
        Ok(Outcome::Done)
    }

    fn change_content(&mut self, op: &Op) -> Result<(), Errno> {
        match op {
            Op::Create { path, mode, exclusive } => {
                let place = self.place(path, false)?;
                match place.found {
                    None => self.make(&place, New::File, *mode),
                    Some(_) if *exclusive => Err(Errno::EXIST),
                    Some(node) => self.open_file(&node, OFlags::WRONLY),
                }
            }
            Op::Write { path, offset, fill, length, truncate, append } => {
                let node = self.resolve(path, false)?;
                let truncate = if *truncate { OFlags::TRUNC } else { OFlags::empty() };
                self.open_file(&node, OFlags::WRONLY | truncate)?;
                let offset = if *append { self.attr(&node)?.stat.size } else { *offset as u64 };
                self.write(&node, offset, *fill, *length)
            }
            Op::Truncate { path, length } => {
                let node = self.resolve(path, true)?;
                match node.kind {
                    RealKind::File => {
                        self.set(&node, SetAttr { size: Some(*length as u64), ..SetAttr::default() })
                    }
                    RealKind::Directory => Err(Errno::ISDIR),
                    _ => Err(Errno::INVAL),
                }
            }
            Op::Fallocate { path, how, offset, length } => {
                let node = self.resolve(path, false)?;
                self.open_file(&node, OFlags::WRONLY)?;
                if *length == 0 {
                    return Err(Errno::INVAL);
                }
                let mode = match how {
                    Allocate::Extend => FallocateFlags::empty(),
                    Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
                    Allocate::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    Allocate::Zero => FallocateFlags::ZERO_RANGE,
                };
                self.kill_privilege_bits(&node)?;
                self.union.fallocate(&node, mode, (*offset as u64, *length as u64)).map_err(errno)
            }
            Op::CopyRange { from, to, offset, length } => {
                let source = self.resolve(from, false)?;
                self.open_file(&source, OFlags::RDONLY)?;
                let target = self.resolve(to, false)?;
                self.open_file(&target, OFlags::WRONLY)?;
                self.copy_range(&source, &target, *offset as u64, *length)
            }
            _ => unreachable!("no change of content: {op:?}"),
        }
    }

    fn copy_range(
        &self,
        source: &Arc<Node>,
        target: &Arc<Node>,
        offset: u64,
        length: usize,
    ) -> Result<(), Errno> {
        // The kernel asks for no more than there is.
        let available = (self.attr(source)?.stat.size as usize).min(length);
        if available > 0 {
            self.kill_privilege_bits(target)?;
        }
        let mut done = 0;
        while done < available {
            let (at, to) = ((source, done as u64), (target, offset + done as u64));
            match self.union.copy_file_range(at, to, available - done).map_err(errno) {
                Ok(0) => break,
                Ok(copied) => done += copied,
                // As the kernel does then.
                Err(Errno::XDEV) => {
                    let content = self.read(source, available as u64)?;
                    self.union.write(target, offset, &content, Write::default()).map_err(errno)?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// As the kernel has it done by a change of attributes that changes nothing.
    fn kill_privilege_bits(&self, node: &Arc<Node>) -> Result<(), Errno> {
        if self.privileged { Ok(()) } else { self.set(node, SetAttr::default()) }
    }

    fn change_names(&mut self, op: &Op) -> Result<(), Errno> {
        match op {
            Op::Mkdir { path, mode } => {
                let place = self.vacant(path)?;
                self.make(&place, New::Directory, *mode)
            }
            Op::Mkfifo { path, mode } => {
                let place = self.vacant(path)?;
                self.make(&place, New::Special(RealKind::Fifo, 0), *mode)
            }
            Op::Symlink { target, path } => {
                let place = self.vacant(path)?;
                self.make(&place, New::Symlink(&target.0.join(&b'/')), 0o777)
            }
            Op::Link { from, to } => {
                let node = self.resolve(from, false)?;
                let place = self.vacant(to)?;
                if node.kind == RealKind::Directory {
                    return Err(Errno::PERM);
                }
                let attr = self.union.link(&node, &place.parent, &place.name).map_err(errno)?;
                self.held.push(attr.ino);
                Ok(())
            }
            Op::Rmdir { path } => {
                let place = self.place(path, false)?;
                match place.found.ok_or(Errno::NOENT)?.kind {
                    RealKind::Directory => self.union.rmdir(&place.parent, &place.name).map_err(errno),
                    _ => Err(Errno::NOTDIR),
                }
            }
            Op::Unlink { path } => {
                let place = self.place(path, false)?;
                match place.found.ok_or(Errno::NOENT)?.kind {
                    RealKind::Directory => Err(Errno::ISDIR),
                    _ => self.union.unlink(&place.parent, &place.name).map_err(errno),
                }
            }
            Op::Rename { from, to, how } => self.rename(from, to, *how),
            _ => unreachable!("no change of names: {op:?}"),
        }
    }

    /// The order of checks is that of the kernel (fs/namei.c).
    fn rename(&mut self, from: &Path, to: &Path, how: Rename) -> Result<(), Errno> {
        let old = self.place(from, false)?;
        let new = self.place(to, false)?;
        let node = old.found.ok_or(Errno::NOENT)?;
        match (how, &new.found) {
            (Rename::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Rename::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        let directory = |node: &Arc<Node>| node.kind == RealKind::Directory;
        if directory(&node) && new.parent.is_below(&node) {
            return Err(Errno::INVAL);
        }
        if let Some(target) = new.found.as_ref().filter(|target| directory(target))
            && old.parent.is_below(target)
        {
            return Err(if how == Rename::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        if let Some(target) = &new.found {
            if target.ino == node.ino {
                return Ok(());
            }
            match (how, directory(&node), directory(target)) {
                (Rename::Exchange, ..) => {}
                (_, true, false) => return Err(Errno::NOTDIR),
                (_, false, true) => return Err(Errno::ISDIR),
                _ => {}
            }
        }
        let mode = match how {
            Rename::Plain => RenameMode::Replace,
            Rename::NoReplace => RenameMode::NoReplace,
            Rename::Exchange => RenameMode::Exchange,
        };
        self.union.rename((&old.parent, &old.name), (&new.parent, &new.name), mode).map_err(errno)
    }

    fn change_attributes(&mut self, op: &Op) -> Result<(), Errno> {
        let unchanged = SetAttr::default();
        match op {
            Op::Chmod { path, mode } => {
                let node = self.resolve(path, true)?;
                self.set(&node, SetAttr { mode: Some(*mode), ..unchanged })
            }
            Op::Chown { path, uid, gid } => {
                let node = self.resolve(path, false)?;
                self.set(&node, SetAttr { uid: Some(*uid), gid: Some(*gid), ..unchanged })
            }
            Op::SetMtime { path, seconds } => {
                let node = self.resolve(path, false)?;
                let time = Some(SetTime::At(RealTime { sec: *seconds, nsec: 7 }));
                self.set(&node, SetAttr { atime: time, mtime: time, ..unchanged })
            }
            Op::SetXattr { path, name, value } => {
                let node = self.with_user_xattrs(path)?;
                let flags = XattrFlags::empty();
                self.union.setxattr(&node, name.as_bytes(), &[*value], flags).map_err(errno)
            }
            Op::RemoveXattr { path, name } => {
                let node = self.with_user_xattrs(path)?;
                self.union.removexattr(&node, name.as_bytes()).map_err(errno)
            }
            _ => unreachable!("no change of attributes: {op:?}"),
        }
    }

    /// `user.` attributes are for files and directories.
    fn with_user_xattrs(&mut self, path: &Path) -> Result<Arc<Node>, Errno> {
        let node = self.resolve(path, true)?;
        match node.kind {
            RealKind::File | RealKind::Directory => Ok(node),
            _ => Err(Errno::PERM),
        }
    }

    fn use_slot(&mut self, op: &Op) -> Result<Outcome, Errno> {
        match op {
            Op::Open { slot, path, write } => {
                let node = self.resolve(path, false)?;
                self.open_file(&node, if *write { OFlags::RDWR } else { OFlags::RDONLY })?;
                // An open file keeps its node known, by a lookup that is not given back with the others.
                let at = self.held.iter().rposition(|&ino| ino == node.ino).unwrap();
                self.held.remove(at);
                if let Some(before) = self.slots.insert(*slot, node) {
                    self.held.push(before.ino);
                }
            }
            Op::WriteOpen { slot, offset, fill, length } => {
                self.write(&self.slots[slot], *offset as u64, *fill, *length)?;
            }
            Op::TruncateOpen { slot, length } => {
                let size = Some(*length as u64);
                self.set(&self.slots[slot], SetAttr { size, ..SetAttr::default() })?;
            }
            Op::ChmodOpen { slot, mode } => {
                self.set(&self.slots[slot], SetAttr { mode: Some(*mode), ..SetAttr::default() })?;
            }
            Op::ReadOpen { slot } => {
                let node = &self.slots[slot];
                let stat = self.attr(node)?.stat;
                let content = self.read(node, stat.size)?;
                return Ok(Outcome::Open { content, mode: stat.mode & 0o7777, nlink: stat.nlink });
            }
            Op::Close { slot } => {
                let node = self.slots.remove(slot).unwrap();
                self.held.push(node.ino);
            }
            _ => unreachable!("nothing about a slot: {op:?}"),
        }
        Ok(Outcome::Done)
    }

    fn read(&self, node: &Arc<Node>, size: u64) -> Result<Vec<u8>, Errno> {
        let mut content = vec![0; size as usize];
        let mut done = 0;
        while done < content.len() {
            match self.union.read(node, done as u64, &mut content[done..]).map_err(errno)? {
                0 => break,
                count => done += count,
            }
        }
        content.truncate(done);
        Ok(content)
    }

    /// What a walk of the tree finds. Asserts that each listed name resolves, to what the listings say, and that no other
    /// name of the alphabet does.
    fn observe(&mut self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let root = self.union.root().clone();
        let attr = self.attr(&root).unwrap();
        self.visit(&root, &attr, Vec::new(), &mut snapshot);
        self.forget();
        snapshot
    }

    fn visit(&mut self, node: &Arc<Node>, attr: &Attr, path: Vec<u8>, snapshot: &mut Snapshot) {
        let entry = self.entry(node, attr).unwrap_or_else(|error| panic!("{}: {error}", path.escape_ascii()));
        snapshot.entries.insert(OsString::from_vec(path.clone()), entry);
        if node.kind != RealKind::Directory {
            return;
        }
        let mut listed = Vec::new();
        let plain = self.union.readdir(node, 0, |entry| {
            listed.push((entry.name, entry.ino, entry.kind));
            true
        });
        plain.unwrap();
        let mut children = Vec::new();
        let plus = self.union.readdirplus(node, 0, |entry| {
            match &entry.what {
                Looked::Found { node, attr } => children.push((entry.name.to_vec(), node.clone(), *attr)),
                Looked::Unasked { .. } | Looked::Failed { .. } => {
                    panic!("{} can't be examined", entry.name.escape_ascii())
                }
            }
            true
        });
        plus.unwrap();
        self.held.extend(children.iter().map(|(_, child, _)| child.ino));
        for ((name, ino, kind), (plus, child, attr)) in listed.iter().zip(&children) {
            assert_eq!((&name[..], *ino, *kind), (&plus[..], attr.ino, Some(child.kind)), "the two listings");
        }
        assert_eq!(listed.len(), children.len(), "the two listings");
        for name in ALPHABET {
            let found = self.lookup(node, name).unwrap().map(|(found, attr)| (found.ino, attr));
            let child = children.iter().find(|(child, ..)| child == name);
            match (found, child) {
                (None, None) => {}
                (Some((ino, attr)), Some((_, child, listed))) => {
                    assert_eq!((ino, attr.ino, attr.stat), (child.ino, listed.ino, listed.stat), "{path:?}");
                }
                other => panic!("{}/{}: {other:?}", path.escape_ascii(), name.escape_ascii()),
            }
        }
        for (name, child, attr) in children {
            let mut child_path = path.clone();
            if !child_path.is_empty() {
                child_path.push(b'/');
            }
            child_path.extend_from_slice(&name);
            self.visit(&child, &attr, child_path, snapshot);
        }
    }

    fn entry(&self, node: &Arc<Node>, attr: &Attr) -> Result<Entry, Errno> {
        let stat = attr.stat;
        let (kind, content) = match node.kind {
            RealKind::File => (Kind::File, Content::of(&self.read(node, stat.size)?)),
            RealKind::Directory => (Kind::Directory, Content::None),
            RealKind::Symlink => (Kind::Symlink, Content::Bytes(self.union.readlink(node).map_err(errno)?)),
            RealKind::Fifo => (Kind::Fifo, Content::None),
            other => panic!("{other:?} is in no model"),
        };
        let mut xattrs = BTreeMap::new();
        let names = self.union.listxattr(node).map_err(errno)?;
        for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            xattrs.insert(name.to_vec(), self.union.getxattr(node, name).map_err(errno)?);
        }
        Ok(Entry {
            kind,
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            size: if matches!(kind, Kind::File | Kind::Symlink) { stat.size } else { 0 },
            content,
            rdev: 0,
            nlink: (kind != Kind::Directory).then_some(stat.nlink),
            ino: attr.ino,
            xattrs,
            mtime: Time::At(stat.mtime.sec, stat.mtime.nsec.into()),
            ctime: Time::Any,
        })
    }
}

/// The tree is compared after so many operations: to walk it costs as much as many of them.
const EVERY: usize = 5;

/// What the lowers are given as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LowerForm {
    /// Directories of the host.
    Directories,
    /// Trees in memory, all or every other one of which begins with the topmost.
    Memory { all: bool },
}

impl LowerForm {
    fn of(self, at: usize, lower: &Layer) -> LowerSource {
        match self {
            LowerForm::Memory { all } if all || at.is_multiple_of(2) => memory::source(at, lower.root()),
            _ => lower.root().to_owned().into(),
        }
    }
}

/// What is done to the stack, before every so many operations.
#[derive(Debug, Clone, Copy)]
enum Live {
    Nothing,
    Snapshots(usize),
    Layers(usize),
}

impl Live {
    fn act(self, count: usize, vfs: Vfs, stack: &Stack) -> Vfs {
        match self {
            Live::Snapshots(every) if count.is_multiple_of(every) => vfs.snapshot(stack),
            Live::Layers(every) if count.is_multiple_of(every) => vfs.restack(stack, &extra(stack)),
            _ => vfs,
        }
    }
}

/// The layer that comes and goes.
fn extra(stack: &Stack) -> std::path::PathBuf {
    stack.upper().root().with_file_name("extra")
}

fn check(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    check_with((LowerForm::Directories, Live::Nothing), spec, operations, steered)
}

fn check_live(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    let every = 1 + operations.len() % 7;
    check_with((LowerForm::Directories, Live::Snapshots(every)), spec, operations, steered)
}

fn check_restacked(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    let every = 1 + operations.len() % 5;
    check_with((LowerForm::Directories, Live::Layers(every)), spec, operations, steered)
}

fn check_in_memory(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    let all = operations.len().is_multiple_of(2);
    check_with((LowerForm::Memory { all }, Live::Nothing), spec, operations, steered)
}

fn check_with(
    (form, live): (LowerForm, Live),
    spec: &StackSpec,
    operations: &[Op],
    steered: bool,
) -> Result<(), Failure> {
    let mut sequence = Sequence { steered, every: EVERY, ..Sequence::strict(spec.merge()) };
    check_steps((form, live), spec, operations, &mut sequence)
        .map_err(|text| Failure { text, performed: sequence.performed })
}

/// tmpfs has no FALLOC_FL_ZERO_RANGE; mounts are tried with it.
fn for_tmpfs(op: &Op) -> Op {
    match op.clone() {
        Op::Fallocate { path, how: Allocate::Zero, offset, length } => {
            Op::Fallocate { path, how: Allocate::Punch, offset, length }
        }
        op => op,
    }
}

fn check_steps(
    (form, live): (LowerForm, Live),
    spec: &StackSpec,
    operations: &[Op],
    sequence: &mut Sequence,
) -> Result<(), String> {
    let operations: Vec<Op> = operations.iter().map(for_tmpfs).collect();
    let stack = Stack::in_scratch(Scratch::in_memory(), spec.lowers.len());
    spec.write(&stack);
    let before = stack.lower_snapshots();
    let keeps = spec.lowers.len() % 2 == 1;
    let vfs = std::cell::RefCell::new(Some(Vfs::open(&stack, form, keeps)));
    let with = |f: &mut dyn FnMut(&mut Vfs)| vfs.borrow_mut().iter_mut().for_each(f);
    let observe = || {
        let mut seen = None;
        with(&mut |vfs| seen = Some(vfs.observe()));
        seen.unwrap()
    };
    sequence.compare(&observe()).map_err(|text| format!("as opened:\n{text}"))?;
    let mut count = 0;
    let run = |op: &Op| {
        count += 1;
        let before = vfs.borrow_mut().take().unwrap();
        *vfs.borrow_mut() = Some(live.act(count, before, &stack));
        let mut outcome = None;
        with(&mut |vfs| outcome = Some(vfs.run(op)));
        outcome.unwrap()
    };
    sequence.run(&operations, run, observe)?;
    sequence.close_all();
    let vfs = vfs.into_inner().unwrap();
    let vfs = if extra(&stack).exists() { vfs.restack(&stack, &extra(&stack)) } else { vfs };
    vfs.end();

    stack.assert_workdir_clean();
    if Privilege::current() != Privilege::Root {
        // Links and fifos have no attributes of users, so their copies can't remember which they are copies of.
        sequence.identities = Some(Identities::default());
    }
    let mut vfs = Vfs::open(&stack, form, !keeps);
    sequence.compare(&vfs.observe()).map_err(|text| format!("opened again:\n{text}"))?;
    vfs.end();
    stack.assert_lowers_unchanged(&before);
    Ok(())
}

#[test]
fn the_library_behaves_as_the_model() {
    // Thirty operations on average.
    let vocabulary =
        || case(&Vocabulary { operations: 60, ..Vocabulary::full(Privilege::current() == Privilege::Root) });
    run_cases_on_all_processors(2500, 11, vocabulary, check);
}

/// The same over lowers that no directory of the host is: nothing reaches them but the reads of a tree.
#[test]
fn the_library_behaves_as_the_model_over_trees_in_memory() {
    let vocabulary =
        || case(&Vocabulary { operations: 60, ..Vocabulary::full(Privilege::current() == Privilege::Root) });
    run_cases_on_all_processors(1000, 12, vocabulary, check_in_memory);
}

/// The same while snapshots are taken under whoever uses it: nobody notices.
#[test]
fn the_library_behaves_as_the_model_while_snapshots_are_taken() {
    let vocabulary =
        || case(&Vocabulary { operations: 60, ..Vocabulary::full(Privilege::current() == Privilege::Root) });
    run_cases_on_all_processors(600, 13, vocabulary, check_live);
}

/// The same while a layer comes and goes.
#[test]
fn the_library_behaves_as_the_model_while_layers_come_and_go() {
    let vocabulary =
        || case(&Vocabulary { operations: 60, ..Vocabulary::full(Privilege::current() == Privilege::Root) });
    run_cases_on_all_processors(600, 14, vocabulary, check_restacked);
}
