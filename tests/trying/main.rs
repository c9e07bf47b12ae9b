//! `try`: nothing happens until it is applied, for root and for an ordinary user, in $HOME, in `/` and in itself.

// A test that panics has failed; that is what unwrap is for here.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use support::cli::{Ended, Place, as_user, until, user};
use support::{Fields, Snapshot, diff, is_installed, skipped};

/// A directory `home` of the user's, or of root, with a project in it; HOME is there, and so is what is kept.
struct Home {
    place: Place,
    by_user: bool,
}

impl Home {
    fn new(by_user: bool) -> Home {
        let place = Place::new();
        place
            .sh("mkdir -p home/p/d && cd home/p && echo one >f && echo two >d/g && ln -s f l && printf 'clean:\\n\\trm -f f d/g\\n' >Makefile")
            .ok();
        let home = Home { place, by_user };
        if by_user {
            let (uid, gid) = user();
            home.place.sh(&format!("chown -R {uid}:{gid} home")).ok();
        }
        home
    }

    fn both() -> [Home; 2] {
        [Home::new(false), Home::new(true)]
    }

    /// Runs a script in the project.
    fn sh(&self, script: &str) -> Ended {
        let path = self.place.path().display();
        let script = format!(
            "export HOME={path}/home UNIONMOUNT_ROOT={path}/home/.local/share/unionmount PATH={path}:$PATH SHELL=/bin/sh; unset XDG_RUNTIME_DIR XDG_DATA_HOME; cd home/p; {script}"
        );
        if self.by_user { self.place.sh_as_user(&script) } else { self.place.sh(&script) }
    }

    fn project(&self) -> Snapshot {
        Snapshot::take(&self.place.at("home/p"))
    }

    /// Nothing is kept, and nothing runs any more.
    fn assert_over(&self) {
        // A try within a try of another test is kept in a place of all.
        let place = self.place.path().display().to_string();
        let listed = self.sh("unionmount try --list").out;
        assert!(!listed.contains(&place), "{listed}");
        until("its daemon ends", || self.place.daemons().is_empty());
    }
}

#[track_caller]
fn unchanged(before: &Snapshot, after: &Snapshot) {
    assert_eq!(diff(before, after, &Fields::all()), "");
}

const CHANGES: &str = "echo more >>f; rm d/g; mkdir new; echo n >new/n; chmod 755 f; mv l link; cat f; pwd";

#[test]
fn what_is_discarded_was_never_done() {
    support::needs_root!();
    for home in Home::both() {
        let before = home.project();
        let ended = home.sh(&format!("unionmount try --discard -- sh -c '{CHANGES}'"));
        assert_eq!(
            (ended.code, ended.out.lines().next_back()),
            (Some(0), Some(&*home.place.at("home/p").display().to_string())),
            "{ended:?}"
        );
        assert!(ended.out.starts_with("one\nmore\n"), "it sees its own changes: {ended:?}");
        assert!(ended.err.contains("nothing in it is changed until you apply it"), "{ended:?}");
        assert_eq!(ended.err.contains("sudo"), home.by_user, "{ended:?}");
        unchanged(&before, &home.project());
        home.assert_over();
    }
}

#[test]
fn what_is_applied_has_happened() {
    support::needs_root!();
    for home in Home::both() {
        let ended = home.sh(&format!("unionmount try --apply -- sh -c '{CHANGES}; exit 7'"));
        assert_eq!(ended.code, Some(7), "{ended:?}");
        for line in ["  C f", "  D d/g", "  A new/", "  D l", "  A link"] {
            assert!(ended.err.lines().any(|told| told == line), "{line} is not in {ended:?}");
        }
        assert!(!ended.err.contains("new/n"), "what is in a new directory isn't listed: {ended:?}");
        assert_eq!(fs::read_to_string(home.place.at("home/p/f")).unwrap(), "one\nmore\n");
        assert_eq!(home.place.names("home/p"), ["Makefile", "d", "f", "link", "new"]);
        assert!(home.place.names("home/p/d").is_empty());
        home.assert_over();
    }
}

#[test]
fn the_exit_status_is_the_commands() {
    support::needs_root!();
    for home in Home::both() {
        for (command, code) in [
            ("true", 0),
            ("sh -c 'exit 3'", 3),
            ("sh -c 'kill -9 $$'", 137),
            ("no-such-program", 127),
            ("./Makefile", 126),
        ] {
            let ended = home.sh(&format!("unionmount try -- {command}"));
            assert_eq!(ended.code, Some(code), "{command}: {ended:?}");
        }
        let ended = home.sh("unionmount try --dir none -- true");
        assert_eq!(ended.code, Some(2), "{ended:?}");
        home.assert_over();
    }
}

#[test]
fn what_is_kept_goes_on_and_is_decided_later() {
    support::needs_root!();
    for home in Home::both() {
        let before = home.project();
        // Nobody is there to be asked.
        let ended = home.sh("unionmount try -- sh -c 'echo kept >k'");
        assert!(
            ended.code == Some(0) && ended.err.contains("kept; unionmount try --resume 1 goes on"),
            "{ended:?}"
        );
        unchanged(&before, &home.project());
        let listed = home.sh("unionmount try --list").out;
        assert!(listed.starts_with("1  ") && listed.contains("1 change: sh -c"), "{listed}");
        let ended = home.sh("unionmount try --discard -- cat k");
        assert!(
            ended.code == Some(1) && ended.err.contains("changes of an earlier try"),
            "another one sees nothing of it: {ended:?}"
        );
        let ended = home.sh("unionmount try --resume 1 --keep -- sh -c 'cat k; echo 2 >k2'");
        assert_eq!((ended.code, &*ended.out), (Some(0), "kept\n"), "{ended:?}");
        assert_eq!(home.sh("unionmount try --resume 1 --apply").code, Some(0));
        assert!(home.place.names("home/p").contains(&"k2".to_owned()));
        home.assert_over();
        let ended = home.sh("unionmount try --resume 1 --apply");
        assert!(ended.code == Some(125) && ended.err.contains("--list shows"), "{ended:?}");
    }
}

#[test]
fn a_conflict_is_told_and_what_was_tried_is_kept() {
    support::needs_root!();
    for home in Home::both() {
        let outside = home.place.at("home/p");
        let script = "unionmount try --apply -- sh -c 'echo mine >f; echo ready >made; until [ -e ../seen ]; do sleep 0.02; done'";
        let path = home.place.path().to_owned();
        let changer = std::thread::spawn(move || {
            // Through the upper, since nobody else sees the mount.
            let kept = path.join("home/.local/share/unionmount/tries/1/0");
            until("the command has written", || kept.join("made").exists());
            fs::write(outside.join("f"), "theirs\n").unwrap();
            fs::write(outside.join("../seen"), "").unwrap();
        });
        let ended = home.sh(script);
        changer.join().unwrap();
        assert_eq!(ended.code, Some(125), "{ended:?}");
        assert!(ended.out.contains("f: was changed since") && ended.err.contains("--resume 1"), "{ended:?}");
        assert_eq!(fs::read_to_string(home.place.at("home/p/f")).unwrap(), "theirs\n");
        assert_eq!(home.sh("unionmount try --resume 1 --apply --force").code, Some(0));
        assert_eq!(fs::read_to_string(home.place.at("home/p/f")).unwrap(), "mine\n");
        home.assert_over();
    }
}

#[test]
fn in_home_where_it_keeps_its_own_and_within_itself() {
    support::needs_root!();
    for home in Home::both() {
        let before = Snapshot::take(&home.place.at("home/p"));
        let ended = home.sh("cd; unionmount try --discard -- sh -c 'echo x >p/f; ls .local/share/unionmount/tries/1/0; rm -rf p/d; unionmount try --apply -- sh -c \"cat p/f; echo inner >p/inner\"; cat p/inner; ls p'");
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.out, "x\ninner\nMakefile\nf\ninner\nl\n", "{ended:?}");
        unchanged(&before, &home.project());
        home.assert_over();
    }
}

#[test]
fn the_whole_machine() {
    support::needs_root!();
    for home in Home::both() {
        let before = home.project();
        let ended = home.sh("unionmount try --root-fs --discard -- sh -c 'echo 10.0.0.1 x >>/etc/hosts && tail -n1 /etc/hosts; rm f; touch /usr/new; ls /usr/new /proc/self/status; ls; unionmount try --discard -- sh -c \"ls; echo y >y\"; ls'");
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(
            ended.out,
            "10.0.0.1 x\n/proc/self/status\n/usr/new\nMakefile\nd\nl\nMakefile\nd\nl\nMakefile\nd\nl\n",
            "{ended:?}"
        );
        assert!(
            !fs::read_to_string("/etc/hosts").unwrap().contains("10.0.0.1 x")
                && !fs::exists("/usr/new").unwrap()
        );
        unchanged(&before, &home.project());
        home.assert_over();
    }
}

/// A try whose command has changed something and runs on.
struct Running {
    outer: std::process::Child,
    command: rustix::process::Pid,
}

impl Running {
    fn start(home: &Home, decision: &str) -> Running {
        Running::with(home, decision, "exec sleep 1000")
    }

    /// `last`: what it does when it has changed something.
    fn with(home: &Home, decision: &str, last: &str) -> Running {
        let path = home.place.path();
        let mut command = Command::new(home.place.bin());
        let script = format!("echo done >k; echo $$ >../pid.new; mv ../pid.new ../pid; {last}");
        command
            .args(["try", decision, "--", "sh", "-c", &script])
            .current_dir(path.join("home/p"))
            .env("UNIONMOUNT_ROOT", path.join("home/.local/share/unionmount"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let outer = if home.by_user { as_user(&mut command) } else { &mut command }.spawn().unwrap();
        let pid = home.place.at("home/pid");
        until("the command has written", || pid.exists());
        let command = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        fs::remove_file(pid).unwrap();
        Running { outer, command: rustix::process::Pid::from_raw(command).unwrap() }
    }

    fn signal_outer(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.outer);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn ended(&mut self) {
        until("it ends", || self.outer.try_wait().unwrap().is_some());
    }

    fn command_runs(&self) -> bool {
        let state = fs::read_to_string(format!("/proc/{}/stat", self.command.as_raw_nonzero()));
        state.is_ok_and(|state| !state.contains(") Z "))
    }

    /// Kills the process that has started the command, and would end it and unmount.
    fn kill_parent(&self) {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.command.as_raw_nonzero())).unwrap();
        let parent: i32 = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let parent = rustix::process::Pid::from_raw(parent).unwrap();
        rustix::process::kill_process(parent, Signal::KILL).unwrap();
    }
}

/// A filesystem in which nobody who writes comes to an end, nor can be ended.
struct Frozen<'a> {
    place: &'a Place,
}

impl Frozen<'_> {
    fn new(place: &Place) -> Frozen<'_> {
        place.sh("mkdir ice && truncate -s 8M ice.img && PATH=$PATH:/sbin mkfs.ext4 -q ice.img").ok();
        place.sh("mount -o loop ice.img ice").ok();
        let frozen = Frozen { place };
        place.sh("fsfreeze -f ice").ok();
        frozen
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.place.sh("fsfreeze -u ice; umount -l ice");
    }
}

#[test]
fn killed_or_without_a_terminal_what_was_done_is_kept() {
    support::needs_root!();
    for home in Home::both() {
        for signal in [Signal::KILL, Signal::HUP, Signal::TERM] {
            let mut running = Running::start(&home, "--apply");
            running.signal_outer(signal);
            running.ended();
            if signal == Signal::KILL {
                // Killed alone, the command goes on to its end.
                assert!(running.command_runs());
                rustix::process::kill_process(running.command, Signal::TERM).unwrap();
            }
            until("its daemon ends", || home.place.daemons().is_empty());
            assert!(!running.command_runs());
            if signal == Signal::KILL {
                let listed = home.sh("unionmount try --list").out;
                assert!(listed.contains("1 change"), "{listed}");
                home.sh("unionmount try --resume 1 --discard");
            } else {
                let applied = fs::read_to_string(home.place.at("home/p/k"));
                assert_eq!(applied.unwrap(), "done\n", "it is applied as asked");
                fs::remove_file(home.place.at("home/p/k")).unwrap();
            }
            home.assert_over();
        }
    }
}

#[test]
fn when_what_unmounts_is_killed_nothing_runs_on() {
    support::needs_root!();
    for home in Home::both() {
        let mut running = Running::start(&home, "--keep");
        running.kill_parent();
        running.ended();
        until("its daemon ends", || home.place.daemons().is_empty());
        assert!(!running.command_runs());
        let kept = home.place.at("home/.local/share/unionmount/tries/1/0/k");
        assert_eq!(fs::read_to_string(kept).unwrap(), "done\n");
        assert_eq!(home.sh("unionmount try --resume 1 --apply").code, Some(0));
        assert_eq!(fs::read_to_string(home.place.at("home/p/k")).unwrap(), "done\n");
        home.assert_over();
    }
}

#[test]
fn what_cannot_be_ended_is_decided_by_nobody() {
    support::needs_root!();
    for decision in ["--apply", "--discard"] {
        let home = Home::new(false);
        let ice = Frozen::new(&home.place);
        let mut running = Running::with(&home, decision, "exec sh -c 'echo x >../../ice/x'");
        until("it hangs", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", running.command.as_raw_nonzero()));
            stat.unwrap().contains(") D ")
        });
        running.kill_parent();
        running.ended();
        assert_eq!(running.outer.wait().unwrap().code(), Some(125));
        assert!(running.command_runs() && !home.place.at("home/p/k").exists(), "{decision}");
        drop(ice);
        until("it ends", || !running.command_runs());
        assert_eq!(home.sh("unionmount try --resume 1 --apply").code, Some(0), "{decision}");
        assert_eq!(fs::read_to_string(home.place.at("home/p/k")).unwrap(), "done\n");
        home.assert_over();
    }
}

#[test]
fn what_is_half_applied_goes_on_and_is_not_discarded() {
    support::needs_root!();
    if !is_installed("strace") {
        return skipped("no strace");
    }
    for home in Home::both() {
        home.sh("unionmount try --keep -- sh -c 'echo more >>f; rm d/g; echo n >n'");
        let killed = home.sh(
            "strace -qq -o /dev/null -e inject=renameat2:signal=SIGKILL:when=1 unionmount try --resume 1 --apply",
        );
        assert!(!matches!(killed.code, Some(0 | 125)), "{killed:?}");
        let ended = home.sh("unionmount try --resume 1 --discard");
        assert!(ended.code == Some(125) && ended.err.contains("half applied"), "{ended:?}");
        let ended = home.sh("unionmount try --resume 1 --apply");
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(fs::read_to_string(home.place.at("home/p/f")).unwrap(), "one\nmore\n");
        assert!(home.place.at("home/p/n").exists() && !home.place.at("home/p/d/g").exists());
        home.assert_over();
    }
}

#[test]
fn what_is_not_applied_is_told_and_kept() {
    support::needs_root!();
    for home in Home::both() {
        home.sh("unionmount try --keep -- sh -c 'echo mine >f; echo n >n'");
        fs::write(home.place.at("home/p/f"), "theirs\n").unwrap();
        let ended = home.sh("unionmount try --resume 1 --apply --theirs");
        assert!(ended.code == Some(0) && ended.err.contains("f: was changed since, and stays"), "{ended:?}");
        assert!(ended.err.contains("which is kept; unionmount try --resume 1"), "{ended:?}");
        assert_eq!(fs::read_to_string(home.place.at("home/p/f")).unwrap(), "theirs\n");
        assert_eq!(home.sh("unionmount try --resume 1 --apply --force").code, Some(0));
        assert_eq!(fs::read_to_string(home.place.at("home/p/f")).unwrap(), "mine\n");
        home.assert_over();
    }
}

#[test]
fn what_cannot_be_read_is_told() {
    support::needs_root!();
    let home = Home::new(false);
    home.sh("unionmount try --keep -- touch new");
    let record = home.place.at("home/.local/share/unionmount/tries/1/record.json");
    let whole = fs::read(&record).unwrap();
    for (text, why) in [(&whole[..10], "is damaged"), (&[][..], "is damaged"), (&whole[..], "")] {
        fs::write(&record, text).unwrap();
        for command in ["--list", "--resume 1 --apply"] {
            let ended = home.sh(&format!("unionmount try {command}"));
            assert_eq!(ended.code == Some(0), why.is_empty(), "{command}: {ended:?}");
            assert!(ended.err.contains(why), "{command}: {ended:?}");
        }
    }
    assert!(home.place.at("home/p/new").exists());
}

#[test]
fn what_runs_on_in_the_background_is_ended() {
    support::needs_root!();
    for home in Home::both() {
        let ended = home.sh("unionmount try --discard -- sh -c '(sleep 300; echo late >late) >/dev/null 2>&1 & (trap \"\" TERM; sleep 301) >/dev/null 2>&1 & echo started'");
        assert_eq!((ended.code, &*ended.out), (Some(0), "started\n"), "{ended:?}");
        home.assert_over();
    }
}

#[test]
fn several_directories_and_none_within_another() {
    support::needs_root!();
    for home in Home::both() {
        home.sh("mkdir ../q && echo q >../q/q").ok();
        let ended =
            home.sh("unionmount try --apply --dir . --dir ../q -- sh -c 'rm f ../q/q; touch ../outside'");
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(home.place.names("home/q").is_empty() && !home.place.at("home/p/f").exists());
        assert!(home.place.at("home/outside").exists(), "it lies outside");
        let ended = home.sh("unionmount try --dir . --dir d -- true");
        assert!(ended.code == Some(2) && ended.err.contains("leave it out"), "{ended:?}");
        home.assert_over();
    }
}

#[test]
fn git_and_make_work_in_it() {
    support::needs_root!();
    if !is_installed("git") || !is_installed("make") {
        return skipped("no git, or no make");
    }
    for home in Home::both() {
        let git = "git -c user.name=n -c user.email=e@example.org";
        let ended = home.sh(&format!(
            "unionmount try --apply -- sh -ec 'git init -q; git add .; {git} commit -qm one; git mv f f2; {git} commit -qm two; git gc -q; git fsck --strict; make -s clean; git status --short'"
        ));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.out, " D d/g\n", "{ended:?}");
        let ended = home.sh("git fsck --strict && git log --format=%s && git status --short");
        assert_eq!((ended.code, &*ended.out), (Some(0), "two\none\n D d/g\n"), "{ended:?}");
        home.assert_over();
    }
}
