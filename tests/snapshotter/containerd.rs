//! Debian's containerd with a root, a state and a socket of its own, and the snapshotter as its proxy plugin.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use rustix::process::{Pid, Signal, kill_process};

use crate::client::Mounted;
use crate::server::{self, Server};
use support::{self, Scratch};

pub const OURS: &str = "unionmount";
pub const ORACLE: &str = "overlayfs";

pub struct Containerd {
    // In this order they go.
    daemon: Daemon,
    pub server: Option<Server>,
    pub scratch: Scratch,
}

struct Daemon {
    child: Child,
    socket: PathBuf,
}

/// Whether the programs are there; they are in CI.
pub fn missing() -> Option<&'static str> {
    ["containerd", "ctr", "runc"]
        .into_iter()
        .find(|program| Command::new(program).arg("--version").output().is_err())
}

/// Returns from a test, saying so, where containerd can't be run.
#[macro_export]
macro_rules! needs_containerd {
    () => {
        support::needs_root!();
        if let Some(program) = $crate::containerd::missing() {
            support::skip!("{}: needs {program}", module_path!());
        }
    };
}

/// The generation of the containerd on PATH, as `--print-config` takes it.
fn generation() -> &'static str {
    let version = Command::new("containerd").arg("--version").output().unwrap();
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if version.split_whitespace().any(|word| word.starts_with("v2.") || word.starts_with("2.")) {
        "2"
    } else {
        "1"
    }
}

impl Containerd {
    pub fn start() -> Containerd {
        Containerd::start_with(&[], None)
    }

    /// `extra` goes to the snapshotter; `bin` goes before containerd's PATH.
    pub fn start_with(extra: &[OsString], bin: Option<&Path>) -> Containerd {
        let scratch = Scratch::new();
        let server = Server::start_with(scratch.path(), extra);
        let top = scratch.path().display();
        // What the program prints for the containerd that is found first.
        let printed = server::command(scratch.path())
            .args(["--print-config", "--containerd", generation()])
            .output()
            .unwrap();
        let printed = String::from_utf8(printed.stdout).unwrap();
        let config = format!(
            r#"root = "{top}/root"
state = "{top}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
{printed}
[grpc]
  address = "{top}/c.sock"
[ttrpc]
  address = "{top}/c.sock.ttrpc"
"#
        );
        fs::write(scratch.path().join("config.toml"), config).unwrap();
        let log = File::create(scratch.path().join("containerd.log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(scratch.path().join("config.toml"));
        command.stdout(log.try_clone().unwrap()).stderr(log);
        if let Some(bin) = bin {
            let mut path = bin.as_os_str().to_owned();
            path.push(":");
            path.push(std::env::var_os("PATH").unwrap());
            command.env("PATH", path);
        }
        let daemon = Daemon { child: command.spawn().unwrap(), socket: scratch.path().join("c.sock") };
        let containerd = Containerd { daemon, server: Some(server), scratch };
        let answers =
            support::wait_until(support::PATIENCE, || containerd.try_ctr(&["version"]).status.success());
        assert!(answers, "containerd: {}", containerd.log());
        containerd
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.at("containerd.log")).unwrap();
        // Most of it tells of plugins.
        log.lines().filter(|line| !line.contains("loading plugin")).map(|line| format!("{line}\n")).collect()
    }

    /// Starts the snapshotter again, and waits until containerd has found it, which it tries when it likes to.
    pub fn start_server(&mut self) {
        self.server = Some(Server::start(self.scratch.path()));
        let found = support::wait_until(support::PATIENCE, || {
            self.try_ctr(&["snapshots", "--snapshotter", OURS, "ls"]).status.success()
        });
        assert!(found, "{}", self.log());
    }

    pub fn try_ctr(&self, arguments: &[&str]) -> Output {
        ctr(&self.daemon.socket, arguments)
    }

    /// Runs ctr and returns what it said; it must succeed.
    #[track_caller]
    pub fn ctr(&self, arguments: &[&str]) -> String {
        let output = self.try_ctr(arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "ctr {arguments:?}: {}\n{said}{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        said
    }

    /// `ctr snapshots …` of this snapshotter.
    #[track_caller]
    pub fn snapshots(&self, snapshotter: &str, arguments: &[&str]) -> String {
        self.ctr(&[&["snapshots", "--snapshotter", snapshotter], arguments].concat())
    }

    pub fn import(&self, snapshotter: &str, archive: &Path) {
        self.ctr(&["images", "import", "--snapshotter", snapshotter, archive.to_str().unwrap()]);
    }

    /// Mounts a prepared snapshot or a view as containerd does.
    #[track_caller]
    pub fn mount(&self, snapshotter: &str, key: &str) -> Mounted {
        let target = self.at(&format!("mnt-{snapshotter}-{key}"));
        let told = self.snapshots(snapshotter, &["mounts", target.to_str().unwrap(), key]);
        match told.split_whitespace().collect::<Vec<_>>()[..] {
            ["mount", "-t", kind, source, _, "-o", options] => {
                Mounted::new(kind, source, &[options.to_string()], &target)
            }
            _ => panic!("{told}"),
        }
    }
}

/// In a namespace of its own: below that the runtime keeps the containers of all of a machine's containerds, by their names.
fn ctr(socket: &Path, arguments: &[&str]) -> Output {
    let namespace = socket.parent().unwrap().file_name().unwrap();
    let where_to = ["--address".as_ref(), socket.as_os_str(), "--namespace".as_ref(), namespace];
    support::output("ctr", &[&where_to[..], &words(arguments)].concat())
}

fn words<'a>(arguments: &[&'a str]) -> Vec<&'a OsStr> {
    arguments.iter().map(|argument| OsStr::new(*argument)).collect()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let tasks = ctr(&self.socket, &["tasks", "ls", "-q"]);
        for task in String::from_utf8_lossy(&tasks.stdout).split_whitespace() {
            eprintln!("left behind by the test: task {task}");
            ctr(&self.socket, &["tasks", "kill", "-s", "KILL", task]);
            support::wait_until(support::PATIENCE, || {
                ctr(&self.socket, &["tasks", "rm", "-f", task]).status.success()
            });
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM).ok();
        if !support::wait_until(support::PATIENCE, || {
            self.child.try_wait().is_ok_and(|status| status.is_some())
        }) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}
