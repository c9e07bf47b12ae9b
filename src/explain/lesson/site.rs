//! The directory of a lesson, its layers and its mounts, which go away whatever happens.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::LessonError;
use crate::sys::mountinfo::Table;
use crate::sys::remove;

/// How long the daemons may take to leave the directory.
const PATIENCE: Duration = Duration::from_secs(10);
/// The size of the file that makes the image large.
const LIBRARY: usize = 2 << 20;

/// The directory of a lesson.
#[derive(Debug)]
pub struct Site {
    dir: PathBuf,
    /// How many columns what a command prints may have.
    columns: fn() -> usize,
    /// The language of what is said there.
    language: &'static str,
}

/// The layers' files, but for the library.
const FILES: [(&str, &str); 8] = [
    ("base/etc/os", "debian\n"),
    ("base/etc/motd", "Welcome\n"),
    ("base/srv/site/index.html", "an old page\n"),
    ("base/srv/music/song", "la la\n"),
    ("base/srv/one", "a file with two names\n"),
    ("app/etc/app.conf", "port = 80\n"),
    ("app/srv/app.txt", "the program\n"),
    ("patch/etc/app.conf", "port = 8080\n"),
];

impl Site {
    /// Makes a fresh directory for temporary files.
    ///
    /// # Errors
    /// If that can't be done.
    pub fn new(columns: fn() -> usize, language: &'static str) -> Result<Site, LessonError> {
        let made = tempfile::Builder::new().prefix("unionmount-demo-").tempdir();
        let place = std::env::temp_dir();
        let what = format!("cannot make a directory in {}; name another one by TMPDIR", place.display());
        let dir = made.map_err(LessonError::io(what))?.keep();
        let dir = dir.canonicalize().map_err(LessonError::io(dir.display()))?;
        Ok(Site { dir, columns, language })
    }

    /// Returns where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the layers anew, runs a script in the directory, and lets the shell find this very program.
    pub(super) fn prepare(&self, script: &str) -> Result<(), LessonError> {
        self.unmount()?;
        self.empty()?;
        let library = "x".repeat(LIBRARY);
        for (path, content) in FILES.iter().chain(&[("base/usr/lib/library.so", library.as_str())]) {
            let path = self.dir.join(path);
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            made.and_then(|()| std::fs::write(&path, content)).map_err(LessonError::io(path.display()))?;
        }
        let program = std::env::current_exe().map_err(LessonError::io("cannot find this program"))?;
        let bin = self.dir.join(".bin");
        std::fs::create_dir(&bin)
            .and_then(|()| std::os::unix::fs::symlink(program, bin.join("unionmount")))
            .map_err(LessonError::io(bin.display()))?;
        if script.is_empty() { Ok(()) } else { self.run(script).map(drop) }
    }

    /// Removes all that is in the directory.
    fn empty(&self) -> Result<(), LessonError> {
        let io = |error| LessonError::io(self.dir.display())(error);
        for entry in std::fs::read_dir(&self.dir).map_err(io)? {
            self.remove(&entry.map_err(io)?.path())?;
        }
        Ok(())
    }

    /// Removes a tree. The daemons take their workdirs away when their mounts have gone: what is in the way is waited for.
    fn remove(&self, path: &Path) -> Result<(), LessonError> {
        let end = Instant::now() + PATIENCE;
        loop {
            match remove::tree(path) {
                Ok(()) => return Ok(()),
                Err(left) if left.errno == rustix::io::Errno::NOENT && !path.exists() => return Ok(()),
                Err(left) if Instant::now() > end => {
                    return Err(LessonError::io(format!("cannot remove {}", left.name.display()))(
                        left.errno.into(),
                    ));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Returns a command as it is shown and run.
    pub(super) fn command(&self, command: &str) -> String {
        let unmount = if rustix::process::geteuid().is_root() { "umount" } else { "fusermount3 -u" };
        command.replace("UNMOUNT", unmount)
    }

    /// Returns the shell in the directory, which finds this very program.
    fn shell(&self) -> Command {
        let mut path = self.dir.join(".bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin:/usr/sbin:/sbin".into()));
        let mut shell = Command::new("sh");
        shell.current_dir(&self.dir).env("PATH", path).env("UNIONMOUNT_ROOT", self.dir.join("store"));
        shell
    }

    /// Runs a command of the learner's own, on his terminal if he has one; else returns what it says. Empty: a shell.
    pub(super) fn run_own(&self, command: &str, has_terminal: bool) -> Result<String, LessonError> {
        let mut shell = self.shell();
        match (command, has_terminal) {
            ("", true) => &mut shell,
            (command, true) => shell.args(["-c", command]),
            (command, false) => shell.args(["-c", &format!("exec 2>&1\n{command}")]).stdin(Stdio::null()),
        };
        let io = LessonError::io("cannot start sh");
        if has_terminal {
            // Whether it succeeds is the learner's affair, and told by itself.
            return shell.status().map(|_| String::new()).map_err(io);
        }
        let ran = shell.output().map_err(io)?;
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    }

    /// Runs a command in the directory and returns what it says.
    pub(super) fn run(&self, command: &str) -> Result<String, LessonError> {
        self.run_with(command, None)
    }

    fn run_with(&self, command: &str, argument: Option<&Path>) -> Result<String, LessonError> {
        let ran = self
            .shell()
            .args(["-c", &format!("exec 2>&1\n{command}"), "sh"])
            .args(argument)
            // What is listed is the same for all; what this program says is in the lesson's language.
            .env_remove("LC_ALL")
            .env("LANG", "C")
            .env("LC_COLLATE", "C")
            .env("LC_TIME", "C")
            .env("LC_MESSAGES", self.language)
            .env("COLUMNS", (self.columns)().to_string())
            .stdin(Stdio::null())
            .output()
            .map_err(LessonError::io("cannot start sh"))?;
        let output = String::from_utf8_lossy(&ran.stdout).into_owned();
        if ran.status.success() {
            Ok(output)
        } else {
            let output = output.trim().to_owned();
            Err(LessonError::Command { command: command.to_owned(), output })
        }
    }

    /// Unmounts what is mounted in the directory, and removes it unless it is to be kept.
    ///
    /// # Errors
    /// If something stays.
    pub fn clean(&self, keep: bool) -> Result<(), LessonError> {
        self.unmount()?;
        if keep {
            return Ok(());
        }
        self.remove(&self.dir)
    }

    fn unmount(&self) -> Result<(), LessonError> {
        let table = Table::read().map_err(LessonError::io("/proc/self/mountinfo"))?;
        let points = table.entries().map(|entry| PathBuf::from(OsString::from_vec(entry.point.into_owned())));
        let below: Vec<PathBuf> = points.filter(|point| point.starts_with(&self.dir)).collect();
        for point in below.iter().rev() {
            let (plain, lazily) = match rustix::process::geteuid().is_root() {
                true => ("umount \"$1\"", "umount -l \"$1\""),
                false => ("fusermount3 -u \"$1\"", "fusermount3 -u -z \"$1\""),
            };
            // A file that is still open keeps a mount busy; it goes when that is closed.
            if self.run_with(plain, Some(point)).is_err() {
                self.run_with(lazily, Some(point))?;
            }
        }
        Ok(())
    }
}
