//! Attacks: by who owns a layer, and by who uses a mount of root's. Each is run as it would be, by another user's thread or
//! process beside root's mount.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

mod held;
mod marks;
mod places;
mod races;
mod swaps;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use support::{Layer, Stack, as_ids};

/// Who owns a directory of a layer, and uses the mount.
const OWNER: u32 = 1000;
/// What nobody but root may see.
const SECRET: &str = "what only root may read\n";

/// Does it as the owner.
fn as_owner<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    as_ids(OWNER, OWNER, 0o022, work)
}

/// Makes `home` in a layer, the owner's, and returns where it is.
fn home(layer: &Layer) -> PathBuf {
    let home = layer.root().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(OWNER), Some(OWNER)).unwrap();
    home
}

/// A stack whose upper has a home of the owner's.
fn with_home() -> (Stack, PathBuf) {
    let stack = Stack::new(1);
    let home = home(stack.upper());
    (stack, home)
}

/// Writes a file of the owner's.
fn write_own(path: &Path, content: &str) {
    as_owner(|| fs::write(path, content).unwrap());
}

/// Writes a file of root's with that mode.
fn write_root(path: &Path, content: &str, mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
