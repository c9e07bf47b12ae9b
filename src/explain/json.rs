//! A survey for programs: `unionmount layers --json`.
//!
//! ```json
//! {"layers": [{"layer": 2, "name": "base", "path": "/…/base", "upper": false, "holds": {…}, …}, …],
//!  "bytes": 4096, "wasted_bytes": 12, "waste_percent": 0.3, "efficiency": 99.7,
//!  "merged_files": 3, "merged_directories": 1,
//!  "entries": [{"path": "etc/os", "layer": 2, "from": 2, "hidden_by": 1, "what": "added", "replaces": null,
//!               "kind": "file", "size": 12, "mode": "0644", "mtime": 1700000000, "opaque": false}, …]}
//! ```
//!
//! Layer 0 is the upper, the lowers count from 1, the topmost, down. An entry is to be seen in the merged view of layer *n*
//! and those below it for every *n* from `from` upwards to, and not including, `hidden_by`; with `hidden_by` null to the
//! top. A whiteout has the kind
//! `whiteout` and the `what` `deleted`; a symlink has its `target`. A path that is not UTF-8 has replacement characters in `path`, and all its bytes
//! in `path_hex`.

use std::io::{self, Write};

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use super::figures::{Figures, LayerFigures};
use super::names;
use super::survey::{LayerAction, Number, Survey};

#[derive(Serialize)]
struct Document<'a> {
    layers: Vec<LayerJson<'a>>,
    bytes: u64,
    wasted_bytes: u64,
    waste_percent: f64,
    efficiency: f64,
    merged_files: u64,
    merged_directories: u64,
    unreadable_directories: usize,
    entries: Entries<'a>,
}

#[derive(Serialize)]
struct LayerJson<'a> {
    layer: Number,
    name: &'a str,
    path: String,
    upper: bool,
    #[serde(flatten)]
    figures: &'a LayerFigures,
}

/// Written one by one: a large image has a million.
struct Entries<'a>(&'a Survey);

#[derive(Serialize)]
struct EntryJson<'a> {
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    layer: Number,
    from: Number,
    hidden_by: Option<Number>,
    what: LayerAction,
    replaces: Option<Number>,
    kind: &'static str,
    size: u64,
    mode: String,
    mtime: i64,
    opaque: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let survey = self.0;
        let mut all = serializer.serialize_seq(None)?;
        for place in 1..survey.places.len() {
            let path = survey.path(place);
            let text = String::from_utf8_lossy(&path);
            let hex = std::str::from_utf8(&path).is_err().then(|| hex::encode(&path));
            for h in survey.holdings(place) {
                all.serialize_element(&EntryJson {
                    path: &text,
                    path_hex: hex.clone(),
                    layer: survey.told(h.layer),
                    from: survey.told(h.from),
                    hidden_by: h.hidden_by.map(|by| survey.told(by)),
                    what: h.what(),
                    replaces: h.replaces.map(|layer| survey.told(layer)),
                    kind: names::kind(h.kind),
                    size: h.size,
                    mode: format!("{:04o}", h.mode & 0o7777),
                    mtime: h.mtime,
                    opaque: h.opaque,
                    target: survey.target(h).map(|target| String::from_utf8_lossy(target).into_owned()),
                })?;
            }
        }
        all.end()
    }
}

/// Writes the survey.
pub fn write(survey: &Survey, figures: &Figures, mut out: impl Write) -> io::Result<()> {
    let layers =
        survey.layers.iter().zip(&figures.layers).enumerate().map(|(index, (layer, figures))| LayerJson {
            layer: survey.told(index as Number + 1),
            name: &layer.name,
            path: layer.path.to_string_lossy().into_owned(),
            upper: layer.upper,
            figures,
        });
    let document = Document {
        layers: layers.collect(),
        bytes: figures.bytes,
        wasted_bytes: figures.wasted_bytes,
        waste_percent: figures.waste_percent(),
        efficiency: figures.efficiency(),
        merged_files: figures.merged_files,
        merged_directories: figures.merged_directories,
        unreadable_directories: survey.unreadable.len(),
        entries: Entries(survey),
    };
    serde_json::to_writer(&mut out, &document)?;
    out.write_all(b"\n")
}
