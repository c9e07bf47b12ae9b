//! Marks that somebody else than root can write.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::{OWNER, SECRET, as_owner, home, with_home, write_own, write_root};
use support::{Options, Stack, run};

fn set(path: &Path, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
}

/// A lower with a secret file and a private directory, and an upper in whose home the owner has forged marks that lead
/// to both.
fn forged() -> Stack {
    let stack = Stack::new(1);
    let lower = stack.lower(0).root();
    write_root(&lower.join("secret"), SECRET, 0o600);
    fs::create_dir(lower.join("private")).unwrap();
    fs::write(lower.join("private/inside"), SECRET).unwrap();
    fs::set_permissions(lower.join("private"), fs::Permissions::from_mode(0o700)).unwrap();
    let home = home(stack.upper());
    as_owner(|| {
        fs::File::create(home.join("f")).unwrap().set_len(SECRET.len() as u64).unwrap();
        set(&home.join("f"), "user.overlay.metacopy", b"").unwrap();
        set(&home.join("f"), "user.overlay.redirect", b"/secret").unwrap();
        fs::create_dir(home.join("d")).unwrap();
        set(&home.join("d"), "user.overlay.redirect", b"/private").unwrap();
    });
    stack
}

fn shows_nothing(mount: &Path) {
    let file = as_owner(|| fs::read_to_string(mount.join("home/f")));
    assert!(!file.as_ref().is_ok_and(|text| text.contains(SECRET)), "{file:?}");
    let inside = as_owner(|| fs::read_to_string(mount.join("home/d/inside")));
    assert!(!inside.as_ref().is_ok_and(|text| text.contains(SECRET)), "{inside:?}");
}

#[test]
fn forged_marks_show_nothing_and_are_told() {
    support::needs_root!();
    let stack = forged();
    let log = stack.scratch().path().join("log");
    let options = Options { log: Some(log.clone()), ..stack.options() };
    let mount = support::Mount::new(&options, stack.mountpoint());
    shows_nothing(mount.path());
    assert_eq!(
        fs::read(mount.join("home/f")).unwrap(),
        vec![0; SECRET.len()],
        "what it is without the marks"
    );
    mount.unmount();
    let told = fs::read_to_string(log).unwrap();
    let lines: Vec<_> = told.lines().filter(|line| line.contains("user.overlay.")).collect();
    assert!(lines.len() == 1 && lines[0].contains("userxattr") && lines[0].contains("home/"), "{told}");
}

#[test]
fn asked_for_marks_lead_to_what_their_owner_may_read() {
    support::needs_root!();
    let stack = forged();
    let home = stack.upper().root().join("home");
    fs::create_dir(stack.lower(0).root().join("home")).unwrap();
    stack.lower(0).file("home/old/f", "renamed");
    as_owner(|| {
        fs::create_dir(home.join("new")).unwrap();
        set(&home.join("new"), "user.overlay.redirect", b"old").unwrap();
    });
    let mount = stack.mount_with(&["userxattr"]);
    shows_nothing(mount.path());
    assert_eq!(fs::read_to_string(mount.join("home/new/f")).unwrap(), "renamed");
    mount.unmount();
}

/// The options of a mount, by mountinfo.
fn mount_options(path: &Path) -> Vec<String> {
    support::mounted_at(path).unwrap().options
}

#[test]
fn who_believes_the_marks_of_others_has_no_setuid_and_no_devices() {
    support::needs_root!();
    for believing in [&["userxattr"][..], &["xattr_permissions=2"], &["xattr_permissions=1"]] {
        let stack = Stack::new(1);
        let mount = stack.mount_with(believing);
        let options = mount_options(mount.path());
        assert!(["nosuid", "nodev"].iter().all(|word| options.iter().any(|o| o == word)), "{options:?}");
        mount.unmount();
        let mount = stack.mount_with(&[believing, &["suid", "dev"]].concat());
        let options = mount_options(mount.path());
        assert!(!options.iter().any(|o| o == "nosuid" || o == "nodev"), "{options:?}");
        mount.unmount();
    }
}

const PRIVATE: [&str; 8] = [
    "user.fuseoverlayfs.opaque",
    "user.fuseoverlayfs.override_stat",
    "security.fuseoverlayfs.override_stat",
    "user.containers.override_stat",
    "user.unionmount.links",
    "user.unionmount.layer",
    "user.unionmount.kept.security.capability",
    "user.unionmount.kept.trusted.x",
];

#[test]
fn private_marks_cannot_be_set_or_removed_through_the_mount() {
    support::needs_root!();
    let (stack, home) = with_home();
    write_own(&home.join("f"), "x");
    for options in [&[][..], &["userxattr"], &["xattr_permissions=2"]] {
        let mount = stack.mount_with(options);
        let file = mount.join("home/f");
        for name in PRIVATE {
            let by_root = set(&file, name, b"0:0:4755:file");
            let by_owner = as_owner(|| set(&file, name, b"0:0:4755:file"));
            assert_eq!((by_root, by_owner), (Err(Errno::PERM), Err(Errno::PERM)), "{options:?} {name}");
            // The kernel asks for CAP_SYS_ADMIN by itself for `security.`.
            assert_eq!(rustix::fs::removexattr(&file, name), Err(Errno::PERM), "{options:?} {name}");
        }
        mount.unmount();
    }
}

#[test]
fn a_forged_owner_is_not_believed_without_being_asked_for() {
    support::needs_root!();
    let (stack, home) = with_home();
    write_own(&home.join("f"), "#!/bin/sh\n");
    as_owner(|| {
        set(&home.join("f"), "user.containers.override_stat", b"0:0:4755:file").unwrap();
        set(&home.join("f"), "user.unionmount.kept.security.capability", b"x").unwrap();
    });
    // The owner of a layer may own its root as well.
    set(stack.upper().root(), "user.containers.override_stat", b"0:0:0755:dir").unwrap();
    let mount = stack.mount();
    let shown = fs::metadata(mount.join("home/f")).unwrap();
    assert_eq!((shown.uid(), shown.mode() & 0o7777), (OWNER, 0o644));
    let names = run("getfattr", &["-d", "-m", "-", mount.join("home/f").to_str().unwrap()]);
    assert!(!names.contains("security.capability") && !names.contains("override_stat"), "{names}");
    mount.unmount();
}

#[test]
fn a_mount_has_one_namespace_of_marks_as_the_kernel_has_it() {
    support::needs_root!();
    let stored = |kernel: bool| {
        let stack = Stack::new(1);
        stack.upper().file("f", "x");
        let mount = if kernel { stack.mount_kernel(&[]) } else { stack.mount() };
        let set = set(&mount.join("f"), "user.overlay.redirect", b"elsewhere");
        let shown =
            run("getfattr", &["--absolute-names", "-d", "-m", "user", mount.join("f").to_str().unwrap()]);
        mount.unmount();
        let kept = run("getfattr", &["-d", "-m", "user", stack.upper().root().join("f").to_str().unwrap()]);
        let attributes = |text: &str| {
            text.lines().filter(|l| l.contains("overlay.")).map(str::to_owned).collect::<Vec<_>>()
        };
        (set.is_ok(), attributes(&shown), attributes(&kept))
    };
    assert_eq!(stored(false), stored(true));
}
