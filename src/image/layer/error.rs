//! What can be wrong with a layer, in one line that names the entry.

use std::io;

use rustix::io::Errno;

use crate::error::FsError;

/// Why a tar could not be made a directory, or a directory a tar.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// An entry asks for what is not allowed or makes no sense.
    #[error("{}: {what}", shown(.entry))]
    Entry {
        /// The entry's path.
        entry: Vec<u8>,
        /// What is wrong with it.
        what: String,
    },
    /// A system call failed.
    #[error("{}: cannot {what}: {errno}", shown(.entry))]
    Os {
        /// The entry's path.
        entry: Vec<u8>,
        /// What was tried.
        what: &'static str,
        /// How it failed.
        errno: Errno,
    },
    /// The archive is no tar, or a damaged one.
    #[error("the tar is damaged after {} bytes{}: {what}", .offset, after(.entry))]
    Damaged {
        /// The last entry before the damage; empty at the start.
        entry: Vec<u8>,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The source of the tar failed.
    #[error("cannot read the tar: {0}")]
    Read(#[source] io::Error),
    /// The tar could not be written.
    #[error("cannot write the tar: {0}")]
    Write(#[source] io::Error),
    /// More entries than allowed.
    #[error("the layer has more than {0} entries; raise the limit if that is meant")]
    TooManyEntries(u64),
    /// More data than allowed.
    #[error("the layer unpacks to more than {limit} bytes, with {}; raise the limit if that is meant", shown(.entry))]
    TooManyBytes {
        /// The entry that goes beyond.
        entry: Vec<u8>,
        /// The limit.
        limit: u64,
    },
}

/// Returns a path in a message: one line, whatever its bytes.
fn shown(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { path.escape_ascii().to_string() }
}

fn after(entry: &[u8]) -> String {
    if entry.is_empty() { String::new() } else { format!(" (after {})", shown(entry)) }
}

impl LayerError {
    /// Refuses an entry.
    pub(crate) fn entry(entry: &[u8], what: impl Into<String>) -> LayerError {
        LayerError::Entry { entry: entry.to_vec(), what: what.into() }
    }

    /// Says, for `map_err`, that a system call failed for an entry.
    pub(crate) fn os(entry: &[u8], what: &'static str) -> impl Fn(Errno) -> LayerError {
        let entry = entry.to_vec();
        move |errno| LayerError::Os { entry: entry.clone(), what, errno }
    }
}

/// Says, for `map_err`, that the union could not answer for a path.
pub(crate) fn of_union(path: &[u8]) -> impl Fn(FsError) -> LayerError {
    let path = path.to_vec();
    move |error| match error {
        FsError::Os(errno) => LayerError::Os { entry: path.clone(), what: "read it", errno },
        error => LayerError::Entry { entry: path.clone(), what: error.to_string() },
    }
}
