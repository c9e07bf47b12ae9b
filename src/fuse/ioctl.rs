//! ioctl(2): the flags of inodes.

use fuser::INodeNo;

use super::adaptor::UnionFs;
use super::convert::errno;
use super::wire::Reply;
use crate::error::FsError;

/// FS_IOC_GETFLAGS and FS_IOC_SETFLAGS (linux/fs.h), as lsattr and chattr use them. The kernel passes 4 bytes.
const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
/// FS_IOC_FSGETXATTR, which the kernel asks before it sets flags: project and extent size, of which there are none.
const GET_FSXATTR: u32 = 0x801c_581f;
const FSXATTR_SIZE: usize = 28;

/// Returns whether a command sets the flags of an inode, which is a change.
pub(super) fn is_set_flags(command: u32) -> bool {
    command == SET_FLAGS
}

impl UnionFs {
    /// Answers what is asked and changes nothing.
    pub(super) fn ioctl(&self, ino: INodeNo, command: u32, reply: Reply) {
        let done = self.node(ino).and_then(|node| match command {
            GET_FLAGS => self.union.inode_flags(&node).map(|flags| flags.to_ne_bytes().to_vec()),
            GET_FSXATTR => Ok(vec![0; FSXATTR_SIZE]),
            _ => Err(FsError::Os(rustix::io::Errno::NOTTY)),
        });
        match done {
            Ok(data) => reply.ioctl(0, &data),
            Err(e) => reply.error(errno(&e)),
        }
    }
}
