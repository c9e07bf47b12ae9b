//! How much is in a layer: counted by whoever asks, never by a daemon.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::marker::{self, AufsName};
use crate::sys::dir::{DEEPEST, for_each_entry};
use crate::sys::object::{At, Kind, Time};

/// What is in a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Entries that are not directories and no markers; a file with several names counts once a name.
    pub files: u64,
    /// Directories, the layer's root aside.
    pub directories: u64,
    /// Whiteouts.
    pub whiteouts: u64,
    /// Bytes of data; a file with several names counts once.
    pub bytes: u64,
    /// Bytes on disk; less than `bytes` for files with holes.
    pub disk_bytes: u64,
    /// Files that were made or changed since the time that was asked for.
    pub changed_files: u64,
    /// Their bytes of data.
    pub changed_bytes: u64,
    /// Whether all of it was counted: not where time was up, or where a directory may not be read.
    pub complete: bool,
}

/// How long counting may take.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    end: Option<Instant>,
}

impl Budget {
    /// Allows as long as it takes.
    pub fn unlimited() -> Budget {
        Budget { end: None }
    }

    /// Allows so long from now.
    pub fn of(time: Duration) -> Budget {
        Budget { end: Instant::now().checked_add(time) }
    }

    fn is_over(self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }
}

/// Counts what is in the layer at `root`. `since`: what counts as changed. `progress` is called now and then with the
/// number of entries so far. `None`: the layer can't be opened by this user, or is not at that path for this process.
pub fn measure(
    root: &Path,
    since: Option<Time>,
    budget: Budget,
    progress: &mut dyn FnMut(u64),
) -> Option<Usage> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(root, flags, Mode::empty()).ok()?;
    let device = At::Fd(dir.as_fd()).stat().ok()?.dev;
    let mut count = Count {
        usage: Usage { complete: true, ..Usage::default() },
        seen: HashSet::new(),
        since,
        budget,
        device,
        progress,
        entries: 0,
    };
    count.directory(dir, 0);
    Some(count.usage)
}

struct Count<'p> {
    usage: Usage,
    /// Files with several names.
    seen: HashSet<u64>,
    since: Option<Time>,
    budget: Budget,
    device: u64,
    progress: &'p mut dyn FnMut(u64),
    entries: u64,
}

impl Count<'_> {
    fn directory(&mut self, dir: OwnedFd, depth: usize) {
        let mut below: Vec<Vec<u8>> = Vec::new();
        let listed = for_each_entry::<rustix::io::Errno>(dir.as_fd(), |entry| {
            self.entries += 1;
            if self.entries.is_multiple_of(1024) {
                (self.progress)(self.entries);
                if self.budget.is_over() {
                    return Err(rustix::io::Errno::TIMEDOUT);
                }
            }
            if self.entry(At::Name(dir.as_fd(), entry.name), entry.name) {
                below.push(entry.name.to_vec());
            }
            Ok(())
        });
        if listed.is_err() {
            self.usage.complete = false;
        }
        for name in below {
            if self.budget.is_over() || depth >= DEEPEST {
                self.usage.complete = false;
                return;
            }
            match At::Name(dir.as_fd(), &name).open_directory() {
                Ok(child) => self.directory(child, depth + 1),
                Err(_) => self.usage.complete = false,
            }
        }
    }

    /// Counts one entry. Returns whether it is a directory to go into.
    fn entry(&mut self, at: At<'_>, name: &[u8]) -> bool {
        match marker::aufs_name(name) {
            AufsName::Plain => {}
            AufsName::Whiteout(_) => {
                self.usage.whiteouts += 1;
                return false;
            }
            AufsName::Opaque | AufsName::Meta | AufsName::Malformed => return false,
        }
        let Ok(stat) = at.stat() else {
            self.usage.complete = false;
            return false;
        };
        if stat.is_whiteout_device() {
            self.usage.whiteouts += 1;
            return false;
        }
        if stat.kind() == Kind::Directory {
            self.usage.directories += 1;
            return stat.dev == self.device;
        }
        self.usage.files += 1;
        let first = stat.nlink < 2 || self.seen.insert(stat.ino);
        if first && stat.kind() == Kind::File {
            self.usage.bytes += stat.size;
            self.usage.disk_bytes += stat.blocks * 512;
        }
        if self.since.is_some_and(|since| stat.ctime >= since) {
            self.usage.changed_files += 1;
            if first && stat.kind() == Kind::File {
                self.usage.changed_bytes += stat.size;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_layer_is_counted() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("d")).unwrap();
        fs::write(top.path().join("d/a"), [0; 100]).unwrap();
        fs::hard_link(top.path().join("d/a"), top.path().join("b")).unwrap();
        fs::write(top.path().join(".wh.gone"), "").unwrap();
        fs::write(top.path().join("d/.wh..wh..opq"), "").unwrap();
        let all = measure(top.path(), Some(Time::default()), Budget::unlimited(), &mut |_| ()).unwrap();
        let counted = (all.files, all.directories, all.whiteouts, all.bytes, all.complete);
        assert_eq!(counted, (2, 1, 1, 100, true));
        assert_eq!((all.changed_files, all.changed_bytes), (2, 100));
        let future = Time { sec: i64::MAX, nsec: 0 };
        assert_eq!(
            measure(top.path(), Some(future), Budget::unlimited(), &mut |_| ()).unwrap().changed_files,
            0
        );
        assert!(measure(&top.path().join("none"), None, Budget::unlimited(), &mut |_| ()).is_none());
    }

    #[test]
    fn counting_ends_when_time_is_up() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("d")).unwrap();
        let usage = measure(top.path(), None, Budget::of(Duration::ZERO), &mut |_| ()).unwrap();
        assert!(!usage.complete);
    }
}
