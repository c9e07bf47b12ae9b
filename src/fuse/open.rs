//! Opening, creating and releasing files where opens are requests (`-o passthrough`).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fuser::{
    BackingId, FileHandle, FopenFlags, Generation, INodeNo, Notifier, OpenFlags, ReplyCreate, ReplyOpen,
};
use rustix::fs::OFlags;

use super::adaptor::UnionFs;
use super::change::change;
use super::convert::{errno, file_attr};
use super::io_mode::{IoModes, Opened};
use super::policy::IoMode;
use super::reply::attr_ttl;
use crate::error::{FsError, Result};
use crate::union::attr::Attr;
use crate::union::modify::Create;
use crate::union::node::Node;
use crate::union::{Caller, Union};

/// A real file that is passed through to.
#[derive(Debug)]
pub(super) struct Real {
    /// What the kernel knows it by.
    id: BackingId,
    /// Its size before, if anybody listens.
    before: Option<u64>,
}

/// What opens files, and knows those that are open.
#[derive(Debug)]
pub(super) struct Opener {
    union: Arc<Union>,
    modes: IoModes<Real>,
    /// What tells the kernel to forget attributes, once there is a session.
    pub(super) notifier: Arc<OnceLock<Notifier>>,
    refused: AtomicBool,
}

impl Opener {
    pub(super) fn new(union: Arc<Union>) -> Opener {
        let refused = AtomicBool::new(false);
        Opener { union, modes: IoModes::new(), notifier: Arc::default(), refused }
    }

    /// Opens a file that [`Union::open`] made ready, and tells how. `register` gives a real file to the kernel.
    fn open(
        &self,
        ino: u64,
        flags: OFlags,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Result<(Opened<Real>, FopenFlags)> {
        let node = self.union.node(ino)?;
        let opened = self.modes.open(ino, || {
            Ok::<_, FsError>(match self.union.settled_fd(&node)? {
                Some(fd) => match register(fd.as_fd()) {
                    Ok(id) => Some(Real { id, before: self.union.watched_size(&node) }),
                    Err(error) => {
                        self.warn_once(&error);
                        None
                    }
                },
                None => None,
            })
        })?;
        let how = match &opened {
            Opened::PassedThrough(_) => FopenFlags::FOPEN_NOFLUSH,
            // Only where it can't be older than the file.
            Opened::Cached { first } if !first || self.union.in_lower(&node) => {
                FopenFlags::FOPEN_NOFLUSH | FopenFlags::FOPEN_KEEP_CACHE
            }
            Opened::Cached { .. } => FopenFlags::FOPEN_NOFLUSH,
        };
        if matches!(opened, Opened::PassedThrough(_)) {
            // The kernel opens the real file with these flags, and would tell its refusal as EIO.
            if flags.contains(OFlags::DIRECT) && !self.union.allows_direct(&node).unwrap_or(false) {
                self.modes.release(ino, drop);
                return Err(FsError::Invalid("O_DIRECT on this filesystem"));
            }
            if flags.contains(OFlags::RDWR) {
                self.may_be_mapped(&node);
            }
            if flags.intersects(OFlags::SYNC | OFlags::DSYNC)
                && let Err(e) = self.union.fsync(&node, false)
            {
                // The kernel syncs each write to the real file, and knows nothing of the file's name.
                self.modes.release(ino, drop);
                return Err(e);
            }
            self.union.tell_passed_through(&node, flags);
        }
        Ok((opened, how))
    }

    /// From now on a mapping may change the file without a word, even after it is closed. So the kernel must ask for its
    /// times each time.
    fn may_be_mapped(&self, node: &Node) {
        if node.mapped.swap(true, Ordering::Relaxed) {
            return;
        }
        let told = self.notifier.get().map(|kernel| kernel.inval_inode(INodeNo(node.ino), -1, 0));
        if let Some(Err(e)) = told {
            log::warn!("the kernel keeps the times of a file that may be mapped: {e}");
        }
    }

    fn warn_once(&self, error: &io::Error) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            log::warn!("passthrough: the kernel refused a file, which is cached instead: {error}");
        }
    }

    /// How many files are open.
    pub(super) fn open_files(&self) -> usize {
        self.modes.len()
    }
}

fn open_flags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags.cast_unsigned())
}

impl UnionFs {
    /// Are opens requests?
    pub(super) fn opens(&self) -> bool {
        self.policy.io == IoMode::Passthrough
    }

    pub(super) fn open_file(&self, ino: INodeNo, flags: OpenFlags, caller: Caller, reply: ReplyOpen) {
        let (flags, opener) = (open_flags(flags.0), self.opener.clone());
        let copies = flags.intersects(OFlags::WRONLY | OFlags::RDWR) && !flags.contains(OFlags::TRUNC);
        let long = copies && self.node(ino).is_ok_and(|node| self.union.copies_much(&node));
        let make_ready = move |union: &Union, (): &()| union.open(&union.node(ino.0)?, flags, caller);
        let answer = move |ready: Result<()>| {
            let opened = ready.and_then(|()| opener.open(ino.0, flags, |fd| reply.open_backing(fd)));
            match opened {
                Ok((Opened::Cached { .. }, how)) => reply.opened(FileHandle(0), how),
                Ok((Opened::PassedThrough(real), how)) => {
                    reply.opened_passthrough(FileHandle(0), how, &real.id)
                }
                Err(e) => reply.error(errno(&e)),
            }
        };
        change(&self.union, &(), long, make_ready, answer);
    }

    /// Makes a file, or finds that somebody else just did, and opens it.
    pub(super) fn create_open(
        &self,
        parent: INodeNo,
        name: &OsStr,
        create: Create<'static>,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let exclusive = open_flags(flags).contains(OFlags::EXCL);
        let make = move |union: &Union, name: &OsStr| {
            let parent = union.node(parent.0)?;
            let mut flags = open_flags(flags);
            let (node, attr) = match union.create(&parent, name.as_bytes(), create) {
                Err(FsError::Exists) if !exclusive => {
                    union.lookup(&parent, name.as_bytes())?.ok_or(FsError::Stale)?
                }
                made => {
                    // Nothing is there to be truncated, and ext4 writes what was truncated to disk when it is closed.
                    flags -= OFlags::TRUNC;
                    made?
                }
            };
            let ready = union.open(&node, flags, create.caller);
            drop(node);
            if ready.is_err() {
                union.forget(attr.ino, 1);
            }
            ready.map(|()| attr)
        };
        let answer = self.answer_created(flags, reply);
        change(&self.union, name, false, make, answer);
    }

    /// What answers with a file that was just made, open.
    pub(super) fn answer_created(
        &self,
        flags: i32,
        reply: ReplyCreate,
    ) -> impl FnOnce(Result<Attr>) + Send + 'static {
        let (opener, ttl) = (self.opener.clone(), self.ttl());
        move |made: Result<Attr>| {
            let attr = match made {
                Ok(attr) => attr,
                Err(e) => return reply.error(errno(&e)),
            };
            let flags = open_flags(flags);
            match opener.open(attr.ino, flags, |fd| reply.open_backing(fd)) {
                Ok((opened, how)) => {
                    let mapped = attr.mapped || flags.contains(OFlags::RDWR);
                    let ttl = attr_ttl(ttl, &Attr { mapped, ..attr });
                    let (attr, handle) = (file_attr(&attr), FileHandle(0));
                    match opened {
                        Opened::Cached { .. } => reply.created(&ttl, &attr, Generation(0), handle, how),
                        Opened::PassedThrough(real) => {
                            reply.created_passthrough(&ttl, &attr, Generation(0), handle, how, &real.id);
                        }
                    }
                }
                Err(e) => {
                    // The kernel never hears of it.
                    opener.union.forget(attr.ino, 1);
                    reply.error(errno(&e));
                }
            }
        }
    }

    pub(super) fn release_file(&self, ino: INodeNo) {
        self.opener.modes.release(ino.0, |real| {
            if let Ok(node) = self.node(ino) {
                self.union.tell_closed(&node, real.before);
            }
        });
    }
}
