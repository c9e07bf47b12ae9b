//! `unionmount image diff`: what one image has and another hasn't.

use std::process::ExitCode;

use super::Failure;
use super::diff::HowArgs;
use super::store::StoreArgs;
use crate::changes::stacked::Sides;
use crate::changes::trees::differences;
use crate::container::lowers::image_as_it_lies;

/// Show how the tree of one image differs from another's: A for added, C for changed, D for deleted
///
/// Compared are types, owners, modes, contents and extended attributes; times are not.
#[derive(Debug, clap::Args)]
pub(super) struct ImageDiff {
    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    how: HowArgs,

    /// The image that is taken for the earlier one, by name or id
    #[arg(value_name = "IMAGE")]
    before: String,

    /// The image that is taken for the later one
    #[arg(value_name = "IMAGE")]
    after: String,
}

impl ImageDiff {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.with_something()?;
        let layers =
            |text: &String| -> Result<_, Failure> { Ok(image_as_it_lies(&store, &store.resolve(text)?)?) };
        // What keeps the layers is kept to the end.
        let (before, after) = (layers(&self.before)?, layers(&self.after)?);
        let sides = Sides::of(before.sources()?, after.sources()?).map_err(Failure::failed)?;
        let changes = differences(&sides).map_err(Failure::failed)?;
        self.how.tell(changes, || Ok(sides))?;
        Ok(ExitCode::SUCCESS)
    }
}
