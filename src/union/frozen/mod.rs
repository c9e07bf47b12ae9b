//! Snapshots: an upper is frozen, and a new one goes on top.
//!
//! # On disk
//!
//! ```text
//! rw/                          the upper; its root carries the mark `overlay.unionmount.stack`
//! .rw.layers/                  beside it, of the mounting user alone
//!   stack.json                 the record: which frozen layer lies over which
//!   1/, 2/, …                  frozen layers, ordinary layers of an overlay; the record tells which number is which layer's, since
//!                              a squash leaves the layer its number and gives it another directory
//!   gone/                      an upper that a rollback threw away, as long as it is being removed
//!   branches/2-ID              a branch that stands on layer 2: a symbolic link to its `.NAME.layers`
//!   readers.lock               shared by those who read layers, if ever somebody did
//! ```
//!
//! The mark is `1 LAYER TOKEN`: the upper lies on frozen layer LAYER (0: on none, or on what the record's base says), and
//! TOKEN is told from that of every other upper. A frozen layer keeps the mark that it had as an upper.
//!
//! # One step
//!
//! A snapshot and a rollback prepare a new upper in `.rw.layers`, with its mark, and exchange it for the one in its place by one
//! `renameat2`. That is the instant at which they happen; the record doesn't say which layer the upper lies on, the mark does.
//! A layer that the record names whose directory has the mark of one that lies on it was prepared, and never exchanged.
//!
//! # The hardlink index
//!
//! What it holds are links of the old upper's files. So it has the token of its upper, and whoever finds another one there makes it
//! anew (`settle`): without links, since the frozen layer has all names of its files (`linking`), and with the counts of
//! names that are hidden, which the record keeps for each layer.
//!
//! | module | what it knows |
//! |---|---|
//! | [`record`] | the record |
//! | `mark` | the mark of an upper |
//! | `site` | the places beside an upper |
//! | [`below`] | which layers an upper lies on |
//! | `settle` | the hardlink index after an exchange |
//! | `linking` | files of which the upper has not all names |
//! | [`keeping`] | layers that somebody reads |
//! | `held` | an upper that nobody has mounted, to be changed; what a kill has left |
//! | `root` | the root of a new upper |
//! | [`snapshot`], [`rollback`], [`branch`], [`removal`], [`squash`] | the operations |
//! | [`listing`] | what there is |

pub mod below;
pub mod branch;
pub(in crate::union) mod held;
pub mod keeping;
pub(in crate::union) mod linking;
pub mod listing;
pub(in crate::union) mod mark;
pub mod record;
pub mod removal;
pub mod rollback;
pub(in crate::union) mod root;
pub(in crate::union) mod settle;
pub(in crate::union) mod site;
pub mod snapshot;
pub mod squash;
#[cfg(test)]
mod tests;
pub mod unfit;
