//! What the author of an image, or another user of the machine, must not gain by a container or a mount of root's. Each
//! test is the attack itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Bed, Success, lacking};
use support::cli::{Ended, as_user, until, wait};

/// Runs with version 2 of cgroups alone, as on most machines.
const V2: &str = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"";

impl Bed {
    /// An image of the bed's tree after `script` has changed it, run by root in the image's directory.
    #[track_caller]
    fn image_changed(&self, name: &str, script: &str) {
        self.place.sh(&format!("cd image && {script} && tar -C . -cf ../{name}.tar .")).ok();
        self.um(&["import", &format!("{name}.tar"), name]).success();
    }

    /// crun as it runs on most machines. It raises the limit of locked memory before it installs device rules, which needs
    /// CAP_SYS_RESOURCE, and which kernels since 5.11 don't ask for: root without that capability has it left out.
    fn crun(&self) -> String {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
        if u64::from_str_radix(capabilities, 16).unwrap() & 1 << 24 != 0 || !support::is_installed("crun") {
            return "crun".into();
        }
        let shim = "#define _GNU_SOURCE\n#include <sys/resource.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n\
                    int setrlimit(__rlimit_resource_t what, const struct rlimit *to) {\n\
                    return what == RLIMIT_MEMLOCK ? 0 : syscall(SYS_prlimit64, 0, what, to, 0);\n}\n\
                    int setrlimit64(__rlimit_resource_t, const struct rlimit64 *) __attribute__((alias(\"setrlimit\")));\n";
        fs::write(self.place.at("shim.c"), shim).unwrap();
        self.place.sh("cc -w -shared -fPIC -o shim.so shim.c").ok();
        let at = self.place.at("crun");
        let script =
            format!("#!/bin/sh\nexec env LD_PRELOAD={} crun \"$@\"\n", self.place.at("shim.so").display());
        fs::write(&at, script).unwrap();
        self.place.sh("chmod +x crun").ok();
        at.to_str().unwrap().to_owned()
    }

    fn um_in(&self, wrap: &[&str], args: &[&str]) -> Ended {
        let mut command = match wrap {
            [] => Command::new(self.place.bin()),
            [program, rest @ ..] => {
                let mut command = Command::new(program);
                command.args(rest).arg(self.place.bin());
                command
            }
        };
        support::cli::run(self.prepare(command.args(args)))
    }
}

/// Nodes that an image ships, or that a program makes, open nothing, with whichever runtime and version of cgroups. Where
/// the runtime can't install the rules there is no container.
#[test]
fn devices_of_an_image_open_nothing() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.image_changed(
        "nodes",
        "mknod -m 666 n-loop b 7 0 && mknod -m 666 n-control c 10 237 && mknod -m 666 n-fuse c 10 229 && \
         mknod -m 666 n-console c 4 64 && mknod -m 666 n-tun c 10 200",
    );
    let attack = "for node in /n-*; do dd if=$node of=/dev/null count=0 2>&1 && echo OPENED $node; done; \
                  busybox mknod /tmp/made b 7 0 2>&1 && echo MADE; echo done";
    let v2 = ["unshare", "-m", "sh", "-c", V2, "sh"];
    let crun = bed.crun();
    let mut tried = 0;
    for runtime in ["runc", &crun].into_iter().filter(|runtime| support::is_installed(runtime)) {
        for (version, wrap) in [("as the machine has them", &[][..]), ("version 2", &v2)] {
            for user in ["0", "1000"] {
                let args = ["run", "--rm", "--runtime", runtime, "-u", user, "nodes", "sh", "-c", attack];
                let ended = bed.um_in(wrap, &args);
                let text = format!("{runtime}, cgroups {version}, user {user}: {ended:?}");
                assert!(!ended.out.contains("OPENED") && !ended.out.contains("MADE"), "{text}");
                // Some runtimes know only one of the versions of cgroups, or none of both at once: then there is no container.
                let unknown = ["hybrid", "cgroup"].iter().any(|word| ended.err.contains(word));
                if ended.code == Some(125) && unknown && wrap.is_empty() {
                    continue;
                }
                assert_eq!((ended.code, ended.out.lines().last()), (Some(0), Some("done")), "{text}");
                tried += 1;
            }
        }
    }
    assert!(tried > 0, "no runtime could install device rules");
    // The usual ones are there.
    bed.um(&[
        "run",
        "--rm",
        "bb",
        "sh",
        "-c",
        "echo x > /dev/null && dd if=/dev/urandom bs=1 count=1 of=/dev/zero",
    ])
    .success();
}

#[test]
fn root_of_a_container_has_no_raw_sockets_and_no_nodes() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let grep = ["bb", "busybox", "grep", "CapBnd", "/proc/self/status"];
    let bounding = |options: &[&str]| {
        let out = bed.um(&[&["run", "--rm"], options, &grep].concat()).success().out;
        u64::from_str_radix(out.trim().rsplit('\t').next().unwrap(), 16).unwrap()
    };
    // MKNOD, NET_RAW and AUDIT_WRITE.
    let (mknod, net_raw, audit_write) = (1 << 27, 1 << 13, 1 << 29);
    assert_eq!(bounding(&[]) & (mknod | net_raw | audit_write), 0);
    assert_eq!(bounding(&["--net", "host"]) & net_raw, 0);
    assert_eq!(bounding(&["--cap-drop", "ALL", "--cap-add", "net_raw"]), net_raw);
}

#[test]
fn what_an_image_brings_is_not_trusted_when_it_is_mounted() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.image_changed(
        "suid",
        "mkdir suid && cp bin/busybox suid/id && chmod 4755 suid/id && mknod -m 666 node c 1 7",
    );
    let see = "cat mnt/etc/os";
    let options = |what: &str| bed.place.mounted(what).unwrap().options;
    bed.um(&["mount", "suid", "mnt"]).ok();
    for word in ["nosuid", "nodev"] {
        assert!(options("mnt").iter().any(|option| option == word), "{:?}", options("mnt"));
    }
    let seen = bed.place.sh_as_user(see);
    assert!(seen.code != Some(0) && seen.err.contains("denied"), "{seen:?}");
    bed.place.sh(see).success();
    bed.place.umount("mnt");
    bed.um(&["mount", "--allow-other", "suid", "mnt"]).ok();
    bed.place.sh_as_user(see).prints("made for a test");
    let uid = bed.place.sh_as_user("mnt/suid/id -u").success().out;
    assert_ne!(uid.trim(), "0");
    assert_ne!(bed.place.sh_as_user("head -c1 mnt/node").code, Some(0));
    bed.place.umount("mnt");
    bed.um(&["mount", "--allow-other", "--suid", "--dev", "suid", "mnt"]).ok();
    assert!(!options("mnt").iter().any(|option| option == "nosuid" || option == "nodev"));
    bed.place.umount("mnt");
    // A container's own place is as closed.
    bed.um(&["create", "--name", "c", "suid"]).ok();
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    let mounted = support::mounted_at(Path::new(&at)).unwrap();
    assert!(mounted.options.iter().any(|option| option == "nosuid"), "{mounted:?}");
    assert!(!mounted.options.iter().any(|option| option == "allow_other"), "{mounted:?}");
    bed.um(&["rm", "-f", "c"]).ok();
}

#[test]
fn a_number_is_an_id_and_the_images_files_are_not_waited_for() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.image_changed("named", "echo '1000:x:0:0::/:/bin/sh' >> etc/passwd && echo '1000:x:0:' >> etc/group");
    bed.um(&["run", "--rm", "-u", "1000:1000", "named", "sh", "-c", "id -u; id -g"]).prints("1000\n1000");
    // A line for the real user 1000 exists in the bed's own passwd; take it away, then only the name is left.
    bed.image_changed("only-named", "echo '1000:x:0:0::/:/bin/sh' > etc/passwd");
    bed.um(&["run", "--rm", "-u", "1000", "only-named", "id", "-u"]).prints("1000");
    // A fifo, and a device whose opening has effects.
    bed.image_changed("fifo", "rm etc/passwd etc/group && mkfifo etc/passwd && mknod etc/group c 5 0");
    bed.um(&["run", "--rm", "-u", "1000", "fifo", "id", "-u"])
        .refused(125, &["etc/passwd", "no regular file"]);
    // A link out of the image is one within it.
    bed.image_changed("link", "rm etc/passwd etc/group && ln -s /proc/1/environ etc/passwd");
    bed.um(&["run", "--rm", "-u", "ann", "link", "true"]).refused(125, &["ann", "unknown"]);
}

/// Directories on which things are mounted, as links to a directory of the host: nothing there is made or deleted.
#[test]
fn links_of_an_image_lead_nowhere_outside() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let victim = bed.place.mkdir("victim");
    let names = ["fd", "ptmx", "console", "stdin", "null", "resolv.conf", "hosts", "hostname", "keep"];
    let listing = || {
        let mut names: Vec<String> = fs::read_dir(&victim)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                format!("{} {:?}", path.display(), fs::read_to_string(&path).ok())
            })
            .collect();
        names.sort();
        names
    };
    for name in names {
        fs::write(victim.join(name), "of the host").unwrap();
    }
    let before = listing();
    bed.place.mkdir("source");
    for runtime in ["runc", "crun"].into_iter().filter(|runtime| support::is_installed(runtime)) {
        for link in ["dev", "proc", "sys", "etc", "mnt", "data"] {
            let to = victim.to_str().unwrap();
            bed.image_changed("linked", &format!("mv {link} ../saved 2>/dev/null; ln -s {to} {link}"));
            let volume = format!("./source:/{link}/deep");
            let extra: &[&str] = if matches!(link, "mnt" | "data") { &["-v", &volume] } else { &[] };
            let args = [&["run", "--rm", "--runtime", runtime, "--net", "host"], extra, &["linked", "true"]]
                .concat();
            let ended = bed.um(&args);
            assert_eq!(listing(), before, "{runtime}, /{link}: {ended:?}");
            let refused = ended.code == Some(125) && runtime == "crun";
            assert!(ended.code == Some(0) || refused, "{runtime}, /{link}: {ended:?}");
            bed.place.sh(&format!("cd image && rm {link}; mv ../saved {link} 2>/dev/null; true")).ok();
        }
    }
    // What a link within the image means, it means to mounts as well.
    bed.image_changed(
        "usual",
        "mkdir -p run var && ln -s ../run var/run && ln -s ../run/resolv etc/resolv.conf",
    );
    bed.um(&[
        "run",
        "--rm",
        "--net",
        "host",
        "-v",
        "./source:/var/run/s",
        "usual",
        "sh",
        "-c",
        "echo x > /run/s/new && cat /etc/resolv.conf",
    ])
    .prints(fs::read_to_string("/etc/resolv.conf").unwrap().trim_end());
    assert!(bed.place.at("source/new").exists());
    // A place that can't be one is told.
    bed.um(&["run", "--rm", "-v", "./source:/etc/os/x", "bb"]).refused(125, &["etc/os", "no directory"]);
    let mut loops = Command::new("sh");
    loops.args(["-c", "cd image && ln -s round round"]);
    support::cli::run(bed.prepare(&mut loops)).ok();
    symlink("/", bed.place.at("image/top")).unwrap();
    bed.image_changed("loop", "true");
    bed.um(&["run", "--rm", "-v", "./source:/round", "loop", "true"]).refused(125, &["round", "link"]);
    bed.um(&["run", "--rm", "-v", "./source:/top", "loop", "true"]).refused(125, &["root directory"]);
}

/// The working directory and the volumes that an image names, through links of its own to a directory of the host.
#[test]
fn working_directories_and_volumes_lead_nowhere_outside() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let victim = bed.place.mkdir("victim");
    fs::create_dir(victim.join("inner")).unwrap();
    let to = victim.to_str().unwrap();
    bed.sh(&format!("cd image && ln -s {to} out && tar -C . -cf ../out.tar .")).ok();
    for (what, path) in [("WORKDIR", "/out/new"), ("WORKDIR", "/out/inner"), ("VOLUME", "/out/vol")] {
        bed.um(&["import", "-c", &format!("{what} {path}"), "out.tar", "out"]).success();
        for runtime in ["runc", "crun"].into_iter().filter(|runtime| support::is_installed(runtime)) {
            let script = "echo x > ./made; echo x > /out/made; echo x > /out/vol/made; echo done";
            let args = ["run", "--rm", "--runtime", runtime, "--net", "host", "out", "sh", "-c", script];
            let ended = bed.um(&args);
            let listing = bed.place.names("victim");
            assert_eq!(listing, ["inner"], "{runtime}, {what} {path}: {ended:?}");
            assert_eq!(bed.place.names("victim/inner").len(), 0, "{runtime}, {what} {path}: {ended:?}");
        }
    }
}

/// A machine without a profile of system calls has the built-in one.
#[test]
fn system_calls_are_filtered_without_a_profile_of_the_machine() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let script = "cat /proc/self/status | busybox grep Seccomp:; busybox unshare -U true 2>&1; \
                  busybox mount -t tmpfs none /tmp 2>&1; sleep 0; echo ran";
    fs::write(bed.place.at("script"), script).unwrap();
    let hide = "for dir in /etc/containers /usr/share/containers; do [ ! -d $dir ] || mount -t tmpfs none $dir; done; \
                exec ./unionmount run --rm -v ./script:/script:ro bb sh /script";
    let ended = bed.sh(&format!("unshare -m sh -c '{hide}'")).success();
    let lines: Vec<&str> = ended.out.lines().collect();
    assert_eq!((lines[0], *lines.last().unwrap()), ("Seccomp:\t2", "ran"), "{ended:?}");
    assert!(ended.out.contains("unshare: unshare(0x10000000): Operation not permitted"), "{ended:?}");
    assert!(ended.out.contains("permission denied"), "{ended:?}");
}

#[test]
fn the_network_of_the_host_is_only_for_who_asks() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let own = fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy().into_owned();
    let of = |options: &[&str]| {
        let args = [&["run", "--rm"], options, &["bb", "sh", "-c", "ls -l /proc/self/ns/net"]].concat();
        bed.um(&args).success().out
    };
    assert!(of(&["--net", "host"]).contains(&own));
    assert!(!of(&["--net", "none"]).contains(&own));
    assert!(!of(&[]).contains(&own));
    bed.um(&["run", "--net", "bridge", "bb"]).refused(125, &["bridge"]);
    if !support::is_installed("slirp4netns") || !Path::new("/dev/net/tun").exists() {
        bed.um(&["run", "--net", "private", "bb"]).refused(125, &["slirp4netns"]);
        support::skip!("a private network needs the package slirp4netns, and /dev/net/tun");
    }
    // A server on the host's loopback is out of reach; the interface is there, and the program ends with the container.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let script = format!(
        "busybox nc -w 1 127.0.0.1 {port} </dev/null && echo REACHED; busybox nc -w 1 10.0.2.2 {port} </dev/null && echo \
         REACHED; ip -o -4 addr show tap0; cat /etc/resolv.conf /etc/hosts"
    );
    let args =
        ["run", "--rm", "--net", "private", "--add-host", "db:10.9.8.7", "--hostname", "h", "bb", "sh", "-c"];
    let ended = bed.um(&[&args[..], &[&script]].concat());
    assert!(ended.out.contains("10.0.2.100") && !ended.out.contains("REACHED"), "{ended:?}");
    assert!(ended.out.contains("nameserver 10.0.2.3") && ended.out.contains("10.9.8.7\tdb"), "{ended:?}");
    assert!(ended.out.contains("localhost h"), "{ended:?}");
}

#[test]
fn root_uses_no_store_that_others_can_change() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::of_user();
    let root_with = |path: &str| {
        let mut command = Command::new(bed.place.bin());
        support::cli::run(command.arg("images").env("UNIONMOUNT_ROOT", bed.place.at(path)))
    };
    root_with("home/store").refused(1, &["home/store", "belongs to uid", "--root"]);
    // Nor one of root's in a directory of somebody else's, who could put another in its place.
    fs::create_dir(bed.place.at("home/of-root")).unwrap();
    root_with("home/of-root").refused(1, &["home", "belongs to uid", "--root"]);
    let open = bed.place.mkdir("open");
    std::os::unix::fs::chown(&open, Some(0), Some(0)).unwrap();
    bed.place.sh("chmod 777 open").ok();
    root_with("open").refused(1, &["open", "others"]);
    // Its owner goes on using it.
    bed.um(&["images", "-q"]).ok();
}

/// A copy of a container's mount in another mount namespace, made by anybody's `unshare -m`, holds nothing up.
#[test]
fn copies_of_a_mount_elsewhere_do_not_keep_a_container() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let mut command = Command::new(bed.place.bin());
    command.args(["run", "--rm", "-i", "--name", "copied", "bb", "sh", "-c", "touch /ready; read x; exit 7"]);
    let mut child = bed.prepare(&mut command).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it is there", || bed.um(&["ps", "--format", "{{.Names}}"]).ok().out.contains("copied"));
    let dir = bed.container("copied");
    until("it runs", || dir.join("diff/ready").exists());
    let mut copy = Command::new("unshare");
    copy.args(["-m", "sh", "-c", "echo copied; read x"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = copy.spawn().unwrap();
    let mut told = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut told)
        .unwrap();
    assert_eq!(told, "copied\n");
    drop(child.stdin.take());
    assert_eq!(wait(&mut child), Some(7));
    assert!(!dir.exists(), "nothing of it is left");
    assert_eq!(bed.um(&["ps", "-aq"]).ok().out, "");
    bed.place.wait_for_no_daemon();
    drop(holder.stdin.take());
    wait(&mut holder);
}

/// In an ordinary user's container that shares the host's network, the host's /sys is shown: read-only with all that is
/// mounted in it, the cgroups above all.
#[test]
fn cgroups_of_the_host_cannot_be_written_in_a_users_container() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    if !support::is_installed("newuidmap") {
        support::skip!("needs the package uidmap");
    }
    let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let Some(top) = unified.into_iter().find(|dir| Path::new(dir).join("cgroup.controllers").exists()) else {
        support::skip!("needs cgroups of version 2");
    };
    let bed = Bed::of_user();
    // A cgroup that was delegated to the user, with a process of the host's.
    let group = format!("{top}/unionmount-test-{}", std::process::id());
    if let Err(error) = fs::create_dir(&group) {
        support::skip!("no cgroup can be made: {error}");
    }
    let (uid, gid) = support::cli::user();
    for name in ["", "cgroup.procs", "cgroup.kill"] {
        std::os::unix::fs::chown(Path::new(&group).join(name), Some(uid), Some(gid)).unwrap();
    }
    let mut sleeper = as_user(Command::new("sleep").arg("1000")).spawn().unwrap();
    fs::write(Path::new(&group).join("cgroup.procs"), sleeper.id().to_string()).unwrap();
    let attack = format!("echo 1 > {group}/cgroup.kill && echo KILLED");
    let ended = bed.um(&["run", "--rm", "--net", "host", "bb", "sh", "-c", &attack]);
    let survived = sleeper.try_wait().unwrap().is_none();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    until("the cgroup is empty", || fs::remove_dir(&group).is_ok());
    assert!(survived && !ended.out.contains("KILLED"), "{ended:?}");
    assert!(ended.err.contains("Read-only"), "{ended:?}");
}
