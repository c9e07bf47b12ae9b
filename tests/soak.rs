//! A soak: random operations by several programs at once on one mount, each held against the model, with remounts and killed
//! daemons between. In the end the tree is the model's, and a daemon's memory and descriptors are what they were.
//!
//! `scripts/soak` runs it for hours. `SOAK_SECONDS` says how long (default 15), `SOAK_WORKERS` how many programs (default 4),
//! `SOAK_OPTIONS` with which mount options, `UNIONMOUNT_SEED` what they do.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::io::Errno;
use support::model::execute::Executor;
use support::model::generate::{Vocabulary, operations, stack};
use support::model::harness::seed;
use support::model::layer::{StackSpec, dir};
use support::model::op::{Op, Outcome};
use support::model::tree::Model;
use support::{Fields, Layer, Mount, Privilege, Snapshot, Stack, diff};

/// How many operations a program makes before all are compared.
const ROUND: usize = 150;
/// A daemon lives for so many rounds.
const LIFE: usize = 12;
/// A daemon holds no more descriptors than that, however long it lives.
const MOST_DESCRIPTORS: usize = 1000;
/// From which round of its life on a daemon's memory is held to what it was.
const SETTLED: usize = 4;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
}

/// One program: a directory of the mount, and what must be in it.
struct Worker {
    name: String,
    model: Model,
    runner: TestRunner,
    vocabulary: Vocabulary,
    /// Whether the mount's options let directories of lowers be renamed; without, it refuses that, and programs copy.
    moves_directories: bool,
    done: usize,
}

impl Worker {
    fn new(number: u64, vocabulary: &Vocabulary, layers: &Stack, options: &[&str]) -> Worker {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed(1).to_le_bytes());
        bytes[8] = number as u8;
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config::default(), random);
        let spec: StackSpec = stack(vocabulary).new_tree(&mut runner).unwrap().current();
        let name = number.to_string();
        spec.upper.write(&Layer::at(layers.upper().root().join(&name)));
        for (index, layer) in layers.lowers().iter().enumerate() {
            let empty = dir([]);
            spec.lowers.get(index).unwrap_or(&empty).write(&Layer::at(layer.root().join(&name)));
        }
        let refuses = |option: &&str| option.starts_with("redirect_dir=") && *option != "redirect_dir=on";
        let moves_directories = !options.iter().any(refuses);
        let (model, vocabulary) = (spec.merge(), vocabulary.clone());
        Worker { name, model, runner, vocabulary, moves_directories, done: 0 }
    }

    /// Makes the operations of a round below `mount`, and compares.
    fn round(&mut self, mount: &Path) {
        let root = mount.join(&self.name);
        let mut executor = Executor::new(&root);
        let strategy = operations(&self.vocabulary);
        let mut left = ROUND;
        while left > 0 {
            for op in strategy.new_tree(&mut self.runner).unwrap().current() {
                let op = self.model.steer(&op);
                let may_refuse = !self.moves_directories && self.moves_directory(&op);
                let before = may_refuse.then(|| self.model.clone());
                let expected = self.model.apply(&op);
                if expected == Outcome::Skipped {
                    continue;
                }
                let found = executor.run(&op);
                if let (Some(before), Outcome::Failed(Errno::XDEV)) = (before, &found) {
                    self.model = before;
                    continue;
                }
                assert_eq!(found, expected, "program {}, operation {}: {op:?}", self.name, self.done);
                self.done += 1;
                left = left.saturating_sub(1);
            }
        }
        executor.close_all();
        self.model.slots.clear();
        self.compare(mount, "after a round");
    }

    fn moves_directory(&self, op: &Op) -> bool {
        let Op::Rename { from, to, .. } = op else { return false };
        let found = [from, to].map(|path| self.model.resolve(path, false));
        found.into_iter().flatten().any(|id| self.model.is_directory(id))
    }

    fn compare(&self, mount: &Path, when: &str) {
        let found = Snapshot::take_checked(&mount.join(&self.name));
        let text = diff(&self.model.snapshot(), &found, &Fields::tree());
        assert!(text.is_empty(), "program {}, {when}, after {} operations:\n{text}", self.name, self.done);
    }
}

/// What a daemon holds.
#[derive(Debug, Clone, Copy)]
struct Holds {
    /// Memory in KiB.
    memory: u64,
    descriptors: usize,
}

impl Holds {
    fn of(daemon: u32) -> Holds {
        let status = fs::read_to_string(format!("/proc/{daemon}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let memory = line.trim().trim_end_matches(" kB").parse().unwrap();
        Holds { memory, descriptors: fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count() }
    }
}

#[test]
#[ignore = "a load of seconds to hours, which scripts/soak starts"]
fn a_soak_leaves_the_tree_of_the_model() {
    support::needs_unionmount!();
    let until = Instant::now() + Duration::from_secs(setting("SOAK_SECONDS", 15));
    let vocabulary = Vocabulary { lowers: 3, ..Vocabulary::full(Privilege::current() == Privilege::Root) };
    let layers = Stack::new(vocabulary.lowers);
    let options = std::env::var("SOAK_OPTIONS").unwrap_or_default();
    let options: Vec<&str> = options.split(',').filter(|option| !option.is_empty()).collect();
    let worker = |number| Worker::new(number, &vocabulary, &layers, &options);
    let mut workers: Vec<Worker> = (0..setting("SOAK_WORKERS", 4)).map(worker).collect();
    let before = layers.lower_snapshots();
    let (mut rounds, mut killed, mut unmounted) = (0, 0, 0);
    let mut most = Holds { memory: 0, descriptors: 0 };
    // Each way to end was gone once, however short the time.
    while Instant::now() < until || unmounted == 0 {
        let mount = layers.mount_with(&options);
        rounds += live(&mut workers, &mount, until, &mut most);
        if killed == unmounted {
            mount.kill();
            killed += 1;
        } else {
            mount.unmount();
            unmounted += 1;
        }
    }
    let mount = layers.mount_with(&options);
    workers.iter().for_each(|worker| worker.compare(mount.path(), "in the end"));
    mount.unmount();
    layers.assert_workdir_clean();
    layers.assert_lowers_unchanged(&before);
    let done: usize = workers.iter().map(|worker| worker.done).sum();
    println!(
        "{done} operations by {} programs in {rounds} rounds, {unmounted} daemons unmounted and {killed} killed; at most {} KiB and {} descriptors",
        workers.len(),
        most.memory,
        most.descriptors
    );
}

/// The life of a daemon. Returns how many rounds it had.
fn live(workers: &mut [Worker], mount: &Mount, until: Instant, most: &mut Holds) -> usize {
    workers.iter().for_each(|worker| worker.compare(mount.path(), "as mounted"));
    let mut settled: Option<Holds> = None;
    for round in 1..=LIFE {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Somebody looks at everything meanwhile.
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    support::output("find", &[mount.path().as_os_str(), "-size".as_ref(), "+1k".as_ref()]);
                }
            });
            let working: Vec<_> =
                workers.iter_mut().map(|worker| scope.spawn(|| worker.round(mount.path()))).collect();
            let ended: Vec<_> = working.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            over.store(true, Ordering::Relaxed);
            ended
                .into_iter()
                .for_each(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        });
        let holds = Holds::of(mount.daemon());
        most.memory = most.memory.max(holds.memory);
        most.descriptors = most.descriptors.max(holds.descriptors);
        if round == SETTLED {
            settled = Some(holds);
        }
        if let Some(then) = settled {
            // The allocator's own, and caches that are bounded.
            let grown = holds.memory > then.memory + then.memory / 2 + (8 << 10);
            assert!(
                !grown,
                "memory: {holds:?} after round {round} of a daemon, {then:?} after round {SETTLED}"
            );
            // It keeps some hundred directories and files open, and no more.
            let more = holds.descriptors > MOST_DESCRIPTORS;
            assert!(!more, "descriptors: {holds:?} after round {round} of a daemon");
        }
        if Instant::now() >= until {
            return round;
        }
    }
    LIFE
}
