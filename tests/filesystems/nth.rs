//! An upper whose filesystem fails: the request number N of a kind, for all kinds and all N, with EIO and with ENOSPC, under a
//! sequence of operations. One of them tells an error at the most, and the others go as if nothing had failed; the mount
//! shows what the disk has, which is the old state or the new one of the one that failed, and the next mount shows the same.
//!
//! `NTH_ALL=1` makes all of them fail, one after the other; without, one of each kind with each error. `NTH_ONLY` names one
//! kind.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use support::model::execute::Executor;
use support::model::layer::{LayerNode, StackSpec, dir, file, linked, symlink};
use support::model::op::{Op, Outcome, Rename, p};
use support::model::tree::Model;
use support::{Fields, Mount, Options, Scratch, Snapshot, diff};

use crate::failing::Failing;

fn spec() -> StackSpec {
    let lower: LayerNode = dir([
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
    ]
}

/// A stack with an upper on a filesystem that fails.
struct Bed {
    failing: Failing,
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
        let extra = extra.iter().map(ToString::to_string).collect();
        Bed { failing: Failing::start(&scratch), scratch, extra, round: 0 }
    }

    fn lower(&self) -> Snapshot {
        Snapshot::take(&self.scratch.path().join("lower"))
    }

    fn mount(&self) -> Mount {
        let at = |name: &str| self.failing.path().join(format!("{name}{}", self.round));
        let options = Options {
            lowers: vec![self.scratch.path().join("lower")],
            upper: Some(at("upper")),
            work: Some(at("work")),
            extra: self.extra.clone(),
            ..Options::default()
        };
        Mount::new(&options, &self.scratch.path().join("merged"))
    }

    fn fresh(&mut self) -> Mount {
        self.round += 1;
        for name in ["upper", "work"] {
            std::fs::create_dir(self.failing.path().join(format!("{name}{}", self.round))).unwrap();
        }
        self.mount()
    }

    /// Asserts that nothing is left in the workdir, apart from indexes.
    fn workdir_is_clean(&self, what: &str) {
        let work = self.scratch.path().join(format!("shown/work{}", self.round));
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
        self.failing.fail(kind, nth, errno);
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
        assert!(failed.len() < 2, "{what}, and more than one operation: {failed:#?}");
        let counts = self.failing.counts();
        let reached = counts.is_some_and(|counts| counts.get(kind).is_some_and(|count| *count >= nth));
        self.failing.count();
        let told = |text: String| format!("{what}, told as {failed:?}:\n{text}");
        let live = difference(&model, &Snapshot::take_checked(mount.path()));
        assert!(live.is_empty(), "{}", told(live));
        executor.close_all();
        mount.unmount();
        let mount = self.mount();
        let again = difference(&model, &Snapshot::take_checked(mount.path()));
        assert!(again.is_empty(), "{}", told(format!("after a remount: {again}")));
        mount.unmount();
        self.workdir_is_clean(&what);
        reached
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
    each_request_fails_once(&[]);
}

#[test]
fn an_upper_with_metacopies_that_fails_once_loses_nothing() {
    each_request_fails_once(&["metacopy=on"]);
}

#[track_caller]
fn each_request_fails_once(extra: &[&str]) {
    support::needs_root!();
    support::needs_unionmount!();
    let mut bed = Bed::new(extra);
    let mut lower = bed.lower();
    // How much is asked when nothing fails.
    assert!(!bed.run(&script(), "nothing", 1, Errno::IO));
    let counts = {
        let mount = bed.fresh();
        bed.failing.count();
        let mut executor = Executor::new(mount.path());
        script().iter().for_each(|op| assert_eq!(executor.run(op), Outcome::Done, "{op:?}"));
        let counts = bed.failing.counts().unwrap();
        mount.unmount();
        counts
    };
    let all = std::env::var_os("NTH_ALL").is_some();
    let mut random = fastrand::Rng::with_seed(support::model::harness::seed(1));
    let mut tried: BTreeMap<&str, usize> = BTreeMap::new();
    let mut broken = Vec::new();
    let assert_unchanged = |lower: &Snapshot, bed: &Bed| {
        let changed = diff(lower, &bed.lower(), &Fields::all());
        assert!(changed.is_empty(), "the lower was changed: {changed}");
    };
    let only = std::env::var("NTH_ONLY").unwrap_or_default();
    for (kind, count) in counts.iter().filter(|(kind, _)| only.is_empty() || only == **kind) {
        for errno in [Errno::IO, Errno::NOSPC] {
            let some = random.usize(1..=*count);
            for nth in if all { 1..=*count } else { some..=some } {
                // The failing filesystem holds a descriptor of all that it has shown.
                if bed.round > 60 {
                    assert_unchanged(&lower, &bed);
                    bed = Bed::new(extra);
                    lower = bed.lower();
                }
                // One that shows something doesn't keep the others from showing theirs.
                match catch_unwind(AssertUnwindSafe(|| bed.run(&script(), kind, nth, errno))) {
                    Ok(reached) => *tried.entry(kind).or_default() += usize::from(reached),
                    Err(_) => broken.push(format!("{kind} number {nth}: {errno:?}")),
                }
            }
        }
    }
    println!("asked: {counts:?}\nfailed: {tried:?}");
    assert!(broken.is_empty(), "see above: {broken:#?}");
    let failed = tried.values().filter(|times| **times > 0).count();
    assert_eq!(failed, if only.is_empty() { counts.len() } else { 1 }, "a kind that never failed: {tried:?}");
    assert_unchanged(&lower, &bed);
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
    bed.failing.fail("rename", 1, Errno::NOSPC);
    assert_eq!(Executor::new(mount.path()).run(&op), Outcome::Failed(Errno::NOSPC));
    bed.failing.count();
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
