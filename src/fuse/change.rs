//! Changes: where they run, what happens when the disk is full, and what answers them.
//!
//! A change runs on the thread that read its request, and moves to a thread of its own where it would keep that one for
//! long: when it copies much, or when it waits for room (see [`crate::union::nodes::deferred_free`]). The room comes by FORGETs, which
//! the session's threads read, so none of them may wait for it. What moves is the request itself, copied, and its reply: what a
//! request means stands once, in [`Changer::make`], wherever and however often it runs.

mod make;

use std::sync::Arc;

use fuser::INodeNo;
use rustix::fs::OFlags;

use super::convert::{errno, fuse_attr};
use super::dispatch::start_thread;
use super::opener::{Asker, Opener, open_flags};
use super::policy::Policy;
use super::reply::{attr_ttl, entry};
use super::session::interrupts;
use super::wire::abi::SET_FLAGS;
use super::wire::{Operation, Reply, Request};
use crate::error::Result;
use crate::union::Union;
use crate::union::change::part::Part;
use crate::union::events;
use crate::union::nodes::deferred_free::Full;
use crate::union::view::attr::Attr;

/// A copy of so many bytes doesn't keep a thread that others wait for.
const LONG_COPY: u64 = 1 << 20;

/// Makes the changes that requests ask for, and answers them.
#[derive(Debug, Clone)]
pub(super) struct Changer {
    pub(super) opener: Arc<Opener>,
    pub(super) policy: Policy,
}

/// What a change came to.
#[derive(Debug)]
enum Done {
    Nothing,
    Entry(Attr),
    Attributes(Attr),
    Written(u32),
    Copied {
        bytes: u64,
        wide: bool,
    },
    Ioctl,
    /// A file is ready to be opened, by this id and thread.
    Ready(Asker, OFlags),
    /// A file was made and is to be opened, by this thread.
    Created(Attr, u32, OFlags),
}

impl Changer {
    fn union(&self) -> &Union {
        &self.opener.union
    }

    /// Makes the change that a request asks for and answers, here and now or on a thread of its own.
    pub(super) fn serve(&self, request: &Request<'_>, reply: Reply) {
        if self.is_long(request) {
            return self.move_aside(request, None, reply);
        }
        match self.union().try_change(|| self.make(request)) {
            Ok(done) => self.answer(done, reply),
            Err(full) => self.move_aside(request, Some(full), reply),
        }
    }

    /// Makes the change on a thread of its own, after waiting for room where it is `full`. Where there is no thread to be
    /// had, the reply is dropped there and tells an error. Who waits for it may be interrupted.
    fn move_aside(&self, request: &Request<'_>, full: Option<Full>, reply: Reply) {
        let (changer, request) = (self.clone(), request.into_owned());
        let interruptible = interrupts::take_over();
        let caller = events::asked_by();
        start_thread(move || {
            events::answering(caller);
            interruptible.during(|| match request.parse() {
                Ok(request) => changer.answer(changer.make_with_room(&request, full), reply),
                Err(malformed) => log::error!("{malformed}"),
            });
        });
    }

    fn make_with_room(&self, request: &Request<'_>, full: Option<Full>) -> Result<Done> {
        let make = || self.make(request);
        match full {
            Some(full) => self.union().change_again(full, make),
            None => self.union().change_with_room(make),
        }
    }

    /// Returns whether it would keep a thread for long that others wait for.
    fn is_long(&self, request: &Request<'_>) -> bool {
        let union = self.union();
        let copies = |node: INodeNo, part| self.node(node).is_ok_and(|node| union.copies_much(&node, part));
        let node = request.header.node;
        match request.operation {
            Operation::Setattr(ref set) => copies(node, make::wanted(set).part()),
            Operation::Setxattr { .. } | Operation::Removexattr { .. } => copies(node, Part::Metadata),
            Operation::Ioctl { .. } | Operation::Fallocate { .. } => copies(node, Part::Whole),
            Operation::Write { .. } => copies(node, Part::Written),
            Operation::Link { node: linked, .. } => copies(linked, Part::Metadata),
            Operation::Open { flags, .. } => {
                let flags = open_flags(flags);
                let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
                writes && !flags.contains(OFlags::TRUNC) && copies(node, Part::Written)
            }
            Operation::Rename { name, .. } => {
                self.node(node).is_ok_and(|from| union.copies_much_under(&from, name))
            }
            Operation::CopyFileRange { to, length, .. } => length >= LONG_COPY || copies(to, Part::Written),
            _ => false,
        }
    }

    /// Answers. What the change held of the union was let go before: the caller's next request may want it gone.
    fn answer(&self, done: Result<Done>, reply: Reply) {
        let ttl = self.policy.timeout;
        match done {
            Ok(Done::Nothing) => reply.ok(),
            Ok(Done::Entry(attr)) => reply.entry(&entry(ttl, &attr)),
            Ok(Done::Attributes(attr)) => reply.attr(attr_ttl(ttl, &attr), &fuse_attr(&attr)),
            Ok(Done::Written(bytes)) => reply.written(bytes),
            Ok(Done::Copied { bytes, wide }) => reply.copied(bytes, wide),
            Ok(Done::Ioctl) => reply.ioctl(0, &[]),
            Ok(Done::Ready(asker, flags)) => match self.opener.open(asker, flags) {
                Ok(opening) => reply.opened(opening),
                Err(e) => reply.error(errno(&e)),
            },
            Ok(Done::Created(attr, thread, flags)) => self.answer_created(attr, thread, flags, reply),
            Err(e) => reply.error(errno(&e)),
        }
    }
}

/// Returns whether a request is a change, which [`Changer::serve`] makes.
pub(super) fn is_change(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::Symlink { .. }
        | Operation::Mknod { .. }
        | Operation::Mkdir { .. }
        | Operation::Create { .. }
        | Operation::Tmpfile { .. }
        | Operation::Link { .. }
        | Operation::Unlink { .. }
        | Operation::Rmdir { .. }
        | Operation::Rename { .. }
        | Operation::Setattr(_)
        | Operation::Setxattr { .. }
        | Operation::Removexattr { .. }
        | Operation::Open { .. }
        | Operation::Write { .. }
        | Operation::Fallocate { .. }
        | Operation::CopyFileRange { .. } => true,
        Operation::Ioctl { command, .. } => *command == SET_FLAGS,
        _ => false,
    }
}
