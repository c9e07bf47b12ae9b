//! Where the search for a name goes on below layers that are merged into one.

use crate::error::Result;
use crate::union::Union;
use crate::union::lookup::found::{Found, FoundKind, RealDirs};
use crate::union::lookup::marker::{WH_PREFIX, WhiteoutMark};
use crate::union::lookup::realdir::{LayerIndex, RealDir};
use crate::union::lookup::search::{LayerEntry, LayerVisit};
use std::sync::Arc;

/// Where the layers below are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// Nowhere: something ends the search.
    End,
    /// At that path from their roots; empty: at the roots themselves.
    At(Vec<u8>),
}

impl Way {
    /// Returns the way of an entry of that name, as long as nothing says otherwise.
    pub fn join(&self, name: &[u8]) -> Way {
        match self {
            Way::End => Way::End,
            Way::At(path) => Way::At([path, b"/".as_slice(), name].concat()),
        }
    }
}

/// What layers that are merged show of a name.
#[derive(Debug)]
pub(super) enum Shown {
    /// Nothing.
    Nothing,
    /// A whiteout, under that name in that directory.
    Whiteout { dir: Arc<RealDir>, name: Vec<u8>, by_xattr: bool },
    /// No directory, under that name in that directory.
    Leaf { dir: Arc<RealDir>, name: Vec<u8> },
    /// These directories.
    Directory(RealDirs),
}

/// Looks what directories have under a name, and where the search goes on below them. `way`: that of the directories.
///
/// # Errors
/// Those of reading the layers.
pub(super) fn look(union: &Union, dirs: &[Arc<RealDir>], name: &[u8], way: &Way) -> Result<(Shown, Way)> {
    let (mut first, mut goes_on, mut jump) = (None, way.join(name), None);
    let mut visitor = |visit: LayerVisit<'_>| {
        if jump.is_some() {
            return; // at the end of a redirect's path, which is looked at by itself
        }
        let (dir, name) = (visit.dir, visit.name);
        let met = match visit.seen {
            LayerEntry::Nothing => return,
            LayerEntry::Whiteout(form) => {
                goes_on = Way::End;
                let name =
                    if form == WhiteoutMark::Aufs { [WH_PREFIX, name].concat() } else { name.to_vec() };
                Shown::Whiteout { dir: dir.clone(), name, by_xattr: form == WhiteoutMark::Xattr }
            }
            LayerEntry::Leaf { .. } => {
                goes_on = Way::End;
                Shown::Leaf { dir: dir.clone(), name: name.to_vec() }
            }
            LayerEntry::Directory { marks, cut, .. } => {
                match (cut, &marks.redirect) {
                    (Some(_), _) => goes_on = Way::End,
                    (None, Some(path)) if path.starts_with(b"/") => {
                        jump = Some((dir.layer + 1, path.clone()))
                    }
                    (None, Some(name)) => goes_on = way.join(name),
                    (None, None) => {}
                }
                Shown::Nothing // which directories they are is told in the end
            }
        };
        first.get_or_insert(met);
    };
    let found = union.search_name_telling(dirs, name, &mut visitor)?;
    if let Some((layer, path)) = jump {
        goes_on = of_path(union, layer, &path)?;
    }
    let shown = match found {
        Some(Found { what: FoundKind::Directory { dirs, .. }, .. }) => Shown::Directory(dirs),
        _ => first.unwrap_or(Shown::Nothing),
    };
    Ok((shown, goes_on))
}

/// Returns where the search for an absolute path goes on that begins at the layer `from`.
fn of_path(union: &Union, from: LayerIndex, path: &[u8]) -> Result<Way> {
    let below = union.merged_layers().get(usize::from(from)..).unwrap_or_default();
    let mut dirs: RealDirs = below.iter().map(|layer| layer.root.clone()).collect();
    let mut way = Way::At(Vec::new());
    for component in path.split(|&byte| byte == b'/').filter(|component| !component.is_empty()) {
        let (shown, goes_on) = look(union, &dirs, component, &way)?;
        way = goes_on;
        dirs = match shown {
            Shown::Directory(dirs) => dirs,
            _ => RealDirs::new(),
        };
    }
    Ok(way)
}
