//! Parsing what a request asks, a family of requests at a time.

use fuse_abi::linux as abi;
use fuse_abi::linux::fuse_opcode as Code;
use fuser::{INodeNo, InitFlags, OpenFlags, RenameFlags, WriteFlags};
use zerocopy::IntoBytes;

use super::abi::COPY_FILE_RANGE_64;
use super::args::Args;
use super::operation::{Creator, Dialect, Forgets, Init, Operation, Setattr};
use crate::sys::object::{SetTime, Time};

/// Parses what is asked; `None` where something is missing.
pub(super) fn operation<'a>(
    code: u32,
    mut args: Args<'a>,
    creator: Creator,
    dialect: Dialect,
) -> Option<Operation<'a>> {
    let args = &mut args;
    if code == COPY_FILE_RANGE_64 {
        return copy_file_range(args, true);
    }
    let Ok(known) = Code::try_from(code) else { return Some(Operation::Other { code }) };
    match known {
        Code::FUSE_INIT
        | Code::FUSE_DESTROY
        | Code::FUSE_INTERRUPT
        | Code::FUSE_STATFS
        | Code::FUSE_SYNCFS => of_the_session(known, args),
        Code::FUSE_LOOKUP | Code::FUSE_FORGET | Code::FUSE_BATCH_FORGET => of_lookups(known, args),
        Code::FUSE_SYMLINK | Code::FUSE_MKNOD | Code::FUSE_MKDIR | Code::FUSE_CREATE | Code::FUSE_TMPFILE => {
            of_new_objects(known, args, creator)
        }
        Code::FUSE_LINK | Code::FUSE_UNLINK | Code::FUSE_RMDIR | Code::FUSE_RENAME | Code::FUSE_RENAME2 => {
            of_names(known, args)
        }
        Code::FUSE_GETATTR
        | Code::FUSE_STATX
        | Code::FUSE_SETATTR
        | Code::FUSE_READLINK
        | Code::FUSE_ACCESS
        | Code::FUSE_IOCTL => of_attributes(known, args),
        Code::FUSE_GETXATTR | Code::FUSE_LISTXATTR | Code::FUSE_SETXATTR | Code::FUSE_REMOVEXATTR => {
            of_xattrs(known, args, dialect)
        }
        Code::FUSE_OPENDIR
        | Code::FUSE_READDIR
        | Code::FUSE_READDIRPLUS
        | Code::FUSE_RELEASEDIR
        | Code::FUSE_FSYNCDIR => of_directories(known, args),
        _ => of_data(known, args),
    }
}

fn of_the_session<'a>(code: Code, args: &mut Args<'a>) -> Option<Operation<'a>> {
    Some(match code {
        Code::FUSE_INIT => init(args),
        Code::FUSE_DESTROY => Operation::Destroy,
        Code::FUSE_INTERRUPT => {
            Operation::Interrupt { unique: args.take::<abi::fuse_interrupt_in>()?.unique }
        }
        Code::FUSE_STATFS => Operation::Statfs,
        Code::FUSE_SYNCFS => Operation::Syncfs,
        other => unanswered(other),
    })
}

fn of_lookups<'a>(code: Code, args: &mut Args<'a>) -> Option<Operation<'a>> {
    Some(match code {
        Code::FUSE_LOOKUP => Operation::Lookup { name: args.name()? },
        Code::FUSE_FORGET => Operation::Forget { lookups: args.take::<abi::fuse_forget_in>()?.nlookup },
        Code::FUSE_BATCH_FORGET => {
            let count = args.take::<abi::fuse_batch_forget_in>()?.count;
            let size = count.checked_mul(size_of::<abi::fuse_forget_one>() as u32)?;
            Operation::BatchForget(Forgets(args.bytes(size)?))
        }
        other => unanswered(other),
    })
}

fn of_new_objects<'a>(code: Code, args: &mut Args<'a>, creator: Creator) -> Option<Operation<'a>> {
    Some(match code {
        Code::FUSE_SYMLINK => Operation::Symlink { name: args.name()?, target: args.name()?, creator },
        Code::FUSE_MKNOD => {
            let abi::fuse_mknod_in { mode, rdev, umask, .. } = args.take()?;
            Operation::Mknod { mode, rdev, umask, creator, name: args.name()? }
        }
        Code::FUSE_MKDIR => {
            let abi::fuse_mkdir_in { mode, umask } = args.take()?;
            Operation::Mkdir { mode, umask, creator, name: args.name()? }
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
        other => unanswered(other),
    })
}

fn of_names<'a>(code: Code, args: &mut Args<'a>) -> Option<Operation<'a>> {
    Some(match code {
        Code::FUSE_LINK => {
            let node = INodeNo(args.take::<abi::fuse_link_in>()?.oldnodeid);
            Operation::Link { node, name: args.name()? }
        }
        Code::FUSE_UNLINK => Operation::Unlink { name: args.name()? },
        Code::FUSE_RMDIR => Operation::Rmdir { name: args.name()? },
        Code::FUSE_RENAME => {
            let abi::fuse_rename_in { newdir } = args.take()?;
            rename(args, newdir, RenameFlags::empty())?
        }
        Code::FUSE_RENAME2 => {
            let abi::fuse_rename2_in { newdir, flags, .. } = args.take()?;
            rename(args, newdir, RenameFlags::from_bits_retain(flags))?
        }
        other => unanswered(other),
    })
}

fn of_attributes<'a>(code: Code, args: &mut Args<'a>) -> Option<Operation<'a>> {
    Some(match code {
        Code::FUSE_GETATTR => Operation::Getattr,
        Code::FUSE_STATX => {
            let statx = args.take::<abi::fuse_statx_in>()?;
            Operation::Statx { flags: statx.sx_flags, mask: statx.sx_mask }
        }
        Code::FUSE_SETATTR => Operation::Setattr(setattr(&args.take()?)),
        Code::FUSE_READLINK => Operation::Readlink,
        Code::FUSE_ACCESS => Operation::Access { mask: args.take::<abi::fuse_access_in>()?.mask },
        Code::FUSE_IOCTL => {
            let abi::fuse_ioctl_in { flags, cmd: command, in_size, out_size, .. } = args.take()?;
            Operation::Ioctl { command, flags, out_size, data: args.bytes(in_size)? }
        }
        other => unanswered(other),
    })
}

fn of_xattrs<'a>(code: Code, args: &mut Args<'a>, dialect: Dialect) -> Option<Operation<'a>> {
    Some(match code {
        Code::FUSE_GETXATTR => {
            let size = args.take::<abi::fuse_getxattr_in>()?.size;
            Operation::Getxattr { size, name: args.name()? }
        }
        Code::FUSE_LISTXATTR => Operation::Listxattr { size: args.take::<abi::fuse_getxattr_in>()?.size },
        Code::FUSE_SETXATTR => setxattr(args, dialect)?,
        Code::FUSE_REMOVEXATTR => Operation::Removexattr { name: args.name()? },
        other => unanswered(other),
    })
}

fn of_directories<'a>(code: Code, args: &mut Args<'a>) -> Option<Operation<'a>> {
    Some(match code {
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
        other => unanswered(other),
    })
}

fn of_data<'a>(code: Code, args: &mut Args<'a>) -> Option<Operation<'a>> {
    Some(match code {
        Code::FUSE_OPEN => {
            let open = args.take::<abi::fuse_open_in>()?;
            Operation::Open { flags: open_flags(open.flags), kill_privileges: kills(open.open_flags) }
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
        Code::FUSE_FALLOCATE => {
            let abi::fuse_fallocate_in { offset, length, mode, .. } = args.take()?;
            Operation::Fallocate { offset, length, mode }
        }
        Code::FUSE_LSEEK => {
            let abi::fuse_lseek_in { offset, whence, .. } = args.take()?;
            Operation::Lseek { offset, whence }
        }
        Code::FUSE_COPY_FILE_RANGE => copy_file_range(args, false)?,
        other => unanswered(other),
    })
}

/// Returns what nobody here knows more of than its code.
fn unanswered(code: Code) -> Operation<'static> {
    Operation::Other { code: code.into() }
}

fn init(args: &mut Args<'_>) -> Operation<'static> {
    // Before 7.36 it ends with `flags`.
    let mut init = args.take_some::<abi::fuse_init_in>();
    let low = InitFlags::from_bits_retain(u64::from(init.flags));
    if !low.contains(InitFlags::FUSE_INIT_EXT) {
        init.flags2 = 0;
    }
    let flags = low | InitFlags::from_bits_retain(u64::from(init.flags2) << 32);
    let abi::fuse_init_in { major, minor, max_readahead, .. } = init;
    Operation::Init(Init { major, minor, max_readahead, flags })
}

fn rename<'a>(args: &mut Args<'a>, newdir: u64, flags: RenameFlags) -> Option<Operation<'a>> {
    Some(Operation::Rename { to: INodeNo(newdir), flags, name: args.name()?, to_name: args.name()? })
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
