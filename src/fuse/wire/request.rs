//! Requests: what the kernel asks.

use fuse_abi::linux as abi;
use fuser::INodeNo;
use zerocopy::FromBytes;

use super::abi::RESENT;
use super::args::Args;
use super::operation::{Creator, Dialect, Operation};
use super::parse::operation;

/// How long a request's header is.
pub const HEADER_SIZE: usize = size_of::<abi::fuse_in_header>();

/// The head of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What its reply names.
    pub unique: u64,
    /// The node that it is about; for most requests with names, their directory.
    pub node: INodeNo,
    /// The thread that asks; 0 for one that can't be named here. The kernel asks many things on its own account.
    pub pid: u32,
    /// Who asks, to be let in or not. Where mounts may be idmapped (FUSE_ALLOW_IDMAP) it is said only by what makes inodes;
    /// so nothing else may depend on it.
    pub(in crate::fuse) uid: u32,
}

impl Header {
    /// Returns whether the kernel sent it before, to somebody who may have seen to it already.
    pub fn is_resent(&self) -> bool {
        self.unique & RESENT != 0
    }
}

/// A request, as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its head.
    pub header: Header,
    /// What is asked.
    pub operation: Operation<'a>,
    read: AsRead<'a>,
}

/// What a request was parsed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AsRead<'a> {
    header: &'a [u8],
    args: Args<'a>,
    dialect: Dialect,
}

/// A request with its bytes, for a thread that works on when their buffer is read to again.
#[derive(Debug)]
pub struct OwnedRequest {
    header: Vec<u8>,
    args: Vec<u8>,
    dialect: Dialect,
}

impl OwnedRequest {
    /// Parses it, as it was before.
    ///
    /// # Errors
    ///
    /// It isn't one, and never was.
    pub fn parse(&self) -> Result<Request<'_>, Malformed> {
        let len = self.header.len() + self.args.len();
        Request::parse_parts(&self.header, Args::new(&self.args, &[]), len, self.dialect)
    }
}

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There is no header, or it tells another length: what is read next can't be trusted either.
    #[error("a request of {0} bytes has no header that fits")]
    Header(usize),
    /// What follows the header is too short for what it asks.
    #[error("a request with the code {code} is too short")]
    Operation {
        /// What its answer names.
        unique: u64,
        /// What it asks.
        code: u32,
    },
}

impl<'a> Request<'a> {
    /// Parses a request that lies in one piece.
    ///
    /// # Errors
    ///
    /// It isn't one.
    pub fn parse(bytes: &'a [u8], dialect: Dialect) -> Result<Request<'a>, Malformed> {
        let (header, args) = bytes.split_at_checked(HEADER_SIZE).ok_or(Malformed::Header(bytes.len()))?;
        Request::parse_parts(header, Args::new(args, &[]), bytes.len(), dialect)
    }

    /// Parses a request of `len` bytes, whose header lies apart.
    ///
    /// # Errors
    ///
    /// It isn't one.
    pub fn parse_parts(
        header: &'a [u8],
        args: Args<'a>,
        len: usize,
        dialect: Dialect,
    ) -> Result<Request<'a>, Malformed> {
        let read = AsRead { header, args, dialect };
        let (raw, _) = abi::fuse_in_header::read_from_prefix(header).map_err(|_| Malformed::Header(len))?;
        if raw.len as usize != len {
            return Err(Malformed::Header(len));
        }
        let header = Header { unique: raw.unique, node: INodeNo(raw.nodeid), pid: raw.pid, uid: raw.uid };
        let malformed = Malformed::Operation { unique: raw.unique, code: raw.opcode };
        let creator = Creator { uid: raw.uid, gid: raw.gid };
        let operation = operation(raw.opcode, args, creator, dialect).ok_or(malformed)?;
        Ok(Request { header, operation, read })
    }

    /// Returns a copy that outlives the buffer.
    pub fn into_owned(self) -> OwnedRequest {
        let AsRead { header, args, dialect } = self.read;
        OwnedRequest {
            header: header[..header.len().min(HEADER_SIZE)].to_owned(),
            args: args.to_vec(),
            dialect,
        }
    }
}
