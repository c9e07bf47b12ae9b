//! `unionmount trace`: what happens in a mount, as it happens.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::language::Language;
use super::page::{Page, is_terminal};
use super::stacks;
use super::store::StoreArgs;
use super::{Failure, say};
use crate::control::client::Client;
use crate::control::mounts;
use crate::explain::paint::Paint;
use crate::explain::shorten::cut;
use crate::explain::words;
use crate::union::escaped_path::EscapedPath;
use crate::union::events::{EventKind, Filter};

/// Print what happens in a mount, as it happens: lookups, copy-ups, whiteouts, renames
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub(super) struct Trace {
    /// Print a JSON object for each event, on a line of its own
    #[arg(long)]
    json: bool,

    /// Only these kinds of events and these subtrees; may repeat
    #[arg(long, value_name = "KIND|/PATH[,…]", value_delimiter = ',')]
    filter: Vec<String>,

    #[command(flatten)]
    language: Language,

    #[command(flatten)]
    store: StoreArgs,

    /// A mount, or a directory in one: then only what happens below it
    #[arg(value_name = "MOUNT")]
    mount: PathBuf,
}

/// Columns that a layer's name has in a line; steps of builds are long.
const LONGEST_NAME: usize = 32;

const AFTER: &str = "\
Kinds of events:
  lookup      a name was looked up; the kernel remembers the answer, so this comes once for each name
  whiteout, opaque, redirect
              a lookup met such a mark, and it hides something or leads elsewhere
  copy-up-begins, copy-up-goes-on, copy-up
              a large file of a lower begins to be copied up; how far it is, once a second; a lower's file or
              directory was copied up, and in which time
  copy-range, seal
              with -o lazy: the blocks of a large file that a write copied up; with metacopy=on too: a file that
              has all its data now
  list, read, write
              requests that the kernel's cache did not answer
  copy        a program had data copied from one file to another in one call (copy_file_range, as cp and rsync do);
              where the layers' filesystems can't, it reads and writes
  allocate    room was set aside for a range, or the range made zeros (fallocate)
  open, close with -o passthrough: between them the kernel reads and writes the file
              itself, unseen; in which layer, and the size then and now
  create, link, remove, rename, attributes, xattr
              changes
Behind each stands which process asked for it, by name and number, where the kernel tells.

Example:
  unionmount trace merged --filter copy-up,whiteout
  unionmount trace merged --filter /etc,/usr/lib --json | jq .event

A mount that nobody listens to pays nothing. A listener that is too slow loses events, and is told how many; the mount
never waits. Only the user who mounted it and root may listen. It ends with the mount, or by Ctrl-C.";

impl Trace {
    /// Runs the verb.
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let texts = self.language.texts()?;
        let (mount, below) = mounts::of(&self.mount).map_err(Failure::failed)?;
        let filter = self.filter(&below)?;
        let client = Client::connect(&mount).map_err(Failure::failed)?;
        let mut trace = client.trace(filter).map_err(Failure::failed)?;
        if is_terminal() {
            let mount = EscapedPath::from(mount.point.as_path()).to_string();
            say(&texts.fill("trace.listening", &[("mount", &mount)]));
        }
        let names = stacks::names_of_mount(texts, &mount, &trace.status.layers, &self.store);
        let names: Vec<_> = names.into_iter().map(|name| name.map(|name| cut(&name, LONGEST_NAME))).collect();
        stacks::call_layers(&mut trace.status.layers, &names);
        let paint = Paint::of_stdout();
        while let Some(told) = trace.next_told().map_err(Failure::failed)? {
            let mut page = Page::default();
            match self.json {
                true => page.json(&told)?,
                false => page.drawn(&(words::line(texts, &told, &trace.status.layers, paint) + "\n")),
            }
            if !page.print_to_reader()? {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn filter(&self, below: &[u8]) -> Result<Filter, Failure> {
        let mut filter = Filter::default();
        for word in self.filter.iter().map(|word| word.trim()).filter(|word| !word.is_empty()) {
            if word.starts_with('/') {
                filter.paths.push(EscapedPath::from(word.as_bytes()));
            } else if EventKind::NAMES.contains(&word) {
                filter.kinds.push(word.to_owned());
            } else {
                return Err(Failure::usage(format!(
                    "--filter {word}: neither a path from the mount's root (/etc) nor a kind of event ({})",
                    EventKind::NAMES.join(", ")
                )));
            }
        }
        if !below.is_empty() {
            if !filter.paths.is_empty() {
                return Err(Failure::usage(
                    "give paths with --filter, or a directory in the mount, not both",
                ));
            }
            filter.paths.push(EscapedPath([b"/", below].concat()));
        }
        Ok(filter)
    }
}
