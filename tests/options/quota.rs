//! `size` and `inodes`: what an upper may take, and that it is what is there.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FallocateFlags, XattrFlags, fallocate, removexattr, setxattr, statvfs};
use support::cli::Place;
use support::{LoopFilesystem, Mount, Scratch, Stack, wait_until};

const MIB: u64 = 1 << 20;

/// What statfs tells: bytes in all and free, objects in all and free.
fn told(at: &Path) -> [u64; 4] {
    let told = statvfs(at).unwrap();
    [told.f_blocks * told.f_frsize, told.f_bfree * told.f_frsize, told.f_files, told.f_ffree]
}

/// How many bytes and objects statfs tells to be taken.
fn taken(at: &Path) -> (u64, u64) {
    let [bytes, free, inodes, free_inodes] = told(at);
    (bytes - free, inodes - free_inodes)
}

/// How many bytes and objects a directory takes, itself included.
fn on_disk(dir: &Path) -> (u64, u64) {
    fn add(at: &Path, seen: &mut HashSet<u64>, sum: &mut (u64, u64)) {
        let stat = fs::symlink_metadata(at).unwrap();
        if seen.insert(stat.ino()) {
            *sum = (sum.0 + stat.blocks() * 512, sum.1 + 1);
        }
        if stat.is_dir() {
            fs::read_dir(at).unwrap().for_each(|entry| add(&entry.unwrap().path(), seen, sum));
        }
    }
    let mut sum = (0, 0);
    add(dir, &mut HashSet::new(), &mut sum);
    sum
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

const ENOSPC: i32 = 28;

fn limited(stack: &Stack) -> Mount {
    stack.mount_with(&["size=8M,inodes=200"])
}

/// Writes until there is no room. Returns how much there was.
fn fill(path: &Path) -> u64 {
    let mut file = File::create(path).unwrap();
    let mut written = 0;
    loop {
        match file.write(&[7; 4096]) {
            Ok(count) => written += count as u64,
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(ENOSPC));
                return written;
            }
        }
    }
}

#[test]
fn an_upper_takes_so_much_and_what_goes_makes_room() {
    support::needs_root!();
    let stack = Stack::new(1);
    let here = limited(&stack);
    assert_eq!(told(here.path())[0], 8 * MIB);
    let there = fill(&here.join("full"));
    assert!((7 * MIB..=8 * MIB).contains(&there), "{there}");
    let (bytes, _) = taken(here.path());
    assert!((8 * MIB - 4096..=8 * MIB).contains(&bytes), "{bytes}");
    // What is there is written over; what is not is refused, whoever wants it.
    let full = OpenOptions::new().write(true).open(here.join("full")).unwrap();
    full.write_all_at(&[8; 300_000], 1_000_001).unwrap();
    assert_eq!(errno(full.write_all_at(&[8; 4096], there)), ENOSPC);
    assert_eq!(errno(fs::create_dir(here.join("d"))), ENOSPC);
    assert_eq!(fallocate(&full, FallocateFlags::empty(), 20 * MIB, MIB).unwrap_err().raw_os_error(), ENOSPC);
    // A hole makes room, and so does an end that comes nearer.
    fallocate(&full, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, MIB, MIB).unwrap();
    full.set_len(there - MIB).unwrap();
    assert!(fill(&here.join("more")) >= 2 * MIB - 8192);
    // What is preallocated is taken when it is, and written to when there is nothing else.
    fs::remove_file(here.join("more")).unwrap();
    let reserved = File::create(here.join("reserved")).unwrap();
    fallocate(&reserved, FallocateFlags::empty(), 0, MIB).unwrap();
    fill(&here.join("more"));
    reserved.write_all_at(&[9; 1 << 20], 0).unwrap();
    drop(reserved);
    // A file that is deleted and open is there until it is closed.
    fs::remove_file(here.join("full")).unwrap();
    let (bytes, _) = taken(here.path());
    assert!(bytes > 7 * MIB, "{bytes}");
    drop(full);
    assert!(wait_until(support::PATIENCE, || taken(here.path()).0 < 5 * MIB), "{:?}", taken(here.path()));
    assert!(fill(&here.join("again")) > 3 * MIB);
    here.unmount();
    assert!(on_disk(stack.upper().root()).0 <= 8 * MIB);
}

/// Removing and replacing names needs no room, whatever has to be noted for it.
#[test]
fn what_makes_room_is_possible_on_a_full_upper() {
    support::needs_root!();
    let stack = Stack::new(1);
    for file in ["linked/1", "copied/1", "over", "merged/x", "moved/y"] {
        stack.lower(0).file(file, "below");
    }
    for (first, names) in [("linked/1", ["2", "3", "4"]), ("copied/1", ["2", "3", "4"])] {
        let first = stack.lower(0).root().join(first);
        names.iter().for_each(|name| fs::hard_link(&first, first.with_file_name(name)).unwrap());
    }
    let here = limited(&stack);
    fs::write(here.join("copied/1"), "copied up").unwrap();
    fs::remove_file(here.join("merged/x")).unwrap();
    for dir in ["linked", "merged"] {
        fs::set_permissions(here.join(dir), fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::create_dir(here.join("own")).unwrap();
    fs::write(here.join("own-file"), "x").unwrap();
    fs::write(here.join("own-file-2"), "x").unwrap();
    fill(&here.join("full"));
    let mut made = 0;
    while File::create(here.join(format!("f{made}"))).is_ok() {
        made += 1;
    }
    for name in ["linked/1", "copied/2", "over"] {
        fs::remove_file(here.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (from, to) in [("own-file", "linked/2"), ("own-file-2", "copied/3"), ("own", "merged")] {
        fs::rename(here.join(from), here.join(to)).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
    }
    assert_eq!(fs::read_to_string(here.join("linked/3")).unwrap(), "below");
    assert_eq!(fs::read_to_string(here.join("copied/4")).unwrap(), "copied up");
    assert_eq!(fs::metadata(here.join("copied/4")).unwrap().nlink(), 2);
    here.unmount();
}

#[test]
fn what_is_thrown_away_takes_nothing() {
    support::needs_root!();
    let place = Place::new();
    let mount =
        || place.unionmount(&["--lower", "a", "--upper", "up", "-o", "size=8M,inodes=200", "mnt"]).ok();
    mount();
    fill(&place.at("mnt/full"));
    place.unionmount(&["umount", "mnt"]).ok();
    place.unionmount(&["discard", "--yes", "up"]).ok();
    mount();
    assert!(fill(&place.at("mnt/again")) > 7 * MIB);
    place.unionmount(&["umount", "mnt"]).ok();
}

#[test]
fn so_many_objects_can_be_made() {
    support::needs_root!();
    let stack = Stack::new(1);
    stack.lower(0).file("below", "below");
    let here = limited(&stack);
    assert_eq!(told(here.path())[2], 200);
    let (_, before) = taken(here.path());
    let mut made = 0;
    while File::create(here.join(format!("f{made}"))).is_ok() {
        made += 1;
    }
    assert_eq!(made + before, 200);
    assert_eq!(errno(symlink("x", here.join("link"))), ENOSPC);
    // A name is no object.
    fs::hard_link(here.join("f0"), here.join("name")).unwrap();
    // Removing makes room, also of what leaves a whiteout.
    fs::remove_file(here.join("f1")).unwrap();
    fs::remove_file(here.join("below")).unwrap();
    here.unmount();
    assert_eq!(on_disk(stack.upper().root()).1, 200);
}

/// Does of all that an upper can be changed by something.
fn change_all(here: &Mount) {
    let at = |name: &str| here.join(name);
    fs::create_dir(at("d")).unwrap();
    for name in 0..100 {
        fs::write(at("d").join(format!("a-rather-long-name-so-that-the-directory-grows-{name}")), "x")
            .unwrap();
    }
    let mut sparse = File::create(at("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(3 * MIB)).unwrap();
    sparse.write_all(&[1; 5000]).unwrap();
    let punched = File::create(at("punched")).unwrap();
    punched.write_all_at(&[1; 1 << 20], 0).unwrap();
    fallocate(&punched, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 8192, 65536).unwrap();
    punched.set_len(600_000).unwrap();
    fs::hard_link(at("sparse"), at("second")).unwrap();
    symlink("l".repeat(300), at("long")).unwrap();
    symlink("short", at("short")).unwrap();
    setxattr(at("short-file"), "user.a", &[1; 3000], XattrFlags::empty()).unwrap();
    // Copies: of all, of the attributes, over others, of names.
    OpenOptions::new().append(true).open(at("whole")).unwrap().write_all(b"more").unwrap();
    fs::set_permissions(at("attributes"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(at("over"), at("punched")).unwrap();
    fs::rename(at("moved"), at("d/moved")).unwrap();
    fs::rename(at("tree"), at("renamed")).unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::remove_dir_all(at("removed")).unwrap();
    fs::create_dir(at("removed")).unwrap();
    let open = File::create(at("deleted")).unwrap();
    open.write_all_at(&[1; 100_000], 0).unwrap();
    fs::remove_file(at("deleted")).unwrap();
}

fn lower(stack: &Stack) {
    for name in
        ["whole", "attributes", "over", "moved", "gone", "short-file", "removed/a", "removed/b", "tree/f"]
    {
        stack.lower(0).file(name, vec![3; 20_000]);
    }
}

#[test]
fn what_is_counted_is_what_is_there_and_stays_so() {
    support::needs_root!();
    for options in ["size=1G,inodes=9999", "size=1G,inodes=9999,metacopy=on"] {
        let stack = Stack::new(1);
        lower(&stack);
        let here = stack.mount_with(&[options]);
        change_all(&here);
        let upper = stack.upper().root();
        // What was deleted is let go soon.
        let same = || taken(here.path()) == on_disk(upper);
        assert!(wait_until(support::PATIENCE, same), "{:?} {:?}", taken(here.path()), on_disk(upper));
        here.unmount();
        let here = stack.mount_with(&[options]);
        assert_eq!(taken(here.path()), on_disk(upper), "{options}");
        fs::remove_dir_all(here.join("d")).unwrap();
        let same = || taken(here.path()) == on_disk(upper);
        assert!(wait_until(support::PATIENCE, same), "{:?} {:?}", taken(here.path()), on_disk(upper));
        here.unmount();
        assert_eq!(support::read_xattrs(upper).unwrap().len(), 2, "the count and the mark of origins");
        // Who mounts without a limit counts nothing, and so nothing is trusted after.
        let here = stack.mount();
        fs::write(here.join("meanwhile"), vec![1; 300_000]).unwrap();
        here.unmount();
        let here = stack.mount_with(&[options]);
        assert!(wait_until(support::PATIENCE, || taken(here.path()) == on_disk(upper)));
        here.unmount();
    }
}

#[test]
fn after_a_kill_the_upper_is_counted_anew() {
    support::needs_root!();
    let stack = Stack::new(1);
    lower(&stack);
    let here = stack.mount_with(&["size=1G,inodes=9999"]);
    change_all(&here);
    fs::write(here.join("large"), vec![1; 3 << 20]).unwrap();
    here.kill();
    let upper = stack.upper().root();
    let here = stack.mount_with(&["size=1G,inodes=9999"]);
    fs::write(here.join("after"), vec![1; 300_000]).unwrap();
    let same = || taken(here.path()) == on_disk(upper);
    assert!(wait_until(support::PATIENCE, same), "{:?} {:?}", taken(here.path()), on_disk(upper));
    here.unmount();
    stack.assert_workdir_clean();
}

#[test]
fn half_copied_files_take_the_blocks_that_they_have() {
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 64 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("large", vec![5; 20 << 20]);
    let here = stack.mount_with(&["size=2M,lazy=keep"]);
    let large = OpenOptions::new().write(true).open(here.join("large")).unwrap();
    large.write_all_at(b"here", 5_000_000).unwrap();
    let (bytes, _) = taken(here.path());
    assert!(bytes < 100_000, "{bytes}");
    assert_eq!(bytes, on_disk(stack.upper().root()).0);
    // It is full before it is whole.
    let full = (0..20).find_map(|at| large.write_all_at(&[6; 1 << 20], at * MIB).err());
    assert_eq!(full.unwrap().raw_os_error(), Some(ENOSPC));
    assert!(on_disk(stack.upper().root()).0 <= 2 * MIB);
    let mut read = [0; 4];
    large.write_all_at(b"over", 5_000_000).unwrap();
    File::open(here.join("large")).unwrap().read_exact_at(&mut read, 19 << 20).unwrap();
    assert_eq!(read, [5; 4], "what isn't there is the lower's still");
    drop(large);
    // A copy of all of it doesn't fit, and takes nothing.
    let before = taken(here.path());
    fs::write(here.join("small"), "x").unwrap();
    fs::remove_file(here.join("small")).unwrap();
    assert!(wait_until(support::PATIENCE, || taken(here.path()) == before));
    here.unmount();
}

#[test]
fn a_copy_that_does_not_fit_leaves_nothing() {
    support::needs_root!();
    let stack = Stack::new(1);
    stack.lower(0).file("large", vec![5; 20 << 20]);
    let sparse = File::create(stack.lower(0).root().join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    sparse.write_all_at(b"here", 1 << 39).unwrap();
    let here = limited(&stack);
    let before = taken(here.path());
    let write = |name: &str| OpenOptions::new().append(true).open(here.join(name))?.write_all(b"x");
    assert_eq!(errno(write("large")), ENOSPC);
    assert_eq!(taken(here.path()), before);
    write("sparse").unwrap();
    assert!(taken(here.path()).0 < MIB);
    here.unmount();
}

#[test]
fn an_ordinary_users_upper_is_counted_as_well() {
    let place = Place::of_user();
    place.sh_as_user("echo x >a/f").ok();
    place.sh_as_user("./unionmount --lower a --upper up -o size=4M mnt").ok();
    let out = place.sh_as_user("dd if=/dev/zero of=mnt/full bs=4k 2>&1; stat -f -c '%b %f %S' mnt; mkdir -m 0 mnt/d; rm mnt/full; mkdir -m 0 mnt/d; stat -f -c '%b %f %S' mnt");
    assert!(out.out.contains("No space left on device"), "{}", out.out);
    place.sh_as_user("fusermount3 -u mnt").ok();
    place.wait_for_no_daemon();
    let used =
        "./unionmount --lower a --upper up -o size=4M mnt; stat -f -c '%b %f %S' mnt; fusermount3 -u mnt";
    let told = place.sh_as_user(used).ok().out;
    let numbers: Vec<u64> = told.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let du = place.sh("du -s -B1 up").ok().out;
    let du: u64 = du.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!((numbers[0] - numbers[1]) * numbers[2], du);
    place.wait_for_no_daemon();
}

#[test]
fn what_cannot_be_counted_is_refused() {
    support::needs_root!();
    let place = Place::new();
    let refused = |options: &str| place.sh(&format!("./unionmount --lower a {options} mnt")).err;
    let passed = refused("--upper up -o size=1G,passthrough");
    assert!(passed.contains("isn't counted; leave passthrough out"), "{passed}");
    let without = refused("-o inodes=5");
    assert!(without.contains("name one by --upper"), "{without}");
    assert!(refused("--upper up -o size=much").contains("K, M, G or T"));
}

/// What the kernel has taken into its cache and there is no room for is told to who asks, and no more of it is lost than must be.
#[test]
fn what_is_written_late_and_does_not_fit_is_told_and_the_rest_is_kept() {
    support::needs_root!();
    let stack = Stack::new(1);
    stack.lower(0).file("copied", vec![1; 1 << 20]);
    let here = stack.mount_with(&["size=8M,writeback"]);
    let piece = |number: u32| number.to_le_bytes().repeat(1024);
    let all: Vec<u8> = (1..=12 << 8).flat_map(piece).collect();
    File::create(here.join("closed")).unwrap();
    let mut file = File::create(here.join("late")).unwrap();
    file.write_all(&all).unwrap();
    assert_eq!(errno(file.sync_all()), ENOSPC);
    drop(file);
    let closed = here.join("closed");
    let closed = format!("of={}", closed.to_str().unwrap());
    let dd = std::process::Command::new("dd")
        .args(["if=/dev/zero", &closed, "bs=1M", "count=2"])
        .output()
        .unwrap();
    assert!(!dd.status.success() && String::from_utf8_lossy(&dd.stderr).contains("No space left"), "{dd:?}");
    here.unmount();
    let upper = stack.upper().root();
    assert!(on_disk(upper).0 <= 8 * MIB);
    let kept = fs::read(upper.join("late")).unwrap();
    let whole = kept.chunks(4096).zip(all.chunks(4096)).filter(|(one, other)| one == other).count();
    assert!(whole >= (8 << 8) - 16, "of what fits {whole} blocks are there");
}

/// As on any filesystem that becomes full in the midst of a write.
#[test]
fn a_write_that_fits_in_part_is_done_in_part() {
    support::needs_root!();
    let stack = Stack::new(1);
    let here = limited(&stack);
    let mut file = File::create(here.join("f")).unwrap();
    let (mut there, mut last) = (0, 0);
    let error = loop {
        match file.write(&vec![5; 700_000]) {
            Ok(count) => (there, last) = (there + count as u64, count),
            Err(e) => break e,
        }
    };
    assert_eq!(error.raw_os_error(), Some(ENOSPC));
    assert!(last < 700_000 && there > 8 * MIB - 16_384, "{last} {there}");
    assert_eq!(fs::metadata(here.join("f")).unwrap().len(), there);
    assert!(fs::read(here.join("f")).unwrap().iter().all(|byte| *byte == 5));
    drop(file);
    here.unmount();
}

#[test]
fn attributes_that_need_no_room_can_be_set_on_a_full_upper() {
    support::needs_root!();
    let stack = Stack::new(1);
    let here = limited(&stack);
    fs::write(here.join("f"), "x").unwrap();
    setxattr(here.join("f"), "user.old", b"before", XattrFlags::empty()).unwrap();
    fill(&here.join("full"));
    while File::create(here.join("more")).and_then(|mut file| file.write_all(&[1; 4096])).is_ok() {
        fs::rename(here.join("more"), here.join("some")).unwrap();
    }
    let before = taken(here.path()).0;
    // Within the inode.
    setxattr(here.join("f"), "user.a", b"small", XattrFlags::empty()).unwrap();
    for name in ["user.new", "user.old"] {
        let large = setxattr(here.join("f"), name, &[1; 3000], XattrFlags::empty());
        assert_eq!(large.map_err(|e| e.raw_os_error()), Err(ENOSPC), "{name}");
    }
    let shown = support::read_xattrs(&here.join("f")).unwrap();
    assert_eq!(shown.get(&b"user.old"[..]).map(|value| &value[..]), Some(&b"before"[..]));
    assert_eq!(shown.get(&b"user.a"[..]).map(|value| &value[..]), Some(&b"small"[..]));
    assert!(!shown.contains_key(&b"user.new"[..]));
    assert_eq!(taken(here.path()).0, before);
    here.unmount();
}

/// XFS sets aside as much again for a file that grows.
#[test]
fn what_a_filesystem_sets_aside_is_given_back_to_who_needs_it() {
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::new(&scratch, "disk", "xfs", 320 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    let here = stack.mount_with(&["size=64M"]);
    let mut grows = File::create(here.join("grows")).unwrap();
    for _ in 0..36 {
        grows.write_all(&[1; 1 << 20]).unwrap();
    }
    drop(grows);
    fs::write(here.join("other"), vec![2; 26 << 20]).unwrap();
    assert!(fs::read(here.join("other")).unwrap().iter().all(|byte| *byte == 2));
    here.unmount();
    assert!(on_disk(stack.upper().root()).0 <= 64 * MIB);
}

/// Somebody may own the workdir and put there what he likes.
#[test]
fn a_note_that_cannot_be_written_keeps_no_mount_from_coming_up() {
    support::needs_root!();
    let place = Place::new();
    place.sh("mkdir -p w/quota.unionmount/x && mkdir -p precious && echo precious >precious/f").ok();
    let mount = || {
        let words = ["--lower", "a", "--upper", "up", "--work", "w", "-o", "size=8M", "mnt"];
        assert_eq!(place.unionmount(&words).code, Some(0));
    };
    mount();
    fs::write(place.at("mnt/f"), vec![1; 3 << 20]).unwrap();
    place.unionmount(&["umount", "mnt"]).ok();
    place.sh("rm -r w/quota.unionmount && ln precious/f w/quota.unionmount").ok();
    mount();
    let (bytes, _) = taken(&place.at("mnt"));
    assert!(bytes >= 3 * MIB, "{bytes}");
    fs::write(place.at("mnt/g"), vec![1; 3 << 20]).unwrap();
    place.unionmount(&["umount", "mnt"]).ok();
    assert_eq!(fs::read_to_string(place.at("precious/f")).unwrap(), "precious\n");
}

/// A daemon that is told to end while its mount, which isn't its own to unmount, goes on: nobody knows what was done meanwhile.
#[test]
fn a_count_is_not_trusted_after_a_mount_that_was_abandoned() {
    support::needs_root!();
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd;
    let place = Place::new();
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR, Mode::empty()).unwrap();
    let number = device.as_raw_fd();
    let data = format!("fd={number},rootmode=40000,user_id=0,group_id=0,default_permissions");
    let data = std::ffi::CString::new(data).unwrap();
    rustix::mount::mount(
        "x",
        place.at("mnt"),
        "fuse.unionmount",
        rustix::mount::MountFlags::empty(),
        data.as_c_str(),
    )
    .unwrap();
    let given = format!("/dev/fd/{number}");
    place.unionmount(&["--lower", "a", "--upper", "up", "-o", "size=8M,inodes=200", &given]).ok();
    drop(device);
    fs::write(place.at("mnt/f"), vec![1; 3 << 20]).unwrap();
    rustix::process::kill_process(place.daemon(), rustix::process::Signal::TERM).unwrap();
    place.wait_for_no_daemon();
    place.umount("mnt");
    let marks = support::read_xattrs(&place.at("up")).unwrap();
    assert!(marks.keys().all(|name| !name.ends_with(b".quota")), "{marks:?}");
    place.unionmount(&["--lower", "a", "--upper", "up", "-o", "size=8M,inodes=200", "mnt"]).ok();
    assert!(wait_until(support::PATIENCE, || taken(&place.at("mnt")) == on_disk(&place.at("up"))));
    place.unionmount(&["umount", "mnt"]).ok();
    let marks = support::read_xattrs(&place.at("up")).unwrap();
    assert!(marks.keys().any(|name| name.ends_with(b".quota")), "{marks:?}");
}

/// On a plain filesystem the room of what was deleted is there when unlink(2) returns.
#[test]
fn a_write_that_fits_once_what_was_deleted_is_let_go_is_done_whole() {
    support::needs_root!();
    let stack = Stack::new(1);
    let here = limited(&stack);
    let mut file = File::create(here.join("f")).unwrap();
    fs::write(here.join("big"), vec![1; 7 << 20]).unwrap();
    let open = File::open(here.join("big")).unwrap();
    fs::remove_file(here.join("big")).unwrap();
    // Some of it fits before; and who has the other open lets go of it a little later.
    let closing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        drop(open);
    });
    assert_eq!(file.write(&vec![2; 6 << 20]).unwrap(), 6 << 20);
    closing.join().unwrap();
    drop(file);
    here.unmount();
}

#[test]
fn an_access_control_list_that_does_not_fit_leaves_the_mode() {
    support::needs_root!();
    let stack = Stack::new(1);
    let here = limited(&stack);
    fs::write(here.join("f"), "x").unwrap();
    fs::set_permissions(here.join("f"), fs::Permissions::from_mode(0o640)).unwrap();
    // So that the next attribute needs a block of its own.
    let blocks = || fs::metadata(here.join("f")).unwrap().blocks();
    let before = blocks();
    for size in (1..120).rev() {
        setxattr(here.join("f"), "user.a", &vec![1; size], XattrFlags::empty()).unwrap();
        if blocks() == before {
            break;
        }
        removexattr(here.join("f"), "user.a").unwrap();
    }
    fill(&here.join("full"));
    while File::create(here.join("more")).and_then(|mut file| file.write_all(&[1; 4096])).is_ok() {
        fs::rename(here.join("more"), here.join("some")).unwrap();
    }
    // user::rw-, group::r--, user 1:rwx, mask::rwx, other::---
    let entry = |tag: u16, rights: u16, id: u32| {
        [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in
        [(1, 6, u32::MAX), (2, 7, 1), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        list.extend(entry(tag, rights, id));
    }
    let set = setxattr(here.join("f"), "system.posix_acl_access", &list, XattrFlags::empty());
    let mode = fs::metadata(here.join("f")).unwrap().permissions().mode() & 0o7777;
    match set {
        Ok(()) => assert_eq!(mode, 0o670),
        Err(e) => assert_eq!((e.raw_os_error(), mode), (ENOSPC, 0o640)),
    }
    here.unmount();
}
