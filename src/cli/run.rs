//! `unionmount run`: a command in a new container.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use super::container::ContainerArgs;
use super::{Failure, say};
use crate::container::{bundle, namespace, runtime};
use crate::image::platform::{Machine, Platform};

/// Run a command in a new container of an image; ends with the command's exit status
///
/// Needs an OCI runtime: crun, runc or youki. As an ordinary user also the program newuidmap and subordinate ids.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// Remove the container when the command has ended
    #[arg(long)]
    rm: bool,

    /// The OCI runtime [default: crun, runc or youki, whichever is there]
    #[arg(long, value_name = "PROGRAM", env = "UNIONMOUNT_RUNTIME")]
    runtime: Option<PathBuf>,

    #[command(flatten)]
    container: ContainerArgs,
}

impl Run {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        // Before anything is made.
        let runtime = runtime::find(self.runtime.as_deref())?;
        if self.container.tty() && !std::io::stdin().is_terminal() {
            return Err(Failure::usage("-t needs a terminal, and stdin is none; leave it out"));
        }
        namespace::enter()?;
        let store = self.container.open()?;
        let image = self.container.image(&store)?;
        let foreign = Platform::read(&image.document).filter(|platform| platform.rank().is_none());
        if let Some(platform) = &foreign {
            say(&format!(
                "the image is for {platform}, and this machine is {}: its programs run by an emulator alone \
                 (qemu-user and binfmt_misc; Debian has both in qemu-user-static)",
                Machine::here()
            ));
        }
        let mut container = self.container.create(&store, &image)?;
        let ended = bundle::command(&image.config, &container.record.settings)
            .and_then(|_| runtime.run(&store, &mut container, &image.config));
        if self.rm {
            let removed = container.remove(false);
            // Somebody else may have removed it, with rm -f; and the first error is the one to tell.
            if ended.is_ok() && container.exists() {
                removed?;
            }
        }
        Ok(ExitCode::from(u8::try_from(ended?).unwrap_or(u8::MAX)))
    }
}
