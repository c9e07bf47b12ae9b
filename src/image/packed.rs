//! An image where it lies: in a layout, or in an archive. Its layers are read as they are, and nothing comes into a store.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::describe::{Step, steps};
use super::digest::Digest;
use super::document::{Config, check_layer_type};
use super::error::{Result, StoreError};
use super::plan::{PlannedImage, choose, is_image};
use super::source::{ImageSource, open_within};

pub use super::plan::Wanted;
pub use super::source::ImageFiles;

/// A layer of an image, where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedLayer {
    /// Which it is, counted from the bottom: 1 is the lowest.
    pub number: usize,
    /// The file that it is in the layout or the archive.
    pub file: String,
    /// The digest of that, where a manifest tells it.
    pub blob: Option<Digest>,
    /// The digest of its tar.
    pub diff_id: Digest,
    /// What the step did that made it; empty where nobody tells.
    pub step: String,
    /// The image that it is of: the digest of its config.
    pub image: Digest,
}

/// No stack has more; Docker has 127 at most.
const MOST_LAYERS: usize = 500;

/// An OCI layout, open.
#[derive(Debug)]
pub struct Layout {
    dir: File,
    path: PathBuf,
}

impl Layout {
    /// Takes a directory that is open.
    pub fn new(dir: File, path: &Path) -> Layout {
        Layout { dir, path: path.to_owned() }
    }

    /// Returns the layers of an image, **topmost first**.
    ///
    /// # Errors
    /// When it isn't there or is damaged, or there are several.
    pub fn layers(&self, wanted: &Wanted) -> Result<Vec<PackedLayer>> {
        let dir = self.dir.try_clone().map_err(StoreError::io("open it", &self.path))?;
        let source = ImageSource::directory(dir, self.path.display().to_string());
        layers(&source, &choose(&source, wanted)?)
    }

    /// Opens the file of a layer; where it is told too.
    ///
    /// # Errors
    /// When it isn't there.
    pub fn open(&self, layer: &PackedLayer) -> Result<(File, PathBuf)> {
        let path = self.path.join(&layer.file);
        let file = open_within(&self.dir, &layer.file).map_err(StoreError::io("open it", &path))?;
        Ok((file, path))
    }
}

/// Tells whether these are the files of an image.
pub fn holds_image(files: &dyn ImageFiles) -> bool {
    is_image(files)
}

/// Returns the layers of an image among these files, **topmost first**.
///
/// # Errors
/// When it isn't there or is damaged, or there are several.
pub fn layers_in(files: Arc<dyn ImageFiles>, wanted: &Wanted) -> Result<Vec<PackedLayer>> {
    let source = ImageSource::given(files);
    layers(&source, &choose(&source, wanted)?)
}

fn layers(source: &ImageSource, image: &PlannedImage) -> Result<Vec<PackedLayer>> {
    if image.layers.len() > MOST_LAYERS {
        let count = image.layers.len();
        return Err(
            source.wrong(format!("holds an image of {count} layers, and at most {MOST_LAYERS} are mounted"))
        );
    }
    let config = Config::parse(&image.config).map_err(|what| source.wrong(format!("its config {what}")))?;
    let made = steps(&config.typed, &config.diff_ids);
    let mut titles = made.iter().filter(|step| step.diff_id.is_some()).map(Step::title);
    let mut layers = Vec::new();
    for (at, layer) in image.layers.iter().enumerate() {
        let number = at + 1;
        let refused = |what: String| source.wrong(format!("layer {number} ({}) {what}", layer.name()));
        layer.media_type.as_deref().map_or(Ok(()), check_layer_type).map_err(refused)?;
        layers.push(PackedLayer {
            number,
            file: layer.file.clone(),
            blob: layer.blob.map(|blob| blob.digest),
            diff_id: layer.diff_id,
            step: titles.next().unwrap_or_default(),
            image: image.id,
        });
    }
    if layers.is_empty() {
        return Err(source.wrong("holds an image without layers"));
    }
    // What is given twice shows all that it has where it is topmost.
    let ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
    layers.retain(|layer| !ids[layer.number..].contains(&layer.diff_id));
    layers.reverse();
    Ok(layers)
}
