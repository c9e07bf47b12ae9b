//! Operations as plain data.

use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::io::Errno;

/// One component of a path: bytes.
pub type Name = Vec<u8>;

/// A path relative to the root of the union; empty for the root itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Path(pub Vec<Name>);

/// A path from text (`a/b`), in which Debug prints it.
pub fn p(text: &str) -> Path {
    Path(text.split('/').filter(|part| !part.is_empty()).map(super::layer::unescape).collect())
}

impl Path {
    /// For system calls.
    pub fn to_path_buf(&self) -> PathBuf {
        self.0.iter().map(|name| std::ffi::OsString::from_vec(name.clone())).collect()
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p(r\"{}\")", self.0.join(&b'/').escape_ascii())
    }
}

/// renameat2's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Rename {
    Plain,
    NoReplace,
    Exchange,
}

/// fallocate's modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Allocate {
    Extend,
    KeepSize,
    Punch,
    Zero,
}

/// One operation. Links are followed as the system call of the name does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// open(O_CREAT | O_WRONLY | O_NOFOLLOW, O_EXCL perhaps), close.
    Create { path: Path, mode: u32, exclusive: bool },
    /// open(O_WRONLY | O_NOFOLLOW, O_TRUNC or O_APPEND perhaps), pwrite of `length` bytes `fill`, close.
    Write { path: Path, offset: usize, fill: u8, length: usize, truncate: bool, append: bool },
    /// truncate.
    Truncate { path: Path, length: usize },
    /// open(O_WRONLY | O_NOFOLLOW), fallocate, close.
    Fallocate { path: Path, how: Allocate, offset: usize, length: usize },
    /// open both, copy_file_range, close: from the start of `from` to `offset` of `to`.
    CopyRange { from: Path, to: Path, offset: usize, length: usize },
    /// mkdir.
    Mkdir { path: Path, mode: u32 },
    /// mkfifo.
    Mkfifo { path: Path, mode: u32 },
    /// symlink.
    Symlink { target: Path, path: Path },
    /// linkat without AT_SYMLINK_FOLLOW.
    Link { from: Path, to: Path },
    /// rmdir.
    Rmdir { path: Path },
    /// unlink.
    Unlink { path: Path },
    /// renameat2.
    Rename { from: Path, to: Path, how: Rename },
    /// chmod.
    Chmod { path: Path, mode: u32 },
    /// lchown.
    Chown { path: Path, uid: u32, gid: u32 },
    /// setxattr of a `user.` attribute.
    SetXattr { path: Path, name: &'static str, value: u8 },
    /// removexattr.
    RemoveXattr { path: Path, name: &'static str },
    /// lutimens.
    SetMtime { path: Path, seconds: i64 },
    /// Opens a regular file, for reading alone or for writing too, and keeps it open in a slot.
    Open { slot: u8, path: Path, write: bool },
    /// pwrite through a slot.
    WriteOpen { slot: u8, offset: usize, fill: u8, length: usize },
    /// ftruncate through a slot.
    TruncateOpen { slot: u8, length: usize },
    /// fchmod through a slot.
    ChmodOpen { slot: u8, mode: u32 },
    /// Reads all of the file in a slot, and what fstat says of it.
    ReadOpen { slot: u8 },
    /// Closes a slot.
    Close { slot: u8 },
}

/// What came of an operation.
#[derive(Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded.
    Done,
    /// What [`Op::ReadOpen`] read.
    Open { content: Vec<u8>, mode: u32, nlink: u64 },
    /// It failed.
    Failed(Errno),
    /// It makes no sense in this state (an empty slot, a fifo that nobody reads): nothing is to be performed.
    Skipped,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done => f.write_str("success"),
            Outcome::Skipped => f.write_str("skipped"),
            Outcome::Failed(errno) => write!(f, "{errno:?}"),
            Outcome::Open { content, mode, nlink } => {
                let content = crate::Content::of(content);
                write!(f, "content {content:?}, mode {mode:o}, nlink {nlink}")
            }
        }
    }
}
