//! `unionmount seal`: what an upper left below is its own.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use support::cli::Place;
use support::{LoopFilesystem, Scratch, read_xattrs};

use super::{content, for_writing};

const SIZE: usize = 4 << 20;

/// Lowers `a` (with `large` and `d/moved`) and `b`, an upper on an ext4 with a journal, of which `a/large` is half-copied and the
/// other is a metacopy with another name.
fn half_copied(place: &Place, disk: &LoopFilesystem) -> String {
    let upper = disk.path().join("up");
    fs::create_dir(&upper).unwrap();
    place.mkdir("a/d");
    fs::write(place.at("a/large"), content(SIZE, 1)).unwrap();
    fs::write(place.at("a/small"), content(5000, 3)).unwrap();
    for name in ["moved", "untouched", "setuid", "names"] {
        fs::write(place.at("a/d").join(name), content(SIZE, 2)).unwrap();
    }
    fs::set_permissions(place.at("a/d/setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(place.at("a/d/names"), place.at("a/too")).unwrap();
    let upper = upper.display().to_string();
    place.unionmount(&["--lower", "a:b", "--upper", &upper, "-o", "lazy=keep", "mnt"]).ok();
    for_writing(place.at("mnt/large")).write_all_at(b"here", 1_000_000).unwrap();
    fs::set_permissions(place.at("mnt/d/moved"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::rename(place.at("mnt/d/moved"), place.at("mnt/d/to")).unwrap();
    upper
}

fn expected() -> Vec<u8> {
    let mut bytes = content(SIZE, 1);
    bytes[1_000_000..1_000_004].copy_from_slice(b"here");
    bytes
}

#[test]
fn an_upper_needs_no_lower_for_its_files_any_more() {
    support::needs_root!();
    let (place, scratch) = (Place::new(), Scratch::new());
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 128 << 20);
    let upper = half_copied(&place, &disk);
    // Who has it mounted keeps it.
    place.unionmount(&["seal", &upper, "a", "b"]).refused(1, &["in use"]);
    place.unionmount(&["umount", "mnt"]).ok();

    let told = place.unionmount(&["seal", "--dry-run", &upper, "a", "b"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.out.contains("4.00 MiB  /large\n") && told.out.contains("/d/to\n"), "{told:?}");
    assert!(told.out.ends_with("2 files, 8.00 MiB to be sealed\n"), "{told:?}");
    let marks = |name: &str| read_xattrs(&disk.path().join("up").join(name)).unwrap();
    assert!(marks("large").contains_key(&b"trusted.overlay.unionmount.half"[..]), "nothing was changed");

    let told = place.unionmount(&["seal", "--lower", "a:b", "--upper", &upper]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(told.out, "2 files, 8.00 MiB sealed\n");
    for name in ["large", "d/to"] {
        let left: Vec<_> =
            marks(name).into_keys().filter(|mark| mark.starts_with(b"trusted.overlay.")).collect();
        assert!(left.iter().all(|mark| mark.ends_with(b".origin")), "{name}: {left:?}");
    }
    let read = |name: &str| fs::read(disk.path().join("up").join(name)).unwrap();
    assert!(read("large") == expected() && read("d/to") == content(SIZE, 2));
    let mode = fs::metadata(disk.path().join("up/d/to")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let told = place.unionmount(&["seal", &upper, "a", "b"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(told.out, "0 files, 0 B sealed\n");
}

/// Shows where the data of files are of which only some blocks, or none, are in the upper.
#[test]
fn what_lies_below_is_told() {
    support::needs_root!();
    let (place, scratch) = (Place::new(), Scratch::new());
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 128 << 20);
    let upper = half_copied(&place, &disk);
    let told = |args: &[&str]| place.unionmount(args).ok().out;
    let large = told(&["explain", "mnt/large"]);
    let block = block_of(&disk);
    let all = indicatif::HumanCount((SIZE / block) as u64);
    assert!(
        large.contains(&format!("shown; metadata, 1 of {all} blocks; the rest from layer 1 (a)")),
        "{large}"
    );
    assert!(large.contains("blocks that it touches come up from layer 1 (a)"), "{large}");
    let moved = told(&["explain", "mnt/d/to"]);
    assert!(moved.contains("shown; metadata; its data are in layer 1 (a)"), "{moved}");
    assert!(moved.contains("blocks that it touches come up from layer 1 (a)"), "{moved}");
    let untouched = told(&["explain", "mnt/d/untouched"]);
    assert!(
        untouched.contains("write   copies up the blocks that it touches from layer 1 (a)\n"),
        "{untouched}"
    );
    for (whole, size) in [("small", "4.88 KiB"), ("d/setuid", "4.00 MiB"), ("d/names", "4.00 MiB")] {
        let whole = told(&["explain", &format!("mnt/{whole}")]);
        assert!(whole.contains(&format!("write   copies up {size} from layer 1 (a)")), "{whole}");
    }
    let rename = "rename  copies up its metadata; the data stay in layer 1 (a); a whiteout remains";
    assert!(untouched.contains(rename), "{untouched}");
    let json = told(&["explain", "--json", "mnt/d/untouched"]);
    assert!(json.replace(char::is_whitespace, "").contains(r#""copy_up":{"from":1,"bytes":0}"#), "{json}");
    let json = told(&["explain", "--json", "mnt/large"]);
    let blocks = format!(r#""blocks":{{"own":1,"all":{}}}"#, SIZE / block);
    assert!(json.replace(char::is_whitespace, "").contains(&blocks), "{json}");
    let status = told(&["status", "mnt"]);
    assert!(
        status.contains(&format!("1 file half-copied: 1 of {all} blocks, 4.00 MiB saved; 0 sealed\n")),
        "{status}"
    );
    assert!(status.lines().any(|line| line.contains("upper") && line.contains(" on disk")), "{status}");
    assert!(!status.contains("objects, 0 B"), "a block came up: {status}");
    place.unionmount(&["umount", "mnt"]).ok();
    let offline = told(&["explain", "--lower", "a:b", "--upper", &upper, "large"]);
    assert!(offline.contains(&format!("metadata, 1 of {all} blocks")), "{offline}");
}

fn block_of(disk: &LoopFilesystem) -> usize {
    rustix::fs::statvfs(disk.path()).unwrap().f_bsize as usize
}

/// Follows what comes up, and what is sealed, as it happens.
#[test]
fn copies_of_blocks_and_sealing_are_traced() {
    support::needs_root!();
    let (place, scratch) = (Place::new(), Scratch::new());
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 128 << 20);
    half_copied(&place, &disk);
    let bin = place.bin().display().to_string();
    let listening =
        format!("until {bin} status --json --count 0 mnt | grep -q '\"listeners\":1'; do :; done");
    let script = format!(
        "{bin} trace --json --filter copy-range,seal mnt > told & trace=$!
         {listening}
         printf x | dd of=mnt/large bs=1 seek=8191 conv=notrunc status=none
         printf x | dd of=mnt/large bs=1 seek=8191 conv=notrunc status=none
         fallocate -o 0 -l 4096 mnt/large
         n=0; until grep -q seal told || [ $n -gt 5000 ]; do n=$((n + 1)); done
         kill $trace"
    );
    place.sh(&script);
    let told = fs::read_to_string(place.at("told")).unwrap();
    let lines: Vec<serde_json::Value> =
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let field = |at: usize, name: &str| lines[at][name].clone();
    let block = block_of(&disk);
    assert_eq!(
        (field(0, "event"), field(0, "offset"), field(0, "bytes"), field(0, "layer")),
        ("copy-range".into(), (8192 - block).into(), block.into(), 1.into())
    );
    assert_eq!(
        (field(1, "event"), field(1, "path"), field(1, "bytes")),
        ("seal".into(), "/large".into(), SIZE.into())
    );
    assert_eq!(lines.len(), 2, "{told}");
    place.unionmount(&["umount", "mnt"]).ok();
}

#[test]
fn a_file_whose_lower_was_changed_is_named_and_stays() {
    support::needs_root!();
    let (place, scratch) = (Place::new(), Scratch::new());
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 128 << 20);
    let upper = half_copied(&place, &disk);
    place.unionmount(&["umount", "mnt"]).ok();
    for_writing(place.at("a/large")).write_all_at(b"changed", 0).unwrap();
    let told = place.unionmount(&["seal", &upper, "a", "b"]);
    assert!(told.out.starts_with("/large: can't be sealed: "), "{told:?}");
    assert!(told.out.ends_with("\n1 file, 4.00 MiB sealed\n"), "{told:?}");
    told.refused(1, &["1 file can't be sealed, and is as it was"]);
    let marks = read_xattrs(&disk.path().join("up/large")).unwrap();
    assert!(marks.contains_key(&b"trusted.overlay.unionmount.half"[..]));
}

#[test]
fn a_file_with_two_names_is_one_file() {
    support::needs_root!();
    let (place, scratch) = (Place::new(), Scratch::new());
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", 64 << 20);
    let upper = disk.path().join("up").display().to_string();
    fs::create_dir(&upper).unwrap();
    fs::write(place.at("a/f"), content(SIZE, 1)).unwrap();
    fs::hard_link(place.at("a/f"), place.at("a/g")).unwrap();
    place.unionmount(&["--lower", "a", "--upper", &upper, "-o", "metacopy=on", "mnt"]).ok();
    place.sh("chmod 640 mnt/f && mv mnt/g mnt/h").ok();
    place.unionmount(&["umount", "mnt"]).ok();
    let told = place.unionmount(&["seal", "--dry-run", &upper, "a"]);
    assert!(told.out.contains("  /f\n") && told.out.contains("  /h\n"), "{told:?}");
    assert!(told.out.ends_with("\n1 file, 4.00 MiB to be sealed\n"), "{told:?}");
    assert_eq!(place.unionmount(&["seal", &upper, "a"]).ok().out, "1 file, 4.00 MiB sealed\n");
}

/// An ordinary user seals what is his; root, who doesn't believe his marks, says so in place of taking them for none.
#[test]
fn a_users_upper_is_sealed_by_him_or_with_its_option() {
    support::needs_root!();
    for way in ["./unionmount seal up a", "root", "root --userxattr"] {
        let place = Place::of_user();
        fs::write(place.at("a/large"), content(SIZE, 1)).unwrap();
        let (uid, gid) = support::cli::user();
        std::os::unix::fs::chown(place.at("a/large"), Some(uid), Some(gid)).unwrap();
        place.sh_as_user("./unionmount --lower a --upper up -o metacopy=on mnt && chmod 640 mnt/large && ./unionmount umount mnt").ok();
        let is_empty = || fs::metadata(place.at("up/large")).unwrap().blocks() <= 16;
        assert!(is_empty(), "its data are below");
        match way {
            "root" => {
                let told = place.unionmount(&["seal", "up", "a"]);
                assert!(
                    told.out.contains("/large: can't be sealed: ") && told.out.contains("--userxattr"),
                    "{told:?}"
                );
                told.refused(1, &["1 file"]);
                assert!(is_empty());
                continue;
            }
            "root --userxattr" => drop(place.unionmount(&["seal", "--userxattr", "up", "a"]).ok()),
            as_user => drop(place.sh_as_user(as_user).ok()),
        }
        assert!(fs::read(place.at("up/large")).unwrap() == content(SIZE, 1), "{way}");
    }
}

#[test]
fn what_is_named_wrongly_is_told() {
    let place = Place::new();
    // Neither the store of this machine nor none at all has to do with it.
    let own = place.at("store");
    place.unionmount(&["seal"]).refused(2, &["<CONTAINER|UPPER>"]);
    place.mkdir("up");
    let root = own.to_str().unwrap();
    place.unionmount(&["seal", "--root", root, "up"]).refused(1, &["unionmount seal up LOWER"]);
    place
        .unionmount(&["seal", "--root", root, "nobody"])
        .refused(1, &["nobody", "neither a container nor a directory"]);
    place.unionmount(&["seal", "up", "missing"]).refused(1, &["missing"]);
    assert!(fs::read_dir(place.at("up")).unwrap().next().is_none() && !own.exists());
}
