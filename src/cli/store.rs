//! What all verbs of images and containers share: where the store is, and against what loading is guarded.

use std::path::PathBuf;

use super::Failure;
use crate::control::mounts::NotFound;
use crate::image::error::{Result, StoreError};
use crate::image::layer::Limits;
use crate::image::store::Store;
use crate::union::escaped_path::EscapedPath;

/// Which store.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct StoreArgs {
    /// The store [default: /var/lib/unionmount; of an ordinary user, unionmount in the XDG data directory]
    #[arg(long, value_name = "DIR", env = "UNIONMOUNT_ROOT")]
    root: Option<PathBuf>,
}

impl StoreArgs {
    /// Opens the store, and makes it when there is none.
    pub(super) fn open(&self) -> Result<Store> {
        super::logging::start_for_verb();
        Store::open(self.root.as_deref())
    }

    /// Opens the store if there is one, for a question.
    pub(super) fn existing(&self) -> Result<Option<Store>> {
        super::logging::start_for_verb();
        Store::existing(self.root.as_deref())
    }

    /// Opens the store in which something is to be found: without one there is nothing.
    pub(super) fn with_something(&self) -> std::result::Result<Store, Failure> {
        self.existing()?.ok_or_else(|| self.nothing())
    }

    /// Says that there is no store.
    pub(super) fn nothing(&self) -> Failure {
        match Store::place(self.root.as_deref()) {
            Ok(place) => Failure::failed(StoreError::NoStore(place)),
            Err(error) => error.into(),
        }
    }
}

/// Says that nothing is called so.
pub(super) fn nothing_is_called(name: &str) -> Failure {
    Failure::failed(format!(
        "no image and no container is called {name:?}; `unionmount images` and `unionmount ps -a` list what there is"
    ))
}

/// Says of a path that no mount has it, to somebody who could name directories as well.
pub(super) fn no_mount_has(error: NotFound) -> Failure {
    let way = match &error {
        NotFound::Elsewhere(_) => "; or give the layers with --lower and --upper",
        NotFound::Unclear(_) | NotFound::Io { .. } => "",
    };
    Failure::failed(format!("{error}{way}"))
}

/// Against archives that unpack to more than anybody wants.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct LimitArgs {
    /// Refuse layers that unpack to more, as 500M or 20G [default: 128G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_size: Option<u64>,

    /// Refuse layers with more files [default: 4000000]
    #[arg(long, value_name = "NUMBER")]
    max_entries: Option<u64>,
}

impl LimitArgs {
    pub(super) fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            bytes: self.max_size.unwrap_or(default.bytes),
            entries: self.max_entries.unwrap_or(default.entries),
        }
    }
}

/// Whether layers that come into the store are unpacked.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct UnpackArgs {
    /// Keep layers as they came; they are unpacked when a container needs them
    ///
    /// unionmount mount --lazy mounts the image without, unionmount unpack does it now.
    #[arg(long)]
    no_unpack: bool,
}

impl UnpackArgs {
    pub(super) fn unpack(&self) -> bool {
        !self.no_unpack
    }
}

/// Reads a number of bytes; K, M, G and T are powers of 1024, as in other programs.
pub(super) fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let upper = text.to_ascii_uppercase();
    let bare = upper.trim_end_matches("IB").trim_end_matches('B');
    let (digits, shift) = match bare.char_indices().last() {
        Some((at, 'K')) => (&bare[..at], 10),
        Some((at, 'M')) => (&bare[..at], 20),
        Some((at, 'G')) => (&bare[..at], 30),
        Some((at, 'T')) => (&bare[..at], 40),
        _ => (bare, 0),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    size.ok_or_else(|| "give a number of bytes, or a number with K, M, G or T".into())
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::failed(error)
    }
}

/// Returns the directory in which what is being applied is written down.
pub(super) fn records() -> std::result::Result<PathBuf, Failure> {
    Ok(own_place()?.join("applies"))
}

/// Finds, and makes, the directory in which this user's things are kept.
pub(super) fn own_place() -> std::result::Result<PathBuf, Failure> {
    let root = match std::env::var_os("UNIONMOUNT_ROOT") {
        Some(root) if !root.is_empty() => PathBuf::from(root),
        _ => crate::image::store::default_root()?,
    };
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root);
    let root = made.and_then(|()| std::fs::canonicalize(&root)).map_err(|error| {
        Failure::failed(format!("{}: cannot be made: {error}", EscapedPath::from(root.as_path())))
    })?;
    crate::image::store::owner::check(&root)?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in
            [("0", 0), ("17", 17), ("2k", 2048), ("3M", 3 << 20), ("1GiB", 1 << 30), ("1TB", 1 << 40)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "99999999T", "1X"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
