//! Listings: names alone, and names with their attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::adaptor::UnionFs;
use super::convert::{errno, file_attr, file_type};
use super::reply::attr_ttl;
use crate::union::node::Node;
use crate::union::readdir::Looked;

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
                let kind = entry.kind.map(file_type);
                !reply.add_of_type(INodeNo(entry.ino), entry.cookie, kind, name)
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
                let kind = Some(fuser::FileType::Directory);
                if offset < at && reply.add_name(INodeNo(number), at, kind, name) {
                    return Ok(());
                }
            }
            self.union.readdirplus(&node, offset.max(AT_PARENT), |entry| {
                let name = OsStr::from_bytes(&entry.name);
                match &entry.what {
                    Looked::Found { attr, .. } => {
                        let ttl = attr_ttl(self.ttl(), attr);
                        let attr = file_attr(attr);
                        !reply.add(attr.ino, entry.cookie, name, &ttl, &attr, Generation(0))
                    }
                    Looked::Failed { ino, kind } => {
                        !reply.add_name(INodeNo(*ino), entry.cookie, kind.map(file_type), name)
                    }
                }
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
