//! Merged listings.
//!
//! A page of a listing is the two indexes of the directory side by side from an offset on, each entry hidden in the
//! lower part that the upper has under the same name, as an entry or as a whiteout. Nothing of a listing is kept
//! between two pages, so there is no handle that could go stale.
//!
//! # Attributes with names
//!
//! The kernel may be given the attributes along with the names, and so asks nothing when a program looks at what it has listed.
//! For the first 32,768 entries of a listing ([`crate::union::nodes::progress`]) it always is. Of a larger directory the further ones are told by name
//! alone, which takes neither a system call nor a node each, here and in the kernel; unless the kernel has looked an entry of
//! the directory up since the listing began, by which it is known that the program looks at all.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::Result;
use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::events::EventKind as Event;
use crate::union::lookup::found::FoundKind;
use crate::union::lookup::index::FIRST_COOKIE;
use crate::union::nodes::node::{DirPart, Identity, InodeId, Node};
use crate::union::view::attr::Attr;

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Box<[u8]>,
    /// The offset at which a listing goes on after it.
    pub cookie: u64,
    /// Its number.
    pub ino: u64,
    /// Its type; `None` where it can't be examined and the layer's own listing doesn't tell.
    pub kind: Option<Kind>,
}

/// An entry of a listing with what a lookup would tell.
#[derive(Debug, Clone)]
pub struct DirEntryPlus {
    /// Its name.
    pub name: Box<[u8]>,
    /// The offset at which a listing goes on after it.
    pub cookie: u64,
    /// What a lookup tells.
    pub what: Looked,
}

/// What a lookup tells of an entry of a listing.
#[derive(Debug, Clone)]
pub enum Looked {
    /// It is that.
    Found {
        /// Its node, which counts one lookup more: [`Union::forget`] it if it isn't passed on.
        node: Arc<Node>,
        /// Its attributes.
        attr: Attr,
    },
    /// It wasn't asked for.
    Unasked {
        /// Its number.
        ino: u64,
        /// Its type.
        kind: Option<Kind>,
    },
    /// It can't be examined: who asks for it is told why.
    Failed {
        /// Its number, as far as the listing tells it.
        ino: u64,
        /// Its type, as far as the listing tells it.
        kind: Option<Kind>,
    },
}

/// A name of a page, before it is looked up.
struct Listed {
    name: Box<[u8]>,
    cookie: u64,
    kind: Kind,
    /// The identity, where the indexes alone tell it.
    identity: Option<Identity>,
    /// What the listing takes it for, where a lookup fails.
    ino: u64,
    /// Whether the type is not certain.
    asks: bool,
}

impl Listed {
    fn kind_if_known(&self) -> Option<Kind> {
        Some(self.kind).filter(|kind| !self.asks || *kind != Kind::File)
    }
}

/// Names that are listed without asking again for the directory's indexes.
const BATCH: usize = 512;

impl Union {
    /// Hands the entries after the offset `after` to `emit`, until it answers `false`. `.` and `..` are not among them.
    pub fn readdir(
        &self,
        node: &Arc<Node>,
        after: u64,
        mut emit: impl FnMut(DirEntry) -> bool,
    ) -> Result<()> {
        self.list(node, after, |page| {
            for listed in page {
                let Some((ino, kind)) = self.number_of(node, &listed) else { continue };
                let Listed { name, cookie, .. } = listed;
                if !emit(DirEntry { name, cookie, ino, kind }) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Returns the number and the type of an entry, looked up only where the indexes don't tell. `None`: it is gone.
    /// The caller holds the directory's names.
    fn number_of(&self, node: &Node, listed: &Listed) -> Option<(u64, Option<Kind>)> {
        // A regular file may stand for something else.
        let certain = listed.kind != Kind::File || !self.owners.override_real();
        if let Some(identity) = listed.identity.filter(|_| certain) {
            return Some((self.table.number(identity), Some(listed.kind)));
        }
        match self.identified(node, &listed.name) {
            Ok(Some((identity, kind))) => Some((self.table.number(identity), Some(kind))),
            Ok(None) => None,
            Err(_) => Some((listed.ino, listed.kind_if_known())),
        }
    }

    /// Tells who an entry is, and its type. The caller holds the directory's names.
    fn identified(&self, node: &Node, name: &[u8]) -> Result<Option<(Identity, Kind)>> {
        let Some(found) = self.resolve(node, name)? else { return Ok(None) };
        Ok(Some((self.identify(node, name, &found)?.0, found.stat.kind())))
    }

    /// Returns what a lookup tells of an entry. The caller holds the directory's names.
    fn looked_up(&self, node: &Arc<Node>, name: &[u8]) -> Result<Option<Looked>> {
        let Some(found) = self.resolve(node, name)? else { return Ok(None) };
        let (child, stat) = self.node_held(node, name, &found, 1)?;
        let attr = match found.what {
            FoundKind::Directory { .. } => self.attr(&child, stat),
            FoundKind::Leaf { .. } => self.attr_of_found(&child, node, name, &found, stat)?,
        };
        Ok(Some(Looked::Found { node: child.pass_on(), attr }))
    }

    /// Does as [`Union::readdir`], with the entries looked up, as far as somebody is likely to look at them. An entry
    /// for which `emit` answers `false` is forgotten again.
    pub fn readdirplus(
        &self,
        node: &Arc<Node>,
        after: u64,
        mut emit: impl FnMut(&DirEntryPlus) -> bool,
    ) -> Result<()> {
        let progress = &self.dir_part(node)?.progress;
        if after < FIRST_COOKIE {
            progress.begin();
        }
        self.list(node, after, |page| {
            for listed in page {
                let what = if !progress.wants_attributes() {
                    let Some((ino, kind)) = self.number_of(node, &listed) else { continue };
                    Looked::Unasked { ino, kind }
                } else {
                    match self.looked_up(node, &listed.name) {
                        Ok(Some(looked)) => looked,
                        Ok(None) => continue,
                        Err(_) => Looked::Failed { ino: listed.ino, kind: listed.kind_if_known() },
                    }
                };
                let entry = DirEntryPlus { name: listed.name, cookie: listed.cookie, what };
                if !emit(&entry) {
                    if let Looked::Found { node, .. } = entry.what {
                        let ino = node.ino;
                        drop(node);
                        self.forget(ino, 1);
                    }
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Goes through the names after an offset, a batch at a time, with the directory's names held.
    fn list(
        &self,
        node: &Arc<Node>,
        mut after: u64,
        mut each: impl FnMut(Vec<Listed>) -> Result<bool>,
    ) -> Result<()> {
        let dir = self.dir_part(node)?;
        let _names = dir.names.read();
        if dir.removed.load(Ordering::Relaxed) {
            return Ok(()); // a removed directory shows nothing, not even an error
        }
        if after < FIRST_COOKIE {
            self.events.tell(|| Event::List { path: self.path_of(node).into() });
        }
        loop {
            let page = self.batch(node, dir, after)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.cookie;
            if !each(page)? {
                return Ok(());
            }
        }
    }

    /// Returns the next names after an offset. Names of one offset are never split.
    fn batch(&self, node: &Node, dir: &DirPart, after: u64) -> Result<Vec<Listed>> {
        let impure = dir.impure.load(Ordering::Relaxed);
        let upper_dir = dir.upper_dir();
        let index = self.indexed(node)?;
        let mut upper = index.upper.as_ref().map(|u| u.after(after)).into_iter().flatten().peekable();
        let lower_index = index.lower.clone().unwrap_or_default();
        let mut lower = lower_index.after(after).iter().peekable();
        let mut page: Vec<Listed> = Vec::new();
        loop {
            let (up, low) = (upper.peek(), lower.peek());
            let next = match (up, low) {
                (None, None) => break,
                (Some(u), None) => u.0,
                (None, Some(l)) => l.cookie,
                (Some(u), Some(l)) => u.0.min(l.cookie),
            };
            if page.len() >= BATCH && page.last().is_some_and(|l| l.cookie != next) {
                break;
            }
            if up.is_some_and(|u| u.0 == next) {
                let Some((cookie, name, entry)) = upper.next() else { break };
                let Some(kind) = entry.kind else { continue };
                let merged = kind == Kind::Directory && !dir.lowers.is_empty();
                let derived = merged || impure || entry.asks;
                let id = upper_dir.as_ref().and_then(|real| self.listed_id(real, kind, entry.ino));
                let identity = id.filter(|_| !derived).map(plain);
                let ino = id.map_or(entry.ino, |id| self.table.number(plain(id)));
                page.push(Listed { name: name.into(), cookie, kind, identity, ino, asks: entry.asks });
            } else {
                let Some(entry) = lower.next() else { break };
                let name = lower_index.name(entry);
                if index.upper.as_ref().is_some_and(|u| u.get(name).is_some()) {
                    continue;
                }
                let real = &dir.lowers[usize::from(entry.first)];
                let id = self.listed_id(real, entry.kind, entry.ino);
                // What was an upper's may go by the number of something below it.
                let derived = self.is_own(real.layer)
                    && (entry.kind == Kind::Directory || real.impure.load(Ordering::Relaxed));
                page.push(Listed {
                    name: name.into(),
                    cookie: entry.cookie,
                    kind: entry.kind,
                    identity: id.filter(|_| !entry.asks && !derived).map(plain),
                    ino: id.map_or(entry.ino, |id| self.table.number(plain(id))),
                    asks: entry.asks,
                });
            }
        }
        Ok(page)
    }
}

/// Returns the identity of an object that was not copied up.
fn plain(real: InodeId) -> Identity {
    Identity { origin: real, real }
}
