//! Files that are open while they are copied up, renamed and removed; open flags; mappings.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;

use crate::{copied_up, exists, for_reading, for_writing, read, stat};
use support::{Stack, raw::Mapping, run};

fn all(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().size() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_file_opened_before_copy_up_sees_what_is_written_after() {
    support::needs_opens_that_follow!();
    let stack = Stack::new(1);
    stack.lower(0).file("f", vec![b'o'; 10_000]);
    let mount = stack.mount();
    let early = for_reading(mount.join("f"));
    assert_eq!(all(&early), vec![b'o'; 10_000]);
    for_writing(mount.join("f")).write_all_at(b"NEW", 5000).unwrap();
    let mut expected = vec![b'o'; 10_000];
    expected[5000..5003].copy_from_slice(b"NEW");
    assert_eq!(all(&early), expected);
    // Sizes too, growing and shrinking.
    fs::OpenOptions::new().append(true).open(mount.join("f")).unwrap().write_all(b"tail").unwrap();
    assert_eq!(early.metadata().unwrap().size(), 10_004);
    assert_eq!(&all(&early)[10_000..], b"tail");
    support::raw::truncate(&mount.join("f"), 4).unwrap();
    assert_eq!(all(&early), b"oooo");
    fs::write(mount.join("f"), "all new").unwrap();
    assert_eq!(all(&early), b"all new");
    drop(early);
    mount.unmount();
}

#[test]
fn a_shared_mapping_made_before_copy_up_sees_what_is_written_after() {
    support::needs_opens_that_follow!();
    if support::Program::under_test() == support::Program::Kernel {
        support::skip!("the kernel's overlayfs does not promise this");
    }
    let stack = Stack::new(1);
    stack.lower(0).file("f", vec![b'o'; 10_000]);
    let mount = stack.mount();
    let early = for_reading(mount.join("f"));
    let mapping = Mapping::shared(&early, 10_000, false).unwrap();
    assert_eq!(mapping.read(5000, 3), b"ooo");
    for_writing(mount.join("f")).write_all_at(b"NEW", 5000).unwrap();
    assert_eq!(mapping.read(5000, 3), b"NEW");
    assert_eq!(mapping.read(0, 3), b"ooo");
    drop(mapping);
    drop(early);
    mount.unmount();
}

#[test]
fn mappings_and_reads_and_writes_see_each_other() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", vec![b'o'; 8192]);
    let mount = stack.mount();
    let file = for_writing(mount.join("f"));
    let mut writer = Mapping::shared(&file, 8192, true).unwrap();
    let reader = Mapping::shared(&for_reading(mount.join("f")), 8192, false).unwrap();
    writer.write(4100, b"mapped");
    assert_eq!(reader.read(4100, 6), b"mapped");
    let mut bytes = [0; 6];
    for_reading(mount.join("f")).read_exact_at(&mut bytes, 4100).unwrap();
    assert_eq!(&bytes, b"mapped");
    file.write_all_at(b"written", 100).unwrap();
    assert_eq!(reader.read(100, 7), b"written");
    writer.sync().unwrap();
    drop((writer, reader, file));
    mount.unmount();
    assert_eq!(&read(stack.upper().root().join("f"))[4100..4106], b"mapped");
}

#[test]
fn a_private_mapping_keeps_its_changes_to_itself() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "private");
    let mount = stack.mount();
    let mut mapping = Mapping::private(&for_reading(mount.join("f")), 7).unwrap();
    mapping.write(0, b"P");
    assert_eq!(mapping.read(0, 7), b"Private");
    assert_eq!(read(mount.join("f")), b"private");
    drop(mapping);
    assert!(!copied_up(&stack, "f"));
    mount.unmount();
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    support::needs_opens_that_follow!();
    for make_upper in [false, true] {
        let stack = Stack::new(1);
        stack.lower(0).file("f", "content");
        let mount = stack.mount();
        if make_upper {
            fs::write(mount.join("f"), "content").unwrap();
        }
        let reader = for_reading(mount.join("f"));
        let writer = for_writing(mount.join("f"));
        let ino = stat(mount.join("f")).ino();
        fs::remove_file(mount.join("f")).unwrap();
        assert!(!exists(mount.join("f")));
        assert_eq!(all(&reader), b"content");
        writer.write_all_at(b"C", 0).unwrap();
        writer.set_len(4).unwrap();
        assert_eq!(all(&reader), b"Cont");
        assert_eq!((reader.metadata().unwrap().nlink(), reader.metadata().unwrap().ino()), (0, ino));
        writer.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(reader.metadata().unwrap().mode() & 0o777, 0o600);
        // A new file of the name is another one.
        fs::write(mount.join("f"), "other").unwrap();
        assert_ne!(stat(mount.join("f")).ino(), ino, "the number of a file still open was given away");
        assert_eq!(all(&reader), b"Cont");
        drop((reader, writer));
        assert_eq!(read(mount.join("f")), b"other");
        mount.unmount();
        stack.assert_workdir_clean();
    }
}

#[test]
fn a_lower_file_unlinked_while_open_for_reading_can_still_be_read_and_changed_by_its_mode() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "content");
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    let reader = for_reading(mount.join("f"));
    fs::remove_file(mount.join("f")).unwrap();
    assert_eq!(all(&reader), b"content");
    assert_eq!(reader.metadata().unwrap().nlink(), 0);
    if mount.program().is_unionmount() {
        reader.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(reader.metadata().unwrap().mode() & 0o777, 0o600);
    }
    assert_eq!(all(&reader), b"content");
    drop(reader);
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
    stack.assert_workdir_clean();
}

#[test]
fn an_open_file_follows_its_renames() {
    support::needs_opens_that_follow!();
    let stack = Stack::new(1);
    stack.lower(0).file("a/f", "content").dir("b").file("other", "replaced");
    let mount = stack.mount();
    let reader = for_reading(mount.join("a/f"));
    let replaced = for_reading(mount.join("other"));
    fs::rename(mount.join("a/f"), mount.join("b/g")).unwrap();
    for_writing(mount.join("b/g")).write_all_at(b"C", 0).unwrap();
    assert_eq!(all(&reader), b"Content");
    fs::rename(mount.join("b"), mount.join("c")).unwrap();
    for_writing(mount.join("c/g")).write_all_at(b"O", 1).unwrap();
    assert_eq!(all(&reader), b"COntent");
    fs::rename(mount.join("c/g"), mount.join("other")).unwrap();
    assert_eq!(all(&replaced), b"replaced");
    assert_eq!(read(mount.join("other")), b"COntent");
    assert_eq!(reader.metadata().unwrap().ino(), stat(mount.join("other")).ino());
    drop((reader, replaced));
    mount.unmount();
}

#[test]
fn an_open_directory_follows_its_rename() {
    let stack = Stack::new(2);
    stack.lower(0).file("d/a", "1");
    stack.lower(1).file("d/b", "2");
    let mount = stack.mount();
    let directory = File::open(mount.join("d")).unwrap();
    fs::rename(mount.join("d"), mount.join("e")).unwrap();
    let file = rustix::fs::openat(&directory, "new", OFlags::CREATE | OFlags::WRONLY, 0o644.into()).unwrap();
    File::from(file).write_all(b"made").unwrap();
    assert_eq!(read(mount.join("e/new")), b"made");
    let mut text = String::new();
    File::from(rustix::fs::openat(&directory, "b", OFlags::RDONLY, 0.into()).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "2");
    drop(directory);
    mount.unmount();
}

#[test]
fn o_append_writes_at_the_end_whoever_else_writes() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "0");
    let mount = stack.mount();
    let path = mount.join("f");
    std::thread::scope(|scope| {
        for index in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let mut file = File::options().append(true).open(path).unwrap();
                for _ in 0..50 {
                    file.write_all(&[b'a' + index; 10]).unwrap();
                }
            });
        }
    });
    let bytes = read(&path);
    assert_eq!(bytes.len(), 1 + 4 * 50 * 10);
    for record in bytes[1..].chunks(10) {
        assert!(record.iter().all(|byte| *byte == record[0]), "torn: {}", record.escape_ascii());
    }
    mount.unmount();
}

#[test]
fn o_excl_and_o_creat_and_o_trunc() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "content").dir("d").symlink("dangling", "nowhere").symlink("l", "f");
    let mount = stack.mount();
    for name in ["f", "d", "dangling", "l"] {
        support::assert_errno!(File::create_new(mount.join(name)), Errno::EXIST);
    }
    assert!(!copied_up(&stack, "f"), "a failed O_EXCL copies nothing up");
    support::assert_errno!(File::create(mount.join("d")), Errno::ISDIR);
    support::assert_errno!(File::create(mount.join("no/such")), Errno::NOENT);
    support::assert_errno!(File::create(mount.join("f/x")), Errno::NOTDIR);
    let mut made = File::create_new(mount.join("new")).unwrap();
    made.write_all(b"made").unwrap();
    File::options().create(true).write(true).truncate(false).open(mount.join("f")).unwrap();
    assert_eq!(read(mount.join("f")), b"content");
    File::create(mount.join("l")).unwrap();
    assert_eq!(read(mount.join("f")), b"", "O_TRUNC follows a link");
    File::create(mount.join("dangling")).unwrap().write_all(b"x").unwrap();
    assert_eq!(read(mount.join("nowhere")), b"x", "O_CREAT follows a dangling link");
    drop(made);
    mount.unmount();
}

#[test]
fn exclusive_creation_is_won_once() {
    let stack = Stack::new(1);
    stack.lower(0).dir("d");
    let mount = stack.mount();
    for round in 0..30 {
        let path = mount.join(format!("d/f{round}"));
        let wins: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| usize::from(File::create_new(&path).is_ok()))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(wins, 1);
    }
    mount.unmount();
}

#[test]
fn o_direct_reads_and_writes() {
    support::needs_opens_that_follow!();
    let stack = Stack::new(1);
    stack.lower(0).file("f", vec![b'l'; 16384]);
    let mount = stack.mount();
    // Two aligned pages.
    let mut memory = vec![0u8; 4096 * 3];
    let start = memory.as_ptr().align_offset(4096);
    let buffer = &mut memory[start..start + 8192];
    let direct = OFlags::DIRECT.bits() as i32;
    let opened = File::options().read(true).custom_flags(direct).open(mount.join("f"));
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            support::skip!("O_DIRECT: not to be had here: {error}")
        }
        Err(error) => panic!("{error}"),
    };
    file.read_exact_at(buffer, 4096).unwrap();
    assert!(buffer.iter().all(|byte| *byte == b'l'));
    let writer = File::options().write(true).custom_flags(direct).open(mount.join("f")).unwrap();
    buffer.fill(b'w');
    writer.write_all_at(buffer, 8192).unwrap();
    let bytes = read(mount.join("f"));
    assert!(bytes[..8192].iter().all(|byte| *byte == b'l') && bytes[8192..].iter().all(|byte| *byte == b'w'));
    // The early descriptor sees it too.
    file.read_exact_at(buffer, 8192).unwrap();
    assert!(buffer.iter().all(|byte| *byte == b'w'));
    drop((file, writer));
    mount.unmount();
}

/// FUSE knows O_TMPFILE since Linux 6.1. A filesystem that can't says EOPNOTSUPP; programs fall back then.
#[test]
fn o_tmpfile_works_or_says_that_it_does_not() {
    let stack = Stack::new(1);
    stack.lower(0).dir("d");
    let mount = stack.mount();
    match rustix::fs::openat(CWD, mount.join("d"), OFlags::TMPFILE | OFlags::RDWR, 0o600.into()) {
        Err(Errno::OPNOTSUPP) => support::skipped("O_TMPFILE is not supported: EOPNOTSUPP"),
        Err(error) => panic!("O_TMPFILE: {error}"),
        Ok(fd) => {
            let mut file = File::from(fd);
            file.write_all(b"nameless").unwrap();
            assert_eq!(file.metadata().unwrap().nlink(), 0);
            assert!(crate::names(mount.join("d")).is_empty());
            let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            rustix::fs::linkat(CWD, from, CWD, mount.join("d/named"), rustix::fs::AtFlags::SYMLINK_FOLLOW)
                .unwrap();
            assert_eq!(read(mount.join("d/named")), b"nameless");
            assert_eq!(file.metadata().unwrap().nlink(), 1);
        }
    }
    mount.unmount();
    stack.assert_workdir_clean();
}

#[test]
fn programs_run_from_lower_and_upper() {
    let stack = Stack::new(1);
    stack.lower(0).file("true", read("/bin/true")).mode("true", 0o755);
    stack.lower(0).file("script", "#!/bin/sh\necho \"ran $1\"\n").mode("script", 0o755);
    let mount = stack.mount();
    run(mount.join("true"), &[] as &[&str]);
    assert_eq!(run(mount.join("script"), &["once"]), "ran once\n");
    fs::copy("/bin/echo", mount.join("echo")).unwrap();
    assert_eq!(run(mount.join("echo"), &["from", "upper"]), "from upper\n");
    fs::write(mount.join("script"), "#!/bin/sh\necho changed\n").unwrap();
    assert_eq!(run(mount.join("script"), &["once"]), "changed\n");
    mount.unmount();
}

/// A running program survives that its file is replaced, and its pages stay those of the old one.
#[test]
fn a_running_program_survives_its_replacement() {
    let stack = Stack::new(1);
    stack.lower(0).file("sleep", read("/bin/sleep")).mode("sleep", 0o755);
    let mount = stack.mount();
    let mut child = std::process::Command::new(mount.join("sleep")).arg("1").spawn().unwrap();
    fs::write(mount.join("new"), "#!/bin/sh\n").unwrap();
    fs::rename(mount.join("new"), mount.join("sleep")).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(read(mount.join("sleep")), b"#!/bin/sh\n");
    mount.unmount();
}

#[test]
fn many_files_are_open_at_once() {
    support::needs_opens_that_follow!();
    let stack = Stack::new(1);
    for index in 0..600 {
        stack.lower(0).file(format!("f{index}"), format!("{index}"));
    }
    let mount = stack.mount();
    let mut files: Vec<_> = (0..600).map(|index| for_reading(mount.join(format!("f{index}")))).collect();
    for (index, file) in files.iter_mut().enumerate() {
        if index % 3 == 0 {
            fs::write(mount.join(format!("f{index}")), format!("changed {index}")).unwrap();
        }
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        let expected = if index % 3 == 0 { format!("changed {index}") } else { format!("{index}") };
        assert_eq!(text, expected);
    }
    drop(files);
    mount.unmount();
}
