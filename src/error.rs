//! The error types, and the only errno table.
//!
//! [`FsError`] is what an operation on the mounted tree can answer. Each variant says what the rule is that was
//! broken; [`FsError::errno`] is the one place that turns it into the number that a program sees.

use rustix::io::Errno;

/// Returns what a record holds that came later than this program, if that is what is wrong with it: a field, or one of several words.
pub fn unknown(error: &serde_json::Error) -> Option<String> {
    let said = error.to_string();
    // What is known instead is a long list.
    let what = said.split(", expected").next().unwrap_or(&said);
    ["unknown field ", "unknown variant "]
        .iter()
        .any(|first| what.starts_with(first))
        .then(|| what.to_owned())
}

/// Why an operation on the merged tree failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// The name doesn't exist in the merged view.
    #[error("no such entry")]
    Absent,
    /// The name exists already.
    #[error("the name exists already")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// Something other than a directory was needed.
    #[error("is a directory")]
    IsADirectory,
    /// The directory still shows entries.
    #[error("directory not empty")]
    NotEmpty,
    /// The stack has no upper layer, so nothing can be changed.
    #[error("the mount has no upper layer and is read-only")]
    ReadOnly,
    /// The name has the form of a marker (`.wh.NAME`), which a layer would read as a deletion.
    #[error("names that start with .wh. are whiteouts in a layer and can't be created")]
    MarkerName,
    /// A character device 0:0 is a whiteout in a layer and can't be created through the mount.
    #[error("a character device 0:0 is a whiteout in a layer and can't be created")]
    MarkerDevice,
    /// A private attribute of the union was named.
    #[error("the attribute is private to the union filesystem")]
    PrivateXattr,
    /// The attribute doesn't exist.
    #[error("no such attribute")]
    NoXattr,
    /// The buffer is too small for the value.
    #[error("the buffer is too small")]
    Range,
    /// An argument makes no sense.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The filesystem below can't do it.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// The kernel speaks of a node that isn't known (any more).
    #[error("stale node")]
    Stale,
    /// A layer holds a form that is not understood; it is refused rather than shown as something else.
    #[error("layer {layer}: {path}: {what}")]
    LayerForm {
        /// Where the layer lies, as given at mount.
        layer: String,
        /// The path in the layer.
        path: String,
        /// What was found.
        what: String,
    },
    /// Something of a layer, or of the workdir, can't be used at all.
    #[error("{place}: {errno}; {way_out}")]
    Unusable {
        /// What it is and where it lies.
        place: String,
        /// What its filesystem said.
        errno: Errno,
        /// What can be done about it.
        way_out: &'static str,
    },
    /// A system call failed.
    #[error("{0}")]
    Os(Errno),
}

impl FsError {
    /// Returns the number that the calling program sees.
    pub fn errno(&self) -> Errno {
        match self {
            FsError::Absent => Errno::NOENT,
            FsError::Exists => Errno::EXIST,
            FsError::NotADirectory => Errno::NOTDIR,
            FsError::IsADirectory => Errno::ISDIR,
            FsError::NotEmpty => Errno::NOTEMPTY,
            FsError::ReadOnly => Errno::ROFS,
            FsError::MarkerName | FsError::MarkerDevice | FsError::PrivateXattr => Errno::PERM,
            FsError::NoXattr => Errno::NODATA,
            FsError::Range => Errno::RANGE,
            FsError::Invalid(_) => Errno::INVAL,
            FsError::Unsupported(_) => Errno::OPNOTSUPP,
            FsError::Stale => Errno::STALE,
            FsError::LayerForm { .. } => Errno::IO,
            FsError::Unusable { errno, .. } | FsError::Os(errno) => *errno,
        }
    }
}

impl FsError {
    /// Returns the same, with what it is about: for errors of a mount's start, which has no path of a program to tell.
    pub fn of(self, place: impl std::fmt::Display, way_out: &'static str) -> FsError {
        match self {
            // They tell their place.
            FsError::LayerForm { .. } | FsError::Unusable { .. } => self,
            error => FsError::Unusable { place: place.to_string(), errno: error.errno(), way_out },
        }
    }
}

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => FsError::Absent,
            other => FsError::Os(other),
        }
    }
}

/// The result of an operation on the merged tree.
pub type Result<T> = std::result::Result<T, FsError>;
