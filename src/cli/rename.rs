//! `unionmount rename`: another name for a container.

use std::process::ExitCode;

use super::Failure;
use super::store::StoreArgs;
use crate::container::Container;

/// Give a container another name
#[derive(Debug, clap::Args)]
pub(super) struct Rename {
    #[command(flatten)]
    store: StoreArgs,

    /// The container, by name or id
    #[arg(value_name = "CONTAINER")]
    container: String,

    /// What it is called from now on
    #[arg(value_name = "NEW_NAME")]
    name: String,
}

impl Rename {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.with_something()?;
        Container::find(&store, &self.container)?.rename(&store, &self.name)?;
        Ok(ExitCode::SUCCESS)
    }
}
