//! `unionmount snapshot`, `snapshots`, `rollback`, `branch`, and mounts of uppers that have snapshots: through the real program,
//! beside the kernel's overlayfs.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

mod layers;
mod live;
mod rollback;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use support::cli::{Ended, Place};
use support::{Fields, LoopFilesystem, Mount, Options, Program, Scratch, Snapshot, diff};

/// Lowers with something for every kind of change.
fn build(place: &Place) {
    for dir in ["b/d/e", "b/moved", "b/replaced", "b/tree/deep", "a/d", "b/names"] {
        fs::create_dir_all(place.at(dir)).unwrap();
    }
    for file in [
        "b/changed",
        "b/deleted",
        "b/d/deleted",
        "b/d/kept",
        "b/moved/x",
        "b/moved/y",
        "b/replaced/old",
        "b/tree/deep/f",
        "a/d/top",
        "b/kept",
        "b/mode",
        "b/names/1",
        "b/lost-1",
    ] {
        fs::write(place.at(file), file).unwrap();
    }
    for name in ["2", "3"] {
        fs::hard_link(place.at("b/names/1"), place.at("b/names").join(name)).unwrap();
        fs::hard_link(place.at("b/lost-1"), place.at(format!("b/lost-{name}"))).unwrap();
    }
    symlink("changed", place.at("b/link")).unwrap();
}

/// Every kind of change.
fn change(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::write(at("changed"), "changed here").unwrap();
    fs::remove_file(at("deleted")).unwrap();
    fs::remove_file(at("d/deleted")).unwrap();
    fs::remove_dir_all(at("replaced")).unwrap();
    fs::create_dir(at("replaced")).unwrap();
    fs::write(at("replaced/new"), "new").unwrap();
    fs::remove_dir_all(at("tree")).unwrap();
    fs::set_permissions(at("mode"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::rename(at("moved"), at("d/renamed")).unwrap();
    fs::remove_file(at("d/renamed/y")).unwrap();
    fs::write(at("names/1"), "one file of three names").unwrap();
    fs::remove_file(at("lost-1")).unwrap();
    fs::hard_link(at("kept"), at("also-kept")).unwrap();
    fs::create_dir_all(at("new/deep")).unwrap();
    fs::write(at("new/deep/file"), "deep").unwrap();
    symlink("new", at("new-link")).unwrap();
}

/// Further changes of what was changed.
fn change_more(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::write(at("changed"), "changed again").unwrap();
    fs::write(at("names/3"), "and again one file of three names").unwrap();
    fs::rename(at("d/renamed"), at("renamed-again")).unwrap();
    fs::rename(at("new"), at("d/new")).unwrap();
    fs::remove_dir_all(at("replaced")).unwrap();
    fs::write(at("deleted"), "is there again").unwrap();
    fs::remove_file(at("also-kept")).unwrap();
    fs::create_dir(at("tree")).unwrap();
}

/// The same, and what the kernel counts otherwise: a further name of a file that lost one before the snapshot.
fn change_more_here(root: &Path) {
    change_more(root);
    fs::remove_file(root.join("lost-2")).unwrap();
    // A file of the layer below that has lost one of its names only wouldn't be merged.
    fs::hard_link(root.join("kept"), root.join("also-kept")).unwrap();
}

fn mount(place: &Place, words: &[&str]) {
    place.unionmount(&[words, &["mnt"]].concat()).ok();
}

fn unmount(place: &Place) {
    place.unionmount(&["umount", "mnt"]).ok();
}

/// The number of each path.
fn numbers(root: &Path) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            if stat.is_dir() {
                todo.push(path.clone());
            }
            all.insert(path.strip_prefix(root).unwrap().display().to_string(), stat.ino());
        }
    }
    all
}

fn assert_same(expected: &Snapshot, found: &Path, fields: &Fields, what: &str) {
    let differences = diff(expected, &Snapshot::take(found), fields);
    assert!(differences.is_empty(), "{what}:\n{differences}");
}

fn printed(ended: Ended) -> String {
    ended.ok().out
}

/// What was written stays as it is above snapshots, numbers and all; and the kernel shows the same above the same layers.
#[test]
fn a_mount_above_snapshots_shows_what_it_did_and_so_does_the_kernel() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    let changes: [fn(&Path); 2] = [change, change_more_here];
    for (at, change) in changes.into_iter().enumerate() {
        mount(&place, &["--lower", "a:b", "--upper", "up"]);
        change(&place.at("mnt"));
        let (expected, own) = (Snapshot::take(&place.at("mnt")), numbers(&place.at("mnt")));
        unmount(&place);
        let name = ["first", "second"][at];
        assert_eq!(
            printed(place.unionmount(&["snapshot", "--lower", "a:b", "up", name])),
            format!("{name}\n")
        );
        assert!(place.names("up").is_empty());
        // The layers below are recorded.
        mount(&place, &["--upper", "up"]);
        assert_same(&expected, &place.at("mnt"), &Fields::tree(), name);
        assert_eq!(numbers(&place.at("mnt")), own, "{name}");
        unmount(&place);
        mount(&place, &["--upper", "up", "-o", "ro"]);
        assert_same(&expected, &place.at("mnt"), &Fields { nlink: false, ..Fields::tree() }, "read-only");
        unmount(&place);

        let lowers: Vec<_> = (1..=at + 1)
            .rev()
            .map(|layer| format!(".up.layers/{layer}"))
            .chain(["a".into(), "b".into()])
            .collect();
        for dir in ["k-up", "k-work"] {
            fs::create_dir(place.at(dir)).unwrap();
        }
        let kernel = Options {
            lowers: lowers.iter().map(|lower| place.at(lower)).collect(),
            upper: Some(place.at("k-up")),
            work: Some(place.at("k-work")),
            extra: vec!["redirect_dir=on".into(), "index=on".into(), "xino=on".into()],
            ..Options::default()
        };
        let kernel = Mount::with_program(&Program::Kernel, &kernel, &place.at("mnt"));
        // It counts the names that a whiteout took.
        assert_same(
            &expected,
            kernel.path(),
            &Fields { nlink: false, directory_mtime: false, ..Fields::tree() },
            "kernel",
        );
        kernel.unmount();
        for dir in ["k-up", "k-work"] {
            fs::remove_dir_all(place.at(dir)).unwrap();
        }
    }
}

/// What was merged is an ordinary layer again: the kernel shows the same above it.
#[test]
fn layers_that_became_one_show_the_same_and_so_does_the_kernel() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    let changes: [fn(&Path); 2] = [change, change_more_here];
    for (at, change) in changes.into_iter().enumerate() {
        let lowers: &[&str] = if at == 0 { &["--lower", "a:b"] } else { &[] };
        mount(&place, &[lowers, &["--upper", "up"]].concat());
        change(&place.at("mnt"));
        // In use, nothing of it is merged.
        place.unionmount(&["squash", "mnt"]).refused(1, &["lies in a mount"]);
        place.unionmount(&["squash", "up"]).refused(1, &["in use"]);
        unmount(&place);
        place.unionmount(&[&["snapshot"], lowers, &["up"]].concat()).ok();
    }
    place.unionmount(&["squash", "up", "1"]).refused(2, &["1: is no range", "A..B"]);
    mount(&place, &["--upper", "up"]);
    let (expected, own) = (Snapshot::take(&place.at("mnt")), numbers(&place.at("mnt")));
    unmount(&place);
    let told = place.unionmount(&["squash", "-n", "up"]);
    assert!(told.code == Some(0) && told.out == "2\n" && told.err.contains("1 would go into 2"), "{told:?}");
    assert!(place.at(".up.layers/1").exists(), "nothing was done");
    let done = place.unionmount(&["squash", "up"]);
    assert!(done.code == Some(0) && done.out == "2\n" && done.err.contains("1 went into 2"), "{done:?}");
    assert_eq!(place.names(".up.layers"), ["3", "stack.json"]);
    mount(&place, &["--upper", "up"]);
    assert_same(&expected, &place.at("mnt"), &Fields::tree(), "merged");
    let now = numbers(&place.at("mnt"));
    let files = |path: &&String| !place.at("mnt").join(path.trim_start_matches('/')).is_dir();
    for path in own.keys().filter(files) {
        assert_eq!(now[path], own[path], "{path}");
    }
    unmount(&place);
    let kernel = Options {
        lowers: [".up.layers/3", "a", "b"].map(|lower| place.at(lower)).to_vec(),
        extra: vec!["redirect_dir=follow".into(), "xino=on".into()],
        ..Options::default()
    };
    let kernel = Mount::with_program(&Program::Kernel, &kernel, &place.at("mnt"));
    let fields = Fields { nlink: false, directory_mtime: false, ..Fields::tree() };
    assert_same(&expected, kernel.path(), &fields, "kernel");
    kernel.unmount();
}

/// The kernel goes on above frozen layers, and what it wrote is seen here.
#[test]
fn the_kernel_goes_on_above_a_snapshot_and_back() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    change(&place.at("mnt"));
    unmount(&place);
    place.unionmount(&["snapshot", "--lower", "a:b", "up"]).ok();
    fs::create_dir(place.at("work")).unwrap();
    let kernel = Options {
        lowers: [".up.layers/1", "a", "b"].map(|lower| place.at(lower)).to_vec(),
        upper: Some(place.at("up")),
        work: Some(place.at("work")),
        extra: vec!["redirect_dir=on".into(), "index=on".into()],
        ..Options::default()
    };
    let kernel = Mount::with_program(&Program::Kernel, &kernel, &place.at("mnt"));
    // Nobody takes it away under the kernel, which doesn't look at locks.
    place.unionmount(&["snapshot", "up"]).refused(1, &["kernel's overlayfs"]);
    place.unionmount(&["rollback", "up"]).refused(1, &["has it as a layer"]);
    change_more(kernel.path());
    let expected = Snapshot::take(kernel.path());
    kernel.unmount();
    mount(&place, &["--upper", "up", "--work", "work"]);
    assert_same(
        &expected,
        &place.at("mnt"),
        &Fields { nlink: false, directory_mtime: false, ..Fields::tree() },
        "here",
    );
    assert_eq!(fs::read_to_string(place.at("mnt/names/2")).unwrap(), "and again one file of three names");
    unmount(&place);
    place.unionmount(&["snapshot", "--work", "work", "up"]).ok();
    mount(&place, &["--upper", "up"]);
    assert_eq!(fs::read_to_string(place.at("mnt/names/2")).unwrap(), "and again one file of three names");
    unmount(&place);
}

#[test]
fn an_ordinary_user_does_it_all() {
    support::needs_root!();
    let place = Place::of_user();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let script = "
        set -e
        PATH=$PWD:$PATH
        umask 022
        echo base > a/f; ln a/f a/g; ln a/f a/h; mkdir a/d; echo d > a/d/d
        unionmount --lower a --upper up mnt
        echo one > mnt/f; mv mnt/d mnt/e; rm mnt/h
        n=$(stat -c %i mnt/g)
        unionmount umount mnt
        unionmount snapshot --lower a up one
        unionmount --upper up mnt
        test \"$(cat mnt/g)\" = one; test $(stat -c %i mnt/f) = $n; test $(stat -c %h mnt/f) = 2
        test \"$(cat mnt/e/d)\" = d
        echo two > mnt/g; rm -r mnt/e
        unionmount umount mnt
        unionmount branch up second
        unionmount --upper second mnt
        test \"$(cat mnt/f)\" = two; test ! -e mnt/e
        unionmount umount mnt
        unionmount rollback up one
        unionmount --upper up mnt
        test \"$(cat mnt/f)\" = one; test \"$(cat mnt/e/d)\" = d
        echo more > mnt/e/more; rm mnt/g
        unionmount umount mnt
        unionmount snapshot up three
        unionmount squash up one..three 2> why && exit 1; grep -q 'no two neighbouring' why
        unionmount snapshot up four
        test $(unionmount squash up one.. 2>/dev/null) = four
        unionmount --upper up mnt
        test \"$(cat mnt/f)\" = one; test \"$(cat mnt/e/d)\" = d; test \"$(cat mnt/e/more)\" = more; test ! -e mnt/g
        unionmount umount mnt
        unionmount snapshots -q up
    ";
    let ended = place.sh_as_user(script);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.ends_with("one\n2\nfour\n"), "{ended:?}");
    // Root isn't told by somebody else which directories to show.
    place.unionmount(&["--upper", "up", "--lower", "a", "mnt"]).refused(1, &[".up.layers", "belongs to uid"]);
}

#[test]
fn what_a_mount_has_is_left_alone() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    fs::write(place.at("mnt/new"), "x").unwrap();
    for verb in [&["snapshot", "up"][..], &["rollback", "up"], &["branch", "up", "other"]] {
        let refused = place.unionmount(verb);
        assert!(
            refused.code == Some(1)
                && ["in use", "has it as a layer"].iter().any(|why| refused.err.contains(why)),
            "{refused:?}"
        );
    }
    for verb in
        [&["snapshots", "rm", "mnt", "one"][..], &["rollback", "mnt/d"], &["branch", "mnt/d", "other"]]
    {
        place.unionmount(verb).refused(1, &["lies in a mount"]);
    }
    place.unionmount(&["rollback", "mnt"]).refused(1, &["the mount goes on"]);
    assert!(!place.at(".up.layers").exists() && !place.at("other").exists());
    assert_eq!(place.names("up"), ["new"]);
}

/// A mount that only reads holds no lock, and is seen all the same.
#[test]
fn what_a_mount_reads_is_not_thrown_away() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    fs::write(place.at("up/f"), "x").unwrap();
    place.unionmount(&["snapshot", "--lower", "a:b", "up", "one"]).ok();
    fs::write(place.at("up/f"), "y").unwrap();
    place.unionmount(&["snapshot", "up", "two"]).ok();
    fs::write(place.at("up/f"), "z").unwrap();
    mount(&place, &["--upper", "up", "-o", "ro"]);
    place.unionmount(&["rollback", "up", "one"]).refused(1, &["the mount", "has it as a layer"]);
    assert_eq!(fs::read_to_string(place.at("mnt/f")).unwrap(), "z");
    unmount(&place);
    mount(&place, &["--lower", ".up.layers/2:.up.layers/1"]);
    place.unionmount(&["rollback", "up", "one"]).ok();
    place.unionmount(&["snapshots", "rm", "up", "two"]).refused(1, &["the mount", "has it as a layer"]);
    assert_eq!(fs::read_to_string(place.at("mnt/f")).unwrap(), "y");
    unmount(&place);
    place.unionmount(&["snapshots", "rm", "up", "two"]).ok();
}

/// Who has no part in an upper can't keep it from being mounted, nor say what lies below it.
#[test]
fn what_another_user_puts_beside_an_upper_says_nothing() {
    support::needs_root!();
    let place = Place::new();
    let (uid, gid) = support::cli::user();
    fs::create_dir(place.at(".up.layers")).unwrap();
    fs::write(place.at(".up.layers/stack.json"), "{}").unwrap();
    std::os::unix::fs::chown(place.at(".up.layers"), Some(uid), Some(gid)).unwrap();
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    unmount(&place);
    place.unionmount(&["snapshot", "up"]).refused(1, &[".up.layers", "belongs to uid"]);
}

/// Other verbs see what an upper lies on, or say that they don't.
#[test]
fn other_verbs_know_what_an_upper_lies_on() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    change(&place.at("mnt"));
    unmount(&place);
    place.unionmount(&["snapshot", "--lower", "a:b", "up", "one"]).ok();
    mount(&place, &["--upper", "up"]);
    fs::write(place.at("mnt/changed"), "once more").unwrap();
    let explained = printed(place.unionmount(&["explain", "mnt/d/kept", "mnt/names/1"]));
    assert!(explained.contains("hidden by layer 1 (1)"), "{explained}");
    assert!(printed(place.unionmount(&["status", "mnt"])).contains(".up.layers/1"));
    let since = printed(place.unionmount(&["diff", "mnt"]));
    assert_eq!(since, "C /changed\n");
    unmount(&place);
    // Since the last snapshot.
    assert_eq!(printed(place.unionmount(&["diff", "up"])), since);
    assert_eq!(printed(place.unionmount(&["diff", "up", "a", "b"])), since);
    place.unionmount(&["apply", "up", "a"]).refused(1, &["frozen layers"]);
    place.unionmount(&["apply", "--dry-run", "up", "a"]).refused(1, &["frozen layers"]);
    place.unionmount(&["discard", "-y", "up"]).refused(1, &["unionmount rollback up"]);
    assert_eq!(place.names("up"), ["changed"]);
    place.unionmount(&["seal", "up", "a", "b"]).ok();
    // A frozen layer is nobody's upper.
    let frozen = place.at(".up.layers/1").display().to_string();
    place.unionmount(&["--lower", "a", "--upper", &frozen, "mnt"]).refused(1, &["is a frozen layer"]);
    place.unionmount(&["rollback", "up", "two"]).refused(1, &["no snapshot", "two"]);
    place.unionmount(&["rollback", "up", "0"]).ok();
    assert_eq!(printed(place.unionmount(&["diff", "up"])), "");
    // Nothing below is known where nothing was recorded.
    fs::create_dir(place.at("other")).unwrap();
    fs::write(place.at("other/f"), "x").unwrap();
    place.unionmount(&["snapshot", "other"]).ok();
    place.unionmount(&["--upper", "other", "mnt"]).refused(1, &["--lower", "recorded"]);
    mount(&place, &["--lower", "b", "--upper", "other"]);
    assert!(place.at("mnt/f").exists() && place.at("mnt/kept").exists());
}

#[test]
fn snapshots_are_listed_and_removed() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    assert_eq!(printed(place.unionmount(&["snapshots", "-q", "up"])), "");
    place.unionmount(&["rollback", "up"]).refused(1, &["has no snapshots"]);
    fs::write(place.at("up/f"), [b'x'; 5000]).unwrap();
    place.unionmount(&["snapshot", "up", "one"]).ok();
    fs::write(place.at("up/.wh.x"), "").unwrap();
    assert_eq!(printed(place.unionmount(&["snapshot", "up"])), "2\n");
    place.unionmount(&["rollback", "up", "one"]).ok();
    let branch = place.unionmount(&["branch", "up", "other"]);
    assert_eq!((branch.code, branch.err.as_str()), (Some(0), ""), "nothing is frozen that is empty");
    let table = printed(place.unionmount(&["snapshots", "up"]));
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "CREATED", "FILES", "SIZE", "STATE", "BRANCHES"]);
    assert!(lines[1].first() == Some(&"one") && lines[1].contains(&"below"), "{table}");
    assert!(lines[1].last().unwrap().ends_with("/other"), "{table}");
    assert!(lines[2].first() == Some(&"2") && lines[2].contains(&"aside"), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&printed(place.unionmount(&["snapshots", "--json", "up"]))).unwrap();
    assert_eq!((&json[0]["Files"], &json[0]["Bytes"]), (&1.into(), &8192.into()), "{json}");
    assert_eq!((&json[0]["NeedsUnionmount"], &json[1]["NeedsUnionmount"]), (&false.into(), &true.into()));
    let format = place.unionmount(&["snapshots", "--format", "{{.Name}} {{.Files}}", "up"]);
    assert_eq!(printed(format), "one 1\n2 0\n");
    place.unionmount(&["snapshots", "rm", "up", "one"]).refused(1, &["lies on", "one"]);
    place.unionmount(&["snapshots", "rm", "up", "2"]).ok();
    assert_eq!(printed(place.unionmount(&["snapshots", "-q", "up"])), "one\n");
    assert!(!place.at(".up.layers/2").exists());
}

/// A branch is some small files, whatever it stands on; all of them are seen at once.
#[test]
fn branches_are_small_and_each_is_mounted_beside_the_others() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    fs::write(place.at("up/large"), vec![b'x'; 8 << 20]).unwrap();
    place.unionmount(&["snapshot", "--lower", "a:b", "up"]).ok();
    for branch in 0..10 {
        let name = format!("branch-{branch}");
        place.unionmount(&["branch", "up", &name]).ok();
        let room = [name.clone(), format!(".{name}.layers"), format!(".{name}.layers/stack.json")];
        let room: u64 = room.iter().map(|path| fs::metadata(place.at(path)).unwrap().blocks() * 512).sum();
        assert!(room <= 16 << 10, "{room}");
        place.mkdir(format!("m-{branch}"));
        place.unionmount(&["--upper", &name, &format!("m-{branch}")]).ok();
    }
    for branch in 0..10 {
        fs::write(place.at(format!("m-{branch}/own")), branch.to_string()).unwrap();
    }
    for branch in 0..10 {
        let mount = place.at(format!("m-{branch}"));
        assert_eq!(fs::read_to_string(mount.join("own")).unwrap(), branch.to_string());
        assert_eq!(fs::metadata(mount.join("large")).unwrap().len(), 8 << 20);
        place.unionmount(&["umount", &format!("m-{branch}")]).ok();
    }
    let refused = place.unionmount(&["branch", "up", "branch-1"]);
    refused.refused(1, &["exists already"]);
}

/// Half-copied files and metacopies stay what they are in a frozen layer, and above it.
#[test]
fn data_that_lie_below_are_found_from_a_frozen_layer() {
    support::needs_root!();
    let (place, scratch) = (Place::new(), Scratch::new());
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 128 << 20);
    let upper = disk.path().join("up");
    fs::create_dir(&upper).unwrap();
    let upper = upper.to_str().unwrap();
    let large: Vec<u8> = (0..3 << 20).map(|at| (at % 251) as u8).collect();
    fs::write(place.at("a/half"), &large).unwrap();
    fs::write(place.at("a/meta"), &large).unwrap();
    let options = ["--lower", "a", "--upper", upper, "-o", "lazy=keep"];
    mount(&place, &options);
    let write = |name: &str, at: u64, text: &str| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(place.at(name)).unwrap();
        file.write_all_at(text.as_bytes(), at).unwrap();
    };
    write("mnt/half", 1_000_000, "here");
    fs::set_permissions(place.at("mnt/meta"), fs::Permissions::from_mode(0o640)).unwrap();
    unmount(&place);
    place.unionmount(&["snapshot", "--lower", "a", upper]).ok();
    let listed = printed(place.unionmount(&["snapshots", "--format", "{{.NeedsUnionmount}}", upper]));
    assert_eq!(listed, "true\n");
    let mut half = large.clone();
    half[1_000_000..1_000_004].copy_from_slice(b"here");
    mount(&place, &["--upper", upper, "-o", "lazy=keep"]);
    assert!(
        fs::read(place.at("mnt/half")).unwrap() == half && fs::read(place.at("mnt/meta")).unwrap() == large
    );
    write("mnt/half", 2_000_000, "there");
    write("mnt/meta", 0, "meta");
    fs::rename(place.at("mnt/meta"), place.at("mnt/moved")).unwrap();
    half[2_000_000..2_000_005].copy_from_slice(b"there");
    let mut meta = large;
    meta[..4].copy_from_slice(b"meta");
    for again in [false, true] {
        assert!(
            fs::read(place.at("mnt/half")).unwrap() == half
                && fs::read(place.at("mnt/moved")).unwrap() == meta
        );
        unmount(&place);
        if !again {
            mount(&place, &["--upper", upper]);
        }
    }
}

#[test]
fn changes_are_told_since_a_snapshot_and_between_two() {
    support::needs_root!();
    let place = Place::new();
    place
        .sh("set -e
            for name in kept changed gone mode; do echo $name >b/$name; done
            ./unionmount --lower b --upper up mnt
            echo first >mnt/changed; ./unionmount snapshot mnt one
            rm mnt/gone; echo new >mnt/new; mkdir mnt/d; ./unionmount snapshot mnt two
            echo second >mnt/changed; rm mnt/new; chmod 600 mnt/mode; echo in >mnt/d/in")
        .ok();
    let told = |words: &[&str]| printed(place.unionmount(&[&["diff"], words].concat()));
    let now = "C /changed\nC /d\nA /d/in\nC /mode\nD /new\n";
    assert_eq!(told(&["--since", "two", "mnt"]), now);
    assert_eq!(told(&["mnt", "two.."]), now);
    assert_eq!(told(&["mnt", "one..two"]), "A /d\nD /gone\nA /new\n");
    assert_eq!(told(&["mnt", "two..one"]), "D /d\nA /gone\nD /new\n");
    let all = "C /changed\nA /d\nA /d/in\nD /gone\nC /mode\n";
    assert_eq!(told(&["--since", "0", "mnt"]), all);
    assert!(told(&["--patch", "mnt", "one.."]).contains("-first\n+second"));
    assert!(told(&["--stat", "--since", "0", "mnt"]).contains("/changed | +1 -1"));
    unmount(&place);
    // By the upper, over what was recorded and over what is named; and over lowers whose names have dots.
    assert_eq!(told(&["--since", "0", "up"]), all);
    assert_eq!(told(&["up", "b", "0..one"]), "C /changed\n");
    fs::rename(place.at("b"), place.at("b..c")).unwrap();
    assert_eq!(told(&["--since", "0", "up", "b..c"]), all);
    place.unionmount(&["diff", "up", "b..c", "--since", "none"]).refused(1, &["no snapshot", "none"]);
    place.unionmount(&["diff", "up", "b..c", "one..two", "0..one"]).refused(2, &["not several"]);
    // What branched off knows the names of what it stands on, as far as they lie below it.
    printed(place.unionmount(&["rollback", "up", "one"]));
    place.unionmount(&["branch", "--lower", "b..c", "up", "other"]).ok();
    place.unionmount(&["--lower", "b..c", "--upper", "other", "mnt"]).ok();
    fs::write(place.at("mnt/changed"), "third").unwrap();
    assert_eq!(told(&["--since", "one", "mnt"]), "C /changed\n");
    place.unionmount(&["diff", "--since", "two", "mnt"]).refused(1, &["no snapshot", "two"]);
    unmount(&place);
}
