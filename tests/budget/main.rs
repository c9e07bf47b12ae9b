//! Request budgets: how often the kernel must ask the daemon, by the daemon's own counters, and how many system calls
//! the daemon makes for it.
//!
//! What the kernel asks of its own accord, and no daemon can keep it from, is part of the budgets: with
//! `default_permissions` it asks for the attributes of a directory again before the next permission check after a change
//! in it (fs/fuse/dir.c, fuse_dir_changed and fuse_permission), and before the first write into an inode it asks for
//! `security.capability` (cap_inode_need_killpriv), as it does when it runs a program (get_vfs_caps_from_disk). After a
//! read, a readlink or a listing that the daemon answered, it asks for the access time once (fuse_invalidate_atime).

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

mod memory;
mod pairing;
mod passthrough;
mod requests;
mod syscalls;
mod threads;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use parking_lot::{RwLock, RwLockReadGuard};
use rustix::process::{Pid, Signal, kill_process};
use support::{Mount, Options, Program, Stack};

/// Requests by kind. Forgets are left out: the kernel sends them when it likes, and waits for none.
type Requests = BTreeMap<String, u64>;

/// The kernel's caches are one for all mounts: while requests are counted somewhere, nobody empties them.
static KERNEL_CACHES: RwLock<()> = RwLock::new(());

/// A mount whose requests are counted.
struct Counted {
    mount: Mount,
    log: PathBuf,
    _undisturbed: RwLockReadGuard<'static, ()>,
}

/// Whether there are counters: the peers have none.
fn has_counters() -> bool {
    Program::under_test().is_unionmount()
}

/// Returns from a test of a program without counters.
#[macro_export]
macro_rules! needs_counters {
    () => {
        if !$crate::has_counters() {
            support::skip!("{}: only unionmount counts its requests", module_path!());
        }
    };
}

impl Counted {
    fn new(stack: &Stack, options: &[&str]) -> Counted {
        Counted::mounted(stack, stack.options_with(options))
    }

    fn mounted(stack: &Stack, options: Options) -> Counted {
        // A test may count in two mounts.
        let undisturbed = KERNEL_CACHES.read_recursive();
        let log = stack.work().with_file_name("log");
        let options = Options { log: Some(log.clone()), ..options };
        Counted { mount: Mount::new(&options, stack.mountpoint()), log, _undisturbed: undisturbed }
    }

    /// What the daemon tells when it is asked to.
    fn report(&self) -> String {
        let reports = || fs::read_to_string(&self.log).unwrap_or_default();
        let before = reports().matches("requests: ").count();
        kill_process(Pid::from_raw(self.mount.daemon() as i32).unwrap(), Signal::USR1).unwrap();
        let told = || reports().ends_with('\n') && reports().matches("requests: ").count() > before;
        assert!(support::wait_until(support::PATIENCE, told), "the daemon reports nothing");
        reports().rsplit_once("requests: ").unwrap().1.to_owned()
    }

    /// How many requests the CPU-affine worker has served.
    fn paired(&self) -> u64 {
        let report = self.report();
        let words = report.split("paired: ").nth(1).and_then(|rest| rest.split_whitespace().next());
        words.map_or(0, |n| n.parse().unwrap())
    }

    fn all(&self) -> Requests {
        let report = self.report();
        let report = report.split(';').next().unwrap();
        let counts = report.split(", ").filter_map(|word| word.trim().split_once(' '));
        counts
            .map(|(kind, n)| (kind.to_owned(), n.parse().unwrap()))
            .filter(|(kind, _)| kind != "forget")
            .collect()
    }

    /// What `work` makes the kernel ask.
    fn cost(&self, work: impl FnOnce()) -> Requests {
        let before = self.all();
        work();
        let mut after = self.all();
        after.retain(|kind, n| {
            *n -= before.get(kind).unwrap_or(&0);
            *n > 0
        });
        after
    }
}
