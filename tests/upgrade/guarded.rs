//! What a daemon starts, what that has open afterwards, and what it says when it can't; and daemons that don't answer.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::cli::{Place, until, user};
use unionmount::control::client::Client;
use unionmount::control::mounts;

use crate::{Bed, Who, ended, read};

/// A copy of the program. Made by another process, as [`Place::new`] does.
fn copy(place: &Place, name: &str, mode: u32) -> PathBuf {
    let at = place.at(name);
    assert!(Command::new("cp").arg(place.bin()).arg(&at).status().unwrap().success());
    fs::set_permissions(&at, fs::Permissions::from_mode(mode)).unwrap();
    at
}

/// A program of the shell's.
fn script(place: &Place, name: &str, script: &str) -> PathBuf {
    let at = place.at(name);
    fs::write(&at, format!("#!/bin/bash\n{script}\n")).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
    at
}

#[test]
fn roots_daemon_starts_only_what_root_alone_can_have_written() {
    support::needs_root!();
    let bed = Bed::new(Who::Root);
    bed.mount(&[]);
    let daemon = bed.daemon();
    let (uid, gid) = user();
    chown(copy(&bed.place, "theirs", 0o755), Some(uid), Some(gid)).unwrap();
    copy(&bed.place, "group", 0o775);
    copy(&bed.place, "anybody", 0o757);
    for (program, why) in [
        ("theirs", format!("belongs to uid {uid}")),
        ("group", "others may write to it (mode 0775)".to_owned()),
        ("anybody", "others may write to it (mode 0757)".to_owned()),
    ] {
        bed.unionmount(&["upgrade", "--program", program, "mnt"]).refused(1, &[&why, "goes on as before"]);
        assert_eq!(bed.daemon(), daemon, "{program}");
    }
    copy(&bed.place, "roots", 0o755);
    bed.unionmount(&["upgrade", "--program", "roots", "mnt"]).ok();
    bed.unionmount(&["umount", "mnt"]).ok();
}

/// Its user can't start as root what root has, and has chosen what stands in the daemon's environment.
#[test]
fn a_daemon_that_is_root_by_setuid_starts_what_is_so_and_lends_no_environment() {
    support::needs_root!();
    let bed = Bed::new(Who::User);
    let flags = rustix::fs::statvfs(bed.place.path()).unwrap().f_flag;
    if flags.contains(rustix::fs::StatVfsMountFlags::NOSUID) {
        support::skip!("{} is on a mount with nosuid", bed.place.path().display());
    }
    let (uid, gid) = user();
    let bin = bed.place.bin();
    fs::set_permissions(&bin, fs::Permissions::from_mode(0o4755)).unwrap();
    bed.mount(&[]);
    let asked = |program: &str| bed.unionmount(&["upgrade", "--program", program, "mnt"]);
    copy(&bed.place, "plain", 0o755);
    // What the environment says would be done as root.
    script(&bed.place, "script", "exit");
    chown(copy(&bed.place, "own", 0o755), Some(uid), Some(gid)).unwrap();
    let own = format!("belongs to uid {uid}");
    copy(&bed.place, "groups", 0o4750);
    fs::set_permissions(script(&bed.place, "setuid-script", "exit"), fs::Permissions::from_mode(0o4755))
        .unwrap();
    for (program, why) in [
        ("plain", "is not setuid"),
        ("script", "is not setuid"),
        ("own", &own),
        ("groups", "is not setuid for everybody"),
        ("setuid-script", "is a script"),
    ] {
        asked(program).refused(1, &[program, why, "goes on as before"]);
    }
    let environment = |daemon: i32| fs::read(format!("/proc/{daemon}/environ")).unwrap();
    let before = bed.daemon();
    assert!(!environment(before).is_empty());
    asked(bin.to_str().unwrap()).ok();
    let daemon = bed.daemon();
    assert_ne!(daemon, before);
    assert_eq!(environment(daemon), b"");
    bed.unionmount(&["umount", "mnt"]).ok();
}

/// Whatever who asks calls it.
#[test]
fn what_is_started_is_called_as_it_is_where_it_lies() {
    support::needs_root!();
    let bed = Bed::new(Who::Root);
    bed.mount(&[]);
    let before = bed.daemon();
    let program = bed.place.bin();
    let found = fs::metadata(&program).unwrap();
    let called = bed.place.at("a/..").join(program.file_name().unwrap());
    let (mount, _) = mounts::of(&bed.place.at("mnt")).unwrap();
    let mut client = Client::connect(&mount).unwrap();
    client.upgrade(&called, (found.dev(), found.ino())).unwrap();
    let daemon = bed.daemon();
    assert_ne!(daemon, before);
    let words = fs::read(format!("/proc/{daemon}/cmdline")).unwrap();
    let name = words.split(|byte| *byte == 0).next().unwrap();
    assert_eq!(Path::new(OsStr::from_bytes(name)), fs::canonicalize(&program).unwrap());
    bed.unionmount(&["umount", "mnt"]).ok();
}

/// Its user can start it anyway.
#[test]
fn an_ordinary_users_daemon_starts_what_its_user_has_made() {
    support::needs_root!();
    let bed = Bed::new(Who::User);
    bed.mount(&[]);
    let (uid, gid) = user();
    chown(copy(&bed.place, "own", 0o775), Some(uid), Some(gid)).unwrap();
    bed.unionmount(&["upgrade", "--program", "own", "mnt"]).ok();
    bed.unionmount(&["umount", "mnt"]).ok();
}

/// Returns what a process has open, in order.
fn open_in(process: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten();
    let mut open: Vec<String> = entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    open.sort_unstable();
    open
}

/// Returns how many a process has open when that hasn't changed for a while.
fn settled(process: i32) -> usize {
    let (mut last, mut same) = (0, 0);
    until("as many stay open", || {
        let count = open_in(process).len();
        same = if count == last { same + 1 } else { 0 };
        last = count;
        same == 50
    });
    last
}

#[test]
fn what_nobody_has_handed_over_is_open_in_no_daemon() {
    support::needs_root!();
    let bed = Bed::new(Who::Root);
    bed.mount(&[]);
    let bin = bed.place.bin();
    fs::write(bed.place.at("stray"), "").unwrap();
    let with_strays =
        format!("exec 7<{}/stray 19<&7; exec {} \"$@\"", bed.place.path().display(), bin.display());
    let program = script(&bed.place, "with-strays", &with_strays);
    let mut before = None;
    for round in 0..3 {
        bed.unionmount(&["upgrade", "--program", "with-strays", "mnt"]).ok();
        let daemon = bed.daemon();
        let open = open_in(daemon);
        for stray in [&bin, &program, &bed.place.at("stray")] {
            assert!(!open.iter().any(|one| Path::new(one) == stray), "{round}: {open:?}");
        }
        // What the start needs is closed in a moment, and what serving needs is opened in one.
        let count = settled(daemon);
        assert!(count <= *before.get_or_insert(count), "{round}: {:?}", open_in(daemon));
    }
    bed.unionmount(&["umount", "mnt"]).ok();
}

/// With one process its user has too many already, so that there are no threads to be had.
#[test]
fn a_session_that_cannot_begin_says_why() {
    support::needs_root!();
    let bed = Bed::new(Who::User);
    bed.mount(&[]);
    let daemon = bed.daemon();
    script(&bed.place, "alone", &format!("ulimit -u 1; exec {} \"$@\"", bed.place.bin().display()));
    bed.unionmount(&["upgrade", "--program", "alone", "mnt"])
        .refused(1, &["goes on as before", "cannot begin the FUSE session"]);
    assert_eq!(bed.daemon(), daemon);
    bed.unionmount(&["umount", "mnt"]).ok();
}

/// In a mount namespace with a runtime directory of root's own, so that there are no others.
#[test]
fn a_daemon_that_is_stopped_holds_up_no_other() {
    support::needs_root!();
    let bed = Bed::new(Who::User);
    let (uid, gid) = user();
    let script = format!(
        "set -e
        as() {{ setpriv --reuid {uid} --regid {gid} --clear-groups \"$@\"; }}
        umount -a -l -t fuse.unionmount || true; mount -t tmpfs none /run; mkdir /run/b /run/up /run/mnt
        as mkdir up2 mnt2
        as ./unionmount --lower a:b --upper up mnt
        as ./unionmount --lower b --upper up2 mnt2
        ./unionmount --lower /run/b --upper /run/up /run/mnt
        stopped=$(as ./unionmount status --json --count=0 mnt | grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*$')
        kill -STOP $stopped
        ./unionmount upgrade --all 2>&1 && echo all || echo not all: $?
        kill -CONT $stopped
        as ./unionmount umount mnt mnt2; ./unionmount umount /run/mnt"
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-c", &script]).current_dir(bed.place.path()).env_remove("RUST_LOG");
    command.env("XDG_RUNTIME_DIR", bed.place.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = ended(&mut child);
    let (out, err) = (read(child.stdout.take()), read(child.stderr.take()));
    assert_eq!((status, err.as_str()), (Some(0), ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    let expected = [
        "/run/mnt: from ",
        "/mnt2: from ",
        "/mnt: the daemon doesn't answer; it may be stopped",
        "not all: 1",
    ];
    assert_eq!(lines.len(), expected.len(), "{out}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(expected), "{expected} is not in {line}: {out}");
    }
}
