//! What is said over the control socket: JSON, a line each way.
//!
//! The client sends one [`Request`], the daemon answers with one [`Reply`]; then the next. After a
//! [`Request::Trace`] has been granted the daemon sends a [`Told`] for each event until one of the two ends.
//!
//! ```text
//! → {"ask":"explain","path":"etc/passwd"}
//! ← {"ok":{"path":"/etc/passwd","kind":"file",…}}
//! → {"ask":"trace","filter":{"kinds":["copy-up"]}}
//! ← {"ok":{"version":"0.1.0",…}}
//! ← {"event":"copy-up","time_us":1794000000000000,"path":"/etc/passwd",…}
//! ← {"lost":12}
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::explanation::{CopyingReport, LayerReport};
use crate::union::change::sealing::background::LazyReport;
use crate::union::escaped_path::EscapedPath;
use crate::union::events::{Event, Filter};
use crate::union::live::layers::{InUse, Lost, NamedLayer, Place};
use crate::union::lookup::belief::Belief;

/// The longest line that a client may send: it may name what all processes have open in a mount.
pub const LONGEST_REQUEST: u64 = 4 << 20;

/// The longest line that a daemon may send, without its end: the status of 500 layers, whose paths are as long as any,
/// has half of that.
pub const LONGEST_ANSWER: usize = 16 << 20;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Request {
    /// How the mount is doing. Answered by a [`Status`].
    Status,
    /// Where a path comes from. Answered by an [`Explanation`](super::explanation::Explanation).
    Explain {
        /// Relative to the root of the mount.
        path: EscapedPath,
        /// The language of its sentences; else English.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        language: Option<String>,
    },
    /// What is in the upper becomes a frozen layer, while it is mounted. Answered by the snapshot's name.
    Snapshot {
        /// What it is to be called; a number else.
        #[serde(default)]
        name: Option<String>,
    },
    /// What was changed since a snapshot is thrown away, while it is mounted. Answered by the snapshot's name.
    Rollback {
        /// The snapshot; the last one else.
        #[serde(default)]
        name: Option<String>,
    },
    /// A new upper shows what the mount shows, and goes on by itself. Answered by the name of the snapshot that was taken for it, or none.
    Branch {
        /// The new upper, from the root.
        new: EscapedPath,
    },
    /// A directory becomes a lower as well, while it is mounted. Answered by a [`Restacked`].
    AddLayer {
        /// The directory, from the root.
        directory: EscapedPath,
        /// Its device and inode number: the daemon may see another there.
        id: (u64, u64),
        /// Where it is to come.
        place: Place,
        /// What must not be lost; else whatever it is.
        #[serde(default)]
        used: Option<InUse>,
    },
    /// A lower goes, while it is mounted. Answered by a [`Restacked`].
    RemoveLayer {
        /// The lower.
        layer: NamedLayer,
        /// What must not be lost; else whatever it is.
        #[serde(default)]
        used: Option<InUse>,
    },
    /// Another daemon goes on with the mount, and this one ends. Answered by an [`Upgraded`]; the talk ends when this one has.
    Upgrade {
        /// The program that it is, from the root.
        program: EscapedPath,
        /// Its device and inode number: the daemon may see another there.
        id: (u64, u64),
    },
    /// What happens from now on. Answered by a [`Status`], then by events.
    Trace {
        /// Which events.
        #[serde(default)]
        filter: Filter,
    },
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply<T> {
    /// What was asked for.
    Ok(T),
    /// Why not.
    Error(String),
}

/// What has become of the layers of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restacked {
    /// They are others now.
    Done,
    /// They are the same: this is in use, and would be lost.
    Used(Vec<Lost>),
}

/// Who goes on with a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// Version of the daemon that has ended.
    pub from: String,
    /// Version of the one that goes on.
    pub to: String,
    /// Its process.
    pub pid: u32,
    /// How long requests waited, in microseconds.
    pub micros: u64,
}

/// A line of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Told {
    /// Something happened.
    Event(Event),
    /// The listener was too slow: so many events are missing here.
    Lost {
        /// How many.
        lost: u64,
    },
}

/// What never changes about a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Where it is mounted, as far as the daemon knows.
    pub mount_point: EscapedPath,
    /// `MAJOR:MINOR` of the mount.
    pub device: String,
    /// When it was mounted: microseconds since 1970, UTC.
    pub since_us: u64,
    /// How data are read and written: `cached`, `write-through`, `passthrough`.
    pub io: String,
    /// The `-o` options that it was mounted with, as given.
    #[serde(default)]
    pub options: Vec<EscapedPath>,
    /// When the daemon took over from another one (`unionmount upgrade`): microseconds since 1970, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgraded_us: Option<u64>,
    /// Whose marks are believed, so that others read the layers as the mount does. Not told by older daemons.
    #[serde(default)]
    pub belief: Option<Belief>,
}

/// How a mount is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What never changes.
    #[serde(flatten)]
    pub about: About,
    /// The layers, from the top down.
    pub layers: Vec<LayerReport>,
    /// What happened since it was mounted.
    pub counters: Counts,
    /// Requests of the kernel since it was mounted, by kind.
    pub requests: BTreeMap<String, u64>,
    /// Memory of the daemon that is in RAM, in bytes.
    pub memory: Option<u64>,
    /// Files that the kernel knows.
    pub nodes: u64,
    /// Who listens to its events.
    pub listeners: u64,
    /// What is left below of files that are copied up block by block (`lazy`). Not told by older daemons.
    #[serde(default)]
    pub lazy: Option<LazyReport>,
    /// Large files that are being copied up just now. Not told by older daemons.
    #[serde(default)]
    pub copying: Vec<CopyingReport>,
    /// Whether the mount has ended, and its daemon goes on sealing. Not told by older daemons.
    #[serde(default)]
    pub unmounted: bool,
}

/// What happened since a mount began, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // each is what its name says
pub struct Counts {
    pub copy_ups: u64,
    pub copied_bytes: u64,
    pub whiteouts: u64,
    pub creates: u64,
    pub renames: u64,
    pub attribute_changes: u64,
    pub xattr_changes: u64,
    /// Lookups that an index answered without asking a layer.
    pub index_answers: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_documentation_says() {
        let path = EscapedPath::from(&b"etc/passwd"[..]);
        let line = serde_json::to_string(&Request::Explain { path, language: None }).unwrap();
        assert_eq!(line, r#"{"ask":"explain","path":"etc/passwd"}"#);
        let trace: Request = serde_json::from_str(r#"{"ask":"trace"}"#).unwrap();
        assert_eq!(trace, Request::Trace { filter: Filter::default() });
        let lost: Told = serde_json::from_str(r#"{"lost":12}"#).unwrap();
        assert_eq!(lost, Told::Lost { lost: 12 });
    }
}
