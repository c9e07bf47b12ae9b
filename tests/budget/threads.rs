//! Long work keeps nobody else waiting.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::scope;

use support::Stack;

/// As many copy-ups at once as there could be threads, and then some: other requests are answered meanwhile.
#[test]
fn copy_ups_of_large_files_keep_no_thread() {
    const LARGE: usize = 12;
    let stack = Stack::new(1);
    let content = vec![b'l'; 16 << 20];
    for n in 0..LARGE {
        stack.lower(0).file(format!("large-{n}"), &content);
    }
    let mount = stack.mount();
    let (started, done) = (&AtomicUsize::new(0), &AtomicUsize::new(0));
    let files: Vec<File> = (0..LARGE)
        .map(|n| File::options().read(true).write(true).open(mount.join(format!("large-{n}"))).unwrap())
        .collect();
    let during = scope(|scope| {
        for (n, file) in files.iter().enumerate() {
            scope.spawn(move || {
                started.fetch_add(1, Ordering::SeqCst);
                match n % 3 {
                    0 => file.write_all_at(b"x", 5).unwrap(),
                    1 => file.set_len(15 << 20).unwrap(),
                    _ => rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 17 << 20)
                        .unwrap(),
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        while started.load(Ordering::SeqCst) < LARGE {
            std::thread::yield_now();
        }
        let mut during = 0;
        // At least once, whatever the machine does.
        for n in 0.. {
            assert!(fs::symlink_metadata(mount.join(format!("missing-{n}"))).is_err());
            if done.load(Ordering::SeqCst) == LARGE {
                break;
            }
            during += 1;
        }
        during
    });
    eprintln!("{during} lookups were answered while {LARGE} files were copied up");
    drop(files);
    for n in 0..LARGE {
        let mut expected = content.clone();
        match n % 3 {
            0 => expected[5] = b'x',
            1 => expected.truncate(15 << 20),
            _ => {}
        }
        assert!(fs::read(mount.join(format!("large-{n}"))).unwrap() == expected, "large-{n}");
    }
    mount.unmount();
    stack.assert_workdir_clean();
}
