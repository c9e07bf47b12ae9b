//! System calls of the daemon, by strace.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Stack, output, wait_until};
use crate::{Counted, needs_counters};

/// How many system calls the daemon makes during `work`, those apart by which it gets its requests and answers them.
fn syscalls(counted: &Counted, scratch: &Path, work: impl FnOnce()) -> Vec<String> {
    let (pid, trace) = (counted.mount.daemon(), scratch.join("trace"));
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-o", trace.to_str().unwrap(), "-p", &pid.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let traced = || {
        fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        })
    };
    assert!(wait_until(Duration::from_secs(20), traced), "strace doesn't attach");
    work();
    kill_process(Pid::from_child(&strace), Signal::INT).unwrap();
    strace.wait().unwrap();
    const PROTOCOL: [&str; 9] =
        ["read(", "writev(", "fcntl(", "sched_yield(", "futex(", "restart_syscall(", "---", "+++", "<..."];
    let text = fs::read_to_string(&trace).unwrap();
    // Of the threads that answer requests; others wait for signals and for `unionmount status`.
    let answers = |thread: &str| {
        let name = fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm"));
        name.is_ok_and(|name| name.starts_with("fuser-"))
    };
    let lines = text.lines().filter_map(|line| line.split_once(' ')).filter(|(thread, _)| answers(thread));
    let calls = lines.map(|(_, call)| call.trim_start());
    calls.filter(|call| !PROTOCOL.iter().any(|p| call.starts_with(p))).map(str::to_owned).collect()
}

fn count(calls: &[String], most: usize) {
    assert!(calls.len() <= most, "{} calls, {most} allowed:\n{}", calls.len(), calls.join("\n"));
}

const N: usize = 50;

#[test]
fn lookups_and_creates_make_few_system_calls() {
    crate::needs_root!();
    needs_counters!();
    if !output("sh", &["-c", "command -v strace"]).status.success() {
        crate::skip!("no strace here");
    }
    const LAYERS: usize = 3;
    let stack = Stack::new(LAYERS);
    for index in 0..N * LAYERS {
        stack.lower(index % LAYERS).file(format!("d/file-{index}"), "x");
    }
    let counted = Counted::new(&stack, &[]);
    let dir = counted.mount.join("d");
    let scratch = stack.scratch().path().to_owned();
    // In the upper, so that there is one layer more.
    fs::write(dir.join("own"), "x").unwrap();
    // The index of the directory is built by the first of these.
    assert!(!dir.join("missing").exists());

    let found = syscalls(&counted, &scratch, || {
        (0..N).for_each(|n| assert!(dir.join(format!("file-{n}")).exists()));
    });
    count(&found, N * (LAYERS + 1 + 1));
    // In fact the index tells the layer.
    count(&found, 2 * N);
    let missing = syscalls(&counted, &scratch, || {
        (0..N).for_each(|n| assert!(!dir.join(format!("missing-{n}")).exists()));
    });
    count(&missing, 0);
    let created = syscalls(&counted, &scratch, || {
        (0..N).for_each(|n| drop(File::create(dir.join(format!("new-{n}"))).unwrap()));
    });
    // And one for the attributes of the directory, which the kernel asks for after each.
    count(&created, N * (4 + 1));
    let file = File::options().write(true).open(dir.join("new-1")).unwrap();
    let written =
        syscalls(&counted, &scratch, || (0..N).for_each(|n| file.write_all_at(b"x", n as u64).unwrap()));
    count(&written, N + 2);
    drop(file);
    counted.mount.unmount();
}
