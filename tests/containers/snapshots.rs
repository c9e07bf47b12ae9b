//! Snapshots of containers: taken, gone back to, branched and committed, of one that lies and of one that runs; and whatever looks at a
//! container sees what is frozen of it.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::{Bed, Success, lacking};
use support::cli::{until, wait};

/// Does something in a container while it is mounted.
fn within(bed: &Bed, name: &str, script: &str) {
    let at = bed.um(&["mount", name]).ok().out.trim().to_owned();
    bed.sh(&format!("set -e; cd {at}; {script}")).ok();
    bed.um(&["umount", name]).ok();
}

fn shown(bed: &Bed, name: &str, script: &str) -> String {
    let at = bed.um(&["mount", name]).ok().out.trim().to_owned();
    let shown = bed.sh(&format!("cd {at}; {script}"));
    bed.um(&["umount", name]).ok();
    shown.out
}

/// A container with two states and one more change: attributes alone, a file of several names, a deletion, a renamed directory.
fn with_two_states(bed: &Bed) {
    bed.um(&["create", "--name", "c", "bb", "sh"]).ok();
    within(
        bed,
        "c",
        "echo one > etc/new; chown 5:6 etc/group; ln etc/os etc/os2; echo more >> etc/os; mv data/sub data/moved",
    );
    bed.um(&["snapshot", "c", "one"]).prints("one");
    within(bed, "c", "echo two > etc/new; rm etc/passwd; echo two > data/two");
    bed.um(&["snapshot", "c"]).prints("2");
    within(bed, "c", "echo three > etc/three");
}

const LOOK: &str = "cat etc/new data/two etc/three 2>/dev/null; test -e etc/passwd && echo passwd; stat -c '%u %h' etc/group etc/os; cat data/moved/f";
const ONE: &str = "one\npasswd\n5 1\n0 2\nof the image\n";
const TWO: &str = "two\ntwo\n5 1\n0 2\nof the image\n";
const THREE: &str = "two\ntwo\nthree\n5 1\n0 2\nof the image\n";

#[test]
fn a_container_goes_on_above_its_snapshots_and_back() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    with_two_states(&bed);
    assert_eq!(shown(&bed, "c", LOOK), THREE);
    bed.um(&["snapshots", "-q", "c"]).prints("one\n2");
    bed.um(&["rollback", "c"]).prints("2");
    assert_eq!(shown(&bed, "c", LOOK), TWO);
    bed.um(&["rollback", "c", "one"]).prints("one");
    assert_eq!(shown(&bed, "c", LOOK), ONE);
    bed.um(&["snapshots", "--format", "{{.Name}} {{.State}}", "c"]).prints("one below\n2 aside");
    bed.um(&["snapshots", "rm", "c", "one"]).refused(1, &["lies on the snapshot one"]);
    bed.um(&["snapshots", "rm", "c", "2"]).ok();
    bed.um(&["rollback", "c", "0"]).prints("0");
    assert_eq!(bed.um(&["diff", "c"]).ok().out, "");
    // Not by its directories, of which this program keeps the order itself.
    let upper = bed.container("c").join("diff").display().to_string();
    bed.um(&["snapshot", &upper]).refused(1, &["is a container's", "name the container"]);
    bed.um(&["rollback", &upper]).refused(1, &["is a container's"]);
    // A word that is two things is neither.
    bed.place.mkdir("c");
    bed.um(&["rollback", "c"]).refused(2, &["both a container and a directory", "./c"]);
    // Nor is it where the store can't be asked.
    bed.place.mkdir("rw");
    bed.sh("UNIONMOUNT_ROOT=image.tar ./unionmount rollback rw").refused(1, &["can't be told", "./rw"]);
    bed.um(&["snapshot", "nobody"]).refused(1, &["no container, no mount and no directory", "ps -a"]);
    bed.um(&["snapshot", "--lower", "image", bed.container("c").file_name().unwrap().to_str().unwrap()])
        .refused(2, &["known of a container"]);
    bed.um(&["create", "--name", "limited", "--size", "4M", "bb"]).ok();
    bed.um(&["snapshot", "limited"]).refused(1, &["--size", "commit"]);
}

#[test]
fn what_looks_at_a_container_sees_what_is_frozen() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    with_two_states(&bed);
    let changed = bed.um(&["diff", "c"]).ok().out;
    for line in [
        "A /etc/new",
        "A /data/two",
        "D /etc/passwd",
        "C /etc/group",
        "A /etc/os2",
        "A /etc/three",
        "D /data/sub",
    ] {
        assert!(changed.lines().any(|one| one == line), "{line}: {changed}");
    }
    assert_eq!(bed.um(&["diff", "--since", "2", "c"]).ok().out, "C /etc\nA /etc/three\n");
    let between = bed.um(&["diff", "c", "one..2"]).ok().out;
    assert!(between.contains("D /etc/passwd") && !between.contains("three"), "{between}");
    // The whole tree, as a tar and by cp, without a mount.
    bed.sh("./unionmount export c | tar -xf - -O etc/new etc/three data/two").prints("two\ntwo\nthree");
    bed.um(&["cp", "c:/etc/new", "copied"]).ok();
    assert_eq!(fs::read_to_string(bed.place.at("copied")).unwrap(), "two\n");
    bed.um(&["cp", "copied", "c:/data/copied"]).ok();
    assert_eq!(shown(&bed, "c", "cat data/copied"), "two\n");
    // Where it lies, and what it takes.
    let lower = bed.um(&["inspect", "-f", "{{.GraphDriver.Data.LowerDir}}", "c"]).ok().out;
    assert!(lower.contains(".diff.layers/2:") && lower.contains(".diff.layers/1:"), "{lower}");
    let layers = bed.um(&["layers", "c"]).ok().out;
    assert!(layers.contains("snapshot one") && layers.contains("snapshot 2"), "{layers}");
    let size = || bed.um(&["ps", "-a", "--size", "--format", "{{.Size}}"]).ok().out;
    let before = size();
    within(&bed, "c", "head -c 3000000 /dev/urandom > data/large");
    bed.um(&["snapshot", "c", "large"]).ok();
    let after = size();
    assert!(before != after && after.contains("2.86 MiB"), "{before} {after}");
    bed.um(&["verify"]).success();
    let layer = bed.container("c").join(".diff.layers/1");
    fs::rename(&layer, bed.place.at("away")).unwrap();
    let told = bed.um(&["verify"]);
    assert!(
        told.code == Some(1) && told.out.contains(".diff.layers/1") || told.err.contains(".diff.layers/1"),
        "{told:?}"
    );
    fs::rename(bed.place.at("away"), &layer).unwrap();
    bed.um(&["prune", "-f"]).success();
    assert_eq!(shown(&bed, "c", LOOK), THREE);
    bed.um(&["rm", "c"]).ok();
    assert_eq!(fs::read_dir(bed.place.at("home/store/containers")).unwrap().count(), 0);
}

#[test]
fn a_commit_has_what_is_frozen_each_as_a_layer() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    with_two_states(&bed);
    for (of, image, expected) in [("c@one", "im:1", ONE), ("c@2", "im:2", TWO), ("c", "im:3", THREE)] {
        bed.um(&["commit", of, image]).ok();
        bed.um(&["mount", image, "mnt"]).ok();
        bed.sh(&format!("cd mnt; {LOOK}")).prints(expected.trim_end());
        bed.place.umount("mnt");
    }
    let layers = |image: &str| -> Vec<String> {
        serde_json::from_str(&bed.image(image, "{{json .RootFS.Layers}}")).unwrap()
    };
    let (one, two, three) = (layers("im:1"), layers("im:2"), layers("im:3"));
    assert_eq!((one.len(), two.len(), three.len()), (2, 3, 4));
    assert!(three.starts_with(&two) && two.starts_with(&one), "what is frozen is the same layer for all");
    let history = bed.um(&["history", "--no-trunc", "im:3"]).ok().out;
    assert!(
        history.contains("unionmount snapshot one") && history.contains("unionmount snapshot 2"),
        "{history}"
    );
    bed.um(&["commit", "c@none", "x"]).refused(1, &["no snapshot of it is called none"]);
    bed.um(&["commit", "c@0", "x"]).refused(1, &["its image itself"]);
    // Nothing new is no layer more.
    bed.um(&["rollback", "c", "2"]).ok();
    bed.um(&["commit", "c", "im:4"]).ok();
    assert_eq!(layers("im:4"), two);
    // Other programs read it.
    bed.um(&["save", "-o", "three.tar", "im:3"]).success();
    bed.um(&["--lower", "three.tar", "mnt"]).success();
    bed.sh(&format!("cd mnt; {LOOK}")).prints(THREE.trim_end());
    bed.place.umount("mnt");
}

#[test]
fn a_branch_is_a_container_that_goes_on_by_itself() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.um(&["create", "--name", "c", "--env", "A=B", "bb", "cat", "/etc/new"]).ok();
    within(&bed, "c", "echo one > etc/new");
    let made = bed.um(&["branch", "c", "twig"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(bed.container("twig").ends_with(made.out.trim()), "prints the id: {made:?}");
    for field in ["{{.Config.Env}}", "{{.Config.Cmd}}", "{{.Image}}"] {
        let of = |name| bed.um(&["inspect", "-f", field, name]).ok().out;
        assert_eq!(of("c"), of("twig"));
    }
    within(&bed, "twig", "echo b > etc/b");
    within(&bed, "c", "echo c > etc/c");
    assert_eq!(shown(&bed, "twig", "cat etc/new etc/b etc/c 2>/dev/null"), "one\nb\n");
    assert_eq!(shown(&bed, "c", "cat etc/new etc/b etc/c 2>/dev/null"), "one\nc\n");
    assert_eq!(bed.um(&["diff", "twig"]).ok().out, "C /etc\nA /etc/b\nA /etc/new\n");
    bed.um(&["commit", "twig", "im"]).ok();
    bed.um(&["mount", "im", "mnt"]).ok();
    bed.sh("cat mnt/etc/new mnt/etc/b").prints("one\nb");
    bed.place.umount("mnt");
    // A branch of the branch, and a name that is taken.
    bed.um(&["branch", "twig", "leaf"]).success();
    assert_eq!(shown(&bed, "leaf", "cat etc/new etc/b"), "one\nb\n");
    let count = || fs::read_dir(bed.place.at("home/store/containers")).unwrap().count();
    bed.um(&["branch", "c", "twig"]).refused(1, &["the name \"twig\" is taken"]);
    bed.um(&["branch", "c", "x/y"]).refused(1, &["can't be a container's name"]);
    assert_eq!(count(), 3, "nothing is left of it");
    let branches = bed.container("c").join(".diff.layers/branches");
    assert_eq!(fs::read_dir(branches).unwrap().count(), 1, "nor that it was to be");
    // Who is stood on stays, whatever the force.
    bed.um(&["rm", "-f", "c"]).refused(1, &["branches off it", "remove"]);
    bed.um(&["snapshots", "rm", "c", "1"]).refused(1, &["snapshot"]);
    assert_eq!(shown(&bed, "leaf", "cat etc/new etc/b"), "one\nb\n");
    // The store may be moved, and they with it.
    bed.sh("mv home/store home/elsewhere && ./unionmount export --root home/elsewhere twig | tar -xf - -O etc/new etc/b").prints("b\none");
    fs::rename(bed.place.at("home/elsewhere"), bed.place.at("home/store")).unwrap();
    bed.um(&["rm", "twig"]).refused(1, &["leaf branches off it"]);
    bed.um(&["rm", "-a"]).success();
    assert_eq!(count(), 0);
}

#[test]
fn a_branch_that_was_removed_holds_nothing() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    with_two_states(&bed);
    bed.um(&["branch", "c", "twig"]).success();
    within(&bed, "c", "echo four > etc/four");
    bed.um(&["snapshot", "c", "four"]).ok();
    bed.um(&["squash", "c", "0..four"]).refused(1, &["stands on the snapshot 3"]);
    bed.um(&["rm", "twig"]).ok();
    bed.um(&["rollback", "c", "0"]).ok();
    bed.um(&["snapshots", "rm", "c", "four", "3", "2", "one"]).ok();
    bed.um(&["rm", "c"]).ok();
}

/// A container that runs, in the background.
fn running(bed: &Bed, args: &[&str], script: &str) -> Child {
    let mut command = Command::new(bed.place.bin());
    command.args(["run", "--name", "r"]).args(args).args(["bb", "sh", "-c", script]);
    bed.prepare(&mut command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn goes_on_while_it_runs(bed: &Bed) {
    let script = "echo one > /etc/new; exec 3<>/etc/new; echo ready > /tmp/ready; i=0; while test ! -e /tmp/go -a $i -lt 900; do sleep 0.1; i=$((i+1)); done; echo two >&3; \
                  cat /etc/new > /tmp/seen; echo > /tmp/done; i=0; while test ! -e /tmp/end -a $i -lt 900; do sleep 0.1; i=$((i+1)); done";
    let mut child = running(bed, &[], script);
    let there = |path: &str| bed.um(&["exec", "r", "sh", "-c", &format!("test -e {path}")]).code == Some(0);
    until("it has begun", || there("/tmp/ready"));
    bed.um(&["snapshot", "r", "first"]).prints("first");
    bed.um(&["exec", "r", "touch", "/tmp/go"]).success();
    until("it goes on", || there("/tmp/done"));
    bed.um(&["exec", "r", "cat", "/tmp/seen"]).prints("two");
    let made = bed.um(&["branch", "r", "twig"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    bed.um(&["exec", "r", "sh", "-c", "echo later > /etc/later"]).success();
    bed.um(&["commit", "r@first", "im"]).ok();
    bed.um(&["run", "--rm", "im", "sh", "-c", "cat /etc/new; test ! -e /tmp/go; test ! -e /etc/later"])
        .prints("one");
    bed.um(&["rollback", "-f", "r", "first"]).refused(1, &["container r runs", "end it first"]);
    if !bed.user {
        // The same where its mount is named.
        let merged = bed.container("r").join("merged").display().to_string();
        bed.um(&["rollback", "-f", &merged, "first"]).refused(1, &["container r runs", "end it first"]);
    }
    bed.um(&["rm", "-f", "r"]).refused(1, &["twig branches off it"]);
    bed.um(&["exec", "r", "touch", "/tmp/end"]).success();
    assert_eq!(wait(&mut child), Some(0));
    bed.um(&["rollback", "r", "first"]).prints("first");
    bed.sh("./unionmount export r | tar -tf - | grep -c later; true").prints("0");
    bed.sh("./unionmount export twig | tar -xf - -O etc/new").prints("two");
    bed.um(&["rm", "-a"]).success();
}

#[test]
fn a_container_goes_on_while_it_is_frozen() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    goes_on_while_it_runs(&Bed::new());
}

#[test]
fn a_users_container_goes_on_while_it_is_frozen() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    support::needs_program!("newuidmap");
    goes_on_while_it_runs(&Bed::of_user());
}

/// Of one that is mounted and doesn't run it is as of every mount.
#[test]
fn a_mounted_container_goes_back_where_nobody_has_something_open_or_by_force() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.um(&["create", "--name", "c", "bb"]).ok();
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    bed.sh(&format!("echo one > {at}/tmp/file")).ok();
    bed.um(&["snapshot", "c", "first"]).prints("first");
    bed.um(&["squash", "c"]).refused(1, &["unmount it first"]);
    bed.sh(&format!("echo two > {at}/tmp/file; touch {at}/tmp/other")).ok();
    let open = fs::File::open(format!("{at}/tmp/other")).unwrap();
    bed.um(&["rollback", "c"]).refused(1, &["something open there", "--force"]);
    bed.um(&["rollback", "-f", "c"]).prints("first");
    drop(open);
    bed.sh(&format!("cat {at}/tmp/file; test ! -e {at}/tmp/other")).prints("one");
    // A branch that is no container keeps it, too.
    bed.um(&["branch", &at, "aside"]).success();
    bed.um(&["umount", "c"]).ok();
    bed.um(&["rm", "-f", "c"]).refused(1, &["the branch", "aside"]);
    // One that isn't found may have been moved.
    bed.sh("mv aside kept; mv .aside.layers .kept.layers").ok();
    for args in [&["rm", "c"][..], &["rm", "-f", "c"]] {
        bed.um(args).refused(1, &["aside", "isn't there now", "--forget-branches"]);
    }
    bed.um(&["rm", "--forget-branches", "c"]).ok();
}

#[test]
fn what_cannot_be_told_of_a_branch_keeps_a_container_until_it_is_given_up() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    with_two_states(&bed);
    bed.um(&["branch", "c", "twig"]).success();
    let twig = bed.container("twig");
    let record = twig.join(".diff.layers/stack.json");
    let whole = fs::read(&record).unwrap();
    fs::write(&record, "{").unwrap();
    let named = record.display().to_string();
    bed.um(&["rm", "-f", "c"]).refused(1, &["can't be told", &named, "is damaged", "--forget-branches"]);
    fs::write(&record, &whole).unwrap();
    bed.um(&["rm", "--forget-branches", "c"]).refused(1, &["twig branches off it"]);
    // What lies in the place of its upper can't be looked into.
    fs::rename(twig.join("diff"), twig.join("elsewhere")).unwrap();
    fs::write(twig.join("diff"), "").unwrap();
    bed.um(&["rm", "c"]).refused(1, &["can't be told", "/diff", "--forget-branches"]);
    fs::remove_file(twig.join("diff")).unwrap();
    fs::rename(twig.join("elsewhere"), twig.join("diff")).unwrap();
    fs::write(&record, "{").unwrap();
    assert_eq!(bed.um(&["rm", "--forget-branches", "c"]).code, Some(0));
    assert!(!bed.um(&["ps", "-a", "--format", "{{.Names}}"]).ok().out.contains('c'));
}

/// What is left of a branch holds a snapshot until `prune`, which lets it go.
#[test]
fn what_is_left_of_a_branch_is_pruned_and_holds_nothing_then() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    with_two_states(&bed);
    bed.um(&["branch", "c", "twig"]).success();
    // As `run --rm` leaves one in which something is open, and as a kill does.
    fs::remove_file(bed.container("twig").join("config.json")).unwrap();
    bed.um(&["rollback", "c", "2"]).ok();
    bed.um(&["snapshots", "rm", "c", "3"]).refused(1, &["of a container that has gone", "unionmount prune"]);
    bed.um(&["prune", "-f"]).success();
    let branches = bed.container("c").join(".diff.layers/branches");
    let written_down = || fs::read_dir(&branches).unwrap().count();
    assert_eq!(written_down(), 0, "it is written down no more");
    bed.um(&["snapshots", "rm", "c", "3"]).ok();
    bed.um(&["branch", "c", "twig"]).success();
    // A link to a directory that is elsewhere is no container's.
    let twig = bed.container("twig");
    let elsewhere = bed.place.at("elsewhere");
    fs::rename(&twig, &elsewhere).unwrap();
    fs::rename(elsewhere.join("config.json"), elsewhere.join("record")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &twig).unwrap();
    bed.um(&["prune", "-f"]).ok();
    assert!(twig.symlink_metadata().is_err() && elsewhere.join("diff").exists());
    assert_eq!(written_down(), 1, "what it leads to is none of the store's");
    fs::rename(&elsewhere, &twig).unwrap();
    // One whose mount is detached is in use as long as something has a file open there.
    let upper = fs::File::open(twig.join("diff")).unwrap();
    rustix::fs::flock(&upper, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let told = bed.um(&["prune", "-f"]).success();
    assert!(
        told.err.contains(twig.to_str().unwrap()) && told.err.contains("its mount is detached"),
        "{told:?}"
    );
    assert!(told.out.contains("and 0 leftovers") && twig.join("diff").exists(), "{told:?}");
    assert_eq!(written_down(), 1, "it was struck off while it was served");
    drop(upper);
    // Where it isn't found what it branches off, that is told.
    let record = bed.container("c").join(".diff.layers/stack.json");
    let whole = fs::read(&record).unwrap();
    fs::write(&record, "{").unwrap();
    let told = bed.um(&["prune", "-f"]).success();
    assert!(told.err.contains("stack.json") && told.err.contains("written down still"), "{told:?}");
    assert!(!twig.exists());
    fs::write(&record, &whole).unwrap();
    bed.um(&["branch", "c", "twig"]).success();
    assert!(bed.um(&["container", "prune", "-f"]).ok().out.contains("Removed 2 containers"));
}

/// Who is about to read has the lock of what is frozen for a moment, and no other yet.
#[test]
fn what_somebody_begins_to_read_is_not_removed() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    with_two_states(&bed);
    let frozen = fs::File::open(bed.container("c").join(".diff.layers")).unwrap();
    rustix::fs::flock(&frozen, rustix::fs::FlockOperation::LockShared).unwrap();
    bed.um(&["rm", "c"]).refused(1, &["is being read", "try again"]);
    drop(frozen);
    bed.um(&["rm", "c"]).ok();
}

/// Of a container and a branch of it, of which both have gone while somebody reads the branch.
#[test]
fn what_is_read_of_what_is_left_is_not_pruned() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    with_two_states(&bed);
    bed.um(&["branch", "c", "twig"]).success();
    let (whole, twig) = (bed.container("c"), bed.container("twig"));
    // It makes the files whose locks those share who read.
    bed.um(&["diff", "twig"]).success();
    let readers = ["readers.lock", ".diff.layers/readers.lock"].map(|name| twig.join(name));
    let readers = readers.into_iter().chain([whole.join(".diff.layers/readers.lock")]);
    let reads: Vec<fs::File> = readers
        .map(|path| {
            let file = fs::File::open(path).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared).unwrap();
            file
        })
        .collect();
    assert!(!whole.join("readers.lock").exists(), "who reads a branch hasn't the other's own lock");
    // As `run --rm` leaves them that are read.
    for dir in [&twig, &whole] {
        fs::remove_file(dir.join("config.json")).unwrap();
    }
    let told = bed.um(&["prune", "-f"]).success();
    for left in [&twig, &whole] {
        let is_told = |line: &str| line.contains(left.to_str().unwrap()) && line.contains("reads it");
        assert!(told.err.lines().any(is_told), "{told:?}");
    }
    for left in [twig.join("diff"), whole.join(".diff.layers/stack.json")] {
        assert!(left.exists(), "{} was taken away from who reads", left.display());
    }
    drop(reads);
    bed.um(&["prune", "-f"]).success();
    assert!(!twig.exists() && !whole.exists());
}

/// Tells whether somebody shares the lock of a file.
fn is_shared(path: &std::path::Path) -> bool {
    let Ok(file) = fs::File::open(path) else { return false };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => false,
        Err(rustix::io::Errno::WOULDBLOCK) => true,
        Err(errno) => panic!("{errno}"),
    }
}

/// Who makes an image of a container has all of it, whatever is removed meanwhile.
#[test]
fn what_a_commit_reads_is_not_taken_away() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    with_two_states(&bed);
    // It is a while until a commit has read that.
    within(&bed, "c", "dd if=/dev/zero of=data/large bs=1 count=0 seek=40G 2>/dev/null");
    bed.um(&["snapshot", "c", "three"]).ok();
    bed.um(&["branch", "c", "twig"]).success();
    for (of, read) in [("c", "c"), ("c@three", "c"), ("twig", "twig")] {
        let mut commit = Command::new(bed.place.bin());
        commit.args(["commit", of, "im"]);
        let mut commit = bed.prepare(&mut commit).stdout(Stdio::null()).spawn().unwrap();
        let id = rustix::process::Pid::from_child(&commit);
        let readers = bed.container("c").join(".diff.layers/readers.lock");
        until("it reads", || is_shared(&readers) && is_shared(&bed.container(read).join("readers.lock")));
        rustix::process::kill_process(id, rustix::process::Signal::STOP).unwrap();
        bed.um(&["squash", "c", "one..three"]).refused(1, &["being read"]);
        bed.um(&["snapshots", "rm", "c", "2"]).refused(1, &["being read"]);
        if read == "c" {
            bed.um(&["rollback", "c"]).refused(1, &["being read"]);
        }
        let whole = ["rm", "-f", read];
        // Of the one that is branched it is said first that it is.
        bed.um(&whole).refused(1, &[if read == "c" { "branches off it" } else { "being read" }]);
        rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
        commit.wait().unwrap();
    }
    bed.um(&["squash", "c", "one..three"]).success();
    bed.um(&["rm", "twig"]).ok();
    bed.um(&["rm", "c"]).ok();
}

/// Whoever has the lock of a record doesn't wait for the names while who has the names waits for it.
#[test]
fn a_branch_and_a_new_name_of_one_container_do_not_wait_for_each_other() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    use std::os::unix::fs::MetadataExt;
    let bed = Bed::new();
    with_two_states(&bed);
    let dir = fs::File::open(bed.container("c")).unwrap();
    rustix::fs::flock(&dir, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let number = format!(":{} ", dir.metadata().unwrap().ino());
    let waiting = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().filter(|line| line.contains("-> FLOCK") && line.contains(&number)).count()
    };
    let spawn = |args: &[&str]| {
        let mut command = Command::new(bed.place.bin());
        command.args(args);
        bed.prepare(&mut command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut branch = spawn(&["branch", "c", "twig"]);
    until("the branch waits for the record", || waiting() == 1);
    let mut rename = spawn(&["rename", "c", "d"]);
    until("the other waits for the record", || waiting() == 2);
    assert!(!is_shared(&bed.place.at("home/store/index.lock")), "who waits for a record hasn't the names");
    drop(dir);
    assert_eq!((wait(&mut branch), wait(&mut rename)), (Some(0), Some(0)));
    bed.um(&["rm", "twig", "d"]).ok();
}

#[test]
fn the_manuals_lines_about_containers_can_be_typed() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/snapshots.md");
    let text = fs::read_to_string(manual).unwrap();
    let block = text.split_once("\n## Containers\n").unwrap().1.split_once("```bash\n").unwrap().1;
    let block = block.split_once("```").unwrap().0;
    let bed = Bed::new();
    bed.um(&["create", "--name", "build", "bb"]).ok();
    within(&bed, "build", "echo one > etc/new");
    let typed = bed.sh(&format!("set -e; PATH=$PWD:$PATH\n{block}"));
    assert!(typed.code == Some(0) && typed.out.contains("before"), "{typed:?}");
    bed.um(&["mount", "tried:before", "mnt"]).ok();
    bed.sh("cat mnt/etc/new").prints("one");
    bed.place.umount("mnt");
    assert_eq!(shown(&bed, "other", "cat etc/new"), "one\n");
}

/// What a later program wrote is no reason to have a container removed.
#[test]
fn snapshots_of_a_later_program_are_not_broken() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    with_two_states(&bed);
    bed.um(&["verify"]).ok();
    bed.sh("sed -i '0,/\"next\"/s//\"shown_as\": 5, \"next\"/' $(find . -name stack.json)").ok();
    let ended = bed.um(&["verify"]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let told = format!("{}{}", ended.out, ended.err);
    assert!(
        told.contains("a later version of unionmount") && told.contains("(unknown field `shown_as`)"),
        "{told}"
    );
    assert!(told.contains("could not be checked") && !told.contains("unionmount rm"), "{told}");
}
