//! What `docker save` and `podman save` write: a list of images in `manifest.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use serde::Deserialize;

use super::found::{Found, FoundIn, Listed, OnError, PlannedImage, PlannedLayer};
use crate::image::digest::Digest;
use crate::image::document::{Config, MAX_DOCUMENT, parse_manifest};
use crate::image::error::Result;
use crate::image::golike;
use crate::image::name::ImageName;
use crate::image::platform::Platform;
use crate::image::source::{ImageFiles, ImageSource, normal_name};

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
pub(super) struct DockerImage {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    names: Option<Vec<String>>,
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

/// Returns the images of `manifest.json`.
pub(super) fn listed(source: &ImageSource) -> Result<Vec<Listed>> {
    let text = source.document("manifest.json")?;
    // A manifest itself, where a list of images is expected.
    if source.has_file("version") && parse_manifest(&text).is_ok() {
        let what = "is a directory of the form dir: (skopeo) or docker-dir (podman), which keeps no image's name; copy it \
                    first: skopeo copy dir:DIR oci:LAYOUT:NAME";
        return Err(source.wrong(what));
    }
    let list = parse_docker(&text);
    let list = list.map_err(|what| source.wrong(format!("manifest.json {what}")))?;
    let each = list.into_iter().map(|DockerImage { config, names, layers }| {
        let names: std::result::Result<Vec<ImageName>, _> =
            names.unwrap_or_default().iter().map(|name| name.parse()).collect();
        let names = names.map_err(|error| source.wrong(format!("manifest.json: {error}")))?;
        Ok(Listed { names, config, layers: layers.unwrap_or_default() })
    });
    each.collect()
}

/// Finds the images of a list. Each config is read once, however often it is named.
pub(super) fn find(source: &ImageSource, list: Vec<Listed>, wrong: OnError<'_>) -> Result<Vec<Found>> {
    let mut images: Vec<Found> = Vec::new();
    let mut by_id = BTreeMap::new();
    let mut by_file: BTreeMap<String, Option<usize>> = BTreeMap::new();
    let mut named = BTreeSet::new();
    for mut listed in list {
        let file = normal_name(&listed.config).unwrap_or_else(|| listed.config.clone());
        let names = std::mem::take(&mut listed.names);
        let at = match by_file.get(&file) {
            Some(known) => *known,
            None => {
                let at = match config(source, &listed) {
                    Ok((id, _, config)) => {
                        let at = *by_id.entry(id).or_insert(images.len());
                        if at == images.len() {
                            let rank = Platform::read(&config.written).and_then(|own| own.rank());
                            let (names, digests) = (Vec::new(), Vec::new());
                            images.push(Found { id, names, digests, rank, place: FoundIn::Docker(listed) });
                        }
                        Some(at)
                    }
                    Err(error) => {
                        wrong(error)?;
                        None
                    }
                };
                by_file.insert(file, at);
                at
            }
        };
        for name in names {
            if let Some(at) = at
                && named.insert((at, name.clone()))
            {
                images[at].names.push(name);
            }
        }
    }
    Ok(images)
}

/// Reads the config of an image.
fn config(source: &ImageSource, listed: &Listed) -> Result<(Digest, Vec<u8>, Config)> {
    let file = &listed.config;
    let text = source.document(file)?;
    let id = Digest::of(&text);
    // The file is usually named by its digest, which is then a promise.
    let stem = file.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if Digest::from_hex(stem).is_ok_and(|promised| promised != id) {
        return Err(source.wrong(format!("{file}: its content has the digest {id}")));
    }
    let config = Config::parse(&text).map_err(|what| source.wrong(format!("{file} {what}")))?;
    let (ids, files) = (config.diff_ids.len(), listed.layers.len());
    if files != ids {
        return Err(source.wrong(format!("{file} lists {ids} layers where manifest.json has {files}")));
    }
    Ok((id, text, config))
}

/// Reads an image that was found.
pub(super) fn read(
    source: &ImageSource,
    listed: Listed,
    (id, names): (Digest, Vec<ImageName>),
) -> Result<PlannedImage> {
    let (found, text, config) = config(source, &listed)?;
    if found != id {
        return Err(source.wrong(format!("{} was changed while it was read", listed.config)));
    }
    let layers = listed
        .layers
        .into_iter()
        .zip(config.diff_ids)
        .map(|(file, diff_id)| PlannedLayer { file, blob: None, diff_id, media_type: None })
        .collect();
    Ok(PlannedImage { id, config: text, manifest: None, layers, names })
}

/// Tells whether the files of an archive look like those of a saved image, rather than like a tree that has some of them.
pub(in crate::image) fn is_image(files: &dyn ImageFiles) -> bool {
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

pub(super) fn parse_docker(text: &[u8]) -> std::result::Result<Vec<DockerImage>, String> {
    let list = golike::read(text, &golike::SAVED).and_then(serde_json::from_value);
    list.map_err(|error| format!("is not what docker save writes: {error}"))
}
