//! Each request: translate, call the union, reply.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuse_abi::linux::fuse_kstatfs;
use fuser::{Errno, INodeNo, RenameFlags};
use rustix::fs::XattrFlags;

use super::change::change;
use super::convert::{caller, decode_dev, errno};
use super::counters::{Report, Request as Counted, RequestCounters};
use super::dispatch::DispatchPolicy;
use super::heap_release::HeapReleaser;
use super::negotiation::wanted;
use super::opener::Opener;
use super::policy::{IoMode, Policy};
use super::reply::{Page, reply_attr, reply_empty, reply_entry, reply_value};
use super::session::init::Wanted;
use super::session::{Filesystem, Notifier};
use super::wire::request::{Creator, Init, Setattr};
use super::wire::{Entry, Operation, Reply, Request};
use crate::error::Result;
use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::change::modify::Create;
use crate::union::change::rename::RenameMode;
use crate::union::change::staged::New;
use crate::union::nodes::node::Node;
use crate::union::nodes::pins::paid_by;
use crate::union::view::attr::{Attr, SetAttr};

/// A union, served over FUSE.
#[derive(Debug)]
pub struct UnionFs {
    pub(super) union: Arc<Union>,
    pub(super) policy: Policy,
    pub(super) opener: Arc<Opener>,
    requests: Arc<RequestCounters>,
    pairing: Option<Arc<DispatchPolicy>>,
    trimmer: HeapReleaser,
}

impl UnionFs {
    /// Serves this union.
    pub fn new(union: Arc<Union>, policy: Policy) -> UnionFs {
        let opener = Arc::new(Opener::new(union.clone()));
        let notifier = opener.notifier.clone();
        union.tell_changes(move |ino| {
            // Attributes only, for which the kernel takes no lock: a request for the same file may be under way here.
            let told = notifier.get().map(|kernel| kernel.inval_inode(INodeNo(ino), -1, 0));
            if let Some(Err(e)) = told {
                log::debug!("the kernel keeps the attributes of {ino:#x}: {e}");
            }
        });
        super::stale::watch(&union, opener.notifier.clone());
        UnionFs {
            union,
            policy,
            opener,
            requests: Arc::default(),
            pairing: None,
            trimmer: HeapReleaser::default(),
        }
    }

    /// The same, with who is to be told of who asks.
    pub fn with_pairing(self, pairing: Option<Arc<DispatchPolicy>>) -> UnionFs {
        UnionFs { pairing, ..self }
    }

    /// Where what tells the kernel to forget is to be put, once there is a session.
    pub fn notifier(&self) -> Arc<OnceLock<Notifier>> {
        self.opener.notifier.clone()
    }

    /// What tells, at any time, what was asked and done.
    pub fn report(&self) -> Report {
        let (union, opener) = (Arc::downgrade(&self.union), Arc::downgrade(&self.opener));
        Report { union, requests: self.requests.clone(), opener, pairing: self.pairing.clone() }
    }

    pub(super) fn node(&self, ino: INodeNo) -> Result<Arc<Node>> {
        self.union.node(ino.0)
    }

    pub(super) fn ttl(&self) -> Duration {
        self.policy.timeout
    }

    fn lookup(&self, parent: INodeNo, name: &[u8], reply: Reply) {
        let found = self.node(parent).and_then(|parent| self.union.lookup(&parent, name));
        match found {
            Ok(None) => reply.entry(&Entry::missing(self.ttl())),
            Ok(Some((_, attr))) => reply_entry(self.ttl(), reply, Ok(attr)),
            Err(e) => reply_entry(self.ttl(), reply, Err(e)),
        }
    }

    /// Makes a change of a node, and answers. It may copy the node up first.
    pub(super) fn change_node<A, T>(
        &self,
        ino: INodeNo,
        argument: &A,
        make: impl Fn(&Union, &Arc<Node>, &A) -> Result<T> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) where
        A: ToOwned<Owned: Send + 'static> + ?Sized,
        T: 'static,
    {
        let long = self.node(ino).is_ok_and(|node| self.union.copies_much(&node));
        let make = move |union: &Union, argument: &A| make(union, &union.node(ino.0)?, argument);
        change(&self.union, argument, long, make, answer);
    }

    /// Makes an entry and answers.
    fn make(&self, parent: INodeNo, name: &[u8], create: Create<'static>, reply: Reply) {
        let ttl = self.ttl();
        change(
            &self.union,
            name,
            false,
            move |union, name| create_in(union, parent, name, create),
            move |made| reply_entry(ttl, reply, made),
        );
    }

    fn setattr(&self, node: INodeNo, set: &Setattr, reply: Reply) {
        let Setattr { mode, uid, gid, size, atime, mtime, kill_privileges: kill } = *set;
        let set = SetAttr { mode, uid, gid, size, atime, mtime };
        let ttl = self.ttl();
        self.change_node(
            node,
            &(),
            move |union, node, ()| union.setattr(node, set, kill),
            move |done| reply_attr(ttl, reply, done),
        );
    }

    fn symlink(&self, (parent, name): (INodeNo, &[u8]), target: &[u8], creator: Creator, reply: Reply) {
        let (ttl, caller, target) = (self.ttl(), caller(creator), target.to_owned());
        let link = move |union: &Union, name: &[u8]| {
            create_in(
                union,
                parent,
                name,
                Create { new: New::Symlink(&target), mode: 0o777, umask: 0, caller },
            )
        };
        change(&self.union, name, false, link, move |made| reply_entry(ttl, reply, made));
    }

    /// Removes a name, or an empty directory.
    fn remove(
        &self,
        parent: INodeNo,
        name: &[u8],
        remove: fn(&Union, &Arc<Node>, &[u8]) -> Result<()>,
        uid: u32,
        reply: Reply,
    ) {
        let remove =
            move |union: &Union, name: &[u8]| paid_by(uid, || remove(union, &union.node(parent.0)?, name));
        change(&self.union, name, false, remove, move |done| reply_empty(reply, done));
    }

    fn rename(
        &self,
        (parent, name): (INodeNo, &[u8]),
        (new_parent, new_name): (INodeNo, &[u8]),
        flags: RenameFlags,
        uid: u32,
        reply: Reply,
    ) {
        let mode = match flags {
            f if f.is_empty() => RenameMode::Replace,
            f if f == RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            f if f == RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let new_name = new_name.to_owned();
        let rename = move |union: &Union, name: &[u8]| {
            let (from, to) = (union.node(parent.0)?, union.node(new_parent.0)?);
            paid_by(uid, || union.rename((&from, name), (&to, &new_name), mode))
        };
        let long = self.node(parent).is_ok_and(|from| self.union.copies_much_under(&from, name));
        change(&self.union, name, long, rename, move |done| reply_empty(reply, done));
    }

    fn link(&self, node: INodeNo, parent: INodeNo, name: &[u8], reply: Reply) {
        let ttl = self.ttl();
        let link = move |union: &Union, node: &Arc<Node>, name: &[u8]| {
            union.link(node, &union.node(parent.0)?, name)
        };
        self.change_node(node, name, link, move |linked| reply_entry(ttl, reply, linked));
    }

    fn statfs(&self, reply: Reply) {
        match self.union.statfs() {
            Ok(s) => reply.statfs(fuse_kstatfs {
                blocks: s.f_blocks,
                bfree: s.f_bfree,
                bavail: s.f_bavail,
                files: s.f_files,
                ffree: s.f_ffree,
                bsize: s.f_bsize as u32,
                namelen: s.f_namemax as u32,
                frsize: s.f_frsize as u32,
                ..Default::default()
            }),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn forget(&self, node: INodeNo, lookups: u64) {
        self.requests.count(Counted::Forget);
        self.union.forget(node.0, lookups);
        self.trimmer.forgotten(&self.union);
    }

    /// Extended attributes, which a mount may be without.
    fn xattr(&self, node: INodeNo, operation: Xattr<'_>, reply: Reply) {
        if self.policy.no_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        match operation {
            Xattr::Get(name, size) => {
                let value = self.node(node).and_then(|node| self.union.getxattr(&node, name));
                reply_value(reply, size, value);
            }
            Xattr::List(size) => {
                reply_value(reply, size, self.node(node).and_then(|node| self.union.listxattr(&node)));
            }
            Xattr::Set { name, value, flags, kill_sgid } => {
                let (flags, name) = (XattrFlags::from_bits_retain(flags), name.to_owned());
                self.change_node(
                    node,
                    value,
                    move |union, node, value| {
                        union.setxattr(node, &name, value, flags)?;
                        if kill_sgid { union.kill_set_group_id(node) } else { Ok(()) }
                    },
                    move |done| reply_empty(reply, done),
                );
            }
            Xattr::Remove(name) => self.change_node(
                node,
                name,
                |union, node, name| union.removexattr(node, name),
                move |done| reply_empty(reply, done),
            ),
        }
    }

    /// What a policy may have nothing to do for.
    fn sync(&self, node: INodeNo, sync: impl FnOnce(&Arc<Node>) -> Result<()>, reply: Reply) {
        if self.policy.no_fsync {
            return reply.error(Errno::ENOSYS);
        }
        reply_empty(reply, self.node(node).and_then(|node| sync(&node)));
    }
}

/// What is asked of extended attributes.
enum Xattr<'a> {
    Get(&'a [u8], u32),
    List(u32),
    Set { name: &'a [u8], value: &'a [u8], flags: u32, kill_sgid: bool },
    Remove(&'a [u8]),
}

/// Makes an entry. Its node counts one lookup.
fn create_in(union: &Union, parent: INodeNo, name: &[u8], create: Create<'_>) -> Result<Attr> {
    let parent = union.node(parent.0)?;
    Ok(union.create(&parent, name, create)?.1)
}

/// What a request is counted as; those that come apart, and those that nobody counts, have none.
fn counted(operation: &Operation<'_>) -> Option<Counted> {
    Some(match operation {
        Operation::Lookup { .. } => Counted::Lookup,
        Operation::Getattr => Counted::Getattr,
        Operation::Setattr(_) => Counted::Setattr,
        Operation::Readlink => Counted::Readlink,
        Operation::Symlink { .. } => Counted::Symlink,
        Operation::Mknod { .. } => Counted::Mknod,
        Operation::Mkdir { .. } => Counted::Mkdir,
        Operation::Unlink { .. } => Counted::Unlink,
        Operation::Rmdir { .. } => Counted::Rmdir,
        Operation::Rename { .. } => Counted::Rename,
        Operation::Link { .. } => Counted::Link,
        Operation::Open { .. } => Counted::Open,
        Operation::Create { .. } => Counted::Create,
        Operation::Tmpfile { .. } => Counted::Tmpfile,
        Operation::Read { .. } => Counted::Read,
        Operation::Write { .. } => Counted::Write,
        Operation::Flush => Counted::Flush,
        Operation::Release => Counted::Release,
        Operation::Fsync { .. } => Counted::Fsync,
        Operation::Opendir => Counted::Opendir,
        Operation::Readdir { .. } => Counted::Readdir,
        Operation::Readdirplus { .. } => Counted::Readdirplus,
        Operation::Releasedir => Counted::Releasedir,
        Operation::Fsyncdir { .. } => Counted::Fsyncdir,
        Operation::Statfs => Counted::Statfs,
        Operation::Access { .. } => Counted::Access,
        Operation::Getxattr { .. } => Counted::Getxattr,
        Operation::Listxattr { .. } => Counted::Listxattr,
        Operation::Setxattr { .. } => Counted::Setxattr,
        Operation::Removexattr { .. } => Counted::Removexattr,
        Operation::Ioctl { .. } => Counted::Ioctl,
        Operation::Fallocate { .. } => Counted::Fallocate,
        Operation::Lseek { .. } => Counted::Lseek,
        Operation::CopyFileRange { .. } => Counted::CopyFileRange,
        Operation::Forget { .. } | Operation::BatchForget(_) => return None,
        Operation::Init(_) | Operation::Destroy | Operation::Interrupt { .. } => return None,
        Operation::Statx { .. } | Operation::Syncfs | Operation::Other { .. } => return None,
    })
}

impl Filesystem for UnionFs {
    fn negotiate(&mut self, offer: &Init) -> io::Result<Wanted> {
        Ok(wanted(&mut self.policy, offer))
    }

    /// The union ends when this is dropped, which the session does next.
    fn destroy(&self) {
        log::info!("{}", self.report());
    }

    fn serve(&self, request: &Request<'_>, reply: Reply) {
        let Request { header, operation } = request;
        let node = header.node;
        if let Some(kind) = counted(operation) {
            self.requests.count(kind);
        }
        match *operation {
            Operation::Lookup { name } => self.lookup(node, name, reply),
            Operation::Forget { lookups } => {
                reply.none();
                self.forget(node, lookups);
            }
            Operation::BatchForget(forgets) => {
                reply.none();
                forgets.iter().for_each(|(node, lookups)| self.forget(node, lookups));
            }
            Operation::Getattr => {
                reply_attr(self.ttl(), reply, self.node(node).and_then(|node| self.union.getattr(&node)));
            }
            Operation::Setattr(ref set) => self.setattr(node, set, reply),
            Operation::Readlink => match self.node(node).and_then(|node| self.union.readlink(&node)) {
                Ok(target) => reply.data(&target),
                Err(e) => reply.error(errno(&e)),
            },
            Operation::Symlink { name, target, creator } => {
                self.symlink((node, name), target, creator, reply)
            }
            Operation::Mknod { name, mode, rdev, umask, creator } => {
                let new = match Kind::of_mode(mode) {
                    Kind::File => New::File,
                    kind => New::Special(kind, decode_dev(rdev)),
                };
                let create = Create { new, mode: mode & 0o7777, umask, caller: caller(creator) };
                self.make(node, name, create, reply);
            }
            Operation::Mkdir { name, mode, umask, creator } => {
                let (new, caller) = (New::Directory, caller(creator));
                self.make(node, name, Create { new, mode: mode & 0o7777, umask, caller }, reply);
            }
            Operation::Unlink { name } => self.remove(node, name, Union::unlink, header.uid, reply),
            Operation::Rmdir { name } => self.remove(node, name, Union::rmdir, header.uid, reply),
            Operation::Rename { name, to, to_name, flags } => {
                self.rename((node, name), (to, to_name), flags, header.uid, reply);
            }
            Operation::Link { node: linked, name } => self.link(linked, node, name, reply),
            // By ENOSYS the kernel is told to open files by itself.
            Operation::Open { .. } | Operation::Create { .. } if !self.opens() => reply.error(Errno::ENOSYS),
            Operation::Open { flags, kill_privileges } => self.open_file(node, flags, kill_privileges, reply),
            Operation::Create { name, flags, mode, umask, kill_privileges, creator } => {
                let (new, caller) = (New::File, caller(creator));
                let create = Create { new, mode: mode & 0o7777, umask, caller };
                self.create_open((node, name), create, (flags, kill_privileges), reply);
            }
            Operation::Tmpfile { flags, mode, umask, creator } => {
                self.create_unnamed(node, mode, umask, flags, caller(creator), reply);
            }
            Operation::Read { offset, size, unnoticed } => {
                self.read_data(node, (offset, size), unnoticed, reply);
            }
            Operation::Write { offset, data, flags } => self.write_data(node, offset, data, flags, reply),
            Operation::Release => {
                if self.opens() {
                    self.release_file(node);
                }
                reply.ok();
            }
            Operation::Fsync { data_only } => {
                self.sync(node, |node| self.union.fsync(node, data_only), reply);
            }
            // A directory's entries are what it has.
            Operation::Fsyncdir { .. } => self.sync(node, |node| self.union.fsyncdir(node), reply),
            Operation::Readdir { offset, size } => self.list(Page { dir: node, offset, size }, reply),
            Operation::Readdirplus { offset, size } => {
                self.list_with_attributes(Page { dir: node, offset, size }, reply);
            }
            Operation::Statfs => self.statfs(reply),
            Operation::Getxattr { name, size } => self.xattr(node, Xattr::Get(name, size), reply),
            Operation::Listxattr { size } => self.xattr(node, Xattr::List(size), reply),
            Operation::Setxattr { name, value, flags, kill_sgid } => {
                self.xattr(node, Xattr::Set { name, value, flags, kill_sgid }, reply);
            }
            Operation::Removexattr { name } => self.xattr(node, Xattr::Remove(name), reply),
            Operation::Ioctl { command, data, .. } => self.ioctl(node, command, data, reply),
            Operation::Fallocate { offset, length, mode } => {
                self.allocate(node, (offset, length), mode, reply);
            }
            // The kernel may hold data that the file below doesn't have yet; without an answer it takes the file for one
            // run of data.
            Operation::Lseek { .. } if self.policy.io == IoMode::WriteBack => reply.error(Errno::ENOSYS),
            Operation::Lseek { offset, whence } => self.seek_data(node, offset, whence, reply),
            Operation::CopyFileRange { offset, to, to_offset, length, wide } => {
                let (from, to) = ((node, offset), (to, to_offset));
                self.copy_range(from, to, length, (wide, reply));
            }
            // What the kernel does by itself once it is told so.
            Operation::Flush | Operation::Opendir => reply.error(Errno::ENOSYS),
            Operation::Releasedir => reply.ok(),
            Operation::Access { .. }
            | Operation::Syncfs
            | Operation::Statx { .. }
            | Operation::Other { .. } => {
                reply.error(Errno::ENOSYS);
            }
            // The session's own.
            Operation::Init(_) | Operation::Destroy | Operation::Interrupt { .. } => {
                reply.error(Errno::ENOSYS)
            }
        }
    }
}
