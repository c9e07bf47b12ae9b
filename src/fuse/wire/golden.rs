//! Requests as a kernel sent them (scripts/record-requests), and bytes as nobody sends them.

// A test that panics has failed; that is what unwrap is for here.
#![allow(clippy::unwrap_used)]

use fuser::{INodeNo, InitFlags, OpenFlags, RenameFlags, WriteFlags};
use proptest::prelude::*;

use super::args::Args;
use super::operation::{Creator, Dialect, Init, Setattr};
use super::request::{HEADER_SIZE, Malformed};
use super::{Operation, Request};

/// A line has a request's number and its bytes.
const RECORDED: &str = include_str!("requests/linux-6.18.txt");

const ROOT: INodeNo = INodeNo(1);
const LOWER: INodeNo = INodeNo(10_028_306);
const FILE: INodeNo = INodeNo(10_028_338);
/// O_LARGEFILE, which the kernel always adds.
const LARGE: i32 = 0o100_000;
const NO_EXT: Dialect = Dialect { setxattr_ext: false };

fn recorded() -> Vec<(u32, Vec<u8>)> {
    let bytes = |hex: &str| {
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
    };
    let lines = RECORDED.lines().map(|line| line.split_once(' ').unwrap());
    lines.map(|(code, hex)| (code.parse().unwrap(), bytes(hex))).collect()
}

/// Returns what the request with each code asks, and of which node.
fn expected(code: u32) -> (INodeNo, Operation<'static>) {
    let families = [of_names, of_new_objects, of_attributes, of_data, of_the_session];
    let found = families.iter().find_map(|family| family(code));
    found.unwrap_or_else(|| panic!("{code} is not expected"))
}

const UMASK: u32 = 0o022;
const CREATOR: Creator = Creator { uid: 0, gid: 0 };

fn of_names(code: u32) -> Option<(INodeNo, Operation<'static>)> {
    Some(match code {
        1 => (ROOT, Operation::Lookup { name: b"lower" }),
        2 => (INodeNo(10_028_434), Operation::Forget { lookups: 1 }),
        10 => (ROOT, Operation::Unlink { name: b"renamed" }),
        11 => (ROOT, Operation::Rmdir { name: b"dir" }),
        12 => (ROOT, rename(b"link", RenameFlags::empty())),
        13 => (ROOT, Operation::Link { node: FILE, name: b"link" }),
        27 => (ROOT, Operation::Opendir),
        30 => (ROOT, Operation::Fsyncdir { data_only: false }),
        44 => (ROOT, Operation::Readdirplus { offset: 0, size: 32768 }),
        45 => (ROOT, rename(b"symlink", RenameFlags::RENAME_EXCHANGE)),
        _ => return None,
    })
}

fn of_new_objects(code: u32) -> Option<(INodeNo, Operation<'static>)> {
    let (umask, creator) = (UMASK, CREATOR);
    let operation = match code {
        6 => Operation::Symlink { name: b"symlink", target: b"target", creator },
        8 => Operation::Mknod { name: b"file", mode: 0o100_666, rdev: 0, umask, creator },
        9 => Operation::Mkdir { name: b"dir", mode: 0o750, umask, creator },
        35 => {
            let flags = OpenFlags(LARGE | libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC);
            let (mode, kill_privileges) = (0o100_666, false);
            Operation::Create { name: b"file", flags, mode, umask, kill_privileges, creator }
        }
        51 => {
            let flags = OpenFlags(LARGE | libc::O_RDWR | libc::O_TMPFILE);
            Operation::Tmpfile { flags, mode: 0o100_777, umask, creator }
        }
        _ => return None,
    };
    Some((ROOT, operation))
}

fn of_attributes(code: u32) -> Option<(INodeNo, Operation<'static>)> {
    let resize = Setattr {
        mode: None,
        uid: None,
        gid: None,
        size: Some(2),
        atime: None,
        mtime: None,
        kill_privileges: false,
    };
    Some(match code {
        3 => (ROOT, Operation::Getattr),
        4 => (FILE, Operation::Setattr(resize)),
        5 => (INodeNo(10_028_018), Operation::Readlink),
        21 => (FILE, Operation::Setxattr { name: b"user.name", value: b"value", flags: 0, kill_sgid: false }),
        22 => (FILE, Operation::Getxattr { name: b"security.capability", size: 0 }),
        23 => (FILE, Operation::Listxattr { size: 256 }),
        24 => (FILE, Operation::Removexattr { name: b"user.name" }),
        39 => (FILE, Operation::Ioctl { command: 0x5401, flags: 0, data: b"", out_size: 0 }),
        52 => (LOWER, Operation::Statx { flags: 0, mask: 0xfff }),
        _ => return None,
    })
}

fn of_data(code: u32) -> Option<(INodeNo, Operation<'static>)> {
    let copy = |wide| Operation::CopyFileRange { offset: 0, to: FILE, to_offset: 0, length: 4, wide };
    Some(match code {
        14 => {
            let flags = OpenFlags(LARGE | libc::O_WRONLY);
            (FILE, Operation::Open { flags, kill_privileges: false })
        }
        15 => (LOWER, Operation::Read { offset: 0, size: 4096, unnoticed: false }),
        16 => (FILE, Operation::Write { offset: 0, data: b"data", flags: WriteFlags::empty() }),
        18 => (INodeNo(10_028_674), Operation::Release),
        20 => (FILE, Operation::Fsync { data_only: false }),
        25 => (FILE, Operation::Flush),
        43 => (FILE, Operation::Fallocate { offset: 0, length: 4096, mode: 0 }),
        46 => (FILE, Operation::Lseek { offset: 0, whence: 4 }),
        47 => (LOWER, copy(false)),
        53 => (LOWER, copy(true)),
        _ => return None,
    })
}

fn of_the_session(code: u32) -> Option<(INodeNo, Operation<'static>)> {
    let offer = Init {
        major: 7,
        minor: 45,
        max_readahead: 128 << 10,
        flags: InitFlags::from_bits_retain(0x5fd_73ff_fffb),
    };
    match code {
        17 => Some((ROOT, Operation::Statfs)),
        26 => Some((INodeNo(0), Operation::Init(offer))),
        _ => None,
    }
}

fn rename(name: &'static [u8], flags: RenameFlags) -> Operation<'static> {
    Operation::Rename { name, to: ROOT, to_name: b"renamed", flags }
}

#[test]
fn what_a_kernel_sent_is_understood() {
    let all = recorded();
    assert!(all.len() > 35);
    for (code, bytes) in all {
        let request = Request::parse(&bytes, NO_EXT).unwrap();
        assert_eq!(request.header.uid, 0);
        if let Operation::BatchForget(forgets) = request.operation {
            let forgotten: Vec<_> = forgets.iter().map(|(node, lookups)| (node.0, lookups)).collect();
            let expected = [(10_028_306, 2), (10_028_386, 2), (10_028_338, 4), (10_028_418, 2)];
            assert_eq!((code, &forgotten[..]), (42, &expected[..]));
        } else {
            assert_eq!((request.header.node, request.operation), expected(code), "{code}");
        }
    }
}

#[test]
fn a_request_that_lacks_something_is_told() {
    const INIT: u32 = 26; // that of an old kernel is shorter
    for (code, bytes) in recorded().into_iter().filter(|(code, _)| *code != INIT) {
        let whole = Request::parse(&bytes, NO_EXT).unwrap();
        for len in HEADER_SIZE..bytes.len() {
            let mut short = bytes[..len].to_vec();
            short[..4].copy_from_slice(&(len as u32).to_ne_bytes());
            match Request::parse(&short, NO_EXT) {
                Err(Malformed::Operation { unique, code: told }) => {
                    assert_eq!((unique, told), (whole.header.unique, code));
                }
                // What isn't looked at may be missing.
                Ok(parsed) => assert_eq!(parsed.operation, whole.operation, "{code} {len}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(
            Request::parse(&bytes[..bytes.len() - 1], NO_EXT),
            Err(Malformed::Header(bytes.len() - 1))
        );
    }
}

/// Takes one as a ring has it: the first structure apart, and none for those that have names only.
#[test]
fn a_request_in_two_pieces_is_the_same() {
    for (code, bytes) in recorded() {
        let (header, args) = bytes.split_at(HEADER_SIZE);
        let whole = Request::parse(&bytes, NO_EXT).unwrap();
        let split = match code {
            1 | 6 | 10 | 11 | 24 => 0,
            8 | 23 | 35 | 45 | 51 => 16,
            9 | 12 | 13 | 14 | 21 | 22 | 42 => 8,
            16 => 40,
            _ => args.len(),
        }
        .min(args.len());
        let (first, second) = args.split_at(split);
        let parts = Request::parse_parts(header, Args::new(first, second), bytes.len(), NO_EXT).unwrap();
        assert_eq!((parts.header, parts.operation), (whole.header, whole.operation), "{code}");
        let copy = parts.into_owned();
        let again = copy.parse().unwrap();
        assert_eq!((again.header, again.operation), (whole.header, whole.operation), "{code}");
    }
}

proptest! {
    /// Parses whatever comes: no panic, and names and data lie in what came.
    #[test]
    fn any_bytes_are_a_request_or_are_not(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        code in 0u32..60,
        honest in any::<bool>(),
        setxattr_ext in any::<bool>(),
        split in 0usize..300,
    ) {
        if honest && bytes.len() >= 8 {
            let len = bytes.len() as u32;
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            bytes[4..8].copy_from_slice(&code.to_ne_bytes());
        }
        let dialect = Dialect { setxattr_ext };
        let within = |part: &[u8]| {
            let (all, part) = (bytes.as_ptr_range(), part.as_ptr_range());
            all.start <= part.start && part.end <= all.end
        };
        let parts = |request: &Request<'_>| match request.operation {
            Operation::Lookup { name } | Operation::Unlink { name } | Operation::Removexattr { name } => within(name),
            Operation::Rename { name, to_name, .. } => within(name) && within(to_name),
            Operation::Write { data, .. } | Operation::Ioctl { data, .. } => within(data),
            Operation::Setxattr { name, value, .. } => within(name) && within(value),
            Operation::BatchForget(forgets) => forgets.iter().count() * 16 <= bytes.len(),
            _ => true,
        };
        if let Ok(request) = Request::parse(&bytes, dialect) {
            prop_assert!(parts(&request));
            let text = format!("{request:?}");
            prop_assert!(!text.is_empty());
        }
        if let Some((header, args)) = bytes.split_at_checked(HEADER_SIZE) {
            let (first, second) = args.split_at(split.min(args.len()));
            let parsed = Request::parse_parts(header, Args::new(first, second), bytes.len(), dialect);
            prop_assert!(parsed.as_ref().map_or(true, parts));
        }
    }
}
