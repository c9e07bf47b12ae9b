//! SIF, in which Apptainer and Singularity keep a container: a header, a list of objects, and these. One of them is the filesystem
//! of the container's root, most often a squashfs, which is a layer as if it were a file by itself.
//!
//! Source of the format: github.com/apptainer/sif, pkg/sif/sif.go and descriptor.go. All numbers are little-endian and packed.

use super::filesystem::{Wrong, read_exact, u32_at, u64_at};
use super::part::Part;

const FORMAT: &str = "SIF";

/// Where it stands in the header, behind what a shell runs.
const MAGIC_AT: usize = 32;
const MAGIC: &[u8; 10] = b"SIF_MAGIC\0";
const VERSION_AT: usize = MAGIC_AT + MAGIC.len();
const VERSION: &[u8; 3] = b"01\0";
/// So many bytes tell whether it is one.
pub(super) const HEAD: usize = VERSION_AT;

/// The header: among others how many descriptors there are in all, and where.
const HEADER: usize = 128;
const COUNT_AT: usize = 88;
const DESCRIPTORS_AT: usize = 96;

/// A descriptor of an object.
const DESCRIPTOR: usize = 585;
const USED_AT: usize = 4;
const OFFSET_AT: usize = 17;
const SIZE_AT: usize = 25;
/// What only objects of its kind have: of a partition its filesystem, and what it is for.
const EXTRA_AT: usize = 201;

/// Kinds of objects.
const PARTITION: u32 = 0x4004;
const OCI_ROOT_INDEX: u32 = 0x400a;

/// What a partition is for.
const PRIMARY_SYSTEM: u32 = 2;
const OVERLAY: u32 = 4;

/// Apptainer makes 48. More than that many nobody has.
const MOST_DESCRIPTORS: u64 = 1 << 16;

/// Tells by its first bytes whether a file is one.
pub(super) fn is_one(head: &[u8]) -> bool {
    head.get(MAGIC_AT..VERSION_AT) == Some(MAGIC)
}

/// Returns the image of the root's filesystem.
///
/// # Errors
/// When it is damaged, or of another form than is read.
pub(super) fn root(part: &Part) -> Result<Part, super::ArchiveError> {
    root_within(part).map_err(|wrong| super::filesystem::said(wrong, part, FORMAT))
}

fn root_within(part: &Part) -> Result<Part, Wrong> {
    let mut header = [0; HEADER];
    read_exact(part, 0, &mut header)?;
    if header[VERSION_AT..VERSION_AT + VERSION.len()] != *VERSION {
        let version = header[VERSION_AT..VERSION_AT + 2].escape_ascii().to_string();
        return Err(Wrong::unknown(format!("a SIF of version {version}, of which 01 is read")));
    }
    let (count, at) = (u64_at(&header, COUNT_AT), u64_at(&header, DESCRIPTORS_AT));
    if count > MOST_DESCRIPTORS {
        return Err(Wrong::damaged(format!("its header tells of {count} objects")));
    }
    let (mut root, mut has_overlay, mut is_of_oci) = (None, false, false);
    for number in 0..count {
        let mut descriptor = [0; DESCRIPTOR];
        let place = at.checked_add(number * DESCRIPTOR as u64);
        let place = place.ok_or_else(|| Wrong::damaged("its objects are listed behind its end"))?;
        read_exact(part, place, &mut descriptor)?;
        let (kind, extra) = (u32_at(&descriptor, 0), &descriptor[EXTRA_AT..]);
        match (descriptor[USED_AT], kind, u32_at(extra, 4)) {
            (0, ..) => {}
            (_, PARTITION, PRIMARY_SYSTEM) if root.is_some() => {
                // Whoever made it decides which of them which program takes.
                return Err(Wrong::damaged("it has more than one primary system partition"));
            }
            (_, PARTITION, PRIMARY_SYSTEM) => root = Some((u32_at(extra, 0), descriptor)),
            (_, PARTITION, OVERLAY) => has_overlay = true,
            (_, OCI_ROOT_INDEX, _) => is_of_oci = true,
            _ => {}
        }
    }
    let Some((filesystem, descriptor)) = root else {
        let what = match is_of_oci {
            true => {
                "a SIF of OCI blobs, which has no filesystem; convert it with apptainer, or name the image in an OCI layout"
            }
            false => "a SIF without a primary system partition",
        };
        return Err(Wrong::unknown(what));
    };
    let other = match filesystem {
        1 => None,
        2 => Some("ext3"),
        5 => Some("an encrypted squashfs"),
        6 => Some("a squashfs within gocryptfs"),
        _ => Some("of an unknown filesystem"),
    };
    if let Some(other) = other {
        return Err(Wrong::unknown(format!(
            "a SIF whose primary system partition is {other}, which isn't read (squashfs is)"
        )));
    }
    if has_overlay {
        log::warn!("{}: what is in its overlay partition isn't shown", part.path.display());
    }
    let (at, size) = (u64_at(&descriptor, OFFSET_AT), u64_at(&descriptor, SIZE_AT));
    part.within(at, size)
        .ok_or_else(|| Wrong::damaged(format!("its partition of {size} bytes at {at} ends behind it")))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use support::filesystem_image::{SifObject, sif};

    use super::*;

    fn object(kind: u32, filesystem: u32, purpose: u32, content: &'static [u8]) -> SifObject<'static> {
        SifObject { kind, used: true, filesystem, purpose, content }
    }

    fn found(bytes: &[u8]) -> Result<Vec<u8>, String> {
        assert!(is_one(bytes));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let part = Part::whole(file, Path::new("a.sif")).unwrap();
        let root = root(&part).map_err(|error| error.to_string())?;
        let mut content = vec![0; root.size as usize];
        root.read_at(&mut content, 0).unwrap();
        Ok(content)
    }

    #[test]
    fn the_primary_partition_is_the_root() {
        let file = sif(&[
            object(0x4001, 0, 0, b"definition"),
            SifObject { used: false, ..object(PARTITION, 1, PRIMARY_SYSTEM, b"deleted") },
            object(PARTITION, 1, 3, b"data"),
            object(PARTITION, 1, PRIMARY_SYSTEM, b"root"),
            object(PARTITION, 2, OVERLAY, b"overlay"),
        ]);
        assert_eq!(found(&file).as_deref(), Ok(&b"root"[..]));
    }

    #[test]
    fn what_is_not_read_is_told() {
        let one = |filesystem| sif(&[object(PARTITION, filesystem, PRIMARY_SYSTEM, b"root")]);
        for (file, said) in [
            (one(2), "partition is ext3"),
            (one(5), "encrypted squashfs"),
            (one(9), "unknown filesystem"),
            (sif(&[object(PARTITION, 1, 3, b"data")]), "without a primary system partition"),
            (sif(&[object(OCI_ROOT_INDEX, 0, 0, b"{}")]), "OCI blobs"),
            (sif(&[]), "without a primary"),
        ] {
            let error = found(&file).unwrap_err();
            assert!(error.starts_with("a.sif: ") && error.contains(said), "{error}");
        }
        let with = |at: usize, new: &[u8]| {
            let mut file = one(1);
            file[at..at + new.len()].copy_from_slice(new);
            file
        };
        let length = one(1).len();
        for (file, said) in [
            (with(VERSION_AT, b"02"), "of version 02"),
            (with(COUNT_AT, &[255; 8]), "objects"),
            (with(COUNT_AT, &[2, 0, 0, 0, 0, 0, 0, 0]), "ends before the byte"),
            (with(DESCRIPTORS_AT, &[255; 8]), "ends before the byte"),
            (with(HEADER + OFFSET_AT, &[255; 8]), "ends behind it"),
            (with(HEADER + SIZE_AT, &[5, 0]), "ends behind it"),
            (
                sif(&[
                    object(PARTITION, 1, PRIMARY_SYSTEM, b"a"),
                    object(PARTITION, 1, PRIMARY_SYSTEM, b"b"),
                ]),
                "more than one",
            ),
            (one(1)[..100].to_vec(), "ends before the byte"),
            (one(1)[..length - 1].to_vec(), "ends behind it"),
        ] {
            let error = found(&file).unwrap_err();
            assert!(error.contains(said), "{error} isn't {said}");
        }
    }
}
