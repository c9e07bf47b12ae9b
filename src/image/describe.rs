//! What is known of an image, in the shapes in which Docker tells it: rows of `images`, rows of `history`, `inspect`.

use oci_spec::image::{Descriptor, ImageConfiguration};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::digest::Digest;
use super::error::Result;
use super::name::ImageName;
use super::store::{CONTENT_SIZE, Image, Store};

/// A step of an image's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// When it was made, as the config says it.
    pub created: Option<String>,
    /// What made it.
    pub created_by: String,
    /// The bytes of its layer's files; 0 for a step without a layer.
    pub size: u64,
    /// What its author says of it.
    pub comment: String,
    /// Its layer, unless it has none.
    pub diff_id: Option<Digest>,
}

/// Returns what a layer's descriptor says of the bytes of its files.
pub(crate) fn content_size(layer: &Descriptor) -> Option<u64> {
    layer.annotations().as_ref()?.get(CONTENT_SIZE)?.parse().ok()
}

/// Returns the steps that a config tells, the oldest first, and one more for each layer of which it tells none. Sizes aren't known here.
pub(super) fn steps(config: &ImageConfiguration, diff_ids: &[Digest]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut layer = 0;
    for told in config.history().iter().flatten() {
        let empty = told.empty_layer().unwrap_or(false) || layer >= diff_ids.len();
        steps.push(Step {
            created: told.created().clone(),
            created_by: told.created_by().clone().unwrap_or_default(),
            size: 0,
            comment: told.comment().clone().unwrap_or_default(),
            diff_id: (!empty).then(|| diff_ids[layer]),
        });
        layer += usize::from(!empty);
    }
    steps.extend(diff_ids[layer..].iter().map(|diff_id| Step {
        created: config.created().clone(),
        created_by: String::new(),
        size: 0,
        comment: String::new(),
        diff_id: Some(*diff_id),
    }));
    steps
}

impl Store {
    /// Returns the bytes of a layer's files; of one that is not unpacked and of which nobody says it, the size of its
    /// blob.
    fn layer_size(&self, image: &Image, at: usize) -> Result<u64> {
        let Some(diff_id) = image.diff_ids.get(at) else { return Ok(0) };
        match self.unless_gone(image, self.layer_record(diff_id)) {
            Ok(Some(record)) => Ok(record.size),
            Err(error) if !error.is_damage() => Err(error),
            // A damaged record is made again with its layer, when that is needed.
            Ok(None) | Err(_) => Ok(image
                .manifest
                .layers()
                .get(at)
                .map_or(0, |layer| content_size(layer).unwrap_or_else(|| layer.size()))),
        }
    }

    /// Returns the bytes of all files of an image's layers.
    ///
    /// # Errors
    /// When a layer's record is damaged.
    pub fn image_size(&self, image: &Image) -> Result<u64> {
        (0..image.diff_ids.len()).map(|at| self.layer_size(image, at)).sum()
    }

    /// Returns an image's history, the newest step first. Steps without a layer are kept; layers of which the config
    /// tells no step get one.
    ///
    /// # Errors
    /// When a layer's record is damaged.
    pub fn history(&self, image: &Image) -> Result<Vec<Step>> {
        let mut steps = steps(&image.config, &image.diff_ids);
        let with_layer = steps.iter_mut().filter(|step| step.diff_id.is_some());
        for (at, step) in with_layer.enumerate() {
            step.size = self.layer_size(image, at)?;
        }
        steps.reverse();
        Ok(steps)
    }

    /// Returns an image as `docker image inspect` shows it, with `layers` as what `unionmount --lower` takes, and beside Docker's words
    /// what of it is unpacked.
    ///
    /// # Errors
    /// When a layer's record is damaged.
    pub fn inspect_image(&self, image: &Image, layers: &[std::path::PathBuf]) -> Result<Value> {
        let document = &image.document;
        let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default();
        let comment =
            image.config.history().iter().flatten().next_back().and_then(|step| step.comment().clone());
        let repositories: Vec<String> = {
            let mut list: Vec<String> = image.names.iter().map(ImageName::repository).collect();
            list.dedup();
            let mut list: Vec<String> =
                list.into_iter().map(|name| format!("{name}@{}", image.manifest_digest)).collect();
            let others: Vec<String> =
                image.origins.iter().filter(|&origin| !list.contains(origin)).cloned().collect();
            list.extend(others);
            list
        };
        let mut shown = json!({
            "Id": image.id,
            "RepoTags": image.names,
            "RepoDigests": repositories,
            "Parent": "",
            "Comment": comment.unwrap_or_default(),
            "Created": text("created"),
            "Author": text("author"),
            "Config": config(document),
            "Architecture": text("architecture"),
            "Os": text("os"),
            "Size": self.image_size(image)?,
            "GraphDriver": graph_driver(layers, None),
            "RootFS": { "Type": "layers", "Layers": image.diff_ids },
            "Unpacked": self.told_as_unpacked(image),
            "Metadata": { "LastTagTime": Value::Null },
        });
        for (key, from) in [("Variant", "variant"), ("OsVersion", "os.version")] {
            if let Some(value) = document.get(from) {
                shown[key] = value.clone();
            }
        }
        Ok(shown)
    }
}

/// Returns where the layers lie. Of an image, as Docker tells it: the topmost layer is `UpperDir`, those below are
/// `LowerDir`; nothing is mounted.
///
/// A container gives its own upper, work and merged directories.
pub fn graph_driver(layers: &[std::path::PathBuf], container: Option<ContainerDirs<'_>>) -> Value {
    let join = |paths: &[std::path::PathBuf]| {
        paths.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>().join(":")
    };
    let mut data = Map::new();
    let (upper, lowers) = match container {
        Some(dirs) => {
            data.insert("WorkDir".into(), json!(dirs.work));
            data.insert("MergedDir".into(), json!(dirs.merged));
            (json!(dirs.upper), layers)
        }
        None => {
            data.insert("WorkDir".into(), Value::Null);
            data.insert("MergedDir".into(), Value::Null);
            match layers.split_first() {
                Some((top, below)) => (json!(top), below),
                None => (Value::Null, layers),
            }
        }
    };
    data.insert("UpperDir".into(), upper);
    data.insert("LowerDir".into(), if lowers.is_empty() { Value::Null } else { json!(join(lowers)) });
    json!({ "Name": "unionmount", "Data": data })
}

/// The directories of a container.
#[derive(Debug, Clone, Copy)]
pub struct ContainerDirs<'a> {
    /// Its upper.
    pub upper: &'a std::path::Path,
    /// Its workdir.
    pub work: &'a std::path::Path,
    /// Where it is mounted.
    pub merged: &'a std::path::Path,
}

/// Returns the config with the fields that Docker always shows.
fn config(document: &Value) -> Value {
    let mut shown = json!({
        "User": "", "Env": Value::Null, "Cmd": Value::Null, "Volumes": Value::Null, "WorkingDir": "",
        "Entrypoint": Value::Null, "Labels": Value::Null,
    });
    if let (Value::Object(shown), Some(Value::Object(written))) = (&mut shown, document.get("config")) {
        shown.extend(written.clone());
    }
    shown
}
