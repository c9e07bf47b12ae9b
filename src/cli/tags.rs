//! `unionmount tags`: which tags a repository of a registry has.

use std::process::ExitCode;

use super::Failure;
use super::page::Page;
use super::registry::AccessArgs;
use crate::registry::{Client, Reference, RegistryError, Settings};

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
        let settings = Settings::read()?;
        let access = self.access.access();
        let mut first: Option<RegistryError> = None;
        for candidate in settings.candidates(&reference, &self.name)? {
            for endpoint in settings.to_read(&candidate)? {
                match Client::new(endpoint, &access)?.tags() {
                    Ok(tags) => {
                        let mut page = Page::default();
                        tags.iter().for_each(|tag| page.line(format_args!("{tag}")));
                        page.print()?;
                        return Ok(ExitCode::SUCCESS);
                    }
                    Err(error) => {
                        first.get_or_insert(error);
                    }
                }
            }
        }
        Err(first.map_or_else(
            || Failure::failed(format!("{reference}: no registry is to be asked")),
            Failure::from,
        ))
    }
}
