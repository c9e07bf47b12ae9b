//! What an archive or a layout says it holds: OCI layouts, and both forms of `docker save`.
//!
//! Docker's archives since version 25 are OCI layouts too, with digests for everything; those are believed first. In older
//! ones `manifest.json` names a config and layers by files, and digests are those that the config lists.

use std::collections::BTreeMap;
use std::io::Read;

use serde::Deserialize;

use super::digest::Digest;
use super::document::{
    BlobSource, Config, DocumentKind, Documents, Entry, MAX_DOCUMENT, entries, parse_index, parse_manifest,
};
use super::error::Result;
use super::golike;
use super::name::ImageName;
use super::platform::Platform;
use super::source::{ImageFiles, ImageSource, blob_name};
use super::store::Blob;

/// An image that the source holds.
pub(super) struct PlannedImage {
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
    /// What else it is known by: its manifest, and the index that lists it.
    pub digests: Vec<Digest>,
}

/// A layer that the source says it holds.
pub(super) struct PlannedLayer {
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
    pub(super) fn name(&self) -> String {
        self.blob.map_or_else(|| self.file.clone(), |blob| blob.digest.to_string())
    }
}

/// Finds the images of a source.
pub(super) fn plan(source: &ImageSource) -> Result<Vec<PlannedImage>> {
    let images = if source.has_file("index.json") {
        match oci(source) {
            // Docker 25.0 writes an index that names what it doesn't save; manifest.json beside it is right.
            Err(error) if source.has_file("manifest.json") => docker(source).map_err(|_| error)?,
            Ok(none) if none.is_empty() && source.has_file("manifest.json") => docker(source)?,
            images => images?,
        }
    } else if source.has_file("manifest.json") {
        docker(source)?
    } else if source.has_file("repositories") {
        let what = "is an archive of Docker before 1.10, which has no manifest.json; load it into a newer Docker or \
                    podman and save it again";
        return Err(source.wrong(what));
    } else {
        let what = "holds neither an OCI layout (index.json) nor what docker save writes (manifest.json); a root \
                    filesystem is taken in with unionmount import";
        return Err(source.wrong(what));
    };
    if images.is_empty() {
        let what = match source.has_file("index.json") {
            true => "is an OCI layout that holds no image",
            false => "is an archive of docker save that holds no image",
        };
        return Err(source.wrong(what));
    }
    no_collisions(source, &images)?;
    Ok(images)
}

/// Finds one image of a source, and reads no other's documents where its index tells them apart.
///
/// # Errors
/// When there is none, or several; the names of those that there are are told.
pub(super) fn choose(source: &ImageSource, wanted: &Wanted) -> Result<PlannedImage> {
    let mut images = match oci_entries(source, wanted) {
        Ok(listed) if !listed.is_empty() => match oci_images(source, listed) {
            Err(error) if source.has_file("manifest.json") => docker(source).map_err(|_| error)?,
            images => images?,
        },
        _ => plan(source)?,
    };
    let all: Vec<String> = images.iter().flat_map(|image| &image.names).map(ToString::to_string).collect();
    images.retain(|image| wanted.is(image));
    keep_what_runs_here(&mut images);
    let named = match &all[..] {
        [] => {
            "its images have no names; name one by @sha256:DIGEST, of its manifest or its config".to_owned()
        }
        all => format!("it has {}", all.join(", ")),
    };
    match (images.pop(), images.is_empty()) {
        (Some(image), true) => Ok(image),
        (Some(_), false) => {
            Err(source.wrong(format!("holds several images: say which, as oci:PLACE:NAME; {named}")))
        }
        (None, _) => Err(source.wrong(format!("holds no image {wanted}; {named}"))),
    }
}

/// Which image of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The only one.
    Only,
    /// That of a name, or of a tag alone.
    Name(String),
    /// That whose manifest, index or config has this digest.
    Digest(Digest),
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wanted::Only => f.write_str("that runs here"),
            Wanted::Name(name) => write!(f, "{name:?}"),
            Wanted::Digest(digest) => digest.fmt(f),
        }
    }
}

impl Wanted {
    fn is(&self, image: &PlannedImage) -> bool {
        match self {
            Wanted::Only => true,
            Wanted::Name(name) => image.names.iter().any(|own| is_called(own, name)),
            Wanted::Digest(digest) => image.id == *digest || image.digests.contains(digest),
        }
    }

    /// Tells whether an entry of an index may be meant.
    fn may_be(&self, entry: &Entry) -> bool {
        match self {
            Wanted::Name(name) => entry.name.as_ref().is_some_and(|own| is_called(own, name)),
            Wanted::Only | Wanted::Digest(_) => true,
        }
    }
}

/// Tells whether somebody may call an image so: by its name, or by its tag alone, as skopeo writes it into layouts.
fn is_called(own: &ImageName, text: &str) -> bool {
    own.tag() == text || ImageName::meant_by(text).contains(own)
}

/// Of several images, keeps those that run best here, if any does: they are one image for several platforms.
fn keep_what_runs_here(images: &mut Vec<PlannedImage>) {
    if images.len() < 2 {
        return;
    }
    let rank = |image: &PlannedImage| {
        let document = serde_json::from_slice(&image.config).ok()?;
        Platform::read(&document)?.rank()
    };
    let ranks: Vec<Option<u32>> = images.iter().map(rank).collect();
    let Some(best) = ranks.iter().flatten().min().copied() else { return };
    let mut ranks = ranks.into_iter();
    images.retain(|_| ranks.next().flatten() == Some(best));
}

/// Refuses one name for two images, which would depend on their order.
fn no_collisions(source: &ImageSource, images: &[PlannedImage]) -> Result<()> {
    let mut owners: BTreeMap<&ImageName, Digest> = BTreeMap::new();
    for image in images {
        for name in &image.names {
            match owners.insert(name, image.id) {
                Some(other) if other != image.id => {
                    let ids = format!("{} and {}", other.short(), image.id.short());
                    return Err(source.wrong(format!("gives the name {name} to two images, {ids}")));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Returns an OCI layout.
fn oci(source: &ImageSource) -> Result<Vec<PlannedImage>> {
    oci_images(source, oci_entries(source, &Wanted::Only)?)
}

fn oci_entries(source: &ImageSource, wanted: &Wanted) -> Result<Vec<Entry>> {
    let index = parse_index(&source.document("index.json")?);
    let index = index.map_err(|what| source.wrong(format!("index.json {what}")))?;
    let mut listed = entries(&index);
    listed.retain(|entry| wanted.may_be(entry));
    keep_the_best(&mut listed);
    Ok(listed)
}

fn oci_images(source: &ImageSource, listed: Vec<Entry>) -> Result<Vec<PlannedImage>> {
    let mut images: Vec<PlannedImage> = Vec::new();
    let mut strange = None;
    for entry in listed {
        let Some(documents) = source.image(&entry)? else {
            strange = Some(entry);
            continue;
        };
        let known = images.iter_mut().find(|image| image.id == documents.id);
        match known {
            Some(image) => {
                image.names.extend(entry.name);
                image.digests.extend([entry.digest, documents.manifest_digest]);
            }
            None => images.push(oci_image(source, documents, &entry)?),
        }
    }
    match strange {
        Some(entry) if images.is_empty() => {
            let what = artifact_type(source, &entry).unwrap_or(entry.media_type);
            Err(source.wrong(format!("holds no image, but an artifact of type {what:?}")))
        }
        _ => Ok(images),
    }
}

/// Keeps, of several images with one name, for several platforms, the one that runs best here.
fn keep_the_best(listed: &mut Vec<Entry>) {
    let rank = |entry: &Entry| entry.platform.as_ref().and_then(Platform::rank);
    let mut best: BTreeMap<ImageName, u32> = BTreeMap::new();
    for entry in listed.iter() {
        if let (Some(name), Some(rank)) = (&entry.name, rank(entry)) {
            let least = best.entry(name.clone()).or_insert(rank);
            *least = rank.min(*least);
        }
    }
    listed.retain(|entry| {
        let better = entry.name.as_ref().and_then(|name| best.get(name));
        entry.platform.is_none() || better.is_none_or(|better| rank(entry) == Some(*better))
    });
}

/// Returns what something is that is no image: by its manifest's own words, or by its config's type.
fn artifact_type(source: &ImageSource, entry: &Entry) -> Option<String> {
    let manifest = parse_manifest(&source.fetch(&entry.digest).ok()?).ok()?;
    let kind = manifest.artifact_type().as_ref().unwrap_or(manifest.config().media_type());
    Some(kind.to_string())
}

fn oci_image(source: &ImageSource, documents: Documents, entry: &Entry) -> Result<PlannedImage> {
    let Documents { manifest_digest, manifest, id, config } = documents;
    if entry.kind() == DocumentKind::Manifest {
        let size = source.size(&blob_name(&manifest_digest))?;
        if size != entry.size {
            let what = format!("has {size} bytes where index.json says {}", entry.size);
            return Err(source.bad(&manifest_digest, what));
        }
    }
    let text = source.fetch(&id)?;
    if text.len() as u64 != manifest.config().size() {
        let what = format!("has {} bytes where the manifest says {}", text.len(), manifest.config().size());
        return Err(source.bad(&id, what));
    }
    let mut layers = Vec::new();
    for (descriptor, diff_id) in manifest.layers().iter().zip(config.diff_ids) {
        let digest = Digest::try_from(descriptor.digest())
            .map_err(|error| source.bad(&manifest_digest, error.to_string()))?;
        layers.push(PlannedLayer {
            file: blob_name(&digest),
            blob: Some(Blob { digest, size: descriptor.size() }),
            diff_id,
            media_type: Some(descriptor.media_type().as_ref().to_owned()),
        });
    }
    // Docker's types are kept out of the store: not every program that reads OCI layouts takes them there.
    let oci = |media_type: &oci_spec::image::MediaType| {
        media_type.as_ref().starts_with("application/vnd.oci.image.")
    };
    let all_oci = manifest.media_type().as_ref().is_none_or(oci)
        && oci(manifest.config().media_type())
        && manifest.layers().iter().all(|layer| oci(layer.media_type()));
    let media_type = oci_spec::image::MediaType::ImageManifest.to_string();
    let manifest = match all_oci {
        true => Some((source.fetch(&manifest_digest)?, media_type)),
        false => None,
    };
    let names = entry.name.clone().into_iter().collect();
    let digests = vec![entry.digest, manifest_digest];
    Ok(PlannedImage { id, config: text, manifest, layers, names, digests })
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
struct DockerImage {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    names: Option<Vec<String>>,
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

/// Returns what `docker save` and `podman save` write.
fn docker(source: &ImageSource) -> Result<Vec<PlannedImage>> {
    let text = source.document("manifest.json")?;
    // A manifest itself, where a list of images is expected.
    if source.has_file("version") && parse_manifest(&text).is_ok() {
        let what = "is a directory of the form dir: (skopeo) or docker-dir (podman), which keeps no image's name; copy it \
                    first: skopeo copy dir:DIR oci:LAYOUT:NAME";
        return Err(source.wrong(what));
    }
    let list = parse_docker(&text);
    let list = list.map_err(|what| source.wrong(format!("manifest.json {what}")))?;
    let mut images: Vec<PlannedImage> = Vec::new();
    for image in list {
        let image = docker_image(source, image)?;
        match images.iter_mut().find(|known| known.id == image.id) {
            Some(known) => known.names.extend(image.names),
            None => images.push(image),
        }
    }
    Ok(images)
}

/// Tells whether the files of an archive look like those of a saved image, rather than like a tree that has some of them.
pub(super) fn is_image(files: &dyn ImageFiles) -> bool {
    let has = |name: &str| files.open(name).is_some();
    let docker = || {
        let mut text = Vec::new();
        let (manifest, _) = files.open("manifest.json")?;
        manifest.take(MAX_DOCUMENT).read_to_end(&mut text).ok()?;
        let list = parse_docker(&text).ok()?;
        Some(!list.is_empty() && list.iter().all(|image| has(&image.config)))
    };
    has("oci-layout") && has("index.json") || docker().unwrap_or(false)
}

fn parse_docker(text: &[u8]) -> std::result::Result<Vec<DockerImage>, String> {
    let list = golike::read(text, &golike::SAVED).and_then(serde_json::from_value);
    list.map_err(|error| format!("is not what docker save writes: {error}"))
}

fn docker_image(source: &ImageSource, image: DockerImage) -> Result<PlannedImage> {
    let DockerImage { config: file, names, layers } = image;
    let text = source.document(&file)?;
    let id = Digest::of(&text);
    // The file is usually named by its digest, which is then a promise.
    let stem = file.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if Digest::from_hex(stem).is_ok_and(|promised| promised != id) {
        return Err(source.wrong(format!("{file}: its content has the digest {id}")));
    }
    let config = Config::parse(&text).map_err(|what| source.wrong(format!("{file} {what}")))?;
    let layers = layers.unwrap_or_default();
    if layers.len() != config.diff_ids.len() {
        let (ids, files) = (config.diff_ids.len(), layers.len());
        return Err(source.wrong(format!("{file} lists {ids} layers where manifest.json has {files}")));
    }
    let names: std::result::Result<Vec<ImageName>, _> =
        names.unwrap_or_default().iter().map(|name| name.parse()).collect();
    let names = names.map_err(|error| source.wrong(format!("manifest.json: {error}")))?;
    let layers = layers
        .into_iter()
        .zip(config.diff_ids)
        .map(|(file, diff_id)| PlannedLayer { file, blob: None, diff_id, media_type: None })
        .collect();
    Ok(PlannedImage { id, config: text, manifest: None, layers, names, digests: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_document_or_refused(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_docker(&text);
            let _ = parse_index(&text).map(|index| entries(&index));
            let _ = Config::parse(&text);
            let _ = parse_manifest(&text);
        }

        /// Takes bytes that are nearly right, which get further.
        #[test]
        fn any_change_of_a_document_is_a_document_or_refused(
            at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(), which in 0..4usize,
        ) {
            let digest = Digest::of(b"x");
            let texts = [
                format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":3,"annotations":{{"org.opencontainers.image.ref.name":"a:1"}},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#),
                format!(r#"[{{"Config":"x.json","RepoTags":["a:1"],"Layers":["{digest}/layer.tar"]}}]"#),
                format!(r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["a"],"Volumes":{{"/v":{{}}}}}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}},"history":[{{"created":"2020-01-01T00:00:00Z","empty_layer":true}}]}}"#),
                format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{digest}","size":1}},"layers":[{{"mediaType":"x","digest":"{digest}","size":1}}]}}"#),
            ];
            let mut text = texts[which].clone().into_bytes();
            let length = text.len();
            text[at.index(length)] = byte;
            for text in [&text[..], &text[..cut.index(length)]] {
                let _ = parse_docker(text);
                let _ = parse_index(text).map(|index| entries(&index));
                let _ = Config::parse(text);
                let _ = parse_manifest(text);
            }
        }
    }
}
