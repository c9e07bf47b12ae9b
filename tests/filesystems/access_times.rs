//! Reading through a mount leaves the access times of its lowers as they are.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

use support::{self, LoopFilesystem, Mount, Options, Scratch, Stack};

const OLD: &str = "2001-02-03 04:05:06";

/// A tree whose access times are older than its modification times, so that relatime updates them.
fn grow(root: &Path) {
    fs::create_dir_all(root.join("d/e")).unwrap();
    fs::write(root.join("d/f"), "f").unwrap();
    symlink("f", root.join("d/link")).unwrap();
    for path in ["d/f", "d/link", "d/e", "d", "."] {
        support::run("touch", &["-h", "-a", "-d", OLD, root.join(path).to_str().unwrap()]);
    }
}

fn access_times(root: &Path) -> Vec<(i64, i64)> {
    let of = |path: &str| {
        fs::symlink_metadata(root.join(path)).map(|found| (found.atime(), found.atime_nsec())).unwrap()
    };
    ["d/f", "d/link", "d/e", "d", "."].map(of).to_vec()
}

fn read_all(mount: &Mount) {
    assert_eq!(fs::read(mount.join("d/f")).unwrap(), b"f");
    assert_eq!(fs::read_link(mount.join("d/link")).unwrap(), Path::new("f"));
    for dir in [".", "d", "d/e"] {
        fs::read_dir(mount.join(dir)).unwrap().count();
    }
}

#[test]
fn of_lowers_stay_with_and_without_an_upper() {
    support::needs_root!();
    let scratch = Scratch::new();
    // One where every reading is noted.
    let disk = LoopFilesystem::tmpfs(&scratch, "disk", 1 << 20);
    disk.remount("strictatime");
    let stack = Stack::new(1).with_lower_in(0, disk.path());
    let lower = stack.lower(0).root().to_owned();
    grow(&lower);
    let before = access_times(&lower);
    for options in [stack.options(), Options { upper: None, work: None, ..stack.options() }] {
        for extra in [&[][..], &["passthrough".to_owned()]] {
            let options = Options { extra: extra.to_vec(), ..options.clone() };
            let mount = Mount::new(&options, stack.mountpoint());
            read_all(&mount);
            mount.unmount();
            assert_eq!(access_times(&lower), before, "{options:?}");
        }
    }
    fs::read(lower.join("d/f")).unwrap();
    assert_ne!(access_times(&lower), before, "this filesystem notes nothing: the test tests nothing");
}

/// Of the upper, reading is noted, but not with `noatime` or for who opened with O_NOATIME.
#[test]
fn of_the_upper_follow_the_mount_option_and_the_open() {
    support::needs_root!();
    let stack = Stack::new(1);
    let place = stack.upper().root().join("f");
    let read = |extra: &[&str], flags: OFlags| {
        stack.upper().file("f", "f");
        support::run("touch", &["-a", "-d", OLD, place.to_str().unwrap()]);
        let before = fs::metadata(&place).unwrap().atime();
        let mount = stack.mount_with(extra);
        let file = File::from(open(mount.join("f"), OFlags::RDONLY | flags, Mode::empty()).unwrap());
        let mut text = [0; 2];
        assert_eq!(file.read_at(&mut text, 0).unwrap(), 1);
        let shown = file.metadata().unwrap().atime();
        drop(file);
        mount.unmount();
        assert_eq!(shown, fs::metadata(&place).unwrap().atime(), "{extra:?} {flags:?}");
        shown != before
    };
    assert!(read(&[], OFlags::empty()), "reading is not noted");
    assert!(read(&["passthrough"], OFlags::empty()), "reading is not noted with passthrough");
    assert!(!read(&[], OFlags::NOATIME), "O_NOATIME has no effect");
    assert!(!read(&["noatime"], OFlags::empty()), "noatime has no effect");
}

/// With `noatime` also of a file that was made in the same mount, and by who has it open still.
#[test]
fn of_a_new_file_stay_with_noatime() {
    support::needs_root!();
    let stack = Stack::new(1);
    let read = |extra: &[&str]| {
        let mount = stack.mount_with(extra);
        let path = mount.join("new");
        let file = File::create(&path).unwrap();
        file.write_all_at(b"f", 0).unwrap();
        support::run("touch", &["-a", "-d", OLD, path.to_str().unwrap()]);
        let before = fs::metadata(&path).unwrap().atime();
        assert_eq!(fs::read(&path).unwrap(), b"f");
        let place = stack.upper().root().join("new");
        let now = fs::metadata(&place).unwrap().atime();
        drop(file);
        mount.unmount();
        fs::remove_file(&place).unwrap();
        now != before
    };
    assert!(read(&[]), "reading is not noted: the test tests nothing");
    assert!(!read(&["noatime"]), "noatime has no effect");
}

/// What is mounted inside a lower is shown, and what is read of it as well leaves no trace but in links.
#[test]
fn of_what_is_mounted_inside_a_lower_stay() {
    support::needs_root!();
    let stack = Stack::new(1);
    let lower = stack.lower(0).root().to_owned();
    fs::create_dir(lower.join("inner")).unwrap();
    let inner = lower.join("inner");
    support::run("mount", &["-t", "tmpfs", "-o", "strictatime", "tmpfs", inner.to_str().unwrap()]);
    fs::write(lower.join("inner/f"), "f").unwrap();
    support::run("touch", &["-a", "-d", OLD, lower.join("inner/f").to_str().unwrap()]);
    let before = fs::metadata(lower.join("inner/f")).unwrap().atime();
    let mount = stack.mount();
    let read = fs::read(mount.join("inner/f"));
    let after = fs::metadata(lower.join("inner/f")).unwrap().atime();
    mount.unmount();
    support::run("umount", &[lower.join("inner")]);
    assert_eq!(read.unwrap(), b"f");
    assert_eq!(after, before);
}
