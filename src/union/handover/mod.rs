//! A union whose mount another process goes on with.
//!
//! It is told in three parts: what it is made of ([`UnionState`]), what is known of it by name ([`NodeState`], one each), and
//! descriptors, which both name by number. Nothing is changed by telling: who told it goes on, unless the other does.
//!
//! The other process makes a union over the same open directories, as for an exchange of layers (see [`crate::union::live`]), and
//! gives it the bones. Until [`Union::go_on`] it changes nothing, and may be dropped.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::FsError;
use crate::sys::descriptors::{Incoming, Outgoing};
use crate::union::lookup::belief::Belief;
use crate::union::nodes::pins::Pins;
use crate::union::nodes::region::Regions;
use crate::union::nodes::region::state::RegionsState;
use crate::union::nodes::skeleton::state::SkeletonState;
use crate::union::nodes::skeleton::{OfUpper, Skeleton};
use crate::union::options::{FsOptions, Passthrough};
use crate::union::stack::directory::Layer;
use crate::union::stack::layer::state::{LayerState, UpperState, VeilsState};
use crate::union::stack::layer::{Lower, Stack, StackError, UpperLayer};
use crate::union::stack::tree::LayerTree;
use crate::union::{Limits, Union};

pub use crate::union::nodes::skeleton::state::NodeState;
pub use crate::union::stack::layer::state::TreeState;

/// What a union is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnionState {
    upper: Option<UpperState>,
    lowers: Vec<LayerState>,
    data_only: usize,
    frozen: usize,
    belief: Belief,
    veils: VeilsState,
    regions: RegionsState,
    known: SkeletonState,
    /// Files that wait for being sealed, by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    waiting: Vec<u64>,
    /// Those among the lowers that are no directories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    trees: Vec<TreeState>,
}

/// A lower that is no directory, opened again, and what was told of it.
pub type OpenedTree = (TreeState, Arc<dyn LayerTree>);

/// Why no other process can go on with it.
#[derive(Debug, thiserror::Error)]
pub enum Stays {
    /// It isn't made for that.
    #[error("{0}")]
    Refused(&'static str),
    /// Descriptors can't be copied, or what is told can't be written.
    #[error("it can't be handed over: {0}")]
    Io(#[from] io::Error),
}

impl UnionState {
    /// Returns how many objects without a name are held, of which each has a descriptor.
    pub fn held(&self) -> usize {
        self.known.held()
    }
}

impl From<&'static str> for Stays {
    fn from(why: &'static str) -> Stays {
        Stays::Refused(why)
    }
}

/// Why it can't be gone on with here.
#[derive(Debug, thiserror::Error)]
pub enum NotTakenOver {
    /// Something is missing.
    #[error("what was handed over isn't complete: {0}")]
    Io(#[from] io::Error),
    /// The stack.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The layers can't be read.
    #[error("the layers can't be read: {0}")]
    Layers(FsError),
    /// The lowers that were opened again are others.
    #[error("the layers have changed since the archives were opened")]
    Trees,
}

/// Tells why a mount with such options can't be handed over, if so.
pub fn in_the_way(options: &FsOptions) -> Option<&'static str> {
    (options.passthrough == Passthrough::Lower).then_some(
        "with passthrough=lower files that were copied up have two numbers, of which a new daemon knows one",
    )
}

impl Union {
    /// Returns the lowers that another process has to open again.
    ///
    /// # Errors
    /// One is such that it can't.
    pub fn trees(&self) -> Result<Vec<TreeState>, Stays> {
        let own = usize::from(self.upper.is_some());
        let lowers = self.layers[own..].iter().enumerate();
        let trees = lowers.filter_map(|(at, lower)| {
            let tree = lower.root.tree()?;
            Some(
                TreeState::of(at, &lower.path, tree)
                    .ok_or(Stays::Refused("a layer is in this daemon's memory")),
            )
        });
        trees.collect()
    }

    /// Tells what another process needs to go on with it. Nobody may ask it meanwhile. Each node that has a name is told to `each`.
    ///
    /// # Errors
    /// See [`Stays`]; nothing is changed then, and nothing is otherwise.
    pub fn state(
        &self,
        fds: &mut Outgoing,
        each: impl FnMut(&NodeState<'_>) -> Result<(), Stays>,
    ) -> Result<UnionState, Stays> {
        let mut torn = false;
        self.halves.for_each(|half| torn |= half.is_torn());
        if torn {
            return Err(Stays::Refused(
                "a block of a half-copied file was written in part, and couldn't be taken back yet",
            ));
        }
        // What is kept only until somebody looks again would be kept for ever: nobody would.
        self.let_lingering_go();
        // Another process doesn't have these files open, and what is set aside for them is given back unseen.
        self.give_back_what_is_set_aside();
        let upper = self.upper.as_ref().map(|upper| upper.state(fds)).transpose()?;
        let own = usize::from(upper.is_some());
        let mut lowers = Vec::new();
        for lower in &self.layers[own..] {
            let root = &lower.root;
            if root.tree().is_some() {
                continue;
            }
            let held = self.fds.host(root).map_err(|error| io::Error::from(error.errno()))?;
            let layer = Layer {
                path: lower.path.clone(),
                place: lower.place.clone(),
                root: held.try_clone()?,
                dev: root.id.0,
                ino: root.id.1,
                belief: root.belief,
                sealed: root.is_sealed(),
            };
            lowers.push(LayerState::of(&layer, fds)?);
        }
        let veils = VeilsState::of(&self.veils, fds);
        let known = self.skeleton(OfUpper::Stays)?.state(fds, each)?;
        let (regions, belief) = (self.regions.state(), self.belief);
        let (data_only, frozen) = (self.data_only, self.frozen);
        let (waiting, trees) = (self.waiting.noted(), self.trees()?);
        Ok(UnionState { upper, lowers, data_only, frozen, belief, veils, regions, known, waiting, trees })
    }

    /// Makes the union that goes on with what another process has told. `nodes`: those that have names. `trees`: the lowers that are no
    /// directories.
    ///
    /// # Errors
    /// See [`NotTakenOver`]; nothing is changed then.
    pub fn of_state<'a>(
        state: UnionState,
        nodes: impl Iterator<Item = io::Result<NodeState<'a>>>,
        (fds, opened): (&mut Incoming, &[OpenedTree]),
        (limits, options): (Limits, &FsOptions),
    ) -> Result<Union, NotTakenOver> {
        let UnionState { upper, lowers, data_only, frozen, belief, veils, regions, known, waiting, trees } =
            state;
        if !trees.iter().eq(opened.iter().map(|(told, _)| told)) {
            return Err(NotTakenOver::Trees);
        }
        let staged = upper.as_ref().map(|upper| (upper.next, upper.whiteout.clone()));
        let upper = upper.map(|upper| UpperLayer::of_state(upper, belief, fds)).transpose()?;
        let lower = |lower: LayerState, fds: &mut Incoming| Ok(Lower::Directory(lower.open(belief, fds)?));
        let mut lowers = lowers.into_iter().map(|one| lower(one, fds)).collect::<io::Result<Vec<_>>>()?;
        for (told, tree) in trees.into_iter().zip(opened.iter().map(|(_, tree)| tree.clone())) {
            if told.at() > lowers.len() {
                return Err(NotTakenOver::Trees);
            }
            lowers.insert(told.at(), Lower::Tree(told.layer(tree, belief)));
        }
        let veils = veils.open(fds)?;
        let stack = Stack { lowers, data_only, frozen, upper, belief, veils };
        let regions = Regions::of_state(regions);
        let mut union = Union::after(Some(&regions), stack, limits, options).map_err(NotTakenOver::Layers)?;
        if let (Some(upper), Some((next, whiteout))) = (&union.upper, staged) {
            upper.stage_on(next, whiteout.map(|name| name.0));
        }
        let pins = Pins::new(limits.pinned_fds, union.quota().cloned());
        let skeleton = Skeleton::of_state(known, nodes, (union.belief, frozen, pins), fds)?;
        union.take_over(skeleton);
        waiting.into_iter().for_each(|ino| union.waiting.note(ino));
        Ok(union)
    }

    /// Makes the upper this process's to change and to close, now that the other one doesn't go on.
    pub fn go_on(self: &Arc<Self>) {
        if let Some(upper) = &self.upper {
            upper.go_on();
        }
    }
}

impl fmt::Display for UnionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let upper = if self.upper.is_some() { "an upper over " } else { "" };
        write!(f, "{upper}{} lowers", self.lowers.len())
    }
}

#[cfg(test)]
mod tests;
