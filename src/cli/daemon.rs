//! Going into the background, and telling the caller when the mount answers.
//!
//! ```text
//! caller ── waits for ──> parent ── reads pipe ──> daemon
//!                           │   <── 'R' ─────────── mounted, has let go of stderr
//!                           │ stat(MOUNTPOINT): the daemon answers
//!            <── exit 0 ────┘
//! ```
//!
//! Until then the daemon's warnings go to the caller's stderr; what makes it fail travels through the pipe, so that it
//! is printed once and by a process whose exit status counts. The stat is the parent's to make: the daemon must not
//! touch its own mount.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open};

use super::{Failure, dead};
use crate::control::mounts::device_at;
use crate::sys::process::{Forked, Stdio, detach_stdio, ended_within, fork_daemon};

const READY: u8 = b'R';
/// How long a process takes to end that has closed its descriptors.
const DYING: Duration = Duration::from_secs(1);
/// How long a daemon takes to unmount and end.
const ENDING: Duration = Duration::from_secs(5);

/// The daemon's end of the pipe; whoever speaks first takes it.
type Pipe = Rc<Cell<Option<OwnedFd>>>;

/// The daemon's way to say that it is mounted.
pub(super) struct Ready(Pipe);

impl Ready {
    /// Makes one for the foreground, where nobody waits.
    pub(super) fn nobody_waits() -> Ready {
        Ready(Pipe::default())
    }

    /// Lets go of the caller's stderr and tells the parent, which ends a daemon that can't be heard.
    pub(super) fn announce(self) {
        let Some(pipe) = self.0.take() else { return };
        if let Err(error) = detach_stdio(Stdio::Errors) {
            log::warn!("cannot let go of stderr: {error}");
        }
        // A parent that was killed waits no more; the mount stays.
        if let Err(error) = File::from(pipe).write_all(&[READY]) {
            log::info!("nobody waits for the mount: {error}");
        }
    }
}

/// Where the daemon's mount is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Where<'a> {
    /// On this directory.
    On(&'a Path),
    /// Where the caller has mounted the open /dev/fuse of this number, which knows when it answers.
    Given(RawFd),
}

/// Runs `body` in a daemon. Returns in both processes: in the parent once the mount answers, in the daemon at the end of
/// the mount.
pub(super) fn in_background(
    place: Where<'_>,
    body: impl FnOnce(Ready) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (kept, below) = match place {
        Where::On(point) => (None, device_at(point).ok()),
        Where::Given(number) => (Some(number), None),
    };
    match fork_daemon(kept).map_err(|error| Failure::failed(format!("cannot fork: {error}")))? {
        Forked::Parent { child, pipe } => await_mount(child, pipe, place, below.as_deref()),
        Forked::Child { pipe } => {
            let pipe = Pipe::new(Cell::new(Some(pipe)));
            let done = detach_stdio(Stdio::InputAndOutput)
                .map_err(|error| Failure::failed(format!("/dev/null: {error}")))
                .and_then(|()| body(Ready(pipe.clone())));
            done.map_err(|failure| tell_parent(&pipe, failure))
        }
    }
}

/// Sends what made the mount fail, or logs it when the mount had been announced.
fn tell_parent(pipe: &Pipe, failure: Failure) -> Failure {
    match pipe.take() {
        // The parent may have gone; then nobody reads this.
        Some(pipe) => File::from(pipe)
            .write_all(&[&[failure.code], failure.message.as_bytes()].concat())
            .unwrap_or_default(),
        None => log::error!("{}", failure.message),
    }
    Failure::told(failure.code)
}

/// Waits for the mount; `below`: the device of what the mount point is without the mount.
fn await_mount(child: Pid, pipe: OwnedFd, place: Where<'_>, below: Option<&str>) -> Result<(), Failure> {
    let mut said = Vec::new();
    File::from(pipe)
        .read_to_end(&mut said)
        .map_err(|error| Failure::failed(format!("cannot hear the daemon: {error}")))?;
    match said.split_first() {
        Some((&READY, _)) => match place {
            Where::On(point) => check_answer(child, point, below),
            Where::Given(_) => Ok(()),
        },
        Some((&code, message)) => {
            Err(Failure { code, message: String::from_utf8_lossy(message).into_owned() })
        }
        None => {
            let how = end_unheard(child);
            // What it mounted nobody will ever serve.
            let left = match place {
                Where::On(point) => dead::take_away(point),
                Where::Given(_) => Ok(false),
            };
            left.and_then(|_| {
                Err(Failure::failed(format!("the daemon ended before the mount was ready{how}")))
            })
        }
    }
}

/// Makes sure that a daemon has ended that let go of its pipe without a word: it has died, or it couldn't speak and
/// would serve a mount that nobody was told of. Says how it ended.
fn end_unheard(child: Pid) -> String {
    let ended = |patience: Duration| {
        let Ok(process) = pidfd_open(child, PidfdFlags::empty()) else { return true };
        ended_within(&process, patience).unwrap_or(false)
    };
    if ended(DYING) {
        return how_it_ended(child);
    }
    for (signal, patience) in [(Signal::TERM, ENDING), (Signal::KILL, DYING)] {
        if let Err(errno) = rustix::process::kill_process(child, signal) {
            log::debug!("kill: {errno}");
        }
        if ended(patience) {
            break;
        }
    }
    " (it could not say that it is ready, so it was stopped)".to_owned()
}

/// Checks that the mount answers: its root can be looked at.
fn check_answer(child: Pid, point: &Path, below: Option<&str>) -> Result<(), Failure> {
    let gone = || Failure::failed(format!("mounted, but the daemon ended at once{}", end_unheard(child)));
    let ask = AtFlags::STATX_FORCE_SYNC;
    match rustix::fs::statx(rustix::fs::CWD, point, ask, StatxFlags::BASIC_STATS) {
        // What can't be looked at without a mount, can't be told from it.
        Ok(_) if below.is_some() && device_at(point).ok().as_deref() == below => Err(gone()),
        Ok(_) => Ok(()),
        Err(Errno::NOTCONN | Errno::CONNABORTED) => {
            let gone = gone();
            dead::take_away(point)?;
            Err(gone)
        }
        Err(errno) => {
            if let Err(kill) = rustix::process::kill_process(child, Signal::TERM) {
                log::debug!("kill: {kill}");
            }
            Err(Failure::failed(format!("mounted, but the mount does not answer: {errno}")))
        }
    }
}

fn how_it_ended(child: Pid) -> String {
    match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
        Ok(Some((_, status))) => match (status.terminating_signal(), status.exit_status()) {
            (Some(signal), _) => format!(" (killed by signal {signal})"),
            (None, Some(code)) => format!(" (exit status {code})"),
            (None, None) => String::new(),
        },
        _ => String::new(),
    }
}
