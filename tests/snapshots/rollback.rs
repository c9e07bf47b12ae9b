//! Rollbacks of what is mounted.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use support::cli::Place;

use crate::{build, change, change_more, mount, numbers, printed, unmount};

fn snapshot(place: &Place, name: &str) {
    assert_eq!(printed(place.unionmount(&["snapshot", "mnt", name])), format!("{name}\n"));
}

fn go_back(place: &Place, words: &[&str], to: &str) {
    assert_eq!(printed(place.unionmount(&[&["rollback"], words].concat())), format!("{to}\n"));
}

/// FUSE_NOTIFY_INC_EPOCH.
fn kernel_can() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|word| word.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 16)
}

#[test]
fn a_mount_shows_what_it_showed_at_the_snapshot() {
    support::needs_root!();
    if !kernel_can() {
        support::skip!("needs Linux 6.16");
    }
    let place = Place::new();
    build(&place);
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    let root = place.at("mnt");
    change(&root);
    snapshot(&place, "one");
    let one = (support::Snapshot::take(&root), numbers(&root));
    // All that is cached: contents, listings, names that are missing.
    let look = || {
        support::Snapshot::take(&root);
        assert!(!root.join("later").exists());
    };
    look();
    change_more(&root);
    fs::write(root.join("later"), "later").unwrap();
    support::Snapshot::take(&root);
    go_back(&place, &["mnt"], "one");
    crate::assert_same(&one.0, &root, &support::Fields::tree(), "back");
    assert!(!root.join("later").exists());
    // It is written to as before.
    change_more(&root);
    snapshot(&place, "two");
    fs::remove_dir_all(root.join("d")).unwrap();
    let two = printed(place.unionmount(&["diff", "mnt", "one..two"]));
    for to in ["two", "0", "one", "two"] {
        go_back(&place, &["mnt", to], to);
        look();
    }
    assert_eq!(printed(place.unionmount(&["diff", "--since", "one", "mnt"])), two);
    go_back(&place, &["mnt", "0"], "0");
    assert_eq!(printed(place.unionmount(&["diff", "--since", "0", "mnt"])), "");
    assert_eq!(fs::read_to_string(root.join("replaced/old")).unwrap(), "b/replaced/old");
    go_back(&place, &["mnt", "one"], "one");
    unmount(&place);
    mount(&place, &["--upper", "up"]);
    crate::assert_same(&one.0, &root, &support::Fields::tree(), "in the next mount");
    assert_eq!(numbers(&root), one.1);
    unmount(&place);
    let left: Vec<_> =
        fs::read_dir(place.at(".up.layers")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name == "gone" || name == "new"), "{left:?}");
}

#[test]
fn what_is_open_and_is_no_more_is_stale_and_the_rest_stays() {
    support::needs_root!();
    if !kernel_can() {
        support::skip!("needs Linux 6.16");
    }
    let place = Place::new();
    build(&place);
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    let root = place.at("mnt");
    fs::write(root.join("in-one"), "in one").unwrap();
    snapshot(&place, "one");
    fs::write(root.join("changed"), "since").unwrap();
    fs::create_dir(root.join("new-dir")).unwrap();
    let open = |name: &str| {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(root.join(name)).unwrap()
    };
    let (mut kept, mut frozen) =
        (File::open(root.join("kept")).unwrap(), File::open(root.join("in-one")).unwrap());
    let (changed, mut new) = (open("changed"), open("new-dir/new"));
    new.write_all(b"new").unwrap();
    // The kernel has it in its cache.
    changed.read_exact_at(&mut [0; 5], 0).unwrap();
    place
        .unionmount(&["rollback", "mnt"])
        .refused(1, &[&std::process::id().to_string(), "4 files", "--force"]);
    assert_eq!(fs::read_to_string(root.join("changed")).unwrap(), "since", "nothing happened");
    go_back(&place, &["--force", "mnt"], "one");
    let mut text = String::new();
    kept.read_to_string(&mut text).unwrap();
    frozen.read_to_string(&mut text).unwrap();
    assert_eq!(text, "b/keptin one");
    assert_eq!(frozen.metadata().unwrap().ino(), fs::metadata(root.join("in-one")).unwrap().ino());
    let cached = changed.read_at(&mut [0; 5], 0).unwrap_err();
    assert_eq!(cached.kind(), ErrorKind::StaleNetworkFileHandle, "what was read of it is no more");
    for gone in [&changed, &new] {
        assert_eq!(gone.metadata().unwrap_err().kind(), ErrorKind::StaleNetworkFileHandle);
        assert_eq!((&*gone).write(b"x").unwrap_err().kind(), ErrorKind::StaleNetworkFileHandle);
    }
    assert!(!root.join("new-dir").exists());
    assert_eq!(fs::read_to_string(root.join("changed")).unwrap(), "b/changed");
    // Whoever looks at what is no more changes nothing about its name.
    fs::write(place.at("other"), "other").unwrap();
    place.sh("mount --bind other mnt/changed").ok();
    assert_eq!(changed.metadata().unwrap_err().kind(), ErrorKind::StaleNetworkFileHandle);
    assert_eq!(fs::read_to_string(root.join("changed")).unwrap(), "other", "it is mounted there still");
    place.sh("umount mnt/changed").ok();
    // What is made now is nobody's who has something of the past open, whatever number it has.
    for number in 0..200 {
        fs::write(root.join(format!("made-{number}")), "made now").unwrap();
    }
    fs::write(root.join("changed"), "now").unwrap();
    for gone in [&changed, &new] {
        assert_eq!((&*gone).read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::StaleNetworkFileHandle);
    }
    drop((changed, new, kept, frozen));
    assert_eq!(fs::read_to_string(root.join("changed")).unwrap(), "now");
    unmount(&place);
}

#[test]
fn a_program_goes_on_in_a_directory_that_is_still_there() {
    support::needs_root!();
    if !kernel_can() {
        support::skip!("needs Linux 6.16");
    }
    let place = Place::new();
    build(&place);
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    snapshot(&place, "one");
    let script = format!(
        "cd mnt/d/e && echo there >file && test -e file && {} rollback --force ../.. one && test ! -e file && echo again >file && \
         cat file && test \"$(pwd -P)\" = \"$(readlink /proc/self/cwd)\" && ls .. | tr '\\n' ' '",
        place.bin().display()
    );
    assert_eq!(printed(place.sh(&script)), "one\nagain\ndeleted e kept top ");
    fs::write(place.at("other"), "other").unwrap();
    place.sh("mount --bind other mnt/kept").ok();
    place.unionmount(&["rollback", "mnt"]).refused(1, &["mnt/kept is mounted in it", "--force"]);
    place.sh("umount mnt/kept").ok();
    place.unionmount(&["rollback", "mnt", "none"]).refused(1, &["no snapshot", "the mount goes on"]);
    unmount(&place);
}
