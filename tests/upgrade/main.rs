//! `unionmount upgrade`: a mount goes on in another process while programs use it, or stays where it is.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

mod guarded;
mod kept;

use support::cli::{Place, as_user, until};
use support::{Fields, LoopFilesystem, Scratch, Snapshot, diff};

const ROLES: [&str; 8] = ["write", "lock", "deleted", "list", "inside", "make", "sql", "patch"];
const WORK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/upgrade/work.py");

/// How often it is done while programs work. More by UNIONMOUNT_TEST_UPGRADES.
fn often() -> usize {
    std::env::var("UNIONMOUNT_TEST_UPGRADES").ok().and_then(|often| often.parse().ok()).unwrap_or(20)
}

/// Who mounts, and works in the mount.
#[derive(Clone, Copy, PartialEq)]
enum Who {
    Root,
    User,
}

struct Bed {
    place: Place,
    who: Who,
    upper: PathBuf,
}

impl Bed {
    fn new(who: Who) -> Bed {
        let place = if who == Who::User { Place::of_user() } else { Place::new() };
        fs::create_dir(place.at("b/below")).unwrap();
        for number in 0..100 {
            fs::write(place.at(format!("b/below/{number}")), format!("below {number}")).unwrap();
        }
        let large: Vec<u8> = (0..4u32 << 20).map(|at| (at / 4096 % 251) as u8).collect();
        fs::write(place.at("b/large"), &large).unwrap();
        fs::copy(WORK, place.at("work.py")).unwrap();
        let upper = place.at("up");
        let bed = Bed { place, who, upper };
        if who == Who::User {
            let (uid, gid) = support::cli::user();
            let owned =
                Command::new("chown").arg("-R").arg(format!("{uid}:{gid}")).arg(bed.place.at("b")).status();
            assert!(owned.unwrap().success());
        }
        bed
    }

    fn command(&self, command: &mut Command) -> Command {
        let mut made = Command::new(command.get_program());
        made.args(command.get_args()).current_dir(self.place.path()).env_remove("RUST_LOG");
        // The same for whoever asks and for the daemon.
        made.env("XDG_RUNTIME_DIR", self.place.path());
        if self.who == Who::User {
            as_user(&mut made);
        }
        made
    }

    #[track_caller]
    fn unionmount(&self, words: &[&str]) -> support::cli::Ended {
        support::cli::run(&mut self.command(Command::new(self.place.bin()).args(words)))
    }

    fn mount(&self, words: &[&str]) {
        let upper = self.upper.to_str().unwrap();
        self.unionmount(&[&["--lower", "a:b", "--upper", upper], words, &["mnt"]].concat()).ok();
    }

    fn daemon(&self) -> i32 {
        // The one before has closed the talk, and ends.
        until("one daemon is left", || self.place.daemons().len() == 1);
        self.place.daemons()[0]
    }

    fn work(&self, role: &str) -> Child {
        let (mount, end) = (self.place.at("mnt"), self.place.at("end"));
        let mut command = Command::new("python3");
        command.arg(self.place.at("work.py")).arg(role).arg(mount).arg(end);
        self.command(&mut command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

fn whoever_works_notices_nothing(who: Who, options: &[&str]) {
    work_goes_on(&Bed::new(who), options);
}

fn work_goes_on(bed: &Bed, options: &[&str]) {
    let who = bed.who;
    bed.mount(options);
    let root = bed.place.at("mnt");
    let number = |path: &str| fs::metadata(root.join(path)).unwrap().ino();
    let first = match who {
        Who::Root => number("below/7"),
        Who::User => 0,
    };
    let mut workers: Vec<Child> = ROLES.iter().map(|role| bed.work(role)).collect();
    let mut before = bed.daemon();
    let mut pauses = Vec::new();
    for round in 0..often() {
        let done = bed.unionmount(&["upgrade", "mnt"]).ok();
        let pause = done.out.split_once("requests waited for ").and_then(|(_, told)| told.split_once(" ms"));
        pauses.push(
            pause
                .and_then(|(pause, _)| pause.parse::<f64>().ok())
                .unwrap_or_else(|| panic!("{round}: {done:?}")),
        );
        let now = bed.daemon();
        assert_ne!(now, before, "{round}");
        before = now;
        for worker in &mut workers {
            if let Some(status) = worker.try_wait().unwrap() {
                let out = read(worker.stderr.take());
                panic!("a worker ended in round {round}: {status}: {out}");
            }
        }
    }
    pauses.sort_by(f64::total_cmp);
    let (middle, most) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    println!(
        "{} upgrades, {options:?}: requests waited for {middle} ms, {most} ms at the most",
        pauses.len()
    );
    fs::write(bed.place.at("end"), "").unwrap();
    for mut worker in workers {
        let status = ended(&mut worker);
        let (out, err) = (read(worker.stdout.take()), read(worker.stderr.take()));
        assert_eq!(status, Some(0), "{out}{err}");
        let count: u64 = out.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(count > 0, "{out}");
    }
    if who == Who::Root {
        assert_eq!(number("below/7"), first);
        let expected = Snapshot::take(&root);
        bed.unionmount(&["umount", "mnt"]).ok();
        assert!(!bed.upper.with_file_name(".up.work").join("work").exists(), "it ended in order");
        bed.mount(options);
        let again = Snapshot::take(&root);
        let same = diff(&expected, &again, &Fields::tree());
        assert!(same.is_empty(), "{same:?}");
    }
    bed.unionmount(&["umount", "mnt"]).ok();
    bed.place.wait_for_no_daemon();
}

/// Returns how a worker ended. On a machine that has much else to do a round takes a while.
fn ended(worker: &mut Child) -> Option<i32> {
    let mut status = None;
    let has_ended = support::wait_until(Duration::from_secs(600), || {
        status = worker.try_wait().unwrap();
        status.is_some()
    });
    assert!(has_ended, "a worker doesn't end");
    status.and_then(|status| status.code())
}

fn read(pipe: Option<impl std::io::Read>) -> String {
    let mut text = String::new();
    pipe.unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn whoever_works_in_roots_mount_notices_no_upgrade() {
    support::needs_root!();
    whoever_works_notices_nothing(Who::Root, &[]);
}

#[test]
fn nor_with_one_thread_or_where_the_kernel_holds_what_was_written() {
    support::needs_root!();
    whoever_works_notices_nothing(Who::Root, &["-o", "threaded=0,writeback"]);
}

#[test]
fn nor_where_the_kernel_has_files_open_by_itself() {
    support::needs_root!();
    whoever_works_notices_nothing(Who::Root, &["-o", "passthrough"]);
}

#[test]
fn nor_where_what_is_taken_is_counted_and_copies_are_halves() {
    support::needs_root!();
    for lazy in ["keep", "on"] {
        let (scratch, mut bed) = (Scratch::new(), Bed::new(Who::Root));
        let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 512 << 20);
        bed.upper = disk.path().join("up");
        fs::create_dir(&bed.upper).unwrap();
        work_goes_on(&bed, &["-o", &format!("size=256M,inodes=100000,lazy={lazy}")]);
        drop(bed);
    }
}

#[test]
fn whoever_works_in_an_ordinary_users_mount_notices_no_upgrade() {
    support::needs_root!();
    whoever_works_notices_nothing(Who::User, &[]);
}

#[test]
fn a_mount_in_a_user_namespace_goes_on() {
    support::needs_root!();
    let bed = Bed::new(Who::User);
    let script = "set -e
        ./unionmount --lower a:b --upper up mnt
        echo kept > mnt/file; exec 3<mnt/file; rm mnt/file; cd mnt/below
        for round in 1 2 3; do ../../unionmount upgrade . >../../said; done
        cat <&3; ls | wc -l; echo new > 7; cat 7
        cd ../..; exec 3<&-; ./unionmount umount mnt; cat up/below/7";
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", script]);
    let ended = support::cli::run(&mut bed.command(&mut command)).ok();
    assert_eq!(ended.out, "kept\n100\nnew\nnew\n");
}

/// A program that says what is wanted in the place of a daemon that takes over.
fn pretender(place: &Place, name: &str, script: &str) -> PathBuf {
    let at = place.at(name);
    fs::write(
        &at,
        format!("#!/usr/bin/python3\nimport socket, sys, time\ntalk = socket.socket(fileno=0)\n{script}"),
    )
    .unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
    at
}

#[test]
fn a_program_that_cannot_take_over_leaves_the_mount_as_it_is() {
    support::needs_root!();
    let bed = Bed::new(Who::Root);
    bed.mount(&[]);
    let worker = bed.work("write");
    let daemon = bed.daemon();
    let hello = "talk.sendall(b'{\"hello\":{\"program\":\"9.9.9\",\"format\":1}}\\n'); talk.recv(1000)\n";
    pretender(&bed.place, "silent", "sys.exit(0)");
    pretender(&bed.place, "stranger", "talk.sendall(b'hello\\n'); talk.recv(1000)");
    pretender(&bed.place, "older", &hello.replace("format\":1", "format\":0"));
    pretender(&bed.place, "quits", hello);
    pretender(&bed.place, "refuses", &format!("{hello}talk.sendall(b'{{\"refused\":\"not today\"}}\\n')"));
    pretender(&bed.place, "killed", &format!("{hello}talk.sendall(b'\"ready\"\\n'); talk.recv(1000)"));
    for (program, why) in [
        ("/bin/false", "ended without a word"),
        ("silent", "ended without a word"),
        ("stranger", "something else"),
        ("older", "reads states up to format 0"),
        ("quits", "ended without a word"),
        ("refuses", "not today"),
        ("killed", "didn't go on"),
        ("missing", "can't be found"),
    ] {
        bed.unionmount(&["upgrade", "--program", program, "mnt"]).refused(1, &[why]);
        assert_eq!(bed.daemon(), daemon, "{program}");
        fs::write(bed.place.at("mnt/still"), program).unwrap();
        assert_eq!(fs::read_to_string(bed.place.at("mnt/still")).unwrap(), program);
        assert_eq!(bed.unionmount(&["status", "--json", "--count=0", "mnt"]).code, Some(0), "{program}");
    }
    // And then one that can.
    bed.unionmount(&["upgrade", "mnt"]).ok();
    assert_ne!(bed.daemon(), daemon);
    fs::write(bed.place.at("end"), "").unwrap();
    let mut worker = worker;
    assert_eq!(ended(&mut worker), Some(0), "{}", read(worker.stderr.take()));
}

#[test]
fn what_a_daemon_cannot_hand_over_it_keeps_and_says_why() {
    support::needs_root!();
    let bed = Bed::new(Who::Root);
    bed.mount(&["-o", "passthrough=lower"]);
    let daemon = bed.daemon();
    bed.unionmount(&["upgrade", "mnt"])
        .refused(1, &["passthrough=lower", "mnt: this mount can't be upgraded"]);
    assert_eq!(bed.daemon(), daemon);
}

/// In a mount namespace with a runtime directory of its own, so that there are no others.
#[test]
fn all_are_upgraded_but_those_that_cannot_be() {
    support::needs_root!();
    let bed = Bed::new(Who::Root);
    let script = "set -e
        umount -a -l -t fuse.unionmount || true; mount -t tmpfs none /run; mkdir up2 mnt2 up3 mnt3
        ./unionmount --lower a:b --upper up mnt
        ./unionmount --lower b --upper up2 -o passthrough=lower mnt2
        ./unionmount --lower b --upper up3 mnt3
        ./unionmount upgrade --all && echo all || echo not all
        ls mnt mnt2 mnt3
        ./unionmount umount mnt mnt2 mnt3";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]);
    let ended = support::cli::run(&mut bed.command(&mut command));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.out.matches("requests waited for").count(), 2, "{ended:?}");
    assert_eq!(ended.out.matches("below").count(), 3, "{ended:?}");
    assert!(ended.out.contains("not all"), "{ended:?}");
    assert!(ended.err.contains("mnt2: this mount can't be upgraded"), "{ended:?}");
    assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
}

/// The log lies below the mount by now, and the mount's path is another.
#[test]
fn a_log_that_is_covered_and_a_path_that_changed_are_no_hindrance() {
    support::needs_root!();
    let bed = Bed::new(Who::Root);
    bed.place.mkdir("here/mnt");
    let words = ["--lower", "b", "--upper", "up", "--log-file", "here/mnt/log", "-v", "here/mnt"];
    bed.unionmount(&words).ok();
    fs::rename(bed.place.at("here"), bed.place.at("there")).unwrap();
    for _ in 0..2 {
        let done = bed.unionmount(&["upgrade", "there/mnt"]).ok();
        assert!(done.out.contains("requests waited for"), "{done:?}");
        bed.daemon();
        bed.unionmount(&["status", "--count=0", "there/mnt"]).ok();
    }
    let name = fs::read_to_string(format!("/proc/{}/comm", bed.daemon())).unwrap();
    assert_eq!(name.trim(), "unionmount");
    bed.unionmount(&["umount", "there/mnt"]).ok();
    bed.place.wait_for_no_daemon();
    let log = fs::read_to_string(bed.place.at("there/mnt/log")).unwrap();
    assert_eq!(log.matches("goes on with the mount").count(), 2, "{log}");
}

#[test]
fn what_is_told_of_a_mount_stays_and_snapshots_go_on() {
    support::needs_root!();
    let bed = Bed::new(Who::Root);
    bed.mount(&["-o", "noatime"]);
    for dir in ["up2", "mnt2"] {
        fs::create_dir(bed.place.at(dir)).unwrap();
    }
    bed.unionmount(&["--lower", "b", "--upper", "up2", "mnt2"]).ok();
    fs::write(bed.place.at("mnt/file"), "x").unwrap();
    let told = |point: &str| -> serde_json::Value {
        let told = bed.unionmount(&["status", "--json", "--count=0", point]).ok();
        serde_json::from_str(&told.out).unwrap()
    };
    let before = told("mnt");
    let mut daemons = bed.place.daemons();
    // Mounts of other tests may be there, and some of them stay.
    for point in ["mnt", "mnt2"] {
        bed.unionmount(&["upgrade", point]).ok();
    }
    until("the daemons before have ended", || bed.place.daemons().len() == 2);
    let mut now = bed.place.daemons();
    daemons.append(&mut now);
    daemons.sort_unstable();
    daemons.dedup();
    assert_eq!(daemons.len(), 4, "two have ended, and two are there");
    let after = told("mnt");
    for same in ["mount_point", "device", "since_us", "options", "layers", "io"] {
        assert_eq!(after[same], before[same], "{same}");
    }
    assert_ne!(after["pid"], before["pid"]);
    assert!(after["upgraded_us"].as_u64() > before["since_us"].as_u64() && before["upgraded_us"].is_null());
    assert!(after["requests_total"].as_u64() >= before["requests_total"].as_u64());
    assert!(after["counters"]["creates"].as_u64() >= Some(1));
    // A snapshot afterwards, and an upgrade after that.
    bed.unionmount(&["snapshot", "mnt", "one"]).ok();
    bed.unionmount(&["upgrade", "mnt"]).ok();
    assert_eq!(fs::read_to_string(bed.place.at("mnt/file")).unwrap(), "x");
    bed.unionmount(&["rollback", "--force", "mnt", "one"]).ok();
    bed.unionmount(&["upgrade", "mnt"]).ok();
    assert_eq!(fs::read_to_string(bed.place.at("mnt/file")).unwrap(), "x");
    // It waits for the daemon that the mount has now.
    bed.unionmount(&["umount", "mnt", "mnt2"]).ok();
    assert_eq!(bed.place.daemons(), [0; 0]);
}
