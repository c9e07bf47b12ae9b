//! Space that deletions free when the kernel forgets what was deleted: on a full disk a change waits for it.
//!
//! The union keeps a deleted object alive until the kernel forgets it, for it may be open and its number must not be
//! given again. The kernel does so right after the last close, but without waiting for an answer: a program that
//! deletes a file and then writes may come before the file's blocks are free, and would be told that the disk is full.
//! On a plain filesystem they are free when unlink returns.
//!
//! So a change that fails with ENOSPC or EDQUOT while nameless objects are kept waits until one of them is let go, and
//! is tried again. What is deleted and still open may stay for long: a wait that was in vain is not repeated until
//! something more is deleted.
//!
//! A filesystem may besides set room aside for a file that is open (XFS, for what may be appended), which counts as taken where
//! the upper has a limit. Before a change is refused for want of room such files are closed, if they are open only here.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use crate::error::{FsError, Result};
use crate::sys::memory;
use crate::sys::object::{At, Stat};
use crate::union::Union;
use crate::union::nodes::node::Node;

/// How long nothing may be let go until waiting is in vain.
const PATIENCE: Duration = Duration::from_millis(500);
/// So often it is looked whether the last holder of a forgotten node is done; holders don't tell.
const LOOK: Duration = Duration::from_millis(5);

/// The objects of the upper that have no name any more and are kept.
#[derive(Debug, Default)]
pub(in crate::union) struct DeferredFrees {
    state: Mutex<DeferredState>,
    released: Condvar,
    /// How many are kept: read without the lock, as most of what is forgotten has a name.
    kept: AtomicUsize,
    /// How many were let go so far.
    freed: AtomicU64,
}

#[derive(Debug, Default)]
struct DeferredState {
    /// By node number.
    kept: HashSet<u64>,
    /// How many names were lost so far.
    lost: u64,
    /// The same when a wait was in vain.
    in_vain: u64,
}

impl DeferredFrees {
    /// Notes that a node lost its name and is kept.
    pub fn defer(&self, ino: u64) {
        let mut state = self.state.lock();
        state.lost += 1;
        state.kept.insert(ino);
        self.kept.store(state.kept.len(), Ordering::SeqCst);
    }

    /// Notes that a node is known no more and what it held is closed, or it has a name again.
    pub fn note_freed(&self, ino: u64) {
        if self.kept.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut state = self.state.lock();
        if state.kept.remove(&ino) {
            self.kept.store(state.kept.len(), Ordering::SeqCst);
            self.freed.fetch_add(1, Ordering::SeqCst);
            self.released.notify_all();
        }
    }

    fn freed(&self) -> u64 {
        self.freed.load(Ordering::SeqCst)
    }

    /// Tells whether there may be room soon that wasn't there when `freed` were let go.
    fn may_come(&self, freed: u64) -> bool {
        let state = self.state.lock();
        self.freed() != freed || !state.kept.is_empty() && state.lost != state.in_vain
    }

    /// Tells whether something is kept for which it is worth waiting.
    pub fn may_soon_be_less(&self) -> bool {
        let state = self.state.lock();
        !state.kept.is_empty() && state.lost != state.in_vain
    }

    /// Waits until more than `freed` were let go. `look` is called now and then. False: it won't happen soon.
    fn wait(&self, freed: u64, look: impl Fn()) -> bool {
        let end = Instant::now() + PATIENCE;
        loop {
            look();
            let mut state = self.state.lock();
            if self.freed() != freed {
                return true;
            }
            if state.kept.is_empty() || state.lost == state.in_vain {
                return false;
            }
            let now = Instant::now();
            if now >= end {
                state.in_vain = state.lost;
                return false;
            }
            self.released.wait_until(&mut state, end.min(now + LOOK));
        }
    }
}

/// Tells whether a change failed for want of room.
pub(in crate::union) fn is_full(error: &FsError) -> bool {
    [Errno::NOSPC, Errno::DQUOT].contains(&error.errno())
}

/// A change that failed for want of room, to be tried again.
#[derive(Debug)]
pub struct Full {
    freed: u64,
}

impl Union {
    /// Makes a change, and where it fails for want of room that may come soon, tells so at once instead of waiting.
    pub fn try_change<T>(&self, change: impl Fn() -> Result<T>) -> std::result::Result<Result<T>, Full> {
        let freed = self.deferred.freed();
        let mut done = change();
        if done.as_ref().is_err_and(is_full) && self.give_back_what_is_set_aside() {
            done = change();
        }
        match done {
            Err(error) if is_full(&error) && self.deferred.may_come(freed) => Err(Full { freed }),
            done => Ok(done),
        }
    }

    /// Waits for room and makes the change again, until it succeeds or there is no more room to come. The caller is not
    /// a thread that the kernel's FORGETs wait for, and holds no lock.
    pub fn change_again<T>(&self, mut full: Full, change: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            if !self.deferred.wait(full.freed, || self.let_lingering_go()) {
                // A write that fits in part is not refused any more.
                return change();
            }
            match self.try_change(&change) {
                Ok(done) => return done,
                Err(again) => full = again,
            }
        }
    }

    /// Does as [`Union::try_change`] and [`Union::change_again`] in one.
    pub fn change_with_room<T>(&self, change: impl Fn() -> Result<T>) -> Result<T> {
        match self.try_change(&change) {
            Ok(done) => done,
            Err(full) => self.change_again(full, change),
        }
    }

    /// Closes files for which more is set aside than they hold, where that counts. Tells whether there is more room.
    pub(in crate::union) fn give_back_what_is_set_aside(&self) -> bool {
        let Some(quota) = self.quota() else { return false };
        let before = quota.taken().bytes;
        let sets_aside = |stat: &Stat| {
            let held = stat.size.next_multiple_of(u64::from(stat.blksize).max(1));
            stat.blocks.saturating_mul(512) > held
        };
        for file in self.files.close_those(sets_aside) {
            let at = At::Fd(file.as_fd());
            quota.look(quota.meet(at), at);
        }
        quota.taken().bytes < before
    }

    /// Forgets `count` lookups of a node.
    pub fn forget(&self, ino: u64, count: u64) {
        self.table.forget(ino, count, |ino| self.left(ino));
    }

    /// Returns how many nodes are known no more since [`Union::give_back`].
    pub fn gone(&self) -> usize {
        self.table.gone()
    }

    /// Gives the memory back that nodes took which are known no more.
    pub fn give_back(&self) {
        self.table.shrink();
        memory::trim_heaps();
    }

    /// Drops a node from the table if nobody knows it, holds it or lies below it.
    pub(in crate::union) fn release(&self, ino: u64) {
        self.table.release(ino, &mut |ino| self.left(ino));
    }

    /// Does as [`Union::release`], of a directory that was held because something was in it.
    pub(in crate::union) fn release_parent(&self, parent: Arc<Node>) {
        let ino = parent.ino;
        drop(parent);
        self.release(ino);
    }

    pub(in crate::union) fn let_lingering_go(&self) {
        self.table.release_lingering(&mut |ino| self.left(ino));
    }

    /// Drops what is kept under the number of a node that left the table.
    fn left(&self, ino: u64) {
        self.files.forget(ino);
        // A lookup that finds it anew puts it into the table first, and into these after. So each is looked at when nobody
        // can be about to put something in.
        let unknown = || self.table.get(ino).is_none();
        self.metacopies.remove_if(&ino, |_, _| unknown());
        self.halves.forget_if(ino, unknown);
        let parents = self.hardlinks.forget_if(ino, unknown);
        parents.into_iter().for_each(|parent| self.release_parent(parent));
        self.deferred.note_freed(ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    use crate::union::bed::Bed;
    use crate::union::change::create::Create;
    use crate::union::change::staged::New;

    /// Makes a union over empty layers, with a file in it that was deleted and that somebody still knows.
    fn with_deleted_file() -> (Bed, Union, Arc<Node>) {
        let bed = Bed::new(1);
        let union = bed.open();
        let create = Create { new: New::File, mode: 0o644, umask: 0, caller: union.own };
        let (node, _) = union.create(union.root(), b"f", create).unwrap();
        union.unlink(union.root(), b"f").unwrap();
        (bed, union, node)
    }

    fn full() -> Result<()> {
        Err(FsError::Os(Errno::NOSPC))
    }

    #[test]
    fn a_change_waits_for_what_is_being_let_go() {
        let (_bed, union, node) = with_deleted_file();
        let ino = node.ino;
        drop(node);
        let (tried, was_tried) = mpsc::channel();
        let change = || {
            tried.send(()).unwrap_or_default(); // only the first is waited for
            if union.node(ino).is_ok() { full() } else { Ok(()) }
        };
        let union = &union;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                was_tried.recv().unwrap();
                union.forget(ino, 1);
            });
            union.change_with_room(change).unwrap();
        });
    }

    #[test]
    fn what_a_request_still_holds_is_waited_for_too() {
        let (_bed, union, node) = with_deleted_file();
        let ino = node.ino;
        union.forget(ino, 1);
        assert_eq!((union.known_nodes(), union.files.len()), (2, 1), "kept as long as it is held");
        let held = std::cell::Cell::new(Some(node));
        union.change_with_room(|| if held.take().is_some() { full() } else { Ok(()) }).unwrap();
        assert_eq!((union.known_nodes(), union.files.len()), (1, 0));
    }

    #[test]
    fn what_stays_open_is_waited_for_once() {
        let (_bed, union, node) = with_deleted_file();
        let Err(first) = union.try_change(full) else { panic!("there may be room soon") };
        let start = Instant::now();
        union.change_again(first, full).unwrap_err();
        assert!(start.elapsed() >= PATIENCE);
        assert!(union.try_change(full).is_ok(), "nothing was deleted since");
        drop(node);
    }

    #[test]
    fn nothing_is_waited_for_where_nothing_was_deleted() {
        let (_bed, union, node) = with_deleted_file();
        union.forget(node.ino, 1);
        union.release_parent(node);
        assert!(union.try_change(full).is_ok());
        assert!(union.try_change(|| Err::<(), _>(FsError::Exists)).is_ok());
    }
}
