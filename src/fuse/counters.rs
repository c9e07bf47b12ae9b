//! Requests by kind: what the kernel asked, counted, always on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::dispatch::DispatchPolicy;
use super::opener::Opener;
use crate::union::current::Current;

macro_rules! requests {
    ($($name:ident),* $(,)?) => {
        /// A kind of request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, clippy::upper_case_acronyms)] // the protocol's own words
        pub enum Request { $($name),* }

        impl Request {
            /// All kinds.
            pub const ALL: &'static [Request] = &[$(Request::$name),*];

            /// Returns its name in lower case.
            pub fn name(self) -> String {
                match self { $(Request::$name => stringify!($name).to_ascii_lowercase()),* }
            }
        }
    };
}

requests! {
    Lookup, Forget, Getattr, Setattr, Readlink, Mknod, Mkdir, Unlink, Rmdir, Symlink, Rename, Link, Open, Create, Read,
    Write, Flush, Release, Fsync, Opendir, Readdir, Readdirplus, Releasedir, Fsyncdir, Statfs, Setxattr, Getxattr,
    Listxattr, Removexattr, Access, Ioctl, Fallocate, Lseek, CopyFileRange, Tmpfile,
}

/// How many of each were served.
#[derive(Debug)]
pub struct RequestCounters([AtomicU64; Request::ALL.len()]);

impl Default for RequestCounters {
    fn default() -> Self {
        RequestCounters([const { AtomicU64::new(0) }; Request::ALL.len()])
    }
}

impl RequestCounters {
    /// Counts one more.
    pub fn count(&self, request: Request) {
        self.0[request as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Begins with what another process has counted.
    pub fn of(counted: &BTreeMap<String, u64>) -> RequestCounters {
        let counters = RequestCounters::default();
        for kind in Request::ALL {
            let before = counted.get(&kind.name()).copied().unwrap_or_default();
            counters.0[*kind as usize].store(before, Ordering::Relaxed);
        }
        counters
    }

    /// Returns how many of each kind, by its name.
    pub fn all(&self) -> BTreeMap<String, u64> {
        Request::ALL.iter().map(|kind| (kind.name(), self.get(*kind))).collect()
    }

    /// Returns how many of that kind.
    pub fn get(&self, request: Request) -> u64 {
        self.0[request as usize].load(Ordering::Relaxed)
    }
}

impl fmt::Display for RequestCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for request in Request::ALL {
            let count = self.get(*request);
            if count > 0 {
                write!(f, "{}{} {count}", if first { "" } else { ", " }, request.name())?;
                first = false;
            }
        }
        if first { write!(f, "none") } else { Ok(()) }
    }
}

/// What was asked and done so far, as text.
#[derive(Debug, Clone)]
pub struct Report {
    pub(super) union: Arc<Current>,
    pub(super) requests: Arc<RequestCounters>,
    pub(super) opener: Weak<Opener>,
    pub(super) pairing: Option<Arc<DispatchPolicy>>,
}

impl Report {
    /// Returns the counters alone.
    pub fn counters(&self) -> Arc<RequestCounters> {
        self.requests.clone()
    }

    /// Returns how many requests of a kind were served.
    pub fn requests(&self, request: Request) -> u64 {
        self.requests.get(request)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "requests: {}", self.requests)?;
        if let Ok(union) = self.union.get() {
            write!(f, "; {}; nodes: {}", union.counters, union.known_nodes())?;
        }
        if let Some(pairing) = &self.pairing {
            write!(f, "; {pairing}")?;
        }
        // Only where opens are requests is it known.
        match self.opener.upgrade().map_or(0, |opener| opener.open_files()) {
            0 => Ok(()),
            open => write!(f, "; open files: {open}"),
        }
    }
}
