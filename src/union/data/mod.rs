//! Data: the descriptors of open files, which follow a copy-up, and what fsync promises.

pub mod durable;
pub mod file;
