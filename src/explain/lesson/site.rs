//! The directory of a lesson, its layers and its mounts, which go away whatever happens.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::LessonError;
use crate::control::mounts;
use crate::sys::remove;

/// How long the daemons may take to leave the directory.
const PATIENCE: Duration = Duration::from_secs(10);
/// The size of the file that makes the image large.
const LIBRARY: usize = 2 << 20;

/// The directory of a lesson.
#[derive(Debug)]
pub struct Site {
    dir: PathBuf,
}

impl Site {
    /// Makes a fresh directory for temporary files.
    ///
    /// # Errors
    /// If that can't be done.
    pub fn new() -> Result<Site, LessonError> {
        let made = tempfile::Builder::new().prefix("unionmount-demo-").tempdir();
        let dir = made.map_err(LessonError::io("cannot make a temporary directory"))?.keep();
        let dir = dir.canonicalize().map_err(LessonError::io(dir.display()))?;
        Ok(Site { dir })
    }

    /// Returns where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the three layers with their six files, and lets the shell find this very program.
    pub(super) fn prepare(&self) -> Result<(), LessonError> {
        let library = "x".repeat(LIBRARY);
        let files: [(&str, &str); 6] = [
            ("base/etc/os", "debian\n"),
            ("base/etc/motd", "Welcome\n"),
            ("base/srv/site/index.html", "an old page\n"),
            ("base/usr/lib/library.so", &library),
            ("app/etc/app.conf", "port = 80\n"),
            ("patch/etc/app.conf", "port = 8080\n"),
        ];
        for (path, content) in files {
            let path = self.dir.join(path);
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            made.and_then(|()| std::fs::write(&path, content)).map_err(LessonError::io(path.display()))?;
        }
        let program = std::env::current_exe().map_err(LessonError::io("cannot find this program"))?;
        let bin = self.dir.join(".bin");
        std::fs::create_dir(&bin)
            .and_then(|()| std::os::unix::fs::symlink(program, bin.join("unionmount")))
            .map_err(LessonError::io(bin.display()))
    }

    /// Returns a command as it is shown and run.
    pub(super) fn command(&self, command: &str) -> String {
        let unmount = if rustix::process::geteuid().is_root() { "umount" } else { "fusermount3 -u" };
        command.replace("UNMOUNT", unmount)
    }

    /// Runs a command in the directory and returns what it says.
    pub(super) fn run(&self, command: &str) -> Result<String, LessonError> {
        let mut path = self.dir.join(".bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin:/usr/sbin:/sbin".into()));
        let ran = Command::new("sh")
            .args(["-c", &format!("exec 2>&1\n{command}")])
            .current_dir(&self.dir)
            .env("PATH", path)
            .env("LC_ALL", "C")
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
        // The daemons take their workdirs away when their mounts have gone: what is in the way is waited for.
        let end = Instant::now() + PATIENCE;
        loop {
            match remove::tree(&self.dir) {
                Ok(()) => return Ok(()),
                Err(left) if Instant::now() > end => {
                    return Err(LessonError::io(format!("cannot remove {}", left.name.display()))(
                        left.errno.into(),
                    ));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn unmount(&self) -> Result<(), LessonError> {
        let broken = LessonError::io("/proc/self/mountinfo");
        let mounted = mounts::all().map_err(broken)?;
        for mount in mounted.iter().rev().filter(|mount| mount.point.starts_with(&self.dir)) {
            let lazily = if rustix::process::geteuid().is_root() { "umount -l" } else { "fusermount3 -u -z" };
            let name = mount.point.file_name().unwrap_or_default().to_string_lossy();
            let plain = self.command(&format!("UNMOUNT {name}"));
            // A file that is still open keeps a mount busy; it goes when that is closed.
            if self.run(&plain).is_err() {
                self.run(&format!("{lazily} {name}"))?;
            }
        }
        Ok(())
    }
}
