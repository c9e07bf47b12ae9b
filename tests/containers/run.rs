//! Running commands.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Bed, Success, lacking};
use support::cli::{until, wait};

#[test]
fn a_command_runs_in_its_own_root_and_its_status_is_handed_on() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.um(&["run", "--rm", "bb"]).prints("default");
    bed.um(&["run", "--rm", "bb", "cat", "/etc/os"]).prints("made for a test");
    assert_eq!(bed.um(&["run", "--rm", "bb", "sh", "-c", "exit 42"]).code, Some(42));
    let script = "echo $A $B; pwd; id -u; id -g; id -G; hostname";
    let args = ["run", "--rm", "-e", "A=1", "-e", "B", "-w", "/data", "-u", "ann", "bb", "sh", "-c", script];
    let mut command = Command::new(bed.place.bin());
    bed.prepare(command.args(args)).env("B", "2");
    let ended = support::cli::run(&mut command).success();
    let lines: Vec<&str> = ended.out.lines().collect();
    assert_eq!(lines[..5], ["1 2", "/data", "1000", "1000", "1000 29"], "{ended:?}");
    assert_eq!(lines[5].len(), 12, "{ended:?}");
    bed.um(&["run", "--rm", "--entrypoint", "echo", "bb", "a", "b"]).prints("a b");
    bed.um(&["run", "--rm", "--lazy", "bb", "sh", "-c", "echo more >> /etc/os; cat /etc/os"])
        .prints("made for a test\nmore");
    // Nothing is left of any of them.
    assert_eq!(bed.um(&["ps", "-aq"]).ok().out, "");
    assert_eq!(fs::read_dir(bed.place.at("home/store/containers")).unwrap().count(), 0);
    bed.place.wait_for_no_daemon();
    // As of a shell.
    for (program, code) in [("no-such-program", 127), ("/bin/none", 127), ("/etc/os", 126), ("/etc", 126)] {
        // In one line, and not in the runtime's words.
        bed.um(&["run", "--rm", "bb", program]).refused(code, &[program, "program"]);
    }
    assert_eq!(bed.um(&["run", "--rm", "bb", "sh", "-c", "exit 1"]).code, Some(1));
    bed.um(&["run", "absent"]).refused(125, &["absent"]);
    bed.um(&["run", "-t", "bb"]).refused(125, &["terminal"]);
}

#[test]
fn directories_of_the_host_and_volumes_of_the_image() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let host = bed.place.mkdir("host");
    fs::write(host.join("f"), "of the host\n").unwrap();
    bed.um(&[
        "run",
        "--rm",
        "-v",
        "./host:/mnt/deep",
        "bb",
        "sh",
        "-c",
        "cat /mnt/deep/f; echo x > /mnt/deep/new",
    ])
    .prints("of the host");
    assert_eq!(fs::read(host.join("new")).unwrap(), b"x\n");
    let ended = bed.um(&["run", "--rm", "-v", "./host:/mnt:ro", "bb", "sh", "-c", "echo y > /mnt/new"]);
    assert_ne!(ended.code, Some(0));
    assert!(ended.err.contains("Read-only"), "{ended:?}");
    let ended = bed.um(&["run", "--rm", "--read-only", "bb", "touch", "/new"]);
    assert!(ended.code != Some(0) && ended.err.contains("Read-only"), "{ended:?}");

    bed.um(&["import", "-c", "VOLUME /data", "image.tar", "with-volume"]).success();
    bed.um(&[
        "run",
        "--name",
        "v",
        "with-volume",
        "sh",
        "-c",
        "stat -c '%u %g' /data/sub/f; echo x > /data/new",
    ])
    .prints("1000 29");
    assert_eq!(bed.um(&["diff", "v"]).ok().out, "", "what is in a volume is no change of the container");
    assert!(bed.container("v").join("volumes/0/new").exists());
}

#[test]
fn without_a_runtime_the_packages_are_named() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    // A PATH alone would not do: the system's directories are searched too.
    let hide =
        "mount -t tmpfs none /usr/sbin && unset UNIONMOUNT_RUNTIME && PATH=/nowhere exec ./unionmount run bb";
    let ended = bed.sh(&format!("unshare -m sh -c '{hide}'"));
    ended.refused(125, &["crun", "runc", "--runtime", "unionmount mount"]);
    bed.um(&["run", "--runtime", "/no/such", "bb"]).refused(125, &["/no/such"]);
    assert_eq!(bed.um(&["ps", "-aq"]).ok().out, "", "nothing was made");
    // Making and mounting needs none.
    bed.um(&["create", "--name", "c", "bb"]).ok();
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    assert_eq!(fs::read_to_string(format!("{at}/etc/os")).unwrap(), "made for a test\n");
    fs::write(format!("{at}/etc/new"), "x").unwrap();
    assert_eq!(bed.um(&["diff", "c"]).ok().out, "C /etc\nA /etc/new\n");
    assert!(bed.um(&["ps"]).ok().out.contains("Mounted"));
    bed.um(&["rm", "c"]).refused(1, &["mounted", "-f"]);
    bed.um(&["rm", "-f", "c"]).prints("c");
    bed.place.wait_for_no_daemon();
    // An image is mounted read-only.
    bed.um(&["mount", "bb"]).refused(2, &["directory"]);
    bed.um(&["mount", "bb", "mnt"]).ok();
    assert!(fs::write(bed.place.at("mnt/new"), "x").is_err());
    // What is mounted stays whole, whatever becomes of the image.
    bed.um(&["rmi", "-f", "bb"]).ok();
    bed.um(&["prune", "-f"]).ok();
    assert_eq!(fs::read_to_string(bed.place.at("mnt/etc/os")).unwrap(), "made for a test\n");
    bed.place.umount("mnt");
}

#[test]
fn what_runs_can_be_ended() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let start = |name: &str, rm: bool| {
        let mut command = Command::new(bed.place.bin());
        command.args(["run", "--name", name]).args(rm.then_some("--rm"));
        command.args(["bb", "sh", "-c", "trap 'exit 3' TERM; touch /ready; while true; do sleep 0.05; done"]);
        let child = bed.prepare(&mut command).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("it is there", || bed.um(&["ps", "--format", "{{.Names}}"]).ok().out.contains(name));
        let ready = bed.container(name).join("diff/ready");
        until("it runs", || ready.exists());
        child
    };
    // SIGTERM is handed on, and the status comes back.
    let mut child = start("terminated", false);
    assert!(bed.um(&["ps"]).ok().out.contains(" Up "));
    bed.um(&["rm", "terminated"]).refused(1, &["running"]);
    bed.um(&["run", "--name", "terminated", "bb"]).refused(125, &["taken", "terminated"]);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child), Some(3));
    assert!(bed.um(&["ps", "-a"]).ok().out.contains("Exited (3)"));
    // rm -f kills.
    let mut child = start("killed", true);
    bed.um(&["rm", "-f", "killed"]).prints("killed");
    wait(&mut child);
    // `run` itself is killed: the next rm -f cleans up.
    let mut child = start("orphan", false);
    child.kill().unwrap();
    wait(&mut child);
    let dir = bed.container("orphan");
    bed.um(&["rm", "-f", "orphan"]).prints("orphan");
    assert!(!dir.exists());
    assert_eq!(bed.um(&["ps", "-a", "--format", "{{.Names}}"]).ok().out, "terminated\n");
    bed.place.wait_for_no_daemon();
}

#[test]
fn containers_are_named_as_images_are() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let id = bed.um(&["create", "bb"]).ok().out.trim().to_owned();
    assert_eq!(id.len(), 64);
    bed.um(&["create", "--name", "a", "bb"]).ok();
    bed.um(&["create", "--name", "a", "bb"]).refused(1, &["taken", "unionmount rm a"]);
    bed.um(&["create", "--name", "a/b", "bb"]).refused(1, &["a/b", "name"]);
    bed.um(&["diff", &id[..7]]).ok();
    bed.um(&["diff", "nothing"]).refused(1, &["nothing", "ps -a"]);
    // An image that a container needs stays.
    bed.um(&["rmi", "bb"]).refused(1, &[]);
    bed.um(&["rm", "a", &id]).ok();
    assert_eq!(bed.um(&["ps", "-aq"]).ok().out, "");
    bed.um(&["rmi", "bb"]).success();
    bed.um(&["create", "bb"]).refused(1, &["bb"]);
    assert_eq!(fs::read_dir(bed.place.at("home/store/containers")).unwrap().count(), 0);
}

/// With -t the command has a terminal of its own, as large as the caller's, and its status is handed on.
#[test]
fn a_terminal_is_one() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    if !support::is_installed("script") {
        support::skip!("needs script of the package bsdutils");
    }
    let bed = Bed::new();
    let inner = "stty rows 33 cols 91; ./unionmount run --rm -it bb busybox sh -c \
                 \"busybox tty; busybox stty size; test -t 0 && test -t 1 && test -t 2 && exit 5\"";
    let ended = bed.sh(&format!("script -qec '{inner}' /dev/null < /dev/null"));
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.out.contains("/dev/pts/") && ended.out.contains("33 91"), "{ended:?}");
    bed.place.wait_for_no_daemon();
}

/// The machine's seccomp profile, another one, and none.
#[test]
fn system_calls_are_filtered() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let mode = |options: &[&str]| {
        let command = ["bb", "busybox", "grep", "Seccomp:", "/proc/self/status"];
        bed.um(&[&["run", "--rm"], options, &command].concat()).ok().out
    };
    let outside = fs::read_to_string("/proc/self/status").unwrap();
    let of_ours = |line: &&str| line.starts_with("Seccomp:");
    let unfiltered = outside.lines().find(of_ours).unwrap().to_owned() + "\n";
    assert_eq!(mode(&["--seccomp", "none"]), unfiltered);
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28,"includes":{},"excludes":{}}]}"#;
    fs::write(bed.place.at("profile.json"), profile).unwrap();
    let mkdir = ["bb", "busybox", "mkdir", "/new"];
    let ended = bed.um(&[&["run", "--rm", "--seccomp", "profile.json"], &mkdir[..]].concat());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("No space left"), "{ended:?}");
    bed.um(&[&["run", "--rm"], &mkdir[..]].concat()).ok();
    assert_eq!(mode(&[]), "Seccomp:\t2\n");
    fs::write(bed.place.at("profile.json"), "{}").unwrap();
    bed.um(&[&["run", "--rm", "--seccomp", "profile.json"], &mkdir[..]].concat())
        .refused(125, &["profile.json", "seccomp profile"]);
}
