//! What there is stays as it is: what the kernel reads by itself, and what is hidden.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

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
