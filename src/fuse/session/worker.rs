//! A thread that answers requests from the device.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::device::Device;
use super::gate::{Gate, Seat};
use super::serve::{Filesystem, Served};
use super::spin::{Credit, Spinner, sleep};
use crate::fuse::dispatch::DispatchPolicy;
use crate::fuse::wire::{Reply, Request};
use crate::sys::fuse::Pages;

/// What a thread has.
#[derive(Debug)]
pub(super) struct Worker<F: Filesystem> {
    pub(super) served: Arc<Served<F>>,
    pub(super) device: Arc<Device>,
    /// What it passes before it asks.
    pub(super) gate: Arc<Gate>,
    /// Its number among the threads, from 0.
    pub(super) number: usize,
    /// The largest request.
    pub(super) request_size: usize,
    /// Lets it ask for a moment before it sleeps. None where the descriptor is shared: it can't be set to return at once
    /// for one thread only.
    pub(super) spinner: Option<Arc<Spinner>>,
    /// How long it waits after each request, so that the next one tells more.
    pub(super) pause: Option<Duration>,
}

/// Notes that a thread asks no more, however it ended.
struct Rise(Option<Arc<Seat>>);

impl Drop for Rise {
    fn drop(&mut self) {
        self.0.iter().for_each(|seat| seat.away());
    }
}

/// Lets all others go on when a thread has ended, however it ended.
struct EndPairing<'a>(Option<&'a DispatchPolicy>);

impl Drop for EndPairing<'_> {
    fn drop(&mut self) {
        if let Some(pairing) = self.0 {
            pairing.end();
        }
    }
}

impl<F: Filesystem> Worker<F> {
    /// Returns room for a request.
    ///
    /// # Errors
    ///
    /// There is no memory.
    pub(super) fn buffer(&self) -> io::Result<Pages> {
        Ok(Pages::new(self.request_size)?)
    }

    /// Answers until the filesystem is unmounted.
    ///
    /// # Errors
    ///
    /// The connection broke.
    pub(super) fn run(self, mut buffer: Pages) -> io::Result<()> {
        let pairing = self.served.pairing.as_deref();
        let _end = EndPairing(pairing);
        let mut credit = Credit::default();
        self.served.interrupts.enter();
        let seat = Rise(self.gate.sit().map_err(|e| log::info!("no other process can take over: {e}")).ok());
        loop {
            // Whose turn it is to ask.
            let may_spin = pairing.is_none_or(|pairing| pairing.park(self.number));
            if !seat.0.as_ref().is_none_or(|seat| self.gate.ask(seat)) {
                credit.wait(&self.device)?;
                self.gate.wait();
                continue;
            }
            let received = match &self.spinner {
                Some(spinner) if may_spin => spinner.receive(&mut credit, &self.device, &mut buffer),
                _ => sleep(&mut credit, &self.device, &mut buffer),
            };
            seat.0.iter().for_each(|seat| seat.work());
            let request = match received {
                Ok(len) => &buffer[..len],
                // Taken back, or called back: perhaps it is somebody else's turn now.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {
                    seat.0.iter().for_each(|seat| seat.away());
                    continue;
                }
                Err(Errno::NODEV) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            let parsed = Request::parse(request, self.served.dialect);
            self.served.serve(parsed, |unique| Reply::new(unique, self.device.clone()))?;
            seat.0.iter().for_each(|seat| seat.away());
            if let Some(pause) = self.pause {
                std::thread::sleep(pause);
            }
        }
    }
}
