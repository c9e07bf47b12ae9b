//! One method a request: translate, call the union, reply.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request as Header, TimeOrNow, WriteFlags,
};
use rustix::fs::XattrFlags;

use super::change::change;
use super::convert::{caller, decode_dev, errno, file_attr, set_time};
use super::counters::{Report, Request, RequestCounters};
use super::greeting::greet;
use super::open::Opener;
use super::pairing::Pairing;
use super::policy::Policy;
use super::reply::{attr_ttl, missing, reply_empty, reply_entry, reply_xattr};
use super::trim::Trimmer;
use crate::error::Result;
use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::attr::{Attr, SetAttr};
use crate::union::modify::Create;
use crate::union::node::Node;
use crate::union::rename::RenameMode;
use crate::union::upper::New;

/// A union, served over FUSE.
#[derive(Debug)]
pub struct UnionFs {
    pub(super) union: Arc<Union>,
    pub(super) policy: Policy,
    pub(super) opener: Arc<Opener>,
    requests: Arc<RequestCounters>,
    pairing: Option<Arc<Pairing>>,
    trimmer: Trimmer,
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
        UnionFs {
            union,
            policy,
            opener,
            requests: Arc::default(),
            pairing: None,
            trimmer: Trimmer::default(),
        }
    }

    /// The same, with who is to be told of who asks.
    pub fn with_pairing(self, pairing: Option<Arc<Pairing>>) -> UnionFs {
        UnionFs { pairing, ..self }
    }

    /// Every request comes by here. `bytes`: of data that it brings or wants.
    fn asked(&self, header: &Header, request: Request, bytes: usize) {
        self.requests.count(request);
        if let Some(pairing) = &self.pairing {
            // The kernel asks these on its own account, in nobody's name.
            let own = matches!(request, Request::Forget | Request::Release | Request::Write);
            pairing.asked(Some(header.pid()).filter(|pid| *pid != 0 || !own), bytes);
        }
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

    fn reply_attr(ttl: Duration, reply: ReplyAttr, attr: Result<Attr>) {
        match attr {
            Ok(attr) => reply.attr(&attr_ttl(ttl, &attr), &file_attr(&attr)),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn lookup_entry(&self, parent: INodeNo, name: &OsStr) -> Result<Option<Attr>> {
        let parent = self.node(parent)?;
        Ok(self.union.lookup(&parent, name.as_bytes())?.map(|(_, attr)| attr))
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
    fn make(&self, parent: INodeNo, name: &OsStr, create: Create<'static>, reply: ReplyEntry) {
        let ttl = self.ttl();
        change(
            &self.union,
            name,
            false,
            move |union, name| create_in(union, parent, name, create),
            move |made| reply_entry(ttl, reply, made),
        );
    }
}

/// Makes an entry. Its node counts one lookup.
fn create_in(union: &Union, parent: INodeNo, name: &OsStr, create: Create<'_>) -> Result<Attr> {
    let parent = union.node(parent.0)?;
    Ok(union.create(&parent, name.as_bytes(), create)?.1)
}

impl Filesystem for UnionFs {
    fn init(&mut self, _req: &Header, config: &mut KernelConfig) -> io::Result<()> {
        greet(&mut self.policy, config);
        Ok(())
    }

    /// The union ends when this is dropped, which the session does next.
    fn destroy(&mut self) {
        log::info!("{}", self.report());
    }

    fn lookup(&self, req: &Header, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.asked(req, Request::Lookup, 0);
        match self.lookup_entry(parent, name) {
            Ok(None) => reply.entry(&self.ttl(), &missing(), Generation(0)),
            Ok(Some(attr)) => reply_entry(self.ttl(), reply, Ok(attr)),
            Err(e) => reply_entry(self.ttl(), reply, Err(e)),
        }
    }

    fn forget(&self, req: &Header, ino: INodeNo, nlookup: u64) {
        self.asked(req, Request::Forget, 0);
        self.union.forget(ino.0, nlookup);
        self.trimmer.forgotten(&self.union);
    }

    fn getattr(&self, req: &Header, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.asked(req, Request::Getattr, 0);
        Self::reply_attr(self.ttl(), reply, self.node(ino).and_then(|n| self.union.getattr(&n)));
    }

    fn setattr(
        &self,
        req: &Header,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.asked(req, Request::Setattr, 0);
        let set = SetAttr { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        let (ttl, caller) = (self.ttl(), caller(req));
        self.change_node(
            ino,
            &(),
            move |union, node, ()| union.setattr(node, set, caller),
            move |done| Self::reply_attr(ttl, reply, done),
        );
    }

    fn readlink(&self, req: &Header, ino: INodeNo, reply: ReplyData) {
        self.asked(req, Request::Readlink, 0);
        match self.node(ino).and_then(|n| self.union.readlink(&n)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn mknod(
        &self,
        req: &Header,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.asked(req, Request::Mknod, 0);
        let new = match Kind::of_mode(mode) {
            Kind::File => New::File,
            kind => New::Special(kind, decode_dev(rdev)),
        };
        self.make(parent, name, Create { new, mode: mode & 0o7777, umask, caller: caller(req) }, reply);
    }

    fn mkdir(&self, req: &Header, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.asked(req, Request::Mkdir, 0);
        let create = Create { new: New::Directory, mode: mode & 0o7777, umask, caller: caller(req) };
        self.make(parent, name, create, reply);
    }

    fn unlink(&self, req: &Header, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.asked(req, Request::Unlink, 0);
        let unlink = move |union: &Union, name: &OsStr| union.unlink(&union.node(parent.0)?, name.as_bytes());
        change(&self.union, name, false, unlink, move |done| reply_empty(reply, done));
    }

    fn rmdir(&self, req: &Header, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.asked(req, Request::Rmdir, 0);
        let rmdir = move |union: &Union, name: &OsStr| union.rmdir(&union.node(parent.0)?, name.as_bytes());
        change(&self.union, name, false, rmdir, move |done| reply_empty(reply, done));
    }

    fn symlink(&self, req: &Header, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.asked(req, Request::Symlink, 0);
        let (ttl, caller, target) = (self.ttl(), caller(req), target.to_owned());
        let link = move |union: &Union, name: &OsStr| {
            let new = New::Symlink(target.as_os_str().as_bytes());
            create_in(union, parent, name, Create { new, mode: 0o777, umask: 0, caller })
        };
        change(&self.union, link_name, false, link, move |made| reply_entry(ttl, reply, made));
    }

    fn rename(
        &self,
        req: &Header,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.asked(req, Request::Rename, 0);
        let mode = match flags {
            f if f.is_empty() => RenameMode::Replace,
            f if f == RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            f if f == RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let new = newname.to_owned();
        let rename = move |union: &Union, name: &OsStr| {
            let (from, to) = (union.node(parent.0)?, union.node(newparent.0)?);
            union.rename((&from, name.as_bytes()), (&to, new.as_bytes()), mode)
        };
        let long = self.node(parent).is_ok_and(|from| self.union.copies_much_under(&from, name.as_bytes()));
        change(&self.union, name, long, rename, move |done| reply_empty(reply, done));
    }

    fn link(&self, req: &Header, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.asked(req, Request::Link, 0);
        let ttl = self.ttl();
        let link = move |union: &Union, node: &Arc<Node>, name: &OsStr| {
            let parent = union.node(newparent.0)?;
            union.link(node, &parent, name.as_bytes())
        };
        self.change_node(ino, newname, link, move |linked| reply_entry(ttl, reply, linked));
    }

    fn open(&self, req: &Header, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.asked(req, Request::Open, 0);
        if !self.opens() {
            return reply.error(Errno::ENOSYS);
        }
        self.open_file(ino, flags, caller(req), reply);
    }

    fn create(
        &self,
        req: &Header,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.asked(req, Request::Create, 0);
        if !self.opens() {
            return reply.error(Errno::ENOSYS);
        }
        let create = Create { new: New::File, mode: mode & 0o7777, umask, caller: caller(req) };
        self.create_open(parent, name, create, flags, reply);
    }

    fn tmpfile(&self, req: &Header, parent: INodeNo, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        self.asked(req, Request::Tmpfile, 0);
        self.create_unnamed(parent, mode, umask, flags, caller(req), reply);
    }

    fn read(
        &self,
        req: &Header,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.asked(req, Request::Read, size as usize);
        self.read_data(ino, offset, size, reply);
    }

    fn write(
        &self,
        req: &Header,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.asked(req, Request::Write, data.len());
        self.write_data(ino, offset, data, write_flags, reply);
    }

    fn flush(&self, req: &Header, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.asked(req, Request::Flush, 0);
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        req: &Header,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.asked(req, Request::Release, 0);
        if self.opens() {
            self.release_file(ino);
        }
        reply.ok();
    }

    fn fsync(&self, req: &Header, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.asked(req, Request::Fsync, 0);
        if self.policy.no_fsync {
            return reply.error(Errno::ENOSYS);
        }
        reply_empty(reply, self.node(ino).and_then(|n| self.union.fsync(&n, datasync)));
    }

    fn opendir(&self, req: &Header, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.asked(req, Request::Opendir, 0);
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, req: &Header, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.asked(req, Request::Readdir, 0);
        self.list(ino, offset, reply);
    }

    fn readdirplus(
        &self,
        req: &Header,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.asked(req, Request::Readdirplus, 0);
        self.list_with_attributes(ino, offset, reply);
    }

    fn fsyncdir(&self, req: &Header, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.asked(req, Request::Fsyncdir, 0);
        if self.policy.no_fsync {
            return reply.error(Errno::ENOSYS);
        }
        reply_empty(reply, self.node(ino).and_then(|n| self.union.fsyncdir(&n)));
    }

    fn statfs(&self, req: &Header, _ino: INodeNo, reply: ReplyStatfs) {
        self.asked(req, Request::Statfs, 0);
        match self.union.statfs() {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn setxattr(
        &self,
        req: &Header,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.asked(req, Request::Setxattr, 0);
        if self.policy.no_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        let (flags, name) = (XattrFlags::from_bits_retain(flags.cast_unsigned()), name.to_owned());
        self.change_node(
            ino,
            value,
            move |union, node, value| union.setxattr(node, name.as_bytes(), value, flags),
            move |done| reply_empty(reply, done),
        );
    }

    fn getxattr(&self, req: &Header, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.asked(req, Request::Getxattr, 0);
        if self.policy.no_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        reply_xattr(reply, size, self.node(ino).and_then(|n| self.union.getxattr(&n, name.as_bytes())));
    }

    fn listxattr(&self, req: &Header, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.asked(req, Request::Listxattr, 0);
        if self.policy.no_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        reply_xattr(reply, size, self.node(ino).and_then(|n| self.union.listxattr(&n)));
    }

    fn removexattr(&self, req: &Header, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.asked(req, Request::Removexattr, 0);
        if self.policy.no_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        self.change_node(
            ino,
            name,
            |union, node, name| union.removexattr(node, name.as_bytes()),
            move |done| reply_empty(reply, done),
        );
    }

    fn ioctl(
        &self,
        req: &Header,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.asked(req, Request::Ioctl, 0);
        self.control(ino, cmd, in_data, reply);
    }

    fn fallocate(
        &self,
        req: &Header,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.asked(req, Request::Fallocate, 0);
        self.allocate(ino, (offset, length), mode, caller(req), reply);
    }

    fn lseek(
        &self,
        req: &Header,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.asked(req, Request::Lseek, 0);
        self.seek_data(ino, offset, whence, reply);
    }

    fn copy_file_range(
        &self,
        req: &Header,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.asked(req, Request::CopyFileRange, usize::try_from(len).unwrap_or(usize::MAX));
        self.copy_range((ino_in, offset_in), (ino_out, offset_out), len, caller(req), reply);
    }
}
