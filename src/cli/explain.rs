//! `unionmount explain`: where a path comes from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::Failure;
use super::page::Page;
use crate::control::client::Client;
use crate::control::explanation::Explanation;
use crate::control::mounts;
use crate::explain::paint::Paint;
use crate::explain::picture::draw;
use crate::explain::report::explain;
use crate::union::escaped_path::EscapedPath;
use crate::union::lookup::provenance::View;

/// Tell where a path comes from: what each layer holds, which one is shown and why, what a change would do
#[derive(Debug, Args)]
#[command(after_help = AFTER, after_long_help = AFTER_LONG)]
pub(super) struct Explain {
    /// Print a JSON object for each path, on a line of its own
    #[arg(long)]
    json: bool,

    /// Ask this stack instead of a mount: read-only layers, directories or tars, the first on top; PATH then is one in the merged view
    #[arg(long = "lower", value_name = "DIR[:DIR…]")]
    lowers: Vec<OsString>,

    /// The writable layer of that stack; it is only read
    #[arg(long, value_name = "DIR", requires = "lowers")]
    upper: Option<PathBuf>,

    /// A path in a mount. It need not exist: what hides it is told then
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
}

const AFTER: &str = "\
Example:
  unionmount explain merged/etc/passwd
  unionmount explain --lower patch:app:base --upper rw /etc/passwd   # nothing need be mounted";

const AFTER_LONG: &str = "\
EXAMPLES:
  unionmount explain merged/etc/passwd
  unionmount explain --lower patch:app:base --upper rw /etc/passwd   # nothing need be mounted
  unionmount explain --json merged/bin/sh | jq .winner

LAYERS are numbered as given: 1 is the topmost of the lowers, `upper` (0 in JSON) is above them.

SIGNS:
  ●  shown    ◆  a directory that is merged with others    ○  hidden    ✗  a whiteout    ·  nothing there

JSON, one object a path:
  path               in the mount
  kind               file, directory, symlink, fifo, socket, char-device, block-device; null: not in the merged view
  winner             the layer that shows it, or the topmost of those that are merged; null: none
  merged, hidden     layers that are merged; layers that have something of that name which isn't shown
  why                a sentence
  layers[]           layer, name, directory, entries[]: path, holds (absent, entry, whiteout), role (shown, merged,
                     hidden, ends, none), kind, size, mode, mtime, form, opaque, redirect, data_in, blocks, hidden_by
  on_write, on_delete, on_rename
                     action (in-place, copy-up, create, remove, remove-when-empty, rename, nothing, refused),
                     copy_up {from, bytes}, parents[], whiteout, redirect, text

The same is readable on the mount: getfattr -n user.unionmount.layer FILE; also .layers, .path, .state, .hidden.

EXIT STATUS:
  0  every path is in the merged view
  1  one is not, or it could not be done (then one line on stderr says why)
  2  the command line is wrong";

impl Explain {
    /// Runs the verb.
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let explanations = if self.lowers.is_empty() { self.of_mounts()? } else { self.of_stack()? };
        let mut page = Page::default();
        let paint = Paint::of_stdout();
        for (at, (shown, explanation)) in explanations.iter().enumerate() {
            if self.json {
                page.json(explanation)?;
            } else {
                if at > 0 {
                    page.drawn("\n");
                }
                page.drawn(&draw(explanation, paint, shown));
            }
        }
        page.print()?;
        let all = explanations.iter().all(|(_, explanation)| explanation.kind.is_some());
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Opens the layers itself.
    fn of_stack(&self) -> Result<Vec<(EscapedPath, Explanation)>, Failure> {
        let lowers = super::lowers::sources(super::lowers::named(&self.lowers)?)?;
        let view = View::of_sources(lowers, self.upper.as_deref()).map_err(Failure::failed)?;
        let each = self.paths.iter().map(|path| {
            let explanation = view
                .follow_links(path.as_os_str().as_bytes())
                .and_then(|path| explain(view.inspector(), &path))
                .map_err(|error| {
                    Failure::failed(format!("{}: {error}", EscapedPath::from(path.as_path())))
                })?;
            Ok((explanation.path.clone(), explanation))
        });
        each.collect()
    }

    /// Asks the daemons.
    fn of_mounts(&self) -> Result<Vec<(EscapedPath, Explanation)>, Failure> {
        let mut clients: BTreeMap<String, Client> = BTreeMap::new();
        let mut explanations = Vec::new();
        for path in &self.paths {
            let (mount, relative) = mounts::of(path).map_err(Failure::failed)?;
            let client = match clients.entry(mount.device.clone()) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(free) => {
                    free.insert(Client::connect(&mount).map_err(Failure::failed)?)
                }
            };
            let explanation = client.explain(relative).map_err(Failure::failed)?;
            let shown = EscapedPath(path.clone().into_os_string().into_vec());
            explanations.push((shown, explanation));
        }
        Ok(explanations)
    }
}
