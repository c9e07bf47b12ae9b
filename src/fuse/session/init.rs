//! INIT negotiation: what both sides agree on before the first request.

use std::fmt;
use std::io;

use fuse_abi::linux::fuse_init_out;
use fuser::InitFlags;

use crate::fuse::wire::abi::{MAJOR, MINOR, OLDEST_MINOR};
use crate::fuse::wire::operation::{Dialect, Init};

/// FUSE_MIN_READ_BUFFER: a request can be so large, whatever is agreed on.
const MIN_READ_BUFFER: usize = 8192;
/// What a request may have beside its data. Attributes of 64 KiB are the largest.
const BESIDE_DATA: usize = 4096;
/// XATTR_SIZE_MAX.
const LARGEST_ATTRIBUTE: usize = 64 << 10;

/// What a filesystem wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Of what the kernel offers. The session adds what it needs itself.
    pub flags: InitFlags,
    /// How many requests that nobody waits for (reading ahead, writing back) may be under way.
    pub max_background: u16,
    /// The largest write in bytes.
    pub max_write: u32,
    /// How far the kernel reads ahead, in bytes.
    pub max_readahead: u32,
    /// How many filesystems may be stacked below a backing file, where there is passthrough.
    pub max_stack_depth: u32,
}

impl Default for Wanted {
    fn default() -> Wanted {
        let (max_write, max_readahead) = (128 << 10, 128 << 10);
        Wanted { flags: InitFlags::empty(), max_background: 16, max_write, max_readahead, max_stack_depth: 0 }
    }
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) dialect: Dialect,
    /// Requests come over io_uring.
    pub(super) uring: bool,
    /// The largest request in bytes, rounded up.
    pub(super) request_size: usize,
    /// The largest payload of a ring's request or reply.
    pub(super) payload_size: usize,
}

/// Whether the two can talk at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Versions {
    Fit,
    /// The kernel's is a later one: it asks again when it was told ours.
    AskAgain,
    TooOld,
}

pub(super) fn versions(offer: &Init) -> Versions {
    match (offer.major, offer.minor) {
        (..MAJOR, _) | (MAJOR, ..OLDEST_MINOR) => Versions::TooOld,
        (MAJOR, _) => Versions::Fit,
        _ => Versions::AskAgain,
    }
}

/// Returns the answer that tells our version only.
pub(super) fn own_version() -> fuse_init_out {
    fuse_init_out { major: MAJOR, minor: MINOR, ..Default::default() }
}

/// Agrees on what is wanted and offered. `uring`: requests are to come over io_uring, where that is offered.
/// `idmaps`: the mount may be idmapped.
pub(super) fn agree(offer: &Init, wanted: &Wanted, uring: bool, idmaps: bool) -> (Agreed, fuse_init_out) {
    let mut want = wanted.flags
        | InitFlags::FUSE_BIG_WRITES
        | InitFlags::FUSE_MAX_PAGES
        | InitFlags::FUSE_INIT_EXT
        // Tells an aborted connection, whose mount stays, from an unmount.
        | InitFlags::FUSE_ABORT_ERROR;
    want.set(InitFlags::FUSE_OVER_IO_URING, uring);
    if !idmaps {
        want -= InitFlags::FUSE_ALLOW_IDMAP;
    }
    let flags = want & offer.flags;
    let page = rustix::param::page_size();
    let max_write = nearest("max_write", wanted.max_write, 4096, u32::MAX);
    // Without privileges the kernel offers less.
    let max_readahead = nearest("max_readahead", wanted.max_readahead, 0, offer.max_readahead);
    let max_background = nearest("max_background", wanted.max_background, 1, u16::MAX);
    let max_pages = (max_write.max(max_readahead) as usize).div_ceil(page);
    let data = max_write as usize;
    let agreed = Agreed {
        dialect: Dialect { setxattr_ext: flags.contains(InitFlags::FUSE_SETXATTR_EXT) },
        uring: flags.contains(InitFlags::FUSE_OVER_IO_URING),
        request_size: data.max(LARGEST_ATTRIBUTE).max(MIN_READ_BUFFER) + BESIDE_DATA.max(page),
        payload_size: (max_pages * page).max(data).max(MIN_READ_BUFFER),
    };
    log::debug!("the kernel speaks {}.{} and offers {:?}", offer.major, offer.minor, offer.flags);
    log::debug!("agreed on {flags:?}, max_write {max_write}, max_readahead {max_readahead}");
    let bits = flags.bits();
    let out = fuse_init_out {
        major: MAJOR,
        minor: MINOR.min(offer.minor),
        max_readahead,
        flags: bits as u32,
        flags2: (bits >> 32) as u32,
        max_background,
        // At three quarters the kernel takes it for congested.
        congestion_threshold: (u32::from(max_background) * 3 / 4) as u16,
        max_write,
        time_gran: 1, // nanosecond
        max_pages: u16::try_from(max_pages).unwrap_or(u16::MAX),
        max_stack_depth: match flags.contains(InitFlags::FUSE_PASSTHROUGH) {
            true => wanted.max_stack_depth,
            false => 0,
        },
        ..Default::default()
    };
    (agreed, out)
}

/// Returns the number, or the nearest one that is allowed, which is told then.
fn nearest<T: Copy + Ord + fmt::Display>(name: &str, wanted: T, least: T, most: T) -> T {
    let nearest = wanted.clamp(least, most.max(least));
    if nearest != wanted {
        log::info!("{name}={wanted}: {nearest} is used");
    }
    nearest
}

/// Returns the error for a kernel whose FUSE is too old.
pub(super) fn too_old(offer: &Init) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!(
            "the kernel's FUSE has version {}.{}, {MAJOR}.{OLDEST_MINOR} (Linux 4.20) is needed",
            offer.major, offer.minor
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Init {
        Init { major: 7, minor: 45, max_readahead: 128 << 10, flags: InitFlags::all() }
    }

    #[test]
    fn what_is_offered_and_wanted_is_agreed_on() {
        let wanted = Wanted {
            flags: InitFlags::FUSE_PASSTHROUGH | InitFlags::FUSE_SETXATTR_EXT,
            max_background: 64,
            max_write: 1 << 20,
            max_readahead: 512 << 10,
            max_stack_depth: 1,
        };
        let (agreed, out) = agree(&offer(), &wanted, true, true);
        assert!(agreed.uring && agreed.dialect.setxattr_ext);
        assert_eq!((out.max_write, out.max_readahead, out.congestion_threshold), (1 << 20, 128 << 10, 48));
        assert_eq!((out.max_pages as usize * rustix::param::page_size(), out.max_stack_depth), (1 << 20, 1));
        assert!(agreed.request_size >= (1 << 20) + rustix::param::page_size());
        assert_eq!(agreed.payload_size, 1 << 20);

        let poor = Init { flags: InitFlags::FUSE_MAX_PAGES, minor: 31, ..offer() };
        let (agreed, out) = agree(&poor, &wanted, true, true);
        assert!(!agreed.uring && !agreed.dialect.setxattr_ext);
        assert_eq!((u64::from(out.flags), out.flags2), (InitFlags::FUSE_MAX_PAGES.bits(), 0));
        assert_eq!((out.minor, out.max_stack_depth), (31, 0));
        assert!(!agree(&offer(), &wanted, false, false).0.uring);
    }

    #[test]
    fn small_numbers_are_raised() {
        let wanted = Wanted { max_background: 0, max_write: 1, max_readahead: 0, ..Wanted::default() };
        let (agreed, out) = agree(&offer(), &wanted, false, true);
        assert_eq!((out.max_background, out.max_write), (1, 4096));
        assert!(agreed.request_size > LARGEST_ATTRIBUTE);
    }

    #[test]
    fn versions_that_fit() {
        let of = |major, minor| versions(&Init { major, minor, ..offer() });
        assert_eq!((of(7, 45), of(7, 99), of(7, 28)), (Versions::Fit, Versions::Fit, Versions::Fit));
        assert_eq!(
            (of(8, 0), of(7, 27), of(6, 99)),
            (Versions::AskAgain, Versions::TooOld, Versions::TooOld)
        );
    }
}
