//! Images and containers: import, run, commit, and the snapshotter restarted under them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use rustix::process::Signal;

use crate::containerd::{Containerd, ORACLE, OURS};
use crate::image::{self, Image, NAME};
use crate::needs_containerd;
use crate::server::PROGRAM;
use support::{Fields, Snapshot, Time, diff, wait_until};

fn imported(containerd: &Containerd, snapshotters: &[&str]) -> Image {
    let archive = containerd.at("image.tar");
    let image = image::write(&archive, NAME, image::layers());
    for snapshotter in snapshotters {
        containerd.import(snapshotter, &archive);
    }
    image
}

/// Runs a shell script in a container of its own; says what the script said.
#[track_caller]
fn run(containerd: &Containerd, snapshotter: &str, name: &str, extra: &[&str], script: &str) -> String {
    let arguments =
        [&["run", "--snapshotter", snapshotter], extra, &[NAME, name, "sh", "-c", script]].concat();
    containerd.ctr(&arguments)
}

#[track_caller]
fn same_trees(containerd: &Containerd, key: &str, fields: &Fields) {
    let [ours, oracle] = [OURS, ORACLE].map(|snapshotter| containerd.mount(snapshotter, key));
    let [ours, oracle] = [ours, oracle].map(|mounted| {
        let mut tree = Snapshot::take_checked(mounted.path());
        // The root is the new snapshot's own, as old as that.
        tree.entries.get_mut(OsStr::new("")).unwrap().mtime = Time::Any;
        tree
    });
    assert!(oracle.entries.len() > 10, "{oracle:?}");
    assert_eq!(diff(&oracle, &ours, fields), "", "{key}");
}

#[test]
fn an_image_is_unpacked_as_overlayfs_unpacks_it() {
    needs_containerd!();
    let containerd = Containerd::start();
    let image = imported(&containerd, &[OURS, ORACLE]);
    for (number, layer) in image.chain.iter().enumerate() {
        // Not as a view, which ctr gives nothing that keeps it from being collected.
        let view = format!("view{number}");
        for snapshotter in [OURS, ORACLE] {
            containerd.snapshots(snapshotter, &["prepare", &view, layer]);
        }
        same_trees(&containerd, &view, &Fields::tree());
        let inodes = |snapshotter| {
            let told = containerd.snapshots(snapshotter, &["usage", "-b", layer]);
            let line = told.lines().find(|line| line.starts_with(layer)).unwrap().to_owned();
            line.split_whitespace().last().unwrap().parse::<usize>().unwrap()
        };
        // All whiteouts of a mount are one inode, while containerd makes one for each.
        let (ours, oracle) = (inodes(OURS), inodes(ORACLE));
        assert!(ours == oracle || ours == oracle - 1, "layer {number} has {ours} inodes, not {oracle}");
    }
    let chain = containerd.snapshots(OURS, &["tree"]);
    assert!(image.chain.iter().all(|layer| chain.contains(layer)), "{chain}");
}

/// What a container or a build does to a tree. Everything has a time of its own in both trees.
fn change(top: &Path) {
    fs::write(top.join("etc/release"), "three\n").unwrap();
    fs::remove_file(top.join("third")).unwrap();
    fs::remove_dir_all(top.join("cache")).unwrap();
    fs::create_dir(top.join("cache")).unwrap();
    fs::write(top.join("cache/only"), "only").unwrap();
    fs::hard_link(top.join("home/user/mine"), top.join("home/again")).unwrap();
    chown(top.join("etc/shadow"), Some(1), Some(2)).unwrap();
    symlink("/nowhere", top.join("link")).unwrap();
    fs::remove_file(top.join("null")).unwrap();
    fs::create_dir(top.join("null")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(top.join("noted"), "user.note", b"changed", flags).unwrap();
}

#[test]
fn changes_are_committed_and_diffed_as_overlayfs_does() {
    needs_containerd!();
    let containerd = Containerd::start();
    let image = imported(&containerd, &[OURS, ORACLE]);
    let mut diffs = Vec::new();
    for snapshotter in [OURS, ORACLE] {
        containerd.snapshots(snapshotter, &["prepare", "work", image.top()]);
        let mounted = containerd.mount(snapshotter, "work");
        change(mounted.path());
        drop(mounted);
        // containerd walks the snapshot and its parent through two mounts.
        let tar = containerd.at(&format!("diff-{snapshotter}.tar"));
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        let told = containerd.try_ctr(&[
            "snapshots",
            "--snapshotter",
            snapshotter,
            "diff",
            "--media-type",
            media_type,
            "work",
        ]);
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        fs::write(&tar, &told.stdout).unwrap();
        diffs.push(listed(&tar));
        containerd.snapshots(snapshotter, &["commit", "committed", "work"]);
        containerd.snapshots(snapshotter, &["prepare", "view", "committed"]);
    }
    let fields = Fields { mtime: false, directory_mtime: false, ..Fields::tree() };
    same_trees(&containerd, "view", &fields);
    assert_eq!(diffs[0], diffs[1]);
    assert!(diffs[0].iter().any(|line| line.contains(".wh.third")), "{:?}", diffs[0]);
}

/// Names, types, owners, modes and sizes of a tar.
fn listed(tar: &Path) -> Vec<String> {
    let mut archive = tar::Archive::new(fs::File::open(tar).unwrap());
    let mut lines: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            format!(
                "{} {:?} {:o} {} {} {} {:?}",
                entry.path().unwrap().display(),
                header.entry_type(),
                header.mode().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap(),
                header.size().unwrap(),
                entry.link_name().unwrap(),
            )
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn containers_run_and_leave_nothing() {
    needs_containerd!();
    let containerd = Containerd::start();
    imported(&containerd, &[OURS]);
    let mounts_before = mounts(containerd.scratch.path());
    let said = run(
        &containerd,
        OURS,
        "one",
        &["--rm"],
        "cat /etc/release; test ! -e /etc/gone; rm /first && mkdir /made && mv /cache /made/ && ls /made/cache; id -u",
    );
    assert_eq!(said, "two\ndeep\nnew\n0\n");
    // Another user reaches the mount too, and is held to the modes.
    let script = r#"su user -c "cat mine; cat /etc/shadow || id -u""#;
    let said = run(&containerd, OURS, "two", &["--rm", "--cwd", "/home/user"], script);
    assert_eq!(said, "mine1000\n");
    let left = containerd.snapshots(OURS, &["ls"]);
    assert!(!left.contains("Active"), "{left}");
    assert!(wait_until(support::PATIENCE, || { mounts(containerd.scratch.path()) == mounts_before }));
    let place = containerd.server.as_ref().unwrap().root().join("snapshots");
    let only_the_image = || fs::read_dir(&place).unwrap().count() == 3;
    assert!(wait_until(support::PATIENCE, only_the_image), "{}", containerd.log());
}

#[test]
fn the_snapshotter_may_go_and_come_back_under_running_containers() {
    needs_containerd!();
    let mut containerd = Containerd::start();
    imported(&containerd, &[OURS]);
    containerd.ctr(&["run", "-d", "--snapshotter", OURS, NAME, "c", "sleep", "1000"]);
    let exec = |containerd: &Containerd, id: &str, script: &str| {
        containerd.ctr(&["tasks", "exec", "--exec-id", id, "c", "sh", "-c", script])
    };
    exec(&containerd, "before", "echo before > /etc/release");
    let mounted = mounts(containerd.scratch.path());
    assert!(mounted > 0);
    containerd.server.take().unwrap().kill();
    let said =
        exec(&containerd, "dead", "cat /etc/release; echo without > /tmp/without; rm -r /cache; ls /bin/sh");
    assert_eq!(said, "before\n/bin/sh\n");
    assert_eq!(mounts(containerd.scratch.path()), mounted);
    let unreachable = containerd.try_ctr(&["snapshots", "--snapshotter", OURS, "view", "v", "none"]);
    assert!(!unreachable.status.success());
    containerd.start_server();
    assert_eq!(
        exec(&containerd, "after", "cat /tmp/without; test -e /cache || echo gone"),
        "without\ngone\n"
    );
    assert_eq!(run(&containerd, OURS, "other", &["--rm"], "cat /etc/release"), "two\n");
    // In order this time, and the container's end is the next one's to see.
    assert_eq!(containerd.server.take().unwrap().signal(Signal::TERM).code, Some(0));
    containerd.start_server();
    containerd.ctr(&["tasks", "kill", "-s", "KILL", "c"]);
    assert!(wait_until(support::PATIENCE, || { containerd.try_ctr(&["tasks", "rm", "c"]).status.success() }));
    // Its changes are still there, for whoever commits them, until it is removed.
    containerd.snapshots(OURS, &["commit", "kept", "c"]);
    containerd.snapshots(OURS, &["prepare", "view", "kept"]);
    let view = containerd.mount(OURS, "view");
    assert_eq!(fs::read_to_string(view.path().join("tmp/without")).unwrap(), "without\n");
    assert!(!view.path().join("cache").exists());
}

#[test]
fn containers_in_a_user_namespace_see_their_own_owners() {
    needs_containerd!();
    let containerd = Containerd::start();
    imported(&containerd, &[OURS]);
    let map = "0:100000:65536";
    let extra = ["--uidmap", map, "--gidmap", map, "--remap-labels"];
    let script = "cat /proc/self/uid_map /etc/shadow; su user -c 'cat /home/user/mine'; rm /home/user/mine; echo x > /made";
    let said = run(&containerd, OURS, "mapped", &extra, script);
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "secretmine"]);
}

/// As containerd's fuse-overlayfs-snapshotter: the mount's type is `fuse3.fuse-overlayfs`.
#[test]
fn containers_run_on_mounts_of_the_type_fuse_overlayfs() {
    needs_containerd!();
    let bin = support::Scratch::new();
    symlink(PROGRAM, bin.path().join("fuse-overlayfs")).unwrap();
    let containerd =
        Containerd::start_with(&["--mount-program".into(), "fuse-overlayfs".into()], Some(bin.path()));
    imported(&containerd, &[OURS]);
    assert_eq!(run(&containerd, OURS, "one", &["--rm"], "rm -r /cache; cat /etc/release"), "two\n");
}

#[test]
fn removed_images_and_containers_are_collected() {
    needs_containerd!();
    let containerd = Containerd::start();
    imported(&containerd, &[OURS]);
    run(&containerd, OURS, "one", &[], "rm /first");
    let place = containerd.server.as_ref().unwrap().root().join("snapshots");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 4);
    containerd.ctr(&["containers", "rm", "one"]);
    containerd.ctr(&["images", "rm", "--sync", NAME]);
    let empty = || fs::read_dir(&place).unwrap().count() == 0;
    assert!(wait_until(support::PATIENCE, empty), "{}", containerd.log());
    assert_eq!(containerd.server.as_ref().unwrap().client().list(&[]).unwrap().len(), 0);
}

fn mounts(below: &Path) -> usize {
    let names = |text: &str| text.contains(below.to_str().unwrap());
    let uses = |mount: &support::MountInfo| {
        mount.point.starts_with(below) || mount.options.iter().any(|word| names(word))
    };
    support::mounts().iter().filter(|mount| uses(mount)).count()
}
