//! A filesystem below that answers EIO to any one of the daemon's system calls in the middle of an operation: the program
//! is told an error or the operation is done, the mount shows what the disk has, and the daemon goes on.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use support::{Fields, Mount, Snapshot, Stack, diff, wait_until};

/// The system calls by which an upper is changed.
const CHANGES: &[&str] = &[
    "renameat2",
    "linkat",
    "unlinkat",
    "mkdirat",
    "mknodat",
    "fchownat",
    "setxattr",
    "utimensat",
    "fsync",
    "ftruncate",
];

/// strace, that makes the call number `nth` of a kind fail in a process.
struct Injection(Child);

impl Injection {
    fn into(pid: u32, call: &str, nth: u32, log: &Path) -> Injection {
        let child = Command::new("strace")
            .args(["-f", "-p", &pid.to_string(), "-o", log.to_str().unwrap()])
            .args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:error=EIO:when={nth}")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let traced = || {
            fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|thread| {
                let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            })
        };
        assert!(wait_until(support::PATIENCE, traced), "strace doesn't trace the daemon");
        Injection(child)
    }

    /// Ends it. Did a call fail?
    fn end(mut self, log: &Path) -> bool {
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(self.0.id() as i32).unwrap(),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        self.0.wait().unwrap();
        fs::read_to_string(log).unwrap().contains("INJECTED")
    }
}

/// The calls by which attributes are changed, and learned afterwards.
const ATTRIBUTES: &[&str] = &["fchownat", "utimensat", "ftruncate", "chmod", "fchmodat", "statx"];

type Act = (&'static str, fn(&Mount) -> std::io::Result<()>);

const ACTS: &[Act] = &[
    ("chmod of a lower's file", |m| fs::set_permissions(m.join("file"), PermissionsExt::from_mode(0o600))),
    ("rmdir", |m| fs::remove_dir(m.join("emptied"))),
    ("mkdir over a whiteout", |m| fs::create_dir(m.join("empty"))),
    ("unlink of one of two names", |m| fs::remove_file(m.join("two"))),
    ("rename of a lower's file", |m| fs::rename(m.join("file"), m.join("new"))),
    ("rename of a lower's directory", |m| fs::rename(m.join("merged"), m.join("new"))),
    ("rename over a directory", |m| fs::rename(m.join("plain"), m.join("emptied"))),
    ("link", |m| fs::hard_link(m.join("file"), m.join("new"))),
    ("truncating open of a lower's file", |m| fs::File::create(m.join("file")).map(drop)),
];

fn build() -> Stack {
    let stack = Stack::new(1);
    let lower = stack.lower(0);
    lower.file("emptied/one", "1").file("merged/inside", "2").file("file", "3").file("two", "4");
    lower.xattr("file", "user.a", "a");
    fs::create_dir(lower.root().join("empty")).unwrap();
    fs::hard_link(lower.root().join("two"), lower.root().join("names")).unwrap();
    symlink("file", lower.root().join("link")).unwrap();
    stack
}

/// What lies in the stack before the act.
fn prepare(mount: &Mount) {
    fs::remove_file(mount.join("emptied/one")).unwrap();
    fs::remove_dir(mount.join("empty")).unwrap();
    fs::create_dir(mount.join("plain")).unwrap();
    fs::write(mount.join("plain/p"), "p").unwrap();
}

fn same(one: &Snapshot, other: &Snapshot) -> bool {
    diff(one, other, &Fields { mtime: false, directory_mtime: false, ..Fields::tree() }).is_empty()
}

const CHANGES_OF_ATTRIBUTES: &[Act] = &[
    ("chmod", |m| fs::set_permissions(m.join("plain/p"), PermissionsExt::from_mode(0o640))),
    ("chown", |m| std::os::unix::fs::chown(m.join("plain/p"), Some(5), Some(6))),
    ("chmod of a directory", |m| fs::set_permissions(m.join("plain"), PermissionsExt::from_mode(0o750))),
    ("truncate", |m| fs::File::options().write(true).open(m.join("plain/p"))?.set_len(0)),
    ("times", |m| fs::File::open(m.join("plain/p"))?.set_modified(std::time::UNIX_EPOCH)),
];

/// What the kernel keeps of a file is what it has on the disk, whether the change was told to have failed or not.
#[test]
fn attributes_after_an_error_are_those_that_the_disk_has() {
    support::needs_root!();
    support::needs_unionmount!();
    support::needs_program!("strace");
    let mut done_all_the_same = 0;
    for (what, act) in CHANGES_OF_ATTRIBUTES {
        for call in ATTRIBUTES {
            for nth in 1.. {
                let stack = build();
                let mount = stack.mount();
                prepare(&mount);
                let paths = ["plain", "plain/p"];
                let see = |mount: &Mount| {
                    paths.map(|path| {
                        let s = fs::metadata(mount.join(path)).unwrap();
                        (s.mode(), s.uid(), s.gid(), s.size(), s.mtime())
                    })
                };
                let before = see(&mount);
                let log = stack.scratch().path().join("strace");
                let injection = Injection::into(mount.daemon(), call, nth, &log);
                let done = act(&mount);
                if !injection.end(&log) {
                    done.unwrap();
                    mount.unmount();
                    break;
                }
                let live = see(&mount);
                done_all_the_same += usize::from(done.is_err() && live != before);
                mount.unmount();
                let mount = stack.mount();
                assert_eq!(see(&mount), live, "{what}, {call} number {nth} fails: {done:?}");
                mount.unmount();
            }
        }
    }
    assert!(done_all_the_same > 0, "no error came after a change: the test tests nothing");
}

#[test]
fn an_error_of_any_change_of_the_upper_is_told_and_leaves_no_mix() {
    support::needs_root!();
    support::needs_unionmount!();
    support::needs_program!("strace");
    let mut injected = 0;
    for (what, act) in ACTS {
        let stack = build();
        let mount = stack.mount();
        prepare(&mount);
        act(&mount).unwrap();
        let after = Snapshot::take(mount.path());
        mount.unmount();
        for call in CHANGES {
            for nth in 1.. {
                let stack = build();
                let mount = stack.mount();
                prepare(&mount);
                let before = Snapshot::take(mount.path());
                let log = stack.scratch().path().join("strace");
                let injection = Injection::into(mount.daemon(), call, nth, &log);
                let done = act(&mount);
                if !injection.end(&log) {
                    done.unwrap();
                    mount.unmount();
                    break;
                }
                injected += 1;
                let what = format!("{what}, {call} number {nth} fails: {done:?}");
                let live = Snapshot::take(mount.path());
                assert!(same(&live, &after) || done.is_err() && same(&live, &before), "{what}: a mix");
                mount.unmount();
                let mount = stack.mount();
                let again = Snapshot::take_checked(mount.path());
                assert!(same(&live, &again), "{what}: another tree after a remount");
                mount.unmount();
                stack.assert_workdir_clean();
            }
        }
    }
    assert!(injected > ACTS.len(), "nothing failed: the test tests nothing");
}
