//! Why a stack cannot be opened: one message a cause, which names the layer, its path and the way out.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::union::frozen::unfit::SnapshotError;
use crate::union::stack::probe::Unfit;

/// The part that a directory plays in a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A read-only layer; 1 is the topmost.
    Lower(usize),
    /// The writable layer.
    Upper,
    /// The directory in which the upper's objects are prepared.
    Work,
    /// Where the merged tree is mounted.
    MountPoint,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Lower(n) => write!(f, "lower layer {n}"),
            Role::Upper => f.write_str("upper layer"),
            Role::Work => f.write_str("workdir"),
            Role::MountPoint => f.write_str("mount point"),
        }
    }
}

/// A path as a message shows it: as it is, but on one line (control characters and quotes are escaped).
pub struct Shown<'a>(pub &'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string_lossy();
        if text.chars().any(char::is_control) || text.is_empty() {
            write!(f, "{text:?}")
        } else {
            f.write_str(&text)
        }
    }
}

/// What the kernel said, in its words alone: without the "(os error 13)" that Rust appends.
pub struct Said(pub Errno);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

/// How a dead FUSE mount is taken away, in words.
pub struct TakeAway<'a>(pub &'a Path);

impl fmt::Display for TakeAway<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let point = Shown(self.0);
        write!(f, "take it away with `umount -l {point}` or `fusermount3 -uz {point}`")
    }
}

/// Why a stack of layers was refused. The text of each is meant for the person at the terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StackError {
    /// Nothing to show.
    #[error("no lower layer given; name at least one directory with --lower (or -o lowerdir=)")]
    NoLowers,

    /// Only what was frozen is known.
    #[error(
        "no lower layer given, and none was recorded with the snapshots; name what lies below them with --lower (or -o lowerdir=)"
    )]
    NoLowersBelow,

    /// What is beside the upper.
    #[error(transparent)]
    Snapshots(#[from] SnapshotError),

    /// A name between two colons is empty.
    #[error(
        "empty name in the list of lower layers; write each directory once between colons, and a colon within a name as \\:"
    )]
    EmptyLower,

    /// A name in the list begins with a quote.
    #[error(
        "a quote in the list of lower layers; quote the whole list, as in lowerdir=\"/a:/b,c\", and write a quote of a name as \\\""
    )]
    QuoteInside,

    /// Not the kernel's `a:b::data::more` form.
    #[error(
        "two colons in the list of lower layers; layers of data alone come last, each after two colons, as in a:b::data::more"
    )]
    DataOnly,

    /// The kernel's `a:b::data` form, where it has no place.
    #[error("layers of data alone (a:b::data) can be mounted, and are looked at through that mount")]
    DataOnlyHere,

    /// A workdir serves an upper.
    #[error("a workdir is of use only with an upper layer; leave out --work, or add --upper")]
    WorkWithoutUpper,

    /// ENOENT.
    #[error("{role} {}: no such directory; check the path, or make it with mkdir -p", Shown(.path))]
    Missing {
        /// Which directory.
        role: Role,
        /// As the caller wrote it.
        path: PathBuf,
    },

    /// ENOTDIR.
    #[error("{role} {}: not a directory; a tar or an image file must be unpacked or mounted first", Shown(.path))]
    NotADirectory {
        /// Which directory.
        role: Role,
        /// As the caller wrote it.
        path: PathBuf,
    },

    /// EACCES or EPERM.
    #[error("{role} {}: permission denied for uid {uid}, which needs {needs}; change its mode or owner, or mount as another user", Shown(.path))]
    Denied {
        /// Which directory.
        role: Role,
        /// As the caller wrote it.
        path: PathBuf,
        /// The effective user id of this process.
        uid: u32,
        /// The rights that are missing, in words.
        needs: &'static str,
    },

    /// The mount point is what a FUSE daemon left when it died.
    #[error("mount point {0}: a dead FUSE mount is still there; {1}", Shown(.path), TakeAway(.path))]
    DeadMount {
        /// The mount point.
        path: PathBuf,
    },

    /// The mount point already is a mount of ours.
    #[error("mount point {0}: busy, a unionmount is mounted there already; unmount it first with `umount {0}`", Shown(.path))]
    AlreadyMounted {
        /// The mount point.
        path: PathBuf,
    },

    /// Any other failure to open.
    #[error("{role} {}: cannot be opened: {}", Shown(.path), Said(*.errno))]
    Open {
        /// Which directory.
        role: Role,
        /// As the caller wrote it.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },

    /// One directory in two roles.
    #[error("{second} {} is the same directory as {first} {}; each directory may be given only once", Shown(.second_path), Shown(.first_path))]
    Same {
        /// The role in which it was met first.
        first: Role,
        /// Its path there.
        first_path: PathBuf,
        /// The other role.
        second: Role,
        /// The other path.
        second_path: PathBuf,
    },

    /// One directory lies in another where that would make a loop or change a lower.
    #[error("{inner} {} lies inside {outer} {}; choose a directory outside of it", Shown(.inner_path), Shown(.outer_path))]
    Nested {
        /// The inner one.
        inner: Role,
        /// Its path.
        inner_path: PathBuf,
        /// The one around it.
        outer: Role,
        /// Its path.
        outer_path: PathBuf,
    },

    /// The upper's filesystem is mounted read-only.
    #[error("{role} {} is on a read-only filesystem; remount that read-write, or leave out --upper for a read-only mount", Shown(.path))]
    ReadOnly {
        /// Upper or workdir.
        role: Role,
        /// Its path.
        path: PathBuf,
    },

    /// The upper's filesystem knows neither device nodes nor extended attributes.
    #[error("upper layer {}: its filesystem cannot hold an overlay's marks (whiteouts, extended attributes), so deletions cannot be recorded; use an upper on ext4, XFS, btrfs or tmpfs", Shown(.path))]
    NoMarkers {
        /// The upper.
        path: PathBuf,
    },

    /// The upper's filesystem numbers names, not objects.
    #[error("upper layer {}: its filesystem gives a file another inode number under another name, so files can't be told apart; if it is one of libfuse's, mount it with use_ino (mergerfs: with inodecalc=devino-hash as well), else use an upper on another filesystem", Shown(.path))]
    NumbersChange {
        /// The upper.
        path: PathBuf,
    },

    /// The upper's filesystem can replace nothing in one step, and can't hide that either.
    #[error("upper layer {}: its filesystem has neither RENAME_EXCHANGE and RENAME_WHITEOUT nor names that begin with .wh., so nothing could be replaced in one step; use an upper on another filesystem", Shown(.path))]
    NoSteps {
        /// The upper.
        path: PathBuf,
    },

    /// There is no place beside the upper.
    #[error("no workdir can be made beside upper layer {}: {why}; name one on the upper's filesystem with --work (or -o workdir=)", Shown(.path))]
    NoDefaultWork {
        /// The upper.
        path: PathBuf,
        /// The cause, in words.
        why: &'static str,
    },

    /// rename(2) from the workdir to the upper is not possible.
    #[error("workdir {} is not on the same {what} as upper layer {}; choose one beside the upper", Shown(.path), Shown(.upper))]
    WorkElsewhere {
        /// The workdir.
        path: PathBuf,
        /// The upper.
        upper: PathBuf,
        /// "filesystem" or "mount".
        what: &'static str,
    },

    /// The workdir holds what no overlay puts there.
    #[error("workdir {} is not empty: it holds {}, which is not part of an overlay's workdir; name an empty directory with --work", Shown(.path), Shown(Path::new(.name)))]
    WorkForeign {
        /// The workdir.
        path: PathBuf,
        /// The first foreign name.
        name: OsString,
    },

    /// Another live mount holds the lock.
    #[error("{role} {} is in use by another mount, or one with lazy=on that has ended is sealed still; unmount that first (`findmnt -t fuse.unionmount` lists them), or use another directory", Shown(.path))]
    InUse {
        /// Upper or workdir.
        role: Role,
        /// Its path.
        path: PathBuf,
    },

    /// `work/incompat/volatile` is there: the last volatile mount did not end cleanly.
    #[error("upper layer {} was last mounted volatile and not unmounted cleanly, so its files may be incomplete; start with a new upper, or if the machine has not crashed since, remove {} and mount again", Shown(.path), Shown(.marker))]
    Volatile {
        /// The upper.
        path: PathBuf,
        /// The directory that says so.
        marker: PathBuf,
    },

    /// `work/incompat/X` is there: an overlay feature that this program does not know.
    #[error("workdir {} was used with the overlay feature {}, which is not supported; mount it with the program that wrote it, or use a new upper and workdir", Shown(.path), Shown(Path::new(.feature)))]
    Incompatible {
        /// The workdir.
        path: PathBuf,
        /// The feature's name.
        feature: OsString,
    },

    /// A leftover of an earlier mount resists removal.
    #[error("workdir {}: cannot remove {}, left by an earlier mount: {}{}", Shown(.path), Shown(Path::new(.name)), Said(*.errno), sweep_hint(*.errno))]
    Leftover {
        /// The workdir.
        path: PathBuf,
        /// What resists, relative to the workdir.
        name: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },

    /// Any other system call.
    #[error("{role} {}: cannot {what}: {}", Shown(.path), Said(*.errno))]
    Io {
        /// Which directory.
        role: Role,
        /// Its path.
        path: PathBuf,
        /// What was tried, as an infinitive.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

impl StackError {
    /// Says that the filesystem of the upper at `path` is unfit.
    pub(in crate::union) fn unfit(why: Unfit, path: &Path) -> StackError {
        let path = path.to_owned();
        match why {
            Unfit::NoMarkers => StackError::NoMarkers { path },
            Unfit::NumbersChange => StackError::NumbersChange { path },
            Unfit::NoSteps => StackError::NoSteps { path },
        }
    }
}

fn sweep_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM => "; if it is immutable, clear that with chattr -R -i, else remove it as its owner",
        Errno::ACCESS => "; remove it as its owner, or name another directory with --work",
        Errno::BUSY => "; something is mounted on it: unmount that",
        _ => "",
    }
}

pub(in crate::union) fn denied(role: Role, path: &Path, needs: &'static str) -> StackError {
    StackError::Denied { role, path: path.to_owned(), uid: rustix::process::geteuid().as_raw(), needs }
}

/// Returns the error of opening a directory, by its errno.
pub(in crate::union) fn open_error(role: Role, path: &Path, errno: Errno) -> StackError {
    let path_buf = path.to_owned();
    match errno {
        Errno::NOENT => StackError::Missing { role, path: path_buf },
        Errno::NOTDIR => StackError::NotADirectory { role, path: path_buf },
        Errno::ACCESS | Errno::PERM => denied(role, path, "search permission on every directory above it"),
        Errno::NOTCONN | Errno::CONNABORTED if role == Role::MountPoint => {
            StackError::DeadMount { path: path_buf }
        }
        errno => StackError::Open { role, path: path_buf, errno },
    }
}
