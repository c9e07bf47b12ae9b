//! `unionmount snapshotter`: containerd's proxy snapshotter. Only with the cargo feature `snapshotter`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::logging::{self, LogOptions};
use super::{Failure, page};
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

    /// Print what containerd's config.toml needs, for containerd 1 or 2, and do nothing else
    #[arg(long)]
    print_config: bool,

    /// Which containerd the configuration is for
    #[arg(long, value_name = "1|2", default_value_t = 2, requires = "print_config",
          value_parser = clap::value_parser!(u8).range(1..=2))]
    containerd: u8,

    /// Move all snapshots and the database of --root out of the way first, to begin with none; for a root whose database is
    /// lost or damaged. Nothing is deleted
    #[arg(long)]
    set_aside: bool,

    /// Say more: -v each call, -vv why, -vvv everything (or set RUST_LOG)
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,

    /// Add messages to this file
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

const EXAMPLE: &str = r#"unionmount snapshotter --print-config --containerd 1 (or 2) prints what containerd's config.toml needs.
Then: ctr images pull --snapshotter unionmount IMAGE; ctr run --snapshotter unionmount …

SIGTERM and SIGINT end it when the calls under way have ended. Mounts are not its own: containers run on."#;

impl Snapshotter {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        if self.print_config {
            let text = containerd_config(self.containerd, &self.address, &self.root)?;
            page::print_own(text.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
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
        let options = Options { address: self.address, root, program, set_aside: self.set_aside };
        server::serve(&options).map_err(Failure::failed)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns what containerd's config.toml needs.
///
/// `exports.root` tells a kubelet where the images lie, so that it measures the right disk. `remap-ids` tells containerd
/// (since 1.7) that a snapshot is shown with other owners by its labels, or it copies and chowns the image for each pod with a user namespace.
/// containerd 2 drops the keys of version 2 that name a snapshotter, and unpacks what `ctr images pull` fetches by the transfer
/// service, which has a list of its own.
fn containerd_config(containerd: u8, address: &Path, root: &Path) -> Result<String, Failure> {
    let quoted = |path: &Path| match path.to_str() {
        // A string of JSON is one of TOML.
        Some(text) => Ok(serde_json::Value::from(text).to_string()),
        None => Err(Failure::usage(format!("{}: containerd needs UTF-8", path.display()))),
    };
    let (address, root) = (quoted(address)?, quoted(root)?);
    let plugin = format!(
        r#"[proxy_plugins.unionmount]
  type = "snapshot"
  address = {address}
  capabilities = ["remap-ids"]
  [proxy_plugins.unionmount.exports]
    root = {root}
"#
    );
    Ok(match containerd {
        1 => format!(
            r#"version = 2

{plugin}
# For the pods of a Kubernetes node; ctr and nerdctl take --snapshotter unionmount.
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "unionmount"
  disable_snapshot_annotations = true
"#
        ),
        _ => format!(
            r#"version = 3

{plugin}
# For the pods of a Kubernetes node; ctr and nerdctl take --snapshotter unionmount.
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "unionmount"
  disable_snapshot_annotations = true

# For what `ctr images pull` fetches without --local.
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux/{machine}"
  snapshotter = "unionmount"
"#,
            machine = oci_spec::image::Arch::default()
        ),
    })
}

fn this_program() -> Result<String, Failure> {
    let unknown = |why: &dyn std::fmt::Display| {
        Failure::failed(format!("cannot tell where this program lies ({why}): give --mount-program"))
    };
    let path = std::env::current_exe().map_err(|error| unknown(&error))?;
    path.into_os_string().into_string().map_err(|_| unknown(&"its path is not UTF-8"))
}

/// Tells whether a program is in PATH. containerd's PATH is another one, but it is likely to hold as much.
fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places =
        std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(|place| Path::new(place).into()));
    places.map(|place| place.join(program)).any(|place| place.exists())
}
