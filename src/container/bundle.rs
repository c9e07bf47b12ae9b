//! What an OCI runtime is told: made from the image's config and the user's choices.
//!
//! The command and its variables are here; [`sandbox`] says what it may, [`binds`] what is mounted, [`seccomp`] which system
//! calls it can make.

use std::collections::HashSet;
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, LinuxSeccomp, PosixRlimit, PosixRlimitBuilder, Process, ProcessBuilder, RootBuilder, Spec,
    SpecBuilder, UserBuilder,
};

use super::error::{ContainerError, Result};
use super::host_environment::HostEnvironment;
use super::settings::Settings;
use super::user::User;
use super::{binds, sandbox, seccomp};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the command: entrypoint and arguments.
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

/// Variables in their order, each name once.
#[derive(Default)]
struct Variables(Vec<String>);

impl Variables {
    fn set(&mut self, pair: String, replace: bool) {
        let name = pair.split('=').next().unwrap_or_default().to_owned();
        match self.0.iter_mut().find(|old| old.split('=').next() == Some(&name)) {
            Some(old) if replace => *old = pair,
            Some(_) => {}
            None => self.0.push(pair),
        }
    }

    fn of_image(image: &ImageConfiguration) -> Variables {
        let mut all = Variables::default();
        for entry in image.config().iter().flat_map(|config| config.env().iter().flatten()) {
            // A name alone is an empty variable; runtimes refuse it, and what has no name.
            match entry.split_once('=') {
                Some(("", _)) => {}
                Some(_) => all.set(entry.clone(), true),
                None if entry.is_empty() => {}
                None => all.set(format!("{entry}="), true),
            }
        }
        all
    }

    fn of_user(&mut self, settings: &Settings) {
        for pair in &settings.env {
            if pair.contains('=') {
                self.set(pair.clone(), true);
            } else if let Ok(value) = std::env::var(pair) {
                // -e NAME hands on the caller's.
                self.set(format!("{pair}={value}"), true);
            }
        }
    }
}

/// Returns the variables that image and user give, without those that running adds.
pub fn own_environment(image: &ImageConfiguration, settings: &Settings) -> Vec<String> {
    let mut all = Variables::of_image(image);
    all.of_user(settings);
    all.0
}

/// Returns the variables: the image's, then what Docker sets, then the user's.
fn environment(image: &ImageConfiguration, settings: &Settings, user: &User, hostname: &str) -> Vec<String> {
    let mut all = Variables::of_image(image);
    all.set(PATH.to_owned(), false);
    all.set(format!("HOSTNAME={hostname}"), true);
    all.set(format!("HOME={}", user.home), false);
    if settings.terminal {
        all.set("TERM=xterm".to_owned(), false);
    }
    all.of_user(settings);
    all.0
}

/// Returns the runtime's config.json.
///
/// # Errors
/// When there is no command, or no filter for its system calls.
pub fn spec(
    image: &ImageConfiguration,
    settings: &Settings,
    user: &User,
    around: &HostEnvironment<'_>,
) -> Result<Spec> {
    let mut command = command(image, settings)?;
    if around.init.is_some() {
        command.splice(0..0, [binds::INIT.to_owned(), "--".to_owned()]);
    }
    let granted = sandbox::capabilities(settings);
    let filter = match &settings.seccomp {
        None if settings.privileged => None,
        chosen => seccomp::filter(chosen.as_deref(), &granted)?,
    };
    build(image, settings, user, around, Decided { command, granted, filter })
        .map_err(|error| ContainerError::Refused(format!("the runtime's config cannot be made: {error}")))
}

/// What is decided before the config is put together.
struct Decided {
    command: Vec<String>,
    granted: HashSet<Capability>,
    filter: Option<LinuxSeccomp>,
}

fn build(
    image: &ImageConfiguration,
    settings: &Settings,
    user: &User,
    around: &HostEnvironment<'_>,
    decided: Decided,
) -> std::result::Result<Spec, OciSpecError> {
    let process = process_of(image, settings, user, around.hostname, decided.command, decided.granted)?;
    let sandbox = sandbox::Around {
        net: around.net,
        netns: around.netns,
        user_namespace: around.user_namespace,
        silence_allows: around.silence_allows,
    };
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(around.rootfs).readonly(settings.read_only).build()?)
        .hostname(around.hostname)
        .process(process)
        .linux(sandbox::linux(settings, sandbox, decided.filter)?)
        .mounts(binds::mounts(settings, around)?)
        .build()?;
    spec.set_annotations(None);
    Ok(spec)
}

/// Returns what a runtime is told of a command that joins a container which runs.
///
/// # Errors
/// When it can't be put together.
pub fn joining(
    image: &ImageConfiguration,
    settings: &Settings,
    user: &User,
    hostname: &str,
    command: Vec<String>,
) -> Result<Process> {
    process_of(image, settings, user, hostname, command, sandbox::capabilities(settings))
        .map_err(|error| ContainerError::Refused(format!("the runtime's config cannot be made: {error}")))
}

fn process_of(
    image: &ImageConfiguration,
    settings: &Settings,
    user: &User,
    hostname: &str,
    command: Vec<String>,
    granted: HashSet<Capability>,
) -> std::result::Result<Process, OciSpecError> {
    let config = image.config().clone().unwrap_or_default();
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
        .env(environment(image, settings, user, hostname))
        .cwd(Path::new("/").join(cwd.unwrap_or_default()))
        .capabilities(sandbox::sets(granted, user.uid == 0)?)
        .no_new_privileges(false)
        .build()?;
    process.set_rlimits(limits(settings)?);
    Ok(process)
}

fn limits(settings: &Settings) -> std::result::Result<Option<Vec<PosixRlimit>>, OciSpecError> {
    let limits = settings
        .ulimits
        .iter()
        .map(|limit| PosixRlimitBuilder::default().typ(limit.kind).soft(limit.soft).hard(limit.hard).build())
        .collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(Some(limits).filter(|limits| !limits.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::host_environment::image_volumes;
    use crate::container::settings::Net;
    use crate::container::targets::Places;
    use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder, RootFsBuilder};
    use std::path::PathBuf;

    fn image() -> ImageConfiguration {
        let config = ConfigBuilder::default()
            .entrypoint(vec!["/entry".to_owned()])
            .cmd(vec!["arg".to_owned()])
            .env(vec!["A=1".to_owned(), "PATH=/bin".to_owned(), "ALONE".to_owned(), "=x".to_owned()])
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
        let around = HostEnvironment {
            rootfs: Path::new("/merged"),
            hostname: "host",
            places: &Places::new(),
            volumes: &[],
            files: &[],
            net: Net::None,
            netns: None,
            init: None,
            user_namespace: false,
            silence_allows: false,
        };
        let none = Settings { read_only: true, ..settings() };
        let spec = spec(&image(), &none, &user, &around).unwrap();
        let process = spec.process().clone().unwrap();
        let env = process.env().clone().unwrap();
        assert_eq!(env, ["A=2", "PATH=/bin", "ALONE=", "HOSTNAME=host", "HOME=/h", "B=3"]);
        assert_eq!(process.cwd(), Path::new("/work"));
        assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
        assert!(process.rlimits().is_none());
        assert!(process.capabilities().clone().unwrap().effective().clone().unwrap().is_empty());
        assert_eq!(spec.root().clone().unwrap().readonly(), Some(true));
        let text = serde_json::to_string(&spec).unwrap();
        assert!(text.contains(r#""type":"network""#), "{text}");
        assert!(
            text.contains(r#"{"allow":false,"access":"rwm"}"#) && !text.contains("resolv.conf"),
            "{text}"
        );
        assert_eq!(image_volumes(&image(), &none), [PathBuf::from("/data"), PathBuf::from("/more")]);
    }
}
