//! Files in and out of containers, images and mounts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};

use support::cli::until;

use crate::{Bed, Success, lacking};

/// What is below a directory: paths, types, modes, and what is in files and links.
fn listed(bed: &Bed, dir: &str) -> String {
    bed.sh(&format!(
        "cd {dir} && find . -mindepth 1 -printf '%y %m %p %l' -type f -exec sh -c 'printf \" \"; cat \"$1\"' - {{}} \\; \
         -o -mindepth 1 -printf '\\n' | sort"
    ))
    .ok()
    .out
}

fn beds() -> Vec<Bed> {
    match support::is_installed("newuidmap") {
        true => vec![Bed::new(), Bed::of_user()],
        false => vec![Bed::new()],
    }
}

fn clean(bed: &Bed) {
    bed.place.wait_for_no_daemon();
    assert!(support::mounts_below(bed.place.path()).is_empty(), "nothing is mounted for it");
    let left = bed.sh("find home -name '.unionmount-cp-*'").ok().out;
    assert_eq!(left, "");
}

#[test]
fn where_a_copy_goes_is_told_as_docker_does() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    for bed in beds() {
        bed.um(&["create", "--name", "c", "bb"]).ok();
        bed.sh("cd home && mkdir -p h/d/sub && echo one > h/f && echo two > h/d/sub/g && chmod 640 h/f && chmod 750 h/d && \
                ln -s sub/g h/d/l && ln h/d/sub/g h/d/again && touch -d '2001-02-03 04:05:06.5 UTC' h/f h/d h/d/sub/g")
            .ok();
        let refused = |args: &[&str], says: &str| {
            bed.um(&[&["cp"][..], args].concat()).refused(1, &[says]);
        };
        let cp = |from: &str, to: &str| bed.um(&["cp", from, to]).ok();
        // In: a file to a new name, over a file, into a directory.
        cp("home/h/f", "c:/new");
        cp("home/h/f", "c:etc/os");
        cp("home/h/f", "c:/data/");
        refused(&["home/h/f", "c:/nosuch/"], "c:/nosuch");
        refused(&["home/h/f", "c:/nosuch/f"], "c:/nosuch");
        // A directory: to a new name, into one that is there, what is in it; never over a file.
        cp("home/h/d", "c:/tree");
        cp("home/h/d/", "c:/data");
        cp("home/h/d/.", "c:/data/sub");
        refused(&["home/h/d", "c:/new"], "c:/new: is no directory");
        // A file takes no directory's place, nor a directory a file's.
        bed.sh("mkdir -p home/h2/sub/g home/h2/l && touch home/h2/sub/g/x").ok();
        refused(&["home/h2/.", "c:/tree"], "c:/tree/l: is no directory");
        bed.um(&["cp", "c:/", "home/out"]).ok();
        let seen = |path: &str| fs::read_to_string(bed.place.at("home/out").join(path)).unwrap();
        for (path, content) in [
            ("new", "one\n"),
            ("etc/os", "one\n"),
            ("data/f", "one\n"),
            ("tree/sub/g", "two\n"),
            ("tree/l", "two\n"),
            ("data/d/sub/g", "two\n"),
            ("data/sub/sub/g", "two\n"),
            ("data/sub/f", "of the image\n"),
        ] {
            assert_eq!(seen(path), content, "{path}");
        }
        // Modes, times, names of one file and links are what they were.
        let (old, new) = (bed.place.at("home/h"), bed.place.at("home/out"));
        for (one, other) in [("f", "new"), ("d", "tree"), ("d/sub/g", "tree/sub/g")] {
            let (one, other) = (fs::metadata(old.join(one)).unwrap(), fs::metadata(new.join(other)).unwrap());
            assert_eq!(
                (one.mode(), one.mtime(), one.mtime_nsec()),
                (other.mode(), other.mtime(), other.mtime_nsec())
            );
        }
        assert_eq!(fs::read_link(new.join("tree/l")).unwrap().to_str(), Some("sub/g"));
        let number = |path: &str| fs::metadata(new.join(path)).unwrap().ino();
        assert_eq!(number("tree/again"), number("tree/sub/g"));
        // Out again, by the same rules.
        cp("c:/new", "home/h");
        cp("c:/tree/.", "home/h");
        cp("c:/new", "home/h/renamed");
        assert_eq!(listed(&bed, "home/h/sub"), listed(&bed, "home/h/d/sub"));
        refused(&["c:/tree", "home/h/new"], "home/h/new: is no directory");
        refused(&["c:/new", "home/nosuch/"], "home/nosuch");
        refused(&["c:/nosuch", "home"], "c:/nosuch");
        // A link is copied as one, unless it is to be followed.
        cp("c:/tree/l", "home/link");
        assert!(fs::symlink_metadata(bed.place.at("home/link")).unwrap().is_symlink());
        bed.um(&["cp", "-L", "c:/tree/l", "home/file"]).ok();
        assert_eq!(fs::read_to_string(bed.place.at("home/file")).unwrap(), "two\n");
        // An image is only read.
        cp("bb:/etc/os", "home/of-image");
        assert_eq!(fs::read_to_string(bed.place.at("home/of-image")).unwrap(), "made for a test\n");
        refused(&["home/h/f", "bb:/etc/os"], "which never changes");
        bed.um(&["cp", "c:/new", "c:/old"]).refused(2, &["unionmount cp - OTHER:DIR"]);
        bed.um(&["cp", "home/h", "home/x"]).refused(2, &["NAME:PATH"]);
        refused(&["nosuch:/etc", "home"], "\"nosuch\"");
        clean(&bed);
    }
}

#[test]
fn owners_are_those_of_who_copies_unless_all_is_to_be_kept() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.um(&["create", "--name", "c", "bb"]).ok();
    bed.sh("mkdir h && echo x > h/f && chown -R 7:8 h && chmod 4755 h/f && setfattr -n user.k -v v h/f").ok();
    bed.um(&["cp", "h", "c:/plain"]).ok();
    bed.um(&["cp", "-a", "h", "c:/kept"]).ok();
    bed.um(&["cp", "c:/kept", "plain"]).ok();
    bed.um(&["cp", "-a", "c:/kept", "kept"]).ok();
    bed.um(&["cp", "-a", "c:/plain", "inside"]).ok();
    let told = |path: &str| {
        bed.sh(&format!("stat -c '%u:%g %a' {path}/f; getfattr --only-values -n user.k {path}/f")).out
    };
    assert_eq!((&told("plain")[..], &told("inside")[..]), ("0:0 755\nv", "0:0 755\nv"));
    assert_eq!(told("kept"), "7:8 4755\nv");
    // Neither a device nor a socket comes to the host.
    bed.sh("tar -C / -cf dev.tar dev/null dev/zero").ok();
    let ended = bed.um(&["cp", "c:/", "out"]).ok();
    assert!(!ended.err.contains("left out"), "{ended:?}");
    let mut put = Command::new("sh");
    let script = format!("{} cp - c:/ < dev.tar", bed.place.bin().display());
    support::cli::run(bed.prepare(put.args(["-c", &script]))).ok();
    let ended = bed.um(&["cp", "c:/dev", "devices"]).success();
    assert!(ended.err.contains("devices/null: left out: a device"), "{ended:?}");
    assert_eq!(fs::read_dir(bed.place.at("devices")).unwrap().count(), 0);
    clean(&bed);
}

#[test]
fn what_a_container_made_leads_nowhere_else() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    for bed in beds() {
        bed.um(&["create", "--name", "c", "bb"]).ok();
        let upper = bed.container("c").join("diff");
        fs::write(bed.place.at("home/secret"), "of the host\n").unwrap();
        let host = bed.place.at("home");
        symlink(&host, upper.join("absolute")).unwrap();
        symlink("../../../../../../../../../../../..", upper.join("up")).unwrap();
        symlink(host.join("secret"), upper.join("secret")).unwrap();
        symlink(host.join("made"), upper.join("dangling")).unwrap();
        for path in ["c:/absolute/secret".to_owned(), format!("c:/up/../..{}/secret", host.display())] {
            bed.um(&["cp", &path, "home/out"]).refused(1, &["c:/"]);
        }
        bed.um(&["cp", "-L", "c:/secret", "home/out"]).refused(1, &["c:/secret"]);
        bed.sh("echo in > home/in").ok();
        // Where links lead in the container there is no such directory.
        bed.um(&["cp", "home/in", "c:/dangling"]).refused(1, &["c:/", "No such"]);
        bed.um(&["cp", "home/in", "c:/absolute/made"]).refused(1, &["c:/absolute", "No such"]);
        bed.um(&["cp", "home/in", "c:/up/etc/os"]).ok();
        bed.um(&["cp", "c:/etc/os", "home/os"]).ok();
        assert_eq!(fs::read_to_string(bed.place.at("home/os")).unwrap(), "in\n");
        // A link of the host's in the place of a directory is not gone through.
        bed.sh("mkdir -p home/tree home/victim && ln -s ../victim home/tree/etc").ok();
        bed.um(&["cp", "c:/.", "home/tree"]).refused(1, &["home/tree/etc: is no directory"]);
        assert_eq!(bed.sh("ls home/victim").ok().out, "");
        assert!(!bed.place.at("home/made").exists() && !bed.place.at("home/out").exists());
        // Nor does a tar lead out.
        bed.sh("echo evil > evil && tar -P -cf home/evil.tar --transform 's,^,../../,' evil").ok();
        let put = |line: &str| bed.sh(&format!("./unionmount {line}"));
        put("cp - c:/etc < home/evil.tar").refused(1, &[".."]);
        // In a container, the way to what it names may go through links of the container's.
        bed.sh(
            "mkdir -p w/up/tmp && echo x > w/up/tmp/through && tar -C w -cf home/through.tar up/tmp/through",
        )
        .ok();
        put("cp - c:/ < home/through.tar").ok();
        bed.um(&["cp", "c:/tmp/through", "home/through"]).ok();
        // Directories too, which get what they are when all is in them.
        bed.sh("mkdir -p w/up/tmp/d && chmod 750 w/up/tmp/d && echo x > w/up/tmp/d/f && tar -C w -cf home/dir.tar up/tmp/d")
            .ok();
        put("cp - c:/ < home/dir.tar").ok();
        bed.um(&["cp", "c:/tmp/d", "home/dir"]).ok();
        assert_eq!(bed.sh("stat -c %a home/dir; cat home/dir/f").ok().out, "750\nx\n");
        clean(&bed);
    }
}

#[test]
fn tars_go_out_and_in() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    for bed in beds() {
        bed.um(&["create", "--name", "c", "bb"]).ok();
        bed.um(&["create", "--name", "other", "bb"]).ok();
        let sh = |line: &str| bed.sh(&format!("PATH=.:$PATH; {line}"));
        let names = |line: &str| sh(&format!("{line} | tar -tf -")).ok().out;
        assert_eq!(names("unionmount cp c:/data -"), "data/\ndata/sub/\ndata/sub/f\n");
        assert_eq!(names("unionmount cp c:/data/. -"), "./\nsub/\nsub/f\n");
        assert_eq!(names("unionmount cp c:/data/sub/f -"), "f\n");
        sh("echo changed > home/f; unionmount cp home/f c:/data/sub/f").ok();
        sh("unionmount cp c:/data - | gzip | unionmount cp - other:/tmp").ok();
        sh("unionmount cp other:/tmp/data/sub/f home/back").ok();
        assert_eq!(fs::read_to_string(bed.place.at("home/back")).unwrap(), "changed\n");
        sh("unionmount cp c:/data - | unionmount cp - other:/nosuch").refused(1, &["other:/nosuch"]);
        sh("echo no tar | unionmount cp - other:/tmp").refused(1, &["tar"]);
        clean(&bed);
    }
}

#[test]
fn a_container_that_runs_or_is_mounted_is_copied_as_it_is_seen() {
    if let Some(why) = lacking(true) {
        support::skip!("{why}");
    }
    for bed in beds() {
        fs::create_dir_all(bed.place.at("home/volume")).unwrap();
        fs::set_permissions(bed.place.at("home/volume"), fs::Permissions::from_mode(0o777)).unwrap();
        let script = "echo inside > /here; touch /data/ready; while [ ! -e /data/end ]; do sleep 0.1; done; cat /there";
        let mut command = Command::new(bed.place.bin());
        let args = ["run", "--name", "r", "-v", "./home/volume:/data", "bb", "sh", "-c", script];
        let running = bed.prepare(command.args(args)).stdout(Stdio::piped()).spawn().unwrap();
        until("it runs", || bed.place.at("home/volume/ready").exists());
        bed.um(&["cp", "r:/here", "home/here"]).ok();
        assert_eq!(fs::read_to_string(bed.place.at("home/here")).unwrap(), "inside\n");
        bed.sh("echo from outside > home/there").ok();
        bed.um(&["cp", "home/there", "r:/there"]).ok();
        bed.um(&["cp", "home/there", "r:/data/of-volume"]).ok();
        assert!(bed.place.at("home/volume/of-volume").exists());
        // What the kernel shows of itself there is no file of the container's.
        bed.um(&["cp", "r:/", "home/all"]).success();
        assert_eq!(fs::read_dir(bed.place.at("home/all/proc")).map_or(0, Iterator::count), 0);
        bed.um(&["cp", "home/there", "r:/data/end"]).ok();
        let ended = running.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&ended.stdout), "from outside\n");
    }
    let bed = Bed::new();
    bed.um(&["create", "--name", "c", "bb"]).ok();
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    bed.sh("echo x > x").ok();
    bed.um(&["cp", "x", "c:/x"]).ok();
    assert_eq!(fs::read_to_string(format!("{at}/x")).unwrap(), "x\n");
    // By where it is mounted, too.
    symlink("/etc/os", format!("{at}/link")).unwrap();
    bed.sh(&format!(
        "cd {} && {} cp -L merged:/link {}",
        at.trim_end_matches("/merged"),
        bed.place.bin().display(),
        bed.place.at("os").display()
    ))
    .ok();
    assert_eq!(fs::read_to_string(bed.place.at("os")).unwrap(), "made for a test\n");
    // By that name it is a tree of the host's, into which no tar brings a device.
    bed.sh("tar -C / -cf dev.tar dev/null").ok();
    let script = format!(
        "cd {at}/.. && {} cp - merged:/ < {}",
        bed.place.bin().display(),
        bed.place.at("dev.tar").display()
    );
    let ended = bed.sh(&script).success();
    assert!(ended.err.contains("dev/null: left out: a device"), "{ended:?}");
    bed.um(&["umount", "c"]).ok();
    clean(&bed);
}

#[test]
fn whatever_ends_a_copy_nothing_is_left_of_it() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.um(&["create", "--name", "c", "bb"]).ok();
    bed.sh("mkdir h && head -c 3M /dev/urandom > h/aaa && echo x > h/f && tar -cf h.tar h/aaa h/f").ok();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(bed.place.bin());
        let mut copy =
            bed.prepare(command.args(["cp", "-", "c:/tmp"])).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = copy.stdin.take().unwrap();
        // All of the first file but its end.
        let tar = fs::read(bed.place.at("h.tar")).unwrap();
        std::io::Write::write_all(&mut stdin, &tar[..2 << 20]).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&copy), signal).unwrap();
        drop(stdin);
        assert!(!copy.wait().unwrap().success());
        bed.place.wait_for_no_daemon();
        assert!(support::mounts_below(bed.place.path()).is_empty());
        bed.um(&["cp", "c:/tmp", "out"]).ok();
        let left = bed.sh("find out -type f").ok().out;
        assert_eq!(left, "", "after {signal:?}");
        bed.sh("rm -r out").ok();
    }
    clean(&bed);
}

/// A container's limit holds for what is copied into it while it doesn't run.
#[test]
fn what_is_copied_in_keeps_to_the_containers_limit() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.um(&["create", "--name", "c", "--size", "4M", "bb"]).ok();
    bed.sh("head -c 8M /dev/zero >home/large && head -c 1M /dev/zero >home/small").ok();
    bed.um(&["cp", "home/large", "c:/"]).refused(1, &["No space left on device"]);
    bed.um(&["cp", "home/small", "c:/"]).ok();
    bed.um(&["cp", "c:/small", "home/again"]).ok();
    bed.sh("cmp home/small home/again").ok();
    clean(&bed);
}
