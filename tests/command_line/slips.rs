//! What looks like success and isn't.

use std::fs;
use std::os::unix::fs::symlink;

use support::cli::{Place, is_root};

use crate::on_a_terminal;

#[test]
fn a_layer_that_stands_alone_is_not_lost() {
    let place = Place::new();
    for archive in ["app.tar", "base.tar"] {
        fs::write(place.at(archive), "").unwrap();
    }
    for (line, says) in [
        ("--lower app.tar base.tar mnt", "--lower app.tar:base.tar"),
        ("--lower a base.tar,layer --upper up mnt", "base.tar,layer would be no layer"),
        ("--lower a b base.tar mnt", "b and base.tar would be no layer"),
        ("--lower a b --upper up mnt", "--lower a:b"),
        ("--lower a b mnt", "--lower a:b"),
        ("--lower a b up mnt", "b and up would be no layer"),
        ("-o lowerdir=a b --upper up mnt", "b would be no layer"),
    ] {
        place.sh(&format!("./unionmount {line}")).refused(2, &[says]);
        assert!(place.mounted("mnt").is_none(), "{line}");
    }
}

#[test]
fn a_source_that_is_no_layer_is_as_before() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    symlink("unionmount", place.at("mount.fuse.unionmount")).unwrap();
    symlink("unionmount", place.at("fuse-overlayfs")).unwrap();
    for line in [
        "./unionmount --lower a none mnt",
        // In the words of engines and of mount(8), a directory is a source like any other.
        "./unionmount -o lowerdir=a,upperdir=up b mnt",
        "./fuse-overlayfs -o lowerdir=a,upperdir=up b mnt",
        "./mount.fuse.unionmount b mnt -o lowerdir=a,upperdir=up",
    ] {
        place.sh(line).ok();
        place.umount("mnt");
        place.wait_for_no_daemon();
    }
}

#[test]
fn slips_in_options_are_told_to_people_and_pass_for_engines() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    symlink("unionmount", place.at("fuse-overlayfs")).unwrap();
    symlink("unionmount", place.at("mount.fuse.unionmount")).unwrap();
    for (option, meant) in [("uperdir=up", "upperdir"), ("noatmie", "noatime"), ("upper=up", "upperdir")] {
        let meant = format!("did you mean {meant}?");
        place.sh(&format!("./unionmount --lower a -o {option} mnt")).refused(2, &[&meant]);
        let seen = on_a_terminal(&place, 80, &format!("./unionmount -o lowerdir=a,{option} mnt"));
        assert!(seen.code == Some(2) && seen.out.contains(&meant), "{seen:?}");
        assert!(place.mounted("mnt").is_none());
        for line in [
            format!("./unionmount -o lowerdir=a,{option} mnt"),
            format!("./fuse-overlayfs -o lowerdir=a,{option} mnt"),
            format!("./mount.fuse.unionmount none mnt -o lowerdir=a,{option}"),
        ] {
            let ended = place.sh(&line);
            assert_eq!(ended.code, Some(0), "{line}: {ended:?}");
            assert_eq!(ended.err, format!("unionmount: unknown option ignored: {option}\n"), "{line}");
            place.umount("mnt");
            place.wait_for_no_daemon();
        }
    }
    // What is like nothing is a warning everywhere.
    let ended = place.sh("./unionmount --lower a -o frobnicate mnt");
    assert_eq!((ended.code, &ended.err[..]), (Some(0), "unionmount: unknown option ignored: frobnicate\n"));
    place.umount("mnt");
}

#[test]
fn who_stays_with_a_mount_is_told_when_it_is_there() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let mount =
        "./unionmount -f --lower a --upper up mnt & until mountpoint -q mnt; do :; done; umount mnt; wait $!";
    let seen = on_a_terminal(&place, 80, mount);
    assert_eq!(seen.code, Some(0), "{seen:?}");
    assert!(seen.out.contains("mnt is mounted; Ctrl-C unmounts it"), "{seen:?}");
    // Programs that start it so read what it says.
    let quiet = place.sh(&format!("{{ {mount}; }} 2>&1")).ok();
    assert_eq!(quiet.out, "");
}

#[test]
fn a_mount_without_an_upper_says_so_on_a_terminal() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    for (line, told) in [
        ("--lower a", true),
        ("--lower a -o ro", false),
        ("--lower a --upper up", false),
        ("--lower a --upper up -o ro", false),
    ] {
        let seen = on_a_terminal(&place, 80, &format!("./unionmount {line} mnt"));
        assert_eq!((seen.code, seen.out.contains("read-only")), (Some(0), told), "{line}: {seen:?}");
        place.umount("mnt");
        place.wait_for_no_daemon();
    }
    place.sh("./unionmount --lower a mnt").ok();
    assert!(fs::write(place.at("mnt/f"), "").is_err());
    place.umount("mnt");
}
