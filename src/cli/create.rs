//! `unionmount create`: a container, to be mounted or looked at.

use std::process::ExitCode;

use super::Failure;
use super::container::ContainerArgs;
use super::page::Page;

/// Make a container of an image, without running anything; prints its id
#[derive(Debug, clap::Args)]
pub(super) struct Create {
    #[command(flatten)]
    container: ContainerArgs,
}

impl Create {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.container.open()?;
        let image = self.container.image(&store)?;
        let container = self.container.create(&store, &image, self.container.settings()?)?;
        Page::of_line(format_args!("{}", container.record.id)).print()?;
        Ok(ExitCode::SUCCESS)
    }
}
