//! Layers that are not of one piece: filesystems, subvolumes and parts of the layer itself mounted inside.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::{names, read, stat};
use support::{LoopFilesystem, Mount, Options, Program, Scratch, Snapshot, Stack};

fn append(path: impl AsRef<Path>, text: &str) {
    fs::File::options().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn numbers(mount: &Mount) -> BTreeMap<OsString, u64> {
    let taken = Snapshot::take_checked(mount.path());
    taken.entries.into_iter().map(|(path, entry)| (path, entry.ino)).collect()
}

/// The kernel's overlayfs doesn't look into mounts.
macro_rules! needs_unionmount_as_root {
    () => {
        support::needs_root!();
        if Program::under_test() == Program::Kernel {
            support::skip!("the kernel's overlayfs shows what a mount covers");
        }
    };
}

/// Two names of one file in `place` of the layer stay one file, in this mount and in the next, under the same numbers.
fn names_stay_one_file(stack: &Stack, place: &str) {
    let inside = stack.lower(0).root().join(place);
    fs::write(inside.join("f"), "A").unwrap();
    fs::hard_link(inside.join("f"), inside.join("g")).unwrap();
    fs::write(inside.join("alone"), "A").unwrap();
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    let first = numbers(&mount);
    // Whichever name was met first, the other is the one that is written.
    for name in names(mount.join(place)) {
        stat(mount.join(place).join(name));
    }
    let [f, g, alone] = ["f", "g", "alone"].map(|name| mount.join(place).join(name));
    append(&f, "B");
    append(&alone, "B");
    let check = |mount: &Mount, when: &str| {
        for name in ["f", "g", "alone"] {
            assert_eq!(read(mount.join(place).join(name)), b"AB", "{when}: {name}");
        }
        assert_eq!(numbers(mount), first, "{when}");
        assert_eq!(stat(&f).ino(), stat(&g).ino(), "{when}");
        assert_eq!(stat(&f).nlink(), 2, "{when}");
    };
    check(&mount, "in the same mount");
    mount.unmount();
    let mount = stack.mount();
    check(&mount, "after a remount");
    append(&g, "C");
    assert_eq!(read(&f), b"ABC");
    fs::remove_file(&g).unwrap();
    assert_eq!(stat(&f).nlink(), 1);
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
}

#[test]
fn hardlinks_on_a_tmpfs_inside_a_lower() {
    needs_unionmount_as_root!();
    let stack = Stack::new(1);
    stack.lower(0).dir("x");
    let _inside = LoopFilesystem::at(&stack.lower(0).root().join("x"), &["-t", "tmpfs", "tmpfs"]);
    names_stay_one_file(&stack, "x");
}

#[test]
fn hardlinks_on_an_ext4_inside_a_lower() {
    needs_unionmount_as_root!();
    let disk = &Scratch::new();
    let ext4 = LoopFilesystem::new(disk, "ext4", "ext4", 32 << 20);
    let stack = Stack::new(1);
    stack.lower(0).dir("x/y");
    let inside = stack.lower(0).root().join("x/y");
    let _inside = LoopFilesystem::at(&inside, &["--bind", ext4.path().to_str().unwrap()]);
    names_stay_one_file(&stack, "x/y");
}

#[test]
fn hardlinks_in_a_subvolume_inside_a_lower() {
    needs_unionmount_as_root!();
    let disk = &Scratch::new();
    let btrfs = LoopFilesystem::new(disk, "btrfs", "btrfs", 128 << 20);
    let stack = Stack::new(1).with_lower_in(0, btrfs.path());
    let place = stack.lower(0).root().join("sub");
    support::run("btrfs", &["-q", "subvolume", "create", place.to_str().unwrap()]);
    names_stay_one_file(&stack, "sub");
}

#[test]
fn two_places_are_two_things() {
    needs_unionmount_as_root!();
    let stack = Stack::new(1);
    stack.lower(0).file("a/f", "A").file("a/sub/deep", "A").dir("b").file("c/one", "1").file("c/two", "2");
    let at = |name: &str| stack.lower(0).root().join(name);
    let _dir = LoopFilesystem::at(&at("b"), &["--bind", at("a").to_str().unwrap()]);
    let _file = LoopFilesystem::at(&at("c/two"), &["--bind", at("c/one").to_str().unwrap()]);
    let mount = stack.mount();
    let first = numbers(&mount);
    assert_eq!(first.values().collect::<std::collections::BTreeSet<_>>().len(), first.len());
    let inside = support::run(
        "sh",
        &["-c", &format!("cd {}/a/sub && ls ../../b >/dev/null && pwd -P", mount.path().display())],
    );
    assert_eq!(inside.trim_end(), mount.join("a/sub").to_str().unwrap());
    let check = |mount: &Mount, when: &str| {
        for (name, content) in [("a/f", "A"), ("b/f", "AB"), ("a/sub/deep", "AD"), ("b/sub/deep", "A")] {
            assert_eq!(String::from_utf8_lossy(&read(mount.join(name))), content, "{when}: {name}");
        }
        assert_eq!((read(mount.join("c/one")), read(mount.join("c/two"))), (b"1".to_vec(), b"1B".to_vec()));
    };
    append(mount.join("b/f"), "B");
    append(mount.join("a/sub/deep"), "D");
    append(mount.join("c/two"), "B");
    check(&mount, "in the same mount");
    mount.unmount();
    let mount = stack.mount();
    check(&mount, "after a remount");
    mount.unmount();
}

#[test]
fn a_layer_that_lies_in_another_is_seen_at_two_places() {
    needs_unionmount_as_root!();
    let stack = Stack::new(1);
    stack.lower(0).file("in/d/f", "A");
    let lowers = vec![stack.lower(0).root().join("in"), stack.lower(0).root().to_owned()];
    let options = Options { lowers, ..stack.options() };
    let mount = Mount::new(&options, stack.mountpoint());
    assert_ne!(stat(mount.join("d")).ino(), stat(mount.join("in/d")).ino());
    append(mount.join("in/d/f"), "B");
    assert_eq!((read(mount.join("d/f")), read(mount.join("in/d/f"))), (b"A".to_vec(), b"AB".to_vec()));
    mount.unmount();
    let mount = Mount::new(&options, stack.mountpoint());
    assert_eq!((read(mount.join("d/f")), read(mount.join("in/d/f"))), (b"A".to_vec(), b"AB".to_vec()));
    mount.unmount();
}

/// Mounted files have no identity that lasts: each name of such a file is a file by itself, in every run.
#[test]
fn names_that_nothing_leads_together_are_files_by_themselves() {
    needs_unionmount_as_root!();
    let elsewhere = Stack::new(1);
    elsewhere.lower(0).file("f", "A").hardlink("g", "f");
    let stack = Stack::new(1);
    stack.lower(0).file("one", "").file("two", "");
    let bind = |name: &str, source: &str| {
        let source = elsewhere.lower(0).root().join(source);
        LoopFilesystem::at(&stack.lower(0).root().join(name), &["--bind", source.to_str().unwrap()])
    };
    let _mounts = (bind("one", "f"), bind("two", "g"));
    let mount = stack.mount();
    assert_ne!(stat(mount.join("one")).ino(), stat(mount.join("two")).ino());
    append(mount.join("two"), "B");
    let check = |mount: &Mount| {
        assert_eq!((read(mount.join("one")), read(mount.join("two"))), (b"A".to_vec(), b"AB".to_vec()));
        assert_eq!((stat(mount.join("one")).nlink(), stat(mount.join("two")).nlink()), (1, 1));
    };
    check(&mount);
    mount.unmount();
    let mount = stack.mount();
    check(&mount);
    mount.unmount();
}
