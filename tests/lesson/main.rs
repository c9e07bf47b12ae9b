//! The lesson: in every language, as root and as an ordinary user; nothing stays, however it ends.

#![allow(missing_docs, clippy::unwrap_used)]

mod terminal;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use support::{self, Privilege, Scratch};

/// `unionmount demo` whose directory is made in the scratch directory. The binary is copied there, as the build
/// directory may be closed to other users.
fn demo(scratch: &Scratch, arguments: &[&str]) -> Command {
    let bin = scratch.path().join("unionmount");
    if !bin.exists() {
        support::run("cp", &[env!("CARGO_BIN_EXE_unionmount").as_ref(), bin.as_os_str()]);
    }
    std::fs::create_dir_all(scratch.path().join("tmp")).unwrap();
    let mut command = Command::new(bin);
    command.arg("demo").args(arguments).env("TMPDIR", scratch.path().join("tmp")).stdin(Stdio::null());
    for name in ["LC_ALL", "LC_MESSAGES", "LANG"] {
        command.env_remove(name);
    }
    command
}

fn has_fuse() -> bool {
    let has = Path::new("/dev/fuse").exists();
    if !has {
        support::skipped("no /dev/fuse");
    }
    has
}

/// Nothing is mounted below the scratch directory, and nothing is left of the lesson.
#[track_caller]
fn assert_gone(scratch: &Scratch) {
    let mounts = support::mounts_below(scratch.path());
    assert!(mounts.is_empty(), "{mounts:?}");
    let left: Vec<_> =
        std::fs::read_dir(scratch.path().join("tmp")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[track_caller]
fn text(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success() && error.is_empty(), "{}: {error}\n{text}", output.status);
    text
}

/// What the learner sees on disk, in any language.
fn assert_taught(text: &str) {
    for part in [
        "$ unionmount --lower patch:app:base --upper rw merged\n",
        "  port = 8080\n",
        "  Today: soup\n",
        "rw/etc/motd",
        "  c---------",
        "rw/etc/os",
        "rw/srv/site/",
        "rw2/etc/name",
        "$ unionmount --lower rw:patch:app:base --upper rw3 merged3\n",
        "13/13",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains(['{', '}']) && !text.contains("UNMOUNT"), "a hole is left in\n{text}");
}

#[test]
fn it_runs_by_itself_in_english() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let text =
        text(&demo(&scratch, &["--auto", "--lang", "en"]).env("LANG", "zh_CN.UTF-8").output().unwrap());
    assert_taught(&text);
    assert!(text.contains("copy-up: rw/etc/motd, 20 B, instead of the one in base/"), "{text}");
    assert!(text.contains("whiteout: rw/etc/os says that base/"), "{text}");
    assert!(text.contains("opaque directory: rw/srv/site/"), "{text}");
    assert_gone(&scratch);
}

#[test]
fn it_runs_by_itself_in_chinese() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let text = text(&demo(&scratch, &["--auto"]).env("LANG", "zh_CN.UTF-8").output().unwrap());
    assert_taught(&text);
    assert!(text.contains("三层，十个文件"), "{text}");
    assert_gone(&scratch);
}

#[test]
fn the_lessons_on_images_and_the_puzzle_are_true() {
    if !has_fuse() {
        return;
    }
    for (lesson, language, parts) in [
        ("images", "en", ["C /etc\n", "efficiency 20.0 %", "efficiency 100.0 %", ".wh.download.tar", "7/7"]),
        (
            "2",
            "zh",
            ["A /etc/app.conf\n", "RUN rm download.tar", "提交（commit）", ".wh.download.tar", "7/7"],
        ),
        ("puzzle", "en", ["14.00 MiB", "4.00 MiB", "only the mode differs", "waste 0.00 %", "5/5"]),
        ("3", "zh", ["14.00 MiB", "chmod -R go-rwx /usr", "谜题解开了", "library.so", "5/5"]),
    ] {
        let scratch = Scratch::new();
        let text = text(&demo(&scratch, &[lesson, "--auto", "--lang", language]).output().unwrap());
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert_gone(&scratch);
    }
}

#[test]
fn an_ordinary_user_can_take_it() {
    if Privilege::current() != Privilege::Root || !has_fuse() {
        support::skip!("an ordinary user is made by root");
    }
    const USER: &str = "unionmount-test";
    let id =
        |flag| String::from_utf8(support::output("id", &[flag, USER]).stdout).unwrap().trim().parse::<u32>();
    if id("-u").is_err() {
        // Another test may make it at the same time.
        support::output("useradd", &["--create-home", USER]);
    }
    support::run("setfacl", &["-m", &format!("u:{USER}:rw"), "/dev/fuse"]);
    let scratch = Scratch::new();
    let tmp = scratch.dir("tmp");
    std::os::unix::fs::chown(&tmp, Some(id("-u").unwrap()), Some(id("-g").unwrap())).unwrap();
    let as_user = |lesson: &str| {
        let mut demo = demo(&scratch, &[lesson, "--auto", "--lang", "en"]);
        let text = text(&demo.uid(id("-u").unwrap()).gid(id("-g").unwrap()).output().unwrap());
        assert_gone(&scratch);
        text
    };
    let basics = as_user("basics");
    assert_taught(&basics);
    assert!(basics.contains("$ fusermount3 -u merged\n"), "{basics}");
    // What only root may do is shown, and not run.
    assert!(basics.contains("\n# mount -t overlay overlay -o lowerdir=patch:app:base"), "{basics}");
    assert!(as_user("images").contains(".wh.download.tar"));
    assert!(as_user("puzzle").contains("only the mode differs"));
}

/// How often Enter is pressed until the answer of the second step has been read: the tree is mounted, the lesson waits.
const TO_SECOND_ANSWER: usize = 12;

/// A lesson with a learner, who has typed this.
fn start(scratch: &Scratch, typed: &str) -> Child {
    let mut child = demo(scratch, &["--lang", "en"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(typed.as_bytes()).unwrap();
    child
}

/// What a learner sees who types this, and then nothing any more.
#[track_caller]
fn typed(scratch: &Scratch, arguments: &[&str], typed: &str) -> String {
    let mut child = demo(scratch, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let text = text(&child.wait_with_output().unwrap());
    assert_gone(scratch);
    text
}

/// Reads what the lesson says up to a line that holds `part`.
fn read_until(child: &mut Child, part: &str) {
    let mut reader = BufReader::new(child.stdout.as_mut().unwrap());
    let mut line = String::new();
    while !line.contains(part) {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "no {part}");
    }
}

#[track_caller]
fn end(mut child: Child) -> (Option<i32>, String) {
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(support::wait_until(support::PATIENCE, || child.try_wait().unwrap().is_some()));
    (child.wait().unwrap().code(), error)
}

#[test]
fn an_interrupted_lesson_leaves_nothing() {
    if !has_fuse() {
        return;
    }
    for signal in [Signal::INT, Signal::TERM] {
        let scratch = Scratch::new();
        let mut child = start(&scratch, &"\n".repeat(TO_SECOND_ANSWER));
        read_until(&mut child, "Nothing. A read is answered");
        assert!(!support::mounts_below(scratch.path()).is_empty(), "not mounted");
        kill_process(Pid::from_child(&child), signal).unwrap();
        let (code, error) = end(child);
        assert_eq!((code, &*error), (Some(128 + signal.as_raw()), ""));
        assert_gone(&scratch);
    }
}

#[test]
fn it_can_be_stopped_and_kept() {
    if !has_fuse() {
        return;
    }
    // By a word, by Esc, by the end of the input.
    for stop in ["q\n", "quit\n", "exit\n", "\x1b\n", ""] {
        let scratch = Scratch::new();
        let mut child = start(&scratch, &"\n".repeat(TO_SECOND_ANSWER));
        child.stdin.take().unwrap().write_all(stop.as_bytes()).unwrap();
        let (code, error) = end(child);
        assert_eq!((code, &*error), (Some(0), ""));
        assert_gone(&scratch);
    }
    let scratch = Scratch::new();
    let text = text(&demo(&scratch, &["--auto", "--keep"]).output().unwrap());
    let mounts = support::mounts_below(scratch.path());
    assert!(mounts.is_empty(), "{mounts:?}");
    let kept = std::fs::read_dir(scratch.path().join("tmp")).unwrap().next().unwrap().unwrap().path();
    assert!(text.contains(kept.to_str().unwrap()) && kept.join("rw/etc/motd").exists(), "{text}");
}

#[test]
fn a_command_that_fails_ends_it_in_order() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    // Without `du` the fourth step fails, while a tree is mounted.
    let bin = scratch.dir("bin");
    for program in ["sh", "cat", "find", "sort", "ls", "mkdir", "rm", "ln", "dd", "umount", "fusermount3"] {
        let found = support::run("sh", &["-c", &format!("command -v {program}")]);
        std::os::unix::fs::symlink(found.trim(), bin.join(program)).unwrap();
    }
    let output = demo(&scratch, &["--auto", "--lang", "en"]).env("PATH", &bin).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("this command has failed: du -k rw/usr/lib/library.so"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_gone(&scratch);
}

#[test]
fn an_unknown_language_is_refused() {
    let output = support::output(env!("CARGO_BIN_EXE_unionmount"), &["demo", "--lang", "xx"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("there are en, zh"));
}

#[test]
fn answers_are_answered() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let text = typed(&scratch, &["--lang", "en"], "\n1\nback\n2\n\n\n\n\nwords\n");
    assert!(text.contains("✗ Not quite.\nDirectories are merged; files never are."), "{text}");
    assert!(text.contains("✓ Right.\nThe topmost layer"), "{text}");
    assert!(text.contains("Keep that in mind"), "{text}");
    assert_eq!(text.matches("1/13").count(), 2, "it goes back: {text}");
    assert_eq!(text.matches("2/13").count(), 1, "{text}");
}

#[test]
fn it_begins_with_any_step_and_says_where_it_was_left() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    for step in [2, 7, 13] {
        let out =
            text(&demo(&scratch, &["--auto", "--lang", "en", "--step", &step.to_string()]).output().unwrap());
        assert!(out.contains(&format!("{step}/13")) && out.contains("13/13"), "{out}");
        assert!(!out.contains(&format!("── {}/13 ", step - 1)), "{out}");
        assert_gone(&scratch);
    }
    let out = typed(&scratch, &["--lang", "en", "--step", "4"], "\n");
    assert!(out.contains("unionmount demo basics --step 4"), "{out}");
}

#[test]
fn the_learners_own_commands_run_there_and_what_they_break_is_mended() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    // In the fifth step, what it is about to delete.
    let own = "!echo $((6*7)); cat base/etc/os; nosuch\n!rm merged/etc/os\n";
    let all = format!("{own}{}", "\n".repeat(100));
    let text = typed(&scratch, &["--lang", "en", "--step", "5"], &all);
    assert!(text.contains("  42\n  debian\n") && text.contains("nosuch"), "{text}");
    assert!(text.contains("It is put back, and this step begins"), "{text}");
    assert_eq!(text.matches("5/13").count(), 2, "{text}");
    assert!(text.contains("That is all of it"), "{text}");
}

#[test]
fn a_reader_who_leaves_is_no_error() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let mut child = demo(&scratch, &["--auto", "--lang", "en"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    read_until(&mut child, "1/13");
    drop(child.stdout.take());
    assert_eq!(end(child), (Some(0), String::new()));
    assert_gone(&scratch);
}

#[test]
fn where_nothing_can_be_mounted_it_says_so_before_it_begins() {
    if Privilege::current() != Privilege::Root {
        support::skip!("/dev is hidden by root");
    }
    let scratch = Scratch::new();
    drop(demo(&scratch, &[]));
    let script =
        format!("mount -t tmpfs none /dev && exec {0}/unionmount demo --auto", scratch.path().display());
    let output = support::output("unshare", &["-m", "sh", "-c", &script]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b""[..]), "{error}");
    assert!(error.contains("nothing can be mounted here") && error.contains("modprobe fuse"), "{error}");
}

#[test]
fn slips_on_its_command_line_are_told() {
    for (arguments, part) in [
        (&["--step", "14"][..], "the steps 1 to 13"),
        (&["--step", "0"], "the steps 1 to 13"),
        (&["nosuch"], "1 basics"),
        (&["puzzle", "--step", "6"], "the steps 1 to 5"),
        (&["--auto", "--pace", "soon"], "--pace"),
    ] {
        let output = support::output(
            env!("CARGO_BIN_EXE_unionmount"),
            &[&["demo", "--lang", "en"], arguments].concat(),
        );
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
}
