//! The command line of fuse-overlayfs and of mount(8), as engines use it.

use std::fs;
use std::os::unix::fs::symlink;

use crate::{sh, umount};
use support::cli::{Place, is_root};

#[test]
fn nothing_of_the_caller_stays_open_in_the_daemon() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    symlink("unionmount", place.at("fuse-overlayfs")).unwrap();
    sh(
        &place,
        "mkfifo secret; exec 5<>secret 7>held 9</etc/passwd 3</etc/hostname; ./fuse-overlayfs -o lowerdir=a,upperdir=up mnt",
    );
    let daemon = place.daemon().as_raw_nonzero();
    let open: Vec<String> = fs::read_dir(format!("/proc/{daemon}/fd"))
        .unwrap()
        .map(|fd| fs::read_link(fd.unwrap().path()).unwrap().to_string_lossy().into_owned())
        .collect();
    for path in &open {
        // The control socket's directory among them.
        let own = ["/dev/null", "/dev/fuse", "/run/unionmount"].contains(&path.as_str())
            || ["anon_inode:", "socket:", "pipe:"].iter().any(|kind| path.starts_with(kind))
            // How its own threads are scheduled.
            || path.starts_with(&format!("/proc/{daemon}/task/"))
            // A lower, open by a mount of the daemon's own that lies nowhere.
            || path == "/"
            // The layers, the workdir, and the directory in which that was made.
            || *path == place.path().to_str().unwrap()
            || ["a", "up", ".up.work"].iter().any(|dir| path.starts_with(place.at(dir).to_str().unwrap()));
        assert!(own, "{path} is open in the daemon: {open:?}");
    }
    // Its pipes are its own: both ends are here.
    for pipe in open.iter().filter(|path| path.starts_with("pipe:")) {
        assert_eq!(open.iter().filter(|other| *other == pipe).count(), 2, "{open:?}");
    }
    umount(&place);
}

#[test]
fn a_failure_is_one_line_on_stderr() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    symlink("unionmount", place.at("fuse-overlayfs")).unwrap();
    for (options, code, says) in [
        ("-o lowerdir=a:none,upperdir=up mnt", 1, "none: no such directory"),
        ("-o lowerdir=a,upperdir=a mnt", 1, "same directory"),
        ("-o lowerdir=a,upperdir=up nowhere", 1, "mount point nowhere"),
        ("-o upperdir=up mnt", 2, "no lower layer"),
        ("-o lowerdir=a,uidmapping=0:1 mnt", 2, "uidmapping"),
        ("-o lowerdir=a,force_mask=9 mnt", 2, "force_mask"),
        ("--frobnicate mnt", 2, "--frobnicate"),
        ("-o lowerdir=a,xino=on,ino32_t,upperdir=/proc/self mnt", 1, "upper layer /proc/self"),
    ] {
        let ended = place.sh(&format!("./fuse-overlayfs {options}"));
        ended.refused(code, &[says]);
        assert!(place.mounted("mnt").is_none(), "{options}");
    }
}

#[test]
fn long_options_and_many_lowers() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    symlink("unionmount", place.at("fuse-overlayfs")).unwrap();
    let mut lowers = Vec::new();
    for i in 0..500 {
        let dir = format!("layers/{i:03}-with-a-name-of-some-length");
        place.mkdir(&dir);
        fs::write(place.at(&dir).join(format!("f{i}")), i.to_string()).unwrap();
        // As containers/storage: short links in a directory of their own, by way of `..`.
        place.mkdir("l");
        symlink(format!("../{dir}"), place.at(format!("l/L{i:03}"))).unwrap();
        lowers.push(format!("layers/../l/L{i:03}"));
    }
    let options = format!("lowerdir={},upperdir=up,workdir=w,,nodev,", lowers.join(":"));
    assert!(options.len() > 8192);
    sh(&place, &format!("./fuse-overlayfs -o {options} mnt"));
    assert_eq!(fs::read_dir(place.at("mnt")).unwrap().count(), 500);
    assert_eq!(fs::read(place.at("mnt/f499")).unwrap(), b"499");
    umount(&place);
}

#[test]
fn the_version_is_what_an_engine_prints() {
    let place = Place::new();
    symlink("unionmount", place.at("fuse-overlayfs")).unwrap();
    for name in ["fuse-overlayfs", "unionmount"] {
        for flag in ["--version", "-V"] {
            let version = place.sh(&format!("./{name} {flag}")).ok().out;
            assert_eq!(
                version.lines().last(),
                Some(format!("unionmount {}", env!("CARGO_PKG_VERSION")).as_str())
            );
        }
    }
}
