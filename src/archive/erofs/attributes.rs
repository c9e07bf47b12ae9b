//! Extended attributes: behind an inode those that it has alone, and the places of those that others have as well.

use super::inode::Inode;
use super::source::Erofs;
use crate::archive::filesystem::{Collected, Wrong, read_exact, u16_at, u32_at};
use crate::archive::index::Attrs;

/// What they begin with: a filter for names, which isn't needed, and how many have their places behind it.
const HEAD: usize = 12;
/// What an attribute begins with: the lengths of its name and its value, and its namespace.
const SIZE: usize = 4;

/// Reads those of an inode.
///
/// # Errors
/// When they are damaged, or more than Linux knows.
pub(super) fn read(erofs: &Erofs<'_>, inode: &Inode) -> Result<Attrs, Wrong> {
    let (begin, end) = inode.attributes;
    let mut attrs = Collected::new(&erofs.budget);
    if begin == end {
        return Ok(Attrs::new());
    }
    // At most 256 KiB, by the number that told it.
    let mut bytes = vec![0; (end - begin) as usize];
    read_exact(erofs.part, begin, &mut bytes)?;
    let shared = 4 * usize::from(bytes[4]);
    let Some((places, mut own)) = bytes[HEAD..].split_at_checked(shared) else {
        return Err(Wrong::damaged("its extended attributes end before those that it shares"));
    };
    // An attribute of its own counts before a shared one of the same name.
    while !own.is_empty() {
        let short = || Wrong::damaged("its extended attributes end within one");
        let length = length(own).filter(|&length| length <= own.len()).ok_or_else(short)?;
        add(&mut attrs, &own[..length])?;
        own = own.get(length.next_multiple_of(SIZE)..).unwrap_or_default();
    }
    for place in places.chunks_exact(4) {
        let at = erofs.image.shared + 4 * u64::from(u32_at(place, 0));
        let mut head = [0; SIZE];
        read_exact(erofs.part, at, &mut head)?;
        let mut one = vec![0; length(&head).unwrap_or(SIZE)];
        read_exact(erofs.part, at, &mut one)?;
        add(&mut attrs, &one)?;
    }
    Ok(attrs.finish())
}

/// Returns how long an attribute is, if its head is there.
fn length(one: &[u8]) -> Option<usize> {
    let (head, _) = one.split_first_chunk::<SIZE>()?;
    Some(SIZE + usize::from(head[0]) + usize::from(u16_at(head, 2)))
}

/// Adds one, all of which is there.
fn add(attrs: &mut Collected<'_>, one: &[u8]) -> Result<(), Wrong> {
    let (head, rest) = one.split_at(SIZE);
    let (name, value) = rest.split_at(usize::from(head[0]));
    let prefix = match head[1] {
        1 => Some("user."),
        2 => Some("system.posix_acl_access"),
        3 => Some("system.posix_acl_default"),
        4 => Some("trusted."),
        6 => Some("security."),
        // Lustre's, and those of later versions: the kernel passes over them as well.
        _ => None,
    };
    attrs.add(prefix, name, value.to_vec())
}
