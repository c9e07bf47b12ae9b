//! `unionmount tags`: which tags a repository of a registry has.

use std::process::ExitCode;

use super::Failure;
use super::page::Page;
use super::registry::AccessArgs;
use crate::registry::{Client, Reference, Settings};

/// List the tags that a registry has of an image
#[derive(Debug, clap::Args)]
pub(super) struct Tags {
    #[command(flatten)]
    access: AccessArgs,

    /// The image, without a tag
    #[arg(value_name = "NAME")]
    name: String,
}

impl Tags {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        super::logging::start_for_verb();
        let reference: Reference = self.name.parse().map_err(Failure::usage)?;
        let access = self.access.access();
        let tags =
            Settings::read()?.first_of(&reference, |_, endpoint| Client::new(endpoint, &access)?.tags())?;
        let mut page = Page::default();
        tags.iter().for_each(|tag| page.line(format_args!("{tag}")));
        page.print()?;
        Ok(ExitCode::SUCCESS)
    }
}
