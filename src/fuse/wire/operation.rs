//! What requests ask.

use std::fmt;

use fuse_abi::linux as abi;
use fuser::{INodeNo, InitFlags, OpenFlags, RenameFlags, WriteFlags};
use zerocopy::FromBytes;

use crate::sys::object::SetTime;

/// What both sides agreed on that changes how requests look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dialect {
    /// FUSE_SETXATTR_EXT: the structure of FUSE_SETXATTR has flags.
    pub setxattr_ext: bool,
}

/// Who makes an inode, and so owns it: the filesystem user and group, as the mount maps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Creator {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// What is asked. Names and data lie where the request was read to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the protocol's own words: include/uapi/linux/fuse.h
pub enum Operation<'a> {
    Init(Init),
    Destroy,
    Interrupt {
        unique: u64,
    },
    Lookup {
        name: &'a [u8],
    },
    Forget {
        lookups: u64,
    },
    BatchForget(Forgets<'a>),
    Getattr,
    Statx {
        flags: u32,
        mask: u32,
    },
    Setattr(Setattr),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
        creator: Creator,
    },
    Mknod {
        name: &'a [u8],
        mode: u32,
        rdev: u32,
        umask: u32,
        creator: Creator,
    },
    Mkdir {
        name: &'a [u8],
        mode: u32,
        umask: u32,
        creator: Creator,
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        to: INodeNo,
        to_name: &'a [u8],
        flags: RenameFlags,
    },
    Link {
        node: INodeNo,
        name: &'a [u8],
    },
    Open {
        flags: OpenFlags,
        kill_privileges: bool,
    },
    Create {
        name: &'a [u8],
        flags: OpenFlags,
        mode: u32,
        umask: u32,
        kill_privileges: bool,
        creator: Creator,
    },
    Tmpfile {
        flags: OpenFlags,
        mode: u32,
        umask: u32,
        creator: Creator,
    },
    /// `unnoticed`: the file was opened with O_NOATIME.
    Read {
        offset: u64,
        size: u32,
        unnoticed: bool,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        flags: WriteFlags,
    },
    Flush,
    Release,
    Fsync {
        data_only: bool,
    },
    Opendir,
    Readdir {
        offset: u64,
        size: u32,
    },
    Readdirplus {
        offset: u64,
        size: u32,
    },
    Releasedir,
    Fsyncdir {
        data_only: bool,
    },
    Statfs,
    Syncfs,
    Access {
        mask: u32,
    },
    Getxattr {
        name: &'a [u8],
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Setxattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
        kill_sgid: bool,
    },
    Removexattr {
        name: &'a [u8],
    },
    Ioctl {
        command: u32,
        flags: u32,
        data: &'a [u8],
        out_size: u32,
    },
    Fallocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        offset: u64,
        whence: u32,
    },
    CopyFileRange {
        offset: u64,
        to: INodeNo,
        to_offset: u64,
        length: u64,
        wide: bool,
    },
    /// Something that is never answered but with ENOSYS: locks (the kernel keeps them), polling, block maps, DAX,
    /// CUSE, and whatever future kernels ask.
    Other {
        code: u32,
    },
}

/// FUSE_INIT: what the kernel offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Init {
    /// Its version of the protocol.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
    /// How much it would read ahead at most, in bytes.
    pub max_readahead: u32,
    /// What it can do.
    pub flags: InitFlags,
}

/// FUSE_SETATTR: what is to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setattr {
    /// The mode, with the type.
    pub mode: Option<u32>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The size in bytes.
    pub size: Option<u64>,
    /// The time of the last access.
    pub atime: Option<SetTime>,
    /// The time of the last change of the data.
    pub mtime: Option<SetTime>,
    /// set-user-id and set-group-id are to go (FATTR_KILL_SUIDGID).
    pub kill_privileges: bool,
}

/// FUSE_BATCH_FORGET: nodes, and how many lookups of each are forgotten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Forgets<'a>(pub(super) &'a [u8]);

impl Forgets<'_> {
    /// Returns each of them.
    pub fn iter(&self) -> impl Iterator<Item = (INodeNo, u64)> {
        self.0.chunks_exact(size_of::<abi::fuse_forget_one>()).filter_map(|bytes| {
            let one = abi::fuse_forget_one::read_from_bytes(bytes).ok()?;
            Some((INodeNo(one.nodeid), one.nlookup))
        })
    }
}

impl fmt::Debug for Forgets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Operation<'_> {
    /// Returns how many bytes of data it brings or wants.
    pub fn data_size(&self) -> usize {
        match *self {
            Operation::Read { size, .. } => size as usize,
            Operation::Write { data, .. } => data.len(),
            Operation::CopyFileRange { length, .. } => usize::try_from(length).unwrap_or(usize::MAX),
            _ => 0,
        }
    }

    /// Returns whether the kernel may ask it on its own account, where its caller is nobody.
    pub fn may_be_of_nobody(&self) -> bool {
        matches!(
            self,
            Operation::Forget { .. }
                | Operation::BatchForget(_)
                | Operation::Release
                | Operation::Releasedir
                | Operation::Write { .. }
        )
    }

    /// Returns whether it has no answer.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Operation::Forget { .. } | Operation::BatchForget(_) | Operation::Interrupt { .. })
    }
}
