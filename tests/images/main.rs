//! Images through the real binary: loading, saving, the store, bad input, and what podman, skopeo, umoci and buildah say of
//! it. Images are made here, of bytes, or by buildah out of nothing; no network is needed.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod bad_input;
mod breaks;
mod damage;
mod faulty;
mod foreign;
mod in_place;
mod lab;
mod loading;
mod logins;
mod packed;
mod peers;
mod progress;
mod races;
mod registry;
mod saving;
mod shortage;
mod store;
mod user;
mod ways;
mod windows;
