//! What a lower is that the command line names: a directory, or an archive.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::Failure;
use crate::archive::{self, ArchiveOptions};
use crate::union::stack::layer::LowerSource;

/// Behind the path of an archive: names such as `.wh.x` are whiteouts.
const LAYER: &[u8] = b",layer";

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

/// Whether some of them are archives, open or not.
pub(super) fn any_archive(lowers: &[LowerSource]) -> bool {
    lowers.iter().any(|lower| match lower {
        LowerSource::Directory(path) => is_archive(path),
        LowerSource::Tree { .. } => true,
    })
}

/// Whether a lower of this path is an archive.
pub(super) fn is_archive(path: &Path) -> bool {
    archive_at(path).is_some()
}

/// Returns the archive that a path names, if it does, and how it is to be read.
fn archive_at(path: &Path) -> Option<(PathBuf, ArchiveOptions)> {
    let is_file = |path: &Path| path.metadata().is_ok_and(|found| found.is_file());
    if is_file(path) {
        return Some((path.to_owned(), ArchiveOptions::default()));
    }
    // A directory may be called so.
    let bare = path.as_os_str().as_bytes().strip_suffix(LAYER).filter(|_| !path.exists())?;
    let bare = PathBuf::from(std::ffi::OsString::from_vec(bare.to_vec()));
    is_file(&bare).then_some((bare, ArchiveOptions { is_layer: true }))
}

fn source(at: usize, path: PathBuf) -> Result<LowerSource, Failure> {
    // What isn't there, the stack tells.
    let Some((archive, options)) = archive_at(&path) else { return Ok(LowerSource::Directory(path)) };
    let named = |error| Failure::failed(format!("lower layer {} {error}", at + 1));
    let tree = archive::open(&archive, options).map_err(named)?;
    // What messages and the socket say is to be found from everywhere.
    let mut path = std::fs::canonicalize(&archive).unwrap_or(archive).into_os_string();
    if options.is_layer {
        path.push(OsStr::from_bytes(LAYER));
    }
    Ok(LowerSource::Tree { path: path.into(), tree })
}
