//! Giving memory back after the kernel has forgotten much.
//!
//! The kernel forgets in no order: while it does, what is still known lies scattered over the memory of what isn't, and
//! hardly a page is free. So this waits until it is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;

use super::dispatch::start_thread;
use crate::union::Union;

/// So many nodes (half a megabyte of them) are worth a thread for a second.
const MANY: usize = 4096;
/// When nothing was forgotten for so long, it is over.
const CALM: Duration = Duration::from_secs(1);
/// So many of those are waited for before something is given back while it goes on.
const PATIENCE: usize = 10;

/// Starts a thread that waits for the right moment. There is at most one, and none when this is dropped: a thread with
/// a hold of the union must not outlive the mount.
#[derive(Debug, Default)]
pub(super) struct HeapReleaser {
    waiting: Arc<AtomicBool>,
    /// What tells the thread to end, and what tells that it has.
    thread: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

/// What the thread has. Let go in this order, whether it ran or could not be started: the next may follow when the union is
/// let go.
struct Wait {
    union: Arc<Union>,
    ended: Receiver<()>,
    _waiting: Waiting,
    _done: Sender<()>,
}

/// That a thread waits.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl HeapReleaser {
    /// Notes that something was forgotten.
    pub(super) fn forgotten(&self, union: &Arc<Union>) {
        if union.gone() < MANY || self.waiting.swap(true, Ordering::AcqRel) {
            return;
        }
        let ((end, ended), (_done, done)) = (channel(), channel());
        *self.thread.lock() = Some((end, done));
        let wait = Wait { union: union.clone(), ended, _waiting: Waiting(self.waiting.clone()), _done };
        start_thread(move || {
            let wait = wait; // as a whole, or its parts would be let go in another order
            while let Some(calm) = await_calm(&wait.union, &wait.ended) {
                wait.union.give_back();
                // What is forgotten after that would wait until as much is forgotten again.
                if calm == Calm::Over {
                    break;
                }
            }
        });
    }
}

impl HeapReleaser {
    /// Ends the thread, if there is one, so that it lets go of the union.
    pub(super) fn end(&self) {
        let thread = self.thread.lock().take();
        if let Some((end, done)) = thread {
            drop(end);
            // Nothing is ever sent: this waits for the other end to be let go.
            done.recv().unwrap_or_default();
        }
    }
}

impl Drop for HeapReleaser {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether the kernel goes on forgetting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calm {
    /// It doesn't.
    Over,
    /// It does, for long already.
    NotYet,
}

/// Waits until no more is forgotten, or for long. `None`: the mount ends.
fn await_calm(union: &Union, ended: &Receiver<()>) -> Option<Calm> {
    let mut before = None;
    for _ in 0..PATIENCE {
        let now = Some(union.gone());
        if now == before {
            return Some(Calm::Over);
        }
        before = now;
        if ended.recv_timeout(CALM) != Err(RecvTimeoutError::Timeout) {
            return None;
        }
    }
    Some(Calm::NotYet)
}
