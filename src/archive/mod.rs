//! Archives as layers: a tar, a squashfs or an EROFS image is a lower without being unpacked.
//!
//! ```text
//! open: what is it, by content ──> a file that is read at any place, or a stream that is decoded once into a spool
//!   └── build: one pass over the headers ──> index: objects and names in a few dozen bytes each
//!         ├── implied: directories that no entry names are as the layers below it say
//!         ├── cache: index and decoded data are kept for the next mount of the same file
//!         └── tree: answers the union's reads (LayerTree) out of the index; data by pread
//! ```
//!
//! Images of filesystems are read by walks of their own (`filesystem`): of a squashfs (`squashfs`) the index tells blocks, which are
//! decompressed when they are asked for; of an EROFS image (`erofs`) it tells what it tells of a tar. In a file of Apptainer's (`sif`)
//! lies a squashfs.
//!
//! Archives are read with pread and never mapped: one that is changed or cut while it is mounted gives `EIO` and a line in
//! the log. A tar that is compressed can't be entered in its middle, so its data are decoded once, when it is first opened, into
//! a file in the cache directory.
//!
//! What an archive says is not trusted more than an image: marks of overlays in its extended attributes have no meaning,
//! and whiteouts by name (`.wh.NAME`, OCI's image-spec, layer.md) only where the archive is said to be a layer. Of what the
//! reader refuses, nothing is mounted. Paths are those of [`apply::clean`](crate::image::layer::apply::clean), as when a layer is
//! unpacked.

mod build;
mod cache;
mod data;
mod decompressed;
mod erofs;
mod file;
mod filesystem;
mod gzip;
mod image;
mod implied;
mod index;
mod lower;
mod opening;
mod part;
mod promise;
mod sif;
mod spool;
mod squashfs;
mod tree;
mod watch;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::cache::Cache;
use self::index::Index;
use self::tree::ArchiveTree;
use crate::image::digest::Digest;
use crate::image::layer::LayerError;
use crate::union::stack::tree::{FileStamp, LayerTree};

pub use self::implied::describe_implied;
pub use self::lower::{ReadLower, open_layer};
pub use self::part::Part;
pub use self::promise::{ArchiveOptions, Promised};

/// Why an archive can't be a layer.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
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
    /// It is no archive of a known form.
    #[error("{}: is a file, and no archive that can be a layer: {what}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it is, or isn't.
        what: String,
    },
    /// What it holds is wrong.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: LayerError,
    },
    /// It is an image of a filesystem, and damaged.
    #[error("{}: the {of} is damaged: {entry}{what}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Of which format.
        of: &'static str,
        /// In what, and a colon; empty where that isn't known.
        entry: String,
        /// What is wrong with it.
        what: String,
    },
    /// It isn't what an image says.
    #[error(
        "{}: its content has the digest {found} where the image says {promised}: it is damaged, or another one; get the image anew",
        path.display()
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: Digest,
        /// What it was to be.
        promised: Digest,
    },
}

/// An archive whose headers have been read.
#[derive(Debug)]
pub struct Archive {
    index: Index,
    /// Where offsets count: the archive, or what it was decoded to.
    data: Part,
    id: u64,
    is_layer: bool,
    from_cache: bool,
    /// Whether it is an image of a filesystem.
    is_filesystem: bool,
    /// The file that was opened, as it was then.
    lies_in: FileStamp,
}

impl Archive {
    /// Returns whether it is known from an earlier mount.
    pub fn is_from_cache(&self) -> bool {
        self.from_cache
    }

    /// Makes a layer of it.
    pub fn into_tree(self) -> Arc<dyn LayerTree> {
        Arc::new(ArchiveTree::new(self.index, self.data, (self.id, self.lies_in)))
    }

    /// Returns whether it is read as a layer of an image.
    pub fn is_layer(&self) -> bool {
        self.is_layer
    }
}

/// Returns how a layer of an image as it came is named to a mount, which holds it against the digest that its tar must have.
pub fn layer_name(blob: PathBuf, diff_id: &Digest) -> PathBuf {
    let mut named = blob.into_os_string();
    named.push(format!(",layer={diff_id}"));
    named.into()
}

/// Reads what an opened archive holds; what it is, its content tells. The path is for messages alone: who could put something
/// else there meanwhile changes nothing.
///
/// # Errors
/// When it is none, or damaged.
pub fn open(file: File, path: &Path, options: &ArchiveOptions) -> Result<Archive, ArchiveError> {
    let part = Part::whole(file, path);
    let part =
        part.map_err(|source| ArchiveError::Io { what: "look at it", path: path.to_owned(), source })?;
    open_part(part, options)
}

/// Does as [`open`], of a part of a file.
///
/// # Errors
/// As those of [`open`].
pub fn open_part(part: Part, options: &ArchiveOptions) -> Result<Archive, ArchiveError> {
    opening::open_with(part, options, &Cache::of_user())
}

/// Deletes what is kept of archives that this user has mounted; returns how many bytes on the disk that gave back. What is mounted
/// stays as it is.
///
/// # Errors
/// When something can't be deleted.
pub fn clear_cache() -> io::Result<u64> {
    Cache::of_user().clear()
}

/// Makes a layer of the body of a file of the cache, which nothing vouches for, over those data; for fuzzing.
///
/// # Errors
/// Those of looking at the data.
pub fn of_index(bytes: &[u8], data: File) -> io::Result<Option<Archive>> {
    let data = Part::whole(data, Path::new("data"))?;
    let Some(told) = cache::body_over(bytes, data.size) else { return Ok(None) };
    let lies_in = data.store.stamp()?;
    let data = data.checked(told.blocks);
    Ok(Some(Archive {
        index: told.index,
        data,
        id: told.id,
        is_layer: true,
        from_cache: true,
        is_filesystem: false,
        lies_in,
    }))
}

#[cfg(test)]
mod tests;
