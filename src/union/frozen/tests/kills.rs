//! Snapshots, rollbacks, branches and removals that are killed.

use super::*;

use crate::union::bed::kill::{Order, kill_at};
use crate::union::frozen::squash::{Range, Squashing};

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Act {
    First,
    Second,
    Rollback,
    Branch,
    Remove,
    Squash,
}

const ACTS: [Act; 6] = [Act::First, Act::Second, Act::Rollback, Act::Branch, Act::Remove, Act::Squash];

fn before(act: Act) -> Bed {
    // A kill doesn't ask what is on the disk.
    let bed = build_in(Bed::in_memory(1));
    if !matches!(act, Act::First) {
        write(&bed.open(), "same", "ONE");
        take(&bed, "one");
    }
    change(&bed.open());
    if matches!(act, Act::Remove) {
        take(&bed, "two");
        go_back(&bed, "one");
    }
    if matches!(act, Act::Squash) {
        take(&bed, "two");
    }
    bed
}

fn carry_out(act: Act, bed: &Bed) {
    match act {
        Act::First | Act::Second => take(bed, "new"),
        Act::Rollback => go_back(bed, "one"),
        Act::Branch => drop(branch::branch(&target(bed), &bed.at("branch")).unwrap()),
        Act::Squash => {
            let squashing = Squashing::begin(&target(bed), &Range::default(), false).unwrap();
            squashing.carry_out().unwrap();
        }
        Act::Remove => removal::remove(&bed.at("upper"), &["two".to_owned()], false).unwrap(),
    }
}

/// Killed at any instant, the stack shows what it showed before or what it shows afterwards, and what is called again does the
/// rest.
#[test]
fn killed_at_any_instant_it_is_done_or_not() {
    for (number, act) in ACTS.into_iter().enumerate() {
        let bed = before(act);
        let (old, of_old) = (shown(&bed), listing::list(&bed.at("upper")).unwrap().len());
        carry_out(act, &bed);
        let (new, of_new) = (shown(&bed), listing::list(&bed.at("upper")).unwrap().len());
        let mut seen = [0; 2];
        for instant in 0.. {
            assert!(instant < 200, "it comes to no end");
            let bed = before(act);
            let (old_here, numbers) = (shown(&bed), |tree: &BTreeMap<String, Shown>| tree.len());
            assert_eq!(numbers(&old_here), numbers(&old));
            let killed = kill_at(module_path!(), instant, number, &bed);
            let after = shown(&bed);
            let contents = |tree: &BTreeMap<String, Shown>| -> BTreeMap<String, (u64, Vec<u8>)> {
                tree.iter().map(|(path, shown)| (path.clone(), (shown.1, shown.2.clone()))).collect()
            };
            let count = listing::list(&bed.at("upper")).unwrap().len();
            let is_new = match act {
                Act::First | Act::Second | Act::Branch => count == of_new && of_new != of_old,
                Act::Rollback => contents(&after) == contents(&new),
                Act::Remove | Act::Squash => count == of_new,
            };
            let expected = if is_new { &new } else { &old };
            let shown_now = |tree: &BTreeMap<String, Shown>| {
                let mut all = contents(tree);
                // What is linked twice is so until the next call.
                if matches!(act, Act::Squash) && killed {
                    all.values_mut().for_each(|(links, _)| *links = 0);
                }
                all
            };
            assert_eq!(shown_now(&after), shown_now(expected), "{act:?} {instant}");
            let is_same = |expected: &BTreeMap<String, Shown>| {
                let numbers = |tree: &BTreeMap<String, Shown>| -> Vec<(String, u64)> {
                    tree.iter().map(|(path, shown)| (path.clone(), shown.0)).collect()
                };
                numbers(&after) == numbers(expected)
            };
            // Directories are made anew by a squash.
            if !matches!(act, Act::Rollback | Act::Squash) || !is_new {
                assert!(is_same(&old_here), "{act:?} {instant}: its numbers too: {after:?} {old_here:?}");
            }
            seen[usize::from(is_new)] += 1;
            if !killed {
                break;
            }
            // Nothing of it is in the way of what comes then.
            if let Act::Branch = act {
                if !bed.at("branch").exists() {
                    carry_out(act, &bed);
                }
                assert!(below::of_path(&bed.at("branch")).unwrap().is_some());
            }
            snapshot(&target(&bed), None).unwrap();
            let contents_then = contents(&shown(&bed));
            assert_eq!(contents_then, contents(expected), "{act:?} {instant}: once more");
            let left: Vec<String> =
                bed.names(".upper.layers").into_iter().filter(|name| name.parse::<u32>().is_err()).collect();
            assert!(left.iter().all(|name| name == "stack.json" || name == "branches"), "{left:?}");
        }
        // Before its first instant a removal has only looked.
        let olds = matches!(act, Act::Remove) || seen[0] > 0;
        assert!(olds && seen[1] > 0, "{act:?}: {seen:?}");
    }
}

#[test]
#[ignore = "is started by the test above, and killed"]
fn killed() {
    let Some(order) = Order::read() else { return };
    let bed = order.bed();
    order.carry_out(|| carry_out(ACTS[order.act], &bed));
}
