//! Calling a thread out of a system call that it waits in.

#![allow(unsafe_code)]

use std::io;

/// What interrupts: nobody sends it for anything else, and where it is not handled it is ignored.
const SIGNAL: libc::c_int = libc::SIGURG;

extern "C" fn nothing(_signal: libc::c_int) {}

/// A thread of this process that can be interrupted: a call that it waits in returns EINTR. One that doesn't wait at
/// that moment notices nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interruptible {
    thread: libc::pid_t,
}

impl Interruptible {
    /// Names this thread.
    ///
    /// # Errors
    ///
    /// A security policy forbids it.
    pub fn this_thread() -> io::Result<Interruptible> {
        // SAFETY: all zeroes is a valid `sigaction`: an empty mask and no flags. Without SA_RESTART the call is not begun
        // anew. The handler does nothing, so it may run at any time; nobody else in this process handles the signal.
        // An inherited mask could keep it from ever arriving.
        let set = unsafe {
            let mut only: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut only);
            libc::sigaddset(&mut only, SIGNAL);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &only, std::ptr::null_mut());
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(SIGNAL, &action, std::ptr::null_mut())
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Interruptible { thread: rustix::thread::gettid().as_raw_nonzero().get() })
    }

    /// Interrupts it. Without effect when it has ended, unless a new thread has its number: that is interrupted.
    pub fn interrupt(self) {
        // SAFETY: a call with plain numbers.
        let _gone = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread, SIGNAL) };
    }
}

#[cfg(test)]
mod tests {
    // A test that panics has failed; that is what unwrap is for here.
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_read_is_interrupted() {
        let (pipe, _writer) = rustix::pipe::pipe().unwrap();
        let (tell, told) = mpsc::channel();
        let ended = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                tell.send(Interruptible::this_thread().unwrap()).unwrap();
                let read = rustix::io::read(&pipe, &mut [0; 1]);
                ended.store(true, Ordering::SeqCst);
                assert_eq!(read, Err(rustix::io::Errno::INTR));
            });
            let thread = told.recv().unwrap();
            // It may not have begun yet.
            while !ended.load(Ordering::SeqCst) {
                thread.interrupt();
                std::thread::yield_now();
            }
        });
    }
}
