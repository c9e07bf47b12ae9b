//! Tests: killed at any instant of a change of names, the next mount shows the tree before it or after it, whatever
//! the upper's filesystem can do in one step.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bed::Bed;
use super::bed::kill::{Order, kill_at};
use super::change::create::Create;
use super::change::rename::RenameMode;
use super::change::staged::New;
use super::nodes::node::Node;
use super::stack::layer::WhiteoutForm;
use super::{Limits, Union};
use crate::error::Result;
use crate::sys::object::Kind;

/// What the upper's filesystem is said to be able to do.
#[derive(Debug, Clone, Copy)]
enum Upper {
    /// All that this one can.
    Full,
    /// No RENAME_WHITEOUT.
    NoWhiteout,
    /// No flag of renameat2.
    NoFlags,
    /// Neither those nor extended attributes.
    NoAttributes,
}

const UPPERS: [Upper; 4] = [Upper::Full, Upper::NoWhiteout, Upper::NoFlags, Upper::NoAttributes];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    RemoveEmptied,
    RemoveLowerDir,
    MakeDirOverWhiteout,
    MakeFileOverWhiteout,
    LinkOverWhiteout,
    MoveFileAway,
    MoveFileOverFile,
    MoveMergedDirAway,
    MoveDirOverWhiteout,
    MoveMergedDirOverWhiteout,
    MoveDirOverEmptied,
}

const ACTS: [Act; 11] = [
    Act::RemoveEmptied,
    Act::RemoveLowerDir,
    Act::MakeDirOverWhiteout,
    Act::MakeFileOverWhiteout,
    Act::LinkOverWhiteout,
    Act::MoveFileAway,
    Act::MoveFileOverFile,
    Act::MoveMergedDirAway,
    Act::MoveDirOverWhiteout,
    Act::MoveMergedDirOverWhiteout,
    Act::MoveDirOverEmptied,
];

/// Lists what is done where, but for what is refused there (programs copy then) and what is the same as with all that there is.
fn cases() -> Vec<(Act, Upper)> {
    let is_other = |act: Act, upper: Upper| {
        let needs_redirect = matches!(act, Act::MoveMergedDirAway | Act::MoveMergedDirOverWhiteout);
        let leaves_whiteout = matches!(act, Act::MoveFileAway | Act::MoveFileOverFile) || needs_redirect;
        match upper {
            Upper::NoAttributes => !needs_redirect,
            Upper::NoWhiteout => leaves_whiteout,
            Upper::Full | Upper::NoFlags => true,
        }
    };
    let all = UPPERS.into_iter().flat_map(|upper| ACTS.map(|act| (act, upper)));
    all.filter(|(act, upper)| is_other(*act, *upper)).collect()
}

fn build() -> Bed {
    let bed = Bed::new(1);
    bed.dir("0/empty");
    for file in ["emptied/one", "emptied/two", "merged/inside", "file", "other"] {
        bed.file(&format!("0/{file}"));
    }
    bed
}

fn open(bed: &Bed, upper: Upper) -> Union {
    let mut stack = bed.stack();
    let caps = &mut stack.upper.as_mut().unwrap().caps;
    match upper {
        Upper::Full => {}
        Upper::NoWhiteout => caps.rename_whiteout = false,
        Upper::NoFlags | Upper::NoAttributes => {
            caps.rename_whiteout = false;
            caps.rename_exchange = false;
            caps.rename_noreplace = false;
        }
    }
    if matches!(upper, Upper::NoAttributes) {
        caps.xattr = false;
        caps.whiteout = WhiteoutForm::Aufs;
    }
    Union::new(stack, Limits::default()).unwrap()
}

fn make(union: &Union, parent: &Arc<Node>, name: &[u8], new: New<'_>) -> Result<()> {
    union.create(parent, name, Create { new, mode: 0o755, umask: 0o022, caller: union.own }).map(drop)
}

fn find(union: &Union, name: &[u8]) -> Arc<Node> {
    union.lookup(union.root(), name).unwrap().unwrap().0
}

impl Act {
    fn prepare(self, union: &Union) -> Result<()> {
        let root = union.root();
        make(union, root, b"plain", New::Directory)?;
        make(union, &find(union, b"plain"), b"in it", New::File)?;
        let emptied = find(union, b"emptied");
        union.unlink(&emptied, b"one")?;
        union.unlink(&emptied, b"two")?;
        match self {
            Act::MakeDirOverWhiteout | Act::MoveDirOverWhiteout | Act::MoveMergedDirOverWhiteout => {
                union.rmdir(root, b"empty")
            }
            Act::MakeFileOverWhiteout | Act::LinkOverWhiteout => union.unlink(root, b"file"),
            _ => Ok(()),
        }
    }

    fn run(self, union: &Union) -> Result<()> {
        let root = union.root();
        let rename = |from: &[u8], to: &[u8]| union.rename((root, from), (root, to), RenameMode::Replace);
        match self {
            Act::RemoveEmptied => union.rmdir(root, b"emptied"),
            Act::RemoveLowerDir => union.rmdir(root, b"empty"),
            Act::MakeDirOverWhiteout => make(union, root, b"empty", New::Directory),
            Act::MakeFileOverWhiteout => make(union, root, b"file", New::File),
            Act::LinkOverWhiteout => union.link(&find(union, b"other"), root, b"file").map(drop),
            Act::MoveFileAway => rename(b"file", b"new"),
            Act::MoveFileOverFile => rename(b"file", b"other"),
            Act::MoveMergedDirAway => rename(b"merged", b"new"),
            Act::MoveDirOverWhiteout => rename(b"plain", b"empty"),
            Act::MoveMergedDirOverWhiteout => rename(b"merged", b"empty"),
            Act::MoveDirOverEmptied => rename(b"plain", b"emptied"),
        }
    }
}

/// Returns all paths with their kinds.
fn tree(union: &Union) -> BTreeMap<String, Kind> {
    let mut tree = BTreeMap::new();
    let mut dirs = vec![(String::new(), union.root().clone())];
    while let Some((path, dir)) = dirs.pop() {
        let mut names = Vec::new();
        let mut list = |name: &[u8]| names.push(name.to_vec());
        union
            .readdirplus(&dir, 0, |entry| {
                list(&entry.name);
                true
            })
            .unwrap();
        for name in names {
            let node = union.lookup(&dir, &name).unwrap().expect("a name that was listed").0;
            let path = format!("{path}/{}", String::from_utf8_lossy(&name));
            tree.insert(path.clone(), node.kind);
            if node.kind == Kind::Directory {
                dirs.push((path, node));
            }
        }
    }
    tree
}

fn seen(bed: &Bed, upper: Upper) -> BTreeMap<String, Kind> {
    let union = open(bed, upper);
    let tree = tree(&union);
    union.shut_down();
    tree
}

/// Tests the invariant "One step".
#[test]
fn a_kill_at_any_instant_leaves_the_tree_before_or_after() {
    for (case, (act, upper)) in cases().into_iter().enumerate() {
        let mut after = None;
        for instant in (0..).map(|n: usize| n.checked_sub(1)) {
            let bed = build();
            let union = open(&bed, upper);
            act.prepare(&union).unwrap();
            let before = tree(&union);
            union.shut_down();
            drop(union);
            let Some(instant) = instant else {
                // Once without a kill, to know what comes of it; and in the mount itself as in the next.
                let union = open(&bed, upper);
                act.run(&union).unwrap();
                let now = tree(&union);
                union.shut_down();
                drop(union);
                assert_ne!(now, before, "{act:?} {upper:?} does nothing");
                assert_eq!(seen(&bed, upper), now, "{act:?} {upper:?}: after a remount");
                after = Some(now);
                continue;
            };
            let after = after.as_ref().unwrap();
            let killed = kill_at(module_path!(), instant, case, &bed);
            let what = format!("{act:?} {upper:?}, killed at instant {instant}");
            let found = seen(&bed, upper);
            if !killed {
                assert!(instant > 0, "{act:?} {upper:?} was never killed");
                assert_eq!(found, *after, "{act:?} {upper:?}, not killed");
                break;
            }
            assert!(found == before || found == *after, "{what}: {before:#?} {after:#?} {found:#?}");
            // What the kill left doesn't hinder what comes after it.
            let union = open(&bed, upper);
            let again = act.run(&union);
            assert_eq!(again.is_ok(), found == before, "{what}, and again: {again:?}");
            assert_eq!(tree(&union), *after, "{what}, and again");
            union.shut_down();
        }
    }
}

#[test]
#[ignore = "started by the test of kills"]
fn killed() {
    let Some(order) = Order::read() else { return };
    let (act, upper) = cases()[order.act];
    let union = open(&order.bed(), upper);
    order.carry_out(|| act.run(&union)).unwrap();
}
