//! What loses a name: to a removal, or to what a rename puts in its place. Its node is reached in another way
//! afterwards, and the counts of a file's names stay right.

use std::sync::Arc;

use crate::error::Result;
use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::change::upper::UpperFd;
use crate::union::hardlinks::counts::Hidden;
use crate::union::lookup::found::Found;
use crate::union::lookup::index::UpperEntry;
use crate::union::nodes::node::{Identity, InodeId, Node, NodePlace, NodeSource, both_places};

/// Something that is about to lose a name.
pub(in crate::union) struct RemovedEntry {
    node: Option<Arc<Node>>,
    /// Who it is.
    pub identity: Identity,
    /// The entry of the upper under the name.
    pub present: Option<Kind>,
    indexed: bool,
    /// The name is one of several of a lower's file: how many are hidden once it is gone.
    pub hidden: Option<Hidden>,
}

impl RemovedEntry {
    /// Takes the finding under a name that will be removed or replaced. If only the lower has the name, of a file whose
    /// copy is in the hardlink index, the name is made a link of the copy first, so that the count falls in one step.
    pub fn of(
        fs: &Union,
        parent: &Arc<Node>,
        fd: &UpperFd,
        name: &[u8],
        found: &Found,
        origin: InodeId,
    ) -> Result<RemovedEntry> {
        let (identity, source, stat) = fs.identify_as(origin, (parent, name), found)?;
        let mut present = fs.is_upper(found.layer).then(|| found.stat.kind());
        if source == NodeSource::Index {
            fs.mark_impure(parent)?;
            fs.link_alias(fd, name, identity.origin)?;
            let ino = stat.ino;
            fs.note_upper(fs.dir_part(parent)?, name, Some(UpperEntry::known(found.stat.kind(), ino)));
            present = Some(found.stat.kind());
        }
        let upper = fs.upper()?;
        let seen = fs.seen_of(identity, source, &stat, name, found)?;
        let node = fs.table.find(identity).filter(|node| seen.fits(node.generation()));
        let is_hidden = present.is_none() && found.stat.nlink > 1;
        let hidden = || Hidden {
            count: fs.hidden_count(identity.origin) + 1,
            // A copy that a snapshot froze was made at another time than its origin.
            born: found.stat.born.filter(|_| found.id == identity.origin),
        };
        fs.check_judged(parent, name, node.as_ref(), found.stat.nlink)?;
        Ok(RemovedEntry {
            node,
            indexed: upper.is_indexed(identity.origin),
            hidden: is_hidden.then(hidden),
            identity,
            present,
        })
    }

    /// Runs what takes the name away. A node that was reached by this name is reached by a descriptor afterwards.
    pub fn lose_name(
        &self,
        fs: &Union,
        parent: &Arc<Node>,
        name: &[u8],
        remove: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let Some(node) = &self.node else { return remove() };
        let next = next_name(fs, node, parent, name);
        lose(fs, (node, &mut node.place.write()), (parent, name), next, remove)
    }

    /// Does as [`RemovedEntry::lose_name`], where `replace` puts `mover` under the name, which is in that place then. The
    /// counts are [`RemovedEntry::settle_links`]'s.
    pub fn be_replaced(
        &self,
        fs: &Union,
        (parent, fd): (&Arc<Node>, &UpperFd),
        name: &[u8],
        mover: &Node,
        replace: impl FnOnce(&mut NodePlace) -> Result<()>,
    ) -> Result<()> {
        let lose_name = || {
            let Some(node) = &self.node else { return replace(&mut mover.place.write()) };
            let next = next_name(fs, node, parent, name);
            let (mut place, mut moved) = both_places(node, mover);
            lose(fs, (node, &mut place), (parent, name), next, || replace(&mut moved))
        };
        let Some(hidden) = self.hidden else { return lose_name() };
        let (upper, lower) = (fs.upper()?, self.identity.origin);
        upper.replace_link(fd, name, lower, hidden.count)?;
        upper.link_was_replaced(lower, hidden, lose_name())
    }

    /// Brings the link counts and the hardlink index up to date. The name is gone whatever comes of it; a copy without
    /// names goes at the next mount.
    pub fn settle_links(&self, fs: &Union) {
        if self.indexed
            && let Err(e) = fs.drop_unnamed_copy(self.identity.origin)
        {
            log::warn!("a copy without names stays in the index until the next mount: {e}");
        }
        if let Some(hidden) = self.hidden {
            fs.hardlinks.hide(self.identity.origin, hidden);
        }
    }
}

/// Returns the place that a node has by another name, once it has lost this one.
fn next_name(fs: &Union, node: &Arc<Node>, parent: &Arc<Node>, name: &[u8]) -> Option<NodePlace> {
    fs.forget_name(node, parent, name);
    if node.is_named(parent, name) { fs.next_name(node) } else { None }
}

/// Runs what takes the name away, with the node's place locked.
fn lose(
    fs: &Union,
    (node, place): (&Arc<Node>, &mut NodePlace),
    (parent, name): (&Arc<Node>, &[u8]),
    next: Option<NodePlace>,
    remove: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let here = matches!(&*place, NodePlace::Named { parent: p, entry } if Arc::ptr_eq(p, parent) && entry.name() == name);
    // What was taken out of the other names is known still where it isn't needed.
    let put_back = |next: NodePlace| {
        if let NodePlace::Named { parent, entry } = next {
            fs.push_name(node, &parent, entry.name(), entry.source());
        }
    };
    if !here {
        next.into_iter().for_each(put_back);
        return remove();
    }
    // Taken now: the removal itself may need the place's lock for nothing.
    let (next, last) = match next {
        Some(next) => (next, false),
        None => {
            let object = fs.object_at(node, place)?;
            let (upper, stat) = (object.in_upper(), object.stat()?);
            let last = upper && stat.nlink == 1;
            (NodePlace::Pinned { fd: fs.pins.hold_owned(object.into_held(), stat.uid)?, upper }, last)
        }
    };
    if let Err(e) = if last { node.lose_last_name(remove) } else { remove() } {
        put_back(next);
        return Err(e);
    }
    if matches!(next, NodePlace::Pinned { upper: true, .. }) {
        fs.deferred.defer(node.ino);
    }
    *place = next;
    Ok(())
}
