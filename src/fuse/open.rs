//! Opening, creating and releasing files where opens are requests (`-o passthrough`).

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fuser::{FopenFlags, INodeNo, OpenFlags};
use rustix::fs::OFlags;

use super::adaptor::UnionFs;
use super::change::change;
use super::convert::errno;
use super::io_mode::{IoModes, Opened};
use super::policy::IoMode;
use super::reply::entry;
use super::session::Notifier;
use super::session::device::Backing;
use super::wire::Reply;
use super::wire::body::Opening;
use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::change::modify::Create;
use crate::union::nodes::node::Node;
use crate::union::view::attr::Attr;

/// A real file that is passed through to.
#[derive(Debug)]
pub(super) struct Real {
    /// What the kernel knows it by.
    backing: Backing,
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

    /// Opens a file that [`Union::open`] made ready, and tells how.
    fn open(&self, ino: u64, flags: OFlags) -> Result<Opening> {
        let node = self.union.node(ino)?;
        let opened = self.modes.open(ino, || {
            Ok::<_, FsError>(match self.union.settled_fd(&node)? {
                Some(fd) => match self.register(&fd) {
                    Ok(backing) => Some(Real { backing, before: self.union.watched_size(&node) }),
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
        let backing = match &opened {
            Opened::PassedThrough(real) => Some(real.backing.id()),
            Opened::Cached { .. } => None,
        };
        Ok(Opening { flags: how, backing })
    }

    /// Gives a real file to the kernel.
    fn register(&self, file: impl AsFd) -> io::Result<Backing> {
        let kernel = self.notifier.get().ok_or(io::ErrorKind::NotConnected)?;
        kernel.open_backing(file.as_fd())
    }

    /// From now on a mapping may change the file without a word, even after it is closed. So the kernel must ask for its
    /// times each time.
    fn may_be_mapped(&self, node: &Node) {
        if node.set_mapped() {
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

pub(super) fn open_flags(flags: OpenFlags) -> OFlags {
    OFlags::from_bits_retain(flags.0.cast_unsigned())
}

impl UnionFs {
    /// Are opens requests?
    pub(super) fn opens(&self) -> bool {
        self.policy.io == IoMode::Passthrough
    }

    pub(super) fn open_file(&self, ino: INodeNo, flags: OpenFlags, kill: bool, reply: Reply) {
        let (flags, opener) = (open_flags(flags), self.opener.clone());
        let copies = flags.intersects(OFlags::WRONLY | OFlags::RDWR) && !flags.contains(OFlags::TRUNC);
        let long = copies && self.node(ino).is_ok_and(|node| self.union.copies_much(&node));
        let make_ready = move |union: &Union, (): &()| union.open(&union.node(ino.0)?, flags, kill);
        let answer = move |ready: Result<()>| match ready.and_then(|()| opener.open(ino.0, flags)) {
            Ok(opening) => reply.opened(opening),
            Err(e) => reply.error(errno(&e)),
        };
        change(&self.union, &(), long, make_ready, answer);
    }

    /// Makes a file, or finds that somebody else just did, and opens it.
    pub(super) fn create_open(
        &self,
        (parent, name): (INodeNo, &[u8]),
        create: Create<'static>,
        (flags, kill): (OpenFlags, bool),
        reply: Reply,
    ) {
        let exclusive = open_flags(flags).contains(OFlags::EXCL);
        let make = move |union: &Union, name: &[u8]| {
            let parent = union.node(parent.0)?;
            let mut flags = open_flags(flags);
            let (node, attr) = match union.create(&parent, name, create) {
                Err(FsError::Exists) if !exclusive => union.lookup(&parent, name)?.ok_or(FsError::Stale)?,
                made => {
                    // Nothing is there to be truncated, and ext4 writes what was truncated to disk when it is closed.
                    flags -= OFlags::TRUNC;
                    made?
                }
            };
            let ready = union.open(&node, flags, kill);
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
        flags: OpenFlags,
        reply: Reply,
    ) -> impl FnOnce(Result<Attr>) + Send + 'static {
        let (opener, ttl) = (self.opener.clone(), self.ttl());
        move |made: Result<Attr>| {
            let attr = match made {
                Ok(attr) => attr,
                Err(e) => return reply.error(errno(&e)),
            };
            let flags = open_flags(flags);
            match opener.open(attr.ino, flags) {
                Ok(opening) => {
                    let mapped = attr.mapped || flags.contains(OFlags::RDWR);
                    reply.created(&entry(ttl, &Attr { mapped, ..attr }), opening);
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
