#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::archive::build::LeftOut;
use crate::archive::data::blocks::Blocking;
use crate::archive::index::{Content, Object};
use crate::archive::opening::open_with;
use crate::archive::squashfs;
use crate::archive::tests::{content, tar};
use crate::archive::{Archive, ArchiveError, Promised};
use crate::image::layer::Attributes;

const FILES: &[(u8, &str, &str)] =
    &[(b'5', "d", ""), (b'0', "d/f", "content"), (b'1', "link", "d/f"), (b'0', ".wh.x", "")];

fn part(path: &Path) -> Part {
    Part::whole(File::open(path).unwrap(), path).unwrap()
}

struct Yard {
    dir: tempfile::TempDir,
    cache: Cache,
}

impl Yard {
    fn new() -> Yard {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache {
            dir: dir.path().join("cache"),
            least: 0,
            settled: Duration::ZERO,
            patience: Duration::from_secs(60),
            share: None,
        };
        Yard { dir, cache }
    }

    /// With an archive of which the index and what it was decoded to are kept.
    fn with_one() -> (Yard, PathBuf) {
        let yard = Yard::new();
        let path = yard.archive("a.tar.zst", FILES);
        assert!(!yard.is_known(&path));
        (yard, path)
    }

    /// The same, once both are on the disk; and the index.
    fn with_synced() -> (Yard, PathBuf, PathBuf) {
        let (yard, path) = Yard::with_one();
        let index = yard.kept(INDEX).remove(0);
        yard.wait_for_sync(&index);
        (yard, path, index)
    }

    fn archive(&self, name: &str, entries: &[(u8, &str, &str)]) -> PathBuf {
        let plain = fs::read(tar(entries).path()).unwrap();
        let bytes = if name.ends_with(".zst") { zstd::encode_all(&plain[..], 1).unwrap() } else { plain };
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Takes it for a layer with that diff id.
    fn promised(&self, path: &Path, tar: Digest) -> Result<Archive, ArchiveError> {
        let promised = Promised { tar: Some(tar), blob: None };
        let options = ArchiveOptions { is_layer: true, promised, progress: None };
        open_with(part(path), &options, &self.cache)
    }

    fn place(&self, path: &Path) -> Place {
        self.cache.place(&part(path), Way::Decoded, &ArchiveOptions::default()).unwrap()
    }

    fn open(&self, path: &Path) -> Result<Archive, ArchiveError> {
        open_with(part(path), &ArchiveOptions::default(), &self.cache)
    }

    /// Opens an archive that is as it should be; returns whether it was known.
    fn is_known(&self, path: &Path) -> bool {
        let archive = self.open(path).unwrap();
        let known = archive.is_from_cache();
        let tree = archive.into_tree();
        for name in ["d/f", "link"] {
            assert_eq!(content(&*tree, name), "content");
        }
        let mut names = Vec::new();
        let mut each = |entry: crate::sys::dir::RawEntry<'_>| {
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            std::ops::ControlFlow::Continue(())
        };
        tree.list(tree.root(), &mut each).unwrap();
        assert_eq!(names, ["d", "link"]);
        known
    }

    /// What the files take on the disk.
    fn bytes(&self) -> u64 {
        let all =
            fs::read_dir(self.cache.archives()).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        all.filter(fs::Metadata::is_file).map(|found| found.blocks() * 512).sum()
    }

    /// Waits until the data of an index are noted as being on the disk.
    fn wait_for_sync(&self, index: &Path) {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while fs::read(index).unwrap()[FORM.len() + DIGEST..HEAD] != [0; BOOT] {
            assert!(std::time::Instant::now() < deadline, "it isn't synced");
            std::thread::yield_now();
        }
    }

    fn kept(&self, extension: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(self.cache.archives()).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
    }
}

#[test]
fn an_archive_is_read_once_and_known_in_the_next_mount() {
    let yard = Yard::new();
    for name in ["a.tar", "b.tar.zst"] {
        let path = yard.archive(name, FILES);
        let first = yard.open(&path).unwrap();
        let second = yard.open(&path).unwrap();
        assert_eq!((first.is_from_cache(), second.is_from_cache()), (false, true), "{name}");
        assert_eq!((first.id, first.index.objects.len()), (second.id, second.index.objects.len()));
        assert!(yard.is_known(&path));
        // As a layer it is another tree.
        let options = ArchiveOptions { is_layer: true, ..ArchiveOptions::default() };
        let layer = open_with(part(&path), &options, &yard.cache).unwrap();
        assert!(!layer.is_from_cache());
        assert!(layer.into_tree().lookup(1, b".wh.x").is_ok());
    }
    assert_eq!((yard.kept("index").len(), yard.kept("data").len()), (4, 2));
}

#[test]
fn what_was_promised_is_known_by_its_content_wherever_it_lies() {
    let yard = Yard::new();
    let one = yard.archive("one.tar.zst", FILES);
    let digest = Digest::of(&zstd::decode_all(&fs::read(&one).unwrap()[..]).unwrap());
    let wrong = Digest::of(b"");
    let refused = |path: &Path| match yard.promised(path, wrong) {
        Err(ArchiveError::Digest { found, promised, .. }) => assert_eq!((found, promised), (digest, wrong)),
        other => panic!("{other:?}"),
    };
    refused(&one);
    let known = |path: &Path| yard.promised(path, digest).unwrap().is_from_cache();
    assert!(!known(&one) && known(&one));
    let copy = yard.dir.path().join("copy");
    fs::copy(&one, &copy).unwrap();
    assert!(known(&copy));
    assert_eq!(content(&*yard.promised(&copy, digest).unwrap().into_tree(), "d/f"), "content");
    refused(&one);
    // One that isn't compressed is read where it lies, so another copy of it is looked at.
    let plain = yard.archive("plain.tar", FILES);
    refused(&plain);
    assert!(!known(&plain) && known(&plain));
    fs::copy(&plain, &copy).unwrap();
    assert!(!known(&copy));
    // That it is known without having been looked at doesn't count.
    let options = ArchiveOptions { is_layer: true, ..ArchiveOptions::default() };
    assert!(!open_with(part(&plain), &options, &yard.cache).unwrap().is_from_cache());
}

#[test]
fn an_archive_that_was_changed_is_another_one() {
    let yard = Yard::new();
    for name in ["a.tar", "b.tar.zst"] {
        let path = yard.archive(name, FILES);
        assert!(!yard.is_known(&path));
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        let mut changed = FILES.to_vec();
        changed[1].2 = "CONTENT";
        yard.archive(name, &changed);
        // Its time can be set back.
        File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
        let archive = yard.open(&path).unwrap();
        assert!(!archive.is_from_cache());
        assert_eq!(content(&*archive.into_tree(), "d/f"), "CONTENT");
    }
}

#[test]
fn what_changed_just_now_or_is_small_is_not_kept() {
    let mut yard = Yard::new();
    let path = yard.archive("a.tar.zst", FILES);
    yard.cache.settled = Duration::from_secs(3600);
    assert!(!yard.is_known(&path) && !yard.is_known(&path));
    yard.cache.settled = Duration::ZERO;
    yard.cache.least = 1 << 20;
    assert!(!yard.is_known(&path) && !yard.is_known(&path));
    assert!(!yard.cache.archives().exists());
}

#[test]
fn an_index_that_is_damaged_anywhere_is_made_anew() {
    let (yard, path, index) = Yard::with_synced();
    let good = fs::read(&index).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&index, &bad).unwrap();
        assert!(!yard.is_known(&path), "byte {at}");
        fs::write(&index, &good[..at]).unwrap();
        assert!(!yard.is_known(&path), "cut at {at}");
    }
    assert!(yard.is_known(&path));
}

#[test]
fn data_that_were_changed_or_deleted_are_decoded_anew() {
    let (yard, path) = Yard::with_one();
    let data = yard.kept("data").remove(0);
    let good = fs::read(&data).unwrap();
    let bad = String::from_utf8_lossy(&good).replace("content", "CONTENT").into_bytes();
    assert_eq!(bad.len(), good.len());
    fs::write(&data, &bad).unwrap();
    assert!(!yard.is_known(&path) && yard.is_known(&path));
    fs::remove_file(&data).unwrap();
    std::os::unix::fs::symlink(&path, &data).unwrap();
    assert!(!yard.is_known(&path) && yard.is_known(&path));
}

#[test]
fn data_that_are_changed_while_they_are_mounted_are_an_error() {
    let (yard, path) = Yard::with_one();
    let tree = yard.open(&path).unwrap().into_tree();
    let file = tree.open(crate::archive::tests::at(&*tree, "d/f").unwrap()).unwrap();
    let data = yard.kept("data").remove(0);
    File::options().append(true).open(&data).unwrap().write_all(b"x").unwrap();
    assert_eq!(file.read_at(&mut [0; 7], 0), Err(rustix::io::Errno::IO));
    // The first mount has given them their name.
    let first = yard.open(&path).unwrap();
    assert!(!first.is_from_cache());
    let tree = first.into_tree();
    let file = tree.open(crate::archive::tests::at(&*tree, "d/f").unwrap()).unwrap();
    File::options().append(true).open(&data).unwrap().write_all(b"x").unwrap();
    assert_eq!(file.read_at(&mut [0; 7], 0), Err(rustix::io::Errno::IO));
}

#[test]
fn data_of_another_boot_count_when_they_were_synced() {
    let (yard, path, index) = Yard::with_synced();
    assert!(yard.is_known(&path));
    let file = File::options().write(true).open(&index).unwrap();
    file.write_all_at(&[7; BOOT], (FORM.len() + DIGEST) as u64).unwrap();
    assert!(!yard.is_known(&path), "data that another boot may have lost");
    // Of this boot, and not synced as yet.
    let index = yard.kept("index").remove(0);
    yard.wait_for_sync(&index);
    let file = File::options().write(true).open(&index).unwrap();
    file.write_all_at(&this_boot().unwrap(), (FORM.len() + DIGEST) as u64).unwrap();
    assert!(yard.is_known(&path));
    yard.wait_for_sync(&index);
}

#[test]
fn data_that_another_index_speaks_of_are_not_noted_as_synced() {
    let (yard, path, index) = Yard::with_synced();
    let shelf = Shelf::open(&yard.cache.archives(), false).unwrap();
    let key = index.file_stem().unwrap().to_str().unwrap();
    let file = File::options().read(true).write(true).open(&index).unwrap();
    file.write_all_at(&[7; BOOT], (FORM.len() + DIGEST) as u64).unwrap();
    let data = File::open(index.with_extension(DATA)).unwrap();
    note_synced(&shelf, key, &[0; HEAD], &data).unwrap();
    assert_eq!(fs::read(&index).unwrap()[FORM.len() + DIGEST..HEAD], [7; BOOT]);
    let head = fs::read(&index).unwrap()[..HEAD].to_vec();
    note_synced(&shelf, key, &head, &data).unwrap();
    assert_eq!(fs::read(&index).unwrap()[FORM.len() + DIGEST..HEAD], [0; BOOT]);
    // What can't be synced isn't kept; a pipe can't.
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let head = fs::read(&index).unwrap()[..HEAD].to_vec();
    note_synced(&shelf, key, &head, &pipe.into()).unwrap_err();
    assert!(yard.kept(DATA).is_empty());
    assert!(!yard.is_known(&path));
}

#[test]
fn what_can_not_be_read_now_is_kept_for_another_time() {
    let (yard, path, index) = Yard::with_synced();
    let mut place = yard.place(&path);
    // One that can't be read through.
    place.index = File::options().write(true).open(&index).unwrap();
    assert_eq!(place.load().unwrap_err().raw_os_error(), Some(libc::EBADF));
    drop(place);
    assert!(yard.is_known(&path));
}

#[test]
fn what_can_not_be_both_that_was_promised_is_not_known() {
    let yard = Yard::new();
    let path = yard.archive("plain.tar", FILES);
    let tar = Digest::of(&fs::read(&path).unwrap());
    let open = |blob| {
        let promised = Promised { tar: Some(tar), blob: Some(blob) };
        let options = ArchiveOptions { is_layer: true, promised, progress: None };
        open_with(part(&path), &options, &yard.cache).map(|archive| archive.is_from_cache())
    };
    assert!(matches!((open(tar), open(tar)), (Ok(false), Ok(true))));
    assert!(matches!(open(Digest::of(b"")), Err(ArchiveError::Digest { .. })));
}

#[test]
fn what_was_used_the_longest_ago_makes_room() {
    let yard = Yard::new();
    let paths: Vec<_> = (0..3).map(|at| yard.archive(&format!("{at}.tar.zst"), FILES)).collect();
    for path in &paths {
        assert!(!yard.is_known(path));
    }
    for index in yard.kept("index") {
        yard.wait_for_sync(&index);
    }
    let shelf = Shelf::open(&yard.cache.archives(), false).unwrap();
    let mounted = yard.open(&paths[1]).unwrap().into_tree();
    // The order of their use: 0, 2, 1.
    for (path, age) in [(&paths[0], 300), (&paths[2], 200), (&paths[1], 100)] {
        let place = yard.place(path);
        place.index.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    // Files of others stay, and a name that can't be deleted holds nothing up.
    let of_nothing = "0".repeat(32);
    fs::write(shelf.file(&of_nothing, DATA), [1; 8192]).unwrap();
    fs::write(yard.cache.archives().join("notes.data"), "mine").unwrap();
    fs::create_dir(shelf.file(&"1".repeat(32), DATA)).unwrap();
    let all = yard.bytes() - fs::metadata(yard.cache.archives().join("notes.data")).unwrap().blocks() * 512;
    let names = |yard: &Yard| (yard.kept("index").len(), yard.kept("data").len());
    shelf.shrink(all, 0).unwrap();
    assert_eq!(names(&yard), (3, 6));
    shelf.shrink(all - 1, 0).unwrap();
    assert_eq!(names(&yard), (3, 5), "data without an index go first");
    shelf.shrink(all, 1).unwrap();
    assert!(yard.is_known(&paths[2]) && yard.is_known(&paths[1]));
    assert_eq!(names(&yard), (2, 4));
    // What is being made stays.
    let place = yard.place(&paths[2]);
    shelf.shrink(0, 0).unwrap();
    assert_eq!(names(&yard), (1, 3));
    drop(place);
    assert!(shelf.clear().unwrap() > 0);
    assert_eq!(names(&yard), (0, 2));
    assert_eq!(content(&*mounted, "d/f"), "content");
    assert!(!yard.is_known(&paths[0]));
}

#[test]
fn all_of_it_may_be_deleted_while_it_is_in_use() {
    let yard = Yard::new();
    assert_eq!(yard.cache.clear().unwrap(), 0);
    let path = yard.archive("a.tar.zst", FILES);
    assert!(!yard.is_known(&path));
    let tree = yard.open(&path).unwrap().into_tree();
    assert!(yard.cache.clear().unwrap() > 0);
    assert_eq!(content(&*tree, "d/f"), "content");
    assert!(!yard.is_known(&path) && yard.is_known(&path));
}

#[test]
fn a_cache_of_somebody_else_is_not_used() {
    let yard = Yard::new();
    let path = yard.archive("a.tar.zst", FILES);
    assert!(!yard.is_known(&path) && yard.is_known(&path));
    fs::set_permissions(yard.cache.archives(), fs::Permissions::from_mode(0o770)).unwrap();
    assert!(!yard.is_known(&path));
    assert!(yard.cache.clear().is_err());
    fs::set_permissions(yard.cache.archives(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(yard.is_known(&path));
    // A link leads to what may be anybody's.
    fs::rename(yard.cache.archives(), yard.dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(yard.dir.path().join("elsewhere"), yard.cache.archives()).unwrap();
    assert!(!yard.is_known(&path));
    assert!(yard.cache.clear().is_err());
    assert_eq!(fs::read_dir(yard.dir.path().join("elsewhere")).unwrap().count(), 2);
    fs::remove_file(yard.cache.archives()).unwrap();
    fs::rename(yard.dir.path().join("elsewhere"), yard.cache.archives()).unwrap();
    assert!(yard.is_known(&path));
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(yard.cache.archives(), Some(1), None).unwrap();
        assert!(!yard.is_known(&path));
        assert!(yard.cache.clear().is_err());
    }
}

#[test]
fn of_two_at_once_one_decodes() {
    let yard = Yard::new();
    let path = yard.archive("a.tar.zst", FILES);
    let known: usize = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| usize::from(yard.is_known(&path)))).collect();
        all.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert_eq!(known, 7);
}

#[test]
fn a_body_that_leads_out_of_itself_is_refused() {
    let yard = Yard::new();
    let path = yard.archive("a.tar", FILES);
    assert!(!yard.is_known(&path));
    let index = fs::read(yard.kept("index").remove(0)).unwrap();
    let (mut body, _) = decode(&index).unwrap();
    let sound = |body: &Body<Told>| {
        let told = &body.told;
        let bytes = encode(&Body { source: body.source, data: body.data, told }, [0; BOOT]).unwrap();
        decode(&bytes).is_some()
    };
    assert!(sound(&body));
    let Source::File { identity, is_decoded, part: (at, _), promised } = body.source else {
        panic!("a file")
    };
    let of_size = |size| Source::File { identity, is_decoded, part: (at, size), promised };
    body.source = of_size(512);
    assert!(!sound(&body), "data behind the end");
    body.source = Source::Content(Digest::of(b""));
    assert!(!sound(&body), "decoded, and no data");
    body.source = of_size(1 << 20);
    assert!(sound(&body));
    let promised = Promised { tar: Some(Digest::of(b"")), blob: None };
    let promised = Source::File { identity, is_decoded, part: (at, 1 << 20), promised };
    body.source = promised;
    assert!(!sound(&body), "nothing to check it by");
    let blocks = |size: u64| {
        let mut blocks = Blocking::new(std::io::repeat(0).take(size));
        std::io::copy(&mut blocks, &mut std::io::sink()).unwrap();
        Some(blocks.finish())
    };
    body.told.blocks = blocks(1 << 19);
    assert!(!sound(&body), "only half of it can be checked");
    body.told.blocks = blocks(1 << 20);
    assert!(sound(&body));
    body.source = of_size(1 << 20);
    assert!(!sound(&body), "nobody has promised that");
    body.told.blocks = None;
    body.told.index.objects.push(Object::new(&Attributes::of_implied_directory(), 0, Content::None));
    assert!(!sound(&body), "a directory without a list");
    body.told.index.objects.pop();
    body.told.index.objects.pop();
    assert!(!sound(&body), "a name of nothing");
    for (name, number) in [(&b"a"[..], 0), (b"..", 1), (b"a/b", 1), (b"", 1), (b"a", 1)] {
        let directory = || Object::new(&Attributes::of_implied_directory(), 0, Content::None);
        let names = BTreeMap::from([(name.into(), number)]);
        let directories = BTreeMap::from([(0, names), (1, BTreeMap::new())]);
        let more = (BTreeMap::new(), BTreeSet::new());
        body.told.index = Index::new(vec![directory(), directory()], directories, more).unwrap();
        assert_eq!(sound(&body), name == b"a" && number == 1, "{name:?} is {number}");
    }
}

#[test]
fn the_form_is_the_one_that_the_number_of_the_version_stands_for() {
    let yard = Yard::new();
    let path = yard.archive("a.tar", FILES);
    let mut told = yard.open(&path).unwrap();
    told.index.packed = Some(squashfs::a_map());
    let identity = Identity { device: 1, number: 2, size: 3, modified: (4, 5), changed: (6, 7) };
    let mut blocks = Blocking::new(&b"x"[..]);
    std::io::copy(&mut blocks, &mut std::io::sink()).unwrap();
    let blocks = Some(blocks.finish());
    let points = Some(Points::one());
    let told = Told { index: told.index, id: told.id, left_out: LeftOut::default(), blocks, points };
    let promised = Promised { tar: Some(Digest::of(b"")), blob: None };
    let source = Source::File { identity, is_decoded: true, part: (8, 9), promised };
    let body = |source| encode(&Body { source, data: Some(identity), told: &told }, [9; BOOT]).unwrap();
    let blob = Source::Blob { blob: Digest::of(b""), tar: None, size: 9 };
    let both = [body(source), body(Source::Content(Digest::of(b""))), body(blob)].concat();
    assert_eq!(
        Digest::of(&both).hex(),
        "77b12b32443d2c9029fec359ca16e09e0699c651e02baa9216abf0e5d9eb1b69",
        "another form: raise FORM's last byte, and tell docs/archives.md"
    );
}

#[test]
fn who_is_waited_for_too_long_is_not_waited_for() {
    let (mut yard, path) = Yard::with_one();
    let _held = yard.place(&path);
    yard.cache.patience = Duration::ZERO;
    assert!(!yard.is_known(&path));
}
