//! The protocol adaptor: mounting, the session, and what stands between FUSE and the union.
pub mod mount;
pub mod placeholder;
pub mod session;
