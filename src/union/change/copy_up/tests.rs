//! Killed at any instant, a file whose data stay below shows what it showed before or what it is to show.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::error::Result;
use crate::union::change::failpoint::hook;
use crate::union::change::rename::RenameMode;
use crate::union::data::file::Write;
use crate::union::nodes::node::Node;
use crate::union::options::FsOptions;
use crate::union::stack::layer::{Stack, StackOptions};
use crate::union::view::attr::SetAttr;
use crate::union::{Limits, Union};

const PLACE: &str = "UNIONMOUNT_TEST_COPY_UP";
const SIZE: usize = 5 << 19;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    /// A metacopy comes to be.
    Chmod,
    /// The same of a file with several names.
    ChmodLinked,
    /// One gets its data.
    Write,
    WriteLinked,
    Truncate,
    /// One moves.
    Rename,
    Link,
}

const ACTS: [Act; 7] =
    [Act::Chmod, Act::ChmodLinked, Act::Write, Act::WriteLinked, Act::Truncate, Act::Rename, Act::Link];

fn build(top: &Path) {
    for dir in ["lower/d", "lower/e", "upper", "mnt"] {
        fs::create_dir_all(top.join(dir)).unwrap();
    }
    let bytes: Vec<u8> = (0..SIZE / 4).flat_map(|n| (n as u32).to_le_bytes()).collect();
    fs::write(top.join("lower/d/one"), &bytes).unwrap();
    fs::write(top.join("lower/d/several"), &bytes[..SIZE / 4]).unwrap();
    fs::hard_link(top.join("lower/d/several"), top.join("lower/e/names")).unwrap();
}

fn open(top: &Path) -> Union {
    let options = StackOptions {
        lowers: vec![top.join("lower").into()],
        upper: Some(top.join("upper")),
        mount_point: Some(top.join("mnt")),
        ..StackOptions::default()
    };
    let chosen = FsOptions { metacopy: true, ..FsOptions::default() };
    Union::with_options(Stack::open(&options).unwrap(), Limits::default(), &chosen).unwrap()
}

fn find(union: &Union, path: &str) -> Arc<Node> {
    let step = |dir: Arc<Node>, name: &str| union.lookup(&dir, name.as_bytes()).unwrap().unwrap().0;
    path.split('/').fold(union.root().clone(), step)
}

fn chmod(union: &Union, path: &str) -> Result<()> {
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    union.setattr(&find(union, path), mode, false).map(drop)
}

impl Act {
    fn prepare(self, union: &Union) -> Result<()> {
        match self {
            Act::Chmod | Act::ChmodLinked => Ok(()),
            Act::WriteLinked => chmod(union, "d/several"),
            _ => chmod(union, "d/one"),
        }
    }

    fn run(self, union: &Union) -> Result<()> {
        let one = || find(union, "d/one");
        match self {
            Act::Chmod => chmod(union, "d/one"),
            Act::ChmodLinked => chmod(union, "d/several"),
            Act::Write => union.write(&one(), 1_000_000, b"written", Write::default()),
            Act::WriteLinked => union.write(&find(union, "e/names"), 500_000, b"written", Write::default()),
            Act::Truncate => {
                let size = SetAttr { size: Some(1_000_001), ..SetAttr::default() };
                union.setattr(&one(), size, false).map(drop)
            }
            Act::Rename => {
                let (from, to) = (find(union, "d"), find(union, "e"));
                union.rename((&from, b"one"), (&to, b"moved"), RenameMode::Replace)
            }
            Act::Link => union.link(&one(), &find(union, "e"), b"linked").map(drop),
        }
    }
}

/// What is seen of a file: mode, link count, a hash of its content.
type Seen = (u32, u64, u64);

fn seen(union: &Union) -> BTreeMap<String, Seen> {
    let mut seen = BTreeMap::new();
    for dir in ["d", "e"] {
        let node = find(union, dir);
        let mut names = Vec::new();
        union
            .readdirplus(&node, 0, |entry| {
                names.push(String::from_utf8(entry.name.to_vec()).unwrap());
                true
            })
            .unwrap();
        for name in names {
            let path = format!("{dir}/{name}");
            let file = find(union, &path);
            let stat = union.getattr(&file).unwrap().stat;
            let mut bytes = vec![0; SIZE + 1];
            // The kernel shows no more than the size.
            let count = union.read(&file, 0, &mut bytes).unwrap().min(stat.size as usize);
            seen.insert(
                path,
                (
                    stat.mode,
                    stat.nlink,
                    BuildHasherDefault::<DefaultHasher>::default().hash_one(&bytes[..count]),
                ),
            );
        }
    }
    seen
}

fn seen_in(top: &Path) -> BTreeMap<String, Seen> {
    let union = open(top);
    let seen = seen(&union);
    union.shut_down();
    seen
}

#[test]
fn a_kill_at_any_instant_leaves_the_file_before_or_after() {
    for (index, act) in ACTS.into_iter().enumerate() {
        let mut after = None;
        for kill_at in (0..).map(|n: u32| n.checked_sub(1)) {
            let top = tempfile::tempdir().unwrap();
            build(top.path());
            let union = open(top.path());
            act.prepare(&union).unwrap();
            let before = seen(&union);
            union.shut_down();
            drop(union);
            let Some(kill_at) = kill_at else {
                let union = open(top.path());
                act.run(&union).unwrap();
                let now = seen(&union);
                union.shut_down();
                drop(union);
                assert_ne!(now, before, "{act:?} does nothing");
                assert_eq!(seen_in(top.path()), now, "{act:?}: after a remount");
                after = Some(now);
                continue;
            };
            let after: &BTreeMap<String, Seen> = after.as_ref().unwrap();
            let ended = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--ignored", &crate::union::kills::test_here(module_path!(), "killed")])
                .env(PLACE, format!("{index} {kill_at} {}", top.path().display()))
                .output()
                .unwrap();
            let found = seen_in(top.path());
            let what = format!("{act:?}, killed at instant {kill_at}");
            assert!(found == before || found == *after, "{what}: {before:#?} {after:#?} {found:#?}");
            if ended.status.success() {
                assert!(kill_at > 0, "{what}: never killed");
                break;
            }
            assert_eq!(ended.status.signal(), Some(libc::SIGKILL), "{ended:?}");
        }
    }
}

#[test]
#[ignore = "started by the test of kills"]
fn killed() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let mut words = place.splitn(3, ' ');
    let mut word = || words.next().unwrap();
    let act = ACTS[word().parse::<usize>().unwrap()];
    let mut left: u32 = word().parse().unwrap();
    let union = open(Path::new(word()));
    let hook = move |_| match left.checked_sub(1) {
        Some(rest) => left = rest,
        None => {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
        }
    };
    hook::during(hook, || act.run(&union)).unwrap();
}
