//! What the union tells of itself: which layers answer a lookup, where an open file's data are.

use std::sync::Arc;

use rustix::fs::OFlags;

use super::Union;
use super::escaped_path::EscapedPath;
use super::events::EventKind;
use super::lookup::found::{Found, FoundKind};
use super::lookup::marker;
use super::lookup::realdir::LayerIndex;
use super::lookup::search::{Cut, LayerEntry, LayerVisit};
use super::nodes::node::{Node, NodePlace, NodeSource};
use crate::error::Result;
use crate::sys::object::Kind;

impl Union {
    /// Returns the number by which users know a layer: 0 is the upper, 1 the topmost lower.
    pub fn layer_number(&self, layer: LayerIndex) -> u16 {
        layer + u16::from(self.upper.is_none())
    }

    /// Returns the path of a name in a directory, for events.
    pub(super) fn path_in(&self, parent: &Node, name: &[u8]) -> EscapedPath {
        let mut path = self.path_of(parent);
        if path != b"/" {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        EscapedPath(path)
    }

    /// Returns the lower that has a node's object, if one has.
    pub(super) fn lower_of(&self, node: &Node) -> Option<LayerIndex> {
        if let Some(dir) = &node.dir {
            return dir.top().map(|top| top.layer).filter(|layer| !self.is_upper(*layer));
        }
        match &*node.place.read() {
            NodePlace::Named { parent, entry } => match entry.source() {
                NodeSource::Lower(at) => Some(parent.dir.as_ref()?.lowers.get(usize::from(at))?.layer),
                NodeSource::Upper | NodeSource::Index => None,
            },
            NodePlace::Root | NodePlace::Pinned { .. } => None,
        }
    }

    /// Finds what `name` stands for and tells of it and of the markers that the search met. The caller holds the
    /// directory's names.
    ///
    /// The search asks every layer: one that an index answers passes no markers.
    #[cold]
    pub(super) fn resolve_and_tell(&self, parent: &Node, name: &[u8]) -> Result<Option<Found>> {
        let path = self.path_in(parent, name);
        let mut markers = Vec::new();
        let hides = |met: &LayerVisit<'_>| -> Vec<u16> {
            // An error here would have been the lookup's own, below the point at which it ended.
            let hidden = self.search(met.rest, met.name).ok().flatten();
            hidden.map(|found| self.layers_of(&found)).unwrap_or_default()
        };
        let found = self.resolve_telling(parent, name, &mut |met| {
            let (path, layer) = (path.clone(), self.layer_number(met.dir.layer));
            match &met.seen {
                LayerEntry::Whiteout(_) => {
                    markers.push(EventKind::Whiteout { path, layer, hides: hides(&met) })
                }
                LayerEntry::Directory { cut: Some(Cut::Opaque | Cut::Beside), .. } => {
                    markers.push(EventKind::Opaque { path, layer, hides: hides(&met) });
                }
                LayerEntry::Directory { marks, cut: None, .. } => {
                    if let Some(to) = &marks.redirect {
                        markers.push(EventKind::Redirect { path, layer, to: to.clone().into() });
                    }
                }
                LayerEntry::Nothing
                | LayerEntry::Leaf { .. }
                | LayerEntry::Directory { cut: Some(Cut::Veiled), .. } => {}
            }
        })?;
        let layers = found.as_ref().map(|found| self.layers_of(found)).unwrap_or_default();
        let kind = found.as_ref().map(|found| found.stat.kind().into());
        self.events.send(EventKind::Lookup { path, kind, layers });
        for marker in markers {
            if !matches!(&marker, EventKind::Whiteout { hides, .. } | EventKind::Opaque { hides, .. } if hides.is_empty())
            {
                self.events.send(marker);
            }
        }
        Ok(found)
    }

    fn layers_of(&self, found: &Found) -> Vec<u16> {
        match &found.what {
            FoundKind::Leaf { .. } => vec![self.layer_number(found.layer)],
            FoundKind::Directory { dirs, .. } => {
                dirs.iter().map(|dir| self.layer_number(dir.layer)).collect()
            }
        }
    }

    /// Tells of a removal.
    pub(super) fn tell_removed(&self, parent: &Node, name: &[u8], kind: Kind, whiteout: bool) {
        self.events.tell(|| EventKind::Remove {
            path: self.path_in(parent, name),
            kind: kind.into(),
            whiteout,
        });
    }

    /// Returns the size of a file that is about to be passed through, if anybody listens.
    pub fn watched_size(&self, node: &Arc<Node>) -> Option<u64> {
        self.events.listening().then(|| self.data_size(node)).flatten()
    }

    /// Tells of an open that is passed through.
    pub fn tell_passed_through(&self, node: &Arc<Node>, flags: OFlags) {
        let Some(size) = self.watched_size(node) else { return };
        self.events.tell(|| {
            let metacopied = self.metacopies.get(&node.ino).map(|data| data.dir.layer);
            let lower = metacopied.or_else(|| self.lower_of(node)).map(|layer| self.layer_number(layer));
            let layer = lower.or(self.upper.is_some().then_some(0));
            EventKind::Open { path: self.path_of(node).into(), layer, access: flags.into(), size }
        });
    }

    /// Tells that a file is passed through no more, which had the size `before`.
    pub fn tell_closed(&self, node: &Arc<Node>, before: Option<u64>) {
        let Some(size) = self.watched_size(node) else { return };
        self.events.tell(|| EventKind::Close { path: self.path_of(node).into(), before, size });
    }

    fn data_size(&self, node: &Arc<Node>) -> Option<u64> {
        let size = self.data(node, false).and_then(|data| Ok(data.size()?));
        size.inspect_err(|e| log::debug!("the trace cannot tell the size of an open file: {e}")).ok()
    }

    /// Returns where lowers have a directory of the upper that was renamed.
    pub(super) fn redirect_of(&self, node: &Node) -> Option<EscapedPath> {
        let real = node.dir.as_ref()?.upper_dir()?;
        let opened = self.fds.get(&real).ok()?;
        Some(EscapedPath(marker::read_marks(opened.at(), self.belief).ok()?.redirect?))
    }
}
