//! The protocol adaptor: translate a request, call the union, reply. No decision about layers is taken here.
//!
//! | module | what it knows |
//! |---|---|
//! | [`adaptor`] | one method a request |
//! | `files`, `listing`, `control` | the requests on the data of files, on directories, ioctl |
//! | `greeting` | what is agreed on with the kernel |
//! | `data` | what a read is answered with, on its way to the kernel |
//! | `open`, `io_mode` | opens with passthrough, and which mode each one gets |
//! | [`bdi`] | the page cache of the mount |
//! | `change` | where changes run, and waiting for room on a full disk |
//! | `reply` | answers that several requests share |
//! | [`convert`] | between the protocol's types and the union's |
//! | [`policy`] | how long the kernel may keep answers, and how files are opened |
//! | [`counters`] | requests by kind |
//! | [`mount`](mod@mount) | mount(2), fusermount3, unmounting |
//! | [`session`] | the life of a mount: threads, signals, the end |
//! | [`pairing`] | which thread answers a program, and on which processor |

pub mod adaptor;
pub mod bdi;
mod change;
mod control;
pub mod convert;
pub mod counters;
mod data;
mod files;
mod greeting;
mod io_mode;
mod listing;
pub mod mount;
mod open;
pub mod pairing;
pub mod policy;
mod reply;
pub mod session;
mod trim;

pub use adaptor::UnionFs;
