//! Archives: what lies outside of where they are unpacked is not touched, and the same tree gives the same archive.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use unionmount::archive::{self, ArchiveOptions, Part, Promised};
use unionmount::image::digest::Digest;
use unionmount::image::layer::{ApplyOptions, Limits, Ownership, WriteOptions, apply, write_tar};
use unionmount::image::load::{Input, LoadOptions, load};
use unionmount::image::packed::{Layout, PackedLayer, Wanted};
use unionmount::image::store::Store;
use unionmount::union::stack::tree::LayerTree;

use crate::yard::Yard;

/// So that an input of some bytes doesn't fill the memory.
const LIMITS: Limits = Limits { entries: 1000, bytes: 1 << 20 };

/// A layer's tar.
pub fn tar(data: &[u8]) {
    let yard = Yard::new();
    fs::write(yard.path().join("canary"), "sings").unwrap();
    let root = yard.open("root");
    let ownership = Ownership::of_this_process();
    let applied = apply(data, root.as_fd(), &ApplyOptions { ownership, limits: LIMITS });
    assert_eq!(yard.names(), ["canary", "root"], "something was made outside");
    assert_eq!(fs::read(yard.path().join("canary")).unwrap(), b"sings", "something was changed outside");
    let Ok(applied) = applied else { return };
    assert!(
        applied.work <= 64 * (data.len() as u64 + 512),
        "{} steps for {} bytes",
        applied.work,
        data.len()
    );
    let written = || {
        let mut out = Vec::new();
        let options = WriteOptions { ownership, lowers: &[], root: true };
        write_tar(root.as_fd(), &mut out, &options).map(|_| out)
    };
    let Ok(first) = written() else { return };
    assert_eq!(written().unwrap(), first, "the same tree gave two archives");
    // What was written is read again, and gives the same.
    let again = yard.open("again");
    let read = apply(&first[..], again.as_fd(), &ApplyOptions { ownership, limits: LIMITS });
    read.unwrap_or_else(|error| panic!("what was written isn't read: {error}"));
    let mut second = Vec::new();
    write_tar(again.as_fd(), &mut second, &WriteOptions { ownership, lowers: &[], root: true }).unwrap();
    assert_eq!(first, second, "unpacked and packed again, it is another");
}

/// What parts the pieces of an archive below.
const PART: &[u8] = b"\n--\n";

/// Images as an archive or a layout. Data without [`PART`] are the archive itself, in any form and compression. Else each
/// part is a blob of a layout and the last its index; `@N` stands in a part for the digest of the part N, `#N` for its size.
/// Whatever comes of it, the store is whole; and where it lies, it is refused or its layers are trees that are read without harm.
pub fn archive(data: &[u8]) {
    let yard = Yard::new();
    let place = yard.path().join("archive");
    match parts(data) {
        parts if parts.len() < 2 => fs::write(&place, data).unwrap(),
        parts => write_layout(&place, &parts),
    }
    as_lowers(&place);
    let store = Store::open(Some(&yard.dir("store"))).unwrap();
    let progress = indicatif::MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
    let loaded = load(&store, &Input::Path(place), &LoadOptions { limits: LIMITS, unpack: true, progress });
    let images = store.catalog().unwrap().images;
    match loaded {
        Ok(loaded) => assert!(loaded.iter().all(|one| images.iter().any(|image| image.id == one.id))),
        Err(_) => assert!(images.is_empty(), "half of an archive"),
    }
    let verified = store.verify(false, &indicatif::ProgressBar::hidden()).unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
}

fn parts(data: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = data;
    while let Some(at) = rest.windows(PART.len()).position(|window| window == PART) {
        parts.push(&rest[..at]);
        rest = &rest[at + PART.len()..];
    }
    parts.push(rest);
    parts
}

fn write_layout(place: &Path, parts: &[&[u8]]) {
    let blobs = place.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(place.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let mut written: Vec<(Digest, usize)> = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let whole = filled_in(part, &written);
        let digest = Digest::of(&whole);
        let name = digest.to_string().replace("sha256:", "");
        match number + 1 == parts.len() {
            true => fs::write(place.join("index.json"), &whole).unwrap(),
            false => fs::write(blobs.join(name), &whole).unwrap(),
        }
        written.push((digest, whole.len()));
    }
}

/// A part with what `@N` and `#N` stand for.
fn filled_in(part: &[u8], written: &[(Digest, usize)]) -> Vec<u8> {
    let mut whole = Vec::new();
    let mut bytes = part.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let number = bytes.peek().and_then(|next| written.get(usize::from(next.wrapping_sub(b'0'))));
        match (byte, number) {
            (b'@', Some((digest, _))) => whole.extend(digest.to_string().bytes()),
            (b'#', Some((_, size))) => whole.extend(size.to_string().bytes()),
            _ => {
                whole.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    whole
}

/// The body of a file of the archives' cache: whatever it says, it is refused, or it is a tree that ends and is read without harm.
pub fn archive_index(data: &[u8]) {
    let file = || {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 << 20).unwrap();
        unionmount::archive::of_index(data, file).unwrap()
    };
    let (Some(mut above), Some(mut below)) = (file(), file()) else { return };
    unionmount::archive::describe_implied(&mut [&mut above, &mut below]);
    read_all(&*above.into_tree());
}

/// An image of a filesystem, whichever its content tells: it is refused, or it is a tree that ends and is read without harm.
pub fn filesystem(data: &[u8]) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    let options = ArchiveOptions::default();
    if let Ok(read) = archive::open(file, Path::new("image"), &options) {
        read_all(&*read.into_tree());
    }
}

/// Reads an image where it lies, as lowers are.
fn as_lowers(place: &Path) {
    let layers: Vec<(PackedLayer, Part)> = if place.is_dir() {
        let layout = Layout::new(File::open(place).unwrap(), place);
        let part = |layer: PackedLayer| {
            let (file, path) = layout.open(&layer).ok()?;
            Some((layer, Part::whole(file, &path).unwrap()))
        };
        layout.layers(&Wanted::Only).unwrap_or_default().into_iter().filter_map(part).collect()
    } else {
        match archive::open(File::open(place).unwrap(), place, &ArchiveOptions::default()) {
            Ok(archive) if archive.holds_image() => {
                Arc::new(archive).image_layers(&Wanted::Only).unwrap_or_default()
            }
            Ok(archive) => return read_all(&*archive.into_tree()),
            Err(_) => return,
        }
    };
    let mut opened = Vec::new();
    for (layer, part) in layers {
        let promised = Promised { blob: layer.blob, tar: Some(layer.diff_id) };
        let options = ArchiveOptions { is_layer: true, promised, progress: None };
        opened.extend(archive::open_part(part, &options));
    }
    archive::describe_implied(&mut opened.iter_mut().collect::<Vec<_>>());
    for one in opened {
        read_all(&*one.into_tree());
    }
}

/// Reads all that a tree has; of each file some pieces.
fn read_all(tree: &dyn LayerTree) {
    let mut left = vec![tree.root()];
    let mut seen = std::collections::HashSet::new();
    while let Some(number) = left.pop() {
        if !seen.insert(number) {
            continue;
        }
        tree.stat(number).unwrap();
        for name in tree.xattr_names(number).unwrap() {
            tree.xattr(number, &name).unwrap();
        }
        if let Ok(target) = tree.read_link(number) {
            std::hint::black_box(target);
        }
        if let Ok(open) = tree.open(number) {
            let size = open.size();
            for offset in [0, 1, size / 2, size.saturating_sub(1), size] {
                let next = open.next_data(offset).unwrap_or_default();
                assert!(
                    next.is_none_or(|next| offset <= next.start && next.start < next.end && next.end <= size)
                );
                let count = open.read_at(&mut [0; 4096], offset);
                assert!(
                    count.is_err() || (count == Ok(0)) == (offset >= size),
                    "{count:?} at {offset} of {size}"
                );
            }
        }
        let mut names = Vec::new();
        let listed = tree.list(number, &mut |entry| {
            names.push((entry.name.to_vec(), entry.ino));
            std::ops::ControlFlow::Continue(())
        });
        for (name, ino) in listed.map(|()| names).unwrap_or_default() {
            assert_eq!(tree.lookup(number, &name), Ok(ino), "a listed name leads there");
            left.push(ino);
        }
    }
}
