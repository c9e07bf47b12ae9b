//! Whoever accepts clients stops for a while: another process may go on with the socket.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};

/// Keeps the thread that accepts from accepting: another process may, soon.
pub(super) struct Pause {
    state: Mutex<PauseState>,
    changed: Condvar,
    /// Wakes it: what is written to the first is read from the second.
    wake: (UnixStream, UnixStream),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PauseState {
    /// It accepts.
    Off,
    /// It is to stop.
    Wanted,
    /// It has.
    On,
}

impl Pause {
    pub(super) fn new() -> io::Result<Pause> {
        let wake = UnixStream::pair()?;
        wake.1.set_nonblocking(true)?;
        Ok(Pause { state: Mutex::new(PauseState::Off), changed: Condvar::new(), wake })
    }

    /// Waits until it accepts nobody. `false`: it doesn't stop.
    pub(super) fn begin(&self) -> bool {
        /// It has nothing to do that takes as long.
        const PATIENCE: Duration = Duration::from_secs(5);
        let mut state = self.state.lock();
        *state = PauseState::Wanted;
        if (&self.wake.0).write_all(b"w").is_err() {
            *state = PauseState::Off;
            return false;
        }
        let until = Instant::now() + PATIENCE;
        while *state == PauseState::Wanted {
            if self.changed.wait_until(&mut state, until).timed_out() {
                *state = PauseState::Off;
                return false;
            }
        }
        true
    }

    pub(super) fn end(&self) {
        *self.state.lock() = PauseState::Off;
        self.changed.notify_all();
    }

    /// Stops, if it is to, until it may go on.
    pub(super) fn obey(&self) {
        let mut state = self.state.lock();
        if *state == PauseState::Wanted {
            *state = PauseState::On;
            self.changed.notify_all();
        }
        while *state == PauseState::On {
            self.changed.wait(&mut state);
        }
        let mut woken = [0; 8];
        // What isn't there doesn't wake it.
        let _woken = (&self.wake.1).read(&mut woken);
    }

    /// Waits until somebody connects, or it is to stop. `false`: look whether it is.
    pub(super) fn wait_for(&self, listener: &UnixListener) -> bool {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(&self.wake.1, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => fds[1].revents().is_empty(),
            // It is told by accept(2), if it is more than a signal.
            Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn nobody_is_accepted_meanwhile_and_all_are_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (listener, pause) = (UnixListener::bind(&path).unwrap(), Pause::new().unwrap());
        let (accepted, ends) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(Ordering::SeqCst) {
                    if !pause.wait_for(&listener) {
                        pause.obey();
                        continue;
                    }
                    listener.accept().unwrap();
                    accepted.store(true, Ordering::SeqCst);
                }
            });
            for _ in 0..50 {
                assert!(pause.begin());
                accepted.store(false, Ordering::SeqCst);
                let _client = UnixStream::connect(&path).unwrap();
                std::thread::yield_now();
                assert!(!accepted.load(Ordering::SeqCst));
                pause.end();
                while !accepted.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            }
            ends.store(true, Ordering::SeqCst);
            UnixStream::connect(&path).unwrap();
        });
    }
}
