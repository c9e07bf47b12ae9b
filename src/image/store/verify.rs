//! Verifying: every digest is computed again, every tree is made again and compared.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::gc::list;
use super::{Blob, Image, Staging, Store, Take};
use crate::image::digest::{Digest, Hashing};
use crate::image::error::{Result, StoreError};
use crate::image::layer::{Limits, Ownership, WriteOptions, write_tar};
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
    /// Things that nothing needs, and `prune` takes away.
    pub unneeded: usize,
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

impl Store {
    /// Checks everything; `repair` removes what is broken and can be had again.
    ///
    /// # Errors
    /// When the store can't be read at all.
    pub fn verify(&self, repair: bool) -> Result<Verified> {
        let staging = self.begin()?;
        let index = self.read_index()?;
        let catalog = self.catalog_of(&index)?;
        let mut verified =
            Verified { images: catalog.images.len() + catalog.broken.len(), ..Verified::default() };
        for (digest, names, error) in &catalog.broken {
            let name = names.first().map_or_else(|| digest.to_string(), ImageName::to_string);
            verified.find(
                format!("image {name}: {error}"),
                format!("unionmount rmi {name}, or load the image again"),
            );
        }
        let mut parts: BTreeMap<(Digest, Digest), Part> = BTreeMap::new();
        for image in &catalog.images {
            self.parts_of(image, &mut parts)?;
        }
        // Layers first: their blobs are hashed on the way.
        let mut hashed = HashSet::new();
        for part in parts.values() {
            self.verify_part(part, &staging, repair, &mut verified)?;
            hashed.insert(part.blob.digest);
        }
        self.verify_blobs(&hashed, repair, &mut verified)?;
        self.verify_containers(&mut verified)?;
        verified.layers = self.all_layers()?.len();
        verified.blobs = self.all_blobs()?.len();
        if let Ok(needed) = self.needed(&index) {
            let blobs = self.all_blobs()?.iter().filter(|(digest, _)| !needed.blobs.contains(digest)).count();
            let layers =
                self.all_layers()?.iter().filter(|(digest, _)| !needed.layers.contains(digest)).count();
            // One of the leftovers is our own staging directory.
            verified.unneeded = blobs + layers + list(&self.tmp_dir())?.len().saturating_sub(1);
        }
        verified.findings.sort();
        Ok(verified)
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

    /// Checks a layer's blob, and its tree against a new one.
    fn verify_part(
        &self,
        part: &Part,
        staging: &Staging<'_>,
        repair: bool,
        verified: &mut Verified,
    ) -> Result<()> {
        let users = part.users.iter().cloned().collect::<Vec<_>>().join(", ");
        let again = format!("load the image again ({users})");
        let path = self.blob_path(&part.blob.digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                verified.find(format!("layer blob {}: {error}", path.display()), again);
                return Ok(());
            }
        };
        let tree = self.layer_dir(&part.diff_id);
        let unpacked = match self.layer_record(&part.diff_id) {
            Ok(record) => record.is_some(),
            Err(error) => {
                self.broken_tree(&tree, error.to_string(), repair, verified)?;
                false
            }
        };
        let take = Take {
            blob: Some(part.blob),
            diff_id: Some(part.diff_id),
            store: false,
            unpack: unpacked,
            limits: Limits { entries: u64::MAX, bytes: u64::MAX },
            progress: &|_| {},
            stop: &AtomicBool::new(false),
        };
        match staging.take(file, take) {
            Ok(_) => {}
            Err(StoreError::Refused(what)) => {
                let mend = match repair {
                    true => {
                        fs::remove_file(&path).map_err(StoreError::io("remove it", &path))?;
                        format!("removed; {again}")
                    }
                    false => format!("unionmount verify --repair, which removes it; then {again}"),
                };
                verified.find(format!("layer blob {}: {what}", path.display()), mend);
                return Ok(());
            }
            Err(other) => return Err(other),
        }
        if unpacked {
            let fresh = staging.staged_layer(&part.diff_id);
            let same = tree_digest(&fresh.join("diff"))
                .and_then(|expected| Ok(tree_digest(&tree.join("diff"))? == expected));
            match same {
                Ok(true) => {}
                Ok(false) => self.broken_tree(&tree, "differs from its tar".into(), repair, verified)?,
                Err(error) => self.broken_tree(&tree, error.to_string(), repair, verified)?,
            }
        }
        staging.forget_layer(&part.diff_id)
    }

    fn broken_tree(&self, tree: &Path, what: String, repair: bool, verified: &mut Verified) -> Result<()> {
        let mend = match repair {
            true => {
                self.discard_layer(tree)?;
                "removed; it is unpacked again when it is needed".to_owned()
            }
            false => "unionmount verify --repair, which removes it; it is unpacked again when it is needed"
                .to_owned(),
        };
        verified.find(format!("unpacked layer {}: {what}", tree.display()), mend);
        Ok(())
    }

    /// Checks the blobs that are no layers.
    fn verify_blobs(&self, hashed: &HashSet<Digest>, repair: bool, verified: &mut Verified) -> Result<()> {
        for (digest, path) in self.all_blobs()? {
            if hashed.contains(&digest) {
                continue;
            }
            let mut file = File::open(&path).map_err(StoreError::io("open it", &path))?;
            let mut sink = Hashing::new(io::sink());
            io::copy(&mut file, &mut sink).map_err(StoreError::io("read it", &path))?;
            let found = sink.finish().1;
            if found == digest {
                continue;
            }
            let mend = match repair {
                true => {
                    fs::remove_file(&path).map_err(StoreError::io("remove it", &path))?;
                    "removed; load the images again that need it"
                }
                false => {
                    "unionmount verify --repair, which removes it; then load the images again that need it"
                }
            };
            verified.find(
                format!("blob {}: its content has the digest {found}", path.display()),
                mend.to_owned(),
            );
        }
        Ok(())
    }

    fn verify_containers(&self, verified: &mut Verified) -> Result<()> {
        for container in self.container_uses()? {
            if self.blob_size(&container.image).is_none() {
                verified.find(
                    format!("container {}: its image {} is not in the store", container.id, container.image),
                    format!("load that image again, or unionmount rm {}", container.id),
                );
            }
        }
        Ok(())
    }
}

impl Verified {
    fn find(&mut self, what: String, mend: String) {
        let finding = Finding { what, mend };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }
}

/// The digest of the tar that a tree makes.
fn tree_digest(tree: &Path) -> Result<Digest> {
    let root = File::open(tree).map_err(StoreError::io("open it", tree))?;
    let mut sink = Hashing::new(io::sink());
    // Without the root: few tars speak of it, and its time is then that of unpacking.
    let options = WriteOptions { ownership: Ownership::of_this_process(), lowers: &[], root: false };
    write_tar(root.as_fd(), &mut sink, &options).map_err(|error| StoreError::damaged(tree, error))?;
    Ok(sink.finish().1)
}
