//! `unionmount tag`: one more name for an image.

use std::process::ExitCode;

use super::Failure;
use super::store::StoreArgs;
use crate::image::name::ImageName;

/// Give an image one more name
#[derive(Debug, clap::Args)]
pub(super) struct Tag {
    #[command(flatten)]
    store: StoreArgs,

    /// The image, by name or id
    #[arg(value_name = "IMAGE")]
    image: String,

    /// The name; the tag is latest when none is given
    #[arg(value_name = "NAME[:TAG]")]
    name: ImageName,
}

impl Tag {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        self.store.with_something()?.tag(&self.image, &self.name)?;
        Ok(ExitCode::SUCCESS)
    }
}
