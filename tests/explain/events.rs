//! The trace of a scripted session, event by event.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, ChildStdout, Stdio};

use serde_json::{Value, json};
use unionmount::control::protocol::Told;
use unionmount::union::events::Filter;

use crate::drive::{client, command, run, status};
use support::{Mount, Options, Stack, WhiteoutForm, wait_until};

/// `unionmount trace --json` that listens already.
struct Trace {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Trace {
    fn start(mount: &Mount, filter: &[&str]) -> Trace {
        let mut command = command(&["trace", "--json"]);
        command.args(filter).arg(mount.path()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        assert!(wait_until(support::PATIENCE, || status(mount).listeners == 1), "the trace listens");
        Trace { child, lines }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let mut event: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        let fields = event.as_object_mut().unwrap();
        assert!(fields.remove("time_us").is_some_and(|time| time.as_u64() > Some(1_700_000_000_000_000)));
        // All is asked for by this thread; who closes a file last the kernel doesn't tell, and what follows by itself nobody asks for.
        let (pid, process) = (fields.remove("pid"), fields.remove("process"));
        if fields["event"] != "close" && fields["event"] != "seal" {
            assert_eq!(pid, Some(rustix::thread::gettid().as_raw_nonzero().get().into()));
            let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
            assert_eq!(process, Some(name.trim_end().into()));
        }
        if let Some(micros) = fields.remove("micros") {
            assert!(micros.as_u64() < Some(60_000_000));
        }
        event
    }

    fn expect(&mut self, events: &[Value]) {
        for event in events {
            assert_eq!(self.next(), *event);
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().unwrap();
    }
}

fn lookup(path: &str, kind: &str, layers: &[u16]) -> Value {
    json!({"event": "lookup", "path": path, "kind": kind, "layers": layers})
}

fn missing(path: &str) -> Value {
    json!({"event": "lookup", "path": path, "kind": null, "layers": []})
}

fn copy_up(path: &str, kind: &str, bytes: u64, layer: u16) -> Value {
    json!({"event": "copy-up", "path": path, "kind": kind, "bytes": bytes, "layer": layer})
}

fn stack() -> Stack {
    let stack = Stack::new(2);
    stack.lower(0).file("etc/app.conf", "port = 80\n").whiteout("bin/ls", WhiteoutForm::Device).dir("srv");
    stack.lower(0).opaque("srv", opaque_form());
    stack
        .lower(1)
        .file("etc/passwd", vec![b'x'; 1229])
        .file("bin/ls", "ls")
        .file("srv/old", "old")
        .file("gone", "");
    stack
}

fn opaque_form() -> support::OpaqueForm {
    support::OpaqueForm::Aufs
}

#[test]
fn a_session_is_told_event_by_event() {
    let stack = stack();
    // With the kernel's own writing back, times are flushed when it likes.
    let mount = stack.mount_with(&["writeback=0"]);
    let mut trace = Trace::start(&mount, &[]);

    fs::metadata(mount.join("etc/passwd")).unwrap();
    trace.expect(&[lookup("/etc", "directory", &[1, 2]), lookup("/etc/passwd", "file", &[2])]);

    fs::metadata(mount.join("bin/ls")).unwrap_err();
    trace.expect(&[
        lookup("/bin", "directory", &[1, 2]),
        missing("/bin/ls"),
        json!({"event": "whiteout", "path": "/bin/ls", "layer": 1, "hides": [2]}),
    ]);
    fs::metadata(mount.join("bin/ls")).unwrap_err(); // the kernel remembers

    fs::metadata(mount.join("srv/old")).unwrap_err();
    trace.expect(&[
        lookup("/srv", "directory", &[1]),
        json!({"event": "opaque", "path": "/srv", "layer": 1, "hides": [2]}),
        missing("/srv/old"),
    ]);

    fs::set_permissions(mount.join("etc/passwd"), PermissionsExt::from_mode(0o600)).unwrap();
    trace.expect(&[
        copy_up("/etc", "directory", 0, 1),
        copy_up("/etc/passwd", "file", 1229, 2),
        json!({"event": "attributes", "path": "/etc/passwd", "changed": ["mode"]}),
    ]);

    fs::rename(mount.join("bin"), mount.join("sbin")).unwrap();
    trace.expect(&[
        missing("/sbin"),
        copy_up("/bin", "directory", 0, 1),
        json!({"event": "rename", "path": "/bin", "to": "/sbin", "exchange": false, "whiteout": true, "redirect": "bin"}),
    ]);

    fs::remove_file(mount.join("gone")).unwrap();
    trace.expect(&[
        lookup("/gone", "file", &[2]),
        json!({"event": "remove", "path": "/gone", "kind": "file", "whiteout": true}),
    ]);

    symlink("etc", mount.join("link")).unwrap();
    trace.expect(&[missing("/link"), json!({"event": "create", "path": "/link", "kind": "symlink"})]);
    fs::hard_link(mount.join("etc/passwd"), mount.join("again")).unwrap();
    trace.expect(&[missing("/again"), json!({"event": "link", "path": "/again", "from": "/etc/passwd"})]);
    fs::remove_file(mount.join("link")).unwrap();
    trace.expect(&[json!({"event": "remove", "path": "/link", "kind": "symlink", "whiteout": false})]);
    fs::read_dir(mount.join("srv")).unwrap().for_each(drop);
    trace.expect(&[json!({"event": "list", "path": "/srv"})]);

    // The end of the mount is the end of the trace.
    mount.unmount();
    assert_eq!(trace.child.wait().unwrap().code(), Some(0));
}

#[test]
fn filters_choose_by_kind_and_by_path() {
    let stack = stack();
    let mount = stack.mount();
    let mut trace = Trace::start(&mount, &["--filter", "create,/new"]);
    fs::create_dir(mount.join("other")).unwrap();
    fs::create_dir(mount.join("new")).unwrap();
    fs::create_dir(mount.join("new/inside")).unwrap();
    fs::create_dir(mount.join("newer")).unwrap();
    fs::create_dir(mount.join("new/last")).unwrap();
    let made = |path: &str| json!({"event": "create", "path": path, "kind": "directory"});
    trace.expect(&[made("/new"), made("/new/inside"), made("/new/last")]);
    drop(trace);

    let output = run(&["trace".as_ref(), mount.path().as_os_str(), "--filter".as_ref(), "copyup".as_ref()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("copyup") && said.contains("copy-up") && said.lines().count() == 1, "{said}");
    mount.unmount();
}

/// What takes long is told when it begins, whether the whole file comes up or its data follow.
#[test]
fn the_start_of_much_copying_is_told() {
    let size = 1 << 20;
    let stack = stack();
    for name in ["large", "later"] {
        let file = fs::File::create(stack.lower(1).root().join(name)).unwrap();
        file.set_len(size).unwrap();
    }
    let mount = stack.mount_with(&["writeback=0", "metacopy=on"]);
    fs::set_permissions(mount.join("later"), PermissionsExt::from_mode(0o600)).unwrap();
    let mut trace = Trace::start(&mount, &["--filter", "copy-up-begins,copy-up,seal"]);
    let begins = |path: &str| json!({"event": "copy-up-begins", "path": path, "bytes": size, "layer": 2});
    for name in ["large", "later"] {
        fs::File::options().append(true).open(mount.join(name)).unwrap().write_all(b"x").unwrap();
    }
    trace.expect(&[
        begins("/large"),
        copy_up("/large", "file", size, 2),
        begins("/later"),
        json!({"event": "seal", "path": "/later", "bytes": size, "layer": 2}),
    ]);
    drop(trace);
    mount.unmount();
}

/// What a program has copied in one call is neither reads nor writes.
#[test]
fn copies_within_the_mount_are_told_as_copies() {
    let stack = stack();
    let mount = stack.mount_with(&["writeback=0"]);
    let new = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(mount.join("new"))
        .unwrap();
    let passwd = fs::File::open(mount.join("etc/passwd")).unwrap();
    let mut trace = Trace::start(&mount, &["--filter", "copy,read,write,allocate"]);
    let copied = |from: &str, from_offset: u64, offset: u64, bytes: u64| json!({"event": "copy", "path": "/new", "offset": offset, "bytes": bytes, "from": from, "from_offset": from_offset});
    let copy = |from: &fs::File, mut at: u64, mut to: u64, length: usize| {
        rustix::fs::copy_file_range(from, Some(&mut at), &new, Some(&mut to), length).unwrap()
    };
    assert_eq!(copy(&passwd, 29, 0, 4096), 1200);
    // Within one file as well.
    assert_eq!(copy(&new, 100, 5000, 200), 200);
    // Nothing is nothing.
    assert_eq!(copy(&passwd, 1229, 0, 10), 0);
    rustix::fs::fallocate(&new, rustix::fs::FallocateFlags::empty(), 0, 8192).unwrap();
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&new, punch, 4096, 4096).unwrap();
    let allocated = |offset: u64, bytes: u64, zeroes: bool| json!({"event": "allocate", "path": "/new", "offset": offset, "bytes": bytes, "zeroes": zeroes});
    trace.expect(&[
        copied("/etc/passwd", 29, 0, 1200),
        copied("/new", 100, 5000, 200),
        allocated(0, 8192, false),
        allocated(4096, 4096, true),
    ]);
    drop((trace, new, passwd));
    mount.unmount();
}

/// `rm` of a lower's file must not read it: the kernel flushes the times of what it has unlinked.
#[test]
fn removing_a_lower_file_copies_nothing() {
    let stack = stack();
    let mount = stack.mount();
    fs::remove_file(mount.join("gone")).unwrap();
    fs::remove_file(mount.join("etc/passwd")).unwrap();
    rustix::fs::syncfs(fs::File::open(mount.path()).unwrap()).unwrap();
    // The directory, for its whiteout; the kernel has flushed what it had to by the time that it forgets.
    assert_eq!(status(&mount).counters.copy_ups, 1);
    let before = stack.lower(0).root().to_owned();
    mount.unmount();
    assert!(before.is_dir());
}

fn open(path: &str, layer: u16, access: &str, size: u64) -> Value {
    json!({"event": "open", "path": path, "layer": layer, "access": access, "size": size})
}

fn close(path: &str, before: Option<u64>, size: u64) -> Value {
    json!({"event": "close", "path": path, "before": before, "size": size})
}

/// Data that the kernel reads and writes itself aren't seen, and the trace says so.
#[test]
fn opens_that_are_passed_through_are_told() {
    support::needs_root!();
    let filter = ["--filter", "open,close,read,write,create,attributes"];
    let stack = stack();
    let mount = stack.mount_with(&["passthrough"]);
    let early = fs::File::create(mount.join("early")).unwrap();
    let mut trace = Trace::start(&mount, &filter);

    let new = mount.join("new");
    fs::write(&new, "12345").unwrap();
    trace.expect(&[
        json!({"event": "create", "path": "/new", "kind": "file"}),
        open("/new", 0, "write", 0),
        close("/new", Some(0), 5),
    ]);
    let mut appended = fs::File::options().append(true).open(&new).unwrap();
    appended.write_all(b"678").unwrap();
    let also = fs::File::options().read(true).write(true).open(&new).unwrap();
    trace.expect(&[open("/new", 0, "write", 5), open("/new", 0, "read-write", 8)]);
    // Once for both.
    drop((appended, also));
    trace.expect(&[close("/new", Some(5), 8)]);
    assert_eq!(fs::read(&new).unwrap(), b"12345678");
    trace.expect(&[open("/new", 0, "read", 8), close("/new", Some(8), 8)]);
    fs::write(&new, "1").unwrap();
    trace.expect(&[
        json!({"event": "attributes", "path": "/new", "changed": ["size"]}),
        open("/new", 0, "write", 0),
        close("/new", Some(0), 1),
    ]);

    // Not passed through: its data may move up.
    fs::read(mount.join("etc/app.conf")).unwrap();
    trace.expect(&[json!({"event": "read", "path": "/etc/app.conf", "offset": 0, "bytes": 10})]);

    // Nobody looked when it was opened.
    drop(early);
    trace.expect(&[close("/early", None, 0)]);
    drop(trace);
    mount.unmount();

    let lowers = Options { upper: None, work: None, ..stack.options_with(&["passthrough"]) };
    let mount = Mount::new(&lowers, stack.mountpoint());
    let mut trace = Trace::start(&mount, &filter);
    fs::read(mount.join("etc/passwd")).unwrap();
    trace.expect(&[open("/etc/passwd", 2, "read", 1229), close("/etc/passwd", Some(1229), 1229)]);
    drop(trace);
    mount.unmount();
}

/// A listener that never reads: the mount goes on, and what was lost is counted.
#[test]
fn a_slow_listener_loses_events_with_a_count() {
    const EVENTS: u64 = 40_000;
    let stack = stack();
    let mount = stack.mount();
    let filter = Filter { kinds: vec!["lookup".into()], paths: Vec::new() };
    let mut trace = client(&mount).trace(filter).unwrap();
    for number in 0..EVENTS {
        assert!(fs::metadata(mount.join(format!("none{number}"))).is_err());
    }
    let (mut heard, mut lost) = (0, 0);
    while heard + lost < EVENTS {
        match trace.next_told().unwrap().expect("the mount lives") {
            Told::Event(_) => heard += 1,
            Told::Lost { lost: more } => lost += more,
        }
    }
    assert_eq!(heard + lost, EVENTS, "each event is either told or counted");
    assert!(lost > 0, "all {EVENTS} fitted; the test is too small");
    drop(trace);
    assert!(wait_until(support::PATIENCE, || status(&mount).listeners == 0), "the daemon notices");
    mount.unmount();
}
