//! index.json: which images there are, and what they are called.
//!
//! Other programs write this file too, so whatever they put into it is kept: descriptors of things that are no images,
//! annotations, a nested index. Names stand in the annotation `org.opencontainers.image.ref.name`, one descriptor each; where a
//! manifest was pulled from stands in an annotation of the index.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Once;

use serde_json::{Value, json};

use super::Store;
use crate::image::digest::Digest;
use crate::image::document::{self, Entry, MAX_DOCUMENT, REF_NAME, too_large};
use crate::image::error::{Result, StoreError};
use crate::image::name::ImageName;
use crate::sys::flock::Access;

/// The most places that are noted of one manifest.
const MOST_ORIGINS: usize = 32;

/// What index.json holds.
#[derive(Debug, Clone)]
pub struct Index {
    document: Value,
}

impl Index {
    /// Returns the index that a document is.
    pub(super) fn of(document: Value) -> Index {
        Index { document }
    }

    /// Returns an index without images.
    pub(super) fn empty() -> Index {
        Index {
            document: json!({
                "schemaVersion": 2,
                "mediaType": oci_spec::image::MediaType::ImageIndex.as_ref(),
                "manifests": [],
            }),
        }
    }

    /// Returns the descriptors whose digests this program can check.
    pub fn entries(&self) -> Vec<Entry> {
        document::entries(&self.document)
    }

    /// Returns all digests named in it, those of things that are no images too.
    pub(super) fn digests(&self) -> Vec<Digest> {
        let list = self.document["manifests"].as_array();
        list.into_iter().flatten().filter_map(|value| value["digest"].as_str()?.parse().ok()).collect()
    }

    /// Gives `name` to a manifest. Who had it before loses it, and stays without a name if it had no other.
    pub fn set(&mut self, digest: &Digest, size: u64, media_type: &str, name: Option<&ImageName>) {
        if let Some(name) = name {
            self.remove_name(name);
        }
        if name.is_none() && self.entries().iter().any(|entry| entry.digest == *digest) {
            return;
        }
        // A descriptor without a name says only that the image exists, which the named one says too.
        self.retain(|entry| entry.digest != *digest || entry.name.is_some());
        let mut descriptor = json!({ "mediaType": media_type, "digest": digest, "size": size });
        if let Some(name) = name {
            descriptor["annotations"] = json!({ REF_NAME: name });
        }
        if let Some(list) = self.document["manifests"].as_array_mut() {
            list.push(descriptor);
        }
    }

    /// Takes a name away; the manifest stays, without a name if that was its only one. False when nothing has it.
    pub fn remove_name(&mut self, name: &ImageName) -> bool {
        let all = self.entries();
        let had: Vec<&Entry> = all.iter().filter(|entry| entry.name.as_ref() == Some(name)).collect();
        self.retain(|entry| entry.name.as_ref() != Some(name));
        for entry in &had {
            self.set(&entry.digest, entry.size, &entry.media_type, None);
        }
        !had.is_empty()
    }

    /// Takes a manifest out, with all its names.
    pub fn remove(&mut self, digest: &Digest) {
        self.retain(|entry| entry.digest != *digest);
        if let Some(annotations) = self.document["annotations"].as_object_mut() {
            annotations.remove(&origin_key(digest));
        }
    }

    /// Returns where a manifest was pulled from: `NAME@DIGEST` each. The digest may be that of an index that lists it.
    pub fn origins(&self, digest: &Digest) -> Vec<String> {
        let noted = self.document["annotations"][origin_key(digest)].as_str().unwrap_or_default();
        noted.split_whitespace().map(str::to_owned).collect()
    }

    /// Notes where a manifest was pulled from; false when that is known.
    fn add_origin(&mut self, digest: &Digest, origin: &str) -> bool {
        let mut origins = self.origins(digest);
        if origins.iter().any(|known| known == origin) {
            return false;
        }
        // Tags move on, and each time leave one more.
        origins.drain(..origins.len().saturating_sub(MOST_ORIGINS - 1));
        origins.push(origin.to_owned());
        if !self.document["annotations"].is_object() {
            self.document["annotations"] = json!({});
        }
        self.document["annotations"][origin_key(digest)] = origins.join(" ").into();
        true
    }

    /// Keeps what `keep` says, and all that isn't understood.
    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        if let Some(list) = self.document["manifests"].as_array_mut() {
            list.retain(|value| Entry::read(value).is_none_or(|entry| keep(&entry)));
        }
    }
}

/// Returns the annotation of the index that tells where a manifest was pulled from. Those of its descriptors go with
/// names.
fn origin_key(digest: &Digest) -> String {
    format!("org.unionmount.origins.{}", digest.hex())
}

impl Store {
    /// Notes where an image was pulled from, `NAME@DIGEST`: it is found by that, whatever names it has.
    ///
    /// # Errors
    /// When the index can't be read or written.
    pub(crate) fn note_origin(&self, id: &Digest, origin: &str) -> Result<()> {
        let Some(image) = self.catalog()?.images.into_iter().find(|image| image.id == *id) else {
            return Ok(());
        };
        if self.read_index()?.origins(&image.entry).iter().any(|known| known == origin) {
            return Ok(());
        }
        self.change_index(|index| {
            index.add_origin(&image.entry, origin);
            Ok(())
        })
    }

    /// Reads index.json, for a look: one that is damaged is told, and its copy taken. It is replaced as a whole, so no lock
    /// is needed.
    pub(crate) fn read_index(&self) -> Result<Index> {
        match self.read_index_strictly() {
            Err(error) if error.is_damage() => {
                let Some(index) = self.copied_index()? else { return Err(error) };
                static TOLD: Once = Once::new();
                TOLD.call_once(|| {
                    log::warn!("{error}; going on with its copy, `unionmount verify --repair` mends it");
                });
                Ok(index)
            }
            read => read,
        }
    }

    /// Returns which file index.json is now. It is replaced as a whole, so as long as this is the same, so is what it
    /// says.
    pub(super) fn index_file(&self) -> Option<(u64, i64, i64)> {
        let found = fs::symlink_metadata(self.index_path()).ok()?;
        Some((found.ino(), found.ctime(), found.ctime_nsec()))
    }

    /// Reads index.json, for whoever changes it or deletes by it.
    pub(super) fn read_index_strictly(&self) -> Result<Index> {
        let path = self.index_path();
        match document::parse_index(&read_bounded(&path)?) {
            Ok(document) => Ok(Index { document }),
            Err(what) => Err(StoreError::damaged(&path, what)),
        }
    }

    /// Publishes index.json. Only with the exclusive lock on the index.
    pub(super) fn write_index(&self, index: &Index, first: impl FnOnce() -> Result<()>) -> Result<()> {
        let text = index.document.to_string();
        self.write_file("index.json", text.as_bytes(), first)?;
        self.write_copy(&text);
        Ok(())
    }

    /// Changes index.json under its lock.
    pub(crate) fn change_index<T>(&self, change: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        self.change_index_after(change, || Ok(()))
    }

    /// Does as [`Store::change_index`]; what `first` syncs is durable before the change is seen.
    pub(super) fn change_index_after<T>(
        &self,
        change: impl FnOnce(&mut Index) -> Result<T>,
        first: impl FnOnce() -> Result<()>,
    ) -> Result<T> {
        let _alone = self.lock_index(Access::Exclusive)?;
        let mut index = self.read_index_strictly()?;
        let before = index.document.clone();
        let result = change(&mut index)?;
        // Who gives room back can do so where there is none for another index.
        match index.document == before {
            true => first()?,
            false => self.write_index(&index, first)?,
        }
        Ok(result)
    }
}

/// Reads a document that must be small.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(StoreError::io("read it", path))?;
    let mut bytes = Vec::new();
    // What it is said to have may change while it is read.
    let size = file.metadata().map_err(StoreError::io("read it", path))?.len();
    let read = file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes);
    read.map_err(StoreError::io("read it", path))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(StoreError::damaged(path, too_large(size.max(bytes.len() as u64))));
    }
    Ok(bytes)
}
