//! Saving: images leave the store as an archive that podman, skopeo, umoci and Docker read.
//!
//! The same images give the same archive, byte for byte: times are 0, owners root, order fixed. Every digest is checked once
//! more on the way out. An OCI layout has a `manifest.json` beside its `index.json`, as Docker writes it since version 25:
//! Docker before that reads nothing else, and podman reads several images out of one archive only by it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};

use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::compression::decode;
use super::digest::{Digest, Hashing};
use super::document::{BlobSource, CONTAINERD_NAME, REF_NAME};
use super::error::{Result, StoreError};
use super::name::ImageName;
use super::store::{Blob, Image, Store};

/// The form of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An OCI layout: blobs as they are in the store.
    Oci,
    /// What `docker save` wrote before version 25: uncompressed layers.
    Docker,
}

/// An image that is to be saved.
#[derive(Debug)]
pub struct Saved {
    /// The image.
    pub image: Image,
    /// The names that the archive gives it.
    pub names: Vec<ImageName>,
}

/// Finds what is to be saved: by a name, an image with that name; by an id, an image without a name.
///
/// # Errors
/// When one of them is not in the store.
pub fn select(store: &Store, texts: &[String]) -> Result<Vec<Saved>> {
    let mut all: Vec<Saved> = Vec::new();
    for text in texts {
        let image = store.resolve(text)?;
        let name = image.name_meant_by(text);
        match all.iter_mut().find(|saved| saved.image.id == image.id) {
            Some(saved) => saved.names.extend(name),
            None => all.push(Saved { image, names: name.into_iter().collect() }),
        }
    }
    for saved in &mut all {
        saved.names.sort();
        saved.names.dedup();
    }
    Ok(all)
}

/// Writes images into an archive.
///
/// # Errors
/// When something of them is missing or damaged, or `out` fails.
pub fn save(store: &Store, images: &[Saved], format: Format, out: impl Write) -> Result<()> {
    let _kept = store.keep_all()?;
    // Found before anything kept it.
    images.iter().try_for_each(|saved| store.still_has(&saved.image))?;
    let mut archive = Archive { tar: tar::Builder::new(out) };
    match format {
        Format::Oci => save_oci(store, images, &mut archive)?,
        Format::Docker => save_docker(store, images, &mut archive)?,
    }
    let mut out = archive.tar.into_inner().map_err(written)?;
    out.flush().map_err(written)
}

fn written(error: io::Error) -> StoreError {
    StoreError::Refused(format!("the archive cannot be written: {error}"))
}

/// An archive being written.
struct Archive<W: Write> {
    tar: tar::Builder<W>,
}

impl<W: Write> Archive<W> {
    fn directory(&mut self, name: &str) -> Result<()> {
        self.append(header(EntryType::Directory, 0o755, 0), name, io::empty())
    }

    fn text(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.file(name, content.len() as u64, content)
    }

    fn file(&mut self, name: &str, size: u64, content: impl Read) -> Result<()> {
        self.append(header(EntryType::Regular, 0o644, size), name, content)
    }

    fn append(&mut self, mut header: Header, name: &str, content: impl Read) -> Result<()> {
        self.tar.append_data(&mut header, name, content).map_err(written)
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn save_oci<W: Write>(store: &Store, images: &[Saved], archive: &mut Archive<W>) -> Result<()> {
    let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
    let mut descriptors = Vec::new();
    let mut docker = Vec::new();
    for Saved { image, names } in images {
        docker.push(docker_manifest(image, names)?);
        let manifest = store.fetch(&image.manifest_digest)?;
        blobs.insert(image.manifest_digest, manifest.len() as u64);
        for part in image.manifest.layers().iter().chain([image.manifest.config()]) {
            blobs.insert(Digest::try_from(part.digest())?, part.size());
        }
        let descriptor = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.manifest_digest,
            "size": manifest.len(),
        });
        if names.is_empty() {
            descriptors.push(descriptor);
            continue;
        }
        for name in names {
            let mut named = descriptor.clone();
            named["annotations"] = json!({ REF_NAME: name, CONTAINERD_NAME: name.full() });
            descriptors.push(named);
        }
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": descriptors,
    });
    archive.text("oci-layout", super::store::LAYOUT.as_bytes())?;
    archive.text("index.json", index.to_string().as_bytes())?;
    archive.text("manifest.json", Value::Array(docker).to_string().as_bytes())?;
    archive.directory("blobs/")?;
    archive.directory("blobs/sha256/")?;
    for (digest, size) in blobs {
        let path = store.blob_path(&digest);
        let mut blob = Hashing::new(open(store, &digest)?.take(size));
        archive.file(&super::source::blob_name(&digest), size, &mut blob)?;
        let found = blob.finish().1;
        if found != digest {
            return Err(StoreError::damaged(path, format!("its content has the digest {found}")));
        }
    }
    Ok(())
}

/// Returns what `manifest.json` says of an image whose parts are the blobs of a layout.
fn docker_manifest(image: &Image, names: &[ImageName]) -> Result<Value> {
    let mut layers = Vec::new();
    for layer in image.manifest.layers() {
        layers.push(super::source::blob_name(&Digest::try_from(layer.digest())?));
    }
    let config = super::source::blob_name(&image.id);
    Ok(json!({ "Config": config, "RepoTags": tags(names), "Layers": layers }))
}

fn tags(names: &[ImageName]) -> Value {
    if names.is_empty() { Value::Null } else { json!(names) }
}

fn save_docker<W: Write>(store: &Store, images: &[Saved], archive: &mut Archive<W>) -> Result<()> {
    let mut written = BTreeSet::new();
    let mut manifest = Vec::new();
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for Saved { image, names } in images {
        let mut files = Vec::new();
        for (diff_id, layer) in image.diff_ids.iter().zip(image.manifest.layers()) {
            let file = format!("{}.tar", diff_id.hex());
            if written.insert(*diff_id) {
                let blob = Blob { digest: Digest::try_from(layer.digest())?, size: layer.size() };
                docker_layer(store, *diff_id, blob, &file, archive)?;
            }
            files.push(file);
        }
        let config = format!("{}.json", image.id.hex());
        if written.insert(image.id) {
            archive.text(&config, &store.fetch(&image.id)?)?;
        }
        manifest.push(json!({ "Config": config, "RepoTags": tags(names), "Layers": files }));
        if let Some(top) = image.diff_ids.last() {
            for name in names {
                repositories.entry(name.repository()).or_default().insert(name.tag().to_owned(), top.hex());
            }
        }
    }
    archive.text("manifest.json", Value::Array(manifest).to_string().as_bytes())?;
    if !repositories.is_empty() {
        archive.text("repositories", json!(repositories).to_string().as_bytes())?;
    }
    Ok(())
}

/// Writes a layer's tar, out of whatever compression.
fn docker_layer<W: Write>(
    store: &Store,
    diff_id: Digest,
    blob: Blob,
    file: &str,
    archive: &mut Archive<W>,
) -> Result<()> {
    let path = store.blob_path(&blob.digest);
    let tar = || -> Result<Box<dyn Read + Send>> {
        let input = BufReader::with_capacity(256 << 10, open(store, &blob.digest)?);
        decode(input).map(|(_, tar)| tar).map_err(StoreError::io("decompress it", &path))
    };
    // A tar's header comes before its content and tells its size.
    let size = match store.layer_record(&diff_id)? {
        Some(record) => record.tar_size,
        None if blob.digest == diff_id => blob.size,
        None => io::copy(&mut tar()?, &mut io::sink()).map_err(StoreError::io("decompress it", &path))?,
    };
    let mut content = Hashing::new(tar()?.take(size));
    archive.file(file, size, &mut content)?;
    let found = content.finish().1;
    if found != diff_id {
        return Err(StoreError::damaged(
            path,
            format!("its content has the diff id {found} instead of {diff_id}"),
        ));
    }
    Ok(())
}

fn open(store: &Store, digest: &Digest) -> Result<File> {
    let path = store.blob_path(digest);
    File::open(&path).map_err(StoreError::io("open it", &path))
}
