//! Images of filesystems as lowers: who mounts them, what they are made of, and the kernel beside.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::cli::{Ended, Place, is_root};
use crate::{Fields, LoopFilesystem, Snapshot, diff, skipped};

/// Makes `tree`: blocks, ends in fragments, holes, hardlinks, a directory of several runs, odd names, attributes, links, times.
pub const TREE: &str = "
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

/// What only root can make.
pub const OF_ROOT: &str = "
    mknod tree/d/null c 1 3; mknod tree/d/disk b 259 70000; chown 70000:4000000000 tree/d/large
    setcap cap_net_raw+ep tree/small; setfattr -n trusted.note -v t tree/d/deep; setfattr -h -n trusted.note -v l tree/d/link
    setfattr -n trusted.note -v d tree/d/null; setfattr -n trusted.note -v f tree/d/fifo";

/// Who mounts, and where.
pub struct Who {
    pub place: Place,
    pub is_root: bool,
}

impl Who {
    pub fn root() -> Who {
        Who { place: Place::new(), is_root: true }
    }

    pub fn user() -> Who {
        Who { place: Place::of_user(), is_root: false }
    }

    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let ended = self.ended(script);
        assert_eq!(ended.code, Some(0), "{script}: {ended:?}");
        ended.out
    }

    pub fn ended(&self, script: &str) -> Ended {
        if self.is_root { self.place.sh(script) } else { self.place.sh_as_user(script) }
    }

    pub fn umount(&self) {
        self.place.umount("m");
        self.place.wait_for_no_daemon();
    }

    /// All that a user sees of a tree, a line a name.
    pub fn seen(&self, tree: &str) -> String {
        self.sh(&format!(
            "cd {tree}; find . -mindepth 1 -type d -printf '%p %y %m %u %g %n %T@\\n' -o -mindepth 1 \
             -printf '%p %y %m %u %g %n %s %l %T@\\n' | LC_ALL=C sort; \
             find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sh -c 'sha256sum \"$@\"; getfattr -hd \"$@\"' 0"
        ))
    }

    /// Has the kernel mount an image of that format, where it can: `k`.
    pub fn kernel(&self, format: &str, image: &str) -> Option<LoopFilesystem> {
        let tried = self.ended(&format!("mount -t {format} -o loop,ro {image} k && umount k"));
        if tried.code != Some(0) {
            skipped(&format!("the kernel here can't mount {format}: {}", tried.err));
            return None;
        }
        let (image, point) = (self.place.at(image), self.place.at("k"));
        let words = ["-t", format, "-o", "loop,ro", image.to_str().unwrap()];
        Some(LoopFilesystem::at(&point, &words))
    }
}

/// An ordinary user, and root where that is who runs the tests.
pub fn everybody() -> Vec<Who> {
    let mut all = vec![Who::user()];
    if is_root() {
        all.push(Who::root());
    }
    all
}

/// Compares what is read at many places of two files.
pub fn reads_alike(one: &File, other: &File, options: &str) {
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

/// Mounts an image of [`TREE`] and `more` as everybody over a directory, and changes what it shows: the image stays, and all is there again
/// after a remount. `changed` looks at the upper meanwhile.
pub fn changes_go_to_the_upper(image: &str, more: &str, pack: impl Fn(&Who), changed: impl Fn(&Who)) {
    for who in everybody() {
        who.sh(&format!("{TREE}{more}"));
        pack(&who);
        who.sh(&format!("sha256sum {image} > sum"));
        let mount = format!("XDG_CACHE_HOME=$PWD/cache ./unionmount --lower {image}:base --upper up m");
        who.sh(&mount);
        let options = who.place.mounted("m").unwrap().options.join(",");
        assert!(!who.is_root || options.contains("nosuid") && options.contains("nodev"), "{options}");
        who.sh("rm base/below; touch -r tree/d base; cat m/d/file");
        assert_eq!(who.seen("tree"), who.seen("m"));
        let number = who.sh("stat -c '%i %h' m/d/file m/d/deep/name | uniq");
        assert!(number.ends_with(" 2\n") && number.lines().count() == 1, "{number}");
        who.sh("echo more >> m/d/file; rm m/d/large; mv m/d/hole m/moved; chmod 600 m/d/holes
             cmp m/d/holes tree/d/holes; mkdir m/d/new; echo new > m/d/new/x; mv m/many m/renamed");
        changed(&who);
        let changed = who.seen("m");
        assert_eq!(who.sh("cat m/d/deep/name; cat m/renamed/file-77"), "contentmore\n77\n");
        who.umount();
        who.sh(&mount);
        assert_eq!(who.seen("m"), changed);
        assert_eq!(who.sh("stat -c '%i %h' m/d/file m/d/deep/name | uniq"), number);
        assert!(who.ended("test -e m/d/large").code != Some(0));
        assert!(who.sh("./unionmount layers m").contains(image));
        assert!(who.sh("./unionmount explain m/none").contains(image));
        assert!(who.sh("./unionmount status m").contains(image));
        who.umount();
        assert!(who.sh(&format!("./unionmount layers ./{image}")).contains(image));
        assert!(who.sh(&format!("./unionmount explain {image} d/file")).contains(image));
        // The image is as it was.
        who.sh("sha256sum -c sum");
    }
}

/// Whiteouts and opaque directories of an image hide what lies below; redirects of it lead nowhere.
pub fn marks_that_hide_count(image: &str, pack: impl Fn(&Who)) {
    for who in everybody() {
        who.sh("mkdir -p tree/d tree/o base/d base/o m k; touch tree/d/kept tree/o/own tree/d/.wh.other base/d/gone base/d/other base/o/below
             mknod tree/d/gone c 0 0; setfattr -n user.overlay.opaque -v y tree/o; echo base > base/secret
             mkdir tree/led; setfattr -n user.overlay.redirect -v /d tree/led; echo own > tree/led/x");
        pack(&who);
        who.sh(&format!("./unionmount --log-file log -o userxattr --lower {image}:base m"));
        assert_eq!(who.sh("ls -A m/d m/o m/led"), "m/d:\nkept\nother\n\nm/led:\nx\n\nm/o:\nown\n");
        let log = who.sh("cat log");
        assert!(log.contains("1 names begin with .wh.") && log.contains("1 marks of an overlay"), "{log}");
        assert_eq!(who.sh("getfattr -d m/o m/led"), "", "nobody is shown marks");
        who.umount();
        // Whether attributes are believed doesn't matter: these only hide.
        who.sh(&format!("./unionmount --lower {image},layer:base m"));
        assert_eq!(who.sh("ls -A m/d m/o"), "m/d:\nkept\n\nm/o:\nown\n");
        who.umount();
    }
}

/// An upper of the kernel's overlayfs, made an image, is the layer that it is for the kernel.
pub fn an_upper_is_a_layer(
    image: &str,
    pack: impl Fn(&Who),
    kernel: impl Fn(&Who) -> Option<LoopFilesystem>,
) {
    let who = Who::root();
    who.sh("set -e; mkdir -p base/d base/o/p m k up tree merged work; touch base/d/a base/d/b base/o/p/x base/o/y
         mount -t overlay -o lowerdir=base,upperdir=tree,workdir=work overlay merged
         rm merged/d/a; rm -r merged/o; mkdir merged/o; touch merged/o/new; umount merged");
    pack(&who);
    let Some(kernel) = kernel(&who) else { return };
    who.sh("mount -t overlay -o lowerdir=k:base overlay merged");
    let expected = Snapshot::take(&who.place.at("merged"));
    who.sh(&format!("umount merged; ./unionmount --lower {image}:base m"));
    assert_eq!(diff(&expected, &Snapshot::take_checked(&who.place.at("m")), &Fields::tree()), "");
    who.umount();
    drop(kernel);
}

/// An object of a SIF. Of what is no partition the last numbers have no meaning.
#[derive(Debug, Clone, Copy)]
pub struct SifObject<'a> {
    pub kind: u32,
    pub used: bool,
    pub filesystem: u32,
    pub purpose: u32,
    pub content: &'a [u8],
}

/// Makes a file as Apptainer keeps containers in, by github.com/apptainer/sif, pkg/sif.
pub fn sif(objects: &[SifObject<'_>]) -> Vec<u8> {
    let put = |file: &mut [u8], at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let mut file = vec![0; 128];
    put(&mut file, 0, b"#!/usr/bin/env run-singularity\n");
    put(&mut file, 32, b"SIF_MAGIC\x0001\0");
    // How many descriptors there are, where, and how long they are together.
    for (at, number) in [(88, objects.len()), (96, 128), (104, objects.len() * 585)] {
        put(&mut file, at, &(number as u64).to_le_bytes());
    }
    let mut place = 128 + objects.len() * 585;
    for object in objects {
        let mut one = [0; 585];
        put(&mut one, 0, &object.kind.to_le_bytes());
        one[4] = u8::from(object.used);
        put(&mut one, 17, &(place as u64).to_le_bytes());
        put(&mut one, 25, &(object.content.len() as u64).to_le_bytes());
        put(&mut one, 201, &object.filesystem.to_le_bytes());
        put(&mut one, 205, &object.purpose.to_le_bytes());
        file.extend(one);
        place += object.content.len();
    }
    objects.iter().for_each(|object| file.extend(object.content));
    file
}
