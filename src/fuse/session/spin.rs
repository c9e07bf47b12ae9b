//! Asking for the next request for a moment before sleeping.
//!
//! Waking a thread that sleeps in `read` costs far more than serving a small request, above all in a virtual machine
//! where the core that it sleeps on has halted. So the thread that just served a request goes on asking for a short
//! while. One thread at a time does, and each keeps a credit: it rises with every request that came in time and falls
//! with every one that didn't, so that a program that asks seldom costs no time at all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::device::Device;

/// How long a thread asks before it sleeps: about what waking it would cost.
const LIMIT: Duration = Duration::from_micros(50);
/// The most credit that a thread can have.
const MAX_CREDIT: u32 = 16;
/// A thread without credit tries again after so many sleeps.
const PROBE_EVERY: u32 = 32;

/// What the threads of a session share: whether one of them spins.
#[derive(Debug, Default)]
pub(super) struct Spinner(AtomicBool);

/// What one thread keeps.
#[derive(Debug, Default)]
pub(super) struct Credit {
    credit: u32,
    sleeps: u32,
    nonblocking: bool,
}

impl Credit {
    /// Makes reading from the device wait again, for whoever reads from it next.
    pub(super) fn wait(&mut self, device: &Device) -> rustix::io::Result<()> {
        if std::mem::take(&mut self.nonblocking) {
            device.set_nonblocking(false)?;
        }
        Ok(())
    }
}

impl Spinner {
    /// Receives the next request: see [`Device::receive`].
    pub(super) fn receive(
        &self,
        own: &mut Credit,
        device: &Device,
        buffer: &mut [u8],
    ) -> rustix::io::Result<usize> {
        let worth = own.credit > 0 || own.sleeps % PROBE_EVERY == PROBE_EVERY - 1;
        if worth && self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            let received = spin(own, device, buffer);
            self.0.store(false, Ordering::Release);
            match received {
                Err(Errno::AGAIN) => own.credit = own.credit.saturating_sub(4),
                other => {
                    own.credit = (own.credit + 1).min(MAX_CREDIT);
                    return other;
                }
            }
        }
        sleep(own, device, buffer)
    }
}

/// Receives the next request without spinning.
pub(super) fn sleep(own: &mut Credit, device: &Device, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    own.sleeps = own.sleeps.wrapping_add(1);
    own.wait(device)?;
    device.receive(buffer)
}

fn spin(own: &mut Credit, device: &Device, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    if !own.nonblocking {
        device.set_nonblocking(true)?;
        own.nonblocking = true;
    }
    let until = Instant::now() + LIMIT;
    loop {
        match device.receive(buffer) {
            Err(Errno::NOENT | Errno::INTR) => {}
            Err(Errno::AGAIN) if Instant::now() < until => {
                // Whoever else wants this core may have it.
                std::thread::yield_now();
            }
            other => return other,
        }
    }
}
