//! Mounts of the program under test, and of the kernel's overlayfs, that always go away.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Once, mpsc};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::mountinfo::{MountInfo, mounted_at};
use super::process::{Privilege, wait_for_exit, wait_until};

/// How long a mount may exist before it is aborted, so that a hang fails a test and does not stop the run.
const WATCHDOG: Duration = Duration::from_secs(600);

/// Returns the binary that cargo built beside the test that runs.
pub fn built() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("unionmount");
    assert!(program.is_file(), "{} is no test that cargo built, or has no program beside it", test.display());
    program
}

/// The program under test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// `unionmount`, by its own command line.
    Unionmount(PathBuf),
    /// A `fuse-overlayfs`, by `-o lowerdir=…`.
    FuseOverlayfs(PathBuf),
    /// The kernel's overlayfs, by mount(8).
    Kernel,
}

impl Program {
    /// The one that `UNIONMOUNT_BIN` names, else the one that cargo built.
    pub fn under_test() -> Self {
        let Some(name) = std::env::var_os("UNIONMOUNT_BIN") else {
            return Program::Unionmount(built());
        };
        if name == "kernel" {
            return Program::Kernel;
        }
        let path = PathBuf::from(&name);
        if path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"fuse-overlayfs")) {
            Program::FuseOverlayfs(path)
        } else {
            Program::Unionmount(path)
        }
    }

    /// Whether it is ours: the peers are held to less.
    pub fn is_unionmount(&self) -> bool {
        matches!(self, Program::Unionmount(_))
    }
}

/// What to mount.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The lowers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The upper, if the mount shall be writable.
    pub upper: Option<PathBuf>,
    /// The workdir; `None` leaves the choice to the program.
    pub work: Option<PathBuf>,
    /// Where our daemon's messages go; the peers have none.
    pub log: Option<PathBuf>,
    /// Further options for `-o`, each a word of its own.
    pub extra: Vec<String>,
    /// A command to start the program by (`prlimit --nofile=…`), if any.
    pub prefix: Vec<String>,
}

impl Options {
    fn overlay_words(&self) -> OsString {
        let mut words = OsString::from("lowerdir=");
        for (index, lower) in self.lowers.iter().enumerate() {
            if index > 0 {
                words.push(":");
            }
            words.push(lower);
        }
        if let Some(upper) = &self.upper {
            words.push(",upperdir=");
            words.push(upper);
        }
        if let Some(work) = &self.work {
            words.push(",workdir=");
            words.push(work);
        }
        for word in &self.extra {
            words.push(",");
            words.push(word);
        }
        words
    }

    /// `program`, by way of the prefix.
    fn start(&self, program: &OsStr) -> Command {
        match &self.prefix[..] {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        }
    }

    /// The command that mounts this at `mountpoint`.
    pub fn command(&self, program: &Program, mountpoint: &Path) -> Command {
        match program {
            Program::Unionmount(path) => {
                let mut command = self.start(path.as_os_str());
                for lower in &self.lowers {
                    command.arg("--lower").arg(escape_colons(lower));
                }
                if let Some(upper) = &self.upper {
                    command.arg("--upper").arg(upper);
                }
                if let Some(work) = &self.work {
                    command.arg("--work").arg(work);
                }
                if let Some(log) = &self.log {
                    command.arg("--log-file").arg(log);
                }
                if !self.extra.is_empty() {
                    command.arg("-o").arg(self.extra.join(","));
                }
                if let Some(words) = std::env::var_os("UNIONMOUNT_OPTIONS") {
                    command.arg("-o").arg(words);
                }
                command.arg(mountpoint);
                command
            }
            Program::FuseOverlayfs(path) => {
                let mut command = self.start(path.as_os_str());
                command.arg("-o").arg(self.overlay_words()).arg(mountpoint);
                command
            }
            Program::Kernel => {
                let mut command = self.start(OsStr::new("mount"));
                command.args(["-t", "overlay", "overlay", "-o"]).arg(self.overlay_words()).arg(mountpoint);
                command
            }
        }
    }
}

fn escape_colons(path: &Path) -> OsString {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte == b':' || byte == b'\\' {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    OsString::from_vec(escaped)
}

/// Why there is no mount.
#[derive(Debug)]
pub struct MountError {
    /// The exit status; `None` when it was killed because it did not end.
    pub status: Option<i32>,
    /// What it printed on standard error.
    pub stderr: String,
}

/// A live mount. Dropping it unmounts it, lazily and with the daemon killed if nothing else helps.
pub struct Mount {
    path: PathBuf,
    program: Program,
    daemon: Option<u32>,
    /// The daemon, if it is this process's to wait for.
    child: Option<Child>,
    gone: bool,
    /// Dropped with the mount, which ends the watchdog's thread.
    _watchdog: mpsc::Sender<()>,
}

impl Mount {
    /// Mounts with the program under test.
    pub fn new(options: &Options, mountpoint: &Path) -> Self {
        Self::with_program(&Program::under_test(), options, mountpoint)
    }

    /// Mounts with `program`.
    pub fn with_program(program: &Program, options: &Options, mountpoint: &Path) -> Self {
        Self::try_with_program(program, options, mountpoint).unwrap_or_else(|error| {
            panic!("{:?}\nstatus {:?}\n{}", options.command(program, mountpoint), error.status, error.stderr)
        })
    }

    /// Mounts with `program`, or says why not.
    pub fn try_with_program(
        program: &Program,
        options: &Options,
        mountpoint: &Path,
    ) -> Result<Self, MountError> {
        fs::create_dir_all(mountpoint).unwrap();
        let (status, stderr) = run_mount_command(options.command(program, mountpoint));
        if status != Some(0) {
            return Err(MountError { status, stderr });
        }
        let Some(mount) = mounted_at(mountpoint) else {
            panic!(
                "{program:?} returned success, but nothing is mounted at {}: {stderr}",
                mountpoint.display()
            );
        };
        let daemon = if mount.kind.starts_with("fuse") { daemon_of(mountpoint) } else { None };
        let watchdog = start_watchdog(mount, daemon);
        Ok(Mount {
            path: mountpoint.to_owned(),
            program: program.clone(),
            daemon,
            child: None,
            gone: false,
            _watchdog: watchdog,
        })
    }

    /// Mounts with `program`, which stays a child of this process: for tests that mount very often, since nobody
    /// looks for the daemon among all processes.
    pub fn in_foreground(program: &Program, options: &Options, mountpoint: &Path) -> Self {
        fs::create_dir_all(mountpoint).unwrap();
        let mut command = options.command(program, mountpoint);
        let stderr = tempfile::tempfile().unwrap();
        command.arg("--foreground").stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(stderr.try_clone().unwrap()).spawn().unwrap();
        let Some(mount) = wait_for_mount(mountpoint, child.id()) else {
            child.kill().unwrap();
            let status = child.wait().unwrap();
            let mut said = String::new();
            (&stderr).seek(SeekFrom::Start(0)).unwrap();
            (&stderr).read_to_string(&mut said).unwrap();
            panic!("{command:?}\n{status}\n{said}");
        };
        let daemon = Some(child.id());
        let watchdog = start_watchdog(mount, daemon);
        Mount {
            path: mountpoint.to_owned(),
            program: program.clone(),
            daemon,
            child: Some(child),
            gone: false,
            _watchdog: watchdog,
        }
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path below the mount point.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path.join(path)
    }

    /// What serves it.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The daemon's process id; a mount of the kernel's has none.
    pub fn daemon(&self) -> u32 {
        self.daemon.expect("the mount has no daemon")
    }

    /// Unmounts and waits for the daemon's end. Panics if the mount is busy or the daemon stays.
    pub fn unmount(self) {
        self.unmount_by(unmount_command);
    }

    /// The same by the system call alone, for tests that unmount very often. Needs root.
    pub fn unmount_at_once(self) {
        self.unmount_by(|path| {
            rustix::mount::unmount(path, rustix::mount::UnmountFlags::empty())
                .map_err(|error| error.to_string())
        });
    }

    fn unmount_by(mut self, unmount: impl Fn(&Path) -> Result<(), String>) {
        self.gone = true;
        // A process that has just ended may hold the mount for another instant.
        let mut said = String::new();
        let unmounted = wait_until(Duration::from_secs(2), || match unmount(&self.path) {
            Ok(()) => true,
            Err(text) => {
                said = text;
                false
            }
        });
        if !unmounted {
            self.gone = false;
            panic!("cannot unmount {}: {said}", self.path.display());
        }
        if let Some(daemon) = self.daemon {
            assert!(
                wait_for_exit(daemon, crate::PATIENCE),
                "the daemon {daemon} did not end after the unmount"
            );
        }
    }

    /// Kills the daemon with SIGKILL and takes the dead mount away.
    pub fn kill(mut self) {
        self.kill_daemon();
        self.gone = true;
        lazy_unmount(&self.path);
    }

    /// Takes the mount away whose daemon is dead already.
    pub fn kill_dead(mut self) {
        self.gone = true;
        lazy_unmount(&self.path);
    }

    /// Kills the daemon with SIGKILL and waits for its end; the dead mount stays.
    pub fn kill_daemon(&self) {
        let pid = self.daemon();
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        assert!(wait_for_exit(pid, crate::PATIENCE), "the daemon {pid} survived SIGKILL");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.gone {
            self.clean_up();
        }
        // Its end has been waited for, or it was killed.
        if let Some(child) = &mut self.child {
            child.wait().ok();
        }
    }
}

impl Mount {
    fn clean_up(&self) {
        if wait_until(Duration::from_secs(1), || unmount_command(&self.path).is_ok()) {
            if let Some(daemon) = self.daemon {
                wait_for_exit(daemon, crate::PATIENCE);
            }
            return;
        }
        if let Some(pid) = self.daemon.and_then(|pid| Pid::from_raw(pid as i32)) {
            // It may have ended by itself; what matters is that it is gone.
            kill_process(pid, Signal::KILL).unwrap_or_default();
        }
        lazy_unmount(&self.path);
    }
}

/// Runs a mount command whose daemon may keep its standard error: so a file, not a pipe, takes that.
fn run_mount_command(mut command: Command) -> (Option<i32>, String) {
    let stderr = tempfile::NamedTempFile::new().unwrap();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr.reopen().unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let ended = wait_for_exit(child.id(), crate::PATIENCE);
    if !ended {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let text = String::from_utf8_lossy(&fs::read(stderr.path()).unwrap()).into_owned();
    (if ended { status.code() } else { None }, text)
}

/// Waits until something is mounted at `mountpoint`; `None` if the process ends before, or it takes too long.
fn wait_for_mount(mountpoint: &Path, process: u32) -> Option<MountInfo> {
    // The kernel tells who polls the table of a change in it.
    let table = File::open("/proc/self/mountinfo").unwrap();
    let process = pidfd_open(Pid::from_raw(process as i32).unwrap(), PidfdFlags::empty()).unwrap();
    let limit = Timespec { tv_sec: crate::PATIENCE.as_secs() as i64, tv_nsec: 0 };
    loop {
        if let Some(mount) = mounted_at(mountpoint) {
            return Some(mount);
        }
        let mut waited = [PollFd::new(&table, PollFlags::PRI), PollFd::new(&process, PollFlags::IN)];
        let told = poll(&mut waited, Some(&limit)).unwrap();
        if told == 0 || waited[1].revents().contains(PollFlags::IN) {
            return None;
        }
    }
}

/// The process that serves the mount: the one whose arguments name the mount point.
fn daemon_of(mountpoint: &Path) -> Option<u32> {
    let entries = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let mut pids: Vec<u32> =
        entries.filter_map(|name| name.to_str().and_then(|name| name.parse().ok())).collect();
    // It has just started: it is among the last.
    pids.sort_unstable_by_key(|pid| std::cmp::Reverse(*pid));
    for pid in pids {
        // A process may end while we look.
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let ours = line.split(|&byte| byte == 0).any(|word| word == mountpoint.as_os_str().as_bytes());
        if ours && pid != std::process::id() {
            return Some(pid);
        }
    }
    panic!("no process serves {}", mountpoint.display());
}

fn start_watchdog(mount: MountInfo, daemon: Option<u32>) -> mpsc::Sender<()> {
    let (sender, receiver) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if receiver.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("WATCHDOG: {} hangs; aborting it", mount.point.display());
            if let Some(pid) = daemon.and_then(|pid| Pid::from_raw(pid as i32)) {
                kill_process(pid, Signal::KILL).unwrap_or_default();
            }
            force_unmount(&mount);
        }
    });
    sender
}

fn unmount_command(path: &Path) -> Result<(), String> {
    let (program, arguments): (&str, &[&str]) = match Privilege::current() {
        Privilege::User => ("fusermount3", &["-u"]),
        Privilege::Root | Privilege::Namespace => ("umount", &[]),
    };
    let output = Command::new(program).args(arguments).arg(path).stdin(Stdio::null()).output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Detaches the mount at `path`, busy or dead.
pub(super) fn lazy_unmount(path: &Path) {
    let (program, arguments): (&str, &[&str]) = match Privilege::current() {
        Privilege::User => ("fusermount3", &["-uz"]),
        Privilege::Root | Privilege::Namespace => ("umount", &["-l"]),
    };
    let status = Command::new(program).args(arguments).arg(path).stdin(Stdio::null()).status();
    if !status.as_ref().is_ok_and(|status| status.success()) {
        eprintln!("cannot unmount {} lazily: {status:?}", path.display());
    }
}

/// The file that aborts the connection of a FUSE filesystem, by the minor number of its device: who waits for it goes on.
/// Its filesystem is mounted by systemd where that is; as root, it is mounted here where it isn't yet.
pub fn abort_of(minor: u32) -> PathBuf {
    const CONTROL: &str = "/sys/fs/fuse/connections";
    static MOUNTED: Once = Once::new();
    MOUNTED.call_once(|| {
        let missing = mounted_at(Path::new(CONTROL)).is_none();
        if missing && Privilege::current() == Privilege::Root {
            super::process::output("mount", &["-t", "fusectl", "fusectl", CONTROL]);
        }
    });
    Path::new(CONTROL).join(minor.to_string()).join("abort")
}

/// Aborts the mount's connection, so that who waits for it goes on, and detaches it.
pub(super) fn force_unmount(mount: &MountInfo) {
    if mount.kind.starts_with("fuse") && Privilege::current() == Privilege::Root {
        let abort = abort_of(mount.minor);
        if let Err(error) = fs::write(&abort, "1") {
            eprintln!("cannot abort by {}: {error}", abort.display());
        }
    }
    lazy_unmount(&mount.point);
}
