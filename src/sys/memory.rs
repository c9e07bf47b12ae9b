//! What the process keeps in memory, beyond what it needs.
//!
//! A mount starts once and then serves for days. Most of what it has touched by then (the command line, mounting, the
//! loader's work) it never needs again, and a node with a hundred containers has a hundred mounts.

#![allow(unsafe_code)]

use std::io;
use std::ops::Range;

/// Larger than any buffer that is made and dropped while serving, smaller than those that threads keep.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 8 << 20;

/// Heaps that threads share. By itself glibc's allocator gives each thread its own, and each keeps its own half-used
/// pages when what it held is given back: of 6 MB for 40,000 forgotten files 2.1 stayed with a heap a thread, and 1.1 to 1.6
/// with two.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// Lets allocations that are large have pages of their own, for good, and all others come from few heaps.
///
/// By itself glibc's allocator raises its threshold to the largest one that was ever given back; the threads' request
/// buffers, of which a few pages are used, would then come from their heaps, whose first pages are cleared by writing
/// to them.
pub fn keep_large_apart() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE), (libc::M_ARENA_MAX, HEAPS)]
    {
        // SAFETY: takes plain numbers, and the allocator its own locks.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            log::debug!("the allocator keeps its thresholds");
        }
    }
}

/// Gives back the free pages of the heaps.
pub fn trim_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only pages that hold no allocation are given back; the allocator takes its own locks.
    let _something_given_back = unsafe { libc::malloc_trim(0) };
}

/// Takes the program's text and constants out of this process's memory. What is needed comes back from the page cache
/// when it is touched, a few pages at a time; what was needed only to start doesn't.
pub fn let_go_of_text() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    for range in clean(&maps) {
        // SAFETY: the mapping is private, of a file, not writable, and the kernel says that it holds no page of this
        // process's own (what the loader relocated would be one): every page is the file's and is read again when it
        // is next touched, with the same bytes. Other threads may run in it meanwhile; they fault and go on. That it
        // is mapped as the list said a moment ago: only the loader maps files like that here, and nothing is loaded or
        // unloaded after the start.
        let done = unsafe { libc::madvise(range.start as *mut _, range.len(), libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Returns the mappings in a /proc/PID/smaps whose every page is that of a file and can't be written to.
fn clean(smaps: &str) -> impl Iterator<Item = Range<usize>> {
    let mut mapping = None;
    smaps.lines().filter_map(move |line| {
        if line.starts_with(|c: char| matches!(c, '0'..='9' | 'a'..='f')) {
            mapping = read_only_file(line);
        } else if let Some(own) = line.strip_prefix("Anonymous:") {
            mapping = mapping.take().filter(|_| own.trim() == "0 kB");
        } else if let Some(swapped) = line.strip_prefix("Swap:") {
            return mapping.take().filter(|_| swapped.trim() == "0 kB");
        }
        None
    })
}

/// Reads a line `START-END PERMISSIONS OFFSET DEVICE INODE PATH`.
fn read_only_file(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?.as_bytes();
    let is_of_file = fields.nth(3)?.starts_with('/');
    let address = |text| usize::from_str_radix(text, 16).ok();
    (permissions.len() == 4 && permissions[1] == b'-' && permissions[3] == b'p' && is_of_file)
        .then_some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_file_still_has_is_let_go() {
        let swapping = |head: &str, own: u32, swapped: u32| {
            format!("{head}\nRss:  8 kB\nAnonymous:  {own} kB\nSwap:   {swapped} kB\nVmFlags: rd mr\n")
        };
        let mapping = |head: &str, own: u32| swapping(head, own, 0);
        let maps = [
            mapping("1000-3000 r-xp 00001000 fe:00 54     /usr/bin/with space", 0),
            mapping("3000-5000 r--p 00003000 fe:00 54     /usr/bin/relocated", 4),
            swapping("4000-5000 r--p 00003000 fe:00 54     /usr/bin/swapped", 0, 4),
            mapping("5000-7000 rw-p 00005000 fe:00 54     /usr/bin/data", 0),
            mapping("7000-9000 r--s 00005000 fe:00 54     /usr/bin/shared", 0),
            mapping("9000-b000 r-xp 00000000 00:00 0      [vdso]", 0),
            mapping("b000-d000 r--p 00000000 00:00 0", 0),
            mapping("d000-f000 r--p 00000000 fe:00 55     /usr/lib/libc.so", 0),
        ];
        let found: Vec<_> = clean(&maps.concat()).collect();
        assert_eq!(found, [0x1000..0x3000, 0xd000..0xf000]);
    }

    #[test]
    fn the_program_goes_on_without_its_text() {
        let anonymous = vec![7u8; 1 << 20];
        let_go_of_text().unwrap();
        keep_large_apart();
        trim_heaps();
        assert!(anonymous.iter().all(|byte| *byte == 7));
        assert_eq!(format!("{:>5}|{:?}", "text", clean("").next()), " text|None");
    }
}
