//! The programs that are compared: how each is mounted, what can be asked of its daemon.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Which command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Kernel,
    Unionmount,
    FuseOverlayfs,
    Unionfs,
}

/// One program to measure.
#[derive(Debug, Clone)]
pub struct Peer {
    pub name: String,
    pub kind: Kind,
    pub program: PathBuf,
    /// Further words for `-o`.
    pub options: String,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Peer, String> {
        let words: Vec<&str> = text.splitn(4, ';').collect();
        let [name, kind, program, options @ ..] = &words[..] else {
            return Err("give NAME;KIND;PATH[;OPTIONS]".into());
        };
        let kind = match *kind {
            "kernel" => Kind::Kernel,
            "unionmount" => Kind::Unionmount,
            "fuse-overlayfs" => Kind::FuseOverlayfs,
            "unionfs" => Kind::Unionfs,
            other => return Err(format!("unknown kind {other}")),
        };
        let program = fs::canonicalize(program).unwrap_or_else(|_| program.into());
        Ok(Peer {
            name: (*name).into(),
            kind,
            program,
            options: options.first().copied().unwrap_or("").into(),
        })
    }
}

/// Requests by kind.
pub type Requests = BTreeMap<String, u64>;

/// A peer, mounted. Dropping it unmounts.
pub struct Mounted<'a> {
    peer: &'a Peer,
    pub path: PathBuf,
    dir: PathBuf,
    daemon: Option<Pid>,
}

impl Peer {
    /// Makes a directory anew.
    pub fn empty(dir: &Path) -> Result<(), String> {
        remove(dir);
        fs::create_dir(dir).map_err(|e| e.to_string())
    }

    /// Mounts over `lowers` (names in `dir`, topmost first), with an upper that is made anew in `dir`.
    pub fn mount(&self, dir: &Path, lowers: &[String]) -> Result<Mounted<'_>, String> {
        Peer::empty(&dir.join("upper"))?;
        Peer::empty(&dir.join("work"))?;
        self.mount_over(dir, lowers, "")
    }

    /// Mounts over `lowers` with the upper and the workdir that are in `dir`, and with `also` among the options.
    pub fn mount_over(&self, dir: &Path, lowers: &[String], also: &str) -> Result<Mounted<'_>, String> {
        let path = dir.join("merged");
        fs::create_dir_all(&path).map_err(|e| e.to_string())?;
        let more = if self.options.is_empty() { String::new() } else { format!(",{}", self.options) };
        let words = format!("lowerdir={},upperdir=upper,workdir=work{also}{more}", lowers.join(":"));
        let mut command = match self.kind {
            Kind::Kernel => {
                // In a user namespace only user.overlay.* can be written.
                let namespace = fs::read_to_string("/proc/self/uid_map").unwrap().split_whitespace().nth(2)
                    != Some("4294967295");
                let mut command = Command::new("mount");
                let more = if namespace { ",userxattr" } else { "" };
                command.args(["-t", "overlay", "overlay", "-o"]).arg(words + more);
                command
            }
            Kind::Unionmount => {
                let mut command = Command::new(&self.program);
                command.args(["-o", &words, "--log-file"]).arg(dir.join("log"));
                command
            }
            Kind::FuseOverlayfs => {
                let mut command = Command::new(&self.program);
                command.args(["-o", &words]);
                command
            }
            Kind::Unionfs => {
                let branches = lowers.iter().map(|lower| format!(":{}=RO", dir.join(lower).display()));
                let branches = format!("{}=RW{}", dir.join("upper").display(), branches.collect::<String>());
                let mut command = Command::new(&self.program);
                command.args(["-o", "cow,default_permissions,use_ino"]).arg(branches);
                command
            }
        };
        let errors = dir.join("stderr");
        let status = command
            .arg(&path)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&errors).map_err(|e| e.to_string())?)
            .status()
            .map_err(|e| format!("{command:?}: {e}"))?;
        if !status.success() {
            return Err(format!("{command:?}: {status}: {}", fs::read_to_string(errors).unwrap_or_default()));
        }
        let daemon = if self.kind == Kind::Kernel { None } else { daemon_of(&path) };
        Ok(Mounted { peer: self, path, dir: dir.to_owned(), daemon })
    }
}

impl Mounted<'_> {
    /// Resident memory of the daemon in KiB.
    pub fn memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon?)).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Processor time of the daemon's threads in seconds; those that have ended don't count.
    pub fn processor_time(&self) -> f64 {
        let Some(daemon) = self.daemon else { return 0.0 };
        let Ok(threads) = fs::read_dir(format!("/proc/{daemon}/task")) else { return 0.0 };
        let nanoseconds = threads.flatten().filter_map(|thread| {
            let schedstat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            schedstat.split(' ').next()?.parse::<f64>().ok()
        });
        nanoseconds.sum::<f64>() / 1e9
    }

    /// How many requests were served so far; only ours tells.
    pub fn requests(&self) -> Option<Requests> {
        if self.peer.kind != Kind::Unionmount {
            return None;
        }
        let log = self.dir.join("log");
        let before = fs::metadata(&log).map_or(0, |m| m.len());
        kill_process(self.daemon?, Signal::USR1).ok()?;
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if text.len() as u64 > before && text.ends_with('\n') {
                let report = text.lines().rev().find_map(|line| line.split_once("requests: "))?.1;
                let words = report.split(';').next()?.split(", ");
                return Some(
                    words
                        .filter_map(|w| w.split_once(' '))
                        .map(|(k, n)| (k.into(), n.parse().unwrap_or(0)))
                        .collect(),
                );
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let umount = |args: &[&str]| {
            Command::new("umount")
                .args(args)
                .arg(&self.path)
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !umount(&[]) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        if Instant::now() >= deadline {
            umount(&["-l"]);
        }
        // Its end must not fall into the next one's measurement.
        while let Some(daemon) = self.daemon
            && rustix::process::test_kill_process(daemon).is_ok()
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::remove_file(self.dir.join("log")).unwrap_or_default();
    }
}

/// Removes a tree, whatever modes its directories have.
pub fn remove(path: &Path) {
    if fs::remove_dir_all(path).is_err() {
        Command::new("rm").arg("-rf").arg(path).status().unwrap();
    }
}

fn daemon_of(path: &Path) -> Option<Pid> {
    let path = OsString::from(path);
    for entry in fs::read_dir("/proc").ok()? {
        let entry = entry.ok()?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let named = line.split(|byte| *byte == 0).any(|word| word == path.as_encoded_bytes());
        if named && pid as u32 != std::process::id() {
            return Pid::from_raw(pid);
        }
    }
    None
}
