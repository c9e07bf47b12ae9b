//! With `lazy=keep` a write to a large file of a lower copies the blocks that it touches.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};
use support::{LoopFilesystem, Mount, Program, Scratch, Stack, read_xattrs};

use super::{content, for_writing, room};

const SIZE: usize = 20 << 20;

/// Filesystems on which blocks are copied.
const FILESYSTEMS: [&str; 2] = ["ext4", "xfs"];

/// A filesystem, and a stack with its upper there.
struct Place {
    stack: Stack,
    // Unmounted after all that lies on it.
    _disk: LoopFilesystem,
    _scratch: Scratch,
}

fn place() -> Place {
    place_on("ext4")
}

fn place_on(filesystem: &str) -> Place {
    let scratch = Scratch::new();
    let disk = LoopFilesystem::new(&scratch, "disk", filesystem, 400 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("d/large", content(SIZE, 1)).file("small", content(5000, 2));
    Place { stack, _disk: disk, _scratch: scratch }
}

/// Makes `disk.img`, an ext4 of so many bytes with blocks of so many.
fn ext4_image(scratch: &Scratch, size: u64, block: u32) -> PathBuf {
    let image = scratch.path().join("disk.img");
    File::create(&image).unwrap().set_len(size).unwrap();
    support::run("mkfs.ext4", &["-Fq", "-b", &block.to_string(), image.to_str().unwrap()]);
    image
}

fn lazy(stack: &Stack) -> Mount {
    stack.mount_with(&["lazy=keep"])
}

fn is_half(path: &Path) -> bool {
    read_xattrs(path).unwrap().contains_key(&b"trusted.overlay.unionmount.half"[..])
}

#[test]
fn the_first_byte_costs_a_block() {
    support::needs_root!();
    FILESYSTEMS.into_iter().for_each(the_first_byte_costs_a_block_on);
}

fn the_first_byte_costs_a_block_on(filesystem: &str) {
    let place = place_on(filesystem);
    let stack = &place.stack;
    let here = lazy(stack);
    let before = room(stack.upper().root());
    let file = for_writing(here.join("d/large"));
    let reader = File::open(here.join("d/large")).unwrap();
    file.write_all_at(b"!", SIZE as u64 / 3).unwrap();
    file.sync_all().unwrap();
    let taken = room(stack.upper().root()) - before;
    assert!(taken <= 64 << 10, "{taken} bytes were taken");
    assert!(is_half(&stack.upper().root().join("d/large")));
    for_writing(here.join("small")).write_all_at(b"!", 9).unwrap();
    assert!(!is_half(&stack.upper().root().join("small")));
    let mut expected = content(SIZE, 1);
    expected[SIZE / 3] = b'!';
    let check = |mount: &Mount, when: &str| {
        assert!(fs::read(mount.join("d/large")).unwrap() == expected, "{when}");
    };
    check(&here, "in the same mount");
    let mut bytes = vec![0; SIZE];
    reader.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == expected, "by who had it open");
    drop((file, reader));
    here.kill();
    let here = lazy(stack);
    check(&here, "after a kill");
    here.unmount();
    let plain = stack.mount();
    check(&plain, "without the option");
    plain.unmount();
}

/// Where a power failure leaves room without data, ext4 that isn't told to convert extents after writing makes zeros of what lies beside
/// a write (`extent_max_zeroout_kb`), and these look like data.
#[test]
fn room_that_a_power_failure_left_never_becomes_data() {
    support::needs_root!();
    let scratch = Scratch::new();
    let image = ext4_image(&scratch, 100 << 20, 4096);
    let at = scratch.dir("disk");
    let words = ["-o", "loop,nodioread_nolock", image.to_str().unwrap()];
    let disk = LoopFilesystem::at(&at, &words);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("large", content(SIZE, 1));
    let here = lazy(&stack);
    for_writing(here.join("large")).write_all_at(b"!", 5).unwrap();
    here.unmount();
    let copy = stack.upper().root().join("large");
    assert!(is_half(&copy));
    let copy = for_writing(copy);
    let blocks = || copy.metadata().unwrap().blocks() * 512;
    copy.sync_all().unwrap();
    let before = blocks();
    fallocate(&copy, FallocateFlags::KEEP_SIZE, 100 * 4096, 8 * 4096).unwrap();
    copy.sync_all().unwrap();
    assert!(blocks() >= before + 8 * 4096, "there is no room that was left");
    drop(copy);
    let here = lazy(&stack);
    let file = for_writing(here.join("large"));
    file.write_all_at(b"beside", 101 * 4096).unwrap();
    file.sync_all().unwrap();
    drop(file);
    here.kill();
    let mut expected = content(SIZE, 1);
    expected[5] = b'!';
    expected[101 * 4096..][..6].copy_from_slice(b"beside");
    let here = lazy(&stack);
    assert!(fs::read(here.join("large")).unwrap() == expected, "what was room is data");
    here.unmount();
}

/// Where blocks come in larger pieces than they are written in, files are copied whole.
#[test]
fn files_of_hinted_extents_are_copied_whole() {
    support::needs_root!();
    support::needs_program!("xfs_io");
    let place = place_on("xfs");
    let stack = &place.stack;
    stack.lower(0).file("d/other", content(SIZE, 3));
    let here = lazy(stack);
    // New files take it from the directory that they are made in.
    let hint = |size: &str| {
        support::run(
            "xfs_io",
            &["-c", &format!("extsize {size}"), stack.work().join("work").to_str().unwrap()],
        );
    };
    hint("0");
    for_writing(here.join("d/other")).write_all_at(b"!", 5).unwrap();
    assert!(is_half(&stack.upper().root().join("d/other")), "none is here");
    hint("1m");
    for_writing(here.join("d/large")).write_all_at(b"!", 5).unwrap();
    let upper = stack.upper().root().join("d/large");
    assert!(!is_half(&upper));
    assert_eq!(fs::read(&upper).unwrap()[..6], [&content(SIZE, 1)[..5], b"!"].concat());
    here.unmount();
}

/// No other overlay takes the holes for data.
#[test]
fn others_refuse_half_copied_files() {
    support::needs_root!();
    let place = place();
    let stack = &place.stack;
    let here = lazy(stack);
    for_writing(here.join("d/large")).write_all_at(b"!", 5).unwrap();
    here.unmount();
    for option in ["metacopy=on,redirect_dir=on", "metacopy=off"] {
        let kernel =
            Mount::with_program(&Program::Kernel, &stack.options_with(&[option]), stack.mountpoint());
        let read = fs::read(kernel.join("d/large"));
        assert!(read.is_err(), "{option}: the kernel reads it");
        assert!(fs::read(kernel.join("small")).is_ok());
        kernel.unmount();
    }
}

/// What needs the file whole makes it an ordinary copy.
#[test]
fn a_file_becomes_whole() {
    support::needs_root!();
    let place = place();
    let stack = &place.stack;
    let here = lazy(stack);
    let file = for_writing(here.join("d/large"));
    file.write_all_at(b"written", 70_000).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    fs::set_permissions(here.join("d/large"), PermissionsExt::from_mode(0o2755)).unwrap();
    let upper = stack.upper().root().join("d/large");
    assert!(!is_half(&upper) && !read_xattrs(&upper).unwrap().contains_key(&b"trusted.overlay.metacopy"[..]));
    assert_eq!(file.metadata().unwrap().modified().unwrap(), std::time::UNIX_EPOCH);
    let mut expected = content(SIZE, 1);
    expected[70_000..70_007].copy_from_slice(b"written");
    assert!(fs::read(&upper).unwrap() == expected && fs::read(here.join("d/large")).unwrap() == expected);
    drop(file);
    here.unmount();
}

/// What looks into an upper finds both parts: a patch of it, and applying it to the lower.
#[test]
fn an_upper_is_compared_and_applied_with_half_copied_files() {
    support::needs_root!();
    let place = place();
    let stack = &place.stack;
    let text: String = (0..200_000).map(|line| format!("line {line:06}\n")).collect();
    stack.lower(0).file("text", &text);
    let here = lazy(stack);
    for_writing(here.join("text")).write_all_at(b"LINE", 12 * 70_000).unwrap();
    for_writing(here.join("d/large")).write_all_at(b"written", 70_000).unwrap();
    here.unmount();
    assert!(["text", "d/large"].iter().all(|name| is_half(&stack.upper().root().join(name))));
    let run = |args: &[&str]| {
        let state = stack.scratch().path().join("state");
        let Program::Unionmount(program) = Program::under_test() else { panic!("only unionmount applies") };
        let mut command = Command::new(program);
        let done = command.args(args).arg(stack.upper().root()).arg(stack.lower(0).root());
        let done = done.env("UNIONMOUNT_ROOT", state).output().unwrap();
        assert!(done.status.success(), "{args:?}: {done:?}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let patch = run(&["diff", "-p"]);
    assert!(patch.contains("\n-line 070000\n+LINE 070000\n") && patch.contains("line 069999"), "{patch}");
    run(&["apply"]);
    let mut expected = content(SIZE, 1);
    expected[70_000..70_007].copy_from_slice(b"written");
    assert!(fs::read(stack.lower(0).root().join("d/large")).unwrap() == expected);
    let applied = fs::read_to_string(stack.lower(0).root().join("text")).unwrap();
    assert!(applied == text.replace("line 070000", "LINE 070000"));
}

/// A new layer is made of what is seen.
#[test]
fn programs_work_in_half_copied_files() {
    support::needs_root!();
    let place = place();
    let stack = &place.stack;
    if !support::is_installed("sqlite3") {
        support::skip!("no sqlite3");
    }
    let sql = |path: &Path, command: &str| {
        let done = Command::new("sqlite3").arg(path).arg(command).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    let make = "create table t(n integer primary key, x blob); \
                with recursive c(n) as (select 1 union all select n + 1 from c where n < 4000) \
                insert into t select n, randomblob(1000) from c;";
    let below = stack.lower(0).root().join("base");
    sql(&below, make);
    let plain = stack.scratch().path().join("plain");
    fs::copy(&below, &plain).unwrap();
    let here = lazy(stack);
    let change = "update t set x = hex(n) where n % 97 = 0; delete from t where n % 501 = 3; \
                  insert into t select n + 10000, 'new' from t where n < 300;";
    let ask = "pragma integrity_check; select count(*), sum(length(x)), sum(n) from t; select hex(x) from t where n % 97 < 2;";
    for path in [&plain, &here.join("base")] {
        sql(path, change);
    }
    assert!(is_half(&stack.upper().root().join("base")));
    assert_eq!(sql(&here.join("base"), ask), sql(&plain, ask));
    here.kill();
    let here = lazy(stack);
    assert_eq!(sql(&here.join("base"), ask), sql(&plain, ask));
    for path in [&plain, &here.join("base")] {
        sql(path, "vacuum");
    }
    assert_eq!(sql(&here.join("base"), ask), sql(&plain, ask));
    here.unmount();
}

/// 100 GiB of which little is there.
#[test]
fn a_huge_sparse_file() {
    support::needs_root!();
    FILESYSTEMS.into_iter().for_each(a_huge_sparse_file_on);
}

fn a_huge_sparse_file_on(filesystem: &str) {
    let place = place_on(filesystem);
    let stack = &place.stack;
    let size = 100 << 30;
    stack.lower(0).sparse("huge", size, &[(50 << 30, b"middle"), (size - 3, b"end")]);
    let here = lazy(stack);
    let file = for_writing(here.join("huge"));
    file.write_all_at(b"!", (50 << 30) + 1).unwrap();
    file.write_all_at(b"beyond", size + 5000).unwrap();
    let mut bytes = [0; 6];
    file.read_exact_at(&mut bytes, 50 << 30).unwrap();
    assert_eq!(&bytes, b"m!ddle");
    file.read_exact_at(&mut bytes, size - 3).unwrap();
    assert_eq!(&bytes, b"end\0\0\0");
    assert_eq!(file.metadata().unwrap().len(), size + 5006);
    file.set_len(size - 2).unwrap();
    file.set_len(size + 10).unwrap();
    file.read_exact_at(&mut bytes, size - 3).unwrap();
    assert_eq!(&bytes, b"e\0\0\0\0\0");
    file.sync_all().unwrap();
    assert!(fs::metadata(stack.upper().root().join("huge")).unwrap().blocks() * 512 < 64 << 10);
    drop(file);
    here.unmount();
}

/// Through a mapping, and past the page cache.
#[test]
fn all_ways_of_writing() {
    support::needs_root!();
    FILESYSTEMS.into_iter().for_each(all_ways_of_writing_on);
}

fn all_ways_of_writing_on(filesystem: &str) {
    let place = place_on(filesystem);
    let stack = &place.stack;
    let mut expected = content(SIZE, 1);
    for (round, option) in
        ["lazy=keep", "lazy=keep,writeback", "lazy=keep,passthrough"].into_iter().enumerate()
    {
        let here = stack.mount_with(&[option]);
        let path = here.join("d/large");
        let at = 300_001 * (round + 1);
        for_writing(&path).write_all_at(b"plainly", at as u64).unwrap();
        expected[at..at + 7].copy_from_slice(b"plainly");
        File::options().append(true).open(&path).unwrap().write_all(b"appended").unwrap();
        expected.extend_from_slice(b"appended");
        let mapped = (1 << 20) * (round + 5);
        let script = format!(
            "import mmap,os; f=os.open('{}',os.O_RDWR); m=mmap.mmap(f,0); m[{mapped}:{mapped}+6]=b'mapped'; m.flush(); m.close(); os.close(f)",
            path.display()
        );
        support::run("python3", &["-c", &script]);
        expected[mapped..mapped + 6].copy_from_slice(b"mapped");
        let direct = (1 << 20) * (round + 9);
        let of = format!("of={}", path.display());
        support::run(
            "dd",
            &[
                "if=/dev/zero",
                &of,
                "bs=4096",
                "count=3",
                &format!("seek={}", direct / 4096),
                "conv=notrunc",
                "oflag=direct",
                "status=none",
            ],
        );
        expected[direct..direct + 3 * 4096].fill(0);
        assert!(fs::read(&path).unwrap() == expected, "{option}");
        assert!(is_half(&stack.upper().root().join("d/large")), "{option}");
        here.unmount();
        let here = stack.mount_with(&[option]);
        assert!(fs::read(here.join("d/large")).unwrap() == expected, "{option}, after a remount");
        here.unmount();
    }
}

/// Where the filesystem doesn't say that it orders data before extents, files are copied whole.
#[test]
fn other_filesystems_copy_whole() {
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::tmpfs(&scratch, "plain", 64 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("large", content(SIZE, 1));
    let here = lazy(&stack);
    for_writing(here.join("large")).write_all_at(b"!", 5).unwrap();
    assert!(!is_half(&stack.upper().root().join("large")));
    assert!(fs::metadata(stack.upper().root().join("large")).unwrap().blocks() * 512 >= SIZE as u64);
    here.unmount();
}

/// Where extents can be shared, a copy has all of them at once and takes no room.
#[test]
fn what_can_share_extents_is_whole() {
    support::needs_root!();
    for filesystem in ["xfs", "btrfs"] {
        let scratch = Scratch::new();
        let disk = LoopFilesystem::new(&scratch, "disk", filesystem, 400 << 20);
        let at = |name: &str| disk.path().join(name);
        for name in ["lower", "upper", "work"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("lower/large"), content(SIZE, 1)).unwrap();
        rustix::fs::syncfs(File::open(disk.path()).unwrap()).unwrap();
        let free = || rustix::fs::statvfs(disk.path()).map(|told| told.f_bfree * told.f_frsize).unwrap();
        let before = free();
        let options = support::Options {
            lowers: vec![at("lower")],
            upper: Some(at("upper")),
            work: Some(at("work")),
            extra: vec!["lazy=keep".to_owned()],
            ..support::Options::default()
        };
        let here = Mount::new(&options, &scratch.dir("merged"));
        let told =
            || support::cli::Place::new().unionmount(&[Path::new("explain"), &here.join("large")]).ok().out;
        assert!(told().contains("write   copies up 20.00 MiB from layer 1"), "{filesystem}: {}", told());
        fs::set_permissions(here.join("large"), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!told().contains("blocks"), "{filesystem}: {}", told());
        let file = for_writing(here.join("large"));
        file.write_all_at(b"!", 5).unwrap();
        file.sync_all().unwrap();
        assert!(!is_half(&at("upper/large")), "{filesystem}");
        assert!(before - free() < 4 << 20, "{filesystem}: {} bytes were taken", before - free());
        drop(file);
        here.unmount();
        let mut expected = content(SIZE, 1);
        expected[5] = b'!';
        assert!(fs::read(at("upper/large")).unwrap() == expected, "{filesystem}");
    }
}

/// Holes and zeros at the borders of blocks, at the end of the lower's data and of the file, and beside them; nothing else is copied.
#[test]
fn holes_and_zeros_in_a_huge_file() {
    support::needs_root!();
    use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
    const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
    for filesystem in FILESYSTEMS {
        let place = place_on(filesystem);
        let stack = &place.stack;
        let size: u64 = (100 << 30) + 123;
        let data = 50 << 30;
        stack.lower(0).sparse("huge", size, &[(data, &[7; 3 * 4096 + 1]), (size - 3, b"end")]);
        let here = lazy(stack);
        let file = for_writing(here.join("huge"));
        let bytes = |at: u64, length: usize| {
            let mut bytes = vec![1; length];
            file.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        let mut expected = vec![7; 3 * 4096 + 1];
        for (mode, from, to) in [
            (PUNCH, 4095, 4097),
            (FallocateFlags::ZERO_RANGE, 8191, 8192),
            (FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 8193, 8200),
            (PUNCH, 3 * 4096, 3 * 4096 + 1),
            (PUNCH, 3 * 4096 + 1, 5 * 4096),
        ] {
            fallocate(&file, mode, data + from, to - from).unwrap();
            let end = (to as usize).min(expected.len());
            expected[(from as usize).min(end)..end].fill(0);
            assert!(bytes(data, expected.len()) == expected, "{filesystem}: {mode:?} {from}..{to}");
        }
        // Half of the file, of which the lower has little; over the end; beyond it.
        fallocate(&file, PUNCH, data + 9000, 1 << 35).unwrap();
        expected[9000..].fill(0);
        assert!(bytes(data, expected.len()) == expected, "{filesystem}");
        assert_eq!(bytes(size - 3, 3), b"end");
        fallocate(&file, FallocateFlags::ZERO_RANGE, size - 1, 5000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size + 4999);
        assert_eq!(bytes(size - 3, 6), b"en\0\0\0\0");
        for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
            assert!(fallocate(&file, mode, 0, 4096).is_err(), "{filesystem}: {mode:?}");
        }
        // A lower's block is data, and what comes behind a hole is found.
        assert_eq!(seek(&file, SeekFrom::Data(data - 1)).unwrap(), data - 1);
        assert!(seek(&file, SeekFrom::Hole(data)).unwrap() >= size);
        assert_eq!(seek(&file, SeekFrom::Data(size + 4999)).unwrap_err(), rustix::io::Errno::NXIO);
        file.sync_all().unwrap();
        drop(file);
        let copy = stack.upper().root().join("huge");
        assert!(is_half(&copy), "{filesystem}");
        let taken = fs::metadata(&copy).unwrap().blocks() * 512;
        assert!(taken <= 64 << 10, "{filesystem}: {taken} bytes were taken");
        here.unmount();
        let here = lazy(stack);
        let file = File::open(here.join("huge")).unwrap();
        let mut again = vec![1; expected.len()];
        file.read_exact_at(&mut again, data).unwrap();
        assert!(again == expected, "{filesystem}, after a remount");
        drop(file);
        here.unmount();
    }
}

/// A page has several blocks: when a write fails for want of room, ext4 makes zeros of those of a page for which it had some.
#[test]
fn what_a_write_to_a_full_disk_leaves_behind_is_the_lowers_still() {
    support::needs_root!();
    let scratch = Scratch::new();
    ext4_image(&scratch, 64 << 20, 1024);
    let disk = LoopFilesystem::again(&scratch, "disk");
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("large", content(4 << 20, 1));
    let mut expected = content(4 << 20, 1);
    for (round, free) in [1, 2, 3, 5, 6, 7].into_iter().enumerate() {
        let here = lazy(&stack);
        let file = for_writing(here.join("large"));
        file.write_all_at(b"!", 100).unwrap();
        expected[100] = b'!';
        file.sync_all().unwrap();
        let filler = File::create(disk.path().join("filler")).unwrap();
        let mut taken = 0;
        while filler.write_all_at(&[1; 1024], taken).is_ok() {
            taken += 1024;
        }
        filler.sync_all().unwrap();
        filler.set_len(taken - free * 1024).unwrap();
        let at = (1 << 20) + (round << 17);
        let done = file.write_at(&[7; 64 << 10], at as u64).unwrap_or(0);
        assert!(done < 64 << 10, "the disk isn't full");
        expected[at..at + done].fill(7);
        assert!(fs::read(here.join("large")).unwrap() == expected, "{free} blocks: in the same mount");
        drop((file, filler));
        fs::remove_file(disk.path().join("filler")).unwrap();
        here.unmount();
        let here = lazy(&stack);
        assert!(fs::read(here.join("large")).unwrap() == expected, "{free} blocks: in the next mount");
        here.unmount();
    }
}
