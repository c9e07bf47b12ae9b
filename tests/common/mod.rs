//! What every integration test stands on: scratch directories, layers, mounts that always go away, snapshots of
//! trees and their differences.
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

// Each test binary uses its own part of this module.
#![allow(dead_code, unused_imports)]

mod errno;
mod layers;
mod mount;
mod process;
pub mod raw;
mod scratch;
mod snapshot;
mod stack;

pub use errno::{HasErrno, errno_of};
pub use layers::{Layer, OpaqueForm, WhiteoutForm, set_mtime};
pub use mount::{LoopFilesystem, Mount, MountError, Options, Program};
pub use process::{Privilege, as_ids, output, run, run_with_input, wait_for_exit, wait_until};
pub use scratch::Scratch;
pub use snapshot::{Content, Entry, Fields, Kind, Listed, Snapshot, Time, diff, list, read_xattrs};
pub use stack::Stack;

/// Prints why a test, or the rest of it, does not apply here, and returns from it.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        eprintln!("SKIP: {}", format_args!($($reason)*));
        return;
    }};
}

/// Returns from a test, saying so, unless the process is root of the initial user namespace.
#[macro_export]
macro_rules! needs_root {
    () => {
        if $crate::common::Privilege::current() != $crate::common::Privilege::Root {
            $crate::skip!("{}: needs root of the initial user namespace", module_path!());
        }
    };
}
