//! Where a file comes from, readable on the mount as extended attributes that no layer holds.
//!
//! | attribute | value |
//! |---|---|
//! | `user.unionmount.layer` | the layer that shows it: `upper`, or the lower's number, 1 being the topmost |
//! | `user.unionmount.layers` | all layers that are merged in a directory, topmost first: `upper,2,3`; of a file the one |
//! | `user.unionmount.path` | where it really is, an absolute path |
//! | `user.unionmount.state` | `lower`: a write copies it up; `upper`: only the upper has it; `changed`: the upper's is shown instead of a lower's; `merged`: a directory of upper and lowers; `unlinked` |
//! | `user.unionmount.hidden` | the layers that have something of that name which isn't shown; may be empty |
//!
//! They are never listed, so that `cp -a` and rsync don't copy them, and can't be set. The kernel lets programs ask for
//! `user.` attributes of regular files and directories only; of others `unionmount explain` tells.

use crate::error::{FsError, Result};
use crate::union::Union;
use crate::union::lookup::provenance::{Holds, Outcome, Provenance};
use crate::union::lookup::realdir::LayerIndex;
use crate::union::nodes::node::{Node, NodePlace};

impl Union {
    /// Returns the value of the attribute `PREFIX` + `fact`.
    pub(in crate::union) fn fact(&self, node: &Node, fact: &[u8]) -> Result<Vec<u8>> {
        if !matches!(fact, b"layer" | b"layers" | b"path" | b"state" | b"hidden") {
            return Err(FsError::NoXattr);
        }
        if let NodePlace::Pinned { upper, .. } = &*node.place.read() {
            return match fact {
                b"state" => Ok(b"unlinked".to_vec()),
                b"layer" | b"layers" if *upper => Ok(b"upper".to_vec()),
                _ => Err(FsError::NoXattr),
            };
        }
        let found = self.inspector().provenance(&self.path_of(node))?;
        let winner = found.winner().ok_or(FsError::Stale)?;
        let copied_elsewhere = matches!(found.outcome, Outcome::Leaf { copied_elsewhere: true, .. });
        let winner = if copied_elsewhere { 0 } else { winner };
        let layers = match &found.outcome {
            Outcome::Directory { layers, .. } => layers.clone(),
            _ => vec![winner],
        };
        Ok(match fact {
            b"layer" => self.layer_word(winner).into_bytes(),
            b"layers" => self.layer_words(&layers).into_bytes(),
            b"hidden" => self.layer_words(&found.hidden()).into_bytes(),
            b"path" if copied_elsewhere => return Err(FsError::NoXattr),
            b"path" => self.inspector().real_path(winner, real_place(&found, winner))?,
            _ => state(self.is_upper(winner), &layers, found.below).into(),
        })
    }

    fn layer_words(&self, layers: &[LayerIndex]) -> String {
        layers.iter().map(|layer| self.layer_word(*layer)).collect::<Vec<_>>().join(",")
    }

    fn layer_word(&self, layer: LayerIndex) -> String {
        match self.layer_number(layer) {
            0 => "upper".to_owned(),
            number => number.to_string(),
        }
    }
}

/// Returns where in its layer the winner is.
fn real_place(found: &Provenance, winner: LayerIndex) -> &[u8] {
    let shown = |holds: &Holds| matches!(holds, Holds::Leaf { .. } | Holds::Directory { .. });
    let held = found.held.iter().find(|h| h.layer == winner && h.hidden.is_none() && shown(&h.holds));
    held.map_or(&found.path, |held| &held.path)
}

fn state(upper: bool, layers: &[LayerIndex], below: bool) -> &'static str {
    match (upper, layers.len() > 1, below) {
        (false, ..) => "lower",
        (true, true, _) => "merged",
        (true, false, true) => "changed",
        (true, false, false) => "upper",
    }
}
