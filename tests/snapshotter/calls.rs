//! The calls on the wire: kinds, codes, filters, usage. What each does is told by the unit tests.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use containerd_snapshots::tonic::Code;

use crate::client::{ACTIVE, COMMITTED, Mounted, VIEW, refused};
use crate::server::{PROGRAM, Server};
use support::{Scratch, run, wait_until};

#[test]
fn errors_have_the_codes_that_containerd_knows() {
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    let mut client = server.client();
    client.prepare("a", "").unwrap();
    client.commit("A", "a").unwrap();
    client.prepare("b", "A").unwrap();
    refused(client.stat("none"), Code::NotFound);
    refused(client.usage("none"), Code::NotFound);
    refused(client.mounts("none"), Code::NotFound);
    refused(client.remove("none"), Code::NotFound);
    refused(client.commit("N", "none"), Code::NotFound);
    refused(client.prepare("n", "none"), Code::NotFound);
    refused(client.prepare("b", "A"), Code::AlreadyExists);
    refused(client.view("A", ""), Code::AlreadyExists);
    refused(client.commit("A", "b"), Code::AlreadyExists);
    refused(client.remove("A"), Code::FailedPrecondition);
    refused(client.commit("N", "A"), Code::FailedPrecondition);
    refused(client.mounts("A"), Code::FailedPrecondition);
    refused(client.prepare("n", "b"), Code::InvalidArgument);
    refused(client.list(&["kind=="]), Code::InvalidArgument);
}

#[test]
fn snapshots_are_told_listed_and_filtered() {
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    let mut client = server.client();
    client.prepare("a", "").unwrap();
    client.commit("A", "a").unwrap();
    client.prepare_with("b", "A", &[("containerd.io/gc.root", "now")]).unwrap();
    client.view("v", "A").unwrap();
    for (key, kind, parent) in [("A", COMMITTED, ""), ("b", ACTIVE, "A"), ("v", VIEW, "A")] {
        let info = client.stat(key).unwrap();
        assert_eq!((info.name.as_str(), info.kind, info.parent.as_str()), (key, kind, parent));
        assert!(info.created_at.is_some() && info.created_at == info.updated_at);
    }
    let mut names = |filters: &[&str]| {
        client.list(filters).unwrap().into_iter().map(|info| info.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), ["A", "b", "v"]);
    assert_eq!(names(&["kind==committed", "kind==view"]), ["A", "v"]);
    assert_eq!(names(&["parent==A,labels.\"containerd.io/gc.root\""]), ["b"]);
    assert_eq!(names(&["name~=^[Ab]$"]), ["A", "b"]);
    let mut info = client.stat("A").unwrap();
    info.labels = [("x".to_string(), "1".to_string())].into();
    info.parent = "none".into();
    let updated = client.update(info).unwrap();
    assert_eq!((updated.labels.len(), updated.parent.as_str()), (1, ""));
    assert_ne!(updated.updated_at, updated.created_at);
    // More than one page of the answer.
    for number in 0..250 {
        client.prepare(&format!("n{number}"), "").unwrap();
    }
    assert_eq!(client.list(&[]).unwrap().len(), 253);
    client.cleanup().unwrap();
}

#[test]
fn a_snapshot_is_committed_and_built_upon_while_it_is_mounted() {
    support::needs_root!();
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    let mut client = server.client();
    client.prepare("base", "").unwrap();
    client.commit("Base", "base").unwrap();
    let at = |name: &str| scratch.path().join(name);
    let first = Mounted::of(&client.prepare("a", "Base").unwrap(), &at("a"));
    fs::write(first.path().join("f"), "one").unwrap();
    client.commit("A", "a").unwrap();
    let second = Mounted::of(&client.prepare("b", "A").unwrap(), &at("b"));
    assert_eq!(fs::read_to_string(second.path().join("f")).unwrap(), "one");
    fs::write(second.path().join("f"), "two").unwrap();
    assert_eq!(fs::read_to_string(first.path().join("f")).unwrap(), "one");
    drop((first, second));
    client.commit("B", "b").unwrap();
    client.cleanup().unwrap();
    let left: Vec<_> = fs::read_dir(server.root().join("snapshots"))
        .unwrap()
        .filter(|place| place.as_ref().unwrap().path().join("work").exists())
        .collect();
    assert!(left.is_empty(), "workdirs of committed snapshots: {left:?}");
}

#[test]
fn usage_is_that_of_the_layer_alone() {
    support::needs_root!();
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    let mut client = server.client();
    let mounted = Mounted::of(&client.prepare("a", "").unwrap(), &scratch.path().join("a"));
    fs::write(mounted.path().join("big"), vec![1; 1 << 20]).unwrap();
    drop(mounted);
    client.commit("A", "a").unwrap();
    let mounted = Mounted::of(&client.prepare("b", "A").unwrap(), &scratch.path().join("b"));
    assert_eq!(client.usage("b").unwrap().0, 1);
    fs::write(mounted.path().join("small"), "small").unwrap();
    let (inodes, bytes) = client.usage("b").unwrap();
    assert!(inodes == 2 && (1..1 << 18).contains(&bytes), "{inodes} {bytes}");
    drop(mounted);
    client.commit("B", "b").unwrap();
    assert_eq!(client.usage("B").unwrap(), (inodes, bytes));
    assert!(client.usage("A").unwrap().1 >= 1 << 20);
}

#[test]
fn paths_with_commas_colons_and_spaces_reach_the_mount() {
    support::needs_root!();
    let scratch = Scratch::new();
    let dir = scratch.dir(r#"a,b:c d'e\f"g"#);
    let server = Server::start(&dir);
    let mut client = server.client();
    client.prepare("a", "").unwrap();
    client.commit("A", "a").unwrap();
    let mounted = Mounted::of(&client.prepare("b", "A").unwrap(), &scratch.path().join("b"));
    fs::write(mounted.path().join("f"), "f").unwrap();
    drop(mounted);
    assert_eq!(client.usage("b").unwrap().0, 2);
}

/// What containerd's fuse-overlayfs-snapshotter has containerd call, word by word.
#[test]
fn the_call_of_the_fuse_overlayfs_snapshotter() {
    support::needs_root!();
    let scratch = Scratch::new();
    for name in ["bin", "snapshots/1/fs", "snapshots/2/fs", "snapshots/3/fs", "snapshots/3/work", "rootfs"] {
        scratch.dir(name);
    }
    let at = |name: &str| scratch.path().join(name);
    std::os::unix::fs::symlink(PROGRAM, at("bin/fuse-overlayfs")).unwrap();
    fs::write(at("snapshots/1/fs/lower"), "1").unwrap();
    fs::write(at("snapshots/2/fs/middle"), "2").unwrap();
    let mut path = at("bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    let top = scratch.path().display();
    let mount = |options: &[String]| {
        let mut command = Command::new("mount.fuse3");
        command.env("PATH", &path).arg("overlay").arg(at("rootfs"));
        for option in options {
            command.args(["-o", option]);
        }
        let output = command.args(["-t", "fuse-overlayfs"]).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let lower = format!("lowerdir={top}/snapshots/2/fs:{top}/snapshots/1/fs");
    mount(&[
        format!("workdir={top}/snapshots/3/work"),
        format!("upperdir={top}/snapshots/3/fs"),
        lower.clone(),
        "writeback=0".into(),
    ]);
    fs::rename(at("rootfs/lower"), at("rootfs/moved")).unwrap();
    assert_eq!(fs::read_to_string(at("snapshots/3/fs/moved")).unwrap(), "1");
    run("fusermount3", &["-u".as_ref(), at("rootfs").as_os_str()]);
    mount(&[lower, "writeback=0".into()]);
    assert!(fs::write(at("rootfs/x"), "").is_err(), "a view can be written");
    assert_eq!(fs::read_to_string(at("rootfs/middle")).unwrap(), "2");
    run("fusermount3", &["-u".as_ref(), at("rootfs").as_os_str()]);
}

#[test]
fn nobody_else_reaches_the_snapshots() {
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    server.client().prepare("a", "").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let root = server.root();
    assert_eq!(mode(&root), 0o700);
    assert_eq!(mode(&root.join("snapshots")), 0o700);
    assert_eq!(mode(&root.join("metadata.sqlite")), 0o600);
    assert_eq!(mode(&scratch.path().join("s.sock")), 0o600);
}

/// Thousands of connections that say nothing, rubbish, the beginning of a call, or are reset in its middle hold nobody's calls
/// up and take no memory that stays.
#[test]
fn connections_in_thousands_hold_no_call_up() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    let mut client = server.client();
    client.prepare("a", "").unwrap();
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_nonzero())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let before = memory();
    let mut open = Vec::new();
    for n in 0..3000 {
        // What the server doesn't take waits, or is refused.
        let Ok(mut stream) = UnixStream::connect(scratch.path().join("s.sock")) else { continue };
        stream.set_nonblocking(true).unwrap();
        let said: &[u8] = match n % 4 {
            0 => b"",
            1 => &[0xff; 20_000],
            2 => PREFACE,
            // A SETTINGS frame that promises more than comes.
            _ => &[PREFACE, b"\0\xff\xff\x04\0\0\0\0\0"].concat(),
        };
        stream.write_all(said).unwrap_or_default();
        open.push(stream);
        if open.len() > 200 {
            open.drain(..100);
        }
        if n % 300 == 0 {
            client.prepare(&format!("b{n}"), "").unwrap();
        }
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB more");
    // Somebody new is heard beside the connections that are left.
    server.client().prepare("c", "").unwrap();
    drop(open);
    assert!(wait_until(support::PATIENCE, || memory().saturating_sub(before) < 32 << 10));
}
