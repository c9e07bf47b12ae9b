//! containerd's snapshots, kept by unionmount: a proxy snapshotter.
//!
//! containerd keeps an image as a chain of **committed** snapshots, one a layer, and gives each container an **active**
//! one on top, or a **view** that can't be written. A snapshotter keeps the directories and the chain; containerd asks
//! for them over gRPC on a Unix socket, and mounts itself what it is told to mount:
//!
//! ```text
//! containerd ── gRPC ──> service ──> snapshots ──> store     names, kinds, parents, labels: an SQLite database
//!     │                                      └───> places    ROOT/snapshots/ID/{fs,work}: the layers' directories
//!     │ mount.fuse3 … -t PROGRAM
//!     └──> unionmount: one daemon for each mounted snapshot
//! ```
//!
//! So no mount belongs to the snapshotter: it may be stopped, killed, replaced and started while containers run.
//!
//! # What is promised
//!
//! - Each call is one transaction of the database. Killed at any instant, the next start finds the state before the call
//!   or after it, and directories that no snapshot owns are removed.
//! - Directories are made and synced before the transaction that names them, and removed after the one that forgets them.
//! - A snapshot is committed only after its data has been synced to the disk: what containerd believes to have, a power
//!   failure doesn't take away.
//!
//! Calls go `cli → snapshotter → {union::marker, sys}`. Nothing here mounts.

pub mod error;
mod filter;
mod mounts;
mod places;
pub mod server;
mod service;
pub mod snapshots;
mod store;
