//! Why a call failed, and what containerd is told.

use std::io;
use std::path::{Path, PathBuf};

/// The name of the database's file below the root; SQLite puts `-wal` and the like behind it.
pub const FILE: &str = "metadata.sqlite";
/// The way out that loses nothing on the disk.
const SET_ASIDE: &str =
    "begin anew with `unionmount snapshotter --set-aside`, which moves all of it out of the way";

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
    /// The database could not be read or written. The next call may do better.
    #[error("database: {0}")]
    Database(#[source] Box<rusqlite::Error>),
    /// The database is not what was written.
    #[error("{} is damaged ({what}); the snapshots are untouched: put a copy of it there, or {SET_ASIDE}", .root.join(FILE).display())]
    Damaged {
        /// The root.
        root: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// There are snapshots, and none in the database.
    #[error("{} is missing or empty where {count} snapshots lie, of which nothing was removed: put a copy of it there, or {SET_ASIDE}", .root.join(FILE).display())]
    NoDatabase {
        /// The root.
        root: PathBuf,
        /// How many directories there are.
        count: usize,
    },
    /// There are snapshots that were made after the database was last written.
    #[error("{} is older than the snapshots (it gives number {next} next, and {newest} is there), of which nothing was removed: put a newer copy of it there, or {SET_ASIDE}", .root.join(FILE).display())]
    Older {
        /// The root.
        root: PathBuf,
        /// The highest number of a directory.
        newest: u64,
        /// The number that the database gives next.
        next: u64,
    },
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
    /// Says, for `map_err`, what was done at `path`.
    pub(super) fn io<E: Into<io::Error>>(path: &Path, what: &'static str) -> impl FnOnce(E) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, what, source: source.into() }
    }

    /// Returns what an error at opening the database in `root` means.
    pub(super) fn of(error: rusqlite::Error, root: &Path) -> Error {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => {
                Error::Damaged { root: root.to_owned(), what: error.to_string() }
            }
            _ => Error::Database(Box::new(error)),
        }
    }

    /// Returns whether another process has the database open.
    pub fn is_in_use(&self) -> bool {
        let Error::Database(error) = self else { return false };
        error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        Error::Database(Box::new(error))
    }
}
