//! Adding to the store: make everything aside, check it, sync it, then move it into its place.
//!
//! ```text
//! Store::begin ──> Staging ── blob() ──> BlobWriter ── keep() ──> a blob that is complete and verified
//!                     │   ── add_layer() ──> the blob of a layer
//!                     │   ── unpack_blob(), take() ──> its unpacked tree
//!                     │   ── add_image() ──> config and manifest
//!                     └── publish(): all is synced; blobs, layers: a rename each; index.json: the last rename
//! ```
//!
//! Dropped without [`Staging::publish`], all that was made below the staging directory goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::lock::Lock;
use super::{Image, Store, make_dir};
use crate::image::compression::Compression;
use crate::image::digest::{Digest, Hashing};
use crate::image::document::Config;
use crate::image::error::{Result, StoreError};
use crate::image::name::ImageName;
use crate::sys::copy::write_sparsely;
use crate::sys::remove;

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The annotation of a layer's descriptor that tells the bytes of its files.
pub(crate) const CONTENT_SIZE: &str = "org.unionmount.layer.content-size";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A blob that is in the store, or staged and verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// The digest of its bytes.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
}

/// A layer that was added.
#[derive(Debug, Clone)]
pub struct AddedLayer {
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
    /// The blob.
    pub blob: Blob,
    /// How the blob is compressed.
    pub compression: Compression,
    /// The bytes of its files, where the unpacked layer doesn't tell it.
    pub content: Option<u64>,
}

/// What is being added to the store. Several threads may add at once.
#[derive(Debug)]
pub struct Staging<'a> {
    store: &'a Store,
    path: PathBuf,
    /// Nothing that is in the store is deleted meanwhile.
    _users: Lock,
    counter: AtomicU64,
    pub(super) staged: Mutex<Staged>,
}

#[derive(Debug, Default)]
pub(super) struct Staged {
    pub blobs: BTreeMap<Digest, StagedBlob>,
    pub layers: BTreeSet<Digest>,
    pub images: Vec<Pending>,
}

/// A blob that is complete and verified.
#[derive(Debug)]
pub(super) struct StagedBlob {
    size: u64,
    /// Where it lies until it is published.
    pub path: PathBuf,
}

/// An image that is to be named when all is in its place.
#[derive(Debug)]
pub(super) struct Pending {
    pub id: Digest,
    pub manifest: Blob,
    pub media_type: String,
    pub names: Vec<ImageName>,
}

impl Store {
    /// Begins to add something.
    ///
    /// # Errors
    /// When nothing can be written.
    pub fn begin(&self) -> Result<Staging<'_>> {
        let users = self.keep_all()?;
        let dir = tempfile::Builder::new().prefix("staging-").tempdir_in(self.tmp_dir());
        let path = dir.map_err(StoreError::io("create a directory in it", self.tmp_dir()))?.keep();
        let staging = Staging {
            store: self,
            path,
            _users: users,
            counter: AtomicU64::new(0),
            staged: Mutex::default(),
        };
        make_dir(&staging.path.join("layers"))?;
        Ok(staging)
    }

    /// Returns the size of a blob that is in its place; an error where that can't be seen, for then it may be there.
    pub(crate) fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.blob_path(digest);
        match fs::symlink_metadata(&path) {
            Ok(found) => Ok(found.is_file().then_some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("look at it", path)(error)),
        }
    }
}

impl<'a> Staging<'a> {
    /// Returns the store that is added to.
    pub fn store(&self) -> &'a Store {
        self.store
    }

    /// Returns a name of its own below the staging directory.
    pub(super) fn fresh(&self, what: &str) -> PathBuf {
        self.path.join(format!("{what}-{}", self.counter.fetch_add(1, Ordering::Relaxed)))
    }

    pub(super) fn staged_layer(&self, diff_id: &Digest) -> PathBuf {
        self.path.join("layers").join(diff_id.hex())
    }

    /// Begins a blob.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn blob(&self) -> Result<BlobWriter> {
        let path = self.fresh("blob");
        let file = File::create_new(&path).map_err(StoreError::io("create it", &path))?;
        Ok(BlobWriter { file: Hashing::new(Sparse { file, end: 0 }), path })
    }

    /// Ends a blob: checks it against what was `expected`, and keeps it.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when digest or size are others.
    pub fn keep(&self, writer: BlobWriter, expected: Option<Blob>) -> Result<Blob> {
        let (path, blob) = writer.finish()?;
        if let Some(expected) = expected {
            check(expected, blob)?;
        }
        self.adopt(&path, blob);
        Ok(blob)
    }

    /// Takes a finished file for a blob. It stays where it is until all is published: one that lies elsewhere in the store
    /// is there still when that never happens.
    pub(crate) fn adopt(&self, path: &Path, blob: Blob) {
        let staged = StagedBlob { size: blob.size, path: path.to_owned() };
        // The same content may have come twice.
        self.staged.lock().blobs.entry(blob.digest).or_insert(staged);
    }

    /// Adds a small blob.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn add_bytes(&self, bytes: &[u8]) -> Result<Blob> {
        let digest = Digest::of(bytes);
        let blob = Blob { digest, size: bytes.len() as u64 };
        if self.has_blob(blob) {
            return Ok(blob);
        }
        let mut writer = self.blob()?;
        writer.write_all(bytes).map_err(StoreError::io("write", &writer.path))?;
        self.keep(writer, Some(blob))
    }

    /// Returns whether a blob is seen in the store or staged, with this size. The content of what is in the store is
    /// not read again.
    pub fn has_blob(&self, blob: Blob) -> bool {
        self.staged.lock().blobs.get(&blob.digest).is_some_and(|staged| staged.size == blob.size)
            || matches!(self.store.blob_size(&blob.digest), Ok(Some(size)) if size == blob.size)
    }

    /// Opens a blob that is in the store or staged.
    ///
    /// # Errors
    /// When it is in neither.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let staged = self.staged.lock().blobs.get(digest).map(|staged| staged.path.clone());
        let path = staged.unwrap_or_else(|| self.store.blob_path(digest));
        File::open(&path).map_err(StoreError::io("open it", &path))
    }

    pub(super) fn has_staged_layer(&self, diff_id: &Digest) -> bool {
        self.staged.lock().layers.contains(diff_id)
    }

    /// Keeps an unpacked layer, a directory made below the staging directory.
    pub(super) fn keep_layer(&self, dir: &Path, diff_id: Digest) -> Result<()> {
        let mut staged = self.staged.lock();
        if staged.layers.insert(diff_id) {
            fs::rename(dir, self.staged_layer(&diff_id)).map_err(StoreError::io("rename it", dir))?;
        }
        Ok(())
    }

    /// Throws a staged layer away.
    pub(super) fn forget_layer(&self, diff_id: &Digest) -> Result<()> {
        let staged = self.staged.lock().layers.remove(diff_id);
        if staged { remove_tree(&self.staged_layer(diff_id)) } else { Ok(()) }
    }

    /// Adds an image made of a config and layers that were added, or are in the store. The config's `rootfs` is set to
    /// the layers' diff ids; they come **bottom first**. Returns the image's id.
    ///
    /// # Errors
    /// When the config is none, or can't be written.
    pub fn add_image(&self, mut config: Value, layers: &[AddedLayer], names: &[ImageName]) -> Result<Digest> {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        let text = config.to_string();
        let refused = |what| StoreError::Refused(format!("the new image's config {what}"));
        Config::parse(text.as_bytes()).map_err(refused)?;
        let config = self.add_bytes(text.as_bytes())?;
        self.add_composed(config, layers, names)?;
        Ok(config.digest)
    }

    /// Adds an image whose config is in the store or staged, with a manifest made for its layers.
    pub(crate) fn add_composed(
        &self,
        config: Blob,
        layers: &[AddedLayer],
        names: &[ImageName],
    ) -> Result<()> {
        let manifest = manifest_of(config, layers);
        let manifest = self.add_bytes(manifest.to_string().as_bytes())?;
        self.add_manifest(config.digest, manifest, MANIFEST, names);
        Ok(())
    }

    /// Gives names to an image that was in the store when this began. Its blobs are still there, since nothing is deleted
    /// meanwhile; that somebody takes it out of the index meanwhile does no harm.
    ///
    /// # Errors
    /// When its manifest can't be looked at.
    pub(crate) fn name_again(&self, image: &Image, names: &[ImageName]) -> Result<()> {
        let size = self.store.blob_size(&image.manifest_digest)?.unwrap_or_default();
        let media_type = image.manifest.media_type().as_ref().map_or(MANIFEST, AsRef::as_ref);
        self.add_manifest(image.id, Blob { digest: image.manifest_digest, size }, media_type, names);
        Ok(())
    }

    /// Adds an image whose blobs are all in the store or staged.
    pub(crate) fn add_manifest(&self, id: Digest, manifest: Blob, media_type: &str, names: &[ImageName]) {
        let media_type = media_type.to_owned();
        self.staged.lock().images.push(Pending { id, manifest, media_type, names: names.to_vec() });
    }
}

impl Store {
    /// Returns whether all blobs of an image are seen, by name and size.
    pub(crate) fn is_complete(&self, image: &Image) -> bool {
        image.manifest.layers().iter().all(|layer| {
            let size = Digest::try_from(layer.digest()).map(|digest| self.blob_size(&digest));
            matches!(size, Ok(Ok(Some(size))) if size == layer.size())
        })
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            log::warn!("{error}; `unionmount prune` will try again");
        }
    }
}

/// Removes a directory of the store with all that is in it, whatever rights it has.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    remove::tree(path).map_err(|left| StoreError::io("remove it", left.name)(left.errno))
}

/// Returns the manifest of a new image.
fn manifest_of(config: Blob, layers: &[AddedLayer]) -> Value {
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| {
            let media_type = format!("{LAYER}{}", layer.compression.suffix());
            let mut descriptor =
                json!({ "mediaType": media_type, "digest": layer.blob.digest, "size": layer.blob.size });
            if let Some(content) = layer.content {
                // Annotations are maps of strings.
                descriptor["annotations"] = json!({ CONTENT_SIZE: content.to_string() });
            }
            descriptor
        })
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config.digest, "size": config.size },
        "layers": layers,
    })
}

/// Compares a blob with what was promised of it.
pub(crate) fn check(expected: Blob, found: Blob) -> Result<()> {
    let Blob { digest, size } = expected;
    if found.size != size {
        return Err(StoreError::Refused(format!(
            "blob {digest}: has {} bytes instead of {size}",
            found.size
        )));
    }
    if found.digest != digest {
        return Err(StoreError::Refused(format!(
            "blob {digest}: its content has the digest {}",
            found.digest
        )));
    }
    Ok(())
}

/// A file whose long runs of zeros take no space: layers hold the holes of sparse files as zeros.
#[derive(Debug)]
struct Sparse {
    file: File,
    end: u64,
}

impl Write for Sparse {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_sparsely(self.file.as_fd(), self.end, bytes)?;
        self.end += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A blob on its way to disk, hashed and counted.
#[derive(Debug)]
pub struct BlobWriter {
    file: Hashing<Sparse>,
    path: PathBuf,
}

impl BlobWriter {
    /// Returns where it is written.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns how many bytes were written.
    pub fn size(&self) -> u64 {
        self.file.count()
    }

    /// Ends it: where the file lies, and what it turned out to be.
    pub(crate) fn finish(self) -> Result<(PathBuf, Blob)> {
        let (Sparse { file, .. }, digest, size) = self.file.finish();
        // It may end in a hole.
        file.set_len(size).map_err(StoreError::io("set the length of", &self.path))?;
        Ok((self.path, Blob { digest, size }))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
