//! Requests: what the kernel asks.

use std::fmt;

use fuse_abi::linux as abi;
use fuse_abi::linux::fuse_opcode as Code;
use fuser::{INodeNo, InitFlags, OpenFlags, RenameFlags, WriteFlags};
use zerocopy::{FromBytes, IntoBytes};

use super::abi::{COPY_FILE_RANGE_64, RESENT};
use super::args::Args;
use crate::sys::object::{SetTime, Time};

/// How long a request's header is.
pub const HEADER_SIZE: usize = size_of::<abi::fuse_in_header>();

/// What both sides agreed on that changes how requests look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dialect {
    /// FUSE_SETXATTR_EXT: the structure of FUSE_SETXATTR has flags.
    pub setxattr_ext: bool,
}

/// The head of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What its reply names.
    pub unique: u64,
    /// The node that it is about; for most requests with names, their directory.
    pub node: INodeNo,
    /// The thread that asks; 0 for one that can't be named here. The kernel asks many things on its own account.
    pub pid: u32,
    /// Who asks, to be let in or not. Where mounts may be idmapped (FUSE_ALLOW_IDMAP) it is said only by what makes inodes;
    /// so nothing else may depend on it.
    pub(in crate::fuse) uid: u32,
}

/// Who makes an inode, and so owns it: the filesystem user and group, as the mount maps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Creator {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Header {
    /// Whether the kernel sent it before, to somebody who may have seen to it already.
    pub fn is_resent(&self) -> bool {
        self.unique & RESENT != 0
    }
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
pub struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    /// Each of them.
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

/// A request, as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its head.
    pub header: Header,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There is no header, or it tells another length: what is read next can't be trusted either.
    #[error("a request of {0} bytes has no header that fits")]
    Header(usize),
    /// What follows the header is too short for what it asks.
    #[error("a request with the code {code} is too short")]
    Operation {
        /// What its answer names.
        unique: u64,
        /// What it asks.
        code: u32,
    },
}

impl<'a> Request<'a> {
    /// Parses a request that lies in one piece.
    ///
    /// # Errors
    ///
    /// It isn't one.
    pub fn parse(bytes: &'a [u8], dialect: Dialect) -> Result<Request<'a>, Malformed> {
        let (header, args) = bytes.split_at_checked(HEADER_SIZE).ok_or(Malformed::Header(bytes.len()))?;
        Request::parse_parts(header, Args::new(args, &[]), bytes.len(), dialect)
    }

    /// Parses a request of `len` bytes, whose header lies apart.
    ///
    /// # Errors
    ///
    /// It isn't one.
    pub fn parse_parts(
        header: &[u8],
        args: Args<'a>,
        len: usize,
        dialect: Dialect,
    ) -> Result<Request<'a>, Malformed> {
        let (raw, _) = abi::fuse_in_header::read_from_prefix(header).map_err(|_| Malformed::Header(len))?;
        if raw.len as usize != len {
            return Err(Malformed::Header(len));
        }
        let header = Header { unique: raw.unique, node: INodeNo(raw.nodeid), pid: raw.pid, uid: raw.uid };
        let malformed = Malformed::Operation { unique: raw.unique, code: raw.opcode };
        let creator = Creator { uid: raw.uid, gid: raw.gid };
        let operation = operation(raw.opcode, args, creator, dialect).ok_or(malformed)?;
        Ok(Request { header, operation })
    }
}

impl Operation<'_> {
    /// How many bytes of data it brings or wants.
    pub fn data_size(&self) -> usize {
        match *self {
            Operation::Read { size, .. } => size as usize,
            Operation::Write { data, .. } => data.len(),
            Operation::CopyFileRange { length, .. } => usize::try_from(length).unwrap_or(usize::MAX),
            _ => 0,
        }
    }

    /// Whether the kernel may ask it on its own account, where its caller is nobody.
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

    /// Whether it has no answer.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Operation::Forget { .. } | Operation::BatchForget(_) | Operation::Interrupt { .. })
    }
}

/// Parses what is asked; `None` where something is missing.
fn operation<'a>(code: u32, mut args: Args<'a>, creator: Creator, dialect: Dialect) -> Option<Operation<'a>> {
    let args = &mut args;
    if code == COPY_FILE_RANGE_64 {
        return copy_file_range(args, true);
    }
    let Ok(known) = Code::try_from(code) else { return Some(Operation::Other { code }) };
    Some(match known {
        Code::FUSE_INIT => init(args)?,
        Code::FUSE_DESTROY => Operation::Destroy,
        Code::FUSE_INTERRUPT => {
            Operation::Interrupt { unique: args.take::<abi::fuse_interrupt_in>()?.unique }
        }
        Code::FUSE_LOOKUP => Operation::Lookup { name: args.name()? },
        Code::FUSE_FORGET => Operation::Forget { lookups: args.take::<abi::fuse_forget_in>()?.nlookup },
        Code::FUSE_BATCH_FORGET => {
            let count = args.take::<abi::fuse_batch_forget_in>()?.count;
            let size = count.checked_mul(size_of::<abi::fuse_forget_one>() as u32)?;
            Operation::BatchForget(Forgets(args.bytes(size)?))
        }
        Code::FUSE_GETATTR => Operation::Getattr,
        Code::FUSE_STATX => {
            let statx = args.take::<abi::fuse_statx_in>()?;
            Operation::Statx { flags: statx.sx_flags, mask: statx.sx_mask }
        }
        Code::FUSE_SETATTR => Operation::Setattr(setattr(&args.take()?)),
        Code::FUSE_READLINK => Operation::Readlink,
        Code::FUSE_SYMLINK => Operation::Symlink { name: args.name()?, target: args.name()?, creator },
        Code::FUSE_MKNOD => {
            let abi::fuse_mknod_in { mode, rdev, umask, .. } = args.take()?;
            Operation::Mknod { mode, rdev, umask, creator, name: args.name()? }
        }
        Code::FUSE_MKDIR => {
            let abi::fuse_mkdir_in { mode, umask } = args.take()?;
            Operation::Mkdir { mode, umask, creator, name: args.name()? }
        }
        Code::FUSE_UNLINK => Operation::Unlink { name: args.name()? },
        Code::FUSE_RMDIR => Operation::Rmdir { name: args.name()? },
        Code::FUSE_RENAME => rename(args, args_newdir, RenameFlags::empty())?,
        Code::FUSE_RENAME2 => {
            let abi::fuse_rename2_in { newdir, flags, .. } = args.take()?;
            rename(args, |_| Some(newdir), RenameFlags::from_bits_retain(flags))?
        }
        Code::FUSE_LINK => {
            let node = INodeNo(args.take::<abi::fuse_link_in>()?.oldnodeid);
            Operation::Link { node, name: args.name()? }
        }
        Code::FUSE_OPEN => {
            let open = args.take::<abi::fuse_open_in>()?;
            Operation::Open { flags: open_flags(open.flags), kill_privileges: kills(open.open_flags) }
        }
        Code::FUSE_CREATE => {
            let abi::fuse_create_in { flags, mode, umask, open_flags: also } = args.take()?;
            let (flags, kill_privileges) = (open_flags(flags), kills(also));
            Operation::Create { flags, mode, umask, kill_privileges, creator, name: args.name()? }
        }
        Code::FUSE_TMPFILE => {
            let abi::fuse_create_in { flags, mode, umask, .. } = args.take()?;
            Operation::Tmpfile { flags: open_flags(flags), mode, umask, creator }
        }
        Code::FUSE_READ => {
            let abi::fuse_read_in { offset, size, flags, .. } = args.take()?;
            Operation::Read { offset, size, unnoticed: flags & libc::O_NOATIME.cast_unsigned() != 0 }
        }
        Code::FUSE_WRITE => {
            let abi::fuse_write_in { offset, size, write_flags, .. } = args.take()?;
            let flags = WriteFlags::from_bits_retain(write_flags);
            Operation::Write { offset, flags, data: args.bytes(size)? }
        }
        Code::FUSE_FLUSH => Operation::Flush,
        Code::FUSE_RELEASE => Operation::Release,
        Code::FUSE_FSYNC => Operation::Fsync { data_only: data_only(args)? },
        Code::FUSE_OPENDIR => Operation::Opendir,
        Code::FUSE_READDIR => {
            let abi::fuse_read_in { offset, size, .. } = args.take()?;
            Operation::Readdir { offset, size }
        }
        Code::FUSE_READDIRPLUS => {
            let abi::fuse_read_in { offset, size, .. } = args.take()?;
            Operation::Readdirplus { offset, size }
        }
        Code::FUSE_RELEASEDIR => Operation::Releasedir,
        Code::FUSE_FSYNCDIR => Operation::Fsyncdir { data_only: data_only(args)? },
        Code::FUSE_STATFS => Operation::Statfs,
        Code::FUSE_SYNCFS => Operation::Syncfs,
        Code::FUSE_ACCESS => Operation::Access { mask: args.take::<abi::fuse_access_in>()?.mask },
        Code::FUSE_GETXATTR => {
            let size = args.take::<abi::fuse_getxattr_in>()?.size;
            Operation::Getxattr { size, name: args.name()? }
        }
        Code::FUSE_LISTXATTR => Operation::Listxattr { size: args.take::<abi::fuse_getxattr_in>()?.size },
        Code::FUSE_SETXATTR => setxattr(args, dialect)?,
        Code::FUSE_REMOVEXATTR => Operation::Removexattr { name: args.name()? },
        Code::FUSE_IOCTL => {
            let abi::fuse_ioctl_in { flags, cmd: command, in_size, out_size, .. } = args.take()?;
            Operation::Ioctl { command, flags, out_size, data: args.bytes(in_size)? }
        }
        Code::FUSE_FALLOCATE => {
            let abi::fuse_fallocate_in { offset, length, mode, .. } = args.take()?;
            Operation::Fallocate { offset, length, mode }
        }
        Code::FUSE_LSEEK => {
            let abi::fuse_lseek_in { offset, whence, .. } = args.take()?;
            Operation::Lseek { offset, whence }
        }
        Code::FUSE_COPY_FILE_RANGE => copy_file_range(args, false)?,
        _ => Operation::Other { code },
    })
}

fn init<'a>(args: &mut Args<'a>) -> Option<Operation<'a>> {
    // Before 7.36 it ends with `flags`.
    let mut init = args.take_some::<abi::fuse_init_in>();
    let low = InitFlags::from_bits_retain(u64::from(init.flags));
    if !low.contains(InitFlags::FUSE_INIT_EXT) {
        init.flags2 = 0;
    }
    let flags = low | InitFlags::from_bits_retain(u64::from(init.flags2) << 32);
    let abi::fuse_init_in { major, minor, max_readahead, .. } = init;
    Some(Operation::Init(Init { major, minor, max_readahead, flags }))
}

fn args_newdir(args: &mut Args<'_>) -> Option<u64> {
    Some(args.take::<abi::fuse_rename_in>()?.newdir)
}

fn rename<'a>(
    args: &mut Args<'a>,
    newdir: impl FnOnce(&mut Args<'a>) -> Option<u64>,
    flags: RenameFlags,
) -> Option<Operation<'a>> {
    let to = INodeNo(newdir(args)?);
    Some(Operation::Rename { to, flags, name: args.name()?, to_name: args.name()? })
}

fn setattr(raw: &abi::fuse_setattr_in) -> Setattr {
    let given = |flag: u32| raw.valid & flag != 0;
    let time = |flag, now, sec: u64, nsec| {
        given(flag).then(|| match given(now) {
            true => SetTime::Now,
            false => SetTime::At(Time { sec: sec.cast_signed(), nsec }),
        })
    };
    Setattr {
        mode: given(abi::FATTR_MODE).then_some(raw.mode),
        uid: given(abi::FATTR_UID).then_some(raw.uid),
        gid: given(abi::FATTR_GID).then_some(raw.gid),
        size: given(abi::FATTR_SIZE).then_some(raw.size),
        atime: time(abi::FATTR_ATIME, abi::FATTR_ATIME_NOW, raw.atime, raw.atimensec),
        mtime: time(abi::FATTR_MTIME, abi::FATTR_MTIME_NOW, raw.mtime, raw.mtimensec),
        kill_privileges: given(abi::FATTR_KILL_SUIDGID),
    }
}

fn open_flags(flags: u32) -> OpenFlags {
    OpenFlags(flags.cast_signed())
}

fn kills(flags: u32) -> bool {
    flags & abi::FUSE_OPEN_KILL_SUIDGID != 0
}

fn data_only(args: &mut Args<'_>) -> Option<bool> {
    Some(args.take::<abi::fuse_fsync_in>()?.fsync_flags & abi::FUSE_FSYNC_FDATASYNC != 0)
}

fn setxattr<'a>(args: &mut Args<'a>, dialect: Dialect) -> Option<Operation<'a>> {
    let mut raw = abi::fuse_setxattr_in::default();
    if dialect.setxattr_ext {
        raw = args.take()?;
    } else {
        let short = args.take::<[u8; abi::FUSE_COMPAT_SETXATTR_IN_SIZE as usize]>()?;
        raw.as_mut_bytes()[..short.len()].copy_from_slice(&short);
    }
    let kill_sgid = raw.setxattr_flags & abi::FUSE_SETXATTR_ACL_KILL_SGID != 0;
    Some(Operation::Setxattr {
        flags: raw.flags,
        kill_sgid,
        name: args.name()?,
        value: args.bytes(raw.size)?,
    })
}

fn copy_file_range<'a>(args: &mut Args<'a>, wide: bool) -> Option<Operation<'a>> {
    let abi::fuse_copy_file_range_in { off_in, nodeid_out, off_out, len, .. } = args.take()?;
    Some(Operation::CopyFileRange {
        offset: off_in,
        to: INodeNo(nodeid_out),
        to_offset: off_out,
        length: len,
        wide,
    })
}
