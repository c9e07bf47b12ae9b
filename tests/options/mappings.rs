//! uidmapping, gidmapping, squash_to_*, and lowers on idmapped mounts.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use rustix::io::Errno;

use crate::{FUSE_OVERLAYFS, has_fuse_overlayfs, sh, stats, umount};
use support::as_ids;
use support::cli::{Place, is_root};

/// As podman writes them, with the colon in front.
const MAPPED: &str =
    "lowerdir=a,upperdir=up,workdir=w,uidmapping=:0:100000:65536,gidmapping=:0:200000:1000:5000:7:10";

fn lower(place: &Place) {
    sh(
        place,
        "cd a; mkdir dir; echo r > root; echo m > mapped; chown 5:6 mapped; chmod 600 mapped; echo n > none
         chown 70000:70000 none; echo s > second; chown 1:5003 second; chown 5:6 dir; ln -s x link; chown -h 9:9 link",
    );
}

#[test]
fn ids_on_disk_are_shown_by_the_mapping_and_kept_by_it() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    lower(&place);
    sh(&place, &format!("./unionmount -o {MAPPED} mnt"));
    let want = [
        "root 100000:200000 644 regular file",
        "mapped 100005:200006 600 regular file",
        "none 65534:65534 644 regular file",
        "second 100001:10 644 regular file",
        "dir 100005:200006 755 directory",
        "link 100009:200009 777 symbolic link",
    ];
    assert_eq!(stats(&place, "mnt", "root mapped none second dir link"), want);

    let mnt = |name: &str| place.at("mnt").join(name);
    // What the kernel enforces is what is shown.
    as_ids(5, 6, 0o022, || {
        support::assert_errno!(fs::read(mnt("mapped")), Errno::ACCESS);
        support::assert_errno!(fs::write(mnt("dir/x"), ""), Errno::ACCESS);
    });
    as_ids(100_005, 200_006, 0o022, || {
        assert_eq!(fs::read(mnt("mapped")).unwrap(), b"m\n");
        fs::write(mnt("dir/made"), "x").unwrap();
        fs::create_dir(mnt("dir/sub")).unwrap();
        std::os::unix::fs::symlink("x", mnt("dir/sym")).unwrap();
        fs::write(mnt("mapped"), "changed").unwrap();
    });
    let mine = ["made 100005:200006 644 regular file", "sub 100005:200006 755 directory"];
    assert_eq!(stats(&place, "mnt/dir", "made sub"), mine);
    assert_eq!(stats(&place, "up/dir", "made sub")[0], "made 5:6 644 regular file");
    assert_eq!(stats(&place, "up/dir", "sym")[0], "sym 5:6 777 symbolic link");
    assert_eq!(stats(&place, "up", "mapped")[0], "mapped 5:6 600 regular file");

    chown(mnt("root"), Some(100_007), Some(200_008)).unwrap();
    assert_eq!(stats(&place, "up", "root")[0], "root 7:8 644 regular file");
    for (uid, gid) in [(Some(3), None), (None, Some(3)), (Some(65534), Some(65534)), (Some(300_000), None)] {
        support::assert_errno!(chown(mnt("root"), uid, gid), Errno::INVAL);
    }
    // A change that leaves an owner alone asks for no mapping of it; a copy-up keeps it.
    sh(&place, "chmod 640 mnt/none; touch mnt/none");
    assert_eq!(stats(&place, "up", "none")[0], "none 70000:70000 640 regular file");
    // Whom the mapping doesn't know makes files of nobody.
    sh(&place, "touch mnt/by-root");
    assert_eq!(fs::metadata(place.at("up/by-root")).unwrap().uid(), 65534);
    umount(&place);
}

#[test]
fn acls_name_users_as_they_are_shown() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    lower(&place);
    sh(&place, "setfacl -m u:9:rw,g:5001:r a/mapped");
    sh(&place, &format!("./unionmount -o {MAPPED} mnt"));
    let shown = sh(&place, "getfacl -cn mnt/mapped");
    assert!(shown.contains("user:100009:rw-") && shown.contains("group:8:r--"), "{shown}");
    as_ids(100_009, 100_009, 0o022, || fs::read(place.at("mnt/mapped")).unwrap());
    sh(&place, "setfacl -m u:100011:r mnt/root");
    let kept = sh(&place, "getfacl -cn up/root");
    assert!(kept.contains("user:11:r--"), "{kept}");
    assert_eq!(place.sh("setfacl -m u:11:r mnt/root").code, Some(1), "no id is shown as 11");
    umount(&place);
}

#[test]
fn mappings_and_squashing_show_what_fuse_overlayfs_shows() {
    if !is_root() || !has_fuse_overlayfs() {
        support::skip!("needs root and Debian's fuse-overlayfs");
    }
    for extra in [
        "uidmapping=0:100000:65536,gidmapping=0:200000:1000:5000:7:10",
        "uidmapping=:5:2000:1,gidmapping=:0:0:65536",
        "squash_to_root",
        "squash_to_uid=77,squash_to_gid=88",
        "squash_to_uid=77",
    ] {
        let place = Place::new();
        lower(&place);
        let mut seen = Vec::new();
        for program in [FUSE_OVERLAYFS, "./unionmount"] {
            sh(&place, &format!("{program} -o lowerdir=a,{extra} mnt 2>/dev/null"));
            seen.push(stats(&place, "mnt", "root mapped none second dir link"));
            place.umount("mnt");
        }
        assert_eq!(seen[0], seen[1], "{extra}");
    }
}

#[test]
fn squashed_files_have_one_owner_and_cannot_get_another() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    lower(&place);
    sh(&place, "./unionmount -o lowerdir=a,upperdir=up,squash_to_uid=77,squash_to_gid=88 mnt");
    sh(&place, "touch mnt/new; chown 5:5 mnt/new mnt/mapped; mkdir mnt/dir/d; chmod 4755 mnt/root");
    assert_eq!(stats(&place, "mnt", "new")[0], "new 77:88 644 regular empty file");
    assert_eq!(stats(&place, "up", "new")[0], "new 77:88 644 regular empty file");
    assert_eq!(stats(&place, "mnt/dir", "d")[0], "d 77:88 755 directory");
    assert_eq!(stats(&place, "mnt", "root")[0], "root 77:88 4755 regular file");
    umount(&place);
}

#[test]
fn an_ordinary_user_owns_all_by_squashing() {
    if !is_root() {
        support::skip!("needs root, to become an ordinary user");
    }
    let place = Place::of_user();
    lower(&place);
    sh(&place, "chmod 644 a/mapped; chmod 755 a/dir");
    let me = support::cli::user();
    crate::sh_as_user(
        &place,
        &format!(
            "./unionmount -o lowerdir=a,upperdir=up,squash_to_uid={0},squash_to_gid={1} mnt
             echo changed > mnt/root; echo x > mnt/dir/x; chmod 600 mnt/mapped; chown {0}:{1} mnt/none
             [ \"$(cat mnt/root)\" = changed ]; rm mnt/second; fusermount3 -u mnt",
            me.0, me.1
        ),
    );
    assert_eq!(fs::metadata(place.at("up/root")).unwrap().uid(), me.0);
    place.wait_for_no_daemon();
}

#[test]
fn an_idmapped_lower_shows_its_owners() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    lower(&place);
    place.mkdir("mapped");
    // As podman does for --uidmap: a bind mount of the layer under the container's mapping.
    match support::raw::idmapped_mount(&place.at("a"), &place.at("mapped"), 0, 100_000) {
        Ok(()) => {}
        Err(error) => support::skip!("no idmapped mounts here: {error}"),
    }
    sh(&place, "./unionmount --lower mapped --upper up mnt");
    let want = ["root 100000:100000 644 regular file", "mapped 100005:100006 600 regular file"];
    assert_eq!(stats(&place, "mnt", "root mapped"), want);
    as_ids(100_005, 100_006, 0o022, || fs::write(place.at("mnt/mapped"), "x").unwrap());
    assert_eq!(stats(&place, "up", "mapped")[0], "mapped 100005:100006 600 regular file");
    umount(&place);
}
