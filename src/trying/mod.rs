//! Trying something out: a command runs where directories are unions over themselves, and nothing outside is changed.
//!
//! | module | what it knows |
//! |---|---|
//! | [`record`] | what is kept of a try, where, and who is in it |
//! | [`inside`] | namespaces, mounts, and the command |
//! | [`waiting`] | the command's end, and the signals that it gets meanwhile |
//!
//! ```text
//! unionmount try          asks, applies, discards; in nobody's namespace
//!   └─ unionmount try     user and mount namespace A; mounts, waits, unmounts
//!        ├─ unionmount    the daemon of each directory's mount, in A
//!        └─ COMMAND       in A, or with the whole root in a mount namespace B whose root is the union
//! ```
//!
//! The user namespace maps the user to the very same id, and nobody else. So the command is who it was, and can do no
//! more; what belongs to others is shown as the user's own, and the real rights still decide whether it can be read.

pub mod inside;
pub mod record;
pub mod waiting;
