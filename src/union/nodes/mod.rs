//! Nodes: the objects of the merged view, who they are, and how long they live.
//!
//! | module | what it knows |
//! |---|---|
//! | [`node`] | the table of the objects, their numbers, the lock order |
//! | `identify` | which object a finding of lookup leads to |
//! | [`region`] | which inode an object really is, and where a layer's filesystem ends |
//! | [`verified`], [`generation`] | from a node to its object: nothing else is read, changed or copied |
//! | [`pins`], [`room`] | what is deleted and still known: its descriptors, whose they are, and its space |
//! | [`name_state`] | whether an object's name has reached the disk |
//! | [`progress`] | how far a directory was listed |
//! | `told` | what is changed without a request, told to who keeps attributes |

pub mod generation;
pub(in crate::union) mod identify;
pub mod name_state;
pub mod node;
pub mod pins;
pub mod progress;
pub mod region;
pub mod room;
pub(in crate::union) mod told;
pub mod verified;
