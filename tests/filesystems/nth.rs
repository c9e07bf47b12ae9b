//! An upper whose filesystem fails: the request number N of a kind, for all kinds and all N, with EIO, ENOSPC, EDQUOT and EROFS,
//! under a sequence of operations. One of them tells an error at the most, and the others go as if nothing had failed; the mount
//! shows what the disk has, which is the old state or the new one of the one that failed, and the next mount shows the same.
//!
//! Below is a filesystem that fails ([`Failing`]), or, where the upper must be on ext4, system calls of the daemon do ([`Calls`]).
//!
//! `NTH_ALL=1` makes all of them fail, one after the other, with one error each in turn, `NTH_ALL=errors` with each error;
//! without, one of each kind with one error. `NTH_ONLY` names one kind. `scripts/faults` runs all.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;

use rustix::io::Errno;
use support::model::execute::Executor;
use support::model::layer::{LayerNode, StackSpec, dir, file, linked, symlink};
use support::model::op::{Allocate, Op, Outcome, Rename, p};
use support::model::tree::Model;
use support::{Fields, Mount, Options, Scratch, Snapshot, diff};

use crate::calls::Calls;
use crate::failing::Failing;

const ERRORS: [Errno; 4] = [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ROFS];

fn spec() -> StackSpec {
    let lower: LayerNode = dir([
        ("large", file(b'h', 2 << 20)),
        ("a", file(b'k', 9000)),
        ("b", linked(0, b'm', 700)),
        ("c", linked(0, b'm', 700)),
        (
            "d",
            dir([
                ("a", file(b'l', 5000).xattr(b'x')),
                ("e", dir([("a", file(b'n', 10))])),
                ("s", symlink("a")),
            ]),
        ),
        ("f", dir([])),
        ("g", dir([("a", file(b'o', 20))])),
    ]);
    StackSpec { upper: dir([]), lowers: vec![lower] }
}

/// What is done.
fn script() -> Vec<Op> {
    let write = |path, offset, length| Op::Write {
        path: p(path),
        offset,
        fill: b'w',
        length,
        truncate: false,
        append: false,
    };
    let rename = |from, to, how| Op::Rename { from: p(from), to: p(to), how };
    vec![
        write("a", 4000, 200),
        Op::Chmod { path: p("b"), mode: 0o600 },
        Op::Create { path: p("n"), mode: 0o644, exclusive: true },
        write("n", 0, 5000),
        Op::Mkdir { path: p("d/new"), mode: 0o755 },
        Op::SetXattr { path: p("d/a"), name: "user.b", value: b'y' },
        Op::Unlink { path: p("c") },
        rename("d/e", "moved", Rename::Plain),
        rename("g", "f", Rename::Exchange),
        Op::Link { from: p("a"), to: p("d/link") },
        Op::Symlink { target: p("a"), path: p("t") },
        rename("a", "n", Rename::Plain),
        Op::Truncate { path: p("d/a"), length: 100 },
        Op::Chown { path: p("moved"), uid: 5, gid: 6 },
        Op::Unlink { path: p("moved/a") },
        Op::Rmdir { path: p("moved") },
        Op::Mkdir { path: p("moved"), mode: 0o700 },
        Op::Rmdir { path: p("d/new") },
        Op::Fallocate { path: p("d/a"), how: Allocate::Extend, offset: 0, length: 9000 },
        Op::RemoveXattr { path: p("d/a"), name: "user.b" },
        Op::SetMtime { path: p("d/s"), seconds: 1_000_000_000 },
        rename("d/s", "t", Rename::Plain),
    ]
}

/// What is done with a file that is copied up block by block.
fn script_of_a_large_file() -> Vec<Op> {
    let write = |offset, length| Op::Write {
        path: p("large"),
        offset,
        fill: b'w',
        length,
        truncate: false,
        append: false,
    };
    vec![
        write(70_000, 100),
        Op::Chmod { path: p("large"), mode: 0o600 },
        // Two blocks, of which each is filled in from below.
        write(204_700, 200),
        Op::Truncate { path: p("large"), length: (1 << 20) + 77 },
        write((1 << 20) + 70, 20),
        Op::Truncate { path: p("large"), length: 3 << 20 },
        Op::Rename { from: p("large"), to: p("d/large"), how: Rename::Plain },
        Op::SetXattr { path: p("d/large"), name: "user.b", value: b'y' },
        Op::Link { from: p("d/large"), to: p("large") },
        write(0, 4096),
        Op::Fallocate { path: p("large"), how: Allocate::Punch, offset: 300_000, length: 5000 },
        write(303_000, 10),
        Op::Unlink { path: p("d/large") },
        Op::Truncate { path: p("large"), length: 1000 },
    ]
}

/// What fails.
enum Below {
    Requests(Failing),
    Calls(Calls),
}

/// A stack with an upper on a filesystem that fails.
struct Bed {
    below: Below,
    scratch: Scratch,
    /// The mount options.
    extra: Vec<String>,
    /// How often the upper was made anew.
    round: usize,
}

impl Bed {
    fn new(extra: &[&str]) -> Bed {
        let scratch = Scratch::in_memory();
        spec().lowers[0].write(&support::Layer::at(scratch.path().join("lower")));
        // Files are copied block by block onto ext4 alone.
        let below = if extra.iter().any(|option| option.starts_with("lazy")) {
            Below::Calls(Calls::start(&scratch))
        } else {
            Below::Requests(Failing::start(&scratch))
        };
        Bed { below, scratch, extra: extra.iter().map(ToString::to_string).collect(), round: 0 }
    }

    fn lower(&self) -> Snapshot {
        Snapshot::take(&self.scratch.path().join("lower"))
    }

    /// Where upper and workdir are, for the daemon.
    fn at(&self, name: &str) -> PathBuf {
        let name = format!("{name}{}", self.round);
        match &self.below {
            Below::Requests(failing) => failing.path().join(name),
            Below::Calls(calls) => calls.path().join(name),
        }
    }

    fn mount(&self) -> Mount {
        let options = Options {
            lowers: vec![self.scratch.path().join("lower")],
            upper: Some(self.at("upper")),
            work: Some(self.at("work")),
            extra: self.extra.clone(),
            ..Options::default()
        };
        Mount::new(&options, &self.scratch.path().join("merged"))
    }

    fn fresh(&mut self) -> Mount {
        self.round += 1;
        for name in ["upper", "work"] {
            std::fs::create_dir(self.at(name)).unwrap();
        }
        self.mount()
    }

    /// From now on the number `nth` of a kind fails, and no other.
    fn fail(&mut self, mount: &Mount, kind: &str, nth: usize, errno: Errno) {
        match &mut self.below {
            Below::Requests(failing) => failing.fail(kind, nth, errno),
            Below::Calls(calls) => calls.watch(mount.daemon(), Some((kind, nth, errno))),
        }
    }

    /// Nothing fails any more. Returns how many did.
    fn end(&mut self, kind: &str, nth: usize) -> usize {
        match &mut self.below {
            Below::Requests(failing) => {
                let counts = failing.counts();
                failing.count();
                counts.is_some_and(|counts| counts.get(kind).is_some_and(|count| *count >= nth)).into()
            }
            Below::Calls(calls) => calls.end().1,
        }
    }

    /// How much of each kind is asked for a script when nothing fails.
    fn counts(&mut self, script: &[Op]) -> BTreeMap<String, usize> {
        let mount = self.fresh();
        match &mut self.below {
            Below::Requests(failing) => failing.count(),
            Below::Calls(calls) => calls.watch(mount.daemon(), None),
        }
        let mut executor = Executor::new(mount.path());
        script.iter().for_each(|op| assert_eq!(executor.run(op), Outcome::Done, "{op:?}"));
        match &mut self.below {
            Below::Requests(failing) => {
                let counts = failing.counts().unwrap();
                mount.unmount();
                counts
            }
            Below::Calls(calls) => {
                mount.unmount();
                calls.end().0
            }
        }
    }

    /// Asserts that nothing is left in the workdir, apart from indexes.
    fn workdir_is_clean(&self, what: &str) {
        // What the failing one shows, and not through it.
        let work = match &self.below {
            Below::Requests(_) => self.scratch.path().join(format!("shown/work{}", self.round)),
            Below::Calls(_) => self.at("work"),
        };
        let left: Vec<_> = Snapshot::take(&work)
            .entries
            .into_keys()
            .map(|path| path.to_string_lossy().into_owned())
            .filter(|path| path.contains('/') && !path.starts_with("index"))
            .collect();
        assert!(left.is_empty(), "{what}: left in the workdir: {left:?}");
    }

    /// Does what a script says while one request fails. Returns whether it did.
    fn run(&mut self, script: &[Op], kind: &str, nth: usize, errno: Errno) -> bool {
        let what = format!("{kind} number {nth} fails with {errno:?}");
        let mount = self.fresh();
        let mut executor = Executor::new(mount.path());
        let mut model = spec().merge();
        self.fail(&mount, kind, nth, errno);
        let mut failed = Vec::new();
        for op in script {
            let before = model.clone();
            let expected = model.apply(op);
            let found = executor.run(op);
            if found == expected {
                continue;
            }
            assert!(matches!(found, Outcome::Failed(_)), "{what}: {op:?}: {found:?}, expected {expected:?}");
            // One request fails; what was told to have failed for it may not be done, or done and told so nevertheless.
            failed.push(format!("{op:?}: {found:?}"));
            model = self.of_two(&what, mount.path(), [before, model]);
        }
        let whole = matches!(self.below, Below::Calls(_));
        let mut reached = if whole { 0 } else { self.end(kind, nth) };
        let told = |text: String| format!("{what}, told as {failed:?}:\n{text}");
        let live = difference(&model, &Snapshot::take_checked(mount.path()));
        assert!(live.is_empty(), "{}", told(live));
        executor.close_all();
        // What is sealed when a mount has ended may fail too.
        mount.unmount();
        if whole {
            reached = self.end(kind, nth);
        }
        assert!(failed.len() <= reached.max(1), "{what}, and more operations than that: {failed:#?}");
        let mount = self.mount();
        let again = difference(&model, &Snapshot::take_checked(mount.path()));
        assert!(again.is_empty(), "{}", told(format!("after a remount: {again}")));
        mount.unmount();
        self.workdir_is_clean(&what);
        reached > 0
    }

    /// The one of two states that the mount shows.
    fn of_two(&self, what: &str, at: &std::path::Path, states: [Model; 2]) -> Model {
        let found = Snapshot::take(at);
        let mut differences = Vec::new();
        for state in states {
            let text = difference(&state, &found);
            if text.is_empty() {
                return state;
            }
            differences.push(text);
        }
        panic!("{what}: neither the old state nor the new:\n{}", differences.join("\n"));
    }
}

fn difference(model: &Model, found: &Snapshot) -> String {
    let fields = Fields { mtime: false, directory_mtime: false, ..Fields::tree() };
    diff(&model.snapshot(), found, &fields)
}

#[test]
fn an_upper_that_fails_once_loses_nothing() {
    each_fails_once(&[], &script());
}

#[test]
fn an_upper_with_metacopies_that_fails_once_loses_nothing() {
    each_fails_once(&["metacopy=on"], &script());
}

#[test]
fn an_upper_that_is_passed_through_and_fails_once_loses_nothing() {
    support::needs_root!();
    each_fails_once(&["passthrough"], &script());
}

#[test]
fn an_upper_with_half_copied_files_that_fails_once_loses_nothing() {
    support::needs_root!();
    support::needs_program!("strace");
    each_fails_once(&["lazy=keep", "threaded=0"], &script_of_a_large_file());
}

#[test]
fn an_upper_whose_half_copied_files_are_sealed_and_that_fails_once_loses_nothing() {
    support::needs_root!();
    support::needs_program!("strace");
    each_fails_once(&["lazy=on", "threaded=0"], &script_of_a_large_file());
}

/// One that fails: its kind, the how manieth, and with what.
type Fault = (String, usize, Errno);

/// Which are to fail, of so many of each kind. Where they are counted in each thread for itself, only the first is sure to come.
fn faults(counts: &BTreeMap<String, usize>, by_thread: bool) -> VecDeque<Fault> {
    let all = std::env::var("NTH_ALL").unwrap_or_default();
    let only = std::env::var("NTH_ONLY").unwrap_or_default();
    let mut random = fastrand::Rng::with_seed(support::model::harness::seed(1));
    let mut faults = VecDeque::new();
    for (number, (kind, &count)) in
        counts.iter().enumerate().filter(|(_, (kind, _))| only.is_empty() || only == **kind)
    {
        let some = if by_thread { 1 } else { random.usize(1..=count) };
        for nth in if all.is_empty() { some..=some } else { 1..=count } {
            for (at, errno) in ERRORS.into_iter().enumerate() {
                if all == "errors" || at == (number + nth) % ERRORS.len() {
                    faults.push_back((kind.clone(), nth, errno));
                }
            }
        }
    }
    faults
}

#[track_caller]
fn each_fails_once(extra: &[&str], script: &[Op]) {
    if support::Privilege::current() == support::Privilege::User {
        support::skip!("{}: only root mounts a filesystem that fails", module_path!());
    }
    support::needs_unionmount!();
    let mut bed = Bed::new(extra);
    let counts = bed.counts(script);
    let by_thread = matches!(bed.below, Below::Calls(_));
    drop(bed);
    let faults = faults(&counts, by_thread);
    let total = faults.len();
    let kinds: std::collections::BTreeSet<String> = faults.iter().map(|(kind, ..)| kind.clone()).collect();
    let faults = Mutex::new(faults);
    let done: Mutex<(BTreeMap<String, usize>, Vec<String>)> = Mutex::default();
    // Each waits for the disk and for daemons most of the time.
    let beds = if total > 100 { 4 } else { 1 };
    std::thread::scope(|scope| {
        for _ in 0..beds {
            scope.spawn(|| some_fail_once(extra, script, &faults, &done));
        }
    });
    let (tried, broken) = done.into_inner().unwrap();
    println!("{extra:?}: asked: {counts:?}\nfailed: {tried:?}");
    println!(
        "{} of {total} failed, of {} kinds; {} showed something",
        tried.values().sum::<usize>(),
        tried.len(),
        broken.len()
    );
    assert!(broken.is_empty(), "see above: {broken:#?}");
    let never: Vec<_> =
        kinds.iter().filter(|kind| tried.get(*kind).is_none_or(|times| *times == 0)).collect();
    assert!(never.is_empty(), "kinds that never failed: {never:?}");
}

/// Takes from the faults until there is none.
fn some_fail_once(
    extra: &[&str],
    script: &[Op],
    faults: &Mutex<VecDeque<Fault>>,
    done: &Mutex<(BTreeMap<String, usize>, Vec<String>)>,
) {
    let mut bed: Option<(Bed, Snapshot)> = None;
    loop {
        let Some((kind, nth, errno)) = faults.lock().unwrap().pop_front() else { break };
        // The failing filesystem holds a descriptor of all that it has shown.
        if bed.as_ref().is_some_and(|(bed, _)| bed.round > 60) {
            end_bed(bed.take());
        }
        let (used, _) = bed.get_or_insert_with(|| {
            let bed = Bed::new(extra);
            let lower = bed.lower();
            (bed, lower)
        });
        // One that shows something doesn't keep the others from showing theirs.
        let ran = catch_unwind(AssertUnwindSafe(|| used.run(script, &kind, nth, errno)));
        match ran {
            Ok(reached) => *done.lock().unwrap().0.entry(kind).or_default() += usize::from(reached),
            Err(_) => {
                done.lock().unwrap().1.push(format!("{kind} number {nth}: {errno:?}"));
                bed = None;
            }
        }
    }
    end_bed(bed);
}

fn end_bed(bed: Option<(Bed, Snapshot)>) {
    let Some((bed, lower)) = bed else { return };
    let changed = diff(&lower, &bed.lower(), &Fields::all());
    assert!(changed.is_empty(), "the lower was changed: {changed}");
}

/// What couldn't be looked at after a rename was taken for not done, and the directory had neither name; or the daemon waited
/// for itself.
#[test]
fn a_rename_of_a_directory_is_done_or_not_whatever_cannot_be_seen() {
    support::needs_root!();
    support::needs_unionmount!();
    let mut bed = Bed::new(&[]);
    for script in [
        [Op::Rename { from: p("d/e"), to: p("moved"), how: Rename::Plain }],
        [Op::Rename { from: p("d/e"), to: p("g"), how: Rename::Exchange }],
    ] {
        let mut nth = 1;
        while bed.run(&script, "getattr", nth, Errno::IO) {
            nth += 1;
        }
        assert!(nth > 10, "hardly anything was asked");
    }
}

/// A copy of one of several names was linked in the index when it could not be published: the file showed one link less.
#[test]
fn a_copy_that_cannot_be_published_leaves_the_links_as_they_were() {
    support::needs_root!();
    support::needs_unionmount!();
    let mut bed = Bed::new(&[]);
    let op = Op::Chmod { path: p("b"), mode: 0o600 };
    // The rename that publishes is the only one.
    let mount = bed.fresh();
    bed.fail(&mount, "rename", 1, Errno::NOSPC);
    assert_eq!(Executor::new(mount.path()).run(&op), Outcome::Failed(Errno::NOSPC));
    assert_eq!(bed.end("rename", 1), 1);
    let mut model = spec().merge();
    assert_eq!(difference(&model, &Snapshot::take_checked(mount.path())), "");
    // And again, now that nothing fails.
    assert_eq!(Executor::new(mount.path()).run(&op), model.apply(&op));
    assert_eq!(difference(&model, &Snapshot::take_checked(mount.path())), "");
    mount.unmount();
    let mount = bed.mount();
    assert_eq!(difference(&model, &Snapshot::take_checked(mount.path())), "");
    mount.unmount();
    bed.workdir_is_clean("a copy that can't be published");
}

/// Its length was gone when the data could not be completed: it went on showing what is below, until the next write lost it.
#[test]
fn a_metacopy_that_cannot_be_cut_keeps_what_is_behind_the_cut() {
    support::needs_root!();
    support::needs_unionmount!();
    let mut bed = Bed::new(&["metacopy=on"]);
    let script = [
        Op::Chmod { path: p("d/a"), mode: 0o600 },
        Op::Truncate { path: p("d/a"), length: 100 },
        Op::Fallocate { path: p("d/a"), how: Allocate::Extend, offset: 0, length: 9000 },
    ];
    let mut failed = 0;
    for kind in ["fsync", "removexattr"] {
        let mut nth = 1;
        while bed.run(&script, kind, nth, Errno::NOSPC) {
            nth += 1;
        }
        failed += nth - 1;
    }
    assert!(failed > 3, "hardly anything was asked");
}
