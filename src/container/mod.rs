//! Containers: an image, one writable layer on it, and the mount of both; running a command in it; a new image from it.
//!
//! ```text
//! STORE/containers/ID/
//! ├── config.json     the record: image, name, what is to be run, how it ended; written last, so a directory without
//! │                     it is no container
//! ├── image           a link whose target is the image's id, for when the record is damaged
//! ├── diff/           the upper: all that the container changes
//! ├── .diff.layers/   what was frozen of the upper, see [`crate::union::frozen`]; a branch lies on that of another container
//! ├── work/           the upper's workdir
//! ├── targets/        the layer below the upper: what is to be mounted stands on it, see [`targets`]. Containers of older
//! │                     versions have init/ below all layers
//! ├── merged/         where it is mounted
//! ├── volumes/N/      data of the image's volumes
//! ├── bundle/         what the OCI runtime is given
//! └── lock            held by `run` as long as it runs, with its process id in it
//! ```
//!
//! | module | what it knows |
//! |---|---|
//! | [`record`] | making and finding containers |
//! | [`called`] | what a name stands for that may be an image's |
//! | [`state`] | whether one runs |
//! | `naming` | what they are called |
//! | [`removal`] | removing them |
//! | [`tree`] | the merged tree, for who reads it |
//! | [`detached`] | a mount that is on no directory |
//! | [`cp`] | files in and out of a container, an image or a mount |
//! | [`settings`] | what the user chose about it |
//! | [`snapshots`] | what is frozen of it, and branches |
//! | [`targets`] | where in the image's tree things are mounted |
//! | [`mounting`] | mounts, made by calling this program again, so that nothing here speaks FUSE |
//! | [`bundle`] | image config and options → OCI runtime spec |
//! | [`sandbox`] | capabilities, device rules, namespaces, limits |
//! | [`seccomp`] | which system calls it may make |
//! | [`host_environment`], `host` | where it runs: what of the host it meets; programs of the host |
//! | [`binds`] | what is mounted in it |
//! | [`executable`] | whether the kernel will run its program |
//! | [`network`] | its network |
//! | [`user`] | the users and groups of a container |
//! | [`runtime`] | finding and running an OCI runtime |
//! | [`exec`] | one more command in a container that runs |
//! | [`namespace`] | the user namespace of an ordinary user |
//! | [`describe`] | what `inspect` tells |
//! | [`commit`] | upper → layer → image |
//! | [`verify`] | whether records and images are whole |
//!
//! # An ordinary user's containers
//!
//! run in a user namespace with the subordinate ids that newuidmap(1) gives, and the mount is made inside it. What is on
//! disk belongs to the user all the same: owners are kept in `user.containers.override_stat`, see
//! [`crate::image::layer::attributes`]. So `diff`, `commit` and `rm` need no namespace.

pub mod binds;
pub mod bundle;
pub mod called;
pub mod commit;
pub mod cp;
pub mod describe;
pub mod detached;
mod error;
pub mod exec;
pub mod executable;
mod host;
pub mod host_environment;
pub mod lowers;
pub mod mounting;
pub mod namespace;
mod naming;
pub mod network;
pub mod record;
pub mod removal;
pub mod runtime;
pub mod sandbox;
pub mod seccomp;
pub mod settings;
pub mod snapshots;
pub mod state;
pub mod targets;
pub mod tree;
pub mod user;
pub mod verify;

pub use error::{ContainerError, Result};
pub use record::{Container, ContainerRecord};
pub use settings::{Net, Settings, Tmpfs, Ulimit, Volume};
pub use state::ContainerState;
