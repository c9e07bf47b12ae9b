//! What has changed in the directory since is told, and nothing is touched; who owns it can't lead `apply` out of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::cli::{Ended, Place, until};
use support::{Fields, Snapshot, diff};

/// A place with a program that makes a directory anew, so that it is younger than all else.
fn with_young(place: Place) -> Place {
    fs::write(place.at("young"), YOUNG).unwrap();
    fs::set_permissions(place.at("young"), fs::Permissions::from_mode(0o755)).unwrap();
    place
}

const YOUNG: &str = "#!/bin/sh
: >$1.then
until rmdir $1 && mkdir $1 && find $1 -prune -newer $1.then | grep -q .; do :; done
rm $1.then";

fn place() -> Place {
    with_young(Place::new())
}

fn place_of_user() -> Place {
    with_young(Place::of_user())
}

/// A lower made by `below`, in a mount of which `above` was done. It is unmounted.
pub fn unmounted(below: &str, above: &str) -> Place {
    let place = place();
    place
        .sh(&format!(
            "set -e; {below}; ./young up; ./unionmount --lower a --upper up mnt; {above}; umount mnt"
        ))
        .ok();
    until("its daemon ends", || place.daemons().is_empty());
    place
}

/// A mount in which one of everything was changed, unmounted again.
fn changed() -> Place {
    let place = place();
    place
        .sh("set -e
            mkdir -p a/gone/sub a/opaque a/dir a/from; for f in copied replaced deleted gone/sub/f opaque/f dir/f from/f; do echo old >a/$f; done
            ./young up; ./unionmount --lower a --upper up mnt
            echo new >>mnt/copied; rm mnt/replaced; echo new >mnt/replaced; rm mnt/deleted; rm -r mnt/gone mnt/opaque
            mkdir mnt/opaque; echo new >mnt/opaque/n; chmod 700 mnt/dir; echo new >mnt/added; mv mnt/from mnt/to
            umount mnt")
        .ok();
    until("its daemon ends", || place.daemons().is_empty());
    place
}

pub fn apply(place: &Place, args: &str) -> Ended {
    place.sh(&format!("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply {args} up a"))
}

#[test]
fn what_was_changed_since_is_listed_and_nothing_is_touched() {
    support::needs_root!();
    for (change, path) in [
        ("echo more >>a/copied", "copied"),
        ("chmod 600 a/copied", "copied"),
        ("echo x >a/x; mv a/x a/copied", "copied"),
        ("echo more >>a/replaced", "replaced"),
        ("echo more >>a/deleted", "deleted"),
        ("echo more >>a/gone/sub/f", "gone/sub/f"),
        ("echo more >a/gone/sub/g", "gone/sub/g"),
        ("echo more >>a/opaque/f", "opaque/f"),
        ("setfattr -n user.x -v y a/dir", "dir"),
        ("echo there >a/added", "added"),
        ("mkdir a/to", "to"),
    ] {
        let place = changed();
        place.sh(change).ok();
        let before = Snapshot::take(&place.at("a"));
        let ended = apply(&place, "");
        assert_eq!(ended.code, Some(3), "{change}: {ended:?}");
        let lines: Vec<&str> = ended.out.lines().collect();
        assert!(
            lines.len() == 1 && lines[0].starts_with(&format!("{path}: was changed since")),
            "{change}: {lines:?}"
        );
        let after = Snapshot::take(&place.at("a"));
        assert_eq!(diff(&before, &after, &Fields::all()), "", "{change}");
        if path == "to" {
            continue;
        }
        let ended = apply(&place, "--theirs");
        assert!(ended.code == Some(0) && ended.err.contains("and stays"), "{ended:?}");
        let theirs = Snapshot::take(&place.at("a"));
        let kept = |path: &str| {
            (
                before.get(path).map(|entry| entry.content.clone()),
                theirs.get(path).map(|entry| entry.content.clone()),
            )
        };
        let (was, is) = kept(path);
        assert_eq!(was, is, "{change}: --theirs");
        assert!(theirs.get("to/f").is_some() && theirs.get("from").is_none(), "the rest is applied");
    }
}

#[test]
fn what_was_changed_between_two_changes_of_the_upper_is_in_the_way() {
    support::needs_root!();
    let place = place();
    place
        .sh("set -e; for f in twice gone d/f; do mkdir -p a/d; echo old >a/$f; done; rmdir up; mkdir up
            ./unionmount --lower a --upper up mnt
            save() { echo $1 >mnt/$2.new; mv mnt/$2.new mnt/$2; }
            save 1 twice; save 1 gone; rm -r mnt/d; echo 1 >mnt/d
            for f in twice gone d/f; do echo theirs >>a/$f; done
            save 2 twice; rm mnt/gone; rm mnt/d; echo 2 >mnt/d; umount mnt")
        .ok();
    until("its daemon ends", || place.daemons().is_empty());
    let ended = apply(&place, "");
    assert_eq!(ended.code, Some(3), "{ended:?}");
    for path in ["twice", "gone", "d/f"] {
        let told = ended.out.lines().any(|line| line.starts_with(&format!("{path}: was changed since")));
        assert!(told, "{path}: {ended:?}");
        assert_eq!(fs::read_to_string(place.at("a").join(path)).unwrap(), "old\ntheirs\n");
    }
}

#[test]
fn force_lets_the_upper_win() {
    support::needs_root!();
    let place = changed();
    place.sh("for f in copied replaced deleted gone/sub/f opaque/f; do echo more >>a/$f; done; mkdir a/to; echo there >a/added").ok();
    assert_eq!(apply(&place, "").code, Some(3));
    apply(&place, "--force").ok();
    assert_eq!(place.names("a"), ["added", "copied", "dir", "opaque", "replaced", "to"]);
    assert_eq!(place.names("a/opaque"), ["n"]);
    assert_eq!(fs::read_to_string(place.at("a/copied")).unwrap(), "old\nnew\n");
    assert_eq!(fs::read_to_string(place.at("a/to/f")).unwrap(), "old\n");
    assert_eq!(fs::read_to_string(place.at("a/added")).unwrap(), "new\n");
}

#[test]
fn what_does_not_fit_leaves_the_directory_as_it_was() {
    support::needs_root!();
    let place = changed();
    let script = "mkdir small && mount -t tmpfs -o size=256k none small && cp -a a small/ && rm -r a && mv a b/gone 2>/dev/null
        dd if=/dev/zero of=up/large bs=1M count=2 status=none";
    place.sh(script);
    let before = Snapshot::take(&place.at("small/a"));
    let ended = place.sh("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply --force up small/a");
    ended.refused(1, &["large", "No space left"]);
    let after = Snapshot::take(&place.at("small/a"));
    assert_eq!(diff(&before, &after, &Fields::tree()), "");
}

#[test]
fn a_mount_is_applied_to_what_lies_below_it_and_discarded_when_it_is_gone() {
    support::needs_root!();
    let place = place();
    place
        .sh("set -e; echo old >a/f; mkdir a/d; echo g >a/d/g; ./young up; ./unionmount --lower a --upper up mnt; echo new >mnt/f; rm mnt/d/g")
        .ok();
    place.sh("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply mnt").ok();
    assert_eq!(fs::read_to_string(place.at("a/f")).unwrap(), "new\n");
    assert!(place.names("a/d").is_empty() && place.names("mnt/d").is_empty());
    place.unionmount(&["discard", "--yes", "up"]).refused(1, &["unmount it first"]);
    place.sh("mv mnt/d mnt/e").ok();
    place.sh("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply mnt").refused(1, &["unmount it first"]);
    place.umount("mnt");
    until("its daemon ends", || place.daemons().is_empty());
    place.unionmount(&["discard", "up"]).refused(2, &["--yes"]);
    apply(&place, "").ok();
    assert_eq!(place.names("a"), ["e", "f"]);
    place.unionmount(&["discard", "--yes", "up"]).ok();
    assert!(place.names("up").is_empty());
}

#[test]
fn a_user_applies_to_a_directory_of_ones_own() {
    support::needs_root!();
    let place = place_of_user();
    place
        .sh_as_user("set -e; mkdir -p a/d/e a/m; echo old >a/f; echo g >a/d/e/g; echo h >a/m/h; ln -s f a/l
            ./young up; ./unionmount --lower a --upper up mnt; echo new >mnt/f; rm -r mnt/d; mv mnt/m mnt/n; echo i >mnt/n/i; ln -sfn n mnt/l; fusermount3 -u mnt")
        .ok();
    until("its daemon ends", || place.daemons().is_empty());
    place.sh_as_user("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply up a").ok();
    assert_eq!(
        (place.names("a"), place.names("a/n")),
        (vec!["f".into(), "l".into(), "n".into()], vec!["h".into(), "i".into()])
    );
    assert_eq!(fs::read_to_string(place.at("a/f")).unwrap(), "new\n");
}

#[test]
fn what_a_user_may_not_change_is_told_before_anything_is_touched() {
    support::needs_root!();
    let place = place_of_user();
    place
        .sh_as_user("set -e; mkdir -p a/mine a/theirs; echo old >a/mine/f; echo old >a/theirs/f; chmod 777 a/theirs
            ./young up; ./unionmount --lower a --upper up mnt; echo new >mnt/mine/f; echo new >mnt/theirs/f; fusermount3 -u mnt")
        .ok();
    until("its daemon ends", || place.daemons().is_empty());
    for script in
        ["chown root a/theirs; chmod 755 a/theirs", "chown root a/theirs a/theirs/f; chmod 1777 a/theirs"]
    {
        place.sh(script).ok();
        let before = Snapshot::take(&place.at("a"));
        place
            .sh_as_user("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply --force up a")
            .refused(1, &["theirs/f: this user may not change it"]);
        let after = Snapshot::take(&place.at("a"));
        assert_eq!(diff(&before, &after, &Fields::all()), "", "{script}");
    }
}

#[test]
fn a_further_name_in_a_directory_of_somebody_else_is_put() {
    support::needs_root!();
    let place = place_of_user();
    place
        .sh_as_user(
            "set -e; mkdir -p a/theirs; echo old >a/f; ln a/f a/theirs/g; ./young up
            ./unionmount --lower a --upper up mnt; echo new >>mnt/f; fusermount3 -u mnt",
        )
        .ok();
    until("its daemon ends", || place.daemons().is_empty());
    // Its owner lets others write in it, and alone can set its times.
    place.sh("chown root a/theirs; chmod 777 a/theirs").ok();
    place.sh_as_user("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply --force up a").ok();
    for name in ["a/f", "a/theirs/g"] {
        assert_eq!(fs::read_to_string(place.at(name)).unwrap(), "old\nnew\n");
    }
}

#[test]
fn names_may_be_as_long_as_the_filesystem_allows() {
    support::needs_root!();
    let (long, other) = ("n".repeat(255), "m".repeat(255));
    let place = unmounted(
        &format!("for d in d {long} {other}; do mkdir a/$d; echo old >a/$d/f; done"),
        &format!(
            "for d in d {long} {other}; do echo new >mnt/$d/f; done; mv mnt/{long} mnt/short; mkdir mnt/{long}"
        ),
    );
    apply(&place, "").ok();
    assert_eq!(place.names("a"), ["d", &other, &long, "short"]);
    for dir in ["d", "short", &other] {
        assert_eq!(fs::read_to_string(place.at("a").join(dir).join("f")).unwrap(), "new\n");
    }
}

/// A fifo would keep it waiting.
#[test]
fn what_is_no_directory_is_not_opened() {
    support::needs_root!();
    let place = unmounted("echo old >a/f", "echo new >mnt/f");
    place.sh("mkfifo pipe").ok();
    for words in [
        "apply pipe a",
        "apply up pipe",
        "discard --yes pipe",
        "diff pipe --lower a",
        "apply --abandon up pipe",
    ] {
        let ended = place.sh(&format!("UNIONMOUNT_ROOT=$PWD/state timeout 20 ./unionmount {words}"));
        assert!(matches!(ended.code, Some(1 | 2)), "{words}: {ended:?}");
    }
}

/// A directory of one subvolume that comes into a renamed one of another: there no rename leads.
#[test]
fn a_directory_that_comes_to_another_subvolume_is_copied() {
    support::needs_root!();
    support::needs_program!("mkfs.btrfs");
    support::needs_program!("btrfs");
    let place = place();
    place
        .sh("set -e; truncate -s 128M img; PATH=$PATH:/sbin mkfs.btrfs -q img; mount -o loop img a; btrfs -q subvolume create a/m
            mkdir a/m/x a/d; echo x >a/m/x/x; echo d >a/d/f; ./young up
            ./unionmount --lower a --upper up mnt; mv mnt/m/x mnt/m/y; mv mnt/d mnt/m/y/d; umount mnt")
        .ok();
    until("its daemon ends", || place.daemons().is_empty());
    apply(&place, "--force").ok();
    assert_eq!(fs::read_to_string(place.at("a/m/y/d/f")).unwrap(), "d\n");
    assert_eq!(
        (place.names("a"), place.names("a/m"), place.names("a/m/y")),
        (vec!["m".into()], vec!["y".into()], vec!["d".into(), "x".into()])
    );
}

#[test]
fn marks_of_every_form_are_applied() {
    support::needs_root!();
    let place = place();
    place
        .sh("set -e; mkdir -p a/d a/e a/g a/h; for d in d e g h; do echo old >a/$d/old; done; echo old >a/f
            mkdir up/d up/e up/h; echo new >up/d/new; echo new >up/e/new; echo new >up/h/new
            : >up/d/.wh..wh..opq; : >up/.wh.e; : >up/.wh.f; : >up/.wh.g
            ./unionmount --lower a --upper up mnt")
        .ok();
    let shown = Snapshot::take(&place.at("mnt"));
    place.umount("mnt");
    until("its daemon ends", || place.daemons().is_empty());
    apply(&place, "--force").ok();
    let applied = Snapshot::take(&place.at("a"));
    let names = |snapshot: &Snapshot| snapshot.entries.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&shown), names(&applied));
    assert_eq!((place.names("a/d"), place.names("a/e")), (vec!["new".to_owned()], vec!["new".to_owned()]));
    assert_eq!((place.names("a"), place.names("a/h").len()), (vec!["d".into(), "e".into(), "h".into()], 2));
}

#[test]
fn a_redirect_that_no_overlay_writes_is_refused() {
    support::needs_root!();
    for redirect in ["../out", "/d/../old", "x/y", "/old/.", "/../out"] {
        let place = place();
        place
            .sh(&format!("set -e; mkdir -p a/old a/d out up/new; echo f >a/old/f; setfattr -n trusted.overlay.redirect -v {redirect} up/new"))
            .ok();
        apply(&place, "--force").refused(1, &["redirect"]);
        assert!(place.at("a/old/f").exists() && place.at("out").exists(), "{redirect}");
    }
}

#[test]
fn what_a_mount_has_as_a_layer_is_no_target() {
    support::needs_root!();
    let place = unmounted("echo old >a/f", "echo new >mnt/f");
    place.sh("mkdir up2 mnt2 && ./unionmount --lower a --upper up2 mnt2").ok();
    apply(&place, "").refused(1, &["mnt2", "unmount"]);
    place.sh("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply up up2").refused(1, &["unmount"]);
    assert_eq!(fs::read_to_string(place.at("a/f")).unwrap(), "old\n");
    place.umount("mnt2");
    place.sh("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply up up").refused(1, &["the upper itself"]);
    until("its daemon ends", || place.daemons().is_empty());
    apply(&place, "").ok();
}

#[test]
fn discard_takes_no_mount_and_nothing_that_a_mount_has() {
    support::needs_root!();
    let place = place();
    place
        .sh("set -e; mkdir -p a/d k/up/d k/work k/m deep/up/sub; echo old >a/f; echo old >a/d/f; ./young up
            ./unionmount --lower a --upper up mnt; echo new >mnt/f; echo new >mnt/d/f
            mkdir deep/mnt; ./unionmount --lower a --upper deep/up deep/mnt; echo new >deep/mnt/f; echo x >deep/up/sub/x")
        .ok();
    let kernel = place
        .sh("mount -t overlay none -o lowerdir=a,upperdir=k/up,workdir=k/work k/m && echo x >k/m/x")
        .code;
    let before = Snapshot::take(&place.at("up"));
    let discard =
        |name: &str| place.sh(&format!("UNIONMOUNT_ROOT=$PWD/state ./unionmount discard --yes {name}"));
    for name in ["mnt", "mnt/d", "up", "up/d", "deep", "deep/up", "deep/up/sub"] {
        assert_eq!(discard(name).code, Some(1), "{name}");
    }
    if kernel == Some(0) {
        for name in ["k", "k/m", "k/up"] {
            assert_eq!(discard(name).code, Some(1), "{name}");
        }
        assert!(place.at("k/up/x").exists());
    } else {
        support::skipped("the kernel's overlayfs can't be mounted here");
    }
    let after = Snapshot::take(&place.at("up"));
    assert_eq!(diff(&before, &after, &Fields::tree()), "");
    assert!(place.at("mnt/d/f").exists() && place.at("deep/up/sub/x").exists() && place.at("a/f").exists());
}

#[test]
fn a_further_name_that_a_user_may_not_change_is_told_before_anything_is_touched() {
    support::needs_root!();
    let place = place_of_user();
    place
        .sh_as_user(
            "set -e; mkdir -p a/theirs; echo old >a/f; ln a/f a/theirs/g; ./young up
            ./unionmount --lower a --upper up mnt; echo new >>mnt/f; fusermount3 -u mnt",
        )
        .ok();
    until("its daemon ends", || place.daemons().is_empty());
    place.sh("chown root a/theirs; chmod 755 a/theirs").ok();
    let before = Snapshot::take(&place.at("a"));
    place
        .sh_as_user("UNIONMOUNT_ROOT=$PWD/state ./unionmount apply --force up a")
        .refused(1, &["theirs/g: this user may not change it"]);
    let after = Snapshot::take(&place.at("a"));
    assert_eq!(diff(&before, &after, &Fields::all()), "");
}
