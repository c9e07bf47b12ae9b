//! System calls of the daemon, by strace.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::passthrough::assert_all_released;
use crate::{Counted, needs_counters};
use support::{Options, Stack, wait_until};

/// How many system calls the daemon makes during `work`, those apart by which it gets its requests and
/// answers them, memory, and the signal that asks for its counters.
fn syscalls(counted: &Counted, scratch: &Path, work: impl FnOnce()) -> Vec<String> {
    let (pid, trace) = (counted.mount.daemon(), scratch.join("trace"));
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-y", "-o", trace.to_str().unwrap(), "-p", &pid.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let traced = || {
        fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        })
    };
    assert!(wait_until(support::PATIENCE, traced), "strace doesn't attach");
    work();
    kill_process(Pid::from_child(&strace), Signal::INT).unwrap();
    strace.wait().unwrap();
    const APART: [&str; 15] = [
        "read(",
        "fcntl(",
        "sched_yield(",
        "futex(",
        "restart_syscall(",
        "---",
        "+++",
        "<...",
        "brk(",
        "mmap(",
        "munmap(",
        "mprotect(",
        "madvise(",
        "sendto(",
        "rt_sigreturn(",
    ];
    let text = fs::read_to_string(&trace).unwrap();
    // Of the threads that answer requests; others wait for signals and for `unionmount status`.
    let answers = |thread: &str| {
        let name = fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm"));
        name.is_ok_and(|name| name.starts_with("fuse-"))
    };
    let lines = text.lines().filter_map(|line| line.split_once(' ')).filter(|(thread, _)| answers(thread));
    let calls = lines.map(|(_, call)| call.trim_start());
    // Answers, and what the kernel is told unasked.
    let is_answer = |call: &&str| {
        (call.starts_with("write(") || call.starts_with("writev(")) && call.contains("</dev/fuse>")
    };
    calls
        .filter(|call| !is_answer(call) && !APART.iter().any(|p| call.starts_with(p)))
        .map(str::to_owned)
        .collect()
}

fn count(calls: &[String], most: usize) {
    assert!(calls.len() <= most, "{} calls, {most} allowed:\n{}", calls.len(), calls.join("\n"));
}

const N: usize = 50;

#[test]
fn lookups_and_creates_make_few_system_calls() {
    support::needs_root!();
    needs_counters!();
    support::needs_program!("strace");
    const LAYERS: usize = 3;
    let stack = Stack::new(LAYERS);
    for index in 0..N * LAYERS {
        stack.lower(index % LAYERS).file(format!("d/file-{index}"), "x");
    }
    // The CPU-affine worker looks now and then where a program is; see `fuse::dispatch`.
    let counted = Counted::new(&stack, &["pairing=0"]);
    let dir = counted.mount.join("d");
    let scratch = stack.scratch().path().to_owned();
    // In the upper, so that there is one layer more.
    fs::write(dir.join("own"), "x").unwrap();
    // The index of the directory is built by the first of these.
    assert!(!dir.join("missing").exists());

    let found = syscalls(&counted, &scratch, || {
        (0..N).for_each(|n| assert!(dir.join(format!("file-{n}")).exists()));
    });
    // In fact the index tells the layer: statx, and listxattrat for the mark of a metacopy.
    count(&found, 3 * N);
    let missing = syscalls(&counted, &scratch, || {
        (0..N).for_each(|n| assert!(!dir.join(format!("missing-{n}")).exists()));
    });
    count(&missing, 0);
    let created = syscalls(&counted, &scratch, || {
        (0..N).for_each(|n| drop(File::create(dir.join(format!("new-{n}"))).unwrap()));
    });
    // And one for the attributes of the directory, which the kernel asks for after each.
    // And one that tells files apart which have one number in the same tick: name_to_handle_at.
    count(&created, N * (4 + 1 + 1));
    let file = File::options().write(true).open(dir.join("new-1")).unwrap();
    let written =
        syscalls(&counted, &scratch, || (0..N).for_each(|n| file.write_all_at(b"x", n as u64).unwrap()));
    count(&written, N + 2);
    drop(file);
    counted.mount.unmount();
}

#[test]
fn metadata_only_copies_make_few_system_calls() {
    support::needs_root!();
    needs_counters!();
    support::needs_program!("strace");
    let stack = Stack::new(1);
    for n in 0..=N {
        stack.lower(0).file(format!("d/file-{n}"), "x");
    }
    let counted = Counted::new(&stack, &["pairing=0", "metacopy=on"]);
    let file = |n: usize| counted.mount.join(format!("d/file-{n}"));
    let scratch = stack.scratch().path().to_owned();
    (0..=N).for_each(|n| assert!(fs::metadata(file(n)).unwrap().is_file()));
    let chmod = |n: usize| fs::set_permissions(file(n), fs::Permissions::from_mode(0o640)).unwrap();
    chmod(N);
    let copied = syscalls(&counted, &scratch, || (0..N).for_each(chmod));
    // The original: opened, statx, flistxattr, closed. The copy: made, statx, ftruncate, two marks, mode, times, name_to_handle_at,
    // fsync where there is no journal, published. Its directory: statx twice, times. The change: fchmod, statx; closed.
    count(&copied, N * (4 + 10 + 3 + 3));
    counted.mount.unmount();
}

#[test]
fn renames_and_removals_make_few_system_calls() {
    support::needs_root!();
    needs_counters!();
    support::needs_program!("strace");
    let stack = Stack::new(1);
    for n in 0..N {
        stack.lower(0).file(format!("d/lower-{n}"), "x");
    }
    let counted = Counted::new(&stack, &["pairing=0"]);
    let dir = counted.mount.join("d");
    let scratch = stack.scratch().path().to_owned();
    let name = |kind: &str, n: usize| dir.join(format!("{kind}-{n}"));
    (0..N).for_each(|n| fs::write(name("made", n), "x").unwrap());
    let renamed = syscalls(&counted, &scratch, || {
        (0..N).for_each(|n| fs::rename(name("made", n), name("moved", n)).unwrap());
    });
    // The kernel looks it up anew; both look at its marks (statx, listxattrat). Once more with the names locked (statx),
    // renameat2, and the attributes of the directory (statx), which the kernel asks for after each. It was young when it was
    // made, so its handle tells which it is (name_to_handle_at): once, after that its birth does.
    count(&renamed, (2 + 2 + 1 + 1 + 1 + 1) * N + N / 5);
    let removed = syscalls(&counted, &scratch, || {
        (0..N).for_each(|n| fs::remove_file(name("moved", n)).unwrap());
    });
    // statx under the name, of what is held open or is opened (openat), unlinkat, close, and statx of the directory.
    count(&removed, 6 * N + N / 5);
    // The same with linkat, and they are looked up first. The first makes the whiteout that all are links to.
    let hidden = syscalls(&counted, &scratch, || {
        (0..N).for_each(|n| fs::remove_file(name("lower", n)).unwrap());
    });
    count(&hidden, 8 * N + N / 5);
    counted.mount.unmount();
}

/// Exactly so many for each file.
fn exactly(what: &str, calls: &[String], expected: usize) {
    assert_eq!(calls.len(), expected, "{what}:\n{}", calls.join("\n"));
}

#[test]
fn passed_through_files_cost_the_kernel_being_told_of_them() {
    support::needs_root!();
    needs_counters!();
    support::needs_program!("strace");
    // Without the CPU-affine worker, which looks after the program on their own account.
    const PASSTHROUGH: &[&str] = &["passthrough", "pairing=0"];
    let stack = Stack::new(1);
    for n in 0..N {
        stack.lower(0).file(format!("d/lower-{n}"), "x");
        stack.upper().file(format!("d/upper-{n}"), "x");
    }
    let counted = Counted::new(&stack, PASSTHROUGH);
    let dir = counted.mount.join("d");
    let scratch = stack.scratch().path().to_owned();
    let look = |kind: &str| (0..N).for_each(|n| assert!(dir.join(format!("{kind}-{n}")).is_file()));
    let reads = |counted: &Counted, kind: &str| {
        syscalls(counted, &scratch, || {
            for n in 0..N {
                assert_eq!(fs::read(dir.join(format!("{kind}-{n}"))).unwrap(), b"x");
            }
            assert_all_released(counted);
        })
    };

    // The lower's data may move up, so they are read by the daemon: openat; statx, is it the
    // file; pread, and another that meets the end.
    look("lower");
    exactly("a lower file, first time", &reads(&counted, "lower"), N * 4);
    // The kernel asks for the access time: statx.
    exactly("a lower file, again", &reads(&counted, "lower"), N);
    exactly("a cached lower file", &reads(&counted, "lower"), 0);

    // openat; statx, is it the file; one ioctl that gives the file to the kernel and one that takes it back.
    look("upper");
    exactly("an upper file, first time", &reads(&counted, "upper"), N * 4);
    // The descriptor is kept; the kernel asks for the access time.
    exactly("an upper file, again", &reads(&counted, "upper"), N * 3);

    // The first one asks for the directory's ACL.
    fs::write(dir.join("new"), "x").unwrap();
    let create = |name: &str, options: &mut OpenOptions| {
        look("upper"); // and so knows the directory's attributes
        let mut calls = syscalls(&counted, &scratch, || {
            for n in 0..N {
                let file = options.create_new(true).open(dir.join(format!("{name}-{n}"))).unwrap();
                file.write_all_at(b"x", 0).unwrap();
            }
            assert_all_released(&counted);
        });
        // Of those whose inode number was another file's in the same tick of the clock, which is chance.
        calls.retain(|call| !call.starts_with("name_to_handle_at"));
        calls
    };
    // openat and fstat of what was made; the two ioctls; getxattrat of security.capability before the first write; and
    // fstat of the directory, whose attributes the kernel asks for before the next.
    exactly("a new file", &create("new", File::options().write(true)), N * 6 - 1);
    // Such a file may be mapped, and so its times are asked for each time: statx.
    exactly("a file to be mapped", &create("map", File::options().read(true).write(true)), N * 7 - 1);
    counted.mount.unmount();

    let options = Options { upper: None, work: None, ..stack.options_with(PASSTHROUGH) };
    let counted = Counted::mounted(&stack, options);
    look("lower");
    exactly("without an upper, first time", &reads(&counted, "lower"), N * 4);
    exactly("without an upper, again", &reads(&counted, "lower"), N * 2);
    counted.mount.unmount();
}
