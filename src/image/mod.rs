//! Images: what they are known by, where they are kept, how they come and go.
//!
//! | module | what it knows |
//! |---|---|
//! | [`digest`], [`name`] | what blobs and images are called |
//! | [`document`] | manifests, indexes and configs |
//! | [`platform`] | for which machines an image is |
//! | [`compression`] | gzip, zstd, xz and bzip2, by sight |
//! | [`store`] | the store: an OCI image layout, unpacked layers, containers |
//! | [`change`] | `--change`: the words of a Dockerfile that change a config |
//! | [`layer`] | tar → directory, directory → tar, what a container changed |
//! | [`load`], [`save`], [`import`] | archives and layouts in and out, root filesystems in |
//! | [`packed`] | an image in a layout or an archive, to be read where it lies |
//! | [`describe`], `step_title` | sizes, history, inspect; what a step did, for people |
//! | [`lineage`] | which images share which layers |
//! | [`error`] | what can go wrong |

pub mod change;
pub mod compression;
pub mod describe;
pub mod digest;
pub mod document;
pub mod error;
mod golike;
pub mod import;
pub mod layer;
pub mod lineage;
pub mod load;
pub mod name;
pub mod packed;
mod plan;
pub mod platform;
pub mod progress;
mod read_ahead;
pub mod save;
mod source;
mod step_title;
pub mod store;
