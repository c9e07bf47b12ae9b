//! What has changed in the directory since is told, and nothing is touched; who owns it can't lead `apply` out of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::cli::{Ended, Place, as_user, run, until};
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

fn apply(place: &Place, args: &str) -> Ended {
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
        apply(&place, "--theirs").ok();
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

/// Exchanges `a/dir` for a link, and back, as fast as it can, while root applies.
#[test]
fn who_owns_the_directory_cannot_lead_root_out_of_it() {
    support::needs_root!();
    for round in 0..6 {
        let place = place();
        place.mkdir("outside");
        place
            .sh("set -e; mkdir -p a/dir/sub a/old; for n in 1 2 3 4 5 6 7 8; do echo $n >a/dir/sub/f$n; echo $n >a/old/g$n; echo secret >outside/f$n; echo secret >outside/g$n; done
                ./unionmount --lower a --upper up mnt
                for n in 1 2 3 4 5 6 7 8; do echo changed >>mnt/dir/sub/f$n; rm mnt/old/g$n; echo added >mnt/old/h$n; done; chmod 700 mnt/old; umount mnt; chmod -R 755 outside")
            .ok();
        until("its daemon ends", || place.daemons().is_empty());
        let (uid, gid) = support::cli::user();
        place.sh(&format!("chown -R {uid}:{gid} a")).ok();
        let before = Snapshot::take(&place.at("outside"));
        let mut swapper = std::process::Command::new("sh");
        swapper.args(["-c", "i=0; while [ -d a ] && [ $i -lt 4000 ]; do i=$((i+1)); mv a/dir/sub a/dir/s; ln -s ../../outside a/dir/sub; mv a/old a/o; ln -s ../outside a/old; rm a/dir/sub a/old; mv a/dir/s a/dir/sub; mv a/o a/old; done 2>/dev/null"]);
        let mut swapper = as_user(swapper.current_dir(place.path())).spawn().unwrap();
        for _ in 0..=round {
            // It is refused, goes on, or is done; nobody cares which.
            let ended = run(std::process::Command::new(place.bin())
                .args(["apply", "--force", "up", "a"])
                .current_dir(place.path())
                .env("UNIONMOUNT_ROOT", place.at("state")));
            assert!(matches!(ended.code, Some(0 | 1 | 3)), "{ended:?}");
        }
        swapper.kill().unwrap();
        swapper.wait().unwrap();
        let after = Snapshot::take(&place.at("outside"));
        assert_eq!(diff(&before, &after, &Fields::all()), "", "something outside was touched");
    }
}
