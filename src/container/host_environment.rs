//! Where a container runs: what of the host it meets.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use super::settings::{Net, Settings};
use super::targets::Places;

/// Where a container runs.
#[derive(Debug, Clone, Copy)]
pub struct HostEnvironment<'a> {
    /// The merged tree.
    pub rootfs: &'a Path,
    /// The host name.
    pub hostname: &'a str,
    /// Where in the image's tree mounts go.
    pub places: &'a Places,
    /// Data of the image's volumes: where, and for which directory.
    pub volumes: &'a [(PathBuf, PathBuf)],
    /// Files about the network: source, target, read-only.
    pub files: &'a [(PathBuf, &'static str, bool)],
    /// The network that it has.
    pub net: Net,
    /// The network namespace that was made for it.
    pub netns: Option<&'a Path>,
    /// The host's program that becomes the first process.
    pub init: Option<&'a Path>,
    /// As root of a user namespace: some mounts are not allowed.
    pub user_namespace: bool,
    /// The runtime makes no device rules when it is told none.
    pub silence_allows: bool,
}

impl<'a> HostEnvironment<'a> {
    /// Returns where a target is; of a container made before they were resolved, what was given.
    pub(super) fn place(&self, target: &'a Path) -> &'a Path {
        self.places.get(target).map_or(target, PathBuf::as_path)
    }
}

/// Returns directories that the image wants to be volumes and the user gave nothing for.
pub fn image_volumes(image: &ImageConfiguration, settings: &Settings) -> Vec<PathBuf> {
    let given: HashSet<&Path> = settings.volumes.iter().map(|volume| volume.target.as_path()).collect();
    let config = image.config().clone().unwrap_or_default();
    let mut volumes: Vec<PathBuf> = config.volumes().iter().flatten().map(PathBuf::from).collect();
    volumes.retain(|path| path.is_absolute() && !given.contains(path.as_path()));
    volumes.sort();
    volumes.dedup();
    volumes
}
