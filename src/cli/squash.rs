//! `unionmount squash`: makes one frozen layer of several.

use std::path::PathBuf;
use std::process::ExitCode;

use super::how_mounted::HowMounted;
use super::page::Page;
use super::store::StoreArgs;
use super::whose::{Whose, whose};
use super::{Failure, discard, say, snapshot};
use crate::container::Container;
use crate::container::lowers::Lowers;
use crate::container::snapshots::Reached;
use crate::image::store::Store;
use crate::union::escaped_path::EscapedPath;
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
    store: StoreArgs,

    #[command(flatten)]
    how: HowMounted,

    /// Tell what would be done, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Also where a branch isn't found any more; it holds nothing then
    #[arg(short, long)]
    force: bool,

    /// The upper directory, or a container
    #[arg(value_name = "CONTAINER|UPPER")]
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
        let range = self.range.as_deref().map_or_else(|| Ok(Range::default()), range)?;
        let (target, _lowers) = match whose(&self.store, &self.upper)? {
            Whose::Container(store, container) => of_container(&store, &container, &self.how)?,
            Whose::Mount(_) | Whose::Upper => {
                snapshot::is_not_mounted(&self.upper)?;
                let xattr = self.how.xattr();
                (Target { upper: self.upper, work: self.how.work, xattr, ..Target::default() }, None)
            }
        };
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

/// Returns the upper of a container that nobody has mounted, and what keeps the layers below it.
fn of_container(
    store: &Store,
    container: &Container,
    how: &HowMounted,
) -> Result<(Target, Option<Lowers>), Failure> {
    if how.is_said() {
        return Err(Failure::usage("--work and --userxattr are known of a container"));
    }
    match container.reach(store)? {
        Reached::Lying(target, lowers) => Ok((*target, Some(lowers))),
        Reached::Mounted(mount) => {
            let (name, point) = (container.shown_name(), EscapedPath::from(mount.point.as_path()));
            Err(Failure::failed(format!(
                "container {name} runs, or is mounted on {point}; end or unmount it first"
            )))
        }
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
