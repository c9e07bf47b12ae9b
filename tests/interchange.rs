//! An upper written here mounts under the kernel's overlayfs with the same tree, and the other way round.
//!
//! As root with `trusted.overlay.*`; run as root of a user namespace, with `user.overlay.*` and `userxattr`. Run as
//! root of the machine, the suite runs once more in a namespace. Random sequences are in the reference tests.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use support::{Fields, Mount, Privilege, Program, Snapshot, Stack, diff, read_xattrs};

/// The kernel's mount, with what it needs to do the same as we do.
fn kernel(stack: &Stack, extra: &[&str]) -> Mount {
    let mut options = match Privilege::current() {
        Privilege::Root => vec!["redirect_dir=on"],
        _ => vec!["userxattr"],
    };
    options.extend(extra);
    stack.mount_kernel(&options)
}

fn can_mount_overlayfs() -> bool {
    Privilege::current() != Privilege::User
}

/// Each keeps its own account of the names that a file of a lower has lost; and without an index, which userxattr
/// does not go with, the kernel gives the names of one file different inode numbers.
fn fields() -> Fields {
    let root = Privilege::current() == Privilege::Root;
    Fields { nlink: false, links: root, directory_mtime: false, ..Fields::tree() }
}

/// Lowers with something for every kind of change.
fn stack() -> Stack {
    let stack = Stack::new(2);
    let bottom = stack.lower(1);
    bottom
        .file("deleted", "1")
        .file("d/deleted", "2")
        .file("d/kept", "3")
        .file("replaced/old", "4")
        .file("tree/a/b/c", "5");
    bottom
        .file("moved/x", "6")
        .file("moved/y", "7")
        .file("changed", "8")
        .symlink("link", "changed")
        .fifo("fifo");
    bottom
        .file("first-name", "one file")
        .hardlink("second-name", "first-name")
        .file("f-over-d/x", "1")
        .file("d-over-f", "2");
    stack
        .lower(0)
        .file("d/top", "9")
        .file("moved/z", "10")
        .xattr("moved", "user.a", "kept")
        .mode("moved", 0o750);
    stack
}

/// Every kind of change. `redirect`: whether merged directories are renamed.
fn change(mount: &Mount, redirect: bool) {
    fs::remove_file(mount.join("deleted")).unwrap();
    fs::remove_file(mount.join("d/deleted")).unwrap();
    fs::remove_dir_all(mount.join("replaced")).unwrap();
    fs::create_dir(mount.join("replaced")).unwrap();
    fs::write(mount.join("replaced/new"), "new").unwrap();
    fs::remove_dir_all(mount.join("tree")).unwrap();
    fs::write(mount.join("changed"), "changed").unwrap();
    fs::set_permissions(mount.join("d"), PermissionsExt::from_mode(0o711)).unwrap();
    fs::hard_link(mount.join("changed"), mount.join("also-changed")).unwrap();
    fs::create_dir_all(mount.join("new/deep")).unwrap();
    fs::write(mount.join("new/deep/file"), "deep").unwrap();
    std::os::unix::fs::symlink("new/deep", mount.join("new-link")).unwrap();
    fs::remove_dir_all(mount.join("f-over-d")).unwrap();
    fs::write(mount.join("f-over-d"), "now a file").unwrap();
    fs::remove_file(mount.join("d-over-f")).unwrap();
    fs::create_dir(mount.join("d-over-f")).unwrap();
    fs::rename(mount.join("fifo"), mount.join("d/fifo")).unwrap();
    if redirect {
        fs::rename(mount.join("moved"), mount.join("d/renamed")).unwrap();
        fs::remove_file(mount.join("d/renamed/y")).unwrap();
        fs::write(mount.join("d/renamed/w"), "w").unwrap();
        fs::create_dir(mount.join("moved")).unwrap();
    }
}

fn assert_same(expected: &Snapshot, mount: &Mount, what: &str) {
    let differences = diff(expected, &Snapshot::take(mount.path()), &fields());
    assert!(differences.is_empty(), "{what}:\n{differences}");
}

#[test]
fn the_kernel_shows_what_was_written_here() {
    if !can_mount_overlayfs() {
        support::skip!("an ordinary user cannot mount overlayfs");
    }
    let redirect = Privilege::current() == Privilege::Root;
    let stack = stack();
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    change(&mount, redirect);
    let expected = Snapshot::take(mount.path());
    mount.unmount();
    stack.assert_workdir_clean();
    let mount = kernel(&stack, &[]);
    assert_same(&expected, &mount, "under the kernel");
    fs::write(mount.join("by-the-kernel"), "k").unwrap();
    fs::remove_file(mount.join("d/kept")).unwrap();
    let expected = Snapshot::take(mount.path());
    mount.unmount();
    let mount = stack.mount();
    assert_same(&expected, &mount, "here again");
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
}

#[test]
fn what_the_kernel_wrote_is_shown_here() {
    if !can_mount_overlayfs() {
        support::skip!("an ordinary user cannot mount overlayfs");
    }
    let redirect = Privilege::current() == Privilege::Root;
    let stack = stack();
    let mount = kernel(&stack, &[]);
    change(&mount, redirect);
    let expected = Snapshot::take(mount.path());
    mount.unmount();
    let mount = stack.mount();
    assert_same(&expected, &mount, "here");
    Snapshot::take_checked(mount.path());
    fs::write(mount.join("by-us"), "u").unwrap();
    fs::remove_file(mount.join("d/kept")).unwrap();
    let expected = Snapshot::take(mount.path());
    mount.unmount();
    let mount = kernel(&stack, &[]);
    assert_same(&expected, &mount, "under the kernel again");
    mount.unmount();
}

/// Every name that leads to the file of `first-name`: content, one inode, and the count.
fn assert_one_file(mount: &Mount, names: &[&str], content: &[u8], who: &str) {
    let inode = fs::metadata(mount.join(names[0])).unwrap().ino();
    for name in names {
        assert_eq!(fs::read(mount.join(name)).unwrap(), content, "{who}: {name}");
        let found = fs::metadata(mount.join(name)).unwrap();
        assert_eq!(found.ino(), inode, "{who}: {name} is another file");
        assert_eq!(found.nlink(), names.len() as u64, "{who}: {name}");
    }
}

/// The kernel keeps a file of a lower that has several names whole by an index in its workdir (`index=on`).
#[test]
fn hardlinks_kept_in_the_kernels_index() {
    support::needs_root!();
    let stack = stack();
    let names = ["first-name", "second-name"];
    let mount = kernel(&stack, &["index=on"]);
    fs::write(mount.join("first-name"), "changed by the kernel").unwrap();
    assert_one_file(&mount, &names, b"changed by the kernel", "the kernel");
    mount.unmount();
    for round in ["one", "two"] {
        let mount = stack.mount();
        assert_one_file(&mount, &names, b"changed by the kernel", round);
        mount.unmount();
    }
    let mount = stack.mount();
    fs::write(mount.join("second-name"), "and here").unwrap();
    fs::remove_file(mount.join("first-name")).unwrap();
    mount.unmount();
    let mount = kernel(&stack, &["index=on"]);
    assert_one_file(&mount, &["second-name"], b"and here", "the kernel again");
    fs::remove_file(mount.join("second-name")).unwrap();
    mount.unmount();
    let mount = stack.mount();
    assert!(!mount.join("first-name").exists() && !mount.join("second-name").exists());
    mount.unmount();
    // The kernel keeps its shared whiteout there.
    let left = fs::read_dir(stack.work().join("index")).unwrap().map(|entry| entry.unwrap());
    let files: Vec<_> = left.filter(|entry| entry.file_type().unwrap().is_file()).collect();
    assert!(files.is_empty(), "left in the index: {files:?}");
}

/// What is copied up here is in the kernel's index as well.
#[test]
fn hardlinks_copied_up_here_are_whole_under_the_kernel() {
    support::needs_root!();
    let stack = stack();
    let names = ["first-name", "second-name"];
    let mount = stack.mount();
    fs::write(mount.join("first-name"), "changed here").unwrap();
    assert_one_file(&mount, &names, b"changed here", "here");
    mount.unmount();
    let mount = kernel(&stack, &["index=on"]);
    assert_one_file(&mount, &names, b"changed here", "the kernel");
    fs::write(mount.join("second-name"), "and by the kernel").unwrap();
    fs::hard_link(mount.join("second-name"), mount.join("third-name")).unwrap();
    mount.unmount();
    let names = ["first-name", "second-name", "third-name"];
    let mount = stack.mount();
    assert_one_file(&mount, &names, b"and by the kernel", "here again");
    fs::remove_file(mount.join("first-name")).unwrap();
    fs::rename(mount.join("third-name"), mount.join("tree/third-name")).unwrap();
    mount.unmount();
    let mount = kernel(&stack, &["index=on"]);
    assert_one_file(&mount, &["second-name", "tree/third-name"], b"and by the kernel", "the kernel again");
    mount.unmount();
}

/// Without its index the kernel knows nothing of names that were never used; those that were are links in the upper.
#[test]
fn names_that_were_used_are_links_without_an_index() {
    support::needs_root!();
    let stack = stack();
    let mount = stack.mount();
    assert_eq!(fs::read(mount.join("second-name")).unwrap(), b"one file");
    fs::write(mount.join("first-name"), "changed here").unwrap();
    mount.unmount();
    let mount = kernel(&stack, &["index=off"]);
    for name in ["first-name", "second-name"] {
        assert_eq!(fs::read(mount.join(name)).unwrap(), b"changed here", "{name}");
    }
    mount.unmount();
}

/// With metacopy=on the kernel copies up attributes and leaves the data below. They are there however a file is met: in a
/// listing, which the index of its directory serves, by itself, under a new name, with several names, above another
/// metacopy; and a change keeps all that is shown.
#[test]
fn metacopies_of_the_kernel_have_their_data() {
    support::needs_root!();
    let stack = Stack::new(2);
    stack.lower(1).file("d/f", vec![b'd'; 100_000]).file("moved/g", vec![b'g'; 50_000]).mode("d/f", 0o600);
    stack.lower(1).file("twice", vec![b't'; 30_000]).file("many/one", vec![b'm'; 20_000]);
    stack.lower(1).hardlink("many/two", "many/one").file("d/beside", "x").file("cut", vec![b'c'; 9000]);
    stack.lower(0).dir("d").dir("many");
    let metacopy = ["metacopy=on", "redirect_dir=on", "index=on"];
    let mode = |mount: &Mount, name: &str, mode: u32| {
        fs::set_permissions(mount.join(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    let mount = kernel(&stack, &metacopy);
    for name in ["d/f", "twice", "many/one", "cut"] {
        mode(&mount, name, 0o640);
    }
    fs::rename(mount.join("moved/g"), mount.join("elsewhere")).unwrap();
    fs::rename(mount.join("elsewhere"), mount.join("d/deep")).unwrap();
    let expected = Snapshot::take(mount.path());
    mount.unmount();
    let marks = read_xattrs(&stack.upper().root().join("d/f")).unwrap();
    assert!(marks.contains_key(&b"trusted.overlay.metacopy"[..]), "the kernel made no metacopy: {marks:?}");
    // The upper becomes a lower, and the kernel makes a metacopy above the metacopy.
    let above = Stack::new(1);
    let mut options = above.options();
    options.lowers = std::iter::once(stack.upper().root().to_owned())
        .chain(stack.lowers().iter().map(|lower| lower.root().to_owned()))
        .collect();
    let mut kernel_options = options.clone();
    kernel_options.extra = metacopy.iter().map(|word| (*word).to_owned()).collect();
    let mount = Mount::with_program(&Program::Kernel, &kernel_options, above.mountpoint());
    mode(&mount, "twice", 0o600);
    let expected_above = Snapshot::take(mount.path());
    mount.unmount();
    let marks = read_xattrs(&above.upper().root().join("twice")).unwrap();
    assert!(marks.contains_key(&b"trusted.overlay.metacopy"[..]), "the kernel made no metacopy: {marks:?}");

    let mount = Mount::new(&options, above.mountpoint());
    assert_same(&expected_above, &mount, "a metacopy above a metacopy");
    mount.unmount();
    let mount = stack.mount();
    assert_eq!(fs::read_dir(mount.join("d")).unwrap().count(), 3);
    assert_same(&expected, &mount, "here");
    assert_eq!(fs::read(mount.join("d/f")).unwrap(), vec![b'd'; 100_000]);
    // Each way to give it its data.
    let append =
        |name: &str| fs::File::options().append(true).open(mount.join(name)).unwrap().write_all(b"!");
    append("d/deep").unwrap();
    append("many/one").unwrap();
    fs::File::options().write(true).open(mount.join("cut")).unwrap().set_len(5000).unwrap();
    fs::rename(mount.join("d/f"), mount.join("f")).unwrap();
    let check = |mount: &Mount, when: &str| {
        let ends = |name: &str| fs::read(mount.join(name)).unwrap();
        assert_eq!(ends("d/deep"), [&vec![b'g'; 50_000][..], b"!"].concat(), "{when}");
        assert_eq!(ends("many/one"), [&vec![b'm'; 20_000][..], b"!"].concat(), "{when}");
        assert_eq!(ends("cut"), vec![b'c'; 5000], "{when}");
        assert_eq!(ends("f"), vec![b'd'; 100_000], "{when}");
        assert_eq!(fs::metadata(mount.join("f")).unwrap().permissions().mode() & 0o7777, 0o640, "{when}");
    };
    check(&mount, "in the same mount");
    mount.unmount();
    let mount = kernel(&stack, &metacopy);
    check(&mount, "under the kernel");
    mount.unmount();
    let mount = stack.mount();
    check(&mount, "after a remount");
    mount.unmount();
}

/// What a union marks in its upper must not be lost or shown when that upper is a lower of another.
#[test]
fn an_upper_becomes_a_lower() {
    if !can_mount_overlayfs() {
        support::skip!("an ordinary user cannot mount overlayfs");
    }
    let redirect = Privilege::current() == Privilege::Root;
    let below = stack();
    let mount = below.mount();
    change(&mount, redirect);
    let expected = Snapshot::take(mount.path());
    mount.unmount();
    let above = Stack::new(1);
    let mut options = above.options();
    options.lowers = std::iter::once(below.upper().root().to_owned())
        .chain(below.lowers().iter().map(|lower| lower.root().to_owned()))
        .collect();
    let mut without_root = expected;
    // The root's attributes are the new upper's.
    let root = Snapshot::take(above.upper().root());
    without_root.entries.insert("".into(), root.entries[std::ffi::OsStr::new("")].clone());
    let mount = Mount::new(&options, above.mountpoint());
    assert_same(&without_root, &mount, "one layer up, here");
    mount.unmount();
    let mut kernel_options = options.clone();
    kernel_options.extra.push(if redirect { "redirect_dir=on".into() } else { "userxattr".into() });
    let mount = Mount::with_program(&Program::Kernel, &kernel_options, above.mountpoint());
    assert_same(&without_root, &mount, "one layer up, under the kernel");
    mount.unmount();
}

#[test]
fn the_same_in_a_user_namespace() {
    support::needs_root!();
    let scratch = support::Scratch::new();
    let (suite, program) = (scratch.path().join("suite"), scratch.path().join("unionmount"));
    fs::copy(std::env::current_exe().unwrap(), &suite).unwrap();
    let under_test = match Program::under_test() {
        Program::Kernel => "kernel".into(),
        Program::Unionmount(path) | Program::FuseOverlayfs(path) => {
            let program = program.with_file_name(path.file_name().unwrap());
            fs::copy(path, &program).unwrap();
            program
        }
    };
    let work = scratch.dir("scratch");
    std::os::unix::fs::chown(&work, Some(1), Some(1)).unwrap();
    support::run("setfacl", &["-m", "u:1:rw", "/dev/fuse"]);
    let output = Command::new("setpriv")
        .args(["--reuid=1", "--regid=1", "--clear-groups", "unshare", "-Urm"])
        .arg(&suite)
        .args(["--test-threads", "1", "--skip", "the_same_in_a_user_namespace"])
        .env_remove(support::SKIPS)
        .env("UNIONMOUNT_BIN", Path::new(&under_test))
        .env("UNIONMOUNT_SCRATCH", &work)
        .env("TMPDIR", &work)
        .current_dir(&work)
        .output()
        .unwrap();
    println!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", output.status);
}

/// They were one directory here, and their files of one name one file: what was written to the one was in the other.
#[test]
fn two_directories_of_one_redirect_are_two() {
    support::needs_unionmount!();
    if Privilege::current() != Privilege::Root {
        support::skip!("{}: who isn't root can't copy the kernel's marks", module_path!());
    }
    let stack = Stack::new(1);
    stack.lower(0).file("origin/file", "lower\n").file("origin/below", "below\n");
    let mount = stack.mount();
    fs::write(mount.join("origin/file"), "upper\n").unwrap();
    fs::rename(mount.join("origin"), mount.join("one")).unwrap();
    mount.unmount();
    let upper = |name: &str| stack.upper().root().join(name);
    support::run("cp", &["-a".as_ref(), upper("one").as_os_str(), upper("two").as_os_str()]);
    fs::write(upper("one/file"), "right\n").unwrap();
    fs::write(upper("two/file"), "wrong\n").unwrap();
    // Each of them first.
    for order in [["one", "two"], ["two", "one"]] {
        let mount = stack.mount();
        let ino = |name: &str| fs::metadata(mount.join(name)).unwrap().ino();
        assert_ne!(ino(order[0]), ino(order[1]));
        assert_ne!(ino("one/file"), ino("two/file"));
        let read = |name: &str| fs::read_to_string(mount.join(name)).unwrap();
        assert_eq!((read("one/file"), read("two/file")), ("right\n".into(), "wrong\n".into()));
        assert_eq!((read("one/below"), read("two/below")), ("below\n".into(), "below\n".into()));
        let listed = Snapshot::take_checked(mount.path());
        assert_eq!(listed.entries.len(), 7, "{:?}", listed.entries.keys());
        fs::write(mount.join(order[1]).join("new"), "new").unwrap();
        assert!(!mount.join(order[0]).join("new").exists());
        fs::remove_file(mount.join(order[1]).join("new")).unwrap();
        mount.unmount();
    }
}
