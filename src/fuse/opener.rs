//! What opens files where opens are requests, and knows which are open.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fuser::{FopenFlags, INodeNo, OpenFlags};
use rustix::fs::OFlags;

use super::io_mode::{IoModes, Opened};
use super::session::Notifier;
use super::session::device::Backing;
use super::wire::body::Opening;
use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::nodes::node::Node;

/// A real file that is passed through to.
#[derive(Debug)]
pub(super) struct Real {
    /// What the kernel knows it by.
    pub(super) backing: Backing,
    /// Its size before, if anybody listens.
    pub(super) before: Option<u64>,
}

/// What opens files, and knows those that are open.
#[derive(Debug)]
pub(super) struct Opener {
    pub(super) union: Arc<Union>,
    pub(super) modes: IoModes<Real>,
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
    pub(super) fn open(&self, ino: u64, flags: OFlags) -> Result<Opening> {
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

    /// Notes that from now on a mapping may change the file without a word, even after it is closed. So the kernel must
    /// ask for its times each time.
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

    /// Returns how many files are open.
    pub(super) fn open_files(&self) -> usize {
        self.modes.len()
    }
}

pub(super) fn open_flags(flags: OpenFlags) -> OFlags {
    OFlags::from_bits_retain(flags.0.cast_unsigned())
}
