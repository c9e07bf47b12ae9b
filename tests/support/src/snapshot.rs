//! What a tree looks like to a program, and how two trees differ.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, OFlags};
use sha2::{Digest, Sha256};

/// A file's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    Character,
    Block,
}

impl Kind {
    /// From what stat says.
    pub fn of(kind: std::fs::FileType) -> Self {
        match kind {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Symlink,
            kind if kind.is_fifo() => Kind::Fifo,
            kind if kind.is_socket() => Kind::Socket,
            kind if kind.is_char_device() => Kind::Character,
            kind if kind.is_block_device() => Kind::Block,
            _ => Kind::File,
        }
    }

    /// From what a directory entry says; `None` for an unknown type.
    pub fn of_entry(kind: FileType) -> Option<Self> {
        Some(match kind {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::Character,
            FileType::BlockDevice => Kind::Block,
            _ => return None,
        })
    }
}

/// What a file or a link holds.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing to hold: directories, fifos, devices.
    None,
    /// A short file, or a link's target.
    Bytes(Vec<u8>),
    /// The sha256 of a longer one.
    Digest([u8; 32]),
    /// Not to be compared.
    Any,
}

impl Content {
    /// The content `bytes`, in the form that a snapshot keeps.
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.len() <= SHORT {
            Content::Bytes(bytes.to_vec())
        } else {
            Content::Digest(Sha256::digest(bytes).into())
        }
    }
}

/// Up to which length contents are kept as they are, so that differences can be read.
const SHORT: usize = 512;

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::None => f.write_str("none"),
            Content::Any => f.write_str("any"),
            Content::Bytes(bytes) if bytes.len() > 64 => {
                write!(f, "{} bytes: {}", bytes.len(), run_lengths(bytes))
            }
            Content::Bytes(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Content::Digest(digest) => write!(f, "sha256:{}", hex::encode(&digest[..8])),
        }
    }
}

/// `3×'a' 120×'\0'`: how a long content of long runs can be read.
fn run_lengths(bytes: &[u8]) -> String {
    let mut text = String::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        write!(text, "{}×'{}' ", run.len(), run[0].escape_ascii()).unwrap();
        if text.len() > 200 {
            return text + "…";
        }
    }
    text
}

/// A modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// Exactly this (seconds, nanoseconds).
    At(i64, i64),
    /// This or later.
    Since(i64, i64),
    /// Not to be compared.
    Any,
}

impl Time {
    fn agrees(self, other: Time) -> bool {
        match (self, other) {
            (Time::Any, _) | (_, Time::Any) | (Time::Since(..), Time::Since(..)) => true,
            (Time::At(s, n), Time::At(t, m)) => (s, n) == (t, m),
            (Time::Since(s, n), Time::At(t, m)) | (Time::At(t, m), Time::Since(s, n)) => (t, m) >= (s, n),
        }
    }
}

/// One object of a tree.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its type.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// st_size of files and links; 0 for others, whose size is the filesystem's affair.
    pub size: u64,
    /// Bytes of a file, target of a link.
    pub content: Content,
    /// st_rdev of devices.
    pub rdev: u64,
    /// st_nlink of what is not a directory; `None`: not to be compared.
    pub nlink: Option<u64>,
    /// st_ino.
    pub ino: u64,
    /// All extended attributes that the filesystem shows.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
}

/// A tree: path from its root (the root's own is empty) → object.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The objects.
    pub entries: BTreeMap<OsString, Entry>,
}

impl Snapshot {
    /// Takes a snapshot of the tree at `root`. Panics with the path of what can't be read.
    pub fn take(root: &Path) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.visit(root, OsStr::new(""), false);
        snapshot
    }

    /// The same, and asserts that every listing agrees with what its names resolve to: each listed name resolves,
    /// once, with the type and the inode number that the listing gave, and `.` and `..` are there.
    pub fn take_checked(root: &Path) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.visit(root, OsStr::new(""), true);
        snapshot
    }

    fn visit(&mut self, root: &Path, path: &OsStr, checked: bool) {
        let place = join(root, path);
        let entry =
            read_entry(&place).unwrap_or_else(|error| panic!("cannot read {}: {error}", place.display()));
        let kind = entry.kind;
        self.entries.insert(path.to_owned(), entry);
        if kind != Kind::Directory {
            return;
        }
        let listed = list(&place).unwrap_or_else(|error| panic!("cannot list {}: {error}", place.display()));
        for item in &listed {
            if item.name == "." || item.name == ".." {
                continue;
            }
            let mut child = path.to_owned();
            if !child.is_empty() {
                child.push("/");
            }
            child.push(&item.name);
            assert!(!self.entries.contains_key(&child), "{} is listed twice", child.display());
            self.visit(root, &child, checked);
            if checked {
                let entry = &self.entries[&child];
                if let Some(kind) = item.kind {
                    assert_eq!(kind, entry.kind, "d_type and st_mode differ at {}", child.display());
                }
                assert_eq!(item.ino, entry.ino, "d_ino and st_ino differ at {}", child.display());
            }
        }
        if checked {
            let dots = listed.iter().filter(|item| item.name == "." || item.name == "..").count();
            assert_eq!(dots, 2, "`.` and `..` in {}", place.display());
        }
    }

    /// The entry at `path`.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(OsStr::new(path))
    }

    /// Hardlink groups: inode number → the first path that has it, for what is not a directory.
    fn first_names(&self) -> BTreeMap<u64, &OsStr> {
        let mut first = BTreeMap::new();
        for (path, entry) in &self.entries {
            if entry.kind != Kind::Directory {
                first.entry(entry.ino).or_insert(path.as_os_str());
            }
        }
        first
    }
}

fn join(root: &Path, path: &OsStr) -> PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(path) }
}

/// One entry of a listing.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The name.
    pub name: OsString,
    /// d_type.
    pub kind: Option<Kind>,
    /// d_ino.
    pub ino: u64,
}

/// Lists a directory as it is, `.` and `..` included.
pub fn list(place: &Path) -> std::io::Result<Vec<Listed>> {
    let mut directory = Dir::read_from(File::open(place)?)?;
    let mut entries = Vec::new();
    while let Some(entry) = directory.read() {
        let entry = entry?;
        entries.push(Listed {
            name: OsString::from_vec(entry.file_name().to_bytes().to_vec()),
            kind: Kind::of_entry(entry.file_type()),
            ino: entry.ino(),
        });
    }
    Ok(entries)
}

fn read_entry(place: &Path) -> std::io::Result<Entry> {
    let metadata = place.symlink_metadata()?;
    let kind = Kind::of(metadata.file_type());
    let content = match kind {
        Kind::File => read_file(place)?,
        Kind::Symlink => Content::Bytes(std::fs::read_link(place)?.into_os_string().into_vec()),
        _ => Content::None,
    };
    let sized = matches!(kind, Kind::File | Kind::Symlink);
    let device = matches!(kind, Kind::Character | Kind::Block);
    Ok(Entry {
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: if sized { metadata.size() } else { 0 },
        content,
        rdev: if device { metadata.rdev() } else { 0 },
        nlink: (kind != Kind::Directory).then(|| metadata.nlink()),
        ino: metadata.ino(),
        xattrs: read_xattrs(place)?,
        mtime: Time::At(metadata.mtime(), metadata.mtime_nsec()),
        ctime: Time::At(metadata.ctime(), metadata.ctime_nsec()),
    })
}

fn read_file(place: &Path) -> std::io::Result<Content> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let mut file = File::options().read(true).custom_flags(flags).open(place)?;
    let mut bytes = Vec::new();
    file.by_ref().take(SHORT as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() <= SHORT {
        return Ok(Content::Bytes(bytes));
    }
    let mut hasher = Sha256::new_with_prefix(&bytes);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Content::Digest(hasher.finalize().into())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// All extended attributes of what is at `place` itself.
pub fn read_xattrs(place: &Path) -> std::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 65536];
    let length = match rustix::fs::llistxattr(place, names.as_mut_slice()) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut xattrs = BTreeMap::new();
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(place, OsStr::from_bytes(name), value.as_mut_slice())?;
        value.truncate(length);
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}

/// Which fields a comparison heeds. Type, content, size, device numbers and permission bits it heeds always.
#[derive(Debug, Clone)]
pub struct Fields {
    /// Owner and group.
    pub owner: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// st_nlink of what is not a directory.
    pub nlink: bool,
    /// Which names are the same inode.
    pub links: bool,
    /// Modification times of what is not a directory.
    pub mtime: bool,
    /// Modification times of directories.
    pub directory_mtime: bool,
    /// Change times.
    pub ctime: bool,
    /// Inode numbers.
    pub ino: bool,
}

impl Fields {
    /// Everything, inode numbers and change times too: for one tree at two times.
    pub fn all() -> Self {
        Fields { ctime: true, ino: true, ..Self::tree() }
    }

    /// What two trees of the same content and attributes have in common.
    pub fn tree() -> Self {
        Fields {
            owner: true,
            xattrs: true,
            nlink: true,
            links: true,
            mtime: true,
            directory_mtime: true,
            ctime: false,
            ino: false,
        }
    }

    /// Only what is in the tree: types, contents, modes.
    pub fn content() -> Self {
        Fields {
            owner: false,
            xattrs: false,
            nlink: false,
            links: false,
            mtime: false,
            directory_mtime: false,
            ctime: false,
            ino: false,
        }
    }
}

/// The differences of two snapshots, a line each; empty when there are none.
pub fn diff(expected: &Snapshot, found: &Snapshot, fields: &Fields) -> String {
    let mut text = String::new();
    let (expected_links, found_links) = (expected.first_names(), found.first_names());
    for (path, want) in &expected.entries {
        let shown = if path.is_empty() { ".".into() } else { path.as_bytes().escape_ascii().to_string() };
        let Some(have) = found.entries.get(path) else {
            writeln!(text, "{shown}: missing, expected {:?} {:?}", want.kind, want.content).unwrap();
            continue;
        };
        for (field, want, have) in differing_fields(want, have, fields) {
            writeln!(text, "{shown}: {field} is {have}, expected {want}").unwrap();
        }
        if fields.links && want.kind != Kind::Directory && have.kind != Kind::Directory {
            let (want, have) = (expected_links[&want.ino], found_links[&have.ino]);
            if want != have {
                writeln!(
                    text,
                    "{shown}: is the same file as {}, expected as {}",
                    have.display(),
                    want.display()
                )
                .unwrap();
            }
        }
    }
    for (path, have) in &found.entries {
        if !expected.entries.contains_key(path) {
            writeln!(
                text,
                "{}: unexpected {:?} {:?}",
                path.as_bytes().escape_ascii(),
                have.kind,
                have.content
            )
            .unwrap();
        }
    }
    text
}

fn differing_fields(want: &Entry, have: &Entry, fields: &Fields) -> Vec<(&'static str, String, String)> {
    if want.kind != have.kind {
        return vec![("type", format!("{:?}", want.kind), format!("{:?}", have.kind))];
    }
    let mut differing = Vec::new();
    let mut note = |field, differs: bool, want: String, have: String| {
        if differs {
            differing.push((field, want, have));
        }
    };
    let any = want.content == Content::Any || have.content == Content::Any;
    let (w, h) = (want, have);
    note("content", !any && w.content != h.content, format!("{:?}", w.content), format!("{:?}", h.content));
    note("size", !any && w.size != h.size, w.size.to_string(), h.size.to_string());
    note("mode", w.mode != h.mode, format!("{:o}", w.mode), format!("{:o}", h.mode));
    note("device", w.rdev != h.rdev, format!("{:x}", w.rdev), format!("{:x}", h.rdev));
    let (owners, owner) = ((w.uid, w.gid), (h.uid, h.gid));
    note("owner", fields.owner && owners != owner, format!("{owners:?}"), format!("{owner:?}"));
    note("xattrs", fields.xattrs && w.xattrs != h.xattrs, show_xattrs(&w.xattrs), show_xattrs(&h.xattrs));
    if let (Some(want), Some(have)) = (w.nlink, h.nlink) {
        note("nlink", fields.nlink && want != have, want.to_string(), have.to_string());
    }
    let heed = if w.kind == Kind::Directory { fields.directory_mtime } else { fields.mtime };
    note("mtime", heed && !w.mtime.agrees(h.mtime), format!("{:?}", w.mtime), format!("{:?}", h.mtime));
    note(
        "ctime",
        fields.ctime && !w.ctime.agrees(h.ctime),
        format!("{:?}", w.ctime),
        format!("{:?}", h.ctime),
    );
    note("inode", fields.ino && w.ino != h.ino, w.ino.to_string(), h.ino.to_string());
    differing
}

fn show_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let mut text = String::from("{");
    for (name, value) in xattrs {
        write!(text, " {}=\"{}\"", name.escape_ascii(), value.escape_ascii()).unwrap();
    }
    text + " }"
}
