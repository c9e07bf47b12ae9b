//! Half-copied files where something fails, was interrupted, or is known as it was before.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::{BLOCK, SIZE, build, content, find, node_half, open, read};
use crate::sys::extents;
use crate::sys::object::At;
use crate::union::Union;
use crate::union::bed::Bed;
use crate::union::change::failpoint::hook;
use crate::union::data::file::Write;
use crate::union::data::half::{Half, LARGEST};
use crate::union::data::half_mark::HalfMark;
use crate::union::options::{FsOptions, Lazy, RedirectDir};
use crate::union::view::attr::SetAttr;

fn write(union: &Union, at: u64, bytes: &[u8]) {
    union.write(&find(union, "d/a"), at, bytes, Write::default()).unwrap();
}

fn chmod(union: &Union, mode: u32) {
    union.setattr(&find(union, "d/a"), SetAttr { mode: Some(mode), ..SetAttr::default() }, false).unwrap();
}

/// Returns what a mount has left in which that was done.
fn left_by(act: impl FnOnce(&Union)) -> Bed {
    let bed = build();
    let union = open(&bed);
    act(&union);
    union.shut_down();
    bed
}

fn original() -> Vec<u8> {
    content(2_654_435_761)
}

/// Returns what a write at `at` makes of the original.
fn written(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut content = original();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    content
}

/// Looks at the marks first and tells of them later, as a lookup does: meanwhile the file can become a half-copied one.
#[test]
fn a_lookup_that_looked_before_changes_nothing() {
    let bed = build();
    let union = open(&bed);
    chmod(&union, 0o640);
    let dir = find(&union, "d");
    let before = union.resolve(&dir, b"a").unwrap().unwrap();
    write(&union, 50_000, b"written");
    union.node_of(&dir, b"a", &before, 1).unwrap();
    let node = find(&union, "d/a");
    assert!(read(&union, &node) == written(50_000, b"written"));
    union.node_of(&dir, b"a", &before, 1).unwrap();
    union.ensure_upper(&node).unwrap();
    assert!(read(&union, &node) == written(50_000, b"written"), "sealed");
    union.shut_down();
}

/// Takes what a kill leaves while a metacopy gets its data: blocks in part, and none that count.
#[test]
fn what_an_interrupted_completion_left_are_no_blocks_of_the_copy() {
    let bed = left_by(|union| chmod(union, 0o640));
    let copy = File::options().write(true).open(bed.at("upper/d/a")).unwrap();
    let times = copy.metadata().unwrap().modified().unwrap();
    copy.write_all_at(&original()[..100], 0).unwrap();
    copy.set_modified(times).unwrap();
    drop(copy);
    let union = open(&bed);
    write(&union, 50_000, b"written");
    let node = find(&union, "d/a");
    assert!(read(&union, &node) == written(50_000, b"written"));
    assert_eq!(node_half(&union, &node).count().0, 1, "blocks");
    union.shut_down();
    drop(union);
    let union = open(&bed);
    assert!(read(&union, &find(&union, "d/a")) == written(50_000, b"written"), "in the next mount");
    union.shut_down();
}

/// Gives as much room for attributes as makes the first mark fit and the second not, and all beside that.
#[test]
fn marks_that_do_not_fit_leave_a_copy_that_can_be_written() {
    let (mut whole, mut half) = (0, 0);
    for left in (0..600).step_by(12) {
        let bed = build();
        let union = open(&bed);
        chmod(&union, 0o640);
        let copy = bed.at("upper/d/a");
        // ext4 has a block for them, and some room in the inode.
        let filled = [3900 - left, 1, 20, 40].into_iter().enumerate().all(|(n, size)| {
            let name = format!("user.fills{n}");
            rustix::fs::setxattr(&copy, name, &vec![7; size], XattrFlags::empty()).is_ok()
        });
        write(&union, 50_000, b"written");
        let node = find(&union, "d/a");
        let is_half = union.half(&node).unwrap().is_some();
        if filled {
            *(if is_half { &mut half } else { &mut whole }) += 1;
        }
        assert!(read(&union, &node) == written(50_000, b"written"), "{left} bytes were left");
        union.shut_down();
        drop(union);
        let union = open(&bed);
        assert!(read(&union, &find(&union, "d/a")) == written(50_000, b"written"), "{left}, the next mount");
        union.shut_down();
    }
    if whole == 0 {
        println!("SKIP: this filesystem has room for all attributes");
    }
    assert!(half > 0, "no copy could be marked");
}

/// Takes what a power failure leaves of blocks whose data didn't come: room. ext4 may make zeros of it, as data, when something is
/// written beside it.
#[test]
fn room_without_data_is_given_back_before_anything_is_written() {
    let bed = left_by(|union| write(union, 50_000, b"written"));
    let copy = File::options().read(true).write(true).open(bed.at("upper/d/a")).unwrap();
    let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
    // Around the block that is there, and at the end.
    for (from, blocks) in [(8, 10), (70, 4)] {
        rustix::fs::fallocate(&copy, keep, from * BLOCK, blocks * BLOCK).unwrap();
    }
    let room = || extents::with_room(copy.as_fd(), 0, (SIZE as u64).next_multiple_of(BLOCK)).unwrap() / BLOCK;
    assert_eq!(room(), 14);
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    copy.set_modified(long_ago).unwrap();
    let union = open(&bed);
    let node = find(&union, "d/a");
    // Larger than any file.
    union.write(&node, (1 << 62) + 5, b"x", Write::default()).unwrap_err();
    assert_eq!(room(), 1, "what has no data has room still");
    assert_eq!(copy.metadata().unwrap().modified().unwrap(), long_ago, "nothing was written");
    assert!(read(&union, &node) == written(50_000, b"written"));
    assert_eq!(node_half(&union, &node).count().0, 1, "blocks");
    write(&union, 9 * BLOCK, b"beside");
    assert_eq!(room(), 2);
    let mut expected = written(50_000, b"written");
    expected[9 * BLOCK as usize..][..6].copy_from_slice(b"beside");
    assert!(read(&union, &node) == expected);
    union.shut_down();
    drop(union);
    let union = open(&bed);
    assert!(read(&union, &find(&union, "d/a")) == expected, "in the next mount");
    union.shut_down();
}

#[test]
fn a_write_that_fails_beyond_the_end_leaves_the_end() {
    let bed = build();
    let union = open(&bed);
    write(&union, 50_000, b"written");
    let node = find(&union, "d/a");
    let half = node_half(&union, &node);
    // Larger than any file.
    union.write(&node, (1 << 62) + 5, b"x", Write::default()).unwrap_err();
    let mut bytes = [0; 9];
    assert_eq!(half.read(SIZE as u64 - 1, &mut bytes).unwrap(), 1);
    assert_eq!(half.count().1, (SIZE as u64).div_ceil(BLOCK));
    assert!(read(&union, &node) == written(50_000, b"written"));
    union.shut_down();
}

/// Shows that the time of a write while the file is being sealed is that of the file after.
#[test]
fn sealing_takes_no_time_of_a_write_back() {
    let bed = build();
    let union = Arc::new(open(&bed));
    write(&union, 50_000, b"written");
    let node = find(&union, "d/a");
    let (told, ends) = mpsc::channel();
    let hook = {
        let (union, node) = (union.clone(), node.clone());
        // After its first block: the writer has the file, and somebody begins to seal it.
        hook::once(move || {
            let (done, is_done) = mpsc::channel::<()>();
            let sealing = std::thread::spawn(move || {
                union.ensure_upper(&node).unwrap();
                drop(done);
            });
            is_done.recv_timeout(Duration::from_millis(300)).unwrap_err();
            told.send((sealing, SystemTime::now())).unwrap();
        })
    };
    let bytes = [7; 9000];
    hook::during(hook, || union.write(&node, 99_999, &bytes, Write::default()).unwrap());
    let (sealing, went_on) = ends.recv().unwrap();
    sealing.join().unwrap();
    let modified = fs::metadata(bed.at("upper/d/a")).unwrap().modified().unwrap();
    // The clock of filesystems ticks more slowly.
    assert!(modified + Duration::from_millis(50) > went_on, "the file has a time of before the write's end");
    assert!(union.half(&node).unwrap().is_none(), "it wasn't sealed");
    let mut expected = written(50_000, b"written");
    expected[99_999..108_999].copy_from_slice(&bytes);
    assert!(read(&union, &node) == expected);
    union.shut_down();
}

/// Shows that nobody reads a block of which a part was written, until it could be made a hole again.
#[test]
fn a_block_in_part_is_shown_to_nobody() {
    let top = tempfile::tempdir().unwrap();
    let (below, own) = (top.path().join("below"), top.path().join("own"));
    fs::write(&below, original()).unwrap();
    let copy = File::options().create_new(true).read(true).write(true).open(&own).unwrap();
    copy.set_len(SIZE as u64).unwrap();
    let from: Arc<OwnedFd> = Arc::new(File::open(&below).unwrap().into());
    let stat = At::Fd(from.as_fd()).stat().unwrap();
    let mark = HalfMark::of(&At::Fd(copy.as_fd()).stat().unwrap(), &stat, b"/below".to_vec());
    let mut half = Half::open(File::open(&own).unwrap().into(), from, mark).unwrap();
    copy.write_all_at(b"torn", 3 * BLOCK).unwrap();
    half.state.get_mut().torn.push(3..4);
    let mut bytes = vec![0; SIZE];
    // A descriptor for reading makes no hole.
    assert_eq!(half.read(0, &mut bytes).unwrap_err().errno(), Errno::IO);
    half.own = copy.into();
    assert_eq!(half.read(0, &mut bytes).unwrap(), SIZE);
    assert!(bytes == original());
}

/// Shows that a later mount doesn't read such a block either, and that it is the file's again once it was written whole.
#[test]
fn a_block_in_part_stays_one_in_later_mounts() {
    let bed = build();
    let union = open(&bed);
    write(&union, 50_000, b"written");
    let node = find(&union, "d/a");
    let half = node_half(&union, &node);
    let (own, below) = (bed.at("upper/d/a"), File::open(bed.at("0/d/a")).unwrap());
    // Through a descriptor for reading no hole is made.
    let mark = half.state.read().mark.clone();
    let refused = Half::open(File::open(&own).unwrap().into(), Arc::new(below.into()), mark).unwrap();
    File::options().write(true).open(&own).unwrap().write_all_at(b"torn", 3 * BLOCK).unwrap();
    refused.take_back(union.upper().unwrap(), &mut refused.state.write(), 3..4);
    drop((half, refused, node));
    union.shut_down();
    drop(union);
    let union = open(&bed);
    assert!(read(&union, &find(&union, "d/a")) == written(50_000, b"written"), "in the next mount");
    let mut expected = written(50_000, b"written");
    let whole = [9; BLOCK as usize];
    expected[3 * BLOCK as usize..4 * BLOCK as usize].copy_from_slice(&whole);
    write(&union, 3 * BLOCK, &whole);
    union.shut_down();
    drop(union);
    let union = open(&bed);
    assert!(read(&union, &find(&union, "d/a")) == expected, "written whole");
    union.shut_down();
}

/// Takes a filesystem on which no hole can be made for a while, neither of one block nor of others after it.
#[test]
fn all_blocks_in_part_stay_so_in_later_mounts() {
    let bed = build();
    let union = open(&bed);
    write(&union, 50_000, b"written");
    let node = find(&union, "d/a");
    let half = node_half(&union, &node);
    let (own, below) = (bed.at("upper/d/a"), File::open(bed.at("0/d/a")).unwrap());
    // Through a descriptor for reading no hole is made.
    let mark = half.state.read().mark.clone();
    let refused = Half::open(File::open(&own).unwrap().into(), Arc::new(below.into()), mark).unwrap();
    let torn = File::options().write(true).open(&own).unwrap();
    for blocks in [3..4, 7..9, 70..72] {
        for block in blocks.clone() {
            torn.write_all_at(b"torn", block * BLOCK).unwrap();
        }
        refused.take_back(union.upper().unwrap(), &mut refused.state.write(), blocks);
    }
    drop((half, refused, node, torn));
    union.shut_down();
    drop(union);
    let union = open(&bed);
    let node = find(&union, "d/a");
    assert!(read(&union, &node) == written(50_000, b"written"), "in the next mount");
    assert_eq!(node_half(&union, &node).count().0, 1, "blocks");
    write(&union, 8 * BLOCK, b"anew");
    drop(node);
    union.shut_down();
    drop(union);
    let mut expected = written(50_000, b"written");
    expected[8 * BLOCK as usize..][..4].copy_from_slice(b"anew");
    let union = open(&bed);
    assert!(read(&union, &find(&union, "d/a")) == expected, "one of them was written to");
    union.shut_down();
}

/// Takes a write whose time the kernel tells, while somebody seals the file: each keeps the time that the other must not
/// change.
#[test]
fn sealing_keeps_no_time_that_a_late_write_had_for_a_moment() {
    let bed = build();
    let union = Arc::new(open(&bed));
    write(&union, 50_000, b"written");
    let node = find(&union, "d/a");
    let own = bed.at("upper/d/a");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options().write(true).open(&own).unwrap().set_modified(long_ago).unwrap();
    let (begin, begins) = mpsc::channel::<()>();
    let (written, is_written) = mpsc::channel::<()>();
    let (between, is_between) = mpsc::channel::<()>();
    let sealing = std::thread::spawn({
        let (union, node) = (union.clone(), node.clone());
        move || {
            begins.recv().unwrap();
            // Within the first step: it knows the times that are to stay.
            let hook = hook::once(move || {
                between.send(()).unwrap_or_default();
                is_written.recv_timeout(Duration::from_millis(300)).unwrap_err();
            });
            hook::during(hook, || union.ensure_upper(&node).unwrap());
        }
    });
    let late = Write { late: true, ..Write::default() };
    let mut instants = 0;
    let hook = move |_| {
        instants += 1;
        match instants {
            1 => begin.send(()).unwrap(),
            // Between the data and their time.
            _ => is_between.recv_timeout(Duration::from_millis(300)).unwrap_or_default(),
        }
    };
    hook::during(hook, || union.write(&node, 52_000, b"late", late).unwrap());
    drop(written);
    sealing.join().unwrap();
    assert_eq!(fs::metadata(&own).unwrap().modified().unwrap(), long_ago);
    union.shut_down();
}

/// Shows that a progress bar moves while a half-copied file is sealed.
#[test]
fn what_sealing_moves_is_counted() {
    let bed = build();
    let union = open(&bed);
    write(&union, 50_000, b"written");
    let before = union.bytes_moved();
    assert!(union.seal(&mut |_| ()).unwrap().is_empty());
    let moved = union.bytes_moved() - before;
    // All but its own block and the hole of the lower.
    let most = SIZE as u64 - BLOCK;
    assert!(moved > most - 12 * BLOCK && moved <= most, "{moved}");
    union.shut_down();
}

/// Shows that what the map of a file can take in memory has a bound, however large a lower says that a file is.
#[test]
fn files_too_large_for_a_map_are_copied_whole() {
    let bed = build();
    let below = File::create(bed.at("0/huge")).unwrap();
    for (size, is_half) in [(LARGEST, true), (LARGEST + 1, false)] {
        below.set_len(size).unwrap();
        let union = open(&bed);
        let node = find(&union, "huge");
        union.write(&node, size - 1, b"!", Write::default()).unwrap();
        assert_eq!(union.half(&node).unwrap().is_some(), is_half, "{size}");
        union.unlink(union.root(), b"huge").unwrap();
        union.shut_down();
        drop((node, union));
        fs::remove_file(bed.at("upper/huge")).unwrap();
    }
}

/// Takes the path in the mark for a redirect as any other.
#[test]
fn half_copied_files_are_not_followed_where_redirects_are_not() {
    let bed = left_by(|union| write(union, 5, b"written"));
    for (redirect_dir, expected) in [(RedirectDir::NoFollow, Some(Errno::PERM)), (RedirectDir::Follow, None)]
    {
        let union = bed.open_with(&FsOptions { lazy: Lazy::Keep, redirect_dir, ..FsOptions::default() });
        let found = union.lookup(&find(&union, "d"), b"a");
        assert_eq!(found.err().map(|e| e.errno()), expected, "{redirect_dir:?}");
        union.shut_down();
    }
}

/// Does as a filesystem that counts blocks of what it doesn't hold, and as what copies layers without the mark of a
/// directory.
#[test]
fn a_metacopy_that_looks_whole_is_one() {
    let bed = left_by(|union| chmod(union, 0o640));
    let dir = bed.at("upper/d");
    for name in ["trusted.overlay.impure", "user.overlay.impure"] {
        match rustix::fs::removexattr(&dir, name) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => panic!("{name}: {e}"),
        }
    }
    let copy = File::options().write(true).open(dir.join("a")).unwrap();
    let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&copy, flags, 0, SIZE as u64 + 3 * BLOCK).unwrap();
    assert!(copy.metadata().unwrap().blocks() * 512 >= SIZE as u64);
    let union = open(&bed);
    assert!(read(&union, &find(&union, "d/a")) == original());
    union.shut_down();
}

/// Killed between the two marks it has the first alone: other overlays would read the lower's data over what is written next.
#[test]
fn a_half_copied_file_always_leads_others_nowhere() {
    use crate::union::change::rename::RenameMode;
    use crate::union::data::half_mark::NOWHERE;
    let bed = build();
    let redirect = |union: &Union, path: &str| {
        let node = find(union, path);
        union.with_object(&node, |object| union.marks_of(object)).unwrap().redirect
    };
    for moves in [false, true] {
        let union = open(&bed);
        write(&union, 50_000, b"written");
        let node = find(&union, "d/a");
        union.with_object(&node, |object| union.upper()?.drop_mark(object.writable()?, "redirect")).unwrap();
        assert_eq!(redirect(&union, "d/a"), None);
        drop(node);
        union.shut_down();
        drop(union);
        let union = open(&bed);
        if moves {
            let dir = find(&union, "d");
            union.rename((&dir, b"a"), (&dir, b"moved"), RenameMode::Replace).unwrap();
            assert_eq!(redirect(&union, "d/moved").as_deref(), Some(NOWHERE));
        } else {
            write(&union, 70_000, b"more");
            assert_eq!(redirect(&union, "d/a").as_deref(), Some(NOWHERE));
        }
        union.shut_down();
    }
}
