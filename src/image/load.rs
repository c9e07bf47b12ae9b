//! Loading: what an archive or a layout holds comes into the store, whole or not at all.
//!
//! ```text
//! ImageSource (directory | archive | spooled stream)
//!   └── plan: images, each with config, manifest, layers, names      (oci, docker)
//!         └── layers that are not there yet, several at once          (Staging::ingest)
//!               └── Staging::publish
//! ```

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::MultiProgress;
use parking_lot::Mutex;

use super::compression::Compression;
use super::digest::Digest;
use super::document::check_layer_type;
use super::error::{Result, StoreError};
use super::layer::Limits;
use super::name::ImageName;
use super::plan::{PlannedImage, PlannedLayer, plan};
use super::progress::added;
use super::source::ImageSource;
use super::store::{AddedLayer, Blob, Image, Staging, Store, Take};

use crate::sys::threads::on_threads;

pub use super::source::{Input, RemoteImage};

/// More layers at once gain nothing, and each takes memory.
const MOST_JOBS: usize = 4;

/// How to load.
#[derive(Debug)]
pub struct LoadOptions {
    /// Against bombs: for each layer, and for the archive as a whole.
    pub limits: Limits,
    /// Whether layers are unpacked now, and not when they are first needed.
    pub unpack: bool,
    /// Where progress is shown.
    pub progress: MultiProgress,
}

/// An image that was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// Its id.
    pub id: Digest,
    /// The names that it has now by what the archive says.
    pub names: Vec<ImageName>,
    /// Names that were another image's before, and whose.
    pub taken: Vec<(ImageName, Digest)>,
}

/// Loads all images of an archive or a layout.
///
/// # Errors
/// When anything of it is wrong; the store is then as it was.
pub fn load(store: &Store, input: &Input, options: &LoadOptions) -> Result<Vec<Loaded>> {
    let staging = store.begin()?;
    let source = ImageSource::open(input, &staging, options.limits.bytes, &options.progress)?;
    load_from(staging, &source, options)
}

/// Loads an image that lies elsewhere. What the store has is not read.
///
/// # Errors
/// As [`load`].
pub fn load_remote(store: &Store, image: Arc<dyn RemoteImage>, options: &LoadOptions) -> Result<Vec<Loaded>> {
    load_from(store.begin()?, &ImageSource::remote(image), options)
}

fn load_from(staging: Staging<'_>, source: &ImageSource, options: &LoadOptions) -> Result<Vec<Loaded>> {
    let store = staging.store();
    let images = plan(source)?;
    let before = store.catalog()?.images;
    let known = known_layers(store, &before)?;
    let layers = wanted_layers(source, &staging, &images, (&before, &known), options.unpack)?;
    let added = take_layers(source, &staging, layers, options)?;
    for image in &images {
        if let Some(there) = before.iter().find(|there| there.id == image.id && store.is_complete(there)) {
            staging.name_again(there, &image.names)?;
            continue;
        }
        add(&staging, image, &known, &added)?;
    }
    let loaded = images.iter().map(|image| Loaded {
        id: image.id,
        names: image.names.clone(),
        taken: image.names.iter().filter_map(|name| taken(&before, image.id, name)).collect(),
    });
    let loaded = loaded.collect();
    staging.publish()?;
    Ok(loaded)
}

/// Says whose name it was before.
fn taken(before: &[Image], id: Digest, name: &ImageName) -> Option<(ImageName, Digest)> {
    let owner = before.iter().find(|image| image.names.contains(name))?;
    (owner.id != id).then(|| (name.clone(), owner.id))
}

/// Returns the layers of the store by their diff ids, as far as their blobs are there.
fn known_layers(store: &Store, images: &[Image]) -> Result<BTreeMap<Digest, AddedLayer>> {
    let mut known = BTreeMap::new();
    for image in images.iter().filter(|image| store.is_complete(image)) {
        for (diff_id, layer) in image.diff_ids.iter().zip(image.manifest.layers()) {
            let blob = Blob { digest: Digest::try_from(layer.digest())?, size: layer.size() };
            let compression = match layer.media_type().as_ref() {
                gzip if gzip.ends_with("gzip") => Compression::Gzip,
                zstd if zstd.ends_with("zstd") => Compression::Zstd,
                _ => Compression::None,
            };
            known.insert(*diff_id, AddedLayer { diff_id: *diff_id, blob, compression, content: None });
        }
    }
    Ok(known)
}

/// A layer that has to be read.
struct Wanted<'a> {
    layer: &'a PlannedLayer,
    /// Where it stands, for messages.
    place: String,
    store: bool,
    unpack: bool,
    /// What is read: the source, unless the blob is in the store already.
    from_store: Option<Blob>,
}

/// Returns the layers of which the store lacks the blob or the tree, each once.
fn wanted_layers<'a>(
    source: &ImageSource,
    staging: &Staging<'_>,
    images: &'a [PlannedImage],
    (before, known): (&[Image], &BTreeMap<Digest, AddedLayer>),
    unpack: bool,
) -> Result<Vec<Wanted<'a>>> {
    let store = staging.store();
    let mut seen = HashSet::new();
    let mut wanted = Vec::new();
    for image in images {
        let whole = before.iter().any(|there| there.id == image.id && store.is_complete(there));
        for (at, layer) in image.layers.iter().enumerate() {
            let place = format!("layer {} of {} ({})", at + 1, image.layers.len(), layer.name());
            if let Some(media_type) = &layer.media_type {
                check_layer_type(media_type).map_err(|what| source.wrong(format!("{place} {what}")))?;
            }
            if !seen.insert((layer.diff_id, layer.blob.map(|blob| blob.digest))) {
                continue;
            }
            let unpack = unpack && store.layer_record(&layer.diff_id)?.is_none();
            // Which blob the image's manifest will name: its own, or, where the archive promises none, any that is there.
            let there = match layer.blob {
                _ if whole => known.get(&layer.diff_id).map(|known| known.blob),
                Some(blob) => staging.has_blob(blob).then_some(blob),
                None => known.get(&layer.diff_id).map(|known| known.blob),
            };
            // A blob of the store is known to be this layer only where an image of the store says so.
            let proven =
                there.is_some_and(|blob| known.get(&layer.diff_id).is_some_and(|known| known.blob == blob));
            if there.is_some() && proven && !unpack {
                continue;
            }
            if there.is_none() && !source.has_file(&layer.file) {
                return Err(source.wrong(format!("{place}: {} is missing", layer.file)));
            }
            wanted.push(Wanted { layer, place, store: there.is_none(), unpack, from_store: there });
        }
    }
    Ok(wanted)
}

/// Reads layers, several at once, the largest first.
fn take_layers(
    source: &ImageSource,
    staging: &Staging<'_>,
    mut wanted: Vec<Wanted<'_>>,
    options: &LoadOptions,
) -> Result<Vec<AddedLayer>> {
    let sizes: Vec<u64> = wanted.iter().map(|wanted| size_of(source, wanted)).collect::<Result<_>>()?;
    // Before anything is fetched: what a registry says of sizes is no more than its word.
    let sum = sizes.iter().fold(0u64, |sum, size| sum.saturating_add(*size));
    if source.is_remote() && sum > options.limits.bytes {
        return Err(source.wrong(format!(
            "its layers have {sum} bytes, more than --max-size allows; raise it if that is meant"
        )));
    }
    let mut order: Vec<(u64, Wanted<'_>)> = sizes.into_iter().zip(wanted.drain(..)).collect();
    order.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = if source.is_remote() { MOST_JOBS } else { processors.min(MOST_JOBS) };
    let jobs = jobs.min(order.len());
    let queue = Mutex::new(VecDeque::from(order));
    let added = Mutex::new(Vec::new());
    let failure = Mutex::new(None);
    let stop = AtomicBool::new(false);
    // Two images may have one tree out of two blobs; it is unpacked once.
    let unpacking = Mutex::new(HashSet::new());
    on_threads(jobs, &|| {
        while !stop.load(Ordering::Relaxed) {
            let Some((size, mut wanted)) = queue.lock().pop_front() else { return };
            wanted.unpack = wanted.unpack && unpacking.lock().insert(wanted.layer.diff_id);
            match take_layer(source, staging, &wanted, size, options, &stop) {
                Ok(layer) => added.lock().push(layer),
                Err(error) => {
                    // The first failure is the cause; those that it stops are not.
                    failure.lock().get_or_insert(error);
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    });
    match failure.into_inner() {
        Some(error) => Err(error),
        None => Ok(added.into_inner()),
    }
}

fn size_of(source: &ImageSource, wanted: &Wanted<'_>) -> Result<u64> {
    match wanted.from_store {
        Some(blob) => Ok(blob.size),
        None => source.size(&wanted.layer.file),
    }
}

fn take_layer(
    source: &ImageSource,
    staging: &Staging<'_>,
    wanted: &Wanted<'_>,
    size: u64,
    options: &LoadOptions,
    stop: &AtomicBool,
) -> Result<AddedLayer> {
    let layer = wanted.layer;
    let bar = added(&options.progress, Some(size), layer.diff_id.short());
    let progress = |count| bar.inc(count);
    let spooled = match wanted.from_store {
        // Without a promise of its bytes, it may have to be stored in another form.
        None if layer.blob.is_some() || !source.is_foreign(&layer.file)? => source.spooled(&layer.file),
        _ => None,
    };
    // What comes from far is kept on the way, so that a break costs what was missing.
    let kept = match (wanted.from_store, layer.blob) {
        (None, Some(blob)) => source.kept(&layer.file).map(|path| (path, blob)),
        _ => None,
    };
    let spooled = spooled.or(kept);
    let take = Take {
        blob: wanted.from_store.or(layer.blob),
        diff_id: Some(layer.diff_id),
        store: wanted.store && spooled.is_none(),
        unpack: wanted.unpack,
        limits: options.limits,
        progress: &progress,
        stop,
    };
    let taken = match wanted.from_store {
        Some(blob) => {
            let path = staging.store().blob_path(&blob.digest);
            let file = File::open(&path).map_err(StoreError::io("open it", &path))?;
            staging.ingest(file, take)
        }
        None => staging.ingest(source.open_file(&layer.file)?.0, take),
    };
    let taken = taken.map_err(|error| match error {
        StoreError::Refused(what) | StoreError::TooLarge(what) => {
            source.wrong(format!("{}: {what}", wanted.place))
        }
        StoreError::Source(error) => source.wrong(format!("{}: cannot be read: {error}", wanted.place)),
        // What failed on the way says nothing of the image.
        other => other,
    })?;
    if let (true, Some((path, blob))) = (wanted.store, spooled) {
        staging.adopt(&path, blob);
    }
    bar.finish();
    Ok(taken)
}

/// Adds an image whose layers are all in the store or staged.
fn add(
    staging: &Staging<'_>,
    image: &PlannedImage,
    known: &BTreeMap<Digest, AddedLayer>,
    added: &[AddedLayer],
) -> Result<()> {
    staging.add_bytes(&image.config)?;
    if let Some((manifest, media_type)) = &image.manifest {
        let manifest = staging.add_bytes(manifest)?;
        staging.add_manifest(image.id, manifest, media_type, &image.names);
        return Ok(());
    }
    let mut layers = Vec::new();
    for layer in &image.layers {
        let same = |found: &&AddedLayer| {
            found.diff_id == layer.diff_id && layer.blob.is_none_or(|blob| blob == found.blob)
        };
        let found = added.iter().find(same).or_else(|| known.get(&layer.diff_id));
        layers.push(found.ok_or_else(|| StoreError::NoImage(layer.diff_id.to_string()))?.clone());
    }
    let config = Blob { digest: image.id, size: image.config.len() as u64 };
    staging.add_composed(config, &layers, &image.names)
}
