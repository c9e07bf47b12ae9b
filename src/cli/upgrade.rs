//! `unionmount upgrade`: this program goes on with mounts that another serves, while they are used.
//!
//! ```text
//! unionmount upgrade ── asks ──> daemon ── starts ──> successor
//!                                   │  state, descriptors  │
//!                                   └─────────────────────>│  goes on; the daemon ends
//! ```
//!
//! The kernel knows the connection by an open file, which both have, and nodes by numbers. So it notices nothing: between the last
//! request that the daemon has answered and the first that the successor does, requests wait.

mod asking;
pub(super) mod handing;
mod program;
pub(super) mod state;
pub(super) mod successor;
mod talk;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use self::asking::{Daemon, Program, upgrade_all};
use super::page::Page;
use super::{Failure, say};
use crate::control::client::ClientError;
use crate::control::mounts::{self, Mount};
use crate::control::protocol::Upgraded;
use crate::control::runtime_dir;
use crate::union::escaped_path::EscapedPath;

/// The word that stands for the verb where a daemon calls the program.
pub(super) const SUCCESSOR: &str = "--successor";

/// Let this program go on with a mount that another version serves, while it is used
///
/// Programs that use the mount notice nothing: open files, deleted ones too, locks, mappings and working directories stay, and requests
/// wait for a moment. The mount's daemon starts the program, hands all over and ends; where that fails it goes on as before. Not with
/// the options passthrough=lower and uring, or in the foreground: the daemon says so, and stays.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub(super) struct Upgrade {
    /// All mounts that you may ask: your own, as root everybody's
    #[arg(short, long, conflicts_with = "mounts")]
    all: bool,

    /// The program that is to serve them [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,

    /// The mount, or a path in it; may repeat
    #[arg(value_name = "MOUNT", required_unless_present = "all")]
    mounts: Vec<PathBuf>,
}

const AFTER: &str = "\
Example:
  unionmount upgrade merged       # this program from here on
  unionmount upgrade --all        # what a package does when it was installed anew

EXIT STATUS:
  0  all are served by the program now
  1  one is served as before, or didn't answer; stderr says which, and why";

impl Upgrade {
    /// Runs the verb.
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let program = match &self.program {
            Some(program) => std::fs::canonicalize(program),
            None => std::env::current_exe(),
        };
        let failed = |error: std::io::Error| {
            let shown =
                self.program.as_deref().map_or("this program".into(), |at| EscapedPath::from(at).to_string());
            Failure::failed(format!("{shown}: can't be found: {error}"))
        };
        let program = program.map_err(failed)?;
        let found = std::fs::metadata(&program).map_err(failed)?;
        let program = Program { path: program, id: (found.dev(), found.ino()) };
        let mut code = ExitCode::SUCCESS;
        let mut tell = |daemon: &Daemon, done: Result<Upgraded, ClientError>| match done {
            Ok(done) => Page::of_line(format_args!("{}: {}", daemon.shown(), told(&done))).print(),
            Err(error) => {
                say(&format!("{}: {}", daemon.shown(), explained(&error)));
                code = ExitCode::from(1);
                Ok(())
            }
        };
        if self.all {
            upgrade_all(all()?, &program, tell)?;
        } else {
            for daemon in self.named()? {
                tell(&daemon, daemon.upgrade(&program))?;
            }
        }
        Ok(code)
    }

    fn named(&self) -> Result<Vec<Daemon>, Failure> {
        let mount = |path: &PathBuf| Ok(Daemon::Mount(mounts::of(path).map_err(Failure::failed)?.0));
        self.mounts.iter().map(mount).collect()
    }
}

/// Returns all that this user may ask: what is mounted here, and what has a socket of this user's. Each once.
fn all() -> Result<Vec<Daemon>, Failure> {
    let table = |error: std::io::Error| Failure::failed(format!("/proc/self/mountinfo: {error}"));
    runtime_dir::sweep_own();
    let us = rustix::process::geteuid();
    let mut seen: Vec<Mount> = Vec::new();
    for mount in mounts::all().map_err(table)? {
        let is_ours = us.is_root() || mount.owner == Some(us.as_raw());
        if is_ours && !seen.iter().any(|known| known.device == mount.device) {
            seen.push(mount);
        }
    }
    let is_seen = |name: &str| seen.iter().any(|mount| runtime_dir::socket_name(&mount.device) == name);
    let unseen: Vec<Daemon> = runtime_dir::own_sockets()
        .into_iter()
        // Those whose mount has ended are called after something else.
        .filter(|socket| !is_seen(&socket.name) && socket.name.contains(':'))
        .map(|socket| Daemon::Unseen(socket.path))
        .collect();
    Ok(seen.into_iter().map(Daemon::Mount).chain(unseen).collect())
}

fn told(done: &Upgraded) -> String {
    let Upgraded { from, to, pid, micros } = done;
    let from = EscapedPath::from(from.as_bytes());
    let to = EscapedPath::from(to.as_bytes());
    format!("from {from} to {to}, process {pid}; requests waited for {:.1} ms", *micros as f64 / 1000.0)
}

fn explained(error: &ClientError) -> String {
    match error {
        // A daemon of before there were upgrades.
        ClientError::Refused(why) if why.starts_with("not understood") => {
            "its daemon can't hand it over, being older than that; unmount it, and mount again".to_owned()
        }
        error => error.to_string(),
    }
}
