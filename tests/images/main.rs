//! Images through the real binary: loading, saving, the store, bad input, and what podman, skopeo, umoci and buildah say of
//! it. Images are made here, of bytes, or by buildah out of nothing; no network is needed.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]
#![allow(dead_code)] // of the common modules, only parts are used

#[path = "../common/cli.rs"]
mod cli;
/// The parts of the common modules that go with [`cli`].
#[path = "../common"]
mod common {
    mod errno;
    mod mount;
    mod process;
    pub mod raw;
    mod scratch;
    mod snapshot;

    #[allow(unused_imports)] // by modules beside it
    pub use errno::{HasErrno, errno_of};
    pub use mount::{LoopFilesystem, Mount, Options};
    pub use process::Privilege;
    pub use scratch::Scratch;
    pub use snapshot::{Content, Fields, Snapshot, diff};
}

mod bad_input;
mod damage;
mod foreign;
mod lab;
mod loading;
mod peers;
mod races;
mod saving;
mod shortage;
mod store;
mod user;

/// Returns from a test, saying so, unless the process is root of the initial user namespace.
#[macro_export]
macro_rules! needs_root {
    () => {
        if $crate::common::Privilege::current() != $crate::common::Privilege::Root {
            $crate::skip!("{}: needs root of the initial user namespace", module_path!());
        }
    };
}
