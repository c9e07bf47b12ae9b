//! A container's network: the host's, none, or a private one that a program of the machine connects.
//!
//! The default is not the host's: in there, abstract sockets and everything that listens on the loopback would answer. A
//! private network is a namespace of its own from which connections go out through slirp4netns(1), or, for an ordinary user,
//! pasta(1); from it, the host's loopback can't be reached. Both end with the container.

use std::fs::{self, File};
use std::io::{PipeWriter, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::error::{ContainerError, Result};
use super::host::on_path;
use super::settings::{Net, Settings};
use crate::sys::namespace;

/// Where slirp4netns answers for the host's name servers.
const SLIRP_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 3));

/// Where pasta is told to do so.
const PASTA_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));

/// The device by which both programs make the container's interface.
const TUN: &str = "/dev/net/tun";

/// A network as long as a container runs.
#[derive(Debug)]
pub struct Network {
    /// Which one it came to be.
    pub net: Net,
    /// Its namespace, when it was made here.
    pub netns: Option<PathBuf>,
    /// Where name servers are asked for, beside the host's.
    forwarder: Option<IpAddr>,
    helper: Option<Helper>,
    _place: Option<NetworkDir>,
    _namespace: Option<OwnedFd>,
}

#[derive(Debug)]
enum Helper {
    /// slirp4netns; it ends when the pipe is closed.
    Slirp(Child, Option<PipeWriter>),
    /// pasta, in the background.
    Pasta(Pid),
}

/// A file on which a network namespace is mounted.
#[derive(Debug)]
struct NetworkDir(PathBuf);

impl NetworkDir {
    fn of(namespace: &Path, at: PathBuf) -> Result<NetworkDir> {
        File::create(&at).map_err(ContainerError::io("create it", &at))?;
        rustix::mount::mount_bind(namespace, &at).map_err(ContainerError::io("mount on it", &at))?;
        Ok(NetworkDir(at))
    }
}

impl Drop for NetworkDir {
    /// Unmounts it, since a container that is mounted on can't be removed.
    fn drop(&mut self) {
        if let Err(errno) = rustix::mount::unmount(&self.0, UnmountFlags::DETACH) {
            log::info!("{}: cannot unmount it: {errno}", self.0.display());
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        match self {
            Helper::Slirp(child, pipe) => {
                drop(pipe.take());
                if let Err(error) = child.wait() {
                    log::info!("slirp4netns: {error}");
                }
            }
            Helper::Pasta(pid) => {
                if let Err(errno) = kill_process(*pid, Signal::TERM) {
                    log::debug!("pasta has gone: {errno}");
                }
            }
        }
    }
}

/// A program that connects a private network.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Program {
    Pasta(PathBuf),
    Slirp(PathBuf),
}

/// Looks for a program; as root pasta drops the rights that it needs for another's namespace.
fn program(user_namespace: bool) -> Option<Program> {
    if rustix::fs::access(TUN, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_err() {
        return None;
    }
    let pasta = || on_path(Path::new("pasta")).map(Program::Pasta);
    let slirp = || on_path(Path::new("slirp4netns")).map(Program::Slirp);
    if user_namespace { pasta().or_else(slirp) } else { slirp() }
}

impl Network {
    fn plain(net: Net) -> Network {
        Network { net, netns: None, forwarder: None, helper: None, _place: None, _namespace: None }
    }

    /// Makes the network that was asked for, or the default one; `dir` is the container's, for what has to be noted.
    ///
    /// # Errors
    /// When a private network was asked for and there is no program for it, or it can't be started.
    pub fn start(asked: Option<Net>, dir: &Path, user_namespace: bool) -> Result<Network> {
        match (asked, program(user_namespace)) {
            (Some(net @ (Net::Host | Net::None)), _) => Ok(Network::plain(net)),
            (None, None) => Ok(Network::plain(Net::None)),
            (Some(Net::Private), None) => Err(ContainerError::Refused(format!(
                "no private network can be made: install the package {}, and let this user open {TUN}; or use --net none \
                 or --net host",
                if user_namespace { "passt or slirp4netns" } else { "slirp4netns" }
            ))),
            (Some(Net::Private), Some(program)) => Network::connect(&program, dir),
            (None, Some(program)) => Network::connect(&program, dir).or_else(|error| {
                log::warn!("the container has no network: {error}");
                Ok(Network::plain(Net::None))
            }),
        }
    }

    fn connect(program: &Program, dir: &Path) -> Result<Network> {
        let made =
            namespace::new_network().map_err(ContainerError::io("make a network namespace for it", dir))?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), made.as_raw_fd()));
        let (helper, forwarder, netns, place) = match program {
            Program::Slirp(program) => (slirp(program, &path, dir)?, SLIRP_DNS, path, None),
            Program::Pasta(program) => {
                // It has given up the right to look into this process by then.
                let place = NetworkDir::of(&path, dir.join("bundle/netns"))?;
                let at = place.0.clone();
                (pasta(program, &at, dir)?, PASTA_DNS, at, Some(place))
            }
        };
        Ok(Network {
            net: Net::Private,
            netns: Some(netns),
            forwarder: Some(forwarder),
            helper: Some(helper),
            _place: place,
            _namespace: Some(made),
        })
    }

    /// Tells whether a program is at work for it.
    pub fn is_connected(&self) -> bool {
        self.helper.is_some()
    }

    /// Writes what the container sees as its files about the network. Returns (source, target, read-only).
    ///
    /// # Errors
    /// When they can't be written.
    pub fn files(
        &self,
        settings: &Settings,
        hostname: &str,
        dir: &Path,
    ) -> Result<Vec<(PathBuf, &'static str, bool)>> {
        let write = |name: &str, text: String| {
            let path = dir.join("bundle").join(name);
            fs::write(&path, text).map_err(ContainerError::io("write", &path))?;
            Ok::<_, ContainerError>(path)
        };
        let of_host = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut files = vec![(write("hostname", format!("{hostname}\n"))?, HOSTNAME, false)];
        if self.net == Net::Host && settings.hosts.is_empty() {
            files.push((HOSTS.into(), HOSTS, true));
        } else {
            let below = if self.net == Net::Host { of_host(HOSTS) } else { String::new() };
            files.push((write("hosts", hosts(&below, hostname, &settings.hosts))?, HOSTS, false));
        }
        let asked = !settings.dns.is_empty();
        if self.net == Net::Host && !asked {
            files.push((RESOLV.into(), RESOLV, true));
        } else if self.net == Net::Private || asked {
            let text = resolv_conf(&of_host(RESOLV), &settings.dns, self.forwarder);
            files.push((write("resolv.conf", text)?, RESOLV, false));
        }
        files.retain(|(source, ..)| source.exists());
        Ok(files)
    }
}

/// The files that a container is given about its network and name.
pub const FILES: [&str; 3] = [RESOLV, HOSTS, HOSTNAME];
const RESOLV: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
const HOSTNAME: &str = "/etc/hostname";

/// Makes an /etc/hosts: what is there, or the loopback and the container's name; then what was asked for.
fn hosts(below: &str, hostname: &str, more: &[(String, IpAddr)]) -> String {
    let mut text = match below {
        "" => format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
        below => below.trim_end().to_owned() + "\n",
    };
    for (name, address) in more {
        text += &format!("{address}\t{name}\n");
    }
    text
}

/// Makes an /etc/resolv.conf: the servers that were asked for, or the forwarder and those of the host that can be
/// reached; the rest as the host has it.
fn resolv_conf(host: &str, asked: &[IpAddr], forwarder: Option<IpAddr>) -> String {
    let mut servers: Vec<IpAddr> = asked.to_vec();
    let mut rest = String::new();
    let mut of_host = Vec::new();
    for line in host.lines().map(str::trim) {
        match line.strip_prefix("nameserver") {
            // One with a zone is of an interface of the host's.
            Some(address) => {
                of_host.extend(address.trim().parse::<IpAddr>().ok().filter(|a| !a.is_loopback()))
            }
            None if line.starts_with("search")
                || line.starts_with("options")
                || line.starts_with("domain") =>
            {
                rest += line;
                rest.push('\n');
            }
            None => {}
        }
    }
    if servers.is_empty() {
        servers.extend(forwarder);
        servers.extend(of_host);
    }
    servers.iter().map(|server| format!("nameserver {server}\n")).collect::<String>() + &rest
}

/// Opens the file where a helper's words go.
fn log_file(dir: &Path) -> Result<File> {
    let path = dir.join("bundle/network.log");
    File::create(&path).map_err(ContainerError::io("create it", &path))
}

fn refused(program: &Path, dir: &Path) -> ContainerError {
    let said = fs::read_to_string(dir.join("bundle/network.log")).unwrap_or_default();
    let said = said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it says nothing");
    ContainerError::Refused(format!(
        "{} cannot connect a private network: {said}; use --net none or --net host",
        program.display()
    ))
}

fn slirp(program: &Path, netns: &Path, dir: &Path) -> Result<Helper> {
    let pipe = || std::io::pipe().map_err(ContainerError::io("make a pipe for it", program));
    let ((mut ready, tell), (exit, keep)) = (pipe()?, pipe()?);
    for end in [tell.as_fd(), exit.as_fd()] {
        rustix::io::fcntl_setfd(end, rustix::io::FdFlags::empty())
            .map_err(ContainerError::io("hand a pipe to it", program))?;
    }
    let log = log_file(dir)?;
    let child = Command::new(program)
        .args([
            "--configure",
            "--mtu=65520",
            "--disable-host-loopback",
            "--enable-sandbox",
            "--enable-seccomp",
        ])
        .arg(format!("--ready-fd={}", tell.as_raw_fd()))
        .arg(format!("--exit-fd={}", exit.as_raw_fd()))
        .arg("--netns-type=path")
        .arg(netns)
        .arg("tap0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // Ctrl-C is the container's.
        .process_group(0)
        .spawn()
        .map_err(ContainerError::io("run it", program))?;
    drop((tell, exit));
    let helper = Helper::Slirp(child, Some(keep));
    let mut byte = [0];
    match ready.read(&mut byte) {
        Ok(1) => Ok(helper),
        _ => {
            drop(helper);
            Err(refused(program, dir))
        }
    }
}

fn pasta(program: &Path, netns: &Path, dir: &Path) -> Result<Helper> {
    let pid_file = dir.join("bundle/pasta.pid");
    let log = log_file(dir)?;
    // It goes to the background when it is ready.
    let status = Command::new(program)
        .args(["--config-net", "--netns-only", "--no-map-gw", "--quiet"])
        .args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"])
        .arg("--dns-forward")
        .arg(PASTA_DNS.to_string())
        .arg("--pid")
        .arg(&pid_file)
        .arg("--netns")
        .arg(netns)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .status()
        .map_err(ContainerError::io("run it", program))?;
    let pid = fs::read_to_string(&pid_file).ok().and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
    match pid {
        Some(pid) if status.success() => Ok(Helper::Pasta(pid)),
        _ => Err(refused(program, dir)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_those_that_can_be_reached() {
        let host =
            "# a comment\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch example.org\noptions edns0\n";
        let text = resolv_conf(host, &[], Some(SLIRP_DNS));
        assert_eq!(text, "nameserver 10.0.2.3\nnameserver 9.9.9.9\nsearch example.org\noptions edns0\n");
        let asked = resolv_conf(host, &["1.1.1.1".parse().unwrap()], Some(SLIRP_DNS));
        assert!(asked.starts_with("nameserver 1.1.1.1\nsearch"), "{asked}");
    }

    #[test]
    fn hosts_are_added_to_what_is_there() {
        let more = [("db".to_owned(), "10.1.2.3".parse().unwrap())];
        assert_eq!(hosts("127.0.0.1 localhost\n\n", "c", &more), "127.0.0.1 localhost\n10.1.2.3\tdb\n");
        assert!(hosts("", "c", &[]).starts_with("127.0.0.1\tlocalhost c\n"));
    }
}
