//! Opening, creating and releasing files where opens are requests (`-o passthrough`).

use fuser::{INodeNo, OpenFlags};
use rustix::fs::OFlags;

use super::adaptor::UnionFs;
use super::change::change;
use super::convert::errno;
use super::opener::open_flags;
use super::policy::IoMode;
use super::reply::entry;
use super::wire::Reply;
use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::change::modify::Create;
use crate::union::view::attr::Attr;

impl UnionFs {
    /// Are opens requests?
    pub(super) fn opens(&self) -> bool {
        self.policy.io == IoMode::Passthrough
    }

    pub(super) fn open_file(&self, ino: INodeNo, flags: OpenFlags, kill: bool, reply: Reply) {
        let (flags, opener) = (open_flags(flags), self.opener.clone());
        let copies = flags.intersects(OFlags::WRONLY | OFlags::RDWR) && !flags.contains(OFlags::TRUNC);
        let long = copies && self.node(ino).is_ok_and(|node| self.union.copies_much(&node));
        let make_ready = move |union: &Union, (): &()| union.open(&union.node(ino.0)?, flags, kill);
        let answer = move |ready: Result<()>| match ready.and_then(|()| opener.open(ino.0, flags)) {
            Ok(opening) => reply.opened(opening),
            Err(e) => reply.error(errno(&e)),
        };
        change(&self.union, &(), long, make_ready, answer);
    }

    /// Makes a file, or finds that somebody else just did, and opens it.
    pub(super) fn create_open(
        &self,
        (parent, name): (INodeNo, &[u8]),
        create: Create<'static>,
        (flags, kill): (OpenFlags, bool),
        reply: Reply,
    ) {
        let exclusive = open_flags(flags).contains(OFlags::EXCL);
        let make = move |union: &Union, name: &[u8]| {
            let parent = union.node(parent.0)?;
            let mut flags = open_flags(flags);
            let (node, attr) = match union.create(&parent, name, create) {
                Err(FsError::Exists) if !exclusive => union.lookup(&parent, name)?.ok_or(FsError::Stale)?,
                made => {
                    // Nothing is there to be truncated, and ext4 writes what was truncated to disk when it is closed.
                    flags -= OFlags::TRUNC;
                    made?
                }
            };
            let ready = union.open(&node, flags, kill);
            drop(node);
            if ready.is_err() {
                union.forget(attr.ino, 1);
            }
            ready.map(|()| attr)
        };
        let answer = self.answer_created(flags, reply);
        change(&self.union, name, false, make, answer);
    }

    /// What answers with a file that was just made, open.
    pub(super) fn answer_created(
        &self,
        flags: OpenFlags,
        reply: Reply,
    ) -> impl FnOnce(Result<Attr>) + Send + 'static {
        let (opener, ttl) = (self.opener.clone(), self.ttl());
        move |made: Result<Attr>| {
            let attr = match made {
                Ok(attr) => attr,
                Err(e) => return reply.error(errno(&e)),
            };
            let flags = open_flags(flags);
            match opener.open(attr.ino, flags) {
                Ok(opening) => {
                    let mapped = attr.mapped || flags.contains(OFlags::RDWR);
                    reply.created(&entry(ttl, &Attr { mapped, ..attr }), opening);
                }
                Err(e) => {
                    // The kernel never hears of it.
                    opener.union.forget(attr.ino, 1);
                    reply.error(errno(&e));
                }
            }
        }
    }

    pub(super) fn release_file(&self, ino: INodeNo) {
        self.opener.modes.release(ino.0, |real| {
            if let Ok(node) = self.node(ino) {
                self.union.tell_closed(&node, real.before);
            }
        });
    }
}
