//! The FUSE filesystems that this process itself answers for.
//!
//! A system call that the daemon makes into its own mount waits for an answer that only the daemon gives: with the last of
//! its threads, or with a lock that the answer needs, for ever. A layer may hold the mount all the same (`--lower /`, or a
//! bind mount of the merged tree somewhere in a layer, which may come at any moment). So what is reached by a name in a layer
//! is held against the devices that are noted here before anything is asked of it. To step onto a mount, O_PATH, and to read
//! its device number with AT_STATX_DONT_SYNC ask nobody.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;
use rustix::fs::{major, makedev, minor};

use super::mountinfo::Table;

/// Device numbers, as in `st_dev`.
static OWN: RwLock<Vec<u64>> = RwLock::new(Vec::new());
/// How many there are whose device isn't known.
static UNKNOWN: AtomicUsize = AtomicUsize::new(0);

/// That a filesystem is noted as this process's own, as long as it lives.
#[derive(Debug)]
pub struct Declared(Option<u64>);

/// Notes a filesystem that this process answers for; `None`: its device isn't known, so that every FUSE filesystem may be it.
pub fn declare(device: Option<u64>) -> Declared {
    match device {
        Some(device) => OWN.write().push(device),
        None => {
            UNKNOWN.fetch_add(1, Ordering::Relaxed);
        }
    }
    Declared(device)
}

impl Drop for Declared {
    fn drop(&mut self) {
        let Some(device) = self.0 else {
            UNKNOWN.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        let mut own = OWN.write();
        if let Some(at) = own.iter().position(|known| *known == device) {
            own.swap_remove(at);
        }
    }
}

/// Returns whether that may be a filesystem that this process answers for. Asked where a mount is crossed alone.
pub fn is_own(device: u64) -> bool {
    OWN.read().contains(&device)
        || UNKNOWN.load(Ordering::Relaxed) > 0
            && filesystem_type(device).is_none_or(|kind| kind.starts_with("fuse"))
}

/// Returns the type of the filesystem of that device, if it is mounted in this process's mount namespace
/// (proc_pid_mountinfo(5)). Asks nobody who answers for it.
pub fn filesystem_type(device: u64) -> Option<String> {
    let device = format!("{}:{}", major(device), minor(device));
    Table::read().ok()?.entries().find(|mount| mount.device == device).map(|mount| mount.kind.into_owned())
}

/// Returns the device of the filesystem that an open /dev/fuse serves. `None` where the kernel doesn't tell (before
/// Linux 6.16).
pub fn device_of_connection(fuse: impl AsFd) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", fuse.as_fd().as_raw_fd());
    let told = std::fs::read_to_string(path).ok()?;
    let minor = told.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
    Some(makedev(0, minor.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn types_are_found_by_device() {
        let proc = std::fs::metadata("/proc").unwrap().dev();
        assert_eq!(filesystem_type(proc).as_deref(), Some("proc"));
        assert_eq!(filesystem_type(makedev(0xfff, 0xfff)), None);
    }

    #[test]
    fn what_is_declared_is_own_until_it_is_forgotten() {
        let device = makedev(0xffe, 1);
        assert!(!is_own(device));
        let declared = declare(Some(device));
        assert!(is_own(device) && !is_own(makedev(0xffe, 2)));
        drop(declared);
        assert!(!is_own(device));
    }
}
