//! Lowers that somebody changes while they are mounted.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{sh, umount};
use support::cli::{Place, is_root, until};

/// Mounts a over b, with something in each that has been looked at by all that keep it.
fn mounted(options: &str) -> Place {
    let place = Place::new();
    sh(
        &place,
        "mkdir -p up/shared a/shared b/shared b/only/deep b/mine && touch up/shared/own && echo written to > a/file && echo to be replaced > a/replaced && \
         echo gone > a/shared/gone && echo stays > b/shared/stays && echo deep > b/only/deep/f && ln -s file a/link && echo x > b/mine/x",
    );
    sh(&place, &format!("./unionmount -o lowerdir=a:b,upperdir=up,workdir=w,{options} mnt"));
    look(&place);
    place
}

/// Has the kernel and the daemon keep what they can.
fn look(place: &Place) {
    sh(place, "ls -lR mnt && cat mnt/file mnt/replaced mnt/shared/* mnt/only/deep/f mnt/link");
    sh(place, "stat mnt/new mnt/shared/new mnt/elsewhere 2>/dev/null || true");
}

fn read(place: &Place, path: &str) -> String {
    fs::read_to_string(place.at(path)).unwrap_or_else(|error| error.kind().to_string())
}

fn names(path: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    names.sort_unstable();
    names
}

/// Changes the lowers in each of the ways in which one can be.
fn change(place: &Place) {
    // Of the same length, so that nothing but its times tells.
    sh(place, "echo WRITTEN TO > a/file && echo replaced > a/tmp && mv a/tmp a/replaced && rm a/shared/gone");
    sh(
        place,
        "echo new > b/new && echo new > b/shared/new && mv b/only b/elsewhere && ln -sfn replaced a/link",
    );
    // A second layer has it now, too.
    sh(place, "mkdir a/mine && echo y > a/mine/y");
}

#[test]
fn what_others_change_in_a_lower_is_seen() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = mounted("lower=checked");
    let open = fs::File::open(place.at("mnt/replaced")).unwrap();
    let followed = fs::File::open(place.at("mnt/file")).unwrap();
    change(&place);
    let seen = |path: &str, expected: &str| {
        until(&format!("{path} is {expected:?}"), || read(&place, &format!("mnt/{path}")) == expected);
    };
    seen("file", "WRITTEN TO\n");
    seen("replaced", "replaced\n");
    seen("link", "replaced\n");
    seen("shared/gone", "entity not found");
    seen("new", "new\n");
    seen("shared/new", "new\n");
    seen("elsewhere/deep/f", "deep\n");
    seen("only", "entity not found");
    seen("mine/y", "y\n");
    seen("mine/x", "x\n");
    let listed = |path: &str, expected: &[&str]| {
        until(&format!("{path} lists {expected:?}"), || names(place.at(path)) == expected);
    };
    listed("mnt", &["elsewhere", "file", "link", "mine", "new", "replaced", "shared"]);
    // Its shown times are those of the upper, which haven't changed.
    listed("mnt/shared", &["new", "own", "stays"]);
    listed("mnt/mine", &["x", "y"]);
    let mut before = String::new();
    (&open).read_to_string(&mut before).unwrap();
    assert_eq!(before, "to be replaced\n", "who has the old one open goes on reading it");
    let mut now = [0; 10];
    followed.read_exact_at(&mut now, 0).unwrap();
    assert_eq!(&now, b"WRITTEN TO", "the same file is followed");
    // Changes through the mount go on beside it, and hide what comes after.
    sh(&place, "echo ours > mnt/file && rm mnt/new && echo z > mnt/mine/z && mv mnt/elsewhere mnt/again");
    sh(&place, "echo theirs > a/file && echo again > b/new && echo more > b/elsewhere/more");
    drop((open, followed));
    seen("again/more", "more\n");
    assert_eq!(
        (read(&place, "mnt/file"), read(&place, "mnt/new")),
        ("ours\n".into(), "entity not found".into())
    );
    listed("mnt/mine", &["x", "y", "z"]);
    umount(&place);
    assert_eq!(place.names("up/mine"), ["z"]);
}

#[test]
fn who_works_in_a_directory_that_became_another_is_told() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = mounted("lower=checked");
    let opened = fs::File::open(place.at("mnt/mine")).unwrap();
    let inside = format!("/proc/{}/fd/{}", std::process::id(), opened.as_raw_fd());
    sh(&place, "mkdir a/mine && echo y > a/mine/y");
    until("it is merged anew", || names(place.at("mnt/mine")) == ["x", "y"]);
    let made = fs::write(format!("{inside}/made"), "by the old one");
    assert_eq!(made.unwrap_err().raw_os_error(), Some(rustix::io::Errno::STALE.raw_os_error()));
    drop(opened);
    sh(&place, "echo by its name > mnt/mine/made");
    assert_eq!(names(place.at("mnt/mine")), ["made", "x", "y"]);
    umount(&place);
}

/// So the tests above see what the option does.
#[test]
fn without_it_what_is_kept_is_shown() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = mounted("lower=fixed");
    change(&place);
    assert_eq!(
        (read(&place, "mnt/file"), read(&place, "mnt/new")),
        ("written to\n".into(), "entity not found".into())
    );
    assert_eq!(names(place.at("mnt/shared")), ["gone", "own", "stays"]);
    umount(&place);
}
