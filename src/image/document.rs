//! Manifests, indexes and configs: small JSON documents out of untrusted hands.
//!
//! Types are those of `oci-spec`, read as Go reads them (`golike`). What it doesn't know (Docker's media types, fields that
//! Docker adds to configs) is handled here, over the documents as they are written.

use std::collections::BTreeSet;

use oci_spec::image::{Arch, ImageConfiguration, ImageManifest, Os};
use serde_json::{Map, Value, json};

use super::digest::{Digest, DigestError};
use super::golike;
use super::name::ImageName;
use super::platform::{Machine, Platform};

/// The annotation with a name, as skopeo, umoci and podman write it.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation with the full name, as containerd and Docker write it.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The annotation by which builders mark what describes an image and is none.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// An index within an index within an index is as far as any program goes.
pub(crate) const DEEPEST: usize = 3;

/// More than this is no document of an image.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

/// Says that indexes lie deeper in each other than [`DEEPEST`].
pub(crate) fn too_deep() -> String {
    format!("indexes are nested too deeply: more than {DEEPEST} deep")
}

/// Says that a document has more bytes than [`MAX_DOCUMENT`].
pub(crate) fn too_large(size: u64) -> String {
    let most = MAX_DOCUMENT >> 20;
    format!("{size} bytes are too many for a document of an image, which has {most} MiB at most")
}

/// What a descriptor in an index stands for, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DocumentKind {
    /// An image.
    Manifest,
    /// A list of images.
    Index,
    /// Something that no image needs.
    Other,
}

/// One descriptor of an index.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The manifest, or whatever it is.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// What it is called, if the annotation is a name.
    pub name: Option<ImageName>,
    /// For which machines it is, where it says so.
    pub platform: Option<Platform>,
}

impl Entry {
    /// Reads a descriptor; `None` when its digest is one that can't be checked here.
    pub fn read(descriptor: &Value) -> Option<Entry> {
        // An attestation is a manifest by its media type, and not an image.
        if descriptor.get("annotations").and_then(|annotations| annotations.get(ATTESTATION)).is_some() {
            return None;
        }
        Some(Entry {
            digest: descriptor.get("digest")?.as_str()?.parse().ok()?,
            size: descriptor.get("size")?.as_u64()?,
            media_type: descriptor.get("mediaType")?.as_str()?.to_owned(),
            name: name_of(descriptor),
            platform: descriptor.get("platform").and_then(Platform::read),
        })
    }

    /// Returns what it stands for.
    pub fn kind(&self) -> DocumentKind {
        match self.media_type.as_str() {
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => DocumentKind::Manifest,
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => DocumentKind::Index,
            _ => DocumentKind::Other,
        }
    }
}

/// Returns the annotation that names an image: containerd's full name first, since beside it OCI's is the tag alone.
fn name_of(descriptor: &Value) -> Option<ImageName> {
    let annotation = |key: &str| descriptor.get("annotations")?.get(key)?.as_str()?.parse().ok();
    annotation(CONTAINERD_NAME).or_else(|| annotation(REF_NAME))
}

/// Returns the descriptors of an index, as far as their digests can be checked here.
pub fn entries(index: &Value) -> Vec<Entry> {
    let list = index.get("manifests").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Entry::read).collect()
}

/// Reads an index, in the form that the specification gives it.
///
/// # Errors
/// When it is none by the types of oci-spec.
pub fn parse_index(text: &[u8]) -> Result<Value, String> {
    let error = |error: serde_json::Error| format!("is no index of images: {error}");
    let written: Value = serde_json::from_slice(text).map_err(error)?;
    // An empty list may be null; a document without one is something else, or a damaged one.
    let lists = |map: &Map<String, Value>| map.keys().any(|key| key.eq_ignore_ascii_case("manifests"));
    if !written.as_object().is_some_and(lists) {
        return Err("is no index of images: it has no list of manifests".to_owned());
    }
    let mut index = golike::fit(written, &golike::INDEX);
    set_default(&mut index, "schemaVersion", json!(2));
    set_default(&mut index, "manifests", json!([]));
    serde_json::from_value::<oci_spec::image::ImageIndex>(index.clone()).map_err(error)?;
    Ok(index)
}

/// Reads a manifest.
///
/// # Errors
/// When it is none by the types of oci-spec.
pub fn parse_manifest(text: &[u8]) -> Result<ImageManifest, String> {
    let error = |error: serde_json::Error| format!("is no manifest of an image: {error}");
    let mut manifest = golike::read(text, &golike::MANIFEST).map_err(error)?;
    set_default(&mut manifest, "schemaVersion", json!(2));
    set_default(&mut manifest, "layers", json!([]));
    serde_json::from_value(manifest).map_err(error)
}

/// Gives a field its value where nobody gave it one.
fn set_default(document: &mut Value, key: &str, value: Value) {
    if let Some(fields) = document.as_object_mut() {
        fields.entry(key).or_insert(value);
    }
}

/// An image's documents.
#[derive(Debug, Clone)]
pub struct Documents {
    /// The digest of the manifest.
    pub manifest_digest: Digest,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The digest of the config: what Docker and podman call the image's id.
    pub id: Digest,
    /// The config.
    pub config: Config,
}

/// An image's config.
#[derive(Debug, Clone)]
pub struct Config {
    /// By its types.
    pub typed: ImageConfiguration,
    /// As it is written, with what [`ImageConfiguration`] doesn't know (health checks, `OnBuild`), and without what
    /// nobody wrote; keys are spelled as the specification has them.
    pub written: Value,
    /// The diff ids of the layers, **bottom first**.
    pub diff_ids: Vec<Digest>,
}

impl Config {
    /// Reads a config.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &[u8]) -> Result<Config, String> {
        let error = |error: serde_json::Error| format!("is no config of an image: {error}");
        let written = golike::read(text, &golike::CONFIG).map_err(error)?;
        let mut whole = written.clone();
        // What may be missing for everybody else, and what it then is for them.
        set_default(&mut whole, "architecture", json!(Arch::default()));
        set_default(&mut whole, "os", json!(Os::Linux));
        set_default(&mut whole, "rootfs", json!({}));
        if let Some(rootfs) = whole.get_mut("rootfs") {
            set_default(rootfs, "type", json!("layers"));
            set_default(rootfs, "diff_ids", json!([]));
        }
        let typed: ImageConfiguration = serde_json::from_value(whole).map_err(error)?;
        let ids = typed.rootfs().diff_ids().iter().map(|text| text.parse());
        let diff_ids: Result<Vec<Digest>, DigestError> = ids.collect();
        Ok(Config { diff_ids: diff_ids.map_err(|error| error.to_string())?, typed, written })
    }
}

/// Where documents come from: the store, a layout, an archive.
pub trait BlobSource {
    /// What tells of a failure.
    type Error;

    /// Reads a document, whose digest is checked.
    fn fetch(&self, digest: &Digest) -> Result<Vec<u8>, Self::Error>;

    /// Returns whether it is there.
    ///
    /// # Errors
    /// When that can't be seen.
    fn has(&self, digest: &Digest) -> Result<bool, Self::Error>;

    /// Says that a document is not what it should be.
    fn bad(&self, digest: &Digest, what: String) -> Self::Error;

    /// Reads the image behind a descriptor; `None` for what is no image at all.
    ///
    /// # Errors
    /// When a document is missing or wrong, or none is for this machine.
    fn image(&self, entry: &Entry) -> Result<Option<Documents>, Self::Error> {
        self.image_if(entry, &|_| true)
    }

    /// Does as [`BlobSource::image`], of an image whose id is `wanted`; of another, the config isn't read.
    ///
    /// # Errors
    /// When a document is missing or wrong, or none is for this machine.
    fn image_if(
        &self,
        entry: &Entry,
        wanted: &dyn Fn(&Digest) -> bool,
    ) -> Result<Option<Documents>, Self::Error> {
        match entry.kind() {
            DocumentKind::Manifest => self.manifest(&entry.digest, wanted),
            DocumentKind::Index => self.manifest(&self.choose(&entry.digest)?.digest, wanted),
            DocumentKind::Other => Ok(None),
        }
    }

    /// Returns, of an index for several platforms, the image that runs best here; the only one that is there, whatever
    /// it is for.
    fn choose(&self, digest: &Digest) -> Result<Entry, Self::Error> {
        let mut there = Vec::new();
        self.gather(digest, 0, &mut BTreeSet::new(), &mut there)?;
        let best = there
            .iter()
            .filter_map(|(entry, platform)| Some((platform.as_ref()?.rank()?, entry)))
            .min_by_key(|(rank, _)| *rank);
        match (best, &there[..]) {
            (Some((_, entry)), _) | (None, [(entry, _)]) => Ok(entry.clone()),
            (None, []) => Err(self.bad(digest, "lists images of which none is there".into())),
            (None, others) => {
                let names = others.iter().map(|(_, platform)| match platform {
                    Some(platform) => platform.to_string(),
                    None => "an unknown platform".to_owned(),
                });
                // A few of them tell what the rest is.
                let names = names.take(12).collect::<Vec<_>>().join(", ");
                Err(self.bad(digest, format!("lists no image for {}, but for {names}", Machine::here())))
            }
        }
    }

    /// Returns the images of an index, and of the indexes in it, that are there; and for what they are, by the index or
    /// by themselves. Each is looked at once, however often it is listed.
    fn gather(
        &self,
        digest: &Digest,
        depth: usize,
        seen: &mut BTreeSet<Digest>,
        there: &mut Vec<(Entry, Option<Platform>)>,
    ) -> Result<(), Self::Error> {
        if depth > DEEPEST {
            return Err(self.bad(digest, too_deep()));
        }
        let index = parse_index(&self.fetch(digest)?).map_err(|what| self.bad(digest, what))?;
        for entry in entries(&index) {
            if !seen.insert(entry.digest) || !self.has(&entry.digest)? {
                continue;
            }
            match entry.kind() {
                DocumentKind::Index => self.gather(&entry.digest, depth + 1, seen, there)?,
                DocumentKind::Manifest => {
                    let platform = entry.platform.clone().or_else(|| {
                        // A broken one is told when it is chosen.
                        let documents = self.manifest(&entry.digest, &|_| true).ok().flatten()?;
                        Platform::read(&documents.config.written)
                    });
                    there.push((entry, platform));
                }
                DocumentKind::Other => {}
            }
        }
        Ok(())
    }

    /// Reads a manifest and its config.
    fn manifest(
        &self,
        digest: &Digest,
        wanted: &dyn Fn(&Digest) -> bool,
    ) -> Result<Option<Documents>, Self::Error> {
        let manifest = parse_manifest(&self.fetch(digest)?).map_err(|what| self.bad(digest, what))?;
        if !is_config(manifest.config().media_type().as_ref()) {
            return Ok(None);
        }
        let id = Digest::try_from(manifest.config().digest())
            .map_err(|error| self.bad(digest, error.to_string()))?;
        if !wanted(&id) {
            return Ok(None);
        }
        let config = Config::parse(&self.fetch(&id)?).map_err(|what| self.bad(&id, what))?;
        let (ids, layers) = (config.diff_ids.len(), manifest.layers().len());
        if ids != layers {
            return Err(self.bad(&id, format!("lists {ids} layers where the manifest has {layers}")));
        }
        Ok(Some(Documents { manifest_digest: *digest, manifest, id, config }))
    }
}

fn is_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

/// Checks that a layer's media type is one whose content is understood.
///
/// # Errors
/// For encrypted layers and unknown media types, in words.
pub fn check_layer_type(media_type: &str) -> Result<(), String> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(()),
        encrypted if encrypted.ends_with("+encrypted") => {
            Err("is encrypted; decrypt the image first, as with \
             skopeo copy --decryption-key"
                .into())
        }
        unknown => Err(format!("has the unknown media type {unknown:?}")),
    }
}
