//! Driving the real binary: a scratch directory with layers that unmounts everything below it in the end, runs as root,
//! as an ordinary user or in a user namespace, and a wait that is a condition and not a sleep.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use crate::{MountInfo, Scratch, built, mounted_at, mounts_below, wait_until};

/// An account without privileges, made when it is missing.
pub const USER: &str = "unionmount-test";

/// Mounting in the tests needs root; an ordinary user is made by it.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What a program that has ended left.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// It succeeded, silently on stderr.
    #[track_caller]
    pub fn ok(self) -> Ended {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(self.err, "", "{self:?}");
        self
    }

    /// It failed with `code` and one line on stderr that holds each of `parts`.
    #[track_caller]
    pub fn refused(self, code: i32, parts: &[&str]) -> Ended {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.err.matches('\n').count(), 1, "one line: {self:?}");
        assert!(self.err.starts_with("unionmount: "), "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in {self:?}");
        }
        self
    }
}

/// Runs to the end **of stdout and stderr**, as a caller does that reads pipes: a daemon that keeps them open fails the
/// test.
#[track_caller]
pub fn run(command: &mut Command) -> Ended {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    let out = read_to_end(child.stdout.take().expect("piped"));
    let err = read_to_end(child.stderr.take().expect("piped"));
    let status = wait(&mut child);
    let text = |receiver: mpsc::Receiver<String>| receiver.recv_timeout(crate::PATIENCE);
    match (text(out), text(err)) {
        (Ok(out), Ok(err)) => Ended { code: status, out, err },
        _ => panic!("{command:?} has ended, but somebody keeps its stdout or stderr open"),
    }
}

fn read_to_end(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        pipe.read_to_end(&mut text).expect("read");
        sender.send(String::from_utf8_lossy(&text).into_owned()).ok();
    });
    receiver
}

/// The exit status of a child that must end.
#[track_caller]
pub fn wait(child: &mut Child) -> Option<i32> {
    let mut status = None;
    until("the program ends", || {
        status = child.try_wait().expect("wait");
        status.is_some()
    });
    status.expect("ended").code()
}

/// Waits until `condition` holds; fails the test when it does not come about.
#[track_caller]
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_until(crate::PATIENCE, condition), "in vain: {what}");
}

/// A scratch directory with lowers `a` and `b`, an upper `up` and a mount point `mnt`, of which any user may reach the
/// binary `bin`. Dropping it unmounts what is mounted below.
pub struct Place {
    top: Scratch,
}

impl Place {
    pub fn new() -> Place {
        let place = Place { top: Scratch::below(Path::new("/tmp")) };
        // The build directory may be closed to other users. Copied by another process: a descriptor for writing that
        // a test beside this one inherits by its fork would make the binary "busy".
        // Another program, such as an older one, shows whether a test fails without what it tests.
        let program = std::env::var_os("UNIONMOUNT_TEST_PROGRAM");
        let program = program.map_or_else(built, PathBuf::from);
        let copied = Command::new("cp").arg(program).arg(place.bin()).status();
        assert!(copied.expect("cp").success());
        for dir in ["a", "b", "up", "mnt"] {
            fs::create_dir(place.at(dir)).expect("mkdir");
        }
        place
    }

    /// The same, with directories that belong to the ordinary user.
    pub fn of_user() -> Place {
        let place = Place::new();
        let (uid, gid) = user();
        for dir in ["", "a", "b", "up", "mnt"] {
            std::os::unix::fs::chown(place.at(dir), Some(uid), Some(gid)).expect("chown");
        }
        place
    }

    pub fn path(&self) -> &Path {
        self.top.path()
    }

    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.top.path().join(name)
    }

    pub fn bin(&self) -> PathBuf {
        self.at("unionmount")
    }

    pub fn mkdir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.at(name);
        fs::create_dir_all(&path).expect("mkdir");
        path
    }

    /// The program, to be run in the scratch directory.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(self.bin());
        command.args(args).current_dir(self.path()).env_remove("RUST_LOG");
        command
    }

    #[track_caller]
    pub fn unionmount<S: AsRef<OsStr>>(&self, args: &[S]) -> Ended {
        run(&mut self.command(args))
    }

    #[track_caller]
    pub fn sh(&self, script: &str) -> Ended {
        run(Command::new("sh").args(["-c", script]).current_dir(self.path()).env_remove("RUST_LOG"))
    }

    #[track_caller]
    pub fn sh_as_user(&self, script: &str) -> Ended {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(self.path()).env_remove("RUST_LOG");
        run(as_user(&mut command))
    }

    /// What is mounted on `name` on top.
    pub fn mounted(&self, name: &str) -> Option<MountInfo> {
        mounted_at(&self.at(name))
    }

    #[track_caller]
    pub fn umount(&self, name: &str) {
        let ended = run(Command::new("umount").arg(self.at(name)));
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }

    /// The names in a directory, sorted; without the binary.
    pub fn names(&self, name: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.at(name))
            .expect("readdir")
            .map(|entry| entry.expect("readdir").file_name().to_string_lossy().into_owned())
            .filter(|name| name != "unionmount")
            .collect();
        names.sort();
        names
    }

    /// The daemons whose binary is this place's.
    pub fn daemons(&self) -> Vec<i32> {
        fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == self.bin()))
            .collect()
    }

    /// The one daemon.
    #[track_caller]
    pub fn daemon(&self) -> rustix::process::Pid {
        let daemons = self.daemons();
        assert_eq!(daemons.len(), 1, "{daemons:?}");
        rustix::process::Pid::from_raw(daemons[0]).expect("pid")
    }

    #[track_caller]
    pub fn wait_for_no_daemon(&self) {
        until("the daemon ends", || self.daemons().is_empty());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Tests of the command line end with their mounts in place.
        for mount in mounts_below(self.path()).into_iter().rev() {
            if let Err(errno) = rustix::mount::unmount(&mount.point, rustix::mount::UnmountFlags::DETACH) {
                eprintln!("cannot unmount {}: {errno}", mount.point.display());
            }
        }
    }
}

/// Makes the ordinary user when it is missing, and lets it open /dev/fuse. Returns its ids.
pub fn user() -> (u32, u32) {
    static READY: std::sync::OnceLock<(u32, u32)> = std::sync::OnceLock::new();
    *READY.get_or_init(|| {
        // Several test programs run at once: that somebody else made it is as good.
        let id = |flag: &str| run(Command::new("id").args([flag, USER])).out.trim().parse::<u32>();
        if id("-u").is_err() {
            run(Command::new("useradd").args(["--create-home", USER]));
        }
        let access = run(Command::new("setfacl").args(["-m", &format!("u:{USER}:rw"), "/dev/fuse"]));
        assert_eq!(access.code, Some(0), "{access:?}");
        (id("-u").expect("useradd"), id("-g").expect("useradd"))
    })
}

/// Makes the command run as the ordinary user.
pub fn as_user(command: &mut Command) -> &mut Command {
    let (uid, gid) = user();
    command.uid(uid).gid(gid)
}
