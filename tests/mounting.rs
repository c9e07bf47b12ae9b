//! Coming up, being there and going away: the real binary, real mounts.

#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Stdio;

use rustix::process::{Signal, kill_process};
use support::cli::{Ended, Place, as_user, is_root, until, wait};

const LAYERS: [&str; 4] = ["--lower", "a:b", "--upper", "up"];

fn with<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&LAYERS, args].concat()
}

#[test]
fn a_mount_answers_when_the_program_returns_and_leaves_nothing() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let before = fs::metadata(place.at("mnt")).unwrap().dev();
    place.unionmount(&with(&["mnt"])).ok();
    assert_ne!(fs::metadata(place.at("mnt")).unwrap().dev(), before);
    let mount = place.mounted("mnt").unwrap();
    assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("fuse.unionmount", "unionmount"));
    assert!(mount.options.iter().any(|o| o == "default_permissions"));
    assert!(mount.options.iter().any(|o| o == "allow_other"), "root's mounts are for all: {mount:?}");
    assert!(!mount.options.iter().any(|o| o == "nosuid" || o == "nodev"), "{mount:?}");
    place.umount("mnt");
    place.wait_for_no_daemon();
    assert_eq!(place.names(""), ["a", "b", "mnt", "up"]);
    assert!(place.names("up").is_empty());
}

#[test]
fn the_daemon_holds_nothing_of_its_caller() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    // `run` reads stdout and stderr to their ends: descriptor 7 would keep stdout open, as would 1 or 2.
    place.sh("./unionmount --lower a --upper up mnt 7>&1").ok();
    let daemon = place.daemon().as_raw_nonzero();
    assert_eq!(fs::read_link(format!("/proc/{daemon}/cwd")).unwrap().to_str(), Some("/"));
    for fd in 0..=2 {
        assert_eq!(fs::read_link(format!("/proc/{daemon}/fd/{fd}")).unwrap().to_str(), Some("/dev/null"));
    }
    let stat = fs::read_to_string(format!("/proc/{daemon}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!(fields[3], daemon.to_string(), "leads its own session");
    place.umount("mnt");
}

#[test]
fn a_remount_right_after_umount_works() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    for _ in 0..20 {
        place.unionmount(&with(&["mnt"])).ok();
        place.umount("mnt");
    }
    place.wait_for_no_daemon();
    assert_eq!(place.names(""), ["a", "b", "mnt", "up"]);
}

#[test]
fn of_many_mounts_of_one_upper_one_wins() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let points: Vec<String> = (0..8).map(|i| format!("m{i}")).collect();
    let ended: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = points
            .iter()
            .map(|point| {
                place.mkdir(point);
                scope.spawn(|| place.unionmount(&with(&[point])))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(ended.iter().filter(|e| e.code == Some(0)).count(), 1, "{ended:?}");
    for loser in ended.into_iter().filter(|e| e.code != Some(0)) {
        loser.refused(1, &["upper layer up is in use by another mount"]);
    }
    assert_eq!(points.iter().filter(|point| place.mounted(point).is_some()).count(), 1);
    assert_eq!(place.names(".up.work"), ["index.unionmount", "work"], "the losers took nothing away");
}

#[test]
fn mount_options_reach_the_kernel() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    place.unionmount(&with(&["-o", "nosuid,nodev,noexec", "-o", "noatime,fsname=a\\,b", "mnt"])).ok();
    let mount = place.mounted("mnt").unwrap();
    for option in ["nosuid", "nodev", "noexec", "noatime"] {
        assert!(mount.options.iter().any(|o| o == option), "{option}: {mount:?}");
    }
    assert_eq!(mount.source, "a,b");
    assert!(mount.options.iter().any(|o| o == "rw"));
    place.umount("mnt");
}

#[test]
fn without_an_upper_and_with_ro_it_is_read_only() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    for args in [&["--lower", "a:b", "mnt"][..], &with(&["-o", "ro", "mnt"])] {
        place.unionmount(args).ok();
        assert!(place.mounted("mnt").unwrap().options.iter().any(|o| o == "ro"));
        let error = fs::write(place.at("mnt/new"), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(place.names(""), ["a", "b", "mnt", "up"], "no workdir");
        place.umount("mnt");
    }
}

#[test]
fn in_the_foreground_it_logs_and_ends_by_a_signal() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    for signal in [Signal::TERM, Signal::INT] {
        let mut child = place
            .command(&with(&["--foreground", "-v", "--log-file", "log", "mnt"]))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("it is mounted", || place.mounted("mnt").is_some());
        // A report is no reason to end.
        kill_process(place.daemon(), Signal::USR1).unwrap();
        fs::metadata(place.at("mnt")).unwrap();
        kill_process(place.daemon(), signal).unwrap();
        assert_eq!(wait(&mut child), Some(0));
        assert!(place.mounted("mnt").is_none());
        let log = fs::read_to_string(place.at("log")).unwrap();
        assert!(log.contains("mounted on") && log.contains("unmounted"), "{log}");
        fs::remove_file(place.at("log")).unwrap();
        assert_eq!(place.names(""), ["a", "b", "mnt", "up"]);
    }
}

#[test]
fn a_busy_mount_goes_at_the_second_signal() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    place.unionmount(&with(&["--log-file", "log", "mnt"])).ok();
    let daemon = place.daemon();
    let user = fs::File::open(place.at("mnt")).unwrap();
    kill_process(daemon, Signal::TERM).unwrap();
    until("it says that it is busy", || fs::read_to_string(place.at("log")).unwrap().contains("busy"));
    fs::metadata(place.at("mnt")).unwrap();
    assert!(place.mounted("mnt").is_some());
    kill_process(daemon, Signal::TERM).unwrap();
    until("it is gone from sight", || place.mounted("mnt").is_none());
    user.metadata().unwrap();
    drop(user);
    place.wait_for_no_daemon();
}

#[test]
fn a_killed_daemon_leaves_a_dead_mount_that_is_named_and_a_workdir_that_is_swept() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    place.unionmount(&with(&["mnt"])).ok();
    fs::create_dir_all(place.at(".up.work/work/half/done")).unwrap();
    kill_process(place.daemon(), Signal::KILL).unwrap();
    place.wait_for_no_daemon();
    place.unionmount(&with(&["mnt"])).refused(1, &["dead FUSE mount", "umount -l mnt"]);
    place.umount("mnt");
    place.unionmount(&with(&["mnt"])).ok();
    assert!(place.names(".up.work/work").is_empty());
    place.umount("mnt");
}

#[test]
fn a_broken_connection_takes_the_mount_away() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let mut child = place.command(&with(&["--foreground", "mnt"])).stderr(Stdio::null()).spawn().unwrap();
    until("it is mounted", || place.mounted("mnt").is_some());
    let connection = rustix::fs::minor(fs::metadata(place.at("mnt")).unwrap().dev());
    if fs::write(support::abort_of(connection), "1").is_err() {
        place.umount("mnt");
        assert_eq!(wait(&mut child), Some(0));
        support::skip!("fusectl is not mounted");
    }
    assert_eq!(wait(&mut child), Some(1));
    assert!(place.mounted("mnt").is_none());
    assert_eq!(place.names(""), ["a", "b", "mnt", "up"]);
}

#[test]
fn a_volatile_upper_is_taken_over_after_a_clean_end_only() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let args = ["-o", "volatile,lowerdir=a,upperdir=up,workdir=w", "mnt"];
    for _ in 0..2 {
        place.unionmount(&args).ok();
        assert_eq!(place.names("w/work/incompat/volatile"), ["dirty"]);
        place.umount("mnt");
        place.wait_for_no_daemon();
    }
    place.unionmount(&args).ok();
    kill_process(place.daemon(), Signal::KILL).unwrap();
    place.wait_for_no_daemon();
    place.umount("mnt");
    place.unionmount(&args).refused(1, &["upper layer up", "volatile", "w/work/incompat/volatile"]);
    // What containers/storage does before each mount, and what the message says.
    fs::remove_dir_all(place.at("w/work/incompat/volatile")).unwrap();
    place.unionmount(&args).ok();
    place.umount("mnt");
}

#[test]
fn the_helper_forms() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    place.mkdir("w");
    place.mkdir("x:y,z");
    for name in ["fuse-overlayfs", "mount.unionmount", "mount.fuse.unionmount"] {
        symlink("unionmount", place.at(name)).unwrap();
    }
    symlink("../a", place.at("b/link")).unwrap();
    for script in [
        // As containers/storage calls it.
        r#"./fuse-overlayfs -o 'lowerdir=b/link/../a:b,upperdir=up,workdir=w,nodev,context="u:r:t:c1,c2",private' mnt"#,
        "./unionmount -o lowerdir=a:b,upperdir=up,workdir=w,,nodev, mnt",
        "./unionmount none mnt -o lowerdir=a -o nodev,upperdir=up -o workdir=w",
        "./unionmount -o nodev none -o lowerdir=a,upperdir=up mnt -o workdir=w",
        "./mount.unionmount none mnt -o rw,nodev,lowerdir=a,upperdir=up,workdir=w",
        "./mount.fuse.unionmount none mnt -s -o rw,nodev,lowerdir=a,upperdir=up,workdir=w,_netdev,x-y -t fuse.unionmount",
        r"./unionmount -o 'nodev,lowerdir=x\:y\,z,upperdir=up,workdir=w' mnt",
        r"./unionmount -o nodev --lower 'x\:y,z' --upper up --work w mnt",
    ] {
        place.sh(script).ok();
        let mount = place.mounted("mnt").unwrap_or_else(|| panic!("{script}"));
        assert!(mount.options.iter().any(|o| o == "nodev"), "{script}: {mount:?}");
        place.umount("mnt");
        place.wait_for_no_daemon();
        assert!(place.names("w").is_empty(), "{script}");
    }
    let ended = place.sh("./fuse-overlayfs -o lowerdir=a,shiny,glow=1 mnt");
    assert_eq!(ended.code, Some(0));
    assert_eq!(
        ended.err,
        "unionmount: unknown option ignored: shiny\nunionmount: unknown option ignored: glow=1\n"
    );
    place.umount("mnt");

    let fake = place.sh("./mount.fuse.unionmount none mnt -f -o lowerdir=a").ok();
    assert!(fake.out.is_empty() && place.mounted("mnt").is_none());
    for flag in ["-V", "--version"] {
        let version = place.sh(&format!("./fuse-overlayfs {flag}")).ok();
        assert_eq!(version.out, format!("unionmount {}\n", env!("CARGO_PKG_VERSION")));
    }
    assert!(place.sh("./fuse-overlayfs -h").ok().out.contains("fuse-overlayfs [-f]"));
}

/// Runs a script in which mount(8) finds the program: it calls mount.fuse, which has a shell run `unionmount`, and both search fixed
/// directories. A mount namespace lets the test put the program into one.
fn by_mount_8(place: &Place, script: &str) -> Ended {
    place.mkdir("bin");
    fs::hard_link(place.bin(), place.at("bin/unionmount")).expect("a link to the program");
    // A line that begins with ! never ends a script.
    let no = "no() { if \"$@\" 2>>said; then echo \"not refused: $*\"; exit 1; fi; }";
    place.sh(&format!("unshare --mount sh -e -c 'mount --bind bin /usr/local/sbin\n{no}\n{script}'"))
}

#[test]
fn mount_8_and_fstab() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let script = "
        options=lowerdir=$PWD/a:$PWD/b,upperdir=$PWD/up,noexec
        mount -t fuse.unionmount none $PWD/mnt -o $options
        grep \" $PWD/mnt \" /proc/self/mountinfo
        umount mnt
        echo \"merged $PWD/mnt fuse.unionmount defaults,nofail,x-test,$options 0 0\" > fstab
        # Twice: what is mounted already is not mounted again.
        mount -T fstab -a
        mount -T fstab -a
        grep \" $PWD/mnt \" /proc/self/mountinfo
        umount mnt";
    let ended = by_mount_8(&place, script).ok();
    let lines: Vec<&str> = ended.out.lines().collect();
    assert_eq!(lines.len(), 2, "{ended:?}");
    assert!(lines[0].contains("noexec") && lines[0].contains(" - fuse.unionmount none "), "{ended:?}");
    assert!(lines[1].contains("noexec") && lines[1].contains(" - fuse.unionmount merged "), "{ended:?}");
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    if !is_root() {
        support::skip!("needs root, to become an ordinary user");
    }
    let place = Place::of_user();
    place.sh_as_user("./unionmount --lower a:b --upper up -o noatime,fsname='c\\,d' mnt").ok();
    let mount = place.mounted("mnt").unwrap();
    assert_eq!(mount.kind, "fuse.unionmount");
    for option in ["nosuid", "nodev", "noatime", "default_permissions"] {
        assert!(mount.options.iter().any(|o| o == option), "{option}: {mount:?}");
    }
    assert!(!mount.options.iter().any(|o| o == "allow_other"), "{mount:?}");
    assert!(place.sh_as_user("stat -c %F mnt").ok().out.contains("directory"));
    place.sh_as_user("fusermount3 -u mnt").ok();
    place.wait_for_no_daemon();
    assert_eq!(place.names(""), ["a", "b", "mnt", "up"]);

    // A signal unmounts as well.
    let mut command = place.command(&["--foreground", "--lower", "a", "--upper", "up", "mnt"]);
    let mut child = as_user(&mut command).spawn().unwrap();
    until("it is mounted", || place.mounted("mnt").is_some());
    kill_process(place.daemon(), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child), Some(0));
    assert!(place.mounted("mnt").is_none());
}

#[test]
fn root_of_a_user_namespace_mounts_by_itself() {
    if !is_root() {
        support::skip!("needs root, to become an ordinary user");
    }
    let place = Place::of_user();
    let script = "unshare --user --map-root-user --mount sh -e -c '
        ./unionmount --lower a:b --upper up mnt
        grep \" $PWD/mnt \" /proc/self/mountinfo
        stat -c %F mnt
        umount mnt'";
    let ended = place.sh_as_user(script);
    if ended.err.contains("unshare failed") {
        support::skip!("no user namespaces here: {}", ended.err);
    }
    let ended = ended.ok();
    assert!(ended.out.contains("fuse.unionmount") && ended.out.contains("allow_other"), "{ended:?}");
    assert!(ended.out.contains("directory"), "{ended:?}");
    place.wait_for_no_daemon();
    assert_eq!(place.names(""), ["a", "b", "mnt", "up"]);
}

#[test]
fn six_hundred_layers_mount_under_a_low_soft_limit() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let lowers: Vec<String> = (0..600).map(|i| format!("layers/{i}")).collect();
    for lower in &lowers {
        place.mkdir(lower);
    }
    place.sh(&format!("ulimit -S -n 256; ./unionmount --lower {} --upper up mnt", lowers.join(":"))).ok();
    place.umount("mnt");
}

#[test]
fn names_that_are_not_utf8() {
    if !is_root() {
        support::skip!("needs root");
    }
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    let place = Place::of_user();
    let (uid, gid) = support::cli::user();
    std::os::unix::fs::chown(place.mkdir(name), Some(uid), Some(gid)).unwrap();
    let ended =
        place.sh_as_user("./unionmount --lower a -o fsname=$(printf '\\377') $(printf '\\377\\376')").ok();
    assert_eq!(ended.code, Some(0));
    assert!(fs::metadata(place.at(name)).is_err(), "another user is kept out");
    place.sh_as_user("fusermount3 -u $(printf '\\377\\376')").ok();
}

#[test]
fn what_is_made_out_of_the_definitions() {
    let place = Place::new();
    let man = place.unionmount(&["man"]).ok().out;
    assert!(man.contains(".TH unionmount") && man.contains("\\-\\-lower"), "{man}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(place.unionmount(&["completions", shell]).ok().out.contains("completions"), "{shell}");
    }
    assert!(place.unionmount(&["--help"]).ok().out.contains("unionmount --lower"));
    assert_eq!(
        place.unionmount(&["--version"]).ok().out,
        format!("unionmount {}\n", env!("CARGO_PKG_VERSION"))
    );
    // A reader that goes away is no failure, and no panic.
    place.sh("./unionmount completions zsh | head -n 1").ok();
}

#[test]
fn each_verb_has_a_manual_page_that_is_installed_and_taken_away() {
    let place = Place::new();
    let install = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/install");
    let run = |verb: &str| {
        place
            .sh(&format!("UNIONMOUNT_BIN=$PWD/unionmount DESTDIR=$PWD/root PREFIX=/usr {install} {verb}"))
            .ok()
    };
    run("");
    // Verbs as --help lists them, which tells of hidden ones nothing; those of a noun have a page each, too.
    let verbs_of = |line: &[&str]| -> Vec<String> {
        let help = place.unionmount(&[line, &["--help"]].concat()).ok().out;
        let lines = help.lines().take_while(|line| *line != "Options:");
        lines
            .filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')))
            .filter_map(|line| line.split(' ').next())
            .filter(|verb| verb.starts_with(|first: char| first.is_ascii_lowercase()))
            .map(|verb| [line, &[verb]].concat().join("-"))
            .collect()
    };
    let mut verbs = verbs_of(&[]);
    assert!(verbs.len() > 20, "{verbs:?}");
    for noun in ["image", "container", "system", "snapshots", "layers"] {
        verbs.extend(verbs_of(&[noun]));
    }
    let mut pages: Vec<String> = verbs.iter().map(|verb| format!("unionmount-{verb}.1")).collect();
    pages.push("unionmount.1".into());
    pages.sort();
    assert_eq!(place.names("root/usr/share/man/man1"), pages);
    let page = fs::read_to_string(place.at("root/usr/share/man/man1/unionmount-explain.1")).unwrap();
    assert!(page.contains(".TH unionmount-explain 1") && page.contains("\\-\\-json"), "{page}");
    assert_eq!(place.unionmount(&["man", "explain"]).ok().out, page);
    let page = place.unionmount(&["man", "save"]).ok().out;
    for part in ["[\\-\\-format <FORMAT>]", "[\\-o|\\-\\-output <FILE>]", "<IMAGE>...", "docker"] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    run("uninstall");
    assert!(place.names("root/usr/share/man/man1").is_empty());
}

#[test]
fn a_daemon_that_dies_while_it_starts_leaves_no_mount() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    // Less and less memory: somewhere on the way the daemon dies after it has mounted.
    for kilobytes in (24..=64).rev().step_by(4).map(|megabytes: u32| megabytes << 10) {
        let script = format!("ulimit -v {kilobytes}; ./unionmount --lower a --upper up mnt 2>/dev/null");
        match place.sh(&script).code {
            Some(0) => place.umount("mnt"),
            Some(1) => {}
            // Not even the parent has enough: nobody is left to clean up.
            _ => return,
        }
        place.wait_for_no_daemon();
        assert!(place.mounted("mnt").is_none(), "ulimit -v {kilobytes}");
    }
}

#[test]
fn a_daemon_that_cannot_say_that_it_is_ready_is_ended() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    // Its answers to the kernel go by another call.
    let script = "strace -f -qq -o /dev/null -e trace=write -e inject=write:error=EIO ./unionmount --lower a --upper up mnt";
    let ended = place.sh(script);
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert!(place.mounted("mnt").is_none());
    place.wait_for_no_daemon();
}

#[test]
fn stray_signals_end_no_mount() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    fs::write(place.at("a/f"), "f").unwrap();
    place.unionmount(&with(&["mnt"])).ok();
    let daemon = place.daemon().as_raw_nonzero();
    // USR2, PIPE, ALRM, STKFLT, XFSZ, VTALRM, PROF, IO, PWR, RTMIN, RTMAX
    for signal in [12, 13, 14, 16, 25, 26, 27, 29, 30, 34, 64] {
        place.sh(&format!("kill -{signal} {daemon}")).ok();
        assert_eq!(fs::read(place.at("mnt/f")).unwrap(), b"f", "{signal}");
    }
    place.sh(&format!("kill -s QUIT {daemon}")).ok();
    place.wait_for_no_daemon();
    assert!(place.mounted("mnt").is_none());
    // A limit on the size of files is an error of the write.
    place.sh("ulimit -f 16; ./unionmount --lower a --upper up mnt").ok();
    let error = fs::write(place.at("mnt/large"), vec![1; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
    assert_eq!(fs::read(place.at("mnt/f")).unwrap(), b"f");
    place.umount("mnt");
}

#[test]
fn too_few_descriptors_are_refused_with_the_number_that_does() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    fs::create_dir(place.at("a/d")).unwrap();
    for i in 0..200 {
        fs::write(place.at(format!("a/d/{i}")), "low").unwrap();
    }
    let few = |limit: usize| format!("ulimit -n {limit}; ./unionmount --lower a:b --upper up mnt");
    let refused = place.sh(&few(24)).refused(1, &["at most 24 files may be open", "ulimit -Hn"]);
    let needed = refused.err.split("ulimit -Hn ").nth(1).unwrap().split(|c: char| !c.is_ascii_digit()).next();
    let needed: usize = needed.unwrap().parse().unwrap();
    place.sh(&few(needed - 1)).refused(1, &[&format!("needs {needed}")]);
    place.sh(&few(needed)).ok();
    // All that there is to do, by several at once.
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let place = &place;
            scope.spawn(move || {
                for i in (0..200).filter(|i| i % 8 == worker) {
                    let path = place.at(format!("mnt/d/{i}"));
                    fs::write(&path, "new").unwrap();
                    assert_eq!(fs::read(&path).unwrap(), b"new");
                    fs::rename(&path, place.at(format!("mnt/{i}"))).unwrap();
                    fs::remove_file(place.at(format!("mnt/{i}"))).unwrap();
                    fs::create_dir_all(place.at(format!("mnt/x{i}/y"))).unwrap();
                }
            });
        }
    });
    let told = place.sh("./unionmount status --count 0 mnt").ok();
    assert!(told.out.contains("copied up"), "{told:?}");
    place.umount("mnt");
    place.wait_for_no_daemon();
}

#[test]
fn a_lower_may_be_covered_and_an_upper_may_not() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    fs::write(place.at("a/f"), "low").unwrap();
    fs::write(place.at("b/g"), "lowest").unwrap();
    for point in ["a", "b"] {
        place.unionmount(&with(&[point])).ok();
        assert_eq!(place.names(point).iter().filter(|name| ["f", "g"].contains(&&name[..])).count(), 2);
        fs::write(place.at(point).join("f"), "new").unwrap();
        fs::write(place.at(point).join(format!("made-{point}")), "").unwrap();
        let told = place.sh(&format!("./unionmount status {point}")).ok();
        assert!(told.out.contains("not visible from here"), "{told:?}");
        place.umount(point);
        place.wait_for_no_daemon();
        assert_eq!(fs::read(place.at("a/f")).unwrap(), b"low");
    }
    assert_eq!((place.names("a"), place.names("b")), (vec!["f".to_owned()], vec!["g".to_owned()]));
    assert_eq!(place.names("up"), ["f", "made-a", "made-b"]);
    place.unionmount(&with(&["up"])).refused(1, &["mount point up is the same directory as upper layer up"]);
    place.mkdir("w");
    place.unionmount(&with(&["--work", "w", "w"])).refused(1, &["mount point w", "workdir w"]);
}

#[test]
fn habits_of_other_unions_are_answered_in_our_words() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    symlink("unionmount", place.at("mount.fuse.unionmount")).unwrap();
    let ours = "write -o lowerdir=/b,upperdir=/a,workdir=/a.work";
    place
        .sh("./mount.fuse.unionmount /a=RW:/b=RO mnt -o cow")
        .refused(2, &["a source names no layers", ours]);
    place.sh("./unionmount -o br=/a=rw:/b=ro none mnt").refused(2, &["option br", ours]);
    place.sh("./unionmount -o dirs=/a=rw:/b=ro none mnt").refused(2, &["option dirs", ours]);
    place.sh(r#"./unionmount -o 'lowerdir=a:"b,c"' mnt"#).refused(2, &["quote the whole list"]);
    place.sh("./unionmount -s -o lowerdir=a mnt").ok();
    place.umount("mnt");
}

#[test]
fn the_helper_of_mount_8_takes_a_dead_mount_away_first() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    symlink("unionmount", place.at("mount.fuse.unionmount")).unwrap();
    let script = "./mount.fuse.unionmount none mnt -o lowerdir=a,upperdir=up";
    place.sh(script).ok();
    kill_process(place.daemon(), Signal::KILL).unwrap();
    place.wait_for_no_daemon();
    let again = place.sh(script);
    assert_eq!((again.code, again.err.contains("took a dead mount away")), (Some(0), true), "{again:?}");
    let on_it = support::mounts().into_iter().filter(|mount| mount.point == place.at("mnt")).count();
    assert_eq!(on_it, 1);
    fs::write(place.at("mnt/new"), "").unwrap();
    // A live one stays, and is named.
    place.sh(script).refused(1, &["busy, a unionmount is mounted there already"]);
    place.umount("mnt");
}

#[test]
fn what_the_umount_verb_unmounted_holds_no_layer() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    symlink("unionmount", place.at("umount.fuse.unionmount")).unwrap();
    place.mkdir("low");
    let script = "set -e
        for i in 1 2 3 4 5; do
            for verb in './unionmount umount mnt' './umount.fuse.unionmount mnt'; do
                mount -t tmpfs t low; echo $i >low/f
                ./unionmount --lower low --upper up mnt; cat mnt/f >/dev/null; echo $i >mnt/f
                $verb
                umount low
            done
        done";
    place.sh(script).ok();
    assert!(place.daemons().is_empty());
    place.unionmount(&["umount", "mnt"]).refused(1, &["mnt: no mount of unionmount"]);
    place.unionmount(&with(&["mnt"])).ok();
    let user = fs::File::open(place.at("mnt")).unwrap();
    place.unionmount(&["umount", "mnt"]).refused(1, &["mnt: is in use", "--lazy"]);
    place.unionmount(&["unmount", "--lazy", "mnt"]).ok();
    assert!(place.mounted("mnt").is_none());
    drop(user);
    place.wait_for_no_daemon();
    // A dead one, too.
    place.unionmount(&with(&["mnt"])).ok();
    kill_process(place.daemon(), Signal::KILL).unwrap();
    place.wait_for_no_daemon();
    place.unionmount(&["umount", "mnt"]).ok();
    assert!(place.mounted("mnt").is_none());
}

#[test]
fn the_upper_is_synced_at_the_end_unless_volatile() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    for (options, count) in [("nodev", 1), ("volatile", 0)] {
        let mut daemon = std::process::Command::new("strace")
            .args(["-f", "-qq", "-o", "trace", "-e", "trace=syncfs,unlinkat"])
            .args(["./unionmount", "--foreground", "--lower", "a", "--upper", "up", "-o", options, "mnt"])
            .current_dir(place.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("it is mounted", || place.mounted("mnt").is_some());
        fs::write(place.at("mnt/f"), "new").unwrap();
        place.umount("mnt");
        assert_eq!(wait(&mut daemon), Some(0));
        let trace = fs::read_to_string(place.at("trace")).unwrap();
        assert_eq!(trace.matches("syncfs(").count(), count, "{options}: {trace}");
        // After the workdir's end, which is to last as well.
        let last = trace
            .lines()
            .rev()
            .find(|line| !line.contains(".sock") && (line.contains("unlinkat(") || line.contains("syncfs(")));
        assert_eq!(last.is_some_and(|line| line.contains("syncfs(")), count == 1, "{options}: {trace}");
    }
}

#[test]
fn layers_come_and_go_in_the_words_of_aufs() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let script = "
        for dir in a b c; do mkdir -p $dir; echo $dir >$dir/f; echo $dir >$dir/of-$dir; done
        mount -t fuse.unionmount none $PWD/mnt -o lowerdir=$PWD/a,upperdir=$PWD/up
        m() { mount -o remount,$1 $PWD/mnt; cat mnt/f; ls mnt | tr \"\\n\" \" \"; }
        m append:$PWD/b
        m ins:1:$PWD/c=ro
        m del:$PWD/a
        m del:$PWD/c,prepend:$PWD/a
        m ins:3:$PWD/c
        m ro,del:$PWD/a
        no touch mnt/g
        m rw
        touch mnt/g
        for change in ins:0:$PWD/a ins:9:$PWD/a ins:$PWD/a append:$PWD/a=rw del:$PWD/a append:$PWD/none; do
            no mount -o remount,$change $PWD/mnt
        done
        exec 3<mnt/of-c
        no mount -o remount,del:$PWD/c $PWD/mnt
        exec 3<&-
        # All are understood before any is done; what was done before one that fails is told.
        no mount -o remount,del:$PWD/c,ins:x:$PWD/a $PWD/mnt
        test -e mnt/of-c
        no mount -o remount,append:$PWD/a,del:$PWD/gone $PWD/mnt
        test -e mnt/of-a
        mkdir e=f
        mount -o remount,append:$PWD/e=f $PWD/mnt
        umount mnt";
    let ended = by_mount_8(&place, script).ok();
    let shown = ["a\nf of-a of-b ", "c\nf of-a of-b of-c ", "c\nf of-b of-c ", "a\nf of-a of-b "];
    let rest = ["a\nf of-a of-b of-c ", "b\nf of-b of-c ", "b\nf of-b of-c "];
    assert_eq!(ended.out, shown.concat() + &rest.concat());
    let said = fs::read_to_string(place.at("said")).unwrap();
    let path = |dir: &str| place.at(dir).display().to_string();
    let none = format!("no layer {}; unionmount status", path("a"));
    let done = format!("what was done before it stays: append:{}", path("a"));
    for told in [
        "0 is the upper",
        "no layer 9",
        "ins:1:/dir",
        "rw is no mode",
        &none,
        "none: ",
        "/of-c (",
        "ins:x:",
        &done,
    ] {
        assert!(said.contains(told), "{told}: {said}");
    }
    place.wait_for_no_daemon();
}

#[test]
fn a_mount_is_made_read_only_and_writable_again() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let script = "
        options=lowerdir=$PWD/a:$PWD/b,upperdir=$PWD/up,workdir=$PWD/w,nosuid,max_write=65536
        mkdir w
        echo \"merged $PWD/mnt fuse.unionmount defaults,nofail,x-test,$options 0 0\" > fstab
        mount -T fstab $PWD/mnt
        for table in \"-T fstab\" \"\"; do
            echo 1 > mnt/f
            mount $table -o remount,ro $PWD/mnt
            no touch mnt/g
            grep \" $PWD/mnt \" /proc/self/mountinfo
            mount $table -o remount,rw $PWD/mnt
            touch mnt/g
            grep \" $PWD/mnt \" /proc/self/mountinfo
        done
        for change in noexec lowerdir=$PWD/b volatile timeout=3; do
            no mount -o remount,ro,$change $PWD/mnt
        done
        touch mnt/h
        # As the kernel does it, without a helper.
        mount -i -o remount,ro $PWD/mnt
        no touch mnt/i
        umount mnt
        mount -t fuse.unionmount none $PWD/mnt -o lowerdir=$PWD/a
        no mount -o remount,rw $PWD/mnt
        umount mnt";
    let ended = by_mount_8(&place, script).ok();
    let said = fs::read_to_string(place.at("said")).unwrap();
    for name in ["noexec", "lowerdir", "volatile", "timeout"] {
        assert!(said.contains(&format!("remount: {name} can't be changed")), "{name}: {said}");
    }
    assert!(said.contains("it has no upper layer"), "{said}");
    let ways: Vec<&str> = ended.out.lines().map(|line| line.split(' ').nth(5).unwrap()).collect();
    assert_eq!(ways.len(), 4, "{ended:?}");
    for (way, access) in ways.iter().zip(["ro", "rw", "ro", "rw"]) {
        assert!(way.starts_with(access) && way.contains("nosuid"), "{ended:?}");
    }
}

#[test]
fn a_descriptor_that_the_caller_has_mounted_is_served() {
    if !is_root() {
        support::skip!("needs root");
    }
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd;
    let place = Place::new();
    fs::write(place.at("a/f"), "low").unwrap();
    for by_signal in [false, true] {
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR, Mode::empty()).unwrap();
        let number = device.as_raw_fd();
        let data = format!("fd={number},rootmode=40000,user_id=0,group_id=0,default_permissions");
        let data = std::ffi::CString::new(data).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("x", place.at("mnt"), "fuse.unionmount", flags, data.as_c_str()).unwrap();
        place.unionmount(&with(&[&format!("/dev/fd/{number}")])).ok();
        drop(device);
        assert_eq!(fs::read(place.at("mnt/f")).unwrap(), b"low");
        fs::write(place.at("mnt/g"), "new").unwrap();
        if by_signal {
            kill_process(place.daemon(), Signal::TERM).unwrap();
        } else {
            place.umount("mnt");
        }
        place.wait_for_no_daemon();
        if by_signal {
            place.umount("mnt");
        }
        assert_eq!(fs::read(place.at("up/g")).unwrap(), b"new");
        assert_eq!(place.names("").iter().filter(|name| name.contains("work")).count(), 0);
    }
    place.unionmount(&with(&["/dev/fd/99"])).refused(1, &["/dev/fd/99", "no such descriptor"]);
    place.sh("./unionmount --lower a --upper up /dev/fd/9 9</dev/null").refused(1, &["no open /dev/fuse"]);
}

#[test]
fn who_keeps_many_deleted_files_open_takes_nobody_elses_descriptors() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    fs::write(place.at("a/f"), "low").unwrap();
    fs::set_permissions(place.at("up"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    place.sh("ulimit -n 400; ./unionmount --lower a:b --upper up mnt").ok();
    let script = "import os, errno
held = []
try:
    while len(held) < 1000:
        held.append(os.open('mnt', os.O_TMPFILE | os.O_RDWR))
except OSError as error:
    assert error.errno == errno.EMFILE, error
print(len(held), flush=True)
input()";
    let mut greedy = std::process::Command::new("python3");
    greedy.args(["-c", script]).current_dir(place.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut greedy = as_user(&mut greedy).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(greedy.stdout.take().unwrap()), &mut line)
        .unwrap();
    let held: usize = line.trim().parse().unwrap();
    assert!((20..200).contains(&held), "{held} of 400");
    // All others go on.
    assert_eq!(fs::read(place.at("mnt/f")).unwrap(), b"low");
    let mut open = Vec::new();
    for i in 0..20 {
        let path = place.at(format!("mnt/{i}"));
        open.push(fs::File::create(&path).unwrap());
        fs::remove_file(&path).unwrap();
    }
    drop(open);
    let theirs =
        place.sh_as_user("set -e; exec 9>mnt/mine; echo x >&9; ls -l mnt >/dev/null; mv mnt/mine mnt/moved");
    assert_eq!(theirs.code, Some(0), "what takes no share works for them, too: {theirs:?}");
    drop(greedy.stdin.take());
    wait(&mut greedy);
    until("what was held is given back", || place.sh_as_user("rm mnt/moved").code == Some(0));
}
