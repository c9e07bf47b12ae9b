//! What a lower is that the command line names: a directory, or an archive.
//!
//! A path is opened once, and what was opened says what it is: whoever owns a directory on the way may put something else
//! there between two looks.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use super::Failure;
use super::options::split_merged;
use crate::archive::{self, Archive, ArchiveError, ArchiveOptions};
use crate::sys::object::At;
use crate::sys::own::is_own;
use crate::union::escaped_path::EscapedPath;
use crate::union::stack::layer::LowerSource;

/// Behind the path of an archive: names such as `.wh.x` are whiteouts.
const LAYER: &[u8] = b",layer";

/// Returns the paths that lists of layers name, each as `--lower` takes it.
pub(super) fn named(lists: &[OsString]) -> Result<Vec<PathBuf>, Failure> {
    let mut paths = Vec::new();
    for list in lists {
        paths.extend(split_merged(list.as_bytes()).map_err(Failure::usage)?);
    }
    Ok(paths)
}

/// Opens archives among lowers that are known by their paths.
pub(super) fn sources(paths: impl IntoIterator<Item = PathBuf>) -> Result<Vec<LowerSource>, Failure> {
    opened(&LowerSource::directories(paths))
}

/// Opens archives among lowers, several at once, since one that is compressed is read to its end. A daemon does so when it has
/// left its caller, whose descriptors it closes.
pub(super) fn opened(lowers: &[LowerSource]) -> Result<Vec<LowerSource>, Failure> {
    let each = lowers.iter().enumerate().map(|(at, lower)| match lower {
        LowerSource::Directory(path) => found(at, path.clone()),
        tree => Ok(Found::Lower(tree.clone())),
    });
    read(each.collect::<Result<_, _>>()?)
}

/// Opens one more lower of a mount that is there. `id`: device and inode number of what is meant, which an archive must be; a
/// directory is held against it by who opens it.
pub(super) fn one_more(path: PathBuf, id: (u64, u64)) -> Result<LowerSource, Failure> {
    let shown = EscapedPath::from(path.as_path());
    let failed = |why: &dyn std::fmt::Display| Failure::failed(format!("{shown}: {why}"));
    // What lies in the mount is never opened; this tells so.
    let pin = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    if pin.is_ok_and(|pin| At::Fd(pin.as_fd()).stat_as_known().is_ok_and(|seen| is_own(seen.dev))) {
        return Err(failed(&"lies in the mount, which would wait for itself"));
    }
    let found = found(0, path)?;
    if let Found::File { file, .. } = &found {
        let seen = file.metadata().map_err(|error| failed(&error))?;
        if (seen.dev(), seen.ino()) != id {
            return Err(failed(&"the daemon sees something else there; is it in another mount namespace?"));
        }
    }
    read(vec![found])?.pop().ok_or_else(|| failed(&"can't be opened"))
}

/// Reads the archives among what was found.
fn read(found: Vec<Found>) -> Result<Vec<LowerSource>, Failure> {
    let mut opened: Vec<Opened> = at_once(found, Found::read).into_iter().collect::<Result<_, _>>()?;
    // Layers of an image that lie right above each other tell of directories that one of them doesn't name.
    for run in opened.chunk_by_mut(|above, below| above.is_layer() && below.is_layer()) {
        archive::describe_implied(&mut run.iter_mut().filter_map(Opened::archive).collect::<Vec<_>>());
    }
    Ok(opened.into_iter().map(Opened::into_source).collect())
}

/// Does the same work for each, as many at a time as there are processors; what came of it, in order.
fn at_once<T: Send, R: Send>(all: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = processors.min(all.len());
    let queue = Mutex::new(all.into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    // Not held while one is at work.
                    let next = queue.lock().next();
                    let Some((at, one)) = next else { return };
                    let result = work(one);
                    done.lock().push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// What lies at the path of a lower.
enum Found {
    /// No archive.
    Lower(LowerSource),
    /// A file that may be one, and which lower it is.
    File { at: usize, file: File, path: PathBuf, options: ArchiveOptions },
}

impl Found {
    fn read(self) -> Result<Opened, Failure> {
        match self {
            Found::Lower(lower) => Ok(Opened::Lower(lower)),
            Found::File { at, file, path, options } => {
                let archive = archive::open(file, &path, options).map_err(|error| wrong(at, &error))?;
                Ok(Opened::Archive(path, Box::new(archive)))
            }
        }
    }
}

/// A lower whose archive, if it is one, has been read.
enum Opened {
    Lower(LowerSource),
    Archive(PathBuf, Box<Archive>),
}

impl Opened {
    fn archive(&mut self) -> Option<&mut Archive> {
        match self {
            Opened::Lower(_) => None,
            Opened::Archive(_, archive) => Some(archive),
        }
    }

    fn is_layer(&self) -> bool {
        matches!(self, Opened::Archive(_, archive) if archive.is_layer())
    }

    fn into_source(self) -> LowerSource {
        match self {
            Opened::Lower(lower) => lower,
            Opened::Archive(archive, read) => {
                // What messages and the socket say is to be found from everywhere.
                let path = std::fs::canonicalize(&archive).unwrap_or(archive);
                let path = if read.is_layer() { as_layer(path) } else { path };
                LowerSource::Tree { path, tree: read.into_tree() }
            }
        }
    }
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
    let bare = bare(path);
    let is_file = |path: &Path| path.metadata().is_ok_and(|found| found.is_file());
    is_file(path) || bare.is_some_and(|bare| is_file(&bare))
}

/// Returns a path without the word that says how an archive is to be read; `None` where it has none.
fn bare(path: &Path) -> Option<PathBuf> {
    let bare = path.as_os_str().as_bytes().strip_suffix(LAYER)?;
    Some(OsString::from_vec(bare.to_vec()).into())
}

/// Returns how a lower is named that is a layer of an image as it came.
pub(super) fn as_layer(blob: PathBuf) -> PathBuf {
    let mut named = blob.into_os_string();
    named.push(OsStr::from_bytes(LAYER));
    named.into()
}

/// Opens what a path names and keeps it if it is a regular file. What isn't there, or isn't one, the stack tells.
fn file_at(path: &Path) -> io::Result<Option<File>> {
    // A fifo and a device of somebody else's aren't opened: they could hold this up, or do something.
    let Ok(pin) = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(None);
    };
    Ok(At::Fd(pin.as_fd()).open_file()?.map(File::from))
}

/// Opens the archive that a path names, if it does; how it is to be read is told too.
fn archive_at(path: &Path) -> io::Result<Option<(File, PathBuf, ArchiveOptions)>> {
    if let Some(file) = file_at(path)? {
        return Ok(Some((file, path.to_owned(), ArchiveOptions::default())));
    }
    // A directory may be called so.
    let Some(bare) = bare(path).filter(|_| !path.exists()) else { return Ok(None) };
    Ok(file_at(&bare)?.map(|file| (file, bare, ArchiveOptions { is_layer: true })))
}

fn found(at: usize, path: PathBuf) -> Result<Found, Failure> {
    let found = archive_at(&path);
    let opened = found
        .map_err(|source| wrong(at, &ArchiveError::Io { what: "open it", path: path.clone(), source }))?;
    Ok(match opened {
        Some((file, path, options)) => Found::File { at, file, path, options },
        None => Found::Lower(LowerSource::Directory(path)),
    })
}
