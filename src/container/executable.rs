//! Whether the kernel will run a container's program: what it says itself is one word, told by the runtime in its own way.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use super::error::{ContainerError, Result};
use crate::image::platform::Machine;

/// The status that shells and engines give for a program that is missing (127) or none (126). `None`: it is there, or
/// may be, in what is mounted into the container.
///
/// # Errors
/// When it is there and the kernel can't run it: a program of another machine without an emulator, or no program.
pub(super) fn fails_with(root: &File, spec: &Spec) -> Result<Option<i32>> {
    let Some(process) = spec.process() else { return Ok(None) };
    let Some(program) = process.args().as_ref().and_then(|args| args.first()) else { return Ok(None) };
    let path = process.env().iter().flatten().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or_default();
    let places: Vec<PathBuf> = match program.contains('/') {
        true => vec![process.cwd().join(program)],
        false => path.split(':').map(|dir| process.cwd().join(dir).join(program)).collect(),
    };
    let mounted =
        |place: &PathBuf| spec.mounts().iter().flatten().any(|m| place.starts_with(m.destination()));
    if places.iter().any(mounted) {
        return Ok(None);
    }
    let mut status = 127;
    for place in places {
        let open =
            |flags| openat2(root, &place, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT);
        let Ok(found) = open(OFlags::PATH) else { continue };
        // What can't be looked at may be a program.
        let Ok(stat) = fstat(&found) else { return Ok(None) };
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0 {
            let Ok(file) = open(OFlags::RDONLY | OFlags::NONBLOCK).map(File::from) else { return Ok(None) };
            return match refused(&head(&file), Path::new(EMULATORS)) {
                Some(why) => Err(ContainerError::NoProgram(format!("{}: {why}", place.display()))),
                None => Ok(None),
            };
        }
        status = 126;
    }
    Ok(Some(status))
}

/// As much of a file as the kernel looks at.
fn head(file: &File) -> Vec<u8> {
    let mut head = vec![0; 256];
    let read = file.read_at(&mut head, 0).unwrap_or(0);
    head.truncate(read);
    head
}

/// Why the kernel won't run a file that begins so.
fn refused(head: &[u8], emulators: &Path) -> Option<String> {
    if head.starts_with(b"#!") || emulated(head, emulators) {
        return None;
    }
    let Some(machine) = elf_machine(head) else {
        return Some("is neither a program nor a script (which begins with #!)".to_owned());
    };
    let own = elf_machine(&head_of_this_program()?)?;
    // Those of 32 bits run as well, where the kernel was built so.
    let older = match own {
        62 => 3,
        183 => 40,
        21 => 20,
        same => same,
    };
    (machine != own && machine != older).then(|| {
        format!(
            "is a program for {}, and this machine is {}; an emulator runs it (qemu-user and binfmt_misc; Debian has both \
             in qemu-user-static)",
            name(machine),
            Machine::here()
        )
    })
}

fn head_of_this_program() -> Option<Vec<u8>> {
    File::open("/proc/self/exe").ok().map(|file| head(&file))
}

/// The machine that an ELF file is for; `None`: it is none.
fn elf_machine(head: &[u8]) -> Option<u16> {
    let bytes: [u8; 2] = head.get(18..20)?.try_into().ok()?;
    match (head.starts_with(b"\x7fELF"), head[5]) {
        (true, 1) => Some(u16::from_le_bytes(bytes)),
        (true, 2) => Some(u16::from_be_bytes(bytes)),
        _ => None,
    }
}

/// As images call it.
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

/// Where the kernel lists what runs files for it (binfmt_misc).
const EMULATORS: &str = "/proc/sys/fs/binfmt_misc";

/// Whether some interpreter is registered for programs of other machines.
pub fn has_emulators() -> bool {
    handlers(Path::new(EMULATORS)).iter().any(|handler| handler.magic.starts_with(b"\x7fELF"))
}

fn emulated(head: &[u8], emulators: &Path) -> bool {
    handlers(emulators).iter().any(|handler| handler.takes(head))
}

/// What a file must hold for an interpreter to be called.
struct Handler {
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

impl Handler {
    /// Reads one that is enabled and goes by content.
    fn read(text: &str) -> Option<Handler> {
        let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        if text.lines().next() != Some("enabled") {
            return None;
        }
        // `status` says no more; what goes by a file's ending takes nothing by its content.
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

fn handlers(dir: &Path) -> Vec<Handler> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts.filter_map(|text| Handler::read(&text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let why = |head: &[u8]| refused(head, none.path());
        assert_eq!(why(&head_of_this_program().unwrap()), None);
        assert_eq!(why(b"#!/bin/sh\n"), None);
        assert!(why(&elf(22, 2)).unwrap().contains("for s390x"));
        assert!(why(&elf(243, 1)).unwrap().contains("for riscv64"));
        for text in [&b"echo hi\n"[..], b"", b"\x7fELF"] {
            assert!(why(text).unwrap().contains("neither"), "{}", text.escape_ascii());
        }
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
        assert_eq!(refused(&elf(22, 2), dir.path()), None);
        assert!(refused(&elf(243, 1), dir.path()).is_some());
        fs::write(dir.path().join("qemu-s390x"), text.replace("enabled", "disabled")).unwrap();
        assert!(refused(&elf(22, 2), dir.path()).is_some());
    }
}
