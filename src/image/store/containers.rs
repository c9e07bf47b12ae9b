//! What the store has to know of containers: which image each needs.

use std::fs;

use serde::Deserialize;

use super::Store;
use super::index::read_bounded;
use crate::image::digest::Digest;
use crate::image::error::{Result, StoreError};

/// A container, as far as its image is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerUse {
    /// The container's id, its directory's name.
    pub id: String,
    /// What the user calls it.
    pub name: Option<String>,
    /// The image it was made from.
    pub image: Digest,
}

#[derive(Deserialize)]
struct Record {
    image: Digest,
    #[serde(default)]
    name: Option<String>,
}

impl Store {
    /// All containers: the directories below `containers/` with a `config.json`, whose field `image` is an image's id.
    ///
    /// # Errors
    /// When one can't be read. Nothing may be deleted then, since it might need anything.
    pub fn container_uses(&self) -> Result<Vec<ContainerUse>> {
        let dir = self.containers_dir();
        let mut uses = Vec::new();
        for entry in fs::read_dir(&dir).map_err(StoreError::io("list it", &dir))? {
            let entry = entry.map_err(StoreError::io("list it", &dir))?;
            let path = entry.path().join("config.json");
            let Some(id) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if !path.exists() {
                continue;
            }
            let record: Record = serde_json::from_slice(&read_bounded(&path)?).map_err(|error| {
                StoreError::damaged(&path, format!("is no record of a container: {error}"))
            })?;
            uses.push(ContainerUse { id, name: record.name, image: record.image });
        }
        uses.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(uses)
    }

    /// The containers that use an image.
    ///
    /// # Errors
    /// As [`Store::container_uses`].
    pub fn users_of(&self, image: &Digest) -> Result<Vec<ContainerUse>> {
        Ok(self.container_uses()?.into_iter().filter(|container| container.image == *image).collect())
    }
}
