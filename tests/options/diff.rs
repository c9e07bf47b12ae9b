//! An engine with a mount program finds out what a container changed by walking two mounts, its own and its parent's,
//! and comparing lstat, attributes and link targets (containers/storage: the "naive diff"; hardlinks by inode number
//! where the link count is above 1). So what is not changed must look the same in both, whatever was copied up.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::{sh, umount};
use support::cli::{Place, is_root};
use support::{Entry, Kind, Snapshot};

/// What containers/storage takes for a change: `A` added, `C` changed, `D` deleted.
fn changes(parent: &Snapshot, layer: &Snapshot) -> Vec<String> {
    let differs = |old: &Entry, new: &Entry| {
        let of_a_file = new.kind != Kind::Directory && (old.size, old.mtime) != (new.size, new.mtime);
        let told = |e: &Entry| (e.kind, e.mode, e.uid, e.gid, e.rdev, e.xattrs.clone());
        let link = new.kind == Kind::Symlink && old.content != new.content;
        told(old) != told(new) || of_a_file || link
    };
    let mut found = Vec::new();
    for (path, new) in &layer.entries {
        let name = path.to_string_lossy();
        match parent.entries.get(path) {
            None => found.push(format!("A {name}")),
            Some(old) if differs(old, new) => found.push(format!("C {name}")),
            Some(_) => {}
        }
    }
    for path in parent.entries.keys().filter(|path| !layer.entries.contains_key(*path)) {
        found.push(format!("D {}", path.to_string_lossy()));
    }
    found
}

/// A parent mounted on `below`, the layer on `mnt`, both with further options.
fn mount(place: &Place, options: &str) {
    place.mkdir("below");
    sh(place, &format!("./unionmount -o lowerdir=a:b,{options} below"));
    sh(place, &format!("./unionmount -o lowerdir=a:b,upperdir=up,workdir=w,{options} mnt"));
}

fn diff(place: &Place) -> Vec<String> {
    changes(&Snapshot::take_checked(&place.at("below")), &Snapshot::take_checked(&place.at("mnt")))
}

const LAYERS: &str = "mkdir -p b/etc/d b/usr/bin b/var a/etc; echo host > b/etc/hosts; echo p > b/etc/passwd; echo s > b/etc/shadow
    chmod 640 b/etc/shadow; chown 0:42 b/etc/shadow; echo x > b/etc/d/one; echo y > b/etc/d/two; ln -s d/one b/etc/link
    echo bin > b/usr/bin/one; ln b/usr/bin/one b/usr/bin/two; ln b/usr/bin/one b/usr/three; cp /bin/true b/usr/bin/ping
    setcap cap_net_raw+ep b/usr/bin/ping; setfattr -n user.note -v n b/etc/hosts; mkfifo b/var/pipe; mknod b/var/null c 1 3
    echo top > a/etc/passwd; mkdir a/etc/e; chmod 2775 a/etc/e; chmod 4755 b/usr/bin/ping; setcap cap_net_raw+ep b/usr/bin/ping
    setfacl -m u:9:rx b/usr/three; find a b -exec touch -h -d @1000000000.123456789 {} +";

#[test]
fn a_container_that_changed_nothing_has_an_empty_diff() {
    if !is_root() {
        support::skip!("needs root");
    }
    for options in
        ["rw", "xattr_permissions=2", "uidmapping=0:100000:65536,gidmapping=0:100000:65536", "timeout=0"]
    {
        let place = Place::new();
        sh(&place, LAYERS);
        mount(&place, options);
        assert_eq!(diff(&place), Vec::<String>::new(), "{options}: untouched");
        // Opened for writing, read, executed; given what it has already; made and taken away again.
        let same = "cd mnt; : >> etc/hosts; cat etc/* >/dev/null 2>&1 || true; usr/bin/ping; ls -lR . >/dev/null
            chmod 640 etc/shadow; touch -h -d @1000000000.123456789 etc/passwd etc/link var/pipe
            chmod 2775 etc/e; touch etc/e/new; rm etc/e/new; mkdir usr/bin/x; rmdir usr/bin/x
            ln etc/d/one etc/d/three; rm etc/d/three; mv etc/d/two etc/d/four; mv etc/d/four etc/d/two
            setfattr -n user.note -v n etc/hosts; setfattr -n user.gone -v n etc/d; setfattr -x user.gone etc/d";
        sh(&place, same);
        assert_eq!(diff(&place), Vec::<String>::new(), "{options}: touched, but not changed");
        umount_both(&place);
        mount(&place, options);
        assert_eq!(diff(&place), Vec::<String>::new(), "{options}: remounted");
        umount_both(&place);
    }
}

fn umount_both(place: &Place) {
    place.umount("below");
    umount(place);
}

#[test]
fn what_was_changed_and_nothing_else_is_in_the_diff() {
    if !is_root() {
        support::skip!("needs root");
    }
    for options in ["rw", "xattr_permissions=2"] {
        let place = Place::new();
        sh(&place, LAYERS);
        mount(&place, options);
        sh(
            &place,
            "cd mnt; echo more >> etc/hosts; rm etc/d/one; chown 7:42 etc/shadow; echo new > etc/new; ln etc/new etc/new2
             chmod 600 usr/bin/two; rm -r var; mkdir var; setfattr -n user.note -v other etc/link 2>/dev/null || true
             ln -sfn elsewhere etc/link; setfattr -x user.note etc/hosts; mkdir -p etc/e/deep/er; setcap -r usr/bin/ping",
        );
        let want = [
            "C etc/hosts",
            "C etc/link",
            "A etc/e/deep",
            "A etc/e/deep/er",
            "A etc/new",
            "A etc/new2",
            "C etc/shadow",
            "C usr/bin/one",
            "C usr/bin/ping",
            "C usr/bin/two",
            "C usr/three",
            "D etc/d/one",
            "D var/null",
            "D var/pipe",
        ];
        let mut want: Vec<String> = want.iter().map(|line| (*line).to_owned()).collect();
        want.sort();
        for round in ["as written", "remounted"] {
            let mut found = diff(&place);
            found.sort();
            // Directories count by mode and owner only; those here kept theirs.
            assert_eq!(found, want, "{options}, {round}");
            // Hardlinks: one inode number, and a link count that says so.
            for names in [&["etc/new", "etc/new2"][..], &["usr/bin/one", "usr/bin/two", "usr/three"]] {
                let stats: Vec<_> =
                    names.iter().map(|name| place.at("mnt").join(name).symlink_metadata().unwrap()).collect();
                for stat in &stats {
                    assert_eq!((stat.ino(), stat.nlink()), (stats[0].ino(), names.len() as u64), "{names:?}");
                }
            }
            umount_both(&place);
            mount(&place, options);
        }
        umount_both(&place);
    }
}

#[test]
fn copying_up_changes_no_time_of_siblings_or_parents() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    sh(&place, LAYERS);
    mount(&place, "rw");
    let before = Snapshot::take(&place.at("mnt"));
    sh(&place, "chmod 600 mnt/etc/d/one mnt/usr/bin/two; echo >> mnt/etc/passwd");
    let after = Snapshot::take(&place.at("mnt"));
    for (path, old) in &before.entries {
        let new = &after.entries[path];
        assert_eq!(new.ino, old.ino, "{}", path.display());
        if path != "etc/passwd" {
            assert_eq!(new.mtime, old.mtime, "{}", path.display());
        }
    }
    umount_both(&place);
}

#[test]
fn taking_a_name_from_a_hardlinked_file_copies_no_data() {
    if !is_root() {
        support::skip!("needs root");
    }
    for options in ["rw", "timeout=0", "writeback=1", "writeback=1,timeout=0"] {
        let place = Place::new();
        sh(&place, LAYERS);
        mount(&place, options);
        // The kernel writes the times of the inode back when it forgets it.
        sh(
            &place,
            "rm mnt/usr/bin/two; mv mnt/etc/d/two mnt/etc/d/x; rm mnt/usr/bin/ping; sync -f mnt; stat mnt/usr/three >/dev/null",
        );
        assert_eq!(fs::metadata(place.at("mnt/usr/bin/one")).unwrap().nlink(), 2, "{options}");
        umount_both(&place);
        let files = sh(&place, "find up w -type f -size +0 -printf '%f\\n'");
        assert_eq!(files, "x\n", "{options}: only what was renamed is copied up");
    }
}
