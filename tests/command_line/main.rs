//! The command line as people meet it: what is misspelt, what is missing, what Docker's users type, in a terminal and
//! without one.

#![allow(missing_docs, clippy::unwrap_used)]

mod shells;
mod slips;
mod verbs;

use std::process::Command;

use support::cli::{Ended, Place, run};

/// Runs a script as a terminal's user does: what is printed goes to the terminal, both streams together.
#[track_caller]
pub fn on_a_terminal(place: &Place, columns: u16, script: &str) -> Ended {
    let script = format!("stty rows 24 cols {columns}; {script}");
    let mut command = Command::new("script");
    command.args(["-qefc", &script, "/dev/null"]).current_dir(place.path());
    run(command.env("TERM", "xterm").env_remove("RUST_LOG"))
}
