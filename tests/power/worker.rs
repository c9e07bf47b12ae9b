//! What works on the disk: the program, or a peer that is asked for the same.

use std::path::Path;

use rustix::io::Errno;

use support::model::op::{Op, Outcome};
use support::model::peers::{flat, in_kernels_forms, is_of_open_and_unlinked};
use support::{Program, Snapshot};

use crate::workload::Sequence;

/// What works on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    /// The program under test.
    Union,
    /// The kernel's overlayfs.
    Kernel,
    /// The filesystem itself, with the merged tree on it.
    Bare,
}

impl Worker {
    /// The one that the environment asks for.
    pub fn from_environment() -> Worker {
        match std::env::var("POWER_PEER").as_deref() {
            Ok("kernel") => Worker::Kernel,
            Ok("bare") => Worker::Bare,
            Ok(other) => panic!("POWER_PEER={other}: kernel or bare"),
            Err(_) => Worker::Union,
        }
    }

    /// A sequence as it takes it: the same tree and the same steps.
    pub fn sequence(self, sequence: &Sequence) -> Sequence {
        let spec = match self {
            Worker::Union => sequence.spec.clone(),
            Worker::Kernel => in_kernels_forms(&sequence.spec),
            Worker::Bare => flat(&sequence.spec),
        };
        Sequence { spec, steps: sequence.steps.clone() }
    }

    /// Whether a sequence goes on after this outcome. The program does what is expected.
    pub fn goes_on(self, op: &Op, expected: &Outcome, found: &Outcome) -> bool {
        let fits = found == expected
            || self == Worker::Kernel && is_of_open_and_unlinked(op, expected, found)
            || self == Worker::Bare && is_not_empty(expected) && is_not_empty(found);
        assert!(fits || self != Worker::Union, "{op:?}: {found:?}, expected {expected:?}");
        fits
    }

    /// Reads a tree. The kernel's overlayfs lists some directories with numbers that are not those of stat.
    pub fn read(self, root: &Path) -> Snapshot {
        if self == Worker::Kernel { Snapshot::take(root) } else { Snapshot::take_checked(root) }
    }

    /// What the kernel's overlayfs is mounted with. It refuses an index that a power failure has left.
    pub fn kernel_options(after_failure: bool) -> (Program, Vec<String>) {
        let index: &[&str] = if after_failure { &[] } else { &["index=on", "xino=on"] };
        let options = [&["redirect_dir=on"], index].concat();
        (Program::Kernel, options.into_iter().map(str::to_owned).collect())
    }
}

/// Whether it says that a directory has something in it. POSIX leaves the choice between two errors; XFS takes the other one.
fn is_not_empty(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(Errno::NOTEMPTY | Errno::EXIST))
}
