//! What a POSIX program may ask, by capability, through real mounts of the real binary.

#[path = "../common/mod.rs"]
mod common;

mod lookup;
