//! Lookup: from a name to the entry that no layer above hides.
//!
//! | module | what it knows |
//! |---|---|
//! | [`marker`] | whiteouts and opaque marks: the one place that knows their forms |
//! | [`private`], [`belief`] | which attributes are marks, and whose are believed |
//! | [`realdir`] | the directories of the layers and the bounded cache of their descriptors |
//! | [`index`] | what a directory's layers show, for listings and for lookups that find nothing |
//! | [`index_worth`], [`indexing`] | when lookups build an index, and how |
//! | [`descent`], [`search`] | the rules of the layers; the search from the top down by these |
//! | `metacopy`, `mark_checks` | where a metacopy's data lie; which marks a search refuses |
//! | [`found`] | what a search finds |
//! | [`resolve`] | what a name of a directory stands for, by the indexes or a search |
//! | [`checked`], [`watch`] | lowers that somebody changes while they are mounted |
//! | `veil` | the mount, its upper and its workdir inside a lower |
//! | [`provenance`] | where a path comes from, layer by layer |
//! | [`usage`] | how much is in a layer, counted by whoever asks |

pub mod belief;
pub mod checked;
pub mod descent;
pub mod found;
pub mod index;
pub mod index_worth;
pub mod indexing;
mod mark_checks;
pub mod marker;
mod metacopy;
pub mod private;
pub mod provenance;
pub mod realdir;
pub mod resolve;
pub mod search;
pub mod usage;
pub(in crate::union) mod veil;
pub mod watch;
