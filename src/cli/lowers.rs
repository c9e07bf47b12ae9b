//! What a lower is that the command line names: a directory, or an archive.
//!
//! A path is opened once, and what was opened says what it is: whoever owns a directory on the way may put something else
//! there between two looks.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::Failure;
use super::options::split_merged;
use crate::archive::{self, ArchiveError, ArchiveOptions};
use crate::sys::object::At;
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
    paths.into_iter().enumerate().map(|(at, path)| source(at, path)).collect()
}

/// Opens archives among lowers. A daemon does so when it has left its caller, whose descriptors it closes.
pub(super) fn opened(lowers: &[LowerSource]) -> Result<Vec<LowerSource>, Failure> {
    let each = lowers.iter().enumerate().map(|(at, lower)| match lower {
        LowerSource::Directory(path) => source(at, path.clone()),
        tree => Ok(tree.clone()),
    });
    each.collect()
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

fn source(at: usize, path: PathBuf) -> Result<LowerSource, Failure> {
    let named = |error| Failure::failed(format!("lower layer {} {error}", at + 1));
    let found = archive_at(&path);
    let found =
        found.map_err(|source| named(ArchiveError::Io { what: "open it", path: path.clone(), source }))?;
    let Some((file, archive, options)) = found else { return Ok(LowerSource::Directory(path)) };
    let tree = archive::open(file, &archive, options).map_err(named)?;
    // What messages and the socket say is to be found from everywhere.
    let mut path = std::fs::canonicalize(&archive).unwrap_or(archive).into_os_string();
    if options.is_layer {
        path.push(OsStr::from_bytes(LAYER));
    }
    Ok(LowerSource::Tree { path: path.into(), tree })
}
