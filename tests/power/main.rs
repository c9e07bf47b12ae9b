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
//! | `POWER_SEED` | the first seed |
//! | `POWER_PEER` | `kernel` for the kernel's overlayfs, `bare` for the filesystem alone: what do they promise? |
//! | `POWER_COUNT` | count what is broken and go on, in place of failing at the first |

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

mod disk;
mod promise;
mod rig;
mod workload;

use rig::{Budget, Rig, filesystems};

/// Runs on each filesystem, and fails with what was broken.
fn on_each(run: impl Fn(&Rig) -> Vec<String>) {
    support::needs_root!();
    let mut broken = Vec::new();
    for filesystem in filesystems() {
        broken.extend(run(&Rig::new(filesystem)));
    }
    assert!(broken.is_empty(), "{} broken:\n\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn random_sequences() {
    let budget = Budget::from_environment();
    on_each(|rig| {
        let seeds = budget.seed..budget.seed + budget.seeds;
        let sequences: Vec<_> =
            seeds.map(|seed| (format!("seed {seed}"), workload::random(seed, budget.length))).collect();
        rig.run(&sequences, true, budget.points)
    });
}

#[test]
fn single_operations() {
    let budget = Budget::from_environment();
    small_sequences(1, "single", budget.singles, budget.seed);
}

#[test]
fn pairs_of_operations() {
    let budget = Budget::from_environment();
    small_sequences(2, "pair", budget.pairs, budget.seed);
}

/// Runs `count` of the exhaustive sequences of `length` operations, or all.
fn small_sequences(length: u32, name: &str, count: Option<usize>, seed: u64) {
    on_each(|rig| {
        let all = workload::small_count(length);
        let mut random = fastrand::Rng::with_seed(seed);
        let numbers: Vec<usize> = match count {
            None => (0..all).collect(),
            Some(count) => (0..count).map(|_| random.usize(..all)).collect(),
        };
        let mut broken = Vec::new();
        for some in numbers.chunks(200) {
            let sequences: Vec<_> = some
                .iter()
                .map(|number| (format!("{name} {number}"), workload::small(length, *number)))
                .collect();
            broken.extend(rig.run(&sequences, false, 0));
        }
        broken
    });
}
