//! The stack: layers opened and probed, the workdir, locks.
//!
//! | module | what it knows |
//! |---|---|
//! | [`layer`], [`lower`], [`directory`] | opening a stack of layers, one lower of it, one directory |
//! | [`tree`] | lowers that aren't directories of the host: what they must answer |
//! | [`access`] | the reads by which both kinds are reached |
//! | `probe` | what the upper's filesystem can do |
//! | [`workdir`] | the upper's workdir: made, recovered after a kill, left clean |
//! | [`lock`] | one writer an upper |
//! | `alone` | the upper, opened and locked |
//! | `place` | where a directory lies |
//! | `nesting` | which directories may lie in which |
//! | `stack_error` | why a stack can't be opened |

pub mod access;
pub(in crate::union) mod alone;
pub mod directory;
pub mod layer;
pub mod lock;
pub mod lower;
pub(in crate::union) mod nesting;
pub(in crate::union) mod place;
pub(in crate::union) mod probe;
pub(in crate::union) mod stack_error;
pub mod tree;
pub mod workdir;
