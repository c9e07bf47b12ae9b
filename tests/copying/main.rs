//! How much a change copies: metacopies, whose data stay in the lowers until they are written to.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

mod background;
mod halves;
mod metacopies;
mod sealing;
mod user;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use support::{Mount, Stack};

/// Content of which each block differs from the others and from itself shifted.
fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&(state >> 16).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// How many bytes a tree takes on the disk.
fn room(root: &Path) -> u64 {
    let mut room = 0;
    let mut places = vec![root.to_owned()];
    while let Some(place) = places.pop() {
        let stat = fs::symlink_metadata(&place).unwrap();
        room += stat.blocks() * 512;
        if stat.is_dir() {
            places.extend(fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    room
}

fn for_writing(path: impl AsRef<Path>) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn mount(stack: &Stack) -> Mount {
    stack.mount_with(&["metacopy=on"])
}
