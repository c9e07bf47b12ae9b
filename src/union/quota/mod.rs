//! Quota: what an upper may take, and what it takes.
//!
//! What is counted are the upper's objects, each with what `st_blocks` says of it: so a hole costs nothing, a file with several
//! names costs once, and a file that is deleted and still open costs until it is closed. The count is a **counter**: each
//! object that is touched is known with what it was counted as ([`Quota::meet`]), and looked at again when something was done to
//! it ([`Quota::look`]). So what a filesystem allots or gives back by itself later (blocks of its tree of extents, what it
//! had set aside beyond the end) is in the counter no later than with the next change, and what goes takes away exactly what it
//! was counted as.
//!
//! What makes something larger takes **room** first: as much as it can need at the most, and where that is more than there is, as
//! much as it needs; near the limit as much as it needs from the beginning. So the limit isn't passed by those who write at once, what is
//! written over needs none, and nobody is refused for room that another takes without need.
//!
//! | module | what it knows |
//! |---|---|
//! | this | the counter, and room |
//! | [`recount`] | the upper counted anew, while it is used |
//! | [`mark`] | what a mount leaves to the next |
//! | [`state`] | what a daemon hands to another |
//! | [`taken`] | what may be taken, and what is |
//!
//! Nothing in [`crate::union::change`] changes the upper but through what counts it: `change::counted`.
//!
//! The error is `ENOSPC`, not `EDQUOT`: `statfs` tells the limit as the size of the filesystem, so it is full; programs know what to
//! do then, and XFS answers the same for its project quotas, which others limit containers with.

pub mod mark;
pub mod recount;
pub mod state;
pub mod taken;

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use dashmap::DashMap;
use parking_lot::{Condvar, Mutex};
use rustix::fs::StatVfs;
use rustix::io::{Errno, Result};

use crate::sys::extents;
use crate::sys::object::{At, Kind, Stat};
use crate::union::quota::mark::Mark;
pub use crate::union::quota::taken::{Bounds, Growth, Taken};

/// A block of `st_blocks`.
const SECTOR: u64 = 512;

/// At the latest after so many bytes more it is noted what is taken.
const STEP: u64 = 64 << 20;

/// Who wants more than this part of what is left takes no more room than is needed, which is to be asked.
const TIGHT: u64 = 16;

/// What is taken, by all that is known of it.
#[derive(Debug, Default)]
struct Sums {
    /// As the counter has it.
    counted: Taken,
    /// By all objects that were met.
    met: Taken,
    /// By what is under way.
    reserved: Taken,
    /// The writes among it, in the order in which they got their room, and how many there were. What one of them has allotted
    /// already is counted twice as soon as somebody looks at its file: as the file's, and as its room.
    writes: BTreeSet<u64>,
    writes_begun: u64,
    /// Whether the upper is being counted anew: until then the larger of the two is in force.
    recounting: bool,
}

impl Sums {
    fn in_force(&self) -> Taken {
        if self.recounting { self.counted.max(self.met) } else { self.counted }
    }

    fn change(&mut self, act: impl Fn(&mut Taken)) {
        act(&mut self.counted);
        act(&mut self.met);
    }
}

/// Counts what an upper takes, and refuses what would be more than it may.
#[derive(Debug)]
pub struct Quota {
    bounds: Bounds,
    /// The root of the upper.
    root: OwnedFd,
    /// Its filesystem.
    dev: u64,
    /// What a file there grows by.
    block: u64,
    /// Objects that were met, by number, and what they are counted as.
    objects: DashMap<u64, u64>,
    /// Objects that are held by descriptors, by number: one that loses its last name costs until it is let go.
    held: Mutex<HashMap<u64, usize>>,
    sums: Mutex<Sums>,
    /// A write that had room has ended.
    write_ended: Condvar,
    /// How many moves were begun, and ended, while the upper is counted anew.
    moves_begun: AtomicU64,
    moves_ended: AtomicU64,
    /// Whether the counter is another than at the start.
    changed: AtomicBool,
    /// What the next mount finds if this one is killed: bytes.
    noted: AtomicU64,
    /// Whether counting anew is to be given up, and who does it.
    stop: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    mark: Mark,
}

/// Room that was taken for something that is under way. It is given back when this is dropped: what was made is counted by then.
#[derive(Debug)]
pub struct Room<'q> {
    quota: &'q Quota,
    taken: Taken,
    /// Which of the writes has it.
    write: Option<u64>,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.taken == Taken::default() {
            return;
        }
        let mut sums = self.quota.sums.lock();
        sums.reserved.take(self.taken);
        if let Some(write) = self.write {
            sums.writes.remove(&write);
            self.quota.write_ended.notify_all();
        }
    }
}

/// A directory that is looked at again when this is dropped: whatever was done in it.
#[derive(Debug)]
pub struct WatchedDir {
    quota: Arc<Quota>,
    dir: Arc<OwnedFd>,
    ino: Option<u64>,
}

impl Drop for WatchedDir {
    fn drop(&mut self) {
        self.quota.look(self.ino, At::Fd(self.dir.as_fd()));
    }
}

impl Quota {
    /// Counts what an upper takes. What an earlier mount left is trusted if that ended in order; else the upper is to be counted
    /// anew ([`Quota::recount`]), and [`Quota::is_exact`] tells when that is done.
    ///
    /// # Errors
    /// Those of looking at the root, and of noting that it is in use.
    pub fn open(mark: Mark, root: BorrowedFd<'_>, bounds: Bounds) -> Result<Quota> {
        let found = mark.take()?;
        let sums = Sums { counted: found.taken, recounting: !found.clean, ..Sums::default() };
        let quota = Quota::with(mark, root, bounds, sums)?;
        quota.note(quota.taken());
        Ok(quota)
    }

    fn with(mark: Mark, root: BorrowedFd<'_>, bounds: Bounds, sums: Sums) -> Result<Quota> {
        Ok(Quota {
            bounds,
            root: rustix::io::fcntl_dupfd_cloexec(root, 3)?,
            dev: At::Fd(root).stat()?.dev,
            block: rustix::fs::fstatvfs(root)?.f_frsize.max(SECTOR),
            objects: DashMap::new(),
            held: Mutex::default(),
            noted: AtomicU64::new(sums.counted.bytes),
            changed: AtomicBool::new(sums.recounting),
            sums: Mutex::new(sums),
            write_ended: Condvar::new(),
            moves_begun: AtomicU64::new(0),
            moves_ended: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            thread: Mutex::default(),
            mark,
        })
    }

    /// Returns what the upper may take.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Returns what it takes: the number that is in force.
    pub fn taken(&self) -> Taken {
        self.sums.lock().in_force()
    }

    /// Returns the same with what there is room for that others are about to take.
    fn promised(&self) -> Taken {
        let sums = self.sums.lock();
        let mut all = sums.in_force();
        all.add(sums.reserved);
        all
    }

    /// Tells whether that is what is there: not so while it is being counted anew.
    pub fn is_exact(&self) -> bool {
        !self.sums.lock().recounting
    }

    /// Returns what statfs tells of the upper, of its filesystem's.
    pub fn statfs(&self, mut of: StatVfs) -> StatVfs {
        let taken = self.taken();
        if let Some(bytes) = self.bounds.bytes {
            let unit = of.f_frsize.max(1);
            let free = bytes.saturating_sub(taken.bytes) / unit;
            of.f_blocks = of.f_blocks.min(bytes / unit);
            of.f_bfree = of.f_bfree.min(free);
            of.f_bavail = of.f_bavail.min(free);
        }
        // A filesystem that makes inodes as they are needed tells of none.
        if let Some(inodes) = self.bounds.inodes {
            let free = inodes.saturating_sub(taken.inodes);
            let within = |there: u64, most: u64| if of.f_files == 0 { most } else { there.min(most) };
            (of.f_ffree, of.f_favail) = (within(of.f_ffree, free), within(of.f_favail, free));
            of.f_files = within(of.f_files, inodes);
        }
        of
    }

    /// Takes room for so many more bytes and objects. Where there isn't so much, it waits for the writes that are under way first:
    /// only then is it known what they have taken.
    ///
    /// # Errors
    /// `ENOSPC` where there isn't so much.
    pub fn room(&self, bytes: u64, inodes: u64) -> Result<Room<'_>> {
        self.take(Taken { bytes, inodes }, false)
    }

    fn take(&self, taken: Taken, writes: bool) -> Result<Room<'_>> {
        let mut sums = self.sums.lock();
        let begun = sums.writes_begun;
        loop {
            if let Some(room) = self.take_at_once(&mut sums, taken, writes) {
                return Ok(room);
            }
            // Those that came later had room where this has none: they don't keep it waiting.
            if sums.writes.first().is_none_or(|first| *first >= begun) {
                return Err(Errno::NOSPC);
            }
            // Whoever has this room asks the filesystem for something and waits for nobody else.
            self.write_ended.wait(&mut sums);
        }
    }

    /// Takes room if it is there. `writes`: only a write on the filesystem comes between this and the end of the room.
    fn take_at_once(&self, sums: &mut Sums, taken: Taken, writes: bool) -> Option<Room<'_>> {
        let mut all = sums.in_force();
        all.add(sums.reserved);
        all.add(taken);
        let over =
            |most: Option<u64>, wanted: u64, all: u64| wanted > 0 && most.is_some_and(|most| all > most);
        if over(self.bounds.bytes, taken.bytes, all.bytes)
            || over(self.bounds.inodes, taken.inodes, all.inodes)
        {
            return None;
        }
        sums.reserved.add(taken);
        let write = (writes && taken != Taken::default()).then_some(sums.writes_begun);
        if let Some(number) = write {
            sums.writes_begun += 1;
            sums.writes.insert(number);
        }
        Some(Room { quota: self, taken, write })
    }

    /// Takes room for a new object.
    ///
    /// # Errors
    /// As [`Quota::room`].
    pub fn room_for_one(&self) -> Result<Room<'_>> {
        // Its own first block, or its directory's next.
        self.room(self.block, 1)
    }

    /// Looks for room for one more name of an object: its directory may need a block.
    ///
    /// # Errors
    /// As [`Quota::room`].
    pub fn room_for_name(&self) -> Result<()> {
        self.room(self.block, 0).map(drop)
    }

    /// Takes room for what is written to a file from `start` on, so many bytes. `writes`: only a write on the upper's filesystem comes
    /// between this and the end of the room, so that others can wait for it.
    ///
    /// # Errors
    /// As [`Quota::room`], and those of asking what of it is there.
    pub fn room_in(
        &self,
        file: BorrowedFd<'_>,
        (start, length): (u64, u64),
        writes: bool,
    ) -> Result<Room<'_>> {
        let from = start / self.block * self.block;
        let end = start.saturating_add(length).next_multiple_of(self.block);
        let most = Taken { bytes: end - from, inodes: 0 };
        if !self.is_tight(most.bytes)
            && let Some(room) = self.take_at_once(&mut self.sums.lock(), most, writes)
        {
            return Ok(room);
        }
        let there = extents::with_room(file, from, end)?;
        self.take(Taken { bytes: most.bytes.saturating_sub(there), inodes: 0 }, writes)
    }

    /// Tells whether others could miss room that is taken for so many bytes and isn't needed.
    fn is_tight(&self, bytes: u64) -> bool {
        let Some(most) = self.bounds.bytes else { return false };
        let sums = self.sums.lock();
        let free = most.saturating_sub(sums.in_force().bytes).saturating_sub(sums.reserved.bytes);
        free / TIGHT < bytes
    }

    /// Takes room for a copy of the data of `bytes` bytes that `data` tells to be no holes.
    ///
    /// # Errors
    /// As [`Quota::room`], and those of `data`.
    pub fn room_for_copy(&self, bytes: u64, data: impl FnOnce() -> Result<u64>) -> Result<Room<'_>> {
        let most = Taken { bytes: bytes.next_multiple_of(self.block), inodes: 0 };
        if !self.is_tight(most.bytes)
            && let Some(room) = self.take_at_once(&mut self.sums.lock(), most, false)
        {
            return Ok(room);
        }
        self.room(data()?.next_multiple_of(self.block), 0)
    }

    /// Does a change that may need no room, of an object that is there, and has it taken back where it took more than there is.
    ///
    /// # Errors
    /// Those of both, and `ENOSPC`.
    pub fn try_change<R, E: From<Errno>>(
        &self,
        object: At<'_>,
        change: impl FnOnce() -> std::result::Result<R, E>,
        take_back: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<R, E> {
        let ino = self.meet(object);
        // What it grew by since somebody looked is none of this change's doing.
        self.look(ino, object);
        let size = || ino.and_then(|ino| self.objects.get(&ino).map(|blocks| *blocks)).unwrap_or_default();
        let before = size();
        let done = change()?;
        self.look(ino, object);
        // What others take meanwhile is none of its doing; what room was given to them is theirs.
        if size() <= before || self.bounds.bytes.is_none_or(|most| self.promised().bytes <= most) {
            return Ok(done);
        }
        let taken_back = take_back();
        self.look(ino, object);
        taken_back.and(Err(Errno::NOSPC.into()))
    }

    /// Gets to know an object that was there before. Returns its number; `None` for what isn't the upper's.
    pub fn meet(&self, at: At<'_>) -> Option<u64> {
        let ino = at.stat().ok()?.ino;
        self.meet_as(ino, at)
    }

    fn meet_as(&self, ino: u64, at: At<'_>) -> Option<u64> {
        let entry = self.objects.entry(ino);
        if let dashmap::Entry::Vacant(vacant) = entry {
            // Now that nobody else looks at it.
            let stat = at.stat().ok().filter(|stat| stat.ino == ino && self.is_own(stat))?;
            if stat.nlink == 0 {
                return None; // it was taken off already
            }
            vacant.insert(stat.blocks);
            self.sums.lock().met.add(Taken { bytes: stat.blocks * SECTOR, inodes: 1 });
        }
        Some(ino)
    }

    fn is_own(&self, stat: &Stat) -> bool {
        stat.dev == self.dev
    }

    /// Counts an object as what it takes now. `ino`: its number, from [`Quota::meet`].
    pub fn look(&self, ino: Option<u64>, at: At<'_>) {
        let Some(mut known) = ino.and_then(|ino| self.objects.get_mut(&ino)) else { return };
        let Some(now) = at.stat().ok().filter(|stat| Some(stat.ino) == ino && self.is_own(stat)) else {
            return;
        };
        let before = std::mem::replace(&mut *known, now.blocks);
        if before != now.blocks {
            self.changed.store(true, Ordering::Relaxed);
            self.sums.lock().change(|sum| {
                sum.take(Taken { bytes: before * SECTOR, inodes: 0 });
                sum.add(Taken { bytes: now.blocks * SECTOR, inodes: 0 });
            });
            drop(known);
            self.note_sometimes();
        }
    }

    /// Has a directory looked at when what is returned is dropped.
    pub fn watch(self: &Arc<Self>, dir: Arc<OwnedFd>) -> WatchedDir {
        let ino = self.meet(At::Fd(dir.as_fd()));
        WatchedDir { quota: self.clone(), dir, ino }
    }

    /// Counts an object that was just made.
    pub fn made(&self, at: At<'_>) {
        let Some(stat) = at.stat().ok().filter(|stat| self.is_own(stat)) else { return };
        self.changed.store(true, Ordering::Relaxed);
        let before = self.objects.insert(stat.ino, stat.blocks);
        self.sums.lock().change(|sum| {
            // Its number was another's of which nobody saw that it went.
            if let Some(before) = before {
                sum.take(Taken { bytes: before * SECTOR, inodes: 1 });
            }
            sum.add(Taken { bytes: stat.blocks * SECTOR, inodes: 1 });
        });
    }

    /// Does what takes a name from an object, and takes the object off the count if it was the last one.
    ///
    /// # Errors
    /// Those of `remove`.
    pub fn losing<R, E>(
        &self,
        at: At<'_>,
        remove: impl FnOnce() -> std::result::Result<R, E>,
    ) -> std::result::Result<R, E> {
        let Some(pin) = at.pin().ok() else { return remove() };
        let held = At::Fd(pin.as_fd());
        let ino = self.meet(held);
        let done = remove()?;
        if let (Some(ino), Ok(stat)) = (ino, held.stat())
            && stat.nlink == 0
        {
            self.gone(ino);
        }
        Ok(done)
    }

    /// Notes that an object has no name any more.
    fn gone(&self, ino: u64) {
        if !self.held.lock().contains_key(&ino) {
            self.take_off(ino);
        }
    }

    fn take_off(&self, ino: u64) {
        let Some((_, blocks)) = self.objects.remove(&ino) else { return };
        self.changed.store(true, Ordering::Relaxed);
        self.sums.lock().change(|sum| sum.take(Taken { bytes: blocks * SECTOR, inodes: 1 }));
    }

    /// Notes that a descriptor holds an object. Returns its number, for [`Quota::let_go`]; `None` for what isn't on the upper's
    /// filesystem.
    pub fn hold(&self, fd: BorrowedFd<'_>) -> Option<u64> {
        let stat = At::Fd(fd).stat().ok().filter(|stat| self.is_own(stat))?;
        *self.held.lock().entry(stat.ino).or_default() += 1;
        Some(stat.ino)
    }

    /// Notes that a descriptor is about to be closed. An object without names goes with the last one.
    pub fn let_go(&self, ino: u64, fd: BorrowedFd<'_>) {
        {
            let mut held = self.held.lock();
            if let Some(count) = held.get_mut(&ino) {
                *count -= 1;
                if *count > 0 {
                    return;
                }
                held.remove(&ino);
            }
        }
        if At::Fd(fd).stat().is_ok_and(|stat| stat.nlink == 0) {
            self.take_off(ino);
        }
    }

    /// Does what moves what is under these names.
    pub fn moving<R>(&self, names: [Option<At<'_>>; 2], act: impl FnOnce() -> R) -> R {
        if self.is_exact() {
            return act();
        }
        let mut directory = false;
        for at in names.into_iter().flatten() {
            match at.stat() {
                Ok(stat) if stat.kind() == Kind::Directory => directory = true,
                Ok(stat) => drop(self.meet_as(stat.ino, at)),
                Err(_) => {}
            }
        }
        if !directory {
            return act();
        }
        // Who walks the tree meanwhile may miss what is in it.
        self.moves_begun.fetch_add(1, Ordering::SeqCst);
        let done = act();
        self.moves_ended.fetch_add(1, Ordering::SeqCst);
        done
    }

    /// Returns how many moves there were so far; `None`: one is under way.
    fn moves(&self) -> Option<u64> {
        let ended = self.moves_ended.load(Ordering::SeqCst);
        Some(ended).filter(|ended| self.moves_begun.load(Ordering::SeqCst) == *ended)
    }

    /// Notes how much is taken, now and then, for a mount that comes after a kill.
    fn note_sometimes(&self) {
        let now = self.taken();
        let step = self.bounds.bytes.map_or(STEP, |bytes| (bytes / 64).clamp(1 << 20, STEP));
        let noted = self.noted.load(Ordering::Relaxed);
        if now.bytes.abs_diff(noted) < step || self.noted.swap(now.bytes, Ordering::Relaxed) == now.bytes {
            return;
        }
        self.note(now);
    }

    /// Notes how much is taken. A count that can't be noted is none after a kill; the upper can be used all the same.
    fn note(&self, taken: Taken) {
        if let Err(e) = self.mark.note(taken) {
            log::info!("quota: the count can't be noted in the workdir: {e}");
        }
    }

    /// Tells whether anything was changed.
    pub fn has_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn quota(top: &std::path::Path, bytes: u64) -> (std::path::PathBuf, Quota) {
        let (upper, work) = (top.join("upper"), top.join("work"));
        std::fs::create_dir(&upper).unwrap();
        std::fs::create_dir(&work).unwrap();
        let [root, work] = [&upper, &work].map(|path| File::open(path).unwrap());
        let mark = Mark::new(root.as_fd(), work.as_fd(), None, false).unwrap();
        let bounds = Bounds { bytes: Some(bytes), inodes: None };
        (upper, Quota::open(mark, root.as_fd(), bounds).unwrap())
    }

    /// A change that takes nothing, beside another's that takes more than there is.
    #[test]
    fn nobody_is_refused_for_what_another_takes_meanwhile() {
        let top = tempfile::tempdir_in("/tmp").unwrap();
        let (upper, quota) = quota(top.path(), 1 << 20);
        std::fs::write(upper.join("f"), "x").unwrap();
        let file = File::open(upper.join("f")).unwrap();
        let tried = quota.try_change(
            At::Fd(file.as_fd()),
            || {
                std::fs::write(upper.join("other"), vec![7; 2 << 20]).unwrap();
                let other = File::open(upper.join("other")).unwrap();
                other.sync_all().unwrap();
                quota.made(At::Fd(other.as_fd()));
                Ok::<_, Errno>(())
            },
            || panic!("it is taken back"),
        );
        assert_eq!(tried, Ok(()));
        assert!(quota.taken().bytes > 1 << 20);
    }

    /// A change that takes a block, beside a writer who has room and has not written yet.
    #[test]
    fn room_that_a_writer_has_is_not_taken_by_a_change() {
        let top = tempfile::tempdir_in("/tmp").unwrap();
        let (upper, quota) = quota(top.path(), 1 << 20);
        std::fs::write(upper.join("f"), "").unwrap();
        let file = File::options().read(true).write(true).open(upper.join("f")).unwrap();
        quota.meet(At::Fd(file.as_fd())).unwrap();
        let left = (1 << 20) - quota.taken().bytes;
        let grow = || {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 4096)?;
            Ok::<_, Errno>(())
        };
        let shrink = || {
            rustix::fs::ftruncate(&file, 0)?;
            Ok(())
        };
        let room = quota.room(left, 0).unwrap();
        assert_eq!(quota.try_change(At::Fd(file.as_fd()), grow, shrink), Err(Errno::NOSPC));
        assert_eq!(quota.taken().bytes, (1 << 20) - left, "it is taken back");
        drop(room);
        assert_eq!(quota.try_change(At::Fd(file.as_fd()), grow, shrink), Ok(()));
    }

    /// A change that takes nothing, of a file that took more than there is before, unseen.
    #[test]
    fn a_change_is_not_blamed_for_what_came_before_it() {
        let top = tempfile::tempdir_in("/tmp").unwrap();
        let (upper, quota) = quota(top.path(), 1 << 20);
        std::fs::write(upper.join("f"), "x").unwrap();
        let file = File::open(upper.join("f")).unwrap();
        quota.meet(At::Fd(file.as_fd())).unwrap();
        std::fs::write(upper.join("f"), vec![7; 2 << 20]).unwrap();
        file.sync_all().unwrap();
        let change = || Ok::<_, Errno>(());
        let tried = quota.try_change(At::Fd(file.as_fd()), change, || panic!("it is taken back"));
        assert_eq!(tried, Ok(()));
        assert!(quota.taken().bytes > 1 << 20);
    }

    /// Near the limit nobody is refused for room that another takes and doesn't need.
    #[test]
    fn room_that_is_there_already_is_not_taken_twice() {
        let top = tempfile::tempdir_in("/tmp").unwrap();
        let (upper, quota) = quota(top.path(), 8 << 20);
        std::fs::write(upper.join("f"), vec![7; 4 << 20]).unwrap();
        let file = File::open(upper.join("f")).unwrap();
        quota.meet(At::Fd(file.as_fd())).unwrap();
        assert!(quota.taken().bytes >= 4 << 20);
        let over = quota.room_in(file.as_fd(), (0, 4 << 20), true).unwrap();
        let copy = quota.room_for_copy(4 << 20, || Ok(4096)).unwrap();
        drop(quota.room(3 << 20, 0).unwrap());
        drop((over, copy));
        assert_eq!(quota.room(5 << 20, 0).map(drop), Err(Errno::NOSPC));
    }

    /// A write of which a part is in its file's count already, beside another that fits once it has ended.
    #[test]
    fn what_is_counted_twice_for_a_moment_keeps_nobody_out() {
        let top = tempfile::tempdir_in("/tmp").unwrap();
        let (upper, quota) = quota(top.path(), 1 << 20);
        std::fs::write(upper.join("f"), "").unwrap();
        let file = File::options().write(true).open(upper.join("f")).unwrap();
        let ino = quota.meet(At::Fd(file.as_fd()));
        let half = 500 << 10;
        let first = quota.room_in(file.as_fd(), (0, half), true).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, half).unwrap();
        quota.look(ino, At::Fd(file.as_fd()));
        let (waits, waiting) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                waits.send(()).unwrap();
                quota.room_in(file.as_fd(), (half, half), true).map(drop)
            });
            waiting.recv().unwrap();
            // Whoever is refused at once is so by now or soon; the sums are its own while it waits.
            while !other.is_finished() && quota.write_ended.notify_all() == 0 {
                std::thread::yield_now();
            }
            assert!(!other.is_finished());
            drop(first);
            assert_eq!(other.join().unwrap(), Ok(()));
        });
        assert_eq!(quota.room_in(file.as_fd(), (half, 2 * half), true).map(drop), Err(Errno::NOSPC));
    }
}
