//! How lowers are written on the command line.
//!
//! | written | is |
//! |---|---|
//! | `PATH` | a directory; a file by its content: a tar, or the layers of the image that it holds |
//! | `PATH,tar` | a tar, whatever it holds |
//! | `PATH,layer` | a tar that is a layer: names such as `.wh.x` are whiteouts |
//! | `PATH,layer=sha256:HEX` | the same, and its tar must have that digest |
//! | `PATH,layer=N` | the N-th layer from the bottom of the image in an archive |
//! | `oci:PATH`, `oci:PATH:NAME`, `oci:PATH@sha256:HEX` | the layers of an image of a layout or an archive |
//!
//! What is there by the whole name goes before all of these.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::cli::options::{Lowers, split_lowers, split_place};
use crate::image::digest::Digest;
use crate::image::packed::Wanted;
use crate::union::stack::layer::StackError;

/// What begins the name of an image.
const IMAGE: &[u8] = b"oci:";
const LAYER: &str = ",layer";
const TAR: &str = ",tar";

/// What a file is to be taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Taken {
    /// For what its content is.
    AsItIs,
    /// For a tar.
    Tar,
    /// For a layer, perhaps with this digest.
    Layer(Option<Digest>),
    /// For an image, of which one layer is meant.
    OfImage(usize),
}

/// Splits what was given with `--lower`: an image alone, or a list with colons between.
pub(in crate::cli) fn split(given: &[u8]) -> Result<Lowers, StackError> {
    match given.starts_with(IMAGE) {
        true => Ok(Lowers { merged: vec![OsString::from_vec(given.to_vec()).into()], data_only: Vec::new() }),
        false => split_lowers(given),
    }
}

/// Returns the place of an image and which one it is; `None` where that isn't the name of one.
pub(super) fn image(path: &Path) -> Option<(PathBuf, Wanted)> {
    let text = path.as_os_str().as_bytes().strip_prefix(IMAGE)?;
    let digest = |at: usize| std::str::from_utf8(&text[at + 1..]).ok()?.parse().ok();
    if let Some(at) = text.iter().rposition(|&byte| byte == b'@')
        && let Some(digest) = digest(at)
    {
        return Some((split_place(&text[..at]).0, Wanted::Digest(digest)));
    }
    let (place, name) = split_place(text);
    let name = name.map(|name| String::from_utf8_lossy(name).into_owned());
    Some((place, name.map_or(Wanted::Only, Wanted::Name)))
}

/// Tells whether that is how an image is written.
pub(in crate::cli) fn is_image(path: &Path) -> bool {
    path.as_os_str().as_bytes().starts_with(IMAGE)
}

/// Returns a path without the words that say what a file is to be taken for; `None` where it has none.
pub(super) fn bare(path: &Path) -> Option<(PathBuf, Taken)> {
    let text = path.as_os_str().as_bytes();
    let at = text.iter().rposition(|&byte| byte == b',')?;
    let word = std::str::from_utf8(&text[at..]).ok()?;
    let taken = match word.strip_prefix(LAYER).map(|rest| rest.strip_prefix('=').ok_or(rest)) {
        None if word == TAR => Taken::Tar,
        Some(Err("")) => Taken::Layer(None),
        Some(Ok(which)) => match (which.parse(), which.parse()) {
            (Ok(number), _) => Taken::OfImage(number),
            (_, Ok(digest)) => Taken::Layer(Some(digest)),
            _ => return None,
        },
        _ => return None,
    };
    Some((OsStr::from_bytes(&text[..at]).into(), taken))
}

/// Returns how a lower is named that is a layer of an image as it came.
pub(in crate::cli) fn as_layer(blob: PathBuf) -> PathBuf {
    with(blob, LAYER)
}

/// Returns the blob and the digest of a lower that is a layer of an image and must be what the image says.
pub(in crate::cli) fn promised(path: &Path) -> Option<(PathBuf, Digest)> {
    match bare(path)? {
        (blob, Taken::Layer(Some(digest))) => Some((blob, digest)),
        _ => None,
    }
}

/// Returns how a lower is named that is one layer of the image in an archive.
pub(super) fn as_layer_of(archive: PathBuf, number: usize) -> PathBuf {
    with(archive, &format!("{LAYER}={number}"))
}

/// Returns how a lower is named that is a tar, whatever it holds.
pub(super) fn as_tar(path: PathBuf) -> PathBuf {
    with(path, TAR)
}

fn with(path: PathBuf, word: &str) -> PathBuf {
    let mut named = path.into_os_string();
    named.push(word);
    named.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_meant() {
        let digest = Digest::of(b"x");
        for (text, place, wanted) in [
            ("oci:/a/b", "/a/b", Wanted::Only),
            ("oci:dir:12", "dir", Wanted::Name("12".into())),
            ("oci:dir:localhost:5000/a/b:1", "dir", Wanted::Name("localhost:5000/a/b:1".into())),
            (r"oci:a\:b:1", "a:b", Wanted::Name("1".into())),
            (&format!("oci:di@r@{digest}"), "di@r", Wanted::Digest(digest)),
            ("oci:di@r", "di@r", Wanted::Only),
        ] {
            assert_eq!(image(Path::new(text)), Some((place.into(), wanted)), "{text}");
        }
        assert_eq!(image(Path::new("dir:12")), None);
        for (text, path, taken) in [
            ("a,layer", "a", Taken::Layer(None)),
            ("a,b,tar", "a,b", Taken::Tar),
            ("a,layer=3", "a", Taken::OfImage(3)),
            (&format!("a,layer={digest}"), "a", Taken::Layer(Some(digest))),
        ] {
            assert_eq!(bare(Path::new(text)), Some((path.into(), taken)), "{text}");
        }
        for text in ["a", "a,layers", "a,layer=", "a,layer=x", ",", "a,"] {
            assert_eq!(bare(Path::new(text)), None, "{text}");
        }
    }
}
