//! Random trees go to tars and back, and their tars, damaged, do no harm.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use super::*;

/// Returns how many random trees: `UNIONMOUNT_CASES`, else as many as a test run has time for.
fn cases() -> u32 {
    std::env::var("UNIONMOUNT_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

/// One object of a random tree.
#[derive(Debug, Clone)]
enum Object {
    File { size: usize, sparse: bool },
    Directory,
    Symlink(String),
    Hardlink(usize),
    Fifo,
    Device(u32, u32),
    Whiteout,
    Opaque,
}

#[derive(Debug, Clone)]
struct Made {
    parent: usize,
    name: String,
    object: Object,
    mode: u32,
    owner: (u32, u32),
    time: (i64, i64),
    xattr: Option<Vec<u8>>,
}

fn made() -> impl Strategy<Value = Made> {
    let object = prop_oneof![
        4 => (0usize..3000, any::<bool>()).prop_map(|(size, sparse)| Object::File { size, sparse }),
        4 => Just(Object::Directory),
        1 => "[a-z/.]{1,150}".prop_map(Object::Symlink),
        1 => (0usize..20).prop_map(Object::Hardlink),
        1 => Just(Object::Fifo),
        1 => (1u32..300, 0u32..300).prop_map(|(major, minor)| Object::Device(major, minor)),
        1 => Just(Object::Whiteout),
        1 => Just(Object::Opaque),
    ];
    let name = prop_oneof![3 => "[a-c]", 1 => "[ -.0-~]{1,40}", 1 => "[x]{90,120}", 1 => "[é\n]{1,5}"];
    let time = (-10_000_000_000i64..20_000_000_000, prop_oneof![Just(0i64), 0i64..1_000_000_000]);
    (
        0usize..20,
        name,
        object,
        0u32..0o10000,
        (0u32..200_000, 0u32..200_000),
        time,
        proptest::option::of(prop::collection::vec(any::<u8>(), 0..100)),
    )
        .prop_map(|(parent, name, object, mode, owner, time, xattr)| Made {
            parent,
            name,
            object,
            mode,
            owner,
            time,
            xattr,
        })
}

/// Builds a tree by plain system calls; what can't be is left out.
fn build(root: &Path, tree: &[Made]) {
    let (mut dirs, mut files): (Vec<PathBuf>, Vec<PathBuf>) = (vec![root.to_owned()], Vec::new());
    let mut all = Vec::new();
    // Whiteouts below an opaque directory hide nothing and are left out by `apply`.
    let opaque = tree.iter().any(|made| matches!(made.object, Object::Opaque));
    for made in tree {
        let parent = &dirs[made.parent % dirs.len()];
        if made.name.starts_with(".wh.") || [".", ".."].contains(&&made.name[..]) {
            continue;
        }
        let path = parent.join(&made.name);
        if fs::symlink_metadata(&path).is_ok() || opaque && matches!(made.object, Object::Whiteout) {
            continue;
        }
        if !make(&path, &made.object, &files) {
            continue;
        }
        match made.object {
            Object::File { .. } => files.push(path.clone()),
            Object::Directory => dirs.push(path.clone()),
            _ => {}
        }
        all.push((path, made));
    }
    all.iter().rev().for_each(|(path, made)| set_attributes(path, made));
    fs::set_permissions(root, fs::Permissions::from_mode(0o751)).unwrap();
}

/// Makes an object. Returns whether it has attributes of its own.
fn make(path: &Path, object: &Object, files: &[PathBuf]) -> bool {
    let node = |kind, rdev| mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), rdev).unwrap();
    match object {
        Object::File { size, sparse: true } => {
            let file = fs::File::create(path).unwrap();
            file.set_len((*size as u64) << 12).unwrap();
            file.write_at(b"end", *size as u64 * 2000).unwrap();
        }
        Object::File { size, sparse: false } => fs::write(path, vec![b'x'; *size]).unwrap(),
        Object::Directory => fs::create_dir(path).unwrap(),
        Object::Symlink(target) => symlink(target, path).unwrap(),
        Object::Hardlink(_) if files.is_empty() => return false,
        Object::Hardlink(at) => {
            fs::hard_link(&files[at % files.len()], path).unwrap();
            return false;
        }
        Object::Fifo => node(FileType::Fifo, 0),
        Object::Device(major, minor) => {
            node(FileType::BlockDevice, rustix::fs::makedev(*major, *minor));
        }
        Object::Whiteout => {
            node(FileType::CharacterDevice, 0);
            return false;
        }
        Object::Opaque => {
            let parent = path.parent().unwrap();
            lsetxattr(parent, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
            return false;
        }
    }
    true
}

fn set_attributes(path: &Path, made: &Made) {
    std::os::unix::fs::lchown(path, Some(made.owner.0), Some(made.owner.1)).unwrap();
    let link = fs::symlink_metadata(path).unwrap().is_symlink();
    if !link {
        fs::set_permissions(path, fs::Permissions::from_mode(made.mode)).unwrap();
    }
    if let Some(value) = &made.xattr {
        lsetxattr(path, "trusted.test", value, XattrFlags::empty()).unwrap();
    }
    let time = rustix::fs::Timespec { tv_sec: made.time.0, tv_nsec: made.time.1 as _ };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trees_go_to_tars_and_back_byte_for_byte(tree in prop::collection::vec(made(), 0..30)) {
        if !is_root() {
            return Ok(());
        }
        let bench = Bench::new();
        build(&bench.root(), &tree);
        let first = write(&bench.root(), Ownership::Real);
        for ownership in [Ownership::Real, Ownership::OverrideStat] {
            let again = Bench::new();
            let root = open(&again.root());
            apply(&first[..], root.as_fd(), &ApplyOptions { ownership, ..options() }).unwrap();
            let second = write(&again.root(), ownership);
            let third = Bench::new();
            apply(&second[..], open(&third.root()).as_fd(), &ApplyOptions { ownership, ..options() }).unwrap();
            prop_assert!(second == write(&third.root(), ownership), "{ownership:?}: not stable");
            prop_assert!(first == second, "{ownership:?}: {} and {} bytes", first.len(), second.len());
        }
    }

    #[test]
    fn damaged_tars_neither_escape_nor_panic(
        tree in prop::collection::vec(made(), 1..12),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..8),
    ) {
        if !is_root() {
            return Ok(());
        }
        let source = Bench::new();
        build(&source.root(), &tree);
        let mut tar = write(&source.root(), Ownership::Real);
        for (at, byte, mend) in changes {
            let at = at.index(tar.len());
            tar[at] = byte;
            // With the checksum right again, the damage gets further.
            let block = at / 512 * 512;
            if mend && tar.len() >= block + 512 {
                let header = &mut tar[block..block + 512];
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let limits = Limits { entries: 1000, bytes: 1 << 30 };
        for ownership in [Ownership::Real, Ownership::OverrideStat] {
            let bench = Bench::new();
            let _either = apply(&tar[..], open(&bench.root()).as_fd(), &ApplyOptions { ownership, limits });
            prop_assert_eq!(fs::read(bench.top.path().join("outside")).unwrap(), b"untouched");
            prop_assert_eq!(fs::read_dir(bench.top.path()).unwrap().count(), 2);
        }
    }
}
