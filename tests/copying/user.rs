//! The daemon of an ordinary user, which is bound by the modes of what it owns and keeps its index of hardlinks itself.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use support::cli::{Place, user};
use support::{LoopFilesystem, Scratch};

use super::{content, room};

const SIZE: usize = 1 << 20;

/// A place whose upper is on an ext4 with a journal.
struct OnDisk {
    place: Place,
    up: PathBuf,
    // Unmounted after all that lies on it.
    _disk: LoopFilesystem,
    _scratch: Scratch,
}

impl std::ops::Deref for OnDisk {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

fn place() -> OnDisk {
    let place = Place::of_user();
    let scratch = Scratch::below(Path::new("/tmp"));
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 64 << 20);
    let up = disk.path().join("up");
    fs::create_dir(&up).unwrap();
    place.mkdir("a/d");
    fs::write(place.at("a/first"), content(SIZE, 1)).unwrap();
    fs::hard_link(place.at("a/first"), place.at("a/d/second")).unwrap();
    fs::write(place.at("a/alone"), content(SIZE, 2)).unwrap();
    let (uid, gid) = user();
    for name in ["d", "first", "alone"] {
        chown(place.at("a").join(name), Some(uid), Some(gid)).unwrap();
    }
    for own in [disk.path(), &up] {
        chown(own, Some(uid), Some(gid)).unwrap();
    }
    OnDisk { place, up, _disk: disk, _scratch: scratch }
}

#[track_caller]
fn sh(place: &OnDisk, script: &str) {
    place.sh_as_user(&format!("set -e\n{script}")).ok();
}

#[track_caller]
fn mount(place: &OnDisk, options: &str) {
    sh(place, &format!("./unionmount --lower a --upper {} -o {options} mnt", place.up.display()));
}

#[track_caller]
fn unmount(place: &OnDisk) {
    sh(place, "fusermount3 -u mnt");
    place.wait_for_no_daemon();
}

/// Its content, as the user reads it.
#[track_caller]
fn assert_shows(place: &OnDisk, name: &str, expected: &[u8], when: &str) {
    sh(place, &format!("rm -f seen; cat mnt/{name} > seen"));
    assert!(fs::read(place.at("seen")).unwrap() == expected, "{name} {when}");
}

/// The index that is the daemon's own tells after a remount that the copy of a file with several names has no data yet.
#[test]
fn a_metacopy_with_several_names_has_its_data_in_the_next_mount() {
    support::needs_root!();
    let place = place();
    mount(&place, "metacopy=on");
    sh(&place, "chmod 640 mnt/first");
    assert!(room(&place.up) < SIZE as u64 / 2, "the data were copied");
    unmount(&place);
    mount(&place, "metacopy=on");
    for name in ["d/second", "first"] {
        assert_shows(&place, name, &content(SIZE, 1), "in the next mount");
    }
    let (first, second) = (place.up.join("first"), place.up.join("d/second"));
    assert!(!second.exists() && first.exists());
    sh(&place, "printf written | dd of=mnt/d/second conv=notrunc status=none");
    let expected = [b"written", &content(SIZE, 1)[7..]].concat();
    assert_shows(&place, "first", &expected, "after a write");
    unmount(&place);
    mount(&place, "metacopy=on");
    for name in ["first", "d/second"] {
        assert_shows(&place, name, &expected, "after a write, in the next mount");
    }
    unmount(&place);
}

/// The marks of what nobody may read are read all the same, whether it is copied up in part or not at all.
#[test]
fn files_that_nobody_may_read_keep_their_data() {
    support::needs_root!();
    let written = [b"written", &content(SIZE, 2)[7..]].concat();
    for (option, change, expected) in [
        ("metacopy=on", "chmod 0 mnt/alone mnt/first", &content(SIZE, 2)),
        ("metacopy=on", "mv mnt/alone mnt/x; chmod 0 mnt/x mnt/first; mv mnt/x mnt/alone", &content(SIZE, 2)),
        (
            "lazy=keep",
            "printf written | dd of=mnt/alone conv=notrunc status=none; chmod 0 mnt/alone mnt/first",
            &written,
        ),
    ] {
        let place = place();
        mount(&place, option);
        sh(&place, change);
        for when in ["in the same mount", "in the next mount"] {
            sh(&place, "ls -l mnt mnt/d > /dev/null; stat mnt/alone mnt/first mnt/d/second > /dev/null");
            sh(&place, "mv mnt/alone mnt/y; mv mnt/y mnt/alone; ln mnt/first mnt/z; rm mnt/z");
            assert_eq!(fs::metadata(place.up.join("alone")).unwrap().mode() & 0o7777, 0, "{option} {when}");
            unmount(&place);
            mount(&place, option);
        }
        sh(&place, "chmod 600 mnt/alone mnt/d/second");
        assert_shows(&place, "alone", expected, option);
        assert_shows(&place, "first", &content(SIZE, 1), option);
        unmount(&place);
    }
}

/// Shows that who only looks doesn't change the time of a change, which tells programs what to save: that of a file without
/// marks never moves, and that of others no more once the daemon has read them.
#[test]
fn looking_at_files_that_nobody_may_read_does_not_change_them() {
    support::needs_root!();
    let place = place();
    let options = "metacopy=on,timeout=0";
    mount(&place, options);
    sh(&place, "printf x > mnt/plain; chmod 0 mnt/plain mnt/alone mnt/first");
    unmount(&place);
    let changed = |name: &str| {
        let stat = fs::metadata(place.up.join(name)).unwrap();
        (stat.ctime(), stat.ctime_nsec())
    };
    let look = || {
        sh(&place, "ls -l mnt mnt/d > /dev/null; stat mnt/plain mnt/alone mnt/first mnt/d/second > /dev/null")
    };
    let before = changed("plain");
    mount(&place, options);
    look();
    assert_eq!(changed("plain"), before, "a file without marks");
    let marked = ["alone", "first"].map(&changed);
    look();
    look();
    assert_eq!(["alone", "first"].map(&changed), marked, "files with marks, looked at again");
    sh(&place, "rm mnt/first; test $(stat -c %h mnt/d/second) = 1");
    unmount(&place);
}
