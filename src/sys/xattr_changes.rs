//! How often extended attributes were changed by this process.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How often attributes of objects were set or removed by this process, by the remainder of their inode numbers: who remembers a
/// value can tell by it that it may be another, which a change time can't within one tick of the clock.
static CHANGES: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// Whether anybody asks for [`changes`].
static ARE_COUNTED: AtomicBool = AtomicBool::new(false);

/// Begins to count changes. It costs a look at each object that is changed.
pub fn count_changes() {
    ARE_COUNTED.store(true, Ordering::SeqCst);
}

/// Returns a number that is another after each change of the attributes of an object with that inode number, as long as they are
/// counted.
pub fn changes(ino: u64) -> u64 {
    CHANGES[(ino % 256) as usize].load(Ordering::SeqCst)
}

/// Notes that attributes of an object were changed. `ino`: its number, asked for where it counts; none where it can't be told.
pub(super) fn changed(ino: impl FnOnce() -> Option<u64>) {
    if !ARE_COUNTED.load(Ordering::SeqCst) {
        return;
    }
    let counts = match ino() {
        Some(ino) => &CHANGES[(ino % 256) as usize..][..1],
        None => &CHANGES[..],
    };
    for count in counts {
        count.fetch_add(1, Ordering::SeqCst);
    }
}
