//! What an OCI runtime is told: made from the image's config and the user's choices.
//!
//! The sandbox is that of Docker: the fourteen capabilities, the machine's [`seccomp`] profile, masked and read-only parts of
//! /proc and /sys, namespaces for processes, mounts, IPC, host name and, with `--net none`, the network. No resource
//! limits are set, so none can be refused.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxSeccomp, Mount, MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
    get_default_maskedpaths, get_default_readonly_paths,
};

use super::error::{ContainerError, Result};
use super::record::{Net, Settings};
use super::seccomp;
use super::user::User;

/// What root of a container may, as in Docker.
const CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a container runs.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The merged tree.
    pub rootfs: &'a Path,
    /// The host name.
    pub hostname: &'a str,
    /// Data of the image's volumes: where, and for which directory.
    pub volumes: &'a [(PathBuf, PathBuf)],
    /// As root of a user namespace: some mounts are not allowed.
    pub user_namespace: bool,
}

/// The command: entrypoint and arguments.
///
/// # Errors
/// When neither image nor user names one.
pub fn command(image: &ImageConfiguration, settings: &Settings) -> Result<Vec<String>> {
    let config = image.config().clone().unwrap_or_default();
    let mut command = match &settings.entrypoint {
        Some(entrypoint) => entrypoint.clone(),
        None => config.entrypoint().clone().unwrap_or_default(),
    };
    // The image's arguments belong to the image's entrypoint.
    if !settings.command.is_empty() {
        command.extend(settings.command.iter().cloned());
    } else if settings.entrypoint.is_none() {
        command.extend(config.cmd().clone().unwrap_or_default());
    }
    if command.is_empty() || command[0].is_empty() {
        return Err(ContainerError::Refused(
            "the image names no command; give one after the image's name".to_owned(),
        ));
    }
    Ok(command)
}

/// The variables: the image's, then what Docker sets, then the user's.
fn environment(image: &ImageConfiguration, settings: &Settings, user: &User, hostname: &str) -> Vec<String> {
    let config = image.config().clone().unwrap_or_default();
    let mut all: Vec<String> = Vec::new();
    let mut set = |pair: String, replace: bool| {
        let name = pair.split('=').next().unwrap_or_default().to_owned();
        match all.iter_mut().find(|old| old.split('=').next() == Some(&name)) {
            Some(old) if replace => *old = pair,
            Some(_) => {}
            None => all.push(pair),
        }
    };
    config.env().iter().flatten().for_each(|pair| set(pair.clone(), true));
    set(PATH.to_owned(), false);
    set(format!("HOSTNAME={hostname}"), true);
    set(format!("HOME={}", user.home), false);
    if settings.terminal {
        set("TERM=xterm".to_owned(), false);
    }
    for pair in &settings.env {
        if pair.contains('=') {
            set(pair.clone(), true);
        } else if let Ok(value) = std::env::var(pair) {
            // -e NAME hands on the caller's.
            set(format!("{pair}={value}"), true);
        }
    }
    all
}

/// Directories that the image wants to be volumes and the user gave nothing for.
pub fn image_volumes(image: &ImageConfiguration, settings: &Settings) -> Vec<PathBuf> {
    let given: HashSet<&Path> = settings.volumes.iter().map(|volume| volume.target.as_path()).collect();
    let config = image.config().clone().unwrap_or_default();
    let mut volumes: Vec<PathBuf> = config.volumes().iter().flatten().map(PathBuf::from).collect();
    volumes.retain(|path| path.is_absolute() && !given.contains(path.as_path()));
    volumes.sort();
    volumes.dedup();
    volumes
}

/// The runtime's config.json.
///
/// # Errors
/// When there is no command.
pub fn spec(
    image: &ImageConfiguration,
    settings: &Settings,
    user: &User,
    around: &Surroundings<'_>,
) -> Result<Spec> {
    let command = command(image, settings)?;
    let filter = seccomp::filter(settings.seccomp.as_deref(), &CAPABILITIES)?;
    build(image, settings, user, around, command, filter)
        .map_err(|error| ContainerError::Refused(format!("the runtime's config cannot be made: {error}")))
}

fn build(
    image: &ImageConfiguration,
    settings: &Settings,
    user: &User,
    around: &Surroundings<'_>,
    command: Vec<String>,
    filter: Option<LinuxSeccomp>,
) -> std::result::Result<Spec, OciSpecError> {
    let config = image.config().clone().unwrap_or_default();
    let capabilities: HashSet<Capability> = CAPABILITIES.into();
    let mut granted = LinuxCapabilitiesBuilder::default()
        .bounding(capabilities.clone())
        .inheritable(HashSet::new())
        .ambient(HashSet::new());
    // Another user than root starts without, as in Docker.
    let own = if user.uid == 0 { capabilities } else { HashSet::new() };
    granted = granted.effective(own.clone()).permitted(own);

    let cwd = settings.working_dir.clone().or(config.working_dir().clone()).filter(|cwd| !cwd.is_empty());
    let mut process = ProcessBuilder::default()
        .terminal(settings.terminal)
        .user(
            UserBuilder::default()
                .uid(user.uid)
                .gid(user.gid)
                .additional_gids(user.groups.clone())
                .build()?,
        )
        .args(command)
        .env(environment(image, settings, user, around.hostname))
        .cwd(Path::new("/").join(cwd.unwrap_or_default()))
        .capabilities(granted.build()?)
        .no_new_privileges(false)
        .build()?;
    process.set_rlimits(None);

    let mut kinds = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    if settings.net == Net::None {
        kinds.push(LinuxNamespaceType::Network);
    }
    let namespaces = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .masked_paths(get_default_maskedpaths())
        .readonly_paths(get_default_readonly_paths())
        .build()?;
    linux.set_resources(None);
    linux.set_seccomp(filter);
    linux.set_uid_mappings(None).set_gid_mappings(None);

    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(around.rootfs).readonly(settings.read_only).build()?)
        .hostname(around.hostname)
        .process(process)
        .linux(linux)
        .mounts(mounts(settings, around)?)
        .build()?;
    spec.set_annotations(None);
    Ok(spec)
}

fn mounts(settings: &Settings, around: &Surroundings<'_>) -> std::result::Result<Vec<Mount>, OciSpecError> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(target)
            .typ(kind)
            .source(source)
            .options(options.iter().map(|&o| o.to_owned()).collect::<Vec<_>>())
            .build()
    };
    let bind = |source: &Path, target: &Path, read_only: bool| {
        let access = if read_only { "ro" } else { "rw" };
        MountBuilder::default()
            .destination(target)
            .typ("bind")
            .source(source)
            .options(["rbind", access, "rprivate"].map(str::to_owned).to_vec())
            .build()
    };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
    ];
    // sysfs belongs to the network namespace: of the host's, a user namespace can only bind what is there.
    all.push(if around.user_namespace && settings.net == Net::Host {
        mount("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"])?
    } else {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?
    });
    if settings.net == Net::Host {
        for file in ["/etc/resolv.conf", "/etc/hosts"] {
            if Path::new(file).exists() && !settings.volumes.iter().any(|v| v.target == Path::new(file)) {
                all.push(bind(Path::new(file), Path::new(file), true)?);
            }
        }
    }
    for (source, target) in around.volumes {
        all.push(bind(source, target, false)?);
    }
    for volume in &settings.volumes {
        all.push(bind(&volume.source, &volume.target, volume.read_only)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder, RootFsBuilder};

    fn image() -> ImageConfiguration {
        let config = ConfigBuilder::default()
            .entrypoint(vec!["/entry".to_owned()])
            .cmd(vec!["arg".to_owned()])
            .env(vec!["A=1".to_owned(), "PATH=/bin".to_owned()])
            .working_dir("/work")
            .volumes(vec!["/data".to_owned(), "/more".to_owned()])
            .build()
            .unwrap();
        let rootfs = RootFsBuilder::default().typ("layers").diff_ids(Vec::<String>::new()).build().unwrap();
        ImageConfigurationBuilder::default().config(config).rootfs(rootfs).build().unwrap()
    }

    fn settings() -> Settings {
        Settings { env: vec!["A=2".into(), "B=3".into()], ..Settings::default() }
    }

    #[test]
    fn commands_are_put_together_as_docker_does() {
        let words = |list: &[&str]| list.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        let with = |entrypoint: Option<&[&str]>, command: &[&str]| {
            let settings = Settings {
                entrypoint: entrypoint.map(words),
                command: words(command),
                ..Settings::default()
            };
            command_of(&settings)
        };
        fn command_of(settings: &Settings) -> Vec<String> {
            command(&image(), settings).unwrap()
        }
        assert_eq!(with(None, &[]), words(&["/entry", "arg"]));
        assert_eq!(with(None, &["x", "y"]), words(&["/entry", "x", "y"]));
        assert_eq!(with(Some(&["/other"]), &[]), words(&["/other"]));
        assert_eq!(with(Some(&[]), &["x"]), words(&["x"]));
        let none = Settings { entrypoint: Some(vec![]), ..Settings::default() };
        command(&image(), &none).unwrap_err();
    }

    #[test]
    fn the_spec_says_what_was_chosen() {
        let user = User { uid: 7, gid: 8, groups: vec![9], home: "/h".into() };
        let around = Surroundings {
            rootfs: Path::new("/merged"),
            hostname: "host",
            volumes: &[],
            user_namespace: false,
        };
        let none = Settings { net: Net::None, read_only: true, ..settings() };
        let spec = spec(&image(), &none, &user, &around).unwrap();
        let process = spec.process().clone().unwrap();
        let env = process.env().clone().unwrap();
        assert_eq!(env, ["A=2", "PATH=/bin", "HOSTNAME=host", "HOME=/h", "B=3"]);
        assert_eq!(process.cwd(), Path::new("/work"));
        assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
        assert!(process.rlimits().is_none());
        assert!(process.capabilities().clone().unwrap().effective().clone().unwrap().is_empty());
        assert_eq!(spec.root().clone().unwrap().readonly(), Some(true));
        let text = serde_json::to_string(&spec).unwrap();
        assert!(text.contains(r#""type":"network""#), "{text}");
        assert!(!text.contains("resources") && !text.contains("resolv.conf"), "{text}");
        assert_eq!(image_volumes(&image(), &none), [PathBuf::from("/data"), PathBuf::from("/more")]);
    }
}
