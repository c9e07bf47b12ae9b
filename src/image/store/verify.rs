//! Verifying: every digest is computed again, every tree is made again and compared.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use indicatif::ProgressBar;

use super::gc::list;
use super::{Blob, Image, LayerRecord, Staging, Store, Take};
use crate::image::digest::{Digest, Hashing};
use crate::image::error::{Result, StoreError};
use crate::image::layer::{LayerError, Limits, Ownership, WriteOptions, write_tar};
use crate::image::name::ImageName;

/// What [`Store::verify`] found.
#[derive(Debug, Default)]
pub struct Verified {
    /// How many images were checked.
    pub images: usize,
    /// How many blobs.
    pub blobs: usize,
    /// How many unpacked layers.
    pub layers: usize,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What was wrong and is well again.
    pub mended: Vec<Finding>,
    /// What could not be looked at, and was not touched.
    pub unchecked: Vec<Finding>,
    /// Things that nothing needs, and `prune` takes away.
    pub unneeded: usize,
    /// Things that were set aside, now or earlier.
    pub set_aside: usize,
}

/// Something that is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub mend: String,
}

/// A layer, and the images that have it.
struct Part {
    blob: Blob,
    diff_id: Digest,
    users: BTreeSet<String>,
}

/// What is at work while layers are checked.
struct Check<'a> {
    store: &'a Store,
    staging: &'a Staging<'a>,
    repair: bool,
    bar: &'a ProgressBar,
    verified: &'a mut Verified,
}

impl Store {
    /// Checks everything. `repair` mends what can be derived, and sets aside what is broken and can be had again; nothing is
    /// deleted. `bar` shows how many bytes of blobs have been read. What can't be looked at (a full disk, too few descriptors, a disk that fails) is not broken.
    ///
    /// # Errors
    /// When the store can't be read at all.
    pub fn verify(&self, repair: bool, bar: &ProgressBar) -> Result<Verified> {
        let mut verified = Verified::default();
        match self.verify_all(repair, bar, &mut verified) {
            Err(error) if error.is_damage() => return Err(error),
            Err(error) => verified.unchecked(&error),
            Ok(()) => {}
        }
        verified.set_aside = self.set_aside_count();
        verified.findings.sort();
        Ok(verified)
    }

    fn verify_all(&self, repair: bool, bar: &ProgressBar, verified: &mut Verified) -> Result<()> {
        let staging = self.begin()?;
        let index = self.verify_lists(repair, verified)?;
        let mut parts: BTreeMap<(Digest, Digest), Part> = BTreeMap::new();
        if let Some(index) = &index {
            let catalog = self.catalog_of(index)?;
            verified.images = catalog.images.len() + catalog.broken.len();
            for (digest, names, error) in &catalog.broken {
                if !error.is_damage() {
                    verified.unchecked(error);
                    continue;
                }
                let name = names.first().map_or_else(|| digest.to_string(), ImageName::to_string);
                verified.broken(
                    format!("image {name}: {error}"),
                    format!("unionmount rmi {name}, or load the image again"),
                );
            }
            for image in &catalog.images {
                self.parts_of(image, &mut parts)?;
            }
        }
        // Layers first: their blobs are hashed on the way.
        let mut hashed = HashSet::new();
        let sizes = self.all_blobs()?;
        let size = |(_, path): &(Digest, PathBuf)| fs::symlink_metadata(path).map_or(0, |found| found.len());
        bar.set_length(sizes.iter().map(size).sum());
        let mut check = Check { store: self, staging: &staging, repair, bar, verified: &mut *verified };
        for part in parts.values() {
            // What fails here is what was made to compare with.
            if let Err(error) = check.part(part) {
                check.verified.unchecked(&error);
            }
            hashed.insert(part.blob.digest);
        }
        check.blobs(&hashed)?;
        verified.layers = self.all_layers()?.len();
        verified.blobs = self.all_blobs()?.len();
        let needed = match index.map(|index| self.needed(&index)) {
            Some(Err(error)) if !error.is_damage() => return Err(error),
            Some(Ok(needed)) => Some(needed),
            _ => None,
        };
        if let Some(needed) = needed {
            let blobs = self.all_blobs()?.iter().filter(|(digest, _)| !needed.blobs.contains(digest)).count();
            let layers =
                self.all_layers()?.iter().filter(|(digest, _)| !needed.layers.contains(digest)).count();
            // One of the leftovers is our own staging directory.
            verified.unneeded = blobs + layers + list(&self.tmp_dir())?.len().saturating_sub(1);
        }
        Ok(())
    }

    fn parts_of(&self, image: &Image, parts: &mut BTreeMap<(Digest, Digest), Part>) -> Result<()> {
        let name = image.names.first().map_or_else(|| image.id.short(), ImageName::to_string);
        for (diff_id, layer) in image.diff_ids.iter().zip(image.manifest.layers()) {
            let blob = Blob { digest: Digest::try_from(layer.digest())?, size: layer.size() };
            let part = Part { blob, diff_id: *diff_id, users: BTreeSet::new() };
            parts.entry((*diff_id, blob.digest)).or_insert(part).users.insert(name.clone());
        }
        Ok(())
    }
}

impl Check<'_> {
    /// Checks a layer's blob, and its tree against a new one.
    fn part(&mut self, part: &Part) -> Result<()> {
        let users = part.users.iter().cloned().collect::<Vec<_>>().join(", ");
        let again = format!("load the image again ({users})");
        let path = self.store.blob_path(&part.blob.digest);
        let file = match File::open(&path).map_err(StoreError::io("open it", &path)) {
            Ok(file) => file,
            Err(error) => {
                match error.is_damage() {
                    true => self.verified.broken(format!("layer blob {error}"), again),
                    false => self.verified.unchecked(&error),
                }
                return Ok(());
            }
        };
        let record = match self.store.layer_record(&part.diff_id) {
            Ok(record) => record,
            Err(error) => {
                match error.is_damage() {
                    true => self.broken_tree(&part.diff_id, &error.to_string()),
                    false => self.verified.unchecked(&error),
                }
                None
            }
        };
        let take = Take {
            blob: Some(part.blob),
            diff_id: Some(part.diff_id),
            store: false,
            unpack: record.is_some(),
            limits: Limits { entries: u64::MAX, bytes: u64::MAX },
            progress: &|count| self.bar.inc(count),
            stop: &AtomicBool::new(false),
        };
        match self.staging.ingest(file, take) {
            Ok(_) => {}
            Err(StoreError::Refused(what)) => {
                self.broken_blob("layer blob", &path, &what, &again);
                return Ok(());
            }
            Err(StoreError::Source(error)) => {
                self.verified.unchecked(&StoreError::io("read it", &path)(error));
                return Ok(());
            }
            Err(error) => {
                self.verified.unchecked(&error);
                return Ok(());
            }
        }
        if let Some(record) = record {
            self.tree(&part.diff_id, &record)?;
        }
        self.staging.forget_layer(&part.diff_id)
    }

    /// Compares a layer's tree and its record with those that were just made of its tar.
    fn tree(&mut self, diff_id: &Digest, record: &LayerRecord) -> Result<()> {
        let (fresh, tree) = (self.staging.staged_layer(diff_id), self.store.layer_dir(diff_id));
        let path = fresh.join("layer.json");
        let text = fs::read(&path).map_err(StoreError::io("read it", &path))?;
        let told = |record: &LayerRecord| (record.diff_id, record.tar_size, record.size, record.entries);
        let expected = serde_json::from_slice::<LayerRecord>(&text).ok();
        if expected.as_ref().map(told) != Some(told(record)) {
            self.broken_tree(diff_id, "layer.json tells other sizes than its tar has");
            return Ok(());
        }
        let same = tree_digest(&fresh.join("diff"))
            .and_then(|expected| Ok(tree_digest(&tree.join("diff"))? == expected));
        match same {
            Ok(true) => {}
            Ok(false) => self.broken_tree(diff_id, "differs from its tar"),
            Err(error) if error.is_damage() => self.broken_tree(diff_id, &error.to_string()),
            Err(error) => self.verified.unchecked(&error),
        }
        Ok(())
    }

    fn broken_tree(&mut self, diff_id: &Digest, what: &str) {
        let tree = self.store.layer_dir(diff_id);
        let what = format!("unpacked layer {}: {what}", tree.display());
        let again = "it is unpacked again when it is needed";
        if !self.repair {
            let mend = format!("unionmount verify --repair, which sets it aside; {again}");
            return self.verified.broken(what, mend);
        }
        match self.store.set_aside(&tree) {
            Ok(aside) => {
                self.verified.mended(what, format!("set aside as {}; {again}", aside.display()));
            }
            Err(error) => self.verified.broken(what, format!("cannot be mended: {error}")),
        }
    }

    fn broken_blob(&mut self, kind: &str, path: &Path, what: &str, again: &str) {
        let what = format!("{kind} {}: {what}", path.display());
        let mend = match self.repair {
            true => match self.store.set_aside(path) {
                Ok(aside) => format!("set aside as {}; {again}", aside.display()),
                Err(error) => format!("cannot be set aside: {error}"),
            },
            false => format!("unionmount verify --repair, which sets it aside; then {again}"),
        };
        self.verified.broken(what, mend);
    }

    /// Checks the blobs that are no layers.
    fn blobs(&mut self, hashed: &HashSet<Digest>) -> Result<()> {
        for (digest, path) in self.store.all_blobs()? {
            if hashed.contains(&digest) {
                continue;
            }
            let digest_of = || -> Result<Digest> {
                let mut file =
                    self.bar.wrap_read(File::open(&path).map_err(StoreError::io("open it", &path))?);
                let mut sink = Hashing::new(io::sink());
                io::copy(&mut file, &mut sink).map_err(StoreError::io("read it", &path))?;
                Ok(sink.finish().1)
            };
            match digest_of() {
                Ok(found) if found == digest => {}
                Ok(found) => {
                    let what = format!("its content has the digest {found}");
                    self.broken_blob("blob", &path, &what, "load the images again that need it");
                }
                // Removed meanwhile.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.verified.unchecked(&error),
            }
        }
        Ok(())
    }
}

/// Returns the digest of the tar that a tree makes.
fn tree_digest(tree: &Path) -> Result<Digest> {
    let root = File::open(tree).map_err(StoreError::io("open it", tree))?;
    let mut sink = Hashing::new(io::sink());
    // Without the root: few tars speak of it, and its time is then that of unpacking.
    let options = WriteOptions { ownership: Ownership::of_this_process(), lowers: &[], root: false };
    write_tar(root.as_fd(), &mut sink, &options).map_err(|error| match error {
        LayerError::Os { entry, what, errno } => {
            StoreError::io(what, tree.join(OsStr::from_bytes(&entry)))(errno)
        }
        LayerError::Read(error) | LayerError::Write(error) => StoreError::io("read it", tree)(error),
        wrong => StoreError::damaged(tree, wrong),
    })?;
    Ok(sink.finish().1)
}
