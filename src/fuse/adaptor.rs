//! Each request: translate, call the union, reply.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuse_abi::linux::fuse_kstatfs;
use fuser::{Errno, FopenFlags, INodeNo};

use super::change::{Changer, is_change};
use super::convert::errno;
use super::counters::{Report, Request as Counted, RequestCounters};
use super::dispatch::DispatchPolicy;
use super::heap_release::HeapReleaser;
use super::negotiation::wanted;
use super::node_id;
use super::opener::Opener;
use super::policy::{IoMode, Policy};
use super::reply::{Page, reply_attr, reply_empty, reply_entry, reply_value};
use super::session::init::Wanted;
use super::session::{Filesystem, Notifier};
use super::wire::body::Opening;
use super::wire::operation::Init;
use super::wire::request::Header;
use super::wire::{Entry, Operation, Reply, Request};
use crate::error::Result;
use crate::union::Union;
use crate::union::current::Current;
use crate::union::events;
use crate::union::nodes::node::Node;

/// What stays of a mount when its union is exchanged.
#[derive(Debug)]
pub(super) struct Kept {
    notifier: Arc<OnceLock<Notifier>>,
    requests: Arc<RequestCounters>,
    pairing: Option<Arc<DispatchPolicy>>,
    current: Arc<Current>,
}

/// A union, served over FUSE.
#[derive(Debug)]
pub struct UnionFs {
    pub(super) union: Arc<Union>,
    pub(super) changer: Changer,
    requests: Arc<RequestCounters>,
    pairing: Option<Arc<DispatchPolicy>>,
    trimmer: HeapReleaser,
    current: Arc<Current>,
}

impl UnionFs {
    /// Serves this union.
    pub fn new(union: Arc<Union>, policy: Policy) -> UnionFs {
        let current = Current::new(&union);
        let kept = Kept { notifier: Arc::default(), requests: Arc::default(), pairing: None, current };
        UnionFs::showing(union, policy, kept)
    }

    /// Serves a union in the place of another, of which some things stay.
    pub(super) fn showing(union: Arc<Union>, policy: Policy, kept: Kept) -> UnionFs {
        let Kept { notifier, requests, pairing, current } = kept;
        let opener = Arc::new(Opener::new(union.clone(), policy.io, notifier));
        let notifier = opener.notifier.clone();
        union.tell_changes(move |ino| {
            // Attributes only, for which the kernel takes no lock: a request for the same file may be under way here.
            let told = notifier.get().map(|kernel| kernel.inval_inode(INodeNo(ino), -1, 0));
            if let Some(Err(e)) = told {
                log::debug!("the kernel keeps the attributes of {ino:#x}: {e}");
            }
        });
        super::stale::watch(&union, opener.notifier.clone());
        current.show(Some(&union));
        let changer = Changer { opener, policy };
        UnionFs { union, changer, requests, pairing, trimmer: HeapReleaser::default(), current }
    }

    /// Tells whether nobody but this holds the union: no change is under way on a thread of its own, and nobody asks. If so,
    /// nobody gets hold of it from here on.
    pub(super) fn be_alone(&self) -> bool {
        self.trimmer.end();
        self.current.hide();
        let is_alone = Arc::strong_count(&self.changer.opener) == 1 && Arc::strong_count(&self.union) == 2;
        if !is_alone {
            self.current.show(None);
        }
        is_alone
    }

    /// Returns what stays for the one that takes its place.
    pub(super) fn kept(&self) -> (Policy, Kept) {
        let (requests, pairing, current) = (self.requests.clone(), self.pairing.clone(), self.current());
        (self.changer.policy, Kept { notifier: self.notifier(), requests, pairing, current })
    }

    /// Returns the same, with who is to be told of who asks.
    pub fn with_pairing(self, pairing: Option<Arc<DispatchPolicy>>) -> UnionFs {
        UnionFs { pairing, ..self }
    }

    /// Returns the same, which goes on counting.
    pub fn with_counters(self, requests: Arc<RequestCounters>) -> UnionFs {
        UnionFs { requests, ..self }
    }

    /// Returns where what tells the kernel to forget is to be put, once there is a session.
    pub fn notifier(&self) -> Arc<OnceLock<Notifier>> {
        self.changer.opener.notifier.clone()
    }

    /// Returns what tells, at any time, what was asked and done.
    pub fn report(&self) -> Report {
        let (union, opener) = (self.current.clone(), Arc::downgrade(&self.changer.opener));
        Report { union, requests: self.requests.clone(), opener, pairing: self.pairing.clone() }
    }

    /// Returns what leads to the union that is served now.
    pub fn current(&self) -> Arc<Current> {
        self.current.clone()
    }

    pub(super) fn node(&self, ino: INodeNo) -> Result<Arc<Node>> {
        self.union.node(node_id::number(ino))
    }

    pub(super) fn ttl(&self) -> Duration {
        self.changer.policy.timeout
    }

    fn lookup(&self, header: &Header, name: &[u8], reply: Reply) {
        let found = self.node(header.node).and_then(|parent| self.union.lookup(&parent, name));
        match found {
            Ok(None) => reply.entry(&Entry::missing(self.ttl())),
            Ok(Some((_, attr))) => {
                if attr.second_id {
                    self.changer.opener.found_by_name(attr.ino, header.pid);
                }
                reply_entry(self.ttl(), reply, Ok(attr));
            }
            Err(e) => reply_entry(self.ttl(), reply, Err(e)),
        }
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
        self.union.forget(node_id::number(node), lookups);
        self.trimmer.forgotten(&self.union);
    }
}

/// Returns what a request is counted as; those that come apart, and those that nobody counts, have none.
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
        Ok(wanted(&mut self.changer.policy, offer))
    }

    /// Says what was done. The union ends when this is dropped, which the session does next.
    fn destroy(&self) {
        log::info!("{}", self.report());
    }

    fn serve(&self, request: &Request<'_>, reply: Reply) {
        events::answering(request.header.pid);
        let operation = &request.operation;
        if let Some(kind) = counted(operation) {
            self.requests.count(kind);
        }
        let policy = &self.changer.policy;
        match operation {
            // What the kernel does by itself once it is told so, by ENOSYS.
            Operation::Open { .. } | Operation::Create { .. } if !policy.opens() => {
                reply.error(Errno::ENOSYS)
            }
            Operation::Getxattr { .. }
            | Operation::Listxattr { .. }
            | Operation::Setxattr { .. }
            | Operation::Removexattr { .. }
                if policy.no_xattrs =>
            {
                reply.error(Errno::ENOSYS);
            }
            Operation::Fsync { .. } | Operation::Fsyncdir { .. } if policy.no_fsync => {
                reply.error(Errno::ENOSYS)
            }
            // The kernel may hold data that the file below doesn't have yet; without an answer it takes the file for one
            // run of data.
            Operation::Lseek { .. } if policy.io == IoMode::WriteBack => reply.error(Errno::ENOSYS),
            change if is_change(change) => self.changer.serve(request, reply),
            Operation::Lookup { .. } | Operation::Forget { .. } | Operation::BatchForget(_) => {
                self.serve_lookups(request, reply);
            }
            Operation::Read { .. }
            | Operation::Release
            | Operation::Fsync { .. }
            | Operation::Lseek { .. } => {
                self.serve_data(request, reply);
            }
            Operation::Opendir
            | Operation::Readdir { .. }
            | Operation::Readdirplus { .. }
            | Operation::Releasedir
            | Operation::Fsyncdir { .. } => self.serve_directories(request, reply),
            _ => self.serve_attributes(request, reply),
        }
    }
}

impl UnionFs {
    fn serve_lookups(&self, request: &Request<'_>, reply: Reply) {
        let node = request.header.node;
        match request.operation {
            Operation::Lookup { name } => self.lookup(&request.header, name, reply),
            Operation::Forget { lookups } => {
                reply.none();
                self.forget(node, lookups);
            }
            Operation::BatchForget(forgets) => {
                reply.none();
                forgets.iter().for_each(|(node, lookups)| self.forget(node, lookups));
            }
            _ => reply.error(Errno::ENOSYS),
        }
    }

    fn serve_data(&self, request: &Request<'_>, reply: Reply) {
        let node = request.header.node;
        match request.operation {
            Operation::Read { offset, size, unnoticed } => {
                self.read_data(node, (offset, size), unnoticed, reply);
            }
            Operation::Release => {
                if self.changer.policy.opens() {
                    self.release_file(node);
                }
                reply.ok();
            }
            Operation::Fsync { data_only } => {
                let synced = self.node(node).and_then(|node| self.union.fsync(&node, data_only));
                reply_empty(reply, synced);
            }
            Operation::Lseek { offset, whence } => self.seek_data(node, offset, whence, reply),
            _ => reply.error(Errno::ENOSYS),
        }
    }

    fn serve_directories(&self, request: &Request<'_>, reply: Reply) {
        let dir = request.header.node;
        match request.operation {
            Operation::Readdir { offset, size } => self.list(Page { dir, offset, size }, reply),
            Operation::Readdirplus { offset, size } => {
                self.list_with_attributes(Page { dir, offset, size }, reply);
            }
            // Nothing of a listing is kept. Where opening is no request the kernel does keep it.
            Operation::Opendir if self.changer.policy.lowers_change => {
                reply.opened(Opening { flags: FopenFlags::empty(), backing: None });
            }
            Operation::Releasedir => reply.ok(),
            // A directory's entries are what it has: there is nothing beside them that `data_only` would leave out.
            Operation::Fsyncdir { .. } => {
                reply_empty(reply, self.node(dir).and_then(|dir| self.union.fsyncdir(&dir)));
            }
            _ => reply.error(Errno::ENOSYS),
        }
    }

    fn serve_attributes(&self, request: &Request<'_>, reply: Reply) {
        let node = request.header.node;
        match request.operation {
            Operation::Getattr => {
                reply_attr(self.ttl(), reply, self.node(node).and_then(|node| self.union.getattr(&node)));
            }
            Operation::Readlink => match self.node(node).and_then(|node| self.union.readlink(&node)) {
                Ok(target) => reply.data(&target),
                Err(e) => reply.error(errno(&e)),
            },
            Operation::Getxattr { name, size } => {
                let value = self.node(node).and_then(|node| self.union.getxattr(&node, name));
                reply_value(reply, size, value);
            }
            Operation::Listxattr { size } => {
                reply_value(reply, size, self.node(node).and_then(|node| self.union.listxattr(&node)));
            }
            Operation::Ioctl { command, .. } => self.ioctl(node, command, reply),
            Operation::Statfs => self.statfs(reply),
            // By ENOSYS the kernel is told to do flush, opendir and access by itself. What begins and ends a session is the
            // session's own.
            _ => reply.error(Errno::ENOSYS),
        }
    }
}
