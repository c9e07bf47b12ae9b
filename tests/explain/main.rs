//! Watching copy-on-write: `explain`, `status`, `trace`, the control socket and the attributes, through the real binary.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used, missing_docs)]

mod attributes;
mod control;
mod drive;
mod events;
mod oracle;
mod status;
