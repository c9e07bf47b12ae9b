//! Which of a session's threads ask for requests.

use std::fmt;

/// Asked by each thread of a session each time that it is about to ask for a request.
pub trait Rota: fmt::Debug + Send + Sync {
    /// The thread with this number, from 0, is about to ask for a request. It may be kept waiting here. A thread that is
    /// interrupted by a signal while it waits for a request comes here again. Returns whether
    /// it may spin (see `Config::spin`).
    fn wait_turn(&self, thread: usize) -> bool;
    /// The session is at its end: nobody is to be kept waiting from here on.
    fn end(&self);
}
