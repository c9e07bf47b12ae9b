//! Pairing: who is served by the CPU-affine worker, and who isn't.

use std::fs;
use std::path::Path;
use std::sync::Barrier;

use crate::Counted;
use crate::needs_counters;
use support::{Stack, wait_until};

/// Of /proc/PID/task/TID/stat, the policy (proc_pid_stat(5), field 41).
const SCHED_IDLE: &str = "5";

/// How many of the daemon's threads have which policy.
fn idle_threads(daemon: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
    let stats = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats
        .filter(|stat| stat.rsplit_once(')').unwrap().1.split_whitespace().nth(41 - 3) == Some(SCHED_IDLE))
        .count()
}

fn look_for(dir: &Path, prefix: &str, times: u32) {
    for n in 0..times {
        assert!(fs::symlink_metadata(dir.join(format!("{prefix}-{n}"))).is_err());
    }
}

fn has_pairing() -> bool {
    let several = std::thread::available_parallelism().unwrap().get() > 1;
    let counted = fs::metadata("/proc/thread-self/schedstat").is_ok();
    if !several || !counted {
        support::skipped(if several { "no pairing: no schedstat" } else { "no pairing: one processor" });
    }
    several && counted
}

#[test]
fn a_program_that_asks_alone_is_served_by_the_affine_worker() {
    needs_counters!();
    if !has_pairing() {
        return;
    }
    let stack = Stack::new(1);
    let counted = Counted::new(&stack, &[]);
    // There is no pair while others want the processors, as the tests beside this one do, and for a while after that.
    let mut batch = 0;
    let paired = || {
        batch += 1;
        look_for(counted.mount.path(), &format!("missing-{batch}"), 1000);
        counted.paired() > 500
    };
    assert!(wait_until(support::PATIENCE, paired), "never a pair");
    assert!(idle_threads(counted.mount.daemon()) <= 1);
}

#[test]
fn programs_that_ask_in_turn_are_not() {
    needs_counters!();
    if !has_pairing() {
        return;
    }
    let stack = Stack::new(1);
    let counted = Counted::new(&stack, &[]);
    let (root, barrier) = (counted.mount.path(), &Barrier::new(2));
    std::thread::scope(|scope| {
        for client in 0..2 {
            scope.spawn(move || {
                for n in 0..500 {
                    barrier.wait();
                    look_for(root, &format!("{client}-{n}"), 1);
                }
            });
        }
    });
    let paired = counted.paired();
    assert!(paired < 50, "{paired} of 1000 requests by a CPU-affine worker");
}

#[test]
fn without_the_option_there_are_none() {
    needs_counters!();
    for option in ["pairing=0", "max_threads=1"] {
        let stack = Stack::new(1);
        let counted = Counted::new(&stack, &[option]);
        assert_eq!(idle_threads(counted.mount.daemon()), 0);
        look_for(counted.mount.path(), "missing", 200);
        assert_eq!(counted.paired(), 0);
    }
}
