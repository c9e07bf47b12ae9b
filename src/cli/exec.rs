//! `unionmount exec`: one more command in a container that runs.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use super::run::OWN_FAILURE;
use super::store::StoreArgs;
use super::{Failure, say};
use crate::container::exec::{self, Joining};
use crate::container::{Container, ContainerError};

/// Run one more command in a container that runs; ends with the command's exit status
///
/// The command joins the container's namespaces, with its rights and its filter of system calls. Ends with 125 when it could
/// not be let in, 126 when the command is no program, 127 when there is none.
#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    #[command(flatten)]
    store: StoreArgs,

    /// Keep stdin open
    #[arg(short, long)]
    interactive: bool,

    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,

    /// Set a variable; NAME alone hands on the caller's; may repeat
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,

    /// Set the variables of this file, a line each; # begins a comment; may repeat
    #[arg(long = "env-file", value_name = "FILE")]
    env_files: Vec<PathBuf>,

    /// Who runs the command: a number is an id, a name is one of the container's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// The working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// Let it do what its caller may: all capabilities
    #[arg(long)]
    privileged: bool,

    /// The container, by name or id
    #[arg(value_name = "CONTAINER")]
    container: String,

    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND", required = true)]
    command: Vec<String>,
}

impl Exec {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        self.run_to_its_end().map_err(|failure| Failure { code: OWN_FAILURE, ..failure })
    }

    fn run_to_its_end(self) -> Result<ExitCode, Failure> {
        if self.tty && !std::io::stdin().is_terminal() {
            return Err(Failure::usage("-t needs a terminal, and stdin is none; leave it out"));
        }
        let mut env = Vec::new();
        for path in &self.env_files {
            env.extend(super::container::read_env_file(path)?);
        }
        env.extend(self.env);
        let store = self.store.with_something()?;
        let container = Container::find(&store, &self.container)?;
        let joining = Joining {
            command: self.command,
            env,
            working_dir: self.workdir,
            user: self.user,
            terminal: self.tty,
            interactive: self.interactive,
            privileged: self.privileged,
        };
        match exec::run(&store, &container, &joining) {
            Ok(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))),
            Err(ContainerError::NoProgram { code, why }) => {
                say(&why);
                Ok(ExitCode::from(code))
            }
            Err(error) => Err(error.into()),
        }
    }
}
