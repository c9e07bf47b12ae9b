//! Sealing while the tree is used (`lazy=on`), by a thread that gives way to whoever else wants a processor or the disk.
//!
//! What leaves data below is noted by its number when it comes to be. After a moment the thread copies what is missing, in steps
//! between which others read and write the file, and no faster than a disk has room for others' work. What it doesn't come to is
//! sealed when the session has ended ([`Union::seal_rest`]): files that the kernel has forgotten meanwhile, more than can be noted,
//! and what an earlier mount has left.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::fstatvfs;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::sys::schedule;
use crate::union::Union;
use crate::union::escaped_path::EscapedPath;
use crate::union::nodes::node::{Node, NodePlace};

/// Bytes of a step: who else wants the file waits no longer than one takes.
pub(super) const STEP: u64 = 1 << 20;
/// Bytes that are copied a second, at the most.
const RATE: u64 = 64 << 20;
/// How long the disk is left to others after each file at the least, for each is synced.
const REST: Duration = Duration::from_millis(10);
/// How long a file is left alone first: what is removed soon was never copied.
const DELAY: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(1) };
/// So many files are noted.
const MOST: usize = 1 << 16;
/// This part of the upper's filesystem stays free for those who write, or so many bytes where that is less.
const SPARE: u64 = 16;
const MOST_SPARE: u64 = 1 << 30;

/// Files that wait for being sealed.
#[derive(Debug, Default)]
pub(in crate::union) struct Waiting {
    /// Whether they are noted at all.
    is_on: bool,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// The number of the one that is being sealed; 0: none is.
    sealing: AtomicU64,
    /// Whether it was told that the disk is too full.
    told_full: AtomicBool,
}

/// How much is left below of what is copied up block by block.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LazyReport {
    /// Half-copied files that are open, or were lately.
    pub half_copied: u64,
    /// Blocks of these that are in the upper.
    pub own_blocks: u64,
    /// All of their blocks.
    pub all_blocks: u64,
    /// Bytes of them that were not copied.
    pub bytes_saved: u64,
    /// Files that have got all their data since the mount began.
    pub sealed: u64,
    /// Files that wait for being sealed in the background.
    pub waiting: u64,
    /// The one that is being sealed.
    pub sealing: Option<EscapedPath>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Their numbers, and when each was noted.
    files: VecDeque<(u64, Instant)>,
    /// The same numbers: a file that is opened again and again waits once.
    noted: HashSet<u64>,
    ended: bool,
}

impl Waiting {
    /// Makes a list; `is_on`: files are noted in it.
    pub fn new(is_on: bool) -> Waiting {
        Waiting { is_on, ..Waiting::default() }
    }

    /// Tells whether files are sealed without being asked for.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Notes that the file of that number has data below.
    pub fn note(&self, ino: u64) {
        if !self.is_on {
            return;
        }
        let mut queue = self.queue.lock();
        let is_sealed = self.sealing.load(Ordering::Relaxed) == ino;
        if queue.files.len() < MOST && !is_sealed && queue.noted.insert(ino) {
            queue.files.push_back((ino, Instant::now()));
            self.changed.notify_all();
        }
    }

    /// Returns the numbers of all that wait.
    pub(in crate::union) fn noted(&self) -> Vec<u64> {
        self.queue.lock().files.iter().map(|(ino, _)| *ino).collect()
    }

    /// Waits for the next one that was left alone long enough; `None` when nobody shall wait any more.
    fn next(&self) -> Option<u64> {
        let mut queue = self.queue.lock();
        while !queue.ended {
            match queue.files.front().map(|(_, noted)| *noted + DELAY) {
                None => self.changed.wait(&mut queue),
                Some(begin) if begin > Instant::now() => drop(self.changed.wait_until(&mut queue, begin)),
                Some(_) => {
                    let (ino, _) = queue.files.pop_front()?;
                    queue.noted.remove(&ino);
                    return Some(ino);
                }
            }
        }
        None
    }

    /// Leaves the disk to others for a while. Tells whether it goes on.
    fn rest(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut queue = self.queue.lock();
        while !queue.ended && !self.changed.wait_until(&mut queue, until).timed_out() {}
        !queue.ended
    }

    fn has_ended(&self) -> bool {
        self.queue.lock().ended
    }

    /// Goes on after [`Waiting::end`].
    fn begin(&self) {
        self.queue.lock().ended = false;
    }

    fn end(&self) {
        self.queue.lock().ended = true;
        self.changed.notify_all();
    }
}

/// The thread that seals. It ends when this is dropped, after the step that it is in.
#[derive(Debug)]
pub struct Sealer {
    union: Arc<Union>,
    thread: Option<JoinHandle<()>>,
}

impl Sealer {
    /// Begins to seal what the union leaves below; `None` where the union leaves it there.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(union: &Arc<Union>) -> io::Result<Option<Sealer>> {
        if !union.waiting.is_on() || union.upper.is_none() {
            return Ok(None);
        }
        union.waiting.begin();
        let sealed = union.clone();
        let thread =
            std::thread::Builder::new().name("sealing".into()).spawn(move || sealed.seal_what_waits())?;
        Ok(Some(Sealer { union: union.clone(), thread: Some(thread) }))
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.union.waiting.end();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that seals has panicked");
        }
    }
}

impl Union {
    /// Returns how much is left below of what is copied up block by block; `None` where nothing is.
    pub fn lazy_report(&self) -> Option<LazyReport> {
        if !self.block_wise {
            return None;
        }
        let mut report = LazyReport {
            sealed: self.counters.sealed.load(Ordering::Relaxed),
            waiting: self.waiting.queue.lock().files.len() as u64,
            ..LazyReport::default()
        };
        self.halves.for_each(|half| {
            let (own, all) = half.count();
            report.half_copied += 1;
            report.own_blocks += own;
            report.all_blocks += all;
            report.bytes_saved += half.below();
        });
        let sealing = self.waiting.sealing.load(Ordering::Relaxed);
        report.sealing =
            self.node(sealing).ok().filter(|_| sealing != 0).map(|node| self.path_of(&node).into());
        Some(report)
    }

    fn seal_what_waits(&self) {
        if let Err(e) = schedule::give_way() {
            log::debug!("sealing runs like everything else: {e}");
        }
        while let Some(ino) = self.waiting.next() {
            // Forgotten meanwhile: the end of the session finds it.
            let Ok(node) = self.node(ino) else { continue };
            self.waiting.sealing.store(ino, Ordering::Relaxed);
            let sealed = self.seal_in_steps(&node);
            self.waiting.sealing.store(0, Ordering::Relaxed);
            if self.waiting.has_ended() && self.metacopies.contains_key(&ino) {
                // Whoever goes on goes on with it.
                self.waiting.note(ino);
            }
            if let Err(e) = sealed {
                let path = self.path_of(&node);
                log::warn!("{}: isn't sealed yet: {e}", String::from_utf8_lossy(&path).escape_debug());
            }
            drop(node);
            self.release(ino);
        }
    }

    fn seal_in_steps(&self, node: &Arc<Node>) -> Result<()> {
        loop {
            // What was removed is about to go.
            if matches!(*node.place.read(), NodePlace::Pinned { .. }) || !self.has_room_for(node)? {
                return Ok(());
            }
            let moved = self.seal_some(node, STEP)?;
            let time = Duration::from_secs_f64(moved.unwrap_or(0) as f64 / RATE as f64);
            let time = if moved.is_none() { time.max(REST) } else { time };
            if !self.waiting.rest(time) || moved.is_none() {
                return Ok(());
            }
        }
    }

    /// Tells whether the upper's filesystem has room for all of the file, and for others' work besides.
    pub(super) fn has_room_for(&self, node: &Arc<Node>) -> Result<bool> {
        let upper = self.upper()?;
        let stat = self.with_object(node, |object| Ok(object.at().stat()?))?;
        let missing = stat.size.saturating_sub(stat.blocks * 512);
        let room = fstatvfs(upper.root())?;
        let room = match upper.quota() {
            Some(quota) => quota.statfs(room),
            None => room,
        };
        let bytes = |blocks: u64| blocks.saturating_mul(room.f_frsize);
        let spare = bytes(room.f_blocks / SPARE).min(MOST_SPARE);
        let has = bytes(room.f_bavail).saturating_sub(spare) >= missing;
        if !has && !self.waiting.told_full.swap(true, Ordering::Relaxed) {
            log::warn!(
                "the upper's filesystem is too full for what lies below of files that were written: it stays there; \
                 unionmount seal copies it when there is room"
            );
        }
        Ok(has)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::union::bed::{Bed, look_up};
    use crate::union::data::file::Write;
    use crate::union::options::{FsOptions, Lazy};
    use crate::union::view::attr::SetAttr;

    const SIZE: usize = 3 << 20;
    const PATIENCE: Duration = Duration::from_secs(60);

    fn build() -> Bed {
        let bed = Bed::new(1);
        bed.dir("0/d").file("0/small");
        for name in ["a", "b"] {
            fs::write(bed.at("0/d").join(name), original(name)).unwrap();
        }
        bed
    }

    fn original(name: &str) -> Vec<u8> {
        (0..SIZE as u32)
            .map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ name.as_bytes()[0])
            .collect()
    }

    fn open(bed: &Bed, metacopy: bool) -> Arc<Union> {
        Arc::new(bed.open_with(&FsOptions { lazy: Lazy::On, metacopy, ..FsOptions::default() }))
    }

    fn chmod(union: &Union, path: &str) {
        let mode = SetAttr { mode: Some(0o640), ..SetAttr::default() };
        union.setattr(&look_up(union, path).unwrap(), mode, false).unwrap();
    }

    fn unsealed(union: &Union) -> Vec<String> {
        let mut paths = Vec::new();
        union.for_each_unsealed(&mut |file| paths.push(file.path.to_string())).unwrap();
        paths.sort();
        paths
    }

    #[test]
    fn what_is_written_to_is_sealed_meanwhile_and_shows_what_it_showed() {
        let bed = build();
        let union = open(&bed, false);
        let sealer = Sealer::start(&union).unwrap().unwrap();
        chmod(&union, "small");
        chmod(&union, "d/b");
        let node = look_up(&union, "d/a").unwrap();
        let mut expected = original("a");
        // While it is being sealed, at the borders of blocks and anywhere.
        for n in 0..400usize {
            let (at, bytes) = (n * 7919 * 97 % (SIZE - 5000), vec![n as u8; 1 + n * 13 % 5000]);
            union.write(&node, at as u64, &bytes, Write::default()).unwrap();
            expected[at..at + bytes.len()].copy_from_slice(&bytes);
            let mut found = vec![0; bytes.len() + 100];
            let count = union.read(&node, at as u64, &mut found).unwrap();
            assert!(found[..count] == expected[at..at + count], "write {n}");
        }
        assert!(support::wait_until(PATIENCE, || union.metacopies.is_empty()), "it is never sealed");
        drop(sealer);
        assert_eq!(unsealed(&union), [""; 0]);
        assert!(fs::read(bed.at("upper/d/a")).unwrap() == expected);
        assert!(fs::read(bed.at("upper/d/b")).unwrap() == original("b"));
        assert_eq!(fs::read_to_string(bed.at("upper/small")).unwrap(), "0/small");
        union.shut_down();
    }

    #[test]
    fn what_an_earlier_mount_has_left_is_sealed_once_it_is_used() {
        let bed = build();
        let before = Arc::new(bed.open_with(&FsOptions { lazy: Lazy::Keep, ..FsOptions::default() }));
        for name in ["d/a", "d/b"] {
            before.write(&look_up(&before, name).unwrap(), 5, b"here", Write::default()).unwrap();
        }
        before.shut_down();
        drop(before);
        let union = open(&bed, false);
        let sealer = Sealer::start(&union).unwrap().unwrap();
        union.write(&look_up(&union, "d/a").unwrap(), 50_000, b"and here", Write::default()).unwrap();
        assert!(support::wait_until(PATIENCE, || unsealed(&union) == ["/d/b"]), "{:?}", unsealed(&union));
        drop(sealer);
        union.shut_down();
    }

    #[test]
    fn what_nobody_came_to_is_sealed_in_the_end() {
        for (metacopy, left) in [(false, &[][..]), (true, &["/d/b", "/small"])] {
            let bed = build();
            let union = open(&bed, metacopy);
            chmod(&union, "small");
            chmod(&union, "d/b");
            let node = look_up(&union, "d/a").unwrap();
            union.write(&node, 5, b"here", Write::default()).unwrap();
            let broken_off = union.seal_rest(&mut |_| (), &|| true).unwrap();
            assert_eq!((broken_off.len(), unsealed(&union).len()), (0, 3));
            assert!(union.seal_rest(&mut |_| (), &|| false).unwrap().is_empty());
            assert_eq!(unsealed(&union), left, "metacopy: {metacopy}");
            let mut expected = original("a");
            expected[5..9].copy_from_slice(b"here");
            assert!(fs::read(bed.at("upper/d/a")).unwrap() == expected);
            union.shut_down();
        }
    }

    #[test]
    fn what_is_removed_or_forgotten_holds_nobody_up() {
        let bed = build();
        let union = open(&bed, false);
        for name in ["a", "b"] {
            let node = look_up(&union, &format!("d/{name}")).unwrap();
            union.write(&node, 5, b"here", Write::default()).unwrap();
        }
        let d = look_up(&union, "d").unwrap();
        union.unlink(&d, b"a").unwrap();
        let b = look_up(&union, "d/b").unwrap();
        let (ino, lookups) = (b.ino, b.lookups());
        drop(b);
        union.forget(ino, lookups);
        assert!(union.node(ino).is_err(), "it is known still");
        let sealer = Sealer::start(&union).unwrap().unwrap();
        assert!(
            support::wait_until(PATIENCE, || union.waiting.queue.lock().files.is_empty()),
            "it waits for one"
        );
        drop(sealer);
        assert_eq!(unsealed(&union), ["/d/b"]);
        union.shut_down();
    }

    /// Takes more files than stay open.
    #[test]
    fn files_that_are_opened_again_and_again_wait_once() {
        let bed = build();
        let files = 0..200;
        for n in files.clone() {
            fs::File::create(bed.at(format!("0/d/{n}"))).unwrap().set_len(SIZE as u64).unwrap();
        }
        let union = open(&bed, false);
        let nodes: Vec<_> = files.map(|n| look_up(&union, &format!("d/{n}")).unwrap()).collect();
        for node in &nodes {
            union.write(node, 5, b"here", Write::default()).unwrap();
        }
        for node in nodes.iter().chain(&nodes) {
            assert_eq!(union.read(node, 0, &mut [0; 16]).unwrap(), 16);
        }
        assert_eq!(union.lazy_report().unwrap().waiting, 200);
        // One that was come to waits again when it is opened again.
        let first = union.waiting.next().unwrap();
        assert_eq!(first, nodes[0].ino);
        union.waiting.note(first);
        assert_eq!(union.lazy_report().unwrap().waiting, 200);
        union.shut_down();
    }

    #[test]
    fn nothing_is_noted_where_nobody_seals() {
        let bed = build();
        let union = Arc::new(bed.open_with(&FsOptions { lazy: Lazy::Keep, ..FsOptions::default() }));
        assert!(Sealer::start(&union).unwrap().is_none());
        union.write(&look_up(&union, "d/a").unwrap(), 5, b"here", Write::default()).unwrap();
        assert!(union.waiting.queue.lock().files.is_empty());
        union.shut_down();
    }
}
