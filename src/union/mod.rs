//! The union filesystem itself: no FUSE, no command line and no images here, so that every rule of it can be tested
//! on plain temporary directories.
pub mod layer;
pub mod lock;
pub mod marker;
mod nesting;
pub mod options;
mod probe;
mod stack_error;
mod sweep;
pub mod workdir;
