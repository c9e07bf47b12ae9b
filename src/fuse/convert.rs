//! Between the protocol's types and the union's.

use fuse_abi::linux::fuse_attr;

use super::wire::operation::Creator;
use crate::error::FsError;
use crate::union::Caller;
use crate::union::view::attr::Attr;

/// Returns the protocol's error for one of the union's.
pub fn errno(error: &FsError) -> fuser::Errno {
    fuser::Errno::from_i32(error.errno().raw_os_error())
}

/// Returns who makes an inode.
pub fn caller(creator: Creator) -> Caller {
    Caller { uid: creator.uid, gid: creator.gid }
}

/// Returns a device number as the protocol has it: 12 bits of major, 20 of minor, minor's upper part above the major
/// (the kernel's `new_encode_dev`).
fn encode_dev(dev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// Returns the reverse of `encode_dev`.
pub fn decode_dev(dev: u32) -> u64 {
    let major = dev >> 8 & 0xfff;
    let minor = dev & 0xff | dev >> 12 & 0xf_ff00;
    rustix::fs::makedev(major, minor)
}

/// Returns attributes as the protocol shows them. A time before the epoch has negative seconds, and nanoseconds that
/// count up.
pub fn fuse_attr(attr: &Attr) -> fuse_attr {
    let stat = &attr.stat;
    fuse_attr {
        ino: attr.ino,
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.atime.sec.cast_unsigned(),
        mtime: stat.mtime.sec.cast_unsigned(),
        ctime: stat.ctime.sec.cast_unsigned(),
        atimensec: stat.atime.nsec,
        mtimensec: stat.mtime.nsec,
        ctimensec: stat.ctime.nsec,
        mode: stat.mode,
        nlink: u32::try_from(stat.nlink).unwrap_or(u32::MAX),
        uid: stat.uid,
        gid: stat.gid,
        rdev: encode_dev(stat.rdev),
        blksize: stat.blksize,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 65_536), (4095, 1_048_575)] {
            let dev = rustix::fs::makedev(major, minor);
            assert_eq!(decode_dev(encode_dev(dev)), dev, "{major}:{minor}");
        }
    }
}
