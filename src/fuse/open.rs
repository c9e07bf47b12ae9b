//! Answering with files that are open, and releasing them where opens are requests (`-o passthrough`).

use fuser::{FopenFlags, INodeNo};
use rustix::fs::OFlags;

use super::adaptor::UnionFs;
use super::change::Changer;
use super::convert::errno;
use super::node_id;
use super::opener::Asker;
use super::policy::{IoMode, Policy};
use super::reply::entry;
use super::wire::Reply;
use super::wire::body::Opening;
use crate::union::view::attr::Attr;

impl Policy {
    /// Returns whether opens are requests.
    pub(super) fn opens(&self) -> bool {
        matches!(self.io, IoMode::Passthrough | IoMode::PassthroughLower)
    }
}

impl Changer {
    /// Answers with a file that was just made, open.
    pub(super) fn answer_created(&self, attr: Attr, thread: u32, flags: OFlags, reply: Reply) {
        let ttl = self.policy.timeout;
        if !self.policy.opens() {
            let opening = Opening { flags: FopenFlags::FOPEN_KEEP_CACHE, backing: None };
            return reply.created(&entry(ttl, &attr), opening);
        }
        match self.opener.open(Asker { id: node_id::told(&attr), thread }, flags) {
            Ok(opening) => {
                let mapped = attr.mapped || flags.contains(OFlags::RDWR);
                reply.created(&entry(ttl, &Attr { mapped, ..attr }), opening);
            }
            Err(e) => {
                // The kernel never hears of it.
                self.opener.union.forget(attr.ino, 1);
                reply.error(errno(&e));
            }
        }
    }
}

impl UnionFs {
    pub(super) fn release_file(&self, ino: INodeNo) {
        self.changer.opener.modes.release(ino.0, |real| {
            if let Ok(node) = self.node(ino) {
                self.union.tell_closed(&node, real.before);
            }
        });
    }
}
