//! Images in the store: finding them, and what is known of them.

use std::collections::BTreeMap;

use oci_spec::image::{ImageConfiguration, ImageManifest};
use serde_json::Value;

use super::Store;
use super::index::{Index, read_bounded};
use crate::image::digest::Digest;
use crate::image::document::{BlobSource, Documents, Entry};
use crate::image::error::{Result, StoreError};
use crate::image::name::ImageName;

/// An image of the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of its config: what Docker and podman call the image's id.
    pub id: Digest,
    /// The digest of its manifest.
    pub manifest_digest: Digest,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The config.
    pub config: ImageConfiguration,
    /// The config as it is written, with what [`ImageConfiguration`] doesn't know (health checks, `OnBuild`).
    pub document: Value,
    /// The diff ids of its layers, **bottom first**, as the config lists them.
    pub diff_ids: Vec<Digest>,
    /// Its names, sorted.
    pub names: Vec<ImageName>,
    /// What the index names: the manifest, or an index for several platforms that lists it.
    pub(super) entry: Digest,
    /// Where it was pulled from: `NAME@DIGEST` each.
    pub origins: Vec<String>,
}

impl Image {
    /// Returns the name of its own that a text stands for.
    pub fn name_meant_by(&self, text: &str) -> Option<ImageName> {
        ImageName::meant_by(text).into_iter().find(|name| self.names.contains(name))
    }

    /// Tells whether it was pulled by a digest, from a repository of this name if that is told.
    fn came_from(&self, name: Option<&ImageName>, digest: &Digest) -> bool {
        self.origins.iter().filter_map(|origin| origin.split_once('@')).any(|(repository, noted)| {
            noted.parse() == Ok(*digest) && name.is_none_or(|name| name.repository() == repository)
        })
    }

    fn new(documents: Documents, names: Vec<ImageName>, entry: Digest, origins: Vec<String>) -> Image {
        Image {
            id: documents.id,
            manifest_digest: documents.manifest_digest,
            manifest: documents.manifest,
            config: documents.config.typed,
            document: documents.config.written,
            diff_ids: documents.config.diff_ids,
            names,
            entry,
            origins,
        }
    }
}

/// What the store's index names.
#[derive(Debug, Default)]
pub struct Catalog {
    /// The images, in the order of the index.
    pub images: Vec<Image>,
    /// What cannot be read: its digest, its names, and why.
    pub broken: Vec<(Digest, Vec<ImageName>, StoreError)>,
}

impl Store {
    /// Returns all images.
    ///
    /// # Errors
    /// When index.json can't be read. An image that can't be read is told in [`Catalog::broken`].
    pub fn catalog(&self) -> Result<Catalog> {
        let whole =
            |catalog: &Result<Catalog>| catalog.as_ref().is_ok_and(|catalog| catalog.broken.is_empty());
        self.steadily(|index| self.catalog_of(index), whole)
    }

    /// Reads what index.json leads to, without a lock: others may remove it meanwhile. What index.json names is there, so what
    /// was not found counts only when index.json is still the same file; else both are read again.
    fn steadily<T>(
        &self,
        read: impl Fn(&Index) -> Result<T>,
        good: impl Fn(&Result<T>) -> bool,
    ) -> Result<T> {
        loop {
            let before = self.index_file();
            let result = read(&self.read_index()?);
            if good(&result) || before == self.index_file() {
                return result;
            }
        }
    }

    /// Says of an image that could not be read that it has gone, if it has.
    pub(crate) fn unless_gone<T>(&self, image: &Image, read: Result<T>) -> Result<T> {
        let lost = match &read {
            Err(StoreError::Io { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
            Err(StoreError::InUse(_)) => true,
            _ => false,
        };
        if lost {
            self.still_has(image)?;
        }
        read
    }

    /// Fails when an image that was found has been removed since.
    pub(crate) fn still_has(&self, image: &Image) -> Result<()> {
        if self.read_index()?.entries().iter().any(|entry| entry.digest == image.entry) {
            return Ok(());
        }
        Err(StoreError::NoImage(
            image.names.first().map_or_else(|| image.id.to_string(), ImageName::to_string),
        ))
    }

    pub(super) fn catalog_of(&self, index: &Index) -> Result<Catalog> {
        self.catalog_if(index, &|_| true, &|_| true)
    }

    /// Returns the images of `listed` entries that have a `wanted` id: what is not looked for costs no reading.
    pub(super) fn catalog_if(
        &self,
        index: &Index,
        listed: &dyn Fn(&[ImageName]) -> bool,
        wanted: &dyn Fn(&Digest) -> bool,
    ) -> Result<Catalog> {
        let mut order: Vec<Entry> = Vec::new();
        let mut names: BTreeMap<Digest, Vec<ImageName>> = BTreeMap::new();
        for entry in index.entries() {
            names.entry(entry.digest).or_default().extend(entry.name.clone());
            if !order.iter().any(|other| other.digest == entry.digest) {
                order.push(entry);
            }
        }
        let mut catalog = Catalog::default();
        for entry in order {
            let mut names = names.remove(&entry.digest).unwrap_or_default();
            names.sort();
            names.dedup();
            if !listed(&names) {
                continue;
            }
            match self.image_if(&entry, wanted) {
                Ok(Some(documents)) => {
                    let origins = index.origins(&entry.digest);
                    catalog.images.push(Image::new(documents, names, entry.digest, origins));
                }
                Ok(None) => {}
                Err(error) => catalog.broken.push((entry.digest, names, error)),
            }
        }
        Ok(catalog)
    }

    /// Finds an image by name, by id, by a unique prefix of its id of at least four digits, or by the digest of its manifest.
    ///
    /// # Errors
    /// When there is none, several, or when it can't be read.
    pub fn resolve(&self, text: &str) -> Result<Image> {
        self.steadily(|index| self.resolve_in(index, text), Result::is_ok)
    }

    fn resolve_in(&self, index: &Index, text: &str) -> Result<Image> {
        let all = |_: &[ImageName]| true;
        let listed = index.entries();
        let named = ImageName::meant_by(text)
            .into_iter()
            .find(|name| listed.iter().any(|entry| entry.name.as_ref() == Some(name)));
        let catalog = if let Some(name) = named {
            self.catalog_if(index, &|names| names.contains(&name), &|_| true)?
        } else if let Some(digits) = id_digits(text) {
            let found = self.catalog_if(index, &all, &|id| id.hex().starts_with(&digits))?;
            // It may be the digest of a manifest.
            if found.images.is_empty() { self.catalog_of(index)? } else { found }
        } else {
            self.catalog_of(index)?
        };
        catalog.resolve(text)
    }

    /// Gives an image one more name. Who had it before loses it.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn tag(&self, text: &str, name: &ImageName) -> Result<()> {
        self.change_index(|index| {
            let image = self.resolve_in(index, text)?;
            if let Some(entry) = index.entries().into_iter().find(|entry| entry.digest == image.entry) {
                index.set(&entry.digest, entry.size, &entry.media_type, Some(name));
            }
            Ok(())
        })
    }
}

impl Catalog {
    /// Does as [`Store::resolve`].
    ///
    /// # Errors
    /// When there is none, several, or when it can't be read.
    pub fn resolve(mut self, text: &str) -> Result<Image> {
        let take = |images: &mut Vec<Image>, at: usize| Ok(images.swap_remove(at));
        for name in ImageName::meant_by(text) {
            if let Some(at) = self.images.iter().position(|image| image.names.contains(&name)) {
                return take(&mut self.images, at);
            }
            if let Some(at) = self.broken.iter().position(|(_, names, _)| names.contains(&name)) {
                return Err(self.broken.swap_remove(at).2);
            }
        }
        if let Some(digits) = id_digits(text) {
            let mut found: Vec<Digest> =
                self.images.iter().map(|image| image.id).filter(|id| id.hex().starts_with(&digits)).collect();
            found.sort();
            // Two manifests of one config are one image.
            found.dedup();
            if found.len() > 1 {
                return Err(StoreError::Ambiguous { text: text.to_owned(), found });
            }
            if let Some(at) = self.images.iter().position(|image| found.contains(&image.id)) {
                return take(&mut self.images, at);
            }
        }
        // NAME@sha256:…, whose tag says nothing, and the digest of a manifest alone.
        let (name, digest) = match text.rsplit_once('@') {
            Some((name, digest)) => (Some(name.parse::<ImageName>()?), digest),
            None => (None, text),
        };
        let called = |image: &Image| {
            let same = |name: &ImageName, own: &ImageName| name.repository() == own.repository();
            name.as_ref().is_none_or(|name| image.names.iter().any(|own| same(name, own)))
        };
        if let Ok(digest) = digest.parse::<Digest>() {
            let is_it = |image: &Image| {
                ([image.manifest_digest, image.entry].contains(&digest) && called(image))
                    || image.came_from(name.as_ref(), &digest)
            };
            if let Some(at) = self.images.iter().position(is_it) {
                return take(&mut self.images, at);
            }
        }
        // Whether one that couldn't be read has that id isn't known.
        if id_digits(text).is_some()
            && let Some(at) = self.broken.iter().position(|(_, _, error)| !error.is_damage())
        {
            return Err(self.broken.swap_remove(at).2);
        }
        Err(StoreError::NoImage(text.to_owned()))
    }
}

/// The fewest digits that are taken for the beginning of an id: short names are often digits by chance.
pub const SHORTEST_ID: usize = 4;

/// Returns the digits of what may be an id or its beginning.
fn id_digits(text: &str) -> Option<String> {
    let digits = text.strip_prefix(Digest::PREFIX).unwrap_or(text).to_ascii_lowercase();
    (digits.len() >= SHORTEST_ID && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(digits)
}

impl BlobSource for Store {
    type Error = StoreError;

    fn fetch(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let text = read_bounded(&path)?;
        if Digest::of(&text) != *digest {
            return Err(StoreError::damaged(&path, "its content has another digest"));
        }
        Ok(text)
    }

    fn has(&self, digest: &Digest) -> Result<bool> {
        Ok(self.blob_size(digest)?.is_some())
    }

    fn bad(&self, digest: &Digest, what: String) -> StoreError {
        StoreError::damaged(self.blob_path(digest), what)
    }
}
