use std::collections::BTreeMap;
use std::fs;

use super::*;
use crate::union::bed::{Bed, look_up};
use crate::union::change::create::Create;
use crate::union::change::failpoint::hook;
use crate::union::change::rename::RenameMode;
use crate::union::change::staged::New;
use crate::union::data::file::Write;
use crate::union::options::FsOptions;
use crate::union::stack::layer::{Stack, StackOptions};
use crate::union::{Limits, Union};

fn checked(bed: &Bed) -> Union {
    bed.open_with(&FsOptions { check_lowers: true, ..FsOptions::default() })
}

fn names(union: &Union, path: &str) -> Result<Vec<String>> {
    let node = if path.is_empty() { union.root().clone() } else { look_up(union, path).unwrap() };
    names_of(union, &node)
}

fn names_of(union: &Union, node: &Arc<Node>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    union.readdir(node, 0, |entry| {
        names.push(String::from_utf8(entry.name.to_vec()).unwrap());
        true
    })?;
    names.sort();
    Ok(names)
}

#[test]
fn names_that_come_and_go_are_seen_by_lookups_and_listings() {
    for check_lowers in [true, false] {
        let bed = Bed::new(2);
        let union = bed
            .file("0/d/f")
            .file("1/d/g")
            .file("1/d/h")
            .open_with(&FsOptions { check_lowers, ..FsOptions::default() });
        assert_eq!(names(&union, "d").unwrap(), ["f", "g", "h"]);
        fs::rename(bed.at("1/d/g"), bed.at("1/d/renamed")).unwrap();
        fs::remove_file(bed.at("1/d/h")).unwrap();
        bed.file("0/d/new").file("0/d/.wh.away").file("1/d/away");
        let expected = if check_lowers { ["f", "new", "renamed"] } else { ["f", "g", "h"] };
        assert_eq!(names(&union, "d").unwrap(), expected, "{check_lowers}");
        assert_eq!(look_up(&union, "d/new").is_some(), check_lowers);
        assert_eq!(look_up(&union, "d/renamed").is_some(), check_lowers);
        assert!(look_up(&union, "d/g").is_none(), "it is asked where it was");
        assert!(look_up(&union, "d/away").is_none(), "a whiteout that came is one");
    }
}

#[test]
fn a_file_that_is_replaced_is_the_new_one_by_its_name() {
    let bed = Bed::new(1);
    let union = checked(bed.file("0/f").file("0/other"));
    let before = look_up(&union, "f").unwrap();
    assert_eq!(union.getattr(&before).unwrap().stat.size, 3);
    fs::rename(bed.at("0/other"), bed.at("0/f")).unwrap();
    let after = look_up(&union, "f").unwrap();
    assert_ne!(before.ino, after.ino);
    let mut data = [0; 7];
    assert_eq!(union.read(&after, 0, &mut data), Ok(7));
    assert_eq!(&data, b"0/other");
}

#[test]
fn a_directory_that_one_layer_gets_is_merged_anew() {
    let bed = Bed::new(2);
    let union = checked(bed.file("1/d/sub/g").file("upper/d/u"));
    let before = look_up(&union, "d").unwrap();
    let sub = look_up(&union, "d/sub").unwrap();
    bed.file("0/d/f").file("0/d/sub/h");
    assert_eq!(names(&union, "d").unwrap(), ["f", "sub", "u"]);
    assert_eq!(names(&union, "d/sub").unwrap(), ["g", "h"]);
    // Who works in the old one can't put anything beside the new one's back.
    let create = Create { new: New::File, mode: 0o644, umask: 0, caller: union.own };
    let make = |dir: &Arc<Node>| union.create(dir, b"made", create).map(drop);
    assert_eq!(make(&before), Err(FsError::Stale));
    assert_eq!(make(&sub), Err(FsError::Stale));
    assert_eq!(names_of(&union, &before), Err(FsError::Stale));
    make(&look_up(&union, "d").unwrap()).unwrap();
    make(&look_up(&union, "d/sub").unwrap()).unwrap();
    assert_eq!(names(&union, "d").unwrap(), ["f", "made", "sub", "u"]);
    assert_eq!(bed.names("upper/d/sub"), ["made"]);
    // What lies below is reached by the new one.
    let g = look_up(&union, "d/sub/g").unwrap();
    union.open(&g, rustix::fs::OFlags::WRONLY, false).unwrap();
    union.write(&g, 0, b"X", Write::default()).unwrap();
    assert_eq!(fs::read(bed.at("upper/d/sub/g")).unwrap(), b"X/d/sub/g");
}

/// Its topmost lower is another each time, and with it its identity.
#[test]
fn of_two_nodes_of_a_directory_one_alone_takes_changes() {
    let bed = Bed::new(2);
    let union = checked(bed.file("1/d/g"));
    let create = Create { new: New::File, mode: 0o644, umask: 0, caller: union.own };
    let make = |dir: &Arc<Node>, name: &str| union.create(dir, name.as_bytes(), create).map(drop);
    let lower_alone = look_up(&union, "d").unwrap();
    bed.file("0/d/f");
    let merged = look_up(&union, "d").unwrap();
    assert_eq!(make(&lower_alone, "first"), Err(FsError::Stale));
    fs::rename(bed.at("0/d"), bed.at("0/away")).unwrap();
    let again = look_up(&union, "d").unwrap();
    assert_eq!(make(&merged, "second"), Err(FsError::Stale));
    make(&again, "third").unwrap();
    assert_eq!(
        (names(&union, "d").unwrap(), bed.names("upper/d")),
        (vec!["g".into(), "third".into()], vec!["third".into()])
    );
    assert_eq!(names(&union, "away").unwrap(), ["f"]);
}

#[test]
fn directories_that_are_renamed_removed_and_made_again_are_what_they_are() {
    let bed = Bed::new(1);
    let union = checked(bed.file("0/a/deep/f").file("0/c/x"));
    let deep = look_up(&union, "a/deep").unwrap();
    look_up(&union, "c/x").unwrap();
    fs::rename(bed.at("0/a"), bed.at("0/b")).unwrap();
    assert_eq!(names(&union, "").unwrap(), ["b", "c"]);
    assert!(look_up(&union, "a").is_none());
    assert_eq!(names(&union, "b/deep").unwrap(), ["f"]);
    assert!(names_of(&union, &deep).is_err(), "it is another node's now");
    let f = look_up(&union, "b/deep/f").unwrap();
    union.open(&f, rustix::fs::OFlags::WRONLY, false).unwrap();
    assert!(bed.at("upper/b/deep/f").exists() && !bed.at("upper/a").exists());
    for round in 0..3 {
        fs::remove_dir_all(bed.at("0/c")).unwrap();
        bed.file(&format!("0/c/{round}"));
        assert_eq!(names(&union, "c").unwrap(), [round.to_string()]);
    }
}

#[test]
fn what_changes_while_it_is_copied_up_is_copied_again_or_stale() {
    for changes in [1, 9] {
        let bed = Bed::new(1);
        let union = checked(bed.file("0/f"));
        let f = look_up(&union, "f").unwrap();
        let path = bed.at("0/f");
        let change = hook::times(changes, move || fs::write(&path, "changed meanwhile").unwrap());
        let done = hook::during(change, || union.open(&f, rustix::fs::OFlags::WRONLY, false).map(drop));
        if changes == 1 {
            done.unwrap();
            assert_eq!(fs::read(bed.at("upper/f")).unwrap(), b"changed meanwhile");
        } else {
            assert_eq!(done, Err(FsError::Stale));
            assert!(!bed.at("upper/f").exists());
        }
    }
}

#[test]
fn a_directory_whose_way_was_renamed_takes_no_changes() {
    let bed = Bed::new(1);
    let union = checked(bed.file("0/e/sub/f"));
    let (sub, f) = (look_up(&union, "e/sub").unwrap(), look_up(&union, "e/sub/f").unwrap());
    fs::rename(bed.at("0/e"), bed.at("0/e2")).unwrap();
    let create = Create { new: New::File, mode: 0o644, umask: 0, caller: union.own };
    assert_eq!(union.create(&sub, b"made", create).map(drop), Err(FsError::Stale));
    assert_eq!(names_of(&union, &sub), Err(FsError::Stale));
    assert_eq!(union.open(&f, rustix::fs::OFlags::WRONLY, false).map(drop), Err(FsError::Stale));
    assert!(!bed.at("upper/e").exists(), "what was moved away doesn't come back");
    assert_eq!(names(&union, "e2/sub").unwrap(), ["f"]);
}

#[test]
fn a_directory_whose_way_leads_over_something_else_takes_no_changes() {
    for is_link in [false, true] {
        let bed = Bed::new(1);
        bed.file("0/e/mid/sub/f");
        // So few that none is kept open.
        let limits = Limits { dir_fds: 1, ..Limits::default() };
        let how = FsOptions { check_lowers: true, ..FsOptions::default() };
        let union = Union::with_options(bed.stack(), limits, &how).unwrap();
        let sub = look_up(&union, "e/mid/sub").unwrap();
        let lower = &sub.dir.as_ref().unwrap().lowers[0];
        fs::rename(bed.at("0/e"), bed.at("away")).unwrap();
        match is_link {
            true => std::os::unix::fs::symlink("../away", bed.at("0/e")).unwrap(),
            false => fs::write(bed.at("0/e"), "").unwrap(),
        }
        let mut at = Some(lower.clone());
        while let Some(dir) = at {
            dir.close();
            at = dir.found_at().map(|(above, _)| above);
        }
        assert_eq!(names_of(&union, &sub), Err(FsError::Stale), "{is_link}");
        assert_eq!(names_of(&union, &sub), Err(FsError::Stale), "{is_link}: it stays so");
        assert!(look_up(&union, "e").unwrap().dir.is_none());
    }
}

/// What is found after a change, and what was found before it and is made a node later: one of them at the most goes on.
#[test]
fn of_two_that_look_one_name_up_before_and_after_a_change_one_alone_has_a_directory_that_takes_changes() {
    let bed = Bed::new(2);
    let union = Arc::new(checked(bed.file("1/d/g").file("new/new")));
    let create = Create { new: New::File, mode: 0o644, umask: 0, caller: union.own };
    let make = |dir: &Arc<Node>, name: &str| union.create(dir, name.as_bytes(), create).map(drop);
    let second = Arc::new(std::sync::Mutex::new(None));
    let look = {
        let (union, second) = (union.clone(), second.clone());
        let (from, to) = (bed.at("new"), bed.at("0/d"));
        move || {
            fs::rename(from, to).unwrap();
            let looked = std::thread::spawn(move || look_up(&union, "d")).join().unwrap();
            *second.lock().unwrap() = looked;
        }
    };
    let first = hook::during(hook::once(look), || look_up(&union, "d")).unwrap();
    let second = second.lock().unwrap().take().unwrap();
    assert_ne!(first.ino, second.ino, "it was found before the change");
    let now = look_up(&union, "d").unwrap();
    assert_eq!(names_of(&union, &now).unwrap(), ["g", "new"]);
    for (dir, name) in [(&first, "first"), (&second, "second")] {
        let expected = if dir.ino == now.ino { Ok(()) } else { Err(FsError::Stale) };
        assert_eq!(make(dir, name), expected, "{name}");
    }
    make(&now, "made").unwrap();
    assert!(names(&union, "d").unwrap().contains(&"made".to_owned()));
}

#[test]
fn a_lower_that_is_gone_shows_nothing_and_the_rest_goes_on() {
    let bed = Bed::new(2);
    let union = checked(bed.file("0/d/a").file("1/d/b").file("upper/d/c"));
    assert_eq!(names(&union, "d").unwrap(), ["a", "b", "c"]);
    fs::remove_dir_all(bed.at("0")).unwrap();
    assert_eq!(names(&union, "d").unwrap(), ["b", "c"]);
    let create = Create { new: New::File, mode: 0o644, umask: 0, caller: union.own };
    union.create(union.root(), b"made", create).unwrap();
    assert_eq!(names(&union, "").unwrap(), ["d", "made"]);
}

#[test]
fn names_that_change_in_a_directory_keep_nobody_from_copying_it_up() {
    let bed = Bed::new(1);
    let union = checked(bed.file("0/d/f"));
    let d = look_up(&union, "d").unwrap();
    let (at, create) = (bed.at("0/d"), Create { new: New::File, mode: 0o644, umask: 0, caller: union.own });
    let number = std::cell::Cell::new(0);
    let change = hook::times(9, move || {
        number.set(number.get() + 1);
        fs::write(at.join(number.get().to_string()), "").unwrap();
    });
    hook::during(change, || union.create(&d, b"made", create)).unwrap();
    assert!(names(&union, "d").unwrap().contains(&"made".to_owned()));
}

/// What is seen below a directory: of each path whether it is a directory, and what a file holds.
type Tree = BTreeMap<String, Option<Vec<u8>>>;

fn tree(union: &Union) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut waiting = vec![(String::new(), union.root().clone())];
    while let Some((path, dir)) = waiting.pop() {
        for name in names_of(union, &dir)? {
            let below = format!("{path}/{name}");
            // What is listed is there, as nobody changes it meanwhile.
            let (node, _) =
                union.lookup(&dir, name.as_bytes())?.unwrap_or_else(|| panic!("{below} is listed"));
            if node.dir.is_some() {
                tree.insert(below.clone(), None);
                waiting.push((below, node));
            } else {
                let mut data = vec![0; 64];
                let length = union.read(&node, 0, &mut data)?;
                data.truncate(length);
                tree.insert(below, Some(data));
            }
        }
    }
    Ok(tree)
}

/// Returns the same as who mounts the layers anew sees it.
fn anew(bed: &Bed) -> Tree {
    let lowers = ["upper", "0", "1"].map(|layer| bed.at(layer).into()).to_vec();
    let options = StackOptions { lowers, top_is_upper: true, ..StackOptions::default() };
    tree(&Union::new(Stack::open(&options).unwrap(), Limits::default()).unwrap()).unwrap()
}

/// Does something at random in a layer or by the union. Most of it is possible, what isn't changes nothing.
fn act(bed: &Bed, union: &Union, rng: &mut fastrand::Rng, step: usize) -> String {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let mut path = |most: usize| {
        let depth = rng.usize(1..=most);
        (0..depth).map(|_| NAMES[rng.usize(..NAMES.len())]).collect::<Vec<_>>().join("/")
    };
    let (one, other) = (path(3), path(3));
    let (above, name) = one.rsplit_once('/').unwrap_or(("", &one));
    if rng.bool() {
        let layer = rng.usize(..2);
        let (at, to) = (bed.at(format!("{layer}/{one}")), bed.at(format!("{layer}/{other}")));
        let what = rng.usize(..7);
        let done = match what {
            0 => fs::create_dir_all(&at),
            1 | 2 => fs::write(&at, format!("lower {step}")),
            3 => fs::remove_file(&at),
            4 => fs::remove_dir_all(&at),
            5 => fs::rename(&at, &to),
            _ => fs::write(bed.at(format!("{layer}/{above}")).join(format!(".wh.{name}")), ""),
        };
        return format!("{step}: in {layer}, {what}: {one} {other}: {done:?}");
    }
    let directory = |path: &str| {
        let mut node = union.root().clone();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            node = union.lookup(&node, name.as_bytes()).ok()??.0;
        }
        Some(node)
    };
    let what = rng.usize(..6);
    let done = (|| {
        let parent = directory(above).filter(|dir| dir.dir.is_some()).ok_or(FsError::Absent)?;
        let create = |new| Create { new, mode: 0o755, umask: 0, caller: union.own };
        match what {
            0 => union.create(&parent, name.as_bytes(), create(New::Directory)).map(drop),
            1 => union.create(&parent, name.as_bytes(), create(New::File)).map(drop),
            2 => {
                let file = directory(&one).filter(|file| file.dir.is_none()).ok_or(FsError::Absent)?;
                union.open(&file, rustix::fs::OFlags::WRONLY, false)?;
                union.write(&file, 0, format!("upper {step}").as_bytes(), Write::default()).map(drop)
            }
            3 => union.unlink(&parent, name.as_bytes()),
            4 => union.rmdir(&parent, name.as_bytes()),
            _ => {
                let (to_above, to_name) = other.rsplit_once('/').unwrap_or(("", &other));
                let to = directory(to_above).filter(|dir| dir.dir.is_some()).ok_or(FsError::Absent)?;
                let moved = directory(&one).ok_or(FsError::Absent)?;
                if to.is_below(&moved) {
                    return Err(FsError::Invalid("below itself")); // the kernel doesn't ask for it
                }
                union.rename((&parent, name.as_bytes()), (&to, to_name.as_bytes()), RenameMode::Replace)
            }
        }
    })();
    format!("{step}: by the union, {what}: {one} {other}: {done:?}")
}

#[test]
fn random_changes_are_seen_as_by_who_mounts_anew() {
    let seed = std::env::var("UNIONMOUNT_SEED").ok().map(|text| text.parse().unwrap());
    let first: u64 = seed.unwrap_or_else(|| fastrand::u64(..1 << 40));
    for seed in first..first + 6 {
        let bed = Bed::new(2);
        let union = checked(&bed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut acts = Vec::new();
        for step in 0..150 {
            acts.push(act(&bed, &union, &mut rng, step));
            // A directory that was exchanged is met once by who knows it.
            let seen = (0..4).map(|_| tree(&union)).find(|tree| *tree != Err(FsError::Stale));
            let acts = || acts.join("\n");
            let seen = seen.unwrap_or_else(|| panic!("UNIONMOUNT_SEED={seed}: stale for ever\n{}", acts()));
            assert_eq!(seen, Ok(anew(&bed)), "UNIONMOUNT_SEED={seed}\n{}", acts());
        }
    }
}
