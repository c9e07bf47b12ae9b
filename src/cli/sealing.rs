//! What is sealed of a mount: in the background while it is used, and the rest when it has ended.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::sys::schedule;
use crate::union::Union;
use crate::union::change::sealing::SealProgress;
use crate::union::change::sealing::background::Sealer;
use crate::union::escaped_path::EscapedPath;

/// The thread that seals, where there is one, and what it seals: that has the layers open until all is.
#[derive(Default)]
pub(super) struct Sealing(Mutex<Option<(Sealer, Arc<Union>)>>);

impl Sealing {
    /// Begins to seal in the background, if the union is to be sealed.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn start(&self, union: &Arc<Union>) -> io::Result<()> {
        *self.0.lock() = Sealer::start(union)?.map(|sealer| (sealer, union.clone()));
        Ok(())
    }

    /// Tells whether something is sealed.
    pub(super) fn is_on(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Stops it after the step that it is in, while `act` is done, which may need the union for itself; and goes on afterwards, if that
    /// failed.
    pub(super) fn paused<T, E>(&self, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let union = self.0.lock().take().map(|(sealer, union)| {
            drop(sealer);
            Arc::downgrade(&union)
        });
        let done = act();
        if done.is_err()
            && let Some(union) = union.and_then(|union| union.upgrade())
            && let Err(error) = self.start(&union)
        {
            log::warn!("what is half-copied is sealed when the mount ends: {error}");
        }
        done
    }

    /// Seals what the session has left below. The mount point is free meanwhile, the upper isn't. A signal that ends processes
    /// breaks it off, and what is left stays below for the next mount.
    pub(super) fn seal_rest(&self, point: &Path) {
        let Some((sealer, union)) = self.0.lock().take() else { return };
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
