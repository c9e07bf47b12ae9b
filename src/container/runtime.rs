//! Running a command in a container, by an OCI runtime that is installed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use oci_spec::image::ImageConfiguration;
use rustix::process::{Pid, Signal};

use super::bundle;
use super::error::{ContainerError, Result};
use super::host::on_path;
use super::host_environment::{HostEnvironment, image_volumes};
use super::mounting::Rights;
use super::network::Network;
use super::record::Container;
use super::state::ContainerState;
use super::{executable, mounting, user};
use crate::image::layer::{self, ApplyOptions, Ownership, WriteOptions};
use crate::image::store::Store;
use crate::sys::remove;

/// Where the bundle keeps which program runs the container.
const PROGRAM: &str = "program";

/// An installed runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    program: PathBuf,
}

/// Finds a runtime: the one that was given, else crun, runc or youki on PATH.
///
/// # Errors
/// When there is none.
pub fn find(given: Option<&Path>) -> Result<Runtime> {
    if let Some(program) = given {
        let named = program.components().count() == 1;
        return match if named { on_path(program) } else { Some(program.to_owned()).filter(|p| p.is_file()) } {
            Some(program) => Ok(Runtime { program }),
            None => Err(ContainerError::Refused(format!("{}: no such OCI runtime", program.display()))),
        };
    }
    // crun before 1.9 refuses machines that have both versions of cgroups mounted.
    let both = Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists();
    let order = if both { ["runc", "crun", "youki"] } else { ["crun", "runc", "youki"] };
    order.iter().find_map(|name| on_path(Path::new(name))).map(|program| Runtime { program }).ok_or_else(|| {
        ContainerError::Refused(
            "no OCI runtime is installed: install one of the packages crun and runc, or name one with --runtime; \
             to work in a container without one: unionmount create, unionmount mount"
                .to_owned(),
        )
    })
}

/// Returns whether this process is root of a user namespace.
pub fn in_user_namespace() -> bool {
    Ownership::of_this_process() == Ownership::OverrideStat
}

/// Finds a small init that needs no libraries: it runs in the container's root.
fn find_init() -> Result<PathBuf> {
    const NAMES: [&str; 5] =
        ["/usr/libexec/podman/catatonit", "catatonit", "docker-init", "tini-static", "dumb-init"];
    NAMES.iter().find_map(|name| on_path(Path::new(name))).ok_or_else(|| {
        ContainerError::Refused(
            "--init needs an init, and none is installed: install the package catatonit or tini".to_owned(),
        )
    })
}

impl Runtime {
    /// Mounts the container, runs its command to its end, and unmounts it. Returns the command's exit status.
    ///
    /// # Errors
    /// When it can't be mounted or started; what the runtime says goes to stderr as it is.
    pub fn run(&self, store: &Store, container: &mut Container, image: &ImageConfiguration) -> Result<i32> {
        let lock = container.lock()?;
        let merged = container.merged();
        let started = jiff::Timestamp::now().to_string();
        let done = container
            .mount(store, &merged, Rights::OF_RUNNING)
            .and_then(|()| self.run_mounted(container, image, &merged));
        // The mount goes in every case; of two errors the first is told.
        let gone = mounting::detach(&merged);
        let code = done?;
        gone?;
        // It may have been renamed meanwhile, or removed.
        container.update(|record| {
            record.started = Some(started);
            record.exit_code = Some(code);
            record.finished = Some(jiff::Timestamp::now().to_string());
        })?;
        drop(lock);
        Ok(code)
    }

    fn run_mounted(&self, container: &Container, image: &ImageConfiguration, merged: &Path) -> Result<i32> {
        let settings = &container.record.settings;
        let root = File::open(merged).map_err(ContainerError::io("open it", merged))?;
        let config = image.config().clone().unwrap_or_default();
        let wanted = settings.user.clone().or(config.user().clone()).unwrap_or_default();
        let user = user::find(&root, &wanted)?;
        let volumes = prepare_volumes(container, image, &root)?;
        let user_namespace = in_user_namespace();
        let hostname = settings.hostname.as_deref().unwrap_or_else(|| container.short_id());
        let init = if settings.init { Some(find_init()?) } else { None };
        let network = Network::start(settings.net, &container.dir, user_namespace)?;
        let files = network.files(settings, hostname, &container.dir)?;
        let around = HostEnvironment {
            rootfs: merged,
            hostname,
            places: &container.record.places,
            volumes: &volumes,
            files: &files,
            net: network.net,
            netns: network.netns.as_deref(),
            init: init.as_deref(),
            user_namespace,
            silence_allows: self.program.file_name().is_some_and(|name| name == "crun"),
        };
        let spec = bundle::spec(image, settings, &user, &around)?;
        if let Some(process) = spec.process() {
            executable::check(&root, process, spec.mounts().as_deref().unwrap_or_default())?;
        }
        drop(root);
        let bundle = container.dir.join("bundle");
        spec.save(bundle.join("config.json"))
            .map_err(|error| ContainerError::Refused(format!("{}: {error}", bundle.display())))?;
        self.run_bundle(container, &bundle, user_namespace)
    }

    /// Runs what the bundle describes to its end.
    fn run_bundle(&self, container: &Container, bundle: &Path, user_namespace: bool) -> Result<i32> {
        let state = state_dir(container);
        let id = &container.record.id;
        if state.join(id).exists() {
            // A run before was killed with its runtime's monitor.
            forget(container);
        }
        // Written when the container has been made, with all that keeps it from the host.
        let started = bundle.join("started");
        let program = bundle.join(PROGRAM);
        fs::write(&program, self.program.as_os_str().as_bytes())
            .map_err(ContainerError::io("write", &program))?;
        let mut command = self.command(&state, user_namespace);
        command.arg("run").arg("--bundle").arg(bundle).arg("--pid-file").arg(&started).arg(id);
        if !container.record.settings.interactive {
            command.stdin(Stdio::null());
        }
        let code = wait(&mut command, &self.program)?;
        if let Err(left) = remove::tree(&state) {
            log::warn!("cannot be removed: {left}");
        }
        if code != 0 && !started.exists() {
            return Err(ContainerError::Refused(format!(
                "{} could not make the container, and has said why; --runtime names another one, and --privileged leaves \
                 out device rules and filters",
                self.program.display()
            )));
        }
        Ok(code)
    }

    /// Finds the runtime that runs a container: each keeps its state in a file of its own.
    ///
    /// # Errors
    /// When it isn't installed any more.
    pub(super) fn of(container: &Container) -> Result<Runtime> {
        let state = state_dir(container).join(&container.record.id);
        if let Ok(program) = fs::read(container.dir.join("bundle").join(PROGRAM)) {
            let program = PathBuf::from(OsString::from_vec(program));
            // It may have been replaced by another package's since.
            return match program.is_file() {
                true => Ok(Runtime { program }),
                false => find(program.file_name().map(Path::new)),
            };
        }
        // A version before this one started it.
        let name = if state.join("status").exists() { "crun" } else { "runc" };
        find(Some(Path::new(name)))
    }

    /// Returns its program.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    pub(super) fn command(&self, state: &Path, user_namespace: bool) -> Command {
        let mut command = Command::new(&self.program);
        let name = self.program.file_name().unwrap_or_default();
        if user_namespace && name == "runc" {
            // It may not manage cgroups, and needs none.
            command.arg("--rootless=true");
        } else if user_namespace && name == "crun" {
            command.arg("--cgroup-manager=disabled");
        }
        command.arg("--root").arg(state);
        command
    }
}

/// Returns where the runtime of a container keeps what it knows of it.
pub(super) fn state_dir(container: &Container) -> PathBuf {
    container.dir.join("runtime")
}

/// Lets a runtime clean up a container whose `run` was killed. What can't be cleaned is of no harm.
pub(super) fn forget(container: &Container) {
    let Ok(runtime) = Runtime::of(container) else { return };
    let mut command = runtime.command(&state_dir(container), in_user_namespace());
    command.args(["delete", "--force", &container.record.id]).stdin(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => log::info!("{}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => log::info!("{}: {error}", runtime.program.display()),
    }
}

/// A container whose processes stand still; they go on when this is dropped.
#[derive(Debug)]
pub struct Paused {
    runtime: Runtime,
    state: PathBuf,
    id: String,
}

impl Drop for Paused {
    fn drop(&mut self) {
        let mut command = self.runtime.command(&self.state, in_user_namespace());
        match command.args(["resume", &self.id]).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => log::error!(
                "container {} stays paused: {}",
                self.id,
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            Err(error) => log::error!("container {} stays paused: {error}", self.id),
        }
    }
}

/// Lets a running container's processes stand still. `None`: it doesn't run.
///
/// # Errors
/// When its runtime can't do so; an ordinary user's containers have no cgroup for it.
pub fn pause(container: &Container) -> Result<Option<Paused>> {
    if container.state()? != ContainerState::Running {
        return Ok(None);
    }
    let (state, id) = (state_dir(container), container.record.id.clone());
    let runtime = Runtime::of(container)?;
    let mut command = runtime.command(&state, in_user_namespace());
    let output = command
        .args(["pause", &id])
        .stdin(Stdio::null())
        .output()
        .map_err(ContainerError::io("run it", &runtime.program))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        return Err(ContainerError::Refused(format!(
            "container {} cannot be paused: {said}; commit it without -p",
            container.shown_name()
        )));
    }
    Ok(Some(Paused { runtime, state, id }))
}

/// Makes the directories of the image's volumes, filled with what the image has there.
fn prepare_volumes(
    container: &Container,
    image: &ImageConfiguration,
    root: &File,
) -> Result<Vec<(PathBuf, PathBuf)>> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
    let mut volumes = Vec::new();
    for (number, target) in image_volumes(image, &container.record.settings).into_iter().enumerate() {
        let dir = container.dir.join("volumes").join(number.to_string());
        fs::create_dir(&dir).map_err(ContainerError::io("create it", &dir))?;
        let made = File::open(&dir).map_err(ContainerError::io("open it", &dir))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(there) = openat2(root, &target, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            copy(there.as_fd(), made.as_fd())
                .map_err(|source| ContainerError::Layer { id: container.short_id().to_owned(), source })?;
        }
        volumes.push((dir, target));
    }
    Ok(volumes)
}

/// Copies a directory with all that it holds, by way of a tar that is never whole.
fn copy(
    from: std::os::fd::BorrowedFd<'_>,
    to: std::os::fd::BorrowedFd<'_>,
) -> std::result::Result<(), layer::LayerError> {
    let (reader, writer) = std::io::pipe().map_err(layer::LayerError::Read)?;
    std::thread::scope(|scope| {
        let writing = std::thread::Builder::new().spawn_scoped(scope, move || {
            // A mount shows real owners, whoever keeps them; a volume is no layer and has them as they are.
            let options = WriteOptions { ownership: Ownership::Real, lowers: &[], root: true };
            layer::write_tar(from, writer, &options)
        });
        let writing = writing.map_err(layer::LayerError::Write)?;
        let limits = layer::Limits { entries: u64::MAX, bytes: u64::MAX };
        let applied = layer::apply(reader, to, &ApplyOptions { ownership: Ownership::Real, limits });
        let written = writing
            .join()
            .unwrap_or_else(|_| Err(layer::LayerError::Write(std::io::Error::other("a thread panicked"))));
        // A reader that fails closes the pipe; its error is the cause then.
        applied?;
        written.map(|_| ())
    })
}

/// Runs the runtime to its end, and hands on what would end this process.
pub(super) fn wait(command: &mut Command, program: &Path) -> Result<i32> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])
        .map_err(ContainerError::io("catch signals for it", program))?;
    let handle = signals.handle();
    // The thread comes first: a runtime whose end nobody could hand on isn't begun.
    let (told, pid) = std::sync::mpsc::channel();
    let forwarder = std::thread::Builder::new().name("forward".into()).spawn(move || {
        let pid = pid.recv().ok().flatten();
        for signal in signals.forever() {
            // A terminal sends these to the runtime itself.
            if (signal == SIGINT || signal == SIGQUIT) && std::io::stdin().is_terminal() {
                continue;
            }
            if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(signal))
                && let Err(errno) = rustix::process::kill_process(pid, signal)
            {
                log::debug!("the runtime has gone: {errno}");
            }
        }
    });
    let forwarder = forwarder.map_err(ContainerError::io("start a thread beside it", program))?;
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            drop(told);
            handle.close();
            return Err(ContainerError::io("run it", program)(error));
        }
    };
    // It waits for this.
    told.send(i32::try_from(child.id()).ok().and_then(Pid::from_raw)).unwrap_or_default();
    let status = child.wait();
    handle.close();
    if forwarder.join().is_err() {
        log::warn!("the thread that hands on signals has panicked");
    }
    let status = status.map_err(ContainerError::io("wait for it", program))?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}
