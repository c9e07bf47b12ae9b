//! Answers that several requests share.

use std::time::{Duration, SystemTime};

use fuser::{Errno, Generation, INodeNo, ReplyEmpty, ReplyEntry, ReplyXattr};

use super::convert::{errno, file_attr};
use crate::error::Result;
use crate::union::attr::Attr;

/// An attribute of zeroes with the node id 0: "no such name, and you may remember it".
pub(super) fn missing() -> fuser::FileAttr {
    fuser::FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// How long attributes are good, where other answers are for `ttl`.
pub(super) fn attr_ttl(ttl: Duration, attr: &Attr) -> Duration {
    if attr.mapped { Duration::ZERO } else { ttl }
}

/// Replies with an entry that is remembered for `ttl`, or with the error.
pub(super) fn reply_entry(ttl: Duration, reply: ReplyEntry, entry: Result<Attr>) {
    match entry {
        Ok(attr) => reply.entry_with_ttls(&attr_ttl(ttl, &attr), &ttl, &file_attr(&attr), Generation(0)),
        Err(e) => reply.error(errno(&e)),
    }
}

/// Replies that it is done, or with the error.
pub(super) fn reply_empty(reply: ReplyEmpty, done: Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

/// Replies with a value as getxattr and listxattr want it: its size, or itself if it fits.
pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, value: Result<Vec<u8>>) {
    match value {
        Err(e) => reply.error(errno(&e)),
        Ok(value) => match u32::try_from(value.len()) {
            Err(_) => reply.error(Errno::E2BIG),
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len > size => reply.error(Errno::ERANGE),
            Ok(_) => reply.data(&value),
        },
    }
}
