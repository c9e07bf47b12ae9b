//! What `create` and `run` share: the choices about a container.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use super::Failure;
use super::pull::tell_taken;
use super::registry::{self, AccessArgs};
use super::store::{StoreArgs, parse_size};
use super::volumes::{Mounted, parse_mount, parse_tmpfs, parse_volume};
use crate::container::settings::Cap;
use crate::container::{Container, ContainerError, Net, Settings, Tmpfs, Ulimit, Volume};
use crate::image::error::StoreError;
use crate::image::layer::Limits;
use crate::image::load::LoadOptions;
use crate::image::platform::Platform;
use crate::image::store::{Image, Store};
use crate::registry::{names_in_store, pull};

/// The choices about a new container.
#[derive(Debug, clap::Args)]
pub(super) struct ContainerArgs {
    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    from: FromArgs,

    /// What the container is called
    #[arg(long)]
    name: Option<String>,

    /// Write its id to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,

    /// Say something about it; may repeat
    #[arg(short, long = "label", value_name = "NAME[=VALUE]")]
    labels: Vec<String>,

    #[command(flatten)]
    command: CommandArgs,

    #[command(flatten)]
    seen: SeenArgs,

    #[command(flatten)]
    allowed: AllowedArgs,

    /// The image, by name or id
    image: String,

    /// The command and its arguments, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    words: Vec<String>,
}

/// Which image is taken.
#[derive(Debug, clap::Args)]
struct FromArgs {
    /// When the image is pulled from its registry: missing, where the store has none of this name; always; never
    #[arg(long, value_name = "POLICY", default_value = "missing", hide_possible_values = true)]
    pull: Pull,

    /// Take the image for this platform, as linux/arm64, and refuse one for another
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = registry::parse_platform)]
    platform: Option<Platform>,

    /// Unpack nothing: the image's layers stay as they came, and are read where they lie
    ///
    /// One that is compressed is decompressed into the cache directory when it is first read. The container stays so.
    #[arg(id = "packed", long = "lazy")]
    lazy: bool,

    #[command(flatten)]
    access: AccessArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Pull {
    /// What the store lacks.
    Missing,
    /// Nothing.
    Never,
    /// Whatever the registry has now.
    #[value(alias = "newer")]
    Always,
}

/// What runs.
#[derive(Debug, clap::Args)]
struct CommandArgs {
    /// Set a variable; NAME alone hands on the caller's; may repeat
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,

    /// Set the variables of this file, a line each; # begins a comment; may repeat
    #[arg(long = "env-file", value_name = "FILE")]
    env_files: Vec<PathBuf>,

    /// The working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// Who runs the command: a number is an id, a name is one of the image's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// Run this instead of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,

    /// Keep stdin open
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_possible_values = true, hide_default_value = true, value_name = "true|false")]
    interactive: bool,

    /// Give it a terminal
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_possible_values = true, hide_default_value = true, value_name = "true|false")]
    tty: bool,

    /// Run a small init (catatonit or tini, which must be installed) that reaps what the command leaves
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_possible_values = true, hide_default_value = true, value_name = "true|false")]
    init: bool,
}

/// What it sees of the machine.
#[derive(Debug, clap::Args)]
struct SeenArgs {
    /// Show a file or directory of the host in the container; may repeat
    #[arg(short, long = "volume", value_name = "SOURCE:TARGET[:ro]", value_parser = parse_volume)]
    volumes: Vec<Volume>,

    /// The same in other words: type=bind,source=SOURCE,target=TARGET[,readonly], or type=tmpfs,target=TARGET; may repeat
    #[arg(long = "mount", value_name = "WHAT", value_parser = parse_mount)]
    mounts: Vec<Mounted>,

    /// A filesystem in memory, with options such as size=64m; may repeat
    #[arg(long, value_name = "TARGET[:OPTIONS]", value_parser = parse_tmpfs)]
    tmpfs: Vec<Tmpfs>,

    /// The network it sees: none; private, from which connections go out; host, which is no isolation: whatever listens
    /// on the host's loopback and its abstract sockets answers [default: private where slirp4netns, or as an ordinary
    /// user pasta, is installed, else none]
    #[arg(long, alias = "network", value_name = "NET", hide_possible_values = true)]
    net: Option<Net>,

    /// Ask this name server; may repeat
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,

    /// A name for its /etc/hosts; may repeat
    #[arg(long = "add-host", value_name = "NAME:ADDRESS", value_parser = parse_host)]
    hosts: Vec<(String, IpAddr)>,

    /// Its host name [default: its short id]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
}

/// What it may do.
#[derive(Debug, clap::Args)]
struct AllowedArgs {
    /// Let it change nothing in its root filesystem
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_possible_values = true, hide_default_value = true, value_name = "true|false")]
    read_only: bool,

    /// Grant a capability beside the usual eleven, or ALL; may repeat
    #[arg(long, value_name = "CAP", value_delimiter = ',')]
    cap_add: Vec<Cap>,

    /// Take one of them away, or ALL; may repeat
    #[arg(long, value_name = "CAP", value_delimiter = ',')]
    cap_drop: Vec<Cap>,

    /// Let it do what its caller may: all capabilities and devices, no filter, nothing masked
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_possible_values = true, hide_default_value = true, value_name = "true|false")]
    privileged: bool,

    /// Which system calls it may make: a profile as Docker has them, or none [default: seccomp.json of the package
    /// containers-common where it is installed, else a built-in one]
    #[arg(long, value_name = "FILE|none", value_parser = parse_profile)]
    seccomp: Option<PathBuf>,

    /// Limit its processes, as nofile=1024:4096; may repeat
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    ulimits: Vec<Ulimit>,

    /// The most memory it gets, as 500M (root, with cgroups)
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,

    /// How many processors' time it gets, as 1.5 (root, with cgroups)
    #[arg(long, value_name = "NUMBER", value_parser = parse_cpus)]
    cpus: Option<u64>,

    /// The most that what it changes may take on the disk, as 10G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,

    /// The most files, directories and links that it may make
    #[arg(long, value_name = "NUMBER")]
    inodes: Option<u64>,
}

impl ContainerArgs {
    /// Opens the store; where an image may be pulled into it, it may be new.
    pub(super) fn open(&self) -> Result<Store, Failure> {
        match self.from.pull {
            Pull::Never => self.store.with_something(),
            Pull::Missing | Pull::Always => Ok(self.store.open()?),
        }
    }

    /// Returns the image.
    pub(super) fn image(&self, store: &Store) -> Result<Image, Failure> {
        let there = match self.from.pull {
            Pull::Always => None,
            Pull::Never | Pull::Missing => self.in_store(store)?,
        };
        let image = match there {
            Some(image) => image,
            None if self.from.pull == Pull::Never => store.resolve(&self.image)?,
            None => self.pull(store)?,
        };
        if let Some(wanted) = &self.from.platform {
            check_platform(wanted, &image)?;
        }
        Ok(image)
    }

    /// Returns what the store has of this name: as it stands, or as a pull would call it.
    fn in_store(&self, store: &Store) -> Result<Option<Image>, Failure> {
        match store.resolve(&self.image) {
            Err(StoreError::NoImage(_) | StoreError::Name(_)) => {}
            found => return Ok(Some(found?)),
        }
        // What is no name of a registry's is told by the pull.
        for name in names_in_store(&self.image).unwrap_or_default() {
            match store.resolve(&name) {
                Err(StoreError::NoImage(_)) => {}
                found => return Ok(Some(found?)),
            }
        }
        Ok(None)
    }

    fn pull(&self, store: &Store) -> Result<Image, Failure> {
        let platform = self.from.platform.as_ref();
        let bars = registry::progress(false);
        let options =
            LoadOptions { limits: Limits::default(), unpack: !self.from.lazy, progress: bars.clone() };
        let pulled = pull(store, &self.image, platform, &self.from.access.access(), &options);
        registry::clear(&bars)?;
        let pulled = pulled.map_err(|error| match self.from.pull {
            Pull::Missing => Failure::failed(format!("no image {:?} in the store, and {error}", self.image)),
            _ => error.into(),
        })?;
        tell_taken(&pulled);
        Ok(store.resolve(&pulled.loaded.id.to_string())?)
    }

    /// Returns whether a terminal is asked for.
    pub(super) fn tty(&self) -> bool {
        self.command.tty
    }

    /// Returns what was chosen.
    pub(super) fn settings(&self) -> Result<Settings, Failure> {
        let (command, seen, allowed) = (&self.command, &self.seen, &self.allowed);
        let mut env = Vec::new();
        for path in &command.env_files {
            env.extend(read_env_file(path)?);
        }
        env.extend(command.env.iter().cloned());
        let (mut volumes, mut tmpfs) = (seen.volumes.clone(), seen.tmpfs.clone());
        for mount in &seen.mounts {
            match mount.clone() {
                Mounted::Bind(volume) => volumes.push(volume),
                Mounted::Tmpfs(memory) => tmpfs.push(memory),
            }
        }
        Ok(Settings {
            command: self.words.clone(),
            entrypoint: command.entrypoint.clone().map(|program| match &program[..] {
                "" => Vec::new(),
                _ => vec![program],
            }),
            env,
            working_dir: command.workdir.clone(),
            user: command.user.clone(),
            volumes,
            tmpfs,
            read_only: allowed.read_only,
            terminal: command.tty,
            interactive: command.interactive,
            net: seen.net,
            seccomp: allowed.seccomp.clone(),
            labels: self.labels.iter().map(|text| split_label(text)).collect(),
            hostname: seen.hostname.clone(),
            cap_add: allowed.cap_add.clone(),
            cap_drop: allowed.cap_drop.clone(),
            privileged: allowed.privileged,
            init: command.init,
            ulimits: allowed.ulimits.clone(),
            dns: seen.dns.clone(),
            hosts: seen.hosts.clone(),
            memory: allowed.memory,
            nano_cpus: allowed.cpus,
            size: allowed.size,
            inodes: allowed.inodes,
            lazy: self.from.lazy,
        })
    }

    /// Makes the container.
    pub(super) fn create(
        &self,
        store: &Store,
        image: &Image,
        settings: Settings,
    ) -> Result<Container, Failure> {
        // First: two containers must not take each other for theirs.
        let cidfile = match &self.cidfile {
            Some(path) => Some((
                path,
                fs::File::create_new(path).map_err(|error| {
                    Failure::failed(format!("cid file {}: cannot be made: {error}", path.display()))
                })?,
            )),
            None => None,
        };
        let made = Container::create(store, image, &self.image, self.name.clone(), settings);
        if let Some((path, mut file)) = cidfile {
            let written = match &made {
                Ok(container) => std::io::Write::write_all(&mut file, container.record.id.as_bytes()),
                Err(_) => fs::remove_file(path),
            };
            written.map_err(|error| Failure::failed(format!("cid file {}: {error}", path.display())))?;
        }
        Ok(made?)
    }
}

/// Splits `NAME=VALUE`, or a name alone, whose value is empty.
fn split_label(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// Returns the lines of a file of variables.
pub(super) fn read_env_file(path: &PathBuf) -> Result<Vec<String>, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::failed(format!("variables in {}: cannot be read: {error}", path.display()))
    })?;
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split('=').next() {
            Some(name) if !name.is_empty() && !name.contains(char::is_whitespace) => Ok(line.to_owned()),
            _ => Err(Failure::failed(format!("variables in {}: {line:?} is no NAME=VALUE", path.display()))),
        })
        .collect()
}

/// Checks that the image is for that platform. What isn't said of one may be anything.
fn check_platform(wanted: &Platform, image: &Image) -> Result<(), Failure> {
    let own = Platform::read(&image.document);
    if own.as_ref().is_some_and(|own| own.rank_for(wanted).is_some()) {
        return Ok(());
    }
    let own = own.map_or_else(|| "no platform that it tells".to_owned(), |own| own.to_string());
    Err(Failure::failed(format!(
        "image {} is for {own}, not for {wanted}; load the one for that platform",
        image.id.short()
    )))
}

/// Returns the whole path of a profile, since the container may be run from elsewhere.
fn parse_profile(text: &str) -> Result<PathBuf, String> {
    match text {
        "none" | "unconfined" => Ok("none".into()),
        path => fs::canonicalize(path).map_err(|error| error.to_string()),
    }
}

/// Reads `NAME:ADDRESS`; the address may have colons too.
fn parse_host(text: &str) -> Result<(String, IpAddr), String> {
    let wrong = || format!("{text:?}: give NAME:ADDRESS, as db:10.0.0.7");
    let (name, address) = text.split_once([':', '=']).ok_or_else(wrong)?;
    let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    match bare.parse() {
        Ok(address) if !name.is_empty() && !name.contains(char::is_whitespace) => {
            Ok((name.to_owned(), address))
        }
        _ => Err(wrong()),
    }
}

/// Reads a number of processors, as billionths.
fn parse_cpus(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.01..=100_000.0).contains(&number) => Ok((number * 1e9).round() as u64),
        _ => Err("give a number of processors, as 1.5".into()),
    }
}

impl From<ContainerError> for Failure {
    fn from(error: ContainerError) -> Failure {
        Failure::failed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_labels_and_processors() {
        assert_eq!(parse_host("db:10.0.0.7"), Ok(("db".into(), "10.0.0.7".parse().unwrap())));
        assert_eq!(parse_host("v6:::1"), Ok(("v6".into(), "::1".parse().unwrap())));
        for bad in ["db", "db:x", ":10.0.0.7", "a b:10.0.0.7"] {
            parse_host(bad).unwrap_err();
        }
        assert_eq!(split_label("a=b=c"), ("a".into(), "b=c".into()));
        assert_eq!(parse_cpus("1.5"), Ok(1_500_000_000));
        for bad in ["0", "-1", "x", "inf"] {
            parse_cpus(bad).unwrap_err();
        }
    }
}
