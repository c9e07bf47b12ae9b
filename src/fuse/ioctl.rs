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

impl UnionFs {
    pub(super) fn ioctl(&self, ino: INodeNo, cmd: u32, in_data: &[u8], reply: Reply) {
        let flags = in_data.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let done = self.node(ino).and_then(|node| match (cmd, flags) {
            (GET_FLAGS, _) => self.union.inode_flags(&node).map(|flags| flags.to_ne_bytes().to_vec()),
            (GET_FSXATTR, _) => Ok(vec![0; FSXATTR_SIZE]),
            (SET_FLAGS, Some(flags)) => self.union.set_inode_flags(&node, flags).map(|()| Vec::new()),
            _ => Err(FsError::Os(rustix::io::Errno::NOTTY)),
        });
        match done {
            Ok(data) => reply.ioctl(0, &data),
            Err(e) => reply.error(errno(&e)),
        }
    }
}
