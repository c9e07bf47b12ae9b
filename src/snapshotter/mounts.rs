//! What containerd is told to mount.
//!
//! | snapshot | mount |
//! |---|---|
//! | without parents | its own layer, bound |
//! | a view of one parent | the parent's layer, bound read-only |
//! | else | a union: type `fuse3.PROGRAM` |
//!
//! For a type that starts with `fuse3.` containerd runs `mount.fuse3 SOURCE TARGET -o OPTION … -t PROGRAM`, which in turn
//! has `/bin/sh` run `PROGRAM SOURCE TARGET -o OPTION,…`. So the type may name a program in containerd's PATH, or where
//! it lies.

use std::path::Path;

use super::error::{Error, Result};
use super::places::Places;
use super::store::{Labels, SnapshotKind};

/// containerd's clients ask for other owners by these.
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";
/// A client that unpacks an image says by this which layer the snapshot is to become.
const UNPACKED_LAYER: &str = "containerd.io/snapshot.ref";

/// One mount, as containerd's API has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The filesystem's type.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Options as in fstab.
    pub options: Vec<String>,
}

/// Returns the mount of the snapshot `number`, which lies on `parents`, the topmost first.
pub fn mount(
    places: &Places,
    program: &str,
    number: u64,
    kind: SnapshotKind,
    parents: &[u64],
    labels: &Labels,
) -> Result<Mount> {
    let mapping = mapping(labels);
    match (parents, kind) {
        ([], SnapshotKind::View) => bind(&places.layer(number), "ro"),
        ([], _) => bind(&places.layer(number), "rw"),
        ([parent], SnapshotKind::View) if mapping.is_empty() => bind(&places.layer(*parent), "ro"),
        _ => {
            let mut options = mapping;
            let lowers: Result<Vec<String>> =
                parents.iter().map(|parent| escape(&places.layer(*parent))).collect();
            options.push(format!("lowerdir={}", lowers?.join(":")));
            if kind == SnapshotKind::Active {
                options.push(format!("upperdir={}", escape(&places.layer(number))?));
                options.push(format!("workdir={}", escape(&places.work(number))?));
                if labels.contains_key(UNPACKED_LAYER) {
                    // The commit syncs once. What is unpacked when the machine crashes is unpacked anew.
                    options.push("volatile".into());
                }
            } else {
                options.push("ro".into());
            }
            Ok(Mount { kind: format!("fuse3.{program}"), source: "unionmount".into(), options })
        }
    }
}

fn bind(layer: &Path, mode: &str) -> Result<Mount> {
    let source = utf8(layer)?.to_owned();
    Ok(Mount { kind: "bind".into(), source, options: vec![mode.into(), "rbind".into()] })
}

/// Returns `CONTAINER:HOST:SIZE`, several with commas between, in the form of the mount's option, which has colons
/// only.
fn mapping(labels: &Labels) -> Vec<String> {
    [(UID_MAPPING, "uidmapping"), (GID_MAPPING, "gidmapping")]
        .into_iter()
        .filter_map(|(label, option)| Some(format!("{option}={}", labels.get(label)?.replace(',', ":"))))
        .collect()
}

/// Returns a path within an option.
fn escape(path: &Path) -> Result<String> {
    let mut escaped = String::new();
    for part in utf8(path)?.chars() {
        if matches!(part, ',' | ':' | '"' | '\\') {
            escaped.push('\\');
        }
        escaped.push(part);
    }
    Ok(escaped)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| Error::Invalid(format!("{}: not UTF-8, which containerd needs", path.display())))
}
