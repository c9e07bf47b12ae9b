//! Layers on filesystems of other kinds than ext4: what each can't do is done otherwise, or the mount says what is
//! missing.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

mod access_times;
mod attributes;
mod below;
mod calls;
mod errors;
mod failing;
mod gone;
mod model_runs;
mod nth;
mod uppers;
