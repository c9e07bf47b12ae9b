//! A daemon that is killed in the middle of random operations, and what the next mount shows.

use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::execute::Executor;
use super::layer::StackSpec;
use super::op::{Op, Outcome, Path};
use crate::{Content, Fields, Snapshot, Stack, diff};

/// A process that is killed has no say in what its kernel shows next: these are what callers get of it.
pub fn is_death(outcome: &Outcome) -> bool {
    let Outcome::Failed(errno) = outcome else { return false };
    [Errno::NOTCONN, Errno::CONNABORTED, Errno::CONNRESET, Errno::IO, Errno::NODEV].contains(errno)
}

/// What may be half-done when the daemon dies in the middle of an operation: the content of a file that was being
/// written, never its name or its attributes.
fn written_path(op: &Op) -> Option<&Path> {
    match op {
        Op::Write { path, .. }
        | Op::Truncate { path, .. }
        | Op::Fallocate { path, .. }
        | Op::CopyRange { to: path, .. } => Some(path),
        _ => None,
    }
}

/// Times are not part of the promise: the kernel may hold the last one back in its cache.
fn fields() -> Fields {
    Fields { mtime: false, directory_mtime: false, ..Fields::tree() }
}

/// Runs operations until the daemon is killed after `delay`, then mounts again and compares with the states before and
/// after the operation that was under way. True if the daemon died during an operation. `stack` is still empty, and what
/// `skipped` names isn't done.
pub fn kill_during(
    stack: &Stack,
    spec: &StackSpec,
    operations: &[Op],
    skipped: impl Fn(&Op) -> bool,
    delay: Duration,
) -> bool {
    spec.upper.write(stack.upper());
    for (node, layer) in spec.lowers.iter().zip(stack.lowers()) {
        node.write(layer);
    }
    let before = stack.lower_snapshots();
    // Written through: what an open file holds back in the kernel's cache is lost with the daemon unless it was synced,
    // as with a filesystem whose machine loses power, and the model knows of no such state.
    let mount = stack.mount_with(&["writeback=0"]);
    let pid = Pid::from_raw(mount.daemon() as i32).unwrap();
    let mut executor = Executor::new(mount.path());
    let mut model = spec.merge();
    let mut states = vec![model.snapshot()];
    let mut under_way = None;
    let killer = std::thread::spawn(move || {
        // Not waiting for a condition: the instant is to be any.
        std::thread::sleep(delay);
        kill_process(pid, Signal::KILL).unwrap();
    });
    for op in operations.iter().cycle().take(2000) {
        let op = model.steer(op);
        if skipped(&op) {
            continue;
        }
        let old = model.clone();
        let expected = model.apply(&op);
        if expected == Outcome::Skipped {
            continue;
        }
        let found = executor.run(&op);
        if is_death(&found) {
            states = vec![old.snapshot(), model.snapshot()];
            under_way = Some(op);
            break;
        }
        assert_eq!(found, expected, "{op:?}");
        states = vec![model.snapshot()];
    }
    killer.join().unwrap();
    executor.close_all();
    assert!(crate::wait_for_exit(pid.as_raw_nonzero().get() as u32, crate::PATIENCE));
    mount.kill_dead();

    let mount = stack.mount();
    let mut found = Snapshot::take_checked(mount.path());
    if let Some(path) = under_way.as_ref().and_then(written_path)
        && let Some(ino) = found.entries.get(path.to_path_buf().as_os_str()).map(|entry| entry.ino)
    {
        // By all of its names.
        for entry in found.entries.values_mut().filter(|entry| entry.ino == ino) {
            entry.content = Content::Any;
        }
    }
    let differences: Vec<_> = states.iter().map(|state| diff(state, &found, &fields())).collect();
    assert!(
        differences.iter().any(String::is_empty),
        "killed during {under_way:?}: neither the old state:\n{}nor the new one:\n{}\nstack: {spec:#?}",
        differences[0],
        differences.last().unwrap(),
    );
    mount.unmount();
    stack.assert_workdir_clean();
    stack.assert_lowers_unchanged(&before);
    under_way.is_some()
}
