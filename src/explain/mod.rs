//! Watching copy-on-write: where a path comes from, what a mount does, what is in it.
//!
//! | module | what it knows |
//! |---|---|
//! | [`report`], [`fate`] | the explanation of a path, and what a change would do |
//! | [`picture`], [`words`], [`paint`] | the same for people |
//! | [`control`], [`protocol`], [`runtime`] | the daemon's end: a socket beside the mount that answers questions |
//! | [`client`], [`mounts`] | the other end |
//! | [`usage`] | sizes and counts of layers |
//!
//! The rules of layers are not here: [`crate::union::provenance`] asks the union's own search.

pub mod client;
pub mod control;
pub mod fate;
pub mod mounts;
pub mod paint;
pub mod picture;
pub mod protocol;
pub mod report;
pub mod runtime;
pub mod usage;
pub mod words;
