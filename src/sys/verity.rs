//! fs-verity: the digest that a filesystem keeps of a file which can't be changed any more.

// rustix has no FS_IOC_MEASURE_VERITY.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// `_IOWR('f', 134, struct fsverity_digest)`, whose fixed part has 4 bytes.
const MEASURE: u32 = 0xc004_6686;
/// The longest digest: SHA-512.
const LONGEST: u16 = 64;

#[repr(C)]
struct Digest {
    algorithm: u16,
    size: u16,
    digest: [u8; LONGEST as usize],
}

/// Returns the digest of a file, and the number of its algorithm; `None` of one that has no verity.
///
/// # Errors
/// Those of the ioctl, but for those that say that there is none.
pub fn measure(file: BorrowedFd<'_>) -> Result<Option<(u16, Vec<u8>)>> {
    let mut answer = Digest { algorithm: 0, size: LONGEST, digest: [0; LONGEST as usize] };
    // SAFETY: the answer has room for as many bytes of a digest as it says, and lives as long as the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::c_ulong::from(MEASURE) as _, &raw mut answer) };
    if done == 0 {
        let digest = answer.digest[..usize::from(answer.size.min(LONGEST))].to_vec();
        return Ok(Some((answer.algorithm, digest)));
    }
    match Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO) {
        Errno::NODATA | Errno::OPNOTSUPP | Errno::NOTTY => Ok(None),
        errno => Err(errno),
    }
}
