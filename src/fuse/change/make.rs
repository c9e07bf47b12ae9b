//! What each request for a change means, a family of requests at a time.

use std::sync::Arc;

use fuser::{INodeNo, RenameFlags, WriteFlags};
use rustix::fs::{FallocateFlags, OFlags, XattrFlags};
use rustix::io::Errno;

use super::{Changer, Done};
use crate::error::{FsError, Result};
use crate::fuse::convert::{caller, decode_dev};
use crate::fuse::node_id;
use crate::fuse::opener::{Asker, open_flags};
use crate::fuse::policy::IoMode;
use crate::fuse::wire::operation::Setattr;
use crate::fuse::wire::{Operation, Request};
use crate::sys::object::Kind;
use crate::union::change::create::Create;
use crate::union::change::rename::RenameMode;
use crate::union::change::staged::New;
use crate::union::data::file::Write;
use crate::union::nodes::node::Node;
use crate::union::nodes::pins::paid_by;
use crate::union::view::attr::{Attr, SetAttr};

/// The most that one request copies: an answer that isn't wide has 32 bits for the count.
const MOST_COPIED: usize = 1 << 30;

/// Returns the change of attributes that a request asks for.
pub(super) fn wanted(set: &Setattr) -> SetAttr {
    let Setattr { mode, uid, gid, size, atime, mtime, kill_privileges: _ } = *set;
    SetAttr { mode, uid, gid, size, atime, mtime }
}

impl Changer {
    /// Makes the change that a request asks for. It may be made again where it failed for want of room.
    pub(super) fn make(&self, request: &Request<'_>) -> Result<Done> {
        match request.operation {
            Operation::Symlink { .. }
            | Operation::Mknod { .. }
            | Operation::Mkdir { .. }
            | Operation::Create { .. }
            | Operation::Tmpfile { .. } => self.make_object(request),
            Operation::Link { .. }
            | Operation::Unlink { .. }
            | Operation::Rmdir { .. }
            | Operation::Rename { .. } => self.change_names(request),
            Operation::Setattr(_)
            | Operation::Setxattr { .. }
            | Operation::Removexattr { .. }
            | Operation::Ioctl { .. } => self.change_attributes(request),
            _ => self.change_data(request),
        }
    }

    pub(super) fn node(&self, node: INodeNo) -> Result<Arc<Node>> {
        self.union().node(node_id::number(node))
    }

    fn make_object(&self, request: &Request<'_>) -> Result<Done> {
        let parent = request.header.node;
        match request.operation {
            Operation::Symlink { name, target, creator } => {
                let (new, caller) = (New::Symlink(target), caller(creator));
                self.make_entry(parent, name, Create { new, mode: 0o777, umask: 0, caller })
            }
            Operation::Mknod { name, mode, rdev, umask, creator } => {
                let new = match Kind::of_mode(mode) {
                    Kind::File => New::File,
                    kind => New::Special(kind, decode_dev(rdev)),
                };
                let create = Create { new, mode: mode & 0o7777, umask, caller: caller(creator) };
                self.make_entry(parent, name, create)
            }
            Operation::Mkdir { name, mode, umask, creator } => {
                let (new, caller) = (New::Directory, caller(creator));
                self.make_entry(parent, name, Create { new, mode: mode & 0o7777, umask, caller })
            }
            Operation::Create { name, flags, mode, umask, kill_privileges, creator } => {
                let (new, caller) = (New::File, caller(creator));
                let create = Create { new, mode: mode & 0o7777, umask, caller };
                let (attr, flags) =
                    self.make_or_find((parent, name), create, open_flags(flags), kill_privileges)?;
                Ok(Done::Created(attr, request.header.pid, flags))
            }
            Operation::Tmpfile { flags, mode, umask, creator } => {
                let (new, caller) = (New::File, caller(creator));
                let create = Create { new, mode: mode & 0o7777, umask, caller };
                let parent = self.node(parent)?;
                let (_, attr) = paid_by(caller.uid, || self.union().create_unnamed(&parent, create))?;
                Ok(Done::Created(attr, request.header.pid, open_flags(flags)))
            }
            _ => Err(not_a_change()),
        }
    }

    /// Makes an entry. Its node counts one lookup.
    fn make_entry(&self, parent: INodeNo, name: &[u8], create: Create<'_>) -> Result<Done> {
        let parent = self.node(parent)?;
        Ok(Done::Entry(self.union().create(&parent, name, create)?.1))
    }

    /// Makes a file that is to be opened, or finds that somebody else just did.
    fn make_or_find(
        &self,
        (parent, name): (INodeNo, &[u8]),
        create: Create<'_>,
        mut flags: OFlags,
        kill: bool,
    ) -> Result<(Attr, OFlags)> {
        let (union, asked) = (self.union(), flags);
        let parent = self.node(parent)?;
        let (node, attr) = match union.create(&parent, name, create) {
            Err(FsError::Exists) if !flags.contains(OFlags::EXCL) => {
                union.lookup(&parent, name)?.ok_or(FsError::Stale)?
            }
            made => {
                // Nothing is there to be truncated, and ext4 writes what was truncated to disk when it is closed.
                flags -= OFlags::TRUNC;
                made?
            }
        };
        let ready = union.open(&node, flags, kill);
        drop(node);
        if ready.is_err() {
            union.forget(attr.ino, 1);
        }
        ready.map(|()| (attr, asked))
    }

    fn change_names(&self, request: &Request<'_>) -> Result<Done> {
        let (union, uid) = (self.union(), request.header.uid);
        let dir = self.node(request.header.node)?;
        match request.operation {
            Operation::Link { node, name } => {
                return union.link(&self.node(node)?, &dir, name).map(Done::Entry);
            }
            Operation::Unlink { name } => paid_by(uid, || union.unlink(&dir, name))?,
            Operation::Rmdir { name } => paid_by(uid, || union.rmdir(&dir, name))?,
            Operation::Rename { name, to, to_name, flags } => {
                let (to, mode) = (self.node(to)?, rename_mode(flags)?);
                paid_by(uid, || union.rename((&dir, name), (&to, to_name), mode))?;
            }
            _ => return Err(not_a_change()),
        }
        Ok(Done::Nothing)
    }

    fn change_attributes(&self, request: &Request<'_>) -> Result<Done> {
        let id = request.header.node;
        let node = self.node(id)?;
        let done = self.change_attributes_of(&node, request);
        self.opener.changed(&node, id);
        done
    }

    fn change_attributes_of(&self, node: &Arc<Node>, request: &Request<'_>) -> Result<Done> {
        let union = self.union();
        match request.operation {
            Operation::Setattr(ref set) => {
                return union.setattr(node, wanted(set), set.kill_privileges).map(Done::Attributes);
            }
            Operation::Setxattr { name, value, flags, kill_sgid } => {
                union.setxattr(node, name, value, XattrFlags::from_bits_retain(flags))?;
                if kill_sgid {
                    union.kill_set_group_id(node)?;
                }
            }
            Operation::Removexattr { name } => union.removexattr(node, name)?,
            Operation::Ioctl { data, .. } => {
                let flags = data.first_chunk().ok_or(FsError::Os(Errno::NOTTY))?;
                union.set_inode_flags(node, u32::from_ne_bytes(*flags))?;
                return Ok(Done::Ioctl);
            }
            _ => return Err(not_a_change()),
        }
        Ok(Done::Nothing)
    }

    fn change_data(&self, request: &Request<'_>) -> Result<Done> {
        let union = self.union();
        let node = self.node(request.header.node)?;
        match request.operation {
            Operation::Open { flags, kill_privileges } => {
                union.open(&node, open_flags(flags), kill_privileges)?;
                let asker = Asker { id: request.header.node, thread: request.header.pid };
                Ok(Done::Ready(asker, open_flags(flags)))
            }
            Operation::Write { offset, data, flags } => {
                let cached = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
                let how = Write {
                    cached,
                    kill: flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
                    // Only then does the kernel tell the time of the write itself.
                    late: self.policy.io == IoMode::WriteBack && cached,
                };
                let written = union.write(&node, offset, data, how)?;
                Ok(Done::Written(written as u32))
            }
            // For this and the next the kernel has set-user-id and set-group-id taken away before it asks, by a FUSE_SETATTR
            // that sets nothing.
            Operation::Fallocate { offset, length, mode } => {
                union.fallocate(&node, FallocateFlags::from_bits_retain(mode), (offset, length))?;
                Ok(Done::Nothing)
            }
            Operation::CopyFileRange { offset, to, to_offset, length, wide } => {
                if node.has_second_id() && !node_id::is_second(request.header.node) {
                    // An open from before has other data than the node: the kernel copies what it reads of them.
                    return Err(FsError::Os(Errno::OPNOTSUPP));
                }
                let length = usize::try_from(length).unwrap_or(usize::MAX).min(MOST_COPIED);
                let target = self.node(to)?;
                let bytes = union.copy_file_range((&node, offset), (&target, to_offset), length)?;
                Ok(Done::Copied { bytes: bytes as u64, wide })
            }
            _ => Err(not_a_change()),
        }
    }
}

fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    match flags {
        f if f.is_empty() => Ok(RenameMode::Replace),
        f if f == RenameFlags::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        f if f == RenameFlags::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        _ => Err(FsError::Invalid("these flags of a rename")),
    }
}

fn not_a_change() -> FsError {
    FsError::Os(Errno::NOSYS)
}
