//! What the store has to know of containers: which image each needs.
//!
//! The image stands in the container's record, and once more as the target of the symbolic link `image` beside it, so that
//! a record that is damaged still keeps its image. A container with that link has a record with a checksum.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::Store;
use super::checked::unseal;
use super::index::read_bounded;
use crate::error::unknown;
use crate::image::digest::Digest;
use crate::image::error::{Result, StoreError};

/// The link that holds the image's id.
pub(crate) const IMAGE_LINK: &str = "image";

/// A container, as far as its image is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerUse {
    /// The container's id, its directory's name.
    pub id: String,
    /// What the user calls it.
    pub name: Option<String>,
    /// The image it was made from.
    pub image: Digest,
    /// It reads the image's layers as they came.
    pub lazy: bool,
}

/// A container whose record can't be read or believed.
#[derive(Debug)]
pub struct BrokenContainer {
    /// The container's id, its directory's name.
    pub id: String,
    /// Why.
    pub error: StoreError,
    /// The image it was made from, where that is known all the same.
    pub image: Option<Digest>,
}

/// All containers of a store.
#[derive(Debug, Default)]
pub struct Containers {
    /// Those with a good record.
    pub known: Vec<ContainerUse>,
    /// The others.
    pub broken: Vec<BrokenContainer>,
}

impl Containers {
    /// Returns the first container of unknown image: while there is one, any image might be needed.
    pub fn unknown(&self) -> Option<&BrokenContainer> {
        self.broken.iter().find(|container| container.image.is_none())
    }

    /// Returns the images that containers need, as far as they are known.
    pub fn images(&self) -> impl Iterator<Item = &Digest> {
        let broken = self.broken.iter().filter_map(|container| container.image.as_ref());
        self.known.iter().map(|container| &container.image).chain(broken)
    }
}

#[derive(Deserialize)]
struct IndexedContainer {
    image: Digest,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    settings: IndexedSettings,
}

#[derive(Default, Deserialize)]
struct IndexedSettings {
    #[serde(default)]
    lazy: bool,
}

impl Store {
    /// Returns all containers: the directories below `containers/` with a `config.json`, whose field `image` is an
    /// image's id. One that can't be read takes none of the others with it.
    ///
    /// # Errors
    /// When they can't be listed.
    pub fn container_uses(&self) -> Result<Containers> {
        let dir = self.containers_dir();
        let mut found = Containers::default();
        for entry in fs::read_dir(&dir).map_err(StoreError::io("list it", &dir))? {
            let entry = entry.map_err(StoreError::io("list it", &dir))?;
            let Some(id) = entry.file_name().to_str().map(str::to_owned) else { continue };
            match container_record(&entry.path()) {
                Ok(None) => {}
                Ok(Some(value)) => match serde_json::from_value::<IndexedContainer>(value) {
                    Ok(record) => {
                        let IndexedContainer { image, name, settings } = record;
                        found.known.push(ContainerUse { id, name, image, lazy: settings.lazy });
                    }
                    Err(error) => {
                        found.broken.push(broken(&entry.path(), id, not_understood(&entry.path(), &error)))
                    }
                },
                Err(error) => found.broken.push(broken(&entry.path(), id, error)),
            }
        }
        found.known.sort_by(|a, b| a.id.cmp(&b.id));
        found.broken.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }
}

fn broken(dir: &Path, id: String, error: StoreError) -> BrokenContainer {
    BrokenContainer { id, error, image: linked_image(dir) }
}

/// Returns the image of the container in `dir`, as its link tells it.
pub(crate) fn linked_image(dir: &Path) -> Option<Digest> {
    fs::read_link(dir.join(IMAGE_LINK)).ok()?.to_str()?.parse().ok()
}

/// Reads the record of the container in `dir`; `None` when there is none (any more).
pub(crate) fn container_record(dir: &Path) -> Result<Option<Value>> {
    let path: PathBuf = dir.join("config.json");
    let text = match read_bounded(&path) {
        Err(StoreError::Io { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        text => text?,
    };
    let image = linked_image(dir);
    let value = unseal(&text, image.is_some()).map_err(|what| no_record(dir, what))?;
    match image {
        Some(image) if value["image"] != serde_json::json!(image) => {
            Err(no_record(dir, format!("names another image than {image}, which the link beside it names")))
        }
        _ => Ok(Some(value)),
    }
}

/// Says why the record of the container in `dir` can't be understood: a later program wrote it, or it is damaged.
pub(crate) fn not_understood(dir: &Path, error: &serde_json::Error) -> StoreError {
    match unknown(error) {
        Some(what) => StoreError::Later { path: dir.join("config.json"), what },
        None => no_record(dir, error),
    }
}

/// Says that the record of the container in `dir` is damaged, and the ways out.
fn no_record(dir: &Path, what: impl std::fmt::Display) -> StoreError {
    let id = dir.file_name().unwrap_or_default().to_string_lossy();
    StoreError::damaged(
        dir.join("config.json"),
        format!("is no record of a container: {what}; `unionmount rm -f {id}` removes the container"),
    )
}
