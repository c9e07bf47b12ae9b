//! The upper, counted anew: after a kill while it is used, and at the end of a mount.

use std::cell::Cell;
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::io::{Errno, Result};

use super::{Quota, SECTOR, Taken};
use crate::sys::dir::DEEPEST;
use crate::sys::object::{At, Kind};
use crate::sys::schedule;

/// Opens a directory (O_PATH) in one of the upper, whatever that one's mode is.
pub type Opener = fn(BorrowedFd<'_>, &[u8]) -> Result<OwnedFd>;

/// Calls a function with each name in a directory of the upper, whatever its mode is.
pub type Lister = fn(BorrowedFd<'_>, &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

/// So often the tree is walked where directories are moved meanwhile.
const MOST_ROUNDS: usize = 20;
/// So long the end of a mount may take for that; what takes longer is counted by the next one, while it is used.
const AT_END: Duration = Duration::from_secs(5);
/// So long a mount waits for it before it is used, so that what is small is counted by then.
const AT_BEGINNING: Duration = Duration::from_millis(200);

/// Where the objects of an upper are: below its root, and in the indexes of the workdir, whose copies may have no other names.
#[derive(Debug)]
pub struct Tree {
    /// The indexes.
    pub indexes: Vec<OwnedFd>,
    /// How its directories are opened, and listed.
    pub open: Opener,
    /// The same.
    pub list: Lister,
}

impl Tree {
    /// Calls `visit` with each object below `root` and in the indexes. `ENFILE` where it is too deep, `EINTR` where `stop` tells so.
    fn walk(
        &self,
        root: &OwnedFd,
        visit: &mut dyn FnMut(At<'_>) -> Result<bool>,
        stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        visit(At::Fd(root.as_fd()))?;
        self.walk_in(root.as_fd(), 0, visit, stop)?;
        for index in &self.indexes {
            match self.walk_in(index.as_fd(), 0, visit, stop) {
                // It goes when it is empty.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn walk_in(
        &self,
        dir: BorrowedFd<'_>,
        depth: usize,
        visit: &mut dyn FnMut(At<'_>) -> Result<bool>,
        stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut below: Vec<Box<[u8]>> = Vec::new();
        (self.list)(dir, &mut |name| {
            if stop() {
                return Err(Errno::INTR);
            }
            match visit(At::Name(dir, name)) {
                Ok(true) => below.push(name.into()),
                Ok(false) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
            Ok(())
        })?;
        for name in below {
            if depth == DEEPEST {
                return Err(Errno::NFILE);
            }
            match (self.open)(dir, &name) {
                Ok(child) => self.walk_in(child.as_fd(), depth + 1, visit, stop)?,
                // It was removed or moved meanwhile.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Quota {
    /// Counts the upper anew where that is needed, by a thread that gives way to whoever else wants the processor or the disk once it
    /// has taken a while. What is small is counted when this returns.
    pub fn recount(self: &Arc<Self>, tree: Tree) {
        if self.is_exact() {
            return;
        }
        let (quota, (done, is_done)) = (self.clone(), std::sync::mpsc::channel());
        let work = move || {
            match quota.recount_now(&tree) {
                Ok(()) => log::info!("quota: the upper was counted: {} bytes", quota.taken().bytes),
                // From a walk, which says so where it would hold too many directories.
                Err(Errno::NFILE) => log::warn!(
                    "quota: the upper can't be counted: directories lie more than {DEEPEST} deep in it, or too many files are open; \
                     the larger count stays in force"
                ),
                Err(e) => {
                    log::warn!("quota: the upper can't be counted ({e}); the larger count stays in force")
                }
            }
            done.send(()).unwrap_or_default(); // who waited may have gone on
        };
        match std::thread::Builder::new().name("quota".to_owned()).spawn(work) {
            Ok(thread) => *self.thread.lock() = Some(thread),
            Err(e) => log::warn!("quota: the upper isn't counted anew: {e}"),
        }
        // What it finds is in force when it is there.
        let _in_time = is_done.recv_timeout(AT_BEGINNING);
    }

    /// Counts the upper anew while others may change it.
    ///
    /// # Errors
    /// Those of reading directories; `EINTR` when the mount ends, `EAGAIN` where directories are moved all the time.
    pub(super) fn recount_now(&self, tree: &Tree) -> Result<()> {
        let (begun, gives_way) = (Instant::now(), Cell::new(false));
        let stop = || {
            if !gives_way.get() && begun.elapsed() > AT_BEGINNING {
                gives_way.set(true);
                if let Err(error) = schedule::give_way() {
                    log::debug!("the upper is counted like everything else is done: {error}");
                }
            }
            self.stop.load(Ordering::Relaxed)
        };
        for _ in 0..MOST_ROUNDS {
            let moves = self.moves();
            let mut visit = |at: At<'_>| {
                let stat = at.stat()?;
                let own = self.meet_as(stat.ino, at).is_some();
                Ok(own && stat.kind() == Kind::Directory)
            };
            tree.walk(&self.root, &mut visit, &stop)?;
            let mut sums = self.sums.lock();
            if moves.is_some() && self.moves() == moves {
                sums.counted = sums.met;
                sums.recounting = false;
                return Ok(());
            }
        }
        Err(Errno::AGAIN)
    }

    /// Leaves to the next mount how much is taken, counted once more where anything was changed: a filesystem allots some blocks
    /// only when it writes. Nobody changes the upper any more; where that isn't so (`served`), the next mount counts it.
    pub fn close(&self, tree: Result<Tree>, served: bool) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            log::error!("quota: the thread that counts the upper has panicked");
        }
        let counted = match () {
            () if served => Err(Errno::BUSY),
            () if self.has_changed() => tree.and_then(|tree| self.count_at_end(&tree)),
            () => Ok(self.taken()),
        };
        let left = counted.and_then(|taken| self.mark.leave(taken));
        if let Err(e) = left {
            log::info!("quota: the next mount counts the upper: {e}");
            self.note(self.taken());
        }
    }

    fn count_at_end(&self, tree: &Tree) -> Result<Taken> {
        let end = Instant::now() + AT_END;
        let (mut taken, mut seen) = (Taken::default(), HashSet::new());
        let mut visit = |at: At<'_>| {
            let stat = at.stat()?;
            let directory = stat.kind() == Kind::Directory;
            if !self.is_own(&stat) || (!directory && stat.nlink > 1 && !seen.insert(stat.ino)) {
                return Ok(false);
            }
            taken.add(Taken { bytes: stat.blocks * SECTOR, inodes: 1 });
            Ok(directory)
        };
        tree.walk(&self.root, &mut visit, &|| Instant::now() >= end)?;
        Ok(taken)
    }

    /// Counts what is there now: what the counter must be while nobody changes the upper and nothing that was deleted is held.
    ///
    /// # Errors
    /// Those of reading directories.
    pub fn measured(&self, tree: &Tree) -> Result<Taken> {
        self.count_at_end(tree)
    }
}
