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
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

use super::Failure;
use crate::sys::process::{Forked, Stdio, detach_stdio, fork_daemon};

const READY: u8 = b'R';

/// The daemon's end of the pipe; whoever speaks first takes it.
type Pipe = Rc<Cell<Option<OwnedFd>>>;

/// The daemon's way to say that it is mounted.
pub(super) struct Ready(Pipe);

impl Ready {
    /// In the foreground nobody waits.
    pub(super) fn nobody_waits() -> Ready {
        Ready(Pipe::default())
    }

    /// Lets go of the caller's stderr and tells the parent.
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

/// Runs `body` in a daemon. Returns in both processes: in the parent once the mount on `point` answers, in the daemon
/// at the end of the mount.
pub(super) fn in_background(
    point: &Path,
    body: impl FnOnce(Ready) -> Result<(), Failure>,
) -> Result<(), Failure> {
    match fork_daemon().map_err(|error| Failure::failed(format!("cannot fork: {error}")))? {
        Forked::Parent { child, pipe } => await_mount(child, pipe, point),
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

fn await_mount(child: Pid, pipe: OwnedFd, point: &Path) -> Result<(), Failure> {
    let mut said = Vec::new();
    File::from(pipe)
        .read_to_end(&mut said)
        .map_err(|error| Failure::failed(format!("cannot hear the daemon: {error}")))?;
    match said.split_first() {
        Some((&READY, _)) => check_answer(child, point),
        Some((&code, message)) => {
            Err(Failure { code, message: String::from_utf8_lossy(message).into_owned() })
        }
        None => Err(Failure::failed(format!(
            "the daemon ended before the mount was ready{}",
            how_it_ended(child)
        ))),
    }
}

/// The mount answers when its root can be looked at.
fn check_answer(child: Pid, point: &Path) -> Result<(), Failure> {
    let ask = AtFlags::STATX_FORCE_SYNC;
    match rustix::fs::statx(rustix::fs::CWD, point, ask, StatxFlags::BASIC_STATS) {
        Ok(_) => Ok(()),
        Err(errno @ Errno::NOTCONN) => {
            Err(Failure::failed(format!("mounted, but the daemon has gone: {errno}{}", how_it_ended(child))))
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
