//! A companion, as others see it: whether it waits for a request, and how it is called back from there.

use std::io;
use std::time::Duration;

use parking_lot::Mutex;

use crate::sys::interrupt::Interruptible;
use crate::sys::schedule::Watched;

/// A thread that may be called back while it waits for a request, and never else: system calls in which it works for a
/// request must not fail because of that.
#[derive(Debug)]
pub(super) struct Companion {
    thread: Interruptible,
    watched: Watched,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Working,
    Waiting,
    CalledBack,
}

impl Companion {
    /// The thread that calls this.
    ///
    /// # Errors
    ///
    /// It can't be interrupted.
    pub(super) fn this_thread() -> io::Result<Companion> {
        let (thread, watched) = (Interruptible::this_thread()?, Watched::this_thread()?);
        Ok(Companion { thread, watched, state: Mutex::new(State::Working) })
    }

    /// How long it has run; `None` when it has ended.
    pub(super) fn ran(&self) -> Option<Duration> {
        Some(self.watched.times()?.ran)
    }

    /// Whether it could have run since then, but didn't: others keep the processor busy.
    pub(super) fn is_starved_since(&self, ran_before: Option<Duration>) -> bool {
        self.watched.is_runnable() == Some(true) && self.ran() == ran_before
    }

    /// It is about to wait for a request.
    pub(super) fn wait(&self) {
        *self.state.lock() = State::Waiting;
    }

    /// It has got one.
    pub(super) fn work(&self) {
        if std::mem::replace(&mut *self.state.lock(), State::Working) == State::CalledBack {
            // The signal has been sent, but perhaps not arrived: it does at the end of any system call.
            std::thread::yield_now();
        }
    }

    /// Where it waits for a request, it does so no longer.
    pub(super) fn call_back(&self) {
        // Held while the signal is sent: until then the companion can't begin to work.
        let mut state = self.state.lock();
        if *state == State::Waiting {
            *state = State::CalledBack;
            self.thread.interrupt();
        }
    }
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, mpsc};

    use super::*;

    /// Reads from a pipe are requests, sleeping in another one is work.
    #[test]
    fn it_is_called_back_from_waiting_and_never_from_work() {
        const ROUNDS: u32 = 2000;
        let (requests, ask) = rustix::pipe::pipe().unwrap();
        let (tell, told) = mpsc::channel();
        let done = &AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let companion = Arc::new(Companion::this_thread().unwrap());
                tell.send(companion.clone()).unwrap();
                let mut called_back = 0;
                while done.load(Ordering::SeqCst) < ROUNDS {
                    companion.wait();
                    let got = rustix::io::read(&requests, &mut [0; 1]);
                    companion.work();
                    match got {
                        Ok(1) => {}
                        Err(rustix::io::Errno::INTR) => called_back += 1,
                        other => panic!("{other:?}"),
                    }
                    // An interruptible wait, as for a lower layer that is slow.
                    let brief = rustix::time::Timespec { tv_sec: 0, tv_nsec: 1000 };
                    let slept = rustix::thread::nanosleep(&brief);
                    assert!(matches!(slept, rustix::thread::NanosleepRelativeResult::Ok), "{slept:?}");
                    done.fetch_add(1, Ordering::SeqCst);
                }
                assert!(called_back > 0);
            });
            let companion = told.recv().unwrap();
            let mut round = 0;
            while done.load(Ordering::SeqCst) < ROUNDS {
                if round % 2 == 0 {
                    rustix::io::write(&ask, b"r").unwrap();
                }
                companion.call_back();
                round += 1;
                while done.load(Ordering::SeqCst) < round.min(ROUNDS) && round % 8 == 0 {
                    companion.call_back();
                    std::thread::yield_now();
                }
            }
        });
    }
}
