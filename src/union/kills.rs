//! Tests: killed at any instant of a change of names, the next mount shows the tree before it or after it, whatever
//! the upper's filesystem can do in one step.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::change::create::Create;
use super::change::failpoint::hook;
use super::change::rename::RenameMode;
use super::change::staged::New;
use super::nodes::node::Node;
use super::stack::layer::{Stack, StackOptions, WhiteoutForm};
use super::{Caller, Limits, Union};
use crate::error::Result;
use crate::sys::object::Kind;

const PLACE: &str = "UNIONMOUNT_TEST_KILL";

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

/// Returns the name by which a test of the module is asked for.
pub(in crate::union) fn test_here(module: &str, test: &str) -> String {
    let (_, within) = module.split_once("::").unwrap();
    format!("{within}::{test}")
}

fn build(top: &Path) {
    for dir in ["lower/emptied", "lower/empty", "lower/merged", "upper", "mnt"] {
        fs::create_dir_all(top.join(dir)).unwrap();
    }
    for file in ["emptied/one", "emptied/two", "merged/inside", "file", "other"] {
        fs::write(top.join("lower").join(file), file).unwrap();
    }
}

fn open(top: &Path, upper: Upper) -> Union {
    let options = StackOptions {
        lowers: vec![top.join("lower").into()],
        upper: Some(top.join("upper")),
        mount_point: Some(top.join("mnt")),
        ..StackOptions::default()
    };
    let mut stack = Stack::open(&options).unwrap();
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
    let caller =
        Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    union.create(parent, name, Create { new, mode: 0o755, umask: 0o022, caller }).map(drop)
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

fn seen(top: &Path, upper: Upper) -> BTreeMap<String, Kind> {
    let union = open(top, upper);
    let tree = tree(&union);
    union.shut_down();
    tree
}

/// Tests the invariant "One step".
#[test]
fn a_kill_at_any_instant_leaves_the_tree_before_or_after() {
    for (way, upper) in UPPERS.into_iter().enumerate() {
        for (index, act) in ACTS.into_iter().enumerate() {
            let needs_redirect = matches!(act, Act::MoveMergedDirAway | Act::MoveMergedDirOverWhiteout);
            if needs_redirect && matches!(upper, Upper::NoAttributes) {
                continue; // refused, and programs copy
            }
            let leaves_whiteout = matches!(act, Act::MoveFileAway | Act::MoveFileOverFile) || needs_redirect;
            if !leaves_whiteout && matches!(upper, Upper::NoWhiteout) {
                continue; // the same as with all that there is
            }
            let mut after = None;
            for kill_at in (0..).map(|n: u32| n.checked_sub(1)) {
                let top = tempfile::tempdir().unwrap();
                build(top.path());
                let union = open(top.path(), upper);
                act.prepare(&union).unwrap();
                let before = tree(&union);
                union.shut_down();
                drop(union);
                let Some(kill_at) = kill_at else {
                    // Once without a kill, to know what comes of it; and in the mount itself as in the next.
                    let union = open(top.path(), upper);
                    act.run(&union).unwrap();
                    let now = tree(&union);
                    union.shut_down();
                    drop(union);
                    assert_ne!(now, before, "{act:?} {upper:?} does nothing");
                    assert_eq!(seen(top.path(), upper), now, "{act:?} {upper:?}: after a remount");
                    after = Some(now);
                    continue;
                };
                let after = after.as_ref().unwrap();
                let ended = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "--ignored", &crate::union::kills::test_here(module_path!(), "killed")])
                    .env(PLACE, format!("{way} {index} {kill_at} {}", top.path().display()))
                    .output()
                    .unwrap();
                let what = format!("{act:?} {upper:?}, killed at instant {kill_at}");
                let found = seen(top.path(), upper);
                assert!(found == before || found == *after, "{what}: {before:#?} {after:#?} {found:#?}");
                if ended.status.success() {
                    assert!(kill_at > 0, "{what}: never killed");
                    break;
                }
                assert_eq!(ended.status.signal(), Some(libc::SIGKILL), "{ended:?}");
                // What the kill left doesn't hinder what comes after it.
                let union = open(top.path(), upper);
                let again = act.run(&union);
                assert_eq!(again.is_ok(), found == before, "{what}, and again: {again:?}");
                assert_eq!(tree(&union), *after, "{what}, and again");
                union.shut_down();
            }
        }
    }
}

#[test]
#[ignore = "started by the test of kills"]
fn killed() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let mut words = place.splitn(4, ' ');
    let mut word = || words.next().unwrap();
    let upper = UPPERS[word().parse::<usize>().unwrap()];
    let act = ACTS[word().parse::<usize>().unwrap()];
    let mut left: u32 = word().parse().unwrap();
    let union = open(Path::new(word()), upper);
    let hook = move |_| match left.checked_sub(1) {
        Some(rest) => left = rest,
        None => {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
        }
    };
    hook::during(hook, || act.run(&union)).unwrap();
}
