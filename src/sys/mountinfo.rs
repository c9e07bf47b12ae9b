//! The table of mounts as the kernel lists it: proc_pid_mountinfo(5).

use std::borrow::Cow;
use std::io;

use rustix::process::Pid;

/// The mounts of a mount namespace, oldest first.
#[derive(Debug, Clone)]
pub struct Table(Vec<u8>);

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'t> {
    /// The kernel's id of it.
    pub id: u64,
    /// That of the mount on which it is.
    pub parent: u64,
    /// `MAJOR:MINOR` of its filesystem.
    pub device: Cow<'t, str>,
    /// The directory of the filesystem that is seen there: `/`, unless a part of it was bind-mounted.
    pub root: Cow<'t, [u8]>,
    /// Where it is.
    pub point: Cow<'t, [u8]>,
    /// The options of the mount.
    pub options: Cow<'t, str>,
    /// The type of the filesystem.
    pub kind: Cow<'t, str>,
    /// What was given as its source.
    pub source: Cow<'t, [u8]>,
    /// The options of the filesystem.
    pub filesystem_options: Cow<'t, str>,
}

impl Table {
    /// Reads this process's own table.
    ///
    /// # Errors
    /// Those of reading /proc.
    pub fn read() -> io::Result<Table> {
        std::fs::read("/proc/self/mountinfo").map(Table)
    }

    /// Reads that of another process.
    ///
    /// # Errors
    /// Those of [`Table::read`].
    pub fn of(process: Pid) -> io::Result<Table> {
        std::fs::read(format!("/proc/{process}/mountinfo")).map(Table)
    }

    /// Returns the mounts, oldest first. What can't be understood is left out.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.0.split(|&byte| byte == b'\n').filter_map(parse)
    }
}

fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let split = line.windows(3).position(|part| part == b" - ")?;
    let mut left = line[..split].split(|&byte| byte == b' ');
    let mut right = line[split + 3..].split(|&byte| byte == b' ');
    Some(Entry {
        id: number(left.next()?)?,
        parent: number(left.next()?)?,
        device: text(left.next()?),
        root: plain(left.next()?),
        point: plain(left.next()?),
        options: text(left.next()?),
        kind: text(right.next()?),
        source: plain(right.next()?),
        filesystem_options: text(right.next()?),
    })
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn text(word: &[u8]) -> Cow<'_, str> {
    match plain(word) {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// Undoes the kernel's `\ooo`, by which a blank is `\040`.
fn plain(word: &[u8]) -> Cow<'_, [u8]> {
    if !word.contains(&b'\\') {
        return Cow::Borrowed(word);
    }
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match octal {
            Some(digits) if first == b'\\' => {
                plain.push(digits.iter().fold(0u8, |n, digit| n.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &tail[3..];
            }
            _ => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_understood() {
        let line = br"97 61 0:53 /sub\040dir /mnt/a\134b\012 rw,relatime shared:1 master:2 - fuse.x a\011b rw,user_id=1000";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.parent, &*mount.device, &*mount.kind), (97, 61, "0:53", "fuse.x"));
        assert_eq!((&*mount.root, &*mount.point), (&b"/sub dir"[..], &b"/mnt/a\\b\n"[..]));
        assert_eq!((&*mount.source, &*mount.options), (&b"a\tb"[..], "rw,relatime"));
        assert_eq!(mount.filesystem_options, "rw,user_id=1000");
        let bare = parse(b"1 0 8:1 / / rw - ext4 /dev/sda rw").unwrap();
        assert_eq!((&*bare.root, &*bare.point), (&b"/"[..], &b"/"[..]));
        for odd in ["", "x 0 8:1 / / rw - ext4 /dev/sda rw", "1 0 8:1 / / rw", "1 0 - ext4"] {
            assert_eq!(parse(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn words_are_unescaped() {
        for (word, bytes) in [
            ("/a", "/a"),
            (r"/a\040b\134\011", "/a b\\\t"),
            (r"\04", r"\04"),
            (r"a\9", r"a\9"),
            (r"\", r"\"),
            ("", ""),
        ] {
            assert_eq!(&*plain(word.as_bytes()), bytes.as_bytes(), "{word}");
        }
    }

    #[test]
    fn the_kernel_lists_the_root_of_this_process() {
        let own = Table::read().unwrap();
        assert!(own.entries().any(|mount| &*mount.point == b"/"));
        let same = Table::of(rustix::process::getpid()).unwrap();
        assert_eq!(own.entries().count(), same.entries().count());
    }
}
