//! The mark on the root of an upper that lies on frozen layers: `overlay.unionmount.stack`.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::sys::object::{At, Writable};
use crate::sys::xattr;
use crate::union::lookup::private::Namespace;

const MARK: &str = "unionmount.stack";
/// The mark on a hardlink index: the token of the upper that it is of, and the kernel's beside it.
pub(in crate::union) const OF_INDEX: &str = MARK;
const VERSION: &str = "1";

/// What an upper lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The frozen layer; 0: none of its own record.
    pub layer: u32,
    /// What tells the upper from all that were before it.
    pub token: String,
}

impl Head {
    /// Makes that of a new upper.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new(layer: u32) -> rustix::io::Result<Head> {
        Ok(Head { layer, token: random()? })
    }

    fn parse(text: &[u8]) -> Option<Head> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let (version, layer, token) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        (version == VERSION && words.next().is_none()).then(|| Head { layer, token: token.to_owned() })
    }

    fn text(&self) -> String {
        format!("{VERSION} {} {}", self.layer, self.token)
    }

    /// Reads the mark of an open directory. `None`: it has none.
    ///
    /// # Errors
    /// Those of getxattr(2); `EBADMSG` for a mark of another form.
    pub fn read(dir: BorrowedFd<'_>) -> rustix::io::Result<Option<Head>> {
        match value(dir, MARK)? {
            Some(value) => Head::parse(&value).ok_or(Errno::BADMSG).map(Some),
            None => Ok(None),
        }
    }

    /// Marks a directory.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn write(&self, dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
        set(dir, MARK, self.text().as_bytes())
    }
}

/// Returns 32 hexadecimal digits that nobody else has.
///
/// # Errors
/// When there is no randomness.
pub fn random() -> rustix::io::Result<String> {
    let mut bytes = [0u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(hex::encode(bytes))
}

/// Reads a mark in whichever namespace it is: that which only root can write goes first.
pub(super) fn value(dir: BorrowedFd<'_>, mark: &str) -> rustix::io::Result<Option<Vec<u8>>> {
    Ok(values(dir, mark)?.into_iter().next())
}

/// Reads a mark in both namespaces: root and a user who change one directory by turns write theirs beside the other's, which the
/// user can't even see.
pub(in crate::union) fn values(dir: BorrowedFd<'_>, mark: &str) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for namespace in [Namespace::Trusted, Namespace::User] {
        match xattr::get(At::Fd(dir), namespace.name(mark).as_bytes()) {
            Err(Errno::PERM | Errno::OPNOTSUPP) => {}
            read => all.extend(read?),
        }
    }
    Ok(all)
}

/// Writes a mark in the best namespace in which this process can.
pub(super) fn set(dir: BorrowedFd<'_>, mark: &str, value: &[u8]) -> rustix::io::Result<()> {
    match set_in(Namespace::Trusted, dir, mark, value) {
        Err(Errno::PERM | Errno::OPNOTSUPP) => set_in(Namespace::User, dir, mark, value),
        other => other,
    }
}

/// Writes a mark in a namespace.
pub(super) fn set_in(
    namespace: Namespace,
    dir: BorrowedFd<'_>,
    mark: &str,
    value: &[u8],
) -> rustix::io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "of a directory that was just made, or of the workdir")]
    let object = Writable::held(dir);
    object.set_xattr(namespace.name(mark).as_bytes(), value, XattrFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_others_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(Head::read(open.as_fd()), Ok(None));
        let head = Head::new(7).unwrap();
        assert_ne!(head, Head::new(7).unwrap(), "told from all others");
        head.write(open.as_fd()).unwrap();
        assert_eq!(Head::read(open.as_fd()), Ok(Some(head)));
        for bad in ["", "1", "1 7", "2 7 aa", "1 x aa", "1 7 aa bb", "1 -1 aa"] {
            set(open.as_fd(), MARK, bad.as_bytes()).unwrap();
            assert_eq!(Head::read(open.as_fd()), Err(Errno::BADMSG), "{bad:?}");
        }
    }
}
