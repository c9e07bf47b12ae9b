//! Answers that several requests share.

use std::time::Duration;

use fuser::{Generation, INodeNo};

use super::convert::{errno, fuse_attr};
use super::node_id;
use super::wire::{Entry, Reply};
use crate::error::Result;
use crate::union::view::attr::Attr;

/// What a page of a listing asks: the directory, where it goes on, and how much the answer may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page {
    pub(super) dir: INodeNo,
    pub(super) offset: u64,
    pub(super) size: u32,
}

/// Returns how long attributes are good, where other answers are for `ttl`.
pub(super) fn attr_ttl(ttl: Duration, attr: &Attr) -> Duration {
    // By which of two ids a file is changed, the other doesn't know.
    if attr.mapped || attr.second_id { Duration::ZERO } else { ttl }
}

/// Returns a name's node that is remembered for `ttl`.
pub(super) fn entry(ttl: Duration, attr: &Attr) -> Entry {
    Entry {
        node: node_id::told(attr),
        generation: Generation(0),
        entry_ttl: ttl,
        attr_ttl: attr_ttl(ttl, attr),
        attr: fuse_attr(attr),
    }
}

/// Replies with an entry that is remembered for `ttl`, or with the error.
pub(super) fn reply_entry(ttl: Duration, reply: Reply, made: Result<Attr>) {
    match made {
        Ok(attr) => reply.entry(&entry(ttl, &attr)),
        Err(e) => reply.error(errno(&e)),
    }
}

/// Replies with attributes, or with the error.
pub(super) fn reply_attr(ttl: Duration, reply: Reply, attr: Result<Attr>) {
    match attr {
        Ok(attr) => reply.attr(attr_ttl(ttl, &attr), &fuse_attr(&attr)),
        Err(e) => reply.error(errno(&e)),
    }
}

/// Replies that it is done, or with the error.
pub(super) fn reply_empty(reply: Reply, done: Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

/// Replies with a value as getxattr and listxattr want it: its size, or itself if it fits.
pub(super) fn reply_value(reply: Reply, size: u32, value: Result<Vec<u8>>) {
    match value {
        Ok(value) => reply.value(&value, size),
        Err(e) => reply.error(errno(&e)),
    }
}
