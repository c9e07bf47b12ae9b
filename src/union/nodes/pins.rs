//! The descriptors of what has no name any more, and who pays for them.
//!
//! What is deleted and still known to the kernel is reached by a descriptor alone, and a process may have so many. All
//! users of a mount have them from one budget, so each gets a share: nobody but root may hold more than what is still
//! free. So one who takes all that he gets leaves half to the others, the next a quarter, and `EMFILE` is told to who holds
//! much, not to who comes late. Descriptors for work are no part of the budget.
//!
//! Where the mount may be idmapped the kernel doesn't tell who deletes, so the owner of the object pays. Who may delete what
//! others own, in a directory that they may write to and that isn't sticky, spends the owners' shares so, with as many objects
//! as there are: an ordinary user can't make more of them. Of root's objects too: then nobody knows that it is root who deletes, and
//! root has a share like all others. What makes an object without a name (O_TMPFILE) says who asks, always.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::error::Result;
use crate::sys::object::At;
use crate::union::quota::Quota;
use crate::union::stack::access::LayerObject;

const ROOT: u32 = 0;
/// What requests that make no object carry where the mount may be idmapped.
const UNKNOWN: u32 = u32::MAX;

thread_local! {
    /// Who pays for what this thread does.
    static PAYER: Cell<u32> = const { Cell::new(ROOT) };
}

/// Does `work` on the account of a user.
pub fn paid_by<T>(uid: u32, work: impl FnOnce() -> T) -> T {
    let before = PAYER.replace(uid);
    let done = work();
    PAYER.set(before);
    done
}

/// The budget.
#[derive(Debug)]
pub(in crate::union) struct Pins {
    /// What an object of the upper costs until it is let go.
    quota: Option<Arc<Quota>>,
    limit: usize,
    held: Mutex<HeldPins>,
    /// How many objects are held, those without a descriptor too.
    pinned: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct HeldPins {
    all: usize,
    by_user: HashMap<u32, usize>,
}

impl Pins {
    /// Makes a budget of so many descriptors. `quota`: what counts the objects of the upper.
    pub fn new(limit: usize, quota: Option<Arc<Quota>>) -> Arc<Pins> {
        Arc::new(Pins { quota, limit, held: Mutex::default(), pinned: Arc::default() })
    }

    /// Returns how many objects are held.
    pub fn in_use(&self) -> usize {
        self.pinned.load(Ordering::Acquire)
    }

    /// Takes one, for this descriptor, on the account of the user for whom this thread works. Where the kernel didn't tell
    /// who that is, whoever owns the object pays.
    ///
    /// # Errors
    /// `EMFILE` when that user has a full share.
    pub fn take(self: &Arc<Self>, fd: BorrowedFd<'_>) -> Result<Share> {
        self.take_owned(|| Ok(At::Fd(fd).stat()?.uid))
    }

    fn take_owned(self: &Arc<Self>, owner: impl FnOnce() -> Result<u32>) -> Result<Share> {
        match PAYER.get() {
            UNKNOWN => self.take_for(owner()?, false),
            uid => self.take_for(uid, uid == ROOT),
        }
    }

    /// Holds an object, on the account of the user for whom this thread works.
    ///
    /// # Errors
    /// Those of [`Pins::take`].
    pub fn hold(self: &Arc<Self>, held: LayerObject) -> Result<Arc<Pinned>> {
        let share = held.host().map(|fd| self.take(fd.as_fd())).transpose()?.map(Arc::new);
        Ok(self.pinned(held, share))
    }

    /// Holds an object as [`Pins::hold`], whose owner is known.
    ///
    /// # Errors
    /// Those of [`Pins::take`].
    pub fn hold_owned(self: &Arc<Self>, held: LayerObject, owner: u32) -> Result<Arc<Pinned>> {
        let share = held.host().map(|_| self.take_owned(|| Ok(owner))).transpose()?.map(Arc::new);
        Ok(self.pinned(held, share))
    }

    /// Holds what takes the place of an object that was held, as the copy of it, on the same account.
    ///
    /// # Errors
    /// Those of [`Pins::take`], where the first took no descriptor.
    pub fn hold_instead(self: &Arc<Self>, before: &Pinned, held: LayerObject) -> Result<Arc<Pinned>> {
        match &before.share {
            Some(share) => Ok(self.pinned(held, Some(share.clone()))),
            None => self.hold(held),
        }
    }

    /// Holds an object that another process held for this mount, on the account of the same user: it is held in any case.
    pub fn hold_for(self: &Arc<Self>, payer: Option<u32>, held: LayerObject) -> Arc<Pinned> {
        let share = payer.and_then(|uid| self.take_for(uid, true).ok()).map(Arc::new);
        self.pinned(held, share)
    }

    fn pinned(&self, held: LayerObject, share: Option<Arc<Share>>) -> Arc<Pinned> {
        let counted = self.quota.as_ref().and_then(|quota| {
            let ino = quota.hold(held.host()?.as_fd())?;
            Some((quota.clone(), ino))
        });
        self.pinned.fetch_add(1, Ordering::AcqRel);
        Arc::new(Pinned { held, share, counted, all: self.pinned.clone() })
    }

    /// Takes a share; with `all`, as much as there is instead.
    fn take_for(self: &Arc<Self>, uid: u32, all: bool) -> Result<Share> {
        let mut held = self.held.lock();
        let free = self.limit.saturating_sub(held.all);
        let own = held.by_user.get(&uid).copied().unwrap_or(0);
        if free == 0 || (!all && own >= free) {
            return Err(Errno::MFILE.into());
        }
        held.all += 1;
        held.by_user.insert(uid, own + 1);
        Ok(Share { pins: self.clone(), uid })
    }
}

/// A descriptor's place in the budget, given back when it is dropped.
#[derive(Debug)]
pub(in crate::union) struct Share {
    pins: Arc<Pins>,
    uid: u32,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.pins.held.lock();
        held.all -= 1;
        if let Some(own) = held.by_user.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                held.by_user.remove(&self.uid);
            }
        }
    }
}

/// An object that is held without a name. Somebody pays for the descriptor, where it takes one.
#[derive(Debug)]
pub struct Pinned {
    held: LayerObject,
    share: Option<Arc<Share>>,
    /// What counts it, and its number there.
    counted: Option<(Arc<Quota>, u64)>,
    /// Counts all that are held.
    all: Arc<AtomicUsize>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::AcqRel);
        if let Some((quota, ino)) = &self.counted
            && let Some(fd) = self.held.host()
        {
            quota.let_go(*ino, fd.as_fd());
        }
    }
}

impl Pinned {
    pub(in crate::union) fn held(&self) -> LayerObject {
        self.held.clone()
    }

    /// Returns the user who pays for the descriptor, if anybody does.
    pub(in crate::union) fn payer(&self) -> Option<u32> {
        self.share.as_ref().map(|share| share.uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_holds_more_than_what_is_free() {
        let pins = Pins::new(100, None);
        let all_of = |uid| std::iter::from_fn(|| pins.take_for(uid, uid == ROOT).ok()).collect::<Vec<_>>();
        let (first, second, third) = (all_of(1000), all_of(1001), all_of(1002));
        assert_eq!((first.len(), second.len(), third.len()), (50, 25, 13));
        assert!(pins.take_for(ROOT, true).is_ok(), "root has what is left");
        drop(second);
        assert_eq!(all_of(1000).len(), 0);
        assert!(all_of(1003).len() > 13);
        drop((first, third));
        assert_eq!(all_of(ROOT).len(), 100);
        let left = {
            let held = pins.held.lock();
            (held.all, held.by_user.len())
        };
        assert_eq!(left, (0, 0));
        // Who isn't known isn't everybody.
        let file = tempfile::tempfile().unwrap();
        let owner = At::Fd(file.as_fd()).stat().unwrap().uid;
        let share = paid_by(UNKNOWN, || pins.take(file.as_fd())).unwrap();
        assert_eq!(share.uid, owner);
        assert_eq!(paid_by(1000, || pins.take(file.as_fd())).unwrap().uid, 1000);
    }

    #[test]
    fn who_deletes_what_is_roots_gets_no_more_than_a_share() {
        let pins = Pins::new(100, None);
        let of_root = std::fs::File::open("/").unwrap();
        assert_eq!(At::Fd(of_root.as_fd()).stat().unwrap().uid, ROOT);
        let by = |uid| {
            let take = || paid_by(uid, || pins.take(of_root.as_fd())).ok();
            std::iter::from_fn(take).collect::<Vec<_>>()
        };
        let unknown = by(UNKNOWN);
        assert_eq!(unknown.len(), 50);
        assert_eq!(by(1000).len(), 25, "others have theirs");
        assert_eq!(by(ROOT).len(), 50, "and who is known to be root has all");
    }
}
