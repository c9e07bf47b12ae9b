//! Asking for the next request for a moment before sleeping.
//!
//! Waking a thread that sleeps in `read` costs far more than serving a small request, above all in a virtual machine
//! where the core that it sleeps on has halted. So the thread that just served a request goes on asking for a short
//! while. One thread at a time does, and each keeps a credit: it rises with every request that came in time and falls
//! with every one that didn't, so that a program that asks seldom costs no time at all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::channel::Channel;

/// The most credit that a thread can have.
const MAX_CREDIT: u32 = 16;
/// A thread without credit tries again after so many sleeps.
const PROBE_EVERY: u32 = 32;

/// What the threads of a session share.
#[derive(Debug)]
pub(crate) struct Spinner {
    limit: Duration,
    busy: AtomicBool,
}

/// What one thread keeps.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    credit: u32,
    sleeps: u32,
    nonblocking: bool,
}

impl Spinner {
    pub(crate) fn new(limit: Duration) -> Spinner {
        Spinner { limit, busy: AtomicBool::new(false) }
    }

    /// Receives the next request, or `EINTR`.
    pub(crate) fn receive(
        &self,
        turn: &mut Turn,
        ch: &Channel,
        buf: &mut [u8],
        may_spin: bool,
    ) -> nix::Result<usize> {
        let worth = turn.credit > 0 || turn.sleeps % PROBE_EVERY == PROBE_EVERY - 1;
        if may_spin && worth && self.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            let received = self.spin(turn, ch, buf);
            self.busy.store(false, Ordering::Release);
            match received {
                Err(Errno::EAGAIN) => turn.credit = turn.credit.saturating_sub(4),
                other => {
                    turn.credit = (turn.credit + 1).min(MAX_CREDIT);
                    return other;
                }
            }
        }
        turn.sleeps = turn.sleeps.wrapping_add(1);
        if turn.nonblocking {
            ch.set_nonblocking(false)?;
            turn.nonblocking = false;
        }
        ch.receive_interruptible(buf)
    }

    fn spin(&self, turn: &mut Turn, ch: &Channel, buf: &mut [u8]) -> nix::Result<usize> {
        if !turn.nonblocking {
            ch.set_nonblocking(true)?;
            turn.nonblocking = true;
        }
        let until = Instant::now() + self.limit;
        loop {
            match ch.receive_once(buf) {
                Err(Errno::EAGAIN) if Instant::now() < until => {
                    // Whoever else wants this core may have it.
                    std::thread::yield_now();
                }
                other => return other,
            }
        }
    }
}
