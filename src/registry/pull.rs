//! Pulling: a registry's image comes into the store, whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Access;
use super::client::{Client, Document};
use super::error::{RegistryError, Result};
use super::partial::{Partial, Resumed};
use super::reference::Reference;
use super::settings::Settings;
use crate::image::digest::Digest;
use crate::image::document::{
    CONTAINERD_NAME, Config, DEEPEST, DocumentKind, Entry, MAX_DOCUMENT, entries, parse_index,
    parse_manifest, too_deep, too_large,
};
use crate::image::error::{FetchFailed, StoreError};
use crate::image::load::{LoadOptions, Loaded, RemoteImage, load_remote};
use crate::image::platform::{Machine, Platform};
use crate::image::store::Store;

/// An image that was pulled.
#[derive(Debug)]
pub struct Pulled {
    /// What was asked for, with the registry that had it.
    pub reference: Reference,
    /// The digest that the registry has under this name: of the manifest, or of the index for several platforms.
    pub digest: Digest,
    /// Whether the store had it already, under this name.
    pub is_known: bool,
    /// The image.
    pub loaded: Loaded,
}

/// What a registry says of an image, without its layers.
#[derive(Debug)]
pub struct Described {
    /// What was asked for.
    pub reference: Reference,
    /// The digest that the registry has under this name.
    pub digest: Digest,
    /// The platforms for which there are images, where there are several.
    pub platforms: Vec<String>,
    /// The manifest of the chosen image.
    pub manifest: Value,
    /// Its digest.
    pub manifest_digest: Digest,
    /// The config.
    pub config: Value,
}

/// Brings an image into the store.
///
/// # Errors
/// When no registry has it, or what comes is not what was promised; the store is then as it was.
pub fn pull(
    store: &Store,
    text: &str,
    platform: Option<&Platform>,
    access: &Access,
    options: &LoadOptions,
) -> Result<Pulled> {
    let found = find(text, platform, access)?;
    let (reference, digest) = (found.reference.clone(), found.top.digest);
    let id = found.id;
    let known = store.catalog()?.images.into_iter().find(|image| image.id == id);
    let is_known = known.is_some_and(|image| {
        reference.given_name().is_none_or(|name| image.names.contains(name)) && store.is_complete(&image)
    });
    let remote = Arc::new(found.into_remote(store));
    let mut loaded = load_remote(store, remote.clone(), options);
    // What was kept from another time may have been wrong.
    if matches!(loaded, Err(StoreError::BadImage { .. })) && remote.discard_wrong()? {
        loaded = load_remote(store, remote.clone(), options);
        if matches!(loaded, Err(StoreError::BadImage { .. })) {
            remote.discard_wrong()?;
        }
    }
    if loaded.is_ok() {
        remote.clean_up()?;
    }
    let loaded = loaded.map_err(of_loading)?;
    if let Some(loaded) = loaded.first() {
        store.note_origin(&loaded.id, &format!("{}@{digest}", reference.name.repository()))?;
    }
    let loaded = loaded.into_iter().next().ok_or_else(|| RegistryError::Wrong {
        what: reference.to_string(),
        host: remote.client.host().to_owned(),
        why: "it holds no image".to_owned(),
    })?;
    Ok(Pulled { reference, digest, is_known, loaded })
}

/// Says what the registry answered, where a load failed by that.
fn of_loading(error: StoreError) -> RegistryError {
    match error {
        StoreError::Fetch(FetchFailed(error)) => {
            let kind = error.kind();
            RegistryError::of_reading(error, |other| {
                StoreError::Fetch(FetchFailed(io::Error::new(kind, other.to_string()))).into()
            })
        }
        other => other.into(),
    }
}

/// Asks a registry what it says of an image.
///
/// # Errors
/// When no registry has it.
pub fn describe(text: &str, platform: Option<&Platform>, access: &Access) -> Result<Described> {
    let found = find(text, platform, access)?;
    let parse = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or(Value::Null);
    let mut platforms = Vec::new();
    if let Ok(index) = parse_index(&found.top.bytes) {
        platforms = entries(&index)
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .map(Platform::to_string)
            .collect();
    }
    Ok(Described {
        reference: found.reference,
        digest: found.top.digest,
        platforms,
        manifest: parse(&found.manifest.bytes),
        manifest_digest: found.manifest.digest,
        config: parse(&found.config),
    })
}

/// An image that a registry has.
struct Found {
    reference: Reference,
    client: Arc<Client>,
    /// What the tag or the digest names.
    top: Document,
    manifest: Document,
    id: Digest,
    config: Vec<u8>,
}

/// Asks the registries that a name leads to.
fn find(text: &str, platform: Option<&Platform>, access: &Access) -> Result<Found> {
    let reference = parse(text)?;
    let found = Settings::read()?.first_of(&reference, |name, endpoint| {
        let client = Arc::new(Client::new(endpoint, access)?);
        let top = client.manifest(&name.tag_or_digest())?;
        Ok((name.clone(), client, top))
    });
    let (reference, client, top) = found?;
    choose(reference, client, top, platform)
}

fn parse(text: &str) -> Result<Reference> {
    text.parse().map_err(|error| RegistryError::Settings(format!("{error}")))
}

/// Returns what an image is called in a store into which it was pulled under a name, the likeliest first.
///
/// # Errors
/// When it is no name, or the user's settings can't be read.
pub fn names_in_store(text: &str) -> Result<Vec<String>> {
    let names = Settings::read()?.names(&parse(text)?)?;
    Ok(names.iter().map(Reference::to_string).collect())
}

/// Takes the image for a platform out of an index; reads its config.
fn choose(
    reference: Reference,
    client: Arc<Client>,
    top: Document,
    platform: Option<&Platform>,
) -> Result<Found> {
    let what = reference.to_string();
    let wrong =
        |why: String| RegistryError::Wrong { what: what.clone(), host: client.host().to_owned(), why };
    let mut manifest = top.clone();
    let mut depth = 0;
    while is_index(&manifest) {
        depth += 1;
        if depth > DEEPEST {
            return Err(wrong(too_deep()));
        }
        let index = parse_index(&manifest.bytes).map_err(&wrong)?;
        let listed = entries(&index);
        let entry = best(&listed, platform).map_err(&wrong)?;
        manifest = client.manifest(&entry.digest.to_string())?;
    }
    let parsed = parse_manifest(&manifest.bytes).map_err(&wrong)?;
    let id = Digest::try_from(parsed.config().digest()).map_err(|error| wrong(error.to_string()))?;
    let size = parsed.config().size();
    if size > MAX_DOCUMENT {
        return Err(wrong(format!("its config: {}", too_large(size))));
    }
    let mut config = Vec::new();
    let read = Resumed::new(client.clone(), id, size, None).read_to_end(&mut config);
    read.map_err(|error| RegistryError::of_reading(error, |other| wrong(format!("its config: {other}"))))?;
    if Digest::of(&config) != id {
        return Err(wrong(format!("its config has the digest {} instead of {id}", Digest::of(&config))));
    }
    if let Some(wanted) = platform {
        let is = Config::parse(&config).ok().and_then(|config| Platform::read(&config.written));
        if let Some(is) = is.filter(|is| is.rank_for(wanted).is_none()) {
            return Err(RegistryError::Settings(format!(
                "{what}: is for {is}, and there is none for {wanted}"
            )));
        }
    }
    Ok(Found { reference, client, top, manifest, id, config })
}

fn is_index(document: &Document) -> bool {
    match document.media_type.as_str() {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => true,
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => false,
        // A registry that doesn't say.
        _ => parse_index(&document.bytes).is_ok(),
    }
}

/// Returns the entry for a platform, or for this machine.
fn best<'a>(listed: &'a [Entry], wanted: Option<&Platform>) -> std::result::Result<&'a Entry, String> {
    let images: Vec<&Entry> = listed.iter().filter(|entry| entry.kind() != DocumentKind::Other).collect();
    let found = match wanted {
        Some(wanted) => {
            let ranked =
                images.iter().filter_map(|entry| Some((entry.platform.as_ref()?.rank_for(wanted)?, *entry)));
            ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
        }
        None => {
            let ranked = images.iter().filter_map(|entry| Some((entry.platform.as_ref()?.rank()?, *entry)));
            ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
        }
    };
    if let Some(found) = found {
        return Ok(found);
    }
    if let [only] = images[..]
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let names: BTreeSet<String> =
        images.iter().filter_map(|entry| entry.platform.as_ref()).map(Platform::to_string).collect();
    let names: Vec<String> = names.into_iter().take(12).collect();
    let machine = wanted.map_or_else(|| Machine::here().to_string(), Platform::to_string);
    Err(match names.is_empty() {
        true => "an index that lists no image".to_owned(),
        false => format!("an index that lists no image for {machine}, but for {}", names.join(", ")),
    })
}

impl Found {
    fn into_remote(self, store: &Store) -> Remote {
        let Found { reference, client, top: _, manifest, id, config } = self;
        let mut sizes = BTreeMap::new();
        let mut partials = BTreeMap::new();
        // It has been read once before.
        if let Ok(parsed) = parse_manifest(&manifest.bytes) {
            for layer in parsed.layers() {
                if let Ok(digest) = Digest::try_from(layer.digest()) {
                    sizes.insert(digest, layer.size());
                    partials.insert(digest, store.partial_path(&digest));
                }
            }
        }
        let media_type = match parse_manifest(&manifest.bytes)
            .ok()
            .and_then(|parsed| parsed.media_type().clone())
        {
            Some(own) => own.to_string(),
            None if manifest.media_type.is_empty() => "application/vnd.oci.image.manifest.v1+json".to_owned(),
            None => manifest.media_type.clone(),
        };
        let mut descriptor =
            json!({ "mediaType": media_type, "digest": manifest.digest, "size": manifest.bytes.len() });
        if let Some(name) = reference.given_name() {
            descriptor["annotations"] = json!({ CONTAINERD_NAME: name.full() });
        }
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        let documents = BTreeMap::from([(manifest.digest, manifest.bytes), (id, config)]);
        sizes.extend(documents.iter().map(|(digest, bytes)| (*digest, bytes.len() as u64)));
        Remote {
            name: reference.to_string(),
            client,
            index: index.to_string().into_bytes(),
            documents,
            sizes,
            places: partials,
            taken: Mutex::default(),
        }
    }
}

/// An image at a registry, as the store loads it.
#[derive(Debug)]
struct Remote {
    name: String,
    client: Arc<Client>,
    index: Vec<u8>,
    documents: BTreeMap<Digest, Vec<u8>>,
    sizes: BTreeMap<Digest, u64>,
    /// Where parts of blobs are kept.
    places: BTreeMap<Digest, PathBuf>,
    taken: Mutex<BTreeMap<Digest, Partial>>,
}

impl Remote {
    fn partial(&self, digest: &Digest) -> Option<Partial> {
        let (place, size) = (self.places.get(digest)?, self.sizes.get(digest)?);
        let mut taken = self.taken.lock();
        if let Some(partial) = taken.get(digest) {
            return Some(partial.clone());
        }
        match Partial::take(place, *size) {
            Ok(Some(partial)) => {
                taken.insert(*digest, partial.clone());
                Some(partial)
            }
            // Another process pulls the same; this one does without.
            Ok(None) => None,
            Err(error) => {
                log::debug!("{}: {error}", place.display());
                None
            }
        }
    }

    /// Throws away what is all there and not what it should be; what is right, or not all there yet, the next pull goes on
    /// with. Returns whether something of that was kept from another time, so that the registry may have the right one.
    fn discard_wrong(&self) -> Result<bool> {
        let mut resumed = false;
        // Whoever asks again takes them anew, with what they have now.
        for (digest, partial) in std::mem::take(&mut *self.taken.lock()) {
            let size = self.sizes.get(&digest).copied().unwrap_or_default();
            if partial.is_wrong(&digest, size).map_err(StoreError::io("read it", partial.path()))? {
                resumed |= partial.is_resumed();
                partial.discard().map_err(StoreError::io("remove it", partial.path()))?;
            }
        }
        Ok(resumed)
    }

    /// Removes what a pull that went well has left: parts of what came another way.
    fn clean_up(&self) -> Result<()> {
        self.taken.lock().values().try_for_each(|partial| {
            partial.discard().map_err(StoreError::io("remove it", partial.path()))?;
            Ok(())
        })
    }
}

impl RemoteImage for Remote {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn index(&self) -> &[u8] {
        &self.index
    }

    fn size(&self, digest: &Digest) -> Option<u64> {
        self.sizes.get(digest).copied()
    }

    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send>> {
        if let Some(document) = self.documents.get(digest) {
            return Ok(Box::new(io::Cursor::new(document.clone())));
        }
        let size = self.size(digest).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Resumed::new(self.client.clone(), *digest, size, self.partial(digest))))
    }

    fn kept(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.partial(digest)?.path().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: &str) -> Entry {
        let mut parts = platform.split('/');
        let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap());
        Entry::read(&json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
            "digest": Digest::of(platform.as_bytes()),
            "platform": { "os": os, "architecture": architecture, "variant": parts.next().unwrap_or_default() },
        }))
        .unwrap()
    }

    #[test]
    fn the_platform_decides() {
        let listed =
            [entry("linux/arm/v6"), entry("linux/amd64"), entry("windows/amd64"), entry("linux/arm/v7")];
        let chosen = |wanted: &str| {
            let entry = best(&listed, Platform::parse(wanted).as_ref());
            entry.map(|entry| entry.platform.as_ref().unwrap().to_string())
        };
        assert_eq!(chosen("linux/arm/v6").unwrap(), "linux/arm/v6");
        assert_eq!(chosen("linux/arm").unwrap(), "linux/arm/v7");
        assert_eq!(chosen("linux/arm/v8").unwrap(), "linux/arm/v7");
        // It has instructions that such a machine hasn't.
        assert!(chosen("linux/arm/v5").unwrap_err().contains("no image for linux/arm/v5"));
        assert_eq!(chosen("windows/amd64").unwrap(), "windows/amd64");
        let none = chosen("linux/s390x").unwrap_err();
        assert!(none.contains("for linux/s390x, but for linux/amd64, linux/arm/v6"), "{none}");
    }
}
