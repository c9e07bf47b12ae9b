//! What somebody does at an instant while `apply` is at work: it is stopped there, by strace, and goes on afterwards.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::conflicts::{apply, unmounted};
use support::cli::{Ended, Place, until};
use support::{Fields, Snapshot, diff, is_installed, skipped};

/// A call of the program that stops itself behind system calls.
struct Paused {
    tracer: Child,
    /// What strace tells.
    told: PathBuf,
    stops: usize,
}

impl Paused {
    /// `at`: system calls in strace's words, `mkdirat:when=1`.
    fn start(place: &Place, at: &[&str], args: &[&str]) -> Paused {
        let mut command = Command::new("strace");
        let told = place.at("told");
        command.args(["-qq", "-o"]).arg(&told);
        for call in at {
            command.args(["-e", &format!("inject={call}:signal=SIGSTOP")]);
        }
        command
            .arg(place.bin())
            .args(args)
            .current_dir(place.path())
            .env("UNIONMOUNT_ROOT", place.at("state"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Paused { tracer: command.spawn().unwrap(), told, stops: 0 }
    }

    /// Waits until it has stopped once more.
    fn stopped(&mut self) {
        self.stops += 1;
        until("it stops", || {
            let told = fs::read_to_string(&self.told).unwrap_or_default();
            told.matches("stopped by SIGSTOP").count() >= self.stops
        });
    }

    fn program(&self) -> Option<i32> {
        let tracer = self.tracer.id();
        let children = fs::read_to_string(format!("/proc/{tracer}/task/{tracer}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Lets it go on from where it stands.
    fn go_on(&self) {
        let Some(pid) = self.program() else { return };
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap_or_default();
    }

    /// Lets it go on to its end, wherever it may stop.
    fn end(mut self) -> Ended {
        until("it ends", || {
            self.go_on();
            self.tracer.try_wait().unwrap().is_some()
        });
        let code = self.tracer.wait().unwrap().code();
        let (mut out, mut err) = (String::new(), String::new());
        self.tracer.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.tracer.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        Ended { code, out, err }
    }
}

impl Drop for Paused {
    /// A test that fails leaves nobody standing.
    fn drop(&mut self) {
        if self.tracer.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        if let Some(pid) = self.program().and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap_or_default();
        }
        self.tracer.kill().unwrap_or_default();
        drop(self.tracer.wait());
    }
}

fn can_pause() -> bool {
    let installed = is_installed("strace");
    if !installed {
        skipped("no strace");
    }
    installed
}

/// The directory in which `apply` prepares what it puts, if there is one.
fn stage(dir: &Path) -> Option<PathBuf> {
    let paths = Snapshot::take(dir).entries.into_keys();
    let is_stage = |path: &PathBuf| path.to_string_lossy().contains(".unionmount-apply-");
    paths.map(PathBuf::from).filter(is_stage).min().map(|path| dir.join(path))
}

/// Applies, and does something when the stage has been made: the plan is made then, and nothing is done.
fn apply_and_meanwhile(place: &Place, args: &[&str], meanwhile: impl FnOnce(&Path)) -> Ended {
    let mut paused = Paused::start(place, &["mkdirat:when=1"], &[&["apply"], args, &["up", "a"]].concat());
    paused.stopped();
    meanwhile(&stage(&place.at("a")).unwrap());
    paused.end()
}

/// It succeeded, whatever it said.
#[track_caller]
fn done(ended: Ended) -> Ended {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended
}

fn read(place: &Place, name: &str) -> String {
    fs::read_to_string(place.at(name)).unwrap_or_else(|error| format!("{name}: {error}"))
}

#[test]
fn what_comes_into_a_directory_that_goes_brings_it_back() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    // Removed, and replaced by something else.
    for change in [
        "rm -r mnt/gone",
        "rm -r mnt/gone; echo file >mnt/gone",
        "rm -r mnt/gone; mkdir mnt/gone; echo n >mnt/gone/n",
    ] {
        for late in [
            "echo late >a/gone/sub/late",
            "mkdir x; echo late >x/late; mv x a/gone/sub/moved",
            "echo late >>a/gone/sub/f",
        ] {
            let place = unmounted(
                "mkdir -p a/gone/sub; echo old >a/gone/sub/f; echo old >a/g",
                &format!("{change}; echo new >mnt/g"),
            );
            let ended = apply_and_meanwhile(&place, &[], |_| drop(place.sh(late).ok()));
            ended.refused(1, &["gone: was changed by somebody else"]);
            assert!(place.sh("grep -r late a/gone").out.contains("late"), "{change}; {late}");
            assert!(place.at("a/gone/sub/f").exists(), "{change}; {late}");
            // The other side is chosen.
            done(apply(&place, "--theirs"));
            assert!(place.sh("grep -r late a/gone").out.contains("late"), "{change}; {late}");
            assert_eq!(
                (read(&place, "a/g").as_str(), stage(&place.at("a"))),
                ("new\n", None),
                "{change}; {late}"
            );
        }
    }
}

#[test]
fn what_moved_within_a_directory_that_goes_is_no_change_of_somebody_else() {
    support::needs_root!();
    let place = unmounted(
        "mkdir -p a/gone/sub; echo f >a/gone/sub/f; echo x >a/gone/x; ln a/gone/x a/x; ln a/gone/x a/y",
        "mv mnt/gone/sub mnt/sub; rm mnt/x; echo new >mnt/y; rm -r mnt/gone",
    );
    apply(&place, "").ok();
    assert_eq!((place.names("a"), place.names("a/sub")), (vec!["sub".into(), "y".into()], vec!["f".into()]));
}

#[test]
fn what_cannot_be_put_back_is_kept_and_named() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    for policy in ["--force", "--theirs"] {
        let place = unmounted(
            "mkdir -p a/gone; echo old >a/gone/f; echo old >a/g",
            "rm -r mnt/gone; echo new >mnt/g",
        );
        let mut paused =
            Paused::start(&place, &["mkdirat:when=1", "renameat2:when=1"], &["apply", "up", "a"]);
        paused.stopped();
        place.sh("echo late >a/gone/late").ok();
        paused.go_on();
        paused.stopped();
        place.sh("mkdir a/gone; echo again >a/gone/again").ok();
        let ended = paused.end();
        let stage_dir = stage(&place.at("a")).unwrap();
        let name = stage_dir.file_name().unwrap().to_string_lossy().into_owned();
        ended.refused(1, &[&format!("lies in {name}/c0")]);
        assert_eq!(read(&place, &format!("a/{name}/c0/late")), "late\n");
        let ended = done(apply(&place, policy));
        assert_eq!(read(&place, "a/g"), "new\n");
        if policy == "--force" {
            assert_eq!((place.names("a"), stage(&place.at("a"))), (vec!["g".into()], None), "{ended:?}");
        } else {
            assert_eq!(read(&place, &format!("a/{name}/c0/late")), "late\n");
            assert!(ended.err.contains(&name) && place.at("a/gone/again").exists(), "{ended:?}");
        }
        done(apply(&place, policy));
    }
}

/// The owner of the directory puts one of root's in the place of that in which root is about to prepare things.
#[test]
fn who_owns_the_directory_cannot_exchange_the_stage() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    let place = unmounted("echo old >a/f; mkdir a/victim; echo kept >a/victim/kept", "echo new >mnt/f");
    let (uid, gid) = support::cli::user();
    place.sh(&format!("chown {uid}:{gid} a; chmod 755 a/victim")).ok();
    let ended = apply_and_meanwhile(&place, &[], |stage| {
        let stage = stage.display();
        place.sh(&format!("chmod 755 .; mv {stage} a/aside; mv a/victim {stage}")).ok();
    });
    assert!(ended.code == Some(1) && ended.err.contains("was changed by somebody else"), "{ended:?}");
    let victim = stage(&place.at("a")).unwrap();
    assert_eq!(fs::read_to_string(victim.join("kept")).unwrap(), "kept\n");
    assert_eq!(fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(place.names(victim.strip_prefix(place.path()).unwrap().to_str().unwrap()), ["kept"]);
}

/// The owner of the directory puts a link in the place of a directory in which root is about to put something.
#[test]
fn who_owns_the_directory_cannot_lead_root_out_of_it() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    for (policy, at) in ["", "--force", "--theirs"].into_iter().flat_map(|policy| {
        let at = ["mkdirat:when=1", "renameat2:when=1", "renameat2:when=2", "renameat2:when=4"];
        at.map(|at| (policy, at))
    }) {
        let place = unmounted(
            "mkdir -p a/dir/sub a/old outside; for n in 1 2; do echo $n >a/dir/sub/f$n; echo $n >a/old/g$n; echo s >outside/f$n; echo s >outside/g$n; done; chmod 755 outside",
            "for n in 1 2; do echo changed >>mnt/dir/sub/f$n; rm mnt/old/g$n; echo added >mnt/old/h$n; done; chmod 700 mnt/old",
        );
        let before = Snapshot::take(&place.at("outside"));
        let mut args = vec!["apply", "up", "a"];
        args.extend(Some(policy).filter(|policy| !policy.is_empty()));
        let mut paused = Paused::start(&place, &[at], &args);
        paused.stopped();
        place
            .sh("mv a/dir/sub a/dir/s; ln -s ../../outside a/dir/sub; mv a/old a/o; ln -s ../outside a/old")
            .ok();
        let ended = paused.end();
        assert!(ended.code == Some(1) || policy == "--theirs", "{policy} {at}: {ended:?}");
        // What the policy says nothing of is told with what does lead on.
        let told = match policy {
            _ if ended.err.contains("what was prepared here is not there any more") => "",
            "" => "with --force goes on over it",
            _ => "neither --force nor --theirs",
        };
        assert!(ended.code != Some(1) || ended.err.contains(told), "{policy} {at}: {ended:?}");
        assert!(ended.code != Some(1) || ended.err.contains("--abandon"), "{policy} {at}: {ended:?}");
        let after = Snapshot::take(&place.at("outside"));
        assert_eq!(diff(&before, &after, &Fields::all()), "", "{policy} {at}: something outside was touched");
    }
}

#[test]
fn a_stage_that_was_moved_away_is_told() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    let place = unmounted("echo old >a/f; echo old >a/g", "echo new >mnt/f; echo new >mnt/g");
    let mut paused = Paused::start(&place, &["renameat2:when=1"], &["apply", "up", "a"]);
    paused.stopped();
    assert_eq!(read(&place, "a/f"), "new\n");
    let there = stage(&place.at("a")).unwrap();
    fs::rename(&there, place.at("a/elsewhere")).unwrap();
    let ended = done(paused.end());
    assert!(ended.err.contains("was moved away by somebody else"), "{ended:?}");
    assert_eq!((read(&place, "a/g").as_str(), place.at("a/elsewhere").exists()), ("new\n", true));
}

/// The journal can't be removed at the end, as when it was killed there: the stage that is gone then was removed by the call.
#[test]
fn a_stage_that_was_removed_is_not_said_to_be_moved_away() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    let place = unmounted("echo old >a/f", "echo new >mnt/f");
    let script = "UNIONMOUNT_ROOT=$PWD/state strace -qq -o /dev/null -e inject=unlink:error=EIO ./unionmount apply up a";
    assert_eq!(place.sh(script).code, Some(1));
    assert_eq!((read(&place, "a/f").as_str(), stage(&place.at("a"))), ("new\n", None));
    let ended = done(apply(&place, ""));
    assert!(ended.err.contains("was finished") && !ended.err.contains("moved away"), "{ended:?}");
}

#[test]
fn a_directory_that_was_moved_on_after_it_had_come_is_told() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    let place = unmounted(
        "mkdir a/d; echo d >a/d/f; echo old >a/g; echo old >a/h",
        "mv mnt/d mnt/e; echo new >mnt/g; echo new >mnt/h",
    );
    killed(&place, "renameat2:when=4");
    place.sh("mv a/e a/elsewhere").ok();
    apply(&place, "").refused(1, &["d: was changed by somebody else"]);
    apply(&place, "--force").refused(1, &["d: was changed by somebody else", "--abandon"]);
    // The rest is done beside it; then nobody can tell where it belongs until it is back.
    apply(&place, "--theirs").refused(1, &["e: is the directory d renamed, which the target doesn't have"]);
    place.sh("mv a/elsewhere a/e").ok();
    apply(&place, "").ok();
    assert_eq!(["a/g", "a/h", "a/e/f"].map(|name| read(&place, name)), ["new\n", "new\n", "d\n"]);
}

/// What tells of another directory, and can't be read, is in the way only of what it may be about.
#[test]
fn a_damaged_journal_is_in_nobody_elses_way() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    let place = unmounted("echo old >a/f; echo old >a/g", "echo new >mnt/f; echo new >mnt/g");
    killed(&place, "renameat2:when=1");
    let um = |args: &str| place.sh(&format!("UNIONMOUNT_ROOT=$PWD/state ./unionmount {args}"));
    place.sh("mkdir -p c up2; echo x >up2/x; cd state/applies; ls *.json >../name; mv *.json j; sed s/.version.:1,/\\\"version\\\":99,/ j >other.json").ok();
    um("discard --yes up").refused(1, &["another version", "remove it"]);
    um("discard --yes up2").ok();
    um("apply --abandon up a").refused(1, &["nothing is half applied to it", "another version"]);
    place.sh("echo y >up2/y; cd state/applies; echo { >other.json").ok();
    um("discard --yes up2").refused(1, &["other.json", "damaged", "remove it"]);
    um("apply up2 c").ok();
    place.sh("cd state/applies; mv j $(cat ../name)").ok();
    let ended = done(um("apply --abandon up a"));
    assert!(ended.err.contains(".unionmount-apply-"), "{ended:?}");
}

/// Kills `apply` behind a system call.
fn killed(place: &Place, at: &str) {
    let script = format!(
        "UNIONMOUNT_ROOT=$PWD/state strace -qq -o /dev/null -e inject={at}:signal=SIGKILL ./unionmount apply up a"
    );
    let ended = place.sh(&script);
    assert!(!matches!(ended.code, Some(0 | 1)), "{ended:?}");
}

#[test]
fn what_was_changed_in_the_upper_after_a_kill_is_applied_too() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    let place = unmounted("echo old >a/f; echo old >a/g", "echo new >mnt/f; echo new >mnt/g");
    killed(&place, "renameat2:when=1");
    fs::write(place.at("up/later"), "later\n").unwrap();
    let dry = apply(&place, "--dry-run");
    dry.refused(1, &["half applied", "--abandon"]);
    let ended = done(apply(&place, ""));
    assert!(ended.err.contains("was finished"), "{ended:?}");
    let all = ["f", "g", "later"].map(|name| read(&place, &format!("a/{name}")));
    assert_eq!(all, ["new\n", "new\n", "later\n"]);
}

#[test]
fn what_was_changed_in_the_directory_after_a_kill_is_in_the_way() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    for change in
        ["echo theirs >>a/g", "rm a/g; echo theirs >a/g", "echo theirs >>a/gone/f", "echo theirs >a/gone/n"]
    {
        let place = unmounted(
            "mkdir a/gone; echo old >a/f; echo old >a/g; echo old >a/gone/f; echo old >a/gone2",
            "echo new >mnt/f; echo new >mnt/g; rm -r mnt/gone mnt/gone2; mv mnt/f mnt/gone",
        );
        killed(&place, "mkdirat:when=1");
        done(apply(&place, ""));
        let place = unmounted(
            "mkdir a/gone; echo old >a/0; echo old >a/g; echo old >a/gone/f",
            "rm mnt/0; echo new >mnt/g; rm -r mnt/gone",
        );
        killed(&place, "renameat2:when=1");
        place.sh(change).ok();
        apply(&place, "").refused(1, &["was changed by somebody else"]);
        assert!(place.sh("grep -r theirs a").out.contains("theirs"), "{change}");
        done(apply(&place, "--theirs"));
        assert!(place.sh("grep -r theirs a").out.contains("theirs"), "{change}");
        assert!(!place.at("a/0").exists() && stage(&place.at("a")).is_none());
    }
}

#[test]
fn what_is_half_applied_is_not_thrown_away_and_can_be_given_up() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    let place = unmounted(
        "echo old >a/f; echo old >a/g; mkdir a/d; echo d >a/d/f",
        "echo new >mnt/f; echo new >mnt/g; mv mnt/d mnt/e",
    );
    killed(&place, "renameat2:when=2");
    let discard = || place.sh("UNIONMOUNT_ROOT=$PWD/state ./unionmount discard --yes up");
    discard().refused(1, &["half applied"]);
    assert!(place.at("up/f").exists());
    let ended = done(place.sh("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply --abandon up a"));
    let there = stage(&place.at("a")).unwrap();
    assert!(ended.err.contains(&*there.file_name().unwrap().to_string_lossy()), "{ended:?}");
    place
        .sh("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply --abandon up a")
        .refused(1, &["nothing is half applied"]);
    discard().ok();
    assert!(there.exists() && place.names("up").is_empty());
}

#[test]
fn what_cannot_be_removed_is_told_and_in_nobodys_way() {
    support::needs_root!();
    let place =
        unmounted("mkdir a/gone; echo old >a/gone/f; echo old >a/g", "rm -r mnt/gone; echo new >mnt/g");
    if place.sh("chattr +i a/gone/f").code != Some(0) {
        return skipped("no immutable files here");
    }
    let ended = apply(&place, "--force");
    let there = stage(&place.at("a"));
    place.sh("chattr -R -i a").ok();
    let ended = done(ended);
    let there = there.unwrap();
    assert!(ended.err.contains(&*there.file_name().unwrap().to_string_lossy()), "{ended:?}");
    assert_eq!((read(&place, "a/g").as_str(), place.at("a/gone").exists()), ("new\n", false));
    fs::write(place.at("up/more"), "more\n").unwrap();
    apply(&place, "").ok();
    assert_eq!(read(&place, "a/more"), "more\n");
    assert_eq!(fs::metadata(&there).unwrap().uid(), 0);
}

#[test]
fn attributes_that_a_directory_was_given_meanwhile_are_in_the_way() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    let place =
        unmounted("mkdir a/d a/e; echo old >a/f", "chmod 700 mnt/d; echo new >mnt/e/n; echo new >mnt/f");
    let ended = apply_and_meanwhile(&place, &[], |_| {
        place.sh("chmod 751 a/d; setfattr -n user.x -v y a/e").ok();
    });
    ended.refused(1, &["was changed by somebody else"]);
    let mode = || fs::metadata(place.at("a/d")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o751);
    let ended = done(apply(&place, "--theirs"));
    assert!(ended.err.contains("d: was changed by somebody else meanwhile, and stays"), "{ended:?}");
    assert_eq!((mode(), read(&place, "a/f").as_str()), (0o751, "new\n"));
    done(apply(&place, "--force"));
    assert_eq!((mode(), read(&place, "a/e/n").as_str()), (0o700, "new\n"));
}

/// The notes that a renamed directory has come to its place are those of each upper.
#[test]
fn what_was_brought_is_known_after_another_uppers_changes() {
    support::needs_root!();
    let place = unmounted(
        "mkdir a/from a/other; echo f >a/from/f; echo o >a/other/o",
        "mv mnt/from mnt/to; echo n >mnt/to/n",
    );
    apply(&place, "").ok();
    // Something has the old name again, so that only the note tells.
    place.sh("mkdir a/from; echo again >a/from/again").ok();
    place
        .sh("set -e; mkdir up2; ./unionmount --lower a --upper up2 mnt; mv mnt/other mnt/another; umount mnt; mkdir up3 mnt3")
        .ok();
    until("its daemon ends", || place.daemons().is_empty());
    place.sh("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply up2 a").ok();
    let before = Snapshot::take(&place.at("a"));
    done(apply(&place, "--theirs"));
    let after = Snapshot::take(&place.at("a"));
    assert_eq!(diff(&before, &after, &Fields::tree()), "");
    assert_eq!(place.names("a/to"), ["f", "n"]);
}

#[test]
fn the_upper_cannot_be_mounted_while_it_is_applied() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    let place = unmounted("echo old >a/f; mkdir b/x", "echo new >mnt/f");
    let ended = apply_and_meanwhile(&place, &[], |_| {
        place.sh("./unionmount --lower b --upper up mnt").refused(1, &["up"]);
        place.sh("./unionmount --lower b --upper a mnt").refused(1, &["a"]);
    });
    done(ended);
    assert_eq!(read(&place, "a/f"), "new\n");
}

#[test]
fn when_what_was_prepared_is_gone_it_is_given_up_and_applied_anew() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    let place = unmounted("echo old >a/f; echo old >a/g", "echo new >mnt/f; echo new >mnt/g");
    killed(&place, "renameat2:when=1");
    fs::remove_dir_all(stage(&place.at("a")).unwrap()).unwrap();
    for policy in ["", "--force", "--theirs"] {
        apply(&place, policy).refused(1, &["what was prepared here is not there any more", "--abandon"]);
    }
    apply(&place, "--abandon").ok();
    done(apply(&place, ""));
    assert_eq!(["a/f", "a/g"].map(|name| read(&place, name)), ["new\n", "new\n"]);
}

#[test]
fn what_is_given_up_is_what_was_named() {
    support::needs_root!();
    if !can_pause() {
        return;
    }
    let place = unmounted("echo old >a/f; echo old >a/g", "echo new >mnt/f; echo new >mnt/g");
    killed(&place, "renameat2:when=1");
    let abandon = |upper: &str, target: &str| {
        place.sh(&format!("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply --abandon {upper} {target}"))
    };
    place.sh("mkdir other").ok();
    abandon("other", "a").refused(1, &["changes of another upper", "/up"]);
    abandon("gone", "a").refused(1, &["changes of another upper", "/up"]);
    // The path is another directory's now, and the directory elsewhere.
    place.sh("mv a was; mkdir a").ok();
    abandon("up", "a")
        .refused(1, &["nothing is half applied to it", "another directory that was there before"]);
    place.sh("rmdir a; mv was a").ok();
    done(apply(&place, ""));
    assert_eq!(["a/f", "a/g"].map(|name| read(&place, name)), ["new\n", "new\n"]);
    // Where both are gone, their paths tell.
    place.sh("echo new >up/h; echo new >up/i").ok();
    killed(&place, "renameat2:when=1");
    place.sh("mv a was; mv up up2").ok();
    abandon("other", "a").refused(1, &["changes of another upper"]);
    abandon("up", "a").ok();
    // What was moved is still the same.
    place.sh("mv up2 up; mv was a; echo new >up/j; echo new >up/k").ok();
    killed(&place, "renameat2:when=1");
    place.sh("mv a was").ok();
    let ended = done(abandon("up", "was"));
    assert!(ended.err.contains("/was/.unionmount-apply-"), "{ended:?}");
}
