//! The owner of a directory in a layer exchanges what is under a name while an operation on that name is under way: each
//! test is thousands of tries. And what changes in a directory where everybody can make names.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};

use crate::{OWNER, SECRET, as_owner, home, with_home, write_own, write_root};
use support::{Mount, Stack};

/// How long each race is run.
const WHILE: Duration = Duration::from_secs(3);

/// Does `work` again and again as the owner, while another thread of his exchanges the two names.
fn while_exchanged(one: &Path, other: &Path, mut work: impl FnMut() + Send) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            as_owner(|| {
                while !over.load(Ordering::Relaxed) {
                    let exchanged = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
                    // One of the two may be away for a moment.
                    exchanged.unwrap_or_default();
                }
            });
        });
        as_owner(|| {
            let begun = Instant::now();
            while begun.elapsed() < WHILE {
                work();
            }
        });
        over.store(true, Ordering::Relaxed);
    });
}

/// The owner's changes of a file of his, under whose name a file of root's is every other moment.
#[test]
fn changes_of_a_name_that_is_exchanged_hit_the_owners_file_alone() {
    support::needs_root!();
    for options in [&[][..], &["timeout=0"]] {
        let (stack, home) = with_home();
        write_own(&home.join("mine"), "x");
        write_root(&home.join("theirs"), SECRET, 0o600);
        let before = fs::metadata(home.join("theirs")).unwrap();
        let mount = stack.mount_with(options);
        let at = mount.join("home/mine");
        let mut links = 0;
        while_exchanged(&home.join("mine"), &home.join("theirs"), || {
            links += 1;
            let done = [
                fs::set_permissions(&at, fs::Permissions::from_mode(0o4755)),
                fs::hard_link(&at, mount.join(format!("home/link-{links}"))),
                rustix::fs::setxattr(&at, "user.mine", b"y", XattrFlags::empty()).map_err(Into::into),
                fs::OpenOptions::new().write(true).truncate(true).open(&at).map(drop),
                fs::rename(&at, mount.join("home/mine")),
            ];
            // Whether each worked is chance.
            drop(done);
            fs::remove_file(mount.join(format!("home/link-{links}"))).unwrap_or_default();
            assert!(!fs::read(&at).is_ok_and(|read| read == SECRET.as_bytes()));
        });
        mount.unmount();
        let after: Vec<_> = ["mine", "theirs"]
            .iter()
            .filter_map(|name| fs::metadata(home.join(name)).ok())
            .filter(|found| found.ino() == before.ino())
            .collect();
        assert_eq!(after.len(), 1, "{options:?}: root's file is under its names");
        let shown = |m: &fs::Metadata| (m.uid(), m.mode(), m.len(), m.nlink(), m.mtime_nsec());
        assert_eq!(shown(&after[0]), shown(&before), "{options:?}");
    }
}

/// Who owns two directories can't move somebody else's directory from one to the other: the kernel asks whether it is his.
#[test]
fn a_directory_of_roots_is_not_moved_in_the_place_of_ones_own() {
    support::needs_root!();
    for options in [&[][..], &["timeout=0"]] {
        let (stack, home) = with_home();
        let other = stack.upper().root().join("other");
        fs::rename(crate::home(stack.lower(0)), &other).unwrap();
        as_owner(|| fs::create_dir(home.join("mine")).unwrap());
        fs::create_dir(home.join("vault")).unwrap();
        write_root(&home.join("vault/secret"), SECRET, 0o600);
        let mount = stack.mount_with(options);
        let (from, to) = (mount.join("home/mine"), mount.join("other/moved"));
        let mut moved = 0;
        let mut lost = false;
        while_exchanged(&home.join("mine"), &home.join("vault"), || {
            fs::metadata(mount.join("home/vault")).map(drop).unwrap_or_default();
            if !lost && fs::rename(&from, &to).is_ok() {
                moved += 1;
                lost = other.join("moved/secret").exists();
                if !lost {
                    fs::rename(&to, &from).unwrap_or_default();
                }
            }
        });
        assert!(!lost, "{options:?}: root's directory was moved, after {moved}");
        mount.unmount();
    }
}

/// A file of root's, found by its owner only by marks: a secret that an exchanged object's marks would lead to.
#[test]
fn marks_are_read_of_the_object_that_is_judged() {
    support::needs_root!();
    let stack = Stack::new(1);
    let lower = stack.lower(0).root();
    fs::create_dir(lower.join("private")).unwrap();
    write_root(&lower.join("private/inside"), SECRET, 0o644);
    fs::set_permissions(lower.join("private"), fs::Permissions::from_mode(0o700)).unwrap();
    let home = home(stack.upper());
    // A directory of root's, whose marks may lead everywhere, and one of the owner's with a forged mark.
    fs::create_dir(home.join("d")).unwrap();
    as_owner(|| {
        fs::create_dir(home.join("forged")).unwrap();
        rustix::fs::setxattr(home.join("forged"), "user.overlay.redirect", b"/private", XattrFlags::empty())
            .unwrap();
    });
    let mount = stack.mount_with(&["userxattr", "timeout=0"]);
    let mut seen = None;
    while_exchanged(&home.join("d"), &home.join("forged"), || {
        let read = fs::read_to_string(mount.join("home/d/inside")).ok();
        seen = seen.take().or(read);
    });
    assert_eq!(seen, None);
    mount.unmount();
}

/// A directory where everybody makes names and nobody removes another's.
fn shared_dir(stack: &Stack) -> PathBuf {
    let tmp = stack.upper().root().join("tmp");
    fs::create_dir(&tmp).unwrap();
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).unwrap();
    tmp
}

fn is_roots(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.uid() == 0)
}

/// The kernel judges by the object that it knows under a name; root has made another of that name meanwhile, in the layer.
#[test]
fn a_name_that_has_become_roots_is_neither_removed_nor_replaced() {
    support::needs_root!();
    let stack = Stack::new(1);
    let tmp = shared_dir(&stack);
    // The directory is merged, and so indexed.
    stack.lower(0).dir("tmp");
    for name in ["file", "moved", "onto", "by-rename"] {
        write_own(&tmp.join(name), "x");
    }
    as_owner(|| {
        fs::create_dir(tmp.join("dir")).unwrap();
        fs::create_dir(tmp.join("own-dir")).unwrap();
    });
    let mount = stack.mount_with(&["timeout=1000"]);
    let become_roots = |mount: &Mount, name: &str| {
        let known = fs::metadata(mount.join("tmp").join(name));
        let path = tmp.join(name);
        as_owner(|| match known {
            Ok(found) if found.is_dir() => fs::remove_dir(&path).unwrap(),
            Ok(_) => fs::remove_file(&path).unwrap(),
            Err(_) => (),
        });
        if name.ends_with("dir") { fs::create_dir(&path).unwrap() } else { write_root(&path, SECRET, 0o600) }
    };
    for name in ["file", "moved", "onto", "free", "dir"] {
        become_roots(&mount, name);
    }
    let at = |name: &str| mount.join("tmp").join(name);
    as_owner(|| {
        fs::remove_file(at("file")).unwrap_err();
        fs::rename(at("moved"), at("elsewhere")).unwrap_err();
        fs::rename(at("by-rename"), at("onto")).unwrap_err();
        fs::rename(at("by-rename"), at("free")).unwrap_err();
        fs::remove_dir(at("dir")).unwrap_err();
        fs::rename(at("own-dir"), at("dir")).unwrap_err();
    });
    for name in ["file", "moved", "onto", "free", "dir"] {
        assert!(is_roots(&tmp.join(name)), "{name} of root's is gone");
        assert!(is_roots(&at(name)), "{name} is not found again");
    }
    mount.unmount();
}

/// The kernel looks a name up again that was found stale: who may remove what is there now does so, at once.
#[test]
fn what_is_ones_own_is_removed_and_renamed_however_it_came_there() {
    support::needs_root!();
    let (stack, home) = with_home();
    let mount = stack.mount_with(&["timeout=1000"]);
    for (n, work) in [
        (|at: &Path| fs::remove_file(at)) as fn(&Path) -> std::io::Result<()>,
        |at| fs::rename(at, at.with_file_name("elsewhere")),
        |at| fs::rename(at.with_file_name("third"), at),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("f{n}");
        for file in [&name, "other", "third"] {
            write_own(&home.join(file), file);
            assert_eq!(fs::metadata(mount.join("home").join(file)).unwrap().uid(), OWNER);
        }
        as_owner(|| {
            fs::rename(home.join("other"), home.join(&name)).unwrap();
            work(&mount.join("home").join(&name)).unwrap();
        });
    }
    mount.unmount();
}
