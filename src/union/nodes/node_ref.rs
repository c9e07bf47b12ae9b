//! A node that the union has looked up for a purpose of its own: it gives itself back.

use std::ops::Deref;
use std::sync::Arc;

use crate::error::Result;
use crate::sys::object::Stat;
use crate::union::Union;
use crate::union::lookup::found::Found;
use crate::union::nodes::node::Node;

/// A node that is held for a while. When it is dropped it leaves the table, unless somebody knows it; and so do the
/// directories above it that nobody knows.
#[derive(Debug)]
pub(in crate::union) struct NodeRef<'u> {
    // The order matters: what leaves the table must be held by nobody.
    node: Arc<Node>,
    given_back: GivenBack<'u>,
}

/// The lookups of a node, given back when it is dropped.
#[derive(Debug)]
struct GivenBack<'u> {
    union: &'u Union,
    ino: u64,
    /// `None`: they are somebody else's to give back.
    lookups: Option<u32>,
}

impl Drop for GivenBack<'_> {
    fn drop(&mut self) {
        match self.lookups {
            None => {}
            Some(0) => self.union.release(self.ino),
            Some(count) => self.union.forget(self.ino, count.into()),
        }
    }
}

impl Deref for NodeRef<'_> {
    type Target = Arc<Node>;

    fn deref(&self) -> &Arc<Node> {
        &self.node
    }
}

impl NodeRef<'_> {
    /// Hands the node on, with its lookups, to whoever gives them back himself.
    pub fn pass_on(self) -> Arc<Node> {
        let NodeRef { node, mut given_back } = self;
        given_back.lookups = None;
        node
    }
}

impl Union {
    /// Returns the node of a finding, held only to be looked at: it counts no lookup.
    pub(in crate::union) fn node_looked_at(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        found: &Found,
    ) -> Result<NodeRef<'_>> {
        Ok(self.node_held(parent, name, found, 0)?.0)
    }

    /// Returns the node of a finding, with `lookups` that are given back unless it is passed on.
    pub(in crate::union) fn node_held(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        found: &Found,
        lookups: u32,
    ) -> Result<(NodeRef<'_>, Stat)> {
        let (node, stat) = self.node_of(parent, name, found, lookups)?;
        let given_back = GivenBack { union: self, ino: node.ino, lookups: Some(lookups) };
        Ok((NodeRef { node, given_back }, stat))
    }
}
