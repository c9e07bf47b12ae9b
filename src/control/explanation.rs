//! The explanation of a path, as a daemon sends it and `unionmount explain --json` prints it. What makes it is
//! [`explain::report`](crate::explain::report).
//!
//! One JSON object a path. Layers are numbered as on the command line: 0 is the upper, 1 the topmost lower. Paths that
//! are not UTF-8 are `{"hex": "…"}`.
//!
//! | field | meaning |
//! |---|---|
//! | `path` | in the mount, `/` being its root |
//! | `kind` | `file`, `directory`, `symlink`, …; null: the merged view has no such path |
//! | `winner` | the layer that shows it, or the topmost of those that are merged; null: none |
//! | `merged` | the layers that are merged in a directory; of a file, the winner |
//! | `hidden` | the layers that have something of that name which isn't shown |
//! | `why` | a sentence |
//! | `layers` | from the top down: `layer`, `name`, `directory`, and the `entries` that it has: see [`EntryReport`] |
//! | `on_write`, `on_delete`, `on_rename` | what would happen: see [`PredictedEffect`] |
//! | `copying` | only while it is being copied up: see [`CopyingReport`] |

use serde::{Deserialize, Serialize};

use crate::union::change::copy_up::running::CopyingUp;
use crate::union::escaped_path::EscapedPath;
use crate::union::events::KindName;

/// All about one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the table above
pub struct Explanation {
    pub path: EscapedPath,
    pub kind: Option<KindName>,
    pub winner: Option<u16>,
    pub merged: Vec<u16>,
    pub hidden: Vec<u16>,
    pub why: String,
    pub layers: Vec<LayerReport>,
    pub on_write: PredictedEffect,
    pub on_delete: PredictedEffect,
    pub on_rename: PredictedEffect,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copying: Option<CopyingReport>,
}

/// A large file that is being copied up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyingReport {
    /// The path in the merged view.
    pub path: EscapedPath,
    /// The bytes of the file.
    pub bytes: u64,
    /// How many of them are done. Not told by older daemons.
    #[serde(default)]
    pub done: Option<u64>,
    /// The layer that it is copied from.
    pub layer: Option<u16>,
    /// How long that has taken so far, in microseconds.
    pub micros: u64,
}

impl From<&CopyingUp> for CopyingReport {
    fn from(copy: &CopyingUp) -> CopyingReport {
        CopyingReport {
            path: copy.path.clone().into(),
            bytes: copy.bytes,
            done: Some(copy.done()),
            layer: copy.layer,
            micros: u64::try_from(copy.since.elapsed().as_micros()).unwrap_or(u64::MAX),
        }
    }
}

/// One layer and what it has under the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Its number: 0 is the upper, 1 the topmost lower.
    pub layer: u16,
    /// A short name, made of its directory's.
    pub name: EscapedPath,
    /// Where it is.
    pub directory: EscapedPath,
    /// What it has: one entry; a second where a redirect has made two places of one.
    pub entries: Vec<EntryReport>,
}

/// What a layer has in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryReport {
    /// Where, relative to the layer.
    pub path: EscapedPath,
    /// What.
    pub holds: Holding,
    /// What it is to the merged view.
    pub role: Role,
    /// `holds` is `entry`: its kind.
    pub kind: Option<KindName>,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// Its permission bits, octal: `0644`.
    pub mode: Option<String>,
    /// Its modification time, RFC 3339.
    pub mtime: Option<String>,
    /// `holds` is `whiteout`: `device` (character device 0:0), `aufs` (a file `.wh.NAME`) or `xattr`.
    pub form: Option<String>,
    /// A directory that is opaque: what is below doesn't count.
    pub opaque: bool,
    /// A directory whose content the layers below have elsewhere: there.
    pub redirect: Option<EscapedPath>,
    /// A file that has only its metadata here: the layer that has its data.
    pub data_in: Option<u16>,
    /// Of such a file: which of its blocks are here. Not told by older daemons.
    #[serde(default)]
    pub blocks: Option<Blocks>,
    /// `role` is `hidden`: by what.
    pub hidden_by: Option<HiddenBy>,
}

/// Blocks of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// How many of them are here.
    pub own: u64,
    /// How many it has.
    pub all: u64,
}

/// What a layer has in one place, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Holding {
    Absent,
    Entry,
    Whiteout,
}

/// What an entry is to the merged view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It is shown.
    Shown,
    /// A directory that is merged with others.
    Merged,
    /// Something above hides it.
    Hidden,
    /// A whiteout that counts: it ends the name.
    Ends,
    /// Nothing.
    None,
}

/// What hides an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HiddenBy {
    /// The layer that it is in.
    pub layer: u16,
    /// The path of the merged view at which it stands.
    pub path: EscapedPath,
    /// `whiteout`, `opaque`, `entry`, `directory` or `redirect`.
    pub what: String,
}

/// What would happen on a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PredictedEffect {
    /// In a word.
    pub action: Action,
    /// What is copied up first, if anything is.
    pub copy_up: Option<CopyUp>,
    /// Directories that are copied up (they themselves, not what is in them) on the way, outermost first.
    pub parents: Vec<EscapedPath>,
    /// Whether a whiteout remains under the name.
    pub whiteout: bool,
    /// Whether what is moved gets a redirect to what the lowers have of it.
    pub redirect: bool,
    /// The same in words.
    pub text: String,
}

/// A copy-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyUp {
    /// From which layer.
    pub from: u16,
    /// How many bytes of data; 0 for what is not a regular file.
    pub bytes: u64,
}

/// What would happen, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The upper's own object is changed.
    InPlace,
    /// A lower's object is copied up, and the copy changed.
    CopyUp,
    /// It doesn't exist and would be made, in the upper.
    Create,
    /// The name goes away.
    Remove,
    /// The name goes away once the directory is empty; now it isn't.
    RemoveWhenEmpty,
    /// The name changes.
    Rename,
    /// It doesn't exist.
    Nothing,
    /// Refused: there is no upper, a parent is missing, or the name is not allowed.
    Refused,
}
