//! `unionmount man`: the manual page, out of the same definitions as `--help`.

use std::process::ExitCode;

use super::Failure;

/// Print the manual page, in roff: `unionmount man | man -l -`
#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// The verb whose page is wanted; without, that of the program
    verb: Option<String>,
}

impl Man {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
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
