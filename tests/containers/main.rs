//! Containers, and layers on their way through tars, by the real binary: made in a store of their own from an image that
//! the test makes of Debian's static busybox.

// A test that panics has failed; that is what unwrap is for here.
#![allow(missing_docs, clippy::unwrap_used)]

mod attack;
mod commit;
mod cp;
mod escapes;
mod exec;
mod export;
mod layers;
mod options;
mod oracle;
mod others;
mod run;
mod snapshots;
mod story;
mod user;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::cli::{Ended, Place, as_user, run};

const APPLETS: [&str; 21] = [
    "sh", "ls", "cat", "echo", "touch", "rm", "mkdir", "id", "env", "sleep", "mv", "stat", "ln", "chown",
    "chmod", "dd", "hostname", "pwd", "read", "true", "ip",
];

/// A store with the image `bb`.
pub struct Bed {
    pub place: Place,
    user: bool,
}

/// Why containers can't be tried here, if they can't.
pub fn lacking(runtime: bool) -> Option<&'static str> {
    if !support::cli::is_root() {
        return Some("needs root");
    }
    if !Path::new("/bin/busybox").is_file() {
        return Some("needs the package busybox-static");
    }
    (runtime && !support::is_installed("runc") && !support::is_installed("crun"))
        .then_some("needs the package runc or crun")
}

impl Bed {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Bed {
        Bed::in_place(Place::new(), false)
    }

    pub fn of_user() -> Bed {
        let place = Place::of_user();
        let (uid, gid) = support::cli::user();
        fs::create_dir(place.at("home")).unwrap();
        std::os::unix::fs::chown(place.at("home"), Some(uid), Some(gid)).unwrap();
        Bed::in_place(place, true)
    }

    fn in_place(place: Place, user: bool) -> Bed {
        let bed = Bed { place, user };
        let root = bed.place.mkdir("image");
        for dir in ["bin", "etc", "tmp", "data/sub"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        fs::write(root.join("etc/passwd"), passwd).unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nann:x:1000:\naudio:x:29:ann\n").unwrap();
        fs::write(root.join("etc/os"), "made for a test\n").unwrap();
        fs::write(root.join("data/sub/f"), "of the image\n").unwrap();
        std::os::unix::fs::chown(root.join("data/sub/f"), Some(1000), Some(29)).unwrap();
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        bed.sh("tar -C image -cf image.tar .").ok();
        bed.um(&["import", "-c", "CMD [\"sh\", \"-c\", \"echo default\"]", "image.tar", "bb"]).success();
        bed
    }

    /// Runs a program with the store in the environment, as this bed's user.
    pub fn prepare<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .current_dir(self.place.path())
            .env("UNIONMOUNT_ROOT", self.place.at("home/store"))
            .env_remove("RUST_LOG");
        if self.user {
            command
                .env("HOME", self.place.at("home"))
                .env_remove("XDG_DATA_HOME")
                .env_remove("XDG_RUNTIME_DIR");
            as_user(command);
        } else {
            fs::create_dir_all(self.place.at("home")).unwrap();
        }
        command
    }

    #[track_caller]
    pub fn um(&self, args: &[&str]) -> Ended {
        run(self.prepare(Command::new(self.place.bin()).args(args)))
    }

    #[track_caller]
    pub fn sh(&self, script: &str) -> Ended {
        run(self.prepare(Command::new("sh").args(["-c", script])))
    }

    /// Where a container keeps its things.
    pub fn container(&self, name: &str) -> PathBuf {
        let id = self.um(&["ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.ID}}"]).success().out;
        let line = id.lines().find(|line| line.starts_with(&format!("{name} "))).expect("no such container");
        self.place.at("home/store/containers").join(line.split(' ').nth(1).unwrap())
    }

    /// A field of an image.
    #[track_caller]
    pub fn image(&self, name: &str, template: &str) -> String {
        self.um(&["inspect", "--format", template, name]).success().out.trim().to_owned()
    }
}

/// What an end must be when more than silence on stderr is allowed.
pub trait Success {
    #[track_caller]
    fn success(self) -> Self;
    #[track_caller]
    fn prints(self, text: &str) -> Self;
}

impl Success for Ended {
    #[track_caller]
    fn success(self) -> Ended {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    #[track_caller]
    fn prints(self, text: &str) -> Ended {
        assert_eq!((self.code, self.out.trim_end()), (Some(0), text), "{self:?}");
        self
    }
}
