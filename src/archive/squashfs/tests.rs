//! Images that are made here, byte by byte, since nobody else makes such.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::path::Path;

use rustix::io::Errno;

use super::meta::BLOCK;
use super::tables::NO_XATTRS;
use super::*;
use crate::archive::filesystem::{Budget, MOST};
use crate::archive::tests::{at, content};
use crate::archive::{ArchiveOptions, open};

/// Set in the length of a block of metadata, and in the size of one of data, where it isn't compressed.
const PLAIN: u16 = 1 << 15;
const PLAIN_DATA: u32 = 1 << 24;
const NOTHING: u64 = u64::MAX;

/// What an image is made of.
struct Image {
    compressor: u16,
    /// Names and contents, which lie there compressed in some way or as they are.
    files: Vec<(String, &'static [u8], bool)>,
    fragments: u32,
    owners: u16,
    /// Values of an extended attribute, of which the first file has all.
    attributes: Vec<Vec<u8>>,
}

impl Image {
    fn new() -> Image {
        Image { compressor: 1, files: Vec::new(), fragments: 0, owners: 1, attributes: Vec::new() }
    }

    fn files(count: usize) -> Image {
        let files = (0..count).map(|at| (format!("file-{at:05}"), &b"content"[..], true)).collect();
        Image { files, ..Image::new() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut image = vec![0; 96];
        let mut places = Vec::new();
        for (_, content, _) in &self.files {
            places.push(image.len() as u32);
            image.extend(*content);
        }
        let mut inodes = Vec::new();
        let mut listing = Vec::new();
        for (number, ((name, content, is_plain), at)) in self.files.iter().zip(places).enumerate() {
            let reference = reference(inodes.len());
            let has_attributes = number == 0 && !self.attributes.is_empty();
            put16(&mut inodes, &[9, 0o644, 0, 0]);
            put32(&mut inodes, &[7, number as u32 + 2]);
            put64(&mut inodes, &[u64::from(at), content.len() as u64, 0]);
            let attributes = if has_attributes { 0 } else { NO_XATTRS };
            let size = content.len() as u32 | if *is_plain { PLAIN_DATA } else { 0 };
            put32(&mut inodes, &[1, u32::MAX, 0, attributes, size]);
            // A run of its own.
            put32(&mut listing, &[0, (reference >> 16) as u32, 1]);
            put16(&mut listing, &[reference as u16, 0, 2, name.len() as u16 - 1]);
            listing.extend(name.as_bytes());
        }
        let root = reference(inodes.len());
        put16(&mut inodes, &[8, 0o755, 0, 0]);
        put32(&mut inodes, &[7, 1, 2, listing.len() as u32 + 3, 0, 1]);
        put16(&mut inodes, &[0, 0]);
        put32(&mut inodes, &[NO_XATTRS]);
        let inodes_at = metadata(&mut image, &inodes)[0];
        let listing_at = metadata(&mut image, &listing).first().copied().unwrap_or(inodes_at);
        let fragments = vec![0; 16 * self.fragments as usize];
        let fragments_at = if self.fragments == 0 { NOTHING } else { table(&mut image, &fragments) };
        let owners_at = table(&mut image, &vec![0; 4 * usize::from(self.owners)]);
        let attributes_at = if self.attributes.is_empty() { NOTHING } else { self.attributes(&mut image) };
        let mut head = b"hsqs".to_vec();
        put32(&mut head, &[self.files.len() as u32 + 1, 7, 1 << 17, self.fragments]);
        put16(&mut head, &[self.compressor, 17, 0, self.owners, 4, 0]);
        let end = image.len() as u64;
        put64(
            &mut head,
            &[root, end, owners_at, attributes_at, inodes_at, listing_at, fragments_at, NOTHING],
        );
        image[..96].copy_from_slice(&head);
        image
    }

    fn attributes(&self, image: &mut Vec<u8>) -> u64 {
        let mut pairs = Vec::new();
        for (number, value) in self.attributes.iter().enumerate() {
            let name = format!("{number:04}");
            put16(&mut pairs, &[0, name.len() as u16]);
            pairs.extend(name.as_bytes());
            put32(&mut pairs, &[value.len() as u32]);
            pairs.extend(value);
        }
        let pairs_at = metadata(image, &pairs)[0];
        let mut lists = Vec::new();
        put64(&mut lists, &[0]);
        put32(&mut lists, &[self.attributes.len() as u32, pairs.len() as u32]);
        let lists_at = metadata(image, &lists)[0];
        let at = image.len() as u64;
        put64(image, &[pairs_at]);
        put32(image, &[1, 0]);
        put64(image, &[lists_at]);
        at
    }

    fn file(&self) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&self.bytes()).unwrap();
        file
    }

    /// Reads it with so much memory beside what is remembered of metadata; what is wrong with it.
    fn read(&self, bytes: u64) -> Result<Walked, String> {
        let file = self.file();
        let part = Part::whole(file.reopen().unwrap(), Path::new("image.sqfs")).unwrap();
        let metadata = 512 * BLOCK as u64;
        let walked = read_within(&part, false, &|_| (), Budget::of(metadata + bytes));
        walked.map_err(|wrong| said(wrong, &part, FORMAT).to_string())
    }
}

fn put16(into: &mut Vec<u8>, numbers: &[u16]) {
    numbers.iter().for_each(|number| into.extend(number.to_le_bytes()));
}

fn put32(into: &mut Vec<u8>, numbers: &[u32]) {
    numbers.iter().for_each(|number| into.extend(number.to_le_bytes()));
}

fn put64(into: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| into.extend(number.to_le_bytes()));
}

/// Returns how a place in metadata that aren't compressed is told.
fn reference(at: usize) -> u64 {
    (((at / BLOCK * (BLOCK + 2)) << 16) | (at % BLOCK)) as u64
}

/// Adds metadata, and returns where each of their blocks lies.
fn metadata(image: &mut Vec<u8>, bytes: &[u8]) -> Vec<u64> {
    let add = |block: &[u8]| {
        let at = image.len() as u64;
        put16(image, &[block.len() as u16 | PLAIN]);
        image.extend(block);
        at
    };
    bytes.chunks(BLOCK).map(add).collect()
}

/// Adds a table of entries, and returns where the list of its blocks lies.
fn table(image: &mut Vec<u8>, bytes: &[u8]) -> u64 {
    let blocks = metadata(image, bytes);
    let at = image.len() as u64;
    put64(image, &blocks);
    at
}

#[test]
fn a_decoder_that_panics_ends_the_file_alone() {
    let mut image = Image::files(2);
    image.compressor = u16::MAX;
    image.files.push(("bad".to_owned(), b"whatever", false));
    let file = image.file();
    let archive = open(file.reopen().unwrap(), file.path(), &ArchiveOptions::default()).unwrap();
    let tree = archive.into_tree();
    let bad = tree.open(at(&*tree, "bad").unwrap()).unwrap();
    for _ in 0..3 {
        assert_eq!(bad.read_at(&mut [0; 8], 0), Err(Errno::IO));
        // Through the cache as well.
        assert_eq!(bad.read_at(&mut [0; 2], 3), Err(Errno::IO));
        assert_eq!(content(&*tree, "file-00001"), "content");
    }
}

#[test]
fn a_decoder_that_panics_at_metadata_is_told() {
    let mut image = Image::files(1);
    image.compressor = u16::MAX;
    let mut bytes = image.bytes();
    // The block of inodes stands behind the content of the file.
    assert_eq!(bytes[96 + 7 + 1] & 0x80, 0x80);
    bytes[96 + 7 + 1] &= 0x7f;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let opened = open(File::open(file.path()).unwrap(), file.path(), &ArchiveOptions::default());
    let said = opened.unwrap_err().to_string();
    assert!(said.contains("the block of metadata at 103 can't be decompressed: a panic at src/"), "{said}");
}

#[test]
fn all_tables_of_an_image_together_have_one_budget() {
    let owners = Image { owners: 5000, ..Image::new() };
    let fragments = Image { fragments: 5000, ..Image::new() };
    let values = vec![vec![b'v'; 1000]; 90];
    let attributes = Image { attributes: values, ..Image::files(1) };
    let large = Image::files(1000);
    for (image, least, table) in [
        (&owners, 20_000, "table of owners"),
        (&fragments, 80_000, "table of fragments"),
        (&attributes, 90_000, "file-00000: with its table of extended attributes"),
        // Names are read before objects.
        (&large, 90_000, "/: with its table of directories"),
        (&large, 120_000, "file-00"),
    ] {
        image.read(MOST).unwrap();
        let said = image.read(least - 1000).map(|_| ()).unwrap_err();
        assert!(said.starts_with("image.sqfs: ") && said.contains(table), "{said}");
        assert!(said.contains("all tables together take more than"), "{said}");
    }
    assert!(large.read(120_000).map(|_| ()).unwrap_err().contains("with its table of inodes"));
    // Each alone would have enough.
    let all =
        Image { owners: 5000, fragments: 5000, attributes: attributes.attributes.clone(), ..Image::files(1) };
    let alone = 100_000;
    for image in [&owners, &fragments, &attributes] {
        image.read(alone).unwrap();
    }
    assert!(all.read(alone).is_err() && all.read(3 * alone).is_ok());
}

#[test]
fn what_an_image_says_of_a_table_is_not_taken_for_memory() {
    let mut bytes = Image::files(1).bytes();
    bytes.resize(200 << 20, 0);
    // Each fragment takes a byte at least, and sixteen here.
    bytes[16..20].copy_from_slice(&(100u32 << 20).to_le_bytes());
    bytes[40..48].copy_from_slice(&(200u64 << 20).to_le_bytes());
    bytes[80..88].copy_from_slice(&96u64.to_le_bytes());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let part = Part::whole(file.reopen().unwrap(), Path::new("image.sqfs")).unwrap();
    let said = read(&part, false, &|_| ()).map(|_| ()).unwrap_err().to_string();
    assert!(
        said.contains("with its table of fragments, all tables together take more than 1024 MiB"),
        "{said}"
    );
}
