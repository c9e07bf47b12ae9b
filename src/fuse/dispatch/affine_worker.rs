//! The CPU-affine worker, as others see it: what it does, where it runs, and how it is called back.
//!
//! It runs only where nobody else would, so nobody may ever wait for it: others only try its lock, and where it holds
//! that, it will look itself.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::sys::interrupt::Interruptible;
use crate::sys::schedule::{Placed, Watched};

/// A thread that may be called back while it waits for a request, and never while it works for one: system calls of its
/// work must not fail because of that.
#[derive(Debug)]
pub(super) struct AffineWorker {
    thread: Thread,
    interruptible: Interruptible,
    placed: Placed,
    watched: Watched,
    state: Mutex<WorkerState>,
    /// Whether it does anything but wait for its turn.
    out: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkerState {
    /// It waits for its turn.
    Parked,
    Working,
    Waiting,
    CalledBack,
}

impl AffineWorker {
    /// Returns the thread that calls this.
    ///
    /// # Errors
    ///
    /// It can't be interrupted, moved or watched.
    pub(super) fn this_thread() -> io::Result<AffineWorker> {
        Ok(AffineWorker {
            thread: std::thread::current(),
            interruptible: Interruptible::this_thread()?,
            placed: Placed::this_thread()?,
            watched: Watched::this_thread()?,
            state: Mutex::new(WorkerState::Working),
            out: AtomicBool::new(true),
        })
    }

    /// Returns how long it has run; `None` when it has ended.
    pub(super) fn ran(&self) -> Option<Duration> {
        Some(self.watched.times()?.ran)
    }

    /// Returns whether it could run, or does.
    pub(super) fn is_runnable(&self) -> bool {
        self.watched.is_runnable() == Some(true)
    }

    /// Lets it run on this processor only, and only where nobody else would.
    pub(super) fn put_on(&self, processor: usize) -> io::Result<()> {
        self.placed.yield_on(processor)
    }

    /// Lets it run anywhere: what it still has in hand may be waited for.
    pub(super) fn release(&self) {
        self.placed.release();
    }

    /// Waits for its turn, until it is woken.
    pub(super) fn park_while(&self, not_yet: impl Fn() -> bool) {
        self.enter(WorkerState::Parked);
        self.out.store(false, Ordering::Release);
        while not_yet() {
            std::thread::park();
        }
        self.out.store(true, Ordering::Release);
    }

    /// Wakes it: its turn may have come.
    pub(super) fn unpark(&self) {
        self.thread.unpark();
    }

    /// Returns whether it does anything but wait for its turn.
    pub(super) fn is_out(&self) -> bool {
        self.out.load(Ordering::Acquire)
    }

    /// Notes that it is about to wait for a request. It has to look afterwards whether it is still its turn.
    pub(super) fn wait(&self) {
        self.enter(WorkerState::Waiting);
    }

    /// Notes that it has got a request.
    pub(super) fn work(&self) {
        self.enter(WorkerState::Working);
    }

    fn enter(&self, state: WorkerState) {
        if std::mem::replace(&mut *self.state.lock(), state) == WorkerState::CalledBack {
            // The signal has been sent, but perhaps not arrived: it does at the end of any system call.
            std::thread::yield_now();
        }
    }

    /// Ends its waiting for a request. It may miss that in the moment before it waits: call again.
    pub(super) fn interrupt(&self) {
        // Held while the signal is sent: until then the CPU-affine worker can't begin to work.
        let Some(mut state) = self.state.try_lock() else { return };
        if matches!(*state, WorkerState::Waiting | WorkerState::CalledBack) {
            *state = WorkerState::CalledBack;
            self.interruptible.interrupt();
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
                let affine_worker = Arc::new(AffineWorker::this_thread().unwrap());
                tell.send(affine_worker.clone()).unwrap();
                let mut called_back = 0;
                while done.load(Ordering::SeqCst) < ROUNDS {
                    affine_worker.wait();
                    let got = rustix::io::read(&requests, &mut [0; 1]);
                    affine_worker.work();
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
            let affine_worker = told.recv().unwrap();
            let mut round = 0;
            while done.load(Ordering::SeqCst) < ROUNDS {
                if round % 2 == 0 {
                    rustix::io::write(&ask, b"r").unwrap();
                }
                affine_worker.interrupt();
                round += 1;
                while done.load(Ordering::SeqCst) < round.min(ROUNDS) && round % 8 == 0 {
                    affine_worker.interrupt();
                    std::thread::yield_now();
                }
            }
        });
    }
}
