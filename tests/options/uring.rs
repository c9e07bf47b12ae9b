//! Requests over io_uring. What the kernel offers is a parameter for all mounts of the machine; only those ask for it that
//! are told to, so the tests here turn it on and put it back.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

use rustix::fs::{FlockOperation, flock};

use crate::effects::requests;
use crate::{sh, umount};
use support::cli::{Place, is_root, until};

const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// Whether the kernel offers io_uring, as long as this lives. There is one at a time on the machine.
pub struct Offer {
    parameter: File,
    before: String,
}

impl Offer {
    /// `None` where it can't be set: without root, before Linux 6.14.
    pub fn set(value: &str) -> Option<Offer> {
        if !is_root() {
            return None;
        }
        let mut parameter = File::options().write(true).open(PARAMETER).ok()?;
        flock(&parameter, FlockOperation::LockExclusive).unwrap();
        let before = fs::read_to_string(PARAMETER).unwrap();
        parameter.write_all(value.as_bytes()).ok()?;
        Some(Offer { parameter, before })
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.parameter.write_all(self.before.as_bytes()).unwrap_or_else(|e| eprintln!("{PARAMETER}: {e}"));
    }
}

/// Returns from a test on a machine without it.
#[macro_export]
macro_rules! needs_uring {
    () => {
        match $crate::uring::Offer::set("Y") {
            Some(offer) => offer,
            None => support::skip!("needs root, and a kernel with FUSE over io_uring"),
        }
    };
}

fn mount(place: &Place) {
    sh(place, "./unionmount -v --log-file log -o lowerdir=a:b,upperdir=up,workdir=w,uring mnt");
}

/// The threads that serve, by name.
fn serving(place: &Place) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", place.daemon().as_raw_nonzero())).unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with("fuse-")).collect()
}

/// Bytes that tell where they belong.
pub fn content(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at >> 8) as u8 ^ at as u8).collect()
}

#[test]
fn requests_come_over_io_uring() {
    let _offer = needs_uring!();
    let place = Place::new();
    let large = content(3 << 20);
    fs::write(place.at("a/large"), &large).unwrap();
    fs::write(place.at("b/small"), "small").unwrap();
    mount(&place);
    for name in ["fuse-0-0", "fuse-0-1", "fuse-0"] {
        until(name, || serving(&place).iter().any(|serving| serving == name));
    }

    // The smallest and the largest that there is, both ways.
    assert!(!place.at("mnt/no").exists());
    assert_eq!(fs::read(place.at("mnt/small")).unwrap(), b"small");
    assert_eq!(fs::read(place.at("mnt/large")).unwrap(), large);
    fs::write(place.at("mnt/new"), &large).unwrap();
    assert_eq!(fs::read(place.at("up/new")).unwrap(), large);
    assert_eq!(fs::read(place.at("mnt/new")).unwrap(), large);
    assert_eq!(place.names("mnt"), ["large", "new", "small"]);

    // What was removed is forgotten over the device.
    for i in 0..50 {
        fs::write(place.at(format!("mnt/{i}")), "x").unwrap();
        fs::remove_file(place.at(format!("mnt/{i}"))).unwrap();
    }
    until("they are forgotten", || requests(&place, "forget ") >= 50);
    umount(&place);
    assert!(fs::read_to_string(place.at("log")).unwrap().contains("unmounted"));
}

#[test]
fn answers_of_other_threads_come() {
    /// More at once than threads serve a processor.
    const FILES: usize = 6;
    let _offer = needs_uring!();
    let place = Place::new();
    // On another filesystem, so that copying takes a while and is done aside.
    sh(&place, "mount -t tmpfs x b");
    let lower = content(24 << 20);
    for i in 0..FILES {
        fs::write(place.at(format!("b/{i}")), &lower).unwrap();
    }
    mount(&place);
    std::thread::scope(|scope| {
        for i in 0..FILES {
            let path = place.at(format!("mnt/{i}"));
            scope.spawn(move || {
                let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                file.write_all_at(b"changed", 5).unwrap();
            });
        }
    });
    let mut changed = lower;
    changed[5..12].copy_from_slice(b"changed");
    for i in 0..FILES {
        assert!(fs::read(place.at(format!("up/{i}"))).unwrap() == changed, "{i}");
    }
    assert!(!place.at("mnt/no").exists());
    umount(&place);
    sh(&place, "umount b");
}

#[test]
fn without_it_the_mount_works_all_the_same() {
    if !is_root() {
        support::skip!("needs root");
    }
    // A kernel that knows nothing of it is as good.
    let _offer = Offer::set("N");
    let place = Place::new();
    fs::write(place.at("b/f"), "x").unwrap();
    mount(&place);
    assert_eq!(fs::read(place.at("mnt/f")).unwrap(), b"x");
    assert!(serving(&place).iter().all(|name| name.matches('-').count() == 1));
    umount(&place);
}
