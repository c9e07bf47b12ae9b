//! Layers there and back, and tars that mean no good; [`random`] makes up its own, [`oddities`] are those of other tools,
//! [`work`] counts what hostile ones cost.

mod oddities;
mod random;
mod work;

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags, lsetxattr, mknodat};
use tar_core::builder::EntryBuilder;
use tar_core::{EntryType, SparseEntry};

use super::*;

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn options() -> ApplyOptions {
    ApplyOptions { ownership: Ownership::of_this_process(), limits: Limits::default() }
}

/// A tar in the making.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn add(mut self, path: &str, kind: EntryType, f: impl FnOnce(&mut EntryBuilder)) -> Tar {
        let mut builder = EntryBuilder::new_ustar();
        builder.path(path.as_bytes()).mode(0o755).unwrap().uid(0).unwrap().gid(0).unwrap();
        builder.mtime(1_000_000).unwrap().entry_type(kind);
        f(&mut builder);
        self.0.extend(builder.finish_bytes());
        self
    }

    fn dir(self, path: &str) -> Tar {
        self.add(path, EntryType::Directory, |_| {})
    }

    fn file(self, path: &str, data: &[u8]) -> Tar {
        let mut tar = self.add(path, EntryType::Regular, |b| {
            b.size(data.len() as u64).unwrap();
        });
        tar.0.extend(data);
        tar.0.resize(tar.0.len().next_multiple_of(512), 0);
        tar
    }

    fn symlink(self, path: &str, target: &str) -> Tar {
        self.add(path, EntryType::Symlink, |b| {
            b.link_name(target.as_bytes());
        })
    }

    fn link(self, path: &str, target: &str) -> Tar {
        self.add(path, EntryType::Link, |b| {
            b.link_name(target.as_bytes());
        })
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A directory to unpack into, with something beside it that must stay as it is.
struct Bench {
    top: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("root")).unwrap();
        fs::write(top.path().join("outside"), "untouched").unwrap();
        Bench { top }
    }

    fn root(&self) -> PathBuf {
        self.top.path().join("root")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn apply(&self, tar: &[u8]) -> Result<Applied, LayerError> {
        let applied = apply(tar, open(&self.root()).as_fd(), &options());
        assert_eq!(fs::read(self.top.path().join("outside")).unwrap(), b"untouched");
        assert_eq!(fs::read_dir(self.top.path()).unwrap().count(), 2, "something was made outside");
        applied
    }

    #[track_caller]
    fn refused(tar: Vec<u8>, parts: &[&str]) {
        let bench = Bench::new();
        let error = bench.apply(&tar).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }

    fn write(&self) -> Vec<u8> {
        write(&self.root(), Ownership::of_this_process())
    }

    fn marks(&self, path: &str) -> marker::Marks {
        marker::read_marks(
            At::Fd(open(&self.at(path)).as_fd()),
            crate::union::lookup::belief::Belief::of_process(),
        )
        .unwrap()
    }

    fn is_whiteout(&self, path: &str) -> bool {
        At::Name(open(&self.root()).as_fd(), path.as_bytes()).stat().is_ok_and(|s| s.is_whiteout_device())
    }
}

fn write(dir: &Path, ownership: Ownership) -> Vec<u8> {
    let mut out = Vec::new();
    let options = WriteOptions { ownership, lowers: &[], root: true };
    let written = write_tar(open(dir).as_fd(), &mut out, &options).unwrap();
    assert_eq!(written.bytes, out.len() as u64);
    out
}

#[test]
fn what_leads_out_of_the_root_is_refused() {
    Bench::refused(Tar::default().file("../outside", b"x").end(), &["../outside", ".."]);
    Bench::refused(Tar::default().file("a/../../outside", b"x").end(), &[".."]);
    Bench::refused(Tar::default().symlink("a", "..").link("x", "a/outside").end(), &["doesn't hold"]);
    Bench::refused(Tar::default().link("x", "../outside").end(), &["x", ".."]);
    Bench::refused(Tar::default().link("x", "/etc/passwd").end(), &["etc/passwd", "doesn't hold"]);
    Bench::refused(Tar::default().link("x", "absent").end(), &["absent", "doesn't hold"]);
    Bench::refused(Tar::default().link("x", "x").end(), &["itself"]);
    Bench::refused(Tar::default().dir("d").link("x", "d").end(), &["directory"]);
    Bench::refused(Tar::default().dir("d").file("d/f", b"").link("d", "d/f").end(), &["within itself"]);
    Bench::refused(Tar::default().file("f", b"").file("f/g", b"").end(), &["f/g", "no directory"]);
}

#[test]
fn a_link_is_replaced_not_followed() {
    let bench = Bench::new();
    let tar = Tar::default().symlink("a", "../outside").file("a", b"new").symlink("b", "..").dir("b").end();
    bench.apply(&tar).unwrap();
    assert_eq!(fs::read(bench.at("a")).unwrap(), b"new");
    assert!(fs::symlink_metadata(bench.at("b")).unwrap().is_dir());
}

#[test]
fn the_root_stays_a_directory() {
    for name in [".", "./", "/", "./."] {
        Bench::refused(Tar::default().symlink(name, "/etc").end(), &["root"]);
        let bench = Bench::new();
        bench.apply(&Tar::default().dir(name).end()).unwrap();
        assert_eq!(bench.root().metadata().unwrap().mtime(), 1_000_000);
    }
    Bench::refused(Tar::default().add("", EntryType::Regular, |_| {}).end(), &["empty name"]);
}

#[test]
fn whiteouts_of_what_cannot_be_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.."] {
        Bench::refused(Tar::default().file(name, b"").end(), &[".wh.", "whiteout"]);
    }
    Bench::refused(Tar::default().file(".wh.d/f", b"").end(), &["whiteout's name"]);
    let zero = Tar::default().add("dev", EntryType::Char, |b| {
        b.device(0, 0).unwrap();
    });
    Bench::refused(zero.end(), &["dev", "deletion"]);
    Bench::refused(Tar::default().file(".wh.a", b"").link("b", "a").end(), &["doesn't hold"]);
}

#[test]
fn whiteouts_act_on_layers_below_whatever_the_order() {
    let parts: [fn(Tar) -> Tar; 4] = [
        |tar| tar.file(".wh.file", b"").file("file", b"new"),
        |tar| tar.file("file", b"new").file(".wh.file", b""),
        |tar| tar.file(".wh.dir", b"").file("dir/f", b"new"),
        |tar| tar.file("dir/f", b"new").file(".wh.dir", b""),
    ];
    for (index, part) in parts.iter().enumerate() {
        let bench = Bench::new();
        bench.apply(&part(Tar::default()).end()).unwrap();
        if index < 2 {
            assert_eq!(fs::read(bench.at("file")).unwrap(), b"new");
        } else {
            assert_eq!(fs::read(bench.at("dir/f")).unwrap(), b"new");
            assert!(bench.marks("dir").opaque);
        }
    }
    // Whiteouts in an opaque directory go, whichever came first.
    for tar in [
        Tar::default().file("d/.wh.gone", b"").file("d/e/.wh.gone", b"").file("d/.wh..wh..opq", b""),
        Tar::default().file("d/.wh..wh..opq", b"").file("d/e/.wh.gone", b"").file("d/.wh.gone", b""),
    ] {
        let bench = Bench::new();
        bench.apply(&tar.file("d/new", b"").end()).unwrap();
        assert!(bench.marks("d").opaque && !bench.is_whiteout("d/gone") && !bench.is_whiteout("d/e/gone"));
        assert!(bench.at("d/new").exists());
    }
    let bench = Bench::new();
    let applied = bench.apply(&Tar::default().file(".wh.gone", b"").file(".wh..wh..opq", b"").end()).unwrap();
    assert_eq!(applied.whiteouts, 2);
    assert!(hides_all_below(open(&bench.root()).as_fd()).unwrap() && !bench.is_whiteout("gone"));
}

#[test]
fn what_takes_the_place_of_something_else_hides_all_below() {
    let bench = Bench::new();
    let tar =
        Tar::default().file("a", b"").dir("a").dir("b").file("b/x", b"").file("b", b"").dir("c").dir("c");
    bench.apply(&tar.end()).unwrap();
    assert!(bench.marks("a").opaque && !bench.marks("c").opaque);
    assert!(bench.at("b").metadata().unwrap().is_file());
}

#[test]
fn bombs_meet_the_limits() {
    let sparse = |size: u64| {
        let mut tar = Tar::default().add("big", EntryType::Regular, |b| {
            b.size(0).unwrap().sparse(&[SparseEntry { offset: size, length: 0 }], size);
        });
        tar.0.extend([0; 1024]);
        tar.0
    };
    Bench::refused(sparse(1_000_000_000_000), &["big", "more than"]);
    let bench = Bench::new();
    assert_eq!(bench.apply(&sparse(1 << 36)).unwrap().bytes, 1 << 36);
    assert_eq!(bench.at("big").metadata().unwrap().blocks(), 0);

    let many = Tar::default().dir("a").dir("b").dir("c").end();
    let few = ApplyOptions { limits: Limits { entries: 2, bytes: 0 }, ..options() };
    let bench = Bench::new();
    let error = apply(&many[..], open(&bench.root()).as_fd(), &few).unwrap_err();
    assert!(matches!(error, LayerError::TooManyEntries(2)), "{error}");
    let implied = Tar::default().file(&vec!["d"; 2000].join("/"), b"").dir("e").end();
    let few = ApplyOptions { limits: Limits { entries: 1500, bytes: 0 }, ..options() };
    let bench = Bench::new();
    let error = apply(&implied[..], open(&bench.root()).as_fd(), &few).unwrap_err();
    assert!(matches!(error, LayerError::TooManyEntries(1500)), "{error}");
    // A PAX header of a gigabyte is not read into memory.
    let header = Tar::default().add("x", EntryType::XHeader, |b| {
        b.size(1 << 30).unwrap();
    });
    Bench::refused(header.0, &["damaged"]);
}

#[test]
fn truncated_tars_are_told() {
    let whole = Tar::default().dir("d").file("d/f", &[b'x'; 5000]).end();
    let bench = Bench::new();
    bench.apply(&whole).unwrap();
    for cut in [1, 511, 513, 1025, 2000, 512 + 512 + 5000] {
        Bench::refused(whole[..cut].to_vec(), &["damaged"]);
    }
    // At the end of an entry: some writers leave out the zero blocks.
    for cut in [0, 512, whole.len() - 1024, whole.len() - 512] {
        Bench::new().apply(&whole[..cut]).unwrap();
    }
    Bench::refused(b"this is no tar".repeat(100), &["damaged"]);
}

#[test]
fn the_stream_is_read_to_its_end() {
    let mut tar = Tar::default().dir("d").end();
    tar.extend([0; 300_000]);
    let mut stream = &tar[..];
    apply(stream.by_ref(), open(&Bench::new().root()).as_fd(), &options()).unwrap();
    assert!(stream.is_empty());
}

#[test]
fn names_of_every_length_and_byte_are_kept() {
    let bench = Bench::new();
    let deep = ["d".repeat(250), "e".repeat(250), "f".repeat(200)].join("/");
    let very_deep = vec!["a-directory-of-many"; 204].join("/");
    let bytes = "\u{fffd}\n\\ \"'*".to_owned();
    let tar = Tar::default().file(&deep, b"deep").file(&bytes, b"odd").dir(&very_deep);
    bench.apply(&tar.end()).unwrap();
    assert_eq!(fs::read(bench.at(&deep)).unwrap(), b"deep");
    assert_eq!(fs::read(bench.at(&bytes)).unwrap(), b"odd");
    let again = Bench::new();
    again.apply(&bench.write()).unwrap();
    assert_eq!(again.write(), bench.write());
    Bench::refused(Tar::default().file(&"n".repeat(256), b"").end(), &["nnn", "too long"]);
    Bench::refused(
        Tar::default().file(&vec!["d"; 2049].join("/"), b"").end(),
        &["d/d/d", "4097 bytes", "4095"],
    );
}

#[test]
fn directories_keep_their_times_and_capabilities_their_bytes() {
    let bench = Bench::new();
    // A newline within the value: CAP_DAC_OVERRIDE and CAP_FOWNER.
    let capability = [1, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::default()
        .dir("d")
        .add("d/f", EntryType::Regular, |b| {
            b.mode(0o4755).unwrap().add_pax("mtime", "-1.5");
            b.add_pax("SCHILY.xattr.security.capability", capability);
        })
        .file("d/e/f", b"")
        .dir("e")
        .file("d/g", b"");
    bench.apply(&tar.end()).unwrap();
    assert_eq!(bench.at("d").metadata().unwrap().mtime(), 1_000_000);
    assert_eq!(bench.at("d/e").metadata().unwrap().mtime(), 0);
    let file = bench.at("d/f").metadata().unwrap();
    assert_eq!((file.mtime(), file.mtime_nsec()), (-2, 500_000_000));
    let tar = bench.write();
    let mut reader = reader::Reader::new(&tar[..]);
    let mut found = false;
    while let Some(entry) = reader.next_entry().unwrap() {
        if entry.path == b"d/f" {
            found = true;
            assert_eq!(entry.attributes.xattrs, [(b"security.capability".to_vec(), capability.to_vec())]);
            assert_eq!(entry.attributes.mode, 0o4755);
        }
    }
    assert!(found);
}

#[test]
fn holes_are_written_as_zeros_and_made_again() {
    let bench = Bench::new();
    let mut data = vec![0u8; 5 << 20];
    data[3 << 20..(3 << 20) + 5].copy_from_slice(b"hello");
    let file = fs::File::create(bench.at("f")).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"hello", 3 << 20).unwrap();
    file.set_len(5 << 20).unwrap();
    let holes = bench.write();
    assert!(holes.len() > data.len());
    for sparse in ["GNU.sparse", "GNUSparseFile"] {
        assert!(!holes.windows(sparse.len()).any(|part| part == sparse.as_bytes()), "{sparse}");
    }
    let again = Bench::new();
    again.apply(&holes).unwrap();
    assert_eq!(fs::read(again.at("f")).unwrap(), data);
    assert!(again.at("f").metadata().unwrap().blocks() * 512 < 200_000, "no holes");
    fs::set_permissions(again.root(), bench.root().metadata().unwrap().permissions()).unwrap();
    assert_eq!(again.write(), holes);
}

#[test]
fn what_is_the_unions_own_stays_out_of_tars() {
    let bench = Bench::new();
    fs::create_dir(bench.at("d")).unwrap();
    let marks = ["user.overlay.origin", "user.overlay.impure", "user.fuseoverlayfs.origin"];
    for mark in marks {
        lsetxattr(bench.at("d"), mark, b"y", XattrFlags::empty()).unwrap();
    }
    lsetxattr(bench.at("d"), "user.mine", b"y", XattrFlags::empty()).unwrap();
    let tar = String::from_utf8_lossy(&bench.write()).into_owned();
    assert!(tar.contains("user.mine") && marks.iter().all(|mark| !tar.contains(mark)));
    // A renamed directory's content is below, and nobody told what that is.
    lsetxattr(bench.at("d"), &*believed("redirect"), b"/old", XattrFlags::empty()).unwrap();
    let options = WriteOptions { ownership: Ownership::Real, lowers: &[], root: true };
    let error = write_tar(open(&bench.root()).as_fd(), Vec::new(), &options).unwrap_err();
    assert!(error.to_string().contains("layers below"), "{error}");
}

#[test]
fn a_renamed_directory_is_written_in_full() {
    let top = tempfile::tempdir().unwrap();
    for dir in ["lower/old/sub", "upper/new"] {
        fs::create_dir_all(top.path().join(dir)).unwrap();
    }
    fs::write(top.path().join("lower/old/sub/f"), "below").unwrap();
    fs::write(top.path().join("upper/new/g"), "above").unwrap();
    let (lower, upper) = (open(&top.path().join("lower")), open(&top.path().join("upper")));
    lsetxattr(top.path().join("upper/new"), &*believed("redirect"), b"/old", XattrFlags::empty()).unwrap();
    mknodat(&upper, "old", FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    let lowers = [merged::of_fd(lower.as_fd())];
    let options = WriteOptions { ownership: Ownership::Real, lowers: &lowers, root: false };
    let mut tar = Vec::new();
    write_tar(upper.as_fd(), &mut tar, &options).unwrap();
    let mut names = Vec::new();
    let mut reader = reader::Reader::new(&tar[..]);
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(String::from_utf8(entry.path).unwrap());
    }
    assert_eq!(names, [".wh.old", "new/", "new/.wh..wh..opq", "new/g", "new/sub/", "new/sub/f"]);

    assert_eq!(told(&upper, &lower), ["A /new", "A /new/g", "A /new/sub", "A /new/sub/f", "D /old"]);
}

fn told(upper: &OwnedFd, lower: &OwnedFd) -> Vec<String> {
    changes(upper.as_fd(), &[merged::of_fd(lower.as_fd())])
        .unwrap()
        .iter()
        .map(|c| format!("{} {}", c.kind.letter(), String::from_utf8_lossy(&c.path)))
        .collect()
}

/// Shows that a directory that was renamed and renamed back is where it was; one that took another's place is compared
/// with it.
#[test]
fn renamed_directories_are_compared_with_what_was_there() {
    let top = tempfile::tempdir().unwrap();
    for dir in ["lower/d/sub", "lower/other/sub", "lower/other/gone", "upper/d/sub", "upper/other"] {
        fs::create_dir_all(top.path().join(dir)).unwrap();
    }
    for file in ["lower/d/f", "lower/d/sub/f", "lower/other/f", "lower/other/sub/g", "upper/d/new"] {
        fs::write(top.path().join(file), file).unwrap();
    }
    let (lower, upper) = (open(&top.path().join("lower")), open(&top.path().join("upper")));
    let redirect = |path: &str, to: &str| {
        let path = top.path().join("upper").join(path);
        lsetxattr(path, &*believed("redirect"), to.as_bytes(), XattrFlags::empty()).unwrap();
    };
    for back in ["d", "/d"] {
        redirect("d", back);
        fs::remove_dir_all(top.path().join("upper/other")).unwrap_or_default();
        assert_eq!(told(&upper, &lower), ["C /d", "A /d/new", "C /d/sub"], "{back}");
        let options =
            WriteOptions { ownership: Ownership::Real, lowers: &[merged::of_fd(lower.as_fd())], root: false };
        let mut tar = Vec::new();
        write_tar(upper.as_fd(), &mut tar, &options).unwrap();
        let mut reader = reader::Reader::new(&tar[..]);
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            names.push(String::from_utf8(entry.path).unwrap());
        }
        assert_eq!(names, ["d/", "d/new", "d/sub/"], "{back}");
    }
    fs::remove_dir_all(top.path().join("upper/d")).unwrap();
    mknodat(&upper, "d", FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    fs::create_dir(top.path().join("upper/other")).unwrap();
    redirect("other", "d");
    let expected = [
        "D /d",
        "C /other",
        "C /other/f",
        "D /other/gone",
        "C /other/sub",
        "A /other/sub/f",
        "D /other/sub/g",
    ];
    assert_eq!(told(&upper, &lower), expected);
}

#[test]
fn changes_are_told_from_the_upper() {
    let top = tempfile::tempdir().unwrap();
    for dir in ["lower/etc", "lower/opaque/sub", "upper/etc", "upper/opaque", "upper/new"] {
        fs::create_dir_all(top.path().join(dir)).unwrap();
    }
    for file in ["lower/etc/a", "lower/etc/b", "lower/opaque/kept", "lower/opaque/gone", "lower/same"] {
        fs::write(top.path().join(file), "old").unwrap();
    }
    for file in ["upper/etc/a", "upper/etc/c", "upper/opaque/kept", "upper/new/f"] {
        fs::write(top.path().join(file), "new").unwrap();
    }
    lsetxattr(top.path().join("upper/opaque"), &*believed("opaque"), b"y", XattrFlags::empty()).unwrap();
    for name in ["etc/b", "etc/never-was"] {
        let path = top.path().join("upper").join(name);
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }
    let (lower, upper) = (open(&top.path().join("lower")), open(&top.path().join("upper")));
    let expected = [
        "C /etc",
        "C /etc/a",
        "D /etc/b",
        "A /etc/c",
        "A /new",
        "A /new/f",
        "C /opaque",
        "D /opaque/gone",
        "C /opaque/kept",
        "D /opaque/sub",
    ];
    assert_eq!(told(&upper, &lower), expected);
}

/// Returns the full name of an overlay mark that this process believes.
fn believed(mark: &str) -> String {
    crate::union::lookup::belief::Belief::of_process().namespace.name(mark)
}
