//! What a POSIX program may ask, by capability, through real mounts of the real binary.
//!
//! Run as root, the whole suite runs twice more: as an ordinary user, and as root of a user namespace ([`modes`]).

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

mod attributes;
mod copy_up;
mod data;
mod hardlinks;
mod identity;
mod io_modes;
mod listing;
mod locks;
mod lookup;
mod modes;
mod negotiated;
mod open_files;
mod ownership;
mod refusals;
mod regions;
mod removal;
mod rename;
mod scale;
mod second_ids;
mod unexamined;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use support::Stack;

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

fn stat(path: impl AsRef<Path>) -> fs::Metadata {
    let path = path.as_ref();
    path.symlink_metadata().unwrap_or_else(|error| panic!("cannot stat {}: {error}", path.display()))
}

fn mode(path: impl AsRef<Path>) -> u32 {
    stat(path).mode() & 0o7777
}

fn exists(path: impl AsRef<Path>) -> bool {
    match path.as_ref().symlink_metadata() {
        Ok(_) => true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => panic!("cannot stat {}: {error}", path.as_ref().display()),
    }
}

fn for_reading(path: impl AsRef<Path>) -> File {
    File::open(path).unwrap()
}

fn for_writing(path: impl AsRef<Path>) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// The names in a directory, sorted.
fn names(path: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Whether the upper holds `path`, a whiteout counting as nothing.
fn copied_up(stack: &Stack, path: &str) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let place = stack.upper().root().join(path);
    exists(&place) && !(stat(&place).file_type().is_char_device() && stat(&place).rdev() == 0)
}
