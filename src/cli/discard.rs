//! `unionmount discard`: throws away what an upper changed. Whatever can't be told to be nobody's is left.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Failure;
use super::store::records;
use crate::changes::apply::{self, LETTING_GO};
use crate::control::client::{Client, ClientError, STATUS_PATIENCE};
use crate::control::mounts::{self, Mount};
use crate::control::protocol::Status;
use crate::sys::dir::open_named;
use crate::sys::flock::{Access, lock_until};
use crate::sys::mountinfo::Table;
use crate::sys::object::At;
use crate::sys::remove;
use crate::union::escaped_path::EscapedPath;
use crate::union::frozen::below;
use crate::union::quota::mark;

/// How often a mount is asked again that says nothing of its layers.
const AGAIN: Duration = Duration::from_millis(20);

/// Empty an upper directory: all that was changed is thrown away
#[derive(Debug, clap::Args)]
pub(super) struct Discard {
    /// The upper directory, which no mount may have
    #[arg(value_name = "UPPER")]
    upper: PathBuf,

    /// Don't ask
    #[arg(short, long)]
    yes: bool,
}

impl Discard {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let shown = EscapedPath::from(self.upper.as_path());
        let failed = |error: std::io::Error| Failure::failed(format!("{shown}: cannot be opened: {error}"));
        let dir = match open_named(&self.upper) {
            Err(Errno::NOTDIR) => return Err(Failure::failed(format!("{shown}: is no directory"))),
            dir => File::from(dir.map_err(|errno| failed(errno.into()))?),
        };
        let real = std::fs::canonicalize(&self.upper).map_err(failed)?;
        let _held = hold_alone(&dir, &real)?;
        is_half_applied(&dir)?;
        has_no_snapshots(&self.upper)?;
        if !self.yes {
            let count = remove::names(dir.as_fd()).map_err(|errno| failed(errno.into()))?.len();
            if count == 0 {
                return Ok(ExitCode::SUCCESS);
            }
            let entries = if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") };
            if !super::ask::yes(&format!("Throw away what is in {shown} ({entries})?"), "--yes")? {
                return Err(Failure::told(1));
            }
        }
        // What it took was noted for the next mount.
        mark::forget(dir.as_fd()).map_err(|errno| failed(errno.into()))?;
        remove::empty(dir.as_fd(), &[])
            .map_err(|left| Failure::failed(format!("{shown}/{left}: cannot be removed")))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Refuses an upper that lies on frozen layers: what is in it is not all that was changed.
fn has_no_snapshots(upper: &Path) -> Result<(), Failure> {
    let shown = EscapedPath::from(upper);
    match below::of_path(upper).map_err(Failure::failed)? {
        None => Ok(()),
        Some(_) => Err(Failure::failed(format!(
            "{shown}: has snapshots; unionmount rollback {shown} throws away what was changed since the last one, unionmount \
             rollback {shown} 0 all"
        ))),
    }
}

/// Refuses an upper whose changes are half applied: the rest of them is there alone.
pub(super) fn is_half_applied(upper: &File) -> Result<(), Failure> {
    match apply::pending(upper.as_fd(), &records()?).map_err(Failure::failed)? {
        None => Ok(()),
        Some((upper, target)) => Err(Failure::failed(format!(
            "{upper}: its changes are half applied to {target}; finish that: unionmount apply {upper} {target}; or give it \
             up: unionmount apply --abandon {upper} {target}"
        ))),
    }
}

/// Holds a directory that no mount has, nor anything in it or around it, so that none gets it meanwhile. `real`: its path
/// without symbolic links.
fn hold_alone(dir: &File, real: &Path) -> Result<File, Failure> {
    let shown = EscapedPath::from(real);
    let refused = |why: &str| Err(Failure::failed(format!("{shown}: {why}")));
    if At::Fd(dir.as_fd()).stat().map_err(|errno| cannot_look(real, errno))?.mount_root {
        return refused("something is mounted there; unmount it first, and then name the upper");
    }
    match mounts::of(real) {
        Ok(_) => return refused("lies in a mount; name the upper, when that is unmounted"),
        Err(mounts::NotFound::Elsewhere(_)) => {}
        Err(error) => return Err(Failure::failed(error)),
    }
    let held = dir.try_clone().map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
    match lock_until(&held, Access::Exclusive, Instant::now() + LETTING_GO) {
        Ok(true) => {}
        Ok(false) => return refused("a mount has it; unmount it first"),
        Err(errno) => {
            let error = std::io::Error::from(errno);
            return refused(&format!(
                "whether a mount has it can't be told here ({error}); if none has, remove what is in it by hand"
            ));
        }
    }
    if let Some(point) = mounted_within(real)? {
        let point = EscapedPath::from(point.as_path());
        return refused(&format!("{point} is mounted in it; unmount that first"));
    }
    for (point, layer) in layers()? {
        if layer.starts_with(real) {
            let (point, layer) = (EscapedPath::from(point.as_path()), EscapedPath::from(layer.as_path()));
            return refused(&format!("the mount {point} has {layer} as a layer; unmount it first"));
        }
    }
    // Around it, also those of mounts that can't be seen from here. Others who look at the same time keep nobody away.
    for around in real.ancestors().skip(1).filter(|around| *around != Path::new("/")) {
        let Ok(dir) = File::open(around) else { continue };
        if matches!(lock_until(&dir, Access::Shared, Instant::now() + LETTING_GO), Ok(false)) {
            let around = EscapedPath::from(around);
            return refused(&format!("lies in {around}, which a mount has; unmount that first"));
        }
    }
    Ok(held)
}

fn cannot_look(path: &Path, error: impl Into<std::io::Error>) -> Failure {
    Failure::failed(format!("{}: cannot be looked at: {}", EscapedPath::from(path), error.into()))
}

/// Finds a mount point beneath a directory.
fn mounted_within(real: &Path) -> Result<Option<PathBuf>, Failure> {
    use std::os::unix::ffi::OsStrExt;
    let table = Table::read().map_err(|error| cannot_look(Path::new("/proc/self/mountinfo"), error))?;
    let points = table.entries().map(|entry| PathBuf::from(std::ffi::OsStr::from_bytes(&entry.point)));
    Ok(points.into_iter().find(|point| point.starts_with(real)))
}

/// Lists the layers of all mounts that can be seen from here and asked: of unionmount, and the uppers of the kernel's overlayfs.
/// Each with the mount point.
pub(super) fn layers() -> Result<Vec<(PathBuf, PathBuf)>, Failure> {
    use std::os::unix::ffi::OsStrExt;
    let cannot = |error| cannot_look(Path::new("/proc/self/mountinfo"), error);
    let mut layers = Vec::new();
    // Daemons of others are asked nothing: they could keep this waiting, and say what they like.
    for mount in mounts::all().map_err(cannot)?.into_iter().filter(|mount| !mount.is_of_another()) {
        // A daemon that doesn't answer holds its upper, which is seen by the lock.
        match status_of(&mount) {
            Ok(Some(status)) => {
                let paths = status.layers.iter().map(|layer| layer.directory.as_path().to_owned());
                // A path of one that the mount covers leads to the mount.
                let covered = |path: &Path| mounts::device_at(path).is_ok_and(|at| at == mount.device);
                layers.extend(paths.filter(|path| !covered(path)).map(|path| (mount.point.clone(), path)));
            }
            Ok(None) => {}
            // It is there and says nothing of its layers now: that is no proof of anything.
            Err(ClientError::Refused(why)) => {
                let (point, why) =
                    (EscapedPath::from(mount.point.as_path()), EscapedPath::from(why.as_bytes()));
                return Err(Failure::failed(format!(
                    "{point}: which layers that mount has can't be told: {why}; try again"
                )));
            }
            Err(error) => log::debug!("{error}"),
        }
    }
    for entry in Table::read().map_err(cannot)?.entries().filter(|entry| entry.kind == "overlay") {
        let upper = entry.filesystem_options.split(',').find_map(|option| option.strip_prefix("upperdir="));
        if let Some(upper) = upper.and_then(|upper| std::fs::canonicalize(upper).ok()) {
            layers.push((PathBuf::from(std::ffi::OsStr::from_bytes(&entry.point)), upper));
        }
    }
    Ok(layers)
}

/// Asks a mount for its state. `None`: it has ended meanwhile. One that says so and is there still is asked again for a while.
fn status_of(mount: &Mount) -> Result<Option<Status>, ClientError> {
    let end = Instant::now() + LETTING_GO;
    loop {
        match Client::connect_within(mount, STATUS_PATIENCE).and_then(|mut daemon| daemon.status()) {
            Err(ClientError::Refused(why)) => {
                let has_gone = |all: Vec<Mount>| all.iter().all(|other| other.device != mount.device);
                if mounts::all().is_ok_and(has_gone) {
                    return Ok(None);
                }
                if Instant::now() >= end {
                    return Err(ClientError::Refused(why));
                }
                std::thread::sleep(AGAIN);
            }
            answered => return answered.map(Some),
        }
    }
}

/// Refuses to throw away a directory that a mount which can be seen from here has as a layer, one that is only read too.
pub(super) fn is_unused(dir: &Path) -> Result<(), Failure> {
    let id = |path: &Path| std::fs::metadata(path).ok().map(|stat| (stat.dev(), stat.ino()));
    let Some(own) = id(dir) else { return Ok(()) };
    match layers()?.iter().find(|(_, layer)| id(layer) == Some(own)) {
        None => Ok(()),
        Some((point, _)) => Err(Failure::failed(format!(
            "{}: the mount {} has it as a layer; unmount that first",
            EscapedPath::from(dir),
            EscapedPath::from(point.as_path())
        ))),
    }
}

/// Refuses a target that a mount has as a layer, but for the mounts of this very upper; and what this program keeps itself.
pub(super) fn is_no_layer(target: &Path, upper: &Path, own: &Path) -> Result<(), Failure> {
    let shown = EscapedPath::from(target);
    let id = |path: &Path| std::fs::metadata(path).ok().map(|stat| (stat.dev(), stat.ino()));
    let (Some(target_id), upper_id) = (id(target), id(upper)) else { return Ok(()) };
    if std::fs::canonicalize(target).is_ok_and(|real| real.starts_with(own)) {
        return Err(Failure::failed(format!("{shown}: belongs to what unionmount keeps itself")));
    }
    let layers = layers()?;
    let with_upper = |point: &PathBuf| {
        layers.iter().any(|(other, layer)| other == point && upper_id.is_some() && id(layer) == upper_id)
    };
    match layers.iter().find(|(point, layer)| id(layer) == Some(target_id) && !with_upper(point)) {
        None => Ok(()),
        Some((point, _)) => Err(Failure::failed(format!(
            "{shown}: the mount {} has it as a layer, and shows a mixture when that is changed; unmount it first",
            EscapedPath::from(point.as_path())
        ))),
    }
}
