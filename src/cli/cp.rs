//! `unionmount cp`: files in and out of containers, images and mounts.

use std::ffi::{OsStr, OsString};
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::output::count;
use super::store::StoreArgs;
use super::{Failure, say};
use crate::container::cp::root::{Root, find};
use crate::container::cp::scope::{Scope, split};
use crate::container::cp::target::How;
use crate::container::cp::{Copied, copy, stream};
use crate::explain::names;
use crate::image::compression;
use crate::image::store::Store;

/// Copy files between the host and a container, an image or a mount
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Cp {
    #[command(flatten)]
    store: StoreArgs,

    /// Copy owners too, with setuid bits, file capabilities and ACLs
    #[arg(short, long)]
    archive: bool,

    /// Follow a symbolic link that SOURCE is
    #[arg(short = 'L', long)]
    follow_link: bool,

    /// Don't say what was copied
    #[arg(short, long)]
    quiet: bool,

    /// What is copied; NAME is a container, an image or a mount point; - is a tar on stdin
    #[arg(value_name = "NAME:PATH|PATH|-")]
    source: OsString,

    /// Where it goes; - is a tar on stdout
    #[arg(value_name = "NAME:PATH|PATH|-")]
    destination: OsString,
}

const EXAMPLES: &str = "\
EXAMPLES:
  Out of a container, an image and a mount, and into a container:
      unionmount cp build:/etc/app.conf .
      unionmount cp debian:12:/etc/os-release .
      unionmount cp merged:/srv backup
      unionmount cp -a site/. build:/srv

  As a tar, and from one container to another:
      unionmount cp build:/srv - > srv.tar
      unionmount cp build:/srv - | unionmount cp - other:/

WHERE IT GOES is told as by docker cp: into a directory that is there, by its own name; DIR/. is what is in DIR; else to the \
file or the new directory of that name. With a slash behind it, it must be a directory. Files that are there are replaced, each \
at once; a directory takes no file's place, and no file a directory's.

PATHS in a container begin at its root, and links there lead nowhere else. Owners are those of who copies, or the container's \
root, unless -a is given. Modes and times are copied; devices come to the host never.";

/// What is set when the user ends it.
static STOPPED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Lets what is half made be taken away before this ends; a second signal ends it at once.
fn stop_on_signals() -> Result<&'static Arc<AtomicBool>, Failure> {
    let stopped = STOPPED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_default(signal, stopped.clone())
            .and_then(|_| signal_hook::flag::register(signal, stopped.clone()))
            .map_err(|error| Failure::failed(format!("cannot catch signals: {error}")))?;
    }
    Ok(stopped)
}

impl Cp {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.existing()?;
        // Of a stream nothing lies around half made, and who waits for it ends at once.
        let stopped = if is_stream(&self.source) { None } else { Some(stop_on_signals()?) };
        let how = How { archive: self.archive, stopped };
        let copied = match (split(&self.source), split(&self.destination)) {
            (Some((name, path)), None) => self.copy_out(store.as_ref(), (&name, &path), how)?,
            (None, Some((name, path))) => self.copy_in(store.as_ref(), (&name, &path), how)?,
            (Some(_), Some(_)) => {
                return Err(Failure::usage(
                    "one of both is a path of the host; between two containers goes a tar: unionmount cp ONE:PATH - | \
                     unionmount cp - OTHER:DIR",
                ));
            }
            (None, None) => {
                return Err(Failure::usage(
                    "neither SOURCE nor DESTINATION is NAME:PATH, with a container, an image or a mount point as NAME; cp(1) \
                     copies on the host",
                ));
            }
        };
        if !self.quiet && super::messages_are_read_on_a_terminal() {
            let files = count(copied.objects, "file");
            say(&format!(
                "copied {files}, {}, to {}",
                names::bytes(copied.bytes),
                self.destination.display()
            ));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Copies out of a tree, to the host or as a tar.
    fn copy_out(
        &self,
        store: Option<&Store>,
        (name, path): (&str, &[u8]),
        how: How,
    ) -> Result<Copied, Failure> {
        let named = find(store, name)?;
        // Before namespaces are entered in which paths of the host may lead elsewhere.
        let destination = match is_stream(&self.destination) {
            true if super::page::is_terminal() => {
                return Err(Failure::usage("a tar is nothing for a terminal: redirect it, or name a file"));
            }
            true => None,
            false => Some(Scope::host()?.destination(self.destination.as_bytes())?),
        };
        let root = Root::open(store, &named, name)?;
        let source = root.scope()?.source(path, self.follow_link)?;
        let done = match destination {
            Some(destination) => copy(&source, destination, how),
            None => {
                let mut out = BufWriter::new(super::page::own_stdout().lock());
                let written = stream::write(&source, &mut out);
                out.flush().map_err(|error| Failure::failed(format!("cannot write to stdout: {error}")))?;
                written
            }
        };
        drop(source);
        ended(done, root)
    }

    /// Copies into a tree, from the host or out of a tar.
    fn copy_in(
        &self,
        store: Option<&Store>,
        (name, path): (&str, &[u8]),
        how: How,
    ) -> Result<Copied, Failure> {
        let named = find(store, name)?;
        let source = match is_stream(&self.source) {
            true => None,
            false => Some(Scope::host()?.source(self.source.as_bytes(), self.follow_link)?),
        };
        let root = Root::open(store, &named, name)?;
        root.check_writable()?;
        let destination = root.scope()?.destination(path)?;
        let done = match &source {
            Some(source) => copy(source, destination, how),
            None => {
                let tar = compression::decode(BufReader::new(std::io::stdin()));
                let (_, tar) = tar.map_err(|error| Failure::failed(format!("stdin: {error}")))?;
                stream::read(tar, destination, how)
            }
        };
        ended(done, root)
    }
}

fn is_stream(text: &OsStr) -> bool {
    text == "-"
}

/// Waits until what was copied is in its layer. The first error is the one to tell.
fn ended(done: crate::container::Result<Copied>, root: Root) -> Result<Copied, Failure> {
    let closed = root.close();
    let copied = done?;
    closed?;
    Ok(copied)
}
