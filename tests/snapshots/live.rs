//! Snapshots of what is mounted: whoever works there notices nothing, and each is one instant.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FlockOperation, flock};
use support::cli::Place;

use crate::{build, change, change_more, mount, numbers, printed, unmount};

fn take(place: &Place, name: &str) {
    assert_eq!(printed(place.unionmount(&["snapshot", "mnt", name])), format!("{name}\n"));
}

#[test]
fn whoever_works_in_a_mount_notices_no_snapshot() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    let root = place.at("mnt");
    change(&root);
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(root.join(name)).unwrap();
    let (mut written, mut lower) = (open("changed"), File::open(root.join("kept")).unwrap());
    let mut gone = File::create_new(root.join("gone")).unwrap();
    gone.write_all(b"deleted and open").unwrap();
    fs::remove_file(root.join("gone")).unwrap();
    flock(&written, FlockOperation::LockExclusive).unwrap();
    // A program with its working directory, a mapping and an open listing.
    let inside = place.sh(&format!(
        "cd mnt/new/deep && exec python3 -c '
import mmap, os, sys
file = open(\"map\", \"w+b\"); file.write(b\"a\" * 4096); file.flush()
map = mmap.mmap(file.fileno(), 4096); map[:6] = b\"before\"
listing = os.scandir(\"../..\"); first = [next(listing).name]
import subprocess
subprocess.run([\"{}\", \"snapshot\", \"../..\", \"one\"], check=True, stdout=subprocess.DEVNULL)
map[:6] = b\"after \"; map.flush()
rest = [entry.name for entry in listing]
assert sorted(first + rest) == sorted(os.listdir(\"../..\")), (first, rest)
open(\"there\", \"w\").close()
print(os.getcwd())
'",
        place.bin().display()
    ));
    assert_eq!(printed(inside).trim(), root.join("new/deep").display().to_string());
    let mapped = |at: &str| fs::read(place.at(at)).unwrap()[..6].to_vec();
    assert_eq!(mapped(".up.layers/1/new/deep/map"), b"before");
    assert_eq!(
        (mapped("mnt/new/deep/map"), mapped("up/new/deep/map")),
        (b"after ".to_vec(), b"after ".to_vec())
    );

    let own = numbers(&root);
    let number = written.metadata().unwrap().ino();
    take(&place, "two");
    assert_eq!(numbers(&root), own);
    assert_eq!(written.metadata().unwrap().ino(), number);
    // What is open is written to the new upper, and not to the layer.
    written.write_all(b"WRITTEN").unwrap();
    assert!(fs::read_to_string(place.at("up/changed")).unwrap().starts_with("WRITTEN"));
    assert_eq!(fs::read_to_string(place.at(".up.layers/1/changed")).unwrap(), "changed here");
    let mut text = String::new();
    lower.read_to_string(&mut text).unwrap();
    assert_eq!(text, "b/kept");
    // What was deleted is there for who has it open, and nowhere else.
    gone.write_all(b", and written").unwrap();
    gone.seek(SeekFrom::Start(0)).unwrap();
    text.clear();
    gone.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), gone.metadata().unwrap().nlink()), ("deleted and open, and written", 0));
    // The lock is still held.
    let other = open("changed");
    assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
    drop((written, other, lower, gone));
    change_more(&root);
    let (expected, own) = (support::Snapshot::take(&root), numbers(&root));
    take(&place, "three");
    crate::assert_same(&expected, &root, &support::Fields::tree(), "at once");
    unmount(&place);
    mount(&place, &["--upper", "up"]);
    crate::assert_same(&expected, &root, &support::Fields::tree(), "in the next mount");
    assert_eq!(numbers(&root), own);
    let names = |of: &str| printed(place.unionmount(&["snapshots", "-q", of]));
    assert_eq!(names("mnt"), "one\ntwo\nthree\n");
    unmount(&place);
    assert_eq!(names("up"), "one\ntwo\nthree\n");
}

/// Writes a number into one file and then into another, again and again.
fn count(root: &Path, writer: usize, end: &AtomicBool) -> u64 {
    let (first, second) = (root.join(format!("first-{writer}")), root.join(format!("second-{writer}")));
    let write = |path: &Path, number: u64| {
        let next = path.with_extension("next");
        fs::write(&next, number.to_string()).unwrap();
        fs::rename(&next, path).unwrap();
    };
    let mut number = 0;
    while !end.load(Ordering::Relaxed) {
        number += 1;
        write(&first, number);
        write(&second, number);
        let dir = root.join(format!("dir-{writer}-{number}"));
        fs::create_dir(&dir).unwrap();
        fs::remove_dir(&dir).unwrap();
    }
    number
}

/// Ends the writers when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_snapshot_is_one_instant_of_all_that_is_done_meanwhile() {
    support::needs_root!();
    let place = Place::new();
    fs::create_dir(place.at("low")).unwrap();
    for writer in 0..4 {
        fs::write(place.at(format!("low/first-{writer}")), "0").unwrap();
        fs::write(place.at(format!("low/second-{writer}")), "0").unwrap();
    }
    mount(&place, &["--lower", "low", "--upper", "up"]);
    let (root, end) = (place.at("mnt"), AtomicBool::new(false));
    let totals: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                scope.spawn({
                    let (root, end) = (&root, &end);
                    move || count(root, writer, end)
                })
            })
            .collect();
        // Also where one fails.
        let ended = End(&end);
        for number in 1..=12 {
            take(&place, &format!("n{number}"));
        }
        drop(ended);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let number = |name: &str| fs::read_to_string(root.join(name)).unwrap().parse::<u64>().unwrap();
    for (writer, total) in totals.iter().enumerate() {
        assert_eq!(
            (number(&format!("first-{writer}")), number(&format!("second-{writer}"))),
            (*total, *total)
        );
    }
    unmount(&place);
    let mut before = [0; 4];
    for snapshot in 1..=12 {
        let layers: Vec<String> = (1..=snapshot).rev().map(|layer| format!(".up.layers/{layer}")).collect();
        mount(&place, &["--lower", &format!("{}:low", layers.join(":"))]);
        for (writer, before) in before.iter_mut().enumerate() {
            let (first, second) = (number(&format!("first-{writer}")), number(&format!("second-{writer}")));
            assert!(first == second || first == second + 1, "{snapshot}: {first}, {second}");
            assert!(first >= *before, "{snapshot}: {first}, and {before} before");
            *before = first;
        }
        unmount(&place);
    }
    assert!(before.iter().any(|count| *count > 0), "somebody wrote before the last one");
}

#[test]
fn a_mount_that_can_take_no_snapshot_says_why_and_goes_on() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    let refused = |words: &[&str], why: &str| {
        mount(&place, words);
        place.unionmount(&["snapshot", "mnt"]).refused(1, &["mnt", why]);
        assert_eq!(fs::read_to_string(place.at("mnt/kept")).unwrap(), "b/kept");
        unmount(&place);
        assert!(!place.at(".up.layers").exists());
    };
    refused(&["--lower", "a:b"], "no upper");
    refused(&["--lower", "a:b", "--upper", "up", "-o", "passthrough"], "passthrough");
    refused(&["--lower", "a:b", "--upper", "up", "-o", "volatile"], "volatile");
    // What the upper itself refuses.
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    fs::write(place.at("mnt/kept"), "written").unwrap();
    take(&place, "one");
    fs::write(place.at("mnt/kept"), "written again").unwrap();
    place.unionmount(&["snapshot", "mnt", "one"]).refused(1, &["called one already"]);
    place.unionmount(&["snapshot", "mnt/d"]).refused(1, &["lies in a mount"]);
    place.unionmount(&["snapshot", "--lower", "a", "mnt"]).refused(2, &["--lower"]);
    assert_eq!(fs::read_to_string(place.at("mnt/kept")).unwrap(), "written again");
    take(&place, "two");
    assert_eq!(fs::read_to_string(place.at("mnt/kept")).unwrap(), "written again");
    unmount(&place);
}

/// What tells one directory from another that comes to have its place, and its number.
fn identity(path: &Path) -> (u64, std::time::SystemTime) {
    let stat = path.metadata().unwrap();
    (stat.ino(), stat.created().unwrap())
}

#[test]
fn nobody_else_gets_the_upper_while_a_snapshot_is_taken() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    let (end, upper) = (AtomicBool::new(false), place.at("up"));
    let got = std::thread::scope(|scope| {
        let tries = scope.spawn(|| {
            let mut tries = 0u64;
            while !end.load(Ordering::Relaxed) {
                tries += 1;
                let Ok(dir) = File::open(&upper) else { continue };
                let locked = flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok();
                // What was just frozen is free; that is the mount's own no more.
                let opened = dir.metadata().unwrap().ino();
                if locked && upper.metadata().is_ok_and(|now| now.ino() == opened) {
                    return Some(tries);
                }
            }
            None
        });
        let ended = End(&end);
        for number in 1..=12 {
            fs::write(place.at("mnt/changed"), number.to_string()).unwrap();
            take(&place, &format!("n{number}"));
        }
        drop(ended);
        tries.join().unwrap()
    });
    assert_eq!(got, None, "at that try somebody else had the lock");
    unmount(&place);
}

#[test]
fn a_snapshot_that_is_refused_leaves_the_mount_as_it_was() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    fs::write(place.at("mnt/kept"), "written").unwrap();
    take(&place, "one");
    let work =
        || [".up.work", ".up.work/work", ".up.work/index.unionmount", "up"].map(|at| identity(&place.at(at)));
    let before = work();
    place.unionmount(&["snapshot", "mnt", "one"]).refused(1, &["called one already", "the mount goes on"]);
    place.unionmount(&["snapshot", "mnt", "12"]).refused(1, &["taken for a number"]);
    assert_eq!(work(), before, "nothing was let go");
    let left: Vec<_> =
        fs::read_dir(place.at(".up.layers")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    // A snapshot hands the workdir on as well.
    take(&place, "two");
    assert_eq!(work()[..3], before[..3]);
    fs::remove_file(place.at("mnt/kept")).unwrap();
    assert!(!place.at("mnt/kept").exists());
    unmount(&place);
    assert!(!place.at(".up.work/work").exists());
}

#[test]
fn names_that_a_layer_hides_keep_no_snapshot_away() {
    support::needs_root!();
    let place = Place::new();
    for dir in ["b/d", "a/d", "b/e", "a"] {
        fs::create_dir_all(place.at(dir)).unwrap();
    }
    fs::write(place.at("b/seen"), "two names").unwrap();
    for name in ["b/d/hidden", "b/e/seen"] {
        fs::hard_link(place.at("b/seen"), place.at(name)).unwrap();
    }
    place.sh("setfattr -n trusted.overlay.opaque -v y a/d").ok();
    let write = |text: &str| {
        mount(&place, &["--lower", "a:b", "--upper", "up"]);
        fs::write(place.at("mnt/seen"), text).unwrap();
    };
    write("while it is mounted");
    take(&place, "one");
    assert_eq!(fs::read_to_string(place.at("mnt/e/seen")).unwrap(), "while it is mounted");
    unmount(&place);
    write("not mounted");
    unmount(&place);
    assert_eq!(printed(place.unionmount(&["snapshot", "--lower", "a:b", "up", "two"])), "two\n");
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    for name in ["seen", "e/seen"] {
        assert_eq!(fs::read_to_string(place.at("mnt").join(name)).unwrap(), "not mounted");
    }
    assert!(!place.at("mnt/d/hidden").exists());
    unmount(&place);
    // Other layers than those of its mounts may lack names that are shown.
    let place = Place::new();
    build(&place);
    write_one_of_several(&place);
    fs::create_dir(place.at("c")).unwrap();
    place.unionmount(&["snapshot", "--lower", "c", "up"]).refused(1, &["other names"]);
}

fn write_one_of_several(place: &Place) {
    mount(place, &["--lower", "a:b", "--upper", "up"]);
    fs::write(place.at("mnt/names/1"), "three names").unwrap();
    unmount(place);
}

#[test]
fn a_mount_is_branched_while_it_is_used() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    let root = place.at("mnt");
    change(&root);
    let mut open = OpenOptions::new().append(true).open(root.join("changed")).unwrap();
    let expected = support::Snapshot::take(&root);
    let made = place.unionmount(&["branch", "mnt", "other"]);
    assert!(made.code == Some(0) && made.err.contains("the snapshot 1 was taken"), "{made:?}");
    fs::create_dir(place.at("beside")).unwrap();
    place.unionmount(&["--lower", "a:b", "--upper", "other", "beside"]).ok();
    crate::assert_same(&expected, &place.at("beside"), &support::Fields::tree(), "the branch");
    // From there each goes on by itself.
    open.write_all(b", and more").unwrap();
    fs::write(place.at("beside/kept"), "of the branch").unwrap();
    assert_eq!(fs::read_to_string(place.at("beside/changed")).unwrap(), "changed here");
    assert_eq!(fs::read_to_string(root.join("changed")).unwrap(), "changed here, and more");
    assert_eq!(fs::read_to_string(root.join("kept")).unwrap(), "b/kept");
    drop(open);
    // Where nothing was changed since a snapshot, none is needed.
    take(&place, "last");
    let names = || printed(place.unionmount(&["snapshots", "-q", "mnt"]));
    let before = names();
    place.unionmount(&["branch", "mnt", "third"]).ok();
    assert_eq!(names(), before);
    place.unionmount(&["branch", "mnt", "third"]).refused(1, &["exists already"]);
    place.sh("cd mnt && ../unionmount branch . ../fourth").ok();
    assert!(place.at("fourth").is_dir());
    place.unionmount(&["umount", "beside"]).ok();
    unmount(&place);
}
