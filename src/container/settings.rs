//! What a user chooses about a container, as its record keeps it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use oci_spec::runtime::{Capability, PosixRlimitType};
use serde::{Deserialize, Serialize};

/// What a user may choose about a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The command instead of the image's.
    pub command: Vec<String>,
    /// The entrypoint instead of the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Further variables, `NAME=VALUE`.
    pub env: Vec<String>,
    /// The working directory instead of the image's.
    pub working_dir: Option<String>,
    /// `USER[:GROUP]` instead of the image's.
    pub user: Option<String>,
    /// Directories of the host.
    pub volumes: Vec<Volume>,
    /// Filesystems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// The root filesystem can't be written to.
    pub read_only: bool,
    /// A terminal is made for it.
    pub terminal: bool,
    /// It reads stdin.
    pub interactive: bool,
    /// Which network it sees; `None`: a private one where the machine has it, else none.
    pub net: Option<Net>,
    /// The seccomp profile instead of the machine's; `none` for none.
    pub seccomp: Option<PathBuf>,
    /// What is said about it, for whoever asks.
    pub labels: BTreeMap<String, String>,
    /// The host name instead of the short id.
    pub hostname: Option<String>,
    /// Capabilities beside the usual ones.
    pub cap_add: Vec<Cap>,
    /// Usual capabilities that it doesn't get.
    pub cap_drop: Vec<Cap>,
    /// It may do what its caller may: all capabilities and devices, no system call filter, nothing masked.
    pub privileged: bool,
    /// Its first process is a small init that reaps others.
    pub init: bool,
    /// Limits of its processes.
    pub ulimits: Vec<Ulimit>,
    /// Name servers instead of the host's.
    pub dns: Vec<IpAddr>,
    /// Names beside those of the host's /etc/hosts.
    pub hosts: Vec<(String, IpAddr)>,
    /// The most memory that it gets, in bytes.
    pub memory: Option<u64>,
    /// The most processor time that it gets, in billionths of a processor.
    pub nano_cpus: Option<u64>,
    /// The most that what it changes may take on the disk, in bytes.
    pub size: Option<u64>,
    /// The most objects that it may make.
    pub inodes: Option<u64>,
    /// Its image's layers stay as they came, and are read where they lie.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lazy: bool,
}

impl Settings {
    /// Returns the options of the container's mount: a change of attributes copies no data, and its upper takes no more than it may.
    pub fn mount_options(&self) -> String {
        let size = self.size.map(|bytes| format!("size={bytes}"));
        let inodes = self.inodes.map(|number| format!("inodes={number}"));
        let metacopy = Some("metacopy=on".to_owned());
        [metacopy, size, inodes].into_iter().flatten().collect::<Vec<_>>().join(",")
    }
}

/// A directory or file of the host that the container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// On the host, absolute.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: PathBuf,
    /// It can't be changed from within.
    pub read_only: bool,
}

/// A filesystem in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tmpfs {
    /// In the container, absolute.
    pub target: PathBuf,
    /// Options of mount(8), such as `size=64m`.
    pub options: Vec<String>,
}

/// One capability, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, try_from = "String")]
pub enum Cap {
    /// All.
    All(All),
    /// This one.
    One(Capability),
}

/// The word `ALL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum All {
    /// Every capability that the kernel knows.
    #[serde(rename = "ALL")]
    All,
}

impl TryFrom<String> for Cap {
    type Error = String;

    /// Reads what a record has. One that isn't known is told in serde's words for that, as of every other kind of value:
    /// by them a record of a later program is told from a damaged one.
    fn try_from(text: String) -> std::result::Result<Cap, String> {
        match text.as_str() {
            "ALL" => Ok(Cap::All(All::All)),
            name => serde_json::from_value(name.into())
                .map(Cap::One)
                .map_err(|_| format!("unknown variant `{name}`, expected a capability")),
        }
    }
}

impl std::str::FromStr for Cap {
    type Err = String;

    /// Reads `NET_ADMIN`, `cap_net_admin` or `all`.
    fn from_str(text: &str) -> Result<Cap, String> {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        if name == "ALL" {
            return Ok(Cap::All(All::All));
        }
        // As a record has them, so that one table of names does.
        serde_json::from_value(serde_json::json!(format!("CAP_{name}")))
            .map(Cap::One)
            .map_err(|_| format!("{text:?} is no capability; capabilities(7) has the names"))
    }
}

/// A limit of processes, as setrlimit(2) has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// Of what.
    pub kind: PosixRlimitType,
    /// What processes have.
    pub soft: u64,
    /// How far they may raise it.
    pub hard: u64,
}

impl std::str::FromStr for Ulimit {
    type Err = String;

    /// Reads `nofile=1024:4096`; −1 and `unlimited` are no limit.
    fn from_str(text: &str) -> Result<Ulimit, String> {
        let wrong = || format!("{text:?}: give NAME=SOFT[:HARD], as nofile=1024:4096");
        let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
        let name = name.to_ascii_uppercase();
        let name = format!("RLIMIT_{}", name.strip_prefix("RLIMIT_").unwrap_or(&name));
        let kind = serde_json::from_value(serde_json::json!(name)).map_err(|_| wrong())?;
        let number = |text: &str| match text {
            "-1" | "unlimited" => Ok(u64::MAX),
            text => text.parse().map_err(|_| wrong()),
        };
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let limit = Ulimit { kind, soft: number(soft)?, hard: number(hard)? };
        if limit.soft > limit.hard {
            return Err(format!("{text:?}: the soft limit is above the hard one"));
        }
        Ok(limit)
    }
}

/// A container's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Net {
    /// The host's.
    Host,
    /// Only a loopback of its own.
    None,
    /// One of its own, from which the host's network is reached through a program that translates.
    Private,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_and_limits_are_read_as_engines_write_them() {
        assert_eq!("net_admin".parse(), Ok(Cap::One(Capability::NetAdmin)));
        assert_eq!("CAP_SYS_PTRACE".parse(), Ok(Cap::One(Capability::SysPtrace)));
        assert_eq!("all".parse(), Ok(Cap::All(All::All)));
        "fly".parse::<Cap>().unwrap_err();
        let limit = |text: &str| text.parse::<Ulimit>();
        let nofile = Ulimit { kind: PosixRlimitType::RlimitNofile, soft: 10, hard: 20 };
        assert_eq!(limit("nofile=10:20"), Ok(nofile));
        assert_eq!(limit("core=-1").map(|l| (l.soft, l.hard)), Ok((u64::MAX, u64::MAX)));
        for bad in ["nofile", "nofile=x", "nofile=20:10", "fly=1"] {
            limit(bad).unwrap_err();
        }
        let settings = Settings {
            cap_add: vec!["all".parse().unwrap(), "kill".parse().unwrap()],
            ..Settings::default()
        };
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings, "{text}");
    }
}
