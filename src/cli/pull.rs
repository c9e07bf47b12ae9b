//! `unionmount pull`: an image from a registry into the store.

use std::process::ExitCode;

use super::page::Page;
use super::registry::{AccessArgs, clear, load_options, parse_platform, progress};
use super::store::{LimitArgs, StoreArgs, UnpackArgs};
use super::{Failure, say};
use crate::image::platform::Platform;
use crate::image::store::Store;
use crate::registry::{Access, Pulled, pull};

/// Bring an image from a registry into the store
///
/// A name without a registry is one of docker.io, unless registries.conf says otherwise. What the store has is not sent
/// again, and a pull that broke off, or was killed, goes on where it was. What comes is checked against its digests.
#[derive(Debug, clap::Args)]
pub(super) struct Pull {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    unpacking: UnpackArgs,

    /// Of several, take the image for this platform [default: the one that runs best here]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse_platform)]
    platform: Option<Platform>,

    /// Print the id alone, and no progress
    #[arg(short, long)]
    quiet: bool,

    /// The image
    #[arg(value_name = "NAME[:TAG|@DIGEST]", required = true)]
    names: Vec<String>,
}

impl Pull {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let store = self.store.open()?;
        super::logging::tell_warnings();
        let access = self.access.access();
        let mut page = Page::default();
        let pulled = self.names.iter().try_for_each(|name| self.pull(&store, name, &access, &mut page));
        // What went well before a failure is told too.
        page.print()?;
        pulled.map(|()| ExitCode::SUCCESS)
    }

    fn pull(&self, store: &Store, name: &str, access: &Access, page: &mut Page) -> Result<(), Failure> {
        let bars = progress(self.quiet);
        let options = load_options(&self.limits, &self.unpacking, &bars);
        let pulled = pull(store, name, self.platform.as_ref(), access, &options);
        clear(&bars)?;
        let pulled = pulled?;
        tell_taken(&pulled);
        if self.quiet {
            page.line(format_args!("{}", pulled.loaded.id));
            return Ok(());
        }
        page.line(format_args!("Digest: {}", pulled.digest));
        let what = if pulled.is_known { "Up to date" } else { "Pulled image" };
        page.line(format_args!("{what}: {}", pulled.reference));
        Ok(())
    }
}

/// Says which names another image has lost.
pub(super) fn tell_taken(pulled: &Pulled) {
    for (name, id) in &pulled.loaded.taken {
        say(&format!("{name} was the name of image {} before, which keeps its other names", id.short()));
    }
}
