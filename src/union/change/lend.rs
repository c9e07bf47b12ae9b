//! Rights that the daemon lends to itself.
//!
//! The daemon of an ordinary user owns what is in the upper and is bound by its mode all the same: it can't read the
//! marks of a directory of mode 0311, list one of mode 0, or open a file of mode 0. The kernel has checked what the caller may do; what the
//! daemon lacks then it lends to itself for the moment of the call. In lowers, which never change, it can't.

#![allow(clippy::disallowed_methods, reason = "what is lent rights is held by a descriptor")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Writable, unnoticed};
use crate::union::Union;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::marker::{self, Marks};
use crate::union::lookup::realdir::RealDir;
use crate::union::nodes::node::Node;
use crate::union::stack::access::LayerAt;

/// Whether anything was ever lent by this process. Until then nobody's mode can be a lent one.
static LENT: AtomicBool = AtomicBool::new(false);

/// Calls `f`, and if it is refused, once more with `bits` added to the object's mode meanwhile.
///
/// # Errors
/// Those of `f`, and of changing the mode.
pub(in crate::union) fn with_rights<R, E: From<Errno> + Refused>(
    object: Writable<'_>,
    bits: u32,
    mut f: impl FnMut() -> std::result::Result<R, E>,
) -> std::result::Result<R, E> {
    match f() {
        Err(e) if e.is_refusal() => {}
        other => return other,
    }
    // One at a time, or the second would take the lent mode for the object's own; objects share a lock by chance alone.
    static LENDING: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];
    let _lending = LENDING[(object.at().stat()?.ino % 64) as usize].lock();
    LENT.store(true, Ordering::Relaxed);
    let mode = object.at().stat()?.mode & 0o7777;
    object.chmod(mode | bits)?;
    let done = f();
    object.chmod(mode)?;
    done
}

/// Opens a file of the upper. `no_atime`: reading doesn't change its access time.
pub(in crate::union) fn open_owned(object: Writable<'_>, write: bool, no_atime: bool) -> Result<OwnedFd> {
    let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
    Ok(with_rights(object, 0o600, || match no_atime {
        true => unnoticed(|noatime| object.open(flags | noatime)),
        false => object.open(flags),
    })?)
}

/// Reads something of an object of the upper, whose mode may keep the daemon of an ordinary user from it.
///
/// # Errors
/// Those of `f`, and of changing the mode.
pub(in crate::union) fn reading<R, E: From<Errno> + Refused>(
    at: At<'_>,
    f: impl Fn(At<'_>) -> std::result::Result<R, E>,
) -> std::result::Result<R, E> {
    match f(at) {
        Err(e) if e.is_refusal() => {}
        other => return other,
    }
    // Held: rights that are lent to one object must not be taken from another.
    let held = at.pin()?;
    let at = At::Fd(held.as_fd());
    with_rights(Writable::held(held.as_fd()), 0o400, || f(at))
}

/// Returns the marks of an object of the upper.
pub(in crate::union) fn upper_marks(object: Writable<'_>, belief: Belief) -> Result<Marks> {
    Ok(reading(object.at(), |at| marker::read_marks(at, belief))?)
}

/// Tells whether anything was lent, so that change times may have moved.
fn was_lent() -> bool {
    LENT.load(Ordering::Relaxed)
}

/// Errors that may come of missing rights.
pub(in crate::union) trait Refused {
    /// Tells whether it is one.
    fn is_refusal(&self) -> bool;
}

impl Refused for Errno {
    fn is_refusal(&self) -> bool {
        *self == Errno::ACCESS
    }
}

impl Refused for FsError {
    fn is_refusal(&self) -> bool {
        *self == FsError::Os(Errno::ACCESS)
    }
}

impl Union {
    /// Returns the marks of an entry of `dir`.
    pub(in crate::union) fn marks_in<'a>(&self, dir: &RealDir, at: impl Into<LayerAt<'a>>) -> Result<Marks> {
        let at = at.into();
        match marker::read_marks(at, dir.belief) {
            Err(Errno::ACCESS) if self.is_upper(dir.layer) => {
                let at = at.host().ok_or(FsError::Stale)?;
                Ok(reading(at, |at| marker::read_marks(at, dir.belief))?)
            }
            other => Ok(other?),
        }
    }

    /// Does something with a directory's own listing in the upper, which the daemon may lack the right to read.
    pub(in crate::union) fn with_listing<R>(
        &self,
        node: &Node,
        mut f: impl FnMut() -> Result<R>,
    ) -> Result<R> {
        let refused = match f() {
            Err(e) if e.is_refusal() => e,
            other => return other,
        };
        let Some(upper) = self.dir_part(node)?.upper_dir() else { return Err(refused) };
        let done = with_rights(self.upper_fd(&upper)?.itself(), 0o500, f);
        self.changed_by_itself(node);
        done
    }

    /// Notes that the node's object may have been lent rights: its change time is another then.
    pub(in crate::union) fn note_lending(&self, node: &Node) {
        if was_lent() {
            self.changed_by_itself(node);
        }
    }
}
