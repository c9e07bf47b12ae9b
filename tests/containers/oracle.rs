//! podman beside us: the same images, the same trees.

use std::path::Path;

use crate::layers::EVERYTHING;
use crate::{Bed, Success, lacking};
use support::{Fields, Snapshot, diff};

/// podman with a store of its own below the bed.
fn podman(bed: &Bed) -> String {
    let at = bed.place.path().display();
    format!(
        "podman --root {at}/pm --runroot {at}/pmrun --storage-driver vfs --events-backend file --cgroup-manager cgroupfs"
    )
}

fn lacking_podman() -> Option<&'static str> {
    if !support::is_installed("podman") {
        return Some("needs the package podman");
    }
    lacking(true)
}

/// Deletions, replaced directories and all kinds of files on top of an image.
const CHANGE: &str = "
    set -e
    rm etc/os; rm -r data; mkdir -p data/other; echo n > data/other/f; rm bin/ls; mkdir bin/ls; mv etc/group etc/moved
    echo more >> etc/passwd; ln etc/passwd etc/hard; mkdir -p a/b/c; chown 12:13 a/b
";

#[test]
fn podman_shows_what_we_show() {
    if let Some(why) = lacking_podman() {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let podman = podman(&bed);
    bed.sh(&format!(
        "{EVERYTHING} cd ..; cp -a tree/. image/; tar --xattrs --xattrs-include='*' -C image -cf e.tar ."
    ))
    .ok();
    bed.um(&["import", "e.tar", "everything"]).success();
    bed.um(&["create", "--name", "c", "everything", "sh"]).ok();
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    bed.sh(&format!("cd {at}; {CHANGE}")).ok();
    bed.sh(&format!("umount {at}")).ok();
    bed.um(&["commit", "c", "changed"]).ok();
    bed.um(&["save", "-o", "changed.tar", "changed"]).success();
    bed.um(&["mount", "changed", "mnt"]).ok();
    bed.sh(&format!("{podman} load -q -i changed.tar")).success();
    let theirs = bed.sh(&format!("{podman} image mount changed")).success().out;
    let ours = Snapshot::take(&bed.place.at("mnt"));
    let mut theirs = Snapshot::take(Path::new(theirs.trim()));
    // podman makes a root of its own, and takes 1970 for times before.
    for path in ["", "zeros"] {
        let path = Path::new(path).as_os_str();
        theirs.entries.get_mut(path).unwrap().mtime = ours.entries[path].mtime;
    }
    // Of attributes it keeps those of users and capabilities.
    let mut ours = ours;
    for entry in ours.entries.values_mut().chain(theirs.entries.values_mut()) {
        entry.xattrs.retain(|name, _| name.starts_with(b"user.") || name == b"security.capability");
    }
    let fields = Fields { directory_mtime: false, ..Fields::tree() };
    assert_eq!(diff(&ours, &theirs, &fields), "");
    bed.place.umount("mnt");
    bed.sh(&format!("{podman} image unmount -a; {podman} rmi -af")).success();
}

#[test]
fn what_podman_commits_runs_here_and_the_other_way_round() {
    if let Some(why) = lacking_podman() {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let podman = podman(&bed);
    bed.um(&["run", "--name", "c", "bb", "sh", "-c", "echo ours > /etc/ours; rm /etc/os"]).ok();
    bed.um(&["commit", "-c", "CMD [\"cat\", \"/etc/ours\"]", "c", "ours"]).ok();
    bed.um(&["save", "-o", "ours.tar", "ours"]).success();
    bed.sh(&format!("{podman} load -q -i ours.tar")).success();
    let run = "run --rm --runtime runc --network none --ulimit nofile=1024:1024 --ulimit nproc=1000:1000";
    let id = bed.image("ours", "{{.Id}}").trim_start_matches("sha256:").to_owned();
    let theirs = bed.sh(&format!("{podman} {run} {id} sh -c 'cat /etc/ours; ls /etc/os'"));
    assert!(theirs.out.contains("ours"), "{theirs:?}");
    assert!(theirs.err.contains("No such file"), "{theirs:?}");
    bed.sh(&format!(
        "set -e; id=$({podman} create --network none {id} sh); m=$({podman} mount $id); echo theirs > $m/etc/theirs; \
         rm -r $m/data; {podman} unmount $id; {podman} commit -q $id theirs; {podman} save -q -o theirs.tar theirs"
    ))
    .success();
    bed.um(&["load", "-i", "theirs.tar"]).success();
    bed.um(&[
        "run",
        "--rm",
        "localhost/theirs",
        "sh",
        "-c",
        "cat /etc/theirs /etc/ours; ls /data 2>/dev/null; true",
    ])
    .prints("theirs\nours");
    bed.sh(&format!("{podman} rm -af; {podman} rmi -af")).success();
}
