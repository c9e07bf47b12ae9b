//! The everyday options of `run`, `commit`, `ps` and `inspect`, as scripts written for other engines give them.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Bed, Success, lacking};
use support::cli::{until, wait};

#[test]
fn what_scripts_give_to_other_engines_is_understood() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.place.mkdir("source");
    fs::write(bed.place.at("source/f"), "bound\n").unwrap();
    fs::write(bed.place.at("vars"), "# a comment\n\nFILE=one two\nBOTH=file\n").unwrap();
    let script = "cat /b/f; echo $FILE $BOTH; hostname; busybox grep -c ' /t tmpfs' /proc/mounts; ulimit -n; \
                  busybox grep db /etc/hosts; cat /etc/resolv.conf; touch /b/new || echo read-only";
    let args = [
        "run",
        "--rm=true",
        "-i=false",
        "--mount",
        "type=bind,src=source,dst=/b,readonly",
        "--env-file",
        "vars",
        "-e",
        "BOTH=option",
        "--hostname",
        "named",
        "--tmpfs",
        "/t:size=1m",
        "--ulimit",
        "nofile=77:88",
        "--dns",
        "9.9.9.9",
        "--add-host",
        "db:10.0.0.7",
        "--pull",
        "never",
        "--platform",
        "linux",
        "--cidfile",
        "cid",
        "--net",
        "none",
        "--label",
        "a=b",
        "bb",
        "sh",
        "-c",
        script,
    ];
    let ended = bed.um(&args);
    let expected = "bound\none two option\nnamed\n1\n77\n10.0.0.7\tdb\nnameserver 9.9.9.9\nread-only\n";
    assert_eq!((ended.code, &ended.out[..]), (Some(0), expected), "{ended:?}");
    assert_eq!(fs::read_to_string(bed.place.at("cid")).unwrap().len(), 64);
    // What the engine itself can't do is told by a status of its own.
    for (args, part) in [
        (&["--cidfile", "cid"][..], "cid"),
        (&["--platform", "linux/none"], "linux/none"),
        (&["--cap-add", "fly"], "fly"),
        (&["--ulimit", "fly=1"], "fly"),
        (&["--no-such-option"], "no-such-option"),
    ] {
        bed.um(&[&["run"], args, &["bb", "true"]].concat()).refused(125, &[part]);
    }
    assert_eq!(bed.um(&["ps", "-aq"]).ok().out, "", "nothing was made");
    // Without a network of the host's, privileged means the devices and the capabilities.
    let script = "busybox grep CapEff /proc/self/status; busybox grep Seccomp: /proc/self/status; busybox mount -t tmpfs none /tmp && echo mounted";
    let all = bed.um(&["run", "--rm", "--privileged", "bb", "sh", "-c", script]).success().out;
    assert!(all.ends_with("mounted\n") && !all.contains("a80425fb"), "{all}");
}

#[test]
fn an_init_reaps_what_the_command_leaves() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    if !["catatonit", "tini-static", "docker-init", "dumb-init"].into_iter().any(support::is_installed) {
        bed.um(&["run", "--rm", "--init", "bb", "true"]).refused(125, &["catatonit"]);
        support::skip!("needs the package catatonit or tini");
    }
    let ended = bed.um(&["run", "--rm", "--init", "bb", "sh", "-c", "echo $$; exit 5"]);
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert_ne!(ended.out.trim(), "1", "{ended:?}");
}

#[test]
fn memory_and_processors_are_limited_where_cgroups_can() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let script = "busybox dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null && echo filled";
    let ended = bed.um(&["run", "--rm", "-m", "16m", "--cpus", "0.5", "bb", "sh", "-c", script]);
    if ended.code == Some(125) {
        support::skip!("the cgroups here set no limits: {}", ended.err.trim());
    }
    assert!(!ended.out.contains("filled"), "{ended:?}");
}

/// Variables without a value, which other engines take; the shape of inspect; the newest; sizes; checks and builds.
/// Whichever id an image has: a name is one before it is the beginning of an id, and so few digits are no beginning.
#[test]
fn a_name_is_no_beginning_of_an_id() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let id = bed.um(&["inspect", "--format", "{{.Id}}", "bb"]).ok().out;
    let digits = id.trim().trim_start_matches("sha256:");
    for length in [1, 3, 6] {
        let name = &digits[..length];
        bed.um(&["create", "--name", name, "bb", "true"]).ok();
        let told: Value = serde_json::from_str(&bed.um(&["inspect", name]).ok().out).unwrap();
        assert_eq!(told[0]["Path"], "true", "{name} is a container");
        bed.um(&["rm", name]).ok();
    }
    bed.um(&["inspect", &digits[..3]]).refused(1, &["no image and no container"]);
    let told: Value = serde_json::from_str(&bed.um(&["inspect", &digits[..4]]).ok().out).unwrap();
    assert_eq!(told[0]["Id"], id.trim());
}

#[test]
fn containers_are_told_in_dockers_shape() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.place.mkdir("source");
    bed.um(&["import", "-c", "CMD [\"sh\", \"-c\", \"echo $ALONE-$B\"]", "image.tar", "plain"]).success();
    bed.um(&["run", "--name", "first", "plain"]).prints("-");
    let args = [
        "run",
        "--name",
        "c",
        "-v",
        "./source:/b:ro",
        "--label",
        "a=b",
        "-e",
        "B=1",
        "--net",
        "none",
        "bb",
        "sh",
        "-c",
    ];
    let ended = bed.um(&[&args[..], &["echo hello > /new; exit 3"]].concat());
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let told: Value = serde_json::from_str(&bed.um(&["inspect", "c"]).ok().out).unwrap();
    let told = &told[0];
    assert_eq!(told["Path"], "sh");
    assert_eq!(told["Args"], serde_json::json!(["-c", "echo hello > /new; exit 3"]));
    let state = &told["State"];
    assert_eq!(
        (&state["Status"], &state["ExitCode"], &state["Pid"]),
        (&"exited".into(), &3.into(), &0.into())
    );
    for time in ["StartedAt", "FinishedAt"] {
        assert!(state[time].as_str().unwrap().starts_with("20"), "{state}");
    }
    let mount = &told["Mounts"][0];
    assert_eq!(
        (&mount["Type"], &mount["Destination"], &mount["RW"]),
        (&"bind".into(), &"/b".into(), &false.into())
    );
    let config = &told["Config"];
    assert_eq!((&config["Labels"]["a"], &config["Image"]), (&"b".into(), &"bb".into()));
    assert!(config["Env"].as_array().unwrap().contains(&"B=1".into()), "{config}");
    assert_eq!(told["HostConfig"]["NetworkMode"], "none");
    bed.um(&["ps", "-l", "--format", "{{.Names}} {{.Labels}}"]).prints("c a=b");
    bed.um(&["ps", "-n", "2", "--format", "{{.Names}}"]).prints("c\nfirst");
    let sized = bed.um(&["ps", "-a", "-s"]).ok().out;
    assert!(sized.contains("SIZE") && sized.contains("6 B (virtual "), "{sized}");
    bed.um(&["commit", "-c", "HEALTHCHECK --retries=2 CMD true", "-c", "ONBUILD RUN x", "c", "new"]).ok();
    assert_eq!(bed.image("new", "{{json .Config.Healthcheck.Test}}"), "[\"CMD-SHELL\",\"true\"]");
    assert_eq!(bed.image("new", "{{json .Config.OnBuild}}"), "[\"RUN x\"]");
    bed.um(&["rm", "-v", "c", "first"]).ok();
    bed.um(&["rmi", "--no-prune", "new"]).success();
}

#[test]
fn a_container_that_is_committed_can_stand_still() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let mut command = Command::new(bed.place.bin());
    command.args(["run", "-i", "--name", "c", "bb", "sh", "-c", "touch /ready; read x; exit 4"]);
    let mut child = bed.prepare(&mut command).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    until("it is there", || bed.um(&["ps", "--format", "{{.Names}}"]).ok().out.contains('c'));
    let ready = bed.container("c").join("diff/ready");
    until("it runs", || ready.exists());
    let pid: Value = serde_json::from_str(&bed.um(&["inspect", "c"]).ok().out).unwrap();
    assert_ne!(pid[0]["State"]["Pid"], 0, "{pid}");
    bed.um(&["commit", "-p", "c", "new"]).ok();
    drop(child.stdin.take());
    assert_eq!(wait(&mut child), Some(4), "it goes on afterwards");
    bed.um(&["run", "--rm", "new", "ls", "/ready"]).prints("/ready");
}
