//! Emptying a directory that may hold anything: trees of any depth, directories without rights, names of any bytes.
//!
//! Nothing is recursive and no descriptor is held per level: a directory that is not empty has its subdirectories moved
//! up to the top, where the next round finds them. So a leftover tree of ten thousand levels goes as surely as a file.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, chmodat, openat, renameat, unlinkat};
use rustix::io::Errno;

/// What could not be removed, relative to the directory that was to be emptied.
#[derive(Debug)]
pub(crate) struct SweepError {
    pub name: PathBuf,
    pub errno: Errno,
}

/// Removes all entries of `dir` save those named in `keep`.
///
/// `dir` must belong to this process alone: its entries are reached by name, more than once.
pub(crate) fn empty(dir: BorrowedFd<'_>, keep: &[&str]) -> Result<(), SweepError> {
    let mut moved = 0;
    loop {
        let names: Vec<CString> = names(dir)
            .map_err(|errno| SweepError { name: PathBuf::from("."), errno })?
            .into_iter()
            .filter(|name| !keep.iter().any(|kept| kept.as_bytes() == name.as_bytes()))
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            remove(dir, &name, &mut moved)
                .map_err(|errno| SweepError { name: OsStr::from_bytes(name.to_bytes()).into(), errno })?;
        }
    }
}

/// The names in a directory, without `.` and `..`.
pub(in crate::union) fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

/// Opens a subdirectory for reading, never through a symlink. One without rights (the kernel's overlayfs makes its
/// workdirs so) is given them first.
pub(in crate::union) fn enter(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
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

fn remove(top: BorrowedFd<'_>, name: &std::ffi::CStr, moved: &mut u64) -> Result<(), Errno> {
    match unlinkat(top, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno),
    }
    if remove_empty(top, name)? {
        return Ok(());
    }
    let dir = enter(top, name)?;
    for child in names(dir.as_fd())? {
        match unlinkat(&dir, &child, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(errno),
        }
        if !remove_empty(dir.as_fd(), &child)? {
            move_up(dir.as_fd(), &child, top, moved)?;
        }
    }
    match remove_empty(top, name)? {
        true => Ok(()),
        false => Err(Errno::NOTEMPTY),
    }
}

/// rmdir; `false` when the directory is not empty.
fn remove_empty(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<bool, Errno> {
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Moves a directory that is not empty to `top` under a name that is free there.
fn move_up(
    dir: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    top: BorrowedFd<'_>,
    moved: &mut u64,
) -> Result<(), Errno> {
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
        empty(root.as_fd(), &["kept"]).unwrap();
        let left: Vec<_> = names(root.as_fd()).unwrap();
        assert_eq!(left, [c"kept".to_owned()]);
        assert!(fs::metadata("/etc").unwrap().is_dir());
    }
}
