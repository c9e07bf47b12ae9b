//! How long the kernel may keep answers, and how files are opened.
//!
//! The daemon owns the upper and the lowers never change, so what it answered stays true until a request through the
//! mount changes it, and the kernel knows of those. So entries, missing names, attributes, symbolic links and listings
//! may be kept for ever, unless the lowers are said to change (`lower=checked`).

use std::time::Duration;

/// As good as for ever; the kernel's own limit is far lower in jiffies, and it saturates.
pub const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The largest write request by default; the kernel takes no larger one.
pub const MAX_WRITE: u32 = 1 << 20;

/// How many bytes the kernel reads ahead, and so asks for at once. It reads 128 KiB by itself, which makes every reader
/// of a large file wait for eight requests a megabyte; from here on more costs as much as it saves.
pub const READ_AHEAD: u32 = 512 << 10;

/// How regular files are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum IoMode {
    /// No request for open and release at all (FUSE_NO_OPEN_SUPPORT): the kernel reads through its page cache, and each
    /// write reaches the daemon at once.
    WriteThrough,
    /// As [`IoMode::WriteThrough`], but writes stay in the page cache until the file is closed or the kernel flushes
    /// (FUSE_WRITEBACK_CACHE). Many small writes into one file become few requests; but the kernel keeps the times of files then,
    /// which costs a request each time that a file is unlinked, renamed or linked, and one more to stat a file that was closed.
    WriteBack,
    /// Opens are requests, and the kernel reads, writes and maps the real file itself (FUSE_PASSTHROUGH) wherever it may:
    /// see the table in `io_mode`. Needs CAP_SYS_ADMIN in the initial user namespace.
    Passthrough,
    /// The same also where a copy-up may move the data: see `node_id`.
    PassthroughLower,
}

/// What the adaptor was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// How long entries and attributes are good.
    pub timeout: Duration,
    /// How regular files are opened.
    pub io: IoMode,
    /// Answer that there are no extended attributes (mount option `noxattrs`).
    pub no_xattrs: bool,
    /// No ACLs (mount option `noacl`).
    pub no_acl: bool,
    /// fsync has nothing to do (mount option `volatile`, or no upper): the kernel is told once, and asks no more.
    pub no_fsync: bool,
    /// Whether somebody else may change the lowers: data are dropped when a file has another time, and listings aren't kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lowers_change: bool,
    /// The largest write request in bytes.
    pub max_write: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            timeout: FOR_EVER,
            io: IoMode::WriteThrough,
            no_xattrs: false,
            no_acl: false,
            no_fsync: false,
            lowers_change: false,
            max_write: MAX_WRITE,
        }
    }
}
