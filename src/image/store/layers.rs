//! Unpacked layers: a directory each, made once, shared by every image and container that has the layer.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::index::read_bounded;
use super::readers::{Bounded, CancelReader, ErrorReader, TeeReader};
use super::staging::check;
use super::{AddedLayer, Blob, BlobWriter, Image, Staging, Store, make_dir};
use crate::image::compression::{Compression, decode, peek};
use crate::image::digest::{Digest, Hashing};
use crate::image::error::{Result, StoreError};
use crate::image::layer::apply::stream_limit;
use crate::image::layer::{
    Applied, ApplyOptions, LayerError, Limits, Ownership, Written, apply, hides_all_below,
};
use crate::image::read_ahead::{self, ReadAheadThread};
use crate::sys::flock::Access;
use crate::sys::flock::try_lock;

/// What is known of an unpacked layer: `layer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The digest of the layer's tar.
    pub diff_id: Digest,
    /// The size of the tar.
    pub tar_size: u64,
    /// Bytes of all files: what Docker calls the layer's size.
    pub size: u64,
    /// How many entries the tar has.
    pub entries: u64,
    /// How many directories it has that the tar doesn't name, its root apart.
    #[serde(default)]
    pub implied: u64,
    /// Whether owners, modes and devices are kept in `user.containers.override_stat`.
    pub override_stat: bool,
}

/// The layers of an image, ready to be mounted.
#[derive(Debug)]
pub struct UnpackedLayers {
    /// The trees, **topmost first**, as a mount wants them.
    pub paths: Vec<PathBuf>,
    /// No `rmi` and no `prune` removes a layer while this is held. Keep it as long as the layers are mounted.
    pub pins: Vec<OwnedFd>,
}

/// A layer that is to be taken into the store.
pub(crate) struct Take<'a> {
    /// What its blob must be, where that is known beforehand.
    pub blob: Option<Blob>,
    /// What its tar must be, where that is known beforehand.
    pub diff_id: Option<Digest>,
    /// Whether the blob is to be stored; else its content is only read.
    pub store: bool,
    /// Whether the tree is to be made; else the digest of the tar is only checked.
    pub unpack: bool,
    /// Against bombs.
    pub limits: Limits,
    /// Hears of every block that was read.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Says that all is in vain.
    pub stop: &'a AtomicBool,
}

impl Store {
    /// Returns the record of an unpacked layer; `None` when it isn't unpacked.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn layer_record(&self, diff_id: &Digest) -> Result<Option<LayerRecord>> {
        let path = self.layer_dir(diff_id).join("layer.json");
        let text = match read_bounded(&path) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            text => text?,
        };
        let record = serde_json::from_slice(&text);
        record
            .map(Some)
            .map_err(|error| StoreError::damaged(&path, format!("is no record of a layer: {error}")))
    }

    /// Returns the trees of an image's layers. Those that are not unpacked (another program has written the image into
    /// the store) are unpacked now.
    ///
    /// A layer that an image has twice is given once, where it is topmost: what it shows there hides whatever the same
    /// layer shows further down. A layer that hides all below it is the last. An image's frame is the first.
    ///
    /// # Errors
    /// When a blob is missing or damaged, or there is no room.
    pub fn layers(&self, image: &Image) -> Result<UnpackedLayers> {
        self.layers_within(image, Limits::default())
    }

    /// Does as [`Store::layers`], and unpacks no more than that.
    ///
    /// # Errors
    /// As [`Store::layers`].
    pub fn layers_within(&self, image: &Image, limits: Limits) -> Result<UnpackedLayers> {
        self.unless_gone(image, self.layers_of(image, limits))
    }

    fn layers_of(&self, image: &Image, limits: Limits) -> Result<UnpackedLayers> {
        // Until they are pinned, `prune --unpacked` could take away what was just unpacked.
        let _kept = self.keep_all()?;
        self.unpack_missing(image, limits)?;
        let mut layers = UnpackedLayers { paths: Vec::new(), pins: Vec::new() };
        // Whether a layer implies directories, and whether that layer has another one below it.
        let (mut implying, mut lowest_implies) = (false, false);
        for (at, diff_id) in image.diff_ids.iter().enumerate().rev() {
            if image.diff_ids[at + 1..].contains(diff_id) {
                continue;
            }
            layers.pins.push(self.pin_layer(diff_id)?);
            implying |= lowest_implies;
            lowest_implies = self.layer_record(diff_id)?.is_some_and(|record| record.implied > 0);
            let tree = self.layer_dir(diff_id).join("diff");
            let root = File::open(&tree).map_err(StoreError::io("open it", &tree))?;
            let last = hides_all_below(root.as_fd()).map_err(StoreError::io("read its marks", &tree))?;
            layers.paths.push(tree);
            if last {
                break;
            }
        }
        if let Some(frame) = self.frame(image, &layers.paths, implying)? {
            layers.pins.push(self.pin_layer(&image.id)?);
            layers.paths.insert(0, frame);
        }
        Ok(layers)
    }

    /// Returns the blobs of an image's layers and the diff ids that they must have, **topmost first**, to be mounted as they are; `None`
    /// when all layers are unpacked already, whose trees serve better. A blob that is open stays readable when it is removed.
    ///
    /// # Errors
    /// When a blob is missing.
    pub fn packed_layers(&self, image: &Image) -> Result<Option<Vec<(PathBuf, Digest)>>> {
        Ok(if self.are_all_unpacked(image) { None } else { Some(self.blobs_of_layers(image)?) })
    }

    /// Tells whether all layers of an image are unpacked.
    pub fn are_all_unpacked(&self, image: &Image) -> bool {
        self.unpacked_layers(image).len() == image.diff_ids.len()
    }

    /// Returns how many of an image's layers are unpacked, in words: `yes`, `no`, or `2 of 5`.
    pub fn told_as_unpacked(&self, image: &Image) -> String {
        match (self.unpacked_layers(image).len(), image.diff_ids.len()) {
            (some, all) if some == all => "yes".to_owned(),
            (0, _) => "no".to_owned(),
            (some, all) => format!("{some} of {all}"),
        }
    }

    /// Returns the diff ids of an image's layers that are unpacked, the lowest first.
    pub fn unpacked_layers(&self, image: &Image) -> Vec<Digest> {
        let is_unpacked = |diff_id: &&Digest| matches!(self.layer_record(diff_id), Ok(Some(_)));
        image.diff_ids.iter().filter(is_unpacked).copied().collect()
    }

    /// Returns the blobs of an image's layers and the diff ids that they must have, **topmost first**.
    ///
    /// # Errors
    /// When a blob is missing.
    pub fn blobs_of_layers(&self, image: &Image) -> Result<Vec<(PathBuf, Digest)>> {
        let mut blobs = Vec::new();
        let layers = image.diff_ids.iter().zip(image.manifest.layers());
        for (at, (diff_id, layer)) in layers.enumerate().rev() {
            // What is given twice shows all that it has where it is topmost.
            if image.diff_ids[at + 1..].contains(diff_id) {
                continue;
            }
            let path = self.blob_path(&Digest::try_from(layer.digest())?);
            fs::metadata(&path).map_err(StoreError::io("look at it", &path))?;
            blobs.push((path, *diff_id));
        }
        Ok(blobs)
    }

    fn pin_layer(&self, id: &Digest) -> Result<OwnedFd> {
        let dir = self.layer_dir(id);
        let pin = File::open(&dir).map_err(StoreError::io("open it", &dir))?;
        match try_lock(&pin, Access::Shared).map_err(StoreError::io("lock it", &dir))? {
            true => Ok(pin.into()),
            false => Err(StoreError::InUse(format!("{}: is just being removed; try again", dir.display()))),
        }
    }

    fn unpack_missing(&self, image: &Image, limits: Limits) -> Result<()> {
        let mut staging = None;
        for (diff_id, layer) in image.diff_ids.iter().zip(image.manifest.layers()) {
            match self.layer_record(diff_id) {
                Ok(Some(_)) => continue,
                Ok(None) => {}
                // Made again; the old one is set aside when the new one is there.
                Err(error) if error.is_damage() => log::warn!("{error}; the layer is unpacked again"),
                Err(error) => return Err(error),
            }
            let staging = match &staging {
                Some(staging) => staging,
                None => staging.insert(self.begin()?),
            };
            let blob = Blob { digest: Digest::try_from(layer.digest())?, size: layer.size() };
            let take = Take {
                blob: Some(blob),
                diff_id: Some(*diff_id),
                store: false,
                unpack: true,
                limits,
                progress: &|_| {},
                stop: &AtomicBool::new(false),
            };
            let path = self.blob_path(&blob.digest);
            let file = File::open(&path).map_err(StoreError::io("open it", &path))?;
            staging.ingest(file, take).map_err(|error| match error {
                StoreError::Refused(what) => StoreError::damaged(&path, what),
                StoreError::TooLarge(what) => StoreError::TooLarge(format!(
                    "{}: {what}; if that is meant, unionmount unpack --max-size SIZE --max-entries NUMBER {}",
                    path.display(),
                    image.id.short()
                )),
                StoreError::Source(error) => StoreError::io("read it", &path)(error),
                other => other,
            })?;
        }
        staging.map_or(Ok(()), Staging::publish)
    }
}

impl Staging<'_> {
    /// Adds a layer: `write` writes its tar, uncompressed, which is hashed and stored on the way. It is unpacked when it is
    /// first needed ([`Store::layers`]), unless `Staging::unpack_blob` does it now.
    ///
    /// # Errors
    /// Those of `write`, and of writing to the store.
    pub fn add_layer(&self, write: impl FnOnce(&mut dyn Write) -> Result<Written>) -> Result<AddedLayer> {
        let mut blob = self.blob()?;
        let written = write(&mut blob)?;
        let blob = self.keep(blob, None)?;
        let content = Some(written.content);
        Ok(AddedLayer { diff_id: blob.digest, blob, compression: Compression::None, content })
    }

    /// Unpacks a layer whose uncompressed blob is in the store or staged.
    pub(crate) fn unpack_blob(&self, blob: Blob, limits: Limits) -> Result<()> {
        if self.has_staged_layer(&blob.digest) || self.store().layer_record(&blob.digest)?.is_some() {
            return Ok(());
        }
        let dir = self.layer_dir()?;
        let tar = self.open_blob(&blob.digest)?;
        let applied = self.apply(BufReader::with_capacity(256 << 10, tar), &dir, limits)?;
        self.finish_layer(dir, blob.digest, blob.size, applied)
    }

    /// Takes a layer into the store: one thread reads, hashes, stores and decompresses, this one hashes the tar and unpacks
    /// it. All digests and sizes are checked.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for what is wrong with the layer.
    pub(crate) fn ingest(&self, source: impl Read + Send, take: Take<'_>) -> Result<AddedLayer> {
        if take.blob.is_some() {
            return self.ingest_stream(source, take, true);
        }
        // Nothing promises the bytes of the blob, so one that no image may hold as it is is stored decompressed.
        let refused = |error: io::Error| StoreError::Refused(format!("cannot be read: {error}"));
        let source = BufReader::with_capacity(256 << 10, source);
        let (compression, source) = peek(source).map_err(refused)?;
        if !compression.is_foreign() {
            return self.ingest_stream(source, take, true);
        }
        let (_, inner) = decode(source).map_err(refused)?;
        let left = stream_limit(take.limits);
        self.ingest_stream(Bounded { inner, left }, take, false)
    }

    /// Does as [`Staging::ingest`]; without `compressed`, the source is the tar whatever it looks like.
    fn ingest_stream(
        &self,
        source: impl Read + Send,
        take: Take<'_>,
        compressed: bool,
    ) -> Result<AddedLayer> {
        let writer = take.store.then(|| self.blob()).transpose()?;
        let (feeder, ahead) = read_ahead::pair();
        // Set before the first block goes over: the blob's digest is the tar's too, and need not be computed twice.
        let plain = AtomicBool::new(false);
        // What the machine failed at on the way, which says nothing of the layer.
        let failure = OnceLock::new();
        let taken = std::thread::scope(|scope| {
            let (plain, failure) = (&plain, &failure);
            let Take { progress, stop, blob, .. } = take;
            let most = blob.map_or(u64::MAX, |blob| blob.size);
            let tee = TeeReader { source, writer, most, over: false, progress, stop, failure };
            let reading = std::thread::Builder::new()
                .spawn_scoped(scope, move || read_blob(tee, compressed, feeder, plain))
                .map_err(StoreError::io("start a thread for what comes into it", self.store().root()))?;
            let unpacked = self.unpack_stream(ahead, plain, &take);
            let read = match reading.join() {
                Ok(read) => read,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            self.keep_ingested(&take, read, unpacked)
        });
        match failure.into_inner() {
            Some(failure) if taken.is_err() => Err(failure),
            _ => taken,
        }
    }

    /// Checks what was read and unpacked, and keeps it if all of it is what was expected.
    fn keep_ingested(
        &self,
        take: &Take<'_>,
        read: Option<ReadBlob>,
        unpacked: Result<UnpackedTar>,
    ) -> Result<AddedLayer> {
        if let (Some(expected), Some(read)) = (take.blob, &read) {
            check(expected, read.blob)?;
        }
        let UnpackedTar { dir, tar, applied } = unpacked?;
        let Some(ReadBlob { writer, blob, compression }) = read else {
            return Err(StoreError::Refused("the blob cannot be read to its end".into()));
        };
        let tar = tar.unwrap_or(blob);
        if let Some(diff_id) = take.diff_id
            && tar.digest != diff_id
        {
            return Err(StoreError::Refused(format!(
                "its content has the diff id {} where the image's config says {diff_id}",
                tar.digest
            )));
        }
        if let Some(writer) = writer {
            self.keep(writer, Some(blob))?;
        }
        if let Some(dir) = dir {
            self.finish_layer(dir, tar.digest, tar.size, applied)?;
        }
        Ok(AddedLayer { diff_id: tar.digest, blob, compression, content: None })
    }

    /// Makes of the uncompressed tar what is to become of it: the second half of [`Staging::ingest`].
    fn unpack_stream(&self, tar: impl Read, plain: &AtomicBool, take: &Take<'_>) -> Result<UnpackedTar> {
        let tar = Bounded { inner: tar, left: stream_limit(take.limits) };
        let mut tar = CancelReader { inner: Hashing::new(tar), plain };
        let mut applied = Applied::default();
        let mut dir = None;
        if take.unpack {
            let made = self.layer_dir()?;
            applied = self.apply(&mut tar, &made, take.limits)?;
            dir = Some(made);
        }
        io::copy(&mut tar, &mut io::sink()).map_err(|error| StoreError::Refused(error.to_string()))?;
        let (_, digest, size) = tar.inner.finish();
        let tar = (!plain.load(Ordering::Acquire)).then_some(Blob { digest, size });
        Ok(UnpackedTar { dir, tar, applied })
    }

    /// Returns an empty directory for a layer, with its tree.
    pub(super) fn layer_dir(&self) -> Result<PathBuf> {
        let dir = self.fresh("layer");
        let tree = dir.join("diff");
        make_dir(&tree)?;
        // Where the tar says nothing of the root, it is as Docker makes it, whatever the umask.
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o755))
            .map_err(StoreError::io("chmod", &tree))?;
        Ok(dir)
    }

    fn apply(&self, tar: impl Read, dir: &std::path::Path, limits: Limits) -> Result<Applied> {
        let tree = dir.join("diff");
        let root = File::open(&tree).map_err(StoreError::io("open it", &tree))?;
        let options = ApplyOptions { limits, ..ApplyOptions::default() };
        apply(tar, root.as_fd(), &options).map_err(|error| match error {
            // Says nothing of the layer, but of where it was to go.
            LayerError::Os { entry, what, errno } => {
                StoreError::io(what, tree.join(OsStr::from_bytes(&entry)))(errno)
            }
            LayerError::TooManyEntries(_) | LayerError::TooManyBytes { .. } => {
                StoreError::TooLarge(error.to_string())
            }
            wrong => StoreError::Refused(wrong.to_string()),
        })
    }

    pub(super) fn finish_layer(
        &self,
        dir: PathBuf,
        diff_id: Digest,
        tar_size: u64,
        applied: Applied,
    ) -> Result<()> {
        let override_stat = Ownership::of_this_process() == Ownership::OverrideStat;
        let Applied { entries, bytes: size, implied, .. } = applied;
        let record = LayerRecord { diff_id, tar_size, size, entries, implied, override_stat };
        let path = dir.join("layer.json");
        let text =
            serde_json::to_vec(&record).map_err(io::Error::from).map_err(StoreError::io("write", &path))?;
        // Whatever the umask.
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&path);
        file.and_then(|mut file| file.write_all(&text)).map_err(StoreError::io("write", &path))?;
        self.keep_layer(&dir, diff_id)
    }
}

/// A blob that was read to its end.
struct ReadBlob {
    /// What holds it, if it is to be stored.
    writer: Option<BlobWriter>,
    blob: Blob,
    compression: Compression,
}

/// What became of an uncompressed tar.
struct UnpackedTar {
    dir: Option<PathBuf>,
    /// Its digest, where it isn't the blob's.
    tar: Option<Blob>,
    applied: Applied,
}

/// Reads, hashes and stores a blob, and hands its content over, decompressed if it is `compressed` and looks so. Says
/// whether it was `plain` before the first block goes over. `None`: it can't be read to its end.
fn read_blob<R: Read + Send>(
    tee: TeeReader<'_, R>,
    compressed: bool,
    feeder: ReadAheadThread,
    plain: &AtomicBool,
) -> Option<ReadBlob> {
    let mut tee = Hashing::new(tee);
    let mut compression = Compression::None;
    {
        let input = BufReader::with_capacity(256 << 10, &mut tee);
        let decoded = match compressed {
            true => decode(input),
            false => Ok((Compression::None, Box::new(input) as _)),
        };
        let decoded: Box<dyn Read + Send + '_> = match decoded {
            Ok((found, reader)) => {
                compression = found;
                plain.store(found == Compression::None, Ordering::Release);
                reader
            }
            Err(error) => Box::new(ErrorReader(Some(error))),
        };
        feeder.feed(decoded);
    }
    // Where the tar is damaged, the digest of the whole tells whether the blob is; and what is behind the end of a
    // compressed stream belongs to the blob as well.
    io::copy(&mut tee, &mut io::sink()).ok()?;
    let (tee, digest, size) = tee.finish();
    Some(ReadBlob { writer: tee.writer, blob: Blob { digest, size }, compression })
}
