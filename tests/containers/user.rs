//! Containers of an ordinary user.

use std::fs;
use std::process::{Command, Stdio};

use crate::{Bed, Success, lacking};
use support::cli::{until, wait};

fn lacking_for_user(runtime: bool) -> Option<&'static str> {
    if runtime && !support::is_installed("newuidmap") {
        return Some("needs the package uidmap");
    }
    lacking(runtime)
}

#[test]
fn a_user_runs_containers_with_many_ids() {
    if let Some(why) = lacking_for_user(true) {
        support::skip!("{why}");
    }
    let bed = Bed::of_user();
    bed.um(&["run", "--rm", "bb"]).prints("default");
    bed.um(&["run", "--rm", "bb", "stat", "-c", "%u %g", "/etc/passwd", "/data/sub/f"])
        .prints("0 0\n1000 29");
    let change = "echo x > /etc/x; chown 33:44 /etc/x; chmod 600 /etc/x; mkdir /d; chown ann /d; rm /etc/os";
    bed.um(&["run", "--name", "c", "bb", "sh", "-c", change]).ok();
    bed.um(&["run", "--rm", "-u", "ann", "bb", "sh", "-c", "id -u; touch /tmp/mine; stat -c %u /tmp/mine"])
        .prints("1000\n1000");
    assert_eq!(bed.um(&["diff", "c"]).ok().out, "A /d\nC /etc\nD /etc/os\nA /etc/x\n");
    bed.um(&["commit", "c", "new"]).ok();
    let script = "stat -c '%u %g %a' /etc/x; stat -c %U /d; cat /etc/x";
    bed.um(&["run", "--rm", "new", "sh", "-c", script]).prints("33 44 600\nann\nx");
    // All of it is the user's own, to be removed without more ado.
    bed.um(&["rm", "c"]).ok();
    assert_eq!(fs::read_dir(bed.place.at("home/store/containers")).unwrap().count(), 0);
}

#[test]
fn a_users_layer_keeps_what_the_user_cannot_have() {
    if let Some(why) = lacking_for_user(true) {
        support::skip!("{why}");
    }
    let bed = Bed::of_user();
    // Made by root, in directories that the user can't write to.
    let root = |script: &str| bed.place.sh(script).ok();
    root(
        "cp -a image made && cd made && mkdir -m 755 d && echo x > d/f && chown 33:44 d/f && chmod 6711 d/f && \
         setcap cap_net_raw,cap_fowner+ep d/f && mknod d/dev b 8 1 && mkfifo d/fifo && ln -s f d/link && \
         chown -h 5:6 d/link && mkdir -m 1777 t && chown 7:8 t d && ln d/f d/hard && chmod 4755 d/f",
    );
    root("tar --xattrs --xattrs-include='*' --format=posix -C made -cf made.tar . && chmod 644 made.tar");
    bed.um(&["import", "made.tar", "made"]).success();
    bed.um(&["create", "--name", "c", "made", "sh"]).ok();
    // What is shown by a mount of the user's own.
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    let shown = bed.sh(&format!("cd {at} && stat -c '%n %u %g %a %F %t %T' d/f d/dev d/fifo t d"));
    shown.prints(
        "d/f 33 44 4755 regular file 0 0\nd/dev 0 0 644 block special file 8 1\nd/fifo 0 0 644 fifo 0 0\n\
         t 7 8 1777 directory 0 0\nd 7 8 755 directory 0 0",
    );
    bed.sh(&format!("fusermount3 -u {at}")).ok();
    // Copied up, a file keeps its attributes.
    bed.um(&["run", "--name", "r", "made", "chmod", "4750", "/d/f"]).ok();
    bed.um(&["commit", "r", "copied"]).ok();
    // The layer's tar, as anybody unpacks it, is what came in.
    bed.um(&["save", "-o", "made.save", "made"]).success();
    bed.um(&["save", "-o", "copied.save", "copied"]).success();
    let other = Bed::new();
    fs::copy(bed.place.at("copied.save"), other.place.at("copied.save")).unwrap();
    fs::copy(bed.place.at("made.save"), other.place.at("made.save")).unwrap();
    other.um(&["load", "-i", "made.save"]).success();
    other.um(&["mount", "made", "mnt"]).ok();
    let listing = "find . -mindepth 1 -printf '%P %y %m %U %G %n %T@ %l\\n' | sort; getcap -r . | sort";
    let expected = bed.place.sh(&format!("cd made && {listing}")).success().out;
    assert_eq!(other.place.sh(&format!("cd mnt && {listing}")).success().out, expected);
    other.place.umount("mnt");
    other.um(&["load", "-i", "copied.save"]).success();
    other.um(&["mount", "copied", "mnt"]).ok();
    let copied = other.place.sh("getcap mnt/d/f; stat -c '%u %g %a' mnt/d/f").success().out;
    assert_eq!(copied, "mnt/d/f cap_fowner,cap_net_raw=ep\n33 44 4750\n");
}

#[test]
fn a_users_running_container_is_committed_with_all_that_was_written() {
    if let Some(why) = lacking_for_user(true) {
        support::skip!("{why}");
    }
    let bed = Bed::of_user();
    let mut command = Command::new(bed.place.bin());
    let script = "exec 3> /written; echo by the container >&3; chmod 600 /written; touch /ready; read x";
    command.args(["run", "-i", "--name", "c", "bb", "sh", "-c", script]);
    let mut child = bed.prepare(&mut command).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    until("it is there", || bed.um(&["ps", "--format", "{{.Names}}"]).ok().out.contains('c'));
    let ready = bed.container("c").join("diff/ready");
    until("it runs", || ready.exists());
    bed.um(&["commit", "c", "new"]).ok();
    drop(child.stdin.take());
    wait(&mut child);
    bed.um(&["run", "--rm", "new", "cat", "/written"]).prints("by the container");
}

/// Runs a script as the user of a bed, after root has changed what is mounted, for this script alone.
fn where_root_did(bed: &Bed, mounts: &str, script: &str) -> support::cli::Ended {
    let (uid, gid) = support::cli::user();
    let user = format!("setpriv --reuid {uid} --regid {gid} --clear-groups sh -c \"$1\"");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("{mounts} && exec {user}"), "sh", script]);
    command
        .current_dir(bed.place.path())
        .env("UNIONMOUNT_ROOT", bed.place.at("home/store"))
        .env("HOME", bed.place.at("home"))
        .env_remove("RUST_LOG")
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_RUNTIME_DIR");
    support::cli::run(&mut command)
}

/// As most machines have them: only cgroups of version 2. The container sees its own, and can't change them.
const UNIFIED: &str = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup";

#[test]
fn a_users_container_sees_its_cgroup_and_changes_none() {
    if let Some(why) = lacking_for_user(true) {
        support::skip!("{why}");
    }
    let bed = Bed::of_user();
    for runtime in ["crun", "runc"] {
        if !support::is_installed(runtime) {
            support::skip!("needs the package {runtime}");
        }
        for net in ["none", "host"] {
            let script = format!(
                "./unionmount run --rm --runtime {runtime} --net {net} -v /etc/passwd:/read:ro bb sh -c \
                 'cat /proc/self/mountinfo; touch /sys/fs/cgroup/cgroup.procs && echo x >/sys/fs/cgroup/cgroup.procs; echo x >/read; true'"
            );
            let ended = where_root_did(&bed, UNIFIED, &script);
            assert_eq!(ended.code, Some(0), "{runtime} {net}: {ended:?}");
            let line = ended.out.lines().find(|line| line.contains(" /sys/fs/cgroup ")).unwrap_or_default();
            assert!(line.contains(" ro,") && line.contains("cgroup2"), "{runtime} {net}: {ended:?}");
            assert_eq!(ended.err.matches("Read-only file system").count(), 2, "{runtime} {net}: {ended:?}");
        }
    }
}

/// By slirp4netns or pasta, whichever is there: an interface of its own, and the host's loopback out of reach.
#[test]
fn a_users_private_network() {
    if let Some(why) = lacking_for_user(true) {
        support::skip!("{why}");
    }
    if rustix::fs::stat("/dev/net/tun").is_err() {
        support::skip!("needs /dev/net/tun");
    }
    let bed = Bed::of_user();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tried = 0;
    for program in ["slirp4netns", "pasta"] {
        if !support::is_installed(program) {
            continue;
        }
        tried += 1;
        // The user may open the device, and finds one program.
        let mounts = format!(
            "mkdir -p only && ln -sf $(command -v {program}) only/ && mknod -m 666 tun c 10 200 && mount --bind tun /dev/net/tun && rm -f tun"
        );
        let other = if program == "pasta" { "slirp4netns" } else { "pasta" };
        let hidden = format!(
            "for p in /usr/bin/{other} /usr/sbin/{other}; do [ ! -e $p ] || mount --bind /dev/null $p || exit; done"
        );
        let inner = format!(
            "ip -o link | cut -d: -f2; busybox nc -w 1 127.0.0.1 {port} </dev/null && echo REACHED; \
             busybox nc -w 1 10.0.2.2 {port} </dev/null && echo REACHED; cat /etc/resolv.conf"
        );
        let script = format!("./unionmount run --rm --net private bb sh -c '{inner}'");
        let ended = where_root_did(&bed, &format!("{mounts} && {{ {hidden}; }}"), &script);
        assert_eq!(ended.code, Some(0), "{program}: {ended:?}");
        let interfaces = ended.out.lines().filter(|line| line.starts_with(' ')).count();
        assert_eq!(interfaces, 2, "{program}: {ended:?}");
        assert!(!ended.out.contains("REACHED") && ended.out.contains("nameserver"), "{program}: {ended:?}");
        // Nothing of it is left.
        assert_eq!(bed.sh(&format!("pgrep -u $(id -u) {program} || true")).out, "", "{program}");
    }
    if tried == 0 {
        support::skip!("needs the package slirp4netns or passt");
    }
    // Where the device isn't the user's, it is told.
    let ended = where_root_did(&bed, "true", "./unionmount run --rm --net private bb true");
    assert!(ended.code == Some(125) && ended.err.contains("/dev/net/tun"), "{ended:?}");
}
