//! Raw system calls, wrapped safe. The only part of the crate in which `unsafe` is allowed.
//!
//! What reaches a layer works on a directory descriptor and one name, or on a descriptor alone: nothing of it resolves a
//! path against the host, so that no layer can be left by `..`, by a symbolic link or by a race.

pub mod cancel;
pub mod copy;
pub mod descriptors;
pub mod dir;
pub mod durable;
pub mod extents;
pub mod filesystem;
pub mod flock;
pub mod fuse;
pub mod fusermount;
pub mod handle;
pub mod interrupt;
pub mod memory;
pub mod mount;
pub mod mountinfo;
pub mod namespace;
pub mod object;
pub mod output;
pub mod own;
pub mod panics;
pub mod process;
pub mod progress;
pub mod remove;
pub mod ring;
pub mod schedule;
pub mod splice;
pub mod threads;
pub mod verity;
pub mod xattr;
pub mod xattr_changes;
