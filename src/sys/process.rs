//! Turning into a daemon.
//!
//! The parent forks before any thread exists and stays, as what the caller waits for; the child becomes the daemon and
//! tells by a pipe how the mount went. All descriptors but 0, 1, 2 and that pipe are closed in the child at once: what
//! the caller left open (a pipe that somebody reads to its end) must not live as long as the mount.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};

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
/// Every descriptor above 2 is closed in the child, so nothing in the process may own one yet: call this before any
/// file is opened.
///
/// # Errors
///
/// When there are several threads already, or no process or pipe can be made.
pub fn fork_daemon() -> io::Result<Forked> {
    if thread_count().is_some_and(|n| n != 1) {
        return Err(io::Error::other("the process has several threads already"));
    }
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: this is the only thread, so the child's memory (allocator, standard library's locks) is whole, and it
    // may go on as any process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // The pipe's reader is closed with everything else; its number must not be closed a second time.
            let _number = reader.into_raw_fd();
            close_all_but(writer.as_raw_fd());
            rustix::process::setsid()?;
            Ok(Forked::Child { pipe: writer })
        }
        pid => {
            let child = Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork returned no process"))?;
            Ok(Forked::Parent { child, pipe: reader })
        }
    }
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

/// How many descriptors this process may have.
pub fn nofile_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| limit.try_into().ok()).unwrap_or(usize::MAX)
}

/// How many threads this process has; `None` without /proc.
fn thread_count() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/task").ok()?.count())
}

fn close_all_but(kept: RawFd) {
    const FIRST: RawFd = 3;
    let ranges = [(FIRST, kept - 1), (kept + 1, RawFd::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: close_range takes plain numbers. By the contract of `fork_daemon` no object in this process owns a
        // descriptor in these ranges.
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
