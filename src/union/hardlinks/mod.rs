//! Hardlinks: one file stays one file when it is copied up.
//!
//! | module | what it knows |
//! |---|---|
//! | [`links`], `counts` | origins, names and counts of files with several names |
//! | `link_index`, `kernel_index` | the index in the workdir, and the kernel's |
//! | `hidden` | names that whiteouts took from a lower file |
//! | `kept` | what is kept of them in memory |
//! | `locks` | the locks of files with several names |

pub(in crate::union) mod counts;
pub(in crate::union) mod hidden;
pub(in crate::union) mod kept;
pub(in crate::union) mod kernel_index;
pub(in crate::union) mod link_index;
pub mod links;
pub(in crate::union) mod locks;
pub(in crate::union) mod reused;
