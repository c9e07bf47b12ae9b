//! Publishing what was staged: all is synced, then each blob and each layer is renamed into its place, then the index.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use super::staging::{Pending, Staged};
use super::{Blob, Image, Index, Staging, Store, sync_dir};
use crate::image::digest::Digest;
use crate::image::error::{Result, StoreError};
use crate::sys::filesystem;
use crate::sys::namespace::start_write_back;

impl Staging<'_> {
    /// Makes all that was added durable, and visible at once.
    ///
    /// # Errors
    /// When the disk is full or fails; the store's images are then as before.
    pub fn publish(self) -> Result<()> {
        let staged = std::mem::take(&mut *self.staged.lock());
        let (blobs_dir, layers_dir) =
            (self.store().root().join("blobs/sha256"), self.store().root().join("layers"));
        let sync_names = || {
            if !staged.blobs.is_empty() {
                sync_dir(&blobs_dir)?;
            }
            if staged.layers.is_empty() { Ok(()) } else { sync_dir(&layers_dir) }
        };
        if !staged.blobs.is_empty() || !staged.layers.is_empty() {
            for blob in staged.blobs.values() {
                // Blobs never change: whoever reads the store with another program is told so.
                fs::set_permissions(&blob.path, fs::Permissions::from_mode(0o444))
                    .map_err(StoreError::io("chmod", &blob.path))?;
            }
            self.sync(&staged)?;
            for (digest, blob) in &staged.blobs {
                let place = blobs_dir.join(digest.hex());
                fs::rename(&blob.path, &place).map_err(StoreError::io("put it in its place", &place))?;
            }
            for diff_id in &staged.layers {
                self.place_layer(diff_id)?;
            }
        }
        if staged.images.is_empty() {
            return sync_names();
        }
        let enter = |index: &mut Index| {
            let wanted = |id: &Digest| staged.images.iter().any(|image| image.id == *id);
            let known = self.store().catalog_if(index, &|_| true, &wanted)?.images;
            for image in &staged.images {
                image.enter(self.store(), index, &known);
            }
            Ok(())
        };
        self.store().change_index_after(enter, sync_names)
    }

    /// Makes all files that were added durable.
    fn sync(&self, staged: &Staged) -> Result<()> {
        if !staged.layers.is_empty() {
            // One sync for all files, of which an image may have a hundred thousand.
            let root =
                File::open(self.store().root()).map_err(StoreError::io("open it", self.store().root()))?;
            return filesystem::sync(&root)
                .map_err(StoreError::io("sync the filesystem of", self.store().root()));
        }
        // A few blobs: whatever other programs have not yet written, nobody here has to wait for.
        let mut files = Vec::new();
        for blob in staged.blobs.values() {
            let file = File::open(&blob.path).map_err(StoreError::io("open it", &blob.path))?;
            // All are on their way before the first is waited for: one commit of the journal has room for all.
            start_write_back(file.as_fd());
            files.push((&blob.path, file));
        }
        files.iter().try_for_each(|(path, file)| file.sync_all().map_err(StoreError::io("sync", path)))
    }

    /// Puts a layer in its place. One that another process has put there meanwhile is the same. A directory that is no
    /// whole layer (it has no record, which is never so by our doing) makes room.
    fn place_layer(&self, diff_id: &Digest) -> Result<()> {
        let place = self.store().layer_dir(diff_id);
        let put = || fs::rename(self.staged_layer(diff_id), &place);
        let mut done = put();
        let taken =
            [io::ErrorKind::AlreadyExists, io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::NotADirectory];
        if done.as_ref().is_err_and(|error| taken.contains(&error.kind())) {
            if self.store().layer_record(diff_id).is_ok_and(|record| record.is_some()) {
                return Ok(());
            }
            let aside = self.store().set_aside(&place)?;
            log::warn!("{}: was no whole layer, and is set aside as {}", place.display(), aside.display());
            done = put();
        }
        done.map_err(StoreError::io("put it in its place", &place))
    }
}

impl Pending {
    /// Names the image in the index. One that is there already, complete, keeps its manifest: the same config stands for
    /// the same layers, however they are compressed.
    fn enter(&self, store: &Store, index: &mut Index, known: &[Image]) {
        let mut names = self.names.clone();
        let mut entered = None;
        for image in known.iter().filter(|image| image.id == self.id) {
            let Some(entry) = index.entries().into_iter().find(|entry| entry.digest == image.entry) else {
                continue;
            };
            if store.is_complete(image) {
                entered = Some((Blob { digest: entry.digest, size: entry.size }, entry.media_type));
                break;
            }
            names.extend(image.names.iter().cloned());
            index.remove(&entry.digest);
        }
        let (manifest, media_type) = entered.unwrap_or((self.manifest, self.media_type.clone()));
        if names.is_empty() {
            index.set(&manifest.digest, manifest.size, &media_type, None);
        }
        for name in &names {
            index.set(&manifest.digest, manifest.size, &media_type, Some(name));
        }
    }
}
