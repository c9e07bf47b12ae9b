//! Whether the kernel will run a container's program: what it says itself is one word, told by the runtime in its own way.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Process};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::error::{ContainerError, Result};
use crate::image::platform::Machine;
use crate::sys::object::At;

/// Checks that the kernel will run a program: one that is there, or may be, in what is mounted into the container.
///
/// # Errors
/// [`ContainerError::NoProgram`] with the status that shells give: 127 when there is none, 126 when it is none, or one of another
/// machine without an emulator.
pub(super) fn check(root: &File, process: &Process, mounts: &[Mount]) -> Result<()> {
    let Some(program) = process.args().as_ref().and_then(|args| args.first()) else { return Ok(()) };
    let path = process.env().iter().flatten().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or_default();
    let places: Vec<PathBuf> = match program.contains('/') {
        true => vec![process.cwd().join(program)],
        false => path.split(':').map(|dir| process.cwd().join(dir).join(program)).collect(),
    };
    let mounted = |place: &PathBuf| mounts.iter().any(|m| place.starts_with(m.destination()));
    if places.iter().any(mounted) {
        return Ok(());
    }
    let none = |code, why: String| Err(ContainerError::NoProgram { code, why });
    let mut met = None;
    for place in places {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = match openat2(root, &place, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(found) => found,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            // What can't be looked at may be a program.
            Err(_) => return Ok(()),
        };
        let Ok(stat) = fstat(&found) else { return Ok(()) };
        // Links of the image may have led to where something is mounted.
        if inside(root, &found).is_none_or(|place| mounted(&place)) {
            return Ok(());
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0 {
            // The one that was looked at, whatever has its name by now.
            let Ok(file) = At::Fd(found.as_fd()).open_read().map(File::from) else { return Ok(()) };
            let Ok(head) = head(&file) else { return Ok(()) };
            return match refused(&head, &emulators()) {
                Some(why) => none(126, format!("{}: {why}", place.display())),
                None => Ok(()),
            };
        }
        met = Some(place);
    }
    match met {
        Some(place) => none(126, format!("{}: is no program: no file, or not executable", place.display())),
        None if program.contains('/') => {
            none(127, format!("{program}: there is no such program in the container"))
        }
        None => none(127, format!("{program}: there is no such program in the container's PATH, {path}")),
    }
}

/// Returns where an open file lies below an open directory, from there; `None` where that can't be told.
fn inside(root: &File, found: &OwnedFd) -> Option<PathBuf> {
    let place = |fd: RawFd| fs::read_link(format!("/proc/self/fd/{fd}")).ok();
    let (root, found) = (place(root.as_raw_fd())?, place(found.as_raw_fd())?);
    Some(Path::new("/").join(found.strip_prefix(root).ok()?))
}

/// Reads as much of a file as the kernel looks at.
fn head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; 256];
    let read = file.read_at(&mut head, 0)?;
    head.truncate(read);
    Ok(head)
}

/// Tells why the kernel won't run a file that begins so.
fn refused(head: &[u8], emulators: &Emulators) -> Option<String> {
    if head.starts_with(b"#!") || emulated(head, emulators) {
        return None;
    }
    let Some(machine) = elf_machine(head) else {
        return Some("is neither a program nor a script (which begins with #!)".to_owned());
    };
    let own = elf_machine(&head_of_this_program()?)?;
    // Those of 32 bits run as well, where the kernel was built so; and this may be one of them, on a kernel of 64.
    const RELATED: [[u16; 2]; 3] = [[3, 62], [40, 183], [20, 21]];
    let runs = machine == own || RELATED.iter().any(|pair| pair.contains(&machine) && pair.contains(&own));
    (!runs).then(|| {
        format!(
            "is a program for {}, and this machine is {}; an emulator runs it (qemu-user and binfmt_misc; Debian has both \
             in qemu-user-static)",
            name(machine),
            Machine::here()
        )
    })
}

fn head_of_this_program() -> Option<Vec<u8>> {
    File::open("/proc/self/exe").and_then(|file| head(&file)).ok()
}

/// Returns the machine that an ELF file is for; `None`: it is none.
fn elf_machine(head: &[u8]) -> Option<u16> {
    let bytes: [u8; 2] = head.get(18..20)?.try_into().ok()?;
    match (head.starts_with(b"\x7fELF"), head[5]) {
        (true, 1) => Some(u16::from_le_bytes(bytes)),
        (true, 2) => Some(u16::from_be_bytes(bytes)),
        _ => None,
    }
}

/// Returns it as images call it.
fn name(machine: u16) -> String {
    match machine {
        3 => "386".to_owned(),
        8 => "mips".to_owned(),
        20 => "ppc".to_owned(),
        21 => "ppc64 or ppc64le".to_owned(),
        22 => "s390x".to_owned(),
        40 => "arm".to_owned(),
        62 => "amd64".to_owned(),
        183 => "arm64".to_owned(),
        243 => "riscv64".to_owned(),
        258 => "loong64".to_owned(),
        other => format!("another kind of machine (ELF {other})"),
    }
}

/// Where the kernel lists what runs files for it (binfmt_misc), as long as this lives.
struct Emulators {
    path: PathBuf,
    /// A mount that has no place in any tree.
    _mounted: Option<OwnedFd>,
}

/// Returns that list. Where nobody has mounted it, root mounts it for itself.
fn emulators() -> Emulators {
    let path = PathBuf::from("/proc/sys/fs/binfmt_misc");
    if path.join("status").exists() {
        return Emulators { path, _mounted: None };
    }
    let mounted = fsopen(c"binfmt_misc", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|filesystem| {
        fsconfig_create(filesystem.as_fd())?;
        fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    });
    match mounted {
        Ok(mount) => {
            let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
            Emulators { path, _mounted: Some(mount) }
        }
        Err(errno) => {
            log::debug!("what is registered to run files of other machines can't be seen: {errno}");
            Emulators { path, _mounted: None }
        }
    }
}

/// Returns whether some interpreter is registered for programs of other machines.
pub fn has_emulators() -> bool {
    let handlers = handlers(&emulators()).unwrap_or_default();
    handlers.iter().any(|handler| handler.magic.starts_with(b"\x7fELF"))
}

/// Tells whether an interpreter is registered for such a file, or may be, for all that can be seen.
fn emulated(head: &[u8], emulators: &Emulators) -> bool {
    handlers(emulators).is_none_or(|handlers| handlers.iter().any(|handler| handler.takes(head)))
}

/// What a file must hold for an interpreter to be called.
struct Handler {
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

impl Handler {
    /// Reads one that is enabled. One that goes by a file's ending takes any content, for all that is known here.
    fn read(text: &str) -> Option<Handler> {
        let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        if text.lines().next() != Some("enabled") {
            return None;
        }
        // `status` says no more.
        if field("extension ").is_some() {
            return Some(Handler { magic: Vec::new(), offset: 0, mask: Vec::new() });
        }
        let magic = hex::decode(field("magic ")?).ok()?;
        Some(Handler {
            magic,
            offset: field("offset ").and_then(|offset| offset.parse().ok()).unwrap_or(0),
            mask: field("mask ").and_then(|mask| hex::decode(mask).ok()).unwrap_or_default(),
        })
    }

    fn takes(&self, head: &[u8]) -> bool {
        let mask = self.mask.iter().copied().chain(std::iter::repeat(0xff));
        let Some(there) = head.get(self.offset..self.offset + self.magic.len()) else { return false };
        there.iter().zip(&self.magic).zip(mask).all(|((there, magic), mask)| (there ^ magic) & mask == 0)
    }
}

/// Returns what is registered. `None`: it isn't mounted here, or can't be read; what the kernel has registered counts
/// all the same.
fn handlers(emulators: &Emulators) -> Option<Vec<Handler>> {
    let dir = &emulators.path;
    let status = fs::read_to_string(dir.join("status")).ok()?;
    if status.trim() == "disabled" {
        return Some(Vec::new());
    }
    let mut handlers = Vec::new();
    for entry in fs::read_dir(dir).ok()? {
        let path = entry.ok()?.path();
        // Written only: it takes new ones.
        if path.ends_with("register") {
            continue;
        }
        handlers.extend(Handler::read(&fs::read_to_string(path).ok()?));
    }
    Some(handlers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &Path) -> Emulators {
        Emulators { path: path.to_owned(), _mounted: None }
    }

    fn elf(machine: u16, order: u8) -> Vec<u8> {
        let bytes = |number: u16| if order == 1 { number.to_le_bytes() } else { number.to_be_bytes() };
        let mut head = b"\x7fELF\x02\0\x01".to_vec();
        head[5] = order;
        head.resize(16, 0);
        head.extend([bytes(2), bytes(machine)].concat());
        head.resize(64, 0);
        head
    }

    #[test]
    fn what_the_kernel_refuses_is_named() {
        let none = tempfile::tempdir().unwrap();
        fs::write(none.path().join("status"), "enabled\n").unwrap();
        let why = |head: &[u8]| refused(head, &at(none.path()));
        assert_eq!(why(&head_of_this_program().unwrap()), None);
        assert_eq!(why(b"#!/bin/sh\n"), None);
        assert!(why(&elf(22, 2)).unwrap().contains("for s390x"));
        assert!(why(&elf(243, 1)).unwrap().contains("for riscv64"));
        for text in [&b"echo hi\n"[..], b"", b"\x7fELF"] {
            assert!(why(text).unwrap().contains("neither"), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn what_cannot_be_seen_may_run_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(refused(&elf(22, 2), &at(dir.path())), None, "binfmt_misc isn't mounted");
        fs::write(dir.path().join("status"), "enabled\n").unwrap();
        assert!(refused(&elf(22, 2), &at(dir.path())).is_some());
        fs::write(dir.path().join("jar"), "enabled\ninterpreter /usr/bin/jexec\nflags: \nextension .jar\n")
            .unwrap();
        assert_eq!(refused(b"PK", &at(dir.path())), None, "it goes by the file's ending");
        fs::write(dir.path().join("status"), "disabled\n").unwrap();
        assert!(refused(b"PK", &at(dir.path())).is_some());
    }

    #[test]
    fn an_emulator_takes_what_it_is_registered_for() {
        let dir = tempfile::tempdir().unwrap();
        // As qemu-user-static registers s390x.
        let text = "enabled\ninterpreter /usr/bin/qemu-s390x-static\nflags: F\noffset 0\n\
                    magic 7f454c4602020100000000000000000000020016\nmask ffffffffffffff00fffffffffffffffffffeffff\n";
        fs::write(dir.path().join("qemu-s390x"), text).unwrap();
        // Beside the handlers.
        fs::write(dir.path().join("status"), "enabled\n").unwrap();
        assert_eq!(refused(&elf(22, 2), &at(dir.path())), None);
        assert!(refused(&elf(243, 1), &at(dir.path())).is_some());
        fs::write(dir.path().join("qemu-s390x"), text.replace("enabled", "disabled")).unwrap();
        assert!(refused(&elf(22, 2), &at(dir.path())).is_some());
    }
}
