//! What there is stays as it is: what the kernel reads by itself, and what is hidden.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{LoopFilesystem, Scratch};

use crate::{Bed, Who};

/// The kernel asks the daemon for what it doesn't read and write by itself.
#[test]
fn what_is_passed_through_is_so_before_and_after() {
    support::needs_root!();
    let bed = Bed::new(Who::Root);
    let text = vec![b'x'; 1 << 20];
    for name in ["held", "later"] {
        fs::write(bed.upper.join(name), &text).unwrap();
    }
    bed.mount(&["-o", "passthrough"]);
    let status = || -> serde_json::Value {
        let told = bed.unionmount(&["status", "--json", "--count=0", "mnt"]).ok();
        serde_json::from_str(&told.out).unwrap()
    };
    if status()["io"] != "passthrough" {
        support::skip!("this kernel passes nothing through");
    }
    let counts = || {
        let requests = &status()["requests"];
        ["read", "write"].map(|kind| requests[kind].as_u64().unwrap_or(0))
    };
    let at = |name: &str| bed.place.at("mnt").join(name);
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(at(name)).unwrap();
    // Neither is asked for these.
    let use_it = |file: &File, what: &str| {
        let before = counts();
        let mut buffer = vec![0; text.len()];
        file.write_all_at(what.as_bytes(), 5000).unwrap();
        file.read_exact_at(&mut buffer, 0).unwrap();
        assert_eq!(&buffer[5000..5000 + what.len()], what.as_bytes());
        assert_eq!(buffer[9000], b'x');
        assert_eq!(counts(), before, "{what}");
    };
    // And what lies below is read by the daemon: so that such requests are counted.
    let read_below = |name: &str| {
        let before = counts();
        assert_eq!(fs::read_to_string(at(name)).unwrap(), name.replace('/', " "));
        assert!(counts()[0] > before[0], "{name}");
    };
    let held = open("held");
    use_it(&held, "before");
    read_below("below/1");
    for round in ["first", "second"] {
        bed.unionmount(&["upgrade", "mnt"]).ok();
        assert_eq!(status()["io"], "passthrough");
        use_it(&held, &format!("held in the {round} daemon after"));
        use_it(&open("later"), &format!("opened in the {round} daemon after"));
        read_below(if round == "first" { "below/2" } else { "below/3" });
    }
    drop(held);
    bed.unionmount(&["umount", "mnt"]).ok();
    let written = fs::read(bed.upper.join("held")).unwrap();
    assert!(written[5000..].starts_with(b"held in the second daemon after"));
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

fn content(file: &File) -> Vec<u8> {
    let mut content = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

/// Where names aren't written in one journal, and files have no link that could bring them back.
#[test]
fn what_is_hidden_on_btrfs_stays_so() {
    support::needs_root!();
    support::needs_program!("mkfs.btrfs");
    let (scratch, bed) = (Scratch::new(), Bed::new(Who::Root));
    let disk = LoopFilesystem::new(&scratch, "disk", "btrfs", 256 << 20);
    let (low, upper, mnt) = (disk.path().join("low"), disk.path().join("up"), bed.place.at("mnt"));
    let work = disk.path().join(".up.work");
    fs::create_dir_all(low.join("dir")).unwrap();
    fs::create_dir(&upper).unwrap();
    for (name, others) in [("a1", ["a2", "a3"]), ("b1", ["b2", "b3"])] {
        fs::write(low.join(name), name).unwrap();
        others.iter().for_each(|other| fs::hard_link(low.join(name), low.join(other)).unwrap());
    }
    for name in ["gone", "copied", "stays"] {
        fs::write(low.join(name), name).unwrap();
    }
    let mount = || {
        let words = ["--lower", low.to_str().unwrap(), "--upper", upper.to_str().unwrap(), "mnt"];
        bed.unionmount(&words).ok();
    };
    mount();
    let at = |name: &str| mnt.join(name);
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(at(name)).unwrap();
    let links = |name: &str| fs::metadata(at(name)).unwrap().nlink();

    // Deleted and still open: of a lower, copied up, made here, without a name from the start; a directory.
    let gone = File::open(at("gone")).unwrap();
    let copied = open("copied");
    copied.write_all_at(b"COPY", 0).unwrap();
    fs::write(at("own"), "own").unwrap();
    let own = open("own");
    let dir = File::open(at("dir")).unwrap();
    let number = dir.metadata().unwrap().ino();
    for name in ["gone", "copied", "own"] {
        fs::remove_file(at(name)).unwrap();
    }
    fs::remove_dir(at("dir")).unwrap();
    // Hidden names of a file that has others: of one that stays below, and of one that was copied up.
    fs::remove_file(at("a1")).unwrap();
    fs::write(at("b1"), "B1").unwrap();
    fs::remove_file(at("b2")).unwrap();

    let shown = ["a2", "a3", "b1", "b3", "stays"];
    let check = |when: &str, a_links: u64| {
        assert_eq!(names(&mnt), shown[usize::from(a_links == 1)..], "{when}");
        assert_eq!((links("a3"), links("b1"), links("b3")), (a_links, 2, 2), "{when}");
        assert_eq!(fs::read(at("b3")).unwrap(), b"B1", "{when}");
    };
    let check_open = |when: &str| {
        assert_eq!(content(&gone), b"gone", "{when}");
        assert_eq!(content(&copied)[..4], *b"COPY", "{when}");
        for file in [&gone, &copied, &own] {
            assert_eq!(file.metadata().unwrap().nlink(), 0, "{when}");
        }
        assert_eq!(dir.metadata().unwrap().ino(), number, "{when}");
        own.write_all_at(when.as_bytes(), 0).unwrap();
        own.sync_all().unwrap();
        assert!(content(&own).starts_with(when.as_bytes()));
    };
    check("before", 2);
    check_open("before");
    let staged = (names(&work.join("work")), names(&upper));
    for when in ["after one", "after another"] {
        bed.unionmount(&["upgrade", "mnt"]).ok();
        check(when, 2);
        check_open(when);
        assert_eq!((names(&work.join("work")), names(&upper)), staged, "{when}");
    }
    // What is hidden next is counted with what was.
    fs::remove_file(at("a2")).unwrap();
    check("one more is hidden", 1);
    check_open("one more is hidden");
    drop((gone, copied, own, dir));
    bed.unionmount(&["umount", "mnt"]).ok();
    bed.place.wait_for_no_daemon();
    assert!(!work.join("work").exists(), "it ended in order");
    mount();
    check("mounted again", 1);
    bed.unionmount(&["umount", "mnt"]).ok();
    bed.place.wait_for_no_daemon();
}

/// Makes `base.tar`, `packed.tar.gz` and `image.sqfs` of directories of these names.
fn make_archives(bed: &Bed) {
    let script = "set -e; mkdir base packed image
        for name in base packed image; do
            echo $name > $name/$name; seq 200000 > $name/numbers-of-$name; echo both > $name/both
        done
        ln base/base base/linked
        tar -C base -cf base.tar .; tar -C packed -czf packed.tar.gz .; mksquashfs image image.sqfs -quiet -no-progress";
    let made = bed.place.sh(script);
    assert_eq!(made.code, Some(0), "{made:?}");
}

#[test]
fn whoever_reads_archives_notices_no_upgrade() {
    support::needs_root!();
    support::needs_program!("mksquashfs");
    let bed = Bed::new(Who::Root);
    make_archives(&bed);
    let archives = ["base", "packed", "image"];
    let lowers = "base.tar:b:packed.tar.gz:image.sqfs";
    bed.unionmount(&["--lower", lowers, "--upper", "up", "mnt"]).ok();
    let at = |name: &str| bed.place.at("mnt").join(name);
    let number = |name: &str| fs::metadata(at(name)).unwrap().ino();
    let large = archives.map(|name| format!("numbers-of-{name}"));
    let expected = fs::read(bed.place.at("base/numbers-of-base")).unwrap();
    let numbers = || ["base", "linked", "packed", "image", "both", "below/1", "."].map(number);
    let before = numbers();
    // One name of a file of the tar is copied up, and another not looked at.
    fs::write(at("linked"), "written").unwrap();
    let held = large.each_ref().map(|name| File::open(at(name)).unwrap());
    let is_over = AtomicBool::new(false);
    let over = OnDrop(&is_over);
    std::thread::scope(|scope| {
        let over = over;
        let readers: Vec<_> = (large.iter().zip(&held))
            .map(|(name, held)| {
                let (expected, is_over, path) = (&expected, &is_over, at(name));
                scope.spawn(move || {
                    let mut rounds = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        // Of the pages that the kernel keeps it asks nobody.
                        rustix::fs::fadvise(held, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                        assert!(content(held) == *expected);
                        assert!(fs::read(&path).unwrap() == *expected);
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        for _ in 0..5 {
            bed.unionmount(&["upgrade", "mnt"]).ok();
            assert_eq!(numbers(), before);
            assert_eq!(fs::read_to_string(at("base")).unwrap(), "written");
        }
        drop(over);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    drop(held);
    // Layers are exchanged over them as before.
    bed.unionmount(&["snapshot", "mnt", "one"]).ok();
    bed.unionmount(&["upgrade", "mnt"]).ok();
    bed.unionmount(&["umount", "mnt"]).ok();
    bed.place.wait_for_no_daemon();
    bed.unionmount(&["--lower", lowers, "--upper", "up", "mnt"]).ok();
    assert_eq!(numbers(), before);
    bed.unionmount(&["umount", "mnt"]).ok();
}

/// Tells others when it goes, also by a failure.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_archive_that_is_another_by_now_stays_with_its_daemon() {
    support::needs_root!();
    support::needs_program!("mksquashfs");
    let bed = Bed::new(Who::Root);
    make_archives(&bed);
    bed.unionmount(&["--lower", "base.tar:image.sqfs", "--upper", "up", "mnt"]).ok();
    let at = |name: &str| bed.place.at("mnt").join(name);
    let daemon = bed.daemon();
    let stays = |why: &str| {
        bed.unionmount(&["upgrade", "mnt"]).refused(1, &[why, "goes on as before"]);
        assert_eq!(bed.daemon(), daemon, "{why}");
        assert_eq!(fs::read_to_string(at("image")).unwrap(), "image\n", "{why}");
    };
    let deleted = File::open(at("base")).unwrap();
    fs::remove_file(at("base")).unwrap();
    fs::remove_file(at("linked")).unwrap();
    stays("a deleted file of an archive is open");
    assert_eq!(content(&deleted), b"base\n");
    drop(deleted);
    // The same to the byte, and another file.
    let made = bed.place.sh("cp base.tar other.tar; mv other.tar base.tar");
    assert_eq!(made.code, Some(0), "{made:?}");
    stays("base.tar: another file is there");
    fs::remove_file(bed.place.at("base.tar")).unwrap();
    stays("base.tar");
    bed.unionmount(&["umount", "mnt"]).ok();
}
