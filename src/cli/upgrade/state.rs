//! The state of a mount in a file, for the program that takes over: format 1.
//!
//! ```text
//! {"format":1,"program":"0.1.0"}\n     which format, and who has written it
//! {"request":{…},"union":{…},…}\n      what there is, but for the nodes; see `Head`
//! …                                    nodes that have names, one after the other, in the format of postcard 1: see `NodeState`
//! ```
//!
//! The two lines are JSON: what a later version adds there has a default, and is written only where it is something else; so the format
//! stays, and a program that doesn't know it refuses the state that needs it: all that is told there is read with `deny_unknown_fields`, but for
//! `Belief`, which `status` tells as well. Another form of the nodes, or another meaning of anything,
//! is another format. A program reads its own format and those before it.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use crate::cli::logging::LogOptions;
use crate::cli::request::{AskedTrust, MountRequest};
use crate::error::unknown;
use crate::fuse::io_mode::OpenState;
use crate::fuse::mount::MountFlags;
use crate::fuse::policy::Policy;
use crate::fuse::session::parting::SessionState;
use crate::union::escaped_path::EscapedPath;
use crate::union::handover::{NodeState, OpenedTree, UnionState};
use crate::union::options::FsOptions;
use crate::union::stack::layer::{LowerSource, StackOptions};

/// The format that is written, and the newest that is read.
pub(super) const FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    format: u32,
    program: String,
}

/// The second line. Descriptors are told by their numbers among those that go along.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct Head {
    pub(in crate::cli) request: RequestState,
    pub(in crate::cli) again: AgainState,
    pub(in crate::cli) session: SessionState,
    pub(in crate::cli) policy: Policy,
    /// Files that are open, where opens are requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::cli) opens: Vec<OpenState>,
    pub(in crate::cli) can_doubt_names: bool,
    pub(in crate::cli) union: UnionState,
    /// How many nodes follow.
    pub(in crate::cli) nodes: u64,
    /// Requests that were served, by kind.
    pub(in crate::cli) requests: BTreeMap<String, u64>,
    pub(in crate::cli) since_us: u64,
    /// The connection with the kernel.
    pub(in crate::cli) device: u32,
    /// The file to which messages go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) log: Option<u32>,
    pub(in crate::cli) socket: SocketState,
    /// Directories that are locked as long as it is mounted.
    pub(in crate::cli) hold: Vec<u32>,
    /// Who the daemon is: effective user, and its capabilities.
    pub(in crate::cli) user: u32,
    pub(in crate::cli) rights: u64,
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct SocketState {
    pub(in crate::cli) listener: u32,
    pub(in crate::cli) dir: u32,
    pub(in crate::cli) name: String,
    pub(in crate::cli) ino: u64,
}

/// What its layers can be opened anew by, for snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct AgainState {
    pub(in crate::cli) upper: Option<EscapedPath>,
    pub(in crate::cli) lowers: Vec<EscapedPath>,
    /// Why it can't be.
    pub(in crate::cli) unresolved: Option<String>,
    /// Those of the lowers that are archives, with their positions among all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::cli) archives: Vec<(usize, EscapedPath)>,
}

impl AgainState {
    /// Returns it as the mount's options had it. `opened`: the archives.
    pub(in crate::cli) fn stack(&self, opened: &[OpenedTree]) -> Result<StackOptions, String> {
        if let Some(why) = &self.unresolved {
            return Err(why.clone());
        }
        let mut lowers: Vec<LowerSource> =
            self.lowers.iter().map(|path| path.as_path().to_owned().into()).collect();
        for (at, path) in &self.archives {
            let path = path.as_path();
            let found = opened.iter().find(|(told, _)| told.path() == path);
            let (Some((_, tree)), true) = (found, *at <= lowers.len()) else {
                return Err(format!("{}: can't be found again", EscapedPath::from(path)));
            };
            lowers.insert(*at, LowerSource::Tree { path: path.to_owned(), tree: tree.clone() });
        }
        let upper = self.upper.as_ref().map(|path| path.as_path().to_owned());
        Ok(StackOptions { upper, lowers, ..StackOptions::default() })
    }
}

/// What the mount was to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct RequestState {
    given: Vec<EscapedPath>,
    mount: MountFlags,
    pub(in crate::cli) fs: FsOptions,
    mount_point: EscapedPath,
    source: EscapedPath,
    threads: Option<usize>,
    pairing: bool,
    verbosity: u8,
    log_file: Option<EscapedPath>,
}

impl RequestState {
    /// Returns what is told of a request. Call it before the current directory is another. What the session is really given may differ.
    pub(in crate::cli) fn of(request: &MountRequest) -> io::Result<RequestState> {
        let log_file = request.log.file.as_deref().map(std::path::absolute).transpose()?;
        Ok(RequestState {
            given: request.given.clone(),
            mount: request.mount.clone(),
            fs: request.fs.clone(),
            mount_point: EscapedPath::from(request.mount_point.as_path()),
            source: EscapedPath::from(std::path::Path::new(&request.source)),
            threads: request.threads,
            pairing: request.pairing,
            verbosity: request.log.verbosity,
            log_file: log_file.map(|file| EscapedPath::from(file.as_path())),
        })
    }

    /// Returns the same, as it was mounted.
    pub(in crate::cli) fn mounted(self, point: &std::path::Path, mount: &MountFlags) -> RequestState {
        RequestState { mount_point: EscapedPath::from(point), mount: mount.clone(), ..self }
    }

    /// Returns where it is mounted.
    pub(super) fn mount_point(&self) -> &std::path::Path {
        self.mount_point.as_path()
    }

    /// Returns it as the request of a mount that is there.
    pub(in crate::cli) fn request(self) -> MountRequest {
        MountRequest {
            stack: StackOptions::default(),
            given: self.given,
            mount: self.mount,
            trust: AskedTrust::default(),
            fs: self.fs,
            device: None,
            mount_point: self.mount_point.as_path().to_owned(),
            source: self.source.as_path().as_os_str().to_owned(),
            threads: self.threads,
            uring: false,
            pairing: self.pairing,
            foreground: false,
            hold: Vec::new(),
            fake: false,
            take_dead_away: false,
            log: LogOptions {
                verbosity: self.verbosity,
                file: self.log_file.map(|file| file.as_path().to_owned()),
            },
            warnings: Vec::new(),
        }
    }
}

/// Returns the file. `nodes`: those that [`add_node`] has written.
pub(super) fn write(head: &Head, nodes: &[u8]) -> io::Result<Vec<u8>> {
    let stamp = Stamp { format: FORMAT, program: env!("CARGO_PKG_VERSION").to_owned() };
    let mut file = serde_json::to_vec(&stamp)?;
    file.push(b'\n');
    file.extend(serde_json::to_vec(head)?);
    file.push(b'\n');
    file.extend_from_slice(nodes);
    Ok(file)
}

/// Adds one to the nodes that follow.
pub(super) fn add_node(nodes: &mut Vec<u8>, node: &NodeState<'_>) -> io::Result<()> {
    postcard::to_io(node, nodes).map(drop).map_err(io::Error::other)
}

/// Reads the file: what there is, who has written it, and the nodes.
///
/// # Errors
/// It is of a later format, or none at all.
pub(super) fn read(file: &[u8]) -> Result<(Head, String, Nodes<'_>), String> {
    let broken = |why: &dyn std::fmt::Display| format!("the state of the mount can't be read: {why}");
    let (stamp, rest) = line(file).ok_or_else(|| broken(&"it has no beginning"))?;
    let Stamp { format, program } = serde_json::from_slice(stamp).map_err(|error| broken(&error))?;
    if format == 0 || format > FORMAT {
        return Err(format!(
            "unionmount {program} has written the state of the mount in format {format}, and unionmount {} reads none later than {FORMAT}; \
             take a later program",
            env!("CARGO_PKG_VERSION")
        ));
    }
    let (head, nodes) = line(rest).ok_or_else(|| broken(&"it ends early"))?;
    let head: Head = serde_json::from_slice(head)
        .map_err(|error| unknown(&error).map_or_else(|| broken(&error), |what| later(&program, &what)))?;
    let nodes = Nodes { rest: nodes, left: head.nodes };
    Ok((head, program, nodes))
}

/// Says that a state holds something that came later than this program. `writer`: the version of the one that wrote it.
fn later(writer: &str, what: &str) -> String {
    format!(
        "a later version, unionmount {writer}, has written the state of the mount, and unionmount {} doesn't know all that it holds \
         ({what}): what somebody has chosen would be lost; take a later program",
        env!("CARGO_PKG_VERSION")
    )
}

fn line(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = file.iter().position(|byte| *byte == b'\n')?;
    Some((&file[..end], &file[end + 1..]))
}

/// The nodes of a file, one after the other.
#[derive(Debug)]
pub(super) struct Nodes<'a> {
    rest: &'a [u8],
    left: u64,
}

impl<'a> Iterator for Nodes<'a> {
    type Item = io::Result<NodeState<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        match postcard::take_from_bytes(self.rest) {
            Ok((node, rest)) => {
                self.rest = rest;
                Some(Ok(node))
            }
            Err(error) => {
                self.left = 0;
                Some(Err(io::Error::new(io::ErrorKind::InvalidData, error)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it was written when there was no other format. It must be read for ever.
    const OF_THE_PAST: &[u8] = include_bytes!("state-1.golden");

    #[test]
    fn a_state_of_the_past_is_read_and_written_again_the_same() {
        let (head, program, nodes) = read(OF_THE_PAST).unwrap();
        assert_eq!((program.as_str(), head.nodes), ("0.1.0", 3));
        let mut again = Vec::new();
        for node in nodes {
            add_node(&mut again, &node.unwrap()).unwrap();
        }
        assert!(OF_THE_PAST.ends_with(&again), "nodes have one form in one format");
        // What was added to the line since has the value that it had before there was such a thing.
        let file = write(&head, &again).unwrap();
        let (read_again, _, nodes) = read(&file).unwrap();
        assert_eq!((&read_again, nodes.count()), (&head, 3));
        let request = head.request.clone().request();
        assert_eq!(request.mount_point, std::path::Path::new("/mnt/merged"));
        assert!(request.fs.volatile && head.again.stack(&[]).unwrap().upper.is_some());
    }

    #[test]
    fn a_later_format_is_refused_by_both_names() {
        let later = b"{\"format\":2,\"program\":\"9.9.9\",\"more\":true}\nwhatever";
        let why = read(later).unwrap_err();
        assert!(why.contains("9.9.9") && why.contains(env!("CARGO_PKG_VERSION")), "{why}");
        assert!(why.contains("format 2") && why.contains("later than 1"), "{why}");
        for broken in [&b""[..], b"{}\n", b"{\"format\":1,\"program\":\"x\"}\n{}\n", b"\0\0\n\n"] {
            assert!(read(broken).is_err());
        }
    }

    /// In every part of it: what isn't known there may be what somebody has chosen, or what makes the rest mean something else.
    #[test]
    fn what_came_later_is_refused_by_its_name_and_by_who_has_written_it() {
        let text = OF_THE_PAST.split(|byte| *byte == b'\n').nth(1).unwrap();
        let head: serde_json::Value = serde_json::from_slice(text).unwrap();
        let whole = |head: &serde_json::Value| {
            let stamp = br#"{"format":1,"program":"9.9.9"}"#;
            [&stamp[..], b"\n", &serde_json::to_vec(head).unwrap(), b"\n"].concat()
        };
        read(&whole(&head)).unwrap();
        let parts = [
            "",
            "/request",
            "/request/mount",
            "/request/fs",
            "/request/fs/squash",
            "/request/fs/quota",
            "/again",
            "/session",
            "/policy",
            "/union",
            "/union/upper",
            "/union/upper/layer",
            "/union/upper/work",
            "/union/upper/caps",
            "/union/lowers/0",
            "/union/veils",
            "/union/regions",
            "/union/known",
            "/union/known/nameless/0",
            "/socket",
        ];
        for part in parts {
            let mut later = head.clone();
            let object = later.pointer_mut(part).unwrap().as_object_mut().unwrap();
            object.insert("warp".to_owned(), true.into());
            let why = read(&whole(&later)).unwrap_err();
            for told in ["later version", "9.9.9", "`warp`", env!("CARGO_PKG_VERSION")] {
                assert!(why.contains(told), "{part}: {why}");
            }
            assert!(!why.contains("expected"), "{part}: {why}");
        }
        let mut later = head;
        later["request"]["fs"]["lazy"] = "Sometimes".into();
        let why = read(&whole(&later)).unwrap_err();
        assert!(why.contains("later version") && why.contains("`Sometimes`"), "{why}");
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let cut = &OF_THE_PAST[..OF_THE_PAST.len() - 1];
        let (_, _, nodes) = read(cut).unwrap();
        assert!(nodes.last().unwrap().is_err());
    }
}
