//! Stores made by others: what fuse-overlayfs has written is shown here as it was shown there, and the other way round.
//!
//! Pairs with Debian's fuse-overlayfs 1.10 and with fuse-overlayfs 2.0, where each is installed; those with the kernel's
//! overlayfs are in `interchange`. As root, whose marks are `trusted.overlay.*`, and as root of a user namespace, as a
//! rootless engine runs them. Whole graph roots of podman are exchanged by `scripts/engines stores`.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{
    Fields, Layer, Mount, OpaqueForm, Privilege, Program, Snapshot, Stack, Time, WhiteoutForm, diff,
};

/// The fuse-overlayfs of each version that is here.
fn peers() -> Vec<(String, Program)> {
    // Where scripts/install-deps puts it.
    let cargo = std::env::var_os("PEER_FUSE_OVERLAYFS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_TARGET_TMPDIR"), "/../peers/bin/fuse-overlayfs")),
        PathBuf::from,
    );
    let mut peers = Vec::new();
    for path in [PathBuf::from("/usr/bin/fuse-overlayfs"), cargo] {
        match Command::new(&path).arg("--version").output() {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let version = text.lines().find(|line| line.starts_with("fuse-overlayfs")).unwrap_or("?");
                peers.push((version.to_owned(), Program::FuseOverlayfs(path)));
            }
            Err(error) => support::skipped(&format!("{}: {error}", path.display())),
        }
    }
    peers
}

/// What both can be held to: 1.10 counts links by the names that it has seen.
fn fields() -> Fields {
    Fields { nlink: false, links: false, directory_mtime: false, ..Fields::tree() }
}

/// What a mount shows. The times of what has just been written are left out: fuse-overlayfs holds data back, and their
/// file gets a later time when it gets them.
fn shown(mount: &Mount) -> Snapshot {
    let mut snapshot = Snapshot::take(mount.path());
    for entry in snapshot.entries.values_mut() {
        if matches!(entry.mtime, Time::At(seconds, _) if seconds > 1_500_000_000) {
            entry.mtime = Time::Any;
        }
    }
    snapshot
}

/// Two lowers with something for every kind of change.
fn stack() -> Stack {
    let stack = Stack::new(2);
    let bottom = stack.lower(1);
    bottom.file("deleted", "1").file("d/deleted", "2").file("d/kept", "3").file("replaced/old", "4");
    bottom.file("tree/a/b/c", "5").file("moved/x", "6").file("moved/deep/y", "7").file("changed", "8");
    bottom.symlink("link", "changed").fifo("fifo").file("f-over-d/x", "1").file("d-over-f", "2");
    bottom.file("long", vec![b'x'; 70_000]).xattr("long", "user.kept", "value").mode("long", 0o640);
    stack.lower(0).file("d/top", "9").file("replaced/newer", "10").mtime("d/top", 1_000_000_000, 5);
    stack
}

/// Every kind of change, as programs do them, for all that `peer` shall see.
fn change(root: &Path, peer: &str) {
    fs::remove_file(root.join("deleted")).unwrap();
    fs::remove_file(root.join("d/deleted")).unwrap();
    fs::remove_dir_all(root.join("replaced")).unwrap();
    fs::create_dir(root.join("replaced")).unwrap();
    fs::write(root.join("replaced/new"), "new").unwrap();
    fs::remove_dir_all(root.join("tree")).unwrap();
    // Below an opaque directory 2.0 merges again what has the name of something in a lower.
    let again = if peer.contains("2.0") { "tree/other" } else { "tree/a" };
    fs::create_dir_all(root.join(again)).unwrap();
    fs::write(root.join("changed"), "changed").unwrap();
    fs::set_permissions(root.join("long"), PermissionsExt::from_mode(0o604)).unwrap();
    fs::set_permissions(root.join("d"), PermissionsExt::from_mode(0o711)).unwrap();
    fs::create_dir_all(root.join("new/deep")).unwrap();
    fs::write(root.join("new/deep/file"), "deep").unwrap();
    std::os::unix::fs::symlink("new/deep", root.join("new-link")).unwrap();
    fs::remove_dir_all(root.join("f-over-d")).unwrap();
    fs::write(root.join("f-over-d"), "now a file").unwrap();
    fs::remove_file(root.join("d-over-f")).unwrap();
    fs::create_dir(root.join("d-over-f")).unwrap();
    fs::rename(root.join("d/kept"), root.join("new/kept")).unwrap();
    // By the program, which copies where a rename is refused with EXDEV.
    support::run("mv", &[root.join("moved"), root.join("d/moved")]);
    fs::remove_file(root.join("d/moved/x")).unwrap();
}

fn assert_same(expected: &Snapshot, mount: &Mount, what: &str) {
    let differences = diff(expected, &Snapshot::take(mount.path()), &fields());
    assert!(differences.is_empty(), "{what}:\n{differences}");
}

/// The program, told to write no redirects: fuse-overlayfs follows none.
fn ours(stack: &Stack) -> Mount {
    stack.mount_with(&["redirect_dir=off"])
}

fn theirs(stack: &Stack, program: &Program) -> Mount {
    Mount::with_program(program, &stack.options(), stack.mountpoint())
}

/// What a writer shows of what it wrote when it is mounted anew: 2.0 leaves no opaque marks, and what such a directory had
/// hidden is back then.
fn remounted(stack: &Stack, writer: &Program) -> Snapshot {
    let mount = theirs(stack, writer);
    let snapshot = shown(&mount);
    mount.unmount();
    snapshot
}

fn can_mount() -> bool {
    Privilege::current() != Privilege::User && Program::under_test().is_unionmount()
}

#[test]
fn what_fuse_overlayfs_wrote_is_shown_here() {
    if !can_mount() {
        support::skip!("needs root, also of a user namespace");
    }
    for (name, peer) in peers() {
        let stack = stack();
        let before = stack.lower_snapshots();
        let mount = theirs(&stack, &peer);
        change(mount.path(), &name);
        mount.unmount();
        let expected = remounted(&stack, &peer);
        let mount = ours(&stack);
        assert_same(&expected, &mount, &format!("written by {name}, here"));
        Snapshot::take_checked(mount.path());
        // And it goes on from there.
        fs::write(mount.join("d/again"), "again").unwrap();
        fs::remove_dir_all(mount.join("new")).unwrap();
        fs::remove_file(mount.join("d/top")).unwrap();
        let expected = shown(&mount);
        mount.unmount();
        let mount = theirs(&stack, &peer);
        assert_same(&expected, &mount, &format!("changed here, under {name} again"));
        mount.unmount();
        stack.assert_lowers_unchanged(&before);
    }
}

#[test]
fn what_was_written_here_is_shown_by_fuse_overlayfs() {
    if !can_mount() {
        support::skip!("needs root, also of a user namespace");
    }
    for (name, peer) in peers() {
        let stack = stack();
        let mount = ours(&stack);
        change(mount.path(), &name);
        let expected = shown(&mount);
        mount.unmount();
        let mount = theirs(&stack, &peer);
        assert_same(&expected, &mount, &format!("written here, under {name}"));
        fs::write(mount.join("d/again"), "again").unwrap();
        fs::remove_dir_all(mount.join("new")).unwrap();
        mount.unmount();
        let expected = remounted(&stack, &peer);
        let mount = ours(&stack);
        assert_same(&expected, &mount, &format!("changed by {name}, here again"));
        mount.unmount();
    }
}

/// What one wrote is a layer for the other: an image of the engine, below a container.
#[test]
fn an_upper_becomes_a_layer_of_the_other() {
    if !can_mount() {
        support::skip!("needs root, also of a user namespace");
    }
    for (name, peer) in peers() {
        for written_here in [true, false] {
            let below = stack();
            let mount = if written_here { ours(&below) } else { theirs(&below, &peer) };
            change(mount.path(), &name);
            mount.unmount();
            let writer = if written_here { Program::under_test() } else { peer.clone() };
            let expected = remounted(&below, &writer);
            let above = Stack::new(1);
            let mut options = above.options();
            options.lowers = std::iter::once(below.upper().root().to_owned())
                .chain(below.lowers().iter().map(|lower| lower.root().to_owned()))
                .collect();
            let reader = if written_here { peer.clone() } else { Program::under_test() };
            let mount = Mount::with_program(&reader, &options, above.mountpoint());
            let mut expected = expected;
            // The root's attributes are the new upper's.
            let root = Snapshot::take(above.upper().root());
            expected.entries.insert("".into(), root.entries[std::ffi::OsStr::new("")].clone());
            assert_same(&expected, &mount, &format!("{name}, written here: {written_here}"));
            mount.unmount();
        }
    }
}

/// Every mark that fuse-overlayfs can have written, by hand: `.wh.` files come of uppers that know no device 0:0, and
/// `user.fuseoverlayfs.opaque` of an ordinary user's.
#[test]
fn marks_of_fuse_overlayfs() {
    if !can_mount() {
        support::skip!("needs root, also of a user namespace");
    }
    let stack = Stack::new(2);
    let fill = |layer: &Layer| {
        layer.file("gone", "1").file("opaque/old", "2").file("by-file/old", "3").file("kept/old", "4");
    };
    fill(stack.lower(1));
    // Root's mount doesn't believe what others than root can write.
    let root = support::Privilege::current() == support::Privilege::Root;
    let form = if root { OpaqueForm::Trusted } else { OpaqueForm::FuseOverlayfs };
    let top = stack.lower(0);
    top.whiteout("gone", WhiteoutForm::Aufs).file("opaque/new", "5").opaque("opaque", form);
    top.file("by-file/new", "6").opaque("by-file", OpaqueForm::Aufs).file("kept/new", "7");
    let mount = ours(&stack);
    let found = Snapshot::take_checked(mount.path());
    let paths: Vec<_> = found.entries.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(paths, ["", "by-file", "by-file/new", "kept", "kept/new", "kept/old", "opaque", "opaque/new"]);
    let shown: Vec<_> = found.entries.values().filter(|entry| !entry.xattrs.is_empty()).collect();
    assert!(shown.is_empty(), "marks are shown: {shown:?}");
    mount.unmount();
    for (name, peer) in peers() {
        let mount = theirs(&stack, &peer);
        assert_same(&found, &mount, &format!("under {name}"));
        mount.unmount();
    }
}

#[test]
fn the_same_in_a_user_namespace() {
    support::needs_root!();
    let scratch = support::Scratch::new();
    let copy = |from: &Path, name: &str| {
        let to = scratch.path().join(name);
        fs::copy(from, &to).unwrap();
        to
    };
    let suite = copy(&std::env::current_exe().unwrap(), "suite");
    let Program::Unionmount(path) = Program::under_test() else { support::skip!("only for unionmount") };
    let program = copy(&path, "unionmount");
    let mut command = Command::new("setpriv");
    command.env_remove(support::SKIPS);
    for (version, peer) in peers() {
        let Program::FuseOverlayfs(path) = peer else { continue };
        if version.contains(" 2.") || version.contains("2.0") {
            // root's home is closed to others.
            command.env("PEER_FUSE_OVERLAYFS", copy(&path, "fuse-overlayfs"));
        }
    }
    let work = scratch.dir("scratch");
    std::os::unix::fs::chown(&work, Some(1), Some(1)).unwrap();
    support::run("setfacl", &["-m", "u:1:rw", "/dev/fuse"]);
    let output = command
        .args(["--reuid=1", "--regid=1", "--clear-groups", "unshare", "-Urm"])
        .arg(&suite)
        .args(["--test-threads", "1", "--skip", "the_same_in_a_user_namespace"])
        .env("UNIONMOUNT_BIN", &program)
        .env("UNIONMOUNT_SCRATCH", &work)
        .env("TMPDIR", &work)
        .current_dir(&work)
        .output()
        .unwrap();
    println!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", output.status);
}
