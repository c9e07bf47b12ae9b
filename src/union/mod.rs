//! The union filesystem itself: no FUSE, no command line and no images here, so that every rule of it can be tested
//! on plain temporary directories.
pub mod marker;
