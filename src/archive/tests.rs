//! Trees out of tars.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::fs::FileExt;

use super::build::Builder;
use super::data::{Original, Seen, Store};
use super::*;
use crate::image::layer::reader::Reader;
use crate::sys::object::Kind;

/// Writes a tar into a file.
pub(super) fn tar(entries: &[(u8, &str, &str)]) -> tempfile::NamedTempFile {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(0o640);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(7);
        if matches!(kind, b'1' | b'2') {
            header.set_size(0);
            builder.append_link(&mut header, name, content).unwrap();
        } else {
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&builder.into_inner().unwrap()).unwrap();
    file
}

pub(super) fn of_path(path: &Path, options: ArchiveOptions) -> Result<Arc<dyn LayerTree>, ArchiveError> {
    open(File::open(path).unwrap(), path, &options).map(Archive::into_tree)
}

fn opened(entries: &[(u8, &str, &str)]) -> Arc<dyn LayerTree> {
    of_path(tar(entries).path(), ArchiveOptions::default()).unwrap()
}

pub(super) fn at(tree: &dyn LayerTree, path: &str) -> Option<u64> {
    path.split('/').try_fold(tree.root(), |dir, name| tree.lookup(dir, name.as_bytes()).ok())
}

pub(super) fn content(tree: &dyn LayerTree, path: &str) -> String {
    let file = tree.open(at(tree, path).unwrap()).unwrap();
    let mut bytes = vec![0; file.size() as usize];
    let mut offset = 0;
    while offset < bytes.len() {
        let count = file.read_at(&mut bytes[offset..], offset as u64).unwrap();
        assert!(count > 0);
        offset += count;
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_tree_is_what_the_entries_say() {
    let tree = opened(&[
        (b'0', "deep/er/file", "content"),
        (b'5', "deep", ""),
        (b'1', "name", "deep/er/file"),
        (b'2', "link", "deep"),
        (b'0', "link/below", "through"),
        (b'0', "twice", "old"),
        (b'0', "twice", "new"),
    ]);
    assert_eq!(content(&*tree, "deep/er/file"), "content");
    assert_eq!(at(&*tree, "name"), at(&*tree, "deep/er/file"));
    let stat = tree.stat(at(&*tree, "name").unwrap()).unwrap();
    assert_eq!((stat.nlink, stat.uid, stat.gid, stat.mtime.sec, stat.mode), (2, 5, 6, 7, 0o100_640));
    assert_eq!(content(&*tree, "deep/below"), "through");
    assert_eq!(content(&*tree, "twice"), "new");
    assert_eq!(tree.stat(at(&*tree, "deep").unwrap()).unwrap().nlink, 3, "., .. and er/..");
    assert_eq!(tree.stat(at(&*tree, "deep/er").unwrap()).unwrap().mode, 0o040_755, "implied");
    assert_eq!(tree.read_link(at(&*tree, "link").unwrap()).unwrap(), b"deep");
    assert_eq!(tree.stat(at(&*tree, "link").unwrap()).unwrap().kind(), Kind::Symlink);
    assert_eq!(at(&*tree, "nothing"), None);
}

#[test]
fn the_same_archive_has_the_same_identity() {
    let one = [(b'0', "a", "1"), (b'0', "b", "2")];
    assert_eq!(opened(&one).id(), opened(&one).id());
    assert_ne!(opened(&one).id(), opened(&one[..1]).id());
}

#[test]
fn what_would_lead_out_or_in_circles_is_refused() {
    for entries in [
        &[(b'0', "../out", "x")][..],
        &[(b'1', "a", "nothing")],
        &[(b'2', "a", "b"), (b'2', "b", "a"), (b'0', "a/x", "x")],
    ] {
        // The builder of the tests writes no `..` by itself.
        let mut file =
            tar(&entries.iter().map(|(k, n, c)| (*k, n.trim_start_matches("../"), *c)).collect::<Vec<_>>());
        if entries[0].1.starts_with("..") {
            let mut bytes = std::fs::read(file.path()).unwrap();
            bytes[..6].copy_from_slice(b"../out");
            let sum: u32 = bytes[..512]
                .iter()
                .enumerate()
                .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
                .sum();
            bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&bytes).unwrap();
        }
        assert!(
            matches!(of_path(file.path(), ArchiveOptions::default()), Err(ArchiveError::Damaged { .. })),
            "{entries:?}"
        );
    }
}

#[test]
fn marks_of_layers_have_a_meaning_only_where_it_is_asked_for() {
    let file = tar(&[(b'0', "d/.wh.gone", ""), (b'0', "d/kept", "")]);
    let plain = of_path(file.path(), ArchiveOptions::default()).unwrap();
    assert!(at(&*plain, "d/kept").is_some() && at(&*plain, "d/.wh.gone").is_none());
    let layer = of_path(file.path(), ArchiveOptions { is_layer: true, ..ArchiveOptions::default() }).unwrap();
    assert!(at(&*layer, "d/.wh.gone").is_some());
}

#[test]
fn archives_that_end_too_early_are_refused() {
    let file = tar(&[(b'0', "a", &"x".repeat(5000))]);
    file.as_file().set_len(3000).unwrap();
    let refused = of_path(file.path(), ArchiveOptions::default()).unwrap_err().to_string();
    assert!(refused.contains("the archive ends within it"), "{refused}");
    for (bytes, said) in [
        (&b""[..], "it is empty"),
        (b"hsqs", "squashfs"),
        (b"PK\x03\x04", "zip"),
        (b"#!/bin/sh\n", "neither a tar"),
    ] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let refused = of_path(file.path(), ArchiveOptions::default()).unwrap_err().to_string();
        assert!(refused.contains(said), "{refused}");
    }
}

#[test]
fn compressed_archives_are_the_same_trees() {
    let plain = tar(&[(b'0', "a/b", "content"), (b'1', "c", "a/b")]);
    let bytes = std::fs::read(plain.path()).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&zstd::encode_all(&bytes[..], 3).unwrap()).unwrap();
    let tree = of_path(file.path(), ArchiveOptions::default()).unwrap();
    assert_eq!(content(&*tree, "c"), "content");
    assert_eq!(tree.id(), of_path(plain.path(), ArchiveOptions::default()).unwrap().id());
}

#[test]
fn what_changes_underneath_is_an_error() {
    let file = tar(&[(b'0', "a", "content")]);
    let tree = of_path(file.path(), ArchiveOptions::default()).unwrap();
    let open = tree.open(at(&*tree, "a").unwrap()).unwrap();
    let mut byte = [0];
    assert_eq!(open.read_at(&mut byte, 0), Ok(1));
    file.as_file().set_len(512).unwrap();
    assert_eq!(open.read_at(&mut byte, 0), Err(rustix::io::Errno::IO));
}

#[test]
fn what_no_layer_may_hold_is_no_archive() {
    let device = {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Char);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_size(0);
        builder.append_data(&mut header, "gone", io::empty()).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&builder.into_inner().unwrap()).unwrap();
        file
    };
    let long = "x".repeat(256);
    for (file, is_layer, said) in [
        (device, false, "a character device 0:0"),
        (
            tar(&[(b'0', &format!("d/{long}"), "")]),
            false,
            "a name that is too long: 256 bytes, and Linux knows 255",
        ),
        (tar(&[(b'0', &format!("{long}/f"), "")]), false, "a name that is too long"),
        (tar(&[(b'0', "d/.wh..", "")]), true, "is a whiteout of nothing"),
        (tar(&[(b'0', "d/.wh.x/f", "")]), true, "lies in .wh.x"),
    ] {
        let refused = of_path(file.path(), ArchiveOptions { is_layer, ..ArchiveOptions::default() })
            .unwrap_err()
            .to_string();
        assert!(refused.contains(said), "{refused}");
    }
    assert!(of_path(tar(&[(b'0', &"x".repeat(255), "")]).path(), ArchiveOptions::default()).is_ok());
}

#[test]
fn what_an_archive_takes_in_memory_is_bounded() {
    let target = "t".repeat(3000);
    let names: Vec<String> = (0..100).map(|at| format!("link{at}")).collect();
    let entries: Vec<(u8, &str, &str)> = names.iter().map(|name| (b'2', &name[..], &target[..])).collect();
    let file = tar(&entries);
    let read = |most_memory: u64| {
        let mut builder = Builder::new(false);
        builder.most_memory = most_memory;
        builder.read(Reader::of_file(File::open(file.path()).unwrap()), u64::MAX)
    };
    read(1 << 20).unwrap();
    assert!(read(200_000).unwrap_err().to_string().contains("MiB of memory"));
}

#[test]
fn what_directories_take_in_memory_is_bounded() {
    // Such as no entry names.
    let paths: Vec<String> = (0..1000).map(|at| format!("a{at}/b/c")).collect();
    let implied: Vec<(u8, &str, &str)> = paths.iter().map(|path| (b'0', &path[..], "")).collect();
    let named: Vec<(u8, &str, &str)> = paths.iter().map(|path| (b'5', &path[..], "")).collect();
    for file in [tar(&implied), tar(&named)] {
        let mut builder = Builder::new(false);
        builder.most_memory = 500_000;
        let read = builder.read(Reader::of_file(File::open(file.path()).unwrap()), u64::MAX);
        assert!(read.unwrap_err().to_string().contains("MiB of memory"));
    }
}

/// Changes something of a file until its ctime tells: clocks of files are coarse.
fn until_changed(file: &File, mut change: impl FnMut()) {
    let before = Seen::of(file).unwrap();
    let changed = (0..1_000_000).any(|_| {
        change();
        Seen::of(file).unwrap().changed != before.changed
    });
    assert!(changed);
}

#[test]
fn times_that_are_set_back_hide_no_change() {
    let file = tar(&[(b'0', "a", "content")]);
    let modified = file.as_file().metadata().unwrap().modified().unwrap();
    let before = Original::of(file.as_file()).unwrap();
    let tree = of_path(file.path(), ArchiveOptions::default()).unwrap();
    let open = tree.open(at(&*tree, "a").unwrap()).unwrap();
    until_changed(file.as_file(), || {
        file.as_file().write_all_at(b"CONTENT", 512).unwrap();
        file.as_file().set_modified(modified).unwrap();
        // Other rights are no excuse.
        file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    });
    assert_eq!(open.read_at(&mut [0; 7], 0), Err(rustix::io::Errno::IO));
    // What was changed while its index was made is told at once.
    let told = Store::file(file.reopen().unwrap(), file.path(), before).unwrap_err();
    assert!(told.to_string().contains("it was changed"), "{told}");
}

#[test]
fn another_name_and_other_rights_are_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    std::fs::copy(tar(&[(b'0', "a", "content")]).path(), &path).unwrap();
    let tree = of_path(&path, ArchiveOptions::default()).unwrap();
    let open = tree.open(at(&*tree, "a").unwrap()).unwrap();
    let file = File::open(&path).unwrap();
    let read = || open.read_at(&mut [0; 7], 0);
    let mode = |mode| file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    until_changed(&file, || mode(0o400));
    assert_eq!(read(), Ok(7));
    // Nothing but the ctime tells of these.
    until_changed(&file, || {
        mode(0o600);
        mode(0o400);
    });
    assert_eq!(read(), Ok(7));
    until_changed(&file, || {
        std::fs::hard_link(&path, dir.path().join("c.tar")).unwrap();
        std::fs::remove_file(dir.path().join("c.tar")).unwrap();
    });
    assert_eq!(read(), Ok(7));
    let other = dir.path().join("b.tar");
    let mut names = [&path, &other];
    until_changed(&file, || {
        std::fs::rename(names[0], names[1]).unwrap();
        names.reverse();
    });
    // It may have come back to the first name.
    if names[0] == &other {
        assert_eq!(read(), Ok(7));
        std::fs::remove_file(&other).unwrap();
        assert_eq!(read(), Ok(7));
    }
}

/// Opens layers of an image, topmost first.
fn layers(of: &[&[(u8, &str, &str)]]) -> Vec<Arc<dyn LayerTree>> {
    let open = |entries: &&[(u8, &str, &str)]| {
        let file = tar(entries);
        open(
            file.reopen().unwrap(),
            file.path(),
            &ArchiveOptions { is_layer: true, ..ArchiveOptions::default() },
        )
        .unwrap()
    };
    let mut layers: Vec<Archive> = of.iter().map(open).collect();
    describe_implied(&mut layers.iter_mut().collect::<Vec<_>>());
    layers.into_iter().map(Archive::into_tree).collect()
}

fn mode(tree: &dyn LayerTree, path: &str) -> u32 {
    let object = if path.is_empty() { Some(tree.root()) } else { at(tree, path) };
    tree.stat(object.unwrap()).unwrap().mode & 0o7777
}

/// The tars of these tests give every entry mode 640, and what is made up has 755.
#[test]
fn a_directory_that_a_layer_does_not_name_is_as_the_nearest_layer_below_says() {
    let [top, middle, base] = &layers(&[
        &[(b'0', "etc/app/config", ""), (b'0', "own/new/file", ""), (b'5', "named", "")],
        &[(b'0', "etc/other", "")],
        &[(b'5', "./", ""), (b'5', "etc", ""), (b'5', "etc/app", ""), (b'5', "own", "")],
    ])[..] else {
        panic!("three")
    };
    for path in ["", "etc", "etc/app", "own"] {
        assert_eq!(mode(&**top, path), mode(&**base, path), "{path:?}");
        assert_eq!(mode(&**top, path), 0o640, "{path:?}");
    }
    assert_eq!((mode(&**top, "own/new"), mode(&**top, "named")), (0o755, 0o640));
    assert_eq!(mode(&**middle, "etc"), 0o640);
}

#[test]
fn what_a_layer_hides_says_nothing_of_a_directory_that_is_made_up_above_it() {
    let base: &[(u8, &str, &str)] = &[(b'5', "d", ""), (b'5', "d/e", "")];
    let of = |above: &[(u8, &str, &str)], path| mode(&*layers(&[above, base])[0], path);
    assert_eq!(of(&[(b'0', "d/e/f", "")], "d/e"), 0o640);
    assert_eq!(of(&[(b'0', "d/e/f", ""), (b'0', "d/.wh.e", "")], "d/e"), 0o755, "deleted, and new");
    assert_eq!(of(&[(b'0', "d/e/f", ""), (b'0', "d/.wh..wh..opq", "")], "d/e"), 0o755, "below an opaque one");
    assert_eq!(of(&[(b'0', "d/e/f", ""), (b'0', "d/e/.wh..wh..opq", "")], "d/e"), 0o755, "opaque itself");
    assert_eq!(of(&[(b'0', "d/e/f", ""), (b'0', "d/e/.wh..wh..opq", "")], "d"), 0o640);
    for between in
        [(b'0', "d/e", ""), (b'0', "d/.wh.e", ""), (b'0', ".wh.d", ""), (b'0', "d/.wh..wh..opq", "")]
    {
        let all = layers(&[&[(b'0', "d/e/f", "")], &[between], base]);
        assert_eq!(mode(&*all[0], "d/e"), 0o755, "hidden by {between:?}");
    }
}

#[test]
fn an_archive_is_the_same_one_whatever_lies_below_it() {
    let top: &[(u8, &str, &str)] = &[(b'0', "d/e", "")];
    let (alone, above) = (layers(&[top]), layers(&[top, &[(b'5', "d", "")]]));
    assert_eq!(alone[0].id(), above[0].id());
    assert_ne!(mode(&*alone[0], "d"), mode(&*above[0], "d"));
}
