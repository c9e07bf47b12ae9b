//! Keeping the threads that answer from asking for requests, for a while: whoever takes the mount over asks then.
//!
//! Each thread has a seat. It notes there that it is about to wait for a request, and that it has got one; between the two, and only
//! there, it can be called out of the system call in which it waits. So what has been read is answered before the thread stops, and
//! the system calls of its work never fail because of a signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::sys::interrupt::Interruptible;

/// It has no request, and isn't asking for one.
const AWAY: u8 = 0;
/// It is about to ask for one, or asks.
const ASKING: u8 = 1;
/// It works for one.
const WORKING: u8 = 2;
/// It is being called while it asks.
const CALLING: u8 = 3;
/// It was called.
const CALLED: u8 = 4;

/// How long between two looks at whether all have stopped: one may miss that it was called in the moment before it waits.
const LOOK: Duration = Duration::from_micros(200);

/// What all threads of a session pass before they ask.
#[derive(Debug, Default)]
pub(super) struct Gate {
    is_closed: AtomicBool,
    seats: Mutex<Vec<Arc<Seat>>>,
    waiting: Mutex<()>,
    opened: Condvar,
}

/// What one thread notes.
#[derive(Debug)]
pub(super) struct Seat {
    state: AtomicU8,
    thread: Interruptible,
}

impl Seat {
    /// Notes that it has got a request, or none.
    pub(super) fn work(&self) {
        if self.state.compare_exchange(ASKING, WORKING, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            return;
        }
        while self.state.load(Ordering::SeqCst) == CALLING {
            std::thread::yield_now();
        }
        // The signal has been sent, but perhaps not arrived: it does at the end of any system call.
        std::thread::yield_now();
        self.state.store(WORKING, Ordering::SeqCst);
    }

    /// Notes that it has answered.
    pub(super) fn away(&self) {
        self.state.store(AWAY, Ordering::SeqCst);
    }

    /// Tells whether it has stopped. One that asks is called.
    fn has_stopped(&self) -> bool {
        let asks = self.state.load(Ordering::SeqCst);
        if matches!(asks, ASKING | CALLED)
            && self.state.compare_exchange(asks, CALLING, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        {
            self.thread.interrupt();
            self.state.store(CALLED, Ordering::SeqCst);
        }
        asks == AWAY
    }
}

impl Gate {
    /// Seats this thread.
    ///
    /// # Errors
    ///
    /// It can't be called.
    pub(super) fn sit(&self) -> std::io::Result<Arc<Seat>> {
        let seat = Arc::new(Seat { state: AtomicU8::new(AWAY), thread: Interruptible::this_thread()? });
        self.seats.lock().push(seat.clone());
        Ok(seat)
    }

    /// Notes that the thread is about to ask. `false`: it may not, see [`Gate::wait`].
    pub(super) fn ask(&self, seat: &Seat) -> bool {
        seat.state.store(ASKING, Ordering::SeqCst);
        // Whoever closes it sees this thread ask, or this thread sees it closed.
        if self.is_closed.load(Ordering::SeqCst) {
            seat.work();
            seat.away();
            return false;
        }
        true
    }

    /// Waits until one may ask again.
    pub(super) fn wait(&self) {
        let mut waiting = self.waiting.lock();
        while self.is_closed.load(Ordering::SeqCst) {
            self.opened.wait(&mut waiting);
        }
    }

    /// Lets no thread ask, and waits at most so long until all `threads` have stopped. `false`: one goes on working, or can't be called.
    /// The gate is closed then, too.
    pub(super) fn close(&self, threads: usize, patience: Duration) -> bool {
        self.is_closed.store(true, Ordering::SeqCst);
        let until = Instant::now() + patience;
        loop {
            let seats = self.seats.lock().clone();
            let stopped = seats.iter().filter(|seat| seat.has_stopped()).count();
            if stopped >= threads {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Lets them ask again.
    pub(super) fn open(&self) {
        let _waiting = self.waiting.lock();
        self.is_closed.store(false, Ordering::SeqCst);
        self.opened.notify_all();
    }
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::atomic::AtomicU32;

    /// Reads from a pipe are requests, sleeping is work.
    #[test]
    fn all_stop_between_two_requests_and_work_is_never_interrupted() {
        const THREADS: usize = 3;
        let (requests, ask) = rustix::pipe::pipe().unwrap();
        let (gate, done) = (&Gate::default(), &AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let seat = gate.sit().unwrap();
                    loop {
                        if !gate.ask(&seat) {
                            gate.wait();
                            continue;
                        }
                        let mut request = [0];
                        let got = rustix::io::read(&requests, &mut request);
                        seat.work();
                        match got {
                            Ok(0) => return seat.away(),
                            Ok(_) => {
                                let brief = rustix::time::Timespec { tv_sec: 0, tv_nsec: 1000 };
                                let slept = rustix::thread::nanosleep(&brief);
                                let is_whole = matches!(slept, rustix::thread::NanosleepRelativeResult::Ok);
                                assert!(is_whole, "{slept:?}");
                                done.fetch_add(1, Ordering::SeqCst);
                            }
                            Err(errno) => assert_eq!(errno, rustix::io::Errno::INTR),
                        }
                        seat.away();
                    }
                });
            }
            for round in 0..300u32 {
                rustix::io::write(&ask, &[b'r'; 4]).unwrap();
                assert!(gate.close(THREADS, Duration::from_secs(60)));
                let so_far = done.load(Ordering::SeqCst);
                rustix::io::write(&ask, b"r").unwrap();
                std::thread::yield_now();
                assert_eq!(done.load(Ordering::SeqCst), so_far, "nobody asks: {round}");
                gate.open();
            }
            drop(ask);
        });
        assert_eq!(done.load(Ordering::SeqCst), 300 * 5);
        assert!(!gate.close(THREADS + 1, Duration::ZERO), "one isn't there");
    }
}
