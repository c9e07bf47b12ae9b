//! Unpacked layers: a directory each, made once, shared by every image and container that has the layer.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::index::read_bounded;
use super::lock::{Access, Lock};
use super::{AddedLayer, Image, Staging, Store};
use crate::image::compression::Compression;
use crate::image::digest::Digest;
use crate::image::error::{Result, StoreError};

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

impl Store {
    /// The record of an unpacked layer; `None` when it isn't unpacked.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn layer_record(&self, diff_id: &Digest) -> Result<Option<LayerRecord>> {
        let path = self.layer_dir(diff_id).join("layer.json");
        if !path.exists() {
            return Ok(None);
        }
        let record = serde_json::from_slice(&read_bounded(&path)?);
        record
            .map(Some)
            .map_err(|error| StoreError::damaged(&path, format!("is no record of a layer: {error}")))
    }

    /// The trees of an image's layers. Those that are not unpacked (another program has written the image into the store)
    /// are unpacked now.
    ///
    /// # Errors
    /// When a blob is missing or damaged, or there is no room.
    pub fn layers(&self, image: &Image) -> Result<UnpackedLayers> {
        self.unpack_missing(image)?;
        let mut layers = UnpackedLayers { paths: Vec::new(), pins: Vec::new() };
        for diff_id in image.diff_ids.iter().rev() {
            let dir = self.layer_dir(diff_id);
            let pin = File::open(&dir).map_err(StoreError::io("open it", &dir))?;
            let free = Lock::on(&pin, Access::Shared).map_err(StoreError::io("lock it", &dir))?;
            if !free {
                return Err(StoreError::InUse(format!(
                    "{}: is just being removed; try again",
                    dir.display()
                )));
            }
            layers.pins.push(pin.into());
            layers.paths.push(dir.join("diff"));
        }
        Ok(layers)
    }

    fn unpack_missing(&self, image: &Image) -> Result<()> {
        for diff_id in &image.diff_ids {
            if self.layer_record(diff_id)?.is_none() {
                return Err(StoreError::Refused(format!("layer {diff_id} is not unpacked")));
            }
        }
        Ok(())
    }
}

impl Staging<'_> {
    /// Adds a layer: `write` writes its tar, uncompressed, which is hashed and stored on the way and unpacked afterwards.
    ///
    /// # Errors
    /// Those of `write`, and of writing to the store.
    pub fn add_layer(&self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<AddedLayer> {
        let mut blob = self.blob()?;
        write(&mut blob)?;
        let blob = self.keep(blob, None)?;
        let layer = AddedLayer { diff_id: blob.digest, blob, compression: Compression::None };
        Ok(layer)
    }
}
