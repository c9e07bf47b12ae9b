//! What the crate `fuse-abi` 0.2 lacks of include/uapi/linux/fuse.h: what came after version 7.40.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version that this speaks: that of Linux 6.18.
pub const MAJOR: u32 = 7;
/// See [`MAJOR`].
pub const MINOR: u32 = 45;
/// The oldest that it understands: that of Linux 4.20, from which on a request for more than 32 pages may be agreed on.
pub const OLDEST_MINOR: u32 = 28;

/// FUSE_COPY_FILE_RANGE_64 (7.45): as FUSE_COPY_FILE_RANGE, answered with 64 bits.
pub const COPY_FILE_RANGE_64: u32 = 53;

/// FUSE_UNIQUE_RESEND (7.40): set in the number of a request that was sent before, to somebody who may have seen to it.
pub const RESENT: u64 = 1 << 63;

/// The answer to [`COPY_FILE_RANGE_64`]: struct fuse_copy_file_range_out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct CopyFileRangeOut {
    /// How many bytes were copied.
    pub bytes_copied: u64,
}

/// Where a ring's request says how large its parts are, and which one it is: struct fuse_uring_ent_in_out (7.42).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UringEntInOut {
    /// None are defined.
    pub flags: u64,
    /// What a reply is committed by.
    pub commit_id: u64,
    /// How many bytes the payload has.
    pub payload_sz: u32,
    /// Not used.
    pub padding: u32,
    /// Not used.
    pub reserved: u64,
}

/// The headers of a ring's entry: struct fuse_uring_req_header (7.42).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UringReqHeader {
    /// A request's or a reply's header.
    pub in_out: [u8; 128],
    /// A request's first structure.
    pub op_in: [u8; 128],
    /// What both sides tell of the rest.
    pub ring_ent_in_out: UringEntInOut,
}

const _: () = assert!(size_of::<UringReqHeader>() == crate::sys::ring::HEADER_SIZE);

/// FS_IOC_GETFLAGS (linux/fs.h), as lsattr uses it. The kernel passes 4 bytes.
pub const GET_FLAGS: u32 = 0x8008_6601;
/// FS_IOC_SETFLAGS (linux/fs.h), as chattr uses it: a change.
pub const SET_FLAGS: u32 = 0x4008_6602;
/// FS_IOC_FSGETXATTR (linux/fs.h), which the kernel asks before it sets flags: project and extent size.
pub const GET_FSXATTR: u32 = 0x801c_581f;
