//! What a lower holds and doesn't show: the mount itself, its upper and its workdir.
//!
//! A lower may be a tree in which all of these lie, such as `/`. Each of them is *veiled*: it appears as an empty directory
//! that nothing can be made in and that can't be changed, renamed or removed (`EBUSY`, as for any mount point).
//!
//! - **The mount** would have the daemon wait for itself. It is known by its device, so also where it is bound to other
//!   places, at any time; a single file of it that is bound to one answers `EBUSY`. What stands for it is the directory that
//!   it covers, which was opened before the mount.
//! - **The mount of another daemon of this program**, where the lower holds this one's mount point: its lower may be the same
//!   tree, and the two would show each other without end, with a thread of each waiting for the other at every step.
//! - **The upper and the workdir** are changed all the time, and a lower must not be: what the view shows of them would be out
//!   of date at once, and a copy of them would hold itself. They are known by device and inode number.
//!
//! What is mounted otherwise inside a lower is seen. A filesystem that itself shows the mount (the kernel's overlayfs with it
//! as a layer) can't be told from others: reading it through the mount asks this daemon twice at once.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Kind, Stat};
use crate::sys::own::{filesystem_type, is_own};
use crate::union::Union;
use crate::union::lookup::realdir::{LayerIndex, RealDir, Veil};
use crate::union::nodes::node::Node;
use crate::union::stack::access::LayerAt;

/// How the kernel calls what this program mounts.
const OWN_TYPE: &str = "fuse.unionmount";

/// An entry of a layer, as a search sees it.
#[derive(Debug)]
pub(in crate::union) enum Sight {
    /// It shows what it holds.
    Plain(Stat),
    /// A directory that shows nothing, and what stands for it if it is a mount.
    Veiled(Stat, Option<Arc<OwnedFd>>),
}

impl Union {
    /// Tells whether a lower holds directories of the mount itself, or its mount point.
    pub fn holds_itself(&self) -> bool {
        !self.veils.parts.is_empty() || self.veils.covered.is_some()
    }

    /// Looks at an entry of a directory of a layer, and never waits for this process itself.
    pub(in crate::union) fn sight(&self, dir: &RealDir, at: LayerAt<'_>, name: &[u8]) -> Result<Sight> {
        let known = dir.first_look(at)?;
        let mounted = dir.is_mounted(&known);
        if mounted && self.must_not_enter(dir, known.dev) {
            self.regions.note_mount(name);
            if self.is_upper(dir.layer) || known.kind() != Kind::Directory {
                return Err(FsError::Os(Errno::BUSY));
            }
            let stands = match &self.veils.covered {
                Some(covered) => covered.clone(),
                None => self.fds.host(&self.layers[usize::from(dir.layer)].root)?,
            };
            return Ok(Sight::Veiled(At::Fd(stands.as_fd()).stat()?, Some(stands)));
        }
        let stat = dir.look_again(at, known)?;
        let part = stat.kind() == Kind::Directory
            && !self.veils.parts.is_empty()
            && !self.is_upper(dir.layer)
            && self.veils.parts.contains(&(stat.dev, stat.ino));
        Ok(if part { Sight::Veiled(stat, None) } else { Sight::Plain(stat) })
    }

    fn must_not_enter(&self, dir: &RealDir, device: u64) -> bool {
        is_own(device)
            || self.holds_mount(dir.layer) && filesystem_type(device).is_some_and(|kind| kind == OWN_TYPE)
    }

    fn holds_mount(&self, layer: LayerIndex) -> bool {
        let lowers_from = usize::from(self.upper.is_some());
        usize::from(layer).checked_sub(lowers_from).is_some_and(|lower| self.veils.holders.contains(&lower))
    }
}

/// Refuses to change a directory that shows nothing.
pub(in crate::union) fn check_unveiled(node: &Node) -> Result<()> {
    match node.dir.as_ref().and_then(|dir| dir.top()) {
        Some(top) if top.veil() != Veil::None => Err(FsError::Os(Errno::BUSY)),
        _ => Ok(()),
    }
}
