//! `passthrough=lower`: what a copy-up costs who has the file open, and what it costs nobody.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::{for_reading, for_writing, read, stat};
use support::raw::{self, LockKind, Mapping, lock};
use support::{LoopFilesystem, Stack, run};

const OPTION: &str = "passthrough=lower";
const PAGE: usize = 4096;

/// Only root passes through.
macro_rules! mounted {
    ($stack:expr) => {
        mounted!($stack, &[OPTION])
    };
    ($stack:expr, $options:expr) => {{
        support::needs_root!();
        if !support::Program::under_test().is_unionmount() {
            support::skip!("others have no such option");
        }
        if std::env::var("UNIONMOUNT_OPTIONS").is_ok_and(|options| !options.contains(OPTION)) {
            support::skip!("the options of the whole suite win");
        }
        $stack.mount_with($options)
    }};
}

/// What an open descriptor shows from the beginning on.
fn shown(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; 3 * PAGE];
    let length = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(length);
    bytes
}

/// The path that leads to an open file without a name.
fn nameless(file: &impl AsFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

fn overwrite(path: &Path, bytes: &[u8]) {
    for_writing(path).write_all_at(bytes, 0).unwrap();
}

#[test]
fn every_name_of_a_file_that_was_copied_up_leads_to_the_copy() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/f", "as it was").hardlink("g", "d/f");
    let before = stack.lower_snapshots();
    let mount = mounted!(stack);
    let (f, g) = (mount.join("d/f"), mount.join("g"));
    let (old, old_too) = (for_reading(&f), for_reading(&g));
    let number = stat(&f).ino();
    overwrite(&g, b"IS NEW");
    for path in [&f, &g] {
        assert_eq!(read(path), b"IS NEWwas");
        assert_eq!((stat(path).ino(), stat(path).nlink()), (number, 2));
    }
    for file in [&old, &old_too] {
        assert_eq!(shown(file), b"as it was");
        assert_eq!((file.metadata().unwrap().ino(), file.metadata().unwrap().nlink()), (number, 2));
    }
    // Those that open it now share what is written.
    let (one, other) = (for_reading(&f), for_writing(&g));
    other.write_all_at(b"again", 0).unwrap();
    assert_eq!(shown(&one), b"againWwas");
    drop((old, old_too, one, other));
    assert_eq!(read(&f), b"againWwas");
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
    stack.assert_workdir_clean();
}

#[test]
fn what_is_copied_up_while_nobody_has_it_open_is_one_file_for_all() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "as it was");
    let mount = mounted!(stack);
    let path = mount.join("f");
    drop(for_reading(&path));
    // The kernel tells of a close when it likes.
    let written = || {
        drop(for_writing(&path));
        let reader = for_reading(&path);
        overwrite(&path, b"is");
        shown(&reader) == read(&path)
    };
    assert!(written());
    mount.unmount();
}

#[test]
fn attributes_are_the_same_by_whichever_open() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "as it was").mode("f", 0o644);
    let mount = mounted!(stack);
    let path = mount.join("f");
    let old = for_reading(&path);
    overwrite(&path, b"a longer text than was there before");
    let new = for_writing(&path);
    let same = |what: &str| {
        let (of_old, of_new, by_name) = (old.metadata().unwrap(), new.metadata().unwrap(), stat(&path));
        for other in [of_new, by_name] {
            let all =
                |m: &fs::Metadata| (m.ino(), m.mode(), m.size(), m.mtime_nsec(), m.ctime_nsec(), m.nlink());
            assert_eq!(all(&of_old), all(&other), "{what}");
        }
    };
    same("written");
    old.set_permissions(PermissionsExt::from_mode(0o640)).unwrap();
    same("chmod by the old");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    same("chmod by name");
    new.write_all_at(&[b'x'; 2 * PAGE], 0).unwrap();
    same("written by the new");
    raw::truncate(&path, 5).unwrap();
    same("truncated");
    fs::hard_link(&path, mount.join("g")).unwrap();
    same("linked");
    fs::rename(mount.join("g"), mount.join("h")).unwrap();
    same("renamed");
    fs::remove_file(mount.join("h")).unwrap();
    same("a name less");
    run("setfacl", &["-m", "u:1:rwx,m::rwx", path.to_str().unwrap()]);
    let acl = |file: &dyn AsFd| run("getfacl", &["-cpn", nameless_of_self(file).as_str()]);
    assert_eq!(acl(&old), acl(&new));
    fs::remove_file(&path).unwrap();
    assert_eq!((old.metadata().unwrap().nlink(), new.metadata().unwrap().nlink()), (0, 0));
    assert_eq!((shown(&old), shown(&new)), (b"as it was".to_vec(), b"xxxxx".to_vec()));
    drop((old, new));
    mount.unmount();
}

/// The same for another process.
fn nameless_of_self(file: &dyn AsFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/{}/fd/{}", std::process::id(), file.as_fd().as_raw_fd())
}

#[test]
fn locks_from_before_the_copy_up_are_apart() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "0123456789");
    let mount = mounted!(stack);
    let path = mount.join("f");
    let (one, two) = (for_reading(&path), for_reading(&path));
    flock(&one, FlockOperation::LockExclusive).unwrap();
    assert_eq!(flock(&two, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN), "before");
    lock(&one, LockKind::OpenFile, libc::F_RDLCK, 0, 5).unwrap();
    let new = for_writing(&path);
    assert_eq!(flock(&two, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN), "among the old");
    // This is what the option costs.
    flock(&new, FlockOperation::NonBlockingLockExclusive).unwrap();
    lock(&new, LockKind::OpenFile, libc::F_WRLCK, 0, 3).unwrap();
    let newer = for_reading(&path);
    assert_eq!(flock(&newer, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN), "among the new");
    support::assert_errno!(lock(&newer, LockKind::OpenFile, libc::F_RDLCK, 0, 3), Errno::AGAIN);
    drop((one, two, new, newer));
    mount.unmount();
}

fn watch(path: &Path) -> rustix::fd::OwnedFd {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, path, WatchFlags::MODIFY).unwrap();
    watch
}

/// How many changes were seen.
fn events(watch: &rustix::fd::OwnedFd) -> usize {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watch, &mut buffer);
    let mut count = 0;
    loop {
        match reader.next() {
            Ok(event) => count += usize::from(event.events().contains(ReadFlags::MODIFY)),
            Err(Errno::AGAIN) => return count,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_watch_from_before_the_copy_up_sees_nothing_of_the_copy_and_others_do() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/f", "as it was");
    let mount = mounted!(stack);
    let path = mount.join("d/f");
    let old = for_reading(&path);
    let (of_old, of_dir) = (watch(&path), watch(&mount.join("d")));
    let new = for_writing(&path);
    let of_new = watch(&path);
    new.write_all_at(b"changed", 0).unwrap();
    assert_eq!(events(&of_old), 0, "this is what the option costs");
    assert_eq!((events(&of_dir), events(&of_new)), (1, 1));
    drop((old, new));
    mount.unmount();
}

#[test]
fn a_mapping_keeps_what_it_shows_and_new_ones_share_the_copy() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", vec![b'-'; 2 * PAGE]);
    let mount = mounted!(stack);
    let path = mount.join("f");
    let old: Vec<Mapping> = {
        let file = for_reading(&path);
        vec![Mapping::shared(&file, PAGE, false).unwrap(), Mapping::private(&file, PAGE).unwrap()]
    };
    let new = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut writer = Mapping::shared(&new, PAGE, true).unwrap();
    writer.write(7, b"mapped");
    new.write_all_at(b"written", 100).unwrap();
    let reader = Mapping::shared(&for_reading(&path), PAGE, false).unwrap();
    for (at, bytes) in [(7, &b"mapped"[..]), (100, b"written")] {
        assert_eq!(reader.read(at, bytes.len()), bytes);
        assert_eq!(read(&path)[at..at + bytes.len()], *bytes);
        old.iter().for_each(|old| assert_eq!(old.read(at, bytes.len()), vec![b'-'; bytes.len()]));
    }
    drop((old, new, writer, reader));
    mount.unmount();
}

#[test]
fn a_program_that_runs_goes_on_and_its_name_runs_the_copy() {
    let stack = Stack::new(1);
    stack.lower(0).file("p", read("/bin/cat")).mode("p", 0o755);
    let mount = mounted!(stack);
    let path = mount.join("p");
    let start = || Command::new(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut old = start();
    // Its own file is busy; the copy isn't.
    support::assert_errno!(OpenOptions::new().write(true).open(&path), Errno::TXTBSY);
    fs::set_permissions(&path, PermissionsExt::from_mode(0o775)).unwrap();
    let mut new = start();
    support::assert_errno!(OpenOptions::new().write(true).open(&path), Errno::TXTBSY);
    new.stdin.take().unwrap().write_all(b"new").unwrap();
    assert_eq!(new.wait_with_output().unwrap().stdout, b"new");
    let file = OpenOptions::new().append(true).open(&path);
    // Another test's child may run it for a moment longer.
    if let Ok(mut file) = file {
        file.write_all(b"a tail").unwrap();
    }
    old.stdin.take().unwrap().write_all(b"old").unwrap();
    assert_eq!(old.wait_with_output().unwrap().stdout, b"old");
    mount.unmount();
}

#[test]
fn a_file_that_is_opened_again_without_its_name_shows_the_copy() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "as it was");
    let before = stack.lower_snapshots();
    let mount = mounted!(stack);
    let path = mount.join("f");
    let old = for_reading(&path);
    assert_eq!(read(nameless(&old)), b"as it was");
    let name = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    overwrite(&path, b"is now what it is");
    for _ in 0..2 {
        assert_eq!(read(nameless(&old)), b"is now what it is");
        assert_eq!(read(nameless(&name)), b"is now what it is");
    }
    // Another thread of the kernel's naming, which was not sent away before.
    let path_of_name = nameless(&name);
    std::thread::scope(|scope| {
        let again = scope.spawn(|| read(&path_of_name)).join().unwrap();
        assert_eq!(again, b"is now what it is");
    });
    let writing = || OpenOptions::new().read(true).write(true).open(nameless(&name));
    // The kernel would open the lower's file to write it.
    support::assert_errno!(writing(), Errno::STALE);
    assert_eq!(shown(&old), b"as it was");
    drop(old);
    let mut file = None;
    let opens = || {
        file = writing().ok();
        file.is_some()
    };
    assert!(support::wait_until(support::PATIENCE, opens), "the old open is gone");
    let file = file.unwrap();
    file.write_all_at(b"IS", 0).unwrap();
    let mut mapping = Mapping::shared(&file, PAGE, true).unwrap();
    mapping.write(3, b"NOW");
    assert_eq!(read(&path), b"IS NOW what it is");
    let by_name = for_writing(&path);
    by_name.write_all_at(b"by name", 0).unwrap();
    assert_eq!(shown(&file), b"by namewhat it is");
    assert_eq!(file.metadata().unwrap().mtime_nsec(), stat(&path).mtime_nsec());
    drop((mapping, file, by_name, name));
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
}

#[test]
fn opens_by_every_name_and_way_go_on() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "as it was").hardlink("g", "f");
    let mount = mounted!(stack);
    let (f, g) = (mount.join("f"), mount.join("g"));
    let old = for_reading(&f);
    let create = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
    create(&g).unwrap().write_all(b", and grew").unwrap();
    create(&f).unwrap().write_all(b" again").unwrap();
    support::assert_errno!(OpenOptions::new().write(true).create_new(true).open(&g), Errno::EXIST);
    assert_eq!(read(&g), b"as it was, and grew again");
    fs::write(&f, "short").unwrap();
    assert_eq!(read(&g), b"short");
    fs::rename(&g, mount.join("h")).unwrap();
    fs::hard_link(nameless(&old), mount.join("no")).unwrap_err();
    fs::hard_link(mount.join("h"), &g).unwrap();
    overwrite(&g, b"SH");
    assert_eq!((read(&f), read(mount.join("h"))), (b"SHort".to_vec(), b"SHort".to_vec()));
    assert_eq!(shown(&old), b"as it was");
    assert_eq!(old.metadata().unwrap().nlink(), 3);
    drop(old);
    mount.unmount();
}

#[test]
fn an_open_from_before_tells_no_holes_and_copies_what_it_shows() {
    let stack = Stack::new(1);
    stack.lower(0).sparse("f", 1 << 20, &[(512 << 10, b"in the middle")]);
    let mount = mounted!(stack);
    let path = mount.join("f");
    let old = for_reading(&path);
    let hole = raw::seek(&old, 0, libc::SEEK_DATA).unwrap();
    assert!(hole > 0, "the lower's filesystem tells its holes");
    let new = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    new.write_all_at(&vec![b'n'; 1 << 20], 0).unwrap();
    new.set_len((1 << 20) + 5).unwrap();
    assert_eq!(raw::seek(&old, 100, libc::SEEK_DATA).unwrap(), 100);
    assert_eq!(raw::seek(&old, 100, libc::SEEK_HOLE).unwrap(), (1 << 20) + 5);
    support::assert_errno!(raw::seek(&old, (1 << 20) + 5, libc::SEEK_DATA), Errno::NXIO);
    let copy = File::create_new(mount.join("copy")).unwrap();
    let copied = rustix::fs::copy_file_range(&old, Some(&mut (512 << 10)), &copy, None, 13).unwrap();
    assert_eq!((copied, read(mount.join("copy"))), (13, b"in the middle".to_vec()));
    drop((old, new, copy));
    mount.unmount();
}

#[test]
fn what_is_mounted_on_a_name_stays_there() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/f", "as it was").hardlink("d/g", "d/f").file("other", "what is mounted");
    let mount = mounted!(stack);
    let (f, g) = (mount.join("d/f"), mount.join("d/g"));
    let old = for_reading(&g);
    drop(for_reading(&f));
    let on_file = LoopFilesystem::at(&f, &["--bind", mount.join("other").to_str().unwrap()]);
    overwrite(&g, b"IS");
    // What meets the name, but not the file below what is mounted.
    for _ in 0..2 {
        run("ls", &["-l", mount.join("d").to_str().unwrap()]);
        fs::set_permissions(&g, PermissionsExt::from_mode(0o640)).unwrap();
        support::assert_errno!(fs::remove_file(&f), Errno::BUSY);
        assert_eq!((read(&f), read(&g)), (b"what is mounted".to_vec(), b"IS it was".to_vec()));
    }
    drop(on_file);
    assert_eq!(read(&f), b"IS it was");
    drop(old);
    mount.unmount();
}

/// The kernel offers no way around; the manual says so.
#[test]
fn what_is_mounted_on_a_name_goes_when_the_file_is_opened_by_it_where_it_is_not_mounted() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/f", "as it was").hardlink("d/g", "d/f").file("other", "what is mounted");
    let mount = mounted!(stack);
    let (f, g) = (mount.join("d/f"), mount.join("d/g"));
    let old = for_reading(&g);
    drop(for_reading(&f));
    let mount_in = |path: &Path| {
        format!(
            "mount --bind {} {} && echo mounted && read go && cat {}",
            mount.join("other").display(),
            path.display(),
            path.display()
        )
    };
    let mut elsewhere = Command::new("unshare")
        .args(["-m", "sh", "-ec", &mount_in(&f)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = io::BufReader::new(elsewhere.stdout.take().unwrap());
    let mut line = String::new();
    io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert_eq!(line, "mounted\n");
    overwrite(&g, b"IS");
    assert_eq!(read(&f), b"IS it was");
    elsewhere.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut rest = String::new();
    io::Read::read_to_string(&mut said, &mut rest).unwrap();
    assert!(elsewhere.wait().unwrap().success());
    assert_eq!(rest, "IS it was");
    drop(old);
    mount.unmount();
}

#[test]
fn a_mount_of_the_file_elsewhere_shows_the_copy() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "as it was");
    let mount = mounted!(stack);
    let place = stack.scratch().path().join("place");
    fs::write(&place, "").unwrap();
    let old = for_reading(mount.join("f"));
    let bound = LoopFilesystem::at(&place, &["--bind", mount.join("f").to_str().unwrap()]);
    overwrite(&mount.join("f"), b"IS");
    assert_eq!(read(&place), b"IS it was");
    drop(old);
    let writes =
        || OpenOptions::new().write(true).open(&place).and_then(|f| f.write_all_at(b"TO", 0)).is_ok();
    assert!(support::wait_until(support::PATIENCE, writes));
    assert_eq!(read(mount.join("f")), b"TO it was");
    drop(bound);
    mount.unmount();
}

#[test]
fn a_change_of_attributes_alone_moves_no_data_of_a_metacopy() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "as it was").mode("f", 0o644);
    let mount = mounted!(stack, &[OPTION, "metacopy=on"]);
    let path = mount.join("f");
    let old = for_reading(&path);
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let same = for_reading(&path);
    flock(&old, FlockOperation::LockExclusive).unwrap();
    assert_eq!(flock(&same, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN), "one node still");
    overwrite(&path, b"IS");
    assert_eq!((shown(&old), shown(&same)), (b"as it was".to_vec(), b"as it was".to_vec()));
    assert_eq!((read(&path), stat(&path).mode() & 0o777), (b"IS it was".to_vec(), 0o640));
    drop((old, same));
    mount.unmount();
}

#[test]
fn names_that_are_good_for_a_moment_lead_to_the_copy_too() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "as it was").hardlink("g", "f");
    let mount = mounted!(stack, &[OPTION, "timeout=0"]);
    let (f, g) = (mount.join("f"), mount.join("g"));
    let old = for_reading(&f);
    overwrite(&g, b"IS");
    for _ in 0..3 {
        assert_eq!((read(&f), read(&g)), (b"IS it was".to_vec(), b"IS it was".to_vec()));
        assert_eq!(stat(&f).ino(), old.metadata().unwrap().ino());
    }
    drop(old);
    mount.unmount();
}

/// Many open and write at once: nobody gets an error, and new opens see what was written before.
#[test]
fn opens_that_race_with_a_copy_up_see_one_file_or_the_other() {
    let stack = Stack::new(1);
    const FILES: usize = 60;
    for n in 0..FILES {
        stack.lower(0).file(format!("{n}"), "old").hardlink(format!("{n}.link"), format!("{n}"));
    }
    let before = stack.lower_snapshots();
    let mount = mounted!(stack);
    for n in 0..FILES {
        let paths = [mount.join(format!("{n}")), mount.join(format!("{n}.link"))];
        let held = for_reading(&paths[0]);
        std::thread::scope(|scope| {
            for path in &paths {
                scope.spawn(move || {
                    for _ in 0..20 {
                        let seen = read(path);
                        assert!(seen == b"old" || seen == b"new", "{seen:?}");
                    }
                });
            }
            scope.spawn(|| {
                overwrite(&paths[n % 2], b"new");
                paths.iter().for_each(|path| assert_eq!(read(path), b"new"));
            });
        });
        assert_eq!(shown(&held), b"old");
    }
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
    stack.assert_workdir_clean();
}

#[test]
fn a_file_is_one_again_when_it_was_forgotten() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "as it was");
    let mount = mounted!(stack);
    let path = mount.join("f");
    let old = for_reading(&path);
    overwrite(&path, b"IS");
    let number = stat(&path).ino();
    drop(old);
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!((read(&path), stat(&path).ino()), (b"IS it was".to_vec(), number));
    let (one, two) = (for_reading(&path), for_writing(&path));
    flock(&one, FlockOperation::LockExclusive).unwrap();
    assert_eq!(flock(&two, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN));
    drop((one, two));
    mount.unmount();
}

/// Who executes a descriptor gets what it shows.
#[test]
fn a_program_is_executed_by_its_descriptor() {
    let stack = Stack::new(1);
    stack.lower(0).file("p", read("/bin/true")).mode("p", 0o755);
    let mount = mounted!(stack);
    let held = for_reading(mount.join("p"));
    let executed = |file: &File| Command::new(nameless_of_self(file)).arg0("p").status().unwrap().success();
    assert!(executed(&held));
    fs::set_permissions(mount.join("p"), PermissionsExt::from_mode(0o775)).unwrap();
    assert!(executed(&held));
    assert!(executed(&for_reading(mount.join("p"))));
    drop(held);
    mount.unmount();
}
