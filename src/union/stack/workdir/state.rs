//! A workdir whose daemon is exchanged for another while it is in use.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::Workdir;
use crate::sys::descriptors::{Incoming, Outgoing};
use crate::union::escaped_path::EscapedPath;
use crate::union::stack::lock::DirLock;

/// What of a workdir goes to another process; descriptors by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkdirState {
    path: EscapedPath,
    root: u32,
    staging: u32,
    index: u32,
    /// The directory that holds it and its name there, where nobody named it.
    beside: Option<(u32, EscapedPath)>,
    volatile: bool,
    locks: [u32; 2],
}

impl Workdir {
    /// Returns what another process goes on with.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(in crate::union) fn state(&self, fds: &mut Outgoing) -> std::io::Result<WorkdirState> {
        let beside = match &self.beside {
            Some((parent, name)) => {
                Some((fds.add_copy(parent.as_fd())?, EscapedPath::from(std::path::Path::new(name))))
            }
            None => None,
        };
        let [own, of_index] = &self._locks;
        Ok(WorkdirState {
            path: EscapedPath::from(self.path.as_path()),
            root: fds.add_copy(self.root.as_fd())?,
            staging: fds.add_copy(self.staging.as_fd())?,
            index: fds.add_copy(self.index.as_fd())?,
            beside,
            volatile: self.volatile,
            locks: [fds.add(own.held()), fds.add(of_index.held())],
        })
    }

    /// Returns the workdir that another process has in use. Until [`Workdir::go_on`] it is that one's to close.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub(in crate::union) fn of_state(state: WorkdirState, fds: &mut Incoming) -> std::io::Result<Workdir> {
        let beside = match state.beside {
            Some((parent, name)) => Some((fds.take(parent)?, name.as_path().as_os_str().to_owned())),
            None => None,
        };
        let [own, of_index] = state.locks;
        Ok(Workdir {
            path: state.path.as_path().to_owned(),
            root: fds.take(state.root)?,
            staging: fds.take(state.staging)?,
            index: fds.take(state.index)?,
            beside,
            volatile: state.volatile,
            closed: AtomicBool::new(true),
            _locks: [DirLock::taken_over(fds.take(own)?), DirLock::taken_over(fds.take(of_index)?)],
        })
    }

    /// Makes it this process's to close.
    pub(in crate::union) fn go_on(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}
