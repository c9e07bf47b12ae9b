//! `unionmount umount`, and the helper by which umount(8) calls it: unmounting to the end.
//!
//! umount(2) returns when the kernel has cut the connection; only then does the daemon see it. Until it has ended it
//! holds its layers, so that `umount merged && umount lower` is a race, and what it wrote may not be on the disk.
//! So whoever unmounts here waits for the daemon.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser};

use super::store::StoreArgs;
use super::{Failure, say};
use crate::container::called::{Called, called};
use crate::container::{ContainerError, mounting};
use crate::control::client::{Client, STATUS_PATIENCE};
use crate::control::mounts::{self, Mount};
use crate::fuse::mount::{MountError, Mounted};
use crate::sys::process::ended_within;
use crate::union::escaped_path::EscapedPath;

/// How long a daemon may take to end: it syncs the upper's filesystem, of which others may have written much.
const PATIENCE: Duration = Duration::from_secs(120);

/// Unmount, and wait until what was written is on the disk; the layers are free then
#[derive(Debug, Args)]
pub(super) struct Umount {
    /// Take it out of the tree at once though it is in use; who uses it may finish, and nothing is waited for
    #[arg(short, long)]
    lazy: bool,

    /// Where it is mounted, or the container or image that is, by name or id; may repeat
    #[arg(value_name = "MOUNTPOINT|NAME", required = true)]
    points: Vec<PathBuf>,

    #[command(flatten)]
    store: StoreArgs,
}

/// The command line by which umount(8) calls `umount.TYPE`.
#[derive(Debug, Parser)]
#[command(name = "umount.fuse.unionmount", version)]
struct HelperCli {
    /// What to unmount
    target: PathBuf,
    /// Detach
    #[arg(short)]
    lazy: bool,
    /// For unreachable network filesystems, which this is none of
    #[arg(short)]
    force: bool,
    /// Write no mtab, which is never done
    #[arg(short)]
    no_mtab: bool,
    /// Remount read-only when busy, which the caller does
    #[arg(short)]
    read_only: bool,
    /// Say more
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    /// The type, which the name tells
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<OsString>,
    /// The namespace, which the caller has entered
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<OsString>,
}

/// Reads the arguments of a program that umount(8) calls; `None` when it is not.
pub(super) fn helper_args(called: &OsStr, args: &[OsString]) -> Option<Result<Umount, clap::Error>> {
    called.as_bytes().starts_with(b"umount.").then(|| {
        HelperCli::try_parse_from(args).map(|cli| Umount {
            lazy: cli.lazy,
            points: vec![cli.target],
            store: StoreArgs::default(),
        })
    })
}

impl Umount {
    /// Runs the verb.
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        for point in &self.points {
            for (name, mount) in self.mounts_of(point)? {
                unmount(&name, &mount, self.lazy)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Finds what is meant, and what messages call it: a mount of unionmount at that path, or else those of the container or
    /// the image of this name.
    fn mounts_of(&self, given: &Path) -> Result<Vec<(PathBuf, Mount)>, Failure> {
        let shown = EscapedPath::from(given).to_string();
        let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{shown}: {error}"));
        let point = std::fs::canonicalize(given);
        if let Ok(point) = &point
            && let Some(mount) = mounts::at(point).map_err(unreadable_table)?
        {
            return Ok(vec![(given.to_owned(), mount)]);
        }
        let no_mount = match point {
            Ok(_) => failed(&"no mount of unionmount; `unionmount status` lists them"),
            Err(error) => failed(&format!("{error}; `unionmount status` lists the mounts")),
        };
        let Some(named) = self.mounts_of_name(given)? else { return Err(no_mount) };
        if named.is_empty() {
            return Err(failed(&"is mounted nowhere that is seen from here"));
        }
        Ok(named.into_iter().map(|mount| (mount.point.clone(), mount)).collect())
    }

    /// Returns where the container or the image of this name is mounted; `None`: nothing is called so.
    fn mounts_of_name(&self, name: &Path) -> Result<Option<Vec<Mount>>, Failure> {
        // What looks like a path from here on is one.
        let is_path = |text: &str| ["/", "./", "../"].iter().any(|start| text.starts_with(start));
        let Some(text) = name.to_str().filter(|text| !is_path(text)) else { return Ok(None) };
        let Some(store) = self.store.existing()? else { return Ok(None) };
        let id = match called(&store, text, true) {
            Ok(Called::Container(container)) => container.short_id().to_owned(),
            Ok(Called::Image(image)) => image.id.short(),
            Err(ContainerError::Unknown(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(Some(mounting::mounts_of(&id)?))
    }
}

fn unreadable_table(error: std::io::Error) -> Failure {
    Failure::failed(format!("/proc/self/mountinfo: {error}"))
}

fn unmount(name: &Path, mount: &Mount, lazy: bool) -> Result<(), Failure> {
    let shown = EscapedPath::from(name).to_string();
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{shown}: {error}"));
    let daemon = if lazy { None } else { daemon_of(mount) };
    Mounted::found(&mount.point).unmount(lazy).map_err(|error| match error {
        MountError::Unmount { busy: true, .. } => {
            failed(&"is in use; end what uses it (`fuser -vm` tells), or use --lazy")
        }
        error => Failure::failed(error),
    })?;
    let Some(daemon) = daemon else { return Ok(()) };
    // A bind mount goes on being served.
    let elsewhere = |other: &Mount| other.device == mount.device;
    if mounts::all().map_err(unreadable_table)?.iter().any(elsewhere) {
        return Ok(());
    }
    match ended_within(&daemon, PATIENCE) {
        Ok(true) => Ok(()),
        Ok(false) => {
            say(&format!(
                "{shown}: unmounted, but its daemon goes on: another mount namespace may hold the mount, or with lazy=on \
                 much is left to be sealed"
            ));
            Ok(())
        }
        Err(error) => Err(failed(&format!("unmounted, but its daemon can't be waited for: {error}"))),
    }
}

/// Finds the process that serves a mount, as its socket tells: an open pidfd. `None` when it has gone or can't be
/// asked.
fn daemon_of(mount: &Mount) -> Option<OwnedFd> {
    Client::connect_within(mount, STATUS_PATIENCE)
        .map_err(|error| error.to_string())
        .and_then(|client| client.daemon().map_err(|error| error.to_string()))
        .map_err(|error| log::info!("{error}; its end is not waited for"))
        .ok()
}
