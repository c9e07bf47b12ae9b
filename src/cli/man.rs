//! `unionmount man`: the manual pages, out of the same definitions as `--help`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::Failure;
use crate::union::escaped_path::EscapedPath;

/// Print a manual page, in roff: `unionmount man | man -l -`
#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// The verb whose page is wanted; without, that of the program
    verb: Option<String>,

    /// Write all pages into this directory, one a verb
    #[arg(long, value_name = "DIR", conflicts_with = "verb")]
    to: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        if let Some(directory) = &self.to {
            return write_all(directory);
        }
        let mut program = super::command();
        // Gives each verb its full name.
        program.build();
        let page = match &self.verb {
            None => program,
            Some(name) => {
                let verb = program.find_subcommand(name).cloned();
                verb.ok_or_else(|| Failure::usage(format!("there is no verb {name:?}")))?
            }
        };
        let mut text = Vec::new();
        clap_mangen::Man::new(page)
            .render(&mut text)
            .map_err(|error| Failure::failed(format!("cannot write the manual page: {error}")))?;
        super::page::print_own(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn write_all(directory: &Path) -> Result<ExitCode, Failure> {
    let failed = |error| Failure::failed(format!("{}: {error}", EscapedPath::from(directory)));
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(super::command(), directory).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
