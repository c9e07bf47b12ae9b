//! Pushing: an image of the store goes to a registry. What is there already is not sent again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use indicatif::MultiProgress;
use parking_lot::Mutex;

use super::Access;
use super::client::Client;
use super::error::{RegistryError, Result};
use super::reference::Reference;
use super::settings::{Endpoint, Settings};
use crate::image::digest::{Digest, Hashing};
use crate::image::document::BlobSource;
use crate::image::error::StoreError;
use crate::image::progress::added;
use crate::image::store::{Image, Store};
use crate::sys::threads::on_threads;

/// More at once gain nothing.
const JOBS: usize = 4;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What a push has done.
#[derive(Debug)]
pub struct Pushed {
    /// Where it is now.
    pub reference: Reference,
    /// The digest that it has there.
    pub digest: Digest,
    /// How many blobs were sent.
    pub sent: usize,
    /// How many the registry took over from another of its repositories.
    pub mounted: usize,
    /// How many it had.
    pub there: usize,
}

/// What becomes of a blob.
enum Fate {
    Sent,
    Mounted,
    There,
}

/// Sends an image to where `to` names.
///
/// # Errors
/// When the image is damaged, or the registry doesn't take it.
pub fn push(
    store: &Store,
    image: &Image,
    to: &str,
    access: &Access,
    progress: &MultiProgress,
) -> Result<Pushed> {
    let reference: Reference = to.parse().map_err(|error| RegistryError::Settings(format!("{error}")))?;
    if reference.digest.is_some() {
        return Err(RegistryError::Settings(format!("{to}: push to a tag; the digest is what comes of it")));
    }
    let settings = Settings::read()?;
    let endpoint = settings.to_write(&reference)?;
    // Nothing is deleted meanwhile.
    let _kept = store.keep_all()?;
    store.still_has(image)?;
    let client = Client::new(endpoint.clone(), access)?;
    let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
    for part in image.manifest.layers().iter().chain([image.manifest.config()]) {
        blobs.insert(Digest::try_from(part.digest())?, part.size());
    }
    let sources = sources(store, &settings, &endpoint, &blobs)?;
    let queue: Mutex<VecDeque<(Digest, u64)>> = Mutex::new(blobs.into_iter().collect());
    let fates = Mutex::new(Vec::new());
    let failure = Mutex::new(None);
    on_threads(JOBS, &|| {
        while failure.lock().is_none() {
            let Some((digest, size)) = queue.lock().pop_front() else { return };
            let from = sources.get(&digest).map(Vec::as_slice).unwrap_or_default();
            match bring(store, &client, &digest, size, from, progress) {
                Ok(fate) => fates.lock().push(fate),
                // The first failure is the cause.
                Err(error) => {
                    failure.lock().get_or_insert(error);
                }
            }
        }
    });
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    let manifest = store.fetch(&image.manifest_digest)?;
    let media_type = image.manifest.media_type().as_ref().map_or(MANIFEST, AsRef::as_ref);
    client.send_manifest(reference.name.tag(), media_type, &manifest)?;
    let fates = fates.into_inner();
    let count = |wanted: fn(&Fate) -> bool| fates.iter().filter(|fate| wanted(fate)).count();
    Ok(Pushed {
        digest: image.manifest_digest,
        sent: count(|fate| matches!(fate, Fate::Sent)),
        mounted: count(|fate| matches!(fate, Fate::Mounted)),
        there: count(|fate| matches!(fate, Fate::There)),
        reference,
    })
}

/// Brings one blob there.
fn bring(
    store: &Store,
    client: &Client,
    digest: &Digest,
    size: u64,
    from: &[String],
    progress: &MultiProgress,
) -> Result<Fate> {
    if client.has_blob(digest)? {
        return Ok(Fate::There);
    }
    let mut begun = None;
    for repository in from {
        if let Some(upload) = begun.take() {
            client.give_up(&upload);
        }
        match client.mount_blob(digest, repository) {
            Ok(None) => return Ok(Fate::Mounted),
            Ok(upload) => begun = upload,
            // The user may push here, and may not read there.
            Err(error) => log::debug!("{repository}: {error}"),
        }
    }
    let bar = added(progress, Some(size), digest.short());
    let path = store.blob_path(digest);
    let sent = client.send_blob(digest, begun, &mut || {
        bar.reset();
        let file = File::open(&path).map_err(StoreError::io("open it", &path))?;
        let checked = Checked {
            inner: Some(Hashing::new(bar.wrap_read(file))),
            expected: *digest,
            left: size,
            path: path.clone(),
        };
        Ok((Box::new(checked) as Box<dyn Read + Send>, size))
    });
    sent?;
    bar.finish();
    Ok(Fate::Sent)
}

/// A blob on its way out, whose digest is checked once more. Its last byte goes only when it is right. What fails here says
/// nothing of the registry, which is not asked again then.
struct Checked<R> {
    inner: Option<Hashing<R>>,
    expected: Digest,
    left: u64,
    path: PathBuf,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(inner) = &mut self.inner else { return Ok(0) };
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = inner.read(&mut buffer[..most]);
        let count =
            read.map_err(|error| RegistryError::from(StoreError::io("read it", &self.path)(error)))?;
        self.left -= count as u64;
        if self.left > 0 && count > 0 {
            return Ok(count);
        }
        let found = self.inner.take().map(|inner| inner.finish().1);
        if self.left > 0 || found != Some(self.expected) {
            let damage = StoreError::damaged(&self.path, "its content is not what its name says");
            return Err(RegistryError::from(damage).into());
        }
        Ok(count)
    }
}

/// Returns other repositories of the same registry that have blobs, by the names of images in the store.
fn sources(
    store: &Store,
    settings: &Settings,
    to: &Endpoint,
    blobs: &BTreeMap<Digest, u64>,
) -> Result<BTreeMap<Digest, Vec<String>>> {
    let mut found: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
    for image in store.catalog()?.images {
        for name in &image.names {
            let reference = Reference { name: name.clone(), digest: None, is_tagged: true, short: None };
            let Ok(endpoint) = settings.to_write(&reference) else { continue };
            if endpoint.host != to.host || endpoint.path == to.path {
                continue;
            }
            for layer in image.manifest.layers() {
                let digest = Digest::try_from(layer.digest())?;
                if blobs.contains_key(&digest) {
                    found.entry(digest).or_default().insert(endpoint.path.clone());
                }
            }
        }
    }
    // A few will do: each is a request.
    Ok(found.into_iter().map(|(digest, paths)| (digest, paths.into_iter().take(3).collect())).collect())
}
