//! Tests: snapshots of stacks in scratch directories.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::union::Union;
use crate::union::bed::{Bed, look_up};
use crate::union::change::create::Create;
use crate::union::change::rename::RenameMode;
use crate::union::change::staged::New;
use crate::union::data::file::Write;
use crate::union::frozen::held::{GONE, Held, Writing};
use crate::union::frozen::snapshot::{Target, snapshot};
use crate::union::frozen::{below, branch, listing, removal, rollback};
use crate::union::nodes::node::Node;
use crate::union::view::attr::SetAttr;

mod kills;
mod squashing;

fn target(bed: &Bed) -> Target {
    Target { upper: bed.at("upper"), lowers: vec![bed.at("0").into()], ..Target::default() }
}

fn take(bed: &Bed, name: &str) {
    snapshot(&target(bed), Some(name)).unwrap();
}

fn go_back(bed: &Bed, name: &str) {
    let done = rollback::rollback(&target(bed), Some(name)).unwrap();
    assert_eq!((done.to.as_str(), done.left), (name, None));
}

fn find(union: &Union, path: &str) -> Arc<Node> {
    look_up(union, path).unwrap_or_else(|| panic!("{path} is not there"))
}

fn write(union: &Union, path: &str, text: &str) {
    union.write(&find(union, path), 0, text.as_bytes(), Write::default()).unwrap();
}

fn make(union: &Union, name: &str, new: New<'_>) {
    let create = Create { new, mode: 0o755, umask: 0o022, caller: union.own };
    union.create(union.root(), name.as_bytes(), create).unwrap();
}

/// What a path shows: its number, its link count, its content.
type Shown = (u64, u64, Vec<u8>);

/// All that a union shows, by path. What a listing says of a number is what a lookup says.
fn tree(union: &Union) -> BTreeMap<String, Shown> {
    let mut all = BTreeMap::new();
    let mut todo = vec![(String::new(), union.root().clone())];
    while let Some((path, dir)) = todo.pop() {
        let mut listed = Vec::new();
        union
            .readdir(&dir, 0, |entry| {
                listed.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.ino));
                true
            })
            .unwrap();
        for (name, ino) in listed {
            let (node, attr) = union.lookup(&dir, name.as_bytes()).unwrap().unwrap();
            let path = format!("{path}/{name}");
            assert_eq!(attr.ino, ino, "{path}: listed with another number");
            let mut content = vec![0; attr.stat.size as usize];
            if node.dir.is_some() {
                content.clear();
                todo.push((path.clone(), node));
            } else {
                let filled = union.read(&node, 0, &mut content).unwrap();
                content.truncate(filled);
            }
            all.insert(path, (attr.ino, attr.stat.nlink, content));
        }
    }
    all
}

fn shown(bed: &Bed) -> BTreeMap<String, Shown> {
    tree(&bed.open())
}

/// A lower with something for every form: files of several names, directories that are merged, renamed, replaced.
fn build() -> Bed {
    build_in(Bed::new(1))
}

fn build_in(bed: Bed) -> Bed {
    for file in ["changed", "deleted", "same", "d/file", "d/deleted", "renamed/file", "replaced/old", "chmod"]
    {
        bed.file(&format!("0/{file}"));
    }
    for (first, others) in [("linked/1", 2..=4), ("lost/1", 2..=5)] {
        bed.file(&format!("0/{first}"));
        for name in others {
            let other = bed.at("0").join(first).with_file_name(name.to_string());
            fs::hard_link(bed.at("0").join(first), other).unwrap();
        }
    }
    bed
}

/// Changes something of every form.
fn change(union: &Union) {
    let root = union.root();
    write(union, "changed", "CHANGED");
    write(union, "d/file", "CHANGED");
    union.unlink(root, b"deleted").unwrap();
    union.unlink(&find(union, "d"), b"deleted").unwrap();
    union.rename((root, b"renamed"), (root, b"new-name"), RenameMode::Replace).unwrap();
    union.unlink(&find(union, "replaced"), b"old").unwrap();
    union.rmdir(root, b"replaced").unwrap();
    make(union, "replaced", New::Directory);
    make(union, "made", New::File);
    let mode = SetAttr { mode: Some(0o640), ..SetAttr::default() };
    union.setattr(&find(union, "chmod"), mode, false).unwrap();
    // One name is copied up, others are only known to the index; of another file names are hidden.
    write(union, "linked/1", "ONE FILE");
    for name in ["1", "2"] {
        union.unlink(&find(union, "lost"), name.as_bytes()).unwrap();
    }
}

/// The tree, its numbers and its link counts are the same above what was frozen, in the next mount and the ones after.
#[test]
fn a_snapshot_changes_nothing_that_is_seen() {
    let bed = build();
    change(&bed.open());
    let before = shown(&bed);
    for name in ["one", "two"] {
        take(&bed, name);
        assert!(bed.names("upper").is_empty());
        assert_eq!(shown(&bed), before, "{name}");
    }
    // And what is copied up from there is still the same file.
    let union = bed.open();
    write(&union, "linked/3", "AGAIN IT");
    write(&union, "changed", "MORE OF");
    union.unlink(&find(&union, "lost"), b"3").unwrap();
    let numbers = |tree: &BTreeMap<String, Shown>| -> BTreeMap<String, u64> {
        tree.iter().map(|(path, shown)| (path.clone(), shown.0)).collect()
    };
    let after = tree(&union);
    drop(union);
    let mut expected = numbers(&before);
    expected.remove("/lost/3");
    assert_eq!(numbers(&after), expected);
    for name in 1..=4 {
        let (_, links, content) = &after[&format!("/linked/{name}")];
        assert!(*links == 4 && content.starts_with(b"AGAIN IT"), "{name}: {links} {content:?}");
    }
    assert_eq!(after["/lost/4"].1, 2);
    assert_eq!(shown(&bed), after, "in the next mount");
    take(&bed, "three");
    assert_eq!(shown(&bed), after, "and above another snapshot");
}

#[test]
fn a_frozen_layer_holds_all_names_of_its_files() {
    let bed = build();
    bed.file("0/two/a");
    fs::hard_link(bed.at("0/two/a"), bed.at("0/two/b")).unwrap();
    write(&bed.open(), "linked/1", "ONE FILE");
    // Nobody knows the others without the layers below.
    let unknown = Target { lowers: Vec::new(), ..target(&bed) };
    let refused = snapshot(&unknown, None).unwrap_err().to_string();
    assert!(refused.contains("--lower"), "{refused}");
    assert_eq!(bed.names("upper"), ["linked"]);
    take(&bed, "one");
    assert_eq!(bed.names(".upper.layers/1/linked"), ["1", "2", "3", "4"]);
    let stat = fs::metadata(bed.at(".upper.layers/1/linked/4")).unwrap();
    assert_eq!(stat.nlink(), 4, "and no name elsewhere");
    let union = bed.open();
    union.unlink(&find(&union, "linked"), b"1").unwrap();
    drop(union);
    // The last name of a copy, which only the lower has.
    let union = bed.open();
    let dir = find(&union, "two");
    union.write(&find(&union, "two/a"), 0, b"COPIED", Write::default()).unwrap();
    union.unlink(&dir, b"a").unwrap();
    drop((dir, union));
    take(&bed, "two");
    assert!(fs::read(bed.at(".upper.layers/2/two/b")).unwrap().starts_with(b"COPIED"));
    // Nothing of a file that has all its names needs the layers below.
    snapshot(&unknown, None).unwrap();
}

#[test]
fn a_rollback_shows_what_was_seen_at_the_snapshot() {
    let bed = build();
    let base = shown(&bed);
    change(&bed.open());
    let first = shown(&bed);
    take(&bed, "first");
    let union = bed.open();
    write(&union, "changed", "SECOND");
    write(&union, "linked/2", "SECOND");
    union.unlink(&find(&union, "lost"), b"4").unwrap();
    make(&union, "second", New::Directory);
    drop(union);
    let second = shown(&bed);
    take(&bed, "second");
    let union = bed.open();
    write(&union, "same", "THIRD");
    write(&union, "linked/4", "THIRD");
    drop(union);
    assert_eq!(rollback::rollback(&target(&bed), None).unwrap().to, "second");
    // The root's time is that of the snapshot's.
    assert_eq!(shown(&bed), second);
    for (name, expected) in [("first", &first), ("second", &second), ("0", &base), ("first", &first)] {
        write(&bed.open(), "same", "GOES AGAIN");
        go_back(&bed, name);
        assert!(bed.names("upper").is_empty());
        assert_eq!(&shown(&bed), expected, "{name}");
        assert_eq!(bed.names(".upper.layers"), ["1", "2", "stack.json"]);
    }
    // From there it goes on.
    write(&bed.open(), "same", "FORKED");
    take(&bed, "fork");
    let listed = listing::list(&bed.at("upper")).unwrap();
    let states: Vec<(&str, bool, u32)> =
        listed.iter().map(|one| (one.layer.name.as_str(), one.is_below, one.layer.below)).collect();
    assert_eq!(states, [("first", true, 0), ("second", false, 1), ("fork", true, 1)]);
    assert_eq!(listed[2].content.files, 1);
}

/// An upper with one snapshot, and something written since.
fn two_states() -> Bed {
    let bed = build();
    write(&bed.open(), "same", "ONE");
    take(&bed, "one");
    write(&bed.open(), "same", "TWO");
    bed
}

/// An upper whose place the one of a rollback has taken, and no more.
fn rolled_back_half(bed: &Bed) -> (Held, Writing) {
    let held = target(bed).hold().unwrap();
    let writing = rollback::writing(&held).unwrap();
    rollback::prepare(&held, &writing, None).unwrap();
    held.exchange(&writing.layers, GONE).unwrap();
    (held, writing)
}

#[test]
fn who_gives_a_rollback_up_never_removes_the_upper_itself() {
    let bed = two_states();
    let two = shown(&bed);
    let (held, writing) = rolled_back_half(&bed);
    let told = held.give_up(&writing, GONE).unwrap_err().to_string();
    assert!(told.contains("the upper itself"), "{told}");
    held.take_back(&writing.layers, GONE).unwrap();
    for _ in ["it is there", "it is gone"] {
        held.give_up(&writing, GONE).unwrap();
    }
    drop((held, writing));
    assert_eq!(bed.names(".upper.layers"), ["1", "stack.json"]);
    assert_eq!(shown(&bed), two);
}

#[test]
fn an_upper_that_could_not_be_put_back_is_removed_by_nobody() {
    let bed = two_states();
    let (held, writing) = rolled_back_half(&bed);
    let told = held.not_put_back(&writing.layers, GONE, "it failed", rustix::io::Errno::IO).to_string();
    assert!(told.contains(".upper.layers/rescued-1 now"), "{told}");
    drop((held, writing));
    take(&bed, "two");
    go_back(&bed, "one");
    assert!(fs::read(bed.at(".upper.layers/rescued-1/same")).unwrap().starts_with(b"TWO"));
}

#[test]
fn what_was_exchanged_instead_of_the_upper_is_removed_by_nobody() {
    let bed = two_states();
    let (held, writing) = rolled_back_half(&bed);
    fs::rename(bed.at(".upper.layers").join(GONE), bed.at("moved-away")).unwrap();
    fs::create_dir(bed.at(".upper.layers").join(GONE)).unwrap();
    fs::write(bed.at(".upper.layers").join(GONE).join("theirs"), "theirs").unwrap();
    let why = crate::union::frozen::unfit::SnapshotError::refused(bed.at("upper"), "it was another");
    let told = held.other_not_put_back(&writing.layers, GONE, &why, rustix::io::Errno::IO).to_string();
    assert!(told.contains("it was another") && told.contains(".upper.layers/rescued-1 now"), "{told}");
    drop((held, writing));
    take(&bed, "two");
    go_back(&bed, "one");
    assert_eq!(fs::read(bed.at(".upper.layers/rescued-1/theirs")).unwrap(), b"theirs");
}

#[test]
fn what_something_stands_on_is_not_removed() {
    let bed = two_states();
    take(&bed, "two");
    branch::branch(&target(&bed), &bed.at("branch")).unwrap();
    go_back(&bed, "0");
    let remove = |names: &[&str], force| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        removal::remove(&bed.at("upper"), &names, force).map_err(|error| error.to_string())
    };
    assert!(remove(&["one"], false).unwrap_err().contains("two"));
    for force in [false, true] {
        let told = remove(&["one", "two"], force).unwrap_err();
        assert!(told.contains(&bed.at("branch").display().to_string()), "{told}");
    }
    // Moved or gone, nobody knows.
    fs::rename(bed.at(".branch.layers"), bed.at("elsewhere")).unwrap();
    assert!(remove(&["one", "two"], false).unwrap_err().contains("--force"));
    assert_eq!(bed.names(".upper.layers"), ["1", "2", "branches", "stack.json"]);
    remove(&["one", "two"], true).unwrap();
    assert_eq!(bed.names(".upper.layers"), ["branches", "stack.json"]);
    assert!(bed.names(".upper.layers/branches").is_empty());
    take(&bed, "three");
    assert!(remove(&["three"], true).unwrap_err().contains("lies on"));
    assert!(remove(&["four"], true).unwrap_err().contains("four"));
    assert_eq!(listing::list(&bed.at("upper")).unwrap()[0].layer.layer, 3, "no number is given twice");
}

/// Both go on by themselves, over one base that neither changes.
#[test]
fn a_branch_shows_the_same_and_goes_on_by_itself() {
    let bed = build();
    change(&bed.open());
    let before = shown(&bed);
    let taken = branch::branch(&target(&bed), &bed.at("b")).unwrap();
    assert_eq!(taken.as_deref(), Some("1"));
    let of_branch = |name: &str| {
        let stack = crate::union::stack::layer::Stack::open(&crate::union::stack::layer::StackOptions {
            lowers: vec![bed.at("0").into()],
            upper: Some(bed.at(name)),
            ..Default::default()
        });
        Union::new(stack.unwrap(), crate::union::Limits::default()).unwrap()
    };
    assert_eq!(tree(&of_branch("b")), before);
    write(&of_branch("b"), "changed", "BRANCH");
    write(&bed.open(), "changed", "UPPER");
    assert!(shown(&bed)["/changed"].2.starts_with(b"UPPER"));
    assert!(tree(&of_branch("b"))["/changed"].2.starts_with(b"BRANCH"));
    // A branch of a branch; nothing was changed in the first one since it was made of nothing.
    let b = Target { upper: bed.at("b"), ..target(&bed) };
    assert_eq!(branch::branch(&b, &bed.at("c")).unwrap().as_deref(), Some("1"));
    let c = Target { upper: bed.at("c"), ..target(&bed) };
    assert_eq!(branch::branch(&c, &bed.at("d")).unwrap(), None, "nothing to be frozen");
    assert_eq!(tree(&of_branch("d")), tree(&of_branch("b")));
    assert_eq!(listing::list(&bed.at("d")).unwrap().len(), 2);
    // Where both are moved together, they find each other.
    fs::create_dir(bed.at("moved")).unwrap();
    for name in ["upper", ".upper.layers", "b", ".b.layers"] {
        fs::rename(bed.at(name), bed.at("moved").join(name)).unwrap();
    }
    assert_eq!(below::of_path(&bed.at("moved/b")).unwrap().unwrap().layers.len(), 2);
    // The other isn't, and says what is missing.
    let missing = below::of_path(&bed.at("d")).unwrap_err().to_string();
    assert!(missing.contains(".b.layers"), "{missing}");
    let refused = branch::branch(&target(&bed), &bed.at("c")).unwrap_err().to_string();
    assert!(refused.contains("exists already"), "{refused}");
}

#[test]
fn the_root_keeps_its_attributes() {
    let bed = build();
    fs::set_permissions(bed.at("upper"), fs::Permissions::from_mode(0o2751)).unwrap();
    rustix::fs::setxattr(bed.at("upper"), "user.mine", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    let before = fs::metadata(bed.at("upper")).unwrap();
    take(&bed, "one");
    let after = fs::metadata(bed.at("upper")).unwrap();
    assert_ne!(after.ino(), before.ino());
    let of = |stat: &fs::Metadata| (stat.mode(), stat.uid(), stat.gid(), stat.mtime(), stat.mtime_nsec());
    assert_eq!(of(&after), of(&before));
    let mut value = [0; 1];
    rustix::fs::getxattr(bed.at("upper"), "user.mine", &mut value).unwrap();
    assert_eq!(&value, b"x");
}

/// An upper is shown whole or not at all.
#[test]
fn an_upper_that_does_not_go_together_with_its_layers_is_refused() {
    let whole = || {
        let bed = build();
        write(&bed.open(), "same", "ONE");
        take(&bed, "one");
        write(&bed.open(), "same", "TWO");
        take(&bed, "two");
        bed
    };
    let told = |bed: &Bed| below::of_path(&bed.at("upper")).unwrap_err().to_string();
    let bed = whole();
    let other = bed.at("other");
    fs::rename(bed.at(".upper.layers"), &other).unwrap();
    assert!(told(&bed).contains(".upper.layers is missing"), "{}", told(&bed));
    fs::rename(&other, bed.at(".upper.layers")).unwrap();
    below::of_path(&bed.at("upper")).unwrap().unwrap();
    // Without its marks, as after cp -r.
    fs::rename(bed.at("upper"), &other).unwrap();
    fs::create_dir(bed.at("upper")).unwrap();
    assert!(told(&bed).contains("lost its extended attributes"), "{}", told(&bed));
    let bed = whole();
    fs::rename(bed.at(".upper.layers/1"), bed.at("other")).unwrap();
    assert!(told(&bed).contains("is missing"), "{}", told(&bed));
    let bed = whole();
    fs::rename(bed.at(".upper.layers/1"), bed.at("other")).unwrap();
    fs::rename(bed.at(".upper.layers/2"), bed.at(".upper.layers/1")).unwrap();
    fs::rename(bed.at("other"), bed.at(".upper.layers/2")).unwrap();
    assert!(told(&bed).contains("lies on another layer"), "{}", told(&bed));
    let bed = whole();
    fs::set_permissions(bed.at(".upper.layers"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(told(&bed).contains("may be written to by others"), "{}", told(&bed));
    let bed = whole();
    let frozen = bed.at(".upper.layers/2");
    let refused = snapshot(&Target { upper: frozen, ..target(&bed) }, None).unwrap_err().to_string();
    assert!(refused.contains("is a frozen layer"), "{refused}");
}

#[test]
fn directories_of_engines_are_refused() {
    let bed = Bed::new(1);
    for (upper, beside, whose) in [
        ("overlay/ID/diff", "overlay/ID/link", "engine"),
        ("containers/ID/diff", "containers/ID/config.json", "container"),
        ("snapshots/7/fs", "snapshots/7/work", "containerd"),
        ("tries/1/0", "tries/1/record.json", "try"),
    ] {
        bed.dir(upper).file(beside);
        let refused =
            snapshot(&Target { upper: bed.at(upper), ..target(&bed) }, None).unwrap_err().to_string();
        assert!(refused.contains(whose), "{refused}");
        assert_eq!(
            bed.names(Path::new(upper).parent().unwrap().to_str().unwrap()).len(),
            2,
            "nothing was made"
        );
    }
}

#[test]
fn an_empty_directory_is_not_taken_for_an_upper() {
    let bed = Bed::new(1);
    let alone = Target { lowers: Vec::new(), ..target(&bed) };
    let refused = snapshot(&alone, None).unwrap_err().to_string();
    assert!(refused.contains("mount point without its mount"), "{refused}");
    assert!(!bed.at(".upper.layers").exists());
    bed.file("upper/f");
    snapshot(&alone, None).unwrap();
    snapshot(&alone, None).unwrap();
}

/// Who moved a layer away may bring it back: nothing is given up meanwhile.
#[test]
fn a_layer_that_is_not_there_stays_in_the_record() {
    let bed = two_states();
    let two = shown(&bed);
    take(&bed, "two");
    fs::rename(bed.at(".upper.layers/2"), bed.at("away")).unwrap();
    let refused = snapshot(&target(&bed), None).unwrap_err().to_string();
    assert!(refused.contains("is missing"), "{refused}");
    rollback::rollback(&target(&bed), Some("two")).unwrap_err();
    go_back(&bed, "one");
    take(&bed, "three");
    fs::rename(bed.at("away"), bed.at(".upper.layers/2")).unwrap();
    go_back(&bed, "two");
    assert_eq!(shown(&bed), two);
}

/// Root and the user whose upper it is change it by turns. The user can't see root's mark on the workdir, and root sees both.
#[test]
fn an_index_is_the_uppers_whoever_said_so() {
    support::needs_root!();
    let bed = build();
    write(&bed.open(), "linked/1", "ONE FILE");
    take(&bed, "one");
    write(&bed.open(), "linked/2", "TWO");
    let before = shown(&bed);
    let index = bed.at(".upper.work/index.unionmount");
    assert_eq!(shown(&bed), before, "nor is it another's for being the kernel's, with nothing in its own");
    let mut value = [0; 64];
    let name = |namespace: &str| format!("{namespace}.overlay.unionmount.stack");
    let length = rustix::fs::getxattr(&index, &*name("trusted"), &mut value).unwrap();
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&index, &*name("user"), &value[..length], none).unwrap();
    rustix::fs::setxattr(&index, &*name("trusted"), b"that of an upper before", none).unwrap();
    assert_eq!(shown(&bed), before);
}

#[test]
fn layers_of_others_are_in_the_way_of_a_branch() {
    let bed = build();
    take(&bed, "one");
    branch::branch(&target(&bed), &bed.at("b")).unwrap();
    // The branch moved, without its layers.
    fs::rename(bed.at("b"), bed.at("c")).unwrap();
    assert!(branch::branch(&target(&bed), &bed.at("b")).is_err());
    assert!(bed.at(".b.layers/stack.json").exists());
    // A record was lost.
    bed.dir(".d.layers/1/kept");
    assert!(branch::branch(&target(&bed), &bed.at("d")).is_err());
    assert!(bed.at(".d.layers/1/kept").exists());
}

#[test]
fn names_are_checked_before_anything_is_done() {
    let bed = build();
    for name in ["", "0", "17", "a/b", "a\nb", "-f"] {
        snapshot(&target(&bed), Some(name)).unwrap_err();
    }
    assert_eq!(bed.names(""), ["0", "upper"]);
    take(&bed, "one");
    let twice = snapshot(&target(&bed), Some("one")).unwrap_err().to_string();
    assert!(twice.contains("called one already"), "{twice}");
    assert_eq!(bed.names(".upper.layers"), ["1", "stack.json"]);
}

/// As many as container engines give can be mounted; the next is refused before anything is done.
#[test]
fn more_than_five_hundred_layers_are_refused() {
    use crate::union::frozen::mark::Head;
    use crate::union::frozen::record::{FrozenLayer, MOST_LAYERS};
    use crate::union::frozen::site::Layers;
    use std::os::fd::AsFd;

    let bed = build();
    take(&bed, "one");
    let path = bed.at(".upper.layers");
    let mut layers = Layers::at(&path).unwrap().unwrap();
    let mark = |at: &Path, layer: u32| {
        Head::new(layer).unwrap().write(fs::File::open(at).unwrap().as_fd()).unwrap();
    };
    let most = u32::try_from(MOST_LAYERS).unwrap();
    for layer in 2..=most {
        bed.file(&format!(".upper.layers/{layer}/of-{layer}"));
        mark(&layers.place(layer), layer - 1);
        let (name, content) = (layer.to_string(), None);
        layers.record.layers.push(FrozenLayer {
            layer,
            name,
            made: 0,
            below: layer - 1,
            content,
            hidden: BTreeMap::new(),
            moved_to: None,
        });
    }
    layers.record.next = most + 1;
    layers.write().unwrap();
    mark(&bed.at("upper"), most);
    let union = bed.open();
    assert!(look_up(&union, "of-2").is_some() && look_up(&union, "of-500").is_some());
    drop(union);
    let refused = snapshot(&target(&bed), None).unwrap_err().to_string();
    assert!(refused.contains("500") && refused.contains("unionmount squash"), "{refused}");
    assert!(branch::branch(&target(&bed), &bed.at("b")).is_ok(), "nothing needs to be frozen for it");
    assert!(!bed.names(".upper.layers").contains(&"new".to_owned()));
}

/// Who owns the directory that holds an upper can move `.upper.layers` away at any moment, and put a symlink there.
#[test]
fn what_is_written_goes_into_the_directory_that_was_opened() {
    use crate::union::frozen::site::Layers;

    let bed = build();
    take(&bed, "one");
    let path = bed.at(".upper.layers");
    let mut writing = Writing::lock(Layers::at(&path).unwrap().unwrap()).unwrap();
    fs::rename(&path, bed.at("moved")).unwrap();
    bed.dir("precious");
    fs::write(bed.at("precious/stack.json"), "precious").unwrap();
    std::os::unix::fs::symlink(bed.at("precious"), &path).unwrap();
    writing.layers.record.layers[0].name = "renamed".into();
    writing.layers.write().unwrap();
    assert_eq!(fs::read(bed.at("precious/stack.json")).unwrap(), b"precious");
    assert_eq!(bed.names("precious"), ["stack.json"]);
    assert!(fs::read_to_string(bed.at("moved/stack.json")).unwrap().contains("renamed"));
    // And nobody takes what is there for a record.
    assert!(Layers::at(&path).is_err());
    assert!(snapshot(&target(&bed), None).is_err());
    assert_eq!(bed.names("precious"), ["stack.json"]);
}
