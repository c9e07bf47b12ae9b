//! Verbs and calls that have states of their own: the image store's, and the snapshotter's.
//!
//! After each step the state is noted, as the verbs themselves tell it. After a failure it must be one of those between
//! the last step that had ended and the last that had begun, and everything that it names must be whole.

use std::path::Path;

use crate::disk::{Disk, Mounted};
use crate::record::{Failures, Record, Remains, Unflushed};
use support::Scratch;

/// A state, or what is broken in it.
pub type State = Result<String, String>;

/// A step, with its name; gets the disk's root.
pub type Step<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);

/// What is done on a disk, step by step.
pub struct Tale<'a> {
    /// Its name.
    pub name: &'a str,
    /// What is done.
    pub steps: Vec<Step<'a>>,
    /// The state of what lies on a disk.
    pub state: Box<dyn Fn(&Path) -> State + 'a>,
}

/// A step that was done.
struct Told {
    what: String,
    began: usize,
    ended: usize,
    state: String,
}

/// The disk that a tale is told on.
pub struct Stage<'a> {
    /// For images and mounts.
    pub scratch: &'a Scratch,
    /// The disk before the tale.
    pub base: &'a Path,
    /// The disk that is changed, with the same content.
    pub live: &'a Path,
    /// The filesystem on it.
    pub filesystem: &'static str,
    /// What the disk writes whole or not at all.
    pub sector: usize,
}

impl Tale<'_> {
    /// Does it all, and looks at `points` failures in each step. Returns how many were looked at and what was broken.
    pub fn tell(&self, stage: &Stage<'_>, points: usize) -> (usize, Vec<String>) {
        let disk = Disk::new(stage.scratch, stage.live);
        let (first, told) = {
            let mounted = Mounted::new(disk.device(), stage.filesystem, stage.scratch.path().join("live"));
            self.steps(&disk, mounted.path())
        };
        let record = disk.into_record();
        self.look(stage, &record, (&first, &told), points)
    }

    fn steps(&self, disk: &Disk, at: &Path) -> (String, Vec<Told>) {
        let state = || (self.state)(at).unwrap_or_else(|wrong| panic!("{}: {wrong}", self.name));
        let first = state();
        let steps = self.steps.iter().map(|(what, step)| {
            let began = disk.position();
            step(at);
            let ended = disk.position();
            Told { what: (*what).to_owned(), began, ended, state: state() }
        });
        let told = steps.collect();
        (first, told)
    }

    fn look(
        &self,
        stage: &Stage<'_>,
        record: &Record,
        (first, told): (&str, &[Told]),
        points: usize,
    ) -> (usize, Vec<String>) {
        let mut failures = Failures::new(stage.scratch, stage.base, record);
        let mut random = fastrand::Rng::with_seed(told.len() as u64);
        let mut all = Vec::new();
        for step in told {
            all.push((step.ended, Unflushed::Lost));
            for _ in 1..points {
                all.push((random.usize(step.began..=step.ended), Unflushed::Any(random.u64(..))));
            }
        }
        all.sort_by_key(|(position, _)| *position);
        let mut broken = Vec::new();
        let mut seen: Vec<(Remains, State)> = Vec::new();
        for (position, unflushed) in &all {
            let remains = record.remains(*position, *unflushed, stage.sector);
            let found = match seen.iter().find(|(disk, _)| *disk == remains) {
                Some((_, state)) => state.clone(),
                None => {
                    let at = stage.scratch.path().join("failed");
                    let mounted = Mounted::new(failures.make(&remains), stage.filesystem, at);
                    let state = (self.state)(mounted.path());
                    seen.push((remains, state.clone()));
                    state
                }
            };
            let ended = told.iter().filter(|step| step.ended <= *position).count();
            let begun = told.iter().filter(|step| step.began < *position).count().max(ended);
            let states: Vec<&str> =
                std::iter::once(first).chain(told.iter().map(|step| step.state.as_str())).collect();
            let wrong = match found {
                Err(wrong) => wrong,
                Ok(found) if states[ended..=begun].contains(&found.as_str()) => continue,
                Ok(found) => format!("found:\n{found}expected one of {:#?}", &states[ended..=begun]),
            };
            let steps: Vec<_> =
                told.iter().map(|t| format!("{} ({}..{})", t.what, t.began, t.ended)).collect();
            broken.push(format!(
                "{}, failure at {position}, {unflushed:?}, after {ended} of {steps:?}: {wrong}\n",
                self.name
            ));
            eprintln!("{}", broken[broken.len() - 1]);
        }
        (all.len(), broken)
    }
}
