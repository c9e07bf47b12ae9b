//! What a lower is that the command line names: a directory, an archive, or the layers of an image where it lies.
//!
//! A path is opened once, and what was opened says what it is: whoever owns a directory on the way may put something else
//! there between two looks.

mod spelled;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::MultiProgress;
use rustix::fs::{Mode, OFlags};

use super::Failure;
use super::registry::progress;
use crate::archive::{self, Archive, ArchiveError, ArchiveOptions, Part, Promised, layer_name};
use crate::image::error::StoreError;
use crate::image::packed::{Layout, PackedLayer, Wanted};
use crate::sys::object::At;
use crate::sys::own::is_own;
use crate::sys::threads::at_once;
use crate::union::escaped_path::EscapedPath;
use crate::union::stack::layer::{LowerSource, StackError};

use self::spelled::{NamedImage, Taken, as_layer_of, as_tar, bare, is_pinned};
pub(super) use self::spelled::{as_layer, is_image, promised, split};

/// Returns the paths that lists of layers name, each as `--lower` takes it.
pub(super) fn named(lists: &[OsString]) -> Result<Vec<PathBuf>, Failure> {
    let mut paths = Vec::new();
    for list in lists {
        let lowers = split(list.as_bytes()).map_err(Failure::usage)?;
        if !lowers.data_only.is_empty() {
            return Err(Failure::usage(StackError::DataOnlyHere));
        }
        paths.extend(lowers.merged);
    }
    Ok(paths)
}

/// Opens archives and images among lowers that are known by their paths.
pub(super) fn sources(paths: impl IntoIterator<Item = PathBuf>) -> Result<Vec<LowerSource>, Failure> {
    opened(&LowerSource::directories(paths))
}

/// Does as [`sources`]; what people call each is told too, where its path says less.
pub(super) fn sources_and_names(
    paths: Vec<PathBuf>,
) -> Result<(Vec<LowerSource>, Vec<Option<String>>), Failure> {
    let opened = read(found_all(&LowerSource::directories(paths))?)?;
    let names = opened.iter().map(Opened::name).collect();
    Ok((opened.into_iter().map(Opened::into_source).collect(), names))
}

/// Opens archives among lowers, several at once, since one that is compressed is read to its end. A daemon does so when it has
/// left its caller, whose descriptors it closes.
pub(super) fn opened(lowers: &[LowerSource]) -> Result<Vec<LowerSource>, Failure> {
    Ok(read(found_all(lowers)?)?.into_iter().map(Opened::into_source).collect())
}

fn found_all(lowers: &[LowerSource]) -> Result<Vec<Found>, Failure> {
    let each = lowers.iter().enumerate().map(|(at, lower)| match lower {
        LowerSource::Directory(path) => found(at, path.clone()),
        tree => Ok(Found::Lower(tree.clone())),
    });
    each.collect()
}

/// Opens one more lower of a mount that is there. `id`: device and inode number of what is meant, which an archive must be; a
/// directory is held against it by who opens it.
pub(super) fn one_more(path: PathBuf, id: (u64, u64)) -> Result<LowerSource, Failure> {
    let shown = EscapedPath::from(path.as_path());
    let failed = |why: &dyn std::fmt::Display| Failure::failed(format!("{shown}: {why}"));
    // What lies in the mount is never opened; this tells so.
    let place = match (NamedImage::read(&path), bare(&path)) {
        (Some(NamedImage { place, .. }), _) | (None, Some((place, _))) => place,
        (None, None) => path.clone(),
    };
    let seen = |path: &Path| {
        let pin = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        At::Fd(pin.as_fd()).stat_as_known().ok()
    };
    let (whole, place) = (seen(&path), seen(&place));
    if [&whole, &place].into_iter().flatten().any(|seen| is_own(seen.dev)) {
        return Err(failed(&"lies in the mount, which would wait for itself"));
    }
    let found = found(0, path)?;
    let seen = match &found {
        Found::Lower(_) => None,
        Found::File { file, .. } => {
            let seen = file.metadata().map_err(|error| failed(&error))?;
            Some((seen.dev(), seen.ino()))
        }
        Found::Image(..) => place.map(|seen| (seen.dev, seen.ino)),
    };
    if seen.is_some_and(|seen| seen != id) {
        return Err(failed(&"the daemon sees something else there; is it in another mount namespace?"));
    }
    let bars = progress(false);
    let mut parts = found.unfold(&bars)?;
    // Before one of them is read, which can take long.
    match (parts.pop(), parts.is_empty()) {
        (Some(one), true) => Ok(one.read(&bars)?.into_source()),
        (Some(_), false) => {
            let way = "holds an image, and one layer is added at a time: with ,layer=N behind it, it is the N-th from the bottom; \
                       an archive with ,tar is all its files";
            Err(failed(&way))
        }
        (None, _) => Err(failed(&"can't be opened")),
    }
}

/// Returns how a lower is named from everywhere, and where it lies.
///
/// # Errors
/// When nothing lies there.
pub(super) fn from_everywhere(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    let whole = !is_pinned(path) && is_there(path);
    let (place, name): (_, Box<dyn Fn(PathBuf) -> PathBuf>) = match (bare(path), NamedImage::read(path)) {
        _ if whole => (path.to_owned(), Box::new(|place| place)),
        (Some((bare, taken)), _) if is_there(&bare) => (bare, Box::new(move |place| again(place, taken))),
        (_, Some(image)) => {
            let NamedImage { place, wanted, number } = image;
            (place, Box::new(move |place| NamedImage { place, wanted: wanted.clone(), number }.name()))
        }
        _ => (path.to_owned(), Box::new(|place| place)),
    };
    let place = std::fs::canonicalize(place)?;
    Ok((name(place.clone()), place))
}

/// Reads the archives among what was found, and finds the layers of images.
fn read(found: Vec<Found>) -> Result<Vec<Opened>, Failure> {
    let bars = progress(false);
    let parts = at_once(found, |one| one.unfold(&bars))?.into_iter().flatten().collect();
    let mut opened: Vec<Opened> = at_once(parts, |one| one.read(&bars))?;
    // Layers of an image that lie right above each other tell of directories that one of them doesn't name.
    for run in opened.chunk_by_mut(|above, below| above.is_layer() && below.is_layer()) {
        archive::describe_implied(&mut run.iter_mut().filter_map(Opened::archive).collect::<Vec<_>>());
    }
    Ok(opened)
}

/// What lies at the path of a lower.
enum Found {
    /// No archive.
    Lower(LowerSource),
    /// A file that may be one, and which lower it is.
    File { at: usize, file: File, path: PathBuf, taken: Taken },
    /// Which lower it is, and an image of a layout or an archive.
    Image(usize, NamedImage),
}

/// A lower that is found, and not yet read.
enum Unread {
    Opened(Opened),
    /// A layer of an image, and what the lower that it makes is called.
    Layer {
        at: usize,
        part: Part,
        layer: Box<PackedLayer>,
        path: PathBuf,
        of: PathBuf,
    },
}

impl Found {
    fn unfold(self, bars: &MultiProgress) -> Result<Vec<Unread>, Failure> {
        match self {
            Found::Lower(lower) => Ok(vec![Unread::Opened(Opened::Lower(lower))]),
            Found::File { at, file, path, taken } => {
                let (is_layer, tar) = match taken {
                    Taken::Layer(digest) => (true, digest),
                    Taken::AsItIs | Taken::Tar | Taken::OfImage(_) => (false, None),
                };
                let promised = Promised { tar, blob: None };
                let options = ArchiveOptions { is_layer, promised, progress: Some(bars.clone()) };
                let archive = archive::open(file, &path, &options).map_err(|error| wrong(at, &error))?;
                let of_image = |place, number| NamedImage { place, wanted: Wanted::Only, number };
                match taken {
                    Taken::OfImage(number) => of_archive(at, &of_image(path, Some(number)), archive),
                    Taken::AsItIs if archive.holds_image() => of_archive(at, &of_image(path, None), archive),
                    _ => {
                        Ok(vec![Unread::Opened(Opened::Archive(again(path, taken), Box::new(archive), None))])
                    }
                }
            }
            Found::Image(at, image) => of_image(at, &image, bars),
        }
    }
}

/// Finds the layers of an image in a layout or an archive.
fn of_image(at: usize, image: &NamedImage, bars: &MultiProgress) -> Result<Vec<Unread>, Failure> {
    let place = &image.place;
    let io = |source| wrong(at, &ArchiveError::Io { what: "open it", path: place.clone(), source });
    if let Some(file) = file_at(place).map_err(io)? {
        let options = ArchiveOptions { progress: Some(bars.clone()), ..ArchiveOptions::default() };
        let archive = archive::open(file, place, &options).map_err(|error| wrong(at, &error))?;
        return of_archive(at, image, archive);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(place, flags, Mode::empty()).map_err(|errno| io(errno.into()))?;
    let layout = Layout::new(dir.into(), place);
    let failed = |error: StoreError| Failure::failed(format!("lower layer {} {error}", at + 1));
    let layers = layout.layers(&image.wanted).map_err(failed)?;
    let each = meant(at, image, layers, |layer| layer)?.into_iter().map(|layer| {
        let (file, path) = layout.open(&layer).map_err(failed)?;
        let part = Part::whole(file, &path).map_err(io)?;
        // A layout gets other images, under the same names as well.
        let path = layer_of(whole(place.clone()), &layer);
        Ok(Unread::Layer { at, part, layer: Box::new(layer), path, of: place.clone() })
    });
    each.collect()
}

/// Finds the layers of an image in an archive.
fn of_archive(at: usize, image: &NamedImage, archive: Archive) -> Result<Vec<Unread>, Failure> {
    let place = &image.place;
    let layers = Arc::new(archive).image_layers(&image.wanted).map_err(|error| {
        let way = format!("{},tar would be the files of the archive themselves", place.display());
        Failure::failed(format!("lower layer {} {error}; {way}", at + 1))
    })?;
    let named = |(layer, part): (PackedLayer, Part)| {
        let path = match image.wanted {
            Wanted::Only => as_layer_of(whole(place.clone()), layer.number),
            Wanted::Name(_) | Wanted::Digest(_) => layer_of(whole(place.clone()), &layer),
        };
        let part = part.called(&path);
        Unread::Layer { at, part, layer: Box::new(layer), path, of: place.clone() }
    };
    Ok(meant(at, image, layers, |(layer, _)| layer)?.into_iter().map(named).collect())
}

/// Keeps the layers that are meant.
fn meant<T>(
    at: usize,
    image: &NamedImage,
    mut layers: Vec<T>,
    layer: impl Fn(&T) -> &PackedLayer,
) -> Result<Vec<T>, Failure> {
    let Some(number) = image.number else { return Ok(layers) };
    layers.retain(|one| layer(one).number == number);
    match layers.is_empty() {
        true => {
            let place = image.place.display();
            Err(Failure::failed(format!("lower layer {} {place}: its image has no layer {number}", at + 1)))
        }
        false => Ok(layers),
    }
}

/// Returns how a layer of one of several images is named.
fn layer_of(place: PathBuf, layer: &PackedLayer) -> PathBuf {
    NamedImage { place, wanted: Wanted::Digest(layer.image), number: Some(layer.number) }.name()
}

impl Unread {
    fn read(self, bars: &MultiProgress) -> Result<Opened, Failure> {
        match self {
            Unread::Opened(opened) => Ok(opened),
            Unread::Layer { at, part, layer, path, of } => {
                let promised = Promised { blob: layer.blob, tar: Some(layer.diff_id) };
                let options = ArchiveOptions { is_layer: true, promised, progress: Some(bars.clone()) };
                let archive = archive::open_part(part, &options).map_err(|error| wrong(at, &error))?;
                let of = of.file_name().unwrap_or(of.as_os_str()).to_string_lossy().into_owned();
                let name = if layer.step.is_empty() { None } else { Some(format!("{of}, {}", layer.step)) };
                Ok(Opened::Archive(path, Box::new(archive), name))
            }
        }
    }
}

/// A lower whose archive, if it is one, has been read; what people call it, where its path says less.
enum Opened {
    Lower(LowerSource),
    Archive(PathBuf, Box<Archive>, Option<String>),
}

impl Opened {
    fn archive(&mut self) -> Option<&mut Archive> {
        match self {
            Opened::Lower(_) => None,
            Opened::Archive(_, archive, _) => Some(archive),
        }
    }

    fn is_layer(&self) -> bool {
        matches!(self, Opened::Archive(_, archive, _) if archive.is_layer())
    }

    fn name(&self) -> Option<String> {
        match self {
            Opened::Lower(_) => None,
            Opened::Archive(_, _, name) => name.clone(),
        }
    }

    fn into_source(self) -> LowerSource {
        match self {
            Opened::Lower(lower) => lower,
            Opened::Archive(path, read, _) => LowerSource::Tree { path, tree: read.into_tree() },
        }
    }
}

/// Returns how what was taken so is named from everywhere.
fn again(path: PathBuf, taken: Taken) -> PathBuf {
    match taken {
        Taken::Layer(Some(digest)) => layer_name(whole(path), &digest),
        Taken::Layer(None) => as_layer(whole(path)),
        Taken::Tar => as_tar(whole(path)),
        Taken::OfImage(number) => as_layer_of(whole(path), number),
        Taken::AsItIs => whole(path),
    }
}

/// Returns what messages and the socket say, which is to be found from everywhere.
fn whole(path: PathBuf) -> PathBuf {
    std::fs::canonicalize(&path).unwrap_or(path)
}

fn wrong(at: usize, error: &ArchiveError) -> Failure {
    Failure::failed(format!("lower layer {} {error}", at + 1))
}

/// Returns whether there is something at this path that could be a lower.
pub(super) fn could_be(path: &Path) -> bool {
    path.is_dir() || is_archive(path)
}

/// Returns whether a lower of this path looks like an archive, for what is shown of it.
pub(super) fn is_archive(path: &Path) -> bool {
    let is_file = |path: &Path| path.metadata().is_ok_and(|found| found.is_file());
    !is_pinned(path) && is_file(path)
        || bare(path).is_some_and(|(bare, _)| is_file(&bare))
        || (is_pinned(path) || !path.exists())
            && NamedImage::read(path).is_some_and(|image| image.place.exists())
}

/// Opens what a path names and keeps it if it is a regular file. What isn't there, or isn't one, the stack tells.
fn file_at(path: &Path) -> io::Result<Option<File>> {
    // A fifo and a device of somebody else's aren't opened: they could hold this up, or do something.
    let Ok(pin) = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(None);
    };
    Ok(At::Fd(pin.as_fd()).open_file()?.map(File::from))
}

/// Finds what a path names, by its whole name first: a directory may be called like an image. Not where a digest is named.
fn found(at: usize, path: PathBuf) -> Result<Found, Failure> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| wrong(at, &ArchiveError::Io { what: "open it", path, source })
    };
    if !is_pinned(&path) {
        if let Some(file) = file_at(&path).map_err(io(&path))? {
            return Ok(Found::File { at, file, path, taken: Taken::AsItIs });
        }
        if path.exists() {
            return Ok(Found::Lower(LowerSource::Directory(path)));
        }
    }
    if let Some((bare, taken)) = bare(&path)
        && let Some(file) = file_at(&bare).map_err(io(&bare))?
    {
        return Ok(Found::File { at, file, path: bare, taken });
    }
    Ok(match NamedImage::read(&path) {
        Some(image) => Found::Image(at, image),
        None => Found::Lower(LowerSource::Directory(path)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody who may make a file beside another is not believed what has a digest.
    #[test]
    fn a_name_that_is_like_a_digests_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let (meant, digest) = (dir.path().join("base.tar"), crate::image::digest::Digest::of(b"x"));
        let written = dir.path().join(format!("base.tar,layer={digest}"));
        std::fs::write(&meant, "x").unwrap();
        for in_between in [false, true] {
            match in_between {
                false => std::fs::create_dir(&written).unwrap(),
                true => std::fs::write(&written, "y").unwrap(),
            }
            let Ok(Found::File { path, taken, .. }) = found(0, written.clone()) else {
                panic!("another one")
            };
            assert_eq!((path, taken), (meant.clone(), Taken::Layer(Some(digest))));
            assert_eq!(from_everywhere(&written).unwrap().1, std::fs::canonicalize(&meant).unwrap());
            if !in_between {
                std::fs::remove_dir(&written).unwrap();
            }
        }
    }
}
