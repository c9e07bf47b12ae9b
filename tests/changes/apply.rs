//! `apply`: the directory becomes what the union showed, whatever was done in it and however often it was interrupted.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use support::model::check::Sequence;
use support::model::execute::{Executor, observe};
use support::model::generate::{ALPHABET, Vocabulary, case};
use support::model::harness::{Failure, run_cases};
use support::model::layer::StackSpec;
use support::model::op::Op;
use support::model::peers::flat;
use support::{Fields, Privilege, Program, Snapshot, Stack, built, diff, is_installed, skipped};

/// Two trees that a program can't tell apart but by inode numbers. The root's attributes are not applied.
fn same(shown: &Snapshot, found: &Snapshot) -> Result<(), String> {
    let (mut shown, mut found) = (shown.clone(), found.clone());
    for snapshot in [&mut shown, &mut found] {
        snapshot.entries.remove(std::ffi::OsStr::new(""));
    }
    match diff(&shown, &found, &Fields { directory_mtime: true, ..Fields::tree() }) {
        text if text.is_empty() => Ok(()),
        text => Err(text),
    }
}

/// Does the operations in a mount of one lower, and gives what `apply` has to make of the lower.
fn done(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(Stack, Snapshot), Failure> {
    let spec = flat(spec);
    let mut sequence = Sequence { steered, ..Sequence::strict(spec.merge()) };
    let stack = Stack::new(1);
    spec.write(&stack);
    make_younger(stack.upper().root());
    let mount = stack.mount();
    let mut executor = Executor::new(mount.path());
    let ran = sequence.run(operations, |op| executor.run(op), || observe(mount.path(), &ALPHABET));
    executor.close_all();
    sequence.close_all();
    let shown = observe(mount.path(), &ALPHABET);
    mount.unmount();
    ran.map_err(|text| Failure { text, performed: sequence.performed })?;
    Ok((stack, shown))
}

/// Makes an upper anew, so that it is younger than all that lies below: an older one can't tell what was changed since.
fn make_younger(upper: &Path) {
    let old = upper.with_extension("old");
    fs::rename(upper, &old).unwrap();
    let then = fs::symlink_metadata(&old).unwrap();
    let then = (then.ctime(), then.ctime_nsec());
    loop {
        assert!(Command::new("cp").arg("-a").args([&old, upper]).status().unwrap().success());
        let born = fs::metadata(upper).unwrap().created().unwrap();
        let born = born.duration_since(std::time::UNIX_EPOCH).unwrap();
        if (born.as_secs() as i64, i64::from(born.subsec_nanos())) > then {
            break;
        }
        fs::remove_dir(upper).unwrap();
    }
    fs::remove_dir(old).unwrap();
}

fn program() -> std::path::PathBuf {
    match Program::under_test() {
        Program::Unionmount(path) => path,
        _ => built(),
    }
}

fn apply(stack: &Stack, before: &[&str], args: &[&str]) -> Command {
    let program = program();
    let mut command = match before {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command
        .arg("apply")
        .args(args)
        .arg(stack.upper().root())
        .arg(stack.lower(0).root())
        .env("UNIONMOUNT_ROOT", stack.scratch().path().join("state"));
    command
}

fn leftovers(root: &Path) -> bool {
    Snapshot::take(root).entries.keys().any(|path| path.to_string_lossy().contains(".unionmount-apply-"))
}

fn vocabulary() -> Vocabulary {
    Vocabulary { operations: 25, ..Vocabulary::full(Privilege::current() == Privilege::Root) }
}

fn fail(text: String, operations: &[Op]) -> Failure {
    Failure { text, performed: operations.to_vec() }
}

fn check(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    let (stack, shown) = done(spec, operations, steered)?;
    let lower = stack.lower(0).root();
    let before = Snapshot::take(lower);
    let run = |args: &[&str]| {
        let output = apply(&stack, &[], args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => Ok(()),
            code => Err(fail(format!("apply {args:?} ended with {code:?}: {text}"), operations)),
        }
    };
    run(&["--dry-run"])?;
    let after = Snapshot::take(lower);
    same(&before, &after).map_err(|text| fail(format!("--dry-run has changed:\n{text}"), operations))?;
    run(&[])?;
    let applied = Snapshot::take(lower);
    same(&shown, &applied).map_err(|text| fail(format!("applied:\n{text}"), operations))?;
    // What is there already is no conflict and not done again.
    run(&[])?;
    let again = Snapshot::take(lower);
    same(&shown, &again).map_err(|text| fail(format!("applied twice:\n{text}"), operations))
}

#[test]
fn the_directory_becomes_what_the_mount_showed() {
    run_cases(40, 11, &case(&vocabulary()), &check);
}

/// Runs it again and again, killed at the next instant each time, until it comes to its end.
fn check_killed(spec: &StackSpec, operations: &[Op], steered: bool) -> Result<(), Failure> {
    thread_local!(static SEED: Cell<u64> = const { Cell::new(1) });
    let (stack, shown) = done(spec, operations, steered)?;
    let mut seed = fastrand::Rng::with_seed(SEED.replace(SEED.get() + 1));
    const CALLS: [&str; 9] =
        ["renameat2", "unlinkat", "mkdirat", "linkat", "utimensat", "fsync", "syncfs", "rename", "chmod"];
    for _ in 0..40 {
        let call = CALLS[seed.usize(..CALLS.len())];
        let inject = format!("inject={call}:signal=SIGKILL:when={}", seed.usize(1..6));
        let output =
            apply(&stack, &["strace", "-qq", "-o", "/dev/null", "-e", &inject], &[]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => break,
            // strace ends as the program did.
            None | Some(137) => {}
            code => {
                return Err(fail(format!("killed at {inject} before, then {code:?}: {text}"), operations));
            }
        }
    }
    let output = apply(&stack, &[], &[]).output().unwrap();
    if !output.status.success() {
        return Err(fail(format!("in the end: {output:?}"), operations));
    }
    let lower = stack.lower(0).root();
    let applied = Snapshot::take(lower);
    same(&shown, &applied).map_err(|text| fail(format!("killed and applied:\n{text}"), operations))?;
    match leftovers(lower) {
        true => Err(fail("what was prepared is left".into(), operations)),
        false => Ok(()),
    }
}

#[test]
fn killed_at_any_instant_the_next_call_goes_on() {
    support::needs_root!();
    if !is_installed("strace") {
        return skipped("no strace");
    }
    run_cases(20, 12, &case(&vocabulary()), &check_killed);
}
