//! xattr_permissions, force_mask and `override_stat`, on every path by which it is read or written.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::io::Errno;

use crate::{FUSE_OVERLAYFS, OVERRIDE, attribute, has_fuse_overlayfs, sh, sh_as_user, stats, umount};
use support::cli::{Place, is_root};
use support::{Snapshot, as_ids, list};

/// A regular file or directory of a layer that says what it really is.
fn recorded(place: &Place, path: &str, value: &str) {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(place.at(path), OVERRIDE, value.as_bytes(), flags).unwrap();
}

/// What listings say of types agrees with stat, for every entry.
#[track_caller]
fn assert_listing_agrees(place: &Place, dir: &str) {
    for entry in list(&place.at(dir)).unwrap() {
        if entry.name != "." && entry.name != ".." {
            let found = place.at(dir).join(&entry.name).symlink_metadata().unwrap();
            assert_eq!(entry.kind, Some(support::Kind::of(found.file_type())), "{:?}", entry.name);
            assert_eq!(entry.ino, found.ino(), "{:?}", entry.name);
        }
    }
}

const EVERY_TYPE: &str = "cd mnt; umask 022
    touch file; mkdir dir; mknod char c 1 3; mknod block b 8 17; mkfifo pipe; ln -s t link
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")' 2>/dev/null || mknod socket p
    chown 33:34 file dir char block pipe; chown -h 33:34 link; chmod 4751 file; chmod 2770 dir; chmod 666 char
    cd dir; touch inherits; mkdir sub; cd ..
    chmod 6711 low; chown 5:6 lowdir lowpipe lowchar; chown -h 5:6 lowlink; touch -d @77 lowdir";

const SHOWN: [&str; 14] = [
    "file 33:34 4751 regular empty file",
    "dir 33:34 2770 directory",
    "char 33:34 666 character special file",
    "block 33:34 644 block special file",
    "pipe 33:34 644 fifo",
    "link 33:34 777 symbolic link",
    "dir/inherits 0:34 644 regular empty file",
    "dir/sub 0:34 2755 directory",
    "low 1:2 6711 regular file",
    "lowdir 5:6 755 directory",
    "lowdir/deep 3:4 600 regular file",
    "lowpipe 5:6 644 fifo",
    "lowchar 5:6 644 character special file",
    "lowlink 5:6 777 symbolic link",
];
const NAMES: &str =
    "file dir char block pipe link dir/inherits dir/sub low lowdir lowdir/deep lowpipe lowchar lowlink";

fn every_type(place: &Place) {
    sh(
        place,
        "cd a; echo low > low; mkdir lowdir; echo d > lowdir/deep; mkfifo lowpipe; mknod lowchar c 1 5; ln -s x lowlink
         chown 1:2 low; chown 3:4 lowdir/deep; chmod 600 lowdir/deep",
    );
    sh(place, EVERY_TYPE);
}

#[test]
fn owner_mode_and_type_of_everything_are_kept_in_the_attribute() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let options = "lowerdir=a,upperdir=up,workdir=w,xattr_permissions=2";
    sh(&place, &format!("./unionmount -o {options} mnt"));
    every_type(&place);
    assert_eq!(stats(&place, "mnt", NAMES), SHOWN);
    assert_eq!(sh(&place, "stat -c '%t:%T' mnt/char mnt/block mnt/lowchar"), "1:3\n8:11\n1:5\n");
    assert_listing_agrees(&place, "mnt");
    assert_eq!(sh(&place, "find mnt -type c | sort"), "mnt/char\nmnt/lowchar\n");
    // The attribute is hidden, and nobody can set or remove it.
    assert!(!sh(&place, "getfattr -hR -m - -d mnt").contains("override_stat"));
    for change in ["-n user.containers.override_stat -v 0:0:4777", "-x user.containers.override_stat"] {
        assert_eq!(place.sh(&format!("setfattr {change} mnt/file")).code, Some(1));
    }
    // On disk: all of it the daemon's own, without setuid, special files empty regular ones.
    let want = [
        ("up/file", "33:34:4751:file", 0o751),
        ("up/dir", "33:34:2770:dir", 0o770),
        ("up/char", "33:34:0666:char-1-3", 0o666),
        ("up/block", "33:34:0644:block-8-17", 0o644),
        ("up/pipe", "33:34:0644:pipe", 0o644),
        ("up/dir/inherits", "0:34:0644:file", 0o644),
        ("up/dir/sub", "0:34:2755:dir", 0o755),
        ("up/low", "1:2:6711:file", 0o711),
        ("up/lowdir", "5:6:0755:dir", 0o755),
        ("up/lowpipe", "5:6:0644:pipe", 0o644),
        ("up/lowchar", "5:6:0644:char-1-5", 0o644),
    ];
    for (path, value, mode) in want {
        let found = place.at(path).symlink_metadata().unwrap();
        assert_eq!(attribute(&place, path, OVERRIDE), value, "{path}");
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (0, 0, mode), "{path}");
        assert!(found.is_file() || found.is_dir(), "{path}");
    }
    assert!(attribute(&place, "up", OVERRIDE).ends_with(":dir"), "so that other programs read the layer");
    let before = Snapshot::take_checked(&place.at("mnt"));
    umount(&place);
    // The same again, and as a lower.
    for options in [options, "lowerdir=up:a,xattr_permissions=2"] {
        sh(&place, &format!("./unionmount -o {options} mnt"));
        assert_eq!(stats(&place, "mnt", NAMES), SHOWN, "{options}");
        let after = Snapshot::take_checked(&place.at("mnt"));
        let fields = support::Fields::tree();
        assert_eq!(support::diff(&before, &after, &fields), "", "{options}");
        umount(&place);
    }
    // Root believes it only when asked to, for others than root can write it.
    sh(&place, "./unionmount -o lowerdir=up:a mnt");
    assert_eq!(
        stats(&place, "mnt", "file char"),
        ["file 0:0 751 regular empty file", "char 0:0 666 regular empty file"]
    );
    umount(&place);
}

#[test]
fn fuse_overlayfs_reads_what_is_written_here() {
    if !is_root() || !has_fuse_overlayfs() {
        support::skip!("needs root and Debian's fuse-overlayfs");
    }
    for (mode, attribute) in [("1", "security.fuseoverlayfs.override_stat"), ("2", OVERRIDE)] {
        let place = Place::new();
        sh(&place, &format!("./unionmount -o lowerdir=a,upperdir=up,workdir=w,xattr_permissions={mode} mnt"));
        every_type(&place);
        umount(&place);
        assert_eq!(crate::attribute(&place, "up/file", attribute), "33:34:4751:file");
        sh(&place, &format!("{FUSE_OVERLAYFS} -o lowerdir=up:a mnt 2>/dev/null"));
        // It knows no types there, so only directories and files can agree.
        let names = "file dir dir/inherits dir/sub low lowdir lowdir/deep";
        let shown: Vec<&str> = SHOWN
            .into_iter()
            .filter(|line| names.split(' ').any(|name| line.split(' ').next() == Some(name)))
            .collect();
        assert_eq!(stats(&place, "mnt", names), shown);
        place.umount("mnt");
    }
}

#[test]
fn what_fuse_overlayfs_wrote_is_read_here() {
    if !is_root() || !has_fuse_overlayfs() {
        support::skip!("needs root and Debian's fuse-overlayfs");
    }
    for mode in ["1", "2"] {
        let place = Place::new();
        let options = format!("lowerdir=a,upperdir=up,workdir=w,xattr_permissions={mode}");
        sh(&place, "echo l > a/low; chown 1:2 a/low; chmod 4755 a/low; mkdir a/lowdir w");
        sh(
            &place,
            &format!(
                "{FUSE_OVERLAYFS} -o {options} mnt 2>/dev/null; cd mnt; touch new; chmod 4711 new; mkdir dir; chmod 1777 dir
                 chown 33:34 new dir; chown 7:8 lowdir low"
            ),
        );
        let theirs = stats(&place, "mnt", "new dir low lowdir");
        place.umount("mnt");
        assert!(theirs[0].starts_with("new 33:34"), "{theirs:?}");
        sh(&place, &format!("./unionmount -o {options} mnt"));
        assert_eq!(stats(&place, "mnt", "new dir low lowdir"), theirs);
        // What is written goes on in the layer's own attribute.
        sh(&place, "chown 40:41 mnt/new; touch mnt/dir/more; chown 42:43 mnt/dir/more");
        umount(&place);
        let asked = format!("lowerdir=up:a,xattr_permissions={mode}");
        for (program, options) in [(FUSE_OVERLAYFS, "lowerdir=up:a"), ("./unionmount", &asked)] {
            sh(&place, &format!("{program} -o {options} mnt 2>/dev/null"));
            let shown = stats(&place, "mnt", "new dir/more");
            assert!(
                shown[0].starts_with("new 40:41") && shown[1].starts_with("dir/more 42:43"),
                "{program} {shown:?}"
            );
            place.umount("mnt");
        }
    }
}

#[test]
fn an_ordinary_user_sees_and_makes_foreign_owners() {
    if !is_root() {
        support::skip!("needs root, to become an ordinary user");
    }
    let place = Place::of_user();
    // As an image is unpacked by a user.
    sh_as_user(
        &place,
        "mkdir a/etc a/dev; echo s > a/etc/shadow; echo p > a/etc/passwd; touch a/dev/null a/dev/log; echo x > a/su",
    );
    recorded(&place, "a", "0:0:0755:dir");
    recorded(&place, "a/etc", "0:0:0755:dir");
    recorded(&place, "a/dev", "0:0:1777:dir");
    recorded(&place, "a/etc/shadow", "0:42:0640:file");
    recorded(&place, "a/etc/passwd", "0:0:0644"); // as containers/storage wrote it before there were types
    recorded(&place, "a/dev/null", "0:0:0666:char-1-3");
    recorded(&place, "a/dev/log", "0:0:0666:socket");
    recorded(&place, "a/su", "0:0:4755:file");
    sh_as_user(&place, "./unionmount -o lowerdir=a,upperdir=up,xattr_permissions=2 mnt");
    let names = "etc etc/shadow etc/passwd dev dev/null dev/log su";
    let shown = sh_as_user(&place, &format!("cd mnt; stat -c '%n %u:%g %a %F' {names}"));
    let want = "etc 0:0 755 directory\netc/shadow 0:42 640 regular file\netc/passwd 0:0 644 regular file\n\
                dev 0:0 1777 directory\ndev/null 0:0 666 character special file\ndev/log 0:0 666 socket\n\
                su 0:0 4755 regular file\n";
    assert_eq!(shown, want);
    assert_eq!(sh_as_user(&place, "find mnt -type c; find mnt -type s"), "mnt/dev/null\nmnt/dev/log\n");
    // Shown owners and modes are what the kernel enforces, against the user too who owns it all on disk.
    for refused in ["cat mnt/etc/shadow", "echo x > mnt/etc/passwd", "touch mnt/etc/x", "chmod 777 mnt/su"] {
        assert_ne!(place.sh_as_user(refused).code, Some(0), "{refused}");
    }
    // In the sticky directory one may make, but not take away.
    let (uid, gid) = support::cli::user();
    let mine = sh_as_user(&place, "umask 077; touch mnt/dev/mine; stat -c '%u:%g %a' mnt/dev/mine");
    assert_eq!(mine, format!("{uid}:{gid} 600\n"));
    assert_ne!(place.sh_as_user("rm -f mnt/dev/null").code, Some(0));
    assert_eq!(attribute(&place, "up/dev", OVERRIDE), "0:0:1777:dir", "copied up as it was shown");
    let (real, bits) = (fs::metadata(place.at("up/dev")).unwrap(), 0o777);
    assert_eq!((real.uid(), real.mode() & 0o7777), (uid, bits));
    sh_as_user(&place, "fusermount3 -u mnt");
    place.wait_for_no_daemon();
    // Root of a user namespace is a root that may do all this.
    if place.sh_as_user("unshare -Urm true").code != Some(0) {
        support::skip!("no user namespaces here");
    }
    // Ids in the attribute are those of the namespace that mounts, so the upper is one of its own.
    let inside = "set -e; mkdir own; ./unionmount -o lowerdir=a,upperdir=own,xattr_permissions=2 mnt
        echo more >> mnt/etc/passwd; mkfifo mnt/pipe; chmod 600 mnt/etc/passwd; mkdir mnt/root; rm mnt/su
        stat -c '%n %u:%g %a %F' mnt/pipe mnt/root mnt/etc/passwd; umount mnt";
    let inside =
        place.sh_as_user(&format!("unshare -Urm sh -c '{}'", inside.replace('\'', "'\\''"))).ok().out;
    assert_eq!(
        inside,
        "mnt/pipe 0:0 644 fifo\nmnt/root 0:0 755 directory\nmnt/etc/passwd 0:0 600 regular file\n"
    );
    assert_eq!(attribute(&place, "own/etc/passwd", OVERRIDE), "0:0:0600:file");
    assert_eq!(attribute(&place, "own/pipe", OVERRIDE), "0:0:0644:pipe");
    place.wait_for_no_daemon();
}

#[test]
fn force_mask_gives_files_one_mode_on_disk() {
    if !is_root() {
        support::skip!("needs root");
    }
    for (mask, mode) in [("shared", 0o755), ("private", 0o700), ("0710", 0o710)] {
        let place = Place::new();
        sh(&place, "echo l > a/low");
        sh(
            &place,
            &format!("./unionmount -o lowerdir=a,upperdir=up,xattr_permissions=2,force_mask={mask} mnt"),
        );
        sh(&place, "cd mnt; touch f; chmod 4600 f low; mkdir d; chmod 700 d; mknod c c 1 3");
        assert_eq!(stats(&place, "mnt", "f d")[..], ["f 0:0 4600 regular empty file", "d 0:0 700 directory"]);
        for name in ["f", "d", "c", "low"] {
            assert_eq!(
                fs::metadata(place.at("up").join(name)).unwrap().mode() & 0o7777,
                mode,
                "{mask} {name}"
            );
        }
        umount(&place);
    }
}

#[test]
fn a_change_of_owner_or_content_takes_privileges_away() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    sh(
        &place,
        "./unionmount -o lowerdir=a,upperdir=up,xattr_permissions=2 mnt; cd mnt; echo x > f; echo x > g",
    );
    sh(&place, "cd mnt; chmod 6777 f g; chown 33:33 f; mkdir d; chmod 2777 d; chown 33:33 d");
    let want = ["f 33:33 777 regular file", "g 0:0 6777 regular file", "d 33:33 2777 directory"];
    assert_eq!(stats(&place, "mnt", "f g d"), want, "a directory keeps setgid");
    let g = place.at("mnt/g");
    as_ids(54_321, 54_321, 0o022, || fs::write(&g, "by another").unwrap());
    assert_eq!(fs::metadata(&g).unwrap().mode() & 0o7777, 0o777);
    // setgid of a directory goes to what is made in it, by the attribute's group.
    as_ids(54_321, 54_321, 0o022, || fs::create_dir(place.at("mnt/d/sub")).unwrap());
    assert_eq!(stats(&place, "mnt/d", "sub")[0], "sub 54321:33 2755 directory");
    umount(&place);
}

#[test]
fn links_renames_and_unnamed_files_keep_it() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    sh(&place, "echo l > a/one; ln a/one a/two; chown 1:2 a/one; mkdir a/dir; echo x > a/dir/x");
    sh(&place, "./unionmount -o lowerdir=a,upperdir=up,workdir=w,xattr_permissions=2 mnt");
    sh(
        &place,
        "cd mnt; chown 5:6 two; mv two three; ln one four; mv dir moved; mknod dev c 1 3; mv dev dev2; ln dev2 dev3",
    );
    let want = ["one 5:6 644 regular file", "three 5:6 644 regular file", "four 5:6 644 regular file"];
    assert_eq!(stats(&place, "mnt", "one three four"), want);
    assert_eq!(
        sh(&place, "cd mnt; stat -c '%h %F' one dev3; stat -c %i one three four | uniq | wc -l"),
        "3 regular file\n2 character special file\n1\n"
    );
    assert_eq!(stats(&place, "mnt", "moved moved/x").len(), 2);
    // A whiteout over a recorded device, and one more time a name.
    sh(&place, "cd mnt; rm dev2 dev3; mkdir dev2; rmdir dev2; mknod dev2 b 8 1; rm -r moved; mkdir dir");
    assert_eq!(stats(&place, "mnt", "dev2")[0], "dev2 0:0 644 block special file");
    let unnamed = fs::File::from(
        rustix::fs::open(
            place.at("mnt"),
            rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
            rustix::fs::Mode::from_raw_mode(0o640),
        )
        .unwrap(),
    );
    assert_eq!(unnamed.metadata().unwrap().mode() & 0o7777, 0o640);
    unnamed.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(unnamed.metadata().unwrap().mode() & 0o7777, 0o600);
    drop(unnamed);
    let before = Snapshot::take_checked(&place.at("mnt"));
    umount(&place);
    sh(&place, "./unionmount -o lowerdir=a,upperdir=up,workdir=w,xattr_permissions=2 mnt");
    let after = Snapshot::take_checked(&place.at("mnt"));
    assert_eq!(support::diff(&before, &after, &support::Fields::tree()), "");
    umount(&place);
}

#[test]
fn acls_are_refused_where_modes_are_not_on_the_files() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    sh(&place, "echo l > a/f; setfacl -m u:9:rw a/f; mkdir a/d; setfacl -d -m u:9:rw a/d");
    sh(
        &place,
        "./unionmount -o lowerdir=a,upperdir=up,xattr_permissions=2 mnt; touch mnt/f mnt/d/new; umask 022",
    );
    assert!(place.sh("setfacl -m u:5:r mnt/f").err.contains("not supported"));
    assert!(!sh(&place, "getfattr -m - -d mnt/f").contains("acl"));
    assert_eq!(stats(&place, "mnt/d", "new")[0], "new 0:0 644 regular empty file");
    assert!(!sh(&place, "getfacl -cn up/f").contains("user:9"));
    umount(&place);
}

#[test]
fn a_value_that_nobody_writes_is_refused_not_guessed() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    sh(&place, "cd a; touch f g h; mkdir d");
    recorded(&place, "a", "0:0:0755:dir");
    recorded(&place, "a/f", "0:0:rwx:file");
    recorded(&place, "a/g", "0:0:0755:dir");
    recorded(&place, "a/d", "0:0:0755:file");
    sh(&place, "./unionmount -o lowerdir=a,xattr_permissions=2 mnt");
    for name in ["f", "g", "d"] {
        support::assert_errno!(place.at("mnt").join(name).symlink_metadata(), Errno::IO);
    }
    assert_eq!(stats(&place, "mnt", "h").len(), 1);
    umount(&place);
}

#[test]
fn where_it_is_not_in_use_the_attribute_is_hidden_and_left_out_of_copies() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    sh(&place, "echo l > a/f");
    recorded(&place, "a/f", "5:6:0600:file");
    sh(&place, "./unionmount -o lowerdir=a,upperdir=up mnt");
    assert_eq!(attribute(&place, "mnt/f", OVERRIDE), "");
    assert_eq!(stats(&place, "mnt", "f")[0], "f 0:0 644 regular file");
    sh(&place, "touch mnt/f");
    assert_eq!(attribute(&place, "up/f", OVERRIDE), "");
    umount(&place);
}

#[test]
fn links_and_capabilities_that_a_user_could_not_make_are_shown_as_they_are() {
    if !is_root() {
        support::skip!("needs root, to become an ordinary user");
    }
    const CAPABILITY: &str = "0x0100000200200000000000000000000000000000";
    let place = Place::of_user();
    // As `unionmount load` unpacks an image for a user.
    sh_as_user(
        &place,
        &format!(
            "cd a; printf /target/of/it > link; echo x > ping; chmod 755 ping
         setfattr -n user.unionmount.kept.security.capability -v {CAPABILITY} ping"
        ),
    );
    recorded(&place, "a", "0:0:0755:dir");
    recorded(&place, "a/link", "5:6:0777:symlink");
    recorded(&place, "a/ping", "0:0:0755:file");
    let look = |dir: &str| {
        assert_eq!(
            stats(&place, dir, "link ping"),
            ["link 5:6 777 symbolic link", "ping 0:0 755 regular file"]
        );
        assert_eq!(fs::read_link(place.at(dir).join("link")).unwrap().to_str(), Some("/target/of/it"));
        let shown = sh(&place, &format!("getfattr -m - -e hex -d {dir}/ping"));
        assert!(shown.contains(&format!("security.capability={CAPABILITY}")), "{shown}");
        assert!(!shown.contains("kept") && !shown.contains("override"), "{shown}");
        assert_listing_agrees(&place, dir);
    };
    // Root's daemon, so that root may look and change.
    sh(&place, "./unionmount -o lowerdir=a,upperdir=up,workdir=w,xattr_permissions=2 mnt");
    look("mnt");
    sh(&place, "touch -h mnt/link mnt/ping; mv mnt/link mnt/l2; mv mnt/l2 mnt/link");
    look("mnt");
    umount(&place);
    assert!(fs::symlink_metadata(place.at("up/link")).unwrap().is_file(), "it keeps its owner");
    assert_eq!(attribute(&place, "up/link", OVERRIDE), "5:6:0777:symlink");
    place.wait_for_no_daemon();
    // A user's daemon copies real capabilities up under the other name; a change of owner or content takes them away.
    sh(
        &place,
        &format!(
            "rm -r up w; mkdir up; chown {0}:{0} up; cp /bin/true b/cap; setcap cap_net_raw+ep b/cap",
            support::cli::USER
        ),
    );
    let script = "set -e; ./unionmount -o lowerdir=b,upperdir=up,xattr_permissions=2 mnt; touch mnt/mine";
    sh_as_user(&place, script);
    sh_as_user(&place, "fusermount3 -u mnt");
    place.wait_for_no_daemon();
    recorded(&place, "b", "0:0:0777:dir");
    let (uid, gid) = support::cli::user();
    recorded(&place, "b/cap", &format!("{uid}:{gid}:0755:file"));
    sh_as_user(&place, "./unionmount -o lowerdir=b,upperdir=up,xattr_permissions=2 mnt; chmod 700 mnt/cap");
    assert!(sh_as_user(&place, "getfattr -m - -d mnt/cap").contains("security.capability"));
    assert!(sh(&place, "getfattr -m - -d up/cap").contains("user.unionmount.kept.security.capability"));
    sh_as_user(&place, "echo >> mnt/cap; sync mnt/cap");
    assert!(!sh_as_user(&place, "getfattr -m - -d mnt/cap").contains("security.capability"));
    sh_as_user(&place, "fusermount3 -u mnt");
    place.wait_for_no_daemon();
}

#[test]
fn links_of_an_image_that_a_user_unpacked_belong_to_whom_the_image_says() {
    if !is_root() {
        support::skip!("needs root, to become an ordinary user");
    }
    let place = Place::of_user();
    sh(
        &place,
        "mkdir t t/etc; ln -s a t/etc/of-root; ln -s b t/etc/of-five; chown -h 5:6 t/etc/of-five; echo s > t/etc/shadow
         chown 0:42 t/etc/shadow; chmod 640 t/etc/shadow; mknod t/null c 1 3; tar -C t -cf t.tar .",
    );
    let mounted = "export HOME=$PWD XDG_DATA_HOME=$PWD/data XDG_RUNTIME_DIR=$PWD
        ./unionmount import t.tar image >/dev/null
        layer=$(dirname $(dirname $(find data -name shadow)))
        ./unionmount -o lowerdir=$layer,upperdir=up,xattr_permissions=2 mnt
        cd mnt; stat -c '%n %u:%g %a %F' etc etc/of-root etc/of-five etc/shadow null";
    let want = "etc 0:0 755 directory\netc/of-root 0:0 777 symbolic link\netc/of-five 5:6 777 symbolic link\n\
                etc/shadow 0:42 640 regular file\nnull 0:0 644 character special file\n";
    assert_eq!(sh_as_user(&place, mounted), want);
    // What the user makes is the user's, beside it.
    sh_as_user(&place, "ln -s c mnt/mine; [ $(stat -c %u mnt/mine) = $(id -u) ]; fusermount3 -u mnt");
    place.wait_for_no_daemon();
}
