//! Layers: a tar becomes a directory in overlay form, and such a directory becomes a tar.
//!
//! | module | what it knows |
//! |---|---|
//! | [`mod@apply`] | tar → directory, whatever the tar says |
//! | [`mod@write`] | directory → tar, the same bytes for the same tree |
//! | [`mod@merged`] | the union of layers, to read; what it shows → tar |
//! | [`mod@changes`] | what a container changed, from its upper alone |
//! | [`reader`] | the entries of a tar, with every extension resolved and every length checked |
//! | `header`, `sparse` | what header blocks, PAX records and the maps of sparse files say |
//! | [`place`] | making objects beneath a root, by directory descriptors only |
//! | [`attributes`] | owner, mode, extended attributes and times, and how an ordinary user keeps those that it can't set |
//!
//! # The two forms
//!
//! ```text
//!              in a tar (OCI)             in a directory (overlay)
//! deleted      an entry .wh.NAME          character device 0:0 named NAME
//! opaque       an entry .wh..wh..opq      {trusted,user}.overlay.opaque = y on the directory
//! owner, mode  header                     inode; of an ordinary user: user.containers.override_stat
//! device       header                     device node; of an ordinary user: an empty file with override_stat
//! ```
//!
//! A layer's directory depends on its tar alone, never on the layers below, so that a store can know it by its diff id
//! and share it between all images. What follows from that: a parent that the tar doesn't name is made with mode 0755
//! and owner 0:0 and marked ([`place::IMPLIED`]), for whoever knows the layers below, and a hardlink to a file of an earlier layer is refused.
//!
//! The parts of one layer don't hide each other: a whiteout and an entry of one name stand for "what is below is gone,
//! this is new", whichever comes first in the tar.

pub mod apply;
pub mod attributes;
pub mod changes;
pub(crate) mod check;
mod emit;
mod error;
mod header;
pub mod merged;
pub mod place;
pub mod reader;
mod sparse;
#[cfg(test)]
mod tests;
pub mod write;

pub use apply::{Applied, ApplyOptions, Limits, apply};
pub use attributes::{Attributes, Ownership};
pub use changes::{Change, ChangeKind, changes};
pub(crate) use emit::Writer;
pub use emit::Written;
pub use error::LayerError;
pub use merged::write_merged;
pub use write::{WriteOptions, write_tar};

use std::os::fd::BorrowedFd;

use crate::sys::object::At;
use crate::union::lookup::belief::Belief;
use crate::union::lookup::marker;

/// Returns whether the layer hides everything below it (`.wh..wh..opq` at its root).
///
/// A mount ignores such a mark on a layer's root, as the kernel does, so whoever builds a stack ends it here.
///
/// # Errors
/// Those of reading the root's attributes.
pub fn hides_all_below(layer: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(marker::read_marks(At::Fd(layer), Belief::of_process())?.opaque)
}
