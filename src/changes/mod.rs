//! What an upper changes in what lies below it: told, and brought into a directory.
//!
//! | module | what it knows |
//! |---|---|
//! | [`mod@apply`] | an upper's changes brought into a directory |
//! | [`stacked`] | an upper and its lowers, open to be compared: which paths changed, and both versions of each |
//! | [`trees`] | how any two merged trees differ |
//! | [`patch`] | two versions of a file as a unified diff, or in figures |
//!
//! Which paths an upper changes is known to [`crate::image::layer::changes()`] alone, which walks the upper and asks the lowers
//! by name, so that the cost grows with what changed.

pub mod apply;
pub mod patch;
pub mod stacked;
pub mod trees;

pub use stacked::Stacked;
