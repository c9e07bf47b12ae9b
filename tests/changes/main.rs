//! What an upper changed: told by `diff`, brought into a directory by `apply`.

// A test that panics has failed; that is what unwrap is for here.
#![allow(missing_docs, clippy::unwrap_used)]

mod apply;
mod conflicts;
mod diff;
mod paused;
