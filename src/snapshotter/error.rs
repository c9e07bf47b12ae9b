//! Why a call failed, and what containerd is told.

use std::io;
use std::path::{Path, PathBuf};

/// Why a call of the snapshotter failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no snapshot of this name.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// The name is taken.
    #[error("snapshot {0:?} exists already")]
    Exists(String),
    /// The snapshot is not in the state that the call needs.
    #[error("{0}")]
    Precondition(String),
    /// The call makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A directory could not be made, read or removed.
    #[error("{}: cannot {what}: {source}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The database could not be read or written.
    #[error("database: {0}")]
    Database(#[source] Box<redb::Error>),
    /// A record of the database is not understood.
    #[error("database: the record of {key:?} is not understood: {source}")]
    Record {
        /// The snapshot.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The database was written by a later version.
    #[error("database: format {0} is not known: it was written by a later version of unionmount")]
    Format(u64),
}

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` of what was done at `path`.
    pub(super) fn io<E: Into<io::Error>>(path: &Path, what: &'static str) -> impl FnOnce(E) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, what, source: source.into() }
    }

    /// Whether another process has the database open.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Error::Database(error) if matches!(**error, redb::Error::DatabaseAlreadyOpen))
    }
}

macro_rules! from_redb {
    ($($kind:ident),+) => {$(
        impl From<redb::$kind> for Error {
            fn from(error: redb::$kind) -> Error {
                Error::Database(Box::new(error.into()))
            }
        }
    )+};
}

from_redb!(DatabaseError, TransactionError, TableError, StorageError, CommitError);
