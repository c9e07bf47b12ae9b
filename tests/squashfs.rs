//! squashfs images as lowers: they show what the kernel shows of them, take changes as a directory does, and damage is told.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::Path;

use sha2::{Digest, Sha256};
use support::filesystem_image::{
    OF_ROOT, SifObject, TREE, Who, an_upper_is_a_layer, changes_go_to_the_upper, marks_that_hide_count,
    reads_alike, sif,
};
use support::{Fields, LoopFilesystem, Snapshot, Time, diff, needs_program, needs_root};

/// An image has no parts of seconds, and seconds beyond 2038.
const TIMES: &str = "; find tree ! -name dangling -exec touch -h -d '2039-02-02 02:02:02' {} +";

/// Makes `tree.sqfs` of `tree`.
fn squash(who: &Who, options: &str) {
    who.sh(&format!("rm -f tree.sqfs; mksquashfs tree tree.sqfs -quiet -no-progress {options}"));
}

/// Has the kernel mount it, where it can: `k`.
fn kernel(who: &Who) -> Option<LoopFilesystem> {
    who.kernel("squashfs", "tree.sqfs")
}

#[test]
fn an_image_shows_what_the_kernel_shows_of_it() {
    needs_program!("mksquashfs");
    needs_root!();
    let who = Who::root();
    who.sh(&format!("{TREE}{OF_ROOT}"));
    let _socket = UnixListener::bind(who.place.at("tree/d/socket")).unwrap();
    who.sh(&format!("true{TIMES}"));
    for options in [
        "-comp gzip",
        "-comp xz",
        "-comp xz -Xbcj x86 -b 4096",
        "-comp zstd",
        "-comp zstd -b 4096 -no-fragments -no-duplicates",
        "-comp lz4",
        "-comp lzo",
        "-comp gzip -b 1M -always-use-fragments -no-exports",
        "-comp gzip -b 4096 -noI -noD -noF -noX -noId",
    ] {
        squash(&who, options);
        who.sh("XDG_CACHE_HOME=$PWD/cache ./unionmount -o suid,dev --lower tree.sqfs m");
        let (packed, found) =
            (Snapshot::take(&who.place.at("tree")), Snapshot::take_checked(&who.place.at("m")));
        assert_eq!(diff(&packed, &found, &Fields::tree()), "", "{options}: what was packed");
        for name in ["d/large", "d/holes", "d/noise", "small", "many/file-7"] {
            let open = |tree: &str| File::open(who.place.at(tree).join(name)).unwrap();
            reads_alike(&open("tree"), &open("m"), options);
        }
        // Many kernels are built without the filters for machine code.
        if !options.contains("bcj")
            && let Some(kernel) = kernel(&who)
        {
            assert_eq!(diff(&Snapshot::take(kernel.path()), &found, &Fields::tree()), "", "{options}");
            // It counts no blocks for holes, and some for attributes.
            let blocks = |tree: &str| who.sh(&format!("stat -c %b {tree}/d/holes {tree}/many/file-7"));
            assert_eq!(blocks("k"), blocks("m"), "{options}");
        }
        who.umount();
    }
}

/// All that an inode says of its object, of each kind in both of its forms: attributes and several names make the long one.
#[test]
fn the_attributes_of_all_kinds_of_objects_are_those_that_the_kernel_shows() {
    needs_program!("mksquashfs");
    needs_root!();
    let who = Who::root();
    who.sh("set -e; mkdir -p tree/short/dir tree/long/dir m k; cd tree
         for form in short long; do
             printf content > $form/file; ln -s /some/where $form/link; mkfifo $form/fifo
             mknod $form/char c 4095 1048575; mknod $form/block b 0 255
             python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' $form/socket
         done
         for name in dir file link fifo char block socket; do setfattr -h -n trusted.$name -v value-of-$name long/$name; done
         for name in dir file; do setfattr -n user.$name -v value-of-$name long/$name; done
         setfattr -n user.empty long/file; setfattr -n user.raw -v 0x00ff0a00 long/file
         setfattr -n user.much -v $(head -c 3000 /dev/zero | tr '\\0' v) long/file
         cp --preserve=xattr long/file long/other
         for form in short long; do
             chmod 0 $form/fifo; chmod 7777 $form/file; chmod 1070 $form/dir; chmod 2604 $form/char; chmod 644 $form/block
             chown -h 4294967294:65536 $form/link; chown 1:4294967294 $form/dir; chown 65535:0 $form/socket
         done
         printf program > program; setcap cap_net_raw,cap_chown+ep program
         ln long/file name; ln long/file long/dir/third; ln short/block short/dir/second
         touch -h -d @0 short/link; touch -d @1 short/file; touch -d @2147483648 long/file; touch -d @4294967295 long/dir");
    for options in ["-comp gzip", "-comp zstd -no-exports -no-tailends", "-comp xz -noI -noX -noId"] {
        squash(&who, options);
        let Some(kernel) = kernel(&who) else { return };
        who.sh("./unionmount -o suid,dev --lower tree.sqfs m");
        let (expected, found) = (Snapshot::take(kernel.path()), Snapshot::take_checked(&who.place.at("m")));
        assert_eq!(diff(&expected, &found, &Fields::tree()), "", "{options}");
        // What is compared is there: mksquashfs could have left it out, and the kernel.
        let of = |path: &str| expected.get(path).unwrap();
        assert_eq!(of("program").xattrs[&b"security.capability"[..]].len(), 20, "{options}");
        assert_eq!((of("long/file").xattrs.len(), of("long/other").xattrs.len()), (5, 5), "{options}");
        for name in ["dir", "link", "fifo", "char", "block", "socket"] {
            let (short, long) = (of(&format!("short/{name}")), of(&format!("long/{name}")));
            assert_eq!(short.xattrs.len(), 0, "{options}: {name}");
            let value = &long.xattrs[format!("trusted.{name}").as_bytes()];
            assert_eq!(*value, format!("value-of-{name}").into_bytes(), "{options}");
        }
        assert_eq!((of("long/file").nlink, of("short/block").nlink), (Some(3), Some(2)), "{options}");
        assert_eq!((of("long/file").mode & 0o7777, of("long/fifo").mode & 0o7777), (0o7777, 0));
        assert_eq!((of("long/link").uid, of("long/link").gid), (u32::MAX - 1, 65536));
        let numbers = |path: &str| (rustix::fs::major(of(path).rdev), rustix::fs::minor(of(path).rdev));
        assert_eq!((numbers("short/char"), numbers("long/block")), ((4095, 1_048_575), (0, 255)));
        for (path, seconds) in
            [("short/link", 0), ("short/file", 1), ("long/file", 1 << 31), ("long/dir", u32::MAX.into())]
        {
            assert_eq!(of(path).mtime, Time::At(seconds, 0), "{options}: {path}");
        }
        who.umount();
    }
}

#[test]
fn everybody_mounts_one_and_changes_go_to_the_upper() {
    needs_program!("mksquashfs");
    changes_go_to_the_upper(
        "tree.sqfs",
        TIMES,
        |who| squash(who, "-comp zstd"),
        |who| {
            assert!(
                who.sh("stat -c %b up/d/holes").trim().parse::<u64>().unwrap() < 2000,
                "holes stay holes"
            );
        },
    );
}

#[test]
fn in_a_file_of_apptainer_it_is_the_layer() {
    needs_program!("mksquashfs");
    let who = Who::user();
    who.sh("mkdir -p tree/d m up w; seq 1 60000 > tree/d/f; ln tree/d/f tree/second; head -c 2000000 /dev/urandom > tree/noise");
    squash(&who, "-comp zstd");
    let image = fs::read(who.place.at("tree.sqfs")).unwrap();
    let object =
        |kind, filesystem, purpose, content| SifObject { kind, used: true, filesystem, purpose, content };
    let objects = [
        object(0x4001, 0, 0, b"bootstrap: docker"),
        object(0x4004, 1, 2, &image),
        object(0x4005, 0, 0, b"signed"),
    ];
    fs::write(who.place.at("app.sif"), sif(&objects)).unwrap();
    who.sh("until [ $(($(date +%s) - $(stat -c %Z app.sif))) -gt 2 ]; do sleep 0.1; done");
    let digest = who.sh("sha256sum app.sif").split_once(char::is_whitespace).unwrap().0.to_owned();
    let cached = "XDG_CACHE_HOME=$PWD/cache ./unionmount";
    // The second time out of what was kept.
    for _ in 0..2 {
        who.sh(&format!("{cached} --lower app.sif --upper up --work w m"));
        who.sh("cmp m/d/f tree/d/f; cmp m/noise tree/noise; [ $(stat -c %h m/second) = 2 ]");
        who.sh("echo more >> m/second; tail -n1 m/d/f | grep -qx more; rm m/second");
        who.umount();
        who.sh("rm -r up; mkdir up");
        assert_eq!(who.sh("ls cache/unionmount/archives").lines().count(), 1);
    }
    assert!(who.sh("./unionmount layers app.sif").contains("app.sif"));
    let held = format!("./unionmount --lower app.sif,layer=sha256:{digest} m");
    who.ended(&held).refused(1, &["lower layer 1 app.sif", "a SIF", "digest"]);
    fs::write(who.place.at("ext3.sif"), sif(&[object(0x4004, 2, 2, &image)])).unwrap();
    who.ended("./unionmount --lower ext3.sif m")
        .refused(1, &["lower layer 1 ext3.sif", "ext3", "squashfs is"]);
}

#[test]
fn marks_that_hide_count_and_marks_that_lead_elsewhere_do_not() {
    needs_program!("mksquashfs");
    marks_that_hide_count("tree.sqfs", |who| squash(who, "-comp gzip"));
}

#[test]
fn a_squashed_upper_is_a_layer_as_for_the_kernel() {
    needs_program!("mksquashfs");
    needs_root!();
    an_upper_is_a_layer("tree.sqfs", |who| squash(who, "-comp gzip"), kernel);
}

#[test]
fn damage_of_a_file_is_told_and_the_mount_goes_on() {
    needs_program!("mksquashfs");
    let who = Who::user();
    who.sh("mkdir -p tree/d m; seq 1 100000 > tree/d/large; seq 1 50 > tree/small; seq 1 90000 > tree/other; head -c 150000 /dev/urandom > tree/noise");
    squash(&who, "-comp zstd -noI -noF");
    // The first block of data stands behind the superblock, and begins with zstd's mark.
    let image = who.place.at("tree.sqfs");
    let mut bytes = fs::read(&image).unwrap();
    assert_eq!(bytes[96..100], [0x28, 0xb5, 0x2f, 0xfd]);
    bytes[96] = 0;
    fs::write(&image, &bytes).unwrap();
    who.sh("./unionmount --log-file log --lower tree.sqfs m");
    let read = who.ended("head -c 10 m/d/large");
    assert!(read.err.contains("Input/output error"), "{read:?}");
    let log = who.sh("cat log");
    assert!(log.contains("tree.sqfs: d/large cannot be read at 0: the block at"), "{log}");
    who.sh("cmp tree/small m/small; cmp tree/noise m/noise; cmp -i 450000 m/d/large tree/d/large");
    // Somebody writes into it.
    who.sh("printf x | dd of=tree.sqfs bs=1 seek=4000 conv=notrunc status=none");
    let read = who.ended("head -c 10 m/other");
    assert!(read.err.contains("Input/output error"), "{read:?}");
    who.umount();
}

#[test]
fn an_image_that_cannot_be_read_is_refused_with_what_is_wrong() {
    needs_program!("mksquashfs");
    let who = Who::user();
    who.sh("mkdir -p tree/d m; seq 1 1000 > tree/d/f");
    // Whether it knows it is how it was built.
    if who.ended("mksquashfs tree tree.sqfs -quiet -no-progress -comp lzma").code == Some(0) {
        who.ended("./unionmount --lower tree.sqfs m")
            .refused(1, &["lower layer 1 tree.sqfs", "LZMA", "unsquashfs"]);
    }
    squash(&who, "-comp gzip");
    let image = who.place.at("tree.sqfs");
    let bytes = fs::read(&image).unwrap();
    let with = |at: usize, new: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    for (bytes, said) in [
        (bytes[..50].to_vec(), "ends within its superblock"),
        (bytes[..300].to_vec(), "it is cut"),
        (with(28, &[3]), "before 4.0"),
        (with(20, &[77]), "unknown compressor, 77"),
        (with(12, &[1]), "blocks of 131073 bytes"),
        (with(32, &[0xff; 8]), "/: it ends before the byte"),
        (with(64, &[0xff; 8]), "table of inodes"),
        (with(48, &[0xff; 7]), "table of owners"),
        (with(80, &[0; 8]), "fragments"),
        (with(16, &[0xff; 4]), "tells of 4294967295 fragments"),
    ] {
        fs::write(&image, &bytes).unwrap();
        who.ended("./unionmount --lower tree.sqfs m").refused(1, &["lower layer 1 tree.sqfs: ", said]);
    }
}

#[test]
fn what_was_read_of_an_image_is_there_for_the_next_mount() {
    needs_program!("mksquashfs");
    let who = Who::user();
    who.sh(&format!("{TREE}{TIMES}"));
    who.sh("head -c 2000000 /dev/urandom > tree/noise; rm tree/smaller; seq 1 20 > tree/smallish");
    squash(&who, "-comp gzip");
    who.sh("until [ $(($(date +%s) - $(stat -c %Z tree.sqfs))) -gt 2 ]; do sleep 0.1; done");
    let mount = "XDG_CACHE_HOME=$PWD/cache ./unionmount --lower tree.sqfs m";
    who.sh(mount);
    let seen = who.seen("m");
    who.umount();
    who.sh(mount);
    let kept = who.sh("ls cache/unionmount/archives");
    assert!(who.seen("m") == seen && kept.lines().count() == 1, "{kept}");
    who.umount();
    // What is kept is what is shown: nobody looks at the names in the image again.
    rename_in_index(&who.place.at("cache/unionmount/archives").join(kept.trim_end()));
    who.sh(mount);
    assert_eq!(who.sh("ls m | grep ^small"), "small\nsmallest\n");
    assert_eq!(who.sh("cat m/smallest"), who.sh("cat tree/smallish"));
    who.umount();
    who.sh("touch tree.sqfs; until [ $(($(date +%s) - $(stat -c %Z tree.sqfs))) -gt 2 ]; do sleep 0.1; done");
    who.sh(mount);
    assert_eq!(who.seen("m"), seen, "a changed image is another one");
    // Several at once have caches of their own.
    who.sh("mkdir n; XDG_CACHE_HOME=$PWD/cache ./unionmount --lower tree.sqfs n");
    assert_eq!(who.seen("n"), seen);
    who.place.umount("n");
    who.umount();
}

/// Writes another name into a kept index, and its digest anew (docs/archives.md, "The kept files").
fn rename_in_index(index: &Path) {
    const BODY: usize = 8 + 32 + 16;
    let mut bytes = fs::read(index).unwrap();
    let places: Vec<usize> =
        bytes.windows(8).enumerate().filter(|(_, name)| name == b"smallish").map(|(at, _)| at).collect();
    let [at] = places[..] else { panic!("it is there {} times", places.len()) };
    bytes[at..at + 8].copy_from_slice(b"smallest");
    let digest = Sha256::digest(&bytes[BODY..]);
    bytes[8..40].copy_from_slice(&digest);
    fs::write(index, bytes).unwrap();
}
