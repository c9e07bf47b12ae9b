//! The kernel's overlayfs as oracle: the same stacks and sequences, over copies of the same layers.
//!
//! The program under test and the kernel's overlayfs are both compared with the model: the first strictly, in
//! [`crate::mounted`], the second here, with the differences of [`KERNEL_DIFFERENCES`]. What is not in that table, the
//! two have in common.

use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;

use crate::mounted::build;
use support::model::check::Sequence;
use support::model::execute::{Executor, assert_absent};
use support::model::generate::{ALPHABET, Vocabulary, case};
use support::model::harness::{Failure, run_cases};
use support::model::layer::{LayerNode, StackSpec};
use support::model::op::{Op, Outcome};
use support::model::peers::{is_of_open_and_unlinked, prune_idle_whiteouts};
use support::{Fields, Mount, OpaqueForm, Privilege, Program, Snapshot, Stack, WhiteoutForm, list};

/// What the kernel's overlayfs writes and reads, by the privilege of who mounts it.
pub fn kernel_vocabulary() -> Vocabulary {
    let privileged = Privilege::current() == Privilege::Root;
    let opaque = if privileged { OpaqueForm::Trusted } else { OpaqueForm::User };
    Vocabulary {
        whiteouts: vec![WhiteoutForm::Device],
        opaques: vec![opaque],
        ..Vocabulary::full(privileged)
    }
}

/// Mount options under which the kernel comes nearest to a POSIX filesystem.
fn kernel_options() -> &'static [&'static str] {
    &["redirect_dir=on,index=on,xino=on"]
}

fn mount_kernel(stack: &Stack) -> Mount {
    stack.mount_kernel(kernel_options())
}

/// One way in which the kernel's overlayfs is not a POSIX filesystem, or not the merged view of the layers' rules.
pub struct Difference {
    /// What the kernel does.
    pub what: &'static str,
    /// Why the program under test does otherwise.
    pub why: &'static str,
    /// How the comparison allows for it.
    pub allowed: Allowance,
    /// Whether a stack, as that mounts it, shows it.
    pub is_shown: fn(Mounter) -> bool,
}

/// What mounts a stack.
type Mounter<'a> = &'a dyn Fn(&Stack) -> Mount;

/// How a [`Difference`] is allowed for.
pub enum Allowance {
    /// Cases that show it are not generated.
    NotGenerated,
    /// A field of the tree is not compared.
    NotCompared,
    /// This outcome is taken for the expected one: (operation, expected, found).
    Outcome(fn(&Op, &Outcome, &Outcome) -> bool),
}

/// All known differences between the kernel's overlayfs (Linux 6.18, [`kernel_options`]) and the model.
pub const KERNEL_DIFFERENCES: &[Difference] = &[
    Difference {
        what: "a directory that only one layer has is listed as it is: whiteouts in it are listed, and don't resolve",
        why: "a name is listed exactly when it resolves",
        allowed: Allowance::NotGenerated,
        is_shown: lists_idle_whiteouts,
    },
    Difference {
        what: "a merged directory whose upper was not made by the kernel is listed with an inode number (d_ino) that is not the one of stat",
        why: "d_ino and st_ino are one number",
        allowed: Allowance::NotCompared,
        is_shown: lists_another_number,
    },
    Difference {
        what: "a rename onto a directory that the upper alone has changes its parent's modification time, when it fails with ENOTEMPTY",
        why: "POSIX: what fails changes nothing",
        allowed: Allowance::NotCompared,
        is_shown: changes_the_time_of_a_parent,
    },
    Difference {
        what: "fchmod of a file that was opened in a lower and is unlinked by now fails with EEXIST (index=on), and fstat counts the lower's link",
        why: "an open file stays a file",
        allowed: Allowance::Outcome(is_of_open_and_unlinked),
        is_shown: loses_what_is_open_and_unlinked,
    },
];

fn lists_idle_whiteouts(mount: Mounter) -> bool {
    let stack = Stack::new(2);
    stack.lower(0).whiteout("d/gone", WhiteoutForm::Device);
    let mount = mount(&stack);
    let listed = list(&mount.join("d")).unwrap();
    listed.iter().any(|entry| entry.name == "gone" && !mount.join("d/gone").exists())
}

fn lists_another_number(mount: Mounter) -> bool {
    let stack = Stack::new(1);
    stack.lower(0).dir("d");
    stack.upper().dir("d");
    let mount = mount(&stack);
    let listed = list(mount.path()).unwrap().into_iter().find(|entry| entry.name == "d").unwrap();
    listed.ino != mount.join("d").metadata().unwrap().ino()
}

fn changes_the_time_of_a_parent(mount: Mounter) -> bool {
    let stack = Stack::new(1);
    stack.lower(0).dir("a").mtime("", 1_000_000_000, 0);
    stack.upper().dir("c/full").mtime("", 1_000_000_000, 0);
    let mount = mount(&stack);
    let failed = std::fs::rename(mount.join("a"), mount.join("c")).unwrap_err();
    assert_eq!(Errno::from_io_error(&failed), Some(Errno::NOTEMPTY));
    mount.path().metadata().unwrap().mtime() != 1_000_000_000
}

fn loses_what_is_open_and_unlinked(mount: Mounter) -> bool {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x");
    let mount = mount(&stack);
    let file = std::fs::File::open(mount.join("f")).unwrap();
    std::fs::remove_file(mount.join("f")).unwrap();
    rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR) == Err(Errno::EXIST)
}

/// The table can be read without the source: `cargo test --test reference -- --nocapture differences`.
#[test]
fn the_kernel_shows_the_differences_of_the_table_and_the_program_does_not() {
    support::needs_root!();
    if Program::under_test() == Program::Kernel {
        support::skip!("the kernel is not compared with itself");
    }
    for Difference { what, why, is_shown, .. } in KERNEL_DIFFERENCES {
        println!("- the kernel: {what}\n  here: {why}");
        assert!(is_shown(&mount_kernel), "the kernel does not: {what}");
        assert!(!is_shown(&Stack::mount), "here too: {what}");
    }
}

fn tolerated(op: &Op, expected: &Outcome, found: &Outcome) -> bool {
    KERNEL_DIFFERENCES.iter().any(|difference| match difference.allowed {
        Allowance::Outcome(allows) => allows(op, expected, found),
        Allowance::NotGenerated | Allowance::NotCompared => false,
    })
}

/// As the program under test is observed, but for d_ino.
fn observe_kernel(mount: &Mount) -> Snapshot {
    let snapshot = Snapshot::take(mount.path());
    assert_absent(mount.path(), &ALPHABET, &snapshot);
    snapshot
}

fn fields() -> Fields {
    Fields { directory_mtime: false, ..Fields::tree() }
}

#[test]
fn the_kernel_behaves_as_the_model() {
    support::needs_root!();
    run_cases(60, 5, &case(&kernel_vocabulary()), &|spec, operations, steered| {
        let mut spec = spec.clone();
        prune_idle_whiteouts(&mut spec);
        let start = Sequence::strict(spec.merge());
        let mut sequence = Sequence { fields: fields(), tolerate: &tolerated, steered, ..start };
        check_kernel(&spec, operations, &mut sequence)
            .map_err(|text| Failure { text, performed: sequence.performed })
    });
}

fn check_kernel(spec: &StackSpec, operations: &[Op], sequence: &mut Sequence) -> Result<(), String> {
    let stack = build(spec);
    let mount = mount_kernel(&stack);
    sequence.compare(&observe_kernel(&mount)).map_err(|text| format!("as mounted:\n{text}"))?;
    let mut executor = Executor::new(mount.path());
    sequence.run(operations, |op| executor.run(op), || observe_kernel(&mount))
}

/// Makes every name of a lower's hardlinked file a file of its own.
fn separate_links(spec: &mut StackSpec) {
    fn separate(node: &mut LayerNode) {
        match node {
            LayerNode::Directory { children, .. } => children.values_mut().for_each(separate),
            LayerNode::File { link, .. } => *link = None,
            _ => {}
        }
    }
    separate(&mut spec.upper);
    spec.lowers.iter_mut().for_each(separate);
}

/// What one writes the other reads: a sequence goes on under the kernel where the program under test left off, and
/// back again.
#[test]
fn the_kernel_and_the_program_take_turns() {
    support::needs_root!();
    let vocabulary = Vocabulary { open_files: false, ..kernel_vocabulary() };
    run_cases(60, 6, &case(&vocabulary), &|spec, operations, steered| {
        let mut spec = spec.clone();
        prune_idle_whiteouts(&mut spec);
        // Mounted as here, the kernel has no hardlink index: of a lower's file that was copied up under one name it
        // shows the other names as the lower has them.
        separate_links(&mut spec);
        let start = Sequence::strict(spec.merge());
        // The inode numbers of one are not those of the other, and each keeps its own account of the names that a
        // file of a lower has lost.
        let fields = Fields { nlink: false, ..fields() };
        let mut sequence = Sequence { fields, tolerate: &tolerated, identities: None, steered, ..start };
        check_turns(&spec, operations, &mut sequence)
            .map_err(|text| Failure { text, performed: sequence.performed })
    });
}

fn check_turns(spec: &StackSpec, operations: &[Op], sequence: &mut Sequence) -> Result<(), String> {
    let stack = build(spec);
    let before = stack.lower_snapshots();
    let turns = operations.chunks(operations.len().div_ceil(3).max(1)).chain([&[][..]]);
    for (turn, operations) in turns.enumerate() {
        let mount = if turn % 2 == 0 { stack.mount() } else { mount_kernel(&stack) };
        let name = if turn % 2 == 0 { "the program" } else { "the kernel" };
        let said = |text: String| format!("turn {turn}, {name}: {text}");
        sequence.compare(&observe_kernel(&mount)).map_err(|text| said(format!("as mounted:\n{text}")))?;
        let mut executor = Executor::new(mount.path());
        sequence.run(operations, |op| executor.run(op), || observe_kernel(&mount)).map_err(said)?;
        mount.unmount();
        stack.assert_lowers_unchanged(&before);
    }
    Ok(())
}
