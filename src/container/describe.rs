//! What is known of a container, in the shape in which Docker tells it.

use std::path::Path;

use serde_json::{Value, json};

use super::bundle::{command, own_environment};
use super::error::Result;
use super::host_environment::image_volumes;
use super::record::Container;
use super::settings::{Cap, Net, Settings};
use super::state::ContainerState;
use crate::image::describe::{ContainerDirs, graph_driver};
use crate::image::store::{Image, Store};

/// What Docker writes for a time that has not come.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Returns a container as `docker inspect` shows it.
///
/// # Errors
/// When its image or its layers can't be read.
pub fn inspect(store: &Store, container: &Container) -> Result<Value> {
    let record = &container.record;
    let image = store.resolve(&record.image.to_string())?;
    let words = command(&image.config, &record.settings).unwrap_or_default();
    let layers = container.all_below(store)?.paths;
    let (upper, merged) = (container.upper(), container.merged());
    let work = upper.with_file_name("work");
    let dirs = ContainerDirs { upper: &upper, work: &work, merged: &merged };
    Ok(json!({
        "Id": record.id,
        "Created": record.created,
        "Path": words.first(),
        "Args": words.get(1..).unwrap_or_default(),
        "State": state(container)?,
        "Image": record.image,
        "Name": container.shown_name(),
        "RestartCount": 0,
        "Driver": "unionmount",
        "Platform": image.config.os().to_string(),
        "HostConfig": host_config(&record.settings),
        "GraphDriver": graph_driver(&layers, Some(dirs)),
        "Mounts": mounts(container, &image),
        "Config": config(container, &image),
    }))
}

fn state(container: &Container) -> Result<Value> {
    let record = &container.record;
    let state = container.state()?;
    let running = state == ContainerState::Running;
    let status = match state {
        ContainerState::Running => "running",
        ContainerState::Exited(_) => "exited",
        ContainerState::Created => "created",
    };
    let started = if running { container.running_since() } else { record.started.clone() };
    Ok(json!({
        "Status": status,
        "Running": running,
        "Paused": false,
        "Restarting": false,
        "OOMKilled": false,
        "Dead": false,
        "Pid": container.init().filter(|_| running).map_or(0, |pid| pid.as_raw_nonzero().get()),
        "ExitCode": if running { 0 } else { record.exit_code.unwrap_or(0) },
        "Error": "",
        "StartedAt": started.as_deref().unwrap_or(NEVER),
        "FinishedAt": record.finished.as_deref().filter(|_| !running).unwrap_or(NEVER),
    }))
}

fn mounts(container: &Container, image: &Image) -> Vec<Value> {
    let settings = &container.record.settings;
    let mount = |kind: &str, source: &Path, target: &Path, read_only: bool| {
        json!({
            "Type": kind,
            "Source": source.to_string_lossy(),
            "Destination": target.to_string_lossy(),
            "Mode": if read_only { "ro" } else { "" },
            "RW": !read_only,
            "Propagation": if kind == "tmpfs" { "" } else { "rprivate" },
        })
    };
    let binds = settings.volumes.iter().map(|v| mount("bind", &v.source, &v.target, v.read_only));
    let memory = settings
        .tmpfs
        .iter()
        .map(|t| mount("tmpfs", Path::new(""), &t.target, t.options.iter().any(|option| option == "ro")));
    let data = image_volumes(&image.config, settings).into_iter().enumerate().map(|(number, target)| {
        mount("volume", &container.dir.join("volumes").join(number.to_string()), &target, false)
    });
    binds.chain(memory).chain(data).collect()
}

fn config(container: &Container, image: &Image) -> Value {
    let (record, settings) = (&container.record, &container.record.settings);
    let of_image = image.config.config().clone().unwrap_or_default();
    let mut labels = of_image.labels().clone().unwrap_or_default();
    labels.extend(settings.labels.clone());
    let command = match (settings.command.is_empty(), &settings.entrypoint) {
        (false, _) => Some(settings.command.clone()),
        (true, None) => of_image.cmd().clone(),
        (true, Some(_)) => None,
    };
    json!({
        "Hostname": settings.hostname.as_deref().unwrap_or_else(|| container.short_id()),
        "Domainname": "",
        "User": settings.user.clone().or(of_image.user().clone()).unwrap_or_default(),
        "AttachStdin": settings.interactive,
        "AttachStdout": true,
        "AttachStderr": true,
        "Tty": settings.terminal,
        "OpenStdin": settings.interactive,
        "Env": own_environment(&image.config, settings),
        "Cmd": command,
        "Image": record.image_name,
        "Volumes": of_image.volumes().as_ref().map(|list| {
            list.iter().map(|path| (path.clone(), json!({}))).collect::<serde_json::Map<_, _>>()
        }),
        "WorkingDir": settings.working_dir.clone().or(of_image.working_dir().clone()).unwrap_or_default(),
        "Entrypoint": settings.entrypoint.clone().or(of_image.entrypoint().clone()),
        "Labels": labels,
    })
}

fn host_config(settings: &Settings) -> Value {
    let caps = |list: &[Cap]| -> Value {
        let names: Vec<Value> = list.iter().map(|cap| json!(cap)).collect();
        if names.is_empty() { Value::Null } else { Value::Array(names) }
    };
    let binds: Vec<String> = settings
        .volumes
        .iter()
        .map(|v| {
            let access = if v.read_only { "ro" } else { "rw" };
            format!("{}:{}:{access}", v.source.display(), v.target.display())
        })
        .collect();
    json!({
        "Binds": binds,
        "NetworkMode": match settings.net {
            None => "default",
            Some(Net::Host) => "host",
            Some(Net::None) => "none",
            Some(Net::Private) => "private",
        },
        "CapAdd": caps(&settings.cap_add),
        "CapDrop": caps(&settings.cap_drop),
        "Dns": settings.dns,
        "ExtraHosts": settings.hosts.iter().map(|(name, at)| format!("{name}:{at}")).collect::<Vec<_>>(),
        "Init": settings.init,
        "Memory": settings.memory.unwrap_or(0),
        "NanoCpus": settings.nano_cpus.unwrap_or(0),
        "Privileged": settings.privileged,
        "ReadonlyRootfs": settings.read_only,
        "Tmpfs": settings
            .tmpfs
            .iter()
            .map(|t| (t.target.to_string_lossy().into_owned(), json!(t.options.join(","))))
            .collect::<serde_json::Map<_, _>>(),
    })
}
