//! `unionmount unpack`: makes the trees of layers that were kept as they came.

use std::process::ExitCode;

use super::Failure;
use super::store::{LimitArgs, StoreArgs};

/// Unpack the layers of images that were loaded with --no-unpack
///
/// Containers do so by themselves when they are made. A layer that is unpacked already is left alone.
#[derive(Debug, clap::Args)]
pub(super) struct Unpack {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    limits: LimitArgs,

    /// The images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Unpack {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.with_something()?;
        for image in &self.images {
            store.layers_within(&store.resolve(image)?, self.limits.limits())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
