//! What can go wrong with containers: one line each, with the way out.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::image::error::StoreError;
use crate::image::layer::LayerError;
use crate::union::stack::layer::TakeAway;

/// The result of an operation on a container.
pub type Result<T> = std::result::Result<T, ContainerError>;

/// Why an operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Of the container's layer.
    #[error("container {id}: {source}")]
    Layer {
        /// The container.
        id: String,
        /// What is wrong with its layer.
        source: LayerError,
    },
    /// Nothing has this name or id.
    #[error("no container {0:?}; `unionmount ps -a` lists what there is")]
    Unknown(String),
    /// An id's prefix that several containers share.
    #[error("{text:?} begins the ids of several containers: {}", found.join(", "))]
    Ambiguous {
        /// The prefix.
        text: String,
        /// The ids, short.
        found: Vec<String>,
    },
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
    /// A mount whose daemon has ended.
    #[error("{}: a dead FUSE mount, its daemon has ended; {}", path.display(), TakeAway(path))]
    DeadMount {
        /// The mount point.
        path: PathBuf,
    },
    /// What was to be run in a container isn't there, or is no program for this machine.
    #[error("{why}")]
    NoProgram {
        /// The status that shells give.
        code: u8,
        /// What is wrong.
        why: String,
    },
    /// Anything else that the user has to change.
    #[error("{0}")]
    Refused(String),
}

impl ContainerError {
    /// Returns whether this says that something is not what it should be; see [`StoreError::is_damage`].
    pub fn is_damage(&self) -> bool {
        matches!(self, ContainerError::Store(cause) if cause.is_damage())
    }

    /// Says, for `map_err`, what was tried, and on which file.
    pub fn io<E: Into<io::Error>>(
        what: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> ContainerError {
        let path = path.as_ref().to_owned();
        move |error| {
            let source = error.into();
            match Errno::from_io_error(&source) {
                Some(Errno::NOTCONN | Errno::CONNABORTED) => ContainerError::DeadMount { path },
                _ => ContainerError::Io { what, path, source },
            }
        }
    }
}
