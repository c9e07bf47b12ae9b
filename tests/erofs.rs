//! EROFS images as lowers: they show what the kernel shows of them, take changes as a directory does, and what isn't read is told.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;

use support::filesystem_image::{
    OF_ROOT, TREE, Who, an_upper_is_a_layer, changes_go_to_the_upper, marks_that_hide_count, reads_alike,
};
use support::{Fields, LoopFilesystem, Snapshot, Time, diff, needs_program, needs_root};

/// Attributes that several files have, which are kept once, and ACLs.
const SHARED: &str = "
    for name in file-1 file-2 file-3; do
        setfattr -n user.shared -v $(head -c 300 /dev/zero | tr '\\0' s) tree/many/$name; setfattr -n user.own -v $name tree/many/$name
    done
    setfacl -m u:12:rwx,g:13:r tree/many/file-1; setfacl -d -m u:12:rx tree/d/deep; setfattr -n user.empty tree/many/file-2";

/// Makes `tree.erofs` of `tree`.
fn pack(who: &Who, options: &str) {
    who.sh(&format!("rm -f tree.erofs; mkfs.erofs --quiet {options} tree.erofs tree >mkfs 2>&1 || {{ cat mkfs >&2; false; }}"));
}

/// Has the kernel mount it, where it can: `k`.
fn kernel(who: &Who) -> Option<LoopFilesystem> {
    who.kernel("erofs", "tree.erofs")
}

/// Changes the image, whose checksum nobody is to look at then.
fn change(who: &Who, change: impl FnOnce(&mut Vec<u8>)) {
    let image = who.place.at("tree.erofs");
    let mut bytes = fs::read(&image).unwrap();
    bytes[1024 + 8] &= !1;
    change(&mut bytes);
    fs::write(&image, &bytes).unwrap();
}

/// A number of the image.
fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn an_image_shows_what_the_kernel_shows_of_it() {
    needs_program!("mkfs.erofs");
    needs_root!();
    let who = Who::root();
    who.sh(&format!("{TREE}{OF_ROOT}{SHARED}"));
    let _socket = UnixListener::bind(who.place.at("tree/d/socket")).unwrap();
    for (options, are_times_kept) in [
        ("", true),
        ("-x1", true),
        ("-Eforce-inode-extended,noinline_data", true),
        // Short inodes have the time of the image.
        ("-T1700000000", false),
        ("--ignore-mtime -Enoinline_data", false),
        ("--chunksize=4096", true),
        ("--chunksize=65536 -Eforce-chunk-indexes -x1", true),
        ("--chunksize=4096 -Eforce-chunk-indexes -T1700000000", false),
    ] {
        pack(&who, options);
        who.sh("XDG_CACHE_HOME=$PWD/cache ./unionmount -o suid,dev --lower tree.erofs m");
        let (packed, found) =
            (Snapshot::take(&who.place.at("tree")), Snapshot::take_checked(&who.place.at("m")));
        let times = Fields { mtime: are_times_kept, directory_mtime: are_times_kept, ..Fields::tree() };
        assert_eq!(diff(&packed, &found, &times), "", "{options}: what was packed");
        for name in ["d/large", "d/holes", "d/noise", "small", "many/file-7"] {
            let open = |tree: &str| File::open(who.place.at(tree).join(name)).unwrap();
            reads_alike(&open("tree"), &open("m"), options);
        }
        if let Some(kernel) = kernel(&who) {
            assert_eq!(diff(&Snapshot::take(kernel.path()), &found, &Fields::tree()), "", "{options}");
        }
        // What is compared is there.
        assert_eq!(found.get("many/file-2").unwrap().xattrs.len(), 3, "{options}");
        assert_eq!(found.get("small").unwrap().xattrs[&b"security.capability"[..]].len(), 20, "{options}");
        assert_eq!(found.get("d/large").unwrap().gid, 4_000_000_000, "{options}");
        assert!(
            found.get("d/deep").unwrap().xattrs.contains_key(&b"system.posix_acl_default"[..]),
            "{options}"
        );
        who.umount();
    }
}

/// mkfs.erofs forces what doesn't fit into one form of inode into it, so here is only what fits.
#[test]
fn objects_are_alike_in_both_forms_of_inodes() {
    needs_program!("mkfs.erofs");
    needs_root!();
    let who = Who::root();
    who.sh("set -e; mkdir -p tree/dir/below m k; cd tree
         printf content > file; ln -s /some/where link; mkfifo fifo; mknod char c 4095 1048575; mknod block b 0 255
         python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' socket
         for name in dir file link fifo char block socket; do setfattr -h -n trusted.$name -v value-of-$name $name; done
         setfattr -n user.raw -v 0x00ff0a00 file; ln file dir/second; ln char dir/other; : > none
         chmod 0 fifo; chmod 7777 file; chmod 1070 dir; chmod 2604 char; chown -h 65535:1 link; chown 1:65535 dir
         head -c 4096 /dev/urandom > block-long; head -c 4097 /dev/urandom > longer; head -c 3990 /dev/urandom > shorter
         touch -d @-5.25 file");
    for (form, has_times) in [("force-inode-compact -T1700000001", false), ("force-inode-extended", true)] {
        pack(&who, &format!("-E{form}"));
        let Some(kernel) = kernel(&who) else { return };
        who.sh("./unionmount -o suid,dev --lower tree.erofs m");
        let (expected, found) = (Snapshot::take(kernel.path()), Snapshot::take_checked(&who.place.at("m")));
        assert_eq!(diff(&expected, &found, &Fields::tree()), "", "{form}");
        let of = |path: &str| found.get(path).unwrap();
        for name in ["dir", "file", "link", "fifo", "char", "block", "socket"] {
            let value = &of(name).xattrs[format!("trusted.{name}").as_bytes()];
            assert_eq!(*value, format!("value-of-{name}").into_bytes(), "{form}");
        }
        let time = if has_times { Time::At(-6, 750_000_000) } else { Time::At(1_700_000_001, 0) };
        assert_eq!(of("file").mtime, time, "{form}");
        assert_eq!(
            (of("file").nlink, of("char").nlink, of("file").mode & 0o7777),
            (Some(2), Some(2), 0o7777)
        );
        assert_eq!((of("link").uid, of("dir").gid), (65535, 65535), "{form}");
        let numbers = |path: &str| (rustix::fs::major(of(path).rdev), rustix::fs::minor(of(path).rdev));
        assert_eq!((numbers("char"), numbers("block")), ((4095, 1_048_575), (0, 255)), "{form}");
        who.umount();
    }
}

/// mkfs.erofs writes zeros for holes, so they are made here, in its maps of chunks.
#[test]
fn chunks_that_are_not_there_are_holes_as_for_the_kernel() {
    needs_program!("mkfs.erofs");
    needs_root!();
    let who = Who::root();
    who.sh("mkdir -p tree m k up; seq 1 100000 > tree/holes; seq 1 10 > tree/other");
    for (options, unit) in [("-Eforce-inode-blockmap", 4), ("-Eforce-chunk-indexes", 8)] {
        pack(&who, &format!("--chunksize=4096 {options}"));
        let Some(kernel) = kernel(&who) else { return };
        let inode = fs::metadata(kernel.path().join("holes")).unwrap().ino() as usize;
        drop(kernel);
        change(&who, |bytes| {
            let at = number(bytes, 1024 + 40) as usize * 4096 + inode * 32;
            let (form, chunks) = (u16::from_le_bytes([bytes[at], bytes[at + 1]]), bytes[at + 16]);
            assert_eq!((form >> 1 & 7, form & 1, chunks), (4, 1, if unit == 8 { 0x20 } else { 0 }));
            assert_eq!(number(bytes, at) >> 16, 0, "it has no attributes");
            for chunk in (0..4).chain(10..60).chain([100]) {
                let entry = at + 64 + chunk * unit;
                bytes[entry + unit - 4..entry + unit].fill(0xff);
            }
        });
        let Some(kernel) = self::kernel(&who) else { return };
        who.sh("./unionmount --lower tree.erofs --upper up m");
        let open = |path: &std::path::Path| File::open(path.join("holes")).unwrap();
        reads_alike(&open(kernel.path()), &open(&who.place.at("m")), options);
        who.sh("cmp k/holes m/holes; cmp tree/other m/other");
        // 55 of 144 blocks are none.
        let blocks = |tree: &str| who.sh(&format!("stat -c %b {tree}/holes")).trim().parse::<u64>().unwrap();
        assert_eq!(blocks("m"), 588_895_u64.saturating_sub(55 * 4096).div_ceil(512));
        let data = who.sh("python3 -c '
import os
f = os.open(\"m/holes\", os.O_RDONLY)
print(os.lseek(f, 0, os.SEEK_DATA) // 4096, os.lseek(f, 5 * 4096, os.SEEK_HOLE) // 4096, os.lseek(f, 40960, os.SEEK_DATA) // 4096)'");
        assert_eq!(data, "4 10 60\n", "{options}");
        who.sh("chmod 600 m/holes; cmp k/holes up/holes");
        assert!(blocks("up") < 800, "{options}: holes stay holes");
        who.umount();
        who.sh("rm -r up; mkdir up");
        drop(kernel);
    }
}

#[test]
fn everybody_mounts_one_and_changes_go_to_the_upper() {
    needs_program!("mkfs.erofs");
    changes_go_to_the_upper("tree.erofs", "", |who| pack(who, ""), |_| {});
}

#[test]
fn marks_that_hide_count_and_marks_that_lead_elsewhere_do_not() {
    needs_program!("mkfs.erofs");
    marks_that_hide_count("tree.erofs", |who| pack(who, ""));
}

#[test]
fn an_upper_made_an_image_is_a_layer_as_for_the_kernel() {
    needs_program!("mkfs.erofs");
    needs_root!();
    an_upper_is_a_layer("tree.erofs", |who| pack(who, ""), kernel);
}

#[test]
fn what_is_written_into_a_mounted_image_is_not_shown() {
    needs_program!("mkfs.erofs");
    let who = Who::user();
    who.sh("mkdir -p tree m; seq 1 100000 > tree/large; seq 1 50 > tree/small");
    pack(&who, "");
    who.sh("./unionmount --log-file log --lower tree.erofs m; cmp -n 1000 tree/large m/large
         printf x | dd of=tree.erofs bs=1 seek=200000 conv=notrunc status=none");
    let read = who.ended("cat m/small");
    assert!(read.err.contains("Input/output error"), "{read:?}");
    let log = who.sh("cat log");
    assert!(
        log.contains("tree.erofs: cannot be read at") && log.contains("changed since it was opened"),
        "{log}"
    );
    who.umount();
    // By its digest it is another one.
    let digest = who.sh("sha256sum < tree.erofs").split(' ').next().unwrap().to_owned();
    who.sh(&format!("./unionmount --lower 'tree.erofs,layer=sha256\\:{digest}' m; test -e m/large"));
    who.umount();
    who.sh("printf y | dd of=tree.erofs bs=1 seek=200000 conv=notrunc status=none");
    who.ended(&format!("./unionmount --lower 'tree.erofs,layer=sha256\\:{digest}' m"))
        .refused(1, &["has the digest"]);
}

#[test]
fn an_image_that_cannot_be_read_is_refused_with_what_is_wrong() {
    needs_program!("mkfs.erofs");
    let who = Who::user();
    who.sh("mkdir -p tree/d m; seq 1 10000 > tree/d/f; seq 1 9 > tree/d/small");
    let refused = |said: &[&str]| {
        let words = [&["lower layer 1 tree.erofs: "], said].concat();
        who.ended("./unionmount --lower tree.erofs m").refused(1, &words);
    };
    for options in ["-zlz4", "-zlz4 -Elegacy-compress"] {
        pack(&who, options);
        refused(&["d/f: is compressed", "without -z"]);
    }
    pack(&who, "-zlz4 -C65536 -Eztailpacking");
    refused(&["ztailpacking", "without -z"]);
    who.sh(": > blobs");
    pack(&who, "--chunksize=4096 --blobdev=blobs");
    refused(&["1 further files or devices"]);
    pack(&who, "");
    let image = who.place.at("tree.erofs");
    let bytes = fs::read(&image).unwrap();
    let with = |at: usize, new: &[u8]| {
        fs::write(&image, &bytes).unwrap();
        change(&who, |bytes| bytes[1024 + at..1024 + at + new.len()].copy_from_slice(new));
        fs::read(&image).unwrap()
    };
    let mut flipped = bytes.clone();
    flipped[1024 + 64] ^= 1;
    for (bytes, said) in [
        (flipped, "its superblock has the checksum"),
        (bytes[..1100].to_vec(), "ends within its superblock"),
        (bytes[..4096].to_vec(), "it is cut"),
        (with(12, &[30]), "blocks of 2^30 bytes"),
        (with(14, &[0xff; 2]), "/: it ends before the byte"),
        (with(80, &[0x80]), "48bit"),
    ] {
        fs::write(&image, &bytes).unwrap();
        refused(&[said]);
    }
}
