//! Nodes: the objects of the merged view, who they are, and how long they live.
//!
//! | module | what it knows |
//! |---|---|
//! | [`node`], [`table`], `node_ref` | the objects and the lock order; the table of them and their numbers; a node that gives itself back |
//! | `inode_numbering` | which object a finding of lookup leads to |
//! | [`region`] | which inode an object really is, and where a layer's filesystem ends |
//! | [`verified`], [`generation`] | from a node to its object: nothing else is read, changed or copied |
//! | [`pins`], [`deferred_free`] | what is deleted and still known: its descriptors, whose they are, and its space |
//! | [`name_state`] | whether an object's name has reached the disk |
//! | [`progress`] | how far a directory was listed |
//! | [`skeleton`], `bones` | what stays known when the layers are opened anew under a mount |
//! | `notify` | what is changed without a request, told to who keeps attributes |

pub(in crate::union) mod bones;
pub mod deferred_free;
pub mod generation;
pub(in crate::union) mod inode_numbering;
pub mod name_state;
pub mod node;
pub(in crate::union) mod node_ref;
pub(in crate::union) mod notify;
pub mod pins;
pub mod progress;
pub mod region;
pub mod skeleton;
pub mod table;
pub mod verified;
