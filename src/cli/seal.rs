//! `unionmount seal`: copies into an upper what its files leave below.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget};

use super::Failure;
use super::how_mounted::HowMounted;
use super::output::count;
use super::page::{self, Page};
use super::store::StoreArgs;
use crate::container::Container;
use crate::container::tree::open_to_change;
use crate::explain::names;
use crate::image::progress::bar_style;
use crate::union::change::sealing::{NotSealed, SealProgress};
use crate::union::escaped_path::EscapedPath;
use crate::union::stack::layer::{Stack, StackOptions};
use crate::union::{Limits, Union};

/// Copy into an upper what its files leave in the layers below, so that it needs no reader that knows metacopies and
/// half-copied files
///
/// What was written with `metacopy=on` or `lazy=keep` leaves data in the lowers that it was made over. When it is sealed, every overlay
/// reads it. That can be broken off and begun again at any time. No mount may have the upper meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Seal {
    #[command(flatten)]
    store: StoreArgs,

    /// A container, by name or id; or an upper directory, with what lies below it
    #[arg(value_name = "CONTAINER|UPPER", required_unless_present = "upper", conflicts_with_all = ["upper", "lowers"])]
    target: Option<PathBuf>,

    /// The layers below that upper, the first on top
    #[arg(value_name = "LOWER")]
    below: Vec<PathBuf>,

    /// Layers, the first on top; may repeat. A colon within a name is written \:
    #[arg(long = "lower", value_name = "DIR[:DIR…]")]
    lowers: Vec<OsString>,

    /// The upper directory
    #[arg(long, value_name = "DIR", requires = "lowers")]
    upper: Option<PathBuf>,

    #[command(flatten)]
    how: HowMounted,

    /// Tell which files it would be, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

const EXAMPLES: &str = "\
EXAMPLES:
  A container, and directories:
      unionmount seal build
      unionmount seal rw app base
      unionmount seal --lower app:base --upper rw --work work

  What would it copy?
      unionmount seal --dry-run rw app base

The exit status is 1 when a file can't be sealed; it stays as it is, and is named with the reason.";

impl Seal {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let named = self.target.as_ref().filter(|_| self.below.is_empty());
        match (named, &self.target, &self.upper) {
            (Some(name), ..) => {
                let text = name.to_str().filter(|text| !text.contains('/'));
                let found = self.store.existing()?.zip(text);
                let found =
                    found.map(|(store, text)| Container::find(&store, text).map(|found| (store, found)));
                let (store, container) = match found {
                    Some(Ok(found)) => found,
                    None | Some(Err(_)) if name.is_dir() => return Err(lowers_missing(name)),
                    Some(Err(error)) => return Err(error.into()),
                    None => {
                        let name = EscapedPath::from(name.as_path());
                        return Err(Failure::failed(format!("{name}: neither a container nor a directory")));
                    }
                };
                if self.how.is_said() {
                    return Err(Failure::usage(
                        "a container's workdir and marks are known; leave --work and --userxattr out",
                    ));
                }
                let (union, _lowers) = open_to_change(&store, &container)?;
                self.seal(&union)
            }
            (None, Some(upper), _) => self.seal(&self.of_layers(upper, self.below.clone())?),
            (None, None, Some(upper)) => {
                self.seal(&self.of_layers(upper, super::lowers::named(&self.lowers)?)?)
            }
            (None, None, None) => {
                Err(Failure::usage("nothing is named that is to be sealed; see unionmount seal --help"))
            }
        }
    }

    fn of_layers(&self, upper: &Path, lowers: Vec<PathBuf>) -> Result<Union, Failure> {
        let options = StackOptions {
            lowers: super::lowers::sources(lowers)?,
            upper: Some(upper.to_owned()),
            work: self.how.work.clone(),
            xattr: self.how.xattr(),
            ..StackOptions::default()
        };
        let stack = Stack::open(&options).map_err(Failure::failed)?;
        let failed = |error| Failure::failed(format!("{}: {error}", EscapedPath::from(upper)));
        Union::new(stack, Limits::of_process()).map_err(failed)
    }

    fn seal(&self, union: &Union) -> Result<ExitCode, Failure> {
        let mut todo = SealProgress::default();
        let mut page = Page::default();
        let looked = union.for_each_unsealed(&mut |file| {
            if !file.is_known {
                todo = SealProgress { files: todo.files + 1, bytes: todo.bytes + file.size };
            }
            if self.dry_run {
                page.line(format_args!("{}  {}", names::bytes(file.size), file.path));
            }
        });
        let failed = |error| Failure::failed(format!("the upper can't be read: {error}"));
        looked.map_err(failed)?;
        if self.dry_run {
            page.line(format_args!("{} to be sealed", amount(todo)));
            page.print()?;
            return Ok(ExitCode::SUCCESS);
        }
        let (done, left) = with_progress(union, todo)?;
        for file in &left {
            page.line(format_args!("{}: can't be sealed: {}", file.path, file.error));
        }
        page.line(format_args!("{} sealed", amount(done)));
        page.print()?;
        let how = if left.len() == 1 { "is as it was" } else { "are as they were" };
        match left.len() as u64 {
            0 => Ok(ExitCode::SUCCESS),
            some => Err(Failure::failed(format!("{} can't be sealed, and {how}", count(some, "file")))),
        }
    }
}

/// Seals, and shows how far it is.
fn with_progress(union: &Union, todo: SealProgress) -> Result<(SealProgress, Vec<NotSealed>), Failure> {
    let target =
        if page::is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(todo.bytes), target).with_style(bar_style());
    bar.set_message(count(todo.files, "file"));
    let (over, mut done) = (AtomicBool::new(false), SealProgress::default());
    let left = std::thread::scope(|scope| {
        // One large file takes long as well.
        let watch = std::thread::Builder::new().spawn_scoped(scope, || {
            while !over.load(Ordering::Relaxed) {
                bar.set_position(bar.position().max(union.bytes_moved().min(todo.bytes)));
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        let left = union.seal(&mut |progress| {
            done = progress;
            bar.set_position(bar.position().max(progress.bytes));
        });
        over.store(true, Ordering::Relaxed);
        // Without it the bar moves from file to file.
        if let Ok(watch) = watch {
            watch.thread().unpark();
        }
        left
    });
    bar.finish_and_clear();
    let failed = |error| Failure::failed(format!("broken off: {error}; what was sealed stays so"));
    Ok((done, left.map_err(failed)?))
}

fn amount(of: SealProgress) -> String {
    format!("{}, {}", count(of.files, "file"), names::bytes(of.bytes))
}

fn lowers_missing(upper: &Path) -> Failure {
    let upper = EscapedPath::from(upper);
    Failure::failed(format!(
        "{upper}: no container; for an upper directory name what lies below it too: unionmount seal {upper} LOWER"
    ))
}
