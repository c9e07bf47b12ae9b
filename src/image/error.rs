//! What can go wrong with images and their store.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::digest::{Digest, DigestError};
use super::name::NameError;

/// The result of an operation on the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Why an operation on images or on the store failed: one line each, with the way out.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("{}: cannot {what}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// What a layer is read from failed.
    #[error("cannot be read: {0}")]
    Source(#[source] io::Error),
    /// What an image elsewhere is fetched by failed: of the image, that says nothing.
    #[error(transparent)]
    Fetch(FetchFailed),
    /// Nothing has this name or id.
    #[error("no image {0:?} in the store; `unionmount images` lists what there is")]
    NoImage(String),
    /// There is no store where one is looked for.
    #[error("there is no store in {} yet: unionmount load or import makes one", .0.display())]
    NoStore(std::path::PathBuf),
    /// An id's prefix that several images share.
    #[error("{text:?} begins the ids of several images: {}", list(found))]
    Ambiguous {
        /// The prefix.
        text: String,
        /// The ids.
        found: Vec<Digest>,
    },
    /// A text that is no name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A text that is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// Something in the store is not as it was written.
    #[error("{}: {what}; `unionmount verify` tells more", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A later program has written it, with what this one doesn't know: it is no damage, and nothing is changed there.
    #[error(
        "{}: was written by a later version of unionmount, with what this one doesn't know ({what}); upgrade, and try again",
        path.display()
    )]
    Later {
        /// The file.
        path: PathBuf,
        /// What isn't known.
        what: String,
    },
    /// What was to be loaded is not an image, or a broken one. The store is as it was.
    #[error("{source_name}: {what}")]
    BadImage {
        /// The archive or directory.
        source_name: String,
        /// What is wrong with it.
        what: String,
    },
    /// An image or the store can't be changed now.
    #[error("{0}")]
    InUse(String),
    /// A layer unpacks to more than is allowed.
    #[error("{0}")]
    TooLarge(String),
    /// Anything else that the user has to change.
    #[error("{0}")]
    Refused(String),
}

/// Why something couldn't be fetched from where it lies. Readers of such things fail with this, so that whoever reads knows
/// it from damage.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct FetchFailed(#[from] pub io::Error);

impl From<FetchFailed> for io::Error {
    fn from(failed: FetchFailed) -> io::Error {
        io::Error::new(failed.0.kind(), failed)
    }
}

fn list(digests: &[Digest]) -> String {
    digests.iter().map(Digest::short).collect::<Vec<_>>().join(", ")
}

impl StoreError {
    /// Says, for `map_err`, what was tried, and on which file.
    pub fn io<E: Into<io::Error>>(
        what: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> StoreError {
        let path = path.as_ref().to_owned();
        move |error| StoreError::Io { what, path, source: error.into() }
    }

    /// Returns whether this says that something is not what it should be. Everything else (no room, no descriptors, a
    /// disk that fails) says only that it couldn't be looked at.
    pub fn is_damage(&self) -> bool {
        match self {
            StoreError::Damaged { .. } | StoreError::Digest(_) | StoreError::BadImage { .. } => true,
            StoreError::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
            ),
            _ => false,
        }
    }

    /// Returns whether this says that the machine is short of something, or that a disk fails: of what it was about, it
    /// says nothing.
    pub fn is_shortage(&self) -> bool {
        let (StoreError::Io { source, .. } | StoreError::Source(source)) = self else { return false };
        let short = [
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::NOBUFS,
            Errno::AGAIN,
            Errno::IO,
        ];
        Errno::from_io_error(source).is_some_and(|errno| short.contains(&errno))
    }

    /// Returns a file of the store that holds something else than it should.
    pub fn damaged(path: impl AsRef<Path>, what: impl ToString) -> StoreError {
        StoreError::Damaged { path: path.as_ref().to_owned(), what: what.to_string() }
    }
}
