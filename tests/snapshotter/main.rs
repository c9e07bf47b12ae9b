//! The proxy snapshotter, driven by its gRPC alone and by Debian's containerd, with containerd's own overlayfs snapshotter
//! as oracle.
//!
//! containerd's own suite for snapshotters is run by `scripts/containerd-suite`.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

mod calls;
mod client;
mod containerd;
mod containers;
mod crash;
mod damage;
mod image;
mod process;
mod server;
mod trees;
