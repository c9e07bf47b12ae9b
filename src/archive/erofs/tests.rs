//! Images that are made here, byte by byte, since nobody else makes such.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::superblock::crc32c;
use super::*;
use crate::archive::tests::{at, content};
use crate::archive::{ArchiveOptions, open};
use crate::union::stack::tree::LayerTree;

/// The logarithm of the size of a block, and that.
const LOG: u8 = 9;
const BLOCK: usize = 1 << LOG;
/// The block from which inodes are counted, and the one behind the last.
const INODES: usize = 4;
const END: usize = 32;
/// The block of shared attributes.
const SHARED: usize = 40;
/// Blocks behind [`END`], of which each holds its own number.
const BLOCKS: usize = 64;

const DIRECTORY: u16 = 0o040_755;
const FILE: u16 = 0o100_644;
const HOLE: u32 = u32::MAX;

/// An image with room for inodes at every other number, of which the first is the root's.
struct Image(Vec<u8>);

/// What an inode says.
struct Node<'a> {
    mode: u16,
    layout: u16,
    size: u64,
    what: u32,
    nlink: u32,
    /// What extended attributes take, counted as there.
    attributes: u16,
    /// What follows the inode.
    rest: &'a [u8],
}

const NODE: Node<'_> =
    Node { mode: FILE, layout: 2, size: 0, what: HOLE, nlink: 1, attributes: 0, rest: &[] };

impl Image {
    fn new() -> Image {
        let mut image = Image(vec![0; BLOCKS * BLOCK]);
        for block in END..BLOCKS {
            image.0[block * BLOCK..][..BLOCK].fill(block as u8);
        }
        let blocks = (BLOCKS as u32).to_le_bytes();
        for (at, bytes) in [
            (0, &0xe0f5_e1e2_u32.to_le_bytes()[..]),
            (12, &[LOG]),
            (16, &9_u64.to_le_bytes()),
            (24, &1_700_000_000_u64.to_le_bytes()),
            (36, &blocks),
            (40, &(INODES as u32).to_le_bytes()),
            (44, &(SHARED as u32).to_le_bytes()),
        ] {
            image.put(1024 + at, bytes);
        }
        image
    }

    /// An image with one file, `f`.
    fn of(node: &Node<'_>) -> Image {
        let mut image = Image::new();
        image.directory(0, 0, &[(b"f", 20)]);
        image.node(20, node);
        image
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Image {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Writes an inode, a long one.
    fn node(&mut self, number: usize, node: &Node<'_>) {
        let at = INODES * BLOCK + number * 32;
        let mut bytes = Vec::new();
        for word in [node.layout << 1 | 1, node.attributes, node.mode, 0] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(node.size.to_le_bytes());
        for word in [node.what, 0, 1, 2] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(5_u64.to_le_bytes());
        for word in [7, node.nlink, 0, 0, 0, 0] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(node.rest);
        self.put(at, &bytes);
    }

    /// Writes a directory, whose names follow its inode.
    fn directory(&mut self, number: usize, above: usize, entries: &[(&[u8], usize)]) {
        let dots: [(&[u8], usize); 2] = [(b".", number), (b"..", above)];
        let rest = listing(&[&dots, entries].concat());
        self.node(number, &Node { mode: DIRECTORY, size: rest.len() as u64, rest: &rest, ..NODE });
    }

    fn part(&self) -> (tempfile::NamedTempFile, Part) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&self.0).unwrap();
        let part = Part::whole(file.reopen().unwrap(), Path::new("image")).unwrap();
        (file, part)
    }

    fn tree(&self) -> Arc<dyn LayerTree> {
        let (file, _) = self.part();
        open(file.reopen().unwrap(), file.path(), &ArchiveOptions::default()).unwrap().into_tree()
    }

    /// What is wrong with it.
    fn said(&self) -> String {
        self.said_within(MOST)
    }

    fn said_within(&self, memory: u64) -> String {
        let (_file, part) = self.part();
        let walked = read_within(&part, false, &|_| (), Budget::of(memory));
        said(walked.map(|_| ()).unwrap_err(), &part, FORMAT).to_string()
    }
}

/// A block of a directory.
fn listing(entries: &[(&[u8], usize)]) -> Vec<u8> {
    let (mut bytes, mut at) = (Vec::new(), entries.len() * 12);
    for (name, number) in entries {
        bytes.extend((*number as u64).to_le_bytes());
        bytes.extend((at as u16).to_le_bytes());
        bytes.extend([0, 0]);
        at += name.len();
    }
    entries.iter().for_each(|(name, _)| bytes.extend(*name));
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// What extended attributes begin with, and the places of shared ones.
fn head(shared: &[u32]) -> Vec<u8> {
    let mut bytes = words(&[0, shared.len() as u32, 0]);
    bytes.extend(words(shared));
    bytes
}

fn attribute(index: u8, name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![name.len() as u8, index];
    bytes.extend((value.len() as u16).to_le_bytes());
    bytes.extend(name.bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An image whose file has extended attributes, as they are.
fn with_attributes(bytes: &[u8]) -> Image {
    let attributes = ((bytes.len() - 12) / 4 + 1) as u16;
    Image::of(&Node { attributes, rest: bytes, ..NODE })
}

#[test]
fn chunks_lie_anywhere_and_some_nowhere() {
    let size = 5 * BLOCK as u64 + 10;
    let plain = words(&[50, 51, HOLE, 40, 33, 34]);
    let indexes: Vec<u8> = [50, 51, HOLE, 40, 33, 34].iter().flat_map(|&block| words(&[0, block])).collect();
    for (what, rest) in [(0, plain), (0x20, indexes)] {
        let tree = Image::of(&Node { layout: 4, size, what, rest: &rest, ..NODE }).tree();
        let found = content(&*tree, "f").into_bytes();
        let expected: Vec<u8> = [50, 51, 0, 40, 33, 34].iter().flat_map(|&byte| [byte; BLOCK]).collect();
        assert!(found == expected[..size as usize], "{what:#x}");
        let number = at(&*tree, "f").unwrap();
        let file = tree.open(number).unwrap();
        let (hole, end) = (2 * BLOCK as u64, 3 * BLOCK as u64);
        assert_eq!(file.next_data(1), Ok(Some(1..hole)), "those that follow each other are one");
        assert_eq!(file.next_data(hole + 5), Ok(Some(end..end + BLOCK as u64)));
        assert_eq!(tree.stat(number).unwrap().blocks, (size - BLOCK as u64).div_ceil(512));
    }
    // Chunks of two blocks, the last of which ends with the file.
    let rest = words(&[50, 33, HOLE]);
    let tree =
        Image::of(&Node { layout: 4, size: 4 * BLOCK as u64 + 1, what: 1, rest: &rest, ..NODE }).tree();
    let expected: Vec<u8> = [50, 51, 33, 34].iter().flat_map(|&byte| [byte; BLOCK]).chain([0]).collect();
    assert_eq!(content(&*tree, "f").into_bytes(), expected);
}

#[test]
fn data_that_are_laid_out_wrongly_are_refused() {
    let block = BLOCK as u64;
    let map = words(&[50, 51]);
    let on_device = words(&[1 << 16, 50]);
    for (node, said) in [
        (
            Node { layout: 0, size: block + 1, what: BLOCKS as u32 - 1, ..NODE },
            "f: its data lie behind the image's end",
        ),
        (Node { layout: 0, size: 1 << 62, what: 40, ..NODE }, "f: its data lie behind the image's end"),
        (Node { layout: 0, size: 1 << 63, what: 40, ..NODE }, "f: it tells of 9223372036854775808 bytes"),
        (Node { size: block, what: 40, ..NODE }, "f: the end of its data goes beyond the block of its inode"),
        (Node { layout: 1, size: 5, ..NODE }, "f: is compressed"),
        (Node { layout: 3, size: 5, ..NODE }, "mkfs.erofs without -z"),
        (Node { layout: 5, size: 5, ..NODE }, "f: its data are laid out in the unknown way 5"),
        (Node { layout: 4, size: 5, what: 0x40, ..NODE }, "f: its chunks are of the unknown form 0x40"),
        (
            Node { layout: 4, size: 5, what: 0x20, rest: &on_device, ..NODE },
            "f: its data lie on the device 1",
        ),
        (
            Node { layout: 4, size: 1 << 40, what: 0, rest: &map, ..NODE },
            "f: with it listings, links and maps of chunks are more",
        ),
        (
            Node { layout: 4, size: 1 << 14, what: 31, rest: &words(&[BLOCKS as u32]), ..NODE },
            "behind the image's end",
        ),
        (Node { mode: 0o120_777, size: 5000, ..NODE }, "f: it is a symbolic link of 5000 bytes"),
        (Node { mode: 0o120_777, size: 2, rest: b"a\0", ..NODE }, "to what no path names"),
        (Node { mode: 0o030_000, ..NODE }, "f: its inode is of the mode 30000"),
    ] {
        let found = Image::of(&node).said();
        assert!(found.contains(said) && found.starts_with("image: "), "{said}: {found}");
    }
}

#[test]
fn maps_that_lie_over_each_other_take_no_time_without_end() {
    // Each name leads to a file of its own, by the one name that it is said to have, and the map is read for each.
    let mut image = Image::new();
    let names: Vec<String> = (0..30).map(|number| format!("{number:02}")).collect();
    let entries: Vec<(&[u8], usize)> = names.iter().map(|name| (name.as_bytes(), 20)).collect();
    let listing = listing(&entries);
    let size = listing.len() as u64;
    image.put(SHARED * BLOCK, &listing);
    image.node(0, &Node { mode: DIRECTORY, layout: 0, size, what: SHARED as u32, ..NODE });
    image.node(20, &Node { layout: 4, size: 3000 * BLOCK as u64, what: 0, ..NODE });
    let said = image.said();
    assert!(
        said.contains("02: with it listings, links and maps of chunks are more than the image has"),
        "{said}"
    );
}

#[test]
fn directories_that_no_tree_can_have_are_refused() {
    let mut circle = Image::new();
    circle.directory(0, 0, &[(b"d", 20)]);
    circle.directory(20, 0, &[(b"e", 0)]);
    let mut twice = Image::new();
    twice.directory(0, 0, &[(b"d", 20), (b"e", 20)]);
    twice.directory(20, 0, &[]);
    let mut same = Image::new();
    same.directory(0, 0, &[(b"d", 20), (b"d", 24)]);
    same.node(20, &NODE);
    same.node(24, &NODE);
    let mut away = Image::new();
    away.directory(0, 0, &[(b"d", 1 << 40)]);
    let mut nowhere = Image::new();
    nowhere.directory(0, 0, &[(b"d", usize::MAX)]);
    let mut file = Image::new();
    file.node(0, &NODE);
    let mut hole = Image::new();
    hole.node(0, &Node { mode: DIRECTORY, layout: 0, size: 100, ..NODE });
    let mut many = Image::new();
    many.node(0, &Node { mode: DIRECTORY, layout: 0, size: 1 << 40, ..NODE });
    for (image, said) in [
        (circle, "d/e: it is a directory that has another name already"),
        (twice, "e: it is a directory that has another name already"),
        (same, "d: there are two of this name"),
        (away, "d: it ends before the byte"),
        (nowhere, "d: the inode 18446744073709551615 lies nowhere"),
        (file, "/: its root is no directory"),
        (hole, "/: its listing has a block of 0 bytes of entries"),
        (many, "/: with it listings, links and maps"),
    ] {
        let found = image.said();
        assert!(found.contains(said), "{said}: {found}");
    }
}

#[test]
fn a_path_is_as_long_as_linux_knows_it_or_refused() {
    // Each directory, with its listing, has a block of its own.
    let in_block = |level: usize| level * BLOCK / 32;
    let (name, levels) = ([b'n'; 255], 16);
    for is_beyond in [false, true] {
        let mut image = Image::new();
        for level in 0..levels {
            let (here, above) = (in_block(level), in_block(level.saturating_sub(1)));
            image.directory(here, above, &[(&name, in_block(level + 1))]);
        }
        let beyond = [(&b"f"[..], in_block(levels + 1))];
        image.directory(in_block(levels), in_block(levels - 1), if is_beyond { &beyond } else { &[] });
        image.node(in_block(levels + 1), &NODE);
        match is_beyond {
            false => drop(image.tree()),
            true => {
                let said = image.said();
                let beginning = format!(
                    "image: the EROFS image is damaged: {}: so begins a path of 4097",
                    "n".repeat(60)
                );
                assert!(said.contains(&beginning), "{said}");
            }
        }
    }
}

#[test]
fn a_directory_tells_once_where_it_is() {
    let mut image = Image::new();
    image.directory(0, 0, &[(b".", 0)]);
    let said = image.said();
    assert!(said.contains("/: its listing has '.' and '..' more than once each"), "{said}");
    // Also where the same block is told again and again.
    let mut image = Image::new();
    let dots: [(&[u8], usize); 2] = [(b".", 0), (b"..", 0)];
    let mut block = listing(&dots);
    block.resize(BLOCK, 0);
    image.put(END * BLOCK, &block);
    let rest = words(&[END as u32; 9]);
    let (mode, size) = (DIRECTORY, 9 * BLOCK as u64);
    image.node(0, &Node { mode, layout: 4, size, what: 0, rest: &rest, ..NODE });
    let said = image.said();
    assert!(said.contains("/: its listing has '.' and '..' more than once each"), "{said}");
}

#[test]
fn names_that_no_directory_can_have_are_refused() {
    for name in [&b"a/b"[..], b"", b"a\0b", &[b'n'; 256]] {
        let mut image = Image::new();
        // In the middle, where the next one's place tells the length.
        image.directory(0, 0, &[(name, 20), (b"z", 20)]);
        image.node(20, &NODE);
        let said = image.said();
        assert!(said.contains("/: it has the name") || said.contains("a name of 256 bytes"), "{said}");
    }
    for (at, place, said) in [
        // Before the one that came before it, among the entries, behind the block.
        (12 + 8, 5, "has a name at 36"),
        (24 + 8, 5, "has a name at 37"),
        (24 + 8, 500, "has a name at"),
        (8, 37, "a block of 37 bytes of entries"),
        (8, 0, "a block of 0 bytes of entries"),
        (8, 504, "a block of 504 bytes of entries"),
    ] {
        let mut image = Image::new();
        image.directory(0, 0, &[(b"f", 20)]);
        image.node(20, &NODE);
        image.put(INODES * BLOCK + 64 + at, &u16::to_le_bytes(place));
        let found = image.said();
        assert!(found.contains(said), "{said}: {found}");
    }
}

#[test]
fn attributes_are_the_file_s_own_and_those_it_shares() {
    let mut bytes = head(&[0, 4]);
    for (index, name, value) in [
        (1, "note", &b"own"[..]),
        (6, "capability", b"c"),
        (2, "", b"acl"),
        (5, "lustre", b"x"),
        (0x81, "of-a-prefix", b"x"),
    ] {
        bytes.extend(attribute(index, name, value));
    }
    let mut image = with_attributes(&bytes);
    let shared = [attribute(1, "note", b"shared"), attribute(4, "t", b"shared")];
    assert_eq!(shared[0].len(), 16);
    image.put(SHARED * BLOCK, &shared.concat());
    let tree = image.tree();
    let number = at(&*tree, "f").unwrap();
    let found: Vec<(String, String)> = tree
        .xattr_names(number)
        .unwrap()
        .into_iter()
        .map(|name| {
            let value = tree.xattr(number, &name).unwrap().unwrap();
            (String::from_utf8(name).unwrap(), String::from_utf8(value).unwrap())
        })
        .collect();
    let expected = [
        ("security.capability", "c"),
        ("system.posix_acl_access", "acl"),
        ("trusted.t", "shared"),
        ("user.note", "own"),
    ];
    assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn attributes_that_are_damaged_are_refused() {
    let mut cut = head(&[]);
    cut.extend([3, 1, 0xff, 0xff]);
    let mut many = head(&[0; 200]);
    many.truncate(12 + 400);
    for (bytes, said) in [
        (cut, "f: its extended attributes end within one"),
        (many, "f: its extended attributes end before those that it shares"),
        (head(&[1 << 30]), "f: it ends before the byte"),
        ([head(&[]), attribute(1, "", b"v")].concat(), "that Linux doesn't know"),
        ([head(&[]), attribute(2, "more", b"v")].concat(), "that Linux doesn't know"),
    ] {
        let found = with_attributes(&bytes).said();
        assert!(found.contains(said), "{said}: {found}");
    }
    // Each has a place of four bytes, and a value as long as there is.
    let mut image = with_attributes(&head(&[0; 17]));
    let mut long = attribute(1, "long", &[b'v'; 65535]);
    image.put(1024 + 36, &0_u32.to_le_bytes());
    image.0.truncate(SHARED * BLOCK);
    image.0.append(&mut long);
    let said = image.said();
    assert!(said.contains("f: its extended attributes are more than a MiB"), "{said}");
}

#[test]
fn all_of_an_image_has_one_budget() {
    let rest: Vec<u8> = words(&(0..100).map(|at| 33 + at % 2 * 5).collect::<Vec<_>>());
    let chunks = Image::of(&Node { layout: 4, size: 100 * BLOCK as u64, what: 0, rest: &rest, ..NODE });
    let mut bytes = head(&[]);
    (0..9).for_each(|at| bytes.extend(attribute(1, &format!("{at}"), &[b'v'; 40])));
    for (image, memory, said) in [
        (Image::of(&NODE), 200, "/: with its table of directories"),
        (Image::of(&NODE), 400, "/: with its table of"),
        (chunks, 2000, "f: with its table of inodes"),
        (with_attributes(&bytes), 1000, "f: with its table of extended attributes"),
    ] {
        image.tree();
        let found = image.said_within(memory);
        assert!(found.contains(said) && found.contains("take more than"), "{said}: {found}");
    }
}

#[test]
fn a_superblock_is_what_it_says_or_refused() {
    let with = |at: usize, bytes: &[u8]| {
        let mut image = Image::of(&NODE);
        image.put(1024 + at, bytes);
        image
    };
    let mut cut = Image::of(&NODE);
    cut.0.truncate(BLOCK * 50);
    let mut short = Image::of(&NODE);
    short.0.truncate(1100);
    for (image, said) in [
        (with(8, &[1]), "its superblock has the checksum 00000000"),
        (with(12, &[8]), "blocks of 2^8 bytes"),
        (with(12, &[64]), "blocks of 2^64 bytes"),
        (with(32, &[0xff; 4]), "a time with 4294967295 nanoseconds"),
        (with(80, &[0x20]), "features that aren't read: fragments or dedupe"),
        (with(80, &[0xd1, 0x81]), "ztailpacking (compressed ends of files), xattr-prefixes"),
        (with(81, &[0x80]), "0x8000, of a later version; make it with mkfs.erofs without -z"),
        (with(86, &[2]), "data in 2 further files or devices"),
        (with(90, &[12]), "blocks of their own size"),
        (with(40, &[0xff; 4]), "/: it ends before the byte"),
        (cut, "it is cut: it has 25600 bytes, and its superblock tells of 32768"),
        (short, "it ends within its superblock"),
    ] {
        let found = image.said();
        assert!(found.contains(said), "{said}: {found}");
    }
    let mut sound = with(8, &[1]);
    let sum = crc32c(&sound.0[1024..1024 + BLOCK]);
    sound.put(1024 + 4, &sum.to_le_bytes());
    sound.tree();
    // What compression would need, and isn't there.
    with(80, &[0b1011]).tree();
}

#[test]
fn a_file_of_an_image_is_one_whatever_its_names_are() {
    let mut image = Image::new();
    image.directory(0, 0, &[(b"a", 20), (b"b", 20), (b"c", 24), (b"d", 26)]);
    image.node(20, &Node { nlink: 2, size: 3, rest: b"one", ..NODE });
    image.node(24, &Node { mode: 0o020_600, what: 0x1234_5678, ..NODE });
    // A short one: the time is that of the image.
    let mut short = words(&[(u32::from(FILE) << 16), 0, 0, 0]);
    short.splice(..4, [0, 0, 0, 0]);
    short.splice(4..8, [FILE as u8, (FILE >> 8) as u8, 1, 0]);
    short.extend(words(&[HOLE, 0, 0xfffe_0007, 0]));
    image.put(INODES * BLOCK + 26 * 32, &short);
    let tree = image.tree();
    let number = at(&*tree, "a").unwrap();
    assert_eq!(at(&*tree, "b"), Some(number));
    let stat = tree.stat(number).unwrap();
    assert_eq!((stat.nlink, stat.uid, stat.gid, stat.mtime.sec, stat.mtime.nsec), (2, 1, 2, 5, 7));
    let stat = tree.stat(at(&*tree, "c").unwrap()).unwrap();
    assert_eq!(stat.rdev, rustix::fs::makedev(0x456, 0x12378));
    let stat = tree.stat(at(&*tree, "d").unwrap()).unwrap();
    assert_eq!((stat.uid, stat.gid, stat.mtime.sec, stat.mtime.nsec), (7, 0xfffe, 1_700_000_000, 0));
}

#[test]
fn an_image_is_told_from_a_tar_by_its_content() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2000);
    // The mark stands in a file of the tar.
    let mut data = vec![0; 2000];
    data[512..516].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
    builder.append_data(&mut header, "a", &data[..]).unwrap();
    let bytes = builder.into_inner().unwrap();
    assert!(is_superblock(&bytes));
    let tree = Image(bytes).tree();
    assert!(at(&*tree, "a").is_some());
    // What programs that boot have before the superblock doesn't matter.
    let mut image = Image::of(&NODE);
    image.put(0, b"boot").put(510, &[0x55, 0xaa]);
    assert!(at(&*image.tree(), "f").is_some());
    // A file of an image that a tar would be an image with.
    let mut image = Image::new();
    image.directory(0, 0, &[(b"oci-layout", 20)]);
    image.node(20, &Node { layout: 0, size: 2, what: 40, ..NODE });
    let (file, _) = image.part();
    let archive = open(file.reopen().unwrap(), file.path(), &ArchiveOptions::default()).unwrap();
    assert!(!archive.holds_image());
}
