//! The view: what programs are shown of an object, and what they may change of it.
//!
//! | module | what it knows |
//! |---|---|
//! | [`attr`] | stat and changes of attributes |
//! | [`owners`], [`override_stat`] | owners, modes and types on disk and as shown; the attribute that tells them |
//! | [`held_times`] | the change times of directories in which nothing was changed that anybody sees |
//! | [`readdir`] | merged listings |
//! | [`xattr`], [`acl`] | extended attributes and ACLs |
//! | [`virtual_xattrs`] | where an object comes from, as attributes of the mount |

pub mod acl;
pub mod attr;
pub mod held_times;
pub mod override_stat;
pub mod owners;
pub mod readdir;
pub mod virtual_xattrs;
pub mod xattr;
