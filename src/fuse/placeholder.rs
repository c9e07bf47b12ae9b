//! An empty tree, which shows that the mount answers.

use std::ffi::OsStr;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo, ReplyAttr, ReplyDirectory, ReplyEntry,
    Request,
};

use crate::union::layer::Stack;

/// Serves a root directory without entries.
pub struct Placeholder {
    stack: Stack,
}

impl Placeholder {
    /// Keeps `stack` open, and locked, until the mount ends.
    pub fn new(stack: Stack) -> Placeholder {
        Placeholder { stack }
    }
}

const TTL: Duration = Duration::from_secs(1);

impl Filesystem for Placeholder {
    fn destroy(&mut self) {
        if let Err(error) = self.stack.close() {
            log::error!("{error}");
        }
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::ENOENT);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let attr = FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::Directory,
            perm: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&TTL, &attr);
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            // Two entries always fit.
            let _full = reply.add(INodeNo::ROOT, 1, FileType::Directory, ".")
                || reply.add(INodeNo::ROOT, 2, FileType::Directory, "..");
        }
        reply.ok();
    }
}
