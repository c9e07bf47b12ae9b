//! Chains of snapshots beside one plain directory that went through the same changes: what containerd's suite calls
//! `checkSnapshots`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use crate::client::{Client, Mounted};
use crate::server::Server;
use support::{Fields, Scratch, Snapshot, diff};

type Change = fn(&Path);

fn write(path: impl AsRef<Path>, content: &str, mode: u32) {
    fs::write(&path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn dir(path: impl AsRef<Path>, mode: u32) {
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Makes a snapshot of each change upon the one before, and compares a view of it with the plain directory.
fn check(changes: &[Change]) {
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    let mut client = server.client();
    let plain = scratch.dir("plain");
    let mut parent = String::new();
    for (step, change) in changes.iter().enumerate() {
        let mounted =
            Mounted::of(&client.prepare("active", &parent).unwrap(), &scratch.path().join("active"));
        change(mounted.path());
        change(&plain);
        drop(mounted);
        let name = format!("layer{step}");
        client.commit(&name, "active").unwrap();
        same(&mut client, &name, &plain, &scratch);
        parent = name;
    }
}

fn same(client: &mut Client, name: &str, plain: &Path, scratch: &Scratch) {
    let view = Mounted::of(&client.view("view", name).unwrap(), &scratch.path().join("view"));
    assert!(fs::write(view.path().join("written"), "").is_err(), "a view can be written");
    let fields = Fields { mtime: false, directory_mtime: false, ..Fields::tree() };
    let difference = diff(&Snapshot::take(plain), &Snapshot::take_checked(view.path()), &fields);
    assert_eq!(difference, "", "{name}");
    drop(view);
    client.remove("view").unwrap();
}

#[test]
fn a_file_is_changed_layer_by_layer() {
    support::needs_root!();
    check(&[
        |top| {
            for name in ["/a", "/b", "/c"] {
                write(format!("{}{name}", top.display()), "one\n", 0o777);
            }
            dir(top.join("etc"), 0o755);
            write(top.join("etc/hosts"), "mydomain 10.0.0.1", 0o644);
            write(top.join("etc/profile"), "PATH=/usr/bin", 0o644);
        },
        |top| {
            write(top.join("etc/hosts"), "mydomain 10.0.0.120", 0o644);
            write(top.join("etc/profile"), "PATH=/bin", 0o666);
            dir(top.join("root"), 0o700);
            write(top.join("root/.bashrc"), "PATH=/usr/sbin", 0o644);
        },
        |top| {
            write(top.join("root/.bashrc"), "PATH=/sbin", 0o600);
            write(top.join("etc/hosts"), "again", 0o640);
        },
    ]);
}

#[test]
fn what_is_deleted_stays_deleted() {
    support::needs_root!();
    check(&[
        |top| {
            for name in ["foo", "foobar"] {
                write(top.join(name), name, 0o777);
            }
            dir(top.join("dir1/sub/deep"), 0o755);
            write(top.join("dir1/sub/deep/f"), "f", 0o644);
            dir(top.join("dir2"), 0o755);
        },
        |top| {
            fs::remove_file(top.join("foobar")).unwrap();
            fs::remove_dir_all(top.join("dir1/sub")).unwrap();
            fs::remove_dir(top.join("dir2")).unwrap();
        },
        |_| {},
        |top| dir(top.join("dir1/sub"), 0o711),
    ]);
}

#[test]
fn a_directory_is_replaced_by_an_opaque_one() {
    support::needs_root!();
    check(&[
        |top| {
            for name in ["dir/sub", "file"] {
                dir(top.join(name), 0o755);
            }
            write(top.join("dir/old"), "old", 0o644);
            write(top.join("dir/sub/old"), "old", 0o644);
            write(top.join("file/in"), "old", 0o644);
        },
        |top| {
            fs::remove_dir_all(top.join("dir")).unwrap();
            dir(top.join("dir/sub"), 0o700);
            write(top.join("dir/new"), "new", 0o644);
            fs::remove_dir_all(top.join("file")).unwrap();
            write(top.join("file"), "a file now", 0o644);
        },
        |top| {
            write(top.join("dir/sub/newer"), "newer", 0o644);
            fs::remove_file(top.join("file")).unwrap();
            dir(top.join("file"), 0o755);
        },
    ]);
}

#[test]
fn files_move_between_directories_of_lower_layers() {
    support::needs_root!();
    check(&[
        |top| {
            for (path, content) in [("dir1/f1", "Hello"), ("dir2/f2", "...")] {
                dir(top.join(path).parent().unwrap(), 0o700);
                write(top.join(path), content, 0o644);
            }
        },
        |top| {
            dir(top.join("dir3"), 0o700);
            write(top.join("dir3/f1"), "Hello", 0o644);
            fs::remove_dir_all(top.join("dir1")).unwrap();
            fs::hard_link(top.join("dir2/f2"), top.join("dir3/f2")).unwrap();
            fs::remove_file(top.join("dir2/f2")).unwrap();
        },
        |top| {
            fs::hard_link(top.join("dir3/f2"), top.join("dir2/f3")).unwrap();
            write(top.join("dir2/f3"), "both", 0o640);
        },
    ]);
}

#[test]
fn directories_are_renamed_across_layers() {
    support::needs_root!();
    check(&[
        |top| {
            dir(top.join("a/sub"), 0o755);
            write(top.join("a/sub/f"), "f", 0o644);
            dir(top.join("b"), 0o755);
            write(top.join("b/hostile"), "", 0o644);
        },
        |top| {
            fs::rename(top.join("a"), top.join("moved")).unwrap();
            write(top.join("moved/sub/g"), "g", 0o644);
            dir(top.join("a"), 0o700);
        },
        |top| {
            fs::rename(top.join("moved/sub"), top.join("b/sub")).unwrap();
            fs::rename(top.join("b"), top.join("moved/b")).unwrap();
            fs::remove_file(top.join("moved/b/sub/f")).unwrap();
        },
        |top| fs::rename(top.join("moved"), top.join("again")).unwrap(),
    ]);
}

#[test]
fn owners_modes_links_and_attributes_are_kept() {
    support::needs_root!();
    check(&[
        |top| {
            for (name, uid) in [("opt", 1), ("opt/a", 2), ("opt/a/b", 3)] {
                dir(top.join(name), 0o700);
                chown(top.join(name), Some(uid), Some(uid)).unwrap();
            }
            for name in ["opt/file", "opt/suid"] {
                write(top.join(name), name, 0o644);
            }
            symlink("nowhere", top.join("opt/link")).unwrap();
            // The root itself, which the mount takes from the upper.
            chown(top, Some(11), Some(12)).unwrap();
            fs::set_permissions(top, fs::Permissions::from_mode(0o1751)).unwrap();
        },
        |top| {
            chown(top.join("opt/file"), Some(5), Some(6)).unwrap();
            chown(top.join("opt/a"), Some(7), Some(8)).unwrap();
            fs::set_permissions(top.join("opt/suid"), fs::Permissions::from_mode(0o4755)).unwrap();
            std::os::unix::fs::lchown(top.join("opt/link"), Some(9), None).unwrap();
            let attribute = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(top.join("opt/a/b"), "trusted.mine", b"1", attribute).unwrap();
        },
        |top| fs::set_permissions(top, fs::Permissions::from_mode(0o755)).unwrap(),
    ]);
}

#[test]
fn many_layers() {
    support::needs_root!();
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    let mut client = server.client();
    const LAYERS: usize = 128;
    let mut parent = String::new();
    for layer in 0..LAYERS {
        let mount = client.prepare("active", &parent).unwrap();
        // What a mount would write lies in the layer; only some are mounted, for each costs a process.
        if layer % 32 == 31 {
            let mounted = Mounted::of(&mount, &scratch.path().join("active"));
            for below in 0..layer {
                assert_eq!(fs::read_to_string(mounted.path().join(format!("f{below}"))).unwrap(), "content");
            }
            write(mounted.path().join("last"), &layer.to_string(), 0o644);
            write(mounted.path().join(format!("f{layer}")), "content", 0o644);
        } else {
            let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
            write(Path::new(upper.unwrap_or(&mount.source)).join(format!("f{layer}")), "content", 0o644);
        }
        parent = format!("layer{layer}");
        client.commit(&parent, "active").unwrap();
    }
    let view = Mounted::of(&client.view("view", &parent).unwrap(), &scratch.path().join("view"));
    assert_eq!(fs::read_dir(view.path()).unwrap().count(), LAYERS + 1);
    assert_eq!(fs::read_to_string(view.path().join("last")).unwrap(), "127");
}
