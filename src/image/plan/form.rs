//! In which form a source tells of its images: that of OCI, or that of `docker save`.

use super::found::{Found, FoundIn, PlannedImage};
use super::{docker, oci};
use crate::image::document::Entry;
use crate::image::error::Result;
use crate::image::source::{ImageSource, blob_name};

/// In which form a source tells of its images.
pub(super) enum Form {
    /// That of OCI; what its index lists.
    Oci(Vec<Entry>),
    /// That of `docker save`.
    Docker,
}

/// Finds out in which form a source tells of those images that may be `meant`.
pub(super) fn form(source: &ImageSource, meant: impl Fn(&Entry) -> bool) -> Result<Form> {
    let is_docker = source.has_file("manifest.json");
    if source.has_file("index.json") {
        let listed = oci::listed(source)?;
        // Docker 25.0 wrote an index that names what it doesn't save; manifest.json beside it is right. What is there and damaged
        // is no reason to believe another document.
        let is_missing = |entry: &Entry| meant(entry) && !source.has_file(&blob_name(&entry.digest));
        if is_docker && (listed.is_empty() || listed.iter().any(is_missing)) {
            return Ok(Form::Docker);
        }
        return Ok(Form::Oci(listed));
    }
    if is_docker {
        return Ok(Form::Docker);
    }
    Err(source.wrong(match source.has_file("repositories") {
        true => {
            "is an archive of Docker before 1.10, which has no manifest.json; load it into a newer Docker or podman \
             and save it again"
        }
        false => {
            "holds neither an OCI layout (index.json) nor what docker save writes (manifest.json); a root filesystem \
             is taken in with unionmount import"
        }
    }))
}

/// Reads the documents of an image that was found.
pub(super) fn read(source: &ImageSource, image: Found) -> Result<PlannedImage> {
    let Found { id, names, place, .. } = image;
    match place {
        FoundIn::Oci(entry, manifest) => oci::read(source, &entry, manifest, (id, names)),
        FoundIn::Docker(listed) => docker::read(source, listed, (id, names)),
    }
}
