//! Listings: names alone, and names with their attributes.

use std::sync::Arc;
use std::time::Duration;

use fuser::INodeNo;

use super::adaptor::UnionFs;
use super::convert::errno;
use super::reply::Page;
use super::reply::entry;
use super::wire::listing::Name;
use super::wire::{Entry, Reply};
use crate::error::Result;
use crate::sys::object::Kind;
use crate::union::nodes::node::Node;
use crate::union::view::readdir::Looked;

/// Offsets of `.` and `..` in listings.
const AT_SELF: u64 = 1;
const AT_PARENT: u64 = 2;
const DIRECTORY: u32 = libc::S_IFDIR;
/// Node id 0: there is nothing to remember but the name.
const NAME_ALONE: Entry = Entry::missing(Duration::ZERO);

impl UnionFs {
    pub(super) fn list(&self, page: Page, reply: Reply) {
        let node = match self.node(page.dir) {
            Ok(node) => node,
            Err(e) => return reply.error(errno(&e)),
        };
        reply.listing(page.size, |listing| {
            for name in dots(&node, page.offset) {
                if !listing.add(&name) {
                    return Ok(());
                }
            }
            let listed: Result<()> = self.union.readdir(&node, page.offset.max(AT_PARENT), |found| {
                let (ino, next) = (INodeNo(found.ino), found.cookie);
                let kind = found.kind.map_or(0, Kind::mode_bits);
                listing.add(&Name { ino, next, kind, name: &found.name })
            });
            listed.map_err(|e| errno(&e))
        });
    }

    pub(super) fn list_with_attributes(&self, page: Page, reply: Reply) {
        let node = match self.node(page.dir) {
            Ok(node) => node,
            Err(e) => return reply.error(errno(&e)),
        };
        reply.listing(page.size, |listing| {
            for name in dots(&node, page.offset) {
                if !listing.add_entry(&NAME_ALONE, &name) {
                    return Ok(());
                }
            }
            let listed: Result<()> = self.union.readdirplus(&node, page.offset.max(AT_PARENT), |found| {
                let (next, name) = (found.cookie, &*found.name);
                match &found.what {
                    Looked::Found { attr, .. } => {
                        let (ino, kind) = (INodeNo(attr.ino), attr.stat.mode);
                        // By another id than the kernel has for the name: it would detach what is mounted there.
                        let known = if attr.second_id { NAME_ALONE } else { entry(self.ttl(), attr) };
                        listing.add_entry(&known, &Name { ino, next, kind, name })
                    }
                    Looked::Unasked { ino, kind } | Looked::Failed { ino, kind } => {
                        let (ino, kind) = (INodeNo(*ino), kind.map_or(0, Kind::mode_bits));
                        listing.add_entry(&NAME_ALONE, &Name { ino, next, kind, name })
                    }
                }
            });
            listed.map_err(|e| errno(&e))
        });
    }
}

/// Returns `.` and `..`, as far as they are behind an offset.
fn dots(node: &Arc<Node>, offset: u64) -> impl Iterator<Item = Name<'static>> {
    let parent = node.parent().map_or(node.ino, |parent| parent.ino);
    let all: [(u64, u64, &[u8]); 2] = [(AT_SELF, node.ino, b"."), (AT_PARENT, parent, b"..")];
    all.into_iter().filter(move |(at, ..)| offset < *at).map(|(next, ino, name)| Name {
        ino: INodeNo(ino),
        next,
        kind: DIRECTORY,
        name,
    })
}
