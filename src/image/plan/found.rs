//! An image of a source: as it is found, and with all of its documents.

use crate::image::digest::Digest;
use crate::image::document::Entry;
use crate::image::error::{Result, StoreError};
use crate::image::name::ImageName;
use crate::image::store::Blob;

/// An image that the source holds.
pub(in crate::image) struct PlannedImage {
    /// The digest of its config.
    pub id: Digest,
    /// The config.
    pub config: Vec<u8>,
    /// The manifest and its media type, where it can be kept as it is.
    pub manifest: Option<(Vec<u8>, String)>,
    /// The layers, bottom first.
    pub layers: Vec<PlannedLayer>,
    /// The names.
    pub names: Vec<ImageName>,
}

/// A layer that the source says it holds.
pub(in crate::image) struct PlannedLayer {
    /// The file in the source.
    pub file: String,
    /// What the manifest says of it.
    pub blob: Option<Blob>,
    /// What the config says of it.
    pub diff_id: Digest,
    /// What the manifest says it is.
    pub media_type: Option<String>,
}

impl PlannedLayer {
    /// Returns what to call it in messages.
    pub(in crate::image) fn name(&self) -> String {
        self.blob.map_or_else(|| self.file.clone(), |blob| blob.digest.to_string())
    }
}

/// An image that was found, and of which nothing is kept as yet but what tells it from others.
pub(super) struct Found {
    pub id: Digest,
    pub names: Vec<ImageName>,
    /// What else it is known by: its manifest, and the index that lists it.
    pub digests: Vec<Digest>,
    /// How well it runs here; `None`: not at all.
    pub rank: Option<u32>,
    pub place: FoundIn,
}

/// Where its documents are.
pub(super) enum FoundIn {
    /// The entry that lists it, and its manifest.
    Oci(Entry, Digest),
    /// Its words in `manifest.json`.
    Docker(Listed),
}

/// An image of `manifest.json` with its names, which are all that is known of it before its config is read.
pub(super) struct Listed {
    pub names: Vec<ImageName>,
    /// Files of the source.
    pub config: String,
    pub layers: Vec<String>,
}

/// What is done with what is wrong with one image: it is told, or, where it may not be the one that is meant, noted.
pub(super) type OnError<'a> = &'a mut dyn FnMut(StoreError) -> Result<()>;
