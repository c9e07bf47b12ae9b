//! The data of files: reading, writing, copying, and files that are made open.

use fuser::{Errno, FopenFlags, INodeNo, OpenFlags, WriteFlags};
use rustix::fs::{FallocateFlags, SeekFrom};

use super::adaptor::UnionFs;
use super::change::change;
use super::convert::errno;
use super::data;
use super::policy::IoMode;
use super::reply::{entry, reply_empty};
use super::wire::Reply;
use super::wire::body::Opening;
use crate::error::Result;
use crate::union::change::modify::Create;
use crate::union::change::staged::New;
use crate::union::data::file::Write;
use crate::union::nodes::pins::paid_by;
use crate::union::view::attr::Attr;
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
        flags: OpenFlags,
        caller: Caller,
        reply: Reply,
    ) {
        let ttl = self.ttl();
        let make = move |union: &Union, (): &()| {
            let create = Create { new: New::File, mode: mode & 0o7777, umask, caller };
            let made = paid_by(caller.uid, || union.create_unnamed(&union.node(parent.0)?, create));
            Ok(made?.1)
        };
        if self.opens() {
            return change(&self.union, &(), false, make, self.answer_created(flags, reply));
        }
        let answer = move |made: Result<Attr>| match made {
            Ok(attr) => {
                let opening = Opening { flags: FopenFlags::FOPEN_KEEP_CACHE, backing: None };
                reply.created(&entry(ttl, &attr), opening);
            }
            Err(e) => reply.error(errno(&e)),
        };
        change(&self.union, &(), false, make, answer);
    }

    /// `unnoticed`: its access time stays.
    pub(super) fn read_data(&self, ino: INodeNo, range: (u64, u32), unnoticed: bool, reply: Reply) {
        match self.node(ino) {
            Ok(node) if unnoticed => data::reply_unnoticed(&self.union, &node, range, reply),
            Ok(node) => data::reply_read(&self.union, &node, range, reply),
            Err(e) => reply.error(errno(&e)),
        }
    }

    pub(super) fn write_data(
        &self,
        ino: INodeNo,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        reply: Reply,
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

    /// The kernel has set-user-id and set-group-id taken away before it asks, by a FUSE_SETATTR that sets nothing.
    pub(super) fn allocate(&self, node: INodeNo, range: (u64, u64), mode: u32, reply: Reply) {
        let mode = FallocateFlags::from_bits_retain(mode);
        self.change_node(
            node,
            &(),
            move |union, node, ()| union.fallocate(node, mode, range),
            move |done| reply_empty(reply, done),
        );
    }

    pub(super) fn seek_data(&self, ino: INodeNo, offset: u64, whence: u32, reply: Reply) {
        // Beyond what a file can have.
        if i64::try_from(offset).is_err() {
            return reply.error(Errno::ENXIO);
        }
        let at = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return reply.error(Errno::EINVAL),
        };
        match self.node(ino).and_then(|n| self.union.seek(&n, at)) {
            Ok(found) => reply.offset(found),
            Err(e) => reply.error(errno(&e)),
        }
    }

    /// The kernel has set-user-id and set-group-id taken away before it asks, by a FUSE_SETATTR that sets nothing.
    pub(super) fn copy_range(
        &self,
        from: (INodeNo, u64),
        to: (INodeNo, u64),
        len: u64,
        (wide, reply): (bool, Reply),
    ) {
        // An answer that isn't wide has 32 bits for the count.
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 30);
        let copy = move |union: &Union, (): &()| {
            let (source, target) = (union.node(from.0.0)?, union.node(to.0.0)?);
            union.copy_file_range((&source, from.1), (&target, to.1), len)
        };
        let answer = move |copied: Result<usize>| match copied {
            Ok(n) => reply.copied(n as u64, wide),
            Err(e) => reply.error(errno(&e)),
        };
        let long = len >= LONG_COPY || self.node(to.0).is_ok_and(|target| self.union.copies_much(&target));
        change(&self.union, &(), long, copy, answer);
    }
}
