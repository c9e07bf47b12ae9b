//! Archives as lowers: a tar shows what unpacking it shows, and takes changes as a directory does.

#![allow(missing_docs)]

use support::cli::{Ended, Place, is_root};
use support::{Fields, LoopFilesystem, Scratch, Snapshot, diff};

/// Makes `tree`, and `tree.tar` of it: hardlinks, holes, odd and long names, attributes, links, times.
const TREE: &str = "
    mkdir -p tree/d/deep/er tree/empty base m up
    head -c 200000 /dev/urandom > tree/d/large
    printf content > tree/d/file; ln tree/d/file tree/d/deep/name
    ln -s deep/er tree/d/link; ln -s /nowhere tree/dangling
    truncate -s 3M tree/d/holes; printf end | dd of=tree/d/holes bs=1 seek=2000000 conv=notrunc status=none
    truncate -s 1M tree/d/hole
    touch \"tree/d/$(printf 'odd\\nname')\" tree/d/$(head -c 250 /dev/zero | tr '\\0' n)
    mkfifo tree/d/fifo; chmod 711 tree/d/deep; chmod 4755 tree/d/file
    setfattr -n user.note -v value tree/d/file
    find tree -exec touch -h -d '2020-02-02 02:02:02.123456789' {} +
    tar --xattrs --sparse --format=posix -C tree -cf tree.tar .
    echo base > base/below";

/// A place, and who works in it: nobody else sees an ordinary user's mount.
struct Who {
    place: Place,
    is_root: bool,
}

impl Who {
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
}

fn everybody() -> Vec<Who> {
    let mut all = vec![Who { place: Place::of_user(), is_root: false }];
    if is_root() {
        all.push(Who { place: Place::new(), is_root: true });
    }
    all
}

#[test]
fn a_tar_shows_what_it_holds() {
    for who in everybody() {
        who.sh(TREE);
        for (file, pack) in [
            ("tree.tar", "true"),
            ("tree.tar.gz", "gzip -k tree.tar"),
            ("tree.tar.zst", "zstd -qk tree.tar"),
            ("tree.tar.xz", "xz -k tree.tar"),
        ] {
            who.sh(pack);
            who.sh(&format!("XDG_CACHE_HOME=$PWD/cache ./unionmount --lower {file} m"));
            assert_eq!(who.seen("tree"), who.seen("m"), "{file}");
            if who.is_root {
                let (expected, found) =
                    (Snapshot::take(&who.place.at("tree")), Snapshot::take_checked(&who.place.at("m")));
                assert_eq!(diff(&expected, &found, &Fields::tree()), "", "{file}");
            }
            assert_eq!(who.sh("stat -c '%i %h' m/d/file m/d/deep/name | uniq | wc -l"), "1\n");
            who.umount();
        }
    }
}

#[test]
fn what_was_decoded_is_there_for_the_next_mount() {
    for who in everybody() {
        who.sh(TREE);
        // Larger than what isn't worth it, and older than what can be changed unseen.
        who.sh("head -c 2000000 /dev/urandom > tree/d/large; tar --xattrs --sparse -C tree -cf - . | zstd -q -o tree.tar.zst
             until [ $(($(date +%s) - $(stat -c %Z tree.tar.zst))) -gt 2 ]; do sleep 0.1; done");
        let mount = "XDG_CACHE_HOME=$PWD/cache ./unionmount --lower tree.tar.zst m";
        let kept = "stat -c '%i %z' cache/unionmount/archives/*.data";
        who.sh(mount);
        let (first, seen) = (who.sh(kept), who.seen("m"));
        who.umount();
        who.sh(mount);
        assert_eq!((who.sh(kept), who.seen("m")), (first, seen), "it was decoded again");
        // Somebody tidies up: who has it mounted has it on.
        let prune = "XDG_CACHE_HOME=$PWD/cache ./unionmount --root nowhere prune --cache --force";
        let said = who.sh(prune);
        assert!(said.contains("kept of archives") && !said.contains(" 0 B "), "{said}");
        assert_eq!(who.sh("ls cache/unionmount/archives"), "");
        who.sh("cmp tree/d/large m/d/large");
        who.umount();
        // What FUSE tells of times may be anything.
        who.sh(
            "mkdir dir inner; mv tree.tar.zst dir; ./unionmount --lower dir inner
             XDG_CACHE_HOME=$PWD/cache ./unionmount --lower inner/tree.tar.zst m; cmp tree/d/large m/d/large",
        );
        assert_eq!(who.sh("ls cache/unionmount/archives"), "");
        who.place.umount("m");
        who.place.umount("inner");
        who.place.wait_for_no_daemon();
    }
}

#[test]
fn what_is_kept_never_stands_in_the_way_of_a_mount() {
    support::needs_root!();
    let who = Who { place: Place::new(), is_root: true };
    let scratch = Scratch::new();
    let filesystem = LoopFilesystem::tmpfs(&scratch, "disk", 40 << 20);
    let disk = filesystem.path().display();
    who.sh("mkdir m; for name in one two; do mkdir $name; head -c 4000000 /dev/urandom > $name/f; tar -C $name -cf - . | zstd -q -o $name.tar.zst; done
         until [ $(($(date +%s) - $(stat -c %Z two.tar.zst))) -gt 2 ]; do sleep 0.1; done");
    let mount = |name: &str| {
        who.sh(&format!("XDG_CACHE_HOME={disk} ./unionmount --lower {name}.tar.zst m; cmp {name}/f m/f"));
        who.umount();
    };
    let archives = format!("{disk}/unionmount/archives");
    let kept = || who.sh(&format!("ls {archives}"));
    mount("one");
    assert_eq!(kept().lines().count(), 2, "{}", kept());
    // Files that aren't its own, and no room but for a part of the next.
    who.sh(&format!(
        "touch {archives}/mine; mkdir {archives}/my.data
         head -c $(($(df --output=avail -B1 {disk} | tail -1) - 1000000)) /dev/zero > {disk}/full"
    ));
    mount("two");
    assert_eq!(kept(), "mine\nmy.data\n");
}

#[test]
fn changes_go_to_the_upper_and_are_there_again() {
    for who in everybody() {
        who.sh(TREE);
        let mount = "./unionmount --lower tree.tar:base --upper up m";
        who.sh(mount);
        let number = who.sh("stat -c %i m/d/file");
        who.sh("echo more >> m/d/file; rm m/d/large; mv m/d/hole m/moved; chmod 600 m/d/holes
             cmp m/d/holes tree/d/holes; mkdir m/d/new; echo new > m/d/new/x; echo base >> m/below");
        let changed = who.seen("m");
        assert_eq!(who.sh("cat m/d/deep/name; cat m/below"), "contentmore\nbase\nbase\n");
        who.umount();
        who.sh(mount);
        assert_eq!(who.seen("m"), changed);
        assert_eq!(who.sh("stat -c %i m/d/file"), number);
        assert!(who.ended("test -e m/d/large").code != Some(0));
        who.umount();
        // The archive is as it was.
        who.sh("tar --compare -C tree -f tree.tar");
    }
}

#[test]
fn marks_count_in_layers_alone_and_nothing_in_it_is_trusted() {
    for who in everybody() {
        who.sh("mkdir -p l/d base/d m; touch l/d/.wh.hidden l/new base/d/hidden base/d/kept
             chmod 4755 l/new; tar -C l -cf l.tar .");
        who.sh("./unionmount --lower l.tar:base m");
        assert_eq!(who.sh("ls m/d"), "hidden\nkept\n");
        let options = who.place.mounted("m").unwrap().options.join(",");
        assert!(options.contains("nosuid") && options.contains("nodev"), "{options}");
        who.umount();
        who.sh("./unionmount --lower l.tar,layer:base m");
        assert_eq!(who.sh("ls m/d"), "kept\n");
        // What the daemon says of its layers leads there again.
        assert!(who.sh("./unionmount layers m").contains("l.tar,layer"));
        assert!(who.sh("./unionmount explain m/d").contains("l.tar"));
        assert!(who.sh("./unionmount status m").contains("an archive"));
        who.umount();
        assert!(who.sh("./unionmount layers ./l.tar").contains("l.tar"));
        assert!(who.sh("./unionmount explain --lower l.tar:base d/kept").contains("layer 2 (base)"));
    }
}

#[test]
fn what_was_opened_is_mistrusted_not_what_was_there_before() {
    support::needs_root!();
    let who = Who { place: Place::new(), is_root: true };
    who.sh("mkdir base lower m; mkfifo first second; printf x > program; chmod 4755 program; tar -cf l.tar program");
    // The daemon waits at the second fifo, after its command line was read and before its layers are opened: meanwhile the
    // directory becomes a tar.
    who.sh("./unionmount --hold first --hold second --lower lower:base m & mount=$!
         : > first; rmdir lower; mv l.tar lower; : > second; wait $mount");
    assert_eq!(who.sh("stat -c %a m/program"), "4755\n", "the tar was opened");
    let options = who.place.mounted("m").unwrap().options.join(",");
    assert!(options.contains("nosuid") && options.contains("nodev"), "{options}");
    who.umount();
    who.sh("./unionmount -o suid --lower lower:base m");
    let options = who.place.mounted("m").unwrap().options.join(",");
    assert!(!options.contains("nosuid") && options.contains("nodev"), "{options}");
    who.umount();
    // Nor does a fifo hold the mount up.
    let fifo = who.ended("mkfifo fifo; timeout 20 ./unionmount --lower fifo:base m");
    fifo.refused(1, &["lower layer 1 fifo"]);
}

#[test]
fn what_is_no_archive_or_changes_is_told() {
    let who = Who { place: Place::of_user(), is_root: false };
    who.sh(TREE);
    who.sh("echo '#!/bin/sh' > text; head -c 5000 tree.tar > cut.tar");
    who.ended("./unionmount --lower text:base m")
        .refused(1, &["lower layer 1 text: is a file, and no archive"]);
    who.ended("./unionmount --lower cut.tar:base m").refused(1, &["cut.tar: ", "ends"]);
    assert!(who.place.mounted("m").is_none());
    who.sh("./unionmount --log-file log --lower tree.tar:base m");
    who.sh("printf x | dd of=tree.tar bs=1 seek=100000 conv=notrunc status=none");
    let read = who.ended("cat m/d/large");
    assert!(read.err.contains("Input/output error"), "{read:?}");
    assert!(who.sh("cat log").contains("changed since it was opened"));
    assert_eq!(who.sh("cat m/below"), "base\n", "the mount goes on");
    who.umount();
}
