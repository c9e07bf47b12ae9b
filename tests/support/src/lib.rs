//! What every test of the program stands on: scratch directories, layers, mounts that always go away, snapshots of
//! trees and their differences, runs of the real binary, skips, and the reference model.
//!
//! The program under test is a parameter. `UNIONMOUNT_BIN` names it: a path to `unionmount` or to a
//! `fuse-overlayfs` (told apart by the file's name), or the word `kernel` for the kernel's own overlayfs. Without it
//! the binary that cargo built is tested. So a test that fails can be asked at once whether the peers pass it.
//!
//! Other settings, all optional:
//!
//! | variable | meaning |
//! |---|---|
//! | `UNIONMOUNT_OPTIONS` | further words for `-o` of every mount: a suite under other options, such as `xattr_permissions=2` |
//! | `UNIONMOUNT_SCRATCH` | where scratch directories are made (default: `$TMPDIR`, else `/tmp`) |
//! | `UNIONMOUNT_CASES` | how many random cases the reference-model tests run |
//! | `UNIONMOUNT_SEED` | the seed of the random cases |
//! | `UNIONMOUNT_LONG` | set: also run what takes minutes |
//! | `UNIONMOUNT_KEEP` | set: leave scratch directories behind, for a look at what went wrong |
//! | `UNIONMOUNT_SKIPS` | a file to which each check that the machine can't do adds a line |
//! | `UNIONMOUNT_TEST_PROGRAM` | the binary that [`cli::Place`] copies, for a test of the command line; the tests of images run it too |
//!
//! Nothing here knows the library that is tested.

// What fails here fails a test.
#![allow(clippy::unwrap_used, clippy::new_without_default)]

pub mod cli;
mod errno;
pub mod filesystem_image;
mod layers;
mod loop_device;
pub mod model;
mod mount;
mod mountinfo;
mod process;
pub mod raw;
mod scratch;
mod skips;
mod snapshot;
mod stack;

pub use errno::{HasErrno, errno_of};
pub use layers::{Layer, OpaqueForm, WhiteoutForm, set_mtime};
pub use loop_device::{LoopDevice, LoopFilesystem};
pub use mount::{Mount, MountError, Options, Program, abort_of, built};
pub use mountinfo::{MountInfo, mounted_at, mounts, mounts_below};
pub use process::{PATIENCE, Privilege, as_ids, output, run, run_with_input, wait_for_exit, wait_until};
pub use scratch::Scratch;
pub use skips::{SKIPS, is_installed, skipped};
pub use snapshot::{Content, Entry, Fields, Kind, Listed, Snapshot, Time, diff, list, read_xattrs};
pub use stack::Stack;
