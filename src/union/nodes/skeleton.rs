//! A stack is opened anew under a mount that goes on: what the kernel knows by number stays known.
//!
//! The union that takes over is made of the layers as any is. Of the one before it gets a [`Skeleton`]: for each node that has a
//! name, its bone; what has none is taken over as it is, with the descriptor that keeps it; and the numbers that were given
//! out where the rule has none. Nothing of it names a layer, whose places in the stack may be others now.

pub(in crate::union) mod state;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{FsError, Result};
use crate::sys::object::Kind;
use crate::union::Union;
use crate::union::events::Events;
use crate::union::lookup::realdir::RealDir;
use crate::union::nodes::bones::{Bone, Bones, Nodes};
use crate::union::nodes::generation::{Generation, Key, Sighting};
use crate::union::nodes::node::{DirPart, NewNode, Node, NodePlace};
use crate::union::nodes::pins::{Pinned, Pins};
use crate::union::nodes::region::InodeId;
use crate::union::nodes::table::Numbers;
use crate::union::view::held_times::HeldTimes;

/// What a union hands on to the one that takes its mount over.
pub struct Skeleton {
    bones: Arc<Bones>,
    nodes: Arc<Nodes>,
    nameless: Vec<Nameless>,
    /// What isn't reached any more, and is known to the kernel.
    lost: Vec<(u64, Bone)>,
    upper: OfUpper,
    numbers: Numbers,
    generations: Key,
    /// What has another identity now, and is the same to who knows it: the number stays.
    renumbered: Vec<(InodeId, u64)>,
    frozen: usize,
    pins: Arc<Pins>,
    events: Arc<Events>,
    held_times: Arc<HeldTimes>,
    counts: Vec<u64>,
}

impl Skeleton {
    /// Has a node lost: nothing that is found in the layers is it any more.
    pub(in crate::union) fn lose(&mut self, node: &Node, root: u64) {
        self.lost.push((node.ino, Bone::of_lost(node, root)));
    }

    /// Has a node, which nobody looks up in the union before any more, be another object of the layers.
    pub(in crate::union) fn turn_into(&mut self, node: &Node, real: InodeId, generation: Generation) {
        node.set_real(real, generation);
        self.renumbered.push((real, node.ino));
    }
}

impl fmt::Debug for Skeleton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Skeleton").field("nodes", &self.nodes.len()).finish_non_exhaustive()
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
    dir: Option<RemovedDir>,
    origin: Option<InodeId>,
}

/// The real directories of one that was removed, of the upper and below: it holds them by descriptors of its own.
type RemovedDir = (Option<Arc<RealDir>>, Vec<Arc<RealDir>>);

impl Union {
    /// Returns what stays of this union when its layers are opened anew. Nobody may change anything from here on. What of the upper
    /// stays known: see [`OfUpper`].
    ///
    /// # Errors
    /// Why it can't be done now: what is open, or how the layers number what they hold.
    pub fn skeleton(&self, upper: OfUpper) -> std::result::Result<Skeleton, &'static str> {
        if self.regions.interns() {
            return Err(
                "a layer has inode numbers of more than 48 bits, or files that are mounted on others",
            );
        }
        if let Err(error) = self.leave_superseded() {
            log::warn!("lower=checked: {error}");
            return Err(
                "something was found in a directory that was exchanged in a lower, and can't be looked for where it is now (the log \
                 tells what); try again when nobody changes the lowers",
            );
        }
        let (mut nameless, mut lost, mut failed) = (Vec::new(), Vec::new(), None);
        let gone = upper == OfUpper::Gone;
        // To go through all nodes takes a while, and mostly there are none without a name.
        if self.pins.in_use() > 0 {
            self.table.for_each(|node| match self.left_of(node, upper) {
                Ok(None) => {}
                Ok(Some(one)) => nameless.push(one),
                // Its data or its other names go, and it with them.
                Err(_) if gone => lost.push((node.ino, Bone::of_lost(node, self.root.ino))),
                Err(why) => failed = Some(why),
            });
        }
        if let Some(why) = failed {
            return Err(why);
        }
        let counts = self.counters.all().iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let own = self.layers.first().map(|upper| upper.root.region()).filter(|_| gone);
        let (numbers, pins, events) = (self.table.numbers(own), self.pins.clone(), self.events.clone());
        let held_times = self.held_times.clone();
        let (generations, frozen) = (self.fds.generations().key(), self.frozen);
        let (bones, nodes) = (self.table.bones().clone(), self.table.nodes().clone());
        Ok(Skeleton {
            bones,
            nodes,
            nameless,
            lost,
            upper,
            numbers,
            generations,
            renumbered: Vec::new(),
            frozen,
            pins,
            events,
            held_times,
            counts,
        })
    }

    /// Returns what is left of a node that has no name.
    fn left_of(
        &self,
        node: &Arc<Node>,
        of_upper: OfUpper,
    ) -> std::result::Result<Option<Nameless>, &'static str> {
        let lookups = u32::try_from(node.lookups()).unwrap_or(u32::MAX);
        let (fd, upper) = match &*node.place.read() {
            NodePlace::Root | NodePlace::Named { .. } => return Ok(None),
            NodePlace::Pinned { fd, upper } => (fd.clone(), *upper),
        };
        if self.metacopies.contains_key(&node.ino) {
            return Err("a deleted file is open whose data are in another layer; close it first");
        }
        let has_names = || !self.getattr(node).is_ok_and(|attr| attr.stat.nlink == 0);
        if of_upper != OfUpper::Stays && upper && node.dir.is_none() && has_names() {
            return Err("a file is open under a name that was deleted, and has others; close it first");
        }
        Ok(Some(Nameless {
            ino: node.ino,
            kind: node.kind,
            lookups,
            mapped: node.is_mapped(),
            real: node.real(),
            generation: node.generation(),
            gone: node.is_gone(),
            fd,
            upper,
            dir: node.dir.as_ref().map(|part| (part.upper_dir(), part.lowers.to_vec())),
            origin: self.hardlinks.origin(node.ino),
        }))
    }

    /// Calls `f` with the number of each node that was known before the layers were opened anew, and whether what the kernel keeps of
    /// its content isn't its content any more: it is a directory, or the object is gone.
    pub fn for_each_before(&self, mut f: impl FnMut(u64, bool)) {
        self.table.bones().for_each(|ino, bone| f(ino, bone.is_directory || bone.is_dead));
        // And what somebody has asked for since.
        self.table.for_each(|node| f(node.ino, node.dir.is_some()));
    }

    /// Takes over what the kernel knows of the union before, which showed the same.
    pub fn take_over(&mut self, skeleton: Skeleton) {
        let Skeleton { bones, nodes, nameless, lost, upper: of_upper, .. } = skeleton;
        let Skeleton { numbers, generations, renumbered, frozen, pins, events, held_times, counts, .. } =
            skeleton;
        // From here on the union before serves nobody: what is left in its table are the nodes that have names.
        nameless
            .iter()
            .map(|one| one.ino)
            .chain(lost.iter().map(|(ino, _)| *ino))
            .chain([self.root.ino])
            .for_each(|ino| drop(nodes.remove(&ino)));
        lost.into_iter().for_each(|(ino, bone)| bones.insert(ino, bone));
        self.fds.set_generations_key(generations);
        (self.pins, self.events, self.held_times) = (pins, events, held_times);
        self.counters.all().iter().zip(counts).for_each(|(own, count)| own.store(count, Ordering::Relaxed));
        self.table.take_over_numbers(numbers);
        renumbered.into_iter().for_each(|(real, ino)| self.table.keep_number(real, ino));
        let is_other = self.frozen != frozen;
        for one in nameless {
            // With names left it is a frozen layer's, now that another upper is there.
            let has_names = || one.fd.held().at().stat().is_ok_and(|stat| stat.nlink > 0);
            let upper = one.upper && (one.kind == Kind::Directory || !is_other || !has_names());
            if let Some(origin) = one.origin {
                self.hardlinks.note_origin(one.ino, origin);
            }
            let removed = |(upper, lowers): RemovedDir| {
                let part = DirPart::new(upper, lowers);
                part.removed.store(true, Ordering::Relaxed);
                Box::new(part)
            };
            let new = NewNode {
                kind: one.kind,
                place: NodePlace::Pinned { fd: one.fd, upper },
                dir: one.dir.map(removed),
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
            if upper {
                self.deferred.defer(one.ino);
            }
        }
        self.table.take_over(bones, nodes, of_upper == OfUpper::Gone);
    }

    /// Returns what is left to do of having taken over, which may take a while, and for which the union needn't be held.
    pub fn settling(&self) -> impl FnOnce() + Send + 'static {
        let bones = self.table.bones().clone();
        move || bones.convert()
    }

    /// Returns the node of a number that was known before the layers were opened anew.
    #[cold]
    pub(in crate::union) fn come_to_life(&self, ino: u64) -> Result<Arc<Node>> {
        let bones = self.table.bones();
        loop {
            // From the directory that is known down. A list: programs make trees of any depth.
            let (mut chain, mut at) = (Vec::new(), ino);
            let mut parent = loop {
                if let Some(node) = self.table.get(at) {
                    break node;
                }
                match bones.get(at) {
                    // Its name may lead to something else by now, which is as it should be.
                    Some(bone) if bone.is_dead => return Err(FsError::Stale),
                    Some(bone) => {
                        let above = bone.parent;
                        chain.push((at, bone));
                        at = above;
                    }
                    // Somebody else has made it known just now, or it is none.
                    None => break self.table.get(at).ok_or(FsError::Stale)?,
                }
            };
            let mut woken = true;
            while let Some((at, bone)) = chain.pop().filter(|_| woken) {
                match self.wake_bone(&parent, at, &bone)? {
                    Some(node) => parent = node,
                    None => woken = false,
                }
            }
            if woken {
                return Ok(parent);
            }
        }
    }

    /// Looks up what a bone is of. `None`: others have come before, and it may be elsewhere.
    fn wake_bone(&self, parent: &Arc<Node>, ino: u64, bone: &Bone) -> Result<Option<Arc<Node>>> {
        let _names = self.dir_part(parent)?.names.read();
        if let Some(node) = self.table.get(ino) {
            return Ok(Some(node));
        }
        let is_as_before = |now: Bone| now.parent == bone.parent && now.name == bone.name;
        if !self.table.bones().get(ino).is_some_and(is_as_before) {
            return Ok(None);
        }
        let Some(found) = self.resolve(parent, &bone.name)? else {
            return Err(self.stale_name(parent, &bone.name));
        };
        let (identity, source, stat) = self.identify(parent, &bone.name, &found)?;
        let seen = self.seen_of(identity, source, &stat, &bone.name, &found)?;
        if !bone.is_of(identity.real, seen) {
            return Err(self.stale_name(parent, &bone.name));
        }
        if self.table.number(identity) != ino {
            self.table.keep_number(identity.real, ino);
        }
        let (node, _) = self.node_held(parent, &bone.name, &found, 0)?;
        if node.ino != ino {
            return Err(FsError::Stale);
        }
        if node.dir.is_some() && bone.lookups > 0 {
            self.told_dirs.tell(parent, &bone.name, node.real());
        }
        Ok(Some(node.clone()))
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

/// What becomes of the upper when the layers are opened anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfUpper {
    /// It is there, as a layer below another.
    Frozen,
    /// It is thrown away, and what is open of it isn't reached any more.
    Gone,
    /// It stays the upper; other layers come or go.
    Stays,
}
