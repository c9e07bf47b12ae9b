//! `unionmount squash`: makes one frozen layer of several.

use std::path::PathBuf;
use std::process::ExitCode;

use super::how_mounted::HowMounted;
use super::page::Page;
use super::{Failure, discard, say, snapshot};
use crate::union::frozen::snapshot::Target;
use crate::union::frozen::squash::{Range, Squashing};

/// Forget the states between snapshots: neighbouring frozen layers become one
///
/// What is shown stays as it is, and no data are copied. Without a range the layers that the upper lies on become one, down to the first on
/// which a branch or another snapshot stands. The upper, and branches that have the layers, must not
/// be mounted.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Squash {
    #[command(flatten)]
    how: HowMounted,

    /// Tell what would be done, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Also where a branch isn't found any more; it holds nothing then
    #[arg(short, long)]
    force: bool,

    /// The upper directory
    #[arg(value_name = "UPPER")]
    upper: PathBuf,

    /// The states between which all are forgotten: B stays with what was changed since A. 0 is the state before the first
    #[arg(value_name = "A..B")]
    range: Option<String>,
}

const EXAMPLES: &str = "\
EXAMPLES:
  Keep only the newest of all snapshots:
      unionmount squash rw

  Keep monday and friday, and none between:
      unionmount squash rw monday..friday";

impl Squash {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        super::logging::start_for_verb();
        snapshot::is_not_mounted(&self.upper)?;
        let range = self.range.as_deref().map_or_else(|| Ok(Range::default()), range)?;
        let xattr = self.how.xattr();
        let target = Target { upper: self.upper, work: self.how.work, xattr, ..Target::default() };
        let squashing = Squashing::begin(&target, &range, self.force).map_err(Failure::failed)?;
        // While it is held: mounts of its upper and its branches don't begin. Those that have a layer as a mere lower are seen.
        for place in squashing.places() {
            discard::is_unused(&place)?;
        }
        let done = match self.dry_run {
            true => squashing.told(),
            false => squashing.carry_out().map_err(Failure::failed)?,
        };
        let (verb, gone) = (if self.dry_run { "would go" } else { "went" }, done.gone.join(", "));
        say(&format!("{gone} {verb} into {}", done.into));
        Page::of_line(format_args!("{}", done.into)).print()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn range(text: &str) -> Result<Range, Failure> {
    let Some((after, to)) = text.split_once("..") else {
        return Err(Failure::usage(format!(
            "{text}: is no range; name two snapshots as A..B, or one as A.. or ..B"
        )));
    };
    let named = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    Ok(Range { after: named(after), to: named(to) })
}
