//! Each bad input: one line that names the cause and the way out, the right exit status, nothing created, nothing
//! mounted.

#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use support::cli::{Place, is_root, run};

/// Runs the program, which must refuse, and compares the scratch directory before and after.
#[track_caller]
fn refused(place: &Place, code: i32, args: &[&str], parts: &[&str]) {
    let before = listing(place);
    place.unionmount(args).refused(code, parts);
    assert_eq!(listing(place), before, "{args:?}");
    assert!(place.mounted("mnt").is_none(), "{args:?}");
    place.wait_for_no_daemon();
}

fn listing(place: &Place) -> String {
    run(Command::new("find").arg(place.path()).args(["-printf", "%p %m %y\\n"])).out
}

#[test]
fn the_command_line() {
    let place = Place::new();
    for (args, parts) in [
        (&["--lower", "a"][..], &["MOUNTPOINT", "see unionmount --help"][..]),
        (&["mnt"], &["no lower layer given", "--lower"]),
        (&["--loer", "a", "mnt"], &["--loer", "--lower"]),
        (&["--lower", "a", "x", "y", "z"], &["'x', 'y', 'z'"]),
        (&["--lower", "a:", "mnt"], &["empty name"]),
        (&["--lower", "a", "-o", "lowerdir=b", "mnt"], &["given twice"]),
        (&["--lower", "a", "-o", "uidmapping=1", "mnt"], &["uidmapping", "ON_DISK:SHOWN:LENGTH"]),
        (&["completions", "tcsh"], &["tcsh", "bash"]),
    ] {
        refused(&place, 2, args, parts);
    }
    refused(&place, 1, &["--lower", "a", "-o", "remount", "mnt"], &["mnt: remount: no mount of unionmount"]);
    let help = place.unionmount::<&str>(&[]);
    assert_eq!(help.code, Some(2));
    assert!(help.err.contains("Usage: unionmount --lower"), "{help:?}");
}

#[test]
fn layers_that_are_no_directories() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    fs::write(place.at("file"), "x").unwrap();
    symlink("nowhere", place.at("dangling")).unwrap();
    symlink("loop", place.at("loop")).unwrap();
    let missing = "no such directory";
    for (args, parts) in [
        (&["--lower", "a:nix", "--upper", "up", "mnt"][..], &["lower layer 2 nix", missing, "mkdir"][..]),
        (&["--lower", "dangling", "mnt"], &["lower layer 1 dangling", missing]),
        (&["--lower", "loop", "mnt"], &["lower layer 1 loop", "symbolic links"]),
        (&["--lower", "file", "mnt"], &["lower layer 1 file", "no archive that can be a layer"]),
        (&["--lower", "a", "--upper", "nix", "mnt"], &["upper layer nix", missing]),
        (&["--lower", "a", "--upper", "file", "mnt"], &["upper layer file", "not a directory"]),
        (&["--lower", "a", "--upper", "up", "--work", "file", "mnt"], &["workdir file", "not a directory"]),
        (&["--lower", "a", "--upper", "up", "--work", "no/w", "mnt"], &["workdir no/w", missing]),
        (&["--lower", "a", "--work", "w", "mnt"], &["workdir", "--upper"]),
        (&["--lower", "a", "--upper", "up", "nix"], &["mount point nix", missing]),
        (&["--lower", "a", "--upper", "up", "file"], &["mount point file", "not a directory"]),
    ] {
        refused(&place, 1, args, parts);
    }
}

#[test]
fn directories_in_two_roles_and_inside_one_another() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    for dir in ["a/in", "up/in"] {
        place.mkdir(dir);
    }
    symlink("a", place.at("same")).unwrap();
    for (args, parts) in [
        (
            &["--lower", "a:b:b/../same", "mnt"][..],
            &["lower layer 3 b/../same", "lower layer 1 a", "only once"][..],
        ),
        (&["--lower", "a", "--upper", "same", "mnt"], &["upper layer same", "same directory"]),
        (&["--lower", "a", "--upper", "up", "--work", "up", "mnt"], &["workdir up", "same directory"]),
        (&["--lower", "a", "--upper", "up", "up"], &["mount point up", "same directory"]),
        (&["--lower", "up/in", "--upper", "up", "mnt"], &["lower layer 1 up/in", "inside upper layer up"]),
        (
            &["--lower", "a", "--upper", "up", "--work", "up/in", "mnt"],
            &["workdir up/in", "inside upper layer"],
        ),
        (
            &["--lower", "a", "--upper", "up", "--work", "up/new", "mnt"],
            &["workdir up/new", "inside upper layer"],
        ),
        (&["--lower", "a", "--upper", "up", "up/in"], &["mount point up/in", "inside upper layer up"]),
    ] {
        refused(&place, 1, args, parts);
    }
}

#[test]
fn what_an_ordinary_user_may_not() {
    if !is_root() {
        support::skip!("needs root, to become an ordinary user");
    }
    let place = Place::of_user();
    for (dir, mode) in [("closed", 0o700), ("listed", 0o711), ("fixed", 0o755)] {
        fs::set_permissions(place.mkdir(dir), fs::Permissions::from_mode(mode)).unwrap();
    }
    place.mkdir("closed/in");
    place.mkdir("fixed/up");
    std::os::unix::fs::chown(place.at("fixed/up"), Some(support::cli::user().0), None).unwrap();
    let before = listing(&place);
    for (args, parts) in [
        ("--lower closed/in mnt", &["lower layer 1 closed/in", "permission denied", "search permission"][..]),
        ("--lower listed mnt", &["lower layer 1 listed", "permission denied", "read"]),
        ("--lower a --upper fixed mnt", &["upper layer fixed", "permission denied", "write"]),
        ("--lower a --upper fixed/up mnt", &["upper layer fixed/up", "no workdir", "--work"]),
        ("--lower a --upper up fixed", &["fixed", "no write access", "directory of your own"]),
        ("--lower a --upper up -o allow_other mnt", &["user_allow_other", "/etc/fuse.conf"]),
    ] {
        place.sh_as_user(&format!("./unionmount {args}")).refused(1, parts);
        assert_eq!(listing(&place), before, "{args}");
    }
}

#[test]
fn a_default_workdir_of_somebody_else_is_not_used() {
    if !is_root() {
        support::skip!("needs root, to become an ordinary user");
    }
    let place = Place::of_user();
    place.sh_as_user("mkdir .up.work").ok();
    refused(
        &place,
        1,
        &["--lower", "a", "--upper", "up", "mnt"],
        &["upper layer up", "another user", "--work"],
    );
}

#[test]
fn filesystems_that_cannot_serve_an_upper() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    for dir in ["ro", "tmp"] {
        place.mkdir(dir);
    }
    place.sh("mount -t tmpfs -o ro none ro && mount -t tmpfs none tmp && mkdir tmp/up tmp/w").ok();
    let readonly = &["upper layer ro", "read-only filesystem", "remount"];
    refused(&place, 1, &["--lower", "a", "--upper", "ro", "--work", "w", "mnt"], readonly);
    let root = &["upper layer tmp", "root of a mount", "--work"];
    refused(&place, 1, &["--lower", "a", "--upper", "tmp", "mnt"], root);
    for work in ["tmp/w", "tmp/new"] {
        let elsewhere = &["workdir tmp/", "same filesystem as upper layer up"];
        refused(&place, 1, &["--lower", "a", "--upper", "up", "--work", work, "mnt"], elsewhere);
    }
    // The same filesystem by another mount: rename(2) does not cross it.
    place.sh("mkdir bind && mount --bind tmp/w bind").ok();
    let mount = &["workdir bind", "same mount as upper layer tmp/up"];
    refused(&place, 1, &["--lower", "a", "--upper", "tmp/up", "--work", "bind", "mnt"], mount);

    // A union mount lets nobody make the marks of one.
    let marks = "cannot hold an overlay's marks";
    for dir in ["inner", "outer"] {
        place.mkdir(dir);
    }
    for options in ["rw", "noxattrs=1"] {
        place.unionmount(&["--lower", "a", "--upper", "up", "-o", options, "inner"]).ok();
        place.mkdir("inner/up");
        let before = place.names("inner");
        let args = ["--lower", "b", "--upper", "inner/up", "outer"];
        place.unionmount(&args).refused(1, &["upper layer inner/up", marks, "ext4"]);
        assert_eq!(place.names("inner"), before);
        place.umount("inner");
    }

    let made =
        place.sh("truncate -s 8M fat.img && PATH=$PATH:/sbin mkfs.vfat fat.img && mkdir fat && mount -o loop fat.img fat");
    if made.code != Some(0) && made.err.contains("unknown filesystem type") {
        eprintln!("not tried on vfat, which this kernel doesn't know");
        return;
    }
    assert_eq!(made.code, Some(0), "{}", made.err);
    place.sh("mkdir fat/up").ok();
    refused(&place, 1, &["--lower", "a", "--upper", "fat/up", "mnt"], &["upper layer fat/up", marks, "ext4"]);
}

#[test]
fn workdirs_that_are_not_ours_to_use() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    place.mkdir("full/photos");
    place.mkdir("future/work/incompat/shiny");
    place.mkdir("torn/work/incompat/volatile");
    for (work, parts) in [
        ("full", &["workdir full", "holds photos", "empty directory"][..]),
        ("future", &["workdir future", "feature shiny"]),
        ("torn", &["upper layer up", "volatile", "remove torn/work/incompat/volatile"]),
    ] {
        refused(&place, 1, &["--lower", "a", "--upper", "up", "--work", work, "mnt"], parts);
    }
}

#[test]
fn a_leftover_that_cannot_be_removed() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    place.mkdir("w/work/x");
    fs::write(place.at("w/work/x/stuck"), "x").unwrap();
    if place.sh("chattr +i w/work/x/stuck").code != Some(0) {
        support::skip!("no immutable files here");
    }
    let parts = &["workdir w", "cannot remove work/x", "chattr -R -i"];
    refused(&place, 1, &["--lower", "a", "--upper", "up", "--work", "w", "mnt"], parts);
    place.sh("chattr -i w/work/x/stuck").ok();
}

#[test]
fn what_is_in_use() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    for dir in ["mnt2", "up2"] {
        place.mkdir(dir);
    }
    place.unionmount(&["--lower", "a", "--upper", "up", "--work", "w", "mnt"]).ok();
    let unmount = "unmount that first";
    for (args, parts) in [
        (&["--lower", "b", "--upper", "up", "mnt2"][..], &["upper layer up", "in use", unmount][..]),
        (&["--lower", "b", "--upper", "up2", "--work", "w", "mnt2"], &["workdir w", "in use", unmount]),
        (&["--lower", "b", "mnt"], &["mount point mnt", "busy", "umount mnt"]),
    ] {
        place.unionmount(args).refused(1, parts);
    }
    assert_eq!(place.names(""), ["a", "b", "mnt", "mnt2", "up", "up2", "w"]);
    assert!(place.mounted("mnt2").is_none() && place.mounted("mnt").is_some());
    place.umount("mnt");
}

#[test]
fn the_device_is_missing_or_forbidden() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::of_user();
    let (uid, _) = support::cli::user();
    let before = listing(&place);
    let dev = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3";
    let missing = format!("unshare --mount sh -e -c '{dev} && ./unionmount --lower a --upper up mnt'");
    place.sh(&missing).refused(1, &["/dev/fuse is missing", "modprobe fuse", "--device /dev/fuse"]);
    let forbidden = format!(
        "unshare --mount sh -e -c '{dev} && mknod -m 600 /dev/fuse c 10 229 && \
         setpriv --reuid {uid} --regid {uid} --clear-groups ./unionmount --lower a --upper up mnt'"
    );
    let way_out = format!("setfacl -m u:{uid}:rw /dev/fuse");
    place.sh(&forbidden).refused(1, &[&format!("cannot be opened by uid {uid}"), &way_out]);
    assert_eq!(listing(&place), before);
}

#[test]
fn a_log_file_that_cannot_be_written() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let args = ["--lower", "a", "--upper", "up", "--log-file", "no/log", "mnt"];
    refused(&place, 1, &args, &["log file no/log", "cannot be opened"]);
}
