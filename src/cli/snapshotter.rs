//! `unionmount snapshotter`: containerd's proxy snapshotter. Only with the cargo feature `snapshotter`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::Failure;
use super::logging::{self, LogOptions};
use crate::snapshotter::server::{self, Options};

/// Keep containerd's snapshots: serve its proxy plugin of type "snapshot"
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Snapshotter {
    /// The socket on which containerd calls
    #[arg(long, value_name = "SOCKET", default_value = "/run/unionmount-snapshotter/snapshotter.sock")]
    address: PathBuf,

    /// Where the snapshots lie
    #[arg(long, value_name = "DIR", default_value = "/var/lib/unionmount-snapshotter")]
    root: PathBuf,

    /// What containerd runs to mount a snapshot: a program in its PATH, or a path [default: this program]
    #[arg(long, value_name = "PROGRAM")]
    mount_program: Option<String>,

    /// Say more: -v each call, -vv why, -vvv everything (or set RUST_LOG)
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,

    /// Add messages to this file
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

const EXAMPLE: &str = r#"In containerd's config.toml:
  [proxy_plugins.unionmount]
    type = "snapshot"
    address = "/run/unionmount-snapshotter/snapshotter.sock"
Then: ctr images pull --snapshotter unionmount IMAGE; ctr run --snapshotter unionmount …

SIGTERM and SIGINT end it when the calls under way have ended. Mounts are not its own: containers run on."#;

impl Snapshotter {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        logging::start(&LogOptions { verbosity: self.verbose, file: self.log_file })?;
        let program = match self.mount_program {
            Some(program) => program,
            None => this_program()?,
        };
        for needed in ["mount.fuse3", "fusermount3"] {
            if !in_path(needed) {
                log::warn!("{needed} is not in PATH; containerd needs it to mount snapshots: install fuse3");
            }
        }
        // containerd mounts by the paths that it is told, wherever it runs.
        let root = std::path::absolute(&self.root)
            .map_err(|error| Failure::failed(format!("root {}: {error}", self.root.display())))?;
        if root.to_str().is_none() {
            return Err(Failure::usage(format!("root {}: containerd needs UTF-8", root.display())));
        }
        server::serve(&Options { address: self.address, root, program }).map_err(Failure::failed)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn this_program() -> Result<String, Failure> {
    let unknown = |why: &dyn std::fmt::Display| {
        Failure::failed(format!("cannot tell where this program lies ({why}): give --mount-program"))
    };
    let path = std::env::current_exe().map_err(|error| unknown(&error))?;
    path.into_os_string().into_string().map_err(|_| unknown(&"its path is not UTF-8"))
}

/// containerd's PATH is another one, but it is likely to hold as much.
fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places =
        std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(|place| Path::new(place).into()));
    places.map(|place| place.join(program)).any(|place| place.exists())
}
