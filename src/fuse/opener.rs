//! What opens files where opens are requests, and knows which are open.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fuser::{FopenFlags, INodeNo, OpenFlags};
use rustix::fs::OFlags;

use super::io_mode::{IoModes, Join, OpenState, Opened};
use super::node_id::{self, SentAway};
use super::policy::IoMode;
use super::session::Notifier;
use super::session::device::Backing;
use super::wire::body::Opening;
use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::nodes::node::Node;

/// Who opens a file: the id that the kernel asks by, and the thread for which it asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) id: INodeNo,
    pub(super) thread: u32,
}

/// A real file that is passed through to.
#[derive(Debug)]
pub(super) struct Real {
    /// What the kernel knows it by.
    pub(super) backing: Backing,
    /// Its size before, if anybody listens.
    pub(super) before: Option<u64>,
    /// Whether it has the data as long as the mount lives.
    settled: bool,
}

/// What opens files, and knows those that are open.
#[derive(Debug)]
pub(super) struct Opener {
    pub(super) union: Arc<Union>,
    pub(super) modes: IoModes<Real>,
    /// What tells the kernel to forget attributes, once there is a session.
    pub(super) notifier: Arc<OnceLock<Notifier>>,
    /// Whether files are passed through from which a copy-up may move the data.
    lowers: bool,
    sent_away: SentAway,
    refused: AtomicBool,
}

impl Opener {
    pub(super) fn new(union: Arc<Union>, io: IoMode, notifier: Arc<OnceLock<Notifier>>) -> Opener {
        Opener {
            union,
            modes: IoModes::new(),
            notifier,
            lowers: io == IoMode::PassthroughLower,
            sent_away: SentAway::default(),
            refused: AtomicBool::new(false),
        }
    }

    /// Opens a file that [`Union::open`] made ready, and tells how.
    ///
    /// # Errors
    /// `ESTALE` for who is to look the name up again: see [`node_id`].
    pub(super) fn open(&self, asker: Asker, flags: OFlags) -> Result<Opening> {
        let Asker { id, thread } = asker;
        let node = self.union.node(node_id::number(id))?;
        let by_first = node.has_second_id() && !node_id::is_second(id);
        let again = by_first && self.sent_away.came_again(thread, node.ino);
        if by_first && !again {
            return Err(self.send_away(&node, thread));
        }
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        let join = |real: &Real| {
            // Copied up before whoever writes comes here; so it holds, whatever the file's place.
            let moved = !real.settled && (writes || !self.union.in_lower(&node));
            match moved {
                false => Ok(Join::Same),
                true if !again => Err(self.send_away(&node, thread)),
                // The kernel would open the lower's file to write it.
                true if writes => Err(FsError::Stale),
                true => Ok(Join::Direct),
            }
        };
        let opened = self.modes.open(id.0, || self.real(&node, writes), join)?;
        if matches!(opened, Opened::PassedThrough(_)) {
            self.pass_through(&node, id, flags)?;
        }
        let mut how = FopenFlags::FOPEN_NOFLUSH;
        match &opened {
            Opened::PassedThrough(_) => {}
            Opened::Direct(_) => how |= FopenFlags::FOPEN_DIRECT_IO,
            // What is cached by one id wouldn't follow what is written by the other.
            Opened::Cached { .. } if node.has_second_id() => how |= FopenFlags::FOPEN_DIRECT_IO,
            // Only where it can't be older than the file.
            Opened::Cached { first } if !first || self.union.in_lower(&node) => {
                how |= FopenFlags::FOPEN_KEEP_CACHE;
            }
            Opened::Cached { .. } => {}
        }
        let backing = match &opened {
            Opened::PassedThrough(real) | Opened::Direct(real) => Some(real.backing.id()),
            Opened::Cached { .. } => None,
        };
        Ok(Opening { flags: how, backing })
    }

    /// Returns the real file to pass through to, if there may be one.
    fn real(&self, node: &Arc<Node>, writes: bool) -> Result<Option<Real>> {
        let Some(file) = self.union.real_file(node, self.lowers && !writes)? else { return Ok(None) };
        Ok(match self.register(&file.fd) {
            Ok(backing) => {
                Some(Real { backing, before: self.union.watched_size(node), settled: file.settled })
            }
            Err(error) => {
                self.warn_once(&error);
                None
            }
        })
    }

    /// Does what else an open takes that is passed through.
    fn pass_through(&self, node: &Arc<Node>, id: INodeNo, flags: OFlags) -> Result<()> {
        // The kernel opens the real file with these flags, and would tell its refusal as EIO.
        if flags.contains(OFlags::DIRECT) && !self.union.allows_direct(node).unwrap_or(false) {
            self.modes.release(id.0, drop);
            return Err(FsError::Invalid("O_DIRECT on this filesystem"));
        }
        if flags.contains(OFlags::RDWR) {
            self.may_be_mapped(node);
        }
        if flags.intersects(OFlags::SYNC | OFlags::DSYNC)
            && let Err(e) = self.union.fsync(node, false)
        {
            // The kernel syncs each write to the real file, and knows nothing of the file's name.
            self.modes.release(id.0, drop);
            return Err(e);
        }
        self.union.tell_passed_through(node, flags);
        Ok(())
    }

    /// Makes the kernel look the name up again, by which it gets the node's second id; returns what tells it so.
    fn send_away(&self, node: &Node, thread: u32) -> FsError {
        self.sent_away.note(thread, node.ino);
        self.divide(node);
        FsError::Stale
    }

    /// Gives the node its second id, if it has none.
    fn divide(&self, node: &Node) {
        if !node.set_second_id() {
            self.forget_attributes(INodeNo(node.ino));
        }
    }

    /// Notes that a thread looked up a node that has two ids.
    pub(super) fn found_by_name(&self, number: u64, thread: u32) {
        self.sent_away.came_again(thread, number);
    }

    /// Notes that the node, which the kernel asked for by this id, may have changed.
    pub(super) fn changed(&self, node: &Node, id: INodeNo) {
        if !self.lowers || node.dir.is_some() {
            return;
        }
        if node.has_second_id() {
            // Attributes are asked for in any case; ACLs are not.
            self.forget_attributes(node_id::other(id));
        } else if self.modes.is_passed_through(id.0, |real| !real.settled) && !self.union.in_lower(node) {
            self.divide(node);
        }
    }

    fn forget_attributes(&self, id: INodeNo) {
        let told = self.notifier.get().map(|kernel| kernel.inval_inode(id, -1, 0));
        if let Some(Err(e)) = told {
            // It doesn't know that id.
            log::debug!("the kernel keeps the attributes of {:#x}: {e}", id.0);
        }
    }

    /// Returns what another process has to know of files that are open.
    pub(super) fn state(&self) -> Vec<OpenState> {
        self.modes.state(|real| real.backing.id())
    }

    /// Notes what is open of what another process has opened, whose data stay where they are.
    pub(super) fn take_over(&self, open: Vec<OpenState>, kernel: &Notifier) {
        self.modes.take_over(open, |id| Real {
            backing: kernel.take_backing_over(id),
            before: None,
            settled: true,
        });
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
