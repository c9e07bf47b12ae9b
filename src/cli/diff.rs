//! `unionmount diff`: what an upper changed, of a container, of a mount, or of directories.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::Failure;
use super::lowers::sources;
use super::page::{self, Page};
use super::store::StoreArgs;
use crate::changes::patch::{self, Figures, Measure};
use crate::changes::stacked::{Sides, Stacked};
use crate::changes::trees;
use crate::container::{Container, ContainerError, commit};
use crate::control::client::Client;
use crate::control::mounts;
use crate::explain::names;
use crate::image::layer::{Change, ChangeKind, LayerError};
use crate::sys::object::Kind;
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::{below, keeping};
use crate::union::lookup::belief::Belief;

/// Show what was changed in a container, a mount, or an upper directory: A for added, C for changed, D for deleted
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Diff {
    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    stack: UpperArgs,

    /// Show what was changed since that snapshot; 0 is the state before the first
    #[arg(long, value_name = "NAME")]
    since: Option<String>,

    #[command(flatten)]
    how: HowArgs,
}

/// How changes are told.
#[derive(Debug, clap::Args)]
pub(super) struct HowArgs {
    /// Print everything as JSON
    #[arg(long)]
    json: bool,

    /// Tell of each file how many lines, or bytes, were added and removed
    #[arg(long, conflicts_with = "json")]
    stat: bool,

    /// Print a unified diff of text files, as git apply and patch -p1 read it
    #[arg(short, long, conflicts_with_all = ["json", "stat"])]
    patch: bool,
}

/// Which upper is meant, and over what.
#[derive(Debug, clap::Args)]
pub(super) struct UpperArgs {
    /// A container, by name or id; a mount, by its mount point or a path in it; or an upper directory, with what lies below it
    #[arg(value_name = "CONTAINER|MOUNT|UPPER", required_unless_present = "upper", conflicts_with_all = ["upper", "lowers"])]
    target: Option<PathBuf>,

    /// The directories below that upper, the first on top; or A..B, two snapshots to compare (A.. with what is there now)
    #[arg(value_name = "LOWER|A..B")]
    below: Vec<PathBuf>,

    /// Layers as directories, the first on top; may repeat. A colon within a name is written \:
    #[arg(long = "lower", value_name = "DIR[:DIR…]")]
    lowers: Vec<OsString>,

    /// The upper directory
    #[arg(long, value_name = "DIR", requires = "lowers")]
    upper: Option<PathBuf>,
}

const EXAMPLES: &str = "\
EXAMPLES:
  Of a container, of a mount, and of directories that nobody has mounted:
      unionmount diff build
      unionmount diff merged
      unionmount diff rw app base
      unionmount diff --lower app:base --upper rw

  Since a snapshot, all that was ever changed, and between two snapshots:
      unionmount diff --since before merged
      unionmount diff --since 0 merged
      unionmount diff merged before..after

  As a patch for the directory that the changes were made over:
      unionmount diff --patch rw base | git apply --directory=base

A directory is shown as changed when something in it is.";

/// An upper over its lowers, with what keeps them from being removed.
struct Found {
    stacked: Stacked,
    upper: PathBuf,
    lowers: Vec<PathBuf>,
    /// What it is compared with, where that isn't what lies below the upper.
    since: Option<Vec<PathBuf>>,
    pins: Vec<OwnedFd>,
}

impl Found {
    fn new(upper: &Path, lowers: Vec<PathBuf>, pins: Vec<OwnedFd>) -> Result<Found, Failure> {
        let stacked = Stacked::of(upper, sources(lowers.clone())?).map_err(Failure::failed)?;
        Ok(Found { stacked, upper: upper.to_owned(), lowers, since: None, pins })
    }

    /// Opens two states of it.
    fn between(&mut self, range: &Range) -> Result<Sides, Failure> {
        self.pins.extend(keep(&self.upper)?);
        let frozen = below::of_path(&self.upper).map_err(Failure::failed)?;
        // What was frozen comes first, however it was named.
        let own = frozen.map_or(0, |below| below.layers.len()).min(self.lowers.len());
        let at = |name: &str| {
            let frozen = below::at_snapshot(&self.upper, name).map_err(Failure::failed)?.layers;
            Ok::<_, Failure>([&frozen, &self.lowers[own..]].concat())
        };
        let after = match &range.to {
            Some(name) => at(name)?,
            None => [std::slice::from_ref(&self.upper), &self.lowers].concat(),
        };
        Sides::of(sources(at(&range.from)?)?, sources(after)?).map_err(Failure::failed)
    }
}

/// Two states to compare, by the names of snapshots.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    from: String,
    /// None: what is there now.
    to: Option<String>,
}

impl Range {
    /// Reads `A..B`. None: it may be a path.
    fn parse(text: &Path) -> Option<Range> {
        let (from, to) = text.to_str()?.split_once("..")?;
        let is_path = text.as_os_str().as_bytes().contains(&b'/') || text.symlink_metadata().is_ok();
        let to = Some(to.to_owned()).filter(|to| !to.is_empty());
        (!from.is_empty() && !is_path).then(|| Range { from: from.to_owned(), to })
    }
}

impl UpperArgs {
    /// Takes the two snapshots out that are named among the lowers, if any are.
    fn range(&mut self, since: Option<String>) -> Result<Option<Range>, Failure> {
        let mut ranges: Vec<Range> = self.below.iter().filter_map(|text| Range::parse(text)).collect();
        self.below.retain(|text| Range::parse(text).is_none());
        ranges.extend(since.map(|from| Range { from, to: None }));
        match ranges.len() {
            0 | 1 => Ok(ranges.pop()),
            _ => Err(Failure::usage("one --since NAME or one A..B, not several")),
        }
    }

    fn open(&self, store: &StoreArgs) -> Result<Found, Failure> {
        match (&self.target, &self.upper) {
            (Some(upper), _) if !self.below.is_empty() => of_directories(upper, &self.below),
            (Some(target), _) => of_target(target, store),
            (None, Some(upper)) => of_directories(upper, &super::lowers::named(&self.lowers)?),
            (None, None) => {
                Err(Failure::usage("nothing is named whose changes to show; see unionmount diff --help"))
            }
        }
    }
}

/// Keeps the frozen layers of an upper from being taken away, as long as what is returned is there.
fn keep(upper: &Path) -> Result<Vec<OwnedFd>, Failure> {
    Ok(keeping::keep(upper).map_err(Failure::failed)?.into_pins())
}

/// Opens an upper over what was frozen below it, and over the lowers; where none are named, over those that were recorded.
fn of_directories(upper: &Path, lowers: &[PathBuf]) -> Result<Found, Failure> {
    let mut all = lowers.to_vec();
    let pins = keep(upper)?;
    if let Some(below) = below::of_path(upper).map_err(Failure::failed)? {
        let lowers = if lowers.is_empty() { below.lowers } else { std::mem::take(&mut all) };
        all = [below.layers, lowers].concat();
    }
    Found::new(upper, all, pins)
}

/// Tells whether an upper has snapshots, and what lies below them is recorded.
fn is_recorded(upper: &Path) -> bool {
    matches!(below::of_path(upper), Ok(Some(below)) if !below.lowers.is_empty())
}

/// Opens a container's, or else that of a path in a mount. What looks like a path is one.
fn of_target(target: &Path, store: &StoreArgs) -> Result<Found, Failure> {
    let name = target.to_str().filter(|text| !text.contains('/') && !text.starts_with('.'));
    if is_recorded(target) && mounts::of(target).is_err() {
        return of_directories(target, &[]);
    }
    let Some(name) = name else { return of_mount(target) };
    match of_container(name, store) {
        Ok(found) => Ok(found),
        Err(no_container) => match mounts::of(target) {
            Ok(_) => of_mount(target),
            Err(_) if target.is_dir() => Err(Failure::failed(format!(
                "{name}: neither a container nor in a mount; for an upper directory name what lies below it too: unionmount diff {name} LOWER"
            ))),
            Err(_) => Err(no_container),
        },
    }
}

fn of_container(name: &str, store: &StoreArgs) -> Result<Found, Failure> {
    let store = store.with_something()?;
    let container = Container::find(&store, name)?;
    let kept = container.keep()?;
    let mut lowers = container.lowers(&store)?;
    lowers.pins.extend(kept.into_pins());
    let path = container.upper();
    File::open(&path).map_err(ContainerError::io("open it", &path))?;
    let Some(below) = container.frozen()? else { return Found::new(&path, lowers.paths, lowers.pins) };
    // All that it changed, what was frozen of it too.
    let found = Found::new(&path, [&below.layers[..], &lowers.paths].concat(), lowers.pins)?;
    Ok(Found { since: Some(lowers.paths), ..found })
}

fn of_mount(path: &Path) -> Result<Found, Failure> {
    let (mount, _) = mounts::of(path).map_err(|error| {
        let hint = if path.is_dir() {
            "; for an upper directory name what lies below it too: unionmount diff UPPER LOWER"
        } else {
            ""
        };
        Failure::failed(format!("{error}{hint}"))
    })?;
    let (upper, lowers) = layers_of(&mount)?;
    commit::flush_mount(&mount, &upper)?;
    Found::new(&upper, lowers, Vec::new())
}

/// Asks a mount's daemon for its upper and its lowers.
pub(super) fn layers_of(mount: &mounts::Mount) -> Result<(PathBuf, Vec<PathBuf>), Failure> {
    let point = EscapedPath::from(mount.point.as_path());
    let status = Client::connect(mount).and_then(|mut daemon| daemon.status()).map_err(Failure::failed)?;
    if status.about.belief.is_some_and(|belief| belief != Belief::of_process()) {
        return Err(Failure::failed(format!(
            "{point}: its mount believes other marks than this process does; ask as the user who mounted it, without userxattr"
        )));
    }
    let mut paths = Vec::new();
    let mut upper = None;
    for layer in &status.layers {
        let path = layer.directory.as_path().to_owned();
        if mounts::device_at(&path).is_ok_and(|at| at == mount.device) {
            return Err(Failure::failed(format!(
                "{}: this layer is covered by the mount, so it can't be read from here; unmount first",
                EscapedPath::from(path.as_path())
            )));
        }
        if layer.layer == 0 { upper = Some(path) } else { paths.push(path) }
    }
    match upper {
        Some(upper) => Ok((upper, paths)),
        None => Err(Failure::failed(format!("{point}: has no upper, so nothing was changed"))),
    }
}

/// A change as it stands in JSON.
#[derive(Serialize)]
struct Line {
    path: EscapedPath,
    change: &'static str,
    #[serde(rename = "type")]
    kind: Option<&'static str>,
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "character device",
        Kind::BlockDevice => "block device",
    }
}

impl Diff {
    pub(super) fn run(mut self) -> Result<ExitCode, Failure> {
        let range = self.stack.range(self.since.take())?;
        let mut found = self.stack.open(&self.store)?;
        if let Some(range) = range {
            let sides = found.between(&range)?;
            let changes = trees::differences(&sides).map_err(Failure::failed)?;
            self.how.tell(changes, || Ok(sides))?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(since) = &found.since {
            let now = [std::slice::from_ref(&found.upper), &found.lowers].concat();
            let sides = Sides::of(sources(since.clone())?, sources(now)?).map_err(Failure::failed)?;
            let changes = trees::differences(&sides).map_err(Failure::failed)?;
            self.how.tell(changes, || Ok(sides))?;
            return Ok(ExitCode::SUCCESS);
        }
        let changes = found.stacked.changes().map_err(Failure::failed)?;
        self.how.tell(changes, || found.stacked.sides().map_err(Failure::failed))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl HowArgs {
    /// Prints the changes; `sides` opens both trees, where they are asked for more than paths.
    pub(super) fn tell(
        &self,
        changes: Vec<Change>,
        sides: impl FnOnce() -> Result<Sides, Failure>,
    ) -> Result<(), Failure> {
        if self.patch {
            return print_patch(&sides()?, &changes);
        }
        if self.stat {
            return stat(&sides()?, &changes)?.print();
        }
        if !self.json {
            return listed(&changes).print();
        }
        let sides = sides()?;
        let lines: Vec<Line> = changes
            .into_iter()
            .map(|change| {
                let kind = sides.kind(&change)?.map(kind_name);
                let word = match change.kind {
                    ChangeKind::Added => "added",
                    ChangeKind::Changed => "changed",
                    ChangeKind::Deleted => "deleted",
                };
                Ok(Line { path: EscapedPath(change.path), change: word, kind })
            })
            .collect::<Result<_, LayerError>>()
            .map_err(Failure::failed)?;
        let mut page = Page::default();
        page.json(&lines)?;
        page.print()
    }
}

/// Lists the changes as docker diff does.
pub(super) fn listed(changes: &[Change]) -> Page {
    let mut page = Page::default();
    for change in changes {
        page.line(format_args!("{} {}", change.kind.letter(), EscapedPath(change.path.clone())));
    }
    page
}

/// Writes a line for each file, and the sum.
fn stat(sides: &Sides, changes: &[Change]) -> Result<Page, Failure> {
    let mut page = Page::default();
    let (mut files, mut all) = (0usize, Figures::default());
    each_file(sides, changes, |compared| {
        let path = EscapedPath(compared.path.clone());
        match patch::measure(&compared) {
            Measure::Nothing => return Ok(()),
            Measure::Lines(Figures { added, removed }) => {
                all.added += added;
                all.removed += removed;
                page.line(format_args!("{path} | +{added} -{removed}"));
            }
            Measure::Bytes(before, after) => {
                page.line(format_args!("{path} | {} -> {}", names::bytes(before), names::bytes(after)));
            }
        }
        files += 1;
        Ok(())
    })?;
    let plural = if files == 1 { "" } else { "s" };
    page.line(format_args!(
        "{files} file{plural} changed, {} lines added, {} removed",
        all.added, all.removed
    ));
    Ok(page)
}

fn each_file(
    sides: &Sides,
    changes: &[Change],
    mut each: impl FnMut(crate::changes::stacked::Compared) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for change in changes {
        sides.compare(change, &mut each)?;
    }
    Ok(())
}

impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Failure {
        Failure::failed(error)
    }
}

/// Prints a patch. A program that reads it needs every byte of it; a terminal is given what it can't obey escaped.
fn print_patch(sides: &Sides, changes: &[Change]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("cannot write to stdout: {error}"));
    if page::is_terminal() {
        let mut page = Page::default();
        each_file(sides, changes, |compared| {
            let mut text = Vec::new();
            patch::write(&mut text, &compared).map_err(failed)?;
            for line in text.split_inclusive(|&byte| byte == b'\n') {
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                page.line(format_args!("{}", EscapedPath::from(line)));
            }
            Ok(())
        })?;
        return page.print();
    }
    let mut out = std::io::BufWriter::new(page::own_stdout().lock());
    let written = each_file(sides, changes, |compared| {
        match patch::write(&mut out, &compared) {
            // Who reads has enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::told(0)),
            other => other.map_err(failed),
        }
    });
    match written {
        Err(Failure { code: 0, .. }) => return Ok(()),
        other => other?,
    }
    match out.flush() {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(failed(error)),
        _ => Ok(()),
    }
}
