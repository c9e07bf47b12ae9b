//! A session that goes on in another process: what that has to know, and what has to stop here first.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::device::Device;
use super::gate::Gate;
use super::init::Agreed;
use crate::fuse::wire::operation::Dialect;

/// What both sides have agreed on, for the process that takes the session over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionState {
    setxattr_ext: bool,
    request_size: usize,
    payload_size: usize,
    /// Major and minor number of the filesystem's device.
    pub device: Option<(u32, u32)>,
}

impl SessionState {
    pub(super) fn agreed(self) -> Agreed {
        Agreed {
            dialect: Dialect { setxattr_ext: self.setxattr_ext },
            uring: false,
            request_size: self.request_size,
            payload_size: self.payload_size,
        }
    }
}

/// What a session is handed over by.
#[derive(Debug, Clone)]
pub struct Parting {
    pub(super) gate: Arc<Gate>,
    pub(super) device: Arc<Device>,
    pub(super) agreed: Agreed,
    /// How many threads there are to be stopped.
    pub(super) threads: usize,
    /// Somebody else has mounted it.
    pub(super) given: bool,
    pub(super) mounted_on: Option<(u32, u32)>,
}

impl Parting {
    /// Tells why the session can't go on elsewhere, if so.
    pub fn in_the_way(&self) -> Option<&'static str> {
        if self.given {
            return Some("somebody else has mounted it, and waits for this daemon's end");
        }
        self.agreed.uring.then_some("with uring requests come over rings of this process")
    }

    /// Returns what the other process has to know.
    pub fn state(&self) -> SessionState {
        let Agreed { dialect, request_size, payload_size, .. } = self.agreed;
        SessionState {
            setxattr_ext: dialect.setxattr_ext,
            request_size,
            payload_size,
            device: self.mounted_on,
        }
    }

    /// Returns the descriptor of the connection.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Lets no thread ask for a request, and waits at most so long until all that were read are answered, but for those that have gone
    /// to threads of their own. `false`: it takes longer; nothing is asked then, either.
    pub fn pause(&self, patience: Duration) -> bool {
        self.gate.close(self.threads, patience)
    }

    /// Lets them ask again.
    pub fn resume(&self) {
        self.gate.open();
    }
}
