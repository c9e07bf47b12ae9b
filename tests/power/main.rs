//! Power failures: what was fsynced is there, at every point where the power can go.
//!
//! The upper lies on a disk that records what is written to it and flushed ([`disk`]). Sequences of operations are done
//! on a mount ([`workload`]); then, for many points of the record, the disk is made as it may be after a failure there,
//! mounted, and what the union shows is held against what was promised ([`promise`]).
//!
//! `scripts/power-failure` runs it at length. Its settings, all optional:
//!
//! | variable | meaning |
//! |---|---|
//! | `POWER_FILESYSTEMS` | `ext4 xfs btrfs`, or some of them |
//! | `POWER_SEEDS` | how many random sequences a filesystem |
//! | `POWER_LENGTH` | of how many operations each |
//! | `POWER_POINTS` | how many failures a random sequence |
//! | `POWER_SINGLES` | how many of the sequences of one operation; `all` for all |
//! | `POWER_PAIRS` | how many of the sequences of two operations; `all` for all |
//! | `POWER_TRIPLES` | how many of the sequences of three operations |
//! | `POWER_TALES` | how many failures in each verb of the image store and each call of the snapshotter |
//! | `POWER_SEED` | the first seed |
//! | `POWER_PEER` | `kernel` for the kernel's overlayfs, `bare` for the filesystem alone: what do they promise? |
//! | `POWER_ONLY` | the numbers of the short sequences that are run, in place of those that chance gives |
//! | `POWER_OPTIONS` | further options of the mounts, such as `metacopy=on` |
//! | `POWER_SHARD` | `2/3`: of the sequences each third one, from the second on; for processes side by side |
//! | `POWER_KEEP` | a directory for the images of disks on which something was broken |
//! | `POWER_COUNT` | count what is broken and go on, in place of failing at the first |

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

mod applying;
mod by_itself;
mod disk;
mod frozen;
mod images;
mod promise;
mod record;
mod recorder;
mod rig;
#[cfg(feature = "snapshotter")]
mod snapshots;
mod tales;
mod worker;
mod workload;

use std::sync::LazyLock;

use rig::{Budget, End, Plan, Rig, filesystems};
use worker::Worker;
use workload::{Persist, Sequence};

/// Set in the process that [`in_own_mounts`] starts.
const OWN_MOUNTS: &str = "UNIONMOUNT_TEST_OWN_MOUNTS";

/// Whether this process has mounts of its own. If not, a process that has runs the test: whoever copies a process's mounts
/// meanwhile, as each start of a container does, keeps them, and with them what writes to the disks that are looked at.
fn in_own_mounts(test: &str) -> bool {
    if std::env::var_os(OWN_MOUNTS).is_some() {
        return true;
    }
    let status = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(OWN_MOUNTS, "1")
        .status();
    assert!(status.unwrap().success(), "see above");
    false
}

/// Runs on each filesystem, and fails with what was broken.
fn on_each(test: &str, run: impl Fn(&Rig) -> Vec<String>) {
    on_each_with(test, Worker::from_environment(), run);
}

fn on_each_with(test: &str, worker: Worker, run: impl Fn(&Rig) -> Vec<String>) {
    support::needs_root!();
    if !in_own_mounts(test) {
        return;
    }
    let mut broken = Vec::new();
    for filesystem in filesystems() {
        let rig = Rig::new(filesystem, worker);
        broken.extend(run(&rig));
        rig.sum_up();
    }
    assert!(broken.is_empty(), "{} broken:\n\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn random_sequences() {
    let budget = Budget::from_environment();
    on_each("random_sequences", |rig| {
        let mut broken = Vec::new();
        for seed in of_shard(budget.seed..budget.seed + budget.seeds) {
            let sequence = (format!("seed {seed}"), workload::random(seed, budget.length));
            let plan = Plan { steer: true, points: budget.points, ..plain(End::Nothing) };
            broken.extend(rig.run(&[sequence], &plan));
        }
        broken
    });
}

/// The bar: what is asked of the program the filesystems hold by themselves, in sequences of every operation.
#[test]
fn a_bare_filesystem_keeps_what_is_asked_of_the_program() {
    let name = "a_bare_filesystem_keeps_what_is_asked_of_the_program";
    on_each_with(name, Worker::Bare, |rig| {
        let sequences = [("seed 1".to_owned(), workload::random(1, 100))];
        rig.run(&sequences, &Plan { steer: true, points: 20, ..plain(End::Nothing) })
    });
}

/// The kernel's overlayfs does all that is asked of it, and is looked at; it promises less.
#[test]
fn the_kernels_overlayfs_runs_through() {
    on_each_with("the_kernels_overlayfs_runs_through", Worker::Kernel, |rig| {
        let sequences = [("seed 1".to_owned(), workload::random(1, 100))];
        let mut broken = rig.run(&sequences, &Plan { steer: true, points: 5, ..plain(End::Nothing) });
        // Promises that it doesn't make are told as states or bytes that were.
        broken
            .retain(|broken| !broken.contains("the nearest of the states") && !broken.contains(", and was"));
        broken
    });
}

#[test]
fn single_operations() {
    let budget = Budget::from_environment();
    small_sequences("single_operations", (1, "single"), budget.singles, budget.seed);
}

#[test]
fn pairs_of_operations() {
    let budget = Budget::from_environment();
    small_sequences("pairs_of_operations", (2, "pair"), budget.pairs, budget.seed);
}

#[test]
fn triples_of_operations() {
    let budget = Budget::from_environment();
    small_sequences("triples_of_operations", (3, "triple"), budget.triples, budget.seed);
}

#[test]
fn large_copy_ups() {
    on_each("large_copy_ups", |rig| rig.run(&named("large", workload::large()), &plain(End::Nothing)));
}

/// Files whose data stay below until they are written to, and of which then blocks are copied (on ext4 and XFS): no block is the copy's
/// whose data never came, and none is the lower's where a synced write was.
#[test]
fn half_copied_files() {
    on_each("half_copied_files", |rig| {
        let mut broken = Vec::new();
        for end in [End::Nothing, End::Sync, End::Unmount] {
            let plan = Plan { options: &["lazy=keep"], ..plain(end) };
            broken.extend(rig.run(&named("half", workload::in_blocks()), &plan));
        }
        broken
    });
}

/// Replayed, btrfs's log took a directory's old name away and did not bring the whiteout that hides what the lower has
/// there; in this sequence, at many failures about its middle.
#[test]
fn what_was_deleted_stays_deleted() {
    on_each("what_was_deleted_stays_deleted", |rig| {
        if !rig.is_on("btrfs") {
            return Vec::new();
        }
        let sequences = [("seed 1".to_owned(), workload::random(1, 250))];
        rig.run(&sequences, &Plan { steer: true, points: 30, ..plain(End::Nothing) })
    });
}

#[test]
fn an_unmount_makes_all_durable() {
    on_each("an_unmount_makes_all_durable", |rig| {
        let mut sequences = workload::unsynced();
        sequences.extend(workload::mapped());
        rig.run(&named("unsynced", sequences), &plain(End::Unmount))
    });
}

/// What the kernel brought to the device of its own accord is in its cache still.
#[test]
fn what_was_written_by_itself_is_made_durable_too() {
    on_each("what_was_written_by_itself_is_made_durable_too", |rig| rig.tell(by_itself::tale, 1));
}

#[test]
fn sync_makes_all_durable() {
    on_each("sync_makes_all_durable", |rig| {
        let mut sequences = workload::unsynced();
        sequences.extend(workload::mapped());
        rig.run(&named("unsynced", sequences), &plain(End::Sync))
    });
}

#[test]
fn the_image_store() {
    let points = Budget::from_environment().tales;
    on_each("the_image_store", |rig| rig.tell(images::tale, points));
}

#[test]
fn changes_that_are_applied() {
    let points = Budget::from_environment().tales;
    on_each("changes_that_are_applied", |rig| rig.tell(|_| applying::tale(), points));
}

#[test]
fn snapshots_of_uppers() {
    let points = Budget::from_environment().tales;
    on_each("snapshots_of_uppers", |rig| rig.tell(|_| frozen::tale(), points));
}

#[cfg(feature = "snapshotter")]
#[test]
fn the_snapshotter() {
    let points = Budget::from_environment().tales;
    on_each("the_snapshotter", |rig| rig.tell(|_| snapshots::tale(), points));
}

#[test]
fn a_daemon_that_does_not_sync_is_found_out() {
    support::needs_program!("strace");
    on_each("a_daemon_that_does_not_sync_is_found_out", |rig| {
        let cases = [
            ("fsync", End::Nothing, workload::followed_by(&[Persist::Fsync])),
            ("fdatasync", End::Nothing, workload::followed_by(&[Persist::Fsync, Persist::Fdatasync])),
            ("syncfs", End::Unmount, workload::unsynced()),
        ];
        let unseen = cases.into_iter().filter(|(call, end, sequences)| {
            let plan = Plan { lost: Some(call), ..plain(*end) };
            let is_seen = || !rig.run(&named("lost", sequences.clone()), &plan).is_empty();
            // Whoever calls sync(2), anywhere on the machine, does what the call should have done. So does a kernel that is told to
            // write at once (vm.dirty_writeback_centisecs, 500 by default), and each time.
            !(0..5).any(|_| is_seen())
        });
        unseen.map(|(call, ..)| format!("{call} did nothing, and nobody saw it")).collect()
    });
}

/// What is run as it is, and looked at where promises are made.
fn plain(end: End) -> Plan {
    static OPTIONS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
        let told = std::env::var("POWER_OPTIONS").unwrap_or_default();
        told.leak().split(',').filter(|option| !option.is_empty()).collect()
    });
    Plan { steer: false, points: 0, last_only: false, end, lost: None, options: &OPTIONS }
}

fn named(name: &str, sequences: Vec<Sequence>) -> Vec<(String, Sequence)> {
    sequences.into_iter().enumerate().map(|(number, one)| (format!("{name} {number}"), one)).collect()
}

/// Those that this process is to run, by `POWER_SHARD`.
fn of_shard<T>(all: impl Iterator<Item = T>) -> Vec<T> {
    let shard = std::env::var("POWER_SHARD").unwrap_or_else(|_| "1/1".to_owned());
    let numbers = shard.split_once('/').map(|(one, of)| (one.parse::<usize>(), of.parse::<usize>()));
    match numbers {
        Some((Ok(one), Ok(of))) if (1..=of).contains(&one) => all.skip(one - 1).step_by(of).collect(),
        _ => panic!("POWER_SHARD={shard}: as 2/3, the second of three"),
    }
}

/// Runs `count` of the exhaustive sequences of `length` operations, or all.
fn small_sequences(test: &str, (length, name): (u32, &str), count: Option<usize>, seed: u64) {
    on_each(test, |rig| {
        let all = workload::small_count(length);
        let mut random = fastrand::Rng::with_seed(seed);
        let only = std::env::var("POWER_ONLY").ok();
        let only = only.map(|only| only.split_whitespace().map(|number| number.parse().unwrap()).collect());
        let numbers: Vec<usize> = match count {
            _ if only.is_some() => only.unwrap_or_default(),
            None => (0..all).collect(),
            Some(count) => (0..count).map(|_| random.usize(..all)).collect(),
        };
        let numbers = of_shard(numbers.into_iter());
        let mut broken = Vec::new();
        // More sequences a disk would make more of it to compare at each look, and fewer more disks.
        for some in numbers.chunks(50) {
            let sequences: Vec<_> = some
                .iter()
                .map(|number| (format!("{name} {number}"), workload::small(length, *number)))
                .collect();
            broken.extend(rig.run(&sequences, &Plan { last_only: length > 1, ..plain(End::Nothing) }));
        }
        broken
    });
}
