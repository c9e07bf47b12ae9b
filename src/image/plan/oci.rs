//! OCI layouts: what their index lists.

use std::collections::{BTreeMap, BTreeSet};

use super::found::{Found, FoundIn, OnError, PlannedImage, PlannedLayer};
use crate::image::digest::Digest;
use crate::image::document::{
    BlobSource, Config, DEEPEST, DocumentKind, Entry, entries, parse_index, parse_manifest,
};
use crate::image::error::Result;
use crate::image::name::ImageName;
use crate::image::platform::Platform;
use crate::image::source::{ImageSource, blob_name};
use crate::image::store::Blob;

/// Returns what `index.json` lists.
pub(super) fn listed(source: &ImageSource) -> Result<Vec<Entry>> {
    let index = parse_index(&source.document("index.json")?);
    Ok(entries(&index.map_err(|what| source.wrong(format!("index.json {what}")))?))
}

/// Keeps, of several images with one name, for several platforms, the one that runs best here.
pub(super) fn best(mut listed: Vec<Entry>) -> Vec<Entry> {
    let rank = |entry: &Entry| entry.platform.as_ref().and_then(Platform::rank);
    let mut best: BTreeMap<ImageName, u32> = BTreeMap::new();
    for entry in &listed {
        if let (Some(name), Some(rank)) = (&entry.name, rank(entry)) {
            let least = best.entry(name.clone()).or_insert(rank);
            *least = rank.min(*least);
        }
    }
    listed.retain(|entry| {
        let better = entry.name.as_ref().and_then(|name| best.get(name));
        entry.platform.is_none() || better.is_none_or(|better| rank(entry) == Some(*better))
    });
    listed
}

/// Finds the images of entries. Each document is read once, however often it is listed.
pub(super) fn find(source: &ImageSource, listed: Vec<Entry>, wrong: OnError<'_>) -> Result<Vec<Found>> {
    let mut images: Vec<Found> = Vec::new();
    let mut by_id = BTreeMap::new();
    let mut by_entry: BTreeMap<(Digest, DocumentKind), Option<usize>> = BTreeMap::new();
    let mut named = BTreeSet::new();
    let mut strange = None;
    for entry in listed {
        let key = (entry.digest, entry.kind());
        let at = match by_entry.get(&key) {
            Some(known) => *known,
            None => {
                let at = match source.image(&entry) {
                    Ok(Some(documents)) => {
                        let at = *by_id.entry(documents.id).or_insert(images.len());
                        if at == images.len() {
                            let rank = Platform::read(&documents.config.written).and_then(|own| own.rank());
                            let place = FoundIn::Oci(entry.clone(), documents.manifest_digest);
                            let (names, digests) = (Vec::new(), Vec::new());
                            images.push(Found { id: documents.id, names, digests, rank, place });
                        }
                        images[at].digests.extend([entry.digest, documents.manifest_digest]);
                        Some(at)
                    }
                    Ok(None) => {
                        strange = Some(entry.clone());
                        None
                    }
                    Err(error) => {
                        wrong(error)?;
                        None
                    }
                };
                by_entry.insert(key, at);
                at
            }
        };
        if let (Some(at), Some(name)) = (at, entry.name)
            && named.insert((at, name.clone()))
        {
            images[at].names.push(name);
        }
    }
    match strange {
        Some(entry) if images.is_empty() => {
            let what = artifact_type(source, &entry).unwrap_or(entry.media_type);
            wrong(source.wrong(format!("holds no image, but an artifact of type {what:?}")))?;
            Ok(images)
        }
        _ => Ok(images),
    }
}

/// Returns the entries among which the image of a digest is, whatever machine it is for: those that are called so, in this index or one
/// in it, or else all of them.
pub(super) fn with_digest(
    source: &ImageSource,
    listed: Vec<Entry>,
    digest: &Digest,
    wrong: OnError<'_>,
) -> Result<Vec<Entry>> {
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    let mut level = listed;
    for _ in 0..=DEEPEST {
        let meant: Vec<Entry> = level.iter().filter(|entry| entry.digest == *digest).cloned().collect();
        if !meant.is_empty() {
            return Ok(meant);
        }
        let mut next = Vec::new();
        for entry in level {
            if !seen.insert((entry.digest, entry.kind())) {
                continue;
            }
            match entry.kind() {
                DocumentKind::Index => match source.fetch(&entry.digest).map(|text| parse_index(&text)) {
                    Ok(Ok(index)) => next.extend(entries(&index)),
                    Ok(Err(what)) => wrong(source.bad(&entry.digest, what))?,
                    Err(error) => wrong(error)?,
                },
                DocumentKind::Manifest | DocumentKind::Other => all.push(entry),
            }
        }
        // An index lists what isn't saved as well.
        next.retain(|entry| source.has_file(&blob_name(&entry.digest)));
        level = next;
    }
    Ok(all)
}

/// Returns what something is that is no image: by its manifest's own words, or by its config's type.
fn artifact_type(source: &ImageSource, entry: &Entry) -> Option<String> {
    let manifest = parse_manifest(&source.fetch(&entry.digest).ok()?).ok()?;
    let kind = manifest.artifact_type().as_ref().unwrap_or(manifest.config().media_type());
    Some(kind.to_string())
}

/// Reads an image that was found.
pub(super) fn read(
    source: &ImageSource,
    entry: &Entry,
    manifest_digest: Digest,
    (id, names): (Digest, Vec<ImageName>),
) -> Result<PlannedImage> {
    if entry.kind() == DocumentKind::Manifest {
        let size = source.size(&blob_name(&manifest_digest))?;
        if size != entry.size {
            let what = format!("has {size} bytes where index.json says {}", entry.size);
            return Err(source.bad(&manifest_digest, what));
        }
    }
    let manifest_text = source.fetch(&manifest_digest)?;
    let manifest = parse_manifest(&manifest_text).map_err(|what| source.bad(&manifest_digest, what))?;
    let text = source.fetch(&id)?;
    if text.len() as u64 != manifest.config().size() {
        let what = format!("has {} bytes where the manifest says {}", text.len(), manifest.config().size());
        return Err(source.bad(&id, what));
    }
    let config = Config::parse(&text).map_err(|what| source.bad(&id, what))?;
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
    let manifest = all_oci.then_some((manifest_text, media_type));
    Ok(PlannedImage { id, config: text, manifest, layers, names })
}
