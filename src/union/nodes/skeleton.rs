//! A stack is opened anew under a mount that goes on: what the kernel knows by number stays known.
//!
//! The union that takes over is made of the layers as any is. Of the one before it gets a [`Skeleton`]: for each node that has a
//! name, its [`Bone`]; what has none is taken over as it is, with the descriptor that keeps it; and the numbers that were given
//! out where the rule has none. Nothing of it names a layer, whose places in the stack may be others now.

use std::fmt;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{FsError, Result};
use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::events::Events;
use crate::union::nodes::bones::Bone;
use crate::union::nodes::generation::{Generation, Sighting};
use crate::union::nodes::node::{DirPart, NewNode, Node, NodePlace};
use crate::union::nodes::pins::{Pinned, Pins};
use crate::union::nodes::region::InodeId;
use crate::union::nodes::table::Numbers;

/// What a union hands on to the one that takes its mount over.
pub struct Skeleton {
    bones: Vec<(u64, Bone)>,
    nameless: Vec<Nameless>,
    numbers: Numbers,
    generations: RandomState,
    frozen: usize,
    pins: Arc<Pins>,
    events: Arc<Events>,
    counts: Vec<u64>,
}

impl fmt::Debug for Skeleton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Skeleton").field("bones", &self.bones.len()).finish_non_exhaustive()
    }
}

/// What has no name any more, and is known to the kernel.
#[derive(Debug)]
struct Nameless {
    ino: u64,
    kind: Kind,
    lookups: u32,
    mapped: bool,
    real: InodeId,
    generation: Generation,
    gone: bool,
    fd: Arc<Pinned>,
    upper: bool,
    origin: Option<InodeId>,
}

impl Union {
    /// Returns what stays of this union when its layers are opened anew. Nobody may change anything from here on.
    ///
    /// # Errors
    /// `EBUSY` where something that was deleted and is still open can't be taken over: the data of a metacopy.
    pub fn skeleton(&self) -> Result<Skeleton> {
        let (mut bones, mut nameless, mut failed) = (Vec::with_capacity(self.table.len()), Vec::new(), None);
        self.table.for_each(|node| match self.left_of(node) {
            Ok(Left::Nothing) => {}
            Ok(Left::Bone(bone)) => bones.push((node.ino, bone)),
            Ok(Left::Nameless(one)) => nameless.push(one),
            Err(error) => failed = Some(error),
        });
        if let Some(error) = failed {
            return Err(error);
        }
        self.table.bones().for_each(|ino, bone| bones.push((ino, bone.clone())));
        let counts = self.counters.all().iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let (numbers, pins, events) = (self.table.numbers(), self.pins.clone(), self.events.clone());
        let generations = self.fds.generations().key();
        let frozen = self.frozen;
        Ok(Skeleton { bones, nameless, numbers, generations, frozen, pins, events, counts })
    }

    fn left_of(&self, node: &Arc<Node>) -> Result<Left> {
        let lookups = u32::try_from(node.lookups()).unwrap_or(u32::MAX);
        match &*node.place.read() {
            NodePlace::Root => Ok(Left::Nothing),
            NodePlace::Named { parent, entry } => Ok(Left::Bone(Bone {
                parent: parent.ino,
                name: entry.name().into(),
                lookups,
                mapped: node.is_mapped(),
            })),
            NodePlace::Pinned { fd, upper } => {
                if self.metacopies.contains_key(&node.ino) {
                    return Err(FsError::Os(rustix::io::Errno::BUSY));
                }
                Ok(Left::Nameless(Nameless {
                    ino: node.ino,
                    kind: node.kind,
                    lookups,
                    mapped: node.is_mapped(),
                    real: node.real(),
                    generation: node.generation(),
                    gone: node.is_gone(),
                    fd: fd.clone(),
                    upper: *upper,
                    origin: self.hardlinks.origin(node.ino),
                }))
            }
        }
    }

    /// Takes over what the kernel knows of the union before, which showed the same.
    pub fn take_over(&mut self, skeleton: Skeleton) {
        let Skeleton { bones, nameless, numbers, generations, frozen, pins, events, counts } = skeleton;
        self.fds.set_generations_key(generations);
        (self.pins, self.events) = (pins, events);
        self.counters.all().iter().zip(counts).for_each(|(own, count)| own.store(count, Ordering::Relaxed));
        self.table.take_over_numbers(numbers);
        let is_other = self.frozen != frozen;
        for one in nameless {
            // With names left it is a frozen layer's, now that another upper is there.
            let has_names = || one.fd.held().at().stat().is_ok_and(|stat| stat.nlink > 0);
            let upper = one.upper && (one.kind == Kind::Directory || !is_other || !has_names());
            if let Some(origin) = one.origin {
                self.hardlinks.note_origin(one.ino, origin);
            }
            let removed = || {
                let part = DirPart::new(None, Vec::new());
                part.removed.store(true, Ordering::Relaxed);
                Box::new(part)
            };
            let new = NewNode {
                kind: one.kind,
                place: NodePlace::Pinned { fd: one.fd, upper },
                dir: (one.kind == Kind::Directory).then(removed),
            };
            let node = Node::new(one.ino, new, one.real, Sighting::default(), one.lookups);
            node.set_real(one.real, one.generation);
            if one.mapped {
                node.set_mapped();
            }
            if one.gone {
                node.set_gone();
            }
            self.table.insert(Arc::new(node));
        }
        bones.into_iter().for_each(|(ino, bone)| self.table.bones().insert(ino, bone));
    }

    /// Returns the node of a number that was known before the layers were opened anew.
    #[cold]
    pub(in crate::union) fn come_to_life(&self, ino: u64) -> Result<Arc<Node>> {
        let bone = self.table.bones().get(ino).ok_or(FsError::Stale)?;
        let parent = self.node(bone.parent)?;
        let _names = self.dir_part(&parent)?.names.read();
        let found = self.resolve(&parent, &bone.name)?.ok_or(FsError::Stale)?;
        let (identity, ..) = self.identify(&parent, &bone.name, &found)?;
        if self.table.number(identity) != ino && self.table.bones().get(ino).is_some() {
            self.table.keep_number(identity.real, ino);
        }
        let (node, _) = self.node_held(&parent, &bone.name, &found, 0)?;
        if node.dir.is_some() && bone.lookups > 0 {
            self.told_dirs.tell(&parent, &bone.name, node.real());
        }
        Ok(node.clone())
    }

    /// Makes what is known of a name known to this union, before it loses the name.
    pub(in crate::union) fn wake(&self, parent: &Arc<Node>, name: &[u8]) -> Result<()> {
        if self.table.bones().len() == 0 {
            return Ok(());
        }
        let _names = self.dir_part(parent)?.names.read();
        if let Some(found) = self.resolve(parent, name)? {
            drop(self.node_looked_at(parent, name, &found)?);
        }
        Ok(())
    }
}

/// What is left of a node.
enum Left {
    Nothing,
    Bone(Bone),
    Nameless(Nameless),
}
