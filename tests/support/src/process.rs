//! Running other programs, and this one's threads under other identities.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// What this process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// Root of the initial user namespace.
    Root,
    /// Root of a user namespace of its own.
    Namespace,
    /// An ordinary user.
    User,
}

impl Privilege {
    /// Reads it off the process.
    pub fn current() -> Self {
        if !rustix::process::geteuid().is_root() {
            return Privilege::User;
        }
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        match map.split_whitespace().collect::<Vec<_>>()[..] {
            ["0", "0", "4294967295"] => Privilege::Root,
            _ => Privilege::Namespace,
        }
    }
}

/// Runs `work` in a thread of its own whose user, group and umask are the given ones and which has no other groups.
/// Needs root. A panic in it is passed on.
pub fn as_ids<T: Send>(uid: u32, gid: u32, umask: u32, work: impl FnOnce() -> T + Send) -> T {
    use rustix::fs::{Gid, Uid};
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            super::raw::unshare_fs();
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
            if (uid, gid) != (0, 0) {
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                set_thread_groups(&[]).unwrap();
                set_thread_res_gid(gid, gid, gid).unwrap();
                set_thread_res_uid(uid, uid, uid).unwrap();
            }
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a program to its end and returns what it said, whatever its exit status. Its standard input is empty.
pub fn output<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[S]) -> Output {
    let program = program.as_ref();
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()))
}

/// Runs a program, demands that it succeeds and returns its standard output.
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[S]) -> String {
    let program = program.as_ref();
    let output = output(program, arguments);
    let words: Vec<_> = arguments.iter().map(|word| word.as_ref().display().to_string()).collect();
    assert!(
        output.status.success(),
        "{} {}: {}\n{}{}",
        program.display(),
        words.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The same with `input` on its standard input.
pub fn run_with_input(program: &str, arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until the process `pid` has ended, a child or not; false if it is still there after `limit`.
pub fn wait_for_exit(pid: u32, limit: Duration) -> bool {
    let pid = Pid::from_raw(pid as i32).unwrap();
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(Errno::SRCH) => return true,
        Err(error) => panic!("pidfd_open: {error}"),
    };
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// How long tests wait for what must come at some time: more than a machine takes that has much else to do, and a disk that others keep
/// busy. Only what fails waits so long.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Asks `condition` again and again until it holds; false if it does not within `limit`.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
