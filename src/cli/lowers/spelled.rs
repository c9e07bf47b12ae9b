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
//! | each of these with `,layer=N` | the N-th layer of that image from the bottom |
//!
//! What is there by the whole name goes before all of these, but for those with a digest: who can make a file of that name beside another
//! would be believed what he likes. `./` before such a name doesn't help; rename the file.

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

/// An image, as it is named.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NamedImage {
    /// The layout or the archive.
    pub place: PathBuf,
    /// Which of its images.
    pub wanted: Wanted,
    /// The layer that is meant, counted from the bottom; `None`: all.
    pub number: Option<usize>,
}

impl NamedImage {
    /// Reads the name of an image; `None` where it isn't one.
    pub(super) fn read(path: &Path) -> Option<NamedImage> {
        let text = path.as_os_str().as_bytes().strip_prefix(IMAGE)?;
        let (text, number) = match bare(Path::new(OsStr::from_bytes(text))) {
            Some((bare, Taken::OfImage(number))) => (bare.into_os_string().into_vec(), Some(number)),
            _ => (text.to_vec(), None),
        };
        let digest = |at: usize| std::str::from_utf8(&text[at + 1..]).ok()?.parse().ok();
        if let Some(at) = text.iter().rposition(|&byte| byte == b'@')
            && let Some(digest) = digest(at)
        {
            let (place, _) = split_place(&text[..at]);
            return Some(NamedImage { place, wanted: Wanted::Digest(digest), number });
        }
        let (place, name) = split_place(&text);
        let name = name.map(|name| String::from_utf8_lossy(name).into_owned());
        Some(NamedImage { place, wanted: name.map_or(Wanted::Only, Wanted::Name), number })
    }

    /// Returns how it is named.
    pub(super) fn name(&self) -> PathBuf {
        let mut text = IMAGE.to_vec();
        for &byte in self.place.as_os_str().as_bytes() {
            if matches!(byte, b':' | b'\\') {
                text.push(b'\\');
            }
            text.push(byte);
        }
        match &self.wanted {
            Wanted::Only => {}
            Wanted::Name(name) => text.extend(format!(":{name}").bytes()),
            Wanted::Digest(digest) => text.extend(format!("@{digest}").bytes()),
        }
        let path = OsString::from_vec(text).into();
        match self.number {
            Some(number) => as_layer_of(path, number),
            None => path,
        }
    }
}

/// Tells whether a digest is part of how a lower is written, so that only what has it is meant.
pub(in crate::cli) fn is_pinned(path: &Path) -> bool {
    let wants_digest = |image: NamedImage| matches!(image.wanted, Wanted::Digest(_));
    promised(path).is_some() || NamedImage::read(path).is_some_and(wants_digest)
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
        for (text, place, wanted, number) in [
            ("oci:/a/b", "/a/b", Wanted::Only, None),
            ("oci:dir:12", "dir", Wanted::Name("12".into()), None),
            ("oci:dir:localhost:5000/a/b:1", "dir", Wanted::Name("localhost:5000/a/b:1".into()), None),
            (r"oci:a\:b\\:1", r"a:b\", Wanted::Name("1".into()), None),
            (&format!("oci:di@r@{digest}"), "di@r", Wanted::Digest(digest), None),
            ("oci:di@r", "di@r", Wanted::Only, None),
            ("oci:d,x,layer=3", "d,x", Wanted::Only, Some(3)),
            ("oci:d:a/b:1,layer=12", "d", Wanted::Name("a/b:1".into()), Some(12)),
            (&format!("oci:d@{digest},layer=2"), "d", Wanted::Digest(digest), Some(2)),
        ] {
            let image = NamedImage { place: place.into(), wanted, number };
            assert_eq!(image.name(), Path::new(text));
            assert_eq!(NamedImage::read(Path::new(text)), Some(image), "{text}");
        }
        assert_eq!(NamedImage::read(Path::new("dir:12")), None);
        for (text, pinned) in [
            (format!("a,layer={digest}"), true),
            (format!("oci:d@{digest},layer=2"), true),
            ("a,layer=2".into(), false),
            ("oci:d:1".into(), false),
        ] {
            assert_eq!(is_pinned(Path::new(&text)), pinned, "{text}");
        }
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
