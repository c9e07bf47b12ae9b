//! The options that are not about owners, each by what it changes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

use crate::{sh, umount};
use support::cli::{Place, is_root, until};

/// How many requests of a kind the daemon of `place`, started with `--log-file log`, was asked.
pub fn requests(place: &Place, kind: &str) -> u64 {
    let log = place.at("log");
    let before = fs::read_to_string(&log).unwrap_or_default().lines().count();
    kill_process(place.daemon(), Signal::USR1).unwrap();
    let mut last = String::new();
    until("the daemon reports", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        last = text.lines().last().unwrap_or_default().to_owned();
        text.ends_with('\n') && text.lines().count() > before && last.contains("requests: ")
    });
    let counts = last.split_once("requests: ").unwrap().1.split(';').next().unwrap();
    let found = counts.split(", ").find_map(|count| count.strip_prefix(kind)?.trim().parse().ok());
    found.unwrap_or(0)
}

fn mount(place: &Place, options: &str) {
    sh(place, &format!("./unionmount --log-file log -o lowerdir=a:b,upperdir=up,workdir=w,{options} mnt"));
}

#[test]
fn volatile_asks_for_no_fsync() {
    if !is_root() {
        support::skip!("needs root");
    }
    for (options, at_most) in [("volatile", 1), ("fsync=0", 1), ("fsync=1", u64::MAX)] {
        let place = Place::new();
        mount(&place, options);
        for i in 0..5 {
            let mut file = fs::File::create(place.at(format!("mnt/{i}"))).unwrap();
            file.write_all(b"x").unwrap();
            file.sync_all().unwrap();
            file.sync_data().unwrap();
            fs::File::open(place.at("mnt")).unwrap().sync_all().unwrap();
        }
        let (files, dirs) = (requests(&place, "fsync "), requests(&place, "fsyncdir "));
        if at_most == 1 {
            assert!(files <= 1 && dirs <= 1, "{options}: {files} {dirs}");
            assert_eq!(place.names("w/work/incompat"), ["volatile"]);
        } else {
            assert_eq!((files, dirs), (10, 5), "{options}");
            assert!(!place.at("w/work/incompat").exists());
        }
        umount(&place);
    }
}

#[test]
fn a_volatile_mount_that_died_is_refused_with_the_way_out() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    mount(&place, "volatile");
    fs::write(place.at("mnt/f"), "x").unwrap();
    kill_process(place.daemon(), Signal::KILL).unwrap();
    place.wait_for_no_daemon();
    sh(&place, "umount -l mnt");
    for volatile in ["volatile", "fsync=1"] {
        let options = format!("lowerdir=a,upperdir=up,workdir=w,{volatile}");
        let refused = place.unionmount(&["-o", &options, "mnt"]);
        refused.refused(1, &["upper layer up", "not unmounted cleanly", "remove w/work/incompat/volatile"]);
        // The kernel's overlayfs reads the same mark.
        let kernel = place.sh("mount -t overlay x -o lowerdir=a,upperdir=up,workdir=w mnt");
        assert_ne!(kernel.code, Some(0));
    }
    sh(&place, "rm -r w/work/incompat/volatile");
    mount(&place, "volatile");
    umount(&place);
    mount(&place, "fsync=1");
    umount(&place);
}

#[test]
fn renaming_a_lower_directory_needs_redirects() {
    if !is_root() {
        support::skip!("needs root");
    }
    for (option, works) in
        [("redirect_dir=on", true), ("redirect_dir=off", false), ("redirect_dir=follow", false)]
    {
        let place = Place::new();
        sh(&place, "mkdir a/low a/other; echo x > a/low/f");
        mount(&place, option);
        let renamed = fs::rename(place.at("mnt/low"), place.at("mnt/new"));
        if works {
            renamed.unwrap();
        } else {
            support::assert_errno!(renamed, Errno::XDEV);
            assert!(place.names("up").is_empty(), "what fails copies nothing up");
            let swap = rustix::fs::RenameFlags::EXCHANGE;
            let (one, two) = (place.at("mnt/low"), place.at("mnt/other"));
            let cwd = rustix::fs::CWD;
            support::assert_errno!(rustix::fs::renameat_with(cwd, &one, cwd, &two, swap), Errno::XDEV);
            // Programs copy and remove then, and what is new may move.
            sh(
                &place,
                "mv mnt/low mnt/new; mkdir mnt/mine; mv mnt/mine mnt/yours; mv mnt/new mnt/newer; mv mnt/newer mnt/new",
            );
        }
        assert_eq!(
            sh(&place, "cat mnt/new/f; ls mnt | grep -v other"),
            if works { "x\nnew\n" } else { "x\nnew\nyours\n" }
        );
        umount(&place);
    }
}

#[test]
fn redirects_are_followed_unless_refused() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    sh(&place, "mkdir a/low; echo x > a/low/f");
    mount(&place, "redirect_dir=on");
    sh(&place, "mv mnt/low mnt/new; mkdir mnt/plain");
    umount(&place);
    for option in ["redirect_dir=off", "redirect_dir=follow"] {
        mount(&place, option);
        assert_eq!(sh(&place, "cat mnt/new/f"), "x\n");
        umount(&place);
    }
    mount(&place, "redirect_dir=nofollow");
    support::assert_errno!(fs::metadata(place.at("mnt/new")), Errno::PERM);
    assert!(fs::metadata(place.at("mnt/plain")).unwrap().is_dir());
    assert!(fs::read_to_string(place.at("log")).unwrap().contains("up: new: a redirect"));
    umount(&place);
}

#[test]
fn directories_have_one_link() {
    if !is_root() {
        support::skip!("needs root");
    }
    for (option, links) in [("static_nlink", 1), ("rw", 4)] {
        let place = Place::new();
        mount(&place, option);
        sh(&place, "mkdir mnt/d mnt/d/1 mnt/d/2; touch mnt/f; ln mnt/f mnt/g");
        assert_eq!(fs::metadata(place.at("mnt/d")).unwrap().nlink(), links);
        assert_eq!(fs::metadata(place.at("mnt/f")).unwrap().nlink(), 2);
        umount(&place);
    }
}

#[test]
fn inode_numbers_fit_32_bits_when_asked_to() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let other = place.mkdir("other");
    sh(
        &place,
        "mount -t tmpfs x other; touch other/f1 other/f2 a/g; mkdir other/d; echo h > other/h1; ln other/h1 other/h2",
    );
    let wide = "lowerdir=a:other,upperdir=up";
    let numbers = |options: &str| {
        sh(
            &place,
            &format!("./unionmount -o {options} mnt; touch mnt/new; mkdir -p mnt/d/x; echo x >> mnt/f1"),
        );
        let out = sh(&place, "stat -c %i mnt/f1 mnt/f2 mnt/g mnt/d mnt/d/x mnt/new mnt/h1 mnt/h2");
        let listed = sh(&place, "ls -i mnt | awk '/ (f1|f2|g|d|new|h1|h2)$/ {print $1}' | sort");
        let mut all: Vec<u64> = out.lines().map(|n| n.parse().unwrap()).collect();
        let mut sorted: Vec<String> =
            all.iter().map(u64::to_string).filter(|n| *n != all[4].to_string()).collect();
        sorted.sort();
        assert_eq!(sorted, listed.lines().map(str::to_owned).collect::<Vec<_>>(), "listings agree");
        assert_eq!(all[6], all[7]);
        umount(&place);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 7, "distinct");
        all
    };
    assert!(numbers(wide).iter().any(|n| *n > u64::from(u32::MAX)), "the second filesystem's have high bits");
    assert!(numbers(&format!("{wide},ino32_t")).iter().all(|n| *n <= u64::from(u32::MAX)));
    numbers(&format!("{wide},xino=on"));
    numbers(&format!("{wide},xino=off"));
    sh(&place, &format!("umount {}", other.display()));
}

#[test]
fn xino_on_refuses_numbers_that_leave_no_room() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    for dir in ["other", "inner", "up2"] {
        place.mkdir(dir);
    }
    // A union of two filesystems has numbers of more than 48 bits in the second one's directories.
    sh(&place, "mount -t tmpfs x other; mkdir other/d; ./unionmount -o lowerdir=a:other,upperdir=up inner");
    sh(&place, "./unionmount -o lowerdir=inner/d,upperdir=up2,xino=auto mnt; umount mnt");
    let refused = place.unionmount(&["-o", "lowerdir=inner/d,upperdir=up2,xino=on", "mnt"]);
    refused.refused(1, &["layer inner/d", "xino=on", "use xino=auto"]);
    sh(&place, "umount inner; umount -l other");
}

#[test]
fn no_attributes_and_no_acls() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    sh(&place, "touch a/f; setfattr -n user.x -v y a/f; setfacl -m u:9:rw a/f");
    mount(&place, "noxattrs");
    for _ in 0..5 {
        assert!(place.sh("setfattr -n user.x -v z mnt/f").err.contains("not supported"));
        assert_eq!(crate::attribute(&place, "mnt/f", "user.x"), "");
    }
    assert!(requests(&place, "setxattr ") <= 1 && requests(&place, "getxattr ") <= 1, "asked once at most");
    umount(&place);
    mount(&place, "noacl");
    assert_eq!(crate::attribute(&place, "mnt/f", "user.x"), "y");
    assert!(place.sh("setfacl -m u:5:r mnt/f").err.contains("not supported"));
    assert_eq!(sh(&place, "getfattr -m - mnt/f | grep -v ^#"), "user.x\n\n");
    umount(&place);
}

#[test]
fn the_kernel_forgets_after_the_timeout() {
    if !is_root() {
        support::skip!("needs root");
    }
    for (option, again) in [("timeout=0", true), ("timeout=1000", false)] {
        let place = Place::new();
        sh(&place, "touch a/f");
        mount(&place, option);
        let path = place.at("mnt/f");
        fs::metadata(&path).unwrap();
        let asked = || requests(&place, "lookup ") + requests(&place, "getattr ");
        let before = asked();
        for _ in 0..5 {
            fs::metadata(&path).unwrap();
        }
        assert_eq!(asked() > before, again, "{option}");
        umount(&place);
    }
}

#[test]
fn write_requests_are_as_large_as_allowed() {
    if !is_root() {
        support::skip!("needs root");
    }
    for (option, writes) in [("max_write=65536", 16), ("max_write=1048576", 1), ("rw", 1)] {
        let place = Place::new();
        mount(&place, &format!("writeback=0,{option}"));
        let file = fs::File::create(place.at("mnt/f")).unwrap();
        file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
        drop(file);
        assert_eq!(requests(&place, "write "), writes, "{option}");
        umount(&place);
    }
}

#[test]
fn writes_are_held_back_or_not() {
    if !is_root() {
        support::skip!("needs root");
    }
    for (option, through) in [("writeback=0", true), ("writeback=1", false)] {
        let place = Place::new();
        mount(&place, option);
        let file = fs::File::create(place.at("mnt/f")).unwrap();
        for i in 0..100 {
            file.write_all_at(b"x", i).unwrap();
        }
        assert_eq!(requests(&place, "write ") == 100, through, "{option}");
        drop(file);
        umount(&place);
    }
}

#[test]
fn as_many_threads_as_asked_for() {
    if !is_root() {
        support::skip!("needs root");
    }
    for (options, count) in
        [("threaded=0", 1), ("max_threads=5", 5), ("max_threads=5,max_idle_threads=2,clone_fd", 5)]
    {
        // Without the one that serves a program alone; tests/budget has that.
        let options = &format!("{options},pairing=0");
        let place = Place::new();
        mount(&place, options);
        let tasks = format!("/proc/{}/task", place.daemon().as_raw_nonzero());
        let serving = || {
            let tasks = fs::read_dir(&tasks).unwrap().flatten();
            let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
            names.filter(|name| name.starts_with("fuse-")).count()
        };
        until("all threads are there", || serving() == count);
        umount(&place);
    }
}

#[test]
fn flags_of_the_mount() {
    if !is_root() {
        support::skip!("needs root");
    }
    for flag in ["nosuid", "nodev", "noexec", "noatime", "nodiratime", "sync", "dirsync", "ro"] {
        let place = Place::new();
        mount(&place, flag);
        let mount = place.mounted("mnt").unwrap();
        assert!(mount.options.iter().any(|o| o == flag), "{flag}: {mount:?}");
        umount(&place);
    }
    let place = Place::new();
    sh(&place, "cp /bin/true a/true; mknod a/null c 1 3");
    mount(&place, "noexec,nodev");
    assert_eq!(place.sh("mnt/true").code, Some(126));
    support::assert_errno!(fs::read(place.at("mnt/null")), Errno::ACCESS);
    umount(&place);
    mount(&place, "noexec,nodev,exec,dev,suid");
    assert_eq!(place.sh("mnt/true").code, Some(0));
    assert_eq!(fs::read(place.at("mnt/null")).unwrap(), b"");
    umount(&place);
}

#[test]
fn every_option_of_the_peers_is_known() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let known = "allow_other,default_permissions,suid,dev,exec,atime,diratime,lazytime,rw,debug=0,max_read=131072,\
                 max_idle_threads=3,fast_ino=1,private,noatime,context=\"a:b:c:d,e\",userxattr,acl,timeout=5.5";
    let known = known.replace("debug=0,", "");
    sh(&place, &format!("./unionmount -o 'lowerdir=a,upperdir=up,{known}' mnt"));
    umount(&place);
    // Those with a reason say it; a stranger is named, and the mount goes on.
    let ended = place.sh("./unionmount -o lowerdir=a,plugins=x:y,index=on,auto_unmount,strange=1 mnt");
    assert_eq!(ended.code, Some(0));
    let lines: Vec<&str> = ended.err.lines().collect();
    assert_eq!(lines.len(), 4, "{ended:?}");
    assert!(lines[0].contains("plugins=x:y ignored: there are no plugins"), "{ended:?}");
    assert!(lines[3].contains("unknown option ignored: strange=1"), "{ended:?}");
    assert!(!ended.err.contains("no effect"));
    umount(&place);
}
