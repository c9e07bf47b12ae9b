//! Threads for single changes: ordinary ones, whoever asks for them.

use super::SLOT;
use crate::sys::schedule;

/// What a thread is started for.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Starts a thread of its own, which is as ordinary as any, even where a CPU-affine worker asks for it.
pub fn start_thread(job: impl FnOnce() + Send + 'static) {
    let starter = SLOT.with_borrow(|slot| slot.as_ref().map(|slot| slot.starter.clone()));
    match starter {
        // A thread that a CPU-affine worker starts would be one of SCHED_IDLE for ever.
        Some(starter) => {
            if starter.send(Box::new(job)).is_err() {
                log::error!("no thread for a change: the one that starts them has ended");
            }
        }
        None => spawn(Box::new(job)),
    }
}

/// Starts a thread. Where there is none to be had, the job is dropped.
pub(super) fn spawn(job: Job) {
    let work = move || {
        schedule::roam();
        job();
    };
    if let Err(e) = std::thread::Builder::new().name("change".into()).spawn(work) {
        log::error!("no thread for a change: {e}");
    }
}
