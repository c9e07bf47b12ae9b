//! squashfs images as lowers: they show what the kernel shows of them, take changes as a directory does, and damage is told.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;

use support::cli::{Ended, Place, is_root};
use support::{Fields, LoopFilesystem, Snapshot, diff, needs_program, needs_root};

/// Makes `tree`: blocks, ends in fragments, holes, hardlinks, a directory of several runs, odd names, attributes, links, times.
const TREE: &str = "
    mkdir -p tree/d/deep/er tree/empty tree/many base m k up
    seq 1 200000 | head -c 777777 > tree/d/large
    head -c 300000 /dev/urandom > tree/d/noise; printf content > tree/d/file; ln tree/d/file tree/d/deep/name
    : > tree/none; seq 1 1000 > tree/small; seq 1 10 > tree/smaller
    ln -s deep/er tree/d/link; ln -s /nowhere tree/dangling
    truncate -s 3M tree/d/holes; seq 1 50000 | dd of=tree/d/holes bs=4k seek=300 conv=notrunc status=none
    truncate -s 1M tree/d/hole
    for i in $(seq 1 700); do echo $i > tree/many/file-$i; done
    touch \"tree/d/$(printf 'odd\\nname')\" \"tree/d/$(printf 'la\\374t')\" tree/d/$(head -c 250 /dev/zero | tr '\\0' n)
    mkfifo tree/d/fifo; chmod 711 tree/d/deep; chmod 4755 tree/d/file; chmod 1777 tree/empty
    setfattr -n user.note -v value tree/d/file; setfattr -n user.note -v other tree/d/deep
    for name in large noise; do setfattr -n user.long -v $(head -c 3000 /dev/zero | tr '\\0' v) tree/d/$name; done
    touch -h -d '1970-01-01 00:00:01 UTC' tree/dangling; echo base > base/below";

/// An image has no parts of seconds, and seconds beyond 2038.
const TIMES: &str = "; find tree ! -name dangling -exec touch -h -d '2039-02-02 02:02:02' {} +";

/// What only root can make.
const OF_ROOT: &str = "
    mknod tree/d/null c 1 3; mknod tree/d/disk b 259 70000; chown 70000:4000000000 tree/d/large
    setcap cap_net_raw+ep tree/small; setfattr -n trusted.note -v t tree/d/deep; setfattr -h -n trusted.note -v l tree/d/link
    setfattr -n trusted.note -v d tree/d/null; setfattr -n trusted.note -v f tree/d/fifo";

struct Who {
    place: Place,
    is_root: bool,
}

impl Who {
    fn root() -> Who {
        Who { place: Place::new(), is_root: true }
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let ended = self.ended(script);
        assert_eq!(ended.code, Some(0), "{script}: {ended:?}");
        ended.out
    }

    fn ended(&self, script: &str) -> Ended {
        if self.is_root { self.place.sh(script) } else { self.place.sh_as_user(script) }
    }

    fn umount(&self) {
        self.place.umount("m");
        self.place.wait_for_no_daemon();
    }

    /// All that a user sees of a tree, a line a name.
    fn seen(&self, tree: &str) -> String {
        self.sh(&format!(
            "cd {tree}; find . -mindepth 1 -type d -printf '%p %y %m %u %g %n %T@\\n' -o -mindepth 1 \
             -printf '%p %y %m %u %g %n %s %l %T@\\n' | LC_ALL=C sort; \
             find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sh -c 'sha256sum \"$@\"; getfattr -hd \"$@\"' 0"
        ))
    }

    /// Makes `tree.sqfs` of `tree`.
    fn squash(&self, options: &str) {
        self.sh(&format!("rm -f tree.sqfs; mksquashfs tree tree.sqfs -quiet -no-progress {options}"));
    }

    fn kernel(&self) -> LoopFilesystem {
        let image = self.place.at("tree.sqfs");
        LoopFilesystem::at(&self.place.at("k"), &["-t", "squashfs", "-o", "loop,ro", image.to_str().unwrap()])
    }
}

fn everybody() -> Vec<Who> {
    let mut all = vec![Who { place: Place::of_user(), is_root: false }];
    if is_root() {
        all.push(Who::root());
    }
    all
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
        "-comp gzip -b 1M -always-use-fragments -no-exports",
        "-comp gzip -b 4096 -noI -noD -noF -noX -noId",
    ] {
        who.squash(options);
        who.sh("XDG_CACHE_HOME=$PWD/cache ./unionmount -o suid,dev --lower tree.sqfs m");
        let (packed, found) =
            (Snapshot::take(&who.place.at("tree")), Snapshot::take_checked(&who.place.at("m")));
        assert_eq!(diff(&packed, &found, &Fields::tree()), "", "{options}: what was packed");
        for name in ["d/large", "d/holes", "d/noise", "small", "many/file-7"] {
            let open = |tree: &str| File::open(who.place.at(tree).join(name)).unwrap();
            reads_alike(&open("tree"), &open("m"), options);
        }
        // Many kernels are built without the filters for machine code.
        if !options.contains("bcj") {
            let kernel = who.kernel();
            assert_eq!(diff(&Snapshot::take(kernel.path()), &found, &Fields::tree()), "", "{options}");
            // It counts no blocks for holes, and some for attributes.
            let blocks = |tree: &str| who.sh(&format!("stat -c %b {tree}/d/holes {tree}/many/file-7"));
            assert_eq!(blocks("k"), blocks("m"), "{options}");
        }
        who.umount();
    }
}

/// Compares what is read at many places of two files.
fn reads_alike(one: &File, other: &File, options: &str) {
    let size = one.metadata().unwrap().len();
    let mut rng = fastrand::Rng::with_seed(size);
    let mut buffers = (vec![0; 200_000], vec![0; 200_000]);
    for _ in 0..60 {
        let (at, count) = (rng.u64(0..=size), rng.usize(1..200_000));
        let read = |file: &File, buffer: &mut [u8]| {
            let mut done = 0;
            loop {
                match file.read_at(&mut buffer[done..count], at + done as u64).unwrap() {
                    0 => return done,
                    more => done += more,
                }
            }
        };
        let counts = (read(one, &mut buffers.0), read(other, &mut buffers.1));
        assert_eq!(counts.0, counts.1, "{options}: {count} bytes at {at} of {size}");
        assert!(buffers.0[..counts.0] == buffers.1[..counts.0], "{options}: {count} bytes at {at} of {size}");
    }
}

#[test]
fn everybody_mounts_one_and_changes_go_to_the_upper() {
    needs_program!("mksquashfs");
    for who in everybody() {
        who.sh(&format!("{TREE}{TIMES}"));
        who.squash("-comp zstd");
        who.sh("sha256sum tree.sqfs > sum");
        let mount = "XDG_CACHE_HOME=$PWD/cache ./unionmount --lower tree.sqfs:base --upper up m";
        who.sh(mount);
        let options = who.place.mounted("m").unwrap().options.join(",");
        assert!(!who.is_root || options.contains("nosuid") && options.contains("nodev"), "{options}");
        who.sh("rm base/below; touch -r tree/d base; cat m/d/file");
        assert_eq!(who.seen("tree"), who.seen("m"));
        let number = who.sh("stat -c '%i %h' m/d/file m/d/deep/name | uniq");
        assert!(number.ends_with(" 2\n") && number.lines().count() == 1, "{number}");
        who.sh("echo more >> m/d/file; rm m/d/large; mv m/d/hole m/moved; chmod 600 m/d/holes
             cmp m/d/holes tree/d/holes; mkdir m/d/new; echo new > m/d/new/x; mv m/many m/renamed");
        assert!(who.sh("stat -c %b up/d/holes").trim().parse::<u64>().unwrap() < 2000, "holes stay holes");
        let changed = who.seen("m");
        assert_eq!(who.sh("cat m/d/deep/name; cat m/renamed/file-77"), "contentmore\n77\n");
        who.umount();
        who.sh(mount);
        assert_eq!(who.seen("m"), changed);
        assert_eq!(who.sh("stat -c '%i %h' m/d/file m/d/deep/name | uniq"), number);
        assert!(who.ended("test -e m/d/large").code != Some(0));
        assert!(who.sh("./unionmount layers m").contains("tree.sqfs"));
        assert!(who.sh("./unionmount explain m/none").contains("tree.sqfs"));
        assert!(who.sh("./unionmount status m").contains("tree.sqfs"));
        who.umount();
        assert!(who.sh("./unionmount layers ./tree.sqfs").contains("tree.sqfs"));
        assert!(who.sh("./unionmount explain tree.sqfs d/file").contains("tree.sqfs"));
        // The image is as it was.
        who.sh("sha256sum -c sum");
    }
}

#[test]
fn marks_that_hide_count_and_marks_that_lead_elsewhere_do_not() {
    needs_program!("mksquashfs");
    for who in everybody() {
        who.sh("mkdir -p tree/d tree/o base/d base/o m k; touch tree/d/kept tree/o/own tree/d/.wh.other base/d/gone base/d/other base/o/below
             mknod tree/d/gone c 0 0; setfattr -n user.overlay.opaque -v y tree/o; echo base > base/secret
             mkdir tree/led; setfattr -n user.overlay.redirect -v /d tree/led; echo own > tree/led/x");
        who.squash("-comp gzip");
        who.sh("./unionmount --log-file log -o userxattr --lower tree.sqfs:base m");
        assert_eq!(who.sh("ls -A m/d m/o m/led"), "m/d:\nkept\nother\n\nm/led:\nx\n\nm/o:\nown\n");
        let log = who.sh("cat log");
        assert!(log.contains("1 names begin with .wh.") && log.contains("1 marks of an overlay"), "{log}");
        assert_eq!(who.sh("getfattr -d m/o m/led"), "", "nobody is shown marks");
        who.umount();
        // Whether attributes are believed doesn't matter: these only hide.
        who.sh("./unionmount --lower tree.sqfs,layer:base m");
        assert_eq!(who.sh("ls -A m/d m/o"), "m/d:\nkept\n\nm/o:\nown\n");
        who.umount();
    }
}

#[test]
fn a_squashed_upper_is_a_layer_as_for_the_kernel() {
    needs_program!("mksquashfs");
    needs_root!();
    let who = Who::root();
    who.sh("mkdir -p base/d base/o/p m k up tree merged work; touch base/d/{a,b} base/o/p/x base/o/y
         mount -t overlay -o lowerdir=base,upperdir=tree,workdir=work overlay merged
         rm merged/d/a; rm -r merged/o; mkdir merged/o; touch merged/o/new; umount merged");
    who.squash("-comp gzip");
    let kernel = who.kernel();
    who.sh("mount -t overlay -o lowerdir=k:base overlay merged");
    let expected = Snapshot::take(&who.place.at("merged"));
    who.sh("umount merged; ./unionmount --lower tree.sqfs:base m");
    assert_eq!(diff(&expected, &Snapshot::take_checked(&who.place.at("m")), &Fields::tree()), "");
    who.umount();
    drop(kernel);
}

#[test]
fn damage_of_a_file_is_told_and_the_mount_goes_on() {
    needs_program!("mksquashfs");
    let who = Who { place: Place::of_user(), is_root: false };
    who.sh("mkdir -p tree/d m; seq 1 100000 > tree/d/large; seq 1 50 > tree/small; seq 1 90000 > tree/other; head -c 150000 /dev/urandom > tree/noise");
    who.squash("-comp zstd -noI -noF");
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
    let who = Who { place: Place::of_user(), is_root: false };
    who.sh("mkdir -p tree/d m; seq 1 1000 > tree/d/f");
    for (options, said) in [("-comp lzo", "LZO"), ("-comp lzma", "LZMA")] {
        // Which of them it knows is how it was built.
        if who
            .ended(&format!("rm -f tree.sqfs; mksquashfs tree tree.sqfs -quiet -no-progress {options}"))
            .code
            == Some(0)
        {
            who.ended("./unionmount --lower tree.sqfs m")
                .refused(1, &["lower layer 1 tree.sqfs", said, "unsquashfs"]);
        }
    }
    who.squash("-comp gzip");
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
    let who = Who { place: Place::of_user(), is_root: false };
    who.sh(&format!("{TREE}{TIMES}"));
    who.sh("head -c 2000000 /dev/urandom > tree/noise");
    who.squash("-comp gzip");
    who.sh("until [ $(($(date +%s) - $(stat -c %Z tree.sqfs))) -gt 2 ]; do sleep 0.1; done");
    let mount = "XDG_CACHE_HOME=$PWD/cache ./unionmount --lower tree.sqfs m";
    who.sh(mount);
    let (first, seen) = (who.sh("stat -c '%i %y %s' cache/unionmount/archives/*.index"), who.seen("m"));
    who.umount();
    who.sh(mount);
    assert_eq!(
        (who.seen("m"), who.sh("ls cache/unionmount/archives | wc -l")),
        (seen.clone(), "1\n".to_owned())
    );
    assert!(!first.is_empty());
    // Several at once have caches of their own.
    who.sh("mkdir n; XDG_CACHE_HOME=$PWD/cache ./unionmount --lower tree.sqfs n");
    assert_eq!(who.seen("n"), seen);
    who.place.umount("n");
    who.umount();
}
