//! `unionmount version`: which one this is.

use std::process::ExitCode;

use super::Failure;
use super::page::Page;

/// Print the version
#[derive(Debug, clap::Args)]
pub(super) struct Version {}

impl Version {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        Page::of_line(format_args!("{} {}", super::NAME, env!("CARGO_PKG_VERSION"))).print()?;
        Ok(ExitCode::SUCCESS)
    }
}
