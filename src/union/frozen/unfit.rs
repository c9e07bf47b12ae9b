//! Why there is no snapshot, or none can be made.

use std::path::PathBuf;

use crate::union::escaped_path::EscapedPath;

/// Why something about snapshots can't be done. The text is meant for the person at the terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// A system call failed.
    #[error("{}: cannot {what}: {source}", shown(.path))]
    Io {
        /// What was tried, as an infinitive.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },

    /// The record is there, and can't be read as one.
    #[error("{}: {why}", shown(.path))]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },

    /// The record was written by a later program. Without what isn't known it would be written anew, and that be lost.
    #[error(
        "{}: was written by a later version of unionmount, with what this one doesn't know ({what}); upgrade, and try again",
        shown(.path)
    )]
    Later {
        /// The record.
        path: PathBuf,
        /// What isn't known.
        what: String,
    },

    /// What is on the disk doesn't go together.
    #[error("{}: {why}", shown(.path))]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What is wrong, and the way out.
        why: String,
    },

    /// It can't be done with what was named.
    #[error("{}: {why}", shown(.path))]
    Refused {
        /// What was named.
        path: PathBuf,
        /// Why, and the way out.
        why: String,
    },
}

/// The result of what is done about snapshots.
pub type Result<T> = std::result::Result<T, SnapshotError>;

fn shown(path: &std::path::Path) -> EscapedPath {
    EscapedPath::from(path)
}

impl SnapshotError {
    /// Makes, for `map_err`, the error of a system call.
    pub(in crate::union) fn io<E: Into<std::io::Error>>(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> SnapshotError {
        let path = path.into();
        move |error| SnapshotError::Io { what, path, source: error.into() }
    }

    /// Refuses what was named.
    pub(in crate::union) fn refused(path: impl Into<PathBuf>, why: impl Into<String>) -> SnapshotError {
        SnapshotError::Refused { path: path.into(), why: why.into() }
    }

    /// Tells that what is on the disk doesn't go together.
    pub(in crate::union) fn damaged(path: impl Into<PathBuf>, why: impl Into<String>) -> SnapshotError {
        SnapshotError::Damaged { path: path.into(), why: why.into() }
    }
}
