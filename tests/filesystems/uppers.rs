//! What an upper's filesystem lacks is done otherwise; what can't be, is refused with the reason.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::below::{Below, Kind};
use crate::needs;
use support::{Mount, Options, Program, Scratch, Snapshot, Stack};

/// Each change that the flags of renameat2 are for; and the lower of it.
fn changes_of_names(kind: Kind) {
    let scratch = Scratch::new();
    let below = Below::new(&scratch, kind);
    let stack = Stack::new(1).with_upper_in(below.path());
    stack.lower(0).file("d/f", "f").file("d/e/f", "f").file("keep/f", "f").file("over/f", "f").file("g", "g");
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    let at = |path: &str| mount.join(path);
    fs::remove_dir_all(at("d")).unwrap();
    assert!(!at("d").exists());
    fs::create_dir(at("d")).unwrap();
    assert_eq!(fs::read_dir(at("d")).unwrap().count(), 0, "what was removed comes back");
    fs::rename(at("g"), at("h")).unwrap();
    fs::write(at("g"), "new").unwrap();
    fs::create_dir(at("plain")).unwrap();
    fs::write(at("plain/p"), "p").unwrap();
    fs::remove_file(at("over/f")).unwrap();
    fs::rename(at("plain"), at("over")).unwrap();
    fs::remove_dir_all(at("d")).unwrap();
    fs::rename(at("over"), at("d")).unwrap();
    if kind != Kind::Unionfs {
        fs::rename(at("keep"), at("over")).unwrap();
        assert_eq!(fs::read(at("over/f")).unwrap(), b"f");
        assert!(!at("keep").exists());
    }
    fs::set_permissions(at("h"), PermissionsExt::from_mode(0o600)).unwrap();
    let seen = |mount: &Mount| {
        let at = |path: &str| mount.join(path);
        assert_eq!(fs::read(at("g")).unwrap(), b"new");
        assert_eq!(fs::read(at("h")).unwrap(), b"g");
        assert_eq!(fs::read(at("d/p")).unwrap(), b"p");
        assert_eq!(fs::read_dir(at("d")).unwrap().count(), 1);
        assert_eq!(fs::metadata(at("h")).unwrap().mode() & 0o777, 0o600);
        let hidden = fs::read_dir(mount.path()).unwrap().map(|e| e.unwrap().file_name());
        assert!(hidden.into_iter().all(|name| !name.to_string_lossy().starts_with(".wh.")));
    };
    seen(&mount);
    mount.unmount();
    let mount = stack.mount();
    seen(&mount);
    mount.unmount();
    stack.assert_workdir_clean();
    stack.assert_lowers_unchanged(&before);
}

#[test]
fn bindfs_has_no_flags_of_rename() {
    needs!(Kind::Bindfs);
    changes_of_names(Kind::Bindfs);
}

#[test]
fn fuse2fs_has_no_flags_of_rename() {
    needs!(Kind::Fuse2fs);
    changes_of_names(Kind::Fuse2fs);
}

#[test]
fn mergerfs_has_no_flags_of_rename() {
    needs!(Kind::Mergerfs);
    changes_of_names(Kind::Mergerfs);
}

#[test]
fn unionfs_has_no_attributes() {
    needs!(Kind::Unionfs);
    changes_of_names(Kind::Unionfs);
}

/// As the filesystem itself says it. No copy-up comes before.
#[test]
fn exchange_is_refused_where_the_upper_has_none() {
    needs!(Kind::Bindfs);
    let scratch = Scratch::new();
    let below = Below::new(&scratch, Kind::Bindfs);
    let stack = Stack::new(1).with_upper_in(below.path());
    stack.lower(0).file("a", "a").file("b", "b");
    let mount = stack.mount();
    let (a, b) = (mount.join("a"), mount.join("b"));
    support::assert_errno!(renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE), Errno::INVAL);
    assert_eq!(fs::read(&a).unwrap(), b"a");
    assert_eq!(fs::read_dir(stack.upper().root()).unwrap().count(), 0);
    mount.unmount();
}

/// Of a squashfs, an image's usual form: a layer is changed as every other.
#[test]
fn squashfs_below_is_copied_up() {
    needs!(Kind::Squashfs);
    let scratch = Scratch::new();
    let content = scratch.dir("content");
    fs::create_dir_all(content.join("d/e")).unwrap();
    fs::write(content.join("d/f"), vec![b'f'; 200_000]).unwrap();
    fs::hard_link(content.join("d/f"), content.join("d/g")).unwrap();
    let below = Below::squashfs(&scratch, &content);
    let stack = Stack::new(0);
    let options = Options { lowers: vec![below.path().to_owned()], ..stack.options() };
    let mount = Mount::new(&options, stack.mountpoint());
    fs::OpenOptions::new().append(true).open(mount.join("d/f")).unwrap().write_all(b"more").unwrap();
    assert_eq!(fs::read(mount.join("d/g")).unwrap().len(), 200_004, "two names of one file");
    fs::rename(mount.join("d"), mount.join("n")).unwrap();
    mount.unmount();
    let mount = Mount::new(&options, stack.mountpoint());
    assert_eq!(fs::read(mount.join("n/g")).unwrap().len(), 200_004);
    assert!(!mount.join("d").exists());
    mount.unmount();
    stack.assert_workdir_clean();
}

/// Directories of lowers can't carry a redirect; programs then copy. Attributes are left out.
#[test]
fn unionfs_gets_copies_without_attributes() {
    needs!(Kind::Unionfs);
    let scratch = Scratch::new();
    let below = Below::new(&scratch, Kind::Unionfs);
    let stack = Stack::new(1).with_upper_in(below.path());
    stack.lower(0).file("d/f", "f").file("g", "g").xattr("g", "user.a", "a").xattr("d", "user.a", "a");
    let mount = stack.mount();
    support::assert_errno!(fs::rename(mount.join("d"), mount.join("e")), Errno::XDEV);
    fs::write(mount.join("d/f"), "new").unwrap();
    fs::write(mount.join("g"), "new").unwrap();
    fs::create_dir(mount.join("d/new")).unwrap();
    mount.unmount();
    let mount = stack.mount();
    assert_eq!(fs::read(mount.join("d/f")).unwrap(), b"new");
    assert_eq!(fs::read(mount.join("g")).unwrap(), b"new");
    assert!(mount.join("d/new").is_dir());
    mount.unmount();
}

/// What is written through one name is found under it, in the same run and in the next.
#[test]
fn names_of_one_file_are_files_by_themselves_without_attributes() {
    needs!(Kind::Unionfs);
    let scratch = Scratch::new();
    let below = Below::new(&scratch, Kind::Unionfs);
    let stack = Stack::new(1).with_upper_in(below.path());
    stack.lower(0).file("d/f", "low").file("alone", "low");
    for name in ["d/g", "h"] {
        fs::hard_link(stack.lower(0).root().join("d/f"), stack.lower(0).root().join(name)).unwrap();
    }
    let mount = stack.mount();
    // All names are known before one is written to.
    Snapshot::take_checked(mount.path());
    assert_eq!(fs::metadata(mount.join("d/f")).unwrap().nlink(), 1);
    let mut open = fs::File::options().append(true).open(mount.join("d/f")).unwrap();
    open.write_all(b" f").unwrap();
    fs::rename(mount.join("h"), mount.join("moved")).unwrap();
    fs::File::options().append(true).open(mount.join("moved")).unwrap().write_all(b" h").unwrap();
    drop(open);
    let see = |mount: &Mount| {
        Snapshot::take_checked(mount.path());
        ["d/f", "d/g", "moved", "alone"].map(|name| fs::read_to_string(mount.join(name)).unwrap())
    };
    let expected = ["low f", "low", "low h", "low"];
    assert_eq!(see(&mount), expected);
    mount.unmount();
    let mount = stack.mount();
    assert_eq!(see(&mount), expected, "after a remount");
    mount.unmount();
}

#[test]
fn mergerfs_that_numbers_names_is_refused() {
    needs!(Kind::MergerfsByName);
    let scratch = Scratch::new();
    let below = Below::new(&scratch, Kind::MergerfsByName);
    let stack = Stack::new(1).with_upper_in(below.path());
    let refused = Mount::try_with_program(&Program::under_test(), &stack.options(), stack.mountpoint());
    let error = refused.err().expect("an upper whose files can't be told apart");
    assert_eq!(error.status, Some(1), "{}", error.stderr);
    assert!(error.stderr.contains("inode number") && error.stderr.contains("use_ino"), "{}", error.stderr);
    assert_eq!(fs::read_dir(stack.work()).unwrap().count(), 0, "something is left in the workdir");
}
