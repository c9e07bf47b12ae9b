//! `unionmount completions SHELL`: what makes the shell complete this program's arguments.

use std::process::ExitCode;

use super::Failure;

/// Print shell completions, to be sourced or put where the shell looks for them
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), super::NAME, &mut text);
        super::page::print_own(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
