//! Lowers whose archives, where they are some, have been read: how a mount gets them, whoever named them.

use std::fs::File;
use std::path::{Path, PathBuf};

use indicatif::MultiProgress;

use super::{Archive, ArchiveError, ArchiveOptions, Promised, describe_implied, open};
use crate::image::digest::Digest;
use crate::union::stack::layer::LowerSource;

/// A lower whose archive, if it is one, has been read.
pub enum ReadLower {
    /// No archive.
    Plain(LowerSource),
    /// One.
    Archive {
        /// What messages and the socket call it.
        path: PathBuf,
        /// What it holds.
        archive: Box<Archive>,
        /// What people call it, where its path says less.
        name: Option<String>,
    },
}

impl ReadLower {
    /// Returns what people call it, where its path says less.
    pub fn name(&self) -> Option<String> {
        match self {
            ReadLower::Plain(_) => None,
            ReadLower::Archive { name, .. } => name.clone(),
        }
    }

    /// Returns what a stack takes.
    pub fn into_source(self) -> LowerSource {
        match self {
            ReadLower::Plain(lower) => lower,
            ReadLower::Archive { path, archive, .. } => LowerSource::Tree { path, tree: archive.into_tree() },
        }
    }

    /// Has directories that a layer of an image doesn't name described by those that lie right below it, the topmost first.
    pub fn describe_implied(lowers: &mut [ReadLower]) {
        for run in lowers.chunk_by_mut(|above, below| above.is_layer() && below.is_layer()) {
            describe_implied(&mut run.iter_mut().filter_map(ReadLower::archive).collect::<Vec<_>>());
        }
    }

    fn archive(&mut self) -> Option<&mut Archive> {
        match self {
            ReadLower::Plain(_) => None,
            ReadLower::Archive { archive, .. } => Some(archive),
        }
    }

    fn is_layer(&self) -> bool {
        matches!(self, ReadLower::Archive { archive, .. } if archive.is_layer())
    }
}

/// Reads the blob of a layer of an image, whose tar must have that digest if there is one.
///
/// # Errors
/// As those of [`open`].
pub fn open_layer(
    blob: File,
    path: &Path,
    tar: Option<Digest>,
    progress: Option<MultiProgress>,
) -> Result<Archive, ArchiveError> {
    let promised = Promised { tar, blob: None };
    open(blob, path, &ArchiveOptions { is_layer: true, promised, progress })
}
