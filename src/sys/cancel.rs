//! Asking long work to stop.
//!
//! Whoever starts the work puts a [`Cancel`] on its thread; the work looks with [`is_asked`] from time to time, undoes what
//! it did and answers `EINTR`.
//!
//! Work is stopped for a program that ends, not for one that handles a signal: programs don't expect `EINTR` of files, and
//! some runtimes send themselves signals all the time. The kernel's own filesystems make the same difference.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static CURRENT: RefCell<Option<Cancel>> = const { RefCell::new(None) };
}

/// What asks some work to stop that is done for a thread of another process.
#[derive(Debug, Clone)]
pub struct Cancel {
    signalled: Arc<AtomicBool>,
    whose: Whose,
}

/// For whom the work is done.
#[derive(Debug, Clone, Copy)]
enum Whose {
    /// A thread of another process; 0: one that can't be named here.
    Client(u32),
    /// This process, which has decided what a signal means.
    Own,
}

impl Cancel {
    /// Watches over work that this thread waits for; 0: one that can't be named here.
    pub fn new(client: u32) -> Cancel {
        Cancel { signalled: Arc::default(), whose: Whose::Client(client) }
    }

    /// Watches over this process's own work, which stops when the flag is set.
    pub fn by(flag: Arc<AtomicBool>) -> Cancel {
        Cancel { signalled: flag, whose: Whose::Own }
    }

    /// Notes that it got a signal. If that ends it, now or later, the work is to stop.
    pub fn ask(&self) {
        self.signalled.store(true, Ordering::Relaxed);
    }

    fn is_asked(&self) -> bool {
        self.signalled.load(Ordering::Relaxed)
            && match self.whose {
                Whose::Client(client) => client != 0 && is_ending(client),
                Whose::Own => true,
            }
    }

    /// Does `work`, on this thread, as what this can stop.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        /// Puts back what was there, however the work ends.
        struct Before(Option<Cancel>);
        impl Drop for Before {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _before = Before(CURRENT.replace(Some(self.clone())));
        work()
    }
}

/// Returns whether what this thread does is asked to stop.
pub fn is_asked() -> bool {
    CURRENT.with_borrow(|current| current.as_ref().is_some_and(Cancel::is_asked))
}

/// Returns whether a thread has ended or is about to: the kernel puts SIGKILL on every thread of a process that a
/// signal ends.
fn is_ending(thread: u32) -> bool {
    const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else { return true };
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let pending = u64::from_str_radix(field("SigPnd:"), 16).unwrap_or(0);
    pending & SIGKILL != 0 || field("State:").starts_with(['Z', 'X'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_work_that_is_meant_is_asked() {
        // No thread can have these numbers.
        let (outer, inner) = (Cancel::new(u32::MAX), Cancel::new(u32::MAX - 1));
        inner.ask();
        outer.during(|| {
            assert!(!is_asked());
            inner.during(|| assert!(is_asked()));
            assert!(!is_asked());
            outer.clone().ask();
            assert!(is_asked());
        });
        assert!(!is_asked());
    }

    #[test]
    fn who_lives_on_is_served_to_the_end() {
        let this = Cancel::new(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
        this.ask();
        assert!(!this.during(is_asked));
        let nobody = Cancel::new(0);
        nobody.ask();
        assert!(!nobody.during(is_asked));
    }
}
