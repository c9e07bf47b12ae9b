//! Half-copied files against plain bytes: at random, and killed at any instant.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use super::LEAST;
use crate::sys::splice::Pipe;
use crate::union::bed::kill::{Order, kill_at};
use crate::union::bed::{Bed, look_up};
use crate::union::change::rename::RenameMode;
use crate::union::data::file::Write;
use crate::union::nodes::node::Node;
use crate::union::options::{FsOptions, Lazy};
use crate::union::stack::layer::{Stack, StackOptions};
use crate::union::view::attr::SetAttr;
use crate::union::{Limits, Union};

mod failing;
mod told;

const SIZE: usize = 300_123;
const BLOCK: u64 = 4096;

fn content(seed: u32) -> Vec<u8> {
    let hole = 20 * BLOCK as usize..30 * BLOCK as usize;
    let byte =
        |at: usize| if hole.contains(&at) { 0 } else { (at as u32).wrapping_mul(seed).to_be_bytes()[0] | 1 };
    (0..SIZE).map(byte).collect()
}

fn build() -> Bed {
    let bed = Bed::new(1);
    bed.dir("0/d");
    for (name, seed) in [("d/a", 2_654_435_761), ("d/b", 40_503_001)] {
        fs::write(bed.at("0").join(name), content(seed)).unwrap();
    }
    bed
}

fn open(bed: &Bed) -> Union {
    bed.open_with(&FsOptions { lazy: Lazy::Keep, ..FsOptions::default() })
}

fn find(union: &Union, path: &str) -> Arc<Node> {
    look_up(union, path).unwrap()
}

fn read(union: &Union, node: &Arc<Node>) -> Vec<u8> {
    let size = union.getattr(node).unwrap().stat.size as usize;
    let mut bytes = vec![0xaa; size + 10];
    let count = union.read(node, 0, &mut bytes).unwrap();
    assert_eq!(count, size, "it ends elsewhere than its attributes say");
    bytes.truncate(count);
    assert!(read_to_pipe(union, node, (0, size + 10)) == bytes, "through a pipe it is another");
    bytes
}

/// Reads the same way as the kernel is answered.
fn read_to_pipe(union: &Union, node: &Arc<Node>, (offset, size): (u64, usize)) -> Vec<u8> {
    const HEADER: &[u8] = b"a header of some bytes";
    let pipe = Pipe::new(1 << 20).unwrap();
    assert!(pipe.takes(size) && union.fits_pipes(node));
    let mut told = None;
    let filled = union.read_to_pipe(node, (offset, size as u32), &pipe, |len| {
        told = Some(len);
        HEADER
    });
    let len = filled.unwrap().expect("what fits a pipe is put there");
    assert_eq!(told, Some(len));
    let mut bytes = vec![0; HEADER.len() + len as usize];
    let mut done = 0;
    while done < bytes.len() {
        let count = rustix::io::read(pipe.out(), &mut bytes[done..]).unwrap();
        assert!(count > 0, "the pipe has less than was told");
        done += count;
    }
    assert_eq!(&bytes[..HEADER.len()], HEADER);
    bytes.split_off(HEADER.len())
}

fn resize(union: &Union, node: &Arc<Node>, size: u64) {
    union.setattr(node, SetAttr { size: Some(size), ..SetAttr::default() }, false).unwrap();
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Resize(u64),
    Read(u64, usize),
    Copy(u64, u64, usize),
    Zero(u64, u64, bool, bool),
    Chmod,
    Rename,
    Link,
    Open,
    Seek(u64),
    SealSome(u8),
    Reopen,
}

/// Makes offsets at and beside the borders of blocks, and anywhere.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => (0u64..90, -1i64..=1).prop_map(|(block, beside)| (block * BLOCK).saturating_add_signed(beside)),
        2 => 0u64..(SIZE as u64 + 30_000),
        1 => (SIZE as u64 - 3)..(SIZE as u64 + 3),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = (1usize..20_000, any::<u8>()).prop_map(|(length, byte)| vec![byte | 2; length]);
    let short = (1usize..40, any::<u8>()).prop_map(|(length, byte)| vec![byte | 2; length]);
    prop_oneof![
        6 => (offset(), prop_oneof![bytes, short]).prop_map(|(at, bytes)| Op::Write(at, bytes)),
        3 => offset().prop_map(|size| Op::Resize(size.max(LEAST))),
        4 => (offset(), 1usize..50_000).prop_map(|(at, length)| Op::Read(at, length)),
        2 => (offset(), offset(), 1usize..30_000).prop_map(|(from, to, length)| Op::Copy(from, to, length)),
        2 => Just(Op::Reopen),
        1 => offset().prop_map(Op::Seek),
        2 => (offset(), 1u64..40_000, any::<bool>(), any::<bool>()).prop_map(|(at, length, punch, grow)| {
            Op::Zero(at, length, punch, grow && !punch)
        }),
        2 => (0u8..12).prop_map(Op::SealSome),
        1 => Just(Op::Chmod),
        1 => Just(Op::Rename),
        1 => Just(Op::Link),
        1 => Just(Op::Open),
    ]
}

/// Makes a sequence, which now and then has what makes the file whole.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let last = (0..LEAST).prop_map(Op::Resize);
    (prop::collection::vec(op(), 1..40), prop::option::of(last), prop::collection::vec(op(), 0..8)).prop_map(
        |(mut ops, last, after)| {
            ops.extend(last);
            ops.extend(after);
            ops
        },
    )
}

fn put(model: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if model.len() < at + bytes.len() {
        model.resize(at + bytes.len(), 0);
    }
    model[at..at + bytes.len()].copy_from_slice(bytes);
}

fn run(ops: Vec<Op>) {
    let bed = build();
    let mut union = open(&bed);
    let mut model = content(2_654_435_761);
    let other = content(40_503_001);
    let mut name = "a".to_owned();
    for (step, op) in ops.into_iter().enumerate() {
        let path = format!("d/{name}");
        let node = find(&union, &path);
        match &op {
            Op::Write(at, bytes) => {
                union.write(&node, *at, bytes, Write::default()).unwrap();
                put(&mut model, *at as usize, bytes);
            }
            Op::Resize(size) => {
                resize(&union, &node, *size);
                model.resize(*size as usize, 0);
            }
            Op::Read(at, length) => {
                let mut bytes = vec![0; *length];
                let count = union.read(&node, *at, &mut bytes).unwrap();
                let piped = read_to_pipe(&union, &node, (*at, *length));
                let at = (*at as usize).min(model.len());
                let expected = &model[at..(at + length).min(model.len())];
                assert!(bytes[..count] == *expected && piped == expected, "{step}: {op:?}");
            }
            Op::Copy(from, to, length) => {
                let source = find(&union, "d/b");
                let count = union.copy_file_range((&source, *from), (&node, *to), *length).unwrap();
                let from = (*from as usize).min(other.len());
                assert!(count <= *length && (count > 0 || from == other.len()));
                put(&mut model, if count > 0 { *to as usize } else { 0 }, &other[from..from + count]);
            }
            Op::Zero(at, length, punch, grow) => {
                let flags = if *punch { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
                let keep = if *grow { FallocateFlags::empty() } else { FallocateFlags::KEEP_SIZE };
                union.fallocate(&node, flags | keep, (*at, *length)).unwrap();
                if *grow {
                    model.resize(model.len().max((at + length) as usize), 0);
                }
                let (at, end) = ((*at as usize).min(model.len()), ((at + length) as usize).min(model.len()));
                model[at..end].fill(0);
            }
            Op::Chmod => {
                let mode = SetAttr { mode: Some(0o640), ..SetAttr::default() };
                union.setattr(&node, mode, false).unwrap();
            }
            Op::Rename => {
                let dir = find(&union, "d");
                let to = format!("a{step}");
                union.rename((&dir, name.as_bytes()), (&dir, to.as_bytes()), RenameMode::Replace).unwrap();
                name = to;
            }
            Op::Link => {
                let dir = find(&union, "d");
                let to = format!("link{step}");
                union.link(&node, &dir, to.as_bytes()).unwrap();
                name = to;
            }
            Op::Open => union.open(&node, OFlags::RDWR, false).unwrap(),
            Op::Seek(at) => {
                // What is said to be a hole is one; data and holes follow each other.
                if let Ok(hole) = union.seek(&node, SeekFrom::Hole(*at)) {
                    let end = union.seek(&node, SeekFrom::Data(hole)).unwrap_or(model.len() as u64);
                    assert!(hole >= *at && model[hole as usize..end as usize].iter().all(|byte| *byte == 0));
                } else {
                    assert!(*at >= model.len() as u64);
                }
            }
            Op::SealSome(steps) => {
                for _ in 0..*steps {
                    union.seal_some(&node, 5 * BLOCK).unwrap();
                }
            }
            Op::Reopen => {
                union.shut_down();
                drop(union);
                union = open(&bed);
            }
        }
        let node = find(&union, &format!("d/{name}"));
        assert!(read(&union, &node) == model, "{step}: {op:?}");
    }
    union.shut_down();
    drop(union);
    let union = open(&bed);
    assert!(read(&union, &find(&union, &format!("d/{name}"))) == model, "in the next mount");
    assert!(read(&union, &find(&union, "d/b")) == other);
    let node = find(&union, &format!("d/{name}"));
    union.ensure_upper(&node).unwrap();
    assert!(read(&union, &node) == model, "sealed");
    union.shut_down();
    drop(union);
    assert!(fs::read(bed.at("upper/d").join(&name)).map_or(true, |bytes| bytes == model), "on disk");
    assert!(fs::read(bed.at("0/d/a")).unwrap() == content(2_654_435_761), "the lower has changed");
}

/// Tests the invariant "Durability" as far as no power fails: whatever is done, the file is as a plain one.
#[test]
fn half_copied_files_are_as_plain_ones() {
    let cases = std::env::var("UNIONMOUNT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let seed = std::env::var("UNIONMOUNT_SEED").ok().and_then(|n| n.parse::<u64>().ok()).unwrap_or(1);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    runner
        .run(&ops(), |ops| {
            run(ops);
            Ok(())
        })
        .unwrap();
}

#[test]
fn one_byte_copies_one_block() {
    let bed = build();
    let union = open(&bed);
    let node = find(&union, "d/a");
    union.write(&node, 100_000, b"!", Write::default()).unwrap();
    assert_eq!(node_half(&union, &node).count(), (1, SIZE.div_ceil(BLOCK as usize) as u64));
    union.write(&node, 2 * BLOCK - 1, b"!!", Write::default()).unwrap();
    assert_eq!(node_half(&union, &node).count().0, 3);
    union.fsync(&node, false).unwrap();
    let room = fs::metadata(bed.at("upper/d/a")).unwrap().blocks() * 512;
    assert!(room <= 4 * BLOCK, "{room} bytes were taken");
}

fn node_half(union: &Union, node: &Arc<Node>) -> Arc<super::Half> {
    union.half(node).unwrap().expect("a half-copied file")
}

/// Allows no mixture of what was and what came to be below.
#[test]
fn another_file_below_is_an_error() {
    for change in ["content", "file", "copy"] {
        let bed = build();
        let union = open(&bed);
        union.write(&find(&union, "d/a"), 5, b"!", Write::default()).unwrap();
        union.shut_down();
        drop(union);
        let below = bed.at("0/d/a");
        match change {
            "content" => fs::write(&below, content(7)).unwrap(),
            // By a program that keeps attributes, and makes holes of zeros.
            "copy" => {
                let place = bed.at("upper/d");
                support::run(
                    "cp",
                    &[
                        "-a",
                        "--sparse=always",
                        place.join("a").to_str().unwrap(),
                        place.join("new").to_str().unwrap(),
                    ],
                );
                fs::rename(place.join("new"), place.join("a")).unwrap();
            }
            _ => {
                fs::rename(&below, bed.at("old")).unwrap();
                fs::copy(bed.at("old"), &below).unwrap();
            }
        }
        let union = open(&bed);
        let node = find(&union, "d/a");
        let mut bytes = [0; 16];
        let failed = union.read(&node, 0, &mut bytes).unwrap_err();
        assert_eq!(failed.errno(), rustix::io::Errno::IO, "{change}");
        assert!(union.write(&node, 0, b"x", Write::default()).is_err());
        union.shut_down();
    }
}

/// Takes an upper with half-copied files that becomes a lower, or is only looked at.
#[test]
fn half_copied_files_of_lowers_are_read_and_copied() {
    let bed = build();
    let union = open(&bed);
    let node = find(&union, "d/a");
    union.write(&node, 50_000, b"written", Write::default()).unwrap();
    resize(&union, &node, 200_001);
    assert!(union.half(&node).unwrap().is_some(), "a truncation has copied all");
    let expected = read(&union, &node);
    union.shut_down();
    drop(union);
    fs::create_dir(bed.at("upper2")).unwrap();
    let options = StackOptions {
        lowers: vec![bed.at("upper").into(), bed.at("0").into()],
        upper: Some(bed.at("upper2")),
        ..StackOptions::default()
    };
    let chosen = FsOptions { lazy: Lazy::Keep, ..FsOptions::default() };
    let union = Union::with_options(Stack::open(&options).unwrap(), Limits::default(), &chosen).unwrap();
    let node = find(&union, "d/a");
    assert!(read(&union, &node) == expected);
    let whole = union.content(&node).unwrap();
    let mut bytes = vec![0; expected.len() + 1];
    assert_eq!(whole.read_at(&mut bytes, 0).unwrap(), expected.len());
    assert!(bytes[..expected.len()] == expected[..] && whole.size().unwrap() == expected.len() as u64);
    union.write(&node, 3, b"above", Write::default()).unwrap();
    let mut expected = expected;
    expected[3..8].copy_from_slice(b"above");
    assert!(read(&union, &node) == expected);
    union.shut_down();
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    First,
    Again,
    Across,
    Shrink,
    Grow,
    Seal,
    SealInSteps,
    Cut,
    Empty,
}

const ACTS: [Act; 9] = [
    Act::First,
    Act::Again,
    Act::Across,
    Act::Shrink,
    Act::Grow,
    Act::Seal,
    Act::SealInSteps,
    Act::Cut,
    Act::Empty,
];

impl Act {
    fn prepare(self, union: &Union) {
        let node = find(union, "d/a");
        if self != Act::First {
            union.write(&node, 40_000, &[7; 9000], Write::default()).unwrap();
        }
        if self == Act::Grow {
            resize(union, &node, 150_001);
        }
    }

    /// Returns where it writes.
    fn range(self) -> std::ops::Range<usize> {
        match self {
            Act::First => 100_001..100_003,
            Act::Again => 41_000..60_001,
            Act::Across => 16_383..16_385,
            _ => 0..0,
        }
    }

    fn run(self, union: &Union) {
        let node = find(union, "d/a");
        let range = self.range();
        match self {
            Act::First | Act::Again | Act::Across => {
                union.write(&node, range.start as u64, &vec![9; range.len()], Write::default()).unwrap();
            }
            Act::Shrink => resize(union, &node, 150_001),
            Act::Grow => resize(union, &node, SIZE as u64),
            Act::Seal => union.ensure_upper(&node).unwrap(),
            Act::SealInSteps => while union.seal_some(&node, 9 * BLOCK).unwrap().is_some() {},
            Act::Cut => resize(union, &node, 1000),
            Act::Empty => resize(union, &node, 0),
        }
    }
}

#[test]
fn a_kill_at_any_instant_leaves_what_was_written() {
    for (index, act) in ACTS.into_iter().enumerate() {
        for instant in 0.. {
            let bed = build();
            let union = open(&bed);
            act.prepare(&union);
            let before = read(&union, &find(&union, "d/a"));
            union.shut_down();
            drop(union);
            let killed = kill_at(module_path!(), instant, index, &bed);
            let what = format!("{act:?}, killed at instant {instant}");
            let union = open(&bed);
            let found = read(&union, &find(&union, "d/a"));
            let mut after = before.clone();
            match act {
                Act::Shrink => after.truncate(150_001),
                Act::Grow => after.resize(SIZE, 0),
                Act::Cut => after.truncate(1000),
                Act::Empty => after.clear(),
                _ => after[act.range()].fill(9),
            }
            assert!(found.len() == before.len() || found.len() == after.len(), "{what}");
            let same = |at: usize| {
                let old = before.get(at) == found.get(at) && found.len() == before.len();
                let new = after.get(at) == found.get(at) && found.len() == after.len();
                // A write that didn't return may be there in part.
                if act.range().contains(&at) {
                    old || new
                } else {
                    old || (new && found.len() != before.len())
                }
            };
            let wrong = (0..found.len()).find(|at| !same(*at));
            assert_eq!(wrong, None, "{what}");
            if act == Act::Shrink && found.len() == after.len() {
                // What was cut off doesn't come back, whether or not the mark says so yet.
                resize(&union, &find(&union, "d/a"), SIZE as u64);
                after.resize(SIZE, 0);
                assert!(read(&union, &find(&union, "d/a")) == after, "{what}, and longer again");
                after.truncate(150_001);
            }
            if act == Act::Empty && found.is_empty() {
                // What is written to it now is what a later mount shows.
                union.write(&find(&union, "d/a"), 5000, b"anew", Write::default()).unwrap();
                union.shut_down();
                drop(union);
                let union = open(&bed);
                let anew = [&[0; 5000][..], b"anew"].concat();
                assert!(read(&union, &find(&union, "d/a")) == anew, "{what}, written anew");
                union.shut_down();
                if killed {
                    continue;
                }
                assert!(instant > 0, "{what}: never killed");
                break;
            }
            // And it goes on from there.
            act.run(&union);
            assert!(read(&union, &find(&union, "d/a")) == after, "{what}, and again");
            union.shut_down();
            if !killed {
                assert!(instant > 0 && found == after, "{what}: never killed");
                break;
            }
        }
    }
}

#[test]
#[ignore = "started by the test of kills"]
fn killed() {
    let Some(order) = Order::read() else { return };
    let union = open(&order.bed());
    order.carry_out(|| ACTS[order.act].run(&union));
}
