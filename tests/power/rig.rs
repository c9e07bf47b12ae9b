//! The rig: sequences are run on a mount over a recording disk, and looked at after each failure.

use std::cell::RefCell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::disk::{Disk, Mounted, copy_sparse, make_image};
use crate::promise::{Found, Order, Promise};
use crate::record::{Failures, Record, Remains, Unflushed};
use crate::tales::{Stage, Tale};
use crate::worker::Worker;
use crate::workload::{Done, Durable, Performed, Sequence, perform};
use support::model::layer::{StackSpec, dir};
use support::model::tree::Model;
use support::{Layer, Mount, Options, Program, Scratch};

/// How much is run.
pub struct Budget {
    pub seeds: u64,
    pub seed: u64,
    pub length: usize,
    pub points: usize,
    /// `None`: all.
    pub singles: Option<usize>,
    /// `None`: all.
    pub pairs: Option<usize>,
    /// `None`: all, which are millions.
    pub triples: Option<usize>,
    pub tales: usize,
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")),
        Err(_) => default,
    }
}

impl Budget {
    /// The little of a quick check, or what the environment asks for.
    pub fn from_environment() -> Budget {
        let some = |name, default| match std::env::var(name) {
            Ok(text) if text == "all" => None,
            _ => Some(setting(name, default)),
        };
        Budget {
            seeds: setting("POWER_SEEDS", 1),
            seed: setting("POWER_SEED", 1),
            length: setting("POWER_LENGTH", 60),
            points: setting("POWER_POINTS", 20),
            singles: some("POWER_SINGLES", 25),
            pairs: some("POWER_PAIRS", 10),
            triples: some("POWER_TRIPLES", 5),
            tales: setting("POWER_TALES", 2),
        }
    }
}

/// A filesystem to put the upper on.
#[derive(Debug, Clone, Copy)]
pub struct Filesystem {
    name: &'static str,
    size: u64,
    order: Order,
    /// What its device must write whole or not at all. btrfs has nothing to replace a superblock by that is torn within
    /// its 4096 bytes.
    sector: usize,
}

const FILESYSTEMS: [Filesystem; 3] = [
    Filesystem { name: "ext4", size: 256 << 20, order: Order::Whole, sector: 512 },
    Filesystem { name: "xfs", size: 320 << 20, order: Order::Whole, sector: 512 },
    Filesystem { name: "btrfs", size: 256 << 20, order: Order::EachPath, sector: 4096 },
];

/// Those that are to be tried.
pub fn filesystems() -> Vec<Filesystem> {
    let asked = std::env::var("POWER_FILESYSTEMS").unwrap_or_else(|_| "ext4 xfs btrfs".to_owned());
    let named = |filesystem: &Filesystem| asked.split_whitespace().any(|name| name == filesystem.name);
    FILESYSTEMS.into_iter().filter(named).collect()
}

/// One filesystem to run sequences on.
pub struct Rig {
    filesystem: Filesystem,
    worker: Worker,
    scratch: Scratch,
    /// What the image of the disk begins with.
    prepared: RefCell<Vec<StackSpec>>,
    /// What was looked at in each run.
    runs: RefCell<Vec<Looked>>,
}

/// What was looked at.
#[derive(Default)]
struct Looked {
    sequences: usize,
    failures: usize,
    /// On how many disks that differ: some failures leave the same.
    disks: usize,
    broken: Vec<String>,
}

/// A sequence that was run.
struct Ran {
    name: String,
    /// Its directory in the merged tree.
    dir: String,
    start: Model,
    done: Vec<Done>,
    /// What a peer did otherwise, with which it ended.
    ended_by: Option<String>,
    /// The position when all of it was on the disk.
    settled: usize,
}

impl Ran {
    /// Notes what made all durable in the end.
    fn end(&mut self, what: &str, began: usize, ended: usize) {
        let model = self.done.last().map_or(&self.start, |done| &done.model).clone();
        let (what, durable) = (what.to_owned(), vec![Durable::All]);
        self.done.push(Done { what, began, ended, model, durable, between: None });
    }
}

/// How sequences are run and looked at.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Operations are bent to what is there.
    pub steer: bool,
    /// At how many failures each is looked at; 0: at two, and at two for each promise.
    pub points: usize,
    /// Failures before the last operation have been looked at in shorter sequences.
    pub last_only: bool,
    /// What follows when all are done. If something does, that is looked at only.
    pub end: End,
    /// A system call of the daemon that only seems to be made.
    pub lost: Option<&'static str>,
    /// Further options of the mount.
    pub options: &'static [&'static str],
}

impl Plan {
    /// Whether files are copied up block by block, so that they must not share extents with the lower.
    fn copies_blocks(&self) -> bool {
        self.options.contains(&"lazy=keep")
    }
}

/// Reads all files below a directory.
fn read_all(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => read_all(&entry.path()),
            // What can't be read is for who looks at it.
            Ok(kind) if kind.is_file() => drop(fs::read(entry.path())),
            _ => {}
        }
    }
}

/// What follows when all sequences are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing that promises anything.
    Nothing,
    /// sync(2).
    Sync,
    /// The union is unmounted, and its daemon ends.
    Unmount,
}

/// What a mount at a filesystem's root is made of.
struct View {
    mount: Option<Mount>,
    path: PathBuf,
}

/// Whether some file below is half-copied.
fn has_half_copied(root: &Path) -> bool {
    fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        let marked = || {
            let marks = support::read_xattrs(&path).unwrap();
            marks.contains_key(&b"trusted.overlay.unionmount.half"[..])
        };
        if kind.is_dir() { has_half_copied(&path) } else { kind.is_file() && marked() }
    })
}

impl Rig {
    /// For one filesystem.
    pub fn new(filesystem: Filesystem, worker: Worker) -> Rig {
        Rig {
            filesystem,
            worker,
            scratch: Scratch::in_memory(),
            prepared: RefCell::default(),
            runs: RefCell::default(),
        }
    }

    /// Whether it is one of that filesystem.
    pub fn is_on(&self, name: &str) -> bool {
        self.filesystem.name == name
    }

    /// Runs sequences, each in its directory, and looks at failures in each. Returns what was broken.
    pub fn run(&self, sequences: &[(String, Sequence)], plan: &Plan) -> Vec<String> {
        let taken = |(name, one): &(String, Sequence)| (name.clone(), self.worker.sequence(one));
        let sequences: Vec<_> = sequences.iter().map(taken).collect();
        let base = self.base(&sequences, plan);
        let live = self.scratch.path().join("live.img");
        copy_sparse(&base, &live);
        let (ran, record) = self.work(&live, &sequences, plan);
        let mut looked = self.look(&base, &ran, &record, plan);
        looked.sequences = ran.len();
        for ran in &ran {
            let otherwise = ran.ended_by.as_ref();
            let told = otherwise.map(|otherwise| format!("{:?}, {}: {otherwise}", self.worker, ran.name));
            looked.broken.extend(told);
        }
        self.tell_of("", &[&looked]);
        let broken = looked.broken.clone();
        self.runs.borrow_mut().push(looked);
        broken
    }

    /// Tells how much was looked at in all runs, if there was more than one.
    pub fn sum_up(&self) {
        let runs = self.runs.borrow();
        if runs.len() > 1 {
            self.tell_of("in all ", &runs.iter().collect::<Vec<_>>());
        }
    }

    fn tell_of(&self, what: &str, looked: &[&Looked]) {
        let sum = |of: fn(&Looked) -> usize| looked.iter().map(|looked| of(looked)).sum::<usize>();
        eprintln!(
            "{} {:?}: {what}{} sequences, {} failures ({} disks that differ), {} broken",
            self.filesystem.name,
            self.worker,
            sum(|looked| looked.sequences),
            sum(|looked| looked.failures),
            sum(|looked| looked.disks),
            sum(|looked| looked.broken.len()),
        );
    }

    /// Tells a tale on an empty disk, and looks at `points` failures in each of its steps. Returns what was broken.
    pub fn tell(&self, tale: impl FnOnce(&Scratch) -> Tale<'_>, points: usize) -> Vec<String> {
        let [base, live] = ["base.img", "live.img"].map(|name| self.scratch.path().join(name));
        make_image(&base, self.filesystem.name, self.filesystem.size, &[]);
        copy_sparse(&base, &live);
        let sector = self.filesystem.sector;
        let filesystem = self.filesystem.name;
        let stage = Stage { scratch: &self.scratch, base: &base, live: &live, filesystem, sector };
        let tale = tale(&self.scratch);
        let (failures, broken) = tale.tell(&stage, points);
        eprintln!("{} {}: {failures} failures, {} broken", self.filesystem.name, tale.name, broken.len());
        broken
    }

    /// The image of the disk before the sequences; that of the time before, if they begin with the same.
    fn base(&self, sequences: &[(String, Sequence)], plan: &Plan) -> PathBuf {
        let base = self.scratch.path().join("base.img");
        let specs: Vec<_> = sequences.iter().map(|(_, sequence)| sequence.spec.clone()).collect();
        if *self.prepared.borrow() != specs {
            let unshared = plan.copies_blocks() && self.is_on("xfs");
            let words: &[&str] = if unshared { &["-m", "reflink=0"] } else { &[] };
            make_image(&base, self.filesystem.name, self.filesystem.size, words);
            self.prepare(&base, sequences);
            self.prepared.replace(specs);
        }
        base
    }

    fn prepare(&self, image: &Path, sequences: &[(String, Sequence)]) {
        let disk = Mounted::image(image, self.filesystem.name, self.scratch.path().join("disk"));
        let at = |name: String| Layer::at(disk.path().join(name));
        let most = sequences.iter().map(|(_, sequence)| sequence.spec.lowers.len()).max().unwrap_or(1);
        for (number, (_, sequence)) in sequences.iter().enumerate() {
            if self.worker == Worker::Bare {
                sequence.spec.lowers[0].write(&at(format!("merged/{number}")));
                continue;
            }
            sequence.spec.upper.write(&at(format!("upper/{number}")));
            for index in 0..most {
                let empty = dir([]);
                let lower = sequence.spec.lowers.get(index).unwrap_or(&empty);
                lower.write(&at(format!("lower{index}/{number}")));
            }
        }
        fs::create_dir_all(disk.path().join("work")).unwrap();
        disk.sync();
    }

    /// Mounts the view of what a filesystem holds.
    fn view(&self, root: &Path, writable: bool, lost: Option<&str>, options: &[&str]) -> View {
        let asked = options;
        if self.worker == Worker::Bare {
            return View { mount: None, path: root.join("merged") };
        }
        let mut lowers = Vec::new();
        while root.join(format!("lower{}", lowers.len())).exists() {
            lowers.push(root.join(format!("lower{}", lowers.len())));
        }
        let options = Options {
            lowers,
            upper: Some(root.join("upper")),
            work: Some(root.join("work")),
            ..Options::default()
        };
        let point = self.scratch.path().join(if writable { "merged" } else { "found" });
        let (program, extra) = match self.worker {
            Worker::Kernel => Worker::kernel_options(!writable),
            _ => (
                lost.map_or_else(Program::under_test, |call| self.losing(call)),
                asked.iter().map(|&word| word.to_owned()).collect(),
            ),
        };
        let options = Options { extra, ..options };
        let mount = match self.worker {
            Worker::Union if !writable => Mount::in_foreground(&program, &options, &point),
            _ => Mount::with_program(&program, &options, &point),
        };
        View { path: mount.path().to_owned(), mount: Some(mount) }
    }

    /// The program, with a system call that does nothing and says that it went well.
    fn losing(&self, call: &str) -> Program {
        let Program::Unionmount(program) = Program::under_test() else { panic!("only unionmount is broken") };
        let script = self.scratch.path().join("losing");
        let text = format!(
            "#!/bin/sh\nexec strace -D -f -qq -o /dev/null -e trace={call} -e inject={call}:retval=0 {} \"$@\"\n",
            program.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Program::Unionmount(script)
    }

    fn work(&self, image: &Path, sequences: &[(String, Sequence)], plan: &Plan) -> (Vec<Ran>, Record) {
        let disk = Disk::new(&self.scratch, image);
        let ran = {
            let mounted = Mounted::new(disk.device(), self.filesystem.name, self.scratch.path().join("live"));
            let view = self.view(mounted.path(), true, plan.lost, plan.options);
            let mut ran: Vec<Ran> = Vec::new();
            for (number, (name, sequence)) in sequences.iter().enumerate() {
                let root = view.path.join(number.to_string());
                let sync = || mounted.sync();
                let performed = perform(sequence, plan.steer, self.worker, &root, || disk.position(), sync);
                let Performed { start, done, ended_by } = performed;
                if plan.end == End::Nothing {
                    // It is no part of the next one's story.
                    mounted.sync();
                }
                let (name, dir) = (name.clone(), number.to_string());
                ran.push(Ran { name, dir, start, done, ended_by, settled: disk.position() });
                if plan.end == End::Nothing {
                    // What lies in it is replayed at each look.
                    mounted.empty_journal();
                }
            }
            let began = disk.position();
            if plan.end == End::Sync {
                rustix::fs::sync();
                ran.iter_mut().for_each(|ran| ran.end("sync", began, disk.position()));
            }
            if let Some(mount) = view.mount {
                mount.unmount();
            }
            if plan.end == End::Unmount {
                ran.iter_mut().for_each(|ran| ran.end("unmount", began, disk.position()));
            }
            if plan.copies_blocks() && !self.is_on("btrfs") {
                let has = has_half_copied(&mounted.path().join("upper"));
                assert!(has, "no file was copied in part, and nothing of that is looked at");
            }
            ran
        };
        (ran, disk.into_record())
    }

    /// The failures to look at: where each promise was made, with everything lost, kept and some of it; and at random.
    fn points(&self, ran: &Ran, plan: &Plan) -> Vec<(usize, Unflushed)> {
        let mut all = Vec::new();
        let looked_at = if plan.last_only { ran.done.len().saturating_sub(1) } else { 0 };
        let Some(first) = ran.done.get(looked_at) else { return all };
        let points = plan.points;
        let mut random = fastrand::Rng::with_seed(first.began as u64);
        let mut promised: Vec<_> =
            ran.done[looked_at..].iter().filter(|done| !done.durable.is_empty()).collect();
        if points > 0 {
            random.shuffle(&mut promised);
            promised.truncate(points / 2);
        }
        for done in promised {
            all.push((done.ended, Unflushed::Lost));
            all.push((random.usize(done.began..=done.ended), Unflushed::Any(random.u64(..))));
        }
        let count = match points {
            0 if plan.last_only => 1,
            0 => 2,
            points => points - all.len().min(points),
        };
        for _ in 0..count {
            let position = random.usize(first.began..=ran.settled);
            let unflushed =
                if random.u8(..4) == 0 { Unflushed::Kept } else { Unflushed::Any(random.u64(..)) };
            all.push((position, unflushed));
        }
        all.sort_by_key(|(position, _)| *position);
        all
    }

    fn look(&self, base: &Path, ran: &[Ran], record: &Record, plan: &Plan) -> Looked {
        let count = std::env::var_os("POWER_COUNT").is_some();
        let sector = self.filesystem.sector;
        let mut failures = Failures::new(&self.scratch, base, record);
        let mut looked = Looked::default();
        if plan.end != End::Nothing {
            // One failure, which all are looked at in.
            let position = ran.iter().filter_map(|ran| ran.done.last()).map(|done| done.ended).max();
            let position = position.unwrap_or(0);
            let device = failures.make(&record.remains(position, Unflushed::Lost, sector));
            let wrong = self.look_at(device, ran, &[position]).into_iter().flatten();
            let broken = wrong.map(|wrong| format!("{} {:?}: {wrong}", self.filesystem.name, self.worker));
            return Looked { failures: 1, disks: 1, broken: broken.collect(), ..looked };
        }
        for ran in ran {
            for (remains, points) in self.disks(ran, record, plan) {
                looked.disks += 1;
                looked.failures += points.len();
                let positions: Vec<_> = points.iter().map(|(position, _)| *position).collect();
                let wrong = self.look_at(failures.make(&remains), std::slice::from_ref(ran), &positions);
                for ((position, unflushed), wrong) in points.iter().zip(wrong) {
                    let Some(wrong) = wrong else { continue };
                    if let Some(keep) = std::env::var_os("POWER_KEEP") {
                        let name = ran.name.replace(' ', "-");
                        let name = format!("{}-{name}-{position}.img", self.filesystem.name);
                        failures.make(&remains);
                        copy_sparse(failures.image(), &Path::new(&keep).join(name));
                    }
                    looked.broken.push(self.told(ran, *position, *unflushed, &wrong));
                    if !count {
                        return looked;
                    }
                    eprintln!("{}", looked.broken[looked.broken.len() - 1]);
                }
            }
        }
        looked
    }

    /// The disks that the failures of a sequence leave, each with the failures that leave the same.
    fn disks(&self, ran: &Ran, record: &Record, plan: &Plan) -> Vec<(Remains, Vec<(usize, Unflushed)>)> {
        let mut disks: Vec<(Remains, Vec<_>)> = Vec::new();
        for (position, unflushed) in self.points(ran, plan) {
            assert!(position <= record.len());
            let remains = record.remains(position, unflushed, self.filesystem.sector);
            match disks.iter_mut().find(|(disk, _)| *disk == remains) {
                Some((_, points)) => points.push((position, unflushed)),
                None => disks.push((remains, vec![(position, unflushed)])),
            }
        }
        disks
    }

    /// What is told of a broken promise.
    fn told(&self, ran: &Ran, position: usize, unflushed: Unflushed, wrong: &str) -> String {
        let told = |(at, done): (usize, &Done)| {
            format!("{}: {} ({}..{})", at + 1, done.what, done.began, done.ended)
        };
        let steps: Vec<_> = ran.done.iter().enumerate().map(told).collect();
        format!(
            "{} {:?}, {}, failure at {position}, {unflushed:?}: {wrong}\n{}\n",
            self.filesystem.name,
            self.worker,
            ran.name,
            steps.join("\n")
        )
    }

    /// Looks at sequences as they are on a disk that failures at these positions leave, and says for each what is wrong.
    fn look_at(&self, device: &Path, ran: &[Ran], positions: &[usize]) -> Vec<Option<String>> {
        // What can't be mounted or read is as broken as what is not what it was.
        let looked = catch_unwind(AssertUnwindSafe(|| self.look_in(device, ran, positions)));
        looked.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref().map(|text: &&str| (*text).to_owned()));
            vec![Some(text.unwrap_or_default()); positions.len()]
        })
    }

    fn look_in(&self, device: &Path, ran: &[Ran], positions: &[usize]) -> Vec<Option<String>> {
        let mounted = Mounted::new(device, self.filesystem.name, self.scratch.path().join("failed"));
        if self.worker == Worker::Union {
            // As a backup does. What is in the kernel's cache then is not for that in the files.
            read_all(&mounted.path().join("upper"));
        }
        let view = self.view(mounted.path(), false, None, &[]);
        let found: Vec<_> =
            ran.iter().map(|ran| Found::read(&view.path.join(&ran.dir), self.worker)).collect();
        let broken = positions.iter().map(|position| {
            let wrong: Vec<String> = ran
                .iter()
                .zip(&found)
                .filter_map(|(ran, found)| self.broken(ran, found, *position))
                .collect();
            (!wrong.is_empty()).then(|| wrong.join("\n"))
        });
        let broken: Vec<_> = broken.collect();
        let Some(mount) = view.mount else { return broken };
        mount.unmount_at_once();
        if self.worker != Worker::Union {
            return broken;
        }
        let left: Vec<_> = support::Snapshot::take(&mounted.path().join("work"))
            .entries
            .into_keys()
            .filter(|path| {
                path.to_string_lossy().matches('/').count() > 0
                    && !path.to_string_lossy().starts_with("index")
            })
            .collect();
        let left = (!left.is_empty()).then(|| format!("left in the workdir: {left:?}"));
        broken.into_iter().map(|broken| broken.or_else(|| left.clone())).collect()
    }

    /// What is wrong with what was found of a sequence after a failure at `position`.
    fn broken(&self, ran: &Ran, found: &Found, position: usize) -> Option<String> {
        let wrong = Promise::new(&ran.start, &ran.done, position).broken(found, self.filesystem.order)?;
        let steps: Vec<_> = ran.done.iter().map(|done| done.what.as_str()).collect();
        Some(if ran.done.len() > 2 { wrong } else { format!("after {steps:?}: {wrong}") })
    }
}
