//! A lower that holds the mount, its upper and its workdir, as `/` does: the daemon never waits for itself, and what is its
//! own shows nothing and can't be changed.

#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::MetadataExt;

use support::cli::{Ended, Place, run};

/// A tree that is a lower and holds all else, with something mounted in it. A daemon that hangs is killed in the end.
struct Tree(Place);

impl Tree {
    fn new(place: Place) -> Tree {
        for dir in ["l/d/sub", "l/up", "l/mnt", "l/bound"] {
            place.mkdir(dir);
        }
        for file in ["l/d/f", "l/d/sub/g", "l/file"] {
            fs::write(place.at(file), file).expect("write");
        }
        Tree(place)
    }

    /// One thread answers, so that a request to the daemon itself is never answered.
    fn mount(&self, layers: &str) {
        self.sh(&format!("./unionmount -s {layers}")).ok();
    }

    /// Runs a script that must end.
    #[track_caller]
    fn sh(&self, script: &str) -> Ended {
        let ended = self.0.sh(&format!("timeout -k 1 10 sh -c '{script}'"));
        assert!(!matches!(ended.code, Some(124 | 137)), "it hangs: {script}");
        ended
    }

    #[track_caller]
    fn busy(&self, script: &str) {
        let ended = self.sh(script);
        assert!(
            ended.code != Some(0) && ended.err.contains("Device or resource busy"),
            "{script}: {ended:?}"
        );
    }

    fn list(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> =
            self.sh(&format!("ls -A {dir}")).ok().out.lines().map(Into::into).collect();
        names.sort();
        names
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for daemon in self.0.daemons() {
                run(std::process::Command::new("kill").args(["-9", &daemon.to_string()]));
            }
        }
    }
}

const IN_ITSELF: &str = "--lower l --upper l/up l/mnt";

#[test]
fn the_mount_its_upper_and_its_workdir_are_empty_and_stay() {
    support::needs_root!();
    let tree = Tree::new(Place::new());
    tree.mount(IN_ITSELF);
    assert_eq!(tree.list("l/mnt"), [".up.work", "bound", "d", "file", "mnt", "up"]);
    for own in [".up.work", "mnt", "up"] {
        let own = format!("l/mnt/{own}");
        assert!(tree.list(&own).is_empty(), "{own}");
        for change in
            ["touch X/new", "rmdir X", "mv X l/mnt/moved", "chmod 711 X", "mkdir X/d", "mv -T l/mnt/bound X"]
        {
            tree.busy(&change.replace('X', &own));
        }
    }
    // All that is not refused is done, to the end.
    tree.busy("rm -r l/mnt");
    assert_eq!(tree.list("l/mnt"), [".up.work", "mnt", "up"]);
    assert!(tree.0.at("l/d/sub/g").exists());
    tree.0.umount("l/mnt");
    tree.mount(IN_ITSELF);
    tree.sh("echo new >l/mnt/kept").ok();
    tree.0.umount("l/mnt");
    assert_eq!(fs::read_to_string(tree.0.at("l/up/kept")).unwrap(), "new\n");
}

#[test]
fn what_is_mounted_in_the_lower_is_seen_and_the_mount_is_not_entered_wherever_it_is_bound() {
    support::needs_root!();
    let tree = Tree::new(Place::new());
    tree.sh("mount -t tmpfs none l/bound && mkdir l/bound/at && touch l/bound/file && echo x >l/bound/f")
        .ok();
    tree.mount(IN_ITSELF);
    let covered = fs::metadata(tree.0.at("l/up")).unwrap().dev();
    assert_ne!(fs::metadata(tree.0.at("l/mnt")).unwrap().dev(), covered);
    // Before anybody has looked there, and after.
    for _ in 0..2 {
        tree.sh(
            "mount --bind l/mnt l/bound/at && touch l/mnt/d/own && mount --bind l/mnt/d/own l/bound/file",
        )
        .ok();
        assert_eq!(tree.sh("cat l/mnt/bound/f").ok().out, "x\n");
        assert!(tree.list("l/mnt/bound/at").is_empty());
        assert!(tree.list("l/mnt/mnt").is_empty());
        tree.busy("cat l/mnt/bound/file");
        tree.busy("touch l/mnt/bound/at/new");
        // A tree that is open below what is covered now.
        tree.sh("mount --bind l/mnt l/d/sub").ok();
        assert!(["", "g"].contains(&&*tree.list("l/mnt/d/sub").join("")));
        for walk in ["find l/mnt", "du -s l/mnt", "ls -lR l/mnt", "grep -r x l/mnt"] {
            tree.sh(walk);
        }
        tree.sh("cp -r l/mnt/d copy && rm -r copy").ok();
        tree.sh("umount l/d/sub l/bound/at l/bound/file").ok();
    }
    tree.0.umount("l/mnt");
}

#[test]
fn a_mount_that_is_bound_into_its_lower_later_is_not_entered() {
    support::needs_root!();
    let tree = Tree::new(Place::new());
    // Something is mounted in the lower, so that it is read as it is.
    tree.sh("mount -t tmpfs none l/up").ok();
    tree.mount("--lower l --upper up mnt");
    tree.sh("mount --bind mnt l/bound").ok();
    assert!(tree.list("mnt/bound").is_empty());
    tree.busy("touch mnt/bound/new");
    tree.sh("find mnt").ok();
    tree.0.umount("l/bound");
    tree.0.umount("mnt");
}

#[test]
fn two_mounts_of_one_tree_do_not_show_each_other_without_end() {
    support::needs_root!();
    let tree = Tree::new(Place::new());
    for dir in ["l/up2", "l/mnt2"] {
        tree.0.mkdir(dir);
    }
    tree.mount(IN_ITSELF);
    tree.mount("--lower l --upper l/up2 l/mnt2");
    for mount in ["l/mnt", "l/mnt2"] {
        assert!(tree.list(&format!("{mount}/mnt")).is_empty());
        assert!(tree.list(&format!("{mount}/mnt2")).is_empty());
        tree.sh(&format!("find {mount}")).ok();
    }
    tree.0.umount("l/mnt2");
    tree.0.umount("l/mnt");
}

#[test]
fn a_mount_that_the_caller_has_made_is_not_entered_either() {
    support::needs_root!();
    use std::os::fd::AsRawFd;
    let tree = Tree::new(Place::new());
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let number = device.as_raw_fd();
    let data = std::ffi::CString::new(format!("fd={number},rootmode=40000,user_id=0,group_id=0,allow_other"))
        .unwrap();
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", tree.0.at("l/mnt"), "fuse", none, data.as_c_str()).unwrap();
    rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty()).unwrap();
    tree.mount(&format!("--lower l --upper up /dev/fd/{number}"));
    drop(device);
    assert!(tree.list("l/mnt/mnt").is_empty());
    assert!(tree.sh("find l/mnt").ok().out.contains("l/mnt/d/sub/g"));
    tree.busy("rmdir l/mnt/mnt");
    tree.0.umount("l/mnt");
}

#[test]
fn the_whole_machine_is_a_lower_in_a_namespace_of_its_own() {
    support::needs_root!();
    let tree = Tree::new(Place::new());
    let script = "mount -t tmpfs none up && mkdir up/u up/w && ./unionmount -s --lower / --upper up/u --work up/w mnt && \
        here=$(pwd) && ls mnt mnt/tmp mnt/$here >names && find mnt/$here -xdev >found && cat mnt/$here/l/file && \
        chroot mnt sh -c \"echo made >$here/made; ls -A $here/up/u $here/up/w $here/mnt; rm -r $here/l\" && \
        find up/u && ls l && umount mnt";
    let ended = tree.0.sh(&format!("timeout -k 1 30 unshare -m sh -c '{script}'"));
    let here = tree.0.path().display();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let found = fs::read_to_string(tree.0.at("found")).unwrap();
    assert!(found.contains(&format!("mnt/{here}/l/d/sub/g")), "{found}");
    assert!(ended.out.contains(&format!("up/u{here}/made")), "{ended:?}");
    assert!(
        ended.out.starts_with(&format!("l/file{here}/mnt:\n\n{here}/up/u:\n\n{here}/up/w:\n")),
        "{ended:?}"
    );
    assert!(ended.out.ends_with("bound\nd\nfile\nmnt\nup\n"), "the lower stays: {ended:?}");
}

#[test]
fn an_ordinary_user_mounts_a_tree_in_itself() {
    support::needs_root!();
    let place = Place::of_user();
    for script in [
        "./unionmount -s --lower a --upper a/up a/mnt && $run && fusermount3 -u a/mnt",
        "./unionmount -s --lower / --upper up mnt && ls mnt$(pwd) && ls -A mnt$(pwd)/mnt mnt$(pwd)/up; fusermount3 -u mnt",
        "unshare -Urm sh -c \"./unionmount -s --lower / --upper up mnt && find mnt/$(pwd) && ! rmdir mnt/$(pwd)/mnt\"",
    ] {
        let run = "ls -A a/mnt/mnt a/mnt/up && mkdir a/mnt/d && ! mkdir a/mnt/up/d && ! rmdir a/mnt/mnt && find a/mnt";
        let script = script.replace("$run", run);
        let ended = place.sh_as_user(&format!("mkdir -p a/up a/mnt; timeout -k 1 20 sh -c '{script}'"));
        assert_eq!(ended.code, Some(0), "{script}: {ended:?}");
    }
    assert!(place.at("a/up/d").exists());
}
