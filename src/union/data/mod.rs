//! Data: the descriptors of open files, which follow a copy-up, files that are copied up block by block, calls on ranges
//! of them, and what fsync promises.

pub mod block_map;
pub mod content;
pub mod durable;
pub mod file;
pub(in crate::union) mod fitting;
pub mod half;
pub mod half_mark;
pub(in crate::union) mod halves;
mod ranges;
