//! What the kernel knows of a mount, for another process that goes on with it.
//!
//! Nodes that have a name are bones there: the number, the name and the directory's number, the count of lookups, which inode it is.
//! There may be millions, so they are no part of [`SkeletonState`]; they follow it as [`NodeState`]s.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Nameless, OfUpper, Skeleton};
use crate::sys::descriptors::{Incoming, Outgoing};
use crate::sys::object::Kind;
use crate::union::events::Events;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::realdir::RealDir;
use crate::union::nodes::bones::{Bone, Bones};
use crate::union::nodes::generation::{Generation, Key};
use crate::union::nodes::node::Node;
use crate::union::nodes::pins::Pins;
use crate::union::nodes::region::InodeId;
use crate::union::nodes::table::{Numbers, ROOT};
use crate::union::view::held_times::{Held, HeldTimes};

/// What goes to another process, but for the nodes that have names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkeletonState {
    nameless: Vec<NamelessState>,
    next_number: u64,
    /// Which inode has which number where the rule has none.
    numbers: Vec<(u64, u64)>,
    generations: Key,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    held_times: Vec<(u64, Held)>,
    counts: Vec<u64>,
}

impl SkeletonState {
    /// Returns how many are held without a name.
    pub(in crate::union) fn held(&self) -> usize {
        self.nameless.len()
    }
}

/// One that has no name any more. It is reached by its descriptor alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamelessState {
    ino: u64,
    kind: Kind,
    lookups: u32,
    mapped: bool,
    real: u64,
    generation: u32,
    gone: bool,
    fd: u32,
    upper: bool,
    /// Who pays for the descriptor.
    payer: Option<u32>,
    /// Of a directory: the layer and the region that it was in.
    dir: Option<(u16, u16)>,
    origin: Option<u64>,
}

/// One that has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeState<'a> {
    ino: u64,
    parent: u64,
    name: &'a [u8],
    lookups: u32,
    /// 1: it may be mapped; 2: a directory; 4: gone with its upper.
    flags: u8,
    real: u64,
    generation: u32,
}

const MAPPED: u8 = 1;
const DIRECTORY: u8 = 2;
const DEAD: u8 = 4;

impl<'a> NodeState<'a> {
    fn of(ino: u64, bone: &'a Bone) -> NodeState<'a> {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        NodeState {
            ino,
            parent: bone.parent,
            name: &bone.name,
            lookups: bone.lookups,
            flags: flag(bone.mapped, MAPPED) | flag(bone.is_directory, DIRECTORY) | flag(bone.is_dead, DEAD),
            real: bone.real.to_bits(),
            generation: bone.generation.bits(),
        }
    }

    fn bone(&self) -> Bone {
        Bone {
            parent: self.parent,
            name: self.name.into(),
            lookups: self.lookups,
            mapped: self.flags & MAPPED != 0,
            real: InodeId::from_bits(self.real),
            generation: Generation::from_bits(self.generation),
            is_directory: self.flags & DIRECTORY != 0,
            is_dead: self.flags & DEAD != 0,
        }
    }
}

impl NamelessState {
    fn of(one: &Nameless, fds: &mut Outgoing) -> Result<NamelessState, &'static str> {
        let held = one.fd.held();
        let fd = held.host().ok_or("a deleted file of an archive is open; close it first")?;
        let dir = one.dir.as_ref().and_then(|(upper, lowers)| upper.as_ref().or(lowers.first()));
        Ok(NamelessState {
            ino: one.ino,
            kind: one.kind,
            lookups: one.lookups,
            mapped: one.mapped,
            real: one.real.to_bits(),
            generation: one.generation.bits(),
            gone: one.gone,
            fd: fds.add(fd.clone()),
            upper: one.upper,
            payer: one.fd.payer(),
            dir: dir.map(|real| (real.layer, real.region())),
            origin: one.origin.map(InodeId::to_bits),
        })
    }

    fn open(self, belief: Belief, pins: &Arc<Pins>, fds: &mut Incoming) -> io::Result<Nameless> {
        let fd = Arc::new(fds.take(self.fd)?);
        let dir = match self.dir {
            Some((layer, region)) => {
                let real = RealDir::of_removed(layer, fd.clone(), belief, region)?;
                Some(if self.upper { (Some(real), Vec::new()) } else { (None, vec![real]) })
            }
            None => None,
        };
        Ok(Nameless {
            ino: self.ino,
            kind: self.kind,
            lookups: self.lookups,
            mapped: self.mapped,
            real: InodeId::from_bits(self.real),
            generation: Generation::from_bits(self.generation),
            gone: self.gone,
            fd: pins.hold_for(self.payer, fd.into()),
            upper: self.upper,
            dir,
            origin: self.origin.map(InodeId::from_bits),
        })
    }
}

impl Skeleton {
    /// Returns what another process goes on with, but for the nodes that have names: each of these is told to `each`. What they are
    /// of goes on to be used, unless that process does.
    ///
    /// # Errors
    /// Why it can't be done now; whatever `each` says.
    pub(in crate::union) fn state<E: From<&'static str>>(
        &self,
        fds: &mut Outgoing,
        mut each: impl FnMut(&NodeState<'_>) -> Result<(), E>,
    ) -> Result<SkeletonState, E> {
        let mut told = Ok(());
        let mut tell = |ino: u64, bone: &Bone| {
            if told.is_ok() {
                told = each(&NodeState::of(ino, bone));
            }
        };
        self.bones.for_each(&mut tell);
        for node in self.nodes.iter().filter(|node| *node.key() != ROOT) {
            let node: &Arc<Node> = node.value();
            if let Some(bone) = Bone::of(node, false) {
                tell(node.ino, &bone);
            }
        }
        told?;
        let mut numbers: Vec<_> =
            self.numbers.given.iter().map(|(real, number)| (real.to_bits(), *number)).collect();
        numbers.sort_unstable();
        let mut nameless: Vec<&Nameless> = self.nameless.iter().collect();
        nameless.sort_unstable_by_key(|one| one.ino);
        Ok(SkeletonState {
            nameless: nameless
                .into_iter()
                .map(|one| NamelessState::of(one, fds))
                .collect::<Result<_, _>>()?,
            next_number: self.numbers.next,
            numbers,
            generations: self.generations,
            held_times: self.held_times.all(),
            counts: self.counts.clone(),
        })
    }

    /// Returns what a union of another process has handed on. `nodes`: those that have names.
    pub(in crate::union) fn of_state<'a>(
        state: SkeletonState,
        nodes: impl Iterator<Item = io::Result<NodeState<'a>>>,
        (belief, frozen, pins): (Belief, usize, Arc<Pins>),
        fds: &mut Incoming,
    ) -> io::Result<Skeleton> {
        let bones = Arc::new(Bones::default());
        for node in nodes {
            let node = node?;
            bones.insert(node.ino, node.bone());
        }
        let nameless = state.nameless.into_iter().map(|one| one.open(belief, &pins, fds));
        let given = state.numbers.into_iter().map(|(real, number)| (InodeId::from_bits(real), number));
        Ok(Skeleton {
            bones,
            nodes: Arc::default(),
            nameless: nameless.collect::<io::Result<_>>()?,
            lost: Vec::new(),
            upper: OfUpper::Stays,
            numbers: Numbers { next: state.next_number, given: given.collect() },
            generations: state.generations,
            renumbered: Vec::new(),
            frozen,
            pins,
            events: Arc::<Events>::default(),
            held_times: Arc::new(HeldTimes::of(state.held_times)),
            counts: state.counts,
        })
    }
}
