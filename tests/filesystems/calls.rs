//! System calls of a daemon that fail: the call number N of a kind, by strace, from the instant on at which it is told to. For uppers
//! that must be on a filesystem of the disk's, which [`Failing`](crate::failing::Failing) isn't.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use support::{LoopFilesystem, Scratch, wait_until};

/// What changes something on the disk.
const KINDS: [&str; 18] = [
    "copy_file_range",
    "fallocate",
    "fchmod",
    "fchownat",
    "fdatasync",
    "fsetxattr",
    "fsync",
    "ftruncate",
    "linkat",
    "mkdirat",
    "mknodat",
    "pwrite64",
    "pwritev",
    "renameat2",
    "setxattr",
    "symlinkat",
    "unlinkat",
    "utimensat",
];

/// An ext4 filesystem, and what watches a daemon.
pub struct Calls {
    filesystem: LoopFilesystem,
    log: PathBuf,
    tracer: Option<Child>,
}

impl Calls {
    /// Makes the filesystem.
    pub fn start(scratch: &Scratch) -> Calls {
        let filesystem = LoopFilesystem::new(scratch, "ext4", "ext4", 256 << 20);
        Calls { filesystem, log: scratch.path().join("calls"), tracer: None }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.filesystem.path()
    }

    /// From now on the call number `nth` of a kind fails, counted in each thread of the daemon; or, without one, all are counted.
    pub fn watch(&mut self, daemon: u32, fails: Option<(&str, usize, Errno)>) {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o"]).arg(&self.log).args(["-p", &daemon.to_string()]);
        match fails {
            None => command.args(["-e", &format!("trace={}", KINDS.join(","))]),
            Some((kind, nth, errno)) => {
                let errno = errno.raw_os_error();
                command.args([
                    "-e",
                    &format!("trace={kind}"),
                    "-e",
                    &format!("inject={kind}:error={errno}:when={nth}"),
                ])
            }
        };
        self.tracer = Some(command.stdin(Stdio::null()).spawn().unwrap());
        assert!(wait_until(support::PATIENCE, || all_traced(daemon)), "strace doesn't attach");
    }

    /// Nothing fails any more. Returns how many calls there were of each kind, and how many failed: each thread has its number N.
    pub fn end(&mut self) -> (BTreeMap<String, usize>, usize) {
        let Some(mut tracer) = self.tracer.take() else { return Default::default() };
        kill_process(Pid::from_child(&tracer), Signal::INT).unwrap();
        tracer.wait().unwrap();
        let log = fs::read_to_string(&self.log).unwrap();
        let mut counts = BTreeMap::new();
        for line in log.lines() {
            // "PID call(…", or "PID <... call resumed>…", which has been counted.
            let call = line.split_whitespace().nth(1).and_then(|word| word.split_once('('));
            // Calls that strace doesn't know pass its filter.
            if let Some((call, _)) = call.filter(|(call, _)| KINDS.contains(call)) {
                *counts.entry(call.to_owned()).or_default() += 1;
            }
        }
        (counts, log.matches("(INJECTED)").count())
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        if let Some(mut tracer) = self.tracer.take() {
            tracer.kill().unwrap_or_default();
            tracer.wait().ok();
        }
    }
}

fn all_traced(daemon: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{daemon}/task")) else { return false };
    tasks.flatten().all(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    })
}
