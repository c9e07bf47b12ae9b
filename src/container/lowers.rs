//! What lies below a container's upper, or makes up an image: the trees of its layers, or of a lazy container the layers' blobs as they
//! came.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::error::{ContainerError, Result};
use crate::archive::{ReadLower, layer_name, open_layer};
use crate::image::digest::Digest;
use crate::image::error::StoreError;
use crate::image::store::{Image, Store};
use crate::sys::threads::at_once;
use crate::union::stack::layer::LowerSource;

/// The layers of a container, topmost first, and what keeps them from being removed.
#[derive(Debug, Default)]
pub struct Lowers {
    /// As a mount is told them: directories, or blobs with the digests that their tars must have.
    pub paths: Vec<PathBuf>,
    /// Those of them that are blobs.
    blobs: BTreeMap<PathBuf, (PathBuf, Digest)>,
    /// Keep this as long as they are in use.
    pub pins: Vec<OwnedFd>,
}

impl Lowers {
    /// Opens them, for who reads them without a mount.
    ///
    /// # Errors
    /// When a blob can't be read, or isn't what the image says.
    pub fn sources(&self) -> Result<Vec<LowerSource>> {
        let mut read: Vec<ReadLower> = at_once(self.paths.iter().collect(), |path| self.read(path))?;
        ReadLower::describe_implied(&mut read);
        Ok(read.into_iter().map(ReadLower::into_source).collect())
    }

    fn read(&self, path: &Path) -> Result<ReadLower> {
        let path = path.to_owned();
        let Some((blob, diff_id)) = self.blobs.get(&path) else {
            return Ok(ReadLower::Plain(path.into()));
        };
        let file = File::open(blob).map_err(ContainerError::io("open it", blob))?;
        let archive = open_layer(file, blob, Some(*diff_id), None);
        let archive = archive.map_err(|error| ContainerError::Refused(error.to_string()))?;
        Ok(ReadLower::Archive { path, archive: Box::new(archive), name: None })
    }

    /// Returns the directories of those that are trees in the store.
    pub fn tree_dirs(&self) -> Vec<&Path> {
        self.paths
            .iter()
            .filter(|path| !self.blobs.contains_key(*path))
            .filter_map(|tree| tree.parent())
            .collect()
    }

    /// Opens the topmost, if it is a directory.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn top_directory(&self) -> Result<Option<File>> {
        match self.paths.first().filter(|path| !self.blobs.contains_key(*path)) {
            Some(path) => File::open(path).map(Some).map_err(ContainerError::io("open it", path)),
            None => Ok(None),
        }
    }
}

/// Returns the layers of an image that count, topmost first; those that aren't unpacked are unpacked now.
///
/// # Errors
/// When a layer is missing or can't be read.
pub fn image_layers(store: &Store, image: &Image) -> Result<Lowers> {
    let layers = store.layers(image)?;
    Ok(Lowers { paths: layers.paths, pins: layers.pins, ..Lowers::default() })
}

/// Returns the layers of an image as they lie in the store, for who only reads them: nothing is unpacked for that. Where one isn't
/// unpacked it is the blobs of all of them, topmost first; where these aren't all there, what is missing is unpacked after all.
///
/// # Errors
/// When a layer or a blob is missing or can't be read.
pub fn image_as_it_lies(store: &Store, image: &Image) -> Result<Lowers> {
    if store.are_all_unpacked(image) {
        return image_layers(store, image);
    }
    // A blob has no lock of its own, and is opened later.
    let kept = store.keep_all()?;
    match store.unless_gone(image, store.blobs_of_layers(image)) {
        Ok(blobs) => Ok(Lowers { pins: vec![kept.into()], ..of_blobs(blobs) }),
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            drop(kept);
            image_layers(store, image)
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the layers of an image as they came, whether they are unpacked or not.
///
/// # Errors
/// When a blob is missing.
pub(super) fn image_blobs(store: &Store, image: &Image) -> Result<Lowers> {
    Ok(of_blobs(store.blobs_of_layers(image)?))
}

fn of_blobs(blobs: Vec<(PathBuf, Digest)>) -> Lowers {
    let mut lowers = Lowers::default();
    for (blob, diff_id) in blobs {
        let path = layer_name(blob.clone(), &diff_id);
        lowers.blobs.insert(path.clone(), (blob, diff_id));
        lowers.paths.push(path);
    }
    lowers
}
