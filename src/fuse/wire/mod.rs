//! The kernel's protocol: requests parsed in place, replies built in place.
//!
//! The structures are those of the crate `fuse-abi`, which follows include/uapi/linux/fuse.h up to version 7.40; what
//! came later is in [`abi`]. The crate `fuser` gives the words (node numbers, errors, flags), so that who knows it can
//! read the adaptor. Its session isn't used: it parses requests for itself only, always wants the first word with the
//! kernel, keeps a request's reply in a dozen types, and knows neither O_TMPFILE nor splicing nor io_uring.
//!
//! | module | what it knows |
//! |---|---|
//! | [`abi`] | what `fuse-abi` lacks |
//! | [`args`] | taking structures, names and bytes from a request, never past its end |
//! | [`operation`] | what is asked: an [`Operation`] |
//! | [`request`] | a request: its head and its operation |
//! | `parse` | parsing what is asked |
//! | [`reply`] | the one [`Reply`], and what carries it |
//! | [`body`] | what replies consist of |
//! | [`listing`] | the entries of a listing |

pub mod abi;
pub mod args;
pub mod body;
#[cfg(test)]
mod golden;
pub mod listing;
pub mod operation;
mod parse;
pub mod reply;
pub mod request;

pub use body::Entry;
pub use operation::Operation;
pub use reply::{Reply, Transport};
pub use request::{Header, Request};
