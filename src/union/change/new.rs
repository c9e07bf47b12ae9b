//! What is made in an upper.

use crate::sys::object::Kind;

/// What is to be made.
#[derive(Debug, Clone, Copy)]
pub enum New<'a> {
    /// An empty regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with that target.
    Symlink(&'a [u8]),
    /// A fifo, a socket or a device with that device number.
    Special(Kind, u64),
}
