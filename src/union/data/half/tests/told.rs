//! What is told of half-copied files, and of files that can't be half-copied.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::fs::FallocateFlags;

use super::{BLOCK, SIZE, build, find, open};
use crate::union::change::part::Part;
use crate::union::data::file::Write;
use crate::union::escaped_path::EscapedPath;
use crate::union::events::{EventKind, Filter, Heard, Listening};

fn heard(listening: &mut Listening) -> Vec<EventKind> {
    let mut told = Vec::new();
    while let Heard::Event(event) = listening.hear(Duration::ZERO) {
        told.push(event.what);
    }
    told
}

fn path(path: &str) -> EscapedPath {
    EscapedPath::from(path.as_bytes())
}

/// What a program has copied in one call is no read and no write, whichever way it was done.
#[test]
fn a_copy_to_or_from_a_half_copied_file_is_told_as_one_copy() {
    let bed = build();
    let union = open(&bed);
    let (a, b) = (find(&union, "d/a"), find(&union, "d/b"));
    union.write(&a, 100_000, b"!", Write::default()).unwrap();
    let mut listening = union.events.listen(Filter::default(), 100);
    // Nothing is copied from the end on.
    assert_eq!(union.copy_file_range((&b, SIZE as u64), (&a, 2 * BLOCK + 200), 50).unwrap(), 0);
    union.copy_file_range((&b, 5), (&a, 2 * BLOCK), 100).unwrap();
    union.copy_file_range((&a, 7), (&a, 2 * BLOCK + 200), 50).unwrap();
    union.fallocate(&a, FallocateFlags::ZERO_RANGE, (2 * BLOCK, 10)).unwrap();
    // A part of each of two blocks.
    union.fallocate(&a, FallocateFlags::ZERO_RANGE, (20 * BLOCK - 10, 20)).unwrap();
    let copy = |from: &str, from_offset, offset, bytes| EventKind::Copy {
        path: path("/d/a"),
        offset,
        bytes,
        from: path(from),
        from_offset,
    };
    assert_eq!(
        heard(&mut listening),
        [
            EventKind::CopyRange { path: path("/d/a"), offset: 2 * BLOCK, bytes: BLOCK, layer: Some(1) },
            copy("/d/b", 5, 2 * BLOCK, 100),
            copy("/d/a", 7, 2 * BLOCK + 200, 50),
            EventKind::Allocate { path: path("/d/a"), offset: 2 * BLOCK, bytes: 10, zeroes: true },
            EventKind::CopyRange { path: path("/d/a"), offset: 19 * BLOCK, bytes: 2 * BLOCK, layer: Some(1) },
            EventKind::Allocate { path: path("/d/a"), offset: 20 * BLOCK - 10, bytes: 20, zeroes: true },
        ]
    );
    // With that of the first write.
    assert_eq!(union.bytes_moved(), 4 * BLOCK);
}

/// Takes files of which all data come up at the first byte, for blocks of them can't be told from those below.
#[test]
fn who_writes_to_a_large_file_that_cannot_be_half_copied_hears_of_its_copy() {
    let bed = build();
    for name in ["names", "setuid"] {
        fs::write(bed.at("0").join(name), vec![7; 2 << 20]).unwrap();
    }
    fs::hard_link(bed.at("0/names"), bed.at("0/too")).unwrap();
    fs::set_permissions(bed.at("0/setuid"), PermissionsExt::from_mode(0o4755)).unwrap();
    let union = open(&bed);
    for name in ["names", "setuid"] {
        let node = find(&union, name);
        let is_setuid = name == "setuid";
        assert_eq!(union.copies_much(&node, Part::Metadata), is_setuid, "{name}");
        assert!(union.copies_much(&node, Part::Written), "{name} keeps the thread that hears requests");
        let mut listening = union.events.listen(Filter::default(), 100);
        union.write(&node, 5, b"!", Write::default()).unwrap();
        let told = heard(&mut listening);
        let begins =
            EventKind::CopyUpBegins { path: path(&format!("/{name}")), bytes: 2 << 20, layer: Some(1) };
        assert!(told.contains(&begins), "{name}: {told:?}");
        assert!(union.half(&node).unwrap().is_none());
        assert!(!union.copies_much(&node, Part::Written), "{name} is there");
    }
    let node = find(&union, "d/a");
    assert!(!union.copies_much(&node, Part::Written));
    union.shut_down();
}
