//! What other tools write, and what they all take.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::*;
use crate::sys::xattr;

/// Changes the last header that was added, and mends its checksum.
fn patched(mut tar: Tar, change: impl FnOnce(&mut [u8])) -> Tar {
    let at = tar.0.len() - 512;
    let header = &mut tar.0[at..];
    change(header);
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar
}

/// Returns an extension header with its content.
fn extension(mut tar: Tar, kind: u8, content: &[u8]) -> Tar {
    tar = patched(
        tar.add("ext", EntryType::Regular, |builder| {
            builder.size(content.len() as u64).unwrap();
        }),
        |header| header[156] = kind,
    );
    tar.0.extend(content);
    tar.0.resize(tar.0.len().next_multiple_of(512), 0);
    tar
}

fn pax(tar: Tar, records: &[(&str, &str)]) -> Tar {
    let mut content = String::new();
    for (key, value) in records {
        let length = key.len() + value.len() + 3;
        let digits = (length + 1).to_string().len();
        let digits = (length + digits).to_string().len();
        content += &format!("{} {key}={value}\n", length + digits);
    }
    extension(tar, b'x', content.as_bytes())
}

/// Returns a tar of one file, `f`, whose header was changed.
fn file_with(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    patched(Tar::default().file("f", b""), change).end()
}

/// Does as Docker, podman and containerd do.
#[test]
fn files_that_aufs_keeps_apart_are_found_by_their_names() {
    let bench = Bench::new();
    let tar = Tar::default().dir("d").dir(".wh..wh.plnk").file(".wh..wh.plnk/7.9", b"seven");
    let tar =
        tar.link("d/a", ".wh..wh.plnk/7.9").link("b", "/.wh..wh.plnk/7.9").link("c", ".wh..wh.plnk/gone");
    let applied = bench.apply(&tar.dir(".wh..wh.orph").file(".wh..wh.orph/x", b"").end()).unwrap();
    assert_eq!(fs::read(bench.at("d/a")).unwrap(), b"seven");
    let (a, b) = (bench.at("d/a").metadata().unwrap(), bench.at("b").metadata().unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    let mut names: Vec<_> =
        fs::read_dir(bench.at("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["b", "d"]);
    assert_eq!(applied.implied, 0);
}

#[test]
fn absolute_names_are_relative_to_the_root() {
    let bench = Bench::new();
    let tar = Tar::default().dir("/app/").file("/app/x", b"1").link("b", "/app/x").link("/c", "app/../app/x");
    bench.apply(&tar.file("/../d", b"2").file("e/../app/y", b"3").end()).unwrap();
    assert_eq!(fs::read(bench.at("app/x")).unwrap(), b"1");
    assert_eq!(bench.at("b").metadata().unwrap().ino(), bench.at("c").metadata().unwrap().ino());
    assert_eq!(
        (fs::read(bench.at("d")).unwrap(), fs::read(bench.at("app/y")).unwrap()),
        (b"2".into(), b"3".into())
    );
    assert!(!bench.at("e").exists());
}

#[test]
fn what_lies_below_a_link_of_the_layer_lies_where_it_leads() {
    let bench = Bench::new();
    let tar = Tar::default()
        .symlink("lib", "usr/lib")
        .file("lib/x", b"1")
        .dir("lib/sub")
        .symlink("abs", "/usr/lib/sub")
        .file("abs/y", b"2")
        .symlink("out", "../../../..")
        .file("out/outside", b"within")
        .symlink("usr/lib/up", "../share/./deep")
        .file("lib/up/z", b"3")
        .link("hard", "lib/x")
        .symlink("first", "second")
        .symlink("second", "usr")
        .file("first/lib/w", b"4");
    let applied = bench.apply(&tar.end()).unwrap();
    let found = ["usr/lib/x", "usr/lib/sub/y", "outside", "usr/share/deep/z", "usr/lib/w", "hard"];
    let content: Vec<_> = found.iter().map(|path| fs::read(bench.at(path)).unwrap()).collect();
    assert_eq!(content, [&b"1"[..], b"2", b"within", b"3", b"4", b"1"]);
    assert!(fs::symlink_metadata(bench.at("lib")).unwrap().is_symlink());
    assert_eq!(applied.implied, 4); // usr, usr/lib, usr/share, usr/share/deep
    // A link that is replaced is one no more.
    let bench = Bench::new();
    let tar = Tar::default().dir("d").symlink("x", ".").file("x/a", b"").dir("x").file("x/b", b"");
    bench.apply(&tar.end()).unwrap();
    assert!(bench.at("a").exists() && bench.at("x/b").exists() && !bench.at("b").exists());
}

#[test]
fn links_that_lead_nowhere_are_told() {
    let looping = Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", b"");
    Bench::refused(looping.end(), &["a/x", "lead nowhere"]);
    let long =
        Tar::default().symlink("a", &"./".repeat(2000)).symlink("b", &"a/".repeat(1300)).file("b/x", b"");
    Bench::refused(long.end(), &["b/x", "lead nowhere"]);
    Bench::refused(
        Tar::default().file("f", b"").symlink("a", "f").file("a/x", b"").end(),
        &["a/x", "f", "no directory"],
    );
    Bench::refused(Tar::default().symlink("a", "a").link("x", "a/y").end(), &["doesn't hold"]);
}

#[test]
fn deletions_below_what_the_layer_made_a_link_are_skipped() {
    let bench = Bench::new();
    let tar = Tar::default()
        .symlink("lib", "usr/lib")
        .file("lib/.wh.gone", b"")
        .file("lib/.wh..wh..opq", b"")
        .file("f", b"")
        .file("f/.wh.gone", b"")
        .dir("d")
        .file("d/.wh.gone", b"");
    bench
        .apply(&tar.file(".wh..wh.plnk/12.34", b"x").dir(".wh..wh..plnk").file(".wh..wh..plnk/5", b"").end())
        .unwrap();
    assert!(!bench.at("usr").exists() && bench.is_whiteout("d/gone"));
    assert_eq!(fs::read_dir(bench.root()).unwrap().count(), 3);
}

#[test]
fn numbers_that_no_header_of_posix_holds() {
    for (bytes, time) in [
        (&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"[..], -2),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\x80\0\0\0", -0x8000_0000),
        (b"\x80\0\0\0\0\0\0\x01\0\0\0\0", 1 << 32),
        (b"\0\0\0\0\0\0\0\x00144\0", 0o144),
    ] {
        let bench = Bench::new();
        bench.apply(&file_with(|header| header[136..148].copy_from_slice(bytes))).unwrap();
        assert_eq!(bench.at("f").metadata().unwrap().mtime(), time, "{}", bytes.escape_ascii());
    }
    for (field, owner) in [
        (&b"\xff\xff\xff\xff\xff\xff\xff\xff"[..], 0),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", 0xffff_fffe),
        (b"\x80\0\0\0\xff\xff\xff\xff", 0),
        (b"\0\0\0\0\x00144", 100),
        (b"        ", 0),
    ] {
        let tar = file_with(|header| header[108..116].copy_from_slice(field));
        let entry = reader::Reader::new(&tar[..]).next_entry().unwrap().unwrap();
        assert_eq!(entry.attributes.uid, owner, "{}", field.escape_ascii());
    }
    Bench::refused(
        file_with(|header| header[108..116].copy_from_slice(b"\x80\0\0\x01\0\0\0\0")),
        &["f: owner 4294967296"],
    );
    for (records, time, owner) in [
        (&[("mtime", "-12.5"), ("uid", "-2")][..], -13, 0xffff_fffe),
        (&[("mtime", "999999999999999999999999")], i64::MAX, 0),
        (&[("mtime", ""), ("uid", ""), ("path", ""), ("linkpath", ""), ("size", "")], 1_000_000, 0),
        (&[("uid", "4294967295"), ("mtime", "7")], 7, 0),
    ] {
        let tar = pax(Tar::default(), records).file("f", b"").end();
        let entry = reader::Reader::new(&tar[..]).next_entry().unwrap().unwrap();
        assert_eq!((&entry.path[..], entry.attributes.mtime.sec), (&b"f"[..], time), "{records:?}");
        assert_eq!(entry.attributes.uid, owner, "{records:?}");
        Bench::new().apply(&tar).unwrap();
    }
}

#[test]
fn extension_headers_in_any_order_and_number() {
    let name = |tar| extension(tar, b'L', b"long name\0junk");
    let records = |tar| pax(tar, &[("SCHILY.xattr.user.a", "1"), ("path", "other")]);
    let more = |tar| pax(tar, &[("SCHILY.xattr.user.b", "2"), ("mtime", "5")]);
    let global = |tar| extension(tar, b'g', b"14 mtime=9999\n");
    let solaris = |tar| extension(tar, b'X', b"11 mtime=5\n");
    for tar in [
        more(records(name(Tar::default()))),
        name(more(global(records(name(Tar::default()))))),
        more(name(extension(records(Tar::default()), b'L', b"wrong\0"))),
        solaris(more(records(name(global(Tar::default()))))),
    ] {
        let tar = extension(tar, b'K', b"ignored").file("f", b"x").file("g", b"y").end();
        let mut reader = reader::Reader::new(&tar[..]);
        let entry = reader.next_entry().unwrap().unwrap();
        assert_eq!(entry.path, b"long name");
        assert_eq!(entry.attributes.mtime.sec, 5);
        let names: Vec<_> = entry.attributes.xattrs.iter().map(|(name, _)| &name[..]).collect();
        assert_eq!(names, [b"user.a", b"user.b"]);
        // They speak of one entry.
        let next = reader.next_entry().unwrap().unwrap();
        assert_eq!((&next.path[..], next.attributes.mtime.sec), (&b"g"[..], 1_000_000));
        assert!(next.attributes.xattrs.is_empty() && reader.next_entry().unwrap().is_none());
    }
    for cut in [records(Tar::default()).0, records(Tar::default()).end()] {
        Bench::refused(cut, &["damaged"]);
    }
    let volume = patched(Tar::default().dir("label"), |header| header[156] = b'V');
    let bench = Bench::new();
    bench.apply(&volume.file("f", b"").end()).unwrap();
    assert_eq!(fs::read_dir(bench.root()).unwrap().count(), 1);
}

#[test]
fn attributes_that_cannot_be_set_are_left_out() {
    let bench = Bench::new();
    let foreign = [("SCHILY.xattr.com.apple.quarantine", "x"), ("SCHILY.xattr.user.kept", "y")];
    let mut tar = pax(Tar::default(), &foreign).file("f", b"");
    tar = pax(tar, &[("SCHILY.xattr.user.on-a-link", "x")]).symlink("l", "f");
    tar = pax(tar, &[("SCHILY.xattr.user.on-a-fifo", "x")]).add("p", EntryType::Fifo, |_| {});
    tar = pax(
        tar,
        &[("SCHILY.xattr.user.overlay.origin", "x"), ("SCHILY.xattr.user.fuseoverlayfs.opaque", "y")],
    )
    .dir("d");
    for ownership in [Ownership::of_this_process(), Ownership::OverrideStat] {
        let bench = Bench::new();
        let options = ApplyOptions { ownership, limits: Limits::default() };
        apply(&tar.0[..], open(&bench.root()).as_fd(), &options).unwrap();
        assert!(fs::symlink_metadata(bench.at("l")).unwrap().is_symlink());
        let root = open(&bench.root());
        assert_eq!(xattr::get(At::Name(root.as_fd(), b"f"), b"user.kept").unwrap().unwrap(), b"y");
    }
    if is_root() {
        bench.apply(&tar.end()).unwrap();
        assert!(fs::symlink_metadata(bench.at("p")).unwrap().file_type().is_fifo());
    }
}

#[test]
fn attributes_with_any_name_go_there_and_back() {
    let bench = Bench::new();
    fs::write(bench.at("f"), "x").unwrap();
    let names = [&b"user.a=b"[..], b"user.=", b"user.\xff\xfe", b"user.plain"];
    for name in names {
        lsetxattr(bench.at("f"), name, b"v\n=\0", XattrFlags::empty()).unwrap();
    }
    let tar = bench.write();
    let again = Bench::new();
    again.apply(&tar).unwrap();
    let root = open(&again.root());
    for name in names {
        assert_eq!(xattr::get(At::Name(root.as_fd(), b"f"), name).unwrap().unwrap(), b"v\n=\0");
    }
    // Whoever doesn't know the other form finds no attribute of a wrong name.
    let plain: Vec<_> = tar.windows(19).filter(|part| part.starts_with(b"SCHILY.xattr.user.")).collect();
    assert_eq!(plain, [b"SCHILY.xattr.user.p"]);
}
