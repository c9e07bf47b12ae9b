//! One more command in a container that runs: the runtime that made its namespaces lets the command join them, with the
//! rights and the filter of the container.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use super::error::{ContainerError, Result};
use super::record::Container;
use super::runtime::{Runtime, in_user_namespace, state_dir, wait};
use super::{bundle, executable, user};
use crate::image::store::Store;
use crate::sys::namespace;

/// What is run, and how.
#[derive(Debug, Clone, Default)]
pub struct Joining {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Variables beside those of the container, `NAME=VALUE` or a name alone.
    pub env: Vec<String>,
    /// The working directory instead of the container's.
    pub working_dir: Option<String>,
    /// `USER[:GROUP]` instead of the container's.
    pub user: Option<String>,
    /// It has a terminal.
    pub terminal: bool,
    /// It reads stdin.
    pub interactive: bool,
    /// It may do what the container's caller may.
    pub privileged: bool,
}

/// Runs a command in a container that runs, to its end. Returns the command's exit status.
///
/// # Errors
/// When the container doesn't run, or its runtime can't let the command in; what that says goes to stderr as it is.
pub fn run(store: &Store, container: &Container, joining: &Joining) -> Result<i32> {
    let image = store.resolve(&container.record.image.to_string())?;
    if let Some(pid) = container.runner()?
        && !rustix::process::geteuid().is_root()
        && namespace::is_elsewhere(pid)
    {
        // An ordinary user's: it can be joined from its own namespace alone.
        namespace::join_namespaces_of(pid)
            .map_err(ContainerError::io("enter the namespaces of it", format!("/proc/{pid}")))?;
    }
    let Some(init) = container.init() else {
        return Err(ContainerError::Refused(format!(
            "container {} doesn't run; unionmount run starts a new one, unionmount mount {} shows its files",
            container.shown_name(),
            container.shown_name()
        )));
    };
    let path = PathBuf::from(format!("/proc/{}/root", init.as_raw_nonzero()));
    let root = File::open(&path).map_err(ContainerError::io("open it", &path))?;
    if container.init() != Some(init) {
        // Its number may be another's by now, in whose files the user would be looked up.
        return Err(ContainerError::Refused(format!("container {} has just ended", container.shown_name())));
    }
    let own = &container.record.settings;
    let mut settings = own.clone();
    settings.env.extend(joining.env.iter().cloned());
    settings.working_dir = joining.working_dir.clone().or(settings.working_dir);
    settings.terminal = joining.terminal;
    settings.privileged = joining.privileged || own.privileged;
    let config = image.config.config().clone().unwrap_or_default();
    let wanted = joining.user.clone().or(own.user.clone()).or(config.user().clone()).unwrap_or_default();
    let user = user::find(&root, &wanted)?;
    let hostname = own.hostname.as_deref().unwrap_or_else(|| container.short_id());
    let process = bundle::joining(&image.config, &settings, &user, hostname, joining.command.clone())?;
    // All that is mounted in it is seen by its root.
    executable::check(&root, &process, &[])?;
    drop(root);
    let bundle = container.dir.join("bundle");
    let told = serde_json::to_vec(&process)
        .map_err(|error| ContainerError::Refused(format!("the runtime's config cannot be made: {error}")))?;
    let mut file = tempfile::NamedTempFile::new_in(&bundle)
        .map_err(ContainerError::io("create a file in it", &bundle))?;
    file.write_all(&told).map_err(ContainerError::io("write", file.path()))?;
    let runtime = Runtime::of(container)?;
    let mut command = runtime.command(&state_dir(container), in_user_namespace());
    command.arg("exec").arg("--process").arg(file.path()).arg(&container.record.id);
    if !joining.interactive {
        command.stdin(Stdio::null());
    }
    wait(&mut command, runtime.program())
}
