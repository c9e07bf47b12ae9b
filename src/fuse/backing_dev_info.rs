//! What the kernel lets the page cache of the mount do.
//!
//! For a FUSE mount the kernel is suspicious by default: the mount's dirty pages may take 1 % of what all may take,
//! strictly, so that a writer waits for the daemon long before it would have to; and it reads ahead only 128 KiB, which
//! makes every reader of a large file wait for eight requests a megabyte. Root may say otherwise, by the knobs of the
//! mount's *backing device info* (kernel: Documentation/ABI/testing/sysfs-class-bdi). Nothing is wrong where that fails;
//! it is only slower.

use std::fs;
use std::path::Path;

use super::policy::READ_AHEAD;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// Lets the mount at `mount_point` cache as other filesystems do.
pub fn tune(mount_point: &Path) {
    // Asks the mount nothing: the daemon can't answer yet.
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    let stat = match statx(CWD, mount_point, flags, StatxFlags::empty()) {
        Ok(stat) => stat,
        Err(e) => return log::debug!("{}: {e}; its page cache stays as it is", mount_point.display()),
    };
    let dir = format!("/sys/class/bdi/{}:{}", stat.stx_dev_major, stat.stx_dev_minor);
    for (knob, value) in [("strict_limit", 0), ("max_ratio", 100), ("read_ahead_kb", READ_AHEAD >> 10)] {
        if let Err(e) = fs::write(format!("{dir}/{knob}"), value.to_string()) {
            log::debug!("{dir}/{knob}: {e}");
        }
    }
}
