//! What an attribute tells of an object's owner, mode and type where its inode can't: `override_stat`, and the notes of the
//! owners of links. When these are read and written is told in [`owners`](crate::union::view::owners).

use std::fmt;

use crate::sys::object::{Kind, Stat};

/// Returns the owner that a record of `LINKS`, with its zero byte, tells, if it is that of the link `name`.
pub fn link_owner(record: &[u8], name: &[u8]) -> Option<(u32, u32)> {
    let owner = record.strip_suffix(&[0])?.strip_suffix(name)?.strip_suffix(b":")?;
    let (uid, gid) = std::str::from_utf8(owner).ok()?.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

/// Type and permission bits of `st_mode`.
const TYPE: u32 = 0o170_000;
pub(in crate::union) const BITS: u32 = 0o7777;

/// What `override_stat` says of an object: `UID:GID:MODE:TYPE`, the mode octal, the type one of `file`, `dir`,
/// `symlink`, `pipe`, `socket`, `block-MAJOR-MINOR` and `char-MAJOR-MINOR`.
///
/// fuse-overlayfs 1.x writes no type, but has its bits in the mode; they tell everything but a device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Override {
    /// Owner, as the layer keeps it.
    pub uid: u32,
    /// Group, as the layer keeps it.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// The type, where it is told.
    pub kind: Option<Kind>,
    /// The device's number.
    pub rdev: u64,
}

impl Override {
    /// Returns what tells this of an object.
    pub fn of(stat: &Stat) -> Override {
        let Stat { uid, gid, mode, rdev, .. } = *stat;
        Override { uid, gid, mode: mode & BITS, kind: Some(stat.kind()), rdev }
    }

    /// Reads the attribute's value. `None`: not of a form that anybody writes.
    pub fn parse(value: &[u8]) -> Option<Override> {
        let text = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
        let mut fields = text.splitn(4, ':');
        // Programs that print ids as signed numbers write the upper half of them negative.
        let id = |text: &str| {
            let id: i64 = text.parse().ok()?;
            u32::try_from(id).ok().or_else(|| i32::try_from(id).ok().map(i32::cast_unsigned))
        };
        let uid = id(fields.next()?)?;
        let gid = id(fields.next()?)?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
        let (kind, rdev) = match fields.next() {
            Some(text) => parse_type(text)?,
            None if mode & TYPE == 0 => (None, 0),
            // Without its number a device is of no use, and 0:0 would be a whiteout.
            None => {
                (Some(Kind::of_mode(mode)).filter(|k| !matches!(k, Kind::CharDevice | Kind::BlockDevice)), 0)
            }
        };
        Some(Override { uid, gid, mode: mode & BITS, kind, rdev })
    }

    /// Changes the stat of the object that carries the attribute. `None`: it can't be true of that.
    pub(in crate::union) fn apply(self, mut stat: Stat) -> Option<Stat> {
        let real = stat.kind();
        let kind = match self.kind {
            None => real,
            Some(Kind::Directory) if real != Kind::Directory => return None,
            Some(kind) if real == Kind::Directory && kind != Kind::Directory => return None,
            Some(kind) => kind,
        };
        stat.uid = self.uid;
        stat.gid = self.gid;
        stat.mode = kind.mode_bits() | self.mode;
        stat.rdev = self.rdev;
        Some(stat)
    }
}

fn parse_type(text: &str) -> Option<(Option<Kind>, u64)> {
    let device = |numbers: &str| {
        let (major, minor) = numbers.split_once('-')?;
        Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
    };
    let (kind, rdev) = match text {
        "file" => (Kind::File, 0),
        "dir" => (Kind::Directory, 0),
        "symlink" => (Kind::Symlink, 0),
        "pipe" => (Kind::Fifo, 0),
        "socket" => (Kind::Socket, 0),
        _ => match text.split_once('-')? {
            ("block", numbers) => (Kind::BlockDevice, device(numbers)?),
            ("char", numbers) => (Kind::CharDevice, device(numbers)?),
            _ => return None,
        },
    };
    Some((Some(kind), rdev))
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Override { uid, gid, mode, kind, rdev } = *self;
        write!(f, "{uid}:{gid}:{mode:04o}")?;
        let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
        match kind {
            None => Ok(()),
            Some(Kind::File) => f.write_str(":file"),
            Some(Kind::Directory) => f.write_str(":dir"),
            Some(Kind::Symlink) => f.write_str(":symlink"),
            Some(Kind::Fifo) => f.write_str(":pipe"),
            Some(Kind::Socket) => f.write_str(":socket"),
            Some(Kind::BlockDevice) => write!(f, ":block-{major}-{minor}"),
            Some(Kind::CharDevice) => write!(f, ":char-{major}-{minor}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(u32, u32, u32, Option<Kind>, u64)> {
        Override::parse(text.as_bytes()).map(|o| (o.uid, o.gid, o.mode, o.kind, o.rdev))
    }

    #[test]
    fn values_of_every_writer() {
        let dev = rustix::fs::makedev;
        for (text, want) in [
            ("1000:1011:0644:file", (1000, 1011, 0o644, Some(Kind::File), 0)),
            ("0:0:4755:file", (0, 0, 0o4755, Some(Kind::File), 0)),
            ("1:2:0755:dir", (1, 2, 0o755, Some(Kind::Directory), 0)),
            ("1:2:0777:symlink", (1, 2, 0o777, Some(Kind::Symlink), 0)),
            ("1:2:0666:pipe", (1, 2, 0o666, Some(Kind::Fifo), 0)),
            ("1:2:0700:socket", (1, 2, 0o700, Some(Kind::Socket), 0)),
            ("1:2:0600:block-8-1", (1, 2, 0o600, Some(Kind::BlockDevice), dev(8, 1))),
            ("1:2:0666:char-1-3", (1, 2, 0o666, Some(Kind::CharDevice), dev(1, 3))),
        ] {
            assert_eq!(parsed(text), Some(want));
            assert_eq!(Override::parse(text.as_bytes()).unwrap().to_string(), text);
        }
        // containers/storage before types; fuse-overlayfs 1.10; ids printed as signed numbers.
        assert_eq!(parsed("5:6:0755"), Some((5, 6, 0o755, None, 0)));
        assert_eq!(parsed("33:34:104640"), Some((33, 34, 0o4640, Some(Kind::File), 0)));
        assert_eq!(parsed("33:34:40755"), Some((33, 34, 0o755, Some(Kind::Directory), 0)));
        assert_eq!(parsed("5:6:10644"), Some((5, 6, 0o644, Some(Kind::Fifo), 0)));
        assert_eq!(parsed("5:6:20644"), Some((5, 6, 0o644, None, 0)), "a device without its number");
        assert_eq!(parsed("-2:-1:0644"), Some((u32::MAX - 1, u32::MAX, 0o644, None, 0)));
        for bad in ["", "1", "1:2", "1:2:9", "a:b:c", "1:2:0644:what", "1:2:0644:char-1", "1:2:0644:char"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
