//! With `metacopy=on` a change of attributes or names copies no data; these follow when they are first written to. The
//! kernel's overlayfs is the oracle, for what is made here and for what it makes itself.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use support::{Fields, LoopFilesystem, Mount, Scratch, Snapshot, Stack, diff, read_xattrs};

use super::{content, for_writing, mount, room};

const SIZE: usize = 3 << 20;
const KERNEL: [&str; 3] = ["metacopy=on", "redirect_dir=on", "index=on"];

/// A directory, a file with two names, one that is set-user-id.
fn stack() -> Stack {
    let stack = Stack::new(2);
    let bottom = stack.lower(1);
    bottom.file("d/f", content(SIZE, 1)).file("g", content(SIZE, 2)).file("dir/moves/h", content(SIZE, 3));
    bottom.file("first", content(SIZE, 4)).dir("e").hardlink("e/second", "first");
    bottom.file("setuid", content(SIZE, 5)).mode("setuid", 0o4755).file("empty", "");
    stack.lower(0).dir("d").file("top", content(SIZE, 6));
    stack
}

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn is_metacopy(path: &Path) -> bool {
    let marks = read_xattrs(path).unwrap();
    [&b"trusted.overlay.metacopy"[..], b"user.overlay.metacopy"].iter().any(|mark| marks.contains_key(*mark))
}

fn assert_same(expected: &Snapshot, mount: &Mount, what: &str) {
    let fields = Fields { nlink: false, directory_mtime: false, ..Fields::tree() };
    let differences = diff(expected, &Snapshot::take(mount.path()), &fields);
    assert!(differences.is_empty(), "{what}:\n{differences}");
}

/// All that is no write.
fn change(mount: &Mount) {
    chmod(mount.join("d/f"), 0o640);
    chown(mount.join("g"), Some(7), Some(8)).unwrap();
    fs::File::open(mount.join("top")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    rustix::fs::setxattr(mount.join("first"), "user.x", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    fs::rename(mount.join("g"), mount.join("d/renamed")).unwrap();
    fs::hard_link(mount.join("d/f"), mount.join("e/linked")).unwrap();
    fs::rename(mount.join("dir"), mount.join("e/dir")).unwrap();
    chmod(mount.join("e/dir/moves/h"), 0o600);
    fs::rename(mount.join("e/dir/moves/h"), mount.join("e/dir/h")).unwrap();
    chmod(mount.join("empty"), 0o600);
}

#[test]
fn changes_that_are_no_writes_copy_no_data() {
    support::needs_root!();
    let stack = stack();
    let before = stack.lower_snapshots();
    let here = mount(&stack);
    change(&here);
    assert!(room(stack.upper().root()) < 256 << 10, "{} bytes were copied", room(stack.upper().root()));
    for name in ["d/f", "d/renamed", "top", "first", "e/linked", "e/dir/h"] {
        assert!(is_metacopy(&stack.upper().root().join(name)), "{name}");
        assert!(fs::metadata(here.join(name)).unwrap().blocks() * 512 >= SIZE as u64, "{name} looks sparse");
    }
    // What hadn't been named before the first change is the same file all the same.
    assert_eq!(
        fs::metadata(here.join("e/second")).unwrap().ino(),
        fs::metadata(here.join("first")).unwrap().ino()
    );
    assert_eq!(fs::read(here.join("e/second")).unwrap(), content(SIZE, 4));
    let expected = Snapshot::take(here.path());
    for (name, seed) in [("d/f", 1), ("d/renamed", 2), ("e/dir/h", 3), ("first", 4), ("top", 6)] {
        assert_eq!(fs::read(here.join(name)).unwrap(), content(SIZE, seed), "{name}");
    }
    here.unmount();
    let kernel = stack.mount_kernel(&KERNEL);
    assert_same(&expected, &kernel, "under the kernel");
    kernel.unmount();
    for options in [&["metacopy=on"][..], &[]] {
        let again = stack.mount_with(options);
        assert_same(&expected, &again, "after a remount");
        again.unmount();
    }
    stack.assert_lowers_unchanged(&before);
}

/// What a write takes away from a file could not be given back in one step with its data.
#[test]
fn what_a_write_takes_away_is_copied_with_its_data() {
    support::needs_root!();
    let stack = stack();
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    stack.lower(1).file("ping", content(SIZE, 7)).xattr("ping", "security.capability", capability);
    let here = mount(&stack);
    chmod(here.join("setuid"), 0o4711);
    chmod(here.join("ping"), 0o700);
    chmod(here.join("d/f"), 0o600);
    chmod(here.join("d/f"), 0o2755);
    rustix::fs::setxattr(
        here.join("top"),
        "security.capability",
        &capability,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    for name in ["setuid", "ping", "d/f", "top"] {
        assert!(!is_metacopy(&stack.upper().root().join(name)), "{name}");
    }
    assert_eq!(fs::metadata(here.join("d/f")).unwrap().mode() & 0o7777, 0o2755);
    here.unmount();
}

type Change = fn(&Path);

/// Each way in which data are changed, of a file whose attributes were changed before.
#[test]
fn data_follow_when_they_are_written() {
    support::needs_root!();
    let ways: [(&str, Change); 9] = [
        ("write", |path| for_writing(path).write_all_at(b"written", SIZE as u64 / 2).unwrap()),
        ("append", |path| fs::File::options().append(true).open(path).unwrap().write_all(b"!").unwrap()),
        ("shorter", |path| for_writing(path).set_len(SIZE as u64 / 2 + 1).unwrap()),
        ("longer", |path| for_writing(path).set_len(SIZE as u64 * 2).unwrap()),
        ("emptied", |path| drop(fs::File::create(path).unwrap())),
        ("punched", |path| {
            let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(for_writing(path), flags, 5000, 100_000).unwrap();
        }),
        ("copied into", |path| {
            let (from, to) = (fs::File::open(path).unwrap(), for_writing(path));
            rustix::fs::copy_file_range(&from, Some(&mut 0), to, Some(&mut 70_001), 14).unwrap();
        }),
        ("allocated", |path| {
            rustix::fs::fallocate(for_writing(path), rustix::fs::FallocateFlags::empty(), 0, SIZE as u64 + 9)
                .unwrap();
        }),
        ("set-user-id", |path| chmod(path, 0o4755)),
    ];
    let stack = Stack::new(1);
    let plain = support::Scratch::new();
    for (name, change) in ways {
        stack.lower(0).file(name, content(SIZE, 9));
        fs::write(plain.path().join(name), content(SIZE, 9)).unwrap();
        change(&plain.path().join(name));
    }
    let here = mount(&stack);
    for (name, change) in ways {
        chmod(here.join(name), 0o600);
        assert!(is_metacopy(&stack.upper().root().join(name)), "{name}");
        let reader = fs::File::open(here.join(name)).unwrap();
        let mut first = [0; 8];
        reader.read_exact_at(&mut first, 0).unwrap();
        change(&here.join(name));
        assert!(!is_metacopy(&stack.upper().root().join(name)), "{name} has no data yet");
        let expected = fs::read(plain.path().join(name)).unwrap();
        assert!(fs::read(here.join(name)).unwrap() == expected, "{name}: not the same as a plain file");
        assert_eq!(reader.metadata().unwrap().len(), expected.len() as u64, "{name}, by who had it open");
    }
    here.unmount();
    let kernel = stack.mount_kernel(&["metacopy=off"]);
    for (name, _) in ways {
        assert!(fs::read(kernel.join(name)).unwrap() == fs::read(plain.path().join(name)).unwrap(), "{name}");
    }
    kernel.unmount();
}

/// Its times are those that programs gave it, also after its data came.
#[test]
fn data_that_come_are_no_change_of_the_times() {
    support::needs_root!();
    let stack = stack();
    let here = mount(&stack);
    chmod(here.join("d/f"), 0o600);
    fs::File::open(here.join("d/f")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    chmod(here.join("d/f"), 0o2600);
    assert!(!is_metacopy(&stack.upper().root().join("d/f")));
    assert_eq!(fs::metadata(here.join("d/f")).unwrap().modified().unwrap(), std::time::UNIX_EPOCH);
    here.unmount();
}

/// Without redirects nothing could tell where the data of what moves are.
#[test]
fn what_moves_without_redirects_takes_its_data_along() {
    support::needs_root!();
    let stack = stack();
    let here = stack.mount_with(&["metacopy=on", "redirect_dir=off"]);
    chmod(here.join("d/f"), 0o600);
    assert!(is_metacopy(&stack.upper().root().join("d/f")));
    fs::rename(here.join("d/f"), here.join("f")).unwrap();
    chmod(here.join("first"), 0o600);
    for name in ["f", "first"] {
        assert!(!is_metacopy(&stack.upper().root().join(name)), "{name}");
    }
    assert!(fs::read(here.join("f")).unwrap() == content(SIZE, 1));
    here.unmount();
}

/// Whoever gives away a file of root's would give the mark away too, which then leads only to what the owner may read.
#[test]
fn marks_that_others_can_write_are_not_made() {
    support::needs_root!();
    let stack = stack();
    stack.lower(1).file("secret", content(SIZE, 8)).mode("secret", 0o600);
    let here = stack.mount_with(&["metacopy=on", "userxattr"]);
    chown(here.join("secret"), Some(7), Some(7)).unwrap();
    assert!(!is_metacopy(&stack.upper().root().join("secret")));
    here.unmount();
    let here = stack.mount_with(&["metacopy=on", "userxattr"]);
    assert!(fs::read(here.join("secret")).unwrap() == content(SIZE, 8));
    here.unmount();
}

/// Lowers that hold data alone, as composefs and `lowerdir=a::b` have it: their names aren't seen, and absolute redirects
/// lead there. The first that has the path counts.
#[test]
fn layers_of_data_alone() {
    support::needs_root!();
    let stack = Stack::new(3);
    stack.lower(1).file("objects/aa/1", content(SIZE, 1)).file("objects/directory/x", "");
    stack.lower(2).file("objects/aa/1", content(SIZE, 9)).file("objects/bb/2", content(SIZE, 2));
    stack.lower(1).symlink("objects/link", "bb/2").file("objects/bb/elsewhere", "");
    let seen = stack.lower(0);
    let metacopy = |name: &str, redirect: &str| {
        seen.sparse(name, SIZE as u64, &[]);
        seen.xattr(name, "trusted.overlay.metacopy", "").xattr(name, "trusted.overlay.redirect", redirect);
    };
    metacopy("d/one", "/objects/aa/1");
    metacopy("two", "/objects/bb/2");
    metacopy("lost", "/objects/cc/3");
    metacopy("no-file", "/objects/directory");
    metacopy("through-a-link", "/objects/link/x");
    let path = |at: usize| stack.lower(at).root().display().to_string();
    let list = format!("{}::{}::{}", path(0), path(1), path(2));
    let options = |extra: &[&str]| {
        let mut options = stack.options_with(extra);
        options.lowers.truncate(1);
        options
    };
    // The kernel takes its own form alone, which replaces what stands before.
    let mut of_kernel = options(&KERNEL);
    of_kernel.extra.push(format!("lowerdir={list}"));
    let data = [format!("datadir+={}", path(1)), format!("datadir+={}", path(2))];
    let kernel = Mount::with_program(&support::Program::Kernel, &of_kernel, stack.mountpoint());
    let names = ["d/one", "two", "lost", "no-file", "through-a-link"];
    let read = |mount: &Mount| names.map(|name| fs::read(mount.join(name)).ok());
    let (expected, listed) = (read(&kernel), fs::read_dir(kernel.path()).unwrap().count());
    assert!(expected[0].as_ref().unwrap() == &content(SIZE, 1) && expected[2].is_none());
    kernel.unmount();
    for more in [&["metacopy=on"][..], &[]] {
        let mut here = options(more);
        here.extra.extend(data.clone());
        let here = Mount::new(&here, stack.mountpoint());
        assert!(read(&here) == expected, "not as the kernel");
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), listed);
        assert!(!here.join("objects").exists());
        chmod(here.join("two"), 0o600);
        fs::rename(here.join("two"), here.join("d/moved")).unwrap();
        assert!(fs::read(here.join("d/moved")).unwrap() == content(SIZE, 2));
        fs::rename(here.join("d/moved"), here.join("two")).unwrap();
        for_writing(here.join("d/one")).write_all_at(b"x", 7).unwrap();
        assert!(fs::read(here.join("d/one")).unwrap()[8..] == content(SIZE, 1)[8..]);
        fs::remove_file(here.join("d/one")).unwrap();
        here.unmount();
        fs::remove_dir_all(stack.upper().root()).unwrap();
        fs::create_dir(stack.upper().root()).unwrap();
    }
}

/// Digests in marks: `verity=on` refuses data that haven't theirs, `require` marks without one as well.
#[test]
fn digests_in_marks_are_checked_when_that_is_asked_for() {
    support::needs_root!();
    let stack = Stack::new(2);
    stack.lower(1).file("plain", content(SIZE, 1)).file("digest", content(SIZE, 2));
    let digest = [&[0, 36, 0, 1][..], &[7; 32]].concat();
    for (name, mark) in [("plain", &[][..]), ("digest", &digest)] {
        stack.lower(0).sparse(name, SIZE as u64, &[]).xattr(name, "trusted.overlay.metacopy", mark);
    }
    for (option, plain, with_digest) in
        [("verity=off", true, true), ("verity=on", true, false), ("verity=require", false, false)]
    {
        let here = stack.mount_with(&[option]);
        for (name, readable) in [("plain", plain), ("digest", with_digest)] {
            let read = fs::read(here.join(name)).map_err(|e| e.raw_os_error());
            match readable {
                true => assert!(read.is_ok(), "{option}, {name}: {:?}", read.err()),
                false => assert_eq!(read.err(), Some(Some(libc::EIO)), "{option}, {name}"),
            }
        }
        here.unmount();
    }
}

/// What was copied before the disk was full is nobody's, and goes.
#[test]
fn data_that_do_not_fit_take_no_room() {
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 16 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("large", content(24 << 20, 1));
    let here = mount(&stack);
    chmod(here.join("large"), 0o600);
    let upper = stack.upper().root();
    let before = room(upper);
    let refused = for_writing_at_all(&here.join("large")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(28));
    assert_eq!(room(upper), before, "of a file that isn't copied");
    assert!(is_metacopy(&upper.join("large")));
    assert!(fs::read(here.join("large")).unwrap() == content(24 << 20, 1));
    fs::write(here.join("other"), content(6 << 20, 2)).unwrap();
    here.unmount();
}

fn for_writing_at_all(path: &Path) -> std::io::Result<()> {
    fs::File::options().write(true).open(path)?.write_at(b"x", 0).map(drop)
}
