//! What replies consist of.

use std::time::Duration;

use fuse_abi::linux::{fuse_attr, fuse_attr_out, fuse_entry_out, fuse_open_out};
use fuser::{FopenFlags, Generation, INodeNo};

/// A name's node, with what the kernel may remember of both.
///
/// The node's id, by which the kernel asks, and the inode's number (`attr.ino`), which programs see, are two things: who
/// exchanges the object behind a name may give it another node and the same number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// What the kernel asks by; 0: there is no such name.
    pub node: INodeNo,
    /// Tells one use of the node's id from another.
    pub generation: Generation,
    /// How long the name is good for this node.
    pub entry_ttl: Duration,
    /// How long the attributes are good.
    pub attr_ttl: Duration,
    /// The attributes.
    pub attr: fuse_attr,
}

/// Zeroes.
const NO_ATTRIBUTES: fuse_attr = fuse_attr {
    ino: 0,
    size: 0,
    blocks: 0,
    atime: 0,
    mtime: 0,
    ctime: 0,
    atimensec: 0,
    mtimensec: 0,
    ctimensec: 0,
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

impl Entry {
    /// Says that there is no such name, and that this is good for so long.
    pub const fn missing(ttl: Duration) -> Entry {
        Entry {
            node: INodeNo(0),
            generation: Generation(0),
            entry_ttl: ttl,
            attr_ttl: Duration::ZERO,
            attr: NO_ATTRIBUTES,
        }
    }
}

impl From<&Entry> for fuse_entry_out {
    fn from(entry: &Entry) -> fuse_entry_out {
        fuse_entry_out {
            nodeid: entry.node.0,
            generation: entry.generation.0,
            entry_valid: entry.entry_ttl.as_secs(),
            attr_valid: entry.attr_ttl.as_secs(),
            entry_valid_nsec: entry.entry_ttl.subsec_nanos(),
            attr_valid_nsec: entry.attr_ttl.subsec_nanos(),
            attr: entry.attr,
        }
    }
}

/// Returns attributes, and how long they are good.
pub(super) fn attr_out(ttl: Duration, attr: &fuse_attr) -> fuse_attr_out {
    fuse_attr_out { attr_valid: ttl.as_secs(), attr_valid_nsec: ttl.subsec_nanos(), dummy: 0, attr: *attr }
}

/// How a file was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// What the kernel may do with it.
    pub flags: FopenFlags,
    /// The backing file that it reads and writes by itself.
    pub backing: Option<i32>,
}

impl From<Opening> for fuse_open_out {
    fn from(opening: Opening) -> fuse_open_out {
        let passthrough = opening.backing.map_or(FopenFlags::empty(), |_| FopenFlags::FOPEN_PASSTHROUGH);
        fuse_open_out {
            fh: 0,
            open_flags: (opening.flags | passthrough).bits(),
            backing_id: opening.backing.unwrap_or(0),
        }
    }
}
