//! What every request passes on its way to the filesystem, whatever it came over.

use std::fmt;
use std::io;
use std::sync::Arc;

use fuser::Errno;

use super::init::Wanted;
use super::interrupts::Interrupts;
use crate::fuse::dispatch::DispatchPolicy;
use crate::fuse::wire::operation::{Dialect, Init};
use crate::fuse::wire::request::Malformed;
use crate::fuse::wire::{Header, Operation, Reply, Request};

/// What is served.
pub trait Filesystem: Send + Sync + 'static {
    /// Returns what it wants of what the kernel offers with its first word.
    ///
    /// # Errors
    ///
    /// It doesn't begin.
    fn negotiate(&mut self, offer: &Init) -> io::Result<Wanted>;

    /// Answers a request, now or later. Several threads call this at the same time.
    fn serve(&self, request: &Request<'_>, reply: Reply);

    /// Hears the last word: no request comes any more.
    fn destroy(&self) {}
}

/// Who is let in. The kernel knows "the mounting user" and "all"; what is between is looked at here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Whom the kernel lets in.
    All,
    /// Root, and the user with this id.
    RootAnd(u32),
}

impl Admission {
    fn admits(self, header: &Header, operation: &Operation<'_>) -> bool {
        match self {
            Admission::All => true,
            Admission::RootAnd(owner) => {
                header.uid == owner || header.uid == 0 || is_after_opening(operation)
            }
        }
    }
}

/// Returns whether it needs something open, or is asked in nobody's name: who asks was admitted before, or isn't there.
fn is_after_opening(operation: &Operation<'_>) -> bool {
    matches!(
        operation,
        Operation::Read { .. }
            | Operation::Write { .. }
            | Operation::Readdir { .. }
            | Operation::Readdirplus { .. }
            | Operation::Fsync { .. }
            | Operation::Fsyncdir { .. }
            | Operation::Release
            | Operation::Releasedir
            | Operation::Forget { .. }
            | Operation::BatchForget(_)
            | Operation::Interrupt { .. }
            | Operation::Destroy
    )
}

/// What all threads of a session share.
pub(super) struct Served<F: Filesystem> {
    pub(super) filesystem: F,
    pub(super) admission: Admission,
    pub(super) dialect: Dialect,
    /// Which thread asks, where requests come over the device.
    pub(super) pairing: Option<Arc<DispatchPolicy>>,
    pub(super) interrupts: Arc<Interrupts>,
}

impl<F: Filesystem> fmt::Debug for Served<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served").field("admission", &self.admission).finish_non_exhaustive()
    }
}

impl<F: Filesystem> Served<F> {
    /// Serves what was read, if it is a request. `reply` makes what answers the request with a number.
    ///
    /// # Errors
    ///
    /// It has no header that fits: what comes next can't be trusted.
    pub(super) fn serve(
        &self,
        parsed: Result<Request<'_>, Malformed>,
        reply: impl FnOnce(u64) -> Reply,
    ) -> io::Result<()> {
        match parsed {
            Ok(request) => {
                let reply = reply(request.header.unique);
                self.dispatch(&request, reply);
                Ok(())
            }
            Err(malformed @ Malformed::Operation { unique, .. }) => {
                log::error!("{malformed}");
                reply(unique).error(Errno::EIO);
                Ok(())
            }
            Err(malformed @ Malformed::Header(_)) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, malformed))
            }
        }
    }

    fn dispatch(&self, request: &Request<'_>, reply: Reply) {
        let Request { header, operation, .. } = request;
        if let Some(pairing) = &self.pairing {
            // The kernel asks these on its own account, in nobody's name.
            let nobody = header.pid == 0 && (operation.may_be_of_nobody() || operation.is_unanswered());
            pairing.asked(Some(header.pid).filter(|_| !nobody), operation.data_size());
        }
        if !self.admission.admits(header, operation) {
            return reply.error(Errno::EACCES);
        }
        match *operation {
            Operation::Interrupt { unique } => {
                self.interrupts.interrupt(unique);
                reply.none();
            }
            Operation::Destroy => reply.ok(),
            // It comes once.
            Operation::Init(_) => reply.error(Errno::EIO),
            _ => {
                Interrupts::serve(header.unique, header.pid);
                self.filesystem.serve(request, reply);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fuser::INodeNo;

    use super::*;

    #[test]
    fn only_the_owner_and_root_are_admitted() {
        let by = |uid| Header { unique: 1, node: INodeNo(1), pid: 1, uid };
        let only = Admission::RootAnd(1000);
        let lookup = Operation::Lookup { name: b"x" };
        assert!(only.admits(&by(0), &lookup) && only.admits(&by(1000), &lookup));
        assert!(!only.admits(&by(1001), &lookup) && Admission::All.admits(&by(1001), &lookup));
        // The kernel reads ahead in the name of whoever happens to.
        assert!(only.admits(&by(1001), &Operation::Read { offset: 0, size: 1, unnoticed: false }));
        assert!(!only.admits(&by(1001), &Operation::Statfs));
    }
}
