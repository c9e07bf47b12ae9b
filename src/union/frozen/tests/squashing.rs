//! Several frozen layers that become one.

use super::*;

use crate::union::Limits;
use crate::union::frozen::squash::{Range, Squashed, Squashing};
use crate::union::stack::layer::{Stack, StackOptions};
use crate::union::stack::stack_error::StackError;

fn range(after: &str, to: &str) -> Range {
    let named = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    Range { after: named(after), to: named(to) }
}

fn merge(bed: &Bed, after: &str, to: &str) -> Squashed {
    Squashing::begin(&target(bed), &range(after, to), false).unwrap().carry_out().unwrap()
}

fn refused(bed: &Bed, after: &str, to: &str) -> String {
    let before = bed.names(".upper.layers");
    let squashing = Squashing::begin(&target(bed), &range(after, to), false);
    let refused = squashing.and_then(Squashing::carry_out).unwrap_err().to_string();
    assert_eq!(bed.names(".upper.layers"), before, "nothing was changed");
    refused
}

/// Contents, link counts, and the numbers of what is no directory: of those some are made anew.
fn lasting(tree: &BTreeMap<String, Shown>) -> BTreeMap<String, Shown> {
    let tell = |(path, shown): (&String, &Shown)| {
        let (ino, links, content) = shown.clone();
        (path.clone(), if content.is_empty() { (0, links, content) } else { (ino, links, content) })
    };
    tree.iter().map(tell).collect()
}

/// Four states: something of every form, and each form above another.
fn four() -> (Bed, Vec<BTreeMap<String, Shown>>) {
    let bed = build();
    for file in ["deep/a/b/file", "deep/a/gone", "twice/file", "back/file", "opaque/below"] {
        bed.file(&format!("0/{file}"));
    }
    let mut states = Vec::new();
    change(&bed.open());
    make(&bed.open(), "own", New::Directory);
    states.push(shown(&bed));
    take(&bed, "one");

    let union = bed.open();
    let root = union.root().clone();
    let renamed = |from: &str, to: &str| {
        union.rename((&root, from.as_bytes()), (&root, to.as_bytes()), RenameMode::Replace).unwrap();
    };
    // A redirect above a redirect, one that leads back, one of a directory below one that was renamed.
    renamed("new-name", "newer-name");
    renamed("twice", "once");
    renamed("back", "away");
    let deep = find(&union, "deep");
    union.rename((&deep, b"a"), (&root, b"moved"), RenameMode::Replace).unwrap();
    write(&union, "moved/b/file", "MOVED");
    union.unlink(&find(&union, "moved"), b"gone").unwrap();
    // What was made in a layer is deleted, what was deleted comes back.
    union.unlink(&root, b"made").unwrap();
    make(&union, "deleted", New::File);
    write(&union, "linked/2", "TWO OF ONE");
    union.unlink(&find(&union, "linked"), b"3").unwrap();
    union.unlink(&find(&union, "opaque"), b"below").unwrap();
    union.rmdir(&root, b"opaque").unwrap();
    drop((deep, root, union));
    states.push(shown(&bed));
    take(&bed, "two");

    let union = bed.open();
    let root = union.root().clone();
    make(&union, "opaque", New::Directory);
    union.rename((&root, b"once"), (&root, b"thrice"), RenameMode::Replace).unwrap();
    union.rename((&root, b"away"), (&root, b"back"), RenameMode::Replace).unwrap();
    union
        .rename((&find(&union, "moved"), b"b"), (&find(&union, "thrice"), b"b"), RenameMode::Replace)
        .unwrap();
    union.unlink(&find(&union, "lost"), b"3").unwrap();
    make(&union, "made", New::File);
    drop((root, union));
    states.push(shown(&bed));
    take(&bed, "three");

    write(&bed.open(), "same", "FOUR");
    states.push(shown(&bed));
    (bed, states)
}

/// Whatever is merged, what is above shows the same, and so does what was not.
#[test]
fn a_squash_changes_nothing_that_is_seen() {
    for (after, to, gone) in [
        ("", "", vec!["two", "one"]),
        ("0", "three", vec!["two", "one"]),
        ("one", "three", vec!["two"]),
        ("0", "two", vec!["one"]),
    ] {
        let (bed, states) = four();
        let what = format!("{after}..{to}");
        let done = merge(&bed, after, to);
        assert_eq!(done.gone, gone, "{what}");
        let now = shown(&bed);
        assert_eq!(lasting(&now), lasting(&states[3]), "{what}");
        assert_eq!(
            bed.names(".upper.layers").len(),
            4 - gone.len(),
            "{what}: of three layers and the record"
        );
        let listed = listing::list(&bed.at("upper")).unwrap();
        let names: Vec<&str> = listed.iter().map(|one| one.layer.name.as_str()).collect();
        assert!(
            listed.iter().all(|one| one.is_below) && gone.iter().all(|name| !names.contains(name)),
            "{names:?}"
        );
        // What was copied up is still one file, and goes on being one.
        let union = bed.open();
        write(&union, "linked/4", "ALL OF IT");
        assert!(tree(&union)["/linked/1"].2.starts_with(b"ALL OF IT"), "{what}");
        union.unlink(&find(&union, "lost"), b"4").unwrap();
        assert_eq!(tree(&union)["/lost/5"].1, 1, "{what}");
        drop(union);
        let later = shown(&bed);
        take(&bed, "later");
        assert_eq!(shown(&bed), later, "{what}: above another snapshot");
        // The states that are left can be gone to.
        for (name, state) in [("one", 0), ("two", 1), ("three", 2)] {
            if !gone.contains(&name) {
                go_back(&bed, name);
                assert_eq!(lasting(&shown(&bed)), lasting(&states[state]), "{what}: {name}");
            }
        }
        go_back(&bed, "later");
        let again = merge(&bed, "", "");
        assert_eq!(again.into, "later");
        assert_eq!(lasting(&shown(&bed)), lasting(&later), "{what}: once more");
    }
}

#[test]
fn what_something_stands_on_stays() {
    let (bed, states) = four();
    branch::branch(&target(&bed), &bed.at("b")).unwrap();
    // For the branch the upper was frozen: 4.
    assert!(refused(&bed, "three", "4").contains("no two"), "one layer");
    assert!(refused(&bed, "two", "one").contains("doesn't lie on"));
    assert!(refused(&bed, "none", "one").contains("no snapshot"));
    go_back(&bed, "two");
    write(&bed.open(), "same", "FORK");
    take(&bed, "fork");
    let why = refused(&bed, "one", "4");
    assert!(why.contains("several snapshots lie on two") && why.contains("three, fork"), "{why}");
    assert_eq!(merge(&bed, "two", "4"), Squashed { gone: vec!["three".into()], into: "4".into() });
    let of_branch = Target { upper: bed.at("b"), ..target(&bed) };
    let below = below::of_path(&of_branch.upper).unwrap().unwrap();
    assert_eq!(below.layers.len(), 3, "the branch stands on what has it all: {below:?}");
    // With what it shows.
    go_back(&bed, "4");
    assert_eq!(lasting(&shown(&bed)), lasting(&states[3]));
    branch::branch(&Target { upper: bed.at("b"), ..target(&bed) }, &bed.at("c")).unwrap();
    assert!(refused(&bed, "0", "fork").contains("several snapshots lie on two"));
    let fork = merge(&bed, "0", "two");
    assert_eq!(fork.gone, ["one"]);
    go_back(&bed, "fork");
    let mut expected = lasting(&states[1]);
    expected.get_mut("/same").unwrap().2[..4].copy_from_slice(b"FORK");
    let now = lasting(&shown(&bed));
    assert_eq!(now.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert_eq!(now["/same"].2, expected["/same"].2);
}

#[test]
fn a_file_whose_data_lie_below_is_not_merged() {
    support::needs_root!();
    let bed = build();
    write(&bed.open(), "changed", "ONE");
    take(&bed, "one");
    take(&bed, "two");
    let file = bed.at(".upper.layers/2/changed");
    let none = rustix::fs::XattrFlags::empty();
    fs::File::create(&file).unwrap().set_len(9).unwrap();
    rustix::fs::setxattr(&file, "trusted.overlay.metacopy", b"", none).unwrap();
    let before = shown(&bed);
    let why = refused(&bed, "", "");
    assert!(
        why.contains("changed has its data in a layer below") && why.contains(".upper.layers/2"),
        "{why}"
    );
    assert_eq!(shown(&bed), before);
}

/// Programs that know no other form read the record as long as no layer lies elsewhere.
#[test]
fn the_form_of_a_record_says_that_a_layer_lies_elsewhere() {
    let (bed, _) = four();
    let version =
        || fs::read_to_string(bed.at(".upper.layers/stack.json")).unwrap().contains("\"version\": 1");
    assert!(version());
    merge(&bed, "", "");
    assert!(!version());
    assert_eq!(bed.names(".upper.layers"), ["4", "stack.json"]);
}

fn open_branch(bed: &Bed, name: &str, wait: std::time::Duration) -> Result<Stack, StackError> {
    Stack::open(&StackOptions {
        lowers: vec![bed.at("0").into()],
        upper: Some(bed.at(name)),
        lock_wait: wait,
        ..StackOptions::default()
    })
}

/// A branch of the upper, and a branch of that which has something of its own below.
fn branched(bed: &Bed) {
    branch::branch(&target(bed), &bed.at("b")).unwrap();
    let of_branch = Target { upper: bed.at("b"), ..target(bed) };
    snapshot(&of_branch, Some("its-own")).unwrap();
    branch::branch(&of_branch, &bed.at("c")).unwrap();
}

#[test]
fn a_mount_of_a_branch_begins_before_the_squash_or_after_it() {
    const LONG: std::time::Duration = std::time::Duration::from_secs(60);
    let (bed, states) = four();
    branched(&bed);
    let expected = lasting(&states[3]);
    let squashing = Squashing::begin(&target(&bed), &range("0", ""), false).unwrap();
    for name in ["b", "c", "upper"] {
        let refused = open_branch(&bed, name, std::time::Duration::ZERO).unwrap_err();
        assert!(matches!(refused, StackError::InUse { .. }), "{name}: {refused}");
    }
    let refused = branch::branch(&Target { upper: bed.at("b"), ..target(&bed) }, &bed.at("d")).unwrap_err();
    assert!(matches!(refused, StackError::InUse { .. }), "{refused}");
    assert_eq!(squashing.told().gone, ["three", "two", "one"]);
    assert!(squashing.places().iter().all(|place| place.exists()));
    let mount = |name| Union::new(open_branch(&bed, name, LONG).unwrap(), Limits::default()).unwrap();
    std::thread::scope(|scope| {
        let waiting = ["b", "c"].map(|name| scope.spawn(move || lasting(&tree(&mount(name)))));
        squashing.carry_out().unwrap();
        for waited in waiting {
            assert_eq!(waited.join().unwrap(), expected);
        }
    });
}

#[test]
fn a_branch_of_a_branch_that_is_in_use_is_named() {
    let (bed, states) = four();
    branched(&bed);
    let mounted = open_branch(&bed, "c", std::time::Duration::from_secs(20)).unwrap();
    let why = refused(&bed, "0", "");
    assert!(
        why.contains(&format!("the branch {}", bed.at("c").display())) && why.contains("unmount"),
        "{why}"
    );
    drop(mounted);
    // What it doesn't stand on is another matter.
    write(&bed.open(), "same", "FIVE");
    take(&bed, "five");
    take(&bed, "six");
    let mounted = open_branch(&bed, "c", std::time::Duration::from_secs(20)).unwrap();
    assert_eq!(merge(&bed, "4", "six").gone, ["five"]);
    drop(mounted);
    assert_eq!(merge(&bed, "0", "4").gone, ["three", "two", "one"]);
    let union =
        Union::new(open_branch(&bed, "c", std::time::Duration::from_secs(20)).unwrap(), Limits::default());
    assert_eq!(lasting(&tree(&union.unwrap())), lasting(&states[3]));
}

#[test]
fn a_branch_that_is_not_found_is_named_and_force_says_that_it_is_gone() {
    let (bed, states) = four();
    branch::branch(&target(&bed), &bed.at("b")).unwrap();
    take(&bed, "five");
    for part in ["b", ".b.layers"] {
        fs::rename(bed.at(part), bed.at(format!("{part}-moved"))).unwrap();
        for after in ["0", ""] {
            let why = refused(&bed, after, "4");
            let named = format!("the branch {}", bed.at("b").display());
            assert!(why.contains(&named) && why.contains("--force"), "{part}: {why}");
        }
        fs::rename(bed.at(format!("{part}-moved")), bed.at(part)).unwrap();
    }
    assert!(refused(&bed, "0", "five").contains("stands on the snapshot 4, which stays"));
    for part in ["b", ".b.layers"] {
        fs::remove_dir_all(bed.at(part)).unwrap();
    }
    let squashing = Squashing::begin(&target(&bed), &range("0", "five"), true).unwrap();
    assert_eq!(squashing.carry_out().unwrap().gone, ["4", "three", "two", "one"]);
    assert_eq!(bed.names(".upper.layers/branches"), [""; 0], "and isn't asked for again");
    assert_eq!(lasting(&shown(&bed)), lasting(&states[3]));
}

/// How many names of it are hidden is counted in what lies above, by the file that was.
#[test]
fn a_file_that_loses_one_of_its_names_is_not_merged() {
    let bed = build();
    let union = bed.open();
    make(&union, "several", New::File);
    let (several, root) = (find(&union, "several"), union.root().clone());
    for name in ["other", "third"] {
        union.link(&several, &root, name.as_bytes()).unwrap();
    }
    drop((several, root, union));
    take(&bed, "one");
    let union = bed.open();
    union.unlink(union.root(), b"other").unwrap();
    drop(union);
    take(&bed, "two");
    let why = refused(&bed, "", "");
    assert!(why.contains("has another name"), "{why}");
    // What writes to one of the two that are left is seen by the other, also when the first goes.
    let union = bed.open();
    write(&union, "several", "WRITTEN");
    union.unlink(union.root(), b"several").unwrap();
    let mut shown = [0; 7];
    union.read(&find(&union, "third"), 0, &mut shown).unwrap();
    assert_eq!(&shown, b"WRITTEN");
}

#[test]
fn marks_that_are_not_believed_are_not_merged_away() {
    if !rustix::process::geteuid().is_root() {
        support::skipped("an ordinary user believes the marks that there are");
        return;
    }
    let bed = build();
    for name in ["one", "two"] {
        let union = bed.open();
        make(&union, name, New::Directory);
        write(&union, "changed", name);
        drop(union);
        take(&bed, name);
    }
    let none = rustix::fs::XattrFlags::empty();
    for (path, mark) in [
        ("2/two", "user.overlay.redirect"),
        ("1/one", "user.overlay.opaque"),
        ("2/two", "user.fuseoverlayfs.opaque"),
        ("2", "user.overlay.opaque"),
        ("2/changed", "user.overlay.metacopy"),
        ("2/changed", "user.overlay.redirect"),
        ("2/changed", "user.overlay.whiteout"),
    ] {
        let marked = bed.at(".upper.layers").join(path);
        rustix::fs::setxattr(&marked, mark, b"y", none).unwrap();
        let why = refused(&bed, "", "");
        assert!(why.contains(mark) && why.contains(path) && why.contains("--userxattr"), "{path}: {why}");
        rustix::fs::removexattr(&marked, mark).unwrap();
    }
    merge(&bed, "", "");
}

/// Who looks for branches again doesn't find the same for ever that was left out.
#[test]
fn a_branch_that_leads_nowhere_is_left_out_once() {
    let (bed, _) = four();
    branch::branch(&target(&bed), &bed.at("b")).unwrap();
    take(&bed, "five");
    fs::remove_dir_all(bed.at("b")).unwrap();
    std::os::unix::fs::symlink("nowhere", bed.at("b")).unwrap();
    let why = refused(&bed, "0", "4");
    assert!(why.contains("the branch") && why.contains("--force"), "{why}");
    let squashing = Squashing::begin(&target(&bed), &range("0", "4"), true).unwrap();
    assert_eq!(squashing.carry_out().unwrap().gone, ["three", "two", "one"]);
}
