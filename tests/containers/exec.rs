//! One more command in a container that runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use support::cli::until;

use crate::{Bed, Success, lacking};

/// A container that runs until the file `end` is in its volume.
fn running(bed: &Bed) -> Child {
    fs::create_dir_all(bed.place.at("home/volume")).unwrap();
    fs::set_permissions(bed.place.at("home/volume"), fs::Permissions::from_mode(0o777)).unwrap();
    let script = "touch /mnt/ready; while [ ! -e /mnt/end ]; do sleep 0.1; done";
    let mut command = Command::new(bed.place.bin());
    let args = ["run", "--name", "r", "-e", "OWN=1", "-v", "./home/volume:/mnt", "bb", "sh", "-c", script];
    let child = bed.prepare(command.args(args)).stdout(Stdio::null()).spawn().unwrap();
    until("it runs", || bed.place.at("home/volume/ready").exists());
    child
}

fn end(bed: &Bed, mut child: Child) {
    fs::write(bed.place.at("home/volume/end"), "").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_command_joins_what_runs() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let mut beds = vec![Bed::new()];
    if support::is_installed("newuidmap") {
        beds.push(Bed::of_user());
    }
    for bed in beds {
        let child = running(&bed);
        let bundle = bed.container("r").join("bundle");
        let count = || fs::read_dir(&bundle).unwrap().count();
        let before = count();
        bed.um(&["exec", "r", "cat", "/etc/os"]).prints("made for a test");
        // Its files, its processes, its host name, its variables.
        bed.um(&["exec", "r", "sh", "-c", "echo made > /made; hostname; echo $OWN"]).success();
        bed.um(&["exec", "r", "cat", "/made"]).prints("made");
        let own = bed.um(&[
            "exec",
            "r",
            "sh",
            "-c",
            "readlink /proc/1/ns/pid; readlink /proc/self/ns/pid; echo $OWN",
        ]);
        let lines: Vec<&str> = own.out.lines().collect();
        assert!(lines.len() == 3 && lines[0] == lines[1] && lines[2] == "1", "{own:?}");
        let all = ["exec", "-e", "A=1", "-e", "OWN=2", "-w", "/data", "-u", "ann", "r", "sh", "-c"];
        bed.um(&[&all[..], &["echo $A $OWN; pwd; id -u; id -G"]].concat())
            .prints("1 2\n/data\n1000\n1000 29");
        // Its status is handed on; what can't be run is told in one line.
        assert_eq!(bed.um(&["exec", "r", "sh", "-c", "exit 42"]).code, Some(42));
        bed.um(&["exec", "r", "nosuch"]).refused(127, &["nosuch: there is no such program"]);
        bed.um(&["exec", "r", "/etc/os"]).refused(126, &["/etc/os: is no program"]);
        bed.um(&["exec", "-u", "eve", "r", "id"]).refused(125, &["eve"]);
        bed.um(&["exec", "-t", "r", "id"]).refused(125, &["terminal"]);
        bed.um(&["exec", "r"]).refused(125, &["COMMAND"]);
        // stdin is handed on where it is asked for.
        let piped = |option: &str| bed.sh(&format!("echo piped | ./unionmount exec {option} r cat")).ok().out;
        assert_eq!((piped("-i"), piped("")), ("piped\n".to_owned(), String::new()));
        // A terminal of its own.
        let mut command = Command::new("script");
        let line = "./unionmount exec -it r sh -c 'test -t 0 && test -t 1 && echo a terminal'";
        let seen = support::cli::run(bed.prepare(command.args(["-qefc", line, "/dev/null"])));
        assert!(seen.code == Some(0) && seen.out.contains("a terminal"), "{seen:?}");
        assert_eq!(count(), before, "nothing is left of any of them");
        end(&bed, child);
        bed.um(&["exec", "r", "id"]).refused(125, &["doesn't run"]);
        bed.um(&["exec", "nosuch", "id"]).refused(125, &["nosuch"]);
        bed.um(&["exec", "-d", "r", "id"]).refused(125, &["-d is no option here"]);
        bed.place.wait_for_no_daemon();
    }
}

/// What a container's users are may be on a volume; and it is joined by the program that runs it, whatever else is installed.
#[test]
fn a_command_joins_by_the_containers_own_files_and_runtime() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.sh(
        "mkdir -p home/volume && chmod 777 home/volume && echo joe:x:77:78::/:/bin/sh > home/volume/users",
    )
    .ok();
    bed.sh("printf '#!/bin/sh\\necho \"$@\" >> %s/asked\\nexec \"$(command -v runc || command -v crun)\" \"$@\"\\n' \"$PWD\" > own-runtime")
        .ok();
    bed.sh("chmod +x own-runtime").ok();
    let script = "touch /mnt/ready; while [ ! -e /mnt/end ]; do sleep 0.1; done";
    let mut command = Command::new(bed.place.bin());
    command.args(["run", "--runtime", "./own-runtime", "--name", "r", "-v", "./home/volume:/mnt"]);
    command.args(["-v", "./home/volume/users:/etc/passwd", "bb", "sh", "-c", script]);
    let child = bed.prepare(&mut command).stdout(Stdio::null()).spawn().unwrap();
    until("it runs", || bed.place.at("home/volume/ready").exists());
    bed.um(&["exec", "-u", "joe", "r", "id", "-u"]).prints("77");
    let asked = bed.sh("cat asked").ok().out;
    assert!(asked.lines().any(|line| line.contains(" exec ")), "{asked}");
    end(&bed, child);
    bed.place.wait_for_no_daemon();
}
