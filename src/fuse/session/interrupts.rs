//! FUSE_INTERRUPT: a program that waits for an answer got a signal.
//!
//! The program waits on until the answer comes, whatever it is. Most come at once; so only work that is moved to a
//! thread of its own can be interrupted. It [registers](take_over) when it is moved. The interrupt may be read by
//! another thread before that: those that fit nothing are kept for a while. A number is never used twice.

use std::cell::{Cell, OnceCell};
use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::sys::cancel::Cancel;

/// How many interrupts that came too early, or too late, are kept.
const KEPT: usize = 64;

/// The interrupts of a session.
#[derive(Debug, Default)]
pub(super) struct Interrupts(Mutex<InterruptState>);

#[derive(Debug, Default)]
struct InterruptState {
    /// What can be interrupted, by the number of its request.
    working: Vec<(u64, Cancel)>,
    unmatched: VecDeque<u64>,
}

thread_local! {
    static INTERRUPTS: OnceCell<Arc<Interrupts>> = const { OnceCell::new() };
    /// The number of the request that this thread serves, and the thread that waits for it.
    static SERVED: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
}

impl Interrupts {
    /// Lets this thread serve requests of this session from now on.
    pub(super) fn enter(self: &Arc<Interrupts>) {
        INTERRUPTS.with(|interrupts| {
            interrupts.get_or_init(|| self.clone());
        });
    }

    /// Notes that this thread serves the request with this number, for which `client` waits.
    pub(super) fn serve(unique: u64, client: u32) {
        SERVED.set((unique, client));
    }

    /// Stops the work for a request whose answer is not waited for any more.
    pub(super) fn interrupt(&self, unique: u64) {
        let mut state = self.0.lock();
        if let Some((_, cancel)) = state.working.iter().find(|(working, _)| *working == unique) {
            return cancel.ask();
        }
        if state.unmatched.len() == KEPT {
            state.unmatched.pop_front();
        }
        state.unmatched.push_back(unique);
    }
}

/// Work for a request that can be interrupted, as long as this lives.
#[derive(Debug)]
pub struct Interruptible {
    interrupts: Option<Arc<Interrupts>>,
    unique: u64,
    cancel: Cancel,
}

impl Interruptible {
    /// Does the work on this thread.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.cancel.during(work)
    }
}

/// Registers that the request which this thread serves is worked for elsewhere from here on.
pub fn take_over() -> Interruptible {
    let interrupts = INTERRUPTS.with(|interrupts| interrupts.get().cloned());
    let (unique, client) = SERVED.get();
    let cancel = Cancel::new(client);
    if let Some(interrupts) = &interrupts {
        let mut state = interrupts.0.lock();
        state.working.push((unique, cancel.clone()));
        if state.unmatched.contains(&unique) {
            cancel.ask();
        }
    }
    Interruptible { interrupts, unique, cancel }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        if let Some(interrupts) = &self.interrupts {
            interrupts.0.lock().working.retain(|(unique, _)| *unique != self.unique);
        }
    }
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::sys::cancel::is_asked;

    /// No thread can have this number.
    const GONE: u32 = u32::MAX;

    #[test]
    fn early_or_in_time_it_reaches_the_work_and_no_other() {
        std::thread::spawn(|| {
            let interrupts = Arc::new(Interrupts::default());
            interrupts.enter();
            Interrupts::serve(4, GONE);
            let work = take_over();
            interrupts.interrupt(6);
            assert!(!work.during(is_asked));
            interrupts.interrupt(4);
            assert!(work.during(is_asked));
            Interrupts::serve(6, GONE);
            assert!(take_over().during(is_asked), "it came before");
            Interrupts::serve(8, GONE);
            assert!(!take_over().during(is_asked));
            drop(work);
            assert!(interrupts.0.lock().working.is_empty());
            (100..300).for_each(|unique| interrupts.interrupt(unique));
            assert_eq!(interrupts.0.lock().unmatched.len(), KEPT);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn work_of_no_session_is_never_interrupted() {
        assert!(!take_over().during(is_asked));
    }
}
