//! Data: allocation, holes, copying, large files, syncing, space.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, fstatvfs, seek};
use rustix::io::Errno;

use crate::{for_reading, for_writing, read, stat};
use support::{Stack, raw};

#[test]
fn fallocate_extends_punches_and_zeroes() {
    support::needs_opens_that_follow!();
    let stack = Stack::new(1);
    stack.lower(0).file("f", vec![b'x'; 100_000]);
    let before = stack.lower_snapshots();
    let mount = stack.mount();
    let early = for_reading(mount.join("f"));
    let file = for_writing(mount.join("f"));
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 10_000, 20_000).unwrap();
    let mut expected = vec![b'x'; 100_000];
    expected[10_000..30_000].fill(0);
    assert_eq!(read(mount.join("f")), expected);
    fallocate(&file, FallocateFlags::KEEP_SIZE, 100_000, 50_000).unwrap();
    assert_eq!(stat(mount.join("f")).size(), 100_000);
    fallocate(&file, FallocateFlags::empty(), 0, 120_000).unwrap();
    expected.resize(120_000, 0);
    assert_eq!(read(mount.join("f")), expected);
    match fallocate(&file, FallocateFlags::ZERO_RANGE, 50_000, 1000) {
        Ok(()) => expected[50_000..51_000].fill(0),
        Err(Errno::OPNOTSUPP) => support::skipped("FALLOC_FL_ZERO_RANGE: not on this filesystem"),
        Err(error) => panic!("{error}"),
    }
    assert_eq!(read(mount.join("f")), expected);
    let mut seen = vec![0; 120_000];
    early.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(seen, expected, "as seen by who opened it before");
    drop((early, file));
    mount.unmount();
    stack.assert_lowers_unchanged(&before);
}

#[test]
fn data_and_holes_are_found() {
    support::needs_opens_that_follow!();
    let stack = Stack::new(1);
    stack.lower(0).sparse("low", 4 << 20, &[(1 << 20, &[b'd'; 65536])]);
    let mount = stack.mount();
    let check = |file: &File, name: &str| {
        assert_eq!(seek(file, SeekFrom::Data(0)).unwrap(), 1 << 20, "{name}");
        assert_eq!(seek(file, SeekFrom::Hole(1 << 20)).unwrap(), (1 << 20) + 65536, "{name}");
        assert_eq!(seek(file, SeekFrom::Hole(0)).unwrap(), 0, "{name}");
        assert_eq!(seek(file, SeekFrom::Data(3 << 20)), Err(Errno::NXIO), "{name}");
        assert_eq!(seek(file, SeekFrom::Data(5 << 20)), Err(Errno::NXIO), "{name}");
    };
    let file = for_reading(mount.join("low"));
    check(&file, "in the lower");
    drop(for_writing(mount.join("low")));
    check(&file, "opened before copy-up");
    check(&for_reading(mount.join("low")), "in the upper");
    drop(file);
    mount.unmount();
}

#[test]
fn copy_file_range_within_and_across_placements() {
    let stack = Stack::new(1);
    let content: Vec<u8> = (0..200_000u32).map(|index| (index % 251) as u8).collect();
    stack.lower(0).file("low", &content);
    let mount = stack.mount();
    let source = for_reading(mount.join("low"));
    let target = File::create(mount.join("copy")).unwrap();
    let mut copied = 0;
    while copied < content.len() {
        copied += copy_file_range(&source, None, &target, None, content.len() - copied).unwrap();
    }
    assert_eq!(read(mount.join("copy")), content);
    drop((source, target));
    // Into the middle of a lower file: a copy-up.
    let target = for_writing(mount.join("low"));
    let (mut from, mut to) = (0, 150_000);
    let source = for_reading(mount.join("copy"));
    let mut left = 1000;
    while left > 0 {
        left -= copy_file_range(&source, Some(&mut from), &target, Some(&mut to), left).unwrap();
    }
    let mut expected = content.clone();
    expected[150_000..151_000].copy_from_slice(&content[..1000]);
    assert_eq!(read(mount.join("low")), expected);
    drop((source, target));
    mount.unmount();
    assert_eq!(read(stack.upper().root().join("low")), expected);
}

#[test]
fn files_over_four_gigabytes() {
    support::needs_opens_that_follow!();
    let stack = Stack::new(1);
    let size = (5 << 30) + 12_345;
    stack.lower(0).sparse("low", size, &[(0, b"start"), (4 << 30, b"beyond"), (size - 3, b"end")]);
    let mount = stack.mount();
    let mut bytes = [0; 6];
    let file = for_reading(mount.join("low"));
    file.read_exact_at(&mut bytes, 4 << 30).unwrap();
    assert_eq!(&bytes, b"beyond");
    assert_eq!(stat(mount.join("low")).size(), size);
    for_writing(mount.join("low")).write_all_at(b"BEYOND", 4 << 30).unwrap();
    file.read_exact_at(&mut bytes, 4 << 30).unwrap();
    assert_eq!(&bytes, b"BEYOND");
    assert_eq!(stat(mount.join("low")).size(), size);
    let mut end = [0; 3];
    file.read_exact_at(&mut end, size - 3).unwrap();
    assert_eq!(&end, b"end");
    assert!(stat(stack.upper().root().join("low")).blocks() * 512 < 1 << 20, "the holes were filled");
    let new = File::create(mount.join("new")).unwrap();
    new.write_all_at(b"far", 6 << 30).unwrap();
    new.sync_all().unwrap();
    assert_eq!(stat(mount.join("new")).size(), (6 << 30) + 3);
    drop((file, new));
    mount.unmount();
    let mut end = [0; 3];
    File::open(stack.upper().root().join("new")).unwrap().read_exact_at(&mut end, 6 << 30).unwrap();
    assert_eq!(&end, b"far");
}

#[test]
fn truncation_to_and_fro_leaves_zeroes() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", vec![b'x'; 10_000]);
    let mount = stack.mount();
    raw::truncate(&mount.join("f"), 100).unwrap();
    raw::truncate(&mount.join("f"), 9000).unwrap();
    let bytes = read(mount.join("f"));
    assert_eq!(bytes.len(), 9000);
    assert!(bytes[..100].iter().all(|byte| *byte == b'x') && bytes[100..].iter().all(|byte| *byte == 0));
    support::assert_errno!(raw::truncate(&mount.join("f"), -1), Errno::INVAL);
    support::assert_errno!(raw::truncate(mount.path(), 0), Errno::ISDIR);
    mount.unmount();
}

#[test]
fn fsync_of_files_and_directories() {
    let stack = Stack::new(1);
    stack.lower(0).file("d/f", "x");
    let mount = stack.mount();
    for_reading(mount.join("d/f")).sync_all().unwrap();
    let file = for_writing(mount.join("d/f"));
    file.write_all_at(b"synced", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(read(stack.upper().root().join("d/f")), b"synced", "fdatasync has handed the data on");
    file.write_all_at(b"SYNCED", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(read(stack.upper().root().join("d/f")), b"SYNCED");
    File::open(mount.join("d")).unwrap().sync_all().unwrap();
    File::open(mount.path()).unwrap().sync_all().unwrap();
    rustix::fs::syncfs(&file).unwrap();
    drop(file);
    mount.unmount();
}

#[test]
fn statfs_is_that_of_the_upper() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x");
    let mount = stack.mount();
    let shown = fstatvfs(File::open(mount.path()).unwrap()).unwrap();
    let upper = fstatvfs(File::open(stack.upper().root()).unwrap()).unwrap();
    assert_eq!(shown.f_blocks * shown.f_frsize, upper.f_blocks * upper.f_frsize);
    assert_eq!(shown.f_namemax, 255);
    assert_eq!(shown.f_files, upper.f_files);
    let of_file = fstatvfs(for_reading(mount.join("f"))).unwrap();
    assert_eq!(of_file.f_blocks, shown.f_blocks);
    mount.unmount();
}

#[test]
fn concurrent_writers_of_one_file_lose_nothing() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", vec![0; 400_000]);
    let mount = stack.mount();
    let path = mount.join("f");
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let path = &path;
            scope.spawn(move || {
                let file = for_writing(path);
                for block in 0..100u64 {
                    file.write_all_at(&[b'a' + thread as u8; 1000], (block * 4 + thread) * 1000).unwrap();
                }
            });
        }
    });
    let bytes = read(&path);
    for (block, piece) in bytes.chunks(1000).enumerate() {
        assert!(piece.iter().all(|byte| *byte == b'a' + (block % 4) as u8), "block {block}");
    }
    mount.unmount();
    assert_eq!(fs::read(stack.upper().root().join("f")).unwrap(), bytes);
}

#[test]
fn nothing_lies_before_the_start() {
    let stack = Stack::new(1);
    stack.lower(0).file("f", "x");
    let mount = stack.mount();
    let file = fs::File::open(mount.join("f")).unwrap();
    for whence in [libc::SEEK_DATA, libc::SEEK_HOLE] {
        assert_eq!(raw::seek(&file, -1, whence).unwrap_err().raw_os_error(), Some(libc::ENXIO));
    }
    drop(file);
    mount.unmount();
}

/// A directory that may be searched and not read, as those of drop boxes: who may write in it may sync what is in it.
#[test]
fn what_lies_where_nobody_may_list_is_synced() {
    let stack = Stack::new(1);
    stack.lower(0).dir("d");
    let mount = stack.mount();
    fs::create_dir(mount.join("d/box")).unwrap();
    for dir in ["d/box", "d"] {
        fs::set_permissions(mount.join(dir), PermissionsExt::from_mode(0o311)).unwrap();
    }
    let file = File::create(mount.join("d/box/f")).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    fs::rename(mount.join("d/box/f"), mount.join("d/box/g")).unwrap();
    file.sync_data().unwrap();
    drop(file);
    mount.unmount();
}
