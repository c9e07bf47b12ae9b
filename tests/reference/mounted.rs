//! Sequences through a real mount of the program under test.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use proptest::strategy::Strategy;
use rustix::fs::{AtFlags, StatxFlags};

use support::model::check::Sequence;
use support::model::execute::{Executor, observe};
use support::model::generate::{ALPHABET, Vocabulary, case};
use support::model::harness::{Failure, run_cases};
use support::model::layer::StackSpec;
use support::model::op::Op;
use support::{Mount, Privilege, Program, Snapshot, Stack};

/// Writes the layers of `spec` to disk.
pub fn build(spec: &StackSpec) -> Stack {
    let stack = Stack::new(spec.lowers.len());
    spec.write(&stack);
    stack
}

/// How long a file's blocks may be counted nowhere.
const WRITTEN_BACK: std::time::Duration = std::time::Duration::from_secs(2);

/// The paths of a mount, whose attributes the kernel keeps.
struct Known {
    root: PathBuf,
    paths: Vec<OsString>,
}

impl Known {
    fn new(root: &Path) -> Known {
        Known { root: root.to_owned(), paths: Vec::new() }
    }

    /// Has the kernel keep the attributes of all that is there.
    fn look(&mut self) {
        self.paths = Snapshot::take(&self.root).entries.into_keys().collect();
        self.paths.iter().for_each(|path| drop(self.stat(path, AtFlags::empty())));
    }

    /// What the kernel tells a program is what it would be told if it asked. The access time is not compared: to read a
    /// file moves it below. Nor can AT_STATX_DONT_SYNC be asked for: that tells what the kernel itself knows to be old.
    fn compare(&self, after: &str) {
        for path in &self.paths {
            let (kept, blocks) = self.stat(path, AtFlags::empty()).unzip();
            let (fresh, mut fresh_blocks) = self.stat(path, AtFlags::STATX_FORCE_SYNC).unzip();
            assert_eq!(kept, fresh, "{after}: the kernel's attributes of /{} are old", path.display());
            // While ext4 writes a file back, its blocks are for a moment counted neither as reserved nor as taken.
            support::wait_until(WRITTEN_BACK, || {
                let same = fresh_blocks == blocks;
                if !same {
                    fresh_blocks = self.stat(path, AtFlags::STATX_FORCE_SYNC).unzip().1;
                }
                same
            });
            assert_eq!(blocks, fresh_blocks, "{after}: the kernel's blocks of /{} are old", path.display());
        }
    }

    /// Returns all but the blocks, and these.
    fn stat(&self, path: &OsStr, flags: AtFlags) -> Option<(String, u64)> {
        let place = if path.is_empty() { self.root.clone() } else { self.root.join(path) };
        let flags = flags | AtFlags::SYMLINK_NOFOLLOW;
        let s = rustix::fs::statx(rustix::fs::CWD, place, flags, StatxFlags::BASIC_STATS).ok()?;
        let time = |t: rustix::fs::StatxTimestamp| format!("{}.{:09}", t.tv_sec, t.tv_nsec);
        let told = format!(
            "ino {} mode {:o} nlink {} uid {} gid {} size {} mtime {} ctime {}",
            s.stx_ino,
            s.stx_mode,
            s.stx_nlink,
            s.stx_uid,
            s.stx_gid,
            s.stx_size,
            time(s.stx_mtime),
            time(s.stx_ctime)
        );
        Some((told, s.stx_blocks))
    }
}

/// The whole check of one case: each step, the lowers, the workdir, a remount.
pub fn check(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    let mut sequence = Sequence { steered, ..Sequence::strict(spec.merge()) };
    let mount = Stack::mount;
    check_steps(spec, operations, &mut sequence, mount)
        .map_err(|text| Failure { text, performed: sequence.performed })
}

fn check_with_passthrough(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    let mut sequence = Sequence { steered, ..Sequence::strict(spec.merge()) };
    check_steps(spec, operations, &mut sequence, |stack| stack.mount_with(&["passthrough"]))
        .map_err(|text| Failure { text, performed: sequence.performed })
}

fn check_steps(
    spec: &StackSpec,
    operations: &[Op],
    sequence: &mut Sequence,
    mount: impl FnOnce(&Stack) -> Mount,
) -> Result<(), String> {
    let stack = build(spec);
    let before = stack.lower_snapshots();
    let mount = mount(&stack);
    sequence.compare(&observe(mount.path(), &ALPHABET)).map_err(|text| format!("as mounted:\n{text}"))?;
    let mut executor = Executor::new(mount.path());
    let known = RefCell::new(Known::new(mount.path()));
    sequence.run(
        operations,
        |op| {
            known.borrow_mut().look();
            let outcome = executor.run(op);
            known.borrow().compare(&format!("{op:?}"));
            outcome
        },
        || observe(mount.path(), &ALPHABET),
    )?;
    executor.close_all();
    sequence.close_all();
    mount.unmount();

    stack.assert_lowers_unchanged(&before);
    stack.assert_workdir_clean();
    let mount = stack.mount();
    sequence
        .compare(&observe(mount.path(), &ALPHABET))
        .map_err(|text| format!("after a remount:\n{text}"))?;
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
    Ok(())
}

/// What the program under test is bound to read and write.
pub fn vocabulary() -> Vocabulary {
    use support::{OpaqueForm as O, WhiteoutForm as W};
    let privilege = Privilege::current();
    let full = Vocabulary::full(privilege == Privilege::Root);
    // Root of a namespace has one user only.
    match Program::under_test() {
        Program::Unionmount(_) => full,
        Program::FuseOverlayfs(_) => Vocabulary {
            whiteouts: vec![W::Device, W::Aufs],
            opaques: full.opaques.into_iter().filter(|form| *form != O::User).collect(),
            ..full
        },
        Program::Kernel => crate::oracle::kernel_vocabulary(),
    }
}

#[test]
fn a_mount_behaves_as_the_model() {
    run_cases(100, 2, &case(&vocabulary()), &check);
}

#[test]
fn a_mount_with_passthrough_behaves_as_the_model() {
    support::needs_root!();
    if !Program::under_test().is_unionmount() {
        support::skip!("others have no such option");
    }
    run_cases(60, 6, &case(&vocabulary()), &check_with_passthrough);
}

#[test]
fn a_mount_behaves_as_the_model_without_open_files() {
    let vocabulary = Vocabulary { open_files: false, operations: 60, ..vocabulary() };
    run_cases(60, 3, &case(&vocabulary), &check);
}

/// Every stack, as it is first shown: many stacks, no operation.
#[test]
fn random_stacks_are_merged_as_in_the_model() {
    let vocabulary = Vocabulary { lowers: 6, ..vocabulary() };
    let stacks = support::model::generate::stack(&vocabulary).prop_map(|spec| (spec, Vec::new()));
    run_cases(100, 4, &stacks, &check);
}
