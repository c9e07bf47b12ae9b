//! The control socket of a mount: how its daemon is asked, and what it answers.
//!
//! | module | what it knows |
//! |---|---|
//! | [`protocol`] | what is said: a line of JSON each way |
//! | [`explanation`] | the longest of the answers: all about one path |
//! | [`server`] | the daemon's end: accepts, checks who asks, answers |
//! | `pause` | accepting stops while another process takes the socket over |
//! | [`client`] | the other end, which trusts the daemon with nothing |
//! | [`runtime_dir`] | where the sockets lie, and what killed daemons left there |
//! | [`mounts`] | the mounts of this machine, and which of them a path is in |
//!
//! The server knows the union and nothing above it: what else is to be told comes from its owner, by
//! [`server::Answers`].

pub mod client;
pub mod explanation;
pub mod mounts;
mod pause;
pub mod protocol;
pub mod runtime_dir;
pub mod server;
pub mod users;
