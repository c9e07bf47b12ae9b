//! The entries of a listing, one behind the other, each at a multiple of eight bytes.

use fuse_abi::linux::{fuse_dirent, fuse_entry_out};
use fuser::INodeNo;
use zerocopy::{Immutable, IntoBytes};

use super::body::Entry;

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a> {
    /// The number that programs see.
    pub ino: INodeNo,
    /// The offset at which the listing goes on after it.
    pub next: u64,
    /// Its type: bits 12 to 15 of a mode.
    pub kind: u32,
    /// Itself.
    pub name: &'a [u8],
}

/// The head of a `struct fuse_dirent`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Head {
    ino: u64,
    off: u64,
    namelen: u32,
    kind: u32,
}

const _: () = assert!(size_of::<Head>() == size_of::<fuse_dirent>());

/// A page of a listing.
#[derive(Debug)]
pub struct Listing<'a> {
    room: &'a mut [u8],
    used: usize,
}

impl<'a> Listing<'a> {
    /// Returns an empty one with room for so much.
    pub fn new(room: &'a mut [u8]) -> Listing<'a> {
        Listing { room, used: 0 }
    }

    /// Adds a name. `false`: it doesn't fit.
    pub fn add(&mut self, name: &Name<'_>) -> bool {
        self.put(&[], name)
    }

    /// Adds a name with what a lookup would tell. `false`: it doesn't fit.
    pub fn add_entry(&mut self, entry: &Entry, name: &Name<'_>) -> bool {
        self.put(fuse_entry_out::from(entry).as_bytes(), name)
    }

    fn put(&mut self, before: &[u8], name: &Name<'_>) -> bool {
        let Name { ino, next, kind, name } = *name;
        let head = Head { ino: ino.0, off: next, namelen: name.len() as u32, kind: kind >> 12 & 15 };
        let size = (before.len() + size_of::<Head>() + name.len()).next_multiple_of(8);
        let Some(room) = self.room.get_mut(self.used..self.used + size) else { return false };
        let (entry, rest) = room.split_at_mut(before.len());
        let (headed, rest) = rest.split_at_mut(size_of::<Head>());
        let (named, padding) = rest.split_at_mut(name.len());
        entry.copy_from_slice(before);
        headed.copy_from_slice(head.as_bytes());
        named.copy_from_slice(name);
        padding.fill(0);
        self.used += size;
        true
    }

    /// Returns how many bytes the entries take.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_as_the_kernel_reads_them() {
        let mut room = [0xff; 64];
        let mut listing = Listing::new(&mut room);
        let name = |name| Name { ino: INodeNo(0x1122), next: 7, kind: 0o040_755, name };
        assert!(listing.add(&name(b"abc")));
        assert!(listing.add(&name(b"12345678")));
        assert!(!listing.add(&name(b"x")), "there is no room for another");
        assert_eq!(listing.len(), 64);
        let expected = [
            &0x1122u64.to_ne_bytes()[..],
            &7u64.to_ne_bytes(),
            &3u32.to_ne_bytes(),
            &4u32.to_ne_bytes(),
            b"abc\0\0\0\0\0",
            &0x1122u64.to_ne_bytes(),
            &7u64.to_ne_bytes(),
            &8u32.to_ne_bytes(),
            &4u32.to_ne_bytes(),
            b"12345678",
        ];
        assert_eq!(room[..], expected.concat());
    }

    #[test]
    fn an_entry_with_attributes_is_before_its_name() {
        let mut room = [0xff; 160];
        let mut listing = Listing::new(&mut room);
        let entry = Entry { node: INodeNo(5), ..Entry::missing(std::time::Duration::from_secs(3)) };
        assert!(listing.add_entry(&entry, &Name { ino: INodeNo(6), next: 1, kind: 0, name: b"n" }));
        assert_eq!(listing.len(), 160);
        assert_eq!((room[0], room[16], room[128], room[152]), (5, 3, 6, b'n'));
    }
}
