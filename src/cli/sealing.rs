//! What is sealed of a mount: in the background while it is used, and the rest when it has ended.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::sys::schedule;
use crate::union::Union;
use crate::union::change::sealing::SealProgress;
use crate::union::change::sealing::background::Sealer;
use crate::union::escaped_path::EscapedPath;

/// What is sealed, and the thread that does so in the background.
#[derive(Default)]
pub(super) struct Sealing {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    /// Nothing is to be sealed.
    #[default]
    Off,
    /// It has the layers open until all is sealed. Without a thread it is when the mount has ended.
    On(Option<Sealer>, Arc<Union>),
    /// Somebody needs the union for himself.
    Paused,
}

impl Sealing {
    /// Begins to seal in the background, if the union is to be sealed.
    ///
    /// # Errors
    /// No thread can be had. Then it is sealed when the mount has ended.
    pub(super) fn start(&self, union: &Arc<Union>) -> io::Result<()> {
        let started = Sealer::start(union);
        let (sealer, failed) = match started {
            Ok(None) => return Ok(()),
            Ok(sealer) => (sealer, Ok(())),
            Err(error) => (None, Err(error)),
        };
        *self.state.lock() = State::On(sealer, union.clone());
        self.changed.notify_all();
        failed
    }

    /// Takes what is sealed, if something is, when nobody needs the union for himself; and leaves that state.
    fn take(&self, leaves: State) -> Option<(Option<Sealer>, Arc<Union>)> {
        let mut state = self.state.lock();
        while matches!(*state, State::Paused) {
            self.changed.wait(&mut state);
        }
        if matches!(*state, State::Off) {
            return None;
        }
        match std::mem::replace(&mut *state, leaves) {
            State::On(sealer, union) => Some((sealer, union)),
            State::Off | State::Paused => None,
        }
    }

    /// Tells whether something is sealed.
    pub(super) fn is_on(&self) -> bool {
        let mut state = self.state.lock();
        while matches!(*state, State::Paused) {
            self.changed.wait(&mut state);
        }
        matches!(*state, State::On(..))
    }

    /// Stops it after the step that it is in, while `act` is done, which may need the union for itself; and goes on afterwards, if that
    /// failed.
    pub(super) fn paused<T, E>(&self, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let Some((sealer, union)) = self.take(State::Paused) else { return act() };
        drop(sealer);
        let weak = Arc::downgrade(&union);
        drop(union);
        let done = act();
        if done.is_err() {
            let started = weak.upgrade().map(|union| self.start(&union));
            match started {
                Some(Ok(())) => {}
                Some(Err(error)) => log::warn!("what is half-copied is sealed when the mount ends: {error}"),
                None => {
                    log::warn!("the mount has ended, and what is half-copied stays so until unionmount seal")
                }
            }
            let mut state = self.state.lock();
            if matches!(*state, State::Paused) {
                *state = State::Off;
            }
            self.changed.notify_all();
        }
        done
    }

    /// Seals what the session has left below. The mount point is free meanwhile, the upper isn't. A signal that ends processes
    /// breaks it off, and what is left stays below for the next mount.
    pub(super) fn seal_rest(&self, point: &Path) {
        let Some((sealer, union)) = self.take(State::Off) else { return };
        drop(sealer);
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            if let Err(error) = signal_hook::flag::register(signal, stop.clone()) {
                log::warn!("sealing can't be broken off by a signal: {error}");
            }
        }
        if let Err(error) = schedule::give_way() {
            log::debug!("sealing runs like everything else: {error}");
        }
        let mut done = SealProgress::default();
        let point = EscapedPath::from(point);
        match union.seal_rest(&mut |now| done = now, &|| stop.load(Ordering::Relaxed)) {
            Ok(left) => {
                for file in left {
                    log::warn!("{point}: {}: can't be sealed: {}", file.path, file.error);
                }
            }
            Err(error) => {
                log::error!("{point}: sealing was broken off, and goes on with the next mount: {error}")
            }
        }
        if done.files > 0 {
            log::info!("{point}: sealed {} files, {} bytes", done.files, done.bytes);
        }
    }
}
