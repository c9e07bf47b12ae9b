//! `unionmount man`: the manual pages, out of the same definitions as `--help`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;

use super::{Failure, line};
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
        let program = pages();
        let page = match &self.verb {
            None => &program,
            Some(name) => {
                let none =
                    || Failure::usage(format!("there is no verb {name:?}; unionmount help lists them"));
                let verb = program.find_subcommand(name);
                verb.ok_or_else(|| line::no_such_verb(&program, name).unwrap_or_else(none))?
            }
        };
        super::page::print_own(&roff(page)?)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the whole command line, each verb with its full name and a synopsis that tells the values.
fn pages() -> Command {
    let mut program = super::command();
    program.build();
    let verbs: Vec<String> = program.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    verbs.iter().fold(program, |program, name| program.mut_subcommand(name, with_synopsis))
}

fn with_synopsis(verb: Command) -> Command {
    let mut words = vec![verb.get_bin_name().unwrap_or(verb.get_name()).to_owned()];
    words.extend(verb.get_arguments().filter(|arg| !arg.is_hide_set() && !arg.is_positional()).map(|arg| {
        // As it prints itself: --root <DIR>.
        let short = arg.get_short().map(|short| format!("-{short}|")).filter(|_| arg.get_long().is_some());
        format!("[{}{arg}]", short.unwrap_or_default())
    }));
    words.extend(verb.get_positionals().filter(|arg| !arg.is_hide_set()).map(ToString::to_string));
    if verb.has_subcommands() {
        words.push("VERB …".to_owned());
    }
    let inner: Vec<String> = verb.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let verb = verb.override_usage(words.join(" "));
    inner.iter().fold(verb, |verb, name| verb.mut_subcommand(name, with_synopsis))
}

fn roff(page: &Command) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(page.clone())
        .title(name_of(page))
        .source(format!("{} {}", super::NAME, env!("CARGO_PKG_VERSION")))
        .manual("unionmount")
        .render(&mut text)
        .map_err(|error| Failure::failed(format!("cannot write the manual page: {error}")))?;
    Ok(text)
}

/// Names the page: `unionmount-image-ls`.
fn name_of(page: &Command) -> String {
    page.get_bin_name().unwrap_or(page.get_name()).replace(' ', "-")
}

fn write_all(directory: &Path) -> Result<ExitCode, Failure> {
    let failed = |error| Failure::failed(format!("{}: {error}", EscapedPath::from(directory)));
    std::fs::create_dir_all(directory).map_err(failed)?;
    let program = pages();
    let mut left = vec![&program];
    while let Some(page) = left.pop() {
        left.extend(page.get_subcommands().filter(|verb| !verb.is_hide_set()));
        let file = directory.join(format!("{}.1", name_of(page)));
        std::fs::write(file, roff(page)?).map_err(failed)?;
    }
    Ok(ExitCode::SUCCESS)
}
