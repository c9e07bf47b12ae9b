//! Killed at any instant, a file whose data stay below shows what it showed before or what it is to show.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use crate::error::Result;
use crate::union::Union;
use crate::union::bed::kill::{Order, kill_at};
use crate::union::bed::{Bed, look_up};
use crate::union::change::rename::RenameMode;
use crate::union::data::file::Write;
use crate::union::hardlinks::counts::Hidden;
use crate::union::nodes::node::Node;
use crate::union::options::FsOptions;
use crate::union::view::attr::SetAttr;

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
    /// The same, of all of them.
    Empty,
    /// One moves.
    Rename,
    Link,
}

const ACTS: [Act; 8] = [
    Act::Chmod,
    Act::ChmodLinked,
    Act::Write,
    Act::WriteLinked,
    Act::Truncate,
    Act::Empty,
    Act::Rename,
    Act::Link,
];

fn build() -> Bed {
    let bed = Bed::new(1);
    bed.dir("0/d").dir("0/e");
    let bytes: Vec<u8> = (0..SIZE / 4).flat_map(|n| (n as u32).to_le_bytes()).collect();
    fs::write(bed.at("0/d/one"), &bytes).unwrap();
    fs::write(bed.at("0/d/several"), &bytes[..SIZE / 4]).unwrap();
    fs::hard_link(bed.at("0/d/several"), bed.at("0/e/names")).unwrap();
    bed
}

fn open(bed: &Bed) -> Union {
    bed.open_with(&FsOptions { metacopy: true, ..FsOptions::default() })
}

fn find(union: &Union, path: &str) -> Arc<Node> {
    look_up(union, path).unwrap()
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
            Act::Write => union.write(&one(), 1_000_000, b"written", Write::default()).map(drop),
            Act::WriteLinked => {
                union.write(&find(union, "e/names"), 500_000, b"written", Write::default()).map(drop)
            }
            Act::Truncate | Act::Empty => {
                let size = if self == Act::Empty { 0 } else { 1_000_001 };
                let size = SetAttr { size: Some(size), ..SetAttr::default() };
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

fn seen_in(bed: &Bed) -> BTreeMap<String, Seen> {
    let union = open(bed);
    let seen = seen(&union);
    union.shut_down();
    seen
}

#[test]
fn a_kill_at_any_instant_leaves_the_file_before_or_after() {
    for (index, act) in ACTS.into_iter().enumerate() {
        let mut after = None;
        for instant in (0..).map(|n: usize| n.checked_sub(1)) {
            let bed = build();
            let union = open(&bed);
            act.prepare(&union).unwrap();
            let before = seen(&union);
            union.shut_down();
            drop(union);
            let Some(instant) = instant else {
                let union = open(&bed);
                act.run(&union).unwrap();
                let now = seen(&union);
                union.shut_down();
                drop(union);
                assert_ne!(now, before, "{act:?} does nothing");
                assert_eq!(seen_in(&bed), now, "{act:?}: after a remount");
                after = Some(now);
                continue;
            };
            let after: &BTreeMap<String, Seen> = after.as_ref().unwrap();
            let killed = kill_at(module_path!(), instant, index, &bed);
            let found = seen_in(&bed);
            if !killed {
                assert!(instant > 0, "{act:?} was never killed");
                assert_eq!(found, *after, "{act:?}, not killed");
                break;
            }
            let what = format!("{act:?}, killed at instant {instant}");
            assert!(found == before || found == *after, "{what}: {before:#?} {after:#?} {found:#?}");
            if act == Act::Empty && found == *after {
                check_written_anew(&bed, &what);
            }
        }
    }
}

/// Shows that what is written to a file that was empty is what later mounts show of it.
fn check_written_anew(bed: &Bed, what: &str) {
    let read = |union: &Union| {
        let mut bytes = [0; 10];
        let count = union.read(&find(union, "d/one"), 0, &mut bytes).unwrap();
        bytes[..count].to_vec()
    };
    let union = open(bed);
    union.write(&find(&union, "d/one"), 0, b"anew", Write::default()).unwrap();
    assert_eq!(read(&union), b"anew", "{what}");
    union.shut_down();
    drop(union);
    let union = open(bed);
    assert_eq!(read(&union), b"anew", "{what}, in a later mount");
    union.shut_down();
}

/// Takes what a kill leaves of a truncation: with passthrough the kernel writes to the file that was opened, and nobody else.
#[test]
fn an_empty_file_that_is_opened_for_writing_has_no_marks() {
    let bed = build();
    let union = open(&bed);
    chmod(&union, "d/one").unwrap();
    union.shut_down();
    drop(union);
    fs::File::options().write(true).open(bed.at("upper/d/one")).unwrap().set_len(0).unwrap();
    let union = open(&bed);
    let is_marked =
        || union.with_object(&find(&union, "d/one"), |object| union.marks_of(object)).unwrap().metacopy;
    union.open(&find(&union, "d/one"), rustix::fs::OFlags::RDONLY, false).unwrap();
    assert!(is_marked());
    union.open(&find(&union, "d/one"), rustix::fs::OFlags::WRONLY, false).unwrap();
    assert!(!is_marked(), "what the kernel writes is lost");
    union.shut_down();
}

#[test]
#[ignore = "started by the test of kills"]
fn killed() {
    let Some(order) = Order::read() else { return };
    let union = open(&order.bed());
    order.carry_out(|| ACTS[order.act].run(&union)).unwrap();
}

/// While a file that has no name any more is being published, its other names go: all but one, or the last one too.
#[test]
fn other_names_that_go_before_an_unnamed_copy_is_published_are_not_counted() {
    for left in [1, 0] {
        let bed = Bed::new(1);
        bed.file("0/a");
        for other in ["b", "c"] {
            fs::hard_link(bed.at("0/a"), bed.at("0").join(other)).unwrap();
        }
        let union = Arc::new(bed.open());
        let file = find(&union, "a");
        if !union.upper().unwrap().caps().xattr {
            support::skipped("the filesystem of the scratch directories keeps no marks");
            return;
        }
        union.unlink(union.root(), b"a").unwrap();
        let origin = union.origin_known(&file);
        assert_eq!(union.hidden_count(origin), 1);
        // As an unlink of another name holds it.
        let unlinking = union.hardlinks.locks.exclusive(origin);
        let (copying, copied) = (union.clone(), file.clone());
        let copying =
            std::thread::spawn(move || copying.write(&copied, 0, b"written", Write::default()).map(drop));
        while !union.hardlinks.locks.is_waited_for(origin) {
            assert!(!copying.is_finished(), "it waits for nobody");
            std::thread::yield_now();
        }
        union.hardlinks.hide(origin, Hidden { count: 3 - left, born: None });
        drop(unlinking);
        copying.join().unwrap().unwrap();
        let upper = union.upper().unwrap();
        assert_eq!(upper.is_indexed(origin), left > 0, "{left}: a copy that no name leads to stays for ever");
        let nlink = union.indexed_copy(origin).unwrap().map(|stat| stat.nlink);
        assert_eq!(nlink, (left > 0).then_some(left));
        union.shut_down();
    }
}
