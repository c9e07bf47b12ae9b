//! Listings: names alone, and names with their attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::adaptor::UnionFs;
use super::convert::{errno, file_attr, file_type};
use super::reply::{attr_ttl, missing};
use crate::union::node::Node;

/// Offsets of `.` and `..` in listings.
const AT_SELF: u64 = 1;
const AT_PARENT: u64 = 2;

impl UnionFs {
    pub(super) fn list(&self, ino: INodeNo, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.node(ino).and_then(|node| {
            for (at, number, name) in [(AT_SELF, node.ino, "."), (AT_PARENT, Self::parent_ino(&node), "..")] {
                if offset < at && reply.add(INodeNo(number), at, fuser::FileType::Directory, name) {
                    return Ok(());
                }
            }
            self.union.readdir(&node, offset.max(AT_PARENT), |entry| {
                let name = OsStr::from_bytes(&entry.name);
                !reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), name)
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    pub(super) fn list_with_attributes(&self, ino: INodeNo, offset: u64, mut reply: ReplyDirectoryPlus) {
        let listed = self.node(ino).and_then(|node| {
            for (at, number, name) in [(AT_SELF, node.ino, "."), (AT_PARENT, Self::parent_ino(&node), "..")] {
                // Node id 0: only the name, nothing to remember.
                let attr =
                    fuser::FileAttr { ino: INodeNo(number), kind: fuser::FileType::Directory, ..missing() };
                if offset < at && reply.add(INodeNo(0), at, name, &Duration::ZERO, &attr, Generation(0)) {
                    return Ok(());
                }
            }
            self.union.readdirplus(&node, offset.max(AT_PARENT), |entry| {
                let (attr, name) = (file_attr(&entry.attr), OsStr::from_bytes(&entry.name));
                let ttl = attr_ttl(self.ttl(), &entry.attr);
                !reply.add(attr.ino, entry.cookie, name, &ttl, &attr, Generation(0))
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    /// The number of the directory's parent, for `..`.
    fn parent_ino(node: &Arc<Node>) -> u64 {
        node.parent().map_or(node.ino, |p| p.ino)
    }
}
