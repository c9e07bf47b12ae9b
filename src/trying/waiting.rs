//! Waiting for a command, which gets the signals that would end this process meanwhile.

use std::io::{self, IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::{flag, low_level};

/// What would end this process is handed on, as long as this lives. Afterwards it ends this process again.
///
/// No thread is needed for it: who changes namespaces must be alone. The signals are caught, not ignored, which a command
/// would inherit.
#[derive(Debug)]
pub struct HandingOn {
    came: Vec<(i32, Arc<AtomicBool>)>,
    told: UnixStream,
    over: Arc<AtomicBool>,
}

impl HandingOn {
    /// Begins to catch signals.
    ///
    /// # Errors
    /// Those of sigaction(2) and socketpair(2).
    pub fn begin() -> io::Result<HandingOn> {
        let (told, tell) = UnixStream::pair()?;
        told.set_nonblocking(true)?;
        let over = Arc::new(AtomicBool::new(false));
        let mut came = Vec::new();
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            let slot = Arc::new(AtomicBool::new(false));
            flag::register_conditional_default(signal, over.clone())?;
            flag::register(signal, slot.clone())?;
            low_level::pipe::register(signal, tell.try_clone()?)?;
            came.push((signal, slot));
        }
        Ok(HandingOn { came, told, over })
    }

    /// Waits for a child's end.
    ///
    /// # Errors
    /// Those of waiting.
    pub fn wait(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("it has no number"))?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        loop {
            let mut ready = [PollFd::new(&process, PollFlags::IN), PollFd::new(&self.told, PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            while matches!((&self.told).read(&mut [0; 64]), Ok(1..)) {}
            if let Some(ended) = child.try_wait()? {
                return Ok(ended);
            }
            for (signal, slot) in &self.came {
                // A terminal sends these to the command itself.
                let of_terminal = matches!(*signal, SIGINT | SIGQUIT) && io::stdin().is_terminal();
                if slot.swap(false, Ordering::Relaxed)
                    && !of_terminal
                    && let Some(signal) = Signal::from_named_raw(*signal)
                    && let Err(errno) = kill_process(pid, signal)
                {
                    log::debug!("the command has gone: {errno}");
                }
            }
        }
    }
}

impl Drop for HandingOn {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
