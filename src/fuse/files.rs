//! The data of files: reading, writing, copying, and files that are made open.

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyCreate, ReplyData, ReplyEmpty, ReplyLseek,
    ReplyWrite, WriteFlags,
};
use rustix::fs::{FallocateFlags, SeekFrom};

use super::adaptor::UnionFs;
use super::change::change;
use super::convert::{errno, file_attr};
use super::data;
use super::policy::IoMode;
use super::reply::reply_empty;
use crate::error::Result;
use crate::union::attr::Attr;
use crate::union::file::Write;
use crate::union::modify::Create;
use crate::union::upper::New;
use crate::union::{Caller, Union};

/// A copy of so many bytes doesn't keep a thread that others wait for.
const LONG_COPY: usize = 1 << 20;

impl UnionFs {
    /// Makes a file without a name, open.
    pub(super) fn create_unnamed(
        &self,
        parent: INodeNo,
        mode: u32,
        umask: u32,
        flags: i32,
        caller: Caller,
        reply: ReplyCreate,
    ) {
        let ttl = self.ttl();
        let make = move |union: &Union, (): &()| {
            let create = Create { new: New::File, mode: mode & 0o7777, umask, caller };
            Ok(union.create_unnamed(&union.node(parent.0)?, create)?.1)
        };
        if self.opens() {
            return change(&self.union, &(), false, make, self.answer_created(flags, reply));
        }
        let answer = move |made: Result<Attr>| match made {
            Ok(attr) => {
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&ttl, &file_attr(&attr), Generation(0), FileHandle(0), flags);
            }
            Err(e) => reply.error(errno(&e)),
        };
        change(&self.union, &(), false, make, answer);
    }

    pub(super) fn read_data(&self, ino: INodeNo, offset: u64, size: u32, reply: ReplyData) {
        match self.node(ino) {
            Ok(node) => data::reply_read(&self.union, &node, (offset, size), reply),
            Err(e) => reply.error(errno(&e)),
        }
    }

    pub(super) fn write_data(
        &self,
        ino: INodeNo,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        reply: ReplyWrite,
    ) {
        let how = Write {
            kill: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            // Only then does the kernel tell the time of the write itself.
            late: self.policy.io == IoMode::WriteBack && write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
        };
        let len = data.len() as u32;
        let answer = move |done: Result<()>| match done {
            Ok(()) => reply.written(len),
            Err(e) => reply.error(errno(&e)),
        };
        self.change_node(ino, data, move |union, node, data| union.write(node, offset, data, how), answer);
    }

    pub(super) fn allocate(
        &self,
        ino: INodeNo,
        range: (u64, u64),
        mode: i32,
        caller: Caller,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        self.change_node(
            ino,
            &(),
            move |union, node, ()| union.fallocate(node, mode, range, caller),
            move |done| reply_empty(reply, done),
        );
    }

    pub(super) fn seek_data(&self, ino: INodeNo, offset: i64, whence: i32, reply: ReplyLseek) {
        // Nothing is there before the start either: as on the kernel's filesystems.
        if offset < 0 && matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return reply.error(Errno::ENXIO);
        }
        let at = match (u64::try_from(offset), whence) {
            (Ok(offset), libc::SEEK_DATA) => SeekFrom::Data(offset),
            (Ok(offset), libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            _ => return reply.error(Errno::EINVAL),
        };
        match self.node(ino).and_then(|n| self.union.seek(&n, at)) {
            Ok(found) => reply.offset(found.cast_signed()),
            Err(e) => reply.error(errno(&e)),
        }
    }

    pub(super) fn copy_range(
        &self,
        from: (INodeNo, u64),
        to: (INodeNo, u64),
        len: u64,
        caller: Caller,
        reply: ReplyWrite,
    ) {
        // The reply has 32 bits for the count.
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 30);
        let kill = caller.uid != 0;
        let copy = move |union: &Union, (): &()| {
            let (source, target) = (union.node(from.0.0)?, union.node(to.0.0)?);
            union.copy_file_range((&source, from.1), (&target, to.1), len, kill)
        };
        let answer = move |copied: Result<usize>| match copied {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(errno(&e)),
        };
        let long = len >= LONG_COPY || self.node(to.0).is_ok_and(|target| self.union.copies_much(&target));
        change(&self.union, &(), long, copy, answer);
    }
}
