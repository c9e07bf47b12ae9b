//! A container's whole tree as a tar, and the mounts that are known by their source.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Bed, Success, lacking};

/// A container with more in it than a pipe holds.
fn filled(bed: &Bed) {
    bed.um(&["create", "--name", "c", "bb"]).ok();
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    bed.sh(&format!("head -c 3M /dev/urandom > {at}/aaa")).ok();
    bed.um(&["umount", "c"]).ok();
}

fn is_mounted(bed: &Bed) -> bool {
    !support::mounts_below(bed.place.path()).is_empty()
}

#[test]
fn an_export_mounts_nothing_and_leaves_nothing_whatever_ends_it() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    filled(&bed);
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        // A shell's background jobs ignore SIGINT, and so would what they start.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(bed.place.bin());
        let command = bed.prepare(command.args(["export", "c"])).stdout(Stdio::piped());
        let mut export = command.spawn().unwrap();
        let mut out = export.stdout.take().unwrap();
        // It is in its midst: the tar is larger than what the pipe takes.
        out.read_exact(&mut [0; 512]).unwrap();
        assert!(!is_mounted(&bed), "it can be taken from nobody, or taken for somebody's");
        bed.um(&["umount", "c"]).refused(1, &["mounted nowhere"]);
        rustix::process::kill_process(rustix::process::Pid::from_child(&export), signal).unwrap();
        export.wait().unwrap();
        assert!(!is_mounted(&bed) && bed.place.daemons().is_empty());
        let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
        assert_eq!(fs::metadata(format!("{at}/aaa")).unwrap().len(), 3 << 20);
        bed.um(&["umount", "c"]).ok();
    }
    bed.um(&["rm", "c"]).ok();
}

/// Both ways of reading it write the same bytes.
fn exported_alike(bed: &Bed) {
    bed.um(&["create", "--name", "c", "bb"]).ok();
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    // One file by two names of which one was copied up, a renamed directory, one that was deleted, and attributes.
    bed.sh(&format!(
        "cd {at} && echo more >> data/one && mv data moved && mkdir d && ln etc/os etc/linked && rm etc/group && \
         chmod 640 etc/passwd && touch -d '2001-02-03 04:05:06.5 UTC' etc/passwd && setfattr -n user.x -v y etc/passwd"
    ))
    .ok();
    bed.um(&["export", "-o", "mounted.tar", "c"]).ok();
    bed.um(&["umount", "c"]).ok();
    bed.um(&["export", "-o", "home/unmounted.tar", "c"]).ok();
    bed.um(&["mount", "c", "own"]).ok();
    bed.um(&["export", "-o", "own.tar", "c"]).ok();
    bed.um(&["umount", "own"]).ok();
    bed.sh("cmp mounted.tar own.tar && cmp mounted.tar home/unmounted.tar").ok();
    bed.sh("mkdir out && tar -C out -xf mounted.tar --no-same-owner").ok();
    let read = |name: &str| fs::read_to_string(bed.place.at("out").join(name)).unwrap();
    assert_eq!((read("moved/one"), read("moved/two")), ("one\nmore\n".to_owned(), "one\nmore\n".to_owned()));
    assert!(!Path::new(&bed.place.at("out/etc/group")).exists());
    bed.um(&["rm", "c"]).ok();
}

fn with_links(bed: &Bed) {
    bed.place
        .sh("echo one > image/data/one && ln image/data/one image/data/two && tar -C image -cf image.tar .")
        .ok();
    bed.um(&["import", "image.tar", "bb"]).success();
}

#[test]
fn mounted_anywhere_or_not_the_same_is_exported() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.place.mkdir("own");
    with_links(&bed);
    exported_alike(&bed);
}

#[test]
fn a_user_exports_what_the_containers_root_sees() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    if !support::is_installed("newuidmap") {
        support::skip!("needs the package uidmap");
    }
    let bed = Bed::of_user();
    with_links(&bed);
    bed.um(&["create", "--name", "c", "bb"]).ok();
    // The user may write to none of what the image's root owns; the layer is the user's own.
    let upper = bed.container("c").join("diff");
    bed.sh(&format!("cd {} && echo more > new && mknod gone c 0 0", upper.display())).ok();
    bed.um(&["export", "-o", "home/c.tar", "c"]).ok();
    let listed = bed.sh("tar --numeric-owner -tvf home/c.tar").ok().out;
    let line = |name: &str| listed.lines().find(|line| line.ends_with(name)).unwrap_or_default().to_owned();
    assert!(line("etc/passwd").starts_with("-rw-r--r-- 0/0"), "{listed}");
    assert!(line("data/sub/f").starts_with("-rw-r--r-- 1000/29"), "{listed}");
    assert!(line(" new").starts_with("-rw-r--r-- 0/0") && line(" gone").is_empty(), "{listed}");
    assert!(bed.place.daemons().is_empty());
    bed.um(&["rm", "c"]).ok();
}

/// Whoever mounts chooses the source.
#[test]
fn a_mount_of_another_user_is_nobodys_container() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    filled(&bed);
    fs::set_permissions(bed.place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let source = bed.um(&["ps", "-a", "--format", "{{.ID}}"]).ok().out.trim().to_owned();
    let theirs = bed.place.mkdir("theirs");
    let (uid, gid) = support::cli::user();
    std::os::unix::fs::chown(&theirs, Some(uid), Some(gid)).unwrap();
    let script =
        format!("mkdir theirs/l theirs/m && ./unionmount --lower theirs/l unionmount-{source} theirs/m");
    bed.place.sh_as_user(&script).ok();
    bed.um(&["commit", "c", "new:1"]).ok();
    bed.um(&["export", "-o", "c.tar", "c"]).ok();
    assert!(bed.sh("tar -tf c.tar").ok().out.contains("aaa"));
    bed.um(&["umount", "c"]).refused(1, &["mounted nowhere"]);
    bed.um(&["mount", "c"]).ok();
    bed.um(&["umount", "c"]).ok();
    assert!(bed.place.mounted("theirs/m").is_some(), "it is theirs");
    bed.place.umount("theirs/m");
    bed.place.wait_for_no_daemon();
}
