use super::*;

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::union::Caller;
use crate::union::bed::{Bed, look_up};
use crate::union::change::create::Create;
use crate::union::change::new::New;
use crate::union::change::rename::RenameMode;
use crate::union::data::file::Write;
use crate::union::hardlinks::counts::UNPUBLISHED;
use crate::union::hardlinks::hidden::{HIDDEN, REPLACING};
use crate::union::nodes::node::Node;
use crate::union::options::Lazy;
use crate::union::quota::Bounds;
use crate::union::view::attr::SetAttr;

fn making(new: New<'_>) -> Create<'_> {
    let caller =
        Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    Create { new, mode: 0o755, umask: 0, caller }
}

fn changed_mode() -> SetAttr {
    SetAttr { mode: Some(0o600), ..SetAttr::default() }
}

fn content(union: &Union, node: &Arc<Node>) -> Vec<u8> {
    let mut buffer = vec![0; 64];
    let read = union.read(node, 0, &mut buffer).unwrap();
    buffer[..read].to_vec()
}

/// What is told of a union: its state, without the numbers of descriptors, and its nodes by number.
fn told(union: &Union) -> (String, Vec<Vec<u8>>, Outgoing) {
    let (mut fds, mut nodes) = (Outgoing::default(), BTreeMap::new());
    let state = union
        .state(&mut fds, |node| {
            let bytes = postcard::to_stdvec(node).unwrap();
            let (ino, _) = postcard::take_from_bytes::<u64>(&bytes).unwrap();
            nodes.insert(ino, bytes);
            Ok(())
        })
        .unwrap();
    (serde_json::to_string(&state).unwrap(), nodes.into_values().collect(), fds)
}

/// Makes the union that goes on with what was told.
fn taken_over(told: &(String, Vec<Vec<u8>>, Outgoing), options: &FsOptions) -> Union {
    let (state, nodes, fds) = told;
    let nodes = nodes.iter().map(|node| postcard::from_bytes(node).map_err(io::Error::other));
    let how = (Limits::default(), options);
    Union::of_state(serde_json::from_str(state).unwrap(), nodes, (&mut fds.copies().unwrap(), &[]), how)
        .unwrap()
}

/// Goes on with a union as another process does, and the one before as a process that was ended.
fn handed_over(union: Union) -> Arc<Union> {
    handed_over_with(union, &FsOptions::default())
}

fn handed_over_with(union: Union, options: &FsOptions) -> Arc<Union> {
    let next = Arc::new(taken_over(&told(&union), options));
    next.go_on();
    std::mem::forget(union);
    next
}

fn bed() -> Bed {
    let bed = Bed::new(2);
    bed.file("0/a/f").file("0/a/g").file("1/a/h").file("1/b/c/d").file("1/top").file("upper/own");
    fs::hard_link(bed.at("1/top"), bed.at("1/other")).unwrap();
    bed
}

fn number(union: &Union, path: &str) -> u64 {
    look_up(union, path).unwrap().ino
}

/// The kernel isn't told to ask for attributes anew.
#[test]
fn a_directory_in_which_copies_came_up_is_shown_as_before() {
    let bed = bed();
    let union = bed.open();
    union.setattr(&look_up(&union, "a/f").unwrap(), changed_mode(), false).unwrap();
    let shown = |union: &Union| union.getattr(&look_up(union, "a").unwrap()).unwrap().stat;
    let before = shown(&union);
    union.setattr(&look_up(&union, "a/g").unwrap(), changed_mode(), false).unwrap();
    if union.upper.as_ref().unwrap().tells_changes_apart() {
        assert_eq!(shown(&union), before);
    }
    let before = shown(&union);
    let union = handed_over(union);
    assert_eq!(shown(&union), before);
    union.shut_down();
}

#[test]
fn what_the_kernel_knows_stays_known_by_number_name_and_count() {
    let bed = bed();
    let union = bed.open();
    let paths = ["a/f", "a/h", "b/c/d", "top", "own"];
    let numbers = paths.map(|path| number(&union, path));
    look_up(&union, "a/f").unwrap();
    union.setattr(&look_up(&union, "a/f").unwrap(), changed_mode(), false).unwrap();
    let next = handed_over(union);
    // By its number alone, as the kernel asks, and by name.
    for (number, path) in numbers.into_iter().zip(paths) {
        assert_eq!(next.node(number).unwrap().ino, number, "{path}");
        assert_eq!(self::number(&next, path), number, "{path}");
    }
    let file = next.node(numbers[0]).unwrap();
    assert_eq!(file.lookups(), 4);
    drop(file);
    // What is forgotten as often as it was looked up goes.
    next.forget(numbers[0], 4);
    assert!(matches!(next.node(numbers[0]), Err(FsError::Stale)));
}

#[test]
fn what_is_deleted_and_still_known_is_there() {
    let bed = bed();
    let union = bed.open();
    let (own, lower, dir) = (number(&union, "own"), number(&union, "a/g"), number(&union, "b"));
    let a = look_up(&union, "a").unwrap();
    union.unlink(union.root(), b"own").unwrap();
    union.unlink(&a, b"g").unwrap();
    let b = look_up(&union, "b").unwrap();
    let c = look_up(&union, "b/c").unwrap();
    union.unlink(&c, b"d").unwrap();
    union.rmdir(&b, b"c").unwrap();
    union.rmdir(union.root(), b"b").unwrap();
    drop((a, b, c));
    let next = handed_over(union);
    for ino in [own, lower, dir] {
        assert_eq!(next.getattr(&next.node(ino).unwrap()).unwrap().ino, ino);
    }
    for (ino, was) in [(own, "upper/own"), (lower, "0/a/g")] {
        let node = next.node(ino).unwrap();
        assert_eq!((next.getattr(&node).unwrap().stat.nlink, content(&next, &node)), (0, was.into()));
    }
    let dir = next.node(dir).unwrap();
    assert!(next.create(&dir, b"new", making(New::Directory)).is_err(), "nothing is made in what is removed");
    next.setattr(&dir, changed_mode(), false).unwrap();
    // What has the names next is something else.
    next.create(next.root(), b"own", making(New::File)).unwrap();
    assert_ne!(number(&next, "own"), own);
}

#[test]
fn the_workdir_is_used_and_closed_by_the_one_that_goes_on() {
    let bed = bed();
    let union = bed.open();
    union.unlink(union.root(), b"top").unwrap();
    let told = told(&union);
    // Whoever doesn't go on leaves all as it is.
    drop(taken_over(&told, &FsOptions::default()));
    assert_eq!(bed.names(".upper.work"), ["index.unionmount", "work"]);
    union.unlink(&look_up(&union, "a").unwrap(), b"f").unwrap();
    let next = handed_over(union);
    next.unlink(&look_up(&next, "a").unwrap(), b"g").unwrap();
    assert!(look_up(&next, "a/f").is_none() && look_up(&next, "a/g").is_none());
    drop(next);
    assert!(!bed.at(".upper.work/work").exists(), "it is clean");
}

/// What a crash, or a write that failed, has left in the hardlink index is mended by the one that goes on, and not before.
#[test]
fn nothing_is_mended_in_the_index_as_long_as_the_one_before_may_go_on() {
    const INDEX: &str = ".upper.work/index.unionmount";
    let bed = bed();
    let union = bed.open();
    if !union.upper().unwrap().caps().xattr {
        support::skipped("the filesystem of the scratch directories keeps no marks");
        return;
    }
    union.unlink(union.root(), b"top").unwrap();
    let [hidden] = &bed.names(INDEX)[..] else { panic!("{:?}", bed.names(INDEX)) };
    let origin = hidden.strip_suffix(HIDDEN).unwrap();
    // A record that says nothing, and a copy that was never published.
    std::os::unix::fs::symlink("nothing", bed.at(INDEX).join(format!("{origin}{REPLACING}"))).unwrap();
    let copy = bed.at(INDEX).join(origin);
    fs::write(&copy, "copied in part").unwrap();
    let mark = union.upper().unwrap().mark_name(UNPUBLISHED);
    rustix::fs::setxattr(&copy, &mark[..], b"y", XattrFlags::empty()).unwrap();
    let before = bed.names(INDEX);
    assert_eq!(before.len(), 3, "{before:?}");
    let told = told(&union);
    let next = taken_over(&told, &FsOptions::default());
    assert_eq!(bed.names(INDEX), before);
    drop(next);
    assert_eq!(bed.names(INDEX), before);
    let next = handed_over(union);
    assert_eq!(bed.names(INDEX), [hidden.as_str()]);
    let other = look_up(&next, "other").unwrap();
    assert_eq!(next.getattr(&other).unwrap().stat.nlink, 1);
    next.shut_down();
}

fn at_most(bytes: u64) -> Bounds {
    Bounds { bytes: Some(bytes), inodes: None }
}

/// Also what costs until it is let go: nobody who counts the upper anew would find it.
#[test]
fn what_was_counted_goes_on_being_counted() {
    let bed = bed();
    let options = FsOptions { quota: at_most(4 << 20), ..FsOptions::default() };
    let union = bed.open_with(&options);
    union.count_anew();
    let write = |union: &Union, name: &[u8], bytes: usize| -> Result<Arc<Node>, FsError> {
        let (node, _) = union.create(union.root(), name, making(New::File))?;
        union.write(&node, 0, &vec![7; bytes], Write::default())?;
        Ok(node)
    };
    let deleted = write(&union, b"deleted", 2 << 20).unwrap().ino;
    union.unlink(union.root(), b"deleted").unwrap();
    let before = union.quota().unwrap().taken();
    assert!(before.bytes >= 2 << 20);
    // Whoever doesn't go on has counted nothing.
    drop(taken_over(&told(&union), &options));
    let next = handed_over_with(union, &options);
    let quota = next.quota().unwrap();
    assert_eq!((quota.taken(), quota.is_exact()), (before, true));
    assert_eq!(quota.room(3 << 20, 0).map(drop), Err(Errno::NOSPC));
    next.forget(deleted, 1);
    let after = quota.taken().bytes;
    assert!(after < before.bytes - (1 << 20), "{after}");
    drop(quota.room(3 << 20, 0).unwrap());
    write(&next, b"again", 2 << 20).unwrap();
    let (counted, there) = (quota.taken(), next.measured_upper().unwrap().unwrap());
    assert_eq!(counted.inodes, there.inodes);
    assert!(counted.bytes.abs_diff(there.bytes) < 1 << 18, "{counted:?} {there:?}");
    next.shut_down();
}

#[test]
fn what_is_half_copied_stays_so() {
    let bed = bed();
    let below: Vec<u8> = (0..1u32 << 18).map(|at| (at / 4096) as u8).collect();
    fs::write(bed.at("0/a/big"), &below).unwrap();
    let options = FsOptions { lazy: Lazy::Keep, ..FsOptions::default() };
    let union = bed.open_with(&options);
    let big = look_up(&union, "a/big").unwrap();
    union.write(&big, 5000, b"first", Write::default()).unwrap();
    drop(big);
    if union.lazy_report().is_none_or(|report| report.half_copied == 0) {
        support::skipped("this filesystem is unfit for half-copied files");
        return;
    }
    let report = union.lazy_report();
    let next = handed_over_with(union, &options);
    let big = look_up(&next, "a/big").unwrap();
    next.write(&big, 100_000, b"second", Write::default()).unwrap();
    let mut read = vec![0; below.len()];
    assert_eq!(next.read(&big, 0, &mut read), Ok(below.len()));
    let mut expected = below;
    expected[5000..5005].copy_from_slice(b"first");
    expected[100_000..100_006].copy_from_slice(b"second");
    assert!(read == expected);
    let (before, after) = (report.unwrap(), next.lazy_report().unwrap());
    assert_eq!(after.own_blocks, before.own_blocks + 1);
    assert_eq!(after.half_copied, 1);
    next.shut_down();
}

#[test]
fn what_cannot_be_handed_over_is_told() {
    let of = |options: FsOptions| in_the_way(&options);
    assert_eq!(of(FsOptions { volatile: true, writeback: true, ..FsOptions::default() }), None);
    assert!(of(FsOptions { passthrough: Passthrough::Lower, ..FsOptions::default() }).is_some());
    assert_eq!(of(FsOptions { passthrough: Passthrough::Settled, ..FsOptions::default() }), None);
    let is_fine = FsOptions { lazy: Lazy::On, quota: at_most(1 << 30), ..FsOptions::default() };
    assert_eq!(of(is_fine), None);
}

/// What a program does: by the number of one of those that are known, or with a name below one.
#[derive(Debug, Clone)]
enum Step {
    LookUp(usize, u8),
    Make(usize, u8, bool),
    Remove(usize, u8),
    Rename(usize, u8, usize, u8),
    Link(usize, usize, u8),
    Change(usize),
    Forget(usize),
    HandOver,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let known = 0..16usize;
    let name = 0..6u8;
    let one = prop_oneof![
        4 => (known.clone(), name.clone()).prop_map(|(dir, name)| Step::LookUp(dir, name)),
        2 => (known.clone(), name.clone(), any::<bool>()).prop_map(|(at, name, dir)| Step::Make(at, name, dir)),
        2 => (known.clone(), name.clone()).prop_map(|(dir, name)| Step::Remove(dir, name)),
        1 => (known.clone(), name.clone(), known.clone(), name.clone())
            .prop_map(|(from, name, to, new)| Step::Rename(from, name, to, new)),
        1 => (known.clone(), known.clone(), name).prop_map(|(of, dir, name)| Step::Link(of, dir, name)),
        1 => known.clone().prop_map(Step::Change),
        1 => known.prop_map(Step::Forget),
        1 => Just(Step::HandOver),
    ];
    prop::collection::vec(one, 1..40)
}

/// Does it, and keeps in `known` what the kernel would know: each number with its lookups. What can't be done isn't.
fn step(union: &Union, known: &mut Vec<(u64, u64)>, step: &Step) {
    const NAMES: [&[u8]; 6] = [b"a", b"b", b"f", b"h", b"top", b"other"];
    let at = |known: &[(u64, u64)], which: usize| {
        let (ino, _) = known[which % known.len()];
        union.node(ino).expect("what the kernel knows is there")
    };
    let note = |known: &mut Vec<(u64, u64)>, ino: u64| match known.iter_mut().find(|one| one.0 == ino) {
        Some(one) => one.1 += 1,
        None => known.push((ino, 1)),
    };
    let name = |which: u8| NAMES[usize::from(which)];
    match *step {
        Step::LookUp(dir, which) => {
            if let Ok(Some((node, _))) = union.lookup(&at(known, dir), name(which)) {
                note(known, node.ino);
            }
        }
        Step::Make(dir, which, directory) => {
            let new = if directory { New::Directory } else { New::File };
            if let Ok((node, _)) = union.create(&at(known, dir), name(which), making(new)) {
                note(known, node.ino);
            }
        }
        Step::Remove(dir, which) => {
            let dir = at(known, dir);
            if union.unlink(&dir, name(which)).is_err() {
                union.rmdir(&dir, name(which)).unwrap_or_default();
            }
        }
        Step::Rename(from, which, to, new) => {
            let (from, to) = (at(known, from), at(known, to));
            // The kernel lets no directory go below itself.
            let moved = union.lookup(&from, name(which)).ok().flatten();
            if let Some((moved, _)) = moved {
                note(known, moved.ino);
                if !to.is_below(&moved) {
                    let mode = RenameMode::Replace;
                    union.rename((&from, name(which)), (&to, name(new)), mode).unwrap_or_default();
                }
            }
        }
        Step::Link(of, dir, which) => {
            let (of, dir) = (at(known, of), at(known, dir));
            if union.link(&of, &dir, name(which)).is_ok() {
                note(known, of.ino);
            }
        }
        Step::Change(which) => drop(union.setattr(&at(known, which), changed_mode(), false)),
        Step::Forget(which) => {
            let which = which % known.len();
            if known[which].0 != union.root().ino {
                let (ino, lookups) = known.swap_remove(which);
                union.forget(ino, lookups);
            }
        }
        Step::HandOver => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_handed_over_is_what_was_handed_over(steps in steps(), counts in any::<bool>()) {
        let bed = bed();
        let quota = if counts { at_most(1 << 30) } else { Bounds::default() };
        let options = FsOptions { quota, ..FsOptions::default() };
        let mut union = Some(Arc::new(bed.open_with(&options)));
        union.iter().for_each(|union| union.count_anew());
        let mut known = vec![(1, 1)];
        for one in &steps {
            if let Step::HandOver = one {
                let before = Arc::into_inner(union.take().unwrap()).unwrap();
                let (state, nodes, fds) = told(&before);
                let next = taken_over(&(state.clone(), nodes.clone(), fds), &options);
                let again = told(&next);
                prop_assert_eq!(without_descriptors(&again.0), without_descriptors(&state));
                prop_assert_eq!(needed(again.1), needed(nodes));
                let next = Arc::new(next);
                next.go_on();
                std::mem::forget(before);
                union = Some(next);
            }
            step(union.as_ref().unwrap(), &mut known, one);
        }
        let union = union.unwrap();
        for (ino, _) in known.iter().filter(|(ino, _)| *ino != 1) {
            let node = union.node(*ino).unwrap();
            prop_assert_eq!(union.getattr(&node).unwrap().ino, *ino);
        }
        for (ino, lookups) in known.into_iter().filter(|(ino, _)| *ino != 1) {
            union.forget(ino, lookups);
        }
        union.settling()();
        union.forget(0, 0);
        prop_assert_eq!(union.known_nodes(), 1, "all that was forgotten is gone");
        // The whiteout that all others are links to goes with the mount; until then it is an object of its own.
        union.shut_down();
        // Blocks a filesystem allots when it likes.
        let counted = union.quota().map(|quota| quota.taken().inodes);
        prop_assert_eq!(counted, union.measured_upper().unwrap().map(|taken| taken.inodes));
    }
}

/// Returns the nodes without directories that only a further name of a file lies in: such names aren't handed over.
fn needed(mut nodes: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let of = |node: &[u8]| postcard::take_from_bytes::<(u64, u64, Vec<u8>, u32)>(node).unwrap().0;
    loop {
        let parents: Vec<u64> = nodes.iter().map(|node| of(node).1).collect();
        let before = nodes.len();
        nodes.retain(|node| of(node).3 > 0 || parents.contains(&of(node).0));
        if nodes.len() == before {
            return nodes;
        }
    }
}

/// Returns a state in which descriptors have no numbers, since they are told in the order of what is known, which is none.
fn without_descriptors(state: &str) -> serde_json::Value {
    fn blank(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(all) => {
                for name in ["root", "staging", "index", "lock", "locks", "fd", "covered", "beside", "note"] {
                    if let Some(one) = all.get_mut(name) {
                        *one = serde_json::Value::Null;
                    }
                }
                all.values_mut().for_each(blank);
            }
            serde_json::Value::Array(all) => all.iter_mut().for_each(blank),
            _ => {}
        }
    }
    let mut state = serde_json::from_str(state).unwrap();
    blank(&mut state);
    state
}

#[test]
fn a_superseded_directory_stays_so_and_what_was_found_in_it_goes_on() {
    let bed = Bed::new(2);
    bed.file("0/b/c/d");
    let options = FsOptions { check_lowers: true, ..FsOptions::default() };
    let union = bed.open_with(&options);
    let [before, d] = ["b", "b/c/d"].map(|path| number(&union, path));
    // The topmost lower, by which it is known, stays the same.
    bed.file("1/b/new");
    let now = number(&union, "b");
    assert_ne!(before, now);
    let next = handed_over_with(union, &options);
    assert!(matches!(next.node(before), Err(FsError::Stale)), "it is found by its name again");
    assert_eq!(content(&next, &next.node(d).unwrap()), b"0/b/c/d");
    next.create(&next.node(now).unwrap(), b"made", making(New::File)).unwrap();
    assert_eq!(number(&next, "b"), now);
    assert!(look_up(&next, "b/made").is_some());
    next.shut_down();
}
