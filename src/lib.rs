//! unionmount: a union filesystem in user space.
//!
//! A **stack** is an ordered list of **layers**, each a plain directory: at most one writable **upper** on top,
//! read-only **lowers** below it. The **merged** view holds, for every path, the topmost entry that no layer above it
//! hides. That is all that a container image is, too: a pile of shared read-only layers, with one writable layer on
//! top once it runs.
//!
//! # The map
//!
//! ```text
//! main.rs     parse → run → print one error → exit code
//! error       the error types, and the only errno table
//! sys         raw system calls, wrapped safe; the only place with `unsafe`
//! union       the union filesystem, a facade over rooms. No FUSE, no CLI, no images
//!   stack       layers (directories, or trees that are none) and the workdir: opened, probed, locked
//!   lookup      whiteouts and opaque marks, which layer's entry a name stands for, what each layer shows
//!   nodes       the objects of the merged view, their numbers, their identity, how long they live
//!   hardlinks   one file stays one file when it is copied up
//!   data        descriptors of open files; what fsync promises
//!   change      the upper, copy-up, create, remove, rename
//!   view        attributes, owners, listings, extended attributes
//! fuse        the protocol adaptor: translate, call union, reply; sessions, threads, cache lifetimes, I/O modes
//! image       digests, the content store, tar → layer, upper → tar, load/save/commit
//! archive     a tar as a layer: index, data, what is decoded
//! registry    the distribution protocol: pull, push, credentials, where names lead
//! changes     what an upper changes in what is below it: told, and brought into a directory
//! trying      a command where directories are unions over themselves; what is kept of it
//! container   an image, an upper and their mount; running a command in it
//! control     a mount's socket: protocol, server, client; finding the mounts of this machine
//! snapshotter containerd's snapshots, served over gRPC; containerd mounts them itself. Feature `snapshotter`
//! explain     where a path comes from, the event trace, the pictures
//! texts       what is said to people, in each language
//! cli         the command line, one small file a verb
//! ```
//!
//! How it all works together, from the model to the code, is told in [`docs`].
//!
//! Calls go one way: `cli → {fuse, trying, container, changes, explain, snapshotter} → {image, control} → union → sys`.
//! `container` uses `image`, `control` and `archive`, `trying` uses what `container` knows of mounts, `changes`, `registry` and `archive`
//! use `image`, `explain` uses `control`; `fuse` and `image` never meet, nor do `fuse` and `control`. `image` uses of `union`
//! the stack ([`union::Union`], read through without a mount), the markers
//! of [`union::lookup::marker`], the owners kept in xattrs and the removal of trees; `snapshotter` uses the markers alone, and
//! mounts nothing.

// Tests print and arrange things as they like.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr))]

pub mod archive;
pub mod changes;
pub mod cli;
pub mod container;
pub mod control;
pub mod docs;
pub mod error;
pub mod explain;
pub mod fuse;
pub mod image;
pub mod registry;
#[cfg(feature = "snapshotter")]
pub mod snapshotter;
pub mod sys;
pub mod texts;
pub mod trying;
pub mod union;
