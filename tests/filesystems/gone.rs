//! A filesystem below that goes away, or becomes read-only, in the middle of operations: who asks for what it had is told an
//! error, all else goes on, and the mount can be unmounted.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::below::{Below, Kind};
use crate::needs;
use support::{LoopFilesystem, Mount, Scratch, Stack, wait_until};

/// By this a FUSE filesystem loses its daemon, as when that was killed. `None` without fusectl.
fn abort_of(of: &Path) -> Option<PathBuf> {
    let abort = support::abort_of(rustix::fs::minor(fs::metadata(of).unwrap().dev()));
    Some(abort).filter(|path| path.exists())
}

/// The file of a lower that is copied up when the filesystem goes.
const LARGE: usize = 48 << 20;

fn stack_of(lower_below: Option<&Path>, upper_below: Option<&Path>) -> Stack {
    let mut stack = Stack::new(2);
    if let Some(below) = lower_below {
        stack = stack.with_lower_in(0, below);
    }
    if let Some(below) = upper_below {
        stack = stack.with_upper_in(below);
    }
    stack.lower(0).file("dir/top", "top").file("top", "top");
    fs::write(stack.lower(0).place("large"), vec![b'l'; LARGE]).unwrap();
    stack.lower(1).file("dir/low", "low").file("low/file", "low");
    stack
}

/// Nothing here hangs or panics, whatever the answers are: a filesystem that is gone has several errors.
fn ask_for_everything(mount: &Mount) {
    for path in ["top", "dir/top", "large", "dir", "new"] {
        let at = mount.join(path);
        drop(fs::read(&at));
        drop(fs::metadata(&at));
        drop(fs::read_dir(&at).map(|all| all.count()));
        drop(fs::set_permissions(&at, PermissionsExt::from_mode(0o700)));
        drop(fs::rename(&at, mount.join("moved")));
        drop(fs::write(&at, "new"));
        drop(fs::remove_file(&at));
    }
}

#[test]
fn a_lower_that_goes_takes_nothing_else_along() {
    needs!(Kind::Bindfs);
    support::needs_unionmount!();
    let scratch = Scratch::new();
    let below = Below::new(&scratch, Kind::Bindfs);
    let Some(abort) = abort_of(below.path()) else { support::skip!("no fusectl here") };
    let stack = stack_of(Some(below.path()), None);
    let mount = stack.mount();
    fs::write(mount.join("own"), "own").unwrap();
    // A name that is asked for later could have been hidden by what is gone.
    assert_eq!(fs::read_to_string(mount.join("low/file")).unwrap(), "low");
    let mut open = File::open(mount.join("large")).unwrap();
    open.read_exact(&mut [0; 10]).unwrap();

    // In the middle of a copy-up: its beginning is there.
    let large = mount.join("large");
    let copying = std::thread::spawn(move || fs::set_permissions(large, PermissionsExt::from_mode(0o600)));
    let staged = || fs::read_dir(stack.work().join("work")).is_ok_and(|mut all| all.next().is_some());
    assert!(wait_until(support::PATIENCE, || staged() || copying.is_finished()), "no copy-up begins");
    fs::write(&abort, "1").unwrap();
    let copied = copying.join().unwrap();
    let copy = fs::metadata(stack.upper().root().join("large"));
    match &copied {
        Ok(()) => assert_eq!(copy.unwrap().len(), LARGE as u64),
        Err(_) => assert_eq!(copy.map(drop).unwrap_err().kind(), ErrorKind::NotFound, "a part of a copy"),
    }

    ask_for_everything(&mount);
    assert_eq!(fs::read_to_string(mount.join("own")).unwrap(), "own");
    assert_eq!(fs::read_to_string(mount.join("low/file")).unwrap(), "low");
    fs::write(mount.join("low/file"), "changed").unwrap();
    fs::write(mount.join("low/other"), "made").unwrap();
    assert_eq!(fs::read_to_string(stack.upper().root().join("low/file")).unwrap(), "changed");
    drop(open);
    mount.unmount();
    stack.assert_workdir_clean();
}

/// A character device may be a whiteout, so a listing has to look at it.
#[test]
fn an_entry_that_a_listing_must_look_at_and_cannot_is_listed() {
    needs!(Kind::Bindfs);
    support::needs_unionmount!();
    let scratch = Scratch::new();
    let below = Below::new(&scratch, Kind::Bindfs);
    let Some(abort) = abort_of(below.path()) else { support::skip!("no fusectl here") };
    let stack = Stack::new(2);
    stack.lower(0).file("d/before", "x").file("d/z", "x");
    stack.lower(1).file("d/low", "x").file("d/device", "hidden");
    let device = stack.lower(0).place("d/device");
    support::run("mknod", &[device.as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()]);
    let file = below.path().join("file");
    fs::write(&file, "x").unwrap();
    let bound = LoopFilesystem::at(&device, &["--bind", file.to_str().unwrap()]);
    fs::write(&abort, "1").unwrap();
    let mount = stack.mount();
    let mut names: Vec<_> =
        fs::read_dir(mount.join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["before", "device", "low", "z"]);
    fs::read(mount.join("d/device")).unwrap_err();
    fs::write(mount.join("d/new"), "new").unwrap();
    fs::remove_file(mount.join("d/before")).unwrap();
    assert_eq!(fs::read_dir(mount.join("d")).unwrap().count(), 4);
    mount.unmount();
    drop(bound);
}

fn an_upper_goes(kind: Kind) {
    support::needs_unionmount!();
    let scratch = Scratch::new();
    let below = Below::new(&scratch, kind);
    let Some(abort) = abort_of(below.path()) else { support::skip!("no fusectl here") };
    let stack = stack_of(None, Some(below.path()));
    let mount = stack.mount();
    let mut open = File::create(mount.join("open")).unwrap();
    open.write_all(b"before").unwrap();
    fs::create_dir(mount.join("made")).unwrap();
    fs::write(&abort, "1").unwrap();
    // Whoever writes is told; what only lowers have is read on.
    open.write_all(b"after").unwrap_err();
    open.sync_all().unwrap_err();
    fs::write(mount.join("made/new"), "new").unwrap_err();
    fs::create_dir(mount.join("dir/new")).unwrap_err();
    fs::remove_file(mount.join("low/file")).unwrap_err();
    fs::set_permissions(mount.join("top"), PermissionsExt::from_mode(0o600)).unwrap_err();
    fs::rename(mount.join("low"), mount.join("moved")).unwrap_err();
    ask_for_everything(&mount);
    drop(open);
    // The daemon ends, and the lowers are as they were.
    mount.unmount();
    assert_eq!(fs::read_to_string(stack.lower(1).root().join("low/file")).unwrap(), "low");
    assert_eq!(fs::read_to_string(stack.lower(0).root().join("dir/top")).unwrap(), "top");
}

#[test]
fn an_upper_on_bindfs_that_goes_is_told_to_who_writes() {
    needs!(Kind::Bindfs);
    an_upper_goes(Kind::Bindfs);
}

#[test]
fn an_upper_on_fuse2fs_that_goes_is_told_to_who_writes() {
    needs!(Kind::Fuse2fs);
    an_upper_goes(Kind::Fuse2fs);
}

#[test]
fn an_upper_that_is_read_only_for_a_while_is_written_to_again() {
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::tmpfs(&scratch, "disk", 64 << 20);
    let stack = stack_of(None, Some(disk.path()));
    stack.upper().file("own", "own");
    let mount = stack.mount();
    // What was written may be kept open, and then that is refused.
    disk.remount("ro");
    let refused = |what: &str, done: std::io::Result<()>| {
        assert_eq!(done.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem, "{what}");
    };
    refused("create", fs::write(mount.join("new"), "new"));
    refused("copy-up", fs::set_permissions(mount.join("dir/low"), PermissionsExt::from_mode(0o600)));
    refused("chmod", fs::set_permissions(mount.join("own"), PermissionsExt::from_mode(0o600)));
    refused("unlink", fs::remove_file(mount.join("own")));
    refused("whiteout", fs::remove_file(mount.join("top")));
    refused("rename", fs::rename(mount.join("low"), mount.join("moved")));
    refused("mkdir", fs::create_dir(mount.join("dir/new")));
    let see =
        || ["own", "top", "dir/low", "low/file"].map(|path| fs::read_to_string(mount.join(path)).unwrap());
    assert_eq!(see(), ["own", "top", "low", "low"]);
    disk.remount("rw");
    fs::write(mount.join("new"), "new").unwrap();
    fs::set_permissions(mount.join("dir/low"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::remove_file(mount.join("top")).unwrap();
    fs::rename(mount.join("low"), mount.join("moved")).unwrap();
    assert_eq!(fs::read_to_string(mount.join("moved/file")).unwrap(), "low");
    mount.unmount();
    stack.assert_workdir_clean();
}
