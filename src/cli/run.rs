//! `unionmount run`: a command in a new container.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use super::container::ContainerArgs;
use super::{Failure, say};
use crate::container::{ContainerError, bundle, executable, namespace, runtime, sandbox};
use crate::image::platform::{Machine, Platform};
use crate::image::store::Image;

/// Run a command in a new container of an image; ends with the command's exit status
///
/// Needs an OCI runtime: crun, runc or youki. As an ordinary user also the program newuidmap and subordinate ids. Ends with
/// 125 when the container could not be made, 126 when the command is no program, 127 when there is none.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// Remove the container when the command has ended
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_possible_values = true, hide_default_value = true, value_name = "true|false")]
    rm: bool,

    /// The OCI runtime [default: crun, runc or youki, whichever is there]
    #[arg(long, value_name = "PROGRAM", env = "UNIONMOUNT_RUNTIME")]
    runtime: Option<PathBuf>,

    #[command(flatten)]
    container: ContainerArgs,
}

impl Run {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        self.run_to_its_end().map_err(|failure| Failure { code: OWN_FAILURE, ..failure })
    }

    fn run_to_its_end(self) -> Result<ExitCode, Failure> {
        // Before anything is made.
        let runtime = runtime::find(self.runtime.as_deref())?;
        if self.container.tty() && !std::io::stdin().is_terminal() {
            return Err(Failure::usage("-t needs a terminal, and stdin is none; leave it out"));
        }
        let settings = self.container.settings()?;
        namespace::enter()?;
        sandbox::check(&settings, runtime::in_user_namespace())?;
        let store = self.container.open()?;
        let image = self.container.image(&store)?;
        check_system(&image)?;
        let foreign = Platform::read(&image.document).filter(|platform| platform.rank().is_none());
        if let Some(platform) = &foreign
            && executable::has_emulators()
        {
            say(&format!(
                "the image is for {platform}, and this machine is {}: its programs run by an emulator alone \
                 (qemu-user and binfmt_misc; Debian has both in qemu-user-static)",
                Machine::here()
            ));
        }
        bundle::command(&image.config, &settings)?;
        let mut container = self.container.create(&store, &image, settings)?;
        let ended = runtime.run(&store, &mut container, &image.config);
        if self.rm {
            match container.discard() {
                // The first error is the one to tell.
                Err(error) if ended.is_err() => log::warn!("the container is left: {error}"),
                removed => removed?,
            }
        }
        if let Err(ContainerError::NoProgram { code, why }) = &ended {
            say(why);
            return Ok(ExitCode::from(*code));
        }
        Ok(ExitCode::from(u8::try_from(ended?).unwrap_or(u8::MAX)))
    }
}

/// Refuses an image of another system than Linux, such as Windows: all else that is done with images is done with it too.
fn check_system(image: &Image) -> Result<(), Failure> {
    let system = image.config.os().to_string();
    if system.is_empty() || system == "linux" {
        return Ok(());
    }
    let name = image.names.first().map_or_else(|| image.id.short(), ToString::to_string);
    Err(Failure::failed(format!(
        "{name} is an image for {system}, whose programs don't run here; layers, explain, mount, cp and save take it as any other"
    )))
}

/// The status that says: not the command has failed, but what was to run it. As of other engines.
pub(super) const OWN_FAILURE: u8 = 125;
