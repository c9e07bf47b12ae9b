//! With `lazy=on` what a write leaves below follows in the background, at the latest when the mount has ended.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use support::{LoopFilesystem, Mount, Scratch, Stack, read_xattrs, wait_until};

use super::{content, for_writing};

const SIZE: usize = 20 << 20;

/// An ext4 with a journal, and a stack with its upper there.
struct Place {
    stack: Stack,
    // Unmounted after all that lies on it.
    _disk: LoopFilesystem,
    _scratch: Scratch,
}

fn place(room: u64) -> Place {
    let scratch = Scratch::new();
    let disk = LoopFilesystem::new(&scratch, "disk", "ext4", room);
    let stack = Stack::new(1).with_upper_in(disk.path());
    stack
        .lower(0)
        .file("d/large", content(SIZE, 1))
        .file("other", content(SIZE / 2, 2))
        .file("small", "small");
    Place { stack, _disk: disk, _scratch: scratch }
}

fn lazy(stack: &Stack) -> Mount {
    stack.mount_with(&["lazy=on"])
}

fn is_sealed(path: &Path) -> bool {
    let marks = read_xattrs(path).unwrap();
    !marks.keys().any(|mark| mark.ends_with(b"overlay.metacopy") || mark.ends_with(b"unionmount.half"))
}

#[test]
fn a_large_file_becomes_whole_while_it_is_used() {
    support::needs_root!();
    let place = place(256 << 20);
    let stack = &place.stack;
    let here = lazy(stack);
    let file = for_writing(here.join("d/large"));
    file.write_all_at(b"here", 5_000_000).unwrap();
    fs::set_permissions(here.join("small"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut expected = content(SIZE, 1);
    expected[5_000_000..5_000_004].copy_from_slice(b"here");
    let times = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let written = times(&here.join("d/large"));
    let upper = stack.upper().root();
    assert!(wait_until(support::PATIENCE, || is_sealed(&upper.join("d/large"))
        && is_sealed(&upper.join("small"))));
    assert_eq!(times(&here.join("d/large")), written, "nobody wrote since");
    file.write_all_at(b"after", 9_000_000).unwrap();
    expected[9_000_000..9_000_005].copy_from_slice(b"after");
    assert!(fs::read(here.join("d/large")).unwrap() == expected);
    assert!(fs::read(upper.join("d/large")).unwrap() == expected);
    assert_eq!(fs::read_to_string(upper.join("small")).unwrap(), "small");
    drop(file);
    here.unmount();
}

#[test]
fn what_is_left_is_sealed_when_the_mount_has_ended() {
    support::needs_root!();
    let place = place(256 << 20);
    let stack = &place.stack;
    // What an earlier mount has left counts as well.
    let here = stack.mount_with(&["lazy=keep"]);
    for_writing(here.join("other")).write_all_at(b"earlier", 77).unwrap();
    here.unmount();
    let upper = stack.upper().root();
    assert!(!is_sealed(&upper.join("other")));
    let here = lazy(stack);
    for_writing(here.join("d/large")).write_all_at(b"here", 5_000_000).unwrap();
    here.unmount();
    let mut expected = [content(SIZE, 1), content(SIZE / 2, 2)];
    expected[0][5_000_000..5_000_004].copy_from_slice(b"here");
    expected[1][77..84].copy_from_slice(b"earlier");
    for (name, expected) in ["d/large", "other"].iter().zip(expected) {
        assert!(is_sealed(&upper.join(name)), "{name}");
        assert!(fs::read(upper.join(name)).unwrap() == expected, "{name}");
    }
    let here = stack.mount();
    assert!(fs::read(here.join("other")).unwrap().len() == SIZE / 2);
    here.unmount();
}

/// Leaves room on the disk for who writes.
#[test]
fn a_full_disk_is_not_filled_by_sealing() {
    support::needs_root!();
    let place = place(24 << 20);
    let stack = &place.stack;
    let here = lazy(stack);
    for_writing(here.join("d/large")).write_all_at(b"here", 5_000_000).unwrap();
    for_writing(here.join("other")).write_all_at(b"there", 5_000).unwrap();
    let upper = stack.upper().root();
    here.unmount();
    assert!(!is_sealed(&upper.join("d/large")), "there was room");
    let here = lazy(stack);
    let mut expected = content(SIZE, 1);
    expected[5_000_000..5_000_004].copy_from_slice(b"here");
    assert!(fs::read(here.join("d/large")).unwrap() == expected);
    fs::write(here.join("new"), content(1 << 20, 3)).unwrap();
    here.unmount();
}

/// Compares with plain bytes, over many mounts, most of which are killed while they seal.
#[test]
fn kills_while_it_seals_lose_nothing() {
    support::needs_root!();
    let place = place(256 << 20);
    let stack = &place.stack;
    let mut expected = [content(SIZE, 1), content(SIZE / 2, 2)];
    let mut state = 12345u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let upper = stack.upper().root();
    for round in 0..12 {
        let here = lazy(stack);
        for (name, bytes) in ["d/large", "other"].iter().zip(&mut expected) {
            assert!(fs::read(here.join(name)).unwrap() == *bytes, "{name}, round {round}");
            let file = for_writing(here.join(name));
            for _ in 0..20 {
                let (at, data) = (random(bytes.len() - 9000), vec![random(256) as u8; 1 + random(9000)]);
                file.write_all_at(&data, at as u64).unwrap();
                bytes[at..at + data.len()].copy_from_slice(&data);
            }
            if random(3) == 0 {
                let size = bytes.len() - random(100_000);
                file.set_len(size as u64).unwrap();
                bytes.resize(size, 0);
                file.set_len(size as u64 + 50_000).unwrap();
                bytes.resize(size + 50_000, 0);
            }
        }
        // Somewhere in what the thread does, of which the first second is waiting.
        let begun = std::time::Instant::now();
        let patience = Duration::from_millis(900 + random(500) as u64);
        wait_until(patience, || begun.elapsed() >= patience);
        match random(4) {
            0 => here.unmount(),
            _ => here.kill(),
        }
    }
    let here = lazy(stack);
    for (name, bytes) in ["d/large", "other"].iter().zip(&expected) {
        assert!(fs::read(here.join(name)).unwrap() == *bytes, "{name}, in the end");
    }
    here.unmount();
    for (name, bytes) in ["d/large", "other"].iter().zip(&expected) {
        assert!(is_sealed(&upper.join(name)), "{name}");
        assert!(fs::read(upper.join(name)).unwrap() == *bytes, "{name}, sealed");
    }
}

/// Its mount point is gone, and so is its line in the table of mounts.
#[test]
fn what_goes_on_sealing_can_be_asked() {
    support::needs_root!();
    let place = place(512 << 20);
    let stack = &place.stack;
    stack.lower(0).file("larger", content(160 << 20, 4));
    let here = lazy(stack);
    for_writing(here.join("larger")).write_all_at(b"here", 5_000_000).unwrap();
    let point = here.path().to_str().unwrap().to_owned();
    let program = support::built();
    let status = move || {
        let done = std::process::Command::new(&program).args(["status", "--json"]).output().unwrap();
        let said = String::from_utf8(done.stdout).unwrap();
        let mut all = said.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        all.find(|mount| mount["mount_point"] == point.as_str())
    };
    assert_eq!(status().unwrap()["unmounted"], false);
    let asking = std::thread::spawn(move || {
        let mut seen = None;
        let unmounted = || {
            seen = status().filter(|mount| mount["unmounted"] == true).or(seen.take());
            seen.is_some()
        };
        wait_until(support::PATIENCE, unmounted);
        wait_until(support::PATIENCE, || status().is_none());
        (seen, status())
    });
    here.unmount();
    let (seen, after) = asking.join().unwrap();
    assert_eq!(seen.expect("it was listed")["lazy"]["half_copied"], 1);
    assert!(after.is_none(), "{after:?}");
    assert!(is_sealed(&stack.upper().root().join("larger")));
}
