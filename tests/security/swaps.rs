//! The owner of a directory in a layer exchanges what is under a name, after the kernel has come to know it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::{OWNER, SECRET, as_owner, home, with_home, write_own, write_root};
use support::{Mount, Stack};

/// The ways in which data are reached.
const MODES: [&[&str]; 2] = [&[], &["passthrough"]];

/// `name` is known to the kernel as the owner's file of mode 0644.
fn know(mount: &Mount, name: &str) {
    let known = fs::metadata(mount.join(name)).unwrap();
    assert_eq!((known.uid(), known.mode() & 0o7777), (OWNER, 0o644));
}

fn swap(dir: &Path, from: &str, to: &str) {
    as_owner(|| fs::rename(dir.join(from), dir.join(to)).unwrap());
}

fn chmod_as_owner(path: &Path, mode: u32) -> std::io::Result<()> {
    as_owner(|| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
}

fn is_setuid_of_root(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.uid() == 0 && found.mode() & 0o4000 != 0)
}

#[test]
fn what_root_wrote_does_not_become_setuid() {
    support::needs_root!();
    for mode in MODES {
        let (stack, home) = with_home();
        write_own(&home.join("mine"), "x");
        let mount = stack.mount_with(mode);
        know(&mount, "home/mine");
        fs::write(mount.join("home/note"), "#!/bin/sh\nid\n").unwrap();
        swap(&home, "note", "mine");
        let done = chmod_as_owner(&mount.join("home/mine"), 0o4755);
        assert!(!is_setuid_of_root(&home.join("mine")), "{mode:?}: chmod: {done:?}");
        done.unwrap_err();
        assert_eq!(
            fs::read_to_string(mount.join("home/mine")).unwrap(),
            "#!/bin/sh\nid\n",
            "looked up again"
        );
        mount.unmount();
    }
}

#[test]
fn a_copy_up_does_not_make_roots_program_setuid() {
    support::needs_root!();
    let stack = Stack::new(1);
    let home = home(stack.lower(0));
    write_own(&home.join("mine"), "x");
    write_root(&home.join("program"), "#!/bin/sh\n", 0o755);
    let mount = stack.mount();
    know(&mount, "home/mine");
    swap(&home, "program", "mine");
    let done = chmod_as_owner(&mount.join("home/mine"), 0o4755);
    assert!(!is_setuid_of_root(&stack.upper().root().join("home/mine")), "chmod: {done:?}");
    assert!(!is_setuid_of_root(&mount.join("home/mine")));
    done.unwrap_err();
    mount.unmount();
}

#[test]
fn a_secret_is_neither_read_nor_overwritten_under_another_files_name() {
    support::needs_root!();
    for mode in MODES {
        for lower in [false, true] {
            let stack = Stack::new(1);
            let home = home(if lower { stack.lower(0) } else { stack.upper() });
            for name in ["read", "write", "truncate"] {
                write_own(&home.join(name), "x");
                write_root(&home.join(format!("{name}-secret")), SECRET, 0o600);
            }
            let mount = stack.mount_with(mode);
            for name in ["read", "write", "truncate"] {
                know(&mount, &format!("home/{name}"));
                swap(&home, &format!("{name}-secret"), name);
            }
            let read = as_owner(|| fs::read_to_string(mount.join("home/read")));
            assert!(!read.as_ref().is_ok_and(|text| text.contains(SECRET)), "{mode:?} {lower}: {read:?}");
            let written = as_owner(|| {
                let mut file = fs::OpenOptions::new().write(true).open(mount.join("home/write"))?;
                std::io::Write::write_all(&mut file, b"mine now")
            });
            let truncated = as_owner(|| {
                let path = mount.join("home/truncate");
                rustix::fs::open(path, rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::TRUNC, 0.into())
                    .map(drop)
            });
            for name in ["write", "truncate"] {
                let now = fs::read_to_string(mount.join("home").join(name)).unwrap();
                assert_eq!(now, SECRET, "{mode:?} {lower} {name}: {written:?} {truncated:?}");
            }
            mount.unmount();
        }
    }
}

#[test]
fn an_open_file_does_not_become_another() {
    support::needs_root!();
    for mode in MODES {
        let (stack, home) = with_home();
        // No shorter than the secret: the kernel reads no further than the size that it knows.
        write_own(&home.join("mine"), &"x".repeat(SECRET.len()));
        let mount = stack.mount_with(mode);
        know(&mount, "home/mine");
        let mut open = as_owner(|| fs::File::open(mount.join("home/mine")).unwrap());
        // Gone, and its inode number free to be given again.
        as_owner(|| fs::remove_file(home.join("mine")).unwrap());
        for n in 0..20 {
            let name = format!("new-{n}");
            write_root(&mount.join("home").join(&name), SECRET, 0o600);
            swap(&home, &name, "mine");
            let mut text = String::new();
            let read = open.read_to_string(&mut text);
            assert!(!text.contains(SECRET), "{mode:?}: {read:?}");
        }
        drop(open);
        mount.unmount();
    }
}

#[test]
fn owners_times_and_attributes_go_to_no_other_file() {
    support::needs_root!();
    let (stack, home) = with_home();
    for name in ["attribute", "times"] {
        write_own(&home.join(name), "x");
    }
    let mount = stack.mount();
    for name in ["attribute", "times"] {
        know(&mount, &format!("home/{name}"));
        write_root(&mount.join(format!("home/{name}-root")), "root's", 0o644);
        swap(&home, &format!("{name}-root"), name);
    }
    let before = fs::metadata(home.join("times")).unwrap();
    as_owner(|| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(mount.join("home/attribute"), "user.mine", b"y", flags).unwrap_err();
        let file = mount.join("home/times");
        let past = std::time::SystemTime::UNIX_EPOCH;
        let opened = fs::File::options().write(true).open(file);
        opened.and_then(|file| file.set_modified(past)).unwrap_err();
    });
    assert!(rustix::fs::getxattr(home.join("attribute"), "user.mine", &mut [0u8; 8]).is_err());
    assert_eq!(fs::metadata(home.join("times")).unwrap().mtime(), before.mtime());
    mount.unmount();
}

#[test]
fn a_link_leads_to_the_file_that_was_asked_for() {
    support::needs_root!();
    let (stack, home) = with_home();
    write_own(&home.join("mine"), "x");
    let mount = stack.mount();
    know(&mount, "home/mine");
    write_root(&mount.join("home/secret"), SECRET, 0o600);
    swap(&home, "secret", "mine");
    // The kernel lets who owns a file link it.
    as_owner(|| fs::hard_link(mount.join("home/mine"), mount.join("home/second"))).unwrap_err();
    assert!(!home.join("second").exists());
    mount.unmount();
}

#[test]
fn what_was_exchanged_is_found_again() {
    support::needs_root!();
    for mode in MODES {
        let (stack, home) = with_home();
        write_own(&home.join("mine"), "old");
        let mount = stack.mount_with(mode);
        know(&mount, "home/mine");
        write_own(&home.join("other"), "newer");
        swap(&home, "other", "mine");
        // The first may be told ESTALE, but the kernel forgets the name by that.
        let found = support::wait_until(support::PATIENCE, || {
            fs::read_to_string(mount.join("home/mine")).is_ok_and(|text| text == "newer")
        });
        assert!(found, "{mode:?}: {:?}", fs::read_to_string(mount.join("home/mine")));
        mount.unmount();
    }
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    support::needs_root!();
    let (stack, home) = with_home();
    let outside = stack.scratch().dir("outside");
    as_owner(|| fs::create_dir(home.join("d")).unwrap());
    let mount = stack.mount();
    assert!(fs::metadata(mount.join("home/d")).unwrap().is_dir());
    as_owner(|| {
        fs::rename(home.join("d"), home.join("away")).unwrap();
        symlink(&outside, home.join("d")).unwrap();
    });
    // It may fail, or land in the directory that was meant.
    let made = fs::write(mount.join("home/d/f"), "x");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{made:?}");
    mount.unmount();
}
