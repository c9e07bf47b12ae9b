//! The database: short of room, damaged, or gone. No snapshot is removed because of it.

use std::fs;
use std::path::Path;

use crate::process::refused;
use crate::server::{Server, command};
use support::{LoopFilesystem, Scratch};

/// A root with a layer, an active snapshot on it, and a server that was killed.
fn filled() -> Scratch {
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    let mut client = server.client();
    client.prepare("a", "").unwrap();
    client.commit("layer", "a").unwrap();
    client.prepare("b", "layer").unwrap();
    server.kill();
    scratch
}

fn places(scratch: &Scratch) -> Vec<String> {
    let dir = scratch.path().join("snapshots/snapshots");
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn remove_database(root: &Path) {
    for name in ["metadata.sqlite", "metadata.sqlite-wal", "metadata.sqlite-shm"] {
        fs::remove_file(root.join(name)).ok();
    }
}

#[test]
fn without_its_database_it_refuses_and_removes_nothing() {
    let scratch = filled();
    let root = scratch.path().join("snapshots");
    for empty in [false, true] {
        remove_database(&root);
        if empty {
            fs::write(root.join("metadata.sqlite"), "").unwrap();
        }
        let said = ["metadata.sqlite is missing or empty where 2 snapshots lie", "--set-aside"];
        refused(&command(scratch.path()).output().unwrap(), &said);
        // Refused again, since nothing was begun.
        refused(&command(scratch.path()).output().unwrap(), &said);
        assert_eq!(places(&scratch), ["1", "2"]);
    }
}

#[test]
fn set_aside_it_begins_anew() {
    let scratch = filled();
    let root = scratch.path().join("snapshots");
    remove_database(&root);
    let mut server = Server::start_with(scratch.path(), &["--set-aside".into()]);
    let mut client = server.client();
    assert!(client.stat("layer").is_err());
    client.prepare("b", "").unwrap();
    assert_eq!(places(&scratch), ["1"]);
    assert!(root.join("set-aside-1/snapshots/2/fs").is_dir());
    let ended = server.signal(rustix::process::Signal::TERM);
    assert!(ended.code == Some(0) && ended.said.contains("set-aside-1"), "{ended:?}");
}

#[test]
fn a_damaged_database_is_one_line() {
    let scratch = filled();
    let root = scratch.path().join("snapshots");
    let file = root.join("metadata.sqlite");
    // What the log holds comes into the file at the end.
    let mut server = Server::start(scratch.path());
    assert_eq!(server.signal(rustix::process::Signal::TERM).code, Some(0));
    assert!(!root.join("metadata.sqlite-wal").exists());
    let good = fs::read(&file).unwrap();
    let zeroed = |from: usize, to: usize| {
        let mut bad = good.clone();
        bad[from..to].fill(0);
        bad
    };
    let half = good.len() / 2;
    let bad = [
        good[..half].to_vec(),
        good[..good.len() - 1000].to_vec(),
        zeroed(0, 100),
        zeroed(0, good.len()),
        zeroed(4096, 8192.min(good.len())),
        vec![0xa5; good.len()],
        b"x".to_vec(),
    ];
    for (case, bad) in bad.iter().enumerate() {
        fs::write(&file, bad).unwrap();
        let output = command(scratch.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{case}: {said}");
        refused(&output, &["metadata.sqlite", "--set-aside"]);
        assert_eq!(places(&scratch), ["1", "2"]);
        for end in ["-wal", "-shm", "-journal"] {
            fs::remove_file(root.join(format!("metadata.sqlite{end}"))).ok();
        }
    }
    // One of yesterday.
    fs::write(&file, &good).unwrap();
    fs::create_dir_all(root.join("snapshots/9/fs")).unwrap();
    refused(&command(scratch.path()).output().unwrap(), &["older than the snapshots", "9 is there"]);
    fs::remove_dir_all(root.join("snapshots/9")).unwrap();
    let server = Server::start(scratch.path());
    server.client().stat("layer").unwrap();
}

#[test]
fn a_torn_log_is_the_state_before_or_after() {
    let scratch = filled();
    let log = scratch.path().join("snapshots/metadata.sqlite-wal");
    let good = fs::read(&log).unwrap();
    assert!(good.len() > 8192, "{}", good.len());
    let file = fs::read(scratch.path().join("snapshots/metadata.sqlite")).unwrap();
    // What a power failure may leave of the last writes: shorter, or with blocks that never came. Each transaction's
    // directories were synced before it, so later directories are leftovers.
    let places_before = scratch.path().join("kept");
    fs::rename(scratch.path().join("snapshots/snapshots"), &places_before).unwrap();
    for step in 0..24 {
        let at = good.len() - step * 512;
        for zeroed in [false, true] {
            let mut bad = good[..at].to_vec();
            if zeroed {
                bad.resize(good.len(), 0);
            }
            fs::write(&log, bad).unwrap();
            fs::write(scratch.path().join("snapshots/metadata.sqlite"), &file).unwrap();
            let server = Server::start(scratch.path());
            let names: Vec<String> =
                server.client().list(&[]).unwrap().into_iter().map(|info| info.name).collect();
            assert!(
                [&["b", "layer"][..], &["layer"], &["a"], &[]].iter().any(|state| names == *state),
                "{step}: {names:?}"
            );
            server.kill();
        }
    }
}

#[test]
fn a_full_disk_is_over_when_there_is_room() {
    support::needs_root!();
    let scratch = Scratch::new();
    let disk = LoopFilesystem::tmpfs(&scratch, "snapshots", 2 << 20);
    let server = Server::start(scratch.path());
    let mut client = server.client();
    client.prepare("first", "").unwrap();
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 4 << 20]).unwrap_err();
    let mut failures = 0;
    for number in 0..200 {
        failures += usize::from(client.prepare(&format!("full-{number}"), "").is_err());
    }
    assert!(failures > 0, "the disk was not full");
    client.stat("first").unwrap();
    fs::remove_file(&filler).unwrap();
    client.prepare("after", "").unwrap();
    client.remove("first").unwrap();
    server.kill();
    let server = Server::start(scratch.path());
    server.client().stat("after").unwrap();
    server.client().stat("first").unwrap_err();
}

#[test]
fn without_inodes_calls_are_refused_and_go_on_when_there_are_some() {
    support::needs_root!();
    support::needs_program!("mkfs.ext4");
    let scratch = Scratch::new();
    let image = scratch.path().join("snapshots.img");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    support::run("mkfs.ext4", &["-Fq", "-N", "128", image.to_str().unwrap()]);
    let disk = LoopFilesystem::again(&scratch, "snapshots");
    let server = Server::start(scratch.path());
    let mut client = server.client();
    client.prepare("a", "").unwrap();
    client.commit("layer", "a").unwrap();
    let kept = client.prepare("b", "layer").unwrap();
    for key in ["to-commit", "to-remove"] {
        client.prepare(key, "layer").unwrap();
    }
    let filler = disk.path().join("filler");
    fs::create_dir(&filler).unwrap();
    let full = (0..).find_map(|number| fs::File::create(filler.join(format!("{number}"))).err()).unwrap();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    let mut names = vec!["b", "layer", "to-commit", "to-remove"];
    // What needs an inode says so, each time.
    for _ in 0..3 {
        let refusals =
            [client.prepare("new", "layer"), client.prepare("new", ""), client.view("new", "layer")];
        for refusal in refusals {
            let said = refusal.unwrap_err();
            assert!(said.message().contains("No space left on device"), "{said:?}");
        }
        let listed: Vec<String> = client.list(&[]).unwrap().into_iter().map(|info| info.name).collect();
        assert_eq!(listed, names);
    }
    // What needs none is done.
    assert_eq!(client.mounts("b").unwrap(), kept);
    client.usage("b").unwrap();
    let info = client.stat("b").unwrap();
    client.update(info).unwrap();
    client.commit("committed", "to-commit").unwrap();
    names = vec!["b", "committed", "layer", "to-remove"];
    // A start without inodes loses nothing either.
    server.kill();
    let server = Server::start(scratch.path());
    let mut client = server.client();
    let listed: Vec<String> = client.list(&[]).unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(listed, names);
    client.prepare("new", "layer").unwrap_err();
    // The directories of one that is removed give the inodes for another.
    client.remove("to-remove").unwrap();
    client.cleanup().unwrap();
    client.prepare("after", "committed").unwrap();
    fs::remove_dir_all(&filler).unwrap();
    client.prepare("new", "layer").unwrap();
    client.view("view", "committed").unwrap();
    assert_eq!(client.mounts("b").unwrap(), kept);
    // Nothing is left of the calls that failed: a directory for each snapshot.
    assert_eq!(places(&scratch).len(), client.list(&[]).unwrap().len());
}

#[test]
fn the_configuration_is_what_each_containerd_reads() {
    let scratch = Scratch::new();
    let printed = |version: &str| {
        let output =
            command(scratch.path()).args(["--print-config", "--containerd", version]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (version, parts) in [
        ("1", ["version = 2", "[plugins.\"io.containerd.grpc.v1.cri\".containerd]"]),
        ("2", ["version = 3", "[plugins.'io.containerd.cri.v1.images']"]),
    ] {
        let text = printed(version);
        let table: toml::Table = text.parse().unwrap();
        let plugin = &table["proxy_plugins"]["unionmount"];
        assert_eq!(plugin["address"].as_str(), scratch.path().join("s.sock").to_str());
        assert_eq!(plugin["exports"]["root"].as_str(), scratch.path().join("snapshots").to_str());
        assert_eq!(plugin["capabilities"][0].as_str(), Some("remap-ids"));
        for part in parts {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
    let two: toml::Table = printed("2").parse().unwrap();
    let unpack = &two["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"][0];
    assert_eq!(unpack["snapshotter"].as_str(), Some("unionmount"));
}
