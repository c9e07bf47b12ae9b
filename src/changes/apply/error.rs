//! Why changes could not be applied, in one line.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::image::layer::LayerError;
use crate::union::escaped_path::EscapedPath;

/// The result of applying.
pub type Result<T> = std::result::Result<T, ApplyError>;

/// Why changes could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A layer can't be read.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A system call failed for a path of the target.
    #[error("{}: cannot {what}: {errno}", shown(.path))]
    At {
        /// Relative to the target.
        path: Vec<u8>,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// A file of this program's own can't be read or written.
    #[error("{}: cannot {what}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Somebody has exchanged something while the changes were applied.
    #[error(
        "{}: was changed by somebody else while the changes were applied; the rest waits: the same command with --force goes on over it, with --theirs beside it, and unionmount apply --abandon UPPER TARGET gives the rest up",
        shown(.0)
    )]
    Changed(Vec<u8>),
    /// The same, and the policy that was asked for says nothing of that.
    #[error(
        "{}: was changed by somebody else while the changes were applied, so that neither --force nor --theirs leads on; put it back as it was and say the same command again, or give the rest up: unionmount apply --abandon {upper} {target}",
        shown(.path)
    )]
    Stuck {
        /// What was changed.
        path: Vec<u8>,
        /// The upper.
        upper: EscapedPath,
        /// The target.
        target: EscapedPath,
    },
    /// The same, and what was there could not be put back.
    #[error(
        "{}: was exchanged by somebody else while the changes were applied, and what came out of there lies in {} now; look at it, then the same command with --force drops it, with --theirs goes on without",
        shown(.path), shown(.at)
    )]
    Aside {
        /// Where it was.
        path: Vec<u8>,
        /// Where it is.
        at: Vec<u8>,
    },
    /// What was prepared is gone.
    #[error(
        "{}: what was prepared here is not there any more, so what is half applied can't be finished; unionmount apply --abandon UPPER TARGET gives it up, and then the changes can be applied anew",
        shown(.0)
    )]
    Lost(Vec<u8>),
    /// Anything else that the user has to change.
    #[error("{0}")]
    Refused(String),
}

impl ApplyError {
    /// Says of what was changed before anything of the target was touched that this is so.
    pub(super) fn before_anything(self) -> ApplyError {
        match self {
            ApplyError::Changed(path) => ApplyError::Refused(format!(
                "{}: was changed by somebody else while the changes were prepared; nothing was touched, and the same command \
                 begins anew",
                shown(&path)
            )),
            other => other,
        }
    }
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { EscapedPath::from(path).to_string() }
}

impl ApplyError {
    /// Makes, for `map_err`, an error of a system call for a path of the target.
    pub(super) fn at(path: &[u8], what: &'static str) -> impl Fn(Errno) -> ApplyError {
        let path = path.to_vec();
        move |errno| ApplyError::At { path: path.clone(), what, errno }
    }

    /// Makes, for `map_err`, an error of a file of this program's own.
    pub(super) fn io<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> ApplyError {
        let path = path.to_owned();
        move |error| ApplyError::Io { what, path, source: error.into() }
    }
}
