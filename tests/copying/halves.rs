//! With `lazy=keep` a write to a large file of a lower copies the blocks that it touches.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use support::{LoopFilesystem, Mount, Program, Scratch, Stack, read_xattrs};

use super::{content, for_writing, room};

const SIZE: usize = 20 << 20;

/// An ext4 with a journal, and a stack with its upper there.
struct Place {
    stack: Stack,
    // Unmounted after all that lies on it.
    _disk: LoopFilesystem,
    _scratch: Scratch,
}

fn place() -> Place {
    let scratch = Scratch::new();
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 256 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("d/large", content(SIZE, 1)).file("small", content(5000, 2));
    Place { stack, _disk: disk, _scratch: scratch }
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
    let place = place();
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
    let place = place();
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
    let place = place();
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
    let disk = LoopFilesystem::new(&scratch, "plain", "xfs", 400 << 20);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack.lower(0).file("large", content(SIZE, 1));
    let here = lazy(&stack);
    for_writing(here.join("large")).write_all_at(b"!", 5).unwrap();
    assert!(!is_half(&stack.upper().root().join("large")));
    assert!(fs::metadata(stack.upper().root().join("large")).unwrap().blocks() * 512 >= SIZE as u64);
    here.unmount();
}
