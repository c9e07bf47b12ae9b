//! The reference model: what a union shows and what each operation does to it, in memory.
//!
//! A union, once merged, is to behave like any POSIX filesystem. So the model has two halves that know nothing of
//! each other: [`layer`] says what layers are and merges them into one tree, by the rules of whiteouts, opaque
//! directories and non-directories; [`tree`] and [`apply`] are a plain filesystem in memory that starts from that
//! tree and gives, for every operation, the result or the errno that Linux gives.
//!
//! | module | what it holds |
//! |---|---|
//! | [`layer`] | layers as data; writing them to disk; merging them |
//! | [`op`] | operations as plain data, and what comes out of one |
//! | [`tree`] | inodes, names, path resolution, the snapshot that is expected |
//! | [`apply`] | what each operation does |
//! | [`execute`] | the same operations by system calls in a directory |
//! | [`check`] | a sequence run in both, compared after each step |
//! | [`generate`] | random stacks and sequences |
//! | [`steer`] | random operations bent to what is there |
//! | [`peers`] | stacks and outcomes as the kernel's overlayfs and plain filesystems have them |
//! | [`kills`] | the same with a daemon that is killed on the way |
//! | [`shrink`] | a failing case made small |
//! | [`harness`] | how many cases are run, from which seed, and what is printed of one that fails |
//!
//! To check something other than a mount (the library in process, say), give [`check::Sequence::run`] two closures:
//! one that performs an [`op::Op`], one that takes a snapshot.

pub mod apply;
pub mod check;
pub mod execute;
pub mod generate;
pub mod harness;
pub mod kills;
pub mod layer;
pub mod op;
pub mod peers;
pub mod shrink;
pub mod steer;
pub mod tree;
