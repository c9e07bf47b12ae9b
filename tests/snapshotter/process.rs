//! The process: starting, stopping, and who may be there already.

use std::fs;
use std::path::Path;
use std::process::Output;

use rustix::process::Signal;

use crate::server::{Server, command};
use support::{Scratch, wait_until};

pub fn refused(output: &Output, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
}

#[test]
fn sigterm_and_sigint_end_it_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let scratch = Scratch::new();
        let mut server = Server::start(scratch.path());
        // A client that stays connected, as containerd does, is no reason to stay.
        let mut client = server.client();
        client.prepare("a", "").unwrap();
        let ended = server.signal(signal);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.said, "");
        assert!(!scratch.path().join("s.sock").exists());
        let server = Server::start(scratch.path());
        server.client().stat("a").unwrap();
    }
}

#[test]
fn a_call_under_way_is_answered_before_the_end() {
    let scratch = Scratch::new();
    let mut server = Server::start(scratch.path());
    let mut client = server.client();
    let layer = client.prepare("a", "").unwrap().source;
    for number in 0..5_000 {
        fs::File::create(Path::new(&layer).join(number.to_string())).unwrap();
    }
    let place = Path::new(&layer).parent().unwrap().to_owned();
    std::thread::scope(|scope| {
        let removed = scope.spawn(move || client.remove("a"));
        // Set aside, it is being removed.
        assert!(wait_until(support::PATIENCE, || !place.exists()));
        let ended = server.signal(Signal::TERM);
        removed.join().unwrap().unwrap();
        assert_eq!((ended.code, ended.said.as_str()), (Some(0), ""));
    });
    assert_eq!(fs::read_dir(server.root().join("snapshots")).unwrap().count(), 0);
}

#[test]
fn it_starts_again_after_a_kill() {
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    server.client().prepare("a", "").unwrap();
    server.kill();
    assert!(scratch.path().join("s.sock").exists());
    let server = Server::start(scratch.path());
    server.client().stat("a").unwrap();
}

#[test]
fn a_root_or_a_socket_that_is_served_is_refused() {
    let scratch = Scratch::new();
    let other = Scratch::new();
    let server = Server::start(scratch.path());
    server.client().prepare("a", "").unwrap();
    fs::rename(scratch.path().join("s.sock"), scratch.path().join("moved.sock")).unwrap();
    refused(&command(scratch.path()).output().unwrap(), &["in use by another snapshotter", "--root"]);
    fs::rename(scratch.path().join("moved.sock"), other.path().join("s.sock")).unwrap();
    refused(&command(other.path()).output().unwrap(), &["another process answers there", "--address"]);
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let scratch = Scratch::new();
    let address = scratch.path().join("s.sock");
    fs::write(&address, "mine").unwrap();
    refused(&command(scratch.path()).output().unwrap(), &["something else", "s.sock"]);
    assert_eq!(fs::read_to_string(&address).unwrap(), "mine");
}

#[test]
fn a_root_that_cannot_be_made_is_told() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("snapshots"), "").unwrap();
    refused(&command(scratch.path()).output().unwrap(), &["root", "snapshots"]);
}
