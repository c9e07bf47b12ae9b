//! Between the protocol's types and the union's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, Request, TimeOrNow};
use rustix::io::Errno;

use crate::error::FsError;
use crate::sys::object::{Kind, SetTime, Time};
use crate::union::Caller;
use crate::union::attr::Attr;

/// The protocol's error for one of the union's.
pub fn errno(error: &FsError) -> fuser::Errno {
    fuser::Errno::from_i32(error.errno().raw_os_error())
}

/// The protocol's error for one of a system call's.
pub fn raw_errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

/// Who makes the request.
pub fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid() }
}

/// The protocol's type of an object.
pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Fifo => FileType::NamedPipe,
        Kind::CharDevice => FileType::CharDevice,
        Kind::Directory => FileType::Directory,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::Socket => FileType::Socket,
    }
}

/// A time as the protocol's crate takes it. Before the epoch the seconds are negative and the nanoseconds count up.
fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nsec));
    if time.sec >= 0 {
        UNIX_EPOCH + Duration::from_secs(time.sec.unsigned_abs()) + nanos
    } else {
        UNIX_EPOCH - Duration::from_secs(time.sec.unsigned_abs()) + nanos
    }
}

/// A time as the protocol's crate gives it. fuser 0.18 decodes a time before the epoch as `epoch - (seconds +
/// nanoseconds)` where the protocol means `epoch - seconds + nanoseconds`; this is the reverse of what it does.
fn time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { sec: after.as_secs().cast_signed(), nsec: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { sec: before.as_secs().cast_signed().wrapping_neg(), nsec: before.subsec_nanos() }
        }
    }
}

/// A time to set.
pub fn set_time(given: TimeOrNow) -> SetTime {
    match given {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(time(t)),
    }
}

/// A device number as the protocol has it: 12 bits of major, 20 of minor, minor's upper part above the major
/// (the kernel's `new_encode_dev`).
fn encode_dev(dev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// The reverse of `encode_dev`.
pub fn decode_dev(dev: u32) -> u64 {
    let major = dev >> 8 & 0xfff;
    let minor = dev & 0xff | dev >> 12 & 0xf_ff00;
    rustix::fs::makedev(major, minor)
}

/// Attributes as the protocol shows them.
pub fn file_attr(attr: &Attr) -> FileAttr {
    let stat = &attr.stat;
    FileAttr {
        ino: INodeNo(attr.ino),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind()),
        perm: (stat.mode & 0o7777) as u16,
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

    #[test]
    fn times_before_the_epoch_are_themselves() {
        // 1969-12-31 23:59:58.25: the protocol sends seconds -2 and nanoseconds 250,000,000.
        let want = Time { sec: -2, nsec: 250_000_000 };
        assert_eq!(system_time(want), UNIX_EPOCH - Duration::from_millis(1750));
        let as_fuser_decodes = UNIX_EPOCH - Duration::new(2, 250_000_000);
        assert_eq!(time(as_fuser_decodes), want);
    }
}
