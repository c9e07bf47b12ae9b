//! A session with a filesystem of a few lines, which can be made to fail where the union should not.
#![allow(clippy::unwrap_used)] // helpers of tests are tests
#![allow(missing_docs)]

use std::fs;
use std::io;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fuse_abi::linux::fuse_attr;
use fuser::Errno;
use support::cli::{Place, is_root, until, wait};
use unionmount::fuse::mount::open_device;
use unionmount::fuse::session::init::Wanted;
use unionmount::fuse::session::{Filesystem, Hooks, SessionOptions, serve};
use unionmount::fuse::wire::operation::Init;
use unionmount::fuse::wire::{Operation, Reply, Request};
use unionmount::sys::panics::contained;

/// A root directory without entries.
struct Null {
    refuse_to_begin: bool,
}

impl Filesystem for Null {
    fn negotiate(&mut self, offer: &Init) -> io::Result<Wanted> {
        assert_eq!(offer.major, 7);
        if self.refuse_to_begin { Err(io::Error::other("not today")) } else { Ok(Wanted::default()) }
    }

    fn serve(&self, request: &Request<'_>, reply: Reply) {
        match request.operation {
            Operation::Lookup { name } => {
                assert_ne!(name, b"panic", "as asked");
                if name == b"contained" {
                    // What reads a file of an archive does so.
                    let error = contained(|| panic!("as asked")).unwrap_err();
                    assert!(error.to_string().contains("as asked"));
                    reply.error(Errno::EIO);
                    return;
                }
                reply.error(Errno::ENOENT);
            }
            Operation::Getattr => {
                let ino = request.header.node.0;
                let attr = fuse_attr { ino, mode: 0o040_755, nlink: 2, blksize: 4096, ..Default::default() };
                reply.attr(Duration::ZERO, &attr);
            }
            Operation::Forget { .. } | Operation::BatchForget(_) => reply.none(),
            // The program gets an error, and doesn't wait for ever.
            Operation::Mkdir { .. } => drop(reply),
            _ => reply.error(Errno::ENOSYS),
        }
    }
}

const POINT: &str = "UNIONMOUNT_TEST_POINT";
const REFUSE: &str = "UNIONMOUNT_TEST_REFUSE";
const SERVED: i32 = 40;
const FAILED: i32 = 41;

/// Not a test: the process that the tests below start, since a panic ends the process and hooks are the process's.
#[test]
#[ignore = "started by the other tests"]
fn serving() {
    let Some(point) = std::env::var_os(POINT) else { return };
    let options = SessionOptions { threads: Some(2), ..SessionOptions::at(point) };
    let null = Null { refuse_to_begin: std::env::var_os(REFUSE).is_some() };
    let served = serve(null, open_device().unwrap(), &options, Hooks::default());
    std::process::exit(if served.is_ok() { SERVED } else { FAILED });
}

fn start(place: &Place, environment: &[(&str, &str)]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serving", "--ignored"])
        .env(POINT, place.at("mnt"))
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn an_unmounted_session_ends_in_order() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let mut child = start(&place, &[]);
    until("it is mounted", || place.mounted("mnt").is_some());
    assert_eq!(fs::metadata(place.at("mnt/x")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(fs::create_dir(place.at("mnt/x")).unwrap_err().raw_os_error(), Some(libc::EIO));
    place.umount("mnt");
    assert_eq!(wait(&mut child), Some(SERVED));
}

#[test]
fn a_panic_ends_the_process_and_the_mount_unless_it_is_contained() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let mut child = start(&place, &[]);
    until("it is mounted", || place.mounted("mnt").is_some());
    for _ in 0..20 {
        let contained = fs::metadata(place.at("mnt/contained")).unwrap_err();
        assert_eq!(contained.raw_os_error(), Some(libc::EIO), "and the mount goes on");
        assert_eq!(fs::metadata(place.at("mnt/x")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
    fs::metadata(place.at("mnt/panic")).unwrap_err();
    assert_eq!(wait(&mut child), Some(101));
    assert!(place.mounted("mnt").is_none(), "no dead mount is left");
}

#[test]
fn a_filesystem_that_refuses_to_begin_leaves_no_mount() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    let mut child = start(&place, &[(REFUSE, "1")]);
    assert_eq!(wait(&mut child), Some(FAILED));
    assert!(place.mounted("mnt").is_none());
}
