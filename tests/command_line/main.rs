//! The command line as people meet it: what is misspelt, what is missing, what Docker's users type, in a terminal and
//! without one.

#![allow(missing_docs, clippy::unwrap_used)]

mod languages;
mod sharing;
mod shells;
mod slips;
mod verbs;

use std::process::Command;

use support::cli::{Ended, Place, run};

/// Runs a line of a shell with a store of its own.
#[track_caller]
pub fn um(place: &Place, line: &str) -> Ended {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("./unionmount {line}")]).current_dir(place.path()).env_remove("RUST_LOG");
    run(command.env("UNIONMOUNT_ROOT", place.at("store")))
}

/// Runs a script as a terminal's user does: what is printed goes to the terminal, both streams together.
#[track_caller]
pub fn on_a_terminal(place: &Place, columns: u16, script: &str) -> Ended {
    let script = format!("stty rows 24 cols {columns}; {script}");
    let mut command = Command::new("script");
    command.args(["-qefc", &script, "/dev/null"]).current_dir(place.path());
    run(command.env("TERM", "xterm").env_remove("RUST_LOG"))
}
