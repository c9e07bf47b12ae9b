//! What unionmount reads from others, as functions of bytes: the targets of a fuzzer.
//!
//! A target panics when something is wrong: the code under it panicked, or broke a promise that the target checks.
//! `scripts/fuzz` runs the targets under libFuzzer, and `tests/corpus.rs` on what is kept in `corpus/`: inputs that reach
//! much of the code, and each input that once found something.

#![allow(clippy::unwrap_used)] // a target that panics has found something

mod layers;
mod marks;
mod requests;
#[cfg(feature = "snapshotter")]
mod snapshots;
mod socket;
mod texts;
mod yard;

/// Reads bytes, and panics when something is wrong.
pub type Target = fn(&[u8]);

/// All targets, by the names of their directories in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("requests", requests::requests),
    ("served", requests::served),
    ("tar", layers::tar),
    ("archive", layers::archive),
    ("archive_index", layers::archive_index),
    ("squashfs", layers::filesystem),
    ("erofs", layers::filesystem),
    ("documents", texts::documents),
    ("stack_records", texts::stack_records),
    ("options", texts::options),
    ("names", texts::names),
    ("templates", texts::templates),
    ("override_stat", texts::override_stat),
    ("marks", marks::marks),
    ("socket", socket::socket),
    #[cfg(feature = "snapshotter")]
    ("snapshots", snapshots::snapshots),
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(of, _)| *of == name).map(|(_, target)| *target)
}
