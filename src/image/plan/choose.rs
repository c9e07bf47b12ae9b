//! Which of a source's images is meant.

use super::form::{Form, form, read};
use super::found::{Found, PlannedImage};
use super::{docker, oci};
use crate::image::digest::Digest;
use crate::image::document::Entry;
use crate::image::error::Result;
use crate::image::name::ImageName;
use crate::image::source::ImageSource;

/// So many names tell what the rest is like.
const FEW: usize = 12;

/// Which image of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The only one.
    Only,
    /// That of a name, or of a tag alone.
    Name(String),
    /// That whose manifest, index or config has this digest.
    Digest(Digest),
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wanted::Only => f.write_str("that runs here"),
            Wanted::Name(name) => write!(f, "{name:?}"),
            Wanted::Digest(digest) => digest.fmt(f),
        }
    }
}

impl Wanted {
    fn is(&self, image: &Found) -> bool {
        match self {
            Wanted::Only => true,
            Wanted::Name(name) => image.names.iter().any(|own| is_called(own, name)),
            Wanted::Digest(digest) => image.id == *digest || image.digests.contains(digest),
        }
    }

    /// Tells whether what has these names may be meant.
    fn may_be<'a>(&self, names: impl IntoIterator<Item = &'a ImageName>) -> bool {
        match self {
            Wanted::Name(name) => names.into_iter().any(|own| is_called(own, name)),
            Wanted::Only | Wanted::Digest(_) => true,
        }
    }
}

/// Tells whether somebody may call an image so: by its name, or by its tag alone, as skopeo writes it into layouts.
fn is_called(own: &ImageName, text: &str) -> bool {
    own.tag() == text || ImageName::meant_by(text).contains(own)
}

/// Finds one image of a source. Documents of others are read only where nothing else tells that they aren't meant, and then what is
/// wrong with one of them is no reason not to take the one that is.
///
/// # Errors
/// When there is none, or several; the names of those that there are are told.
pub(in crate::image) fn choose(source: &ImageSource, wanted: &Wanted) -> Result<PlannedImage> {
    let mut noted = None;
    let mut wrong = |error| match wanted {
        Wanted::Digest(_) => {
            noted.get_or_insert(error);
            Ok(())
        }
        Wanted::Only | Wanted::Name(_) => Err(error),
    };
    let is_meant = |entry: &Entry| wanted.may_be(&entry.name);
    let (mut images, names) = match form(source, is_meant)? {
        Form::Oci(mut listed) => {
            let names = first_names(listed.iter().filter_map(|entry| entry.name.as_ref()));
            listed.retain(is_meant);
            let listed = match wanted {
                Wanted::Digest(digest) => oci::with_digest(source, listed, digest, &mut wrong)?,
                Wanted::Only | Wanted::Name(_) => oci::best(listed),
            };
            (oci::find(source, listed, &mut wrong)?, names)
        }
        Form::Docker => {
            let mut listed = docker::listed(source)?;
            let names = first_names(listed.iter().flat_map(|image| &image.names));
            listed.retain(|image| wanted.may_be(&image.names));
            (docker::find(source, listed, &mut wrong)?, names)
        }
    };
    images.retain(|image| wanted.is(image));
    keep_what_runs_here(&mut images);
    match (images.pop(), images.is_empty()) {
        (Some(image), true) => read(source, image),
        (Some(_), false) => {
            Err(source.wrong(format!("holds several images: say which, as oci:PLACE:NAME; {names}")))
        }
        (None, _) => Err(noted.unwrap_or_else(|| source.wrong(format!("holds no image {wanted}; {names}")))),
    }
}

/// Says which names there are.
fn first_names<'a>(names: impl Iterator<Item = &'a ImageName>) -> String {
    let mut few: Vec<String> = Vec::new();
    let mut more = 0;
    for name in names.map(ToString::to_string) {
        match few.len() < FEW {
            _ if few.contains(&name) => {}
            true => few.push(name),
            false => more += 1,
        }
    }
    match (&few[..], more) {
        ([], _) => {
            "its images have no names; name one by @sha256:DIGEST, of its manifest or its config".to_owned()
        }
        (few, 0) => format!("it has {}", few.join(", ")),
        (few, more) => format!("it has {} and {more} more", few.join(", ")),
    }
}

/// Of several images, keeps those that run best here, if any does: they are one image for several platforms.
fn keep_what_runs_here(images: &mut Vec<Found>) {
    if images.len() < 2 {
        return;
    }
    let Some(best) = images.iter().filter_map(|image| image.rank).min() else { return };
    images.retain(|image| image.rank == Some(best));
}
