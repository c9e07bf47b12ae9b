//! The namespaces of a try, its mounts, and its command.

#![allow(clippy::disallowed_methods, reason = "nothing of a layer is changed here")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, Signal};

use super::record::{Kept, Result, TryError};
use super::waiting::HandingOn;
use crate::container::commit::flush_root;
use crate::container::mounting::{PATIENCE, wait_for_end};
use crate::sys::flock::Access;
use crate::sys::namespace;
use crate::union::escaped_path::EscapedPath;

/// How long what the command has left running may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// What can't be done in a try without privileges, in a few words.
pub const LIMITS: &str =
    "sudo and other setuid programs don't work in it, and files of other users can't be applied";

/// What was mounted. It is unmounted at the end, whatever that is: a daemon that nobody unmounts holds its upper for ever.
#[derive(Default)]
struct Mounts {
    places: Vec<PathBuf>,
    /// The namespace in which these are, once this process has left it.
    namespace: Option<OwnedFd>,
}

impl Mounts {
    fn end(&mut self) -> Result<()> {
        if let Some(namespace) = self.namespace.take() {
            namespace::enter_mounts(&namespace)
                .map_err(TryError::io("go back to", "the namespace of the mounts"))?;
        }
        std::env::set_current_dir("/").map_err(TryError::io("enter it", "/"))?;
        while let Some(place) = self.places.pop() {
            rustix::mount::unmount(&place, UnmountFlags::DETACH)
                .map_err(TryError::io("unmount it", &place))?;
        }
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        while !self.places.is_empty() {
            if let Err(error) = self.end() {
                log::warn!("{error}");
            }
        }
    }
}

/// Runs a command in a try: mounts, waits for its end, unmounts. Returns how it ended. The process must have one thread.
///
/// # Errors
/// When the namespaces or the mounts can't be made, or there is no such command.
pub fn run(kept: &Kept, command: &[OsString]) -> Result<ExitStatus> {
    let signals = HandingOn::begin().map_err(TryError::io("catch", "signals"))?;
    let _lock = kept
        .lock(Access::Shared)?
        .ok_or_else(|| TryError::Refused("somebody else is at work in it".into()))?;
    let cwd = std::env::current_dir().map_err(TryError::io("find", "the working directory"))?;
    let mapped = enter()?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(TryError::io("make the mounts private below", "/"))?;
    adopt()?;
    let pairs = kept.pairs();
    // The mounts are made beside the uppers, and shown where the directories are: there another try may be mounted.
    let points: Vec<PathBuf> = (0..pairs.len()).map(|at| kept.dir.join(format!("mnt{at}"))).collect();
    let mut mounts = Mounts::default();
    for ((upper, dir), point) in pairs.iter().zip(&points) {
        mount(upper, dir, point, mapped)?;
        mounts.places.push(point.clone());
    }
    if !kept.record.root_fs {
        for ((_, dir), point) in pairs.iter().zip(&points) {
            rustix::mount::mount_bind(point, dir).map_err(TryError::io("show the union on", dir))?;
            mounts.places.push(dir.clone());
        }
    }
    if kept.record.root_fs {
        let outer = namespace::mounts_of_this_process().map_err(TryError::io("open", "/proc/self/ns/mnt"))?;
        mounts.namespace = Some(outer);
        enter_root(&points[0])?;
    }
    let ended = match std::env::set_current_dir(&cwd) {
        Ok(()) => start(command, &kept.name(), &signals),
        Err(error) => Err(TryError::io("enter it", &cwd)(error)),
    };
    let rest = end_the_rest();
    mounts.end()?;
    for ((upper, dir), point) in pairs.iter().zip(&points) {
        if !wait_for_end(upper, PATIENCE).map_err(|error| TryError::Refused(error.to_string()))? {
            return Err(TryError::Refused(format!(
                "{}: something in it is still in use",
                EscapedPath::from(dir.as_path())
            )));
        }
        fs::remove_dir(point).map_err(TryError::io("remove it", point))?;
    }
    rest?;
    ended
}

/// Makes what a command leaves behind this process's child.
///
/// # Errors
/// Those of prctl(2).
pub fn adopt() -> Result<()> {
    rustix::process::set_child_subreaper(Pid::from_raw(1)).map_err(TryError::io("adopt", "orphans"))
}

/// Ends what is left of a try whose own process was killed: the command, and then the daemons of its mounts, once they have
/// what the kernel keeps for them. Nobody can unmount what they show, so they are killed as well.
///
/// # Errors
/// When something can't be ended, or what was written last may be missing: then nothing may be decided without asking.
pub fn end_orphans(kept: &Kept) -> Result<()> {
    let rest = end_the_rest();
    let mut missing = None;
    for daemon in children(|_| true)? {
        for (at, (upper, _)) in kept.pairs().iter().enumerate() {
            let point = kept.dir.join(format!("mnt{at}"));
            let point = point.strip_prefix("/").unwrap_or(&point);
            let seen = Path::new("/proc").join(daemon.as_raw_nonzero().to_string()).join("root").join(point);
            let flushed = match fs::File::open(&seen) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => Err(error.to_string()),
                Ok(root) => {
                    flush_root(&root, &seen, Path::new("/"), upper).map_err(|error| error.to_string())
                }
            };
            if let Err(error) = flushed {
                missing.get_or_insert(error);
            }
        }
    }
    end(|| children(|_| true), &[Signal::TERM, Signal::KILL], ENDING)?;
    rest?;
    match missing {
        None => Ok(()),
        Some(error) => Err(TryError::Refused(format!("what the command wrote last may be missing: {error}"))),
    }
}

/// Makes a mount namespace, and a user namespace where this process may do nothing. Returns whether it has made one.
fn enter() -> Result<bool> {
    if namespace::may_mount() && namespace::new_mounts().is_ok() {
        return Ok(false);
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    namespace::new_user_namespace().map_err(|error| {
        TryError::Refused(format!(
            "no user namespace can be made: {error}; an administrator can allow it with the sysctls user.max_user_namespaces, \
             kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns, or run it as root"
        ))
    })?;
    let write = |file: &str, text: String| {
        let path = Path::new("/proc/self").join(file);
        fs::write(&path, text).map_err(TryError::io("write it", &path))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))?;
    namespace::hand_on_mounting().map_err(TryError::io("keep", "the right to mount"))?;
    Ok(true)
}

/// Mounts the union of a directory over itself, by calling this very program.
fn mount(upper: &Path, dir: &Path, point: &Path, mapped: bool) -> Result<()> {
    match fs::create_dir(point) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(TryError::io("create it", point)(error));
        }
        _ => {}
    }
    // Others may go on working in the directory.
    let mut options = vec!["lower=checked".to_owned()];
    if mapped {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        options.push(format!("squash_to_uid={uid},squash_to_gid={gid}"));
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg0("unionmount").arg("--lower").arg(escape_colons(dir)).arg("--upper").arg(upper);
    command.arg("-o").arg(options.join(",")).arg("unionmount-try").arg(point);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = command.output().map_err(TryError::io("run it", "/proc/self/exe"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(TryError::Refused(said.trim().strip_prefix("unionmount: ").unwrap_or(said.trim()).to_owned()))
}

fn escape_colons(path: &Path) -> OsString {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte == b':' || byte == b'\\' {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    OsStr::from_bytes(&escaped).to_owned()
}

/// Makes the union the root, in a mount namespace of its own: the daemon must go on seeing the real one.
fn enter_root(point: &Path) -> Result<()> {
    namespace::new_mounts().map_err(TryError::io("make", "another mount namespace"))?;
    for name in ["proc", "sys", "dev"] {
        let (from, to) = (Path::new("/").join(name), point.join(name));
        if from.is_dir() {
            rustix::mount::mount_bind_recursive(&from, &to).map_err(TryError::io("show it", &from))?;
        }
    }
    std::env::set_current_dir(point).map_err(TryError::io("enter it", point))?;
    rustix::process::pivot_root(".", ".").map_err(TryError::io("make it the root", point))?;
    // The old root lies on top of the new one.
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(TryError::io("leave", "the old root"))?;
    std::env::set_current_dir("/").map_err(TryError::io("enter it", "/"))
}

fn start(words: &[OsString], name: &str, signals: &HandingOn) -> Result<ExitStatus> {
    let Some((program, args)) = words.split_first() else {
        return Err(TryError::Refused("no command is given".into()));
    };
    namespace::keep_mounting().map_err(TryError::io("give up", "the right to mount"))?;
    let mut command = Command::new(program);
    command.args(args).env("UNIONMOUNT_TRY", name);
    match command.spawn() {
        Ok(mut child) => signals.wait(&mut child).map_err(TryError::io("wait for it", program)),
        Err(error) => {
            let found = Path::new(program).components().count() > 1 && Path::new(program).exists()
                || on_path(program);
            let shown = EscapedPath::from(Path::new(program));
            match found {
                true => {
                    Err(TryError::NoProgram { code: 126, why: format!("{shown}: can't be run: {error}") })
                }
                false => Err(TryError::NoProgram { code: 127, why: format!("{shown}: no such program") }),
            }
        }
    }
}

/// Returns whether a directory of PATH has a file of that name. One that may not be searched is as one that hasn't.
fn on_path(program: &OsStr) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .any(|dir| Path::new(program).components().count() == 1 && dir.join(program).is_file())
}

/// Ends what the command has left running: politely, then not.
fn end_the_rest() -> Result<()> {
    let own = fs::read_link("/proc/self/exe").ok();
    end(|| children(|pid| !is_daemon(pid, own.as_deref())), &[Signal::TERM, Signal::KILL], ENDING)
}

/// Sends these signals in turn until nobody is left; each has that long.
///
/// # Errors
/// When somebody is left all the same.
fn end(left: impl Fn() -> Result<Vec<Pid>>, signals: &[Signal], patience: Duration) -> Result<()> {
    for signal in signals {
        let deadline = std::time::Instant::now() + patience;
        loop {
            let left = left()?;
            if left.is_empty() {
                return Ok(());
            }
            for one in &left {
                // One that has just ended is as good; who can't be ended is still there afterwards.
                rustix::process::kill_process(*one, *signal).unwrap_or_default();
            }
            while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
            if std::time::Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    match &left()?[..] {
        [] => Ok(()),
        left => {
            let left: Vec<String> = left.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
            let left = left.join(", ");
            Err(TryError::Refused(format!("what the command left running can't be ended (processes {left})")))
        }
    }
}

/// Lists children of this process.
///
/// # Errors
/// Those of reading the list: who is there isn't known then.
fn children(which: impl Fn(Pid) -> bool) -> Result<Vec<Pid>> {
    let path = PathBuf::from(format!("/proc/self/task/{}/children", std::process::id()));
    let text = fs::read_to_string(&path).map_err(TryError::io("read it", &path))?;
    Ok(text
        .split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .filter(|pid| which(*pid))
        .collect())
}

/// Tells the daemon of a mount. `own`: the program.
fn is_daemon(pid: Pid, own: Option<&Path>) -> bool {
    let words = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let marked = words.split(|&byte| byte == 0).any(|word| word == b"unionmount-try");
    marked && fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).ok().as_deref() == own
}
