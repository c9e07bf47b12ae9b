//! What a path leads to. On the host as everywhere; within a tree, links and `..` stay in it: its root is the root.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::container::error::{ContainerError, Result};
use crate::image::layer::LayerError;
use crate::sys::object::{At, Kind, Stat};

/// A tree in which paths are looked up.
#[derive(Debug, Clone)]
pub struct Scope {
    root: Rc<OwnedFd>,
    inside: bool,
    /// Devices may be made in it: a container's root can make them as well.
    takes_devices: bool,
    /// What messages call it; empty for the host.
    shown: String,
}

/// Something to be copied.
#[derive(Debug)]
pub struct Source {
    /// It, without being opened (O_PATH).
    pub fd: OwnedFd,
    /// What it is.
    pub stat: Stat,
    /// What its copy is called within a directory; `None`: what is in it is meant, and not the directory itself.
    pub name: Option<Vec<u8>>,
    /// What messages call it.
    shown: PathBuf,
}

/// A directory in which something is to be made.
#[derive(Debug)]
pub struct Place {
    /// It (O_PATH).
    pub dir: OwnedFd,
    /// The tree that it is in, and its path there, for names whose way leads through links.
    pub scope: Scope,
    path: Vec<u8>,
}

/// Where a copy goes.
#[derive(Debug)]
pub enum Destination {
    /// A directory that is there.
    Directory(Place),
    /// Something else: the directory that holds it, and its name there.
    Other(Place, Vec<u8>),
    /// Nothing yet: the directory that will hold it, and its name.
    Nothing {
        /// The directory.
        place: Place,
        /// The name.
        name: Vec<u8>,
        /// A slash stands behind it.
        slash: bool,
    },
}

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;
/// How often a lookup is tried that raced with renames elsewhere.
const TRIES: usize = 100;

impl Scope {
    /// Returns the host, as this process sees it from its working directory.
    ///
    /// # Errors
    /// When that can't be opened.
    pub fn host() -> Result<Scope> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let here = rustix::fs::open(".", flags, Mode::empty()).map_err(ContainerError::io("open it", "."))?;
        Ok(Scope { root: Rc::new(here), inside: false, takes_devices: false, shown: String::new() })
    }

    /// Returns a tree; `shown`: what messages call it.
    pub fn inside(root: OwnedFd, shown: &str) -> Scope {
        Scope { root: Rc::new(root), inside: true, takes_devices: false, shown: format!("{shown}:") }
    }

    /// Lets devices be made in it, as in a container, whose programs find none of its own usable but what is allowed to them.
    pub fn with_devices(self) -> Scope {
        Scope { takes_devices: true, ..self }
    }

    /// Returns how a path of it is called in messages.
    pub fn shown(&self, path: &[u8]) -> PathBuf {
        let mut shown = self.shown.clone().into_bytes();
        if self.inside && !path.starts_with(b"/") {
            shown.push(b'/');
        }
        shown.extend_from_slice(path);
        PathBuf::from(OsStr::from_bytes(&shown))
    }

    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        let resolve = match self.inside {
            true => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            false => ResolveFlags::empty(),
        };
        let mut tries = 0;
        loop {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if tries < TRIES => tries += 1,
                other => return other,
            }
        }
    }

    /// Finds what is to be copied. `follow`: a link at the end of the path is followed.
    ///
    /// # Errors
    /// When there is nothing.
    pub fn source(&self, path: &[u8], follow: bool) -> Result<Source> {
        let shown = self.shown(path);
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        let fd = self.open(path, flags).map_err(ContainerError::io("open it", &shown))?;
        let stat = At::Fd(fd.as_fd()).stat().map_err(ContainerError::io("look at it", &shown))?;
        let name = match last(path) {
            b"." => None,
            b"" | b".." if self.inside => None,
            b"" => None,
            b".." => {
                let whole = std::fs::canonicalize(OsStr::from_bytes(path));
                let whole = whole.map_err(ContainerError::io("resolve it", &shown))?;
                whole.file_name().map(|name| name.as_bytes().to_vec())
            }
            name => Some(name.to_vec()),
        };
        Ok(Source { fd, stat, name, shown })
    }

    /// Finds where a copy goes.
    ///
    /// # Errors
    /// When the directory that would hold it isn't there.
    pub fn destination(&self, path: &[u8]) -> Result<Destination> {
        let shown = self.shown(path);
        let place = |dir: OwnedFd, path: &[u8]| Place { dir, scope: self.clone(), path: path.to_vec() };
        match self.open(path, OFlags::PATH) {
            Ok(found) => {
                let stat = At::Fd(found.as_fd()).stat().map_err(ContainerError::io("look at it", &shown))?;
                if stat.kind() == Kind::Directory {
                    return Ok(Destination::Directory(place(found, path)));
                }
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(ContainerError::io("open it", &shown)(errno)),
        }
        let (slash, mut at) = (path.ends_with(b"/") || path.ends_with(b"/."), trimmed(path).to_vec());
        for _ in 0..MOST_LINKS {
            let (parent, name) = cut(&at);
            if matches!(name, b"" | b"." | b"..") {
                return Err(ContainerError::io("open it", &shown)(Errno::NOENT));
            }
            let dir = self.open(parent, OFlags::PATH | OFlags::DIRECTORY);
            let dir = dir.map_err(ContainerError::io("open it", self.shown(parent)))?;
            let entry = At::Name(dir.as_fd(), name);
            let link = match entry.stat() {
                Ok(stat) if stat.kind() == Kind::Symlink => {
                    entry.readlink().map_err(ContainerError::io("read it", &shown))?
                }
                Ok(_) => return Ok(Destination::Other(place(dir, parent), name.to_vec())),
                Err(Errno::NOENT) => {
                    return Ok(Destination::Nothing {
                        place: place(dir, parent),
                        name: name.to_vec(),
                        slash,
                    });
                }
                Err(errno) => return Err(ContainerError::io("look at it", &shown)(errno)),
            };
            at = match link.starts_with(b"/") {
                true => trimmed(&link).to_vec(),
                false => {
                    trimmed(&[parent, if parent.is_empty() { b"" } else { b"/" }, &link].concat()).to_vec()
                }
            };
        }
        Err(ContainerError::io("open it", &shown)(Errno::LOOP))
    }
}

impl Source {
    /// Returns the name that its copy has within a directory.
    pub(super) fn own_name(&self) -> Result<Vec<u8>> {
        self.name
            .clone()
            .ok_or_else(|| ContainerError::Refused(format!("{}: has no name", self.shown.display())))
    }

    /// Returns what messages call something below it.
    pub(super) fn shown(&self, path: &[u8]) -> PathBuf {
        match self.stat.kind() == Kind::Directory && !path.is_empty() {
            true => self.shown.join(OsStr::from_bytes(path)),
            false => self.shown.clone(),
        }
    }

    pub(super) fn io(&self, what: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> ContainerError {
        ContainerError::io(words(what), self.shown(path))
    }

    pub(super) fn io_error(
        &self,
        what: &'static str,
        path: &[u8],
    ) -> impl FnOnce(io::Error) -> ContainerError {
        ContainerError::io(words(what), self.shown(path))
    }

    /// Says of which tree an error of a layer's functions is.
    pub(super) fn layer(&self, error: LayerError) -> ContainerError {
        ContainerError::Refused(format!("{}: {error}", self.shown.display()))
    }
}

fn words(what: &'static str) -> &'static str {
    match what {
        "look at" => "look at it",
        "read" => "read it",
        "open" => "open it",
        "list" => "list it",
        "copy" => "copy it",
        other => other,
    }
}

impl Place {
    /// Returns what messages call an entry of it.
    pub fn shown(&self, name: &[u8]) -> PathBuf {
        let path = if name.is_empty() { self.path.clone() } else { joined(&self.path, name) };
        self.scope.shown(&path)
    }

    /// Opens a directory below it by a way that may lead through links, which stay in its tree.
    pub(super) fn through_links(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        match self.scope.inside {
            true => self.scope.open(&joined(&self.path, path), OFlags::PATH | OFlags::DIRECTORY),
            false => Err(Errno::LOOP),
        }
    }

    /// Tells whether devices may be made in it: one of somebody else's choice is a way into the machine.
    pub fn takes_devices(&self) -> bool {
        self.scope.takes_devices
    }

    /// Tells whether it is of the host.
    pub fn is_of_host(&self) -> bool {
        !self.scope.inside
    }
}

fn joined(path: &[u8], below: &[u8]) -> Vec<u8> {
    match path {
        b"" => below.to_vec(),
        path if path.ends_with(b"/") => [path, below].concat(),
        path => [path, b"/", below].concat(),
    }
}

/// Returns the last component as it is written: empty for the root.
fn last(path: &[u8]) -> &[u8] {
    let mut path = path;
    while let Some(shorter) = path.strip_suffix(b"/") {
        path = shorter;
    }
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

/// Returns the path without slashes and `/.` at its end.
fn trimmed(path: &[u8]) -> &[u8] {
    let mut path = path;
    while path.len() > 1 {
        match path.strip_suffix(b"/.").or_else(|| path.strip_suffix(b"/")) {
            Some(shorter) => path = if shorter.is_empty() { b"/" } else { shorter },
            None => break,
        }
    }
    path
}

/// Returns the directory's path and the name.
fn cut(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(0) => (b"/", &path[1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Splits `NAME:PATH`; `None`: it is a path of the host. Docker's rule, and, since names of images have a colon, the path is
/// what begins with a slash, if anything does.
pub fn split(text: &OsStr) -> Option<(String, Vec<u8>)> {
    let bytes = text.as_bytes();
    if Path::new(text).is_absolute() || bytes.starts_with(b".") {
        return None;
    }
    let at = bytes.windows(2).position(|two| two == b":/");
    let at = at.or_else(|| bytes.iter().position(|&byte| byte == b':'))?;
    // A path with a colon within.
    if at == 0 || (bytes[..at].contains(&b'/') && bytes.get(at + 1) != Some(&b'/')) {
        return None;
    }
    let name = String::from_utf8(bytes[..at].to_vec()).ok()?;
    let path = &bytes[at + 1..];
    Some((name, if path.starts_with(b"/") { path.to_vec() } else { [b"/", path].concat() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_path_are_told_from_a_path() {
        for (text, split_up) in [
            ("web:/srv/f", Some(("web", "/srv/f"))),
            ("web:srv", Some(("web", "/srv"))),
            ("web:", Some(("web", "/"))),
            ("demo:1:/etc", Some(("demo:1", "/etc"))),
            ("host:5000/app:2:/etc/", Some(("host:5000/app:2", "/etc/"))),
            ("./web:/srv", None),
            ("/web:/srv", None),
            ("dir/a:b", None),
            ("file", None),
            (":x", None),
        ] {
            let found = split(OsStr::new(text));
            let found = found.as_ref().map(|(name, path)| (&name[..], std::str::from_utf8(path).unwrap()));
            assert_eq!(found, split_up, "{text}");
        }
    }

    #[test]
    fn ends_of_paths() {
        for (path, name, whole) in [
            ("a/b", "b", "a/b"),
            ("a/b/", "b", "a/b"),
            ("a/b/.", ".", "a/b"),
            ("/", "", "/"),
            ("/./", ".", "/"),
            (".", ".", "."),
            ("a//", "a", "a"),
        ] {
            assert_eq!(last(path.as_bytes()), name.as_bytes(), "{path}");
            assert_eq!(trimmed(path.as_bytes()), whole.as_bytes(), "{path}");
        }
        assert_eq!(cut(b"/a"), (&b"/"[..], &b"a"[..]));
        assert_eq!(cut(b"a"), (&b""[..], &b"a"[..]));
    }

    /// A tree whose links lead out of it, if they are believed.
    fn hostile() -> (tempfile::TempDir, Scope) {
        use std::os::unix::fs::symlink;
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(top.path().join("tree/etc")).unwrap();
        std::fs::write(top.path().join("tree/etc/passwd"), "of the tree").unwrap();
        std::fs::write(top.path().join("secret"), "of the host").unwrap();
        symlink("/etc", top.path().join("tree/absolute")).unwrap();
        symlink("../../../../../../etc", top.path().join("tree/up")).unwrap();
        symlink("../secret", top.path().join("tree/out")).unwrap();
        symlink("/new", top.path().join("tree/dangling")).unwrap();
        symlink("loop", top.path().join("tree/loop")).unwrap();
        let root = rustix::fs::open(top.path().join("tree"), OFlags::PATH, Mode::empty()).unwrap();
        (top, Scope::inside(root, "c"))
    }

    #[test]
    fn links_of_a_tree_lead_nowhere_else() {
        let (_top, scope) = hostile();
        for path in ["/absolute/passwd", "up/passwd", "/../../etc/passwd", "etc/passwd"] {
            assert_eq!(scope.source(path.as_bytes(), false).unwrap().stat.size, 11, "{path}");
        }
        assert_eq!(scope.source(b"out", false).unwrap().stat.kind(), Kind::Symlink);
        let error = scope.source(b"out", true).unwrap_err().to_string();
        assert!(error.starts_with("c:/out: "), "{error}");
        assert!(scope.source(b"loop", true).is_err());
        assert!(scope.destination(b"loop").is_err());
    }

    #[test]
    fn where_a_copy_goes() {
        let (_top, scope) = hostile();
        assert!(matches!(scope.destination(b"/up/").unwrap(), Destination::Directory(_)));
        assert!(
            matches!(scope.destination(b"up/passwd").unwrap(), Destination::Other(_, name) if name == b"passwd")
        );
        let nothing = |path: &str| match scope.destination(path.as_bytes()) {
            Ok(Destination::Nothing { name, slash, .. }) => (String::from_utf8(name).unwrap(), slash),
            other => panic!("{path}: {other:?}"),
        };
        // A link that leads nowhere is made to lead somewhere.
        assert_eq!(nothing("dangling"), ("new".into(), false));
        assert_eq!(nothing("/absolute/x/"), ("x".into(), true));
        assert_eq!(nothing("out"), ("secret".into(), false));
        assert!(scope.destination(b"nosuch/x").is_err());
    }
}
