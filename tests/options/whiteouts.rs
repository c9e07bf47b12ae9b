//! Names of a lower must not show through a directory that replaces it, whatever form of whiteout lies beside it:
//! else an engine commits deleted files back into an image.

use std::fs;

use crate::{sh, umount};
use support::cli::{Place, is_root};

/// What `ls` and lookups see in `dir` below the mount.
fn seen(place: &Place, dir: &str, asked: &[&str]) -> (Vec<String>, Vec<String>) {
    let found = asked.iter().filter(|name| place.at("mnt").join(dir).join(name).symlink_metadata().is_ok());
    (place.names(&format!("mnt/{dir}")), found.map(|name| (*name).to_owned()).collect())
}

#[test]
fn nothing_shows_through_an_opaque_directory_beside_aufs_whiteouts() {
    if !is_root() {
        support::skip!("needs root");
    }
    let opaque = [
        "setfattr -n trusted.overlay.opaque -v y up/p/x",
        "setfattr -n user.overlay.opaque -v y up/p/x",
        "setfattr -n user.fuseoverlayfs.opaque -v y up/p/x",
        "touch up/p/x/.wh..wh..opq",
        "touch up/p/.wh.x", // AUFS's way of "replaced"
    ];
    for mark in opaque {
        for order in [true, false] {
            let place = Place::new();
            // The bottom has names, the middle deletes one of them, the upper replaces the sibling directory.
            sh(
                &place,
                "mkdir -p b/p/x b/p/y a/p; echo 1 > b/p/x/old; echo 2 > b/p/y/gone; echo 3 > b/p/y/stays; echo 4 > b/p/z",
            );
            sh(&place, "mkdir a/p/y; touch a/p/y/.wh.gone a/p/.wh.z; mkdir -p up/p/x; echo 5 > up/p/x/new");
            sh(&place, mark);
            // Root's mount believes these only when asked to.
            let asked = if mark.contains("user.") { ",userxattr" } else { "" };
            sh(&place, &format!("./unionmount -o lowerdir=a:b,upperdir=up,workdir=w{asked} mnt"));
            let look = |what: &str| {
                let of_x = seen(&place, "p/x", &["old", "new"]);
                assert_eq!(of_x, (vec!["new".to_owned()], vec!["new".to_owned()]), "{mark} {what}");
                let of_y = seen(&place, "p/y", &["gone", "stays", ".wh.gone"]);
                assert_eq!(of_y, (vec!["stays".to_owned()], vec!["stays".to_owned()]), "{mark} {what}");
                let of_p = seen(&place, "p", &["x", "y", "z", ".wh.z", ".wh.x"]);
                let want = vec!["x".to_owned(), "y".to_owned()];
                assert_eq!(of_p, (want.clone(), want), "{mark} {what}");
            };
            if order {
                // Lookups before any listing: nothing is known of the directories.
                assert!(fs::metadata(place.at("mnt/p/x/old")).is_err(), "{mark}");
                assert!(fs::metadata(place.at("mnt/p/y/gone")).is_err(), "{mark}");
            }
            look("as found");
            sh(&place, "touch mnt/p/x/more mnt/p/y/more; rm mnt/p/x/more mnt/p/y/more");
            look("after changes");
            umount(&place);
            sh(&place, &format!("./unionmount -o lowerdir=up:a:b{asked} mnt"));
            look("as a lower");
            umount(&place);
        }
    }
}

#[test]
fn a_directory_replaced_through_the_mount_shows_nothing_old() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    sh(&place, "mkdir -p b/p/x a/p; echo 1 > b/p/x/old; touch a/p/.wh.other; echo o > b/p/other");
    sh(
        &place,
        "./unionmount -o lowerdir=a:b,upperdir=up,workdir=w mnt; rm -r mnt/p/x; mkdir mnt/p/x; touch mnt/p/x/new",
    );
    for round in 0..2 {
        assert_eq!(seen(&place, "p/x", &["old"]), (vec!["new".to_owned()], vec![]), "{round}");
        assert_eq!(seen(&place, "p", &["other"]), (vec!["x".to_owned()], vec![]), "{round}");
        umount(&place);
        sh(&place, "./unionmount -o lowerdir=a:b,upperdir=up,workdir=w mnt");
    }
    umount(&place);
}
