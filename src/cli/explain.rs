//! `unionmount explain`: where a path comes from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::language::Language;
use super::page::Page;
use super::stacks::{self, Found};
use super::store::{StoreArgs, no_mount_has, nothing_is_called};
use super::{Failure, lowers, terminal};
use crate::container::cp::scope::split;
use crate::control::client::Client;
use crate::control::explanation::Explanation;
use crate::control::mounts;
use crate::explain::paint::Paint;
use crate::explain::picture::draw;
use crate::explain::report::{call_layers, explain_in};
use crate::texts::Texts;
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

    #[command(flatten)]
    language: Language,

    #[command(flatten)]
    store: StoreArgs,

    /// Paths in mounts; or an image or a container by name or id, and paths in that: NAME PATH or NAME:PATH; or an archive or
    /// oci:DIR[:NAME], and paths in it. They need not exist: what hides them is told then
    #[arg(value_name = "PATH|NAME PATH", required = true)]
    paths: Vec<PathBuf>,
}

const AFTER: &str = "\
Example:
  unionmount explain merged/etc/passwd
  unionmount explain debian:12 /etc/passwd                           # which step of the build it comes from
  unionmount explain --lower patch:app:base --upper rw /etc/passwd   # nothing need be mounted";

const AFTER_LONG: &str = "\
EXAMPLES:
  unionmount explain merged/etc/passwd
  unionmount explain debian:12 /etc/passwd                           # which step of the build it comes from
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
        // Programs read the same sentences wherever they are.
        let texts = if self.json { Texts::english() } else { self.language.texts()? };
        let explanations = match self.lowers.is_empty() {
            false => self.of_stack(texts)?,
            true => match self.named(texts)? {
                Some((found, paths)) => of_found(texts, found, &paths)?,
                None => self.of_mounts(texts)?,
            },
        };
        let mut page = Page::default();
        let paint = Paint::of_stdout();
        for (at, (shown, explanation)) in explanations.iter().enumerate() {
            if self.json {
                page.json(explanation)?;
            } else {
                if at > 0 {
                    page.drawn("\n");
                }
                page.drawn(&draw(texts, explanation, paint, shown, terminal::room()));
            }
        }
        page.print()?;
        let all = explanations.iter().all(|(_, explanation)| explanation.kind.is_some());
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Finds the image or the container that is named, and the paths in it. `None`: the paths are those of mounts.
    fn named(&self, texts: &Texts) -> Result<Option<(Found, Vec<PathBuf>)>, Failure> {
        let Some((first, rest)) = self.paths.split_first() else { return Ok(None) };
        let inside = |path: &PathBuf| mounts::of(path).is_ok();
        let is_image = lowers::names_image(first);
        if !rest.is_empty() && (is_image || first.is_file() && !inside(first)) {
            return Ok(Some((Found::of_paths(vec![first.clone()], false), rest.to_vec())));
        }
        if let Some(text) = first.to_str().filter(|_| !rest.is_empty() && !stacks::is_path(first))
            && !inside(first)
        {
            let store = self.store.existing()?;
            let found = store.as_ref().map(|store| Found::named(texts, store, text)).transpose()?.flatten();
            return match found {
                Some(found) => Ok(Some((found, rest.to_vec()))),
                // What stands there by that name isn't in a mount, which will be told.
                None if first.symlink_metadata().is_ok() => Ok(None),
                None => Err(nothing_is_called(text)),
            };
        }
        let mut name: Option<String> = None;
        let mut paths = Vec::new();
        for path in &self.paths {
            let split = split(path.as_os_str()).filter(|_| path.symlink_metadata().is_err() && !inside(path));
            let Some((named, below)) = split else { break };
            if name.get_or_insert_with(|| named.clone()) != &named {
                return Err(Failure::usage("give paths of one image or one container"));
            }
            paths.push(PathBuf::from(OsString::from_vec(below)));
        }
        let Some(text) = name.filter(|_| paths.len() == self.paths.len()) else { return Ok(None) };
        let store = self.store.with_something()?;
        let found = Found::named(texts, &store, &text)?.ok_or_else(|| nothing_is_called(&text))?;
        Ok(Some((found, paths)))
    }

    /// Opens the layers itself.
    fn of_stack(&self, texts: &'static Texts) -> Result<Vec<(EscapedPath, Explanation)>, Failure> {
        let lowers = lowers::named(&self.lowers)?;
        let paths = self.upper.iter().cloned().chain(lowers).collect();
        of_found(texts, Found::of_paths(paths, self.upper.is_some()), &self.paths)
    }

    /// Asks the daemons.
    fn of_mounts(&self, texts: &'static Texts) -> Result<Vec<(EscapedPath, Explanation)>, Failure> {
        let mut clients: BTreeMap<String, Client> = BTreeMap::new();
        let mut explanations = Vec::new();
        for path in &self.paths {
            let (mount, relative) = mounts::of(path).map_err(no_mount_has)?;
            let client = match clients.entry(mount.device.clone()) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(free) => {
                    free.insert(Client::connect(&mount).map_err(Failure::failed)?)
                }
            };
            let mut explanation = client.explain(relative, texts.code()).map_err(Failure::failed)?;
            let names = stacks::names_of_mount(texts, &mount, &explanation.layers, &self.store);
            call_layers(texts, &mut explanation, &names);
            let shown = EscapedPath(path.clone().into_os_string().into_vec());
            explanations.push((shown, explanation));
        }
        Ok(explanations)
    }
}

/// Opens layers, and asks them.
fn of_found(
    texts: &'static Texts,
    found: Found,
    paths: &[PathBuf],
) -> Result<Vec<(EscapedPath, Explanation)>, Failure> {
    let (upper, lowers) = match found.paths.split_first() {
        Some((upper, lowers)) if found.upper => (Some(upper), lowers),
        _ => (None, &found.paths[..]),
    };
    let (lowers, of_images) = lowers::sources_and_names(lowers.to_vec())?;
    let names = match found.names.is_empty() {
        true => upper.iter().map(|_| None).chain(of_images).collect(),
        false => found.names,
    };
    let view = View::of_sources(lowers, upper.map(PathBuf::as_path)).map_err(Failure::failed)?;
    let each = paths.iter().map(|path| {
        let mut explanation = view
            .follow_links(path.as_os_str().as_bytes())
            .and_then(|path| explain_in(texts, view.inspector(), &path))
            .map_err(|error| Failure::failed(format!("{}: {error}", EscapedPath::from(path.as_path()))))?;
        call_layers(texts, &mut explanation, &names);
        Ok((explanation.path.clone(), explanation))
    });
    each.collect()
}
