//! Other programs that run commands in a root directory get a mounted container as theirs: what they change is what it
//! changed.

use std::process::Command;

use crate::{Bed, Success, lacking};

const CHANGE: &str = "rm /data/sub/f && mv /data/sub /data/moved && echo new >/data/moved/new && ln /data/moved/new /data/link \
                      && chmod 640 /data/link && cat /data/link";

/// Runs `CHANGE` by a program that is given the mount as root, and compares what changed.
fn changed_by(program: &str, package: &str, args: &[&str]) {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    if !support::is_installed(program) {
        support::skip!("needs the package {package}");
    }
    let bed = Bed::new();
    // What makes a tree one of a system, for systemd-nspawn.
    bed.sh("mkdir -p image/usr image/dev image/proc image/sys image/run && tar -C image -cf more.tar .").ok();
    bed.um(&["import", "more.tar", "bb"]).success();
    bed.um(&["create", "--name", "c", "bb", "sh"]).ok();
    let at = bed.um(&["mount", "--suid", "--dev", "c"]).ok().out.trim().to_owned();
    let args: Vec<&str> = args.iter().map(|&arg| if arg == "MOUNT" { at.as_str() } else { arg }).collect();
    let mut command = Command::new(program);
    let ended =
        support::cli::run(bed.prepare(command.args(args).args(["sh", "-c", CHANGE])).env("USER", "root"));
    assert_eq!((ended.code, ended.out.trim()), (Some(0), "new"), "{program}: {ended:?}");
    bed.sh(&format!("umount {at}")).ok();
    let changes = bed.um(&["diff", "c"]).ok().out;
    // What a program puts there for itself is below others.
    let changes: Vec<&str> = changes.lines().filter(|line| line.contains(" /data")).collect();
    assert_eq!(
        changes,
        ["C /data", "A /data/link", "A /data/moved", "A /data/moved/new", "D /data/sub"],
        "{program}"
    );
    bed.um(&["commit", "c", "new"]).ok();
    bed.um(&["mount", "new", "mnt"]).ok();
    bed.sh("stat -c '%a %h %s' mnt/data/link mnt/data/moved/new").prints("640 2 4\n640 2 4");
    bed.place.umount("mnt");
}

#[test]
fn bubblewrap() {
    changed_by("bwrap", "bubblewrap", &["--bind", "MOUNT", "/", "--dev", "/dev", "--proc", "/proc"]);
}

#[test]
fn systemd_nspawn() {
    let own = ["-q", "--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off", "-D", "MOUNT"];
    changed_by("systemd-nspawn", "systemd-container", &own);
}

#[test]
fn charliecloud() {
    changed_by("ch-run", "charliecloud", &["-w", "MOUNT", "--"]);
}
