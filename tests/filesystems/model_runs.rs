//! Random operations on an upper of each kind, compared with the reference model, also after a remount.

use std::time::Duration;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::below::{Below, Kind};
use crate::needs;
use support::model::execute::Executor;
use support::model::generate::{Vocabulary, case};
use support::model::kills::kill_during;
use support::model::layer::StackSpec;
use support::model::op::{Op, Outcome, Rename};
use support::{Fields, Scratch, Snapshot, Stack, diff};

fn run(kind: Kind, spec: &StackSpec, operations: &[Op]) {
    let scratch = Scratch::new();
    let below = Below::new(&scratch, kind);
    let stack = Stack::new(spec.lowers.len()).with_upper_in(below.path());
    spec.upper.write(stack.upper());
    for (node, layer) in spec.lowers.iter().zip(stack.lowers()) {
        node.write(layer);
    }
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    let mut executor = Executor::new(mount.path());
    let mut model = spec.merge();
    for op in operations {
        let op = model.steer(op);
        if is_missing(&op) {
            continue;
        }
        let expected = model.apply(&op);
        if expected == Outcome::Skipped {
            continue;
        }
        assert_eq!(executor.run(&op), expected, "{kind:?}: {op:?}\n{spec:#?}\n{operations:#?}");
    }
    executor.close_all();
    let fields = Fields { mtime: false, directory_mtime: false, ..Fields::tree() };
    let same = |found: &Snapshot, when: &str| {
        let differences = diff(&model.snapshot(), found, &fields);
        assert!(differences.is_empty(), "{kind:?}, {when}:\n{differences}\n{spec:#?}\n{operations:#?}");
    };
    same(&Snapshot::take_checked(mount.path()), "in the mount");
    mount.unmount();
    let mount = stack.mount();
    same(&Snapshot::take_checked(mount.path()), "after a remount");
    mount.unmount();
    stack.assert_workdir_clean();
    stack.assert_lowers_unchanged(&before);
}

fn runs(kind: Kind) {
    support::needs_unionmount!();
    let vocabulary = Vocabulary { open_files: false, operations: 60, ..Vocabulary::full(true) };
    let strategy = case(&vocabulary);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[11; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let cases: u32 = std::env::var("UNIONMOUNT_CASES").ok().map_or(8, |text| text.parse().unwrap());
    for _ in 0..cases {
        let (spec, operations) = strategy.new_tree(&mut runner).unwrap().current();
        run(kind, &spec, &operations);
    }
}

/// What some of these filesystems have none of.
fn is_missing(op: &Op) -> bool {
    matches!(op, Op::Rename { how: Rename::Exchange, .. } | Op::Fallocate { .. })
}

/// The daemon dies at any instant: without the flags of renameat2 too the next mount shows the old state or the new one.
fn is_killed(kind: Kind) {
    support::needs_unionmount!();
    let vocabulary = Vocabulary { open_files: false, operations: 120, ..Vocabulary::full(true) };
    let strategy = case(&vocabulary);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[13; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let cases: u32 = std::env::var("UNIONMOUNT_CASES").ok().map_or(12, |text| text.parse().unwrap());
    let mut hits = 0;
    for number in 0..cases {
        let (spec, operations) = strategy.new_tree(&mut runner).unwrap().current();
        let scratch = Scratch::new();
        let below = Below::new(&scratch, kind);
        let stack = Stack::new(spec.lowers.len()).with_upper_in(below.path());
        let delay = Duration::from_micros(u64::from(number) * 2963 % 60_000);
        hits += usize::from(kill_during(&stack, &spec, &operations, is_missing, delay));
    }
    eprintln!("{hits} of {cases} daemons died in the middle of an operation");
    assert!(hits > 0, "no daemon died in the middle of an operation: the test tests nothing");
}

#[test]
fn a_kill_above_bindfs() {
    needs!(Kind::Bindfs);
    is_killed(Kind::Bindfs);
}

#[test]
fn a_kill_above_fuse2fs() {
    needs!(Kind::Fuse2fs);
    is_killed(Kind::Fuse2fs);
}

#[test]
fn btrfs() {
    needs!(Kind::Btrfs);
    runs(Kind::Btrfs);
}

#[test]
fn xfs() {
    needs!(Kind::Xfs);
    runs(Kind::Xfs);
}

#[test]
fn tmpfs() {
    needs!(Kind::Tmpfs);
    runs(Kind::Tmpfs);
}

#[test]
fn bindfs() {
    needs!(Kind::Bindfs);
    runs(Kind::Bindfs);
}

#[test]
fn fuse2fs() {
    needs!(Kind::Fuse2fs);
    runs(Kind::Fuse2fs);
}
