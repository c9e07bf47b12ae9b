//! The protocol adaptor: translate a request, call the union, reply. No decision about layers is taken here.
//!
//! | module | what it knows |
//! |---|---|
//! | [`wire`] | the kernel's protocol: requests and replies |
//! | [`session`] | the life of a mount: negotiation, threads, transports, signals, the end |
//! | [`live`] | a union after another under one mount |
//! | [`adaptor`] | each request: translate, call the union, reply |
//! | `change` | each request for a change: what it means, where it runs, waiting for room on a full disk, its answer |
//! | `files`, `listing`, `ioctl` | what is read: the data of files, directories, the flags of inodes |
//! | `negotiation` | what is asked of the kernel at the start, by the policy |
//! | `data` | what a read is answered with, on its way to the kernel |
//! | `open`, `opener`, `io_mode` | opens with passthrough, and which mode each one gets |
//! | `node_id` | what the kernel knows nodes by: one id, or two |
//! | [`backing_dev_info`] | the page cache of the mount |
//! | `reply` | answers that several requests share |
//! | [`convert`] | between the protocol's types and the union's |
//! | [`policy`] | how long the kernel may keep answers, and how files are opened |
//! | [`counters`] | requests by kind |
//! | [`mount`](mod@mount) | mount(2), fusermount3, unmounting |
//! | [`dispatch`] | which thread answers a program, and on which processor |

pub mod adaptor;
pub mod backing_dev_info;
mod change;
pub mod convert;
pub mod counters;
mod data;
pub mod dispatch;
mod files;
mod heap_release;
pub mod io_mode;
mod ioctl;
mod listing;
pub mod live;
pub mod mount;
mod negotiation;
mod node_id;
mod open;
mod opener;
pub mod policy;
mod reply;
pub mod session;
mod stale;
pub mod wire;

pub use adaptor::UnionFs;
