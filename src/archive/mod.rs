//! Archives as layers: a tar is a lower without being unpacked.
//!
//! ```text
//! open: what is it, by content ──> a file that is read at any place, or a stream that is decoded once into a spool
//!   └── build: one pass over the headers ──> index: objects and names in a few dozen bytes each
//!         ├── implied: directories that no entry names are as the layers below it say
//!         ├── cache: index and decoded data are kept for the next mount of the same file
//!         └── tree: answers the union's reads (LayerTree) out of the index; data by pread
//! ```
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
mod implied;
mod index;
mod spool;
mod tree;
mod watch;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::build::Builder;
use self::cache::{Cache, Place, Told};
use self::data::{Original, Store};
use self::index::Index;
use self::spool::Spool;
use self::tree::{ArchiveTree, identity};
use crate::image::compression::{Compression, decode};
use crate::image::layer::apply::stream_limit;
use crate::image::layer::reader::Reader;
use crate::image::layer::{LayerError, Limits};
use crate::union::stack::tree::LayerTree;

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
        what: &'static str,
    },
    /// What it holds is wrong.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: LayerError,
    },
}

/// How an archive is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct ArchiveOptions {
    /// Whether names such as `.wh.x` are whiteouts.
    pub is_layer: bool,
}

/// An archive whose headers have been read.
#[derive(Debug)]
pub struct Archive {
    index: Index,
    store: Store,
    id: u64,
    is_layer: bool,
    from_cache: bool,
}

impl Archive {
    /// Returns whether it is known from an earlier mount.
    pub fn is_from_cache(&self) -> bool {
        self.from_cache
    }

    /// Makes a layer of it.
    pub fn into_tree(self) -> Arc<dyn LayerTree> {
        Arc::new(ArchiveTree::new(self.index, self.store, self.id))
    }

    /// Returns whether it is read as a layer of an image.
    pub fn is_layer(&self) -> bool {
        self.is_layer
    }
}

pub use self::implied::describe_implied;

/// Reads what an opened archive holds; what it is, its content tells. The path is for messages alone: who could put something
/// else there meanwhile changes nothing.
///
/// # Errors
/// When it is none, or damaged.
pub fn open(file: File, path: &Path, options: ArchiveOptions) -> Result<Archive, ArchiveError> {
    open_with(file, path, options, &Cache::of_user())
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
    let original = Original::of(&data)?;
    let Some(told) = cache::body_over(bytes, data.metadata()?.len()) else { return Ok(None) };
    let store = Store::file(data, Path::new("data"), original)?;
    Ok(Some(Archive { index: told.index, store, id: told.id, is_layer: true, from_cache: true }))
}

fn open_with(
    file: File,
    path: &Path,
    options: ArchiveOptions,
    cache: &Cache,
) -> Result<Archive, ArchiveError> {
    let io = |what| move |source| ArchiveError::Io { what, path: path.to_owned(), source };
    // Before anything of it is read.
    let original = Original::of(&file).map_err(io("look at it"))?;
    let size = file.metadata().map_err(io("look at it"))?.len();
    let mut head = [0; 512];
    let count = read_head(&file, &mut head).map_err(io("read it"))?;
    if let Some(what) = other_form(&head[..count]) {
        return Err(ArchiveError::Unknown { path: path.to_owned(), what });
    }
    let is_plain = Compression::of(&head[..count]) == Compression::None;
    if is_plain && !is_tar(&head[..count]) {
        let what = "neither a tar nor one that is compressed with gzip, zstd, xz or bzip2";
        return Err(ArchiveError::Unknown { path: path.to_owned(), what });
    }
    let place = cache.place(&file, options.is_layer);
    if let Some((told, data)) = place.as_ref().and_then(Place::load) {
        told.left_out.tell(path);
        let store = match data {
            // Looked at again now that its place is known to be this one's.
            None => Store::file(file, path, original).map_err(io("read it"))?,
            Some(data) => {
                original.check(&file).map_err(io("read it"))?;
                Store::file(data.file, &data.path, data.original).map_err(io("read what is kept of it"))?
            }
        };
        return Ok(Archive {
            index: told.index,
            store,
            id: told.id,
            is_layer: options.is_layer,
            from_cache: true,
        });
    }
    let damaged = |what| ArchiveError::Damaged { path: path.to_owned(), what };
    let mut builder = Builder::new(options.is_layer);
    let mut decoded = None;
    if is_plain {
        let reader = Reader::of_file(file.try_clone().map_err(io("read it"))?);
        builder.read(reader, size).map_err(damaged)?;
    } else {
        let compressed = file.try_clone().map_err(io("read it"))?;
        let compressed = BufReader::with_capacity(256 << 10, compressed);
        let (_, stream) = decode(compressed).map_err(io("decompress it"))?;
        let dir = place.as_ref().map_or_else(|| cache.dir.clone(), Place::dir);
        let mut spooled =
            Spool::new(stream, stream_limit(Limits::default()), &dir, cache).map_err(|source| {
                ArchiveError::Io { what: "keep what is decompressed in it", path: dir, source }
            })?;
        builder.read(Reader::new(&mut spooled), u64::MAX).map_err(damaged)?;
        decoded = Some(spooled.finish().map_err(io("keep what is decompressed"))?);
    }
    let left_out = builder.left_out;
    left_out.tell(path);
    let index = builder.finish().map_err(damaged)?;
    let told = Told { id: identity(&index), index, left_out };
    // Nothing is kept of what was changed meanwhile.
    original.check(&file).map_err(io("read it"))?;
    if let Some(place) = place {
        place.keep(&told, decoded.as_ref());
    }
    let store = match decoded {
        None => Store::file(file, path, original),
        // It may have got a name, by which others can write to it.
        Some(decoded) => Original::of(&decoded).and_then(|original| Store::file(decoded, path, original)),
    };
    let store = store.map_err(io("read it"))?;
    Ok(Archive { index: told.index, store, id: told.id, is_layer: options.is_layer, from_cache: false })
}

/// Reads as much of the beginning as there is.
fn read_head(file: &File, head: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < head.len() {
        match file.read_at(&mut head[count..], count as u64)? {
            0 => break,
            read => count += read,
        }
    }
    Ok(count)
}

/// Says what else a file may be that people mount.
fn other_form(head: &[u8]) -> Option<&'static str> {
    match head {
        [b'h', b's', b'q', b's', ..] => Some("squashfs is not read yet; mount it, and name the mount point"),
        [b'P', b'K', 3 | 5, _, ..] => Some("it is a zip"),
        [b'7', b'z', 0xbc, 0xaf, ..] => Some("it is a 7z"),
        [] => Some("it is empty"),
        _ => None,
    }
}

/// Tells whether it begins with the header of a tar, or with the end of an empty one.
fn is_tar(head: &[u8]) -> bool {
    let mut reader = Reader::new(head.chain(io::empty()));
    head.len() == 512
        && (head.iter().all(|&byte| byte == 0)
            || !matches!(reader.next_entry(), Err(LayerError::Damaged { ref what, .. }) if what.contains("checksum")))
}

#[cfg(test)]
mod tests;
