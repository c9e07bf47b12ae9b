//! Turning into a daemon.
//!
//! The parent forks before any thread exists and stays, as what the caller waits for; the child becomes the daemon and
//! tells by a pipe how the mount went. All descriptors but 0, 1, 2 and that pipe are closed in the child at once: what
//! the caller left open (a pipe that somebody reads to its end) must not live as long as the mount.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Forked {
    /// The process that the caller waits for.
    Parent {
        /// The daemon.
        child: Pid,
        /// What the daemon writes into its end; at its end when that has no descriptor of it any more.
        pipe: OwnedFd,
    },
    /// The daemon: the leader of a new session, without any descriptor but the standard ones and `pipe`.
    Child {
        /// To the parent.
        pipe: OwnedFd,
    },
}

/// Forks, once, while this process has one thread.
///
/// Every descriptor above 2 is closed in the child but `kept`, so nothing in the process may own one yet: call this
/// before any file is opened.
///
/// # Errors
///
/// When there are several threads already, or no process or pipe can be made.
pub fn fork_daemon(kept: Option<RawFd>) -> io::Result<Forked> {
    // A thread that was joined may be listed for a moment more.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(1);
    while thread_count().is_some_and(|n| n != 1) {
        if std::time::Instant::now() > deadline {
            return Err(io::Error::other("the process has several threads already"));
        }
        std::thread::yield_now();
    }
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: this is the only thread, so the child's memory (allocator, standard library's locks) is whole, and it
    // may go on as any process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // The pipe's reader is closed with everything else; its number must not be closed a second time.
            let _number = reader.into_raw_fd();
            close_all_but(writer.as_raw_fd(), kept.unwrap_or(writer.as_raw_fd()));
            rustix::process::setsid()?;
            Ok(Forked::Child { pipe: writer })
        }
        pid => {
            let child = Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork returned no process"))?;
            Ok(Forked::Parent { child, pipe: reader })
        }
    }
}

/// Closes every descriptor but the standard ones: what the program that has started this one had open and didn't mean for it.
///
/// Call it first: nothing in this process may own a descriptor yet.
pub fn close_inherited() {
    close_all_but(2, 2);
}

/// Takes an open /dev/fuse over that the caller of this program left to it by its number.
///
/// Call it once for a number, before any file is opened: nothing else in the process may own it.
///
/// # Errors
///
/// When it is not open, or something else.
pub fn take_fuse_device(number: RawFd) -> io::Result<OwnedFd> {
    /// Documentation/admin-guide/devices.txt: misc, fuse.
    const FUSE: (u32, u32) = (10, 229);
    // SAFETY: takes a plain number; where nothing is open that is EBADF.
    let marked = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if number <= 2 || marked != 0 {
        return Err(io::Error::other("no such descriptor was left open by the caller"));
    }
    // SAFETY: it is open, as the call above has shown, and by the contract of this function nobody else owns it.
    let device = unsafe { OwnedFd::from_raw_fd(number) };
    let stat = rustix::fs::fstat(&device)?;
    let is_fuse = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice
        && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == FUSE;
    if is_fuse { Ok(device) } else { Err(io::Error::other("that descriptor is no open /dev/fuse")) }
}

/// Lets go of the caller's standard descriptors: `what` of them become /dev/null.
pub fn detach_stdio(what: Stdio) -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    match what {
        Stdio::InputAndOutput => {
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&null)?;
        }
        Stdio::Errors => rustix::stdio::dup2_stderr(&null)?,
    }
    Ok(())
}

/// Which of the standard descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// 0 and 1.
    InputAndOutput,
    /// 2.
    Errors,
}

/// Returns what tells one start of the machine from the next, as the kernel writes it; `None` without /proc.
pub fn boot_id() -> Option<Vec<u8>> {
    std::fs::read("/proc/sys/kernel/random/boot_id").ok().filter(|id| !id.is_empty())
}

/// Raises the soft limit on open files to the hard one: a layer costs a descriptor.
pub fn raise_nofile_limit() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

/// Ignores the signals whose default is to end a process and that mean nothing to a daemon: a mount must not die of a
/// stray one. What `ulimit -f` cuts off is an error of the write (EFBIG) then.
pub fn ignore_stray_signals() {
    let named = [
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSTKFLT,
        libc::SIGXFSZ,
        libc::SIGPIPE,
    ];
    for signal in named.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // SAFETY: a call with plain numbers; to ignore a signal runs no code. The numbers are valid, and nobody in this
        // process waits for one of these signals.
        let _before = unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Returns the process that listens at the other end of a connected socket: the one that called listen(2). A pidfd, so
/// that no other process is meant by its number later.
///
/// # Errors
///
/// Those of getsockopt(2) and pidfd_open(2): the process has gone, or isn't visible in this process's namespace.
pub fn peer_process(socket: impl AsFd) -> io::Result<OwnedFd> {
    /// linux/socket.h, since 6.5; libc has no name for it on every target.
    const SO_PEERPIDFD: libc::c_int = 77;
    let socket = socket.as_fd().as_raw_fd();
    let mut number: libc::c_int = -1;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `number` and `size` live through the call, and `size` is that of `number`.
    let done = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut number).cast(), &raw mut size)
    };
    if done == 0 && number >= 0 {
        // SAFETY: the kernel has just made the descriptor, for us alone.
        return Ok(unsafe { OwnedFd::from_raw_fd(number) });
    }
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` and `size` live through the call, and `size` is that of `peer`.
    let done = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut size)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = Pid::from_raw(peer.pid).ok_or_else(|| io::Error::other("it is in another pid namespace"))?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

/// Returns whether a process, by its pidfd, ends within `patience`.
///
/// # Errors
///
/// Those of poll(2).
pub fn ended_within(process: &OwnedFd, patience: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

/// Returns how many descriptors this process may have.
pub fn nofile_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| limit.try_into().ok()).unwrap_or(usize::MAX)
}

/// Returns how many threads this process has; `None` without /proc.
fn thread_count() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

fn close_all_but(one: RawFd, other: RawFd) {
    const FIRST: RawFd = 3;
    let (low, high) = (one.min(other), one.max(other));
    let ranges = [(FIRST, low - 1), (low + 1, high - 1), (high + 1, RawFd::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: close_range takes plain numbers. By the contract of the functions that call this no object in this
        // process owns a descriptor in these ranges.
        let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if done != 0 {
            close_each(first, last); // before Linux 5.9, or a seccomp filter
        }
    }
}

fn close_each(first: RawFd, last: RawFd) {
    let open: Vec<RawFd> = match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect(),
        Err(_) => (first..1024).collect(),
    };
    for fd in open.into_iter().filter(|fd| (first..=last).contains(fd)) {
        // SAFETY: as in `close_all_but`. The descriptor of the listing itself is closed already, and closing its number
        // again is an EBADF without effect, for nothing was opened since.
        let _closed = unsafe { libc::close(fd) };
    }
}
