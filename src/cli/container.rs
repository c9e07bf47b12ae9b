//! What `create` and `run` share: the choices about a container.

use std::path::{Path, PathBuf};

use super::Failure;
use super::store::StoreArgs;
use crate::container::{Container, ContainerError, Net, Settings, Volume};
use crate::image::store::{Image, Store};

/// The choices about a new container.
#[derive(Debug, clap::Args)]
pub(super) struct ContainerArgs {
    #[command(flatten)]
    store: StoreArgs,

    /// What the container is called
    #[arg(long)]
    name: Option<String>,

    /// Set a variable; NAME alone hands on the caller's; may repeat
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,

    /// The working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// Who runs the command: names are those of the image, or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// Show a file or directory of the host in the container; may repeat
    #[arg(short, long = "volume", value_name = "SOURCE:TARGET[:ro]", value_parser = parse_volume)]
    volumes: Vec<Volume>,

    /// Run this instead of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,

    /// Keep stdin open
    #[arg(short, long)]
    interactive: bool,

    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,

    /// Let it change nothing in its root filesystem
    #[arg(long)]
    read_only: bool,

    /// The network it sees
    #[arg(long, value_name = "NET", default_value = "host")]
    net: Net,

    /// Which system calls it may make: a profile as Docker has them, or none [default: seccomp.json of the package
    /// containers-common, where it is installed]
    #[arg(long, value_name = "FILE|none", value_parser = parse_profile)]
    seccomp: Option<PathBuf>,

    /// The image, by name or id
    image: String,

    /// The command and its arguments, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl ContainerArgs {
    /// Opens the store.
    pub(super) fn open(&self) -> Result<Store, Failure> {
        Ok(self.store.open()?)
    }

    /// The image.
    pub(super) fn image(&self, store: &Store) -> Result<Image, Failure> {
        Ok(store.resolve(&self.image)?)
    }

    /// Whether a terminal is asked for.
    pub(super) fn tty(&self) -> bool {
        self.tty
    }

    /// Makes the container.
    pub(super) fn create(self, store: &Store, image: &Image) -> Result<Container, Failure> {
        let settings = Settings {
            command: self.command,
            entrypoint: self.entrypoint.map(|program| match &program[..] {
                "" => Vec::new(),
                _ => vec![program],
            }),
            env: self.env,
            working_dir: self.workdir,
            user: self.user,
            volumes: self.volumes,
            read_only: self.read_only,
            terminal: self.tty,
            interactive: self.interactive,
            net: self.net,
            seccomp: self.seccomp,
        };
        Ok(Container::create(store, image, &self.image, self.name, settings)?)
    }
}

/// The container may be run from elsewhere.
fn parse_profile(text: &str) -> Result<PathBuf, String> {
    match text {
        "none" => Ok(text.into()),
        path => std::fs::canonicalize(path).map_err(|error| error.to_string()),
    }
}

/// Reads `SOURCE:TARGET[:ro|rw]`.
fn parse_volume(text: &str) -> Result<Volume, String> {
    let mut parts = text.split(':');
    let (Some(source), Some(target), access, None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("give SOURCE:TARGET or SOURCE:TARGET:ro".into());
    };
    let read_only = match access {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(other) => return Err(format!("{other:?} is neither ro nor rw")),
    };
    if !Path::new(target).is_absolute() {
        return Err(format!("{target:?} is no absolute path of the container"));
    }
    if !source.contains('/') && source != "." && source != ".." {
        return Err(format!("named volumes are not known here; give a path of the host, as ./{source}"));
    }
    let source = std::fs::canonicalize(source).map_err(|error| format!("{source}: {error}"))?;
    Ok(Volume { source, target: PathBuf::from(target), read_only })
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
    fn volumes_are_paths() {
        let volume = parse_volume("/:/host:ro").unwrap();
        assert_eq!(volume, Volume { source: "/".into(), target: "/host".into(), read_only: true });
        assert!(!parse_volume("/tmp:/t").unwrap().read_only);
        for bad in ["/tmp", "data:/data", "/tmp:rel", "/tmp:/t:maybe", "/no/such/dir:/x", "/a:/b:ro:x", ":/x"]
        {
            parse_volume(bad).unwrap_err();
        }
    }
}
