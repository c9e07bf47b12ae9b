#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::archive::tests::{content, tar};
use crate::archive::{Archive, ArchiveError, ArchiveOptions, open_with};

const FILES: &[(u8, &str, &str)] =
    &[(b'5', "d", ""), (b'0', "d/f", "content"), (b'1', "link", "d/f"), (b'0', ".wh.x", "")];

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
            written_back: Duration::from_secs(3600),
            share: None,
        };
        Yard { dir, cache }
    }

    fn archive(&self, name: &str, entries: &[(u8, &str, &str)]) -> PathBuf {
        let plain = fs::read(tar(entries).path()).unwrap();
        let bytes = if name.ends_with(".zst") { zstd::encode_all(&plain[..], 1).unwrap() } else { plain };
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn open(&self, path: &Path) -> Result<Archive, ArchiveError> {
        open_with(File::open(path).unwrap(), path, ArchiveOptions::default(), &self.cache)
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
        let options = ArchiveOptions { is_layer: true };
        let layer = open_with(File::open(&path).unwrap(), &path, options, &yard.cache).unwrap();
        assert!(!layer.is_from_cache());
        assert!(layer.into_tree().lookup(1, b".wh.x").is_ok());
    }
    assert_eq!((yard.kept("index").len(), yard.kept("data").len()), (4, 2));
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
    let yard = Yard::new();
    let path = yard.archive("a.tar.zst", FILES);
    assert!(!yard.is_known(&path));
    let index = yard.kept("index").remove(0);
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
    let yard = Yard::new();
    let path = yard.archive("a.tar.zst", FILES);
    assert!(!yard.is_known(&path));
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
    let yard = Yard::new();
    let path = yard.archive("a.tar.zst", FILES);
    assert!(!yard.is_known(&path));
    let tree = yard.open(&path).unwrap().into_tree();
    let file = tree.open(crate::archive::tests::at(&*tree, "d/f").unwrap()).unwrap();
    let data = yard.kept("data").remove(0);
    File::options().append(true).open(&data).unwrap().write_all(b"x").unwrap();
    assert_eq!(file.read_at(&mut [0; 7], 0), Err(rustix::io::Errno::IO));
}

#[test]
fn data_of_another_boot_count_when_they_were_synced() {
    let mut yard = Yard::new();
    let path = yard.archive("a.tar.zst", FILES);
    assert!(!yard.is_known(&path));
    let index = yard.kept("index").remove(0);
    let boot = |bytes: &[u8; BOOT]| {
        let file = File::options().write(true).open(&index).unwrap();
        file.write_all_at(bytes, (FORM.len() + DIGEST) as u64).unwrap();
    };
    boot(&[7; BOOT]);
    assert!(!yard.is_known(&path));
    yard.cache.written_back = Duration::ZERO;
    assert!(yard.is_known(&path));
    let bytes = fs::read(&index).unwrap();
    assert_eq!(bytes[FORM.len() + DIGEST..HEAD], [0; BOOT]);
    assert!(yard.is_known(&path));
}

#[test]
fn what_was_used_the_longest_ago_makes_room() {
    let yard = Yard::new();
    let paths: Vec<_> = (0..3).map(|at| yard.archive(&format!("{at}.tar.zst"), FILES)).collect();
    for path in &paths {
        assert!(!yard.is_known(path));
    }
    let mounted = yard.open(&paths[1]).unwrap().into_tree();
    // The order of their use: 0, 2, 1.
    for (path, age) in [(&paths[0], 300), (&paths[2], 200), (&paths[1], 100)] {
        let place = yard.cache.place(&File::open(path).unwrap(), false).unwrap();
        place.index.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    fs::write(yard.cache.archives().join("0.data"), [1; 8192]).unwrap();
    let all: u64 = kept(&yard.cache.archives()).unwrap().iter().map(|kept| kept.bytes).sum();
    let names = |yard: &Yard| (yard.kept("index").len(), yard.kept("data").len());
    yard.cache.shrink(all, 0).unwrap();
    assert_eq!(names(&yard), (3, 4));
    yard.cache.shrink(all - 1, 0).unwrap();
    assert_eq!(names(&yard), (3, 3), "data without an index go first");
    yard.cache.shrink(all, 1).unwrap();
    assert!(yard.is_known(&paths[2]) && yard.is_known(&paths[1]));
    yard.cache.shrink(0, 0).unwrap();
    assert_eq!(names(&yard), (0, 0));
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
        let bytes = encode(&Body { archive: body.archive, data: body.data, told }, [0; BOOT]).unwrap();
        decode(&bytes).is_some()
    };
    assert!(sound(&body));
    body.archive.size = 512;
    assert!(!sound(&body), "data behind the end");
    body.archive.size = 1 << 20;
    body.told.index.objects.pop();
    assert!(!sound(&body), "a name of nothing");
}
