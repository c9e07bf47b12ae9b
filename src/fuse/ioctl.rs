//! ioctl(2): the flags of inodes.

use fuser::INodeNo;

use super::adaptor::UnionFs;
use super::convert::errno;
use super::wire::Reply;
use super::wire::abi::{GET_FLAGS, GET_FSXATTR};
use crate::error::FsError;

/// How much FS_IOC_FSGETXATTR tells; here there is nothing of it.
const FSXATTR_SIZE: usize = 28;

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
