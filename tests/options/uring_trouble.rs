//! io_uring when things go wrong while work is going on: the connection is aborted, the daemon is killed or told to end,
//! processors come and go.
//!
//! What may hang is done by threads that are only asked whether they have finished.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, fstat, minor, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::uring::content;
use crate::{needs_uring, sh};
use support::cli::{Place, until, wait};

/// More than threads serve a processor.
const LARGE: usize = 6;
const LARGE_SIZE: usize = 24 << 20;

/// A mount whose daemon is a child. Dropped, it is killed.
struct Daemon {
    place: Place,
    child: Child,
    /// The root of the mount, held open, and the number of its connection.
    root: OwnedFd,
    connection: u32,
}

impl Daemon {
    fn new() -> Daemon {
        let place = Place::new();
        // On another filesystem, so that copying takes a while and is done aside.
        sh(&place, "mount -t tmpfs x b");
        for i in 0..LARGE {
            fs::write(place.at(format!("b/{i}")), content(LARGE_SIZE)).unwrap();
        }
        let words =
            ["-v", "--foreground", "--log-file", "log", "-o", "lowerdir=a:b,upperdir=up,workdir=w,uring"];
        let mut command = place.command(&words);
        command
            .arg("mnt")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(place.at("err")).unwrap());
        let child = command.spawn().unwrap();
        until("it is mounted", || place.mounted("mnt").is_some() && log(&place).contains("mounted on"));
        let mnt = place.at("mnt");
        let root = in_time("the mount answers", move || File::open(mnt).map(OwnedFd::from)).unwrap();
        assert!(log(&place).contains("requests come over io_uring"), "{}", log(&place));
        let connection = minor(fstat(&root).unwrap().st_dev);
        Daemon { place, child, root, connection }
    }

    fn abort(&self) {
        fs::write(support::abort_of(self.connection), "1").unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn work(&self) -> Work {
        Work::start(&self.root, Duration::ZERO)
    }

    /// Work that leaves the processors some time: else what the kernel has to do to take one away may wait for a minute
    /// (seen with Linux 6.18), and the machine with it.
    fn light_work(&self) -> Work {
        Work::start(&self.root, Duration::from_millis(1))
    }

    /// Has all large files copied up at once, by threads that run on these processors.
    fn copy_up(&self, processors: &[usize]) -> Vec<JoinHandle<io::Result<()>>> {
        let mut set = CpuSet::new();
        processors.iter().for_each(|processor| set.set(*processor));
        let copy = |i: usize| {
            let root = self.root.try_clone().unwrap();
            std::thread::spawn(move || {
                sched_setaffinity(None, &set)?;
                let file = openat(&root, i.to_string(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
                File::from(file).write_all_at(b"changed", 5)
            })
        };
        (0..LARGE).map(copy).collect()
    }

    #[track_caller]
    fn assert_copied_up(&self, copies: Vec<JoinHandle<io::Result<()>>>) {
        copies.into_iter().for_each(|copy| finished("files are copied up", copy).unwrap());
        let mut changed = content(LARGE_SIZE);
        changed[5..12].copy_from_slice(b"changed");
        for i in 0..LARGE {
            assert!(fs::read(self.place.at(format!("up/{i}"))).unwrap() == changed, "{i}");
        }
    }

    /// Ends in order.
    #[track_caller]
    fn unmount(mut self) {
        self.root = File::open("/").unwrap().into();
        self.place.umount("mnt");
        self.ends_with(Some(0));
    }

    /// Its process has ended with this status, the mount can be freed, and nothing is left of either.
    #[track_caller]
    fn ends_with(mut self, status: Option<i32>) {
        // A lazy unmount waits for who has it open.
        self.root = File::open("/").unwrap().into();
        assert_eq!(wait(&mut self.child), status, "{}", log(&self.place));
        let log = log(&self.place);
        assert!(!log.contains("panicked"), "{log}");
        let said = fs::read_to_string(self.place.at("err")).unwrap();
        assert_eq!(said.contains("broke off"), status == Some(1), "{said}");
        assert!(said.lines().count() <= 1, "{said}");
        if self.place.mounted("mnt").is_some() {
            assert_eq!(status, None, "only who was killed leaves a dead mount");
            sh(&self.place, "umount -l mnt");
        }
        let connection = format!("/sys/fs/fuse/connections/{}", self.connection);
        until("the kernel lets the connection go", || !Path::new(&connection).exists());
        sh(&self.place, "umount b");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended, as it should.
        self.child.kill().unwrap_or_default();
        self.child.wait().unwrap();
    }
}

fn log(place: &Place) -> String {
    fs::read_to_string(place.at("log")).unwrap_or_default()
}

fn assert_gone(error: &io::Error) {
    // The kernel cancels what lies in the ring of a process that was killed.
    const GONE: [Errno; 3] = [Errno::NOTCONN, Errno::CONNABORTED, Errno::CANCELED];
    let errno = Errno::from_io_error(error);
    assert!(errno.is_some_and(|errno| GONE.contains(&errno)), "{error}");
}

/// What a thread returns that must come to its end.
#[track_caller]
fn finished<T>(what: &str, thread: JoinHandle<T>) -> T {
    until(what, || thread.is_finished());
    thread.join().unwrap()
}

#[track_caller]
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    finished(what, std::thread::spawn(work))
}

/// Threads that ask for this and that until they are stopped, or something fails.
struct Work {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Work {
    const THREADS: usize = 4;

    fn start(root: impl AsFd, pause: Duration) -> Work {
        let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = (0..Self::THREADS).map(|n| {
            let (rounds, stop) = (rounds.clone(), stop.clone());
            let root = root.as_fd().try_clone_to_owned().unwrap();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let round = rounds.fetch_add(1, Ordering::Relaxed);
                    work(&root, n, round)?;
                    std::thread::sleep(pause);
                }
                Ok(())
            })
        });
        let threads = threads.collect();
        Work { rounds, stop, threads }
    }

    /// It goes on.
    #[track_caller]
    fn goes_on(&self) {
        let now = self.rounds.load(Ordering::Relaxed);
        until("work goes on", || {
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "work has failed");
            self.rounds.load(Ordering::Relaxed) > now + 20
        });
    }

    /// Stops it; nothing has failed.
    #[track_caller]
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            finished("work ends", thread).unwrap();
        }
    }

    /// All of it fails, since the connection has gone.
    #[track_caller]
    fn fails(self) {
        for thread in self.threads {
            assert_gone(&finished("requests are given up", thread).unwrap_err());
        }
    }
}

/// Small requests of all sorts.
fn work(root: &OwnedFd, thread: usize, round: u64) -> io::Result<()> {
    let name = format!("new-{thread}-{round}");
    let create = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = File::from(openat(root, &name, create, Mode::RUSR | Mode::WUSR)?);
    file.write_all_at(b"small", 0)?;
    let mut found = [0; 5];
    file.read_exact_at(&mut found, 0)?;
    assert_eq!(&found, b"small");
    match openat(root, format!("{name}-not"), OFlags::RDONLY, Mode::empty()) {
        Err(Errno::NOENT) => {}
        other => panic!("found: {:?}", other?),
    }
    Ok(unlinkat(root, &name, AtFlags::empty())?)
}

/// A processor that can be taken away. It is there again when this is dropped.
struct Processor(&'static str);

impl Processor {
    const NUMBER: usize = 1;

    /// `None` where it can't be taken away, or nobody said that it may: everything on the machine notices.
    fn new() -> Option<Processor> {
        if std::env::var_os("UNIONMOUNT_PROCESSORS").is_none() {
            eprintln!("not asked for: a processor that goes away: run scripts/check processors");
            return None;
        }
        const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";
        let there = fs::read_to_string(ONLINE).is_ok_and(|online| online.trim() == "1");
        // Containers have it read-only.
        if !there || fs::write(ONLINE, "1").is_err() {
            support::skipped("no processor may be taken away here");
            return None;
        }
        Some(Processor(ONLINE))
    }

    fn set_online(&self, online: bool) {
        fs::write(self.0, if online { "1" } else { "0" }).unwrap();
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        fs::write(self.0, "1").unwrap_or_else(|e| eprintln!("{}: {e}", self.0));
    }
}

#[test]
fn an_idle_connection_is_aborted() {
    let _offer = needs_uring!();
    let daemon = Daemon::new();
    daemon.abort();
    daemon.ends_with(Some(1));
}

#[test]
fn a_busy_connection_is_aborted() {
    let _offer = needs_uring!();
    let daemon = Daemon::new();
    let work = daemon.work();
    work.goes_on();
    let copies = daemon.copy_up(&[0, 1]);
    until("something is copied up", || !daemon.place.names("w/work").is_empty());
    daemon.abort();
    work.fails();
    for copy in copies {
        // Some may have ended before.
        finished("copies are given up", copy).unwrap_or_else(|e| assert_gone(&e));
    }
    daemon.ends_with(Some(1));
}

#[test]
fn the_daemon_is_killed_while_it_works() {
    let _offer = needs_uring!();
    let daemon = Daemon::new();
    let work = daemon.work();
    work.goes_on();
    daemon.signal(Signal::KILL);
    work.fails();
    let mnt = daemon.place.at("mnt");
    let error = in_time("a dead mount answers", move || fs::metadata(mnt)).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NOTCONN));
    daemon.ends_with(None);
}

#[test]
fn signals_end_it_when_those_who_work_are_ready() {
    let _offer = needs_uring!();
    let daemon = Daemon::new();
    let work = daemon.work();
    work.goes_on();
    daemon.signal(Signal::TERM);
    until("it says that it is busy", || log(&daemon.place).contains("busy"));
    assert!(daemon.place.mounted("mnt").is_some());
    work.goes_on();
    daemon.signal(Signal::TERM);
    until("it is out of sight", || daemon.place.mounted("mnt").is_none());
    work.goes_on();
    work.stop();
    daemon.ends_with(Some(0));
}

#[test]
fn a_processor_leaves_and_comes_back() {
    let _offer = needs_uring!();
    let Some(processor) = Processor::new() else { return };
    let daemon = Daemon::new();
    let work = daemon.light_work();
    for _ in 0..3 {
        work.goes_on();
        processor.set_online(false);
        work.goes_on();
        processor.set_online(true);
    }
    work.goes_on();
    let copies = daemon.copy_up(&[Processor::NUMBER]);
    daemon.assert_copied_up(copies);
    work.goes_on();
    work.stop();
    daemon.unmount();
}

#[test]
fn a_processor_comes_that_was_away_when_it_was_mounted() {
    let _offer = needs_uring!();
    let Some(processor) = Processor::new() else { return };
    processor.set_online(false);
    let daemon = Daemon::new();
    let work = daemon.light_work();
    work.goes_on();
    processor.set_online(true);
    work.goes_on();
    // More at once than the queue of that processor has entries.
    let copies = daemon.copy_up(&[Processor::NUMBER]);
    daemon.assert_copied_up(copies);
    work.goes_on();
    work.stop();
    daemon.unmount();
}
