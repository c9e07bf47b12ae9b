//! Rights that the daemon lends to itself.
//!
//! The daemon of an ordinary user owns what is in the upper and is bound by its mode all the same: it can't read the
//! marks of a directory of mode 0311, list one of mode 0, or open a file of mode 0. The kernel has checked what the caller may do; what the
//! daemon lacks then it lends to itself for the moment of the call. In lowers, which never change, it can't.
//!
//! Each loan moves the object's change time, so who only looks borrows as little as can be: names of attributes are told to
//! everybody, and a value that was read is remembered as long as the change time is the same and this process set none.

#![allow(clippy::disallowed_methods, reason = "what is lent rights is held by a descriptor")]

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::object::{At, Time, Writable, unnoticed};
use crate::sys::xattr;
use crate::sys::xattr_changes;
use crate::union::Union;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::marker::{self, Marks};
use crate::union::lookup::private;
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
    lend(object, bits, f)?.0
}

/// Calls `f` with `bits` added to the object's mode meanwhile. Returns also when the object was changed last, by that.
fn lend<R>(object: Writable<'_>, bits: u32, f: impl FnOnce() -> R) -> rustix::io::Result<(R, Time)> {
    // One at a time, or the second would take the lent mode for the object's own; objects share a lock by chance alone.
    static LENDING: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];
    let _lending = LENDING[(object.at().stat()?.ino % 64) as usize].lock();
    LENT.store(true, Ordering::Relaxed);
    let stat = object.at().stat()?;
    // What was read of it may be about to change.
    READ.lock().remove(&(stat.dev, stat.ino));
    let mode = stat.mode & 0o7777;
    object.chmod(mode | bits)?;
    let done = f();
    object.chmod(mode)?;
    Ok((done, object.at().stat()?.ctime))
}

/// Values of attributes of one object, by name.
type Values = HashMap<Vec<u8>, Vec<u8>>;

/// What was read of objects, by device and inode number: at which state, and the values.
type ReadValues = HashMap<(u64, u64), (State, Values)>;

/// When an object was changed last, and how often this process had changed attributes: a change within the same tick of the
/// clock as the loan leaves the first as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    ctime: Time,
    changes: u64,
}

/// What was read with a lent right.
static READ: LazyLock<Mutex<ReadValues>> = LazyLock::new(Mutex::default);

/// Of so many objects it is remembered.
const MOST_READ: usize = 4096;

/// Returns the value of an attribute of an object of the upper, whose mode may keep the daemon of an ordinary user from it.
///
/// # Errors
/// Those of reading it, and of changing the mode.
pub(in crate::union) fn upper_xattr(at: At<'_>, name: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
    match xattr::get(at, name) {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    // Held: rights that are lent to one object must not be taken from another.
    let held = at.pin()?;
    let at = At::Fd(held.as_fd());
    let mut names = xattr::list(at)?;
    if !names.iter().any(|there| there == name) {
        return Ok(None);
    }
    let stat = at.stat()?;
    let id = (stat.dev, stat.ino);
    let changes = xattr_changes::changes(stat.ino);
    if let Some((state, values)) = READ.lock().get(&id)
        && *state == (State { ctime: stat.ctime, changes })
        && let Some(value) = values.get(name)
    {
        return Ok(Some(value.clone()));
    }
    // All marks at once, for the next ones are asked for soon.
    names.retain(|there| there == name || private::is_private_xattr(there));
    let read = || -> rustix::io::Result<Values> {
        let mut values = Values::new();
        for name in names {
            if let Some(value) = xattr::get(at, &name)? {
                values.insert(name, value);
            }
        }
        Ok(values)
    };
    // Before the values are read: who changes one meanwhile is counted after.
    xattr_changes::count_changes();
    let changes = xattr_changes::changes(stat.ino);
    let (values, ctime) = lend(Writable::held(held.as_fd()), 0o400, read)?;
    let values = values?;
    let value = values.get(name).cloned();
    let mut read = READ.lock();
    if read.len() >= MOST_READ {
        read.clear();
    }
    read.insert(id, (State { ctime, changes }, values));
    Ok(value)
}

/// Opens a file of the upper. `no_atime`: reading doesn't change its access time.
pub(in crate::union) fn open_owned(object: Writable<'_>, write: bool, no_atime: bool) -> Result<OwnedFd> {
    let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
    Ok(with_rights(object, 0o600, || match no_atime {
        true => unnoticed(|noatime| object.open(flags | noatime)),
        false => object.open(flags),
    })?)
}

/// Returns the marks of an object of the upper.
pub(in crate::union) fn upper_marks(object: Writable<'_>, belief: Belief) -> Result<Marks> {
    Ok(marks_at(object.at(), belief)?)
}

/// Reads the marks of an object of the upper, whose mode may keep the daemon of an ordinary user from their values.
fn marks_at(at: At<'_>, belief: Belief) -> rustix::io::Result<Marks> {
    match marker::read_marks(at, belief) {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    let held = at.pin()?;
    let at = At::Fd(held.as_fd());
    marker::read_marks_by(at.into(), belief, |name| upper_xattr(at, name))
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
                Ok(marks_at(at, dir.belief)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, XattrFlags, open};
    use rustix::process::Uid;
    use rustix::thread::set_thread_res_uid;

    /// An attribute of a file that may be written and not read is set without a loan, within the tick of the last one.
    #[test]
    fn a_value_that_was_set_since_is_not_the_remembered_one() {
        support::needs_root!();
        const NOBODY: u32 = 65534;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::os::unix::fs::chown(dir.path(), Some(NOBODY), None).unwrap();
        let as_nobody = || {
            let nobody = Uid::from_raw(NOBODY);
            set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let file = open(&path, OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o200)).unwrap();
            let object = Writable::held(file.as_fd());
            for round in 0..1000 {
                let value = format!("{round}");
                // Filesystems whose times are no finer than the clock's ticks need this; ext4, XFS, btrfs and tmpfs have finer ones.
                let before = xattr_changes::changes(object.at().stat().unwrap().ino);
                object.set_xattr(b"user.overlay.redirect", value.as_bytes(), XattrFlags::empty()).unwrap();
                let read = upper_xattr(object.at(), b"user.overlay.redirect").unwrap();
                assert_eq!(read.as_deref(), Some(value.as_bytes()));
                let changes = xattr_changes::changes(object.at().stat().unwrap().ino);
                assert!(round == 0 || changes != before, "counted since the first loan");
            }
        };
        std::thread::scope(|scope| scope.spawn(as_nobody).join()).unwrap();
    }
}
