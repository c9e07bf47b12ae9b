//! Merged listings.
//!
//! A page of a listing is the two indexes of the directory side by side from an offset on, each entry hidden in the
//! lower part that the upper has under the same name, as an entry or as a whiteout. Nothing of a listing is kept
//! between two pages, so there is no handle that could go stale.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Union;
use super::attr::Attr;
use super::events::What as Event;
use super::index::FIRST_COOKIE;
use super::node::{DirPart, Identity, Node, RealId};
use super::resolve::What;
use crate::error::Result;
use crate::sys::object::Kind;

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Box<[u8]>,
    /// The offset at which a listing goes on after it.
    pub cookie: u64,
    /// Its number.
    pub ino: u64,
    /// Its type.
    pub kind: Kind,
}

/// An entry of a listing with what a lookup would tell.
#[derive(Debug, Clone)]
pub struct DirEntryPlus {
    /// Its name.
    pub name: Box<[u8]>,
    /// The offset at which a listing goes on after it.
    pub cookie: u64,
    /// Its node, which counts one lookup more: [`Union::forget`] it if it isn't passed on.
    pub node: Arc<Node>,
    /// Its attributes.
    pub attr: Attr,
}

/// A name of a page, before it is looked up.
struct Listed {
    name: Box<[u8]>,
    cookie: u64,
    kind: Kind,
    /// The identity, where the indexes alone tell it.
    identity: Option<Identity>,
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
                let Listed { name, cookie, kind, identity } = listed;
                // A regular file may stand for something else.
                let identity = identity.filter(|_| kind != Kind::File || !self.owners.override_real());
                let (identity, kind) = match identity {
                    Some(identity) => (identity, kind),
                    None => match self.resolve(node, &name)? {
                        Some(found) => (self.identify(node, &name, &found)?.0, found.stat.kind()),
                        None => continue,
                    },
                };
                if !emit(DirEntry { name, cookie, ino: self.table.number(identity), kind }) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// As [`Union::readdir`], with each entry looked up. An entry for which `emit` answers `false` is forgotten again.
    pub fn readdirplus(
        &self,
        node: &Arc<Node>,
        after: u64,
        mut emit: impl FnMut(&DirEntryPlus) -> bool,
    ) -> Result<()> {
        self.list(node, after, |page| {
            for listed in page {
                let Some(found) = self.resolve(node, &listed.name)? else { continue };
                let (child, stat) = self.node_of(node, &listed.name, &found, 1)?;
                let attr = match found.what {
                    What::Directory { .. } => self.attr(&child, stat),
                    What::Leaf { .. } => self.attr_of_found(&child, node, &listed.name, &found, stat)?,
                };
                let entry = DirEntryPlus { name: listed.name, cookie: listed.cookie, node: child, attr };
                if !emit(&entry) {
                    let ino = entry.node.ino;
                    drop(entry);
                    self.forget(ino, 1);
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
        if self.check_alive(dir).is_err() {
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

    /// The next names after an offset. Names of one offset are never split.
    fn batch(&self, node: &Node, dir: &DirPart, after: u64) -> Result<Vec<Listed>> {
        let impure = dir.impure.load(Ordering::Relaxed);
        let upper_id = dir.upper_dir().map(|d| d.id.0);
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
                let identity = match upper_id {
                    Some(dev) if !(merged || impure && kind != Kind::Directory) => {
                        Some(plain(self.real_id(dev, entry.ino)))
                    }
                    _ => None,
                };
                page.push(Listed { name: name.into(), cookie, kind, identity });
            } else {
                let Some(entry) = lower.next() else { break };
                let name = lower_index.name(entry);
                if index.upper.as_ref().is_some_and(|u| u.get(name).is_some()) {
                    continue;
                }
                let real = &dir.lowers[usize::from(entry.first)];
                let identity = plain(self.real_id(real.id.0, entry.ino));
                page.push(Listed {
                    name: name.into(),
                    cookie: entry.cookie,
                    kind: entry.kind,
                    identity: Some(identity),
                });
            }
        }
        Ok(page)
    }
}

/// The identity of an object that was not copied up.
fn plain(real: RealId) -> Identity {
    Identity { origin: real, real }
}
