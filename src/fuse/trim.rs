//! Giving memory back after the kernel has forgotten much.
//!
//! The kernel forgets in no order: while it does, what is still known lies scattered over the memory of what isn't, and
//! hardly a page is free. So this waits until it is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

use super::session::roam;
use crate::union::Union;

/// So many nodes (half a megabyte of them) are worth a thread for a second.
const MANY: usize = 4096;
/// When nothing was forgotten for so long, it is over.
const CALM: Duration = Duration::from_secs(1);
/// The longest wait, in those.
const PATIENCE: usize = 10;

/// Starts a thread that waits for the right moment. There is at most one, and none when this is dropped: a thread with
/// a hold of the union must not outlive the mount.
#[derive(Debug, Default)]
pub(super) struct Trimmer {
    waiting: Arc<AtomicBool>,
    thread: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl Trimmer {
    /// Something was forgotten.
    pub(super) fn forgotten(&self, union: &Arc<Union>) {
        if union.gone() < MANY || self.waiting.swap(true, Ordering::Relaxed) {
            return;
        }
        let (end, ended) = channel();
        let (union, waiting) = (union.clone(), self.waiting.clone());
        let started = thread::Builder::new().name("trim".into()).spawn(move || {
            roam();
            if await_calm(&union, &ended) {
                union.give_back();
            }
            drop(union); // before another thread may follow
            waiting.store(false, Ordering::Relaxed);
        });
        match started {
            // The one before has ended, or is about to.
            Ok(thread) => *self.thread.lock() = Some((end, thread)),
            Err(error) => {
                self.waiting.store(false, Ordering::Relaxed);
                log::debug!("memory is kept: {error}");
            }
        }
    }
}

impl Drop for Trimmer {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.thread.get_mut().take() {
            drop(end);
            // One that panicked has ended the process.
            thread.join().unwrap_or_default();
        }
    }
}

/// Waits until no more is forgotten. `false`: the mount ends.
fn await_calm(union: &Union, ended: &Receiver<()>) -> bool {
    let mut before = 0;
    for _ in 0..PATIENCE {
        let now = union.gone();
        if now == before {
            break;
        }
        before = now;
        if ended.recv_timeout(CALM) != Err(RecvTimeoutError::Timeout) {
            return false;
        }
    }
    true
}
