//! What a lower is that the command line names: a directory, an archive, or the layers of an image where it lies.
//!
//! A path is opened once, and what was opened says what it is: whoever owns a directory on the way may put something else
//! there between two looks.

mod spelled;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::MultiProgress;
use rustix::fs::{Mode, OFlags};

use super::Failure;
use super::registry::progress;
use crate::archive::{
    self, Archive, ArchiveError, ArchiveOptions, Part, Promised, ReadLower, layer_name, open_layer,
};
use crate::image::error::StoreError;
use crate::image::packed::{Layout, PackedLayer, Wanted};
use crate::sys::object::{At, Stat};
use crate::sys::own::is_own;
use crate::sys::threads::at_once;
use crate::union::escaped_path::EscapedPath;
use crate::union::stack::layer::{LowerSource, StackError};

use self::spelled::{NamedImage, Taken, as_layer_of, as_tar, bare, is_image, is_pinned};
pub(super) use self::spelled::{as_layer, promised, split};

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
    let names = opened.iter().map(ReadLower::name).collect();
    Ok((opened.into_iter().map(ReadLower::into_source).collect(), names))
}

/// Opens archives among lowers, several at once, since one that is compressed is read to its end. A daemon does so when it has
/// left its caller, whose descriptors it closes.
pub(super) fn opened(lowers: &[LowerSource]) -> Result<Vec<LowerSource>, Failure> {
    Ok(read(found_all(lowers)?)?.into_iter().map(ReadLower::into_source).collect())
}

fn found_all(lowers: &[LowerSource]) -> Result<Vec<Found>, Failure> {
    let each = lowers.iter().enumerate().map(|(at, lower)| match lower {
        LowerSource::Directory(path) => found(at, path.clone(), &|_| Ok(())),
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
    let found = found(0, path, &|seen| match is_own(seen.dev) {
        true => Err(failed(&"lies in the mount, which would wait for itself")),
        false => Ok(()),
    })?;
    let seen = match &found {
        Found::Lower(_) => None,
        Found::File { file, .. } | Found::Image(_, _, Place::File(file)) => Some(file),
        Found::Image(_, _, Place::Directory(dir)) => Some(dir),
    };
    if let Some(seen) = seen {
        let seen = At::Fd(seen.as_fd()).stat_as_known().map_err(|error| failed(&error))?;
        if (seen.dev, seen.ino) != id {
            return Err(failed(&"the daemon sees something else there; is it in another mount namespace?"));
        }
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
        (Some(_), None) if is_pinned(path) => return Err(io::Error::other(no_pinned(path))),
        _ => (path.to_owned(), Box::new(|place| place)),
    };
    let place = std::fs::canonicalize(place)?;
    Ok((name(place.clone()), place))
}

/// Reads the archives among what was found, and finds the layers of images.
fn read(found: Vec<Found>) -> Result<Vec<ReadLower>, Failure> {
    let bars = progress(false);
    let parts = at_once(found, |one| one.unfold(&bars))?.into_iter().flatten().collect();
    let mut opened: Vec<ReadLower> = at_once(parts, |one| one.read(&bars))?;
    // Layers of an image that lie right above each other tell of directories that one of them doesn't name.
    ReadLower::describe_implied(&mut opened);
    Ok(opened)
}

/// What lies at the path of a lower.
enum Found {
    /// No archive.
    Lower(LowerSource),
    /// A file that may be one, and which lower it is.
    File { at: usize, file: File, path: PathBuf, taken: Taken },
    /// Which lower it is, an image of a layout or an archive, and where that lies.
    Image(usize, NamedImage, Place),
}

/// Where an image lies, open.
enum Place {
    /// An archive.
    File(File),
    /// A layout.
    Directory(File),
}

/// A lower that is found, and not yet read.
enum Unread {
    Opened(ReadLower),
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
            Found::Lower(lower) => Ok(vec![Unread::Opened(ReadLower::Plain(lower))]),
            Found::File { at, file, path, taken } => {
                let bars = Some(bars.clone());
                let archive = match taken {
                    Taken::Layer(digest) => open_layer(file, &path, digest, bars),
                    Taken::AsItIs | Taken::Tar | Taken::OfImage(_) => {
                        archive::open(file, &path, &as_it_is(bars))
                    }
                };
                let archive = archive.map_err(|error| wrong(at, &error))?;
                let of_image = |place, number| NamedImage { place, wanted: Wanted::Only, number };
                match taken {
                    Taken::OfImage(number) => of_archive(at, &of_image(path, Some(number)), archive),
                    Taken::AsItIs if archive.holds_image() => of_archive(at, &of_image(path, None), archive),
                    _ => {
                        let (path, archive) = (again(path, taken), Box::new(archive));
                        Ok(vec![Unread::Opened(ReadLower::Archive { path, archive, name: None })])
                    }
                }
            }
            Found::Image(at, image, place) => of_image(at, &image, place, bars),
        }
    }
}

fn as_it_is(progress: Option<MultiProgress>) -> ArchiveOptions {
    ArchiveOptions { progress, ..ArchiveOptions::default() }
}

/// Finds the layers of an image in a layout or an archive.
fn of_image(
    at: usize,
    image: &NamedImage,
    opened: Place,
    bars: &MultiProgress,
) -> Result<Vec<Unread>, Failure> {
    let place = &image.place;
    let io = |source| wrong(at, &ArchiveError::Io { what: "open it", path: place.clone(), source });
    let dir = match opened {
        Place::File(file) => {
            let archive = archive::open(file, place, &as_it_is(Some(bars.clone())));
            return of_archive(at, image, archive.map_err(|error| wrong(at, &error))?);
        }
        Place::Directory(dir) => dir,
    };
    let layout = Layout::new(dir, place);
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
    fn read(self, bars: &MultiProgress) -> Result<ReadLower, Failure> {
        match self {
            Unread::Opened(opened) => Ok(opened),
            Unread::Layer { at, part, layer, path, of } => {
                let promised = Promised { blob: layer.blob, tar: Some(layer.diff_id) };
                let options = ArchiveOptions { is_layer: true, promised, progress: Some(bars.clone()) };
                let archive = archive::open_part(part, &options).map_err(|error| wrong(at, &error))?;
                let of = of.file_name().unwrap_or(of.as_os_str()).to_string_lossy().into_owned();
                let name = if layer.step.is_empty() { None } else { Some(format!("{of}, {}", layer.step)) };
                Ok(ReadLower::Archive { path, archive: Box::new(archive), name })
            }
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
    !is_pinned(path) && path.is_dir() || is_archive(path)
}

/// Returns whether that is an image of a layout or an archive, and no directory of the whole name.
pub(super) fn names_image(path: &Path) -> bool {
    is_image(path) && (is_pinned(path) || !path.exists())
}

/// Returns whether a lower of this path looks like an archive, for what is shown of it.
pub(super) fn is_archive(path: &Path) -> bool {
    let is_file = |path: &Path| path.metadata().is_ok_and(|found| found.is_file());
    !is_pinned(path) && is_file(path)
        || bare(path).is_some_and(|(bare, _)| is_file(&bare))
        || (is_pinned(path) || !path.exists())
            && NamedImage::read(path).is_some_and(|image| image.place.exists())
}

/// What a path leads to, whatever is put there later.
struct Pinned(OwnedFd);

impl Pinned {
    /// Goes there, and has it looked at before it is opened. `None`: there is nothing that can be gone to, which the stack tells.
    fn at(
        path: &Path,
        look: &dyn Fn(&Stat) -> Result<(), Failure>,
    ) -> Result<Result<Pinned, rustix::io::Errno>, Failure> {
        // A fifo and a device of somebody else's aren't opened: they could hold this up, or do something.
        let pin = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(pin) => pin,
            Err(errno) => return Ok(Err(errno)),
        };
        if let Ok(seen) = At::Fd(pin.as_fd()).stat_as_known() {
            look(&seen)?;
        }
        Ok(Ok(Pinned(pin)))
    }

    /// Opens it if it is a regular file.
    fn file(&self) -> io::Result<Option<File>> {
        Ok(At::Fd(self.0.as_fd()).open_file()?.map(File::from))
    }

    /// Opens the place of an image.
    fn place(&self) -> io::Result<Place> {
        if let Some(file) = self.file()? {
            return Ok(Place::File(file));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Place::Directory(rustix::fs::openat(&self.0, ".", flags, Mode::empty())?.into()))
    }
}

/// Finds what a path names, by its whole name first: a directory may be called like an image. Not where a digest is named: that is
/// never a directory, which could hold anything. `look` sees what there is before it is opened.
fn found(at: usize, path: PathBuf, look: &dyn Fn(&Stat) -> Result<(), Failure>) -> Result<Found, Failure> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| wrong(at, &ArchiveError::Io { what: "open it", path, source })
    };
    let is_pinned = is_pinned(&path);
    if !is_pinned && let Ok(whole) = Pinned::at(&path, look)? {
        return Ok(match whole.file().map_err(io(&path))? {
            Some(file) => Found::File { at, file, path, taken: Taken::AsItIs },
            None => Found::Lower(LowerSource::Directory(path)),
        });
    }
    if let Some((bare, taken)) = bare(&path)
        && let Ok(there) = Pinned::at(&bare, look)?
        && let Some(file) = there.file().map_err(io(&bare))?
    {
        return Ok(Found::File { at, file, path: bare, taken });
    }
    match NamedImage::read(&path) {
        Some(image) => {
            let opened =
                Pinned::at(&image.place, look)?.map_err(io::Error::from).and_then(|there| there.place());
            let place = opened.map_err(io(&image.place))?;
            Ok(Found::Image(at, image, place))
        }
        None if is_pinned => {
            let shown = EscapedPath::from(path.as_path());
            Err(Failure::failed(format!("lower layer {} {shown}: {}", at + 1, no_pinned(&path))))
        }
        None => Ok(Found::Lower(LowerSource::Directory(path))),
    }
}

/// Says that there is no file of which a digest is asked for.
fn no_pinned(path: &Path) -> String {
    let file = bare(path).map_or_else(|| path.to_owned(), |(file, _)| file);
    let file = EscapedPath::from(file.as_path());
    format!(
        "there is no file {file}, and what is asked for by its digest is never a directory of the whole name"
    )
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
            let Ok(Found::File { path, taken, .. }) = found(0, written.clone(), &|_| Ok(())) else {
                panic!("another one")
            };
            assert_eq!((path, taken), (meant.clone(), Taken::Layer(Some(digest))));
            assert_eq!(from_everywhere(&written).unwrap().1, std::fs::canonicalize(&meant).unwrap());
            if !in_between {
                std::fs::remove_dir(&written).unwrap();
            }
        }
    }

    /// Where the file isn't there, nothing else of that name is.
    #[test]
    fn what_has_a_digest_is_never_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (meant, digest) = (dir.path().join("base.tar"), crate::image::digest::Digest::of(b"x"));
        let written = dir.path().join(format!("base.tar,layer={digest}"));
        std::fs::create_dir(&written).unwrap();
        let image = PathBuf::from(format!("oci:{}@{digest}", meant.display()));
        for is_there in [false, true] {
            if is_there {
                // No file either.
                std::fs::create_dir(&meant).unwrap();
            }
            let Err(refused) = found(0, written.clone(), &|_| Ok(())) else { panic!("it was taken") };
            for name in [&meant, &written] {
                assert!(refused.message.contains(&format!("{}", name.display())), "{}", refused.message);
            }
            assert!(refused.message.contains("there is no file"), "{}", refused.message);
            assert_eq!((could_be(&written), is_archive(&written)), (false, false));
            if !is_there {
                assert!(from_everywhere(&written).is_err());
                assert!(found(0, image.clone(), &|_| Ok(())).is_err());
            }
        }
        assert!(matches!(found(0, image, &|_| Ok(())), Ok(Found::Image(_, _, Place::Directory(_)))));
    }

    /// What is looked at is what is opened, whatever lies there by then.
    #[test]
    fn an_image_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let (place, other) = (dir.path().join("layout"), dir.path().join("other"));
        std::fs::create_dir(&place).unwrap();
        std::fs::create_dir(&other).unwrap();
        let named = PathBuf::from(format!("oci:{}", place.display()));
        let looked = std::cell::Cell::new(None);
        let found = found(0, named, &|seen: &Stat| {
            looked.set(Some((seen.dev, seen.ino)));
            std::fs::rename(&place, dir.path().join("away")).unwrap();
            std::fs::rename(&other, &place).unwrap();
            Ok(())
        });
        let Ok(Found::Image(_, _, Place::Directory(opened))) = found else { panic!("no layout") };
        let opened = At::Fd(opened.as_fd()).stat().unwrap();
        assert_eq!(looked.get(), Some((opened.dev, opened.ino)));
    }
}
