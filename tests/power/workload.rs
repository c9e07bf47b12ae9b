//! What is done before the power goes: sequences of operations, each in a directory of its own, with what asks for
//! durability between them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path as HostPath;

use rustix::fs::{Mode, OFlags};

use crate::worker::Worker;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use support::model::execute::Executor;
use support::model::generate::{Vocabulary, case};
use support::model::layer::{LayerNode, StackSpec, dir, file, linked, symlink};
use support::model::op::{Op, Outcome, Path, Rename, p};
use support::model::tree::{Id, Model};
use support::raw::Mapping;

/// What is asked for after an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persist {
    /// Nothing.
    Nothing,
    /// fsync of what the operation was about; of its directory where that is gone.
    Fsync,
    /// fdatasync of the same.
    Fdatasync,
    /// fsync of the directories whose entries the operation changed.
    FsyncDirectory,
    /// syncfs of the filesystem that the upper lies on.
    Sync,
    /// The write itself goes through a file that was opened with O_SYNC.
    Synchronous,
    /// The same with O_DSYNC.
    DataSynchronous,
    /// The write is made through a mapping, and msync follows.
    Msync,
    /// The write is made through a mapping, and nothing follows.
    Mapped,
}

impl Persist {
    /// Whether it says how a write is made.
    fn is_of_writes(self) -> bool {
        matches!(self, Persist::Synchronous | Persist::DataSynchronous | Persist::Msync | Persist::Mapped)
    }
}

/// An operation, and what is asked for after it.
#[derive(Debug, Clone)]
pub struct Step {
    /// What is done.
    pub op: Op,
    /// What is asked for then.
    pub persist: Persist,
}

/// A tree and what is done to it.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// The layers of its directory.
    pub spec: StackSpec,
    /// What is done.
    pub steps: Vec<Step>,
}

/// What became durable with a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Durable {
    /// All that was done.
    All,
    /// An object: its names, its attributes and the data of a file.
    Object(Id),
    /// The same without the attributes: fdatasync need not write what isn't needed to read the data.
    Data(Id),
    /// The entries of a directory.
    Entries(Id),
}

/// Something that was done: the positions of the disk's record around it, and what is so after it.
pub struct Done {
    /// In words.
    pub what: String,
    /// The position before it began.
    pub began: usize,
    /// The position when it had ended.
    pub ended: usize,
    /// The tree after it.
    pub model: Model,
    /// What was made durable with it.
    pub durable: Vec<Durable>,
    /// What files held for a moment during it: a file that is truncated when it is opened.
    pub between: Option<(Id, Vec<u8>)>,
}

/// A sequence that was performed.
pub struct Performed {
    /// The tree before it.
    pub start: Model,
    /// What was done.
    pub done: Vec<Done>,
    /// What a peer did otherwise, with which it ended.
    pub ended_by: Option<String>,
}

/// Does the steps below `root`, bent to what is there if `steer`; all of them, or until a peer does something of its
/// own. `position` tells where the record is, `sync` writes all
/// that the upper's filesystem holds back.
pub fn perform(
    sequence: &Sequence,
    steer: bool,
    worker: Worker,
    root: &HostPath,
    mut position: impl FnMut() -> usize,
    sync: impl Fn(),
) -> Performed {
    let mut executor = Executor::new(root);
    let start = sequence.spec.merge();
    let mut model = start.clone();
    let (mut all, mut ended_by) = (Vec::new(), None);
    for Step { op, persist } in &sequence.steps {
        let op = if steer { model.steer(op) } else { op.clone() };
        let mut next = model.clone();
        let expected = next.apply(&op);
        if expected == Outcome::Skipped {
            continue;
        }
        let began = position();
        let written = match &op {
            Op::Write { path, offset, fill, length, truncate: false, append: false }
                if persist.is_of_writes() && expected == Outcome::Done =>
            {
                let data = vec![*fill; *length];
                write_so(*persist, &executor.place(path), *offset, &data, length_of(&model, path))
            }
            _ => false,
        };
        let durable = if written {
            written_durably(&op, *persist, &next)
        } else {
            let found = executor.run(&op);
            if !worker.goes_on(&op, &expected, &found) {
                ended_by = Some(format!("{op:?}: {found:?}, expected {expected:?}"));
                break;
            }
            make_durable(&op, *persist, &executor, &next, &sync)
        };
        let between = match &op {
            Op::Write { path, truncate: true, .. } => {
                next.resolve(path, false).ok().map(|id| (id, Vec::new()))
            }
            _ => None,
        };
        model = next;
        let what = format!("{op:?} {persist:?}");
        all.push(Done { what, began, ended: position(), model: model.clone(), durable, between });
    }
    executor.close_all();
    Performed { start, done: all, ended_by }
}

/// Writes as `how` says, if that can be.
fn write_so(how: Persist, place: &HostPath, offset: usize, data: &[u8], length: Option<usize>) -> bool {
    let open = |flags| {
        File::from(
            rustix::fs::open(place, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).unwrap(),
        )
    };
    match how {
        Persist::Synchronous => {
            open(OFlags::WRONLY | OFlags::SYNC).write_all_at(data, offset as u64).unwrap()
        }
        Persist::DataSynchronous => {
            open(OFlags::WRONLY | OFlags::DSYNC).write_all_at(data, offset as u64).unwrap();
        }
        _ => {
            // A mapping doesn't make a file longer.
            let Some(length) = length.filter(|length| offset + data.len() <= *length) else { return false };
            let mut mapping = Mapping::shared(&open(OFlags::RDWR), length, true).unwrap();
            mapping.write(offset, data);
            if how == Persist::Msync {
                mapping.sync().unwrap();
            }
        }
    }
    true
}

/// What a write by [`write_so`] makes durable.
fn written_durably(op: &Op, how: Persist, model: &Model) -> Vec<Durable> {
    let id = object_of(op).and_then(|path| model.resolve(path, false).ok());
    let durable = match how {
        // Who writes nothing asks for nothing.
        Persist::Synchronous | Persist::DataSynchronous if matches!(op, Op::Write { length: 0, .. }) => None,
        Persist::Synchronous => id.map(Durable::Object),
        Persist::DataSynchronous | Persist::Msync => id.map(Durable::Data),
        _ => None,
    };
    durable.into_iter().collect()
}

fn make_durable(
    op: &Op,
    persist: Persist,
    executor: &Executor,
    model: &Model,
    sync: &impl Fn(),
) -> Vec<Durable> {
    match persist {
        Persist::Sync => {
            sync();
            vec![Durable::All]
        }
        Persist::Fsync | Persist::Fdatasync => {
            if let Some(slot) = slot_of(op) {
                return synced_open(executor.slot(slot), model.slots[&slot].0, persist);
            }
            let object = object_of(op);
            match object.and_then(|path| synced(executor, path, model, persist)) {
                Some(durable) => vec![durable],
                None => {
                    let directories = directories_of(op);
                    directories.iter().filter_map(|path| synced(executor, path, model, persist)).collect()
                }
            }
        }
        Persist::FsyncDirectory => {
            let directories = directories_of(op);
            directories.iter().filter_map(|path| synced(executor, path, model, persist)).collect()
        }
        _ => Vec::new(),
    }
}

/// The slot whose file an operation is about.
fn slot_of(op: &Op) -> Option<u8> {
    match op {
        Op::WriteOpen { slot, .. } | Op::TruncateOpen { slot, .. } | Op::ChmodOpen { slot, .. } => {
            Some(*slot)
        }
        _ => None,
    }
}

fn synced_open(file: &File, id: Id, persist: Persist) -> Vec<Durable> {
    if persist == Persist::Fdatasync {
        file.sync_data().unwrap();
        return vec![Durable::Data(id)];
    }
    file.sync_all().unwrap();
    vec![Durable::Object(id)]
}

/// Syncs what has this path now, if that can be opened.
fn synced(executor: &Executor, path: &Path, model: &Model, persist: Persist) -> Option<Durable> {
    let id = model.resolve(path, false).ok()?;
    let directory = model.is_directory(id);
    let kind = if directory { OFlags::DIRECTORY } else { OFlags::NONBLOCK };
    let regular = matches!(model.inodes[id].node, support::model::tree::Node::File(_));
    if !directory && !regular {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | kind;
    let open = File::from(rustix::fs::open(executor.place(path), flags, Mode::empty()).ok()?);
    match persist {
        Persist::Fdatasync => open.sync_data().unwrap(),
        _ => open.sync_all().unwrap(),
    }
    Some(match persist {
        _ if directory => Durable::Entries(id),
        Persist::Fdatasync => Durable::Data(id),
        _ => Durable::Object(id),
    })
}

/// What an operation is about, by its path afterwards.
fn object_of(op: &Op) -> Option<&Path> {
    match op {
        Op::Create { path, .. }
        | Op::Write { path, .. }
        | Op::Truncate { path, .. }
        | Op::Fallocate { path, .. }
        | Op::Mkdir { path, .. }
        | Op::Mkfifo { path, .. }
        | Op::Chmod { path, .. }
        | Op::Chown { path, .. }
        | Op::SetXattr { path, .. }
        | Op::RemoveXattr { path, .. }
        | Op::SetMtime { path, .. }
        | Op::Open { path, .. } => Some(path),
        Op::CopyRange { to, .. } | Op::Link { to, .. } | Op::Rename { to, .. } => Some(to),
        _ => None,
    }
}

/// How long the file is that a path leads to.
fn length_of(model: &Model, path: &Path) -> Option<usize> {
    match &model.inodes[model.resolve(path, false).ok()?].node {
        support::model::tree::Node::File(bytes) => Some(bytes.len()),
        _ => None,
    }
}

fn directories_of(op: &Op) -> Vec<Path> {
    let parent = |path: &Path| Path(path.0[..path.0.len().saturating_sub(1)].to_vec());
    match op {
        Op::Rename { from, to, .. } => vec![parent(from), parent(to)],
        Op::Link { to, .. } => vec![parent(to)],
        Op::Unlink { path } | Op::Rmdir { path } | Op::Symlink { path, .. } => vec![parent(path)],
        other => object_of(other).map(parent).into_iter().collect(),
    }
}

/// What may follow any operation.
const PERSISTS: [Persist; 5] =
    [Persist::Nothing, Persist::Fsync, Persist::Fdatasync, Persist::FsyncDirectory, Persist::Sync];

/// What else a write may be.
const WRITES: [Persist; 3] = [Persist::Synchronous, Persist::DataSynchronous, Persist::Msync];

/// A random stack and `length` random steps, half of them followed by something that makes durable.
pub fn random(seed: u64, length: usize) -> Sequence {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let vocabulary = Vocabulary { lowers: 2, operations: length, ..Vocabulary::full(true) };
    let strategy = case(&vocabulary);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut steps = Vec::new();
    let mut spec = None;
    while steps.len() < length {
        let (stack, ops) = strategy.new_tree(&mut runner).unwrap().current();
        spec.get_or_insert(stack);
        steps.extend(ops.into_iter().map(|op| {
            let persist = match (random.u8(..4), &op) {
                (0, Op::Write { .. }) => WRITES[random.usize(..3)],
                (0..2, _) => Persist::Nothing,
                _ => PERSISTS[random.usize(1..5)],
            };
            Step { op, persist }
        }));
    }
    steps.truncate(length);
    Sequence { spec: spec.unwrap(), steps }
}

/// The tree that the exhaustive sequences start from.
fn small_stack() -> StackSpec {
    let lower: LayerNode = dir([
        ("a", file(b'k', 9000)),
        ("b", linked(0, b'm', 700)),
        ("c", linked(0, b'm', 700)),
        ("d", dir([("a", file(b'l', 5000)), ("e", dir([("a", file(b'n', 10))])), ("s", symlink("a"))])),
        ("f", dir([])),
    ]);
    StackSpec { upper: dir([]), lowers: vec![lower] }
}

/// The operations of the exhaustive sequences: at least one of each kind on what a lower has and on what is new.
fn small_operations() -> Vec<Op> {
    let write = |path, offset, length, truncate, append| Op::Write {
        path: p(path),
        offset,
        fill: b'w',
        length,
        truncate,
        append,
    };
    let rename = |from, to, how| Op::Rename { from: p(from), to: p(to), how };
    vec![
        write("a", 4000, 200, false, false),
        write("a", 0, 6000, false, true),
        write("a", 0, 100, true, false),
        write("b", 10, 20, false, false),
        write("d/e/a", 0, 4, false, false),
        write("n", 0, 5000, false, false),
        Op::Create { path: p("n"), mode: 0o644, exclusive: true },
        Op::Create { path: p("d/n"), mode: 0o600, exclusive: true },
        Op::Truncate { path: p("a"), length: 100 },
        Op::Chmod { path: p("a"), mode: 0o600 },
        Op::Chmod { path: p("d"), mode: 0o700 },
        Op::SetXattr { path: p("d/a"), name: "user.a", value: b'x' },
        Op::Mkdir { path: p("n"), mode: 0o755 },
        Op::Symlink { target: p("a"), path: p("n") },
        Op::Link { from: p("a"), to: p("n") },
        Op::Link { from: p("b"), to: p("d/n") },
        Op::Unlink { path: p("a") },
        Op::Unlink { path: p("b") },
        Op::Unlink { path: p("d/a") },
        Op::Unlink { path: p("d/e/a") },
        Op::Rmdir { path: p("f") },
        Op::Rmdir { path: p("d/e") },
        rename("a", "n", Rename::Plain),
        rename("a", "d/a", Rename::Plain),
        rename("n", "a", Rename::Plain),
        rename("a", "d/a", Rename::Exchange),
        rename("d", "n", Rename::Plain),
        rename("d", "f", Rename::Plain),
        rename("d/e", "f", Rename::Exchange),
        rename("b", "d/n", Rename::Plain),
        Op::Open { slot: 0, path: p("a"), write: true },
        Op::WriteOpen { slot: 0, offset: 8000, fill: b'o', length: 2000 },
        Op::Unlink { path: p("n") },
    ]
}

/// All that a step of an exhaustive sequence may be.
fn small_steps() -> Vec<Step> {
    let mut all = Vec::new();
    for op in small_operations() {
        let write = matches!(op, Op::Write { truncate: false, append: false, .. });
        let more = WRITES.into_iter().filter(|_| write);
        all.extend(PERSISTS.into_iter().chain(more).map(|persist| Step { op: op.clone(), persist }));
    }
    all
}

/// How many exhaustive sequences of `length` operations there are.
pub fn small_count(length: u32) -> usize {
    small_steps().len().pow(length)
}

/// The exhaustive sequence of that number.
pub fn small(length: u32, number: usize) -> Sequence {
    let all = small_steps();
    let steps = (0..length).map(|place| all[number / all.len().pow(place) % all.len()].clone());
    Sequence { spec: small_stack(), steps: steps.collect() }
}

/// Copy-ups of a file of many pages, which take so long that the power goes in their midst.
pub fn large() -> Vec<Sequence> {
    const SIZE: usize = 1 << 20;
    let write = |path, offset, length| Op::Write {
        path: p(path),
        offset,
        fill: b'w',
        length,
        truncate: false,
        append: false,
    };
    let operations = [
        write("big", 600 << 10, 70_000),
        write("d/big", SIZE - 100, 200),
        Op::Truncate { path: p("big"), length: 600 << 10 },
        Op::Chmod { path: p("big"), mode: 0o600 },
        Op::Rename { from: p("big"), to: p("n"), how: Rename::Plain },
        Op::Link { from: p("d/big"), to: p("n") },
        Op::CopyRange { from: p("big"), to: p("new"), offset: 0, length: SIZE },
    ];
    let spec = StackSpec {
        upper: dir([]),
        lowers: vec![dir([
            ("big", file(b'k', SIZE)),
            ("new", file(b'v', 10)),
            ("d", dir([("big", file(b'l', SIZE))])),
        ])],
    };
    let with = |op: Op, persist| {
        let more = Step { op: write("d/n", 0, 10), persist: Persist::Nothing };
        Sequence { spec: spec.clone(), steps: vec![Step { op, persist }, more] }
    };
    let persists = [Persist::Fdatasync, Persist::Fsync, Persist::Nothing].into_iter().cycle();
    operations.into_iter().zip(persists).map(|(op, persist)| with(op, persist)).collect()
}

/// Writes to large files of a lower, into and across blocks, with changes of length and of attributes between.
pub fn in_blocks() -> Vec<Sequence> {
    use Persist::{Fdatasync, Fsync, Msync, Nothing, Sync};
    const SIZE: usize = 3 << 20;
    let write = |offset, length| Op::Write {
        path: p("big"),
        offset,
        fill: b'w',
        length,
        truncate: false,
        append: false,
    };
    let again = |offset, length| Op::Write {
        path: p("big"),
        offset,
        fill: b'x',
        length,
        truncate: false,
        append: false,
    };
    let cut = |length| Op::Truncate { path: p("big"), length };
    let mode = |mode| Op::Chmod { path: p("big"), mode };
    let sequences: Vec<Vec<(Op, Persist)>> = vec![
        vec![(write(600_013, 5000), Fsync), (again(600_100, 10), Fdatasync), (write(3, 9000), Nothing)],
        vec![(write(4095, 2), Sync), (again(4095, 1), Nothing), (write(2_000_000, 100_000), Fdatasync)],
        vec![
            (write(2_500_000, 10), Fsync),
            (cut(2_097_157), Fsync),
            (cut(SIZE), Fdatasync),
            (again(2_400_000, 9), Fsync),
        ],
        vec![(cut(2_500_001), Fdatasync), (cut(SIZE + 5000), Nothing), (write(SIZE, 3), Fdatasync)],
        vec![
            (mode(0o600), Nothing),
            (write(1_000_001, 7), Fdatasync),
            (mode(0o2755), Fsync),
            (again(5, 5), Fsync),
        ],
        vec![
            (write(70_000, 5), Fdatasync),
            (Op::Rename { from: p("big"), to: p("d/new"), how: Rename::Plain }, Nothing),
            (write(10, 10), Nothing),
            (Op::Mkdir { path: p("e"), mode: 0o755 }, Sync),
        ],
        vec![(write(8192, 4096), Msync), (again(9000, 100), Msync), (write(12_000, 5), Fsync)],
        vec![(write(1, 1), Nothing), (write(1_500_000, 300_000), Nothing), (mode(0o640), Sync)],
        vec![(write(5000, 5), Fsync), (cut(1000), Fsync), (write(2000, 10), Fdatasync)],
    ];
    let spec = StackSpec {
        upper: dir([]),
        lowers: vec![dir([("big", file(b'k', SIZE)), ("d", dir([("other", file(b'l', 10))]))])],
    };
    let step = |(op, persist)| Step { op, persist };
    sequences
        .into_iter()
        .map(|steps| Sequence { spec: spec.clone(), steps: steps.into_iter().map(step).collect() })
        .collect()
}

/// Each of the small operations by itself, after which nothing is asked for.
pub fn unsynced() -> Vec<Sequence> {
    let plain = |op| Sequence { spec: small_stack(), steps: vec![Step { op, persist: Persist::Nothing }] };
    small_operations().into_iter().map(plain).collect()
}

/// Writes to one file, each followed by one of those.
pub fn followed_by(persists: &[Persist]) -> Vec<Sequence> {
    let write = |at: usize| Op::Write {
        path: p("a"),
        offset: 100 * at,
        fill: b'w',
        length: 50,
        truncate: false,
        append: false,
    };
    let steps = persists.iter().enumerate().map(|(at, persist)| Step { op: write(at), persist: *persist });
    vec![Sequence { spec: small_stack(), steps: steps.collect() }]
}

/// Writes through mappings, after which nothing is asked for.
pub fn mapped() -> Vec<Sequence> {
    let of = |path: &str| {
        let path = p(path);
        let op = Op::Write { path, offset: 2, fill: b'w', length: 5, truncate: false, append: false };
        Sequence { spec: small_stack(), steps: vec![Step { op, persist: Persist::Mapped }] }
    };
    vec![of("a"), of("b"), of("d/e/a")]
}
