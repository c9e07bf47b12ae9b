//! The I/O mode of each open with `-o passthrough`, chosen by what is open.
//!
//! The kernel keeps one mode a file. While somebody reads through the mount's page cache, an open with passthrough
//! fails (`EIO`); while one is passed through to a real file, a cached open and an open on another real file fail, and
//! what was opened for direct I/O can't be mapped (`ENODEV`). So all opens of a file that exist at a time have the same
//! mode, and on the same real file; the first one chooses:
//!
//! | open already | asked: its data stay where they are | asked: a copy-up may move them | asked: one has moved them | its last release |
//! |---|---|---|---|---|
//! | nothing | **passed through** to the real file; *cached* if the kernel refuses | *cached*; with `passthrough=lower` **passed through** | as "stay" | |
//! | *cached* | *cached* | *cached* | *cached* | nothing |
//! | **passed through** | **passed through**, the same real file | the same | another node: see below | nothing, and the real file is let go |
//!
//! A file of the upper of which some data are still below (a metacopy, a half-copied file) is a lower's file here: cached,
//! until who has it open after it got them has closed it.
//!
//! Data stay where they are in the upper, and everywhere in a mount without one. A lower's file of a writable mount is
//! cached, since the real file of an open can't be exchanged: passed through, who opened it before its copy-up would
//! never see what is written after. When it is copied up while it is open, whoever opens it until the last of those
//! has gone is cached too, and reads and writes as without passthrough.
//!
//! With `passthrough=lower` that is given up: files of lowers are passed through as well, and one that was copied up since is opened
//! as another node of the kernel's, with a mode of its own (see `node_id`). A file is never both passed through to a lower and
//! opened to write it: the open that writes copies up before.
//!
//! The page cache of a file can be older than its data only after it was passed through. Then all of its data are in
//! the upper; so a cached open in the upper that is the first begins with an empty cache.
//!
//! Direct I/O (FOPEN_DIRECT_IO) is no fourth mode: while others are passed through the kernel lets nobody in who isn't, by the
//! same real file (`EIO`), and maps that.
//!
//! The kernel ends an open before it sends the release, and begins it after it got the answer. So what is counted here
//! is never less than what the kernel has.

use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// How one file is open.
#[derive(Debug)]
enum Mode<B> {
    Idle,
    Cached(u32),
    PassedThrough(Arc<B>, u32),
}

/// The mode of one open.
#[derive(Debug)]
pub(super) enum Opened<B> {
    /// Through the mount's page cache. `first`: nobody else has the file open.
    Cached { first: bool },
    /// To a real file, which the kernel knows by this.
    PassedThrough(Arc<B>),
    /// Read by requests, and mapped by that real file.
    Direct(Arc<B>),
}

/// How one more opens a file that is passed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// As the others.
    Same,
    /// For direct I/O: the data are no longer in that real file.
    Direct,
}

/// A file that is open, for another process that goes on with the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenState {
    /// The node id.
    ino: u64,
    /// How often it is open.
    opens: u32,
    /// What the kernel knows the real file by that it is passed through to.
    backing: Option<i32>,
}

/// The files that are open, by node id. `B` is what the kernel knows a real file by; dropping it lets it go.
#[derive(Debug)]
pub(super) struct IoModes<B>(DashMap<u64, Arc<Mutex<Mode<B>>>>);

impl<B> IoModes<B> {
    pub(super) fn new() -> IoModes<B> {
        IoModes(DashMap::new())
    }

    /// Notes one more open. `real` gives the real file to pass through to, if there may be one; it is asked only when
    /// the file isn't open. `join` is asked when it is passed through, how it may be opened once more.
    ///
    /// # Errors
    /// Those of `real` and `join`; then it isn't opened.
    pub(super) fn open<E>(
        &self,
        ino: u64,
        real: impl FnOnce() -> Result<Option<B>, E>,
        join: impl FnOnce(&B) -> Result<Join, E>,
    ) -> Result<Opened<B>, E> {
        let file = self.0.entry(ino).or_insert_with(|| Arc::new(Mutex::new(Mode::Idle))).clone();
        let opened = {
            let mut mode = file.lock();
            match &mut *mode {
                Mode::Idle => real().map(|real| match real {
                    Some(real) => {
                        let real = Arc::new(real);
                        *mode = Mode::PassedThrough(real.clone(), 1);
                        Opened::PassedThrough(real)
                    }
                    None => {
                        *mode = Mode::Cached(1);
                        Opened::Cached { first: true }
                    }
                }),
                Mode::Cached(opens) => {
                    *opens += 1;
                    Ok(Opened::Cached { first: false })
                }
                Mode::PassedThrough(real, opens) => join(real).map(|join| {
                    *opens += 1;
                    match join {
                        Join::Same => Opened::PassedThrough(real.clone()),
                        Join::Direct => Opened::Direct(real.clone()),
                    }
                }),
            }
        };
        drop(file);
        if opened.is_err() {
            self.drop_if_idle(ino);
        }
        opened
    }

    /// Notes one open less. `closed` gets the real file if it was passed through to until now.
    pub(super) fn release(&self, ino: u64, closed: impl FnOnce(Arc<B>)) {
        let Some(file) = self.0.get(&ino).map(|file| file.clone()) else { return };
        let gone = {
            let mut mode = file.lock();
            match &mut *mode {
                Mode::Cached(opens) | Mode::PassedThrough(_, opens) if *opens > 1 => {
                    *opens -= 1;
                    None
                }
                _ => Some(std::mem::replace(&mut *mode, Mode::Idle)),
            }
        };
        drop(file);
        if let Some(gone) = gone {
            // Outside of all locks: it is a system call.
            if let Mode::PassedThrough(real, _) = gone {
                closed(real);
            }
            self.drop_if_idle(ino);
        }
    }

    fn drop_if_idle(&self, ino: u64) {
        // Whoever has it in hand is about to open it; nobody can take it in hand while this is asked.
        self.0.remove_if(&ino, |_, file| Arc::strong_count(file) == 1 && matches!(*file.lock(), Mode::Idle));
    }

    /// Tells whether the file is passed through to a real file of which `is` is true.
    pub(super) fn is_passed_through(&self, ino: u64, is: impl FnOnce(&B) -> bool) -> bool {
        let file = self.0.get(&ino).map(|file| file.clone());
        file.is_some_and(|file| matches!(&*file.lock(), Mode::PassedThrough(real, _) if is(real)))
    }

    /// Returns what another process has to know. `name`: what the kernel knows a real file by.
    pub(super) fn state(&self, name: impl Fn(&B) -> i32) -> Vec<OpenState> {
        let of = |ino: u64, mode: &Mode<B>| {
            let (opens, backing) = match mode {
                Mode::Idle => return None,
                Mode::Cached(opens) => (*opens, None),
                Mode::PassedThrough(real, opens) => (*opens, Some(name(real))),
            };
            Some(OpenState { ino, opens, backing })
        };
        self.0.iter().filter_map(|file| of(*file.key(), &file.lock())).collect()
    }

    /// Notes what is open of what another process has opened.
    pub(super) fn take_over(&self, open: Vec<OpenState>, real: impl Fn(i32) -> B) {
        for OpenState { ino, opens, backing } in open {
            let mode = match backing {
                None => Mode::Cached(opens),
                Some(name) => Mode::PassedThrough(Arc::new(real(name)), opens),
            };
            self.0.insert(ino, Arc::new(Mutex::new(mode)));
        }
    }

    /// Returns how many files are open.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// What the kernel would say to an open of this mode.
    #[derive(Default)]
    struct Kernel {
        cached: u32,
        passed: Vec<u32>,
    }

    impl Kernel {
        fn open(&mut self, opened: &Opened<u32>) {
            match opened {
                Opened::Cached { first } => {
                    assert!(self.passed.is_empty(), "EIO: cached while passed through");
                    assert_eq!(*first, self.cached == 0);
                    self.cached += 1;
                }
                Opened::Direct(_) => panic!("nobody asked for it"),
                Opened::PassedThrough(real) => {
                    assert_eq!(self.cached, 0, "EIO: passed through while cached");
                    assert!(self.passed.iter().all(|open| *open == **real), "EBUSY: another real file");
                    self.passed.push(**real);
                }
            }
        }

        fn release(&mut self) {
            self.cached = self.cached.saturating_sub(1);
            self.passed.pop();
        }
    }

    /// Tries every sequence of eight opens, releases and copy-ups.
    #[test]
    fn the_kernel_never_refuses() {
        for sequence in 0..3u32.pow(8) {
            let modes = IoModes::new();
            let (mut kernel, mut opens, mut upper) = (Kernel::default(), 0, false);
            let mut next = 0;
            for step in 0..8 {
                match sequence / 3u32.pow(step) % 3 {
                    0 => {
                        next += 1;
                        let real = upper.then_some(next);
                        let Ok(opened) = modes.open(7, || Ok::<_, Infallible>(real), |_| Ok(Join::Same));
                        kernel.open(&opened);
                        opens += 1;
                    }
                    1 if opens > 0 => {
                        modes.release(7, drop);
                        kernel.release();
                        opens -= 1;
                    }
                    1 => modes.release(7, drop),
                    _ => upper = true,
                }
                assert_eq!(modes.len(), usize::from(opens > 0));
            }
        }
    }

    #[test]
    fn a_real_file_is_let_go_with_the_last_release() {
        let modes = IoModes::new();
        let real = Arc::new(());
        for _ in 0..3 {
            modes.open(7, || Ok::<_, ()>(Some(real.clone())), |_| Ok(Join::Same)).unwrap();
        }
        assert_eq!(Arc::strong_count(&real), 2, "one real file, whatever is open");
        modes.release(7, drop);
        modes.release(7, drop);
        assert_eq!(Arc::strong_count(&real), 2);
        modes.release(7, drop);
        assert_eq!((Arc::strong_count(&real), modes.len()), (1, 0));
    }

    #[test]
    fn another_process_has_the_same_files_open() {
        let modes = IoModes::new();
        let open = |modes: &IoModes<i32>, ino: u64, real: Option<i32>| {
            let opened = modes.open(ino, || Ok::<_, Infallible>(real), |_| Ok(Join::Same));
            opened.unwrap()
        };
        for _ in 0..2 {
            open(&modes, 7, Some(3));
            open(&modes, 8, None);
        }
        let state = serde_json::to_string(&modes.state(|real| *real)).unwrap();
        let next = IoModes::new();
        next.take_over(serde_json::from_str(&state).unwrap(), |name| name);
        assert!(matches!(open(&next, 7, Some(4)), Opened::PassedThrough(real) if *real == 3));
        assert!(matches!(open(&next, 8, Some(4)), Opened::Cached { first: false }));
        for (ino, passed) in [(7, 1), (8, 0)] {
            let mut closed = 0;
            (0..3).for_each(|_| next.release(ino, |_| closed += 1));
            assert_eq!(closed, passed);
        }
        assert_eq!(next.len(), 0);
    }

    #[test]
    fn an_open_that_failed_leaves_nothing() {
        let modes: IoModes<()> = IoModes::new();
        assert_eq!(modes.open(7, || Err("no"), |()| Ok(Join::Same)).err(), Some("no"));
        assert_eq!(modes.len(), 0);
    }

    #[test]
    fn who_may_not_join_leaves_what_is_open() {
        let modes = IoModes::new();
        modes.open(7, || Ok::<_, &str>(Some(())), |()| Ok(Join::Same)).unwrap();
        assert_eq!(modes.open(7, || unreachable!("it is open"), |()| Err("no")).err(), Some("no"));
        assert!(modes.is_passed_through(7, |()| true) && !modes.is_passed_through(8, |()| true));
        let direct = modes.open(7, || unreachable!("it is open"), |()| Ok::<_, &str>(Join::Direct));
        assert!(matches!(direct, Ok(Opened::Direct(_))));
        modes.release(7, |_| panic!("one is left"));
        let mut closed = false;
        modes.release(7, |_| closed = true);
        assert!(closed && modes.len() == 0);
    }
}
