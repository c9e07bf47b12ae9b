//! The stack: layers opened and probed, the workdir, locks.
//!
//! | module | what it knows |
//! |---|---|
//! | [`layer`], [`directory`] | opening a stack of layers, and one directory of it |
//! | `probe` | what the upper's filesystem can do |
//! | [`workdir`] | the upper's workdir: made, recovered after a kill, left clean |
//! | [`lock`] | one writer an upper |
//! | `nesting` | which directories may lie in which |
//! | `stack_error` | why a stack can't be opened |

pub mod directory;
pub mod layer;
pub mod lock;
pub(in crate::union) mod nesting;
pub(in crate::union) mod probe;
pub(in crate::union) mod stack_error;
pub mod workdir;
