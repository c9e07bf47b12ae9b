//! Removing: an image loses its names, then what nothing needs any more is deleted.
//!
//! Needed is what index.json leads to, and the config and layers of every container's image. When a document on the way
//! can't be read, nothing is deleted: it might need anything.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::index::Index;
use super::lock::Lock;
use super::staging::remove_tree;
use super::{Containers, Image, Store};
use crate::image::digest::Digest;
use crate::image::document::{BlobSource, Config, DocumentKind, Entry, entries, parse_index, parse_manifest};
use crate::image::error::{Result, StoreError};
use crate::image::name::ImageName;
use crate::sys::flock::Access;
use crate::sys::flock::try_lock;
use crate::union::frozen::{keeping, removal};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What became of an image that was to be removed.
#[derive(Debug, Default)]
pub struct Removed {
    /// Names that it lost.
    pub untagged: Vec<ImageName>,
    /// The image, when it is gone.
    pub deleted: Option<Digest>,
    /// Blobs and layers could not be deleted now, since another process is at work; `prune` will.
    pub postponed: bool,
    /// Why blobs and layers were left alone.
    pub held_back: Option<StoreError>,
}

/// What [`Store::prune`] took away.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Images.
    pub images: Vec<(Digest, Vec<ImageName>)>,
    /// Blobs that nothing needed.
    pub blobs: Vec<Digest>,
    /// Unpacked layers that nothing needed.
    pub layers: Vec<Digest>,
    /// Leftovers of processes that were killed.
    pub leftovers: usize,
    /// How many bytes all that took, as far as it is known.
    pub bytes: u64,
    /// Why blobs and layers were left alone.
    pub held_back: Option<StoreError>,
    /// Why leftovers are still there: of those that are in use ([`StoreError::InUse`]), and of those that couldn't be removed.
    pub left: Vec<StoreError>,
}

/// What is to be taken away beside what nothing needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct PruneOptions {
    /// Every image that no container was made from.
    pub all: bool,
    /// The trees of layers that no container has and nobody has mounted; they are unpacked again when they are needed.
    pub unpacked: bool,
}

/// What must stay.
#[derive(Debug, Default)]
pub(super) struct Needed {
    pub blobs: HashSet<Digest>,
    pub layers: HashSet<Digest>,
}

impl Store {
    /// Removes a name, or an image.
    ///
    /// By a name that is not its last one, an image loses that name only. By its last name or by its id it is deleted,
    /// unless a container needs it, or, by its id, it has several names. With `force` it then loses its names, and is
    /// deleted if no container needs it.
    ///
    /// # Errors
    /// When there is no such image, or it is needed.
    pub fn remove_image(&self, text: &str, force: bool) -> Result<Removed> {
        let uses = self.container_uses()?;
        let mut removed = self.change_index(|index| self.unname(index, &uses, text, force))?;
        if removed.deleted.is_some() {
            removed.postponed = match self.alone()? {
                Some(_alone) => {
                    let _names = self.lock_index(Access::Shared)?;
                    let mut pruned = Pruned::default();
                    self.sweep(&mut pruned, false, &ProgressBar::hidden())?;
                    removed.held_back = pruned.held_back;
                    false
                }
                None => true,
            };
        }
        Ok(removed)
    }

    fn unname(&self, index: &mut Index, uses: &Containers, text: &str, force: bool) -> Result<Removed> {
        let mut catalog = self.catalog_of(index)?;
        let meant = ImageName::meant_by(text);
        let named = |names: &[ImageName]| meant.iter().find(|name| names.contains(name)).cloned();
        // One that is damaged can still be removed.
        let broken = catalog.broken.iter().position(|(digest, names, _)| {
            named(names).is_some() || digest.to_string() == text || digest.hex() == text
        });
        if let Some(at) = broken {
            let (digest, names, error) = catalog.broken.swap_remove(at);
            if !error.is_damage() {
                return Err(error);
            }
            if let Some(name) = named(&names)
                && names.len() > 1
            {
                index.remove_name(&name);
                return Ok(Removed { untagged: vec![name], ..Removed::default() });
            }
            index.remove(&digest);
            return Ok(Removed { untagged: names, deleted: Some(digest), ..Removed::default() });
        }
        let image = catalog.resolve(text)?;
        let by_name = image.name_meant_by(text);
        if let Some(name) = &by_name
            && image.names.len() > 1
        {
            index.remove_name(name);
            return Ok(Removed { untagged: vec![name.clone()], ..Removed::default() });
        }
        if by_name.is_none() && image.names.len() > 1 && !force {
            let names: Vec<String> = image.names.iter().map(ImageName::to_string).collect();
            return Err(StoreError::InUse(format!(
                "image {} has several names ({}): give one of them, or -f to remove them all",
                image.id.short(),
                names.join(", ")
            )));
        }
        let known = uses.known.iter().find(|user| user.image == image.id);
        let known = known.map(|user| user.name.as_deref().unwrap_or(&user.id));
        let broken =
            uses.broken.iter().find(|user| user.image == Some(image.id)).map(|user| user.id.as_str());
        if let Some(user) = known.or(broken) {
            if !force {
                return Err(StoreError::InUse(in_use(&image, user)));
            }
            for name in &image.names {
                index.remove_name(name);
            }
            return Ok(Removed { untagged: image.names, ..Removed::default() });
        }
        index.remove(&image.entry);
        Ok(Removed { untagged: image.names, deleted: Some(image.id), ..Removed::default() })
    }

    /// Deletes what no image and no container needs: images without a name, blobs, unpacked layers, and what killed processes
    /// left, and what the options name. Waits no longer than `patience` for others. `bar` shows how many bytes have gone.
    ///
    /// # Errors
    /// When another process is adding to the store all that time.
    pub fn prune(&self, options: PruneOptions, patience: Duration, bar: &ProgressBar) -> Result<Pruned> {
        let (lock, gate) = (self.root().join("lock"), self.root().join("gate.lock"));
        let Some(_alone) = Lock::alone_within(&lock, &gate, patience)? else {
            return Err(StoreError::InUse(format!(
                "{}: another process has been adding to the store or reading from it for {} s; try again when it has \
                 ended, or wait longer with --wait SECONDS",
                self.root().display(),
                patience.as_secs()
            )));
        };
        let uses = self.container_uses()?;
        let mut pruned = Pruned::default();
        self.change_index(|index| {
            pruned.images = self.forget_unneeded(index, &uses, options.all)?;
            Ok(())
        })?;
        let _names = self.lock_index(Access::Exclusive)?;
        self.sweep(&mut pruned, options.unpacked, bar)?;
        for leftover in self.leftovers()? {
            let _held = match self.let_go(&leftover) {
                Ok(Some(held)) => held,
                Ok(None) => continue,
                Err(error) => {
                    pruned.left.push(error);
                    continue;
                }
            };
            let bytes = disk_usage(&leftover);
            bar.inc(bytes);
            match remove_any(&leftover) {
                // A container that `rm` is removing at the same time.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Ok(()) => {
                    pruned.bytes += bytes;
                    pruned.leftovers += 1;
                }
                Err(error) => pruned.left.push(error),
            }
        }
        Ok(pruned)
    }

    /// Returns what [`Store::prune`] would take away just now. Nothing is locked: others may add to it, or be at work on what
    /// looks like a leftover.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn prunable(&self, options: PruneOptions) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        let mut index = self.read_index_strictly()?;
        pruned.images = self.forget_unneeded(&mut index, &self.container_uses()?, options.all)?;
        let needed = self.needed(&index)?;
        for (digest, path) in self.all_blobs()? {
            if !needed.blobs.contains(&digest) {
                pruned.bytes += fs::symlink_metadata(&path).map_or(0, |found| found.len());
                pruned.blobs.push(digest);
            }
        }
        let kept = self.kept_layers(needed, options.unpacked)?;
        for (diff_id, _) in self.all_layers()? {
            if !kept.contains(&diff_id) {
                pruned.bytes += self.layer_record(&diff_id).ok().flatten().map_or(0, |record| record.size);
                pruned.layers.push(diff_id);
            }
        }
        for leftover in self.leftovers()? {
            pruned.bytes += disk_usage(&leftover);
            pruned.leftovers += 1;
        }
        Ok(pruned)
    }

    /// Takes the images that nothing needs out of an index, and returns them.
    fn forget_unneeded(
        &self,
        index: &mut Index,
        uses: &Containers,
        all: bool,
    ) -> Result<Vec<(Digest, Vec<ImageName>)>> {
        let mut forgotten = Vec::new();
        for image in self.catalog_of(index)?.images {
            // Any image might be that of a container whose record can't be read.
            let used = uses.unknown().is_some() || uses.images().any(|used| *used == image.id);
            if !used && (all || image.names.is_empty()) {
                index.remove(&image.entry);
                forgotten.push((image.id, image.names));
            }
        }
        Ok(forgotten)
    }

    /// Returns what killed processes left.
    fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let mut leftovers = list(&self.tmp_dir())?;
        // A container whose making was killed: whoever makes one shares the store's lock until its record is written.
        let half_made = list(&self.containers_dir())?;
        leftovers.extend(half_made.into_iter().filter(|dir| is_missing(&dir.join("config.json"))));
        Ok(leftovers)
    }

    /// Lets what a container branches off forget it that is left over, before the rest of it goes. Returns what is to be held until it has
    /// gone: nobody begins to read it, or mounts it, meanwhile. `None`: somebody is removing or making it just now, and sees to it.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where somebody reads it still, or a branch of it, or it is mounted. Nobody is waited for: whoever wants the
    /// index waits for this.
    fn let_go(&self, leftover: &Path) -> Result<Option<Vec<OwnedFd>>> {
        if leftover.parent() != Some(&self.containers_dir()) {
            return Ok(Some(Vec::new()));
        }
        let dir = match rustix::fs::open(leftover, DIRECTORY, Mode::empty()) {
            // A link is all that goes, and nothing of what it leads to.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Some(Vec::new())),
            opened => opened.map_err(StoreError::io("open it", leftover))?,
        };
        let left = |why: &str| {
            let path = leftover.display();
            StoreError::InUse(format!(
                "{path}: what is left of a container stays for now: {why}; prune again when that has ended"
            ))
        };
        let lock = |access| try_lock(&dir, access).map_err(StoreError::io("lock it", leftover));
        // Who has it alone changes something there; those who begin to read share it.
        let is_locked = match lock(Access::Exclusive)? {
            true => true,
            false if !lock(Access::Shared)? => return Ok(None),
            // Unless that one has ended between the two.
            false => lock(Access::Exclusive)?,
        };
        let upper = leftover.join("diff");
        let unread = match is_locked {
            true => keeping::unread(dir.as_fd(), &upper, Duration::ZERO),
            false => Ok(None),
        };
        let Some(unread) = unread.map_err(|error| StoreError::Refused(error.to_string()))? else {
            return Err(left("another command reads it (commit, diff or layers)"));
        };
        let upper_lock = match openat(&dir, "diff", DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            opened => Some(opened.map_err(StoreError::io("open it", &upper))?),
        };
        let is_free = match upper_lock.as_ref().map_or(Ok(true), |dir| try_lock(dir, Access::Exclusive)) {
            // On a filesystem that can't tell, it is taken for free.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => true,
            locked => locked.map_err(StoreError::io("lock it", &upper))?,
        };
        if !is_free {
            return Err(left("its mount is detached, and something has files open there still"));
        }
        // One that is gone by now `rm` is removing at the same time, and has let go of.
        if let Err(error) = removal::let_go(&upper)
            && !fs::symlink_metadata(&upper).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        {
            log::warn!("{error}; so what it branches off has it written down still");
        }
        Ok(Some([Some(dir), unread.into_pin(), upper_lock].into_iter().flatten().collect()))
    }

    /// Returns the lock of those who delete; `None` while somebody adds.
    pub(super) fn alone(&self) -> Result<Option<Lock>> {
        Lock::now(&self.root().join("lock"), Access::Exclusive)
    }

    /// Keeps everything from being deleted while it is held.
    pub(crate) fn keep_all(&self) -> Result<Lock> {
        // Behind who waits to be alone.
        drop(Lock::wait(&self.root().join("gate.lock"), Access::Shared)?);
        Lock::wait(&self.root().join("lock"), Access::Shared)
    }

    /// Deletes blobs and layers that nothing needs; nothing where that can't be known. Only with the exclusive lock on the
    /// store.
    fn sweep(&self, pruned: &mut Pruned, unpacked: bool, bar: &ProgressBar) -> Result<()> {
        let needed = match self.read_index_strictly().and_then(|index| self.needed(&index)) {
            Ok(needed) => needed,
            Err(error) => {
                pruned.held_back = Some(error);
                return Ok(());
            }
        };
        for (digest, path) in self.all_blobs()? {
            if needed.blobs.contains(&digest) {
                continue;
            }
            pruned.bytes += fs::symlink_metadata(&path).map_or(0, |found| found.len());
            fs::remove_file(&path).map_err(StoreError::io("remove it", &path))?;
            pruned.blobs.push(digest);
            bar.set_position(pruned.bytes);
        }
        let kept = self.kept_layers(needed, unpacked)?;
        for (diff_id, path) in self.all_layers()? {
            if kept.contains(&diff_id) {
                continue;
            }
            // Somebody has it mounted.
            let dir = File::open(&path).map_err(StoreError::io("open it", &path))?;
            if !try_lock(&dir, Access::Exclusive).map_err(StoreError::io("lock it", &path))? {
                continue;
            }
            pruned.bytes += self.layer_record(&diff_id).ok().flatten().map_or(0, |record| record.size);
            self.discard_layer(&path)?;
            pruned.layers.push(diff_id);
            bar.set_position(pruned.bytes);
        }
        Ok(())
    }

    /// Removes an unpacked layer: out of its place by one rename, so that half a layer is never found there.
    pub(super) fn discard_layer(&self, path: &Path) -> Result<()> {
        let aside = tempfile::Builder::new().prefix("removed-").tempdir_in(self.tmp_dir());
        let aside = aside.map_err(StoreError::io("create a directory in it", self.tmp_dir()))?.keep();
        fs::rename(path, aside.join("layer")).map_err(StoreError::io("move it aside", path))?;
        remove_tree(&aside)
    }

    /// Returns all that index.json and the containers lead to.
    pub(super) fn needed(&self, index: &Index) -> Result<Needed> {
        let mut needed = Needed::default();
        needed.blobs.extend(index.digests());
        let mut queue = index.entries();
        let mut seen = HashSet::new();
        while let Some(entry) = queue.pop() {
            // Indexes may list each other's images any number of times.
            if !seen.insert(entry.digest) {
                continue;
            }
            match entry.kind() {
                DocumentKind::Index => {
                    let path = self.blob_path(&entry.digest);
                    let inner = parse_index(&self.fetch(&entry.digest)?);
                    let inner = inner.map_err(|what| StoreError::damaged(&path, what))?;
                    for digest in digests(&inner) {
                        needed.blobs.insert(digest);
                    }
                    for entry in entries(&inner) {
                        if self.has(&entry.digest)? {
                            queue.push(entry);
                        }
                    }
                }
                DocumentKind::Manifest => self.need_manifest(&entry, &mut needed)?,
                DocumentKind::Other => {}
            }
        }
        let contained = self.needed_by_containers(true)?;
        needed.blobs.extend(contained.blobs);
        needed.layers.extend(contained.layers);
        Ok(needed)
    }

    /// Returns what containers lead to, whose images another program may have dropped from the index.
    /// `lazy`: by those as well that read layers as they came.
    fn needed_by_containers(&self, lazy: bool) -> Result<Needed> {
        let mut needed = Needed::default();
        let mut uses = self.container_uses()?;
        if let Some(at) = uses.broken.iter().position(|container| container.image.is_none()) {
            return Err(uses.broken.swap_remove(at).error);
        }
        uses.known.retain(|container| lazy || !container.lazy);
        for image in uses.images() {
            if needed.blobs.insert(*image) && self.has(image)? {
                self.need_config(image, &mut needed)?;
            }
        }
        Ok(needed)
    }

    /// Returns the layers that stay unpacked: all that are needed, or those of containers, and of images whose blobs aren't all
    /// there, which could not be unpacked again.
    fn kept_layers(&self, needed: Needed, of_containers_alone: bool) -> Result<HashSet<Digest>> {
        match of_containers_alone {
            true => {
                let catalog = self.catalog()?;
                // Of one that can't be read nobody knows what it needs.
                if !catalog.broken.is_empty() {
                    return Ok(needed.layers);
                }
                let mut kept = self.needed_by_containers(false)?.layers;
                for image in catalog.images.iter().filter(|image| !self.is_complete(image)) {
                    kept.extend(image.diff_ids.iter().chain([&image.id]));
                }
                Ok(kept)
            }
            false => Ok(needed.layers),
        }
    }

    fn need_manifest(&self, entry: &Entry, needed: &mut Needed) -> Result<()> {
        let path = self.blob_path(&entry.digest);
        let manifest =
            parse_manifest(&self.fetch(&entry.digest)?).map_err(|what| StoreError::damaged(&path, what))?;
        for descriptor in manifest.layers().iter().chain([manifest.config()]) {
            if let Ok(digest) = Digest::try_from(descriptor.digest()) {
                needed.blobs.insert(digest);
            }
        }
        if self.manifest(&entry.digest, &|_| true)?.is_some() {
            self.need_config(&Digest::try_from(manifest.config().digest())?, needed)?;
        }
        Ok(())
    }

    fn need_config(&self, id: &Digest, needed: &mut Needed) -> Result<()> {
        let path = self.blob_path(id);
        let config = Config::parse(&self.fetch(id)?).map_err(|what| StoreError::damaged(&path, what))?;
        needed.layers.extend(config.diff_ids);
        // Its frame.
        needed.layers.insert(*id);
        Ok(())
    }

    /// Returns the blobs that are in their place.
    pub(super) fn all_blobs(&self) -> Result<Vec<(Digest, PathBuf)>> {
        by_digest(&self.root().join("blobs/sha256"))
    }

    /// Returns the layers that are in their place.
    pub(super) fn all_layers(&self) -> Result<Vec<(Digest, PathBuf)>> {
        by_digest(&self.root().join("layers"))
    }
}

fn in_use(image: &Image, container: &str) -> String {
    let name = image.names.first().map_or_else(|| image.id.short(), ImageName::to_string);
    format!(
        "image {name} is needed by container {container}; remove that first with unionmount rm {container}, or take only \
         the name away with -f"
    )
}

fn digests(index: &serde_json::Value) -> Vec<Digest> {
    let list = index["manifests"].as_array();
    list.into_iter().flatten().filter_map(|value| value["digest"].as_str()?.parse().ok()).collect()
}

/// Returns whether there is nothing of this name. Where that can't be seen, there may be.
fn is_missing(path: &Path) -> bool {
    matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Returns the entries of a directory.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(StoreError::io("list it", dir))?;
    entries.map(|entry| Ok(entry.map_err(StoreError::io("list it", dir))?.path())).collect()
}

/// Returns the entries of a directory that are named by a digest.
fn by_digest(dir: &Path) -> Result<Vec<(Digest, PathBuf)>> {
    let paths = list(dir)?;
    let mut found: Vec<(Digest, PathBuf)> = paths
        .into_iter()
        .filter_map(|path| Some((Digest::from_hex(path.file_name()?.to_str()?).ok()?, path)))
        .collect();
    found.sort();
    Ok(found)
}

fn remove_any(path: &Path) -> Result<()> {
    let found = fs::symlink_metadata(path).map_err(StoreError::io("look at it", path))?;
    if found.is_dir() {
        remove_tree(path)
    } else {
        fs::remove_file(path).map_err(StoreError::io("remove it", path))
    }
}

/// Returns what a leftover takes: its own files and those of the directories in it, as deep as staging goes.
fn disk_usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let own = fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512);
    let children = fs::read_dir(path).into_iter().flatten().flatten();
    own + children
        .map(|child| match child.file_type() {
            Ok(kind) if kind.is_dir() => disk_usage(&child.path()),
            _ => child.metadata().map_or(0, |found| found.blocks() * 512),
        })
        .sum::<u64>()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Calls that overlap would keep a prune out for ever: while it waits, whoever comes later waits behind it.
    #[test]
    fn a_prune_goes_before_those_who_come_later() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some(dir.path())).unwrap();
        let gate = store.root().join("gate.lock");
        let closed = || Lock::now(&gate, Access::Shared).unwrap().is_none();
        let until = |what: bool| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while closed() != what {
                assert!(Instant::now() < deadline, "the gate does not move");
                std::thread::yield_now();
            }
        };
        // The gate opens for a moment now and then, and who comes just then gets in: that is no failure, if it isn't the rule.
        let first = (0..10).any(|_| {
            let held = store.keep_all().unwrap();
            // It outlasts the threads, of which the late one may tell when nobody waits any more.
            let (tell, told) = mpsc::channel();
            std::thread::scope(|scope| {
                let prune = scope.spawn(|| {
                    store.prune(PruneOptions::default(), Duration::from_secs(3), &ProgressBar::hidden())
                });
                until(true);
                let (end, ended) = mpsc::channel::<()>();
                let store = &store;
                scope.spawn(move || {
                    let _late = store.keep_all().unwrap();
                    tell.send(()).unwrap();
                    // Until the prune is done, or this attempt has failed.
                    ended.recv().unwrap_err();
                });
                let late_is_in = told.recv_timeout(Duration::from_millis(200)).is_ok();
                drop(held);
                let pruned = !late_is_in && prune.join().unwrap().is_ok();
                drop(end);
                pruned
            })
        });
        assert!(first, "whoever came later got in first, ten times");
    }
}
