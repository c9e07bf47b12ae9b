//! Raw system calls, wrapped safe. The only part of the crate in which `unsafe` is allowed.

pub mod process;
