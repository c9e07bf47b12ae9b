//! Removing trees that may hold anything: trees of any depth, directories without rights, names of any bytes.
//!
//! Nothing is recursive and no descriptor is held per level: a directory that is not empty has its subdirectories moved
//! up to the top, where the next round finds them. So a leftover tree of ten thousand levels goes as surely as a file.

#![allow(clippy::disallowed_methods, reason = "the trees that are removed are its own")]

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, chmodat, openat, renameat, unlinkat};
use rustix::io::Errno;

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", .name.display(), std::io::Error::from(*.errno))]
pub struct Leftover {
    /// Its name, relative to the directory that was to be emptied; of a [`tree`] the whole path.
    pub name: PathBuf,
    /// What the kernel said.
    pub errno: Errno,
}

/// Removes a directory with all that is in it, whatever rights it has. One that isn't there is as good.
///
/// The directory must belong to this process alone, as for [`empty`]; a symbolic link in its place is left, as `ENOTDIR`.
///
/// # Errors
/// See [`Leftover`].
pub fn tree(path: &Path) -> Result<(), Leftover> {
    let whole = |left: PathBuf| if left.as_os_str().is_empty() { path.to_owned() } else { path.join(left) };
    let name = CString::new(path.as_os_str().as_bytes());
    let name = name.map_err(|_| Leftover { name: path.to_owned(), errno: Errno::INVAL })?;
    tree_at(CWD, &name).map_err(|left| Leftover { name: whole(left.name), errno: left.errno })
}

/// Removes a directory with all that is in it. What is told as left is named relative to it.
fn tree_at(at: BorrowedFd<'_>, name: &CStr) -> Result<(), Leftover> {
    let failed = |errno| Leftover { name: PathBuf::new(), errno };
    let dir = match enter(at, name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    // Another process that removes the same tree moves what it meets up to the same directory.
    for _ in 0..IDLE_ROUNDS {
        empty(dir.as_fd(), &[])?;
        if remove_empty(at, name).map_err(failed)? {
            return Ok(());
        }
    }
    Err(failed(Errno::NOTEMPTY))
}

/// Removes the entry `name` of `dir`, with all that is in it where it is a directory. One that isn't there is as good.
///
/// # Errors
/// What the kernel says of the first thing that can't be removed.
pub fn entry(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    match unlinkat(dir, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Filesystems differ in what they say of a directory.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    if remove_empty(dir, &name)? {
        return Ok(());
    }
    tree_at(dir, &name).map_err(|left| left.errno)
}

/// Removes all entries of `dir` save those named in `keep`.
///
/// `dir` must belong to this process alone: its entries are reached by name, more than once.
///
/// # Errors
/// See [`Leftover`].
pub fn empty(dir: BorrowedFd<'_>, keep: &[&str]) -> Result<(), Leftover> {
    let (mut moved, mut idle) = (0, 0);
    // Entries that were moved up come in the next round, those that another remover has moved up as well. Who adds others
    // meanwhile doesn't keep this going.
    for _ in 0..ROUNDS {
        let before = moved;
        let names = names_but(dir, keep)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            remove(dir, &name, &mut moved)
                .map_err(|errno| Leftover { name: OsStr::from_bytes(name.to_bytes()).into(), errno })?;
        }
        idle = if moved == before { idle + 1 } else { 0 };
        if idle > IDLE_ROUNDS {
            break;
        }
    }
    if names_but(dir, keep)?.is_empty() { Ok(()) } else { Err(left_in_it(Errno::NOTEMPTY)) }
}

/// Returns the names in a directory that aren't those of `keep`.
fn names_but(dir: BorrowedFd<'_>, keep: &[&str]) -> Result<Vec<CString>, Leftover> {
    let mut names = names_left(dir).map_err(left_in_it)?;
    names.retain(|name| !keep.iter().any(|kept| kept.as_bytes() == name.as_bytes()));
    Ok(names)
}

/// Makes the error of a directory that was to be emptied.
fn left_in_it(errno: Errno) -> Leftover {
    Leftover { name: PathBuf::from("."), errno }
}

/// How often entries are moved up at most: a tree that nobody changes is some levels lower each time.
const ROUNDS: usize = 10_000;

/// How often something may be there again that nobody here has moved up.
const IDLE_ROUNDS: usize = 100;

/// Returns the names in a directory, without `.` and `..`.
///
/// # Errors
/// Those of openat(2) and getdents(2).
pub fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    // The descriptor may be one that only stands for the directory.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for entry in Dir::new(openat(dir, c".", flags, Mode::empty())?)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

/// Opens a subdirectory for reading, never through a symlink. One without rights (the kernel's overlayfs makes its
/// workdirs so) is given them first.
///
/// # Errors
/// Those of openat(2) and chmod(2).
pub fn enter(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || openat(dir, name, flags, Mode::empty());
    let opened = match open() {
        Err(Errno::ACCESS) => {
            chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        other => other?,
    };
    // Readable but not writable or searchable is not enough to remove what is in it.
    if rustix::fs::accessat(
        &opened,
        c".",
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
        AtFlags::EACCESS,
    )
    .is_err()
    {
        rustix::fs::fchmod(&opened, Mode::RWXU)?;
    }
    Ok(opened)
}

/// Returns the names in a directory that another remover may have removed meanwhile.
fn names_left(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    match names(dir) {
        Err(Errno::NOENT) => Ok(Vec::new()),
        names => names,
    }
}

/// Removes what is of this name, or makes less of it: the next round finds what is left. That something isn't there means
/// that another remover was faster.
fn remove(top: BorrowedFd<'_>, name: &CStr, moved: &mut u64) -> Result<(), Errno> {
    match unlinkat(top, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno),
    }
    if remove_empty(top, name)? {
        return Ok(());
    }
    let dir = match enter(top, name) {
        Err(Errno::NOENT) => return Ok(()),
        dir => dir?,
    };
    for child in names_left(dir.as_fd())? {
        match unlinkat(&dir, &child, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(errno),
        }
        if !remove_empty(dir.as_fd(), &child)? {
            match move_up(dir.as_fd(), &child, top, moved) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    // Another remover may have moved something to this name when it was free.
    remove_empty(top, name).map(drop)
}

/// Removes a directory; `false` when the directory is not empty.
fn remove_empty(dir: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Moves a directory that is not empty to `top` under a name that is free there.
fn move_up(dir: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>, moved: &mut u64) -> Result<(), Errno> {
    let mut opened_up = false;
    loop {
        *moved += 1;
        match renameat(dir, name, top, format!(".sweep-{moved}")) {
            Ok(()) => return Ok(()),
            // That name is taken by what an interrupted sweep left.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            // Moving a directory rewrites its "..", for which it must be writable.
            Err(Errno::ACCESS) if !opened_up => {
                opened_up = true;
                chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            }
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn open(path: &std::path::Path) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).unwrap()
    }

    #[test]
    fn a_tree_deeper_than_any_descriptor_limit_goes() {
        let top = tempfile::tempdir().unwrap();
        let root = open(top.path());
        // Deeper than PATH_MAX allows to name, made from the inside out.
        let mut at = root.try_clone().unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, "e", Mode::RWXU).unwrap();
            at = openat(&at, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        empty(root.as_fd(), &[]).unwrap();
        assert!(names(root.as_fd()).unwrap().is_empty());
    }

    #[test]
    fn directories_without_rights_and_odd_names_go_and_kept_names_stay() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("a/b/c")).unwrap();
        fs::write(top.path().join("a/b/c/f"), "x").unwrap();
        fs::write(top.path().join(OsStr::from_bytes(b"\xff\n")), "x").unwrap();
        fs::create_dir(top.path().join("kept")).unwrap();
        fs::create_dir(top.path().join(".sweep-1")).unwrap();
        fs::write(top.path().join(".sweep-2"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", top.path().join("a/link")).unwrap();
        for dir in ["a/b/c", "a/b", "a"] {
            fs::set_permissions(top.path().join(dir), fs::Permissions::from_mode(0o0)).unwrap();
        }
        let root = open(top.path());
        let place = openat(&root, c".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        empty(place.as_fd(), &["kept"]).unwrap();
        let left: Vec<_> = names(root.as_fd()).unwrap();
        assert_eq!(left, [c"kept".to_owned()]);
        assert!(fs::metadata("/etc").unwrap().is_dir());
    }

    #[test]
    fn those_who_remove_the_same_tree_at_once_do_not_fail() {
        let top = tempfile::tempdir().unwrap();
        let at = top.path().join("tree");
        for _ in 0..30 {
            for branch in 0..8 {
                fs::create_dir_all(at.join(format!("{branch}/a/b/c"))).unwrap();
                fs::create_dir_all(at.join(format!("{branch}/d/e"))).unwrap();
            }
            let dir = open(top.path());
            std::thread::scope(|scope| {
                let removers: Vec<_> = (0..6)
                    .map(|one| {
                        let (at, dir) = (&at, &dir);
                        scope.spawn(move || match one % 2 {
                            0 => tree(at).map_err(|left| left.errno),
                            _ => entry(dir.as_fd(), b"tree"),
                        })
                    })
                    .collect();
                for remover in removers {
                    assert_eq!(remover.join().unwrap(), Ok(()));
                }
            });
            assert!(!at.exists());
        }
    }

    #[test]
    fn a_tree_goes_by_its_path_and_a_link_to_one_stays() {
        let top = tempfile::tempdir().unwrap();
        let at = top.path().join("tree");
        fs::create_dir_all(at.join("a/b")).unwrap();
        fs::write(at.join("a/b/f"), "x").unwrap();
        std::os::unix::fs::symlink(&at, top.path().join("link")).unwrap();
        let refused = tree(&top.path().join("link")).unwrap_err();
        assert!(matches!(refused.errno, Errno::NOTDIR | Errno::LOOP), "{refused}");
        assert!(at.join("a/b/f").exists());
        fs::set_permissions(&at, fs::Permissions::from_mode(0o0)).unwrap();
        tree(&at).unwrap();
        assert!(!at.exists());
        tree(&at).unwrap(); // once more
        let dir = open(top.path());
        fs::create_dir_all(at.join("a/b")).unwrap();
        for name in ["tree", "link", "none"] {
            entry(dir.as_fd(), name.as_bytes()).unwrap();
        }
        assert!(names(dir.as_fd()).unwrap().is_empty());
    }
}
