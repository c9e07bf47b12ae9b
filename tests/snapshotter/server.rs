//! The snapshotter as a process, told ready as systemd is told.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::client::Client;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_unionmount");

/// How it ended: exit status, `None` for a signal, and what it said.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub said: String,
}

/// A snapshotter below `dir`, killed when it is dropped.
pub struct Server {
    dir: PathBuf,
    child: Option<Child>,
    systemd: UnixDatagram,
}

pub fn command(dir: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .arg("snapshotter")
        .arg("--address")
        .arg(dir.join("s.sock"))
        .arg("--root")
        .arg(dir.join("snapshots"));
    command
}

impl Server {
    pub fn start(dir: &Path) -> Server {
        Server::start_with(dir, &[])
    }

    pub fn start_with(dir: &Path, extra: &[OsString]) -> Server {
        let told = dir.join("notify");
        std::fs::remove_file(&told).ok();
        let systemd = UnixDatagram::bind(&told).unwrap();
        systemd.set_read_timeout(Some(support::PATIENCE)).unwrap();
        let child =
            command(dir).args(extra).env("NOTIFY_SOCKET", &told).stderr(Stdio::piped()).spawn().unwrap();
        let mut server = Server { dir: dir.to_owned(), child: Some(child), systemd };
        let mut message = [0; 64];
        let length = server.systemd.recv(&mut message).unwrap_or_else(|error| {
            panic!("not ready: {error}: {:?}", server.signal(Signal::KILL));
        });
        assert_eq!(&message[..length], b"READY=1\n");
        server
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.dir.join("s.sock"))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// Sends a signal and waits for the end.
    pub fn signal(&mut self, signal: Signal) -> Ended {
        kill_process(self.pid(), signal).unwrap();
        self.wait()
    }

    pub fn wait(&mut self) -> Ended {
        let mut child = self.child.take().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        Ended { code: child.wait().unwrap().code(), said }
    }

    pub fn kill(mut self) {
        self.signal(Signal::KILL);
    }

    /// Where the layer of the snapshot `key` lies, as its mounts tell.
    pub fn root(&self) -> PathBuf {
        self.dir.join("snapshots")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
