//! What an upper changed: told by `diff`, of mounts and of directories that nobody has mounted.

#![allow(missing_docs)]

mod diff;
